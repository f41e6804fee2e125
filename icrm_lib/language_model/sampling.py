"""Draw responses from a policy: one seed a prompt, the policy's own distribution."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import xxhash
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from icrm_lib.language_model.causal import padded
from icrm_lib.tokenization import Conversation, closing_token_ids


@dataclass(frozen=True)
class SamplingSettings:
    """How responses are drawn from a policy.

    Attributes:
        n: responses a prompt.
        temperature: divides the logits, > 0. The paper: 1.
        top_p: nucleus, in (0, 1]. The paper: 1.
        max_new_tokens: longest response.
        seed: with the prompt's text, decides its responses, whatever the other prompts are.
    """

    n: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 512
    seed: int = 0

    def __post_init__(self):
        if self.n < 1 or self.max_new_tokens < 1 or not self.temperature > 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"need n, max_new_tokens >= 1, temperature > 0 and top_p in (0, 1]: got {self}")


def prompt_seed(seed: int, prompt: Conversation) -> int:
    """Return the seed of one prompt's responses: the same in any order, company and after any interruption."""
    return xxhash.xxh3_64_intdigest(json.dumps([seed, prompt], ensure_ascii=False).encode()) % 2**31


class Response(NamedTuple):
    """A sampled response: text, number of tokens with the closing one, and whether it closed by itself."""

    text: str
    tokens: int
    finished: bool


def drawn_by(
    engine: str, model: PreTrainedModel | str, tokenizer: PreTrainedTokenizerBase, settings: SamplingSettings
) -> Callable[[list[Conversation]], list[list[Response]]]:
    """Return what draws `settings.n` responses to each of several prompts; arguments: see `samples.sample`."""
    if engine == "transformers":
        return lambda prompts: [_generate(model, tokenizer, prompt, settings) for prompt in prompts]
    if engine == "vllm":
        return _vllm(model, tokenizer, settings)
    raise ValueError(f"unknown engine {engine!r}; choose transformers or vllm")


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: Conversation) -> list[int]:
    """Token ids of a prompt with the beginning of the assistant's turn: what a policy continues."""
    return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)


def generation_config(
    tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, settings: SamplingSettings | None = None
) -> GenerationConfig:
    """What `generate` is told: to sample from the policy itself, or without `settings` to be greedy."""
    sampled = {"do_sample": False}
    if settings:
        sampled = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
    return GenerationConfig(
        **sampled,
        max_new_tokens=max_new_tokens,
        eos_token_id=closing_token_ids(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        return_dict_in_generate=True,
    )


def generate(model: PreTrainedModel, config: GenerationConfig, ids: torch.Tensor, mask: torch.Tensor, **options):
    """Call `model.generate` with nothing but the given configuration.

    What it leaves open would be taken from the configuration that the model brings, such as a repetition penalty, and
    the samples would be another distribution's.
    """
    brought, model.generation_config = model.generation_config, GenerationConfig()
    try:
        return model.generate(input_ids=ids, attention_mask=mask, generation_config=config, **options)
    finally:
        model.generation_config = brought


def until_closing(ids: list[int], stops: Sequence[int]) -> list[int]:
    """Cut generated ids behind their first closing token; without one they stay as they are."""
    end = next((i for i, token in enumerate(ids) if token in stops), len(ids) - 1)
    return ids[: end + 1]


@torch.inference_mode()
def _generate(model, tokenizer, prompt: Conversation, settings: SamplingSettings) -> list[Response]:
    torch.manual_seed(prompt_seed(settings.seed, prompt))
    config = generation_config(tokenizer, settings.max_new_tokens, settings)
    return _written(model, tokenizer, [prompt_ids(tokenizer, prompt)] * settings.n, config)


@torch.inference_mode()
def greedy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Conversation],
    *,
    max_new_tokens: int = 512,
    batch_size: int = 64,
) -> list[Response]:
    """Write the most probable response to every prompt, token by token.

    Args:
        model: causal language model in evaluation mode.
        tokenizer: its tokenizer, prepared.
        prompts: conversations that end with a user turn.
        max_new_tokens: longest response.
        batch_size: prompts at once, padded on the left.

    Returns:
        one response a prompt.
    """
    rows = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    batches = [rows[begin : begin + batch_size] for begin in range(0, len(rows), batch_size)]
    config = generation_config(tokenizer, max_new_tokens)
    return [response for batch in batches for response in _written(model, tokenizer, batch, config)]


def _written(model, tokenizer, rows: list[list[int]], config: GenerationConfig) -> list[Response]:
    ids, mask = padded(rows, tokenizer.pad_token_id, side="left", device=model.device).values()
    output = generate(model, config, ids, mask)
    return [_response(tokenizer, row) for row in output.sequences[:, ids.shape[1] :].tolist()]


def _response(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> Response:
    stops = closing_token_ids(tokenizer)
    ids = until_closing(ids, stops)
    return Response(tokenizer.decode(ids, skip_special_tokens=True), len(ids), ids[-1] in stops)


def _vllm(model: str, tokenizer, settings: SamplingSettings) -> Callable[[list], list[list[Response]]]:
    from vllm import LLM, SamplingParams  # optional: pip install -e ".[vllm]"

    llm = LLM(str(model), seed=settings.seed, load_format="safetensors")

    def draw(prompts: list[Conversation]) -> list[list[Response]]:
        params = [
            SamplingParams(
                n=settings.n,
                temperature=settings.temperature,
                top_p=settings.top_p,
                max_tokens=settings.max_new_tokens,
                stop_token_ids=closing_token_ids(tokenizer),
                seed=prompt_seed(settings.seed, prompt),
            )
            for prompt in prompts
        ]
        inputs = [{"prompt_token_ids": prompt_ids(tokenizer, prompt)} for prompt in prompts]
        outputs = llm.generate(inputs, params, use_tqdm=False)
        return [
            [Response(o.text, len(o.token_ids), o.finish_reason == "stop") for o in output.outputs]
            for output in outputs
        ]

    return draw
