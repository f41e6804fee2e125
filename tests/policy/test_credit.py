"""Credit: token rewards become advantages in two ways, group by group."""

from functools import partial

import pytest
import torch

from icrm_lib.policy import Drawn, direct, outcome, to_go

LENGTHS = [5, 2, 3, 4, 1, 5]  # two groups of three


def drawn(lengths=LENGTHS, token_rewards=None, rewards=None, groups=2):
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    rewards = torch.linspace(-1, 2, len(lengths)).square() if rewards is None else rewards
    rows = rewards.view(groups, -1)
    scaled = (rows - rows.mean(1, keepdim=True)) / (rows.std(1, keepdim=True) + 1e-4)
    return Drawn(
        prompts=[[]] * len(lengths),
        prompt_ids=[[0]] * len(lengths),
        completion_ids=torch.zeros(mask.shape, dtype=torch.long),
        mask=mask,
        groups=torch.arange(groups).repeat_interleave(len(lengths) // groups),
        rewards=rewards,
        advantages=scaled.flatten(),
        token_rewards=token_rewards,
    )


@pytest.fixture
def rewards():
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(0))


def by_hand(rewards, baseline, scaled):
    """Written out in Python floats."""
    want = torch.zeros(6, 5)
    for group in (range(3), range(3, 6)):
        returns = {i: [sum(rewards[i, t : LENGTHS[i]].tolist()) for t in range(5)] for i in group}
        whole = torch.tensor([returns[i][0] for i in group], dtype=torch.float64)
        for i in group:
            for t in range(LENGTHS[i]):
                level = whole.mean().item() if baseline == "group" else sum(returns[j][t] for j in group) / 3
                want[i, t] = (returns[i][t] - level) / (whole.std().item() + 1e-4 if scaled else 1)
    return want


@pytest.mark.parametrize("baseline", ["group", "position"])
@pytest.mark.parametrize("scaled", [True, False])
def test_rewards_to_go_are_sums_less_a_baseline_of_the_group(rewards, baseline, scaled):
    got = to_go(drawn(token_rewards=rewards), baseline=baseline, scaled=scaled)
    torch.testing.assert_close(got, by_hand(rewards, baseline, scaled), atol=1e-5, rtol=1e-5)


def test_an_outcome_at_the_last_token_is_credited_as_grpo_does():
    step = drawn()
    rewards = torch.zeros(step.mask.shape)
    rewards[torch.arange(6), step.mask.sum(1) - 1] = step.rewards
    got = to_go(step._replace(token_rewards=rewards), baseline="group")
    torch.testing.assert_close(got, outcome(step) * step.mask, atol=1e-6, rtol=1e-5)


def test_direct_credit_is_the_reward_of_the_token_by_its_distance_from_the_groups_mean(rewards):
    step = drawn(token_rewards=rewards)
    torch.testing.assert_close(direct(step, centred=False, scaled=False), rewards * step.mask)
    got = direct(step)
    for group in (slice(0, 3), slice(3, 6)):
        values = got[group][step.mask[group]]
        own = rewards[group][step.mask[group]]
        assert values.mean().abs() < 1e-6 and values.std() == pytest.approx(1, abs=1e-3)
        assert (values.argsort() == own.argsort()).all()


WAYS = [to_go, partial(to_go, baseline="group"), direct]


@pytest.mark.parametrize("way", WAYS)
def test_groups_do_not_leak(way, rewards):
    other = rewards.clone()
    other[3:] = 100 * rewards[3:] + 7
    before, after = way(drawn(token_rewards=rewards)), way(drawn(token_rewards=other))
    assert torch.equal(before[:3], after[:3]) and not torch.allclose(before[3:], after[3:])


@pytest.mark.parametrize("way", WAYS)
def test_padding_plays_no_part(way, rewards):
    step = drawn(token_rewards=rewards)
    filled = step._replace(token_rewards=rewards.masked_fill(~step.mask, 50.0))
    assert torch.equal(way(step), way(filled)) and (way(step)[~step.mask] == 0).all()


@pytest.mark.parametrize("way", WAYS)
def test_a_response_without_tokens_is_left_out(way, rewards):
    kept = [0, 1, 3, 4]
    step = drawn([5, 2, 0, 4, 1, 0], rewards)
    alone = drawn([5, 2, 4, 1], rewards[kept], rewards=torch.zeros(4))
    torch.testing.assert_close(way(step)[kept], way(alone))
    assert torch.isfinite(way(drawn([5, 2, 1, 0, 0, 0], rewards))).all()


def test_what_is_missing_or_unknown_is_named(rewards):
    for way in (to_go, direct):
        with pytest.raises(ValueError, match="no token rewards; give the trainer a token_scorer"):
            way(drawn())
    with pytest.raises(ValueError, match="baseline is 'mean'; give 'group' or 'position'"):
        to_go(drawn(token_rewards=rewards), baseline="mean")
