"""Draw responses from a policy: one seed a prompt, a file that grows prompt by prompt, nothing drawn twice."""

import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
import xxhash
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from icrm_lib import records, runtime
from icrm_lib.language_model.batches import padded
from icrm_lib.rows import BadRow, json_lines
from icrm_lib.tokenization import Conversation, closing_token_ids

logger = logging.getLogger(__name__)

VLLM_PROMPTS = 64  # prompts that vLLM gets at once; a killed run draws at most so many again


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


def sample(
    model: PreTrainedModel | str,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Conversation],
    settings: SamplingSettings,
    path: str | Path,
    *,
    engine: str = "transformers",
) -> pd.DataFrame:
    """Draw responses to every prompt; what is in the file already is not drawn again, a prompt that occurs twice once.

    Args:
        model: causal language model, or for "vllm" its directory or hub id.
        tokenizer: its tokenizer, prepared.
        prompts: conversations that end with a user turn.
        settings: how to draw.
        path: JSON-lines file, one line a prompt, appended as they are finished. A file of other settings, another chat
            template or a model of another name is refused.
        engine: "transformers" (all responses of a prompt in one batch), or "vllm" where it is installed. The two give
            different samples of the same distribution.

    Returns:
        one row a response, in the order of `prompts`: `prompt` (index), `index`, `response`, `tokens` (length with the
        closing token), `finished` (False where `max_new_tokens` cut it).

    Raises:
        ValueError: the file holds samples of other settings, or an unknown engine.
    """
    path = Path(path)
    name = model if isinstance(model, str) else Path(model.name_or_path).name
    key = asdict(settings) | {"engine": engine, "model": Path(name).name, "template": _template_key(tokenizer)}
    known = _read_samples(path, key)
    if any(_name(prompt) not in known for prompt in prompts):
        with records.locked(path):  # two runs would write into each other's lines
            known = _read_samples(path, key)
            first = {_name(p): i for i, p in reversed(list(enumerate(prompts))) if _name(p) not in known}
            if first:
                _draw(_engine(engine, model, tokenizer, settings), prompts, sorted(first.values()), known, path, key)
    rows = [
        {"prompt": i, "index": j, "response": text, "tokens": tokens, "finished": finished}
        for i, prompt in enumerate(prompts)
        for j, (text, tokens, finished) in enumerate(known[_name(prompt)])
    ]
    return pd.DataFrame(rows)


def _draw(draw: Callable, prompts, waiting: list[int], known: dict[str, list], path: Path, key: dict) -> None:
    """Append the responses of the waiting prompts to the file, one line each, and put them into `known`."""
    at_once = VLLM_PROMPTS if key["engine"] == "vllm" else 1
    bar = tqdm(total=len(waiting), desc="sampling", unit="prompt", disable=not runtime.watched())
    with records.explained(path), open(path, "a", encoding="utf-8") as file:
        if file.tell() == 0:
            file.write(json.dumps({"settings": key}) + "\n")
        for start in range(0, len(waiting), at_once):
            asked = [prompts[i] for i in waiting[start : start + at_once]]
            for prompt, responses in zip(asked, draw(asked), strict=True):
                known[_name(prompt)] = responses
                line = {"prompt": prompt, "responses": [list(r) for r in responses]}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
            bar.update(len(asked))


class Response(NamedTuple):
    """A sampled response: text, number of tokens with the closing one, and whether it closed by itself."""

    text: str
    tokens: int
    finished: bool


def _name(prompt: Conversation) -> str:
    return json.dumps(prompt, ensure_ascii=False)


def _template_key(tokenizer: PreTrainedTokenizerBase) -> str:
    return xxhash.xxh3_64_hexdigest(str(tokenizer.chat_template).encode())


def _read_samples(path: Path, key: dict[str, Any]) -> dict[str, list[Response]]:
    """Read the finished prompts; a last line that a killed run left half-written is cut off."""
    if not path.is_file():
        return {}
    raw = path.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if len(whole) < len(raw):
        logger.warning("%s: the last line is half-written; it is drawn again", runtime.display_path(path))
        with open(path, "r+b") as file:
            file.truncate(len(whole))
    found: dict[str, list[Response]] = {}
    for number, values in json_lines(whole.split(b"\n")):
        try:
            if isinstance(values, BadRow):
                raise values
            if number == 1:
                _check_settings(path, values["settings"], key)
                continue
            responses = [Response(*response) for response in values["responses"]]
            if len(responses) != key["n"] or not all(map(_is_response, responses)):
                raise ValueError(f"not {key['n']} responses of text, number and true or false")
            if found.setdefault(_name(values["prompt"]), responses) is not responses:
                raise ValueError("its prompt has a line before")
        except OtherSettings:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            remedy = "delete the file" if number == 1 else "delete the line, its prompt is then drawn again"
            raise ValueError(f"{path}:{number} is damaged ({error!r}); {remedy}") from error
    return found


class OtherSettings(ValueError):
    """A file of samples was drawn with other settings, from another model or template."""


def _check_settings(path: Path, brought: dict[str, Any], key: dict[str, Any]) -> None:
    if brought != key:
        raise OtherSettings(
            f"{path} holds samples of other settings, {brought}, not {key}; give another path, or delete it"
        )


def _is_response(response: Response) -> bool:
    return (type(response.text), type(response.tokens), type(response.finished)) == (str, int, bool)


def _engine(name: str, model, tokenizer, settings: SamplingSettings) -> Callable[[list], list[list[Response]]]:
    if name == "transformers":
        return lambda prompts: [_generate(model, tokenizer, prompt, settings) for prompt in prompts]
    if name == "vllm":
        return _vllm(model, tokenizer, settings)
    raise ValueError(f"unknown engine {name!r}; choose transformers or vllm")


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
    ids = torch.tensor([prompt_ids(tokenizer, prompt)], device=model.device)
    ids = ids.expand(settings.n, -1)
    config = generation_config(tokenizer, settings.max_new_tokens, settings)
    output = generate(model, config, ids, torch.ones_like(ids))
    return [_response(tokenizer, row) for row in output.sequences[:, ids.shape[1] :].tolist()]


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
    rows, responses = [prompt_ids(tokenizer, prompt) for prompt in prompts], []
    for begin in range(0, len(rows), batch_size):
        batch = rows[begin : begin + batch_size]
        ids, mask = (value.to(model.device) for value in padded(batch, tokenizer.pad_token_id, side="left").values())
        output = generate(model, generation_config(tokenizer, max_new_tokens), ids, mask)
        responses += [_response(tokenizer, row) for row in output.sequences[:, ids.shape[1] :].tolist()]
    return responses


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
