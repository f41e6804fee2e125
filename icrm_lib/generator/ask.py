"""Ask a generator for the log-probability of every token, or another statistic of the distribution before it."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, TopPLogitsWarper

from icrm_lib.language_model.causal import (
    ROWS_PER_CHUNK,
    batches_of,
    decoder_states,
    padded,
    without_adapter,
)
from icrm_lib.language_model.lm_head import projecting
from icrm_lib.language_model.positions import refuse_too_long, steady_length

# What is asked of the generator's distribution before each token; all are logarithms of a weight in [0, 1].
STATISTICS = (
    "logprobs",  # log P(token)
    "negentropies",  # minus the entropy, in nats: exp of it is 1 / perplexity of the distribution
    "logmargins",  # log of (probability of the most probable token - that of the second)
)


# What else may be asked: which tokens are most probable in each place, so many that smaller numbers need not ask again.
SIBLINGS, MOST_SIBLINGS = "siblings", 8


class Siblings(NamedTuple):
    """The most probable tokens in the place of each of T tokens, most probable first.

    Attributes:
        ids: int32. Shape: (T, K).
        logprobs: their log-probabilities given what stands before the place, float32. Shape: (T, K).
    """

    ids: np.ndarray
    logprobs: np.ndarray

    @classmethod
    def of(cls, logprobs: np.ndarray) -> "Siblings":
        """Take the `MOST_SIBLINGS` most probable ones of whole distributions, those of lower id first among equals.

        Args:
            logprobs: of every token, -inf where impossible. Shape: (T, V).
        """
        ids = np.argsort(-logprobs, axis=1, kind="stable")[:, :MOST_SIBLINGS].astype(np.int32)
        values = np.take_along_axis(logprobs, ids, 1).astype(np.float32)
        return cls(ids, np.maximum(values, np.finfo(np.float32).min))  # kept finite for the cache


# Token ids and the index of the first token asked for -> the answers for the tokens from there on.
Scorer = Callable[[Sequence[tuple[list[int], int]]], list[np.ndarray] | list[Siblings]]


@torch.no_grad()
def token_logprobs(
    model: PreTrainedModel,
    batch: dict[str, torch.Tensor],
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    statistic: str = "logprobs",
) -> torch.Tensor:
    """Log-probability of every token given those before it, or another statistic of the distribution it came from.

    Args:
        model: a causal language model.
        batch: `input_ids` and `attention_mask`, right-padded. Shape of each: (N, T).
        temperature: divides the logits; the temperature the generator samples at. > 0.
        top_p: nucleus the generator samples from, in (0, 1]: the smallest set of tokens that holds this probability
            shares all of it. A token outside has probability 0, its logarithm is the least finite number.
        statistic: one of `STATISTICS`.

    Returns:
        float32. Shape: (N, T). Entry t = log P(token t | tokens < t), or the statistic of P(. | tokens < t); 0 at
        t = 0 and at padding.

    Raises:
        SequenceTooLong: a row is longer than the model's positions.
        ValueError: `temperature` or `top_p` out of range, or an unknown statistic.
    """
    if statistic not in STATISTICS:
        raise ValueError(f"unknown statistic {statistic!r}; choose one of {', '.join(STATISTICS)}")
    read = functools.partial(_statistic, statistic=statistic)
    return _ask(model, batch, read, temperature=temperature, top_p=top_p)


@torch.no_grad()
def next_tokens(
    model: PreTrainedModel, batch: dict[str, torch.Tensor], *, temperature: float = 1.0, top_p: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ask for the `MOST_SIBLINGS` most probable tokens in the place of every token; all of a smaller vocabulary.

    Args:
        model, batch, temperature, top_p: see `token_logprobs`.

    Returns:
        (ids, logprobs): int64 and float32, most probable first. Shape of each: (N, T, K). Both 0 at t = 0 and at
        padding.

    Raises:
        SequenceTooLong, ValueError: see `token_logprobs`.
    """

    def read(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        best = logits.float().log_softmax(1).topk(min(MOST_SIBLINGS, logits.shape[1]))
        # Ids beside log-probabilities, in float64, which holds both without loss.
        return torch.stack([best.indices.double(), best.values.clamp(min=torch.finfo(torch.float32).min).double()], 1)

    both = _ask(model, batch, read, temperature=temperature, top_p=top_p)
    return both[:, :, 0].long(), both[:, :, 1].float()


def _ask(
    model: PreTrainedModel,
    batch: dict[str, torch.Tensor],
    read: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    *,
    temperature: float,
    top_p: float,
) -> torch.Tensor:
    """Read something of the logits before every token, in chunks: `read((M, V), (M,)) -> (M, ...)`; 0 elsewhere."""
    if not temperature > 0 or not 0 < top_p <= 1:
        raise ValueError(f"temperature must be > 0 and top_p in (0, 1], got {temperature} and {top_p}")
    ids, attended = batch["input_ids"], batch["attention_mask"].bool()
    causal_lm = without_adapter(model)
    hidden = _steady_states(model, causal_lm, ids, attended)
    predicted = attended[:, 1:]
    states, targets = hidden[:, :-1][predicted], ids[:, 1:][predicted]
    values = []
    with projecting(causal_lm) as logits_of:  # the model's own, with what its architecture does to them
        for some, of in zip(states.split(ROWS_PER_CHUNK), targets.split(ROWS_PER_CHUNK), strict=True):
            logits = logits_of(some)  # at most ROWS_PER_CHUNK x V at a time
            if temperature != 1:
                logits = logits / temperature
            if top_p < 1:
                logits = TopPLogitsWarper(top_p)(None, logits)
            values.append(read(logits, of))
    found = torch.cat(values)
    result = torch.zeros(
        (*ids.shape, *found.shape[1:]), dtype=torch.promote_types(found.dtype, torch.float32), device=ids.device
    )
    result[:, 1:][predicted] = found.to(result.dtype)
    return result


def _steady_states(
    model: torch.nn.Module, causal_lm: PreTrainedModel, ids: torch.Tensor, attended: torch.Tensor
) -> torch.Tensor:
    """Last hidden states of a batch; row by row where its longest row would change the RoPE frequencies of all."""
    lengths, steady = attended.sum(1).tolist(), steady_length(causal_lm.config)
    refuse_too_long(causal_lm.config, lengths)
    if steady is None or max(lengths) <= steady:
        return decoder_states(model, causal_lm, input_ids=ids, attention_mask=attended.long())
    states = []
    for row, length in zip(ids, lengths, strict=True):
        # One token first: dynamic NTK keeps the frequencies of the longest row until a short one comes.
        for some in (row[None, :1], row[None, :length]):
            hidden = decoder_states(model, causal_lm, input_ids=some, attention_mask=torch.ones_like(some))
        states.append(F.pad(hidden[0], (0, 0, 0, ids.shape[1] - length)))
    return torch.stack(states)


def _statistic(logits: torch.Tensor, targets: torch.Tensor, statistic: str) -> torch.Tensor:
    least = torch.finfo(logits.dtype).min  # for a weight of 0, kept finite for the cache
    if statistic == "logprobs":
        return -F.cross_entropy(logits, targets, reduction="none").clamp(max=-least)
    if statistic == "negentropies":
        return -torch.distributions.Categorical(logits=logits).entropy()
    first, second = (logits.topk(2).values - logits.logsumexp(1, keepdim=True)).unbind(1)
    # log(p1 - p2) = log p1 + log(1 - p2 / p1); two equal ones make a weight of 0.
    return (first + torch.log1p(-(second - first).exp())).clamp(min=least)


def model_scorer(model: PreTrainedModel, pad_token_id: int, *, tokens_per_batch: int = 16384, **options: Any) -> Scorer:
    """Return a scorer that asks a causal language model, batching sequences of like length by tokens.

    Args:
        model: the frozen generator.
        pad_token_id: padding id.
        tokens_per_batch: padded tokens in one forward pass.
        options: temperature, top_p, statistic; see `token_logprobs`. The statistic may be `SIBLINGS`, too; the answers
            then are `Siblings`.
    """
    siblings = options.get("statistic") == SIBLINGS
    if siblings:
        del options["statistic"]

    def score(rows: Sequence[tuple[list[int], int]]) -> list[np.ndarray]:
        results: list = [None] * len(rows)
        lengths = [len(ids) for ids, _ in rows]
        refuse_too_long(model.config, lengths)
        for members in batches_of(range(len(rows)), lengths, tokens=tokens_per_batch):
            batch = padded([rows[i][0] for i in members], pad_token_id, device=model.device)
            if siblings:
                found = [value.cpu().numpy() for value in next_tokens(model, batch, **options)]
            else:
                found = [token_logprobs(model, batch, **options).cpu().numpy()]
            for position, i in enumerate(members):
                parts = [values[position, rows[i][1] : len(rows[i][0])] for values in found]
                results[i] = Siblings(parts[0].astype(np.int32), parts[1]) if siblings else parts[0]
        return results

    return score


def vllm_scorer(model: str | Path) -> Scorer:
    """Return a scorer that asks vLLM, where it is installed: `pip install -e ".[vllm]"`.

    vLLM gives the log-probabilities of a prompt's tokens as the model has them: no temperature, no nucleus, no other
    statistic than "logprobs".

    Args:
        model: directory or hub id of a causal language model.
    """
    from vllm import LLM, SamplingParams

    llm = LLM(str(model), load_format="safetensors")
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)

    def score(rows: Sequence[tuple[list[int], int]]) -> list[np.ndarray]:
        prompts = [{"prompt_token_ids": list(ids)} for ids, _ in rows]
        outputs = llm.generate(prompts, params, use_tqdm=False)
        return [
            # One dictionary a position, token id -> its log-probability; the first position has none.
            np.array([output.prompt_logprobs[t][ids[t]].logprob for t in range(start, len(ids))], dtype=np.float32)
            for (ids, start), output in zip(rows, outputs, strict=True)
        ]

    return score
