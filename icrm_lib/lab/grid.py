"""Methods x seeds x settings as a grid of small cells: one record a cell, and a finished cell is never run again.

A cell trains one reward model on the testbed and measures it against the truth: its rewards (purpose "experiments"),
what its picks are worth ("best_of_n"), or the policies that it trains ("policy"). Its record lies in
`results/<profile>/<purpose>/<cell>.json`; a killed run loses at most the cells that were being computed.

    python -m icrm_lib.lab.grid --profile lab
"""

import argparse
import logging
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from scipy.special import logit
from scipy.stats import spearmanr
from tqdm.auto import tqdm

from icrm_lib import records, runtime
from icrm_lib.generator.cache import columns, model_fingerprint, model_scorer
from icrm_lib.lab.picks import BUDGETS, CANDIDATES, CUTS_AT, KEEPS, NS, STARTED, Pool, measure_picks, sample_pool
from icrm_lib.lab.policies import (
    BETA,
    DPO_EPOCHS,
    DPO_RATE,
    GROUP,
    GROUPS,
    GRPO_PROMPTS,
    GRPO_RATE,
    KINDS,
    measure_policies,
    training_samples,
)
from icrm_lib.lab.test_sets import SHIFTS, VALIDATION, every_set, measure, test_set, validate
from icrm_lib.lab.workspace import Workspace
from icrm_lib.language_model.causal import load_causal_lm
from icrm_lib.measures.tokens import TokenScorer
from icrm_lib.methods import method_settings
from icrm_lib.policy import implicit_rewards, train_dpo
from icrm_lib.profiles import Profile, RewardModelSettings, load_profile
from icrm_lib.reward_model.model import RewardModel
from icrm_lib.testbed import Language, known_truth
from icrm_lib.training.collation import REFERENCE_COLUMNS, STEP_COLUMNS
from icrm_lib.training.fit import train_reward_model
from icrm_lib.training.trainer import reads_generator, statistic_of

logger = logging.getLogger(__name__)


# Raised by hand when code changes what a cell records: older records then count as not there.
VERSION = 1


# What is compared ----------------------------------------------------------------------------------------------------

# Methods beyond `methods.METHODS`: what they train, and how the cell departs from plain training.
ENSEMBLE_SIZE = 3
COMPOSED = {
    "ensemble_mean": "bt",
    "ensemble_worst": "bt",
    "prm_noisy": "prm",
    "prm_noisy_icrm": "prm_icrm",
    "implicit": "bt",  # its optimiser settings; the loss is DPO's
    **dict.fromkeys(("true_values", "true_scores", "weights"), "bt"),
}
# No model is trained for these: the exact prefix values and the gold score so far as rewards, and the weights that
# every generator gives the training tokens, compared with the exact probabilities.
TRUTH = ("true_values", "true_scores")
WEIGHTS = "weights"
ROLLOUTS = 4  # behind each noisy clause label: the share of them that reach the top score
MAIN = ("bt", "grm_sft", "icrm", "icrm_uniform", "icrm_shuffled")
OBJECTIVES = (
    *("bt_margin", "bt_label_smoothing", "bt_positive", "bt_centered", "frozen_mlp", "ensemble_mean", "ensemble_worst"),
    *("grm_sft_mlp", "grm_dpo_noref", "grm_dpo", "grm_as_in_icrm"),
    *("outcome", "outcome_icrm", "implicit", "prm", "prm_icrm", "prm_noisy", "prm_noisy_icrm"),
)
WEIGHTINGS = ("icrm_random_pairs", "icrm_entropy", "icrm_top1_margin", "icrm_inverted")
FORMS = ("icrm_plain_log", "icrm_l1", "icrm_l2", "martingale", "icrm_centered_on_positions", "icrm_not_centered")
LAMBDAS = (0.1, 0.3, 0.5, 0.7, 0.9)
GENERATORS = ("exact", "temperature 0.5", "temperature 2", "small", "under-trained", "another language", "unigram")
SIZES = (100, 400, 1600, 6400)
# Learning rates next to the tuned ones of the main methods: does a comparison hang on the choice?
NEAR_BY = (("bt", 3e-3), ("grm_sft", 2e-3), ("grm_sft", 3e-3), ("icrm", 2e-3), ("icrm_uniform", 2e-3))
ON_POLICY = ("bt", "icrm", "true_scores")  # whose policies are also trained by GRPO
MAIN_SEEDS, SEEDS, FEW_SEEDS = range(10), range(5), range(3)
TUNING_SEEDS = (100, 101)  # their training pairs and models are used for nothing else

# Two learning rates times two values of the knob that matters most, or four learning rates where there is none: the
# same number of trials for every method. What is not listed takes over the choice of another method.
RATES, MANY_RATES = (3e-3, 6e-3), (2e-3, 3e-3, 6e-3, 1e-2)
# Where something else is trained, other rates are usual: a policy moves faster, a head alone more slowly.
RATES_OF = {"implicit": (1e-3, 3e-3), "frozen_mlp": (3e-3, 1e-2, 3e-2, 1e-1)}
KNOBS: dict[str, tuple[str, tuple[float, float]] | None] = {
    "bt": None,
    "bt_margin": None,
    "bt_label_smoothing": ("label_smoothing", (0.1, 0.2)),
    "bt_positive": ("positive_weight", (0.01, 0.1)),
    "bt_centered": ("center_rewards", (0.01, 0.1)),
    "frozen_mlp": None,
    "grm_sft": ("sft_weight", (0.01, 0.1)),
    "grm_dpo_noref": ("sft_weight", (0.01, 0.1)),
    "grm_dpo": ("sft_weight", (0.01, 0.1)),
    "grm_as_in_icrm": ("sft_weight", (0.001, 0.1)),
    "icrm": ("consistency_weight", (0.3, 0.6)),
    "icrm_uniform": ("consistency_weight", (0.3, 0.6)),
    "icrm_shuffled": ("consistency_weight", (0.3, 0.6)),
    "icrm_plain_log": ("consistency_weight", (0.3, 0.6)),
    "icrm_l1": ("consistency_weight", (0.3, 0.6)),
    "icrm_l2": ("consistency_weight", (0.3, 0.6)),
    "martingale": ("consistency_weight", (0.3, 0.6)),
    "outcome": None,
    "outcome_icrm": ("consistency_weight", (0.3, 0.6)),
    "implicit": ("text_beta", (0.1, 0.5)),
    "prm": None,
    "prm_icrm": ("consistency_weight", (0.3, 0.6)),
}
TUNED_AS = {
    **{name: "icrm" for name in (*WEIGHTINGS, "icrm_centered_on_positions", "icrm_not_centered")},
    **{"grm_sft_mlp": "grm_sft", "ensemble_mean": "bt", "ensemble_worst": "bt"},
    **{"prm_noisy": "prm", "prm_noisy_icrm": "prm_icrm"},
}


@dataclass(frozen=True)
class Cell:
    """One model to train and measure.

    Attributes:
        method: of `methods.METHODS` or `COMPOSED`.
        seed: of the training pairs, the generator and the model, so that methods of one seed are paired.
        generator: "fitted", or one of `GENERATORS`. "another language" has other tastes in verbs and a quality that
            does not persist; "unigram" knows how frequent each token is and nothing of what precedes it.
        data: "plain", or "confounded" (in training the chosen response tends to be the longer one).
        pairs: training pairs; 0 for the profile's number.
        base: "base", or "double" (about twice the parameters).
        changes: settings that differ from the tuned ones, as (name, value).
    """

    method: str
    seed: int
    generator: str = "fitted"
    data: str = "plain"
    pairs: int = 0
    base: str = "base"
    changes: tuple[tuple[str, float], ...] = ()

    @property
    def name(self) -> str:
        """File name without suffix; unlike for unlike cells. ValueError where it would lead to another folder."""
        parts = [self.method]
        parts += [value.replace(" ", "_") for value in (self.generator, self.data, self.base) if value not in PLAIN]
        parts += [f"{self.pairs}_pairs"] if self.pairs else []
        parts += [f"{key}_{value:g}" for key, value in self.changes]
        return runtime.plain_name("-".join([*parts, f"seed_{self.seed}"]))


PLAIN = ("fitted", "plain", "base")


def studies() -> dict[str, list[Cell]]:
    """Return the cells of every study of the evidence, by name; a cell may belong to several."""
    sizes = [Cell(m, s, pairs=n if n != 400 else 0) for n in SIZES for m in ("bt", "grm_sft", "icrm") for s in SEEDS]
    return {
        "main": [*(Cell(m, 0) for m in TRUTH), *(Cell(method, seed) for seed in MAIN_SEEDS for method in MAIN)],
        "objectives": [Cell(method, seed) for method in OBJECTIVES for seed in SEEDS],
        "weightings": [Cell(method, seed) for method in WEIGHTINGS for seed in SEEDS],
        "forms": [Cell(method, seed) for method in FORMS for seed in SEEDS],
        "generators": [
            *(Cell(WEIGHTS, 0, generator=name) for name in ("fitted", *GENERATORS)),
            *(Cell("icrm", seed, generator=name) for name in GENERATORS for seed in SEEDS),
        ],
        "lambda": [Cell("icrm", s, changes=(("consistency_weight", value),)) for value in LAMBDAS for s in SEEDS],
        "confounded": [Cell(method, seed, data="confounded") for method in MAIN[:4] for seed in SEEDS],
        "compute": [Cell("bt", seed, base="double") for seed in SEEDS],
        "sensitivity": [Cell(m, s, changes=(("learning_rate", rate),)) for m, rate in NEAR_BY for s in SEEDS],
        "sizes": [cell for cell in sizes if cell.pairs < max(SIZES) or cell.seed in FEW_SEEDS],
        "best_of_n": [Cell("true_scores", 0), *(Cell(m, s) for s in MAIN_SEEDS for m in (*MAIN, "implicit"))],
        "policy": [Cell(m, s) for s in SEEDS for m in ("bt", "grm_sft", "icrm", "icrm_uniform", "true_scores")],
    }


def purpose_of(study: str) -> str:
    """Return what a study measures of its models, which is also where its records lie."""
    return study if study in ("best_of_n", "policy") else "experiments"


def tuned_as(cell: Cell) -> str:
    """Return whose tuned settings a cell takes: a key of `KNOBS`, or "bt-double" for the larger model."""
    name = TUNED_AS.get(cell.method, cell.method)
    return f"{name}-double" if cell.base == "double" else name


def tuning_cells() -> dict[str, list[list[Cell]]]:
    """Return the trials of everything that is tuned, each a cell a tuning seed; they see the validation split alone."""
    trials = {}
    for name, knob in {**KNOBS, "bt-double": None}.items():
        method, _, base = name.partition("-")
        rates = RATES_OF.get(method, MANY_RATES if knob is None else RATES)
        values = [()] if knob is None else [((knob[0], value),) for value in knob[1]]
        options = [(("learning_rate", rate), *value) for rate in rates for value in values]
        trials[name] = [[Cell(method, s, base=base or "base", changes=o) for s in TUNING_SEEDS] for o in options]
    return trials


# What a cell needs ---------------------------------------------------------------------------------------------------


def _workspace(profile: Profile, **changes: Any) -> Workspace:
    """A workspace of the profile with some sections changed, e.g. `language={"clauses": ...}`, and a seed."""
    seed = changes.pop("seed", 0)
    sections = {name: replace(getattr(profile, name), **values) for name, values in changes.items()}
    return Workspace(replace(profile, **sections), seed=seed)


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


@cache
def training_workspace(profile: Profile, cell: Cell) -> Workspace:
    """The workspace whose training split and base model a cell uses."""
    changes: dict[str, Any] = {"seed": cell.seed, "base_model": {"name": base_model(profile, cell.base)}}
    if cell.data == "confounded":
        changes["language"] = {"length_confounding": 0.5}
    if cell.pairs:
        changes["data"] = {"train_pairs": cell.pairs}
    return _workspace(profile, **changes)


def generator_workspace(profile: Profile, cell: Cell) -> Workspace:
    """The workspace whose generator weights a cell's pairs: fitted on the seed's pairs of the profile's number."""
    changes: dict[str, Any] = {"seed": cell.seed, "base_model": {"name": base_model(profile)}}
    kind, _, value = cell.generator.partition(" ")
    if cell.data == "confounded":
        changes["language"] = {"length_confounding": 0.5}
    if kind == "exact":
        changes["generator"] = {"kind": "exact"}
    elif kind == "temperature":
        changes["generator"] = {"temperature": float(value)}
    elif kind == "small":
        changes["base_model"] = {"name": base_model(profile, "small")}
    elif kind == "under-trained":
        changes["base_model"] = {"name": base_model(profile, "under-trained")}
        changes["generator"] = {"kind": "base"}
    elif kind == "another":  # other tastes in verbs, and a quality that keeps changing instead of persisting
        changes["language"] = {"seed": 1000, "persistence": 0.1, "held_out_verbs": 0.0}
        changes["generator"] = {"kind": "exact"}
    return _workspace(profile, **changes)


def settings_of(profile: Profile, cell: Cell, tuned: dict[str, dict[str, float]]) -> RewardModelSettings:
    """Return a cell's training settings: the method's, the tuned values, and the cell's own changes.

    Args:
        profile: of the grid.
        cell: of the grid.
        tuned: by method, what tuning chose; {} while tuning.
    """
    settings = method_settings(profile.reward_model, COMPOSED.get(cell.method, cell.method))
    chosen = tuned.get(tuned_as(cell), {})
    epochs = settings.epochs
    if cell.pairs:  # the same number of steps, but at least one pass over the pairs and at most twice the passes
        epochs = min(2 * epochs, max(1.0, epochs * profile.data.train_pairs / cell.pairs))
    return replace(settings, **{"epochs": epochs, **chosen, **dict(cell.changes)})


def training_rows(profile: Profile, cell: Cell, settings: RewardModelSettings) -> Dataset:
    """Return a cell's training pairs with every column that its loss reads."""
    workspace = training_workspace(profile, replace(cell, method="", generator="fitted", changes=()))
    rows = workspace.tokenized["train"]
    if reads_generator(settings):
        rows = _with_weights(profile, cell, rows, statistic_of(settings))
    rng = np.random.default_rng([cell.seed, 7])
    if settings.margin:
        rows = rows.add_column("margin", _perceived_margins(workspace, rng))
    if settings.text_form == "grm_dpo" and settings.sft_weight > 0:
        rows = _with_reference(rows, workspace)
    if settings.loss in ("outcome", "process"):
        rows = _with_labels(rows, workspace.language, noisy="noisy" in cell.method, rng=rng)
    return rows


def _with_weights(profile: Profile, cell: Cell, rows: Dataset, statistic: str = "logprobs") -> Dataset:
    if cell.generator != "unigram":
        return generator_workspace(profile, cell).add_logprobs(rows, statistic)
    starts, sides = rows["prompt_length"][:], [rows["chosen_ids"][:], rows["rejected_ids"][:]]
    responses = [[np.array(ids[start:]) for ids, start in zip(side, starts, strict=True)] for side in sides]
    counts = np.bincount(np.concatenate([ids for side in responses for ids in side]))
    logprobs = np.log(np.maximum(counts, 1) / counts.sum()).astype(np.float32)
    for name, side in zip(columns(statistic), responses, strict=True):
        rows = rows.add_column(name, [logprobs[ids] for ids in side])
    return rows


def _compare_weights(profile: Profile, cell: Cell) -> dict[str, float]:
    """How the generator's probabilities of the training tokens compare with the exact ones."""
    rows = training_workspace(profile, replace(cell, method="", generator="fitted")).tokenized["train"]
    exact, other = (
        np.exp(np.concatenate([np.concatenate(with_weights[name][:]) for name in columns()]))
        for with_weights in (
            _with_weights(profile, replace(cell, generator=g), rows) for g in ("exact", cell.generator)
        )
    )
    return {
        "spearman": float(spearmanr(exact, other).statistic),
        "pearson": float(np.corrcoef(exact, other)[0, 1]) if np.ptp(other) > 0 else np.nan,
        "mean_absolute_difference": float(np.abs(exact - other).mean()),
        "mean": float(other.mean()),
        "mean_exact": float(exact.mean()),
    }


def _perceived_margins(workspace: Workspace, rng: np.random.Generator) -> np.ndarray:
    # The label says that gold difference + logistic noise was positive; the rating difference is that sum, drawn
    # given that it was. float32, as TRL adds it to rewards.
    sides = workspace.conversations("train")
    gold = [[workspace.language.gold_score(c) for c in sides[side]] for side in ("chosen", "rejected")]
    difference = np.subtract(*gold) / max(workspace.language.preference_noise, 1e-9)
    negative = 1 / (1 + np.exp(difference))  # P(noise < -difference)
    u = negative + (1 - negative) * rng.random(len(difference))
    return (difference + np.log(u) - np.log1p(-u)).astype(np.float32)


def _with_reference(rows: Dataset, workspace: Workspace) -> Dataset:
    scorer = model_scorer(load_causal_lm(workspace.base_model), workspace.tokenizer.pad_token_id)
    for side, name in zip(("chosen_ids", "rejected_ids"), REFERENCE_COLUMNS, strict=True):
        values = scorer(list(zip(rows[side], rows["prompt_length"], strict=True)))
        rows = rows.add_column(name, np.array([value.sum() for value in values]))
    return rows


def _with_labels(rows: Dataset, language: Language, *, noisy: bool, rng: np.random.Generator) -> Dataset:
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


# One cell ------------------------------------------------------------------------------------------------------------


def train(profile: Profile, cell: Cell, settings: RewardModelSettings, folder: Path) -> tuple[TokenScorer, float]:
    """Train a cell's model or models; returns what scores tokens, and the seconds of training alone."""
    if cell.method in TRUTH:
        return partial(_true_rewards, profile, cell.method), 0.0
    workspace = training_workspace(profile, replace(cell, method="", generator="fitted", changes=()))
    if cell.method == "implicit":
        begin = time.perf_counter()
        trainer = train_dpo(
            workspace.base_model,
            workspace.tokenizer,
            workspace.pairs["train"],
            settings,
            folder=folder,
            seed=cell.seed,
            beta=settings.text_beta,
        )
        seconds = time.perf_counter() - begin
        options = {"beta": settings.text_beta, "pad_token_id": workspace.tokenizer.pad_token_id}
        policy, reference = trainer.model.merge_and_unload(), load_causal_lm(workspace.base_model)
        return lambda rows, starts: implicit_rewards(policy, reference, rows, starts, **options), seconds
    rows = training_rows(profile, cell, settings)
    members = ENSEMBLE_SIZE if cell.method.startswith("ensemble") else 1
    models, seconds = [], 0.0
    for member in range(members):
        begin = time.perf_counter()
        seed = cell.seed + 1000 * member
        trainer = train_reward_model(
            workspace.base_model, workspace.tokenizer, rows, settings, folder=folder / str(member), seed=seed
        )
        seconds += time.perf_counter() - begin
        models.append(RewardModel(trainer.model, workspace.tokenizer))
    together = np.min if cell.method == "ensemble_worst" else np.mean

    def score(rows: Sequence[list[int]], starts: Sequence[int]) -> list[np.ndarray]:
        each = [model.token_scores(rows, starts, batch_size=64) for model in models]
        return each[0] if members == 1 else [together(values, axis=0) for values in zip(*each, strict=True)]

    return score, seconds


def _true_rewards(profile: Profile, method: str, rows: Sequence[list[int]], starts: Sequence[int]) -> list[np.ndarray]:
    known = [test_set(profile, name).truth for name in every_set() if test_set(profile, name).rows is rows]
    if method == "true_scores":
        return [t.clause_scores for t in known[0]] if known else _running_gold(profile, rows, starts)
    truth = known[0] if known else known_truth(Language(**asdict(profile.language)), rows, starts)
    return [logit(t.values.clip(1e-9, 1 - 1e-9)) for t in truth]  # as a reward is: a logit


def _running_gold(profile: Profile, rows: Sequence[list[int]], starts: Sequence[int]) -> list[np.ndarray]:
    """Gold score of every prefix of responses that a policy wrote, grammatical or not."""
    language = Language(**asdict(profile.language))
    decode = partial(language.tokenizer.decode, skip_special_tokens=True)

    def gold(ids: list[int]) -> float:
        return language.gold_score([{"role": "assistant", "content": decode(ids)}])

    return [
        np.array([gold(row[start : end + 1]) for end in range(start, len(row))])
        for row, start in zip(rows, starts, strict=True)
    ]


def run_cell(
    profile: Profile, cell: Cell, settings: RewardModelSettings, path: Path, purpose: str = "experiments"
) -> Path:
    """Train and measure one cell, and write its record."""
    if cell.method == WEIGHTS:
        metrics = {"weights": _compare_weights(profile, cell)}
    else:
        with tempfile.TemporaryDirectory() as folder:
            rewards, seconds = train(profile, cell, settings, Path(folder))
            begin = time.perf_counter()
            metrics = _measured(profile, cell, rewards, purpose, Path(folder))
        metrics["seconds"] = {"train": round(seconds, 2), "measure": round(time.perf_counter() - begin, 2)}
    return records.write_json(
        path,
        {
            "config": cell_config(profile, cell, settings, purpose),
            # Not part of what makes a cell finished: the same settings give another base model on another machine.
            "base_model": model_fingerprint(base_model(profile, cell.base)),
            "environment": records.environment(),
            "metrics": _plain(metrics),
        },
        compact=True,
    )


def _measured(profile: Profile, cell: Cell, rewards: TokenScorer, purpose: str, folder: Path) -> dict[str, Any]:
    if cell.seed in TUNING_SEEDS:
        return validate(profile, rewards)
    if purpose == "best_of_n":
        return measure_picks(pool(profile), rewards)
    if purpose == "policy":
        workspace = _policy_workspace(profile)
        return measure_policies(workspace, rewards, seed=cell.seed, folder=folder, kinds=_kinds(cell))
    return measure(profile, rewards)


def _kinds(cell: Cell) -> tuple[str, ...]:
    return KINDS if cell.method in ON_POLICY else KINDS[:1]


@cache
def pool(profile: Profile) -> Pool:
    """The candidates of every best-of-N cell of a profile."""
    return sample_pool(_policy_workspace(profile))


def _policy_workspace(profile: Profile) -> Workspace:
    return _workspace(profile, base_model={"name": base_model(profile)})


def cell_config(
    profile: Profile, cell: Cell, settings: RewardModelSettings, purpose: str = "experiments"
) -> dict[str, Any]:
    """Return all that decides a cell's numbers, beside the code."""
    sections = {name: value for name, value in profile.config().items() if name != "reward_model"}
    constants: dict[str, Any] = {"version": VERSION, "rollouts": ROLLOUTS, "ensemble": ENSEMBLE_SIZE}
    constants |= {"shifts": SHIFTS} if purpose == "experiments" else {"purpose": purpose}
    if purpose == "policy":
        constants |= {"groups": (GROUP, GROUPS), "dpo": (BETA, DPO_RATE, DPO_EPOCHS), "grpo": (GRPO_RATE, GRPO_PROMPTS)}
        constants |= {"longest": profile.downstream.max_new_tokens, "kinds": _kinds(cell)}
    if purpose == "best_of_n":
        constants |= {
            "candidates": CANDIDATES,
            "started": STARTED,
            "budgets": BUDGETS,
            "cuts": (CUTS_AT, KEEPS),
            "ns": NS,
        }
    return _plain({"cell": asdict(cell), "settings": asdict(settings), "profile": sections, **constants})


def _plain(value: Any) -> Any:
    """Plain JSON values: tuples as lists, numbers rounded to six digits, nan as None."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return None if np.isnan(value) else float(f"{value:.6g}")
    return value


# The grid ------------------------------------------------------------------------------------------------------------


def cells_folder(profile: Profile, purpose: str = "experiments") -> Path:
    """Where the records of a profile's cells lie."""
    return runtime.project_root() / "results" / runtime.plain_name(profile.name) / runtime.plain_name(purpose)


def is_finished(path: Path, config: dict) -> bool:
    """Say whether a cell's record is there and was made with the same settings.

    A setting that came after the record counts as the same while it has its default: that is what the code did then.
    """
    try:
        stored = records.read_json(path)["config"]
        return stored == _as_known(config, stored, _plain(DEFAULTS))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


DEFAULTS = {"settings": asdict(RewardModelSettings()), "profile": Profile("").config()}


def _as_known(config: dict, stored: dict, defaults: dict) -> dict:
    # `config` without the keys that `stored` does not know and that have their default.
    known = {}
    for key, value in config.items():
        if key in stored:
            inner = isinstance(value, dict) and isinstance(stored[key], dict)
            known[key] = _as_known(value, stored[key], defaults.get(key, {})) if inner else value
        elif key not in defaults or value != defaults[key]:
            known[key] = value
    return known


def run_grid(
    profile: Profile,
    cells: Iterable[Cell],
    *,
    tuned: dict[str, dict[str, float]],
    purpose: str = "experiments",
    folder: Path | None = None,
    workers: int | None = None,
) -> dict[Cell, Path]:
    """Run the cells that are not finished, several at a time, one thread each.

    Args:
        profile: of the grid.
        cells: what to run; one that occurs twice is run once.
        tuned: by method, the settings that tuning chose.
        purpose: what to measure, see `purpose_of`.
        folder: where records lie; `cells_folder(profile, purpose)` when None.
        workers: processes; the number of cores when None. 0 runs the cells in this process.

    Returns:
        the record of every cell. A cell that fails is reported, the others still run, and then the first error is
        raised.
    """
    folder = folder or cells_folder(profile, purpose)
    jobs = {}
    for cell in dict.fromkeys(cells):
        settings = settings_of(profile, cell, tuned)
        jobs[cell] = (settings, folder / f"{cell.name}.json", purpose)

    def waiting() -> dict[Cell, tuple]:
        return {
            cell: job
            for cell, job in jobs.items()
            if not is_finished(job[1], cell_config(profile, cell, job[0], purpose))
        }

    if waiting():
        with records.locked(folder):
            if still := waiting():  # not finished by another run meanwhile
                _run_all(profile, still, len(jobs), workers)
    return {cell: path for cell, (_, path, _) in jobs.items()}


def _run_all(profile: Profile, jobs: dict[Cell, tuple], total: int, workers: int | None) -> None:
    for kind in ("base", "small", "under-trained", "double"):  # shared by many cells: made here, once
        wanted = {c.base for c in jobs} | {c.generator for c in jobs} | {"base"}
        if kind in wanted:
            base_model(profile, kind)
    if any(purpose == "best_of_n" for _, _, purpose in jobs.values()):
        pool(profile)  # sampled once, before several workers want it
    if any(purpose == "policy" for _, _, purpose in jobs.values()):
        training_samples(_policy_workspace(profile))
    bar = tqdm(total=total, initial=total - len(jobs), desc="cells", unit="cell", smoothing=0.05, mininterval=1)
    workers = os.cpu_count() or 1 if workers is None else workers
    failures = []

    def done(cell: Cell, error: BaseException | None) -> None:
        if error:
            logger.error("cell %s failed: %s", cell.name, error)
            failures.append(error)
        bar.update()

    if workers == 0:
        for cell, job in jobs.items():
            try:
                run_cell(profile, cell, *job)
                done(cell, None)
            except Exception as error:  # the other cells are worth having, whatever went wrong with this one
                done(cell, error)
    else:
        _run_in_processes(profile, jobs, workers, done)
    bar.close()
    if failures:
        raise failures[0]


def _run_in_processes(profile: Profile, jobs: dict[Cell, tuple], workers: int, done: Callable) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        shared = dict.fromkeys(Cell("icrm", c.seed, data=c.data, pairs=c.pairs, base=c.base) for c in jobs)
        list(pool.map(_prepare, *zip(*[(profile, cell) for cell in shared], strict=True)))
        running = {pool.submit(run_cell, profile, cell, *job): cell for cell, job in jobs.items()}
        for future in as_completed(running):
            done(running[future], future.exception())


def _start_worker() -> None:
    # One thread a process: two processes of one thread do more than two of two on two cores.
    os.environ["ICRM_UNATTENDED"] = "1"
    runtime.quiet()
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    # A worker whose parent was killed would go on for hours, and beside the next run.
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _prepare(profile: Profile, cell: Cell) -> None:
    """Make what the cells of one seed share, so that two workers never make it at once."""
    rows = training_workspace(profile, replace(cell, method="")).tokenized["train"]
    for statistic in ("logprobs",) if cell.pairs else ("logprobs", "negentropies", "logmargins"):
        generator_workspace(profile, cell).add_logprobs(rows, statistic)


def tune(
    profile: Profile,
    cells: Iterable[Cell],
    *,
    folder: Path | None = None,
    workers: int | None = None,
) -> dict[str, dict[str, float]]:
    """Run the trials of what some cells need tuned, and choose by accuracy on the noisy labels of validation pairs.

    Args:
        profile: of the grid.
        cells: whose methods are tuned.
        folder, workers: see `run_grid`.

    Returns:
        by `tuned_as`, the chosen settings; ties go to the first trial.
    """
    wanted = {tuned_as(cell) for cell in cells}
    trials = {name: options for name, options in tuning_cells().items() if name in wanted}
    every = [cell for options in trials.values() for trial in options for cell in trial]
    paths = run_grid(profile, every, tuned={}, folder=folder, workers=workers)

    def accuracy(trial: list[Cell]) -> float:
        counts = [records.read_json(paths[cell])["metrics"]["accuracy"][VALIDATION] for cell in trial]
        return sum(sum(count["right"]) for count in counts) / sum(sum(count["count"]) for count in counts)

    return {name: dict(max(options, key=accuracy)[0].changes) for name, options in trials.items()}


def main(arguments: list[str] | None = None) -> None:
    """Run all studies of a profile, or those named."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--profile", default="lab")
    parser.add_argument("--only", default="", help=f"studies, separated by commas: {', '.join(studies())}")
    options = parser.parse_args(arguments)
    runtime.quiet()
    profile, grid = load_profile(options.profile), studies()
    chosen = [name.strip() for name in options.only.split(",") if name.strip()] or list(grid)
    if unknown := sorted(set(chosen) - set(grid)):
        parser.error(f"unknown study {unknown[0]!r}; choose from {', '.join(grid)}")
    begin = time.monotonic()
    torch.set_num_threads(1)  # the base models are made here: with the threads of the workers, whatever the machine has
    tuned = tune(profile, [cell for name in chosen for cell in grid[name]])
    for purpose in dict.fromkeys(map(purpose_of, chosen)):
        cells = [cell for name in chosen if purpose_of(name) == purpose for cell in grid[name]]
        run_grid(profile, cells, tuned=tuned, purpose=purpose)
    print(f"{', '.join(chosen)}: finished after {(time.monotonic() - begin) / 60:.0f} min")


if __name__ == "__main__":
    main()
