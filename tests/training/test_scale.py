"""S: part of every checkpoint, moved on by training alone."""

import json

import pytest
import torch
from trl import RewardTrainer

from icrm_lib.training import ConsistencyScale


def test_scale_follows_its_formula_and_survives_json():
    scale, want = ConsistencyScale(), 0.5
    for value in (0.1, 0.9, 0.3):
        scale.update(torch.tensor(value))
        want = 0.95 * want + 0.05 * value
    assert scale.value.item() == pytest.approx(want, rel=1e-6)
    stored = json.loads(json.dumps(scale.state()))
    assert torch.equal(torch.tensor(stored["attributes"]["value"]), scale.value)


def test_evaluation_leaves_the_scale_alone(make, pairs_with_logprobs):
    trainer = make(pairs_with_logprobs)
    batch = trainer.data_collator([pairs_with_logprobs[i] for i in range(4)])
    trainer.model.eval()
    trainer.compute_loss(trainer.model, dict(batch))
    assert trainer.scale.value == 0.5
    trainer.model.train()
    trainer.compute_loss(trainer.model, dict(batch))
    assert trainer.scale.value != 0.5


def test_training_again_starts_the_scale_afresh(make, pairs_with_logprobs):
    trainer = make(pairs_with_logprobs, max_steps=2, learning_rate=0.0)
    trainer.train()
    first = trainer.scale.value.item()
    trainer.train()
    assert trainer.scale.value.item() == pytest.approx(first, rel=1e-5)  # the model did not move, so W is the same


def test_resuming_gives_the_weights_and_scale_of_an_unbroken_run(make, pairs_with_logprobs):
    settings = {"save_strategy": "steps", "save_steps": 3}
    whole = make(pairs_with_logprobs, **settings)
    whole.train()
    checkpoint = f"{whole.args.output_dir}/checkpoint-3"
    with open(f"{checkpoint}/trainer_state.json") as file:
        stored = json.load(file)["stateful_callbacks"]["ConsistencyScale"]["attributes"]["value"]
    assert stored != 0.5 and stored != whole.scale.value.item()
    resumed = make(pairs_with_logprobs, **settings)
    resumed.train(resume_from_checkpoint=checkpoint)
    assert resumed.scale.value.item() == whole.scale.value.item()
    again = dict(resumed.model.named_parameters())
    for name, value in whole.model.named_parameters():
        assert torch.equal(value, again[name]), name


def test_a_checkpoint_without_a_scale_is_refused(make, pairs, pairs_with_logprobs):
    plain = make(pairs, RewardTrainer, save_strategy="steps", save_steps=3)
    plain.train()
    with pytest.raises(ValueError, match="no consistency scale"):
        make(pairs_with_logprobs).train(resume_from_checkpoint=f"{plain.args.output_dir}/checkpoint-3")
