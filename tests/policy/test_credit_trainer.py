"""GRPO with credit for each token, beside TRL's own on the same samples."""

from functools import partial

import numpy as np
import pytest
import torch
from trl import GRPOTrainer

from icrm_lib.language_model.causal import load_causal_lm
from icrm_lib.policy import CreditTrainer, to_go, train_grpo
from icrm_lib.profiles import RewardModelSettings

SETTINGS = RewardModelSettings(lora_rank=4, lora_alpha=8, batch_size=2, epochs=1, learning_rate=1e-2)
GROUP = 4


def steps(base_model, tokenizer, language, folder, trainer, **config):
    """A trainer after two steps of one generation, the adapter's values, and the losses and advantages it saw."""
    seen = []

    class Recording(trainer.func if isinstance(trainer, partial) else trainer):
        def _compute_loss(self, model, inputs):
            loss = super()._compute_loss(model, inputs)
            seen.append((loss.detach(), inputs["advantages"], inputs["completion_mask"]))
            return loss

    options = trainer.keywords if isinstance(trainer, partial) else {}
    prompts = [[{"role": "user", "content": text}] for text in language.prompts[:4]]
    done = train_grpo(
        base_model,
        tokenizer,
        prompts,
        lambda talks: [len(talk[-1]["content"]) % 7 for talk in talks],
        SETTINGS,
        folder=folder,
        seed=0,
        group=GROUP,
        max_new_tokens=8,
        trainer=partial(Recording, **options),
        **config,
    )
    return done, [value.detach() for value in done.model.parameters() if value.requires_grad], seen


def length_scorer(rows, starts):
    """The reward of a token is its id, small."""
    return [np.array(row[start:]) / 1000 for row, start in zip(rows, starts, strict=True)]


def assert_statistics(policy, drawn, row):
    """Log-probabilities and entropies of one row, against the model's own over the whole vocabulary."""
    start, written = len(drawn.prompt_ids[row]), drawn.completion_ids[row, drawn.mask[row]]
    with torch.no_grad():
        logits = policy(torch.tensor([[*drawn.prompt_ids[row], *written.tolist()]])).logits[0, start - 1 : -1]
    logprobs = logits.log_softmax(-1)
    kept = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(drawn.entropies[row, drawn.mask[row]], -(logprobs.exp() * logprobs).sum(-1), **kept)
    torch.testing.assert_close(drawn.logprobs[row, drawn.mask[row]], logprobs.gather(1, written[:, None])[:, 0], **kept)
    assert (drawn.entropies[~drawn.mask] == 0).all() and (drawn.logprobs[~drawn.mask] == 0).all()


def test_a_constant_credit_is_trls_grpo(base_model, tokenizer, language, tmp_path):
    config = {"beta": 0.1}  # so that what does not depend on the advantages is there, too
    _, theirs, seen = steps(base_model, tokenizer, language, tmp_path / "trl", GRPOTrainer, **config)
    _, ours, also = steps(base_model, tokenizer, language, tmp_path / "credit", CreditTrainer, **config)
    assert len(seen) == len(also) == 2
    for (loss, before, _), (own, after, mask) in zip(seen, also, strict=True):
        torch.testing.assert_close(own, loss, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(after, before[:, None] * mask)
        assert before.abs().max() > 0.1
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in zip(ours, theirs, strict=True))


def test_credit_sees_the_step_and_padding_carries_none(base_model, tokenizer, language, tmp_path):
    met = []

    def credit(drawn):
        met.append(drawn)
        return to_go(drawn).masked_fill(~drawn.mask, torch.nan)  # whatever stands there

    trainer = partial(CreditTrainer, credit=credit, token_scorer=length_scorer, statistics=True)
    done, _, seen = steps(base_model, tokenizer, language, tmp_path, trainer)
    (drawn,) = met
    assert drawn.mask.shape == drawn.completion_ids.shape and len(drawn.prompts) == 16
    assert drawn.groups.tolist() == [i // GROUP for i in range(16)]
    assert all(len({str(drawn.prompts[i]) for i in range(g, g + GROUP)}) == 1 for g in range(0, 16, GROUP))
    torch.testing.assert_close(drawn.token_rewards, drawn.completion_ids / 1000 * drawn.mask)
    for prompt, ids in zip(drawn.prompts, drawn.prompt_ids, strict=True):
        assert ids == tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
    texts = tokenizer.batch_decode(drawn.completion_ids, skip_special_tokens=True)
    assert drawn.rewards.tolist() == [len(text) % 7 for text in texts]
    policy = load_causal_lm(base_model, device="cpu")  # LoRA adds nothing before the first step
    assert_statistics(policy, drawn, 3)
    assert all(torch.isfinite(loss) and (advantages[mask == 0] == 0).all() for loss, advantages, mask in seen)
    assert all(torch.isfinite(value).all() for value in done.model.parameters())


def test_a_credit_of_another_shape_is_refused(base_model, tokenizer, language, tmp_path):
    trainer = partial(CreditTrainer, credit=lambda drawn: drawn.advantages)
    with pytest.raises(ValueError, match=r"advantages of shape \(16,\); they must be finite and of shape \(16, "):
        steps(base_model, tokenizer, language, tmp_path, trainer)
