"""Does the official `rewardbench` package score a model of the kit as the kit does?

Its pins conflict with ours, so it lives in an environment of its own, and this script runs twice:

    .venv/bin/python bench/rewardbench_package.py save runs/rewardbench_package
    python3 -m venv runs/rewardbench_venv && runs/rewardbench_venv/bin/pip install rewardbench
    runs/rewardbench_venv/bin/python bench/rewardbench_package.py compare runs/rewardbench_package

`save` writes a small reward model, test pairs, and the kit's scores. `compare` loads the model with the package's own
default classes (`REWARD_MODEL_CONFIG`, `RewardBenchPipeline`), scores the same pairs as its command line would, and
prints one JSON record; it exits with an error where a score differs by more than 1e-4. The package sends every batch to
"cuda"; without a GPU that one call is turned to the CPU.
"""

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path

TOLERANCE = 1e-4


def save(folder: Path) -> None:
    """Train a reward model on the testbed (profile smoke) and save it with pairs and scores."""
    from icrm_lib import runtime

    runtime.quiet()
    from icrm_lib.lab.workspace import Workspace

    workspace = Workspace("smoke")
    model = workspace.reward_model("icrm")
    model.save_pretrained(folder / "model")
    talks = workspace.conversations("test")
    rows = []
    for chosen, rejected in list(zip(talks["chosen"], talks["rejected"], strict=True))[:64]:
        scores = model.score([chosen, rejected]).tolist()
        sides = {"chosen": chosen[-1]["content"], "rejected": rejected[-1]["content"]}
        rows.append({"prompt": chosen[0]["content"], **sides, "scores": scores})
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    print(f"{len(rows)} pairs, model and scores in {runtime.display_path(folder)}")


def compare(folder: Path) -> None:
    """Score the saved pairs with the package's classes."""
    import torch
    from rewardbench import REWARD_MODEL_CONFIG
    from rewardbench.utils import prepare_dialogue_from_tokenizer
    from transformers import AutoTokenizer
    from transformers.tokenization_utils_base import BatchEncoding

    if not torch.cuda.is_available():
        move = BatchEncoding.to
        BatchEncoding.to = lambda self, device, **kwargs: move(self, "cpu" if device == "cuda" else device, **kwargs)
    config = REWARD_MODEL_CONFIG["default"]
    model = config["model_builder"](folder / "model", torch_dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    pipe = config["pipeline_builder"]("text-classification", model=model, tokenizer=tokenizer)
    rows = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    worst, agree = 0.0, 0
    for row in rows:
        texts = prepare_dialogue_from_tokenizer(dict(row), tokenizer)
        theirs = pipe([texts["text_chosen"], texts["text_rejected"]], padding=True, truncation=False)[:, 0].tolist()
        worst = max(worst, *(abs(a - b) for a, b in zip(theirs, row["scores"], strict=True)))
        agree += (theirs[0] > theirs[1]) == (row["scores"][0] > row["scores"][1])
    versions = {name: version(name) for name in ("rewardbench", "transformers", "torch")}
    print(json.dumps({"pairs": len(rows), "same_order": agree, "largest_difference": worst, "versions": versions}))
    if worst > TOLERANCE:
        sys.exit(f"scores differ by {worst:.2g}, more than {TOLERANCE:g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("save", "compare"))
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    {"save": save, "compare": compare}[args.step](args.folder)


if __name__ == "__main__":
    main()
