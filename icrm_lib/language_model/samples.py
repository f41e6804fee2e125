"""A file of responses drawn from a policy: it grows prompt by prompt, and nothing is drawn twice."""

import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import xxhash
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from icrm_lib import records, runtime
from icrm_lib.language_model.causal import load_causal_lm
from icrm_lib.language_model.sampling import Response, SamplingSettings, drawn_by
from icrm_lib.preferences.paper import Draw
from icrm_lib.profiles import SampleSettings
from icrm_lib.rows import BadRow, json_lines
from icrm_lib.tokenization import Conversation

logger = logging.getLogger(__name__)

VLLM_PROMPTS = 64  # prompts that vLLM gets at once; a killed run draws at most so many again


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
    name = model if isinstance(model, str) else model.name_or_path
    template = xxhash.xxh3_64_hexdigest(str(tokenizer.chat_template).encode())
    key = asdict(settings) | {"engine": engine, "model": Path(name).name, "template": template}
    known = _read_samples(path, key)
    if any(_name(prompt) not in known for prompt in prompts):
        with records.locked(path):  # two runs would write into each other's lines
            known = _read_samples(path, key)
            first = {_name(p): i for i, p in reversed(list(enumerate(prompts))) if _name(p) not in known}
            if first:
                _draw(drawn_by(engine, model, tokenizer, settings), prompts, sorted(first.values()), known, path, key)
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


def _name(prompt: Conversation) -> str:
    return json.dumps(prompt, ensure_ascii=False)


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
    brought: dict[str, Any] = {}
    found: dict[str, list[Response]] = {}
    for number, values in json_lines(whole.split(b"\n")):
        try:
            if isinstance(values, BadRow):
                raise values
            if number == 1:
                brought = values["settings"]
            else:
                responses = [Response(*response) for response in values["responses"]]
                if [tuple(map(type, response)) for response in responses] != [(str, int, bool)] * key["n"]:
                    raise ValueError(f"not {key['n']} responses of text, number and true or false")
                if found.setdefault(_name(values["prompt"]), responses) is not responses:
                    raise ValueError("its prompt has a line before")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            remedy = "delete the file" if number == 1 else "delete the line, its prompt is then drawn again"
            raise ValueError(f"{path}:{number} is damaged ({error!r}); {remedy}") from error
        if brought != key:
            raise ValueError(
                f"{path} holds samples of other settings, {brought}, not {key}; give another path, or delete it"
            )
    return found


def sampler(
    model: str | Path, tokenizer: PreTrainedTokenizerBase, samples: SampleSettings, path: str | Path, *, seed: int
) -> Draw:
    """Return what draws `samples.n` solutions a problem from a model; a killed run goes on where it was.

    Args:
        model: directory or hub id of the causal language model, the generator in the paper.
        tokenizer: its tokenizer, prepared.
        samples: number, temperature, nucleus, length and engine.
        path: JSON-lines file for what was drawn, see `sample`.
        seed: with the problem, decides its solutions.
    """
    settings = SamplingSettings(samples.n, samples.temperature, samples.top_p, samples.max_new_tokens, seed)

    def draw(prompts: list[Conversation]) -> list[list[str]]:
        loaded = str(model) if samples.engine == "vllm" else load_causal_lm(model)
        frame = sample(loaded, tokenizer, prompts, settings, path, engine=samples.engine)
        return frame.groupby("prompt", sort=True)["response"].agg(list).tolist()

    return draw
