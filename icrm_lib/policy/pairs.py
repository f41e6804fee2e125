"""Preference pairs from a policy's samples."""

import unicodedata
from collections.abc import Sequence

import numpy as np
import pandas as pd
import regex
from datasets import Dataset

from icrm_lib.tokenization import Conversation


def normalised(text: str) -> str:
    """Return a text without what does not make two prompts different: case, white space, punctuation, Unicode form."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(regex.sub(r"[^\w\s]+", " ", folded).split())


def pairs_from_samples(
    samples: pd.DataFrame,
    scores: Sequence[float],
    prompts: Sequence[Conversation],
    *,
    held_out: Sequence[Conversation] = (),
) -> tuple[Dataset, dict[str, int]]:
    """Make preference pairs from sampled responses: the highest-scoring one of a prompt against the lowest.

    Args:
        samples: of `sampling.sample`: one row a response, `prompt` (index) and `response`.
        scores: of a reward model or a judge, one a row of `samples`.
        prompts: conversations that the samples answer.
        held_out: prompts of the test set; a prompt whose normalised text occurs among them gives no pair.

    A response that was cut before its end (`finished` False, where `samples` say so) is not used: training would teach
    a closing token that nobody wrote.

    Returns:
        rows `prompt` (conversation), `chosen`, `rejected` (text), and what was left out: `held_out`, `tied` (all scores
        equal, as with a constant reward), `identical` (best and worst have one text) and `unfinished` responses.

    Raises:
        ValueError: another number of scores than of samples, or one that is not finite.
    """
    scores = np.asarray(scores, dtype=float)
    if len(scores) != len(samples) or not np.isfinite(scores).all():
        raise ValueError(
            f"need {len(samples)} finite scores, one a sample: got {len(scores)}, {np.isfinite(scores).sum()} finite"
        )
    banned = {_text(prompt) for prompt in held_out}
    rows, left_out = [], {"held_out": 0, "tied": 0, "identical": 0, "unfinished": 0}
    samples = samples.assign(score=scores)
    if "finished" in samples:
        left_out["unfinished"] = int((~samples["finished"]).sum())
        samples = samples[samples["finished"]]
    for index, group in samples.groupby("prompt", sort=False):
        best, worst = group.loc[group["score"].idxmax()], group.loc[group["score"].idxmin()]
        if _text(prompts[index]) in banned:
            left_out["held_out"] += 1
        elif best["score"] == worst["score"]:
            left_out["tied"] += 1
        elif best["response"].strip() == worst["response"].strip():
            left_out["identical"] += 1
        else:
            rows.append({"prompt": prompts[index], "chosen": best["response"], "rejected": worst["response"]})
    return Dataset.from_list(rows), left_out


def _text(prompt: Conversation) -> str:
    return normalised(" ".join(message["content"] for message in prompt))
