"""A model that scores by the mean of its token rewards: every way to ask it says the same."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from icrm_lib.reward_model import RewardModel
from icrm_lib.reward_model.pooling import is_mean, mean_rewards, note_pooling, running_means
from icrm_lib.testbed import Language
from tests.reward_model.test_closing import reward_model, talk
from tests.reward_model.test_scoring import CONFIGS

TEXTS = ("You should respect their view.", "Then I would insult the neighbour and listen.")


def fresh():
    tokenizer = Language().tokenizer
    config = CONFIGS["llama"].__class__(**{**CONFIGS["llama"].to_dict(), "vocab_size": len(tokenizer)})
    return reward_model(config), tokenizer


@pytest.fixture(scope="module")
def both():
    """The same weights, read at the closing token and by the mean."""
    last, averaging = (RewardModel(*fresh()) for _ in range(2))
    note_pooling(averaging.model, "mean")
    return last, averaging


def test_the_score_is_the_mean_of_the_token_rewards(both):
    last, averaging = both
    want = [np.mean([t.reward for t in last.token_rewards(talk(text))]) for text in TEXTS]
    np.testing.assert_allclose(averaging.score([talk(text) for text in TEXTS]), want, atol=1e-5)
    assert abs(last.score([talk(TEXTS[0])])[0] - want[0]) > 1e-3
    for text, score in zip(TEXTS, want, strict=True):
        for readout in ("place", "closing"):
            tokens = averaging.token_rewards(talk(text), readout=readout)
            assert tokens[-1].reward == pytest.approx(score, abs=1e-5) and tokens[-1].text == ""
        raw = [t.reward for t in last.token_rewards(talk(text))]
        np.testing.assert_allclose([t.reward for t in tokens], np.cumsum(raw) / np.arange(1, len(raw) + 1), atol=1e-5)


def test_prefixes_and_streams_have_the_mean_so_far(both):
    _, averaging = both
    whole = averaging.token_rewards(talk(TEXTS[0]))
    prompt, cut = talk(TEXTS[0])[:1], TEXTS[0][: whole[3].end]
    for readout in ("place", "closing"):
        prefixes = averaging.score_prefixes(prompt, [cut, TEXTS[0]], [False, True], readout=readout)
        np.testing.assert_allclose(prefixes, [whole[3].reward, whole[-1].reward], atol=1e-5)
    stream = averaging.stream(prompt)
    assert stream.update(cut)[-1].reward == pytest.approx(whole[3].reward, abs=1e-5)
    assert stream.update(TEXTS[0], finished=True)[-1].reward == pytest.approx(whole[-1].reward, abs=1e-5)


def test_token_ids_need_to_say_where_the_response_starts(both):
    _, averaging = both
    rows = averaging._tokenized([talk(text) for text in TEXTS], None)
    ids, prompts = [row.input_ids for row in rows], [row.prompt_length for row in rows]
    got = averaging.score_tokens(ids, prompt_lengths=prompts)
    np.testing.assert_allclose(got, averaging.score([talk(text) for text in TEXTS]), atol=1e-6)
    with pytest.raises(ValueError, match="give prompt_lengths"):
        averaging.score_tokens(ids)


def test_a_saved_model_keeps_it_and_an_adapter_alone_is_refused(both, tmp_path):
    _, averaging = both
    averaging.save_pretrained(tmp_path)
    again = RewardModel.from_pretrained(tmp_path)
    np.testing.assert_allclose(again.score([talk(TEXTS[0])]), averaging.score([talk(TEXTS[0])]), atol=1e-6)
    model, tokenizer = fresh()
    adapted = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2, target_modules="all-linear"))
    note_pooling(adapted, "mean")
    with pytest.raises(ValueError, match="save it whole"):
        RewardModel(adapted, tokenizer).save_pretrained(tmp_path / "adapter", adapter_only=True)


def test_nothing_is_written_where_the_closing_token_is_read():
    model, _ = fresh()
    note_pooling(model, "last")
    assert not hasattr(model.config, "icrm_pooling")
    note_pooling(model, "mean")
    note_pooling(model, "last")  # trained on with another reading
    assert not is_mean(model)


def test_means_leave_out_what_is_no_response():
    rewards = torch.tensor([[9.0, 1.0, 2.0, torch.nan], [torch.inf, 9.0, 4.0, 6.0]], dtype=torch.bfloat16)
    mask = torch.tensor([[False, True, True, False], [False, False, True, True]])
    logits = mean_rewards(rewards, mask).logits
    assert logits.dtype == torch.float32 and logits.tolist() == [[1.5], [5.0]]
    np.testing.assert_array_equal(running_means(np.array([1.0, 2.0, 6.0])), [1.0, 1.5, 3.0])
