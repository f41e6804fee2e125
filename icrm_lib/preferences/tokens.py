"""Preference pairs as token ids."""

from typing import Any, NamedTuple

from datasets import Dataset, Features, List, Value, concatenate_datasets

from icrm_lib.preferences.forms import LABEL_KEYS
from icrm_lib.preferences.loading import lines_of, name_of
from icrm_lib.preferences.report import Cut, Refusal, Report
from icrm_lib.tokenization import Encoded, Message, ResponseTooLong, cut_prompt, encoder_for, lost_by_cut

BLOCK = 10_000  # rows that are tokenised at least, where no more than some are wanted
_CARRIED = ("margin", *LABEL_KEYS, "prompt_id", "source", "line")
_LOST = {"cut": Value("bool"), "question": Value("bool"), "system": Value("bool")}
_FAULT = {"reason": Value("string"), "remedy": Value("string")}


class Fitting(NamedTuple):
    """The pairs of a data set that fit into a length.

    Attributes:
        tokens: the data set of `tokenize_pairs`.
        places: of each of its rows the place in the data set that was tokenised.
        report: on the rows that were looked at; kept are all that fit, wanted or not.
    """

    tokens: Dataset
    places: list[int]
    report: Report


def tokenize_pairs(
    dataset: Dataset, tokenizer: Any, *, max_length: int | None = 1024, report: Report | None = None
) -> tuple[Dataset, Report]:
    """Tokenise preference pairs for training and scoring, as `tokenization.tokenize_conversation` does.

    Both sides of a pair get the same prompt ids: if the longer reply forces the prompt to be cut, it is cut
        on both sides.

    Args:
        dataset: with the columns `prompt`, `chosen`, `rejected` of `load_preferences`.
        tokenizer: as returned by `tokenization.prepare_tokenizer`.
        max_length: most tokens of one side, or None.
        report: of `load_preferences`, to get one of the whole way.

    Returns:
        A data set with the columns `chosen_ids` and `rejected_ids` (lists of int32; the names TRL's
        RewardTrainer takes as already tokenised), `prompt_length` (int32, for both sides), and `margin`,
        `LABEL_KEYS`, `prompt_id`, `source`, `line` where the input has them; and a report with the rows left out
        (reply too long, or impossible under the chat template) and the prompts that were cut, which goes on from the
        given one.

    Raises:
        ValueError: an unprepared tokenizer, a missing column, or not a single usable row.
    """
    tokenized, _, step = tokenize_fitting(dataset, tokenizer, max_length=max_length)
    report = report.followed_by(step) if report else step
    if not report.kept:
        raise ValueError(f"no usable preference pair:\n{report}")
    return tokenized, report


def tokenize_fitting(dataset: Dataset, tokenizer: Any, *, max_length: int | None, most: int | None = None) -> Fitting:
    """Tokenise the pairs that fit, the first `most` of them; it may be that none does.

    Of a large data set no more is tokenised than blocks of `BLOCK` rows until there are pairs enough; the report says
    how many rows were not looked at.

    Args:
        dataset, tokenizer, max_length: see `tokenize_pairs`.
        most: pairs wanted, all when None.

    Raises:
        ValueError: an unprepared tokenizer, or a missing column.
    """
    encoder_for(tokenizer)  # refuses an unprepared one
    if missing := {"prompt", "chosen", "rejected"} - set(dataset.column_names):
        raise ValueError(f"the data set has no column {sorted(missing)[0]!r}; load it with load_preferences")
    size = BLOCK if most is not None and most < len(dataset) else len(dataset)
    blocks, kept, faults = [], [], []
    for start in range(0, len(dataset), size or 1):
        block = _tokenized(dataset.select(range(start, min(start + size, len(dataset)))), tokenizer, max_length)
        reasons, remedies = block["reason"][:], block["remedy"][:]
        kept += [start + i for i, reason in enumerate(reasons) if not reason]
        faults += [(start + i, why, remedies[i]) for i, why in enumerate(reasons) if why]
        blocks.append(block)
        if most is not None and len(kept) >= most:
            break
    tokenized = concatenate_datasets(blocks) if blocks else _nothing(dataset)
    name, lines = name_of(dataset), lines_of(dataset)
    report = Report(name, len(kept), [Refusal(name, lines[i], why, remedy) for i, why, remedy in faults])
    report.unread = len(dataset) - len(tokenized)
    if max_length is not None:
        lost = {key: sum(tokenized[key][:]) for key in _LOST}
        report.cut = Cut(max_length, lost["cut"], lost["question"], lost["system"])
    wanted = kept[:most]
    tokenized = tokenized.remove_columns([*_FAULT, *_LOST])
    if len(wanted) < len(tokenized):
        tokenized = tokenized.select(wanted)
    return Fitting(tokenized, wanted, report)


def _features(dataset: Dataset) -> Features:
    ids = List(Value("int32"))
    carried = {name: dataset.features[name] for name in _CARRIED if name in dataset.column_names}
    return Features(
        {"chosen_ids": ids, "rejected_ids": ids, "prompt_length": Value("int32")} | carried | _FAULT | _LOST
    )


def _tokenized(dataset: Dataset, tokenizer: Any, max_length: int | None) -> Dataset:
    return dataset.map(
        _tokenize_batch,
        batched=True,
        batch_size=256,
        fn_kwargs={"tokenizer": tokenizer, "max_length": max_length},
        remove_columns=[name for name in dataset.column_names if name not in _CARRIED],
        features=_features(dataset),
        desc="Tokenizing pairs",
    )


def _nothing(dataset: Dataset) -> Dataset:
    features = _features(dataset)  # `map` gives a data set without rows no columns
    return Dataset.from_dict({name: [] for name in features}, features=features)


def _tokenize_batch(batch: dict[str, list], tokenizer: Any, max_length: int | None) -> dict[str, list]:
    rows = list(zip(batch["prompt"], batch["chosen"], batch["rejected"], strict=True))
    encoded = encoder_for(tokenizer).encode([(prompt, [chosen, rejected]) for prompt, chosen, rejected in rows])
    results = [
        _tokenized_row(prompt, pair, tokenizer, max_length) for (prompt, _, _), pair in zip(rows, encoded, strict=True)
    ]
    return {key: [row[key] for row in results] for key in results[0]}


def _tokenized_row(
    prompt: list[Message], pair: Encoded | ValueError, tokenizer: Any, max_length: int | None
) -> dict[str, Any]:
    row = {"chosen_ids": [], "rejected_ids": [], "prompt_length": 0, "reason": "", "remedy": ""}
    row |= dict.fromkeys(_LOST, False)
    if isinstance(pair, ValueError):
        return row | {"reason": "impossible under the chat template", "remedy": str(pair)}
    chosen, rejected = pair.responses
    try:
        kept = cut_prompt(pair.prompt, max(len(chosen), len(rejected)), max_length, tokenizer.bos_token_id)
    except ResponseTooLong as error:
        return row | {"reason": "reply too long", "remedy": str(error)}
    sides = {"chosen_ids": kept + chosen, "rejected_ids": kept + rejected, "prompt_length": len(kept)}
    lost = lost_by_cut(tokenizer, prompt, pair, kept)
    return row | sides | {"cut": len(kept) < len(pair.prompt)} | lost._asdict()
