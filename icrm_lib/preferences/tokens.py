"""Preference pairs as token ids."""

from typing import Any

from datasets import Dataset, Features, List, Value

from icrm_lib.preferences.forms import LABEL_KEYS
from icrm_lib.preferences.loading import lines_of, name_of
from icrm_lib.preferences.report import Refusal, Report
from icrm_lib.tokenization import Encoded, ResponseTooLong, cut_prompt, encoder_for


def tokenize_pairs(dataset: Dataset, tokenizer: Any, *, max_length: int | None = 1024) -> tuple[Dataset, Report]:
    """Tokenise preference pairs for training and scoring, as `tokenization.tokenize_conversation` does.

    Both sides of a pair get the same prompt ids: if the longer reply forces the prompt to be cut, it is cut
        on both sides.

    Args:
        dataset: with the columns `prompt`, `chosen`, `rejected` of `load_preferences`.
        tokenizer: as returned by `tokenization.prepare_tokenizer`.
        max_length: most tokens of one side, or None.

    Returns:
        A data set with the columns `chosen_ids` and `rejected_ids` (lists of int32; the names TRL's
        RewardTrainer takes as already tokenised), `prompt_length` (int32, for both sides), and `margin`,
        `LABEL_KEYS`, `prompt_id`, `source`, `line` where the input has them; and a report with the rows left out
        (reply too long, or impossible under the chat template).

    Raises:
        ValueError: an unprepared tokenizer, a missing column, or not a single usable row.
    """
    encoder_for(tokenizer)  # refuses an unprepared one
    if missing := {"prompt", "chosen", "rejected"} - set(dataset.column_names):
        raise ValueError(f"the data set has no column {sorted(missing)[0]!r}; load it with load_preferences")
    carried = [name for name in ("margin", *LABEL_KEYS, "prompt_id", "source", "line") if name in dataset.column_names]
    ids = List(Value("int32"))
    features = {"chosen_ids": ids, "rejected_ids": ids, "prompt_length": Value("int32")}
    features |= {name: dataset.features[name] for name in carried}
    features |= {"reason": Value("string"), "remedy": Value("string"), "cut": Value("bool")}
    tokenized = dataset.map(
        _tokenize_batch,
        batched=True,
        batch_size=256,
        fn_kwargs={"tokenizer": tokenizer, "max_length": max_length},
        remove_columns=[name for name in dataset.column_names if name not in carried],
        features=Features(features),
        desc="Tokenizing pairs",
    )
    reasons, remedies = tokenized["reason"][:], tokenized["remedy"][:]
    kept = [row for row, reason in enumerate(reasons) if not reason]
    name, lines = name_of(dataset), lines_of(dataset)
    report = Report(name, len(kept))
    report.refusals = [Refusal(name, lines[i], why, remedies[i]) for i, why in enumerate(reasons) if why]
    if cut := sum(tokenized["cut"][:]):
        report.notes.append(f"{cut} prompts lost their beginning to fit into {max_length} tokens")
    if not kept:
        raise ValueError(f"no usable preference pair:\n{report}")
    tokenized = tokenized.remove_columns(["reason", "remedy", "cut"])
    return (tokenized.select(kept) if report.refused else tokenized), report


def _tokenize_batch(batch: dict[str, list], tokenizer: Any, max_length: int | None) -> dict[str, list]:
    rows = zip(batch["prompt"], batch["chosen"], batch["rejected"], strict=True)
    encoded = encoder_for(tokenizer).encode([(prompt, [chosen, rejected]) for prompt, chosen, rejected in rows])
    results = [_tokenized_row(pair, max_length, tokenizer.bos_token_id) for pair in encoded]
    return {key: [row[key] for row in results] for key in results[0]}


def _tokenized_row(pair: Encoded | ValueError, max_length: int | None, bos: int | None) -> dict[str, Any]:
    row = {"chosen_ids": [], "rejected_ids": [], "prompt_length": 0, "reason": "", "remedy": "", "cut": False}
    if isinstance(pair, ValueError):
        return row | {"reason": "impossible under the chat template", "remedy": str(pair)}
    chosen, rejected = pair.responses
    try:
        prompt = cut_prompt(pair.prompt, max(len(chosen), len(rejected)), max_length, bos)
    except ResponseTooLong as error:
        return row | {"reason": "reply too long", "remedy": str(error)}
    sides = {"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected, "prompt_length": len(prompt)}
    return row | sides | {"cut": len(prompt) < len(pair.prompt)}
