"""Makes a bare `pytest --nbval` right: this interpreter's kernel, the sanitize file, no hub, an honest count.

nbval executes every cell but compares only what is stored, unmarked and comparable; a notebook can pass with
nothing compared at all. So the summary says how many code cells were compared with content.
"""

import os
import re
from collections import defaultdict

import pytest

# Set here, before any library is imported, so that tests and the kernels they start inherit it.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["ICRM_UNATTENDED"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

FIGURE = re.compile(r"<Figure( size [^>]*)?>")  # the text form of a picture says nothing about it

# Where several processes share the files, each takes the next one in order. 03 makes the language model and the
# generator, 04 the reward models that 05 to 09 use; with tests in between nobody waits for what another is making.
EARLY = (
    *("notebooks/03", "tests/training", "tests/policy", "notebooks/04", "tests/lab"),
    *("notebooks/07", "notebooks/06", "notebooks/05", "notebooks/09"),
)

CELL = "nbval cell"  # notebook, whether there is something to compare, whether it has output


def nbval_is_on(config: pytest.Config) -> bool:
    """Is nbval installed and asked for? Without it the tests in tests/ still run."""
    return config.pluginmanager.hasplugin("nbval") and (config.option.nbval or config.option.nbval_lax)


def pytest_configure(config: pytest.Config) -> None:
    if not nbval_is_on(config):
        return
    if not config.option.nbval_kernel_name:
        config.option.nbval_current_env = True
    if not config.option.nbval_sanitize_with:
        config.option.nbval_sanitize_with = str(config.rootpath / "notebooks" / "sanitize.cfg")


def pytest_collectstart(collector: pytest.Collector) -> None:
    # The hook that nbval documents for this; what libraries write to stderr differs from machine to machine.
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr",)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not nbval_is_on(config):
        return
    items.sort(key=lambda item: [not item.nodeid.startswith(start) for start in EARLY])
    for item in items:
        # As a property it reaches the summary from the processes of pytest-xdist, too.
        if hasattr(item, "cell_num"):
            content = item.options["check"] and has_content(item.cell.outputs, item.parent.skip_compare)
            item.user_properties.append((CELL, [item.path.stem, content, bool(item.cell.outputs)]))


def has_content(outputs: list, skipped: tuple) -> bool:
    """Does nbval have anything to compare in these outputs, other than that a picture is there?

    Args:
        outputs: a cell's stored outputs.
        skipped: the keys that nbval leaves out, `skip_compare` of its collector.
    """
    for output in outputs:
        data = {output.name: output.text} if output.output_type == "stream" else output.get("data", {})
        if any(key not in skipped and not FIGURE.fullmatch(str(text).strip()) for key, text in data.items()):
            return True
    return False


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    cells = {}
    for outcome, reports in terminalreporter.stats.items():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == CELL:
                    cells[report.nodeid] = [*value, outcome == "passed"]
    if not cells:
        return
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for stem, content, with_output, passed in cells.values():
        row = (content and passed, with_output, True)
        for name in (stem, "total"):
            counts[name] = [count + new for count, new in zip(counts[name], row, strict=True)]
    terminalreporter.section("notebook cells compared with content")
    total = counts.pop("total")
    counts = dict(sorted(counts.items())) | {"total": total}
    width = max(map(len, counts))
    for name, (compared, with_output, code) in counts.items():
        terminalreporter.write_line(
            f"{name:<{width}}  {compared:3d} compared of {with_output:3d} with output of {code:3d} code cells"
        )
