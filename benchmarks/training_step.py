"""Training step of ICRM against TRL's RewardTrainer (Bradley-Terry) on the same model and the same batches.

    python benchmarks/training_step.py [--hidden 256 --layers 4 --vocabulary 32000 --pairs 8 --length 256 --rounds 30]

The trainers take turns, batch by batch, so that whatever else the machine does hits them alike; every ratio is the
median over the rounds, with its quartiles. Prints one JSON record and writes it to `results/bench/training_step.json`.
"""

import argparse
import json
import os
import tempfile
import time

os.environ["ICRM_UNATTENDED"] = "1"

from icrm_lib import records, runtime

runtime.quiet()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from peft import LoraConfig  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402
from trl import RewardConfig, RewardTrainer  # noqa: E402

from icrm_lib.testbed import Language  # noqa: E402
from icrm_lib.training import ICRMConfig, ICRMTrainer  # noqa: E402


def random_pairs(args: argparse.Namespace, count: int) -> Dataset:
    """Random token ids of full length; the first quarter is the prompt."""
    rng = np.random.default_rng(0)
    prompt = args.length // 4
    ids = rng.integers(10, args.vocabulary, (2, count, args.length))
    ids[:, :, :prompt] = ids[0, :, :prompt]
    logprobs = np.log(rng.random((2, count, args.length - prompt))).astype(np.float32)
    return Dataset.from_dict(
        {
            "chosen_ids": ids[0],
            "rejected_ids": ids[1],
            "prompt_length": [prompt] * count,
            "chosen_logprobs": logprobs[0],
            "rejected_logprobs": logprobs[1],
        }
    )


def make_trainer(kind: str, base: str, data: Dataset, args: argparse.Namespace, folder: str):
    """Build one contestant: "trl", "icrm" (cached probabilities) or "icrm + sft"."""
    common = {
        "output_dir": folder,
        "per_device_train_batch_size": args.pairs,
        "max_length": None,
        "bf16": torch.cuda.is_available(),
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
    }
    if kind == "trl":
        trainer_class, config = RewardTrainer, RewardConfig(**common)
    else:
        trainer_class, config = ICRMTrainer, ICRMConfig(sft_weight=0.001 if "sft" in kind else 0.0, **common)
    tokenizer = Language().tokenizer  # only its padding id matters here
    return trainer_class(
        base,
        config,
        train_dataset=data,
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="SEQ_CLS", r=32, lora_alpha=64, target_modules="all-linear"),
    )


class Contestant:
    """A trainer driven by hand: forward, backward, optimiser step."""

    def __init__(self, trainer):
        self.trainer = trainer
        self.batches = iter(trainer.get_train_dataloader())
        trainer.create_optimizer_and_scheduler(num_training_steps=1000)
        trainer.current_gradient_accumulation_steps = 1  # set by the training loop that this one replaces
        trainer.model.train()

    def step(self) -> float:
        batch = next(self.batches)
        _wait()
        start = time.perf_counter()
        self.trainer.training_step(self.trainer.model, batch)
        self.trainer.optimizer.step()
        self.trainer.optimizer.zero_grad()
        _wait()
        return time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"hidden": 256, "layers": 4, "vocabulary": 32000, "pairs": 8, "length": 256, "rounds": 30}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    warm = 3
    data = random_pairs(args, args.pairs * (args.rounds + warm))
    with tempfile.TemporaryDirectory() as folder:
        config = LlamaConfig(
            vocab_size=args.vocabulary,
            hidden_size=args.hidden,
            intermediate_size=4 * args.hidden,
            num_hidden_layers=args.layers,
            num_attention_heads=max(1, args.hidden // 64),
            max_position_embeddings=args.length,
            tie_word_embeddings=True,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
        kinds = ("trl", "icrm", "icrm + sft")
        contestants = {kind: Contestant(make_trainer(kind, folder, data, args, folder)) for kind in kinds}
        times = {kind: [] for kind in kinds}
        for _ in range(warm + args.rounds):
            for kind in kinds:
                times[kind].append(contestants[kind].step())
    seconds = {kind: np.array(values[warm:]) for kind, values in times.items()}
    ratios = {
        kind: [round(float(q), 3) for q in np.quantile(seconds[kind] / seconds["trl"], (0.5, 0.25, 0.75))]
        for kind in kinds[1:]
    }
    metrics = {
        "median_step_seconds": {kind: round(float(np.median(values)), 4) for kind, values in seconds.items()},
        "ratio_to_trl_median_quartiles": ratios,
    }
    path = records.write_record("training_step", "bench", vars(args), metrics)
    print(json.dumps(records.read_json(path)))


if __name__ == "__main__":
    main()
