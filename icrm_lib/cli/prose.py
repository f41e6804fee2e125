"""Write the numbers in prose from the records: those of README.md, bench/README.md and the notebooks' Markdown.

    python -m icrm_lib.cli.prose

`make refresh` calls it first. Prints every number that was not what the records say.
"""

from icrm_lib import runtime
from icrm_lib.report.prose import pages, refill


def main() -> None:
    for page in pages(runtime.project_root()):
        for wrong in refill(page):
            print(f"{runtime.display_path(page)}: {wrong.found} is {wrong.right} ({wrong.what})")


if __name__ == "__main__":
    main()
