"""What the trainer is handed: raw conversations and tokenised rows, their columns, and what it refuses."""

import math

import pytest
from datasets import Dataset
from rows import assistant, good, user
from transformers import AutoTokenizer

from icrm_lib.language_model.positions import SequenceTooLong
from icrm_lib.preferences import LABEL_KEYS
from icrm_lib.training.collation import REFERENCE_COLUMNS, STEP_COLUMNS
from tests.architectures import tiny_classifier

BT = {"consistency_weight": 0.0, "sft_weight": 0.0}


@pytest.fixture
def raw(language):
    """Conversations with further columns; the second row is refused, as its responses are equal."""

    def raw(count=6, **columns):
        rows = [
            {
                "prompt": [user(language.prompts[i])],
                "chosen": [assistant(f"good answer {i}")],
                "rejected": [assistant(f"{'good answer' if i == 1 else 'bad one'} {i}")],
                **{name: values[i] for name, values in columns.items()},
            }
            for i in range(count)
        ]
        return Dataset.from_list(rows)

    return raw


def test_raw_conversations_are_tokenised_and_scored_by_the_generator(make, raw):
    calls = []

    def add_logprobs(dataset, given):
        calls.append(given)

        def constant(row):
            lengths = [len(row[name]) - row["prompt_length"] for name in ("chosen_ids", "rejected_ids")]
            return {"chosen_logprobs": [-1.0] * lengths[0], "rejected_logprobs": [-1.0] * lengths[1]}

        return dataset.map(constant)

    trainer = make(raw(9), max_steps=2, extra={"add_logprobs": add_logprobs})
    trainer.train()
    assert len(calls) == 1 and len(trainer.train_dataset) == 8
    entry = next(e for e in trainer.state.log_history if "generator_probability" in e)
    assert entry["generator_probability"] == pytest.approx(math.exp(-1), rel=1e-5)


def test_bad_rows_are_reported_and_special_tokens_stay_text(make, tokenizer, caplog):
    texts = [f"yes {tokenizer.eos_token} no", "yes", "\u200b", "yes", "no"]
    data = Dataset.from_list([good(chosen=text, rejected="no") for text in texts])
    with caplog.at_level("WARNING", "icrm_lib.training.trainer"):
        trainer = make(data, lora=False, weighting="uniform", max_length=64)
    assert len(trainer.train_dataset) == 3
    assert "empty text in 'chosen' (line 3)" in caplog.text and "chosen equals rejected (line 5)" in caplog.text
    assert len({ids.count(tokenizer.eos_token_id) for ids in trainer.train_dataset["chosen_ids"]}) == 1
    batch = next(iter(trainer.get_eval_dataloader(trainer.train_dataset)))
    sizes = [len(row["chosen_ids"]) - row["prompt_length"] for row in trainer.train_dataset]
    assert batch["response_mask"].sum(1)[:3].tolist() == sizes


def test_ratings_become_a_margin_only_where_trl_would_see_one(make, raw):
    """Columns that look like ratings must not change the Bradley-Terry term: TRL subtracts a column `margin` alone."""
    ratings = {"score_chosen": [9.0] * 5, "score_rejected": [2.0] * 5}
    rated = make(raw(5, **ratings), weighting="uniform")
    assert "margin" not in rated.train_dataset.column_names
    given = make(raw(5, **ratings, margin=[7.0] * 5), weighting="uniform")
    assert given.train_dataset["margin"][:] == [7.0] * 4


def test_padding_token_of_the_arguments_is_used_everywhere_or_refused(make, base_model, tokenizer, pairs):
    options = {"tokenizer": AutoTokenizer.from_pretrained(base_model), "weighting": "uniform"}
    trainer = make(pairs, **options, pad_token="<unk>")
    unknown = tokenizer.convert_tokens_to_ids("<unk>")
    assert trainer.data_collator.pad_token_id == trainer.model.config.pad_token_id == unknown
    options["tokenizer"] = AutoTokenizer.from_pretrained(base_model)
    with pytest.raises(ValueError, match="closes a turn"):
        make(pairs, **options, pad_token="<eos>")


def test_missing_probabilities_are_an_error_that_names_the_remedy(make, pairs):
    with pytest.raises(ValueError, match="cached_logprobs"):
        make(pairs)
    assert make(pairs, weighting="uniform").train_dataset is not None


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({}, ("chosen_logprobs", "rejected_logprobs")),
        ({"weighting": "shuffled"}, ("chosen_logprobs", "rejected_logprobs")),
        ({"weighting": "random_pairs"}, ("chosen_logprobs", "rejected_logprobs")),
        ({"weighting": "entropy"}, ("chosen_negentropies", "rejected_negentropies")),
        ({"weighting": "top1_margin"}, ("chosen_logmargins", "rejected_logmargins")),
        ({"loss": "process"}, STEP_COLUMNS),
        ({"text_form": "grm_dpo"}, REFERENCE_COLUMNS),
        ({"loss": "outcome"}, LABEL_KEYS[1:]),
        ({"loss": "outcome"}, LABEL_KEYS[:1]),
        ({"loss": "process"}, LABEL_KEYS[1:]),
    ],
)
def test_a_missing_column_is_named(make, rich, settings, missing):
    with pytest.raises(ValueError, match=".*".join(missing)):
        make(rich.remove_columns(missing), **settings)


def test_a_generator_that_answers_another_question_is_refused(make, pairs, rich):
    answer = {"add_logprobs": lambda dataset, tokenizer: rich.remove_columns("chosen_negentropies")}
    with pytest.raises(ValueError, match="chosen_negentropies"):
        make(pairs, weighting="entropy", extra=answer)


@pytest.mark.parametrize("line", [{}, {"line": [7] * 6}])
def test_labels_of_raw_conversations_stay_with_their_rows(make, raw, line):
    labels = {"chosen_label": [1, 0, 0, 1, 0, 1], "rejected_label": [0, 1, 1, 1, 0, 0]}
    trainer = make(raw(**labels, **line), **BT, loss="outcome")
    batch = next(iter(trainer.get_eval_dataloader(trainer.train_dataset)))
    assert batch["outcomes"].tolist() == [1, 0, 1, 0, 1, 0, 1, 1, 0, 0]


def test_values_of_tokens_go_with_tokens(make, raw):
    """Rows that are yet to be tokenised cannot have them."""
    with pytest.raises(ValueError, match="chosen_step_values.*tokenize_pairs"):
        make(raw(**dict.fromkeys(STEP_COLUMNS, [[1.0]] * 6)), **BT, loss="process")


@pytest.mark.parametrize("settings", [BT, {"weighting": "uniform"}])
def test_rows_that_the_model_cannot_be_trained_on_are_counted_and_refused(make, pairs, tokenizer, settings):
    longest = [max(map(len, sides)) for sides in zip(pairs["chosen_ids"], pairs["rejected_ids"], strict=True)]
    limit = max(longest) - 1
    beyond = sum(length > limit for length in longest)
    model = tiny_classifier("gpt2", vocab_size=len(tokenizer), n_positions=limit)
    with pytest.raises(
        SequenceTooLong, match=f"{beyond} of {len(pairs)} rows of the train dataset .*max_length={limit}"
    ):
        make(pairs, model=model, lora=False, **settings)
    fitting = pairs.select([i for i, length in enumerate(longest) if length <= limit])
    trainer = make(fitting, model=model, lora=False, **settings)
    assert len(trainer.train_dataset) == len(pairs) - beyond
    with pytest.raises(SequenceTooLong, match=f"{beyond} of {len(pairs)} rows of the others dataset"):
        make(fitting, model=model, lora=False, extra={"eval_dataset": {"some": fitting, "others": pairs}}, **settings)


def test_a_row_of_a_stream_that_is_too_long_stops_the_training(make, pairs, tokenizer):
    limit = max(map(len, pairs["chosen_ids"])) - 1
    model = tiny_classifier("gpt2", vocab_size=len(tokenizer), n_positions=limit)
    trainer = make(pairs.to_iterable_dataset(), model=model, lora=False, weighting="uniform", max_steps=20)
    with pytest.raises(SequenceTooLong, match=f"a row of the stream .*more than the {limit} .*max_length={limit}"):
        trainer.train()
