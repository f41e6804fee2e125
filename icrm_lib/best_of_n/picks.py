"""Best-of-N: what the pick of a reward model is worth, exactly over all subsets; on the testbed by its gold score."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import gammaln

from icrm_lib.best_of_n.early_rejection import choose_schedule, early_rejection, schedules, try_schedules
from icrm_lib.generator.cache import model_fingerprint
from icrm_lib.lab.workspace import Workspace
from icrm_lib.language_model.causal import load_causal_lm
from icrm_lib.language_model.sampling import SamplingSettings, sample
from icrm_lib.measures.pairs import Estimate
from icrm_lib.measures.tokens import TokenScorer
from icrm_lib.records import fingerprint
from icrm_lib.tokenization import tokenize_conversations

# Exact expectations --------------------------------------------------------------------------------------------------


def pick_weights(scores: Sequence[float], n: int) -> np.ndarray:
    """Probability of each of N candidates to be the pick among n drawn without replacement, ties broken evenly.

    With the scores in order and c_g the number of candidates at or below the tie group g, the best of a random
    n-subset lies in g with probability [C(c_g, n) - C(c_{g-1}, n)] / C(N, n), shared evenly inside the group.

    Args:
        scores: finite. Shape: (N,).
        n: 1..N.

    Returns:
        probabilities with sum 1. Shape: (N,).

    Raises:
        ValueError: n out of range, or a score that is not finite.
    """
    scores = np.asarray(scores, dtype=float)
    if not 1 <= n <= len(scores):
        raise ValueError(f"n {n}: must be 1..{len(scores)}, the number of candidates")
    if not np.isfinite(scores).all():
        raise ValueError(f"candidate {int(np.flatnonzero(~np.isfinite(scores))[0])} has a score that is not finite")
    _, group, size = np.unique(scores, return_inverse=True, return_counts=True)
    below = np.concatenate([[0], np.cumsum(size)])
    share = np.zeros(len(below))
    possible = below >= n
    c, total = below[possible].astype(float), float(len(scores))
    log_ratio = (gammaln(c + 1) - gammaln(c - n + 1)) - (gammaln(total + 1) - gammaln(total - n + 1))
    share[possible] = np.exp(log_ratio)  # C(c, n) / C(N, n)
    share[-1] = 1.0
    return (np.diff(share) / size)[group]


def expected_best_of_n(scores: Sequence[float], values: Sequence[float], n: int) -> float:
    """Expected value of the highest-scoring of n candidates, exact over all size-n subsets of N, in O(N log N).

    Args:
        scores: what the pick is made by. Shape: (N,).
        values: what the pick is worth, e.g. its gold score. Shape: (N,).
        n: 1..N; n = 1 gives the mean of `values`.

    Raises:
        ValueError: lengths differ, n out of range, or a score that is not finite.
    """
    if len(scores) != len(values):
        raise ValueError(f"{len(scores)} scores but {len(values)} values; each candidate needs both")
    return float(pick_weights(scores, n) @ np.asarray(values, dtype=float))


def best_of_n_kl(n: np.ndarray | float) -> np.ndarray | float:
    """Upper bound on the KL divergence of best-of-n from the policy, log n - (n - 1) / n nats (arXiv 2204.05862)."""
    return np.log(n) - (np.asarray(n) - 1) / n


def best_of_n_curve(
    scores: np.ndarray,
    values: dict[str, np.ndarray],
    ns: Sequence[int],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Expected values of the pick over N, mean over prompts, with intervals that resample prompts.

    Args:
        scores: of every candidate by the reward model that picks. Shape: (prompts, candidates).
        values: name -> what is measured at the pick, e.g. {"gold": ..., "proxy": scores}. Shape of each: as `scores`.
        ns: numbers of candidates, each at most the number there is.
        resamples: bootstrap resamples.
        seed: of the resampling.

    Returns:
        one row a (n, measure): `n`, `kl`, `measure`, `value`, `low`, `high`.
    """
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(scores), np.full(len(scores), 1 / len(scores)), resamples) / len(scores)
    rows = []
    for n in ns:
        weights = np.array([pick_weights(row, n) for row in scores])
        for measure, value in values.items():
            by_prompt = (weights * value).sum(1)
            low, high = np.quantile(draws @ by_prompt, (0.025, 0.975))
            rows.append(
                {"n": n, "kl": float(best_of_n_kl(n)), "measure": measure}
                | {"value": float(by_prompt.mean()), "low": float(low), "high": float(high)}
            )
    return pd.DataFrame(rows)


def win_tie_lose(ours: np.ndarray, theirs: np.ndarray, *, margin: float = 0.0) -> dict[str, Estimate]:
    """Compare two methods' picks under a judge, prompt by prompt.

    Args:
        ours, theirs: the judge's score of each method's pick. Shape of both: (prompts,), or (prompts, picks) where a
            prompt has several.
        margin: scores nearer to each other than this tie.

    Returns:
        shares `win`, `tie`, `lose` with 95 % intervals over prompts; they add up to 1.

    Raises:
        ValueError: a score that is not finite.
    """
    difference = np.asarray(ours, dtype=float) - np.asarray(theirs, dtype=float)
    if not np.isfinite(difference).all():
        raise ValueError("a judge's score is not finite; leave the prompt out for both methods")
    outcome = np.where(np.abs(difference) <= margin, 0, np.sign(difference))
    hits = np.column_stack([(outcome == sign).reshape(len(outcome), -1).mean(1) for sign in (1, 0, -1)])
    return dict(zip(("win", "tie", "lose"), _over_prompts(hits), strict=True))


def _over_prompts(values: np.ndarray) -> list[Estimate]:
    """Mean over prompts of each column, with a 95 % interval that resamples prompts. Shape: (prompts, measures).

    Rounded to 1e-12: shares of few prompts lie on the edges of what a table prints, and the order of a sum must not
    show there.
    """
    draws = values[np.random.default_rng(0).integers(len(values), size=(2000, len(values)))].mean(1)
    low, high = np.quantile(draws, (0.025, 0.975), axis=0)
    return [Estimate(*np.round(row, 12).tolist()) for row in zip(values.mean(0), low, high, strict=True)]


# Labelled outcomes ---------------------------------------------------------------------------------------------------


def load_outcomes(path: str | Path) -> tuple[pd.DataFrame, list[str]]:
    """Read responses with known outcomes: JSON lines {"prompt", "responses": [...], "correct": [...]}.

    Returns:
        one row a response (`prompt` index, `index`, `conversation`, `response`, `correct`), and what was refused, one
        sentence a row with line, reason and remedy.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no usable row.
    """
    rows, refused = [], []
    for number, line in enumerate(Path(path).read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            prompt, responses, correct = row["prompt"], row["responses"], row["correct"]
            if not isinstance(prompt, str) or not isinstance(responses, list) or not isinstance(correct, list):
                raise ValueError("needs a text prompt and lists of responses and outcomes")
            if not responses or len(responses) != len(correct):
                raise ValueError(f"{len(responses)} responses with {len(correct)} outcomes; each needs one")
            if not all(isinstance(r, str) and r.strip() for r in responses):
                raise ValueError("a response is empty or no text")
            if not all(isinstance(c, bool) or c in (0, 1) for c in correct):
                raise ValueError("an outcome is neither true nor false")
        except (ValueError, KeyError, TypeError) as error:
            reason = f"missing key {error}" if isinstance(error, KeyError) else error
            refused.append(f"{path}:{number}: {reason}; correct or remove the row")
            continue
        index = rows[-1]["prompt"] + 1 if rows else 0
        for j, (response, outcome) in enumerate(zip(responses, correct, strict=True)):
            talk = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
            rows.append(
                {"prompt": index, "index": j, "conversation": talk, "response": response, "correct": bool(outcome)}
            )
    if not rows:
        raise ValueError(f"{path} has no usable row" + (f": {refused[0]}" if refused else ""))
    return pd.DataFrame(rows), refused


NUMBER = re.compile(r"(?<![\w.)])-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")


def final_answer(response: str) -> str:
    r"""Return what a worked solution ends on: its last `\boxed{...}` whole, else its last number, else its last line.

    White space and case do not count, nor how a number is written: "1,200.00" and "1200" are one answer. Formulas are
    compared as text, so two ways to write one formula are two answers.
    """
    response = response.replace("\u2212", "-")  # the minus sign
    answer = _boxed(response)
    if answer is None:
        numbers = NUMBER.findall(response)
        answer = numbers[-1] if numbers else (response.strip().splitlines() or [""])[-1]
    answer = "".join(answer.split()).casefold()
    if NUMBER.fullmatch(answer):
        number = float(answer.replace(",", ""))
        return f"{number + 0.0:.12g}"
    return answer


def _boxed(response: str) -> str | None:
    """What stands between the braces of the last box, nested ones included."""
    start = response.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 0, start + len("\\boxed")
    for position in range(begin, len(response)):
        depth += {"{": 1, "}": -1}.get(response[position], 0)
        if depth == 0:
            return response[begin + 1 : position]
    return None


def outcome_accuracy(rows: pd.DataFrame, scores: Sequence[float]) -> pd.DataFrame:
    """How often the chosen response is right, chosen by a reward model and by what it has to beat.

    Args:
        rows: of `load_outcomes`.
        scores: of the reward model, one a row.

    Returns:
        index `mean` (any response), `majority` (the final answer that most responses give, tied answers evenly),
        `pick` (the highest score, ties evenly), `oracle` (right where any response is); columns `value`, `low`, `high`:
        a share of the prompts with its 95 % interval over prompts.

    Raises:
        ValueError: another number of scores than rows, or one that is not finite.
    """
    if len(scores) != len(rows):
        raise ValueError(f"{len(scores)} scores but {len(rows)} responses; each response needs one")
    by_prompt = []
    for _, group in rows.assign(score=np.asarray(scores, dtype=float)).groupby("prompt", sort=False):
        right = group["correct"].to_numpy(dtype=float)
        votes = group["response"].map(final_answer)
        share = pd.Series(right, index=group.index).groupby(votes).agg(["size", "mean"])
        majority = share.loc[share["size"] == share["size"].max(), "mean"].mean()
        pick = pick_weights(group["score"].to_numpy(), len(group)) @ right
        by_prompt.append((right.mean(), majority, pick, right.max()))
    names = ["mean", "majority", "pick", "oracle"]
    return pd.DataFrame(_over_prompts(np.array(by_prompt)), columns=["value", "low", "high"], index=names)


# On the testbed ------------------------------------------------------------------------------------------------------

NS = (1, 2, 4, 8, 16, 32, 64)
CANDIDATES = 128  # a prompt; expectations over subsets of them are exact
STARTED = 32  # candidates that early rejection begins with: the pool of a prompt holds several such groups
BUDGETS = (0.4, 0.5, 0.6, 0.7, 0.8)  # shares of the tokens that all candidates would need
CUTS_AT, KEEPS = (16, 24, 32, 40, 48), (24, 16, 8, 4)


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
    tokenizer, longest = workspace.tokenizer, workspace.profile.downstream.max_new_tokens
    validation, test = (workspace.prompts(split)[:limit] for split in ("validation", "test"))
    prompts = [*validation, *test]
    settings = SamplingSettings(n=candidates, max_new_tokens=longest)
    key = {"policy": model_fingerprint(workspace.base_model), "settings": asdict(settings)}
    path = workspace.folder / f"samples-{fingerprint(key)}.jsonl"
    samples = sample(load_causal_lm(workspace.base_model).eval(), tokenizer, prompts, settings, path)
    samples = samples[samples["finished"]]
    counts = samples.groupby("prompt").size().reindex(range(len(prompts)), fill_value=0)
    if counts.min() == 0:
        raise ValueError(f"no response to {prompts[counts.idxmin()][-1]['content']!r} ended within {longest} tokens")
    kept = int(counts.min())
    samples = samples.groupby("prompt").head(kept).sort_values(["prompt", "index"])
    talks = [[*prompts[row.prompt], {"role": "assistant", "content": row.response}] for row in samples.itertuples()]
    tokens = tokenize_conversations(tokenizer, talks)
    return Pool(
        rows=[row.input_ids for row in tokens],
        starts=[row.prompt_length for row in tokens],
        gold=workspace.judge(talks).reshape(len(prompts), kept),
        lengths=np.array([len(row.input_ids) - row.prompt_length for row in tokens]).reshape(len(prompts), kept),
        validation=np.arange(len(prompts)) < len(validation),
    )


def measure_picks(pool: Pool, rewards: TokenScorer) -> dict[str, Any]:
    """Measure what a reward model's picks are worth, and what it loses when it stops candidates early.

    Args:
        pool: of `sample_pool`.
        rewards: scores tokens.

    Returns:
        `gold` and `tokens`: by N of `NS`, by test prompt, the expected gold score and length of the pick; `proxy`: by N
        its mean reward, in standard deviations of the candidates' rewards about their mean; `curve`: mean gold for
        every N from 1 to 64; `picks`: by test prompt the gold scores of the best of each group of 64; `pick_lengths`:
        how the lengths of picks of 64 are distributed; `early`: see `_early`.
    """
    scored = rewards(pool.rows, pool.starts)
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
    }


def _early(pool: Pool, scored: list[np.ndarray]) -> dict[str, dict[str, Any]]:
    """What the schedule chosen within each budget on the validation prompts does on the test prompts.

    By budget: `cuts`; `share` of the tokens; and by prompt the gold score of its picks (`gold`), of the picks among all
    candidates (`full`), their difference (`loss`), and of picks among as many whole candidates as its tokens would buy
    (`same_tokens`). A budget below that of every schedule has no entry.
    """
    prompts, candidates = pool.gold.shape
    started = min(STARTED, candidates)
    groups = [range(g * started, (g + 1) * started) for g in range(candidates // started)]
    by_prompt = [scored[p * candidates : (p + 1) * candidates] for p in range(prompts)]
    validation, test = np.flatnonzero(pool.validation), np.flatnonzero(~pool.validation)
    candidates_of = [[by_prompt[p][i] for i in group] for p in validation for group in groups]
    worth = [pool.gold[p, list(group)] for p in validation for group in groups]
    tried = try_schedules(candidates_of, worth, schedules(CUTS_AT, KEEPS))
    last = np.array([values[-1] for values in scored]).reshape(prompts, candidates)
    whole = {n: [float(pick_weights(last[p], n) @ pool.gold[p]) for p in test] for n in range(1, started + 1)}
    results = {}
    for budget in [b for b in BUDGETS if b >= min(one.share for one in tried)]:
        schedule = choose_schedule(tried, budget).schedule
        gold, full, tokens, all_tokens = [], [], 0, 0
        for p in test:
            runs = [early_rejection([by_prompt[p][i] for i in group], schedule) for group in groups]
            gold.append(float(np.mean([pool.gold[p, g[run.pick]] for g, run in zip(groups, runs, strict=True)])))
            full.append(float(np.mean([pool.gold[p, g[last[p, list(g)].argmax()]] for g in groups])))
            tokens, all_tokens = tokens + sum(r.tokens for r in runs), all_tokens + sum(r.full_tokens for r in runs)
        share = tokens / all_tokens
        results[f"{budget:.0%}"] = {
            "cuts": [list(cut) for cut in schedule.cuts],
            "share": float(share),
            "gold": gold,
            "full": full,
            "loss": [a - b for a, b in zip(full, gold, strict=True)],
            "same_tokens": whole[max(1, round(share * started))],
        }
    return results
