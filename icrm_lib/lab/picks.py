"""What a reward model's picks among a policy's candidates are worth, judged by the gold score."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from icrm_lib.best_of_n import early_rejection, pick_weights
from icrm_lib.best_of_n.rejection import choose_schedule, schedules, try_schedules
from icrm_lib.lab.cells import Cell
from icrm_lib.lab.data import replied
from icrm_lib.lab.held_out import Readouts
from icrm_lib.lab.inputs import policy_workspace
from icrm_lib.lab.workspace import Workspace
from icrm_lib.language_model.sampling import SamplingSettings
from icrm_lib.profiles import Profile
from icrm_lib.tokenization import tokenize_conversations

NS = (1, 2, 4, 8, 16, 32, 64)
CANDIDATES = 128  # a prompt; expectations over subsets of them are exact
STARTED = 32  # candidates that early rejection begins with: the pool of a prompt holds several such groups
BUDGETS = (0.4, 0.5, 0.6, 0.7, 0.8)  # shares of the tokens that all candidates would need
CUTS_AT, KEEPS = (16, 24, 32, 40, 48), (24, 16, 8, 4)


def constants(profile: Profile, cell: Cell) -> dict[str, Any]:
    """See `cell.PURPOSES`."""
    found = {"purpose": "best_of_n", "candidates": CANDIDATES, "started": STARTED, "budgets": BUDGETS}
    return found | {"cuts": (CUTS_AT, KEEPS), "ns": NS}


def prepare(profile: Profile) -> list[Path]:
    """See `cell.PURPOSES`: the candidates are sampled once."""
    pool_of(profile)
    workspace = policy_workspace(profile)
    return [Path(workspace.base_model), workspace.samples_file(_drawn(workspace, CANDIDATES))]


def measure(profile: Profile, cell: Cell, readouts: Readouts, folder: Path) -> dict[str, Any]:
    """See `cell.PURPOSES`."""
    return measure_picks(pool_of(profile), readouts)


@dataclass(frozen=True)
class Pool:
    """Responses of a policy to the validation and test prompts of the testbed, with their gold scores.

    Attributes:
        rows: token ids, the candidates of a prompt one after the other.
        starts: index of the first response token in each.
        gold: gold score of each. Shape: (prompts, candidates).
        lengths: response tokens, the closing one included. Shape: (prompts, candidates).
        validation: prompts that choose schedules; the others are reported. Shape: (prompts,), bool.
    """

    rows: list[list[int]]
    starts: list[int]
    gold: np.ndarray
    lengths: np.ndarray
    validation: np.ndarray


def sample_pool(workspace: Workspace, *, candidates: int = CANDIDATES, limit: int | None = None) -> Pool:
    """Sample responses of a workspace's base model, the policy; samples are kept in `runs/` and drawn once.

    Args:
        workspace: on the testbed, or with a judge in its profile.
        candidates: responses a prompt; those that `max_new_tokens` cut have no gold score and are left out, for every
            prompt as many as for the worst one.
        limit: prompts of each split; all when None.
    """
    tokenizer, settings = workspace.tokenizer, _drawn(workspace, candidates)
    validation, test = (workspace.prompts(split)[:limit] for split in ("validation", "test"))
    prompts = [*validation, *test]
    samples = workspace.samples(prompts, settings)
    samples = samples[samples["finished"]]
    counts = samples.groupby("prompt").size().reindex(range(len(prompts)), fill_value=0)
    if counts.min() == 0:
        raise ValueError(
            f"no response to {prompts[counts.idxmin()][-1]['content']!r} ended within {settings.max_new_tokens} tokens"
        )
    kept = int(counts.min())
    samples = samples.groupby("prompt").head(kept).sort_values(["prompt", "index"])
    talks = replied([prompts[i] for i in samples["prompt"]], samples["response"])
    tokens = tokenize_conversations(tokenizer, talks)
    return Pool(
        rows=[row.input_ids for row in tokens],
        starts=[row.prompt_length for row in tokens],
        gold=workspace.judge(talks).reshape(len(prompts), kept),
        lengths=np.array([len(row.input_ids) - row.prompt_length for row in tokens]).reshape(len(prompts), kept),
        validation=np.arange(len(prompts)) < len(validation),
    )


def _drawn(workspace: Workspace, candidates: int) -> SamplingSettings:
    return SamplingSettings(n=candidates, max_new_tokens=workspace.profile.downstream.max_new_tokens)


@cache
def pool_of(profile: Profile) -> Pool:
    """Return the candidates of every best-of-N cell of a profile."""
    return sample_pool(policy_workspace(profile))


def measure_picks(pool: Pool, readouts: Readouts) -> dict[str, Any]:
    """Measure what a reward model's picks are worth, and what it loses when it stops candidates early.

    Args:
        pool: of `sample_pool`.
        readouts: score tokens, each in its way.

    Returns:
        `gold` and `tokens`: by N of `NS`, by test prompt, the expected gold score and length of the pick; `proxy`: by N
        its mean reward, in standard deviations of the candidates' rewards about their mean; `curve`: mean gold for
        every N from 1 to 64; `picks`: by test prompt the gold scores of the best of each group of 64; `pick_lengths`:
        how the lengths of picks of 64 are distributed; `early`: see `_early`, and `early_closing` by that readout.
    """
    by_readout = {name: rewards(pool.rows, pool.starts) for name, rewards in readouts.items()}
    scored = by_readout["place"]
    shape, test = pool.gold.shape, ~pool.validation
    scores = np.array([values[-1] for values in scored]).reshape(shape)
    gold, lengths, scores_test = pool.gold[test], pool.lengths[test], scores[test]
    standard = (scores_test - scores_test.mean()) / max(scores_test.std(), 1e-12)
    weights = {n: np.array([pick_weights(row, n) for row in scores_test]) for n in range(1, min(64, shape[1]) + 1)}
    ns, largest = [n for n in NS if n in weights], max(weights)
    groups = np.arange(shape[1] // largest * largest).reshape(-1, largest)
    return {
        "gold": {str(n): (weights[n] * gold).sum(1).round(4).tolist() for n in ns},
        "tokens": {str(n): (weights[n] * lengths).sum(1).round(2).tolist() for n in ns},
        "proxy": {str(n): float((weights[n] * standard).sum(1).mean()) for n in ns},
        "curve": [float((w * gold).sum(1).mean()) for w in weights.values()],
        "picks": [[row[g[s[g].argmax()]] for g in groups] for row, s in zip(gold, scores_test, strict=True)],
        "pick_lengths": np.bincount(lengths.ravel(), weights=weights[largest].ravel() / len(gold)).round(5).tolist(),
        "early": _early(pool, scored),
        **{f"early_{name}": _early(pool, rewards) for name, rewards in by_readout.items() if name != "place"},
    }


def _early(pool: Pool, scored: list[np.ndarray]) -> dict[str, dict[str, Any]]:
    """What the schedule chosen within each budget on the validation prompts does on the test prompts.

    By budget: `cuts`; `share` of the tokens; and by prompt the gold score of its picks (`gold`), of the picks among all
    candidates (`full`), their difference (`loss`), and of picks among as many whole candidates as its tokens would buy
    (`same_tokens`). A budget below that of every schedule has no entry.
    """
    candidates = pool.gold.shape[1]
    started = min(STARTED, candidates)
    groups = np.arange(candidates // started * started).reshape(-1, started)

    def grouped(prompts: np.ndarray) -> tuple[list[list[np.ndarray]], list[np.ndarray]]:
        pairs = [(prompt, group) for prompt in np.flatnonzero(prompts) for group in groups]
        return [[scored[p * candidates + i] for i in group] for p, group in pairs], [pool.gold[p, g] for p, g in pairs]

    def by_prompt(picks: list[int]) -> np.ndarray:
        return np.array([gold[pick] for gold, pick in zip(worth, picks, strict=True)]).reshape(-1, len(groups)).mean(1)

    tried = try_schedules(*grouped(pool.validation), schedules(CUTS_AT, KEEPS))
    rewards, worth = grouped(~pool.validation)
    full = by_prompt([int(np.argmax([values[-1] for values in group])) for group in rewards])
    last = np.array([values[-1] for values in scored]).reshape(pool.gold.shape)[~pool.validation]
    results = {}
    for budget in [b for b in BUDGETS if b >= min(one.share for one in tried)]:
        schedule = choose_schedule(tried, budget).schedule
        runs = [early_rejection(group, schedule) for group in rewards]
        gold = by_prompt([run.pick for run in runs])
        share = sum(run.tokens for run in runs) / sum(run.full_tokens for run in runs)
        n = max(1, round(share * started))
        same = [float(pick_weights(s, n) @ g) for s, g in zip(last, pool.gold[~pool.validation], strict=True)]
        results[f"{budget:.0%}"] = {
            "cuts": [list(cut) for cut in schedule.cuts],
            "share": float(share),
            "gold": gold.tolist(),
            "full": full.tolist(),
            "loss": (full - gold).tolist(),
            "same_tokens": same,
        }
    return results
