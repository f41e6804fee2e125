"""What training pairs are told beyond who was chosen: ratings, a reference's view, outcomes, values of clauses."""

import numpy as np
from datasets import Dataset

from icrm_lib.generator import model_scorer
from icrm_lib.lab.cells import ROLLOUTS
from icrm_lib.lab.workspace import Workspace
from icrm_lib.language_model.causal import load_causal_lm
from icrm_lib.testbed import Language
from icrm_lib.training.collation import REFERENCE_COLUMNS, STEP_COLUMNS


def perceived_margins(workspace: Workspace, rng: np.random.Generator) -> np.ndarray:
    """Draw how much better each chosen response seemed to who labelled it.

    The label says that gold difference + logistic noise was positive; the rating difference is that sum, drawn given
    that it was.

    Returns:
        float32, as TRL adds it to rewards; > 0. Shape: (pairs,).
    """
    sides = workspace.conversations("train")
    gold = [[workspace.language.gold_score(c) for c in sides[side]] for side in ("chosen", "rejected")]
    difference = np.subtract(*gold) / max(workspace.language.preference_noise, 1e-9)
    negative = 1 / (1 + np.exp(difference))  # P(noise < -difference)
    u = negative + (1 - negative) * rng.random(len(difference))
    return (difference + np.log(u) - np.log1p(-u)).astype(np.float32)


def with_reference(rows: Dataset, workspace: Workspace) -> Dataset:
    """Add the base model's log-probability of each response."""
    scorer = model_scorer(load_causal_lm(workspace.base_model), workspace.tokenizer.pad_token_id)
    for side, name in zip(("chosen_ids", "rejected_ids"), REFERENCE_COLUMNS, strict=True):
        values = scorer(list(zip(rows[side], rows["prompt_length"], strict=True)))
        rows = rows.add_column(name, np.array([value.sum() for value in values]))
    return rows


def with_labels(rows: Dataset, language: Language, *, noisy: bool, rng: np.random.Generator) -> Dataset:
    """Add the outcome of each response and the value at the end of each clause, exact or from a few rollouts."""
    ends = language.tokenizer.convert_tokens_to_ids([".", ",", "and", "then"])
    for side, steps in zip(("chosen", "rejected"), STEP_COLUMNS, strict=True):
        labels, values = [], []
        for ids, start in zip(rows[f"{side}_ids"], rows["prompt_length"], strict=True):
            exact = language.prefix_values(ids)[start:]
            response = np.array([*ids[start:], 0])
            last = np.isin(response[1:], ends) & ~np.isin(response[:-1], ends)
            last[-1] = True  # the closing token: the outcome itself
            value = rng.binomial(ROLLOUTS, np.clip(exact, 0, 1)) / ROLLOUTS if noisy else exact
            values.append(np.where(last, value, np.nan).astype(np.float32))
            labels.append(float(exact[-1]))
        rows = rows.add_column(f"{side}_label", labels)
        rows = rows.add_column(steps, values)
    return rows
