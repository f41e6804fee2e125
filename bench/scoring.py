"""Scoring many responses to long prompts: `RewardModel.score` against `transformers.pipeline` on the same model.

    python bench/scoring.py [--hidden 256 --layers 4 --prompts 4 --responses 16 --prompt 512 --response 96]

Both start from conversations and end with one score each, tokenisation included; they take turns, and the pipeline
gets its best batch size of 1, 4 and 16. The ratio is the median over the rounds, with its quartiles. Prints one JSON
record and writes it to `results/bench/scoring.json`; fails where a score differs by more than 1e-4.
"""

import argparse
import sys
import tempfile

import numpy as np
import torch
from common import finish, llama_config, quartiles, read_sizes, take_turns
from transformers import AutoModelForSequenceClassification, pipeline

from icrm_lib.reward_model import RewardModel
from icrm_lib.testbed import Language

BATCH_SIZES = (1, 4, 16)


def talks(args: argparse.Namespace, vocabulary: list[str]) -> list[list[dict[str, str]]]:
    """Conversations of random words, one token each; the responses to a prompt are of different lengths."""
    rng = np.random.default_rng(0)

    def words(count: int) -> str:
        return " ".join(rng.choice(vocabulary, count))

    prompts = [words(args.prompt) for _ in range(args.prompts)]
    return [
        [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": words(int(rng.integers(args.response // 2, args.response + 1)))},
        ]
        for prompt in prompts
        for _ in range(args.responses)
    ]


def main() -> None:
    sizes = {"hidden": 256, "layers": 4, "prompts": 4, "responses": 16, "prompt": 512, "response": 96, "rounds": 7}
    args = read_sizes(__doc__, **sizes)
    tokenizer = Language().tokenizer
    longest = args.prompt + args.response + 16
    options = {"num_labels": 1, "pad_token_id": tokenizer.pad_token_id}
    config = llama_config(args.hidden, args.layers, len(tokenizer), longest, **options)
    torch.manual_seed(0)
    vocabulary = [word for word in tokenizer.get_vocab() if word.isalpha()]
    conversations = talks(args, vocabulary)
    with tempfile.TemporaryDirectory() as folder:
        RewardModel(AutoModelForSequenceClassification.from_config(config), tokenizer).save_pretrained(folder)
        ours = RewardModel.from_pretrained(folder)
        pipe = pipeline("text-classification", model=folder, tokenizer=folder, device=ours.model.device)

        def theirs(batch_size: int) -> np.ndarray:
            texts = [pipe.tokenizer.apply_chat_template(c, tokenize=False) for c in conversations]
            options = {"function_to_apply": "none", "add_special_tokens": False, "batch_size": batch_size}
            return np.array([result["score"] for result in pipe(texts, **options)])

        scores: dict[str, np.ndarray] = {}
        pieces = {f"pipeline {size}": lambda size=size: theirs(size) for size in BATCH_SIZES}
        pieces["score"] = lambda: ours.score(conversations)

        def kept(name: str) -> None:
            scores[name] = pieces[name]()

        taken = take_turns({name: lambda name=name: kept(name) for name in pieces}, args.rounds, warm=1)
    worst = max(float(np.abs(found - scores["score"]).max()) for found in scores.values())
    best = min((f"pipeline {size}" for size in BATCH_SIZES), key=lambda name: np.median(taken[name]))
    metrics = {
        "median_seconds": {name: round(float(np.median(values)), 4) for name, values in taken.items()},
        "best_peer": best,
        "times_faster_median_quartiles": quartiles(taken[best] / taken["score"]),
        "conversations": len(conversations),
        "largest_difference": worst,
    }
    finish("scoring", args, metrics)
    if worst > 1e-4:
        sys.exit(f"scores differ by {worst:.2g}")


if __name__ == "__main__":
    main()
