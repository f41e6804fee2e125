"""The frozen generator: fit it, ask it once for every response token's log-probability, keep the answers on disk."""

import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from datasets import Dataset, concatenate_datasets
from huggingface_hub import try_to_load_from_cache
from peft import get_peft_model
from tqdm.auto import tqdm
from transformers import PreTrainedModel, TopPLogitsWarper

from icrm_lib import records, runtime
from icrm_lib.language_model.batches import batches_of, padded
from icrm_lib.language_model.causal import (
    ROWS_PER_CHUNK,
    decoder_states,
    load_causal_lm,
    logit_transforms,
    train_language_model,
    without_adapter,
)
from icrm_lib.language_model.checkpoints import rows_fingerprint
from icrm_lib.language_model.lora import lora_config
from icrm_lib.profiles import GeneratorSettings

logger = logging.getLogger(__name__)

CACHE_FILE = "logprobs.arrow"
CACHE_TYPES = ("float32", "float16")
# What is asked of the generator's distribution before each token; all are logarithms of a weight in [0, 1].
STATISTICS = (
    "logprobs",  # log P(token)
    "negentropies",  # minus the entropy, in nats: exp of it is 1 / perplexity of the distribution
    "logmargins",  # log of (probability of the most probable token - that of the second)
)
WINDOW = 1024  # pairs sorted by length and scored together; bounds the memory of a pass over any number of pairs

# Token ids and the index of the first token asked for -> log-probabilities of the tokens from there on.
Scorer = Callable[[Sequence[tuple[list[int], int]]], list[np.ndarray]]


def columns(statistic: str = "logprobs") -> tuple[str, str]:
    """Return the names of the two columns that hold a statistic: one list a response, one entry a token."""
    return f"chosen_{statistic}", f"rejected_{statistic}"


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
        ValueError: `temperature` or `top_p` out of range, or an unknown statistic.
    """
    if not temperature > 0 or not 0 < top_p <= 1:
        raise ValueError(f"temperature must be > 0 and top_p in (0, 1], got {temperature} and {top_p}")
    if statistic not in STATISTICS:
        raise ValueError(f"unknown statistic {statistic!r}; choose one of {', '.join(STATISTICS)}")
    ids, attended = batch["input_ids"], batch["attention_mask"].bool()
    causal_lm = without_adapter(model)
    head = causal_lm.get_output_embeddings()
    transforms = logit_transforms(causal_lm.config)
    hidden = decoder_states(model, causal_lm, input_ids=ids, attention_mask=batch["attention_mask"])
    predicted = attended[:, 1:]
    states, targets = hidden[:, :-1][predicted], ids[:, 1:][predicted]
    values = torch.empty(len(targets), dtype=torch.float32, device=ids.device)
    for start in range(0, len(targets), ROWS_PER_CHUNK):  # at most ROWS_PER_CHUNK x V logits at a time
        piece = slice(start, start + ROWS_PER_CHUNK)
        logits = _transformed(head(states[piece]).float(), transforms)
        if temperature != 1:
            logits = logits / temperature
        if top_p < 1:
            logits = TopPLogitsWarper(top_p)(None, logits)
        values[piece] = _statistic(logits, targets[piece], statistic)
    result = torch.zeros(ids.shape, dtype=torch.float32, device=ids.device)
    result[:, 1:][predicted] = values
    return result


def _statistic(logits: torch.Tensor, targets: torch.Tensor, statistic: str) -> torch.Tensor:
    least = torch.finfo(logits.dtype).min  # for a weight of 0, kept finite for the cache
    if statistic == "logprobs":
        return -F.cross_entropy(logits, targets, reduction="none").clamp(max=-least)
    if statistic == "negentropies":
        return -torch.distributions.Categorical(logits=logits).entropy()
    first, second = (logits.topk(2).values - logits.logsumexp(1, keepdim=True)).unbind(1)
    # log(p1 - p2) = log p1 + log(1 - p2 / p1); two equal ones make a weight of 0.
    return (first + torch.log1p(-(second - first).exp())).clamp(min=least)


def _transformed(logits: torch.Tensor, transforms: dict[str, float]) -> torch.Tensor:
    # What Gemma 2, Granite and Cohere do to their logits (`base_model.LOGIT_TRANSFORMS`).
    if not transforms:
        return logits
    if cap := transforms.get("final_logit_softcapping"):
        logits = cap * torch.tanh(logits / cap)
    return logits / transforms.get("logits_scaling", 1.0) * transforms.get("logit_scale", 1.0)


def model_scorer(
    model: PreTrainedModel,
    pad_token_id: int,
    *,
    tokens_per_batch: int = 16384,
    temperature: float = 1.0,
    top_p: float = 1.0,
    statistic: str = "logprobs",
) -> Scorer:
    """Return a scorer that asks a causal language model, batching sequences of like length by tokens.

    Args:
        model: the frozen generator.
        pad_token_id: padding id.
        tokens_per_batch: padded tokens in one forward pass.
        temperature, top_p, statistic: see `token_logprobs`.
    """
    options = {"temperature": temperature, "top_p": top_p, "statistic": statistic}

    def score(rows: Sequence[tuple[list[int], int]]) -> list[np.ndarray]:
        results: list[np.ndarray] = [np.empty(0)] * len(rows)
        lengths = [len(ids) for ids, _ in rows]
        for members in batches_of(range(len(rows)), lengths, tokens=tokens_per_batch):
            batch = padded([rows[i][0] for i in members], pad_token_id)
            batch = {name: value.to(model.device) for name, value in batch.items()}
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


def cached_logprobs(
    dataset: Dataset,
    make_scorer: Callable[[], Scorer],
    folder: Path,
    key: dict,
    *,
    statistic: str = "logprobs",
    cache_type: str = "float32",
) -> Dataset:
    """Return `dataset` with the generator's log-probabilities of its response tokens, computed at most once.

    The values lie in a memory-mapped Arrow file: training reads them row by row and holds nothing. A cache made
    from another generator, other data or other settings, a truncated one and a damaged one are detected and remade.
    A pass that was cut off goes on with the window of pairs it was at.

    Args:
        dataset: `preferences.tokenize_pairs` output: `chosen_ids`, `rejected_ids`, `prompt_length`.
        make_scorer: called only when the values must be computed (so the generator is not even loaded otherwise).
        folder: where caches lie; each in a folder of its own, named by what it depends on.
        key: what the values depend on beside the data: generator, tokenizer, settings (JSON-able).
        statistic: which of `STATISTICS` the scorer computes.
        cache_type: "float32", or "float16": 2 bytes a token, at a relative error of the logarithm below 0.0005.

    Returns:
        the dataset with the columns `columns(statistic)`, e.g. `chosen_logprobs` and `rejected_logprobs`: lists of
        `cache_type`, one entry a response token (the closing token included).
    """
    if cache_type not in CACHE_TYPES:
        raise ValueError(f"unknown cache_type {cache_type!r}; choose one of {', '.join(CACHE_TYPES)}")
    key = {**key, "data": data_fingerprint(dataset), "rows": len(dataset), "statistic": statistic, "type": cache_type}
    folder = Path(folder) / f"logprobs-{records.fingerprint(key)}"  # two splits or generators never meet
    if not records.is_sealed(folder, key, verify=True):
        with records.locked(folder):
            if not records.is_sealed(folder, key, verify=True):  # nobody has made it while this run waited
                _make_cache(dataset, make_scorer, folder, key, columns(statistic), cache_type)
    shutil.rmtree(_parts(folder), ignore_errors=True)
    values = Dataset.from_file(str(folder / CACHE_FILE))
    kept = dataset.remove_columns([name for name in columns(statistic) if name in dataset.column_names])
    return concatenate_datasets([kept, values], axis=1)


def _parts(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.parts")


def _make_cache(dataset, make_scorer, folder: Path, key: dict, names: tuple[str, str], cache_type: str) -> None:
    if folder.exists():
        logger.warning("%s is truncated or damaged; making it again", runtime.display_path(folder))
    parts = _parts(folder)
    schema = pa.schema([(name, pa.list_(pa.from_numpy_dtype(cache_type))) for name in names])
    files = _write_parts(dataset, make_scorer, parts, schema, folder.name)
    with (
        records.sealed_folder(folder, key) as temporary,
        pa.OSFile(str(temporary / CACHE_FILE), "wb") as sink,
        pa.ipc.new_stream(sink, schema) as writer,
    ):
        for file in files:
            writer.write_table(pa.ipc.open_stream(file.read_bytes()).read_all().replace_schema_metadata(None))


def _write_parts(
    dataset: Dataset, make_scorer: Callable[[], Scorer], parts: Path, schema: pa.Schema, cache: str
) -> list[Path]:
    """Write one file a window of pairs, named `<window>-<checksum>.arrow`; those that are there are kept.

    Each says inside which window of which cache it is, so that a renamed one is not taken for another.
    """
    done = {}
    for file in parts.glob("*.arrow"):
        window, _, checksum = file.stem.partition("-")
        if records.file_checksum(file) == checksum:
            with pa.OSFile(str(file)) as source:
                place = pa.ipc.open_stream(source).schema.metadata
            if place == _place(cache, int(window)):
                done[int(window)] = file
    scorer = None
    pairs_only = dataset.select_columns(["chosen_ids", "rejected_ids", "prompt_length"])
    for window in tqdm(range(-(-len(dataset) // WINDOW)), desc="generator", disable=not runtime.watched()):
        if window in done:
            continue
        scorer = scorer or make_scorer()
        rows = pairs_only[window * WINDOW : (window + 1) * WINDOW]
        pairs = len(rows["prompt_length"])
        asked = list(zip(rows["chosen_ids"] + rows["rejected_ids"], rows["prompt_length"] * 2, strict=True))
        values = scorer(asked)
        _check_values(values, asked)
        if schema.field(0).type.value_type == pa.float16():
            least = np.finfo(np.float16).min  # a weight of 0 stays finite
            values = [np.maximum(value, least).astype(np.float16) for value in values]
        arrays = [pa.array(part, type=schema.field(0).type) for part in (values[:pairs], values[pairs:])]
        sink = pa.BufferOutputStream()
        placed = schema.with_metadata(_place(cache, window))
        with pa.ipc.new_stream(sink, placed) as writer:
            writer.write_batch(pa.record_batch(arrays, schema=placed))
        data = sink.getvalue().to_pybytes()
        done[window] = parts / f"{window:06d}-{records.checksum(data)}.arrow"
        records.write_bytes(done[window], data)
    return [done[window] for window in sorted(done)]


def _place(cache: str, window: int) -> dict[bytes, bytes]:
    return {b"cache": cache.encode(), b"window": str(window).encode()}


def _check_values(values: list[np.ndarray], asked: list[tuple[list[int], int]]) -> None:
    for value, (ids, start) in zip(values, asked, strict=True):
        if len(value) != len(ids) - start or not np.isfinite(value).all():
            raise FloatingPointError(
                f"the generator gave {len(value)} values, {int(np.isfinite(value).sum())} of them finite, for a "
                f"response of {len(ids) - start} tokens; look at its training log, and fit it at a lower learning rate"
            )


def data_fingerprint(dataset: Dataset) -> str:
    """Return a hash of the token ids and prompt lengths, whatever transformations led to them."""
    return rows_fingerprint(dataset, ("chosen_ids", "rejected_ids"), ("prompt_length",))


def model_fingerprint(path: str | Path) -> str:
    """Return a hash of a local model's weights and configuration, or of a hub id's name and downloaded commit.

    Args:
        path: local directory (every `.safetensors` file, `config.json` and tokenizer file counts) or hub id.
    """
    folder = Path(path)
    if not folder.is_dir():
        config = try_to_load_from_cache(str(path), "config.json")
        return f"hub:{path}@{Path(config).parent.name}" if isinstance(config, str) else f"hub:{path}"
    names = sorted(p for p in folder.iterdir() if p.suffix in {".safetensors", ".json", ".jinja"})
    return records.fingerprint({p.name: records.file_checksum(p) for p in names if p.name != records.MANIFEST})


def fit_generator(
    base_model: str | Path,
    dataset: Dataset,
    settings: GeneratorSettings,
    folder: Path,
    *,
    seed: int,
    checkpoints: Path | None = None,
) -> PreTrainedModel:
    """Fit the generator: LoRA, next-token loss on chosen and rejected responses alike, each length-normalised.

    Args:
        base_model: local directory or hub id of a causal language model.
        dataset: tokenised pairs (`chosen_ids`, `rejected_ids`, `prompt_length`).
        settings: LoRA and optimiser settings.
        folder: for the log.
        seed: of LoRA's initialisation and the order of the data.
        checkpoints: folder of checkpoints, see `base_model.train_language_model`.

    Returns:
        the merged model, frozen. (The reference divides the rejected term by the chosen length, a slip; here each
        response is divided by its own.)
    """
    runtime.seed_everything(seed)
    model = load_causal_lm(base_model, dtype=torch.float32 if runtime.device() == "cpu" else torch.bfloat16)
    trainer = train_language_model(
        get_peft_model(model, lora_config(settings)),
        both_sides(dataset),
        folder=folder,
        pad_token_id=_pad_id(model),
        batch_size=2 * settings.batch_size,
        learning_rate=settings.learning_rate,
        seed=seed,
        epochs=settings.epochs,
        accumulation=settings.accumulation,
        gradient_checkpointing=settings.gradient_checkpointing,
        checkpoints=checkpoints,
        save_steps=settings.save_steps,
    )
    return trainer.model.merge_and_unload().eval().requires_grad_(False)


def both_sides(dataset: Dataset) -> Dataset:
    """Turn pairs into sequences: every chosen one, then every rejected one. Columns `input_ids`, `prompt_length`."""
    sides = [
        dataset.select_columns([name, "prompt_length"]).rename_column(name, "input_ids")
        for name in ("chosen_ids", "rejected_ids")
    ]
    return concatenate_datasets(sides)


def _pad_id(model: PreTrainedModel) -> int:
    # Padding is masked out of attention and loss, so any id does where the model names none.
    config = model.config.get_text_config()
    return config.pad_token_id if config.pad_token_id is not None else 0
