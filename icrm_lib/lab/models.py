"""How the language models of a profile's data are made: the base model, and the generator and what it is asked."""

from pathlib import Path

import numpy as np
import torch
from datasets import Dataset

from icrm_lib import runtime
from icrm_lib.generator import (
    SIBLINGS,
    Scorer,
    Siblings,
    both_sides,
    fit_generator,
    model_scorer,
    states_reader,
    vllm_scorer,
)
from icrm_lib.generator.states import Reader
from icrm_lib.lab.data import Data
from icrm_lib.language_model.causal import load_causal_lm
from icrm_lib.language_model.scratch import small_llama, train_language_model


def make_base_model(data: Data, folder: Path) -> None:
    """Train a base model on the testbed's language, or from scratch on the training texts."""
    settings, tokenizer, length = data.profile.base_model, data.tokenizer, data.profile.data.max_length
    size = {"hidden_size": settings.hidden_size, "layers": settings.layers, "heads": settings.heads}
    model = small_llama(tokenizer, **size, max_length=length, seed=data.seed)
    if settings.name == "testbed":
        texts = testbed_corpus(data, settings.steps * settings.batch_size)
    else:
        texts = both_sides(data.tokenized["train"]).map(lambda row: {"prompt_length": 1})  # prompts are learnt, too
    train_language_model(
        model,
        texts,
        folder=folder,
        pad_token_id=tokenizer.pad_token_id,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        seed=data.seed,
        max_steps=settings.steps,
    )
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


def testbed_corpus(data: Data, count: int) -> Dataset:
    """Return at least `count` unlabelled responses, as many to every prompt of the testbed, mixed."""
    language, tokenizer = data.language, data.tokenizer
    rng = np.random.default_rng([data.seed, 1000])
    each = -(-count // len(language.prompts))
    rows = []
    for prompt in language.prompts:
        question = {"role": "user", "content": prompt}
        head = tokenizer.apply_chat_template([question], add_generation_prompt=True, return_dict=False)
        responses = language.sample_responses(prompt, each, rng)
        ids = tokenizer(responses, add_special_tokens=False)["input_ids"]
        rows.extend(head + row + [tokenizer.eos_token_id] for row in ids)
    rng.shuffle(rows)
    return Dataset.from_dict({"input_ids": rows, "prompt_length": [1] * len(rows)})


def make_generator(data: Data, start: str, pairs: Dataset, folder: Path, checkpoints: Path) -> None:
    """Fit the generator, from the model that it starts from."""
    options = {"seed": data.seed, "checkpoints": checkpoints}
    model = fit_generator(start, pairs, data.profile.generator, folder, **options)
    model.save_pretrained(str(folder))
    data.tokenizer.save_pretrained(str(folder))


def generator_scorer(data: Data, path: str, statistic: str) -> Scorer:
    """Return what asks the model at `path`."""
    settings = data.profile.generator
    data.artefacts.refuse_several_processes("generator's answers")
    options = {"temperature": settings.temperature, "top_p": settings.top_p, "statistic": statistic}
    if settings.engine == "transformers":
        return model_scorer(load_causal_lm(path), data.tokenizer.pad_token_id, **options)
    if tuple(options.values()) != (1.0, 1.0, "logprobs"):
        raise ValueError(
            f"vLLM answers at temperature 1 and top_p 1 with logprobs, not at {settings.temperature}, "
            f"{settings.top_p} with {statistic}; set generator: engine to transformers"
        )
    return vllm_scorer(path)


def lower_layers_reader(data: Data, path: str, layers: int) -> Reader:
    """Return what passes rows through the model at `path`, in the type that reward models are trained in."""
    data.artefacts.refuse_several_processes("hidden states of the frozen layers")
    bf16 = data.profile.reward_model.in_bfloat16(runtime.device() == "cuda")
    model = load_causal_lm(path, dtype=torch.bfloat16 if bf16 else torch.float32)
    asked = {"temperature": data.profile.generator.temperature, "top_p": data.profile.generator.top_p}
    options = asked if data.profile.passes_once else {"probabilities": False}
    return states_reader(model, layers, data.tokenizer.pad_token_id, **options)


def language_scorer(data: Data, statistic: str) -> Scorer:
    """Return what asks the testbed's language itself: log-probabilities of tokens, or the most probable ones."""
    exact, following = data.language.token_probs, data.language.next_token_probs

    def siblings(ids: list[int], start: int) -> Siblings:
        with np.errstate(divide="ignore"):
            return Siblings.of(np.log([following(ids[:place]) for place in range(start, len(ids))]))

    if statistic == SIBLINGS:
        return lambda rows: [siblings(*row) for row in rows]
    return lambda rows: [np.log(exact(ids)[start:]).astype(np.float32) for ids, start in rows]
