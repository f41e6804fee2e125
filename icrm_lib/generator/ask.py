"""Ask a generator for the log-probability of every token, or another statistic of the distribution before it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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


# Token ids and the index of the first token asked for -> log-probabilities of the tokens from there on.
Scorer = Callable[[Sequence[tuple[list[int], int]]], list[np.ndarray]]


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
    if not temperature > 0 or not 0 < top_p <= 1:
        raise ValueError(f"temperature must be > 0 and top_p in (0, 1], got {temperature} and {top_p}")
    if statistic not in STATISTICS:
        raise ValueError(f"unknown statistic {statistic!r}; choose one of {', '.join(STATISTICS)}")
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
            values.append(_statistic(logits, of, statistic))
    result = torch.zeros(ids.shape, dtype=torch.float32, device=ids.device)
    result[:, 1:][predicted] = torch.cat(values)
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
        options: temperature, top_p, statistic; see `token_logprobs`.
    """

    def score(rows: Sequence[tuple[list[int], int]]) -> list[np.ndarray]:
        results: list[np.ndarray] = [np.empty(0)] * len(rows)
        lengths = [len(ids) for ids, _ in rows]
        refuse_too_long(model.config, lengths)
        for members in batches_of(range(len(rows)), lengths, tokens=tokens_per_batch):
            batch = padded([rows[i][0] for i in members], pad_token_id, device=model.device)
            values = token_logprobs(model, batch, **options).cpu().numpy()
            for position, i in enumerate(members):
                results[i] = values[position, rows[i][1] : len(rows[i][0])]
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
