"""Training step from kept states of the lower layers, against the same step with all layers run.

    python bench/frozen_layers.py [--hidden 192 --layers 10 --frozen 8 --vocabulary 8192 --pairs 8 --rounds 9]

Three trainings of the same rows take turns, batch by batch, in one process: LoRA on every layer; LoRA above the frozen
layers, which are run each time; the same from states that one pass has kept. All share prompts and have the text term.
The pass is timed too, per pair: it costs once what a step saves in every epoch. Prints one JSON record and writes it to
`results/bench/frozen_layers.json`; fails where kept states change the loss by more than 1e-4.
"""

import tempfile
import time
from pathlib import Path

import common
import numpy as np
import torch
from datasets import Dataset

from icrm_lib.generator import LowerStates, cached_states, states_reader
from icrm_lib.language_model.causal import load_causal_lm
from icrm_lib.reward_model.head import reward_head

LENGTH = 256
KINDS = ("all layers", "frozen", "kept")


def pass_over(base: str, data: Dataset, layers: int, folder: Path) -> tuple[LowerStates, float]:
    """Keep the states of some pairs; return them, and the seconds that it took."""
    model, start = load_causal_lm(base), time.perf_counter()
    states = cached_states(
        [data], lambda: states_reader(model, layers, 0), folder, {}, layers=layers, state_type="float32"
    )
    return states, time.perf_counter() - start


def make(kind: str, base: str, data: Dataset, pairs: int, states: LowerStates):
    """Build the trainer of a name of `KINDS`; its rewards differ visibly, or losses could not."""
    frozen = 0 if kind == "all layers" else states.layers
    given = states if kind == "kept" else None
    layout = {"padding_free": True, "prefix_sharing": True}
    trainer = common.make_trainer("icrm + sft", base, data, pairs, frozen=frozen, states=given, **layout)
    with torch.no_grad():
        for weight in reward_head(trainer.model).parameters():
            weight.mul_(50)
    return trainer


def main() -> None:
    args = common.read_sizes(__doc__, hidden=192, layers=10, frozen=8, vocabulary=8192, pairs=8, rounds=9)
    warm = 2
    with tempfile.TemporaryDirectory() as base, tempfile.TemporaryDirectory() as folder:
        common.small_llama(args.hidden, args.layers, args.vocabulary, LENGTH).save_pretrained(base)
        data = common.random_pairs(args.pairs * (args.rounds + warm), LENGTH, args.vocabulary, shortest=LENGTH // 2)
        states, passed = pass_over(base, data, args.frozen, Path(folder))
        losses: dict[str, list[float]] = {kind: [] for kind in KINDS}
        steps = {}
        for kind in KINDS:
            trainer = make(kind, base, data, args.pairs, states)
            step = common.trainer_step(trainer, update=False)
            if kind == "kept":
                leaving_out = trainer.lower.left_out()  # as `train` does
                leaving_out.__enter__()
            steps[kind] = lambda step=step, kind=kind: losses[kind].append(float(step()))
        seconds = common.take_turns(steps, args.rounds, warm=warm)
        leaving_out.__exit__(None, None, None)
    difference = float(np.abs(np.subtract(losses["kept"], losses["frozen"])).max())
    saved = float(np.median(seconds["frozen"] - seconds["kept"]))
    of_pass = passed / len(data) * args.pairs
    metrics = {
        "median_seconds": {kind: round(float(np.median(values)), 4) for kind, values in seconds.items()},
        "time_of_kept_to": {
            kind.replace(" ", "_"): common.quartiles(seconds["kept"] / seconds[kind]) for kind in KINDS[:2]
        },
        "pass_seconds_for_a_step_s_pairs": round(of_pass, 4),
        "epochs_until_the_pass_is_paid": round(of_pass / saved, 2),
        "largest_difference_of_loss": difference,
    }
    common.finish("frozen_layers", args, metrics)
    if difference > 1e-4:
        raise SystemExit(f"kept states changed the loss by {difference}")


if __name__ == "__main__":
    main()
