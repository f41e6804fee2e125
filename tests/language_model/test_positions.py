"""How many tokens a model takes, and where its rotary frequencies begin to depend on the batch."""

import pytest
from datasets import Dataset

from icrm_lib.language_model.positions import (
    SequenceTooLong,
    position_limit,
    refuse_to_train,
    refuse_too_long,
    steady_length,
)
from tests.architectures import POSITIONS, ROPES, random_rows, tiny_config


@pytest.mark.parametrize(
    ("kind", "changes", "limit"),
    [
        ("gpt2", {}, POSITIONS),
        ("gptj", {}, POSITIONS),
        ("gpt_neo", {}, POSITIONS),
        ("opt", {}, POSITIONS),
        ("llama", {}, POSITIONS),
        ("gpt_neox", {}, POSITIONS),
        ("mistral", {"sliding_window": 8, "head_dim": 8}, POSITIONS),
        ("falcon", {"max_position_embeddings": 64}, 64),
        ("falcon", {"max_position_embeddings": 64, "alibi": True}, None),
        ("bloom", {}, None),
        ("mpt", {}, POSITIONS),
        ("mamba", {}, None),
        ("llama", {"rope_parameters": ROPES["llama3"]}, POSITIONS),
        ("llama", {"rope_parameters": ROPES["longrope"]}, POSITIONS),
        ("llama", {"rope_parameters": ROPES["linear"], "max_position_embeddings": 64}, 256),
        ("llama", {"rope_parameters": ROPES["dynamic"], "max_position_embeddings": 64}, 256),
        ("llama", {"rope_parameters": ROPES["yarn"], "max_position_embeddings": 64}, 256),  # Qwen 2.5's README
        ("llama", {"rope_parameters": ROPES["yarn"], "max_position_embeddings": 256}, 256),
    ],
)
def test_the_limit_is_that_of_the_architecture(kind, changes, limit):
    assert position_limit(tiny_config(kind, **changes)) == limit


def test_a_factor_that_each_kind_of_layer_has_is_in_the_limit_already():
    layers = {"full_attention": ROPES["linear"], "sliding_attention": ROPES["default"]}
    assert position_limit(tiny_config("gemma3_text", rope_parameters=layers, head_dim=8)) == POSITIONS


@pytest.mark.parametrize("kind", ROPES)
def test_only_dynamic_and_longrope_depend_on_the_batch(kind):
    config = tiny_config("llama", rope_parameters=ROPES[kind], max_position_embeddings=64)
    assert steady_length(config) == {"dynamic": 63, "longrope": 64}.get(kind)


def test_models_without_rope_are_steady():
    assert steady_length(tiny_config("gpt2")) is None


def test_a_row_at_the_limit_passes_and_one_beyond_is_named():
    config = tiny_config("gpt2")
    refuse_too_long(config, [POSITIONS, 1])
    refuse_too_long(tiny_config("bloom"), [10**6])
    with pytest.raises(SequenceTooLong, match=f"row 1 has 257 tokens, .* for {POSITIONS}; give max_length={POSITIONS}"):
        refuse_too_long(config, [3, POSITIONS + 1, 5])
    with pytest.raises(ValueError, match=r"row 0 has 300 tokens \(and 1 more"):
        refuse_too_long(config, [300, 5, 301])


def rows_of(*lengths):
    return Dataset.from_dict({"ids": random_rows(*lengths), "others": random_rows(*[1] * len(lengths))})


def test_rows_that_cannot_be_trained_on_are_counted():
    columns = ["others", "ids"]
    refuse_to_train(tiny_config("gpt2"), rows_of(5, POSITIONS), columns, name="train")
    refuse_to_train(tiny_config("bloom"), rows_of(900), columns, name="train")
    message = r"2 of 3 rows of the eval dataset .*longest has 270; it has positions for no more\); set max_length=256"
    with pytest.raises(SequenceTooLong, match=message):
        refuse_to_train(tiny_config("gpt2"), rows_of(270, 5, 260), columns, name="eval")
    chosen = rows_of(270, 5).select([1])  # an index beside the table, as splits have it
    refuse_to_train(tiny_config("gpt2"), chosen, columns, name="train")


def test_frequencies_that_depend_on_the_batch_are_not_trained():
    config = tiny_config("llama", rope_parameters=ROPES["longrope"])
    refuse_to_train(config, rows_of(64), ["ids"], name="train")
    with pytest.raises(SequenceTooLong, match="1 of 2 rows .* frequencies .* max_length=64"):
        refuse_to_train(config, rows_of(65, 3), ["ids"], name="train")
    with pytest.raises(SequenceTooLong, match="max_length=60"):  # padded to 80, it would not be steady
        refuse_to_train(config, rows_of(62), ["ids"], name="train", multiple=20)
