"""Run a job again and again, killing it at random moments, until it was killed often enough; see test_interruption.

    python tests/kill_driver.py JOB FOLDER KILLS

Every child is forked from here with all imports done, so that the moments fall into the work. Prints one JSON line.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from icrm_lib import runtime

runtime.quiet()

import torch  # noqa: E402
from tiny import micro, micro_grid  # noqa: E402

from icrm_lib import records  # noqa: E402
from icrm_lib.generator import cache  # noqa: E402
from icrm_lib.lab.artefacts import made_with  # noqa: E402
from icrm_lib.lab.cell import code  # noqa: E402
from icrm_lib.lab.cells import Cell  # noqa: E402
from icrm_lib.lab.grid import run_grid  # noqa: E402
from icrm_lib.lab.workspace import Workspace  # noqa: E402
from icrm_lib.language_model import checkpoints  # noqa: E402
from icrm_lib.language_model.samples import sample  # noqa: E402
from icrm_lib.language_model.sampling import SamplingSettings  # noqa: E402
from icrm_lib.language_model.scratch import small_llama  # noqa: E402
from icrm_lib.testbed import Language  # noqa: E402
from icrm_lib.tokenization import prepare_tokenizer  # noqa: E402

# For a child that starts in any folder.
TESTS = Path(__file__).parent
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join((str(TESTS.parent), str(TESTS))),
    "OMP_NUM_THREADS": "1",
    "ICRM_UNATTENDED": "1",
}
# Times, and transformers' mean of the loss since the start or the resumption.
NOT_KEPT = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss")


def reward_model(folder: Path) -> None:
    """Base model, generator with its checkpoints, cache in small windows, reward model with its checkpoints."""
    cache.WINDOW, checkpoints.LOGGING_STEPS = 4, 1
    saving = {"save_steps": 1, "epochs": 3.0}
    Workspace(micro(generator=saving, reward_model=saving), folder=folder).reward_model_folder("icrm")


def sampling(folder: Path) -> None:
    language = Language()
    tokenizer = prepare_tokenizer(language.tokenizer)
    model = small_llama(tokenizer, hidden_size=16, layers=1, heads=2, max_length=128, seed=0).eval()
    prompts = [[{"role": "user", "content": prompt}] for prompt in language.prompts[:12]]
    sample(model, tokenizer, prompts, SamplingSettings(n=4, max_new_tokens=30), folder / "samples.jsonl")


def grid(folder: Path) -> None:
    runtime.project_root = lambda start=None: folder  # where what the cells share is made
    cells = [Cell("bt", seed, pairs=12) for seed in range(2)]
    run_grid(micro_grid(), cells, tuned={}, folder=folder, workers=0)


JOBS = {"reward_model": reward_model, "sampling": sampling, "grid": grid}


def start(job: str, folder: Path) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            folder.mkdir(parents=True, exist_ok=True)
            JOBS[job](folder)
            status = 0
        finally:
            os._exit(status)
    return child


def finish(job: str, folder: Path) -> None:
    _, status = os.waitpid(start(job, folder), 0)
    if status:
        raise SystemExit(f"{job} failed in {folder}")


def contents(folder: Path) -> dict[str, str]:
    """What must be the same at the end: every file's checksum, without times."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or path.name == records.MANIFEST or ".locks/" in name:
            continue
        if path.name == "log.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            lines = [{k: v for k, v in line.items() if k not in NOT_KEPT} for line in lines]
            found[name] = json.dumps(lines, sort_keys=True)
        elif path.suffix == ".json" and "metrics" in (record := json.loads(path.read_text())):
            record["metrics"].pop("seconds", None)
            found[name] = json.dumps(record)
        else:
            found[name] = records.file_checksum(path)
    return found


def check_wholeness(folder: Path) -> None:
    """Whatever has a final name and a manifest is whole, at any moment."""
    for manifest in folder.rglob(records.MANIFEST):
        if not any(part.startswith(".") for part in manifest.relative_to(folder).parts):
            assert records.is_sealed(manifest.parent, records.key_of(manifest.parent), verify=True), manifest


def main() -> None:
    job, folder, wanted = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    random.seed(0)
    for noun in ("data", "models", "workspace"):
        made_with(f"icrm_lib.lab.{noun}")  # remembered by the children: the code may be edited while they run
    code()
    begin = time.perf_counter()
    finish(job, folder / "reference")
    seconds = time.perf_counter() - begin
    reference, kills, chains = contents(folder / "reference"), 0, 0
    while kills < wanted:
        chain = folder / f"chain{chains}"
        for _ in range(4):  # at most so many kills before it may finish
            child = start(job, chain)
            time.sleep(random.uniform(0, seconds))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            kills += os.WIFSIGNALED(status)
            check_wholeness(chain)
        finish(job, chain)
        found = contents(chain)
        names = sorted({*found, *reference})
        assert found == reference, {
            n: (found.get(n), reference.get(n)) for n in names if found.get(n) != reference.get(n)
        }
        left = [p.name for p in chain.rglob(".*") if p.name != ".locks"]
        assert not left, left
        shutil.rmtree(chain)
        chains += 1
    print(json.dumps({"kills": kills, "chains": chains, "files": len(reference), "seconds": round(seconds, 2)}))


if __name__ == "__main__":
    main()
