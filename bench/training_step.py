"""Training step of ICRM against TRL's RewardTrainer (Bradley-Terry) and against the step of the paper's own code.

    python bench/training_step.py [--hidden 256 --layers 4 --vocabulary 32000 --pairs 8 --length 256 --rounds 15]

Same base model, LoRA and batches for all. In time they take turns, batch by batch, in one process, so that whatever
else the machine does hits them alike; every ratio is the median over the rounds, with its quartiles. For memory each
has a process of its own: the highest in a few steps, less what it held before the first. The paper's code does not run
(files of it were never published), so `Reference` re-enacts its step, as it is and lean. Prints one JSON record and
writes it to `results/bench/training_step.json`.
"""

import argparse
import tempfile
from collections.abc import Callable

import common
import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

from icrm_lib.language_model.causal import load_causal_lm
from icrm_lib.testbed import Language
from icrm_lib.training.collation import DataCollatorForConsistency

KINDS = ("bt", "icrm", "icrm + sft", "reference", "lean reference")
OF = ("bt", "icrm + sft")  # what the others are compared with
MEMORY_STEPS = 2  # from the second on the optimiser has its state


class Reference(torch.nn.Module):
    """The step of chaoyang101/ICRM (11d1d22, `train/pair_taorm/trainer.py`, `model/loader.py`), written anew.

    What costs are full projections onto the vocabulary, of all positions of all rows, in float32. The policy makes
    three: the first head's for the text loss and two that nothing reads. The generator, a second model that runs in
    every step, makes three more, two of them with the same weights; the logits of these two are kept until the loss is
    formed. With `lean` it makes one, and nothing is kept that is not read. (Dropout and what files that were never
    published add, such as further passes over the logits, are left out of both.)

    With R the token rewards, w = chosen, l = rejected, p the generator's probabilities, sg = stop-gradient:
        u^w_t = sigmoid(R^w_t - sg mean R^l),    u^l_t = 1 - sigmoid(R^l_t - sg mean R^w), means over all positions
        ell_t = -1/2 [sg(u_{t+1}) log(u_t + 1e-6) + sg(u_t) log(u_{t+1} + 1e-6)]
        A, W  = means of 2 p_{t+1} ell_t and 2 p_{t+1} (u_t + u_{t+1}) / 2 where t and t+1 are response tokens
        S    <- 0.95 S + 0.05 W, from 0.5
        L     = 0.1 A / (S + 1e-6) + 0.9 L_bt + L_sft
    L_bt is read at the last token; L_sft is the mean token loss of the chosen responses through the first head, whose
    gradient reaches the hidden states times 0.001. (The original's weight, `get_scores`, was never published; 2 p is
    what the paper says, with the original's factor.)

    Args:
        base: folder of the causal language model, which also serves as the generator.
        lean: see above.
    """

    def __init__(self, base: str, *, lean: bool):
        super().__init__()
        self.lean = lean
        self.policy = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", **common.LORA)
        )
        self.generator = load_causal_lm(base, device="cpu")
        head = self.generator.get_output_embeddings().weight
        self.value_head = torch.nn.Linear(head.shape[1], 1)
        self.heads = torch.nn.ParameterList([torch.nn.Parameter(head.clone()) for _ in range(3)])
        self.scale = 0.5

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return L, updating S; `mask` is True on response tokens. Shape of each: (2B, T), chosen rows first."""
        with torch.no_grad():
            states = _states(self.generator, input_ids, attention_mask)
            head = self.generator.get_output_embeddings().weight
            made = [_logits(states, head) for _ in range(1 if self.lean else 3)]
            kept = made[-2:]
            made.clear()
            token_probs = _logprobs(kept[0], input_ids).exp()
        if self.lean:
            kept.clear()
        hidden = _states(self.policy.get_base_model(), input_ids, attention_mask)
        rewards = self.value_head(hidden)[..., 0].float()
        logprobs = _logprobs(self.text_logits(hidden), input_ids)
        return self.consistency(rewards, mask, token_probs) + _bradley_terry(rewards, mask) + _text(logprobs, mask)

    def text_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        first, second, third = self.heads
        unread = [_logits(hidden, second)]
        if self.lean:
            unread.clear()
        with torch.no_grad():
            unread.append(_logits(hidden, third))
        if self.lean:
            unread.clear()
        scaled = hidden.detach() + 0.001 * (hidden - hidden.detach())  # as it is, with 0.001 of the gradient
        return _logits(scaled, first)

    def consistency(self, rewards: torch.Tensor, mask: torch.Tensor, token_probs: torch.Tensor) -> torch.Tensor:
        chosen, rejected = rewards.chunk(2)
        means = rewards.detach().mean(1, keepdim=True)
        mean_chosen, mean_rejected = means.chunk(2)
        u = torch.cat([torch.sigmoid(chosen - mean_rejected), 1 - torch.sigmoid(rejected - mean_chosen)])
        log_u, still = torch.log(u + 1e-6), u.detach()
        ell = -(log_u[:, :-1] * still[:, 1:] + still[:, :-1] * log_u[:, 1:]) / 2
        pairs = (mask[:, 1:] & mask[:, :-1]).float()
        weights = 2 * token_probs * pairs / (pairs.sum() + 1e-6)
        self.scale = 0.95 * self.scale + 0.05 * ((still[:, :-1] + still[:, 1:]) / 2 * weights).sum()
        return 0.1 * (ell * weights).sum() / (self.scale + 1e-6)


def _states(model: torch.nn.Module, ids: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    return model.get_decoder()(input_ids=ids, attention_mask=attended, use_cache=False).last_hidden_state


def _logits(states: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.linear(states, head).float()


def _logprobs(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    # Entry t = log P(token t + 1). Shape: (2B, T - 1).
    return logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]


def _bradley_terry(rewards: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    last = mask.shape[1] - 1 - mask.int().flip(1).argmax(1)
    chosen, rejected = rewards.gather(1, last[:, None])[:, 0].chunk(2)
    return -0.9 * torch.nn.functional.logsigmoid(chosen - rejected).mean()


def _text(logprobs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    mask = mask.chunk(2)[0][:, 1:]
    return -((logprobs.chunk(2)[0] * mask).sum(1) / mask.sum(1)).mean()


def reference_step(kind: str, base: str, data: Dataset, args: argparse.Namespace) -> Callable[[], None]:
    """Return a function that takes the next batch through the reference's step."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Reference(base, lean="lean" in kind).to(device).train()
    model.generator.eval()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    collator = DataCollatorForConsistency(pad_token_id=Language().tokenizer.pad_token_id, statistic=None)
    batches = iter(DataLoader(data, args.pairs, collate_fn=collator))

    def step() -> None:
        batch = {name: value.to(device) for name, value in next(batches).items()}
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = model(batch["input_ids"], batch["attention_mask"], batch["response_mask"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def make_step(kind: str, base: str, args: argparse.Namespace, steps: int) -> Callable[[], None]:
    """Return one contestant's step, with batches for so many of them."""
    torch.manual_seed(0)
    data = common.random_pairs(args.pairs * steps, args.length, args.vocabulary)
    if "reference" in kind:
        return reference_step(kind, base, data, args)
    return common.trainer_step(common.make_trainer(kind, base, data, args.pairs))


def memory(kind: str, base: str, args: argparse.Namespace) -> float:
    """Return one contestant's peak in MiB, less what it held before the first step."""
    common.give_back_at_once()
    step = make_step(kind, base, args, MEMORY_STEPS)
    held = common.hold()
    for _ in range(MEMORY_STEPS):
        step()
    return common.peak(held)


def main() -> None:
    sizes = {"hidden": 256, "layers": 4, "vocabulary": 32000, "pairs": 8, "length": 256}
    args = common.read_sizes(__doc__, **sizes, rounds=15, memory_rounds=2)
    warm = 3
    with tempfile.TemporaryDirectory() as base:
        common.small_llama(args.hidden, args.layers, args.vocabulary, args.length).save_pretrained(base)
        peaks = {
            kind: [common.in_own_process(memory, kind, base, args) for _ in range(args.memory_rounds)] for kind in KINDS
        }
        seconds = common.take_turns(
            {k: make_step(k, base, args, warm + args.rounds) for k in KINDS}, args.rounds, warm=warm
        )
    mib = {kind: float(np.median(values)) for kind, values in peaks.items()}
    metrics = {
        "median_step_seconds": {kind: round(float(np.median(values)), 4) for kind, values in seconds.items()},
        "peak_mib": {kind: [round(value, 1) for value in values] for kind, values in peaks.items()},
        "time_to": {of: {k: common.quartiles(seconds[k] / seconds[of]) for k in KINDS if k != of} for of in OF},
        "memory_to": {of: {k: round(mib[k] / mib[of], 3) for k in KINDS if k != of} for of in OF},
    }
    common.finish("training_step", args, metrics)


if __name__ == "__main__":
    main()
