"""What a cell trains on: its workspaces, its settings, and its training pairs with every column that the loss reads."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from scipy.stats import spearmanr

from icrm_lib.generator import columns, model_scorer
from icrm_lib.generator.cache import CACHE_FILE
from icrm_lib.lab.cells import EVERY_METHOD, ROLLOUTS, TRUTH, WEIGHTS, Cell, tuned_as
from icrm_lib.lab.workspace import Workspace
from icrm_lib.language_model.causal import load_causal_lm
from icrm_lib.profiles import Profile, RewardModelSettings
from icrm_lib.testbed import Language
from icrm_lib.training import reads_generator, statistic_of
from icrm_lib.training.collation import REFERENCE_COLUMNS, STEP_COLUMNS


def _workspace(profile: Profile, seed: int = 0, **changes: Any) -> Workspace:
    """A workspace of the profile with some sections changed, e.g. `language={"clauses": ...}`."""
    sections = {name: replace(getattr(profile, name), **values) for name, values in changes.items()}
    return Workspace(replace(profile, **sections), seed=seed)


def _language(data: str) -> dict[str, Any]:
    return {"length_confounding": 0.5} if data == "confounded" else {}


@cache
def base_model(profile: Profile, kind: str = "base") -> str:
    """Return the folder of a base model, pre-trained on the whole language, the held-out verbs included."""
    settings = profile.base_model
    changes = {
        "base": {},
        "double": {"hidden_size": settings.hidden_size * 3 // 2},  # weights grow with its square
        "small": {"hidden_size": settings.hidden_size // 2, "layers": max(1, settings.layers - 1)},
        "under-trained": {"steps": max(1, settings.steps // 10)},
    }[kind]
    return _workspace(profile, language={"held_out_verbs": 0.0}, base_model=changes).base_model


def training_workspace(profile: Profile, cell: Cell) -> Workspace:
    """The workspace whose training split and base model a cell uses; one for all cells that share them."""
    return _training_workspace(profile, cell.seed, cell.data, cell.pairs, cell.base)


@cache
def _training_workspace(profile: Profile, seed: int, data: str, pairs: int, base: str) -> Workspace:
    changes = {"language": _language(data), "data": {"train_pairs": pairs} if pairs else {}}
    return _workspace(profile, seed, **changes, base_model={"name": base_model(profile, base)})


def generator_workspace(profile: Profile, cell: Cell) -> Workspace:
    """The workspace whose generator weights a cell's pairs: fitted on the seed's pairs of the profile's number."""
    base, language, generator = "base", _language(cell.data), {}
    kind, _, value = cell.generator.partition(" ")
    if kind == "exact":
        generator = {"kind": "exact"}
    elif kind == "temperature":
        generator = {"temperature": float(value)}
    elif kind == "small":
        base = "small"
    elif kind == "under-trained":
        base, generator = "under-trained", {"kind": "base"}
    elif kind == "another":  # other tastes in verbs, and a quality that keeps changing instead of persisting
        language, generator = {"seed": 1000, "persistence": 0.1, "held_out_verbs": 0.0}, {"kind": "exact"}
    changes = {"base_model": {"name": base_model(profile, base)}, "language": language, "generator": generator}
    return _workspace(profile, cell.seed, **changes)


def policy_workspace(profile: Profile) -> Workspace:
    """The workspace whose base model is the policy of every cell, and whose prompts it answers."""
    return _workspace(profile, base_model={"name": base_model(profile)})


def settings_of(profile: Profile, cell: Cell, tuned: dict[str, dict[str, float]]) -> RewardModelSettings:
    """Return a cell's training settings: the method's, the tuned values, and the cell's own changes.

    Args:
        profile: of the grid.
        cell: of the grid.
        tuned: by method, what tuning chose; {} while tuning.
    """
    settings = replace(profile.reward_model, **EVERY_METHOD[cell.method].changes)
    chosen = tuned.get(tuned_as(cell), {})
    epochs = settings.epochs
    if cell.pairs:  # the same number of steps, but at least one pass over the pairs and at most twice the passes
        epochs = min(2 * epochs, max(1.0, epochs * profile.data.train_pairs / cell.pairs))
    return replace(settings, **{"epochs": epochs, **chosen, **dict(cell.changes)})


def training_rows(profile: Profile, cell: Cell, settings: RewardModelSettings) -> Dataset:
    """Return a cell's training pairs with every column that its loss reads."""
    workspace = training_workspace(profile, cell)
    rows = workspace.tokenized["train"]
    if reads_generator(settings):
        rows = with_weights(profile, cell, rows, statistic_of(settings))
    rng = np.random.default_rng([cell.seed, 7])
    if settings.margin:
        rows = rows.add_column("margin", perceived_margins(workspace, rng))
    if settings.text_form == "grm_dpo" and settings.sft_weight > 0:
        rows = with_reference(rows, workspace)
    if settings.loss in ("outcome", "process"):
        rows = with_labels(rows, workspace.language, noisy="noisy" in cell.method, rng=rng)
    return rows


def with_weights(profile: Profile, cell: Cell, rows: Dataset, statistic: str = "logprobs") -> Dataset:
    """Add a statistic of the cell's generator for every response token."""
    if cell.generator != "unigram":
        return generator_workspace(profile, cell).add_logprobs(rows, statistic)
    if statistic != "logprobs":
        raise ValueError(f"generator 'unigram' knows logprobs only, not {statistic}; choose another one")
    starts, sides = rows["prompt_length"][:], [rows["chosen_ids"][:], rows["rejected_ids"][:]]
    responses = [[np.array(ids[start:]) for ids, start in zip(side, starts, strict=True)] for side in sides]
    counts = np.bincount(np.concatenate([ids for side in responses for ids in side]))
    logprobs = np.log(np.maximum(counts, 1) / counts.sum()).astype(np.float32)
    for name, side in zip(columns(statistic), responses, strict=True):
        rows = rows.add_column(name, [logprobs[ids] for ids in side])
    return rows


def weights_read(cell: Cell, settings: RewardModelSettings) -> tuple[tuple[str, ...], str]:
    """Return whose answers about its training tokens a cell reads, and which statistic of them."""
    if cell.method == WEIGHTS:
        return ("exact", cell.generator), "logprobs"
    if cell.method in TRUTH or not reads_generator(settings):
        return (), "logprobs"
    return (cell.generator,), statistic_of(settings)


def artefacts_read(profile: Profile, cell: Cell, settings: RewardModelSettings) -> list[Path]:
    """Make what a cell's training reads of the disk, and return where it lies: models, and generators' answers."""
    paths = {Path(base_model(profile)), Path(base_model(profile, cell.base))}
    generators, statistic = weights_read(cell, settings)
    for generator in generators:
        asked = replace(cell, generator=generator)
        rows = with_weights(profile, asked, training_workspace(profile, cell).tokenized["train"], statistic)
        paths |= {
            Path(file["filename"]).parent for file in rows.cache_files if Path(file["filename"]).name == CACHE_FILE
        }
        if generator not in ("exact", "unigram", "another language"):
            workspace = generator_workspace(profile, asked)
            paths |= {Path(workspace.base_model), Path(workspace.generator)}
    return sorted(paths)


def compare_weights(profile: Profile, cell: Cell) -> dict[str, float]:
    """How the generator's probabilities of the training tokens compare with the exact ones."""
    rows = training_workspace(profile, cell).tokenized["train"]
    exact, other = (
        np.exp(np.concatenate([np.concatenate(weighted[name][:]) for name in columns()]))
        for weighted in (with_weights(profile, replace(cell, generator=g), rows) for g in ("exact", cell.generator))
    )
    return {
        "spearman": float(spearmanr(exact, other).statistic),
        "pearson": float(np.corrcoef(exact, other)[0, 1]) if np.ptp(other) > 0 else np.nan,
        "mean_absolute_difference": float(np.abs(exact - other).mean()),
        "mean": float(other.mean()),
        "mean_exact": float(exact.mean()),
    }


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
