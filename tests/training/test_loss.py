"""The loss: the equation in float64, shares of several processes, and every option through model and trainer."""

import math
import statistics
from types import SimpleNamespace

import pytest
import torch
from formulas import log_sigmoid as log_sigmoid_of
from formulas import naive_return, naive_terms, ragged
from transformers import AutoModelForCausalLM

from icrm_lib.objectives import CENTERINGS, FORMS
from icrm_lib.preferences import LABEL_KEYS
from icrm_lib.profiles import RewardModelSettings, options
from icrm_lib.training import Batch, ConsistencyScale, icrm_loss
from icrm_lib.training.loss import Share

LOSSES, POOLINGS, TEXT_FORMS, WEIGHTINGS = (
    options(RewardModelSettings, name) for name in ("loss", "pooling", "text_form", "weighting")
)
BT = {"consistency_weight": 0.0, "sft_weight": 0.0}
ICRM = {"consistency_weight": 0.3, "sft_weight": 0.0}
EXPECTED = {"form": "expected", "weighting": "uniform"}
GRM = {"consistency_weight": 0.0, "sft_weight": 0.2, "text_beta": 0.05}


def fresh_scale():
    scale = ConsistencyScale()
    scale.value = scale.value.double()
    return scale


def test_the_loss_is_the_equation_with_every_term_on(config):
    terms = {"label_smoothing": 0.1, "center_rewards_coefficient": 0.05, "positive_weight": 0.4}
    args, scale = config(**ICRM | GRM | terms | {"consistency_weight": 0.3, "text_form": "grm_sft"}), fresh_scale()
    rewards, mask, probs = ragged(3)
    margin, closing = torch.linspace(-1, 1, 4).double(), rewards[:, -1]
    loss, parts = icrm_loss(
        Batch(closing, rewards, margin, mask, probs),
        args,
        scale,
        text_loss=lambda: torch.tensor(0.7, dtype=torch.float64),
    )
    pairs = list(zip(closing[:4].tolist(), closing[4:].tolist(), margin.tolist(), strict=True))
    preferences = [0.9 * log_sigmoid_of(w - x - m) + 0.1 * log_sigmoid_of(-(w - x - m)) for w, x, m in pairs]
    bt = -sum(preferences) / 4 + 0.05 * sum((w + x) ** 2 for w, x, _ in pairs) / 4
    positive = -log_sigmoid_of(sum(w for w, *_ in pairs) / 4)
    a, w = naive_terms(rewards.tolist(), mask.tolist(), probs.tolist())
    s = 0.95 * 0.5 + 0.05 * w
    assert loss.item() == pytest.approx(0.8 * 0.7 * (bt + 0.4 * positive) + 0.3 * a / s + 0.2 * 0.7, rel=1e-12)
    adjacent = mask[:, 1:] & mask[:, :-1]
    spreads = [statistics.pstdev(row[m].tolist()) if m.any() else 0.0 for row, m in zip(rewards, mask, strict=True)]
    want = {"bt_loss": bt, "positive_loss": positive, "sft_loss": 0.7, "consistency_loss": a / s}
    want |= {"consistency_scale": s, "generator_probability": probs[:, 1:][adjacent].mean().item()}
    assert parts.pop("token_reward_std").item() == pytest.approx(statistics.mean(spreads), rel=1e-6)
    assert {name: value.item() for name, value in parts.items()} == pytest.approx(want, rel=1e-12)


def test_what_has_no_weight_is_left_out_and_trls_loss_is_taken_as_it_is(config):
    scale, theirs = ConsistencyScale(), torch.tensor(0.3)
    loss, parts = icrm_loss(Batch(torch.zeros(2), torch.zeros(2, 3)), config(**BT), scale, trl_loss=theirs)
    assert torch.equal(loss, theirs) and list(parts) == ["bt_loss"] and scale.value == 0.5


@pytest.mark.parametrize("own", [(3, 1), (4, 0)])
@pytest.mark.parametrize(
    "settings",
    [
        {"label_smoothing": 0.1, "center_rewards_coefficient": 0.05, "text_form": "grm_sft"},
        {"loss": "outcome"},
        {"loss": "process"},
    ],
    ids=lambda settings: settings.get("loss", "bradley_terry"),
)
def test_uneven_shares_add_up_to_the_loss_and_gradient_of_the_whole_batch(config, own, settings):
    """The mean over two processes, as DDP takes it; one without a pair of its own runs a filler that must not count."""
    args = config(**ICRM | {"sft_weight": 0.2} | settings)
    rewards, mask, probs = ragged(5)
    rewards.requires_grad_(True)
    values = probs.masked_fill(torch.rand(probs.shape, generator=torch.Generator().manual_seed(0)) < 0.3, math.nan)
    columns = {"margin": torch.linspace(-1, 1, 4), "outcomes": torch.arange(8) % 3 == 0, "step_values": values}
    columns |= {"response_mask": mask, "token_probs": probs}

    def run(pairs, share, scale):
        rows = torch.tensor([*pairs, *(pair + 4 for pair in pairs)])
        part = {name: column[pairs if name == "margin" else rows] for name, column in columns.items()}
        batch = Batch(rewards[rows, -1], rewards[rows], **part)
        return icrm_loss(batch, args, scale, share, text_loss=lambda: rewards[pairs].square().mean())[0]

    whole = fresh_scale()
    want = run([0, 1, 2, 3], Share(), whole)
    parts = [list(range(own[0])), list(range(own[0], 4)) or [0]]
    asked, joint, losses = ([], []), [fresh_scale(), fresh_scale()], []
    for process, pairs in enumerate(parts):  # what each brings to a sum
        share = Share(own[process] * 2 / 4, 2, lambda value, process=process: asked[process].append(value) or value)
        run(pairs, share, fresh_scale())
    for process, pairs in enumerate(parts):
        sums = iter([a + b for a, b in zip(*asked, strict=True)])
        losses.append(run(pairs, Share(own[process] * 2 / 4, 2, lambda value, sums=sums: next(sums)), joint[process]))
    got = torch.stack(losses).mean()
    assert got.item() == pytest.approx(want.item(), rel=1e-7)  # a quotient of two counts is float32
    gradients = (torch.autograd.grad(loss, rewards)[0] for loss in (got, want))
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-12)
    assert [scale.value.item() for scale in joint] == pytest.approx([whole.value.item()] * 2, rel=1e-12)


def plain(trainer, data, lm_head):
    """What the model says about the first eight pairs, as the formulas name it; no loss of ours."""
    batch = next(iter(trainer.get_eval_dataloader(trainer.train_dataset)))  # in the order of the data
    inner = trainer.model.get_base_model()
    hidden = inner.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    pairs = [data[i] for i in range(8)]
    sides = [(row, side) for side in ("chosen", "rejected") for row in pairs]
    o = SimpleNamespace(batch=batch, settings=trainer.args, rewards=inner.score(hidden).squeeze(-1), pairs=pairs)

    def last_reward(prefixes):
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(p) for p in prefixes], batch_first=True)
        attended = torch.arange(ids.shape[1]) < torch.tensor([len(p) for p in prefixes])[:, None]
        with torch.no_grad():
            states = inner.model(input_ids=ids, attention_mask=attended.long()).last_hidden_state
        return inner.score(states)[range(len(ids)), attended.sum(1) - 1, 0].detach()

    o.last_reward = last_reward
    o.column = lambda name: [torch.tensor(row[f"{side}_{name}"]) for row, side in sides]
    o.where = [range(row["prompt_length"], len(row[f"{side}_ids"])) for row, side in sides]
    o.responses = [o.rewards[i, list(where)] for i, where in enumerate(o.where)]
    o.closing = torch.stack([rewards[-1] for rewards in o.responses])
    o.won, o.lost = o.closing[:8], o.closing[8:]
    o.text = []  # S(y), the summed log-probabilities
    for i, where in enumerate(o.where):
        logprobs = (hidden[i, [t - 1 for t in where]] @ lm_head.T).log_softmax(-1)
        o.text.append(logprobs[range(len(where)), batch["input_ids"][i, list(where)]].sum())
    o.text_won, o.text_lost = torch.stack(o.text[:8]), torch.stack(o.text[8:])
    return o


def log_sigmoid(x):
    return x.sigmoid().log()


def bradley_terry(o):
    return -log_sigmoid(o.won - o.lost).mean()


def smoothed(o, e=0.2):
    d = o.won - o.lost - torch.tensor([row.get("margin", 0.0) for row in o.pairs])
    return -((1 - e) * log_sigmoid(d) + e * log_sigmoid(-d)).mean()


def centred(o):
    return 0.05 * ((o.won + o.lost) ** 2).mean()


def outcome(o, labels=None):
    z = torch.stack(o.column("label")) if labels is None else torch.tensor(labels)
    return -(z * log_sigmoid(o.closing) + (1 - z) * log_sigmoid(-o.closing)).mean()


def averaged(o):
    """The mean over the tokens in the place of the closing reward."""
    o.closing = torch.stack([rewards.mean() for rewards in o.responses])
    o.won, o.lost = o.closing[:8], o.closing[8:]
    return o


def process(o):
    terms = [
        -(q * log_sigmoid(reward) + (1 - q) * log_sigmoid(-reward))
        for rewards, values in zip(o.responses, o.column("step_values"), strict=True)
        for reward, q in zip(rewards, values, strict=True)
        if not q.isnan()
    ]
    assert 0 < len(terms) < sum(map(len, o.responses))
    return torch.stack(terms).mean()


def mean_nll(o):
    return -torch.stack([o.text[i] / len(o.where[i]) for i in range(8)]).mean()


def grm(o):
    """With beta = 0.05."""
    advantage = o.text_won
    if o.settings.text_form != "grm_sft":
        advantage = advantage - o.text_lost
    if o.settings.text_form == "grm_dpo":
        reference = torch.stack(o.column("reference"))
        advantage = advantage - (reference[:8] - reference[8:])
    return -log_sigmoid(0.05 * advantage).mean()


def centred_u(o, values=None):
    """Calibration (4) and (5), of the token rewards or of other rewards in the same responses."""
    u = []
    for i, rewards in enumerate(o.responses if values is None else values):
        partner = (i + 8) % 16
        means = {"response": o.responses[partner].mean(), "positions": o.rewards[partner].mean(), "none": 0.0}
        s = (rewards - torch.as_tensor(means[o.settings.centering]).detach()).sigmoid()
        u.append(s if i < 8 else 1 - s)
    return u


def pointwise_u(o, labels=None, values=None):
    rewards = o.responses if values is None else values
    z = [float(label) for label in (o.column("label") if labels is None else labels)]
    return [r.sigmoid() if right else 1 - r.sigmoid() for r, right in zip(rewards, z, strict=True)]


def cross_entropy(u, target):
    return -(target * u.log() + (1 - target) * (1 - u).log())


def expectation(o, i, u):
    """The mean of u over the next tokens."""
    probs = o.column("sibling_logprobs")[i][1:, : o.settings.siblings].exp()
    return (probs * u).sum(1) / probs.sum(1)


def next_rewards(o):
    """Rewards of the next tokens behind every prefix, each run without the others."""
    rewards = []
    for i, some in enumerate(o.column("sibling_ids")):
        start, row = o.where[i][0], o.batch["input_ids"][i].tolist()
        prefixes = [[*row[: start + t], v] for t, ids in enumerate(some) for v in ids[: o.settings.siblings].tolist()]
        rewards.append(o.last_reward(prefixes).view(len(some), -1)[1:])  # the first stand behind the prompt
    return rewards


def consistency(o, u, following=None):
    """A / S after the first step; S is kept for the test. `following`: u of the next tokens, for "expected"."""
    column = {"entropy": "negentropies", "top1_margin": "logmargins"}.get(o.settings.weighting, "logprobs")
    total, halves, count = 0.0, 0.0, 0
    for i, logweights in enumerate(o.column(column)):
        p = {"uniform": torch.ones_like(logweights), "inverted": 1 - logweights.exp()}.get(
            o.settings.weighting, logweights.exp()
        )
        if o.settings.weighting == "shuffled":  # which order is another test's business
            p = o.batch["token_probs"][i, list(o.where[i])]
            assert sorted(p.tolist()) == sorted(logweights.exp().tolist())
        a, b, here, there = u[i][:-1], u[i][1:], u[i][:-1].detach(), u[i][1:].detach()
        logits = u[i].detach().logit().tolist()
        g = [naive_return(logits, [True] * len(logits), t, o.settings.td_lambda)[0] for t in range(len(a))]
        g = torch.tensor(g)
        ell = {
            "mutual_bce": -(there * a.log() + here * b.log()) / 2,
            "plain_log": -(a.log() + b.log()) / 2,
            "l1": (a - b).abs(),
            "l2": (a - b) ** 2,
            "martingale": -(there * a.log() + (1 - there) * (1 - a).log()),
            "td_lambda": -(g * a.log() + (1 - g) * (1 - a).log()),
            "dense": -a.log(),
            "expected": following and cross_entropy(a, expectation(o, i, following[i])),
        }[o.settings.form]
        total += (ell * p[1:]).sum()
        halves += ((here + there) / 2 * p[1:]).sum()
        count += len(a)
    o.scale = 0.95 * 0.5 + 0.05 * (halves / count).item()
    return total / count / o.scale


def pairwise(o):
    return 0.7 * bradley_terry(o) + 0.3 * consistency(o, centred_u(o))


def with_margin(data):
    return data.add_column("margin", [0.25 * (i % 5) for i in range(len(data))])


def without_labels(data):
    return data.remove_columns(LABEL_KEYS)


RIGHT = [1.0] * 8 + [0.0] * 8
# name: settings, loss by hand, and what changes in the data
CASES = {
    "label smoothing": (BT | {"label_smoothing": 0.2}, smoothed),
    "label smoothing, margin": (BT | {"label_smoothing": 0.2}, smoothed, with_margin),
    "label smoothing, centred": (
        BT | {"label_smoothing": 0.2, "center_rewards_coefficient": 0.05},
        lambda o: smoothed(o) + centred(o),
    ),
    "label smoothing, ICRM, margin": (
        ICRM | {"label_smoothing": 0.2},
        lambda o: 0.7 * smoothed(o) + 0.3 * consistency(o, centred_u(o)),
        with_margin,
    ),
    "mean of the tokens": (BT | {"pooling": "mean"}, lambda o: bradley_terry(averaged(o))),
    "mean of the tokens, margin, centred, positive, label smoothing, ICRM": (
        ICRM | {"pooling": "mean", "label_smoothing": 0.2, "center_rewards_coefficient": 0.05, "positive_weight": 0.3},
        lambda o: (
            0.7 * (smoothed(averaged(o)) + centred(o) - 0.3 * log_sigmoid(o.won.mean()))
            + 0.3 * consistency(o, centred_u(o))
        ),
        with_margin,
    ),
    "mean of the tokens, outcome": (BT | {"pooling": "mean", "loss": "outcome"}, lambda o: outcome(averaged(o))),
    "positive rewards": (
        BT | {"positive_weight": 0.3},
        lambda o: bradley_terry(o) - 0.3 * log_sigmoid(o.won.mean()),
    ),
    "positive rewards, label smoothing, centred": (
        BT | {"positive_weight": 0.3, "label_smoothing": 0.2, "center_rewards_coefficient": 0.05},
        lambda o: smoothed(o) + centred(o) - 0.3 * log_sigmoid(o.won.mean()),
    ),
    **{
        form: (GRM | {"text_form": form}, lambda o: 0.8 * bradley_terry(o) + 0.2 * grm(o))
        for form in ("grm_sft", "grm_dpo_noref", "grm_dpo")
    },
    "grm_sft, ICRM": (
        GRM | {"text_form": "grm_sft", "consistency_weight": 0.3},
        lambda o: 0.8 * 0.7 * bradley_terry(o) + 0.3 * consistency(o, centred_u(o)) + 0.2 * grm(o),
    ),
    "mean_nll": (GRM | {"text_form": "mean_nll"}, lambda o: bradley_terry(o) + 0.2 * mean_nll(o)),
    "mean_nll, ICRM": (ICRM | {"sft_weight": 0.5}, lambda o: pairwise(o) + 0.5 * mean_nll(o)),
    "outcome": (BT | {"loss": "outcome"}, outcome),
    "outcome of the pairs": (BT | {"loss": "outcome"}, lambda o: outcome(o, RIGHT), without_labels),
    "outcome, ICRM": (
        ICRM | {"loss": "outcome"},
        lambda o: 0.7 * outcome(o) + 0.3 * consistency(o, pointwise_u(o)),
    ),
    "outcome of the pairs, ICRM": (
        ICRM | {"loss": "outcome"},
        lambda o: 0.7 * outcome(o, RIGHT) + 0.3 * consistency(o, pointwise_u(o, RIGHT)),
        without_labels,
    ),
    "outcome, ICRM and text": (
        ICRM | {"loss": "outcome", "sft_weight": 0.2},
        lambda o: 0.7 * outcome(o) + 0.3 * consistency(o, pointwise_u(o)) + 0.2 * mean_nll(o),
    ),
    "process": (BT | {"loss": "process"}, process),
    "process, ICRM": (
        ICRM | {"loss": "process"},
        lambda o: 0.7 * process(o) + 0.3 * consistency(o, pointwise_u(o)),
    ),
    "process, ICRM of the pairs": (
        ICRM | {"loss": "process"},
        lambda o: 0.7 * process(o) + 0.3 * consistency(o, pointwise_u(o, RIGHT)),
        without_labels,
    ),
    **{f"form {form}": (ICRM | {"form": form}, pairwise) for form in FORMS if form != "expected"},
    "form expected": (
        ICRM | EXPECTED,
        lambda o: 0.7 * bradley_terry(o) + 0.3 * consistency(o, centred_u(o), centred_u(o, next_rewards(o))),
    ),
    "form expected of outcomes": (
        ICRM | EXPECTED | {"loss": "outcome", "siblings": 2},
        lambda o: 0.7 * outcome(o) + 0.3 * consistency(o, pointwise_u(o), pointwise_u(o, values=next_rewards(o))),
    ),
    "TD(0.3)": (ICRM | {"form": "td_lambda", "td_lambda": 0.3}, pairwise),
    **{f"centring {centering}": (ICRM | {"centering": centering}, pairwise) for centering in CENTERINGS},
    **{f"weights {name}": (ICRM | {"weighting": name}, pairwise) for name in WEIGHTINGS if name != "random_pairs"},
}


@pytest.mark.parametrize("name", CASES)
def test_every_loss_and_its_gradient_equal_the_formula(make, base_model, rich, name):
    settings, formula, change = (*CASES[name], lambda data: data)[:3]
    data = change(rich)
    trainer = make(data, **settings)
    torch.manual_seed(0)
    with torch.no_grad():  # LoRA starts at zero and the head near it: rewards worth the name
        for key, value in trainer.model.named_parameters():
            if "lora_B" in key or "score" in key:
                value.normal_(std=0.3)
    lm_head = AutoModelForCausalLM.from_pretrained(base_model).lm_head.weight.detach()
    trainer.model.train()
    o = plain(trainer, data, lm_head)
    want = formula(o)
    trained = [value for value in trainer.model.parameters() if value.requires_grad]
    want_gradient = torch.autograd.grad(want, trained)
    got = trainer.compute_loss(trainer.model, dict(o.batch))
    assert got.item() == pytest.approx(want.item(), rel=1e-5)
    for a, b in zip(torch.autograd.grad(got, trained), want_gradient, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
    assert float(trainer.scale.value) == pytest.approx(getattr(o, "scale", 0.5), rel=1e-5)


def test_every_option_has_a_case():
    cases = {"loss": LOSSES, "pooling": POOLINGS, "text_form": TEXT_FORMS, "form": FORMS, "weighting": WEIGHTINGS}
    for option, known in cases.items():
        seen = {settings.get(option) for settings, *_ in CASES.values()}
        assert set(known) - seen <= {"bradley_terry", "random_pairs", "last"}, option  # the default; below
