"""Hidden states are computed once a row, kept sealed, made again where damaged, and answer as the generator does."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from icrm_lib.generator import cached_logprobs, cached_states, columns, model_scorer, states, states_reader
from icrm_lib.language_model.causal import load_causal_lm
from icrm_lib.language_model.lower_layers import keeping_states

PAIRS = {
    "chosen_ids": [[1, 5, 6, 7, 2], [1, 5, 6, 7, 2], [1, 8, 9, 2]],
    "rejected_ids": [[1, 5, 6, 2], [1, 5, 6, 9, 9, 2], [1, 8, 2]],
    "prompt_length": [2, 2, 2],
}
DISTINCT = 5  # the first chosen row stands in two pairs


@pytest.fixture
def rows():
    return Dataset.from_dict(PAIRS)


@pytest.fixture
def model(base_model):
    return load_causal_lm(base_model, device="cpu")


@pytest.fixture
def passed(model, monkeypatch):
    """Make a reader whose rows are noted."""
    noted = []

    def make(**options):
        read = states_reader(model, 1, 0, **options)
        return lambda rows: noted.extend(rows) or read(rows)

    make.rows = noted
    return make


def test_every_row_is_passed_once_and_its_states_are_the_model_s(rows, model, passed, tmp_path):
    kept = cached_states([rows], passed, tmp_path, {}, layers=1, state_type="float32")
    assert len(passed.rows) == DISTINCT and isinstance(kept.states, np.memmap)
    for ids in [*PAIRS["chosen_ids"], *PAIRS["rejected_ids"]]:
        with keeping_states(model, 1) as own:
            model(input_ids=torch.tensor([ids]))
        np.testing.assert_allclose(kept.of(ids), own[0][0], atol=1e-5)
    again = cached_states([rows], pytest.fail, tmp_path, {}, layers=1, state_type="float32")
    np.testing.assert_array_equal(again.states, kept.states)
    with pytest.raises(ValueError, match="a row of 3 tokens has no hidden states kept"):
        kept.of([1, 5, 6])


def test_the_same_pass_gives_the_generator_s_answers(rows, model, passed, tmp_path):
    options = {"temperature": 0.7, "top_p": 0.9}
    kept = cached_states([rows], lambda: passed(**options), tmp_path, {}, layers=1)
    one, other = (
        cached_logprobs(rows, make, tmp_path / name, {})
        for name, make in (("one", kept.scorer), ("other", lambda: model_scorer(model, 0, **options)))
    )
    for name in columns():
        for ours, theirs in zip(one[name], other[name], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    silent = cached_states([rows], lambda: passed(probabilities=False), tmp_path / "silent", {}, layers=1)
    np.testing.assert_array_equal(silent.states, kept.states)
    with pytest.raises(ValueError, match="kept without log-probabilities"):
        silent.scorer()


def test_a_pass_that_was_cut_off_goes_on_with_its_window(rows, passed, tmp_path, monkeypatch):
    monkeypatch.setattr(states, "WINDOW", 10)
    whole = cached_states([rows], passed, tmp_path / "whole", {}, layers=1)
    passed.rows.clear()

    def cut_off():
        read = passed()
        return lambda rows: read(rows) if len(passed.rows) < 2 else (_ for _ in ()).throw(KeyboardInterrupt)

    with pytest.raises(KeyboardInterrupt):
        cached_states([rows], cut_off, tmp_path / "cut", {}, layers=1)
    kept = cached_states([rows], passed, tmp_path / "cut", {}, layers=1)
    assert len(passed.rows) == DISTINCT
    np.testing.assert_array_equal(kept.states, whole.states)
    assert not list((tmp_path / "cut").glob("*.parts"))


def test_what_is_damaged_or_of_other_settings_is_made_again(rows, passed, tmp_path):
    kept = np.array(cached_states([rows], passed, tmp_path, {}, layers=1).states)
    (file,) = tmp_path.glob("states-*/states.npy")
    values = bytearray(file.read_bytes())
    values[-1] ^= 1
    file.write_bytes(values)
    again = cached_states([rows], passed, tmp_path, {}, layers=1)
    assert len(passed.rows) == 2 * DISTINCT
    np.testing.assert_array_equal(again.states, kept)
    for key, options in (({"model": "another"}, {}), ({}, {"state_type": "float32"})):
        passed.rows.clear()
        cached_states([rows], passed, tmp_path, key, layers=1, **options)
        assert len(passed.rows) == DISTINCT


def test_states_that_half_precision_cannot_hold_are_refused(rows, model, passed, tmp_path):
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1e8)
    with pytest.raises(FloatingPointError, match="not finite in float16; set frozen_states to float32"):
        cached_states([rows], passed, tmp_path, {}, layers=1)
    with pytest.raises(ValueError, match="unknown state_type 'int8'"):
        cached_states([rows], passed, tmp_path, {}, layers=1, state_type="int8")
