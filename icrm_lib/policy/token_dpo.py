"""DPO with a weight for each token, and with what a loss of one's own needs: log-probabilities token by token."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from accelerate.utils import is_peft_model
from transformers import PreTrainedModel
from trl import DPOTrainer
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import use_adapter

from icrm_lib.policy.token_weights import WEIGHTS, WeightedCollator


class PairTokens(NamedTuple):
    """What is known of the response tokens of B pairs: rows 0..B-1 chosen, B..2B-1 rejected; T padded length.

    Attributes:
        ids: the tokens. Shape: (2B, T).
        mask: True at response tokens. Bool. Shape: (2B, T).
        weights: of the tokens, 1 where the data have none, 0 outside the mask. Shape: (2B, T).
        policy: log-probability of each token by the policy, with gradient; 0 outside the mask. Shape: (2B, T).
        reference: by the reference, without gradient. Shape: (2B, T).
        policy_rows, reference_rows: log-probabilities of the whole vocabulary where each token stands, or None unless
            asked for. Shape: (2B, T, V).
        beta: strength of the pull towards the reference.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    weights: torch.Tensor
    policy: torch.Tensor
    reference: torch.Tensor
    policy_rows: torch.Tensor | None
    reference_rows: torch.Tensor | None
    beta: float

    def rewards(self) -> tuple[torch.Tensor, torch.Tensor]:
        """beta times the weighted sum of log-ratios, of the chosen and of the rejected. Shape: (B,) each."""
        return (self.beta * (self.weights * (self.policy - self.reference)).sum(1)).chunk(2)


PairLoss = Callable[[PairTokens], torch.Tensor]  # -> loss of each pair, shape (B,)


def weighted_loss(tokens: PairTokens) -> torch.Tensor:
    """-log sigmoid(beta (sum_t w_t D_t of the chosen - that of the rejected)), D_t the log-ratio. Shape: (B,)."""
    chosen, rejected = tokens.rewards()
    return -F.logsigmoid(chosen - rejected)


class TokenDPOTrainer(DPOTrainer):
    """TRL's DPO on the log-probabilities of tokens.

    The data may have columns `chosen_weights` and `rejected_weights`: one number a token of the response as TRL
    tokenises it, the closing token included. Without them every token weighs 1, and the default loss is TRL's.

    Args:
        pair_loss: of each pair; its mean is the loss.
        vocabulary: also give the log-probabilities of the whole vocabulary; 2B x T x V numbers twice.
        args, kwargs: of `trl.DPOTrainer`; without images, and with TRL's sigmoid loss.

    Raises:
        ValueError: an option of TRL's that changes a loss which is not TRL's here; in training, weights of another
            number than the response has tokens.
    """

    def __init__(self, *args: Any, pair_loss: PairLoss = weighted_loss, vocabulary: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.pair_loss, self.vocabulary = pair_loss, vocabulary
        self._refuse_options()
        own = self.data_collator
        self.data_collator = WeightedCollator(
            own.pad_token_id, own.max_length, own.truncation_mode, own.pad_to_multiple_of
        )

    def _refuse_options(self) -> None:
        plain = {
            "loss_type": ["sigmoid"],
            "f_divergence_type": "reverse_kl",
            "ld_alpha": None,
            "use_weighting": False,
            "precompute_ref_log_probs": False,
        }
        for name, value in plain.items():
            if getattr(self.args, name) != value:
                raise ValueError(
                    f"{name} is {getattr(self.args, name)!r}, which token DPO does not compute; leave it at {value!r} "
                    "and give what you need as pair_loss"
                )

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        self._signature_columns = list(dict.fromkeys([*self._signature_columns, *WEIGHTS]))

    def _compute_loss(self, model, inputs, return_outputs):
        mask = inputs["completion_mask"][:, 1:].bool()
        asked = {name: inputs[name] for name in ("input_ids", "attention_mask")} | {"use_cache": False}
        policy, policy_rows = self._logprobs(model, asked, mask)
        base = self.model if self.ref_model is None else self.ref_model
        checkpointing = self.args.gradient_checkpointing_kwargs
        with torch.no_grad(), disable_gradient_checkpointing(self.model, checkpointing), self._base_weights():
            reference, reference_rows = self._logprobs(base, asked, mask)
        weights = inputs["weights"][:, 1:] * mask
        tokens = PairTokens(
            inputs["input_ids"][:, 1:], mask, weights, policy, reference, policy_rows, reference_rows, self.beta
        )
        loss = self.pair_loss(tokens).mean()
        self._record(tokens)
        if not return_outputs:
            return loss
        with torch.no_grad():
            return loss, model(**asked)

    def _base_weights(self):
        """Where TRL keeps no reference, it is the model without its adapter, or with the one it began with."""
        if self.ref_model is not None or not is_peft_model(self.model):
            return nullcontext()
        unwrapped = self.accelerator.unwrap_model(self.model)
        return use_adapter(unwrapped, adapter_name="ref" if "ref" in unwrapped.peft_config else None)

    def _logprobs(
        self, model: PreTrainedModel, asked: dict[str, Any], mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Log-probabilities of the tokens, (2B, T), 0 outside the mask, and of the vocabulary, (2B, T, V), or None."""
        targets = asked["input_ids"][:, 1:]
        if self.vocabulary:
            rows = model(**asked).logits[:, :-1].float().log_softmax(-1)
            return rows.gather(-1, targets[..., None])[..., 0] * mask, rows
        labels = F.pad(targets.masked_fill(~mask, -100), (1, 0), value=-100)
        return model(**asked, labels=labels, fused_lm_head=True).log_probs[:, -targets.shape[1] :] * mask, None

    @torch.no_grad()
    def _record(self, tokens: PairTokens) -> None:
        """Log what TRL logs of the pairs, with weighted rewards."""
        chosen, rejected = (self.accelerator.gather(side) for side in tokens.rewards())
        log_chosen, log_rejected = (self.accelerator.gather(side) for side in tokens.policy.sum(1).chunk(2))
        values = {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": chosen - rejected,
            "rewards/accuracies": (chosen > rejected).float(),
            "logps/chosen": log_chosen,
            "logps/rejected": log_rejected,
        }
        for name, value in values.items():
            self._metrics["train" if self.model.training else "eval"][name].append(value.mean().item())
