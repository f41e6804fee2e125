"""The settings of a reward model's training: TRL's, and those of ICRM and of what it is compared with."""

from dataclasses import dataclass, field
from typing import Any

from trl import RewardConfig

from icrm_lib.generator import MOST_SIBLINGS, SIBLINGS
from icrm_lib.profiles import RewardModelSettings, options
from icrm_lib.runtime import nearest

OPTIONS = ("weighting", "form", "centering", "loss", "pooling", "text_form")
# Weights that the data bring (see `generator.STATISTICS`); the others the term makes of the probabilities itself.
STATISTIC_OF = {"entropy": "negentropies", "top1_margin": "logmargins"}


def _setting(name: str, text: str) -> Any:
    # Presets and options stand in the schema of profiles alone.
    return field(default=getattr(RewardModelSettings(), name), metadata={"help": text})


@dataclass
class ICRMConfig(RewardConfig):
    """TRL's `RewardConfig` and the settings of ICRM (arXiv 2506.09096) and of what it is compared with.

    The loss is consistency_weight * A / S + (1 - consistency_weight) * L + sft_weight * L_text, with L the loss of the
    closing token. For the GRM forms of the text term L is further multiplied by 1 - sft_weight, as GRM does. With
    `consistency_weight=0` and `sft_weight=0` and the defaults of the rest training is TRL's, to the bit.

    Args:
        consistency_weight: lambda, in [0, 1). The paper: 0.1.
        sft_weight: weight of the text term, >= 0. For "mean_nll" the paper adds the term with weight 1 but scales its
            gradient into the backbone by 0.001; with a frozen head both are one. For the GRM forms it is alpha (0.01).
        loss: L. "bradley_terry" (margin and centring are TRL's); "outcome", a cross-entropy with a label per response
            (columns `chosen_label`, `rejected_label` in {0, 1}; without them chosen is 1 and rejected 0); "process",
            a cross-entropy with a value per token (columns `chosen_step_values`, `rejected_step_values`, one entry in
            [0, 1] a response token, nan where there is none), averaged over all labelled tokens.
        pooling: the reward of a response, which L and TRL's metrics read: "last", at its closing token, or "mean", the
            mean of its token rewards, closing token included. The model then carries `icrm_pooling: mean` in its
            configuration, by which `reward_model.RewardModel` scores alike, prefixes too. Other tools read the closing
            token all the same, and an adapter alone has no such configuration.
        label_smoothing: e of `objectives.bradley_terry_loss`, in [0, 0.5).
        positive_weight: weight of `objectives.positive_reward_penalty`, >= 0.
        text_form: "mean_nll", the mean token loss of the chosen response; "grm_sft", "grm_dpo_noref", "grm_dpo", see
            `objectives.grm_text_loss` ("grm_dpo" needs `chosen_reference`, `rejected_reference`: the reference
            model's summed log-probabilities).
        text_beta: beta of the GRM forms.
        weighting: of `objectives.consistency_terms`, or "shuffled" (the probabilities of a response, permuted by an
            order fixed for the response), "entropy" (exp of minus the generator's entropy before the token),
            "top1_margin" (probability of its most probable token minus that of the second).
        form, td_lambda, centering: see `objectives.consistency_terms`; centring plays no part for "outcome" and
            "process".
        siblings: of the form "expected", how many of the generator's most probable next tokens, 1 to 8; their rewards
            take a second forward pass without gradient, for which the attention must follow any mask.
        scale_decay: decay of the running scale S, in [0, 1).
        scale_start: S before the first step, > 0.
        padding_free: run a batch as few rows, each filled with whole responses, instead of one padded row a response.
            Losses and gradients are the same; time and memory go to real tokens. "auto": where a term is on and the
            model allows it (see `packing.layout_of`) and nothing is dropped out.
        trained_length: tokens to which rows were cut before they came here; kept with the model, which cuts what it
            scores alike. `max_length` when None.
        prefix_sharing: compute the prompt of a pair once: chosen and rejected response follow it in one row, each
            blind to the other. Losses and gradients are the same. "auto" as above; it needs `padding_free`.
    """

    consistency_weight: float = _setting("consistency_weight", "lambda of the consistency term, in [0, 1).")
    sft_weight: float = _setting("sft_weight", "Weight of the text term.")
    loss: str = _setting("loss", "Loss of the closing token, or of labelled tokens.")
    pooling: str = _setting("pooling", "Reward of a response: last, at its closing token, or mean, of its tokens.")
    label_smoothing: float = _setting("label_smoothing", "Assumed share of wrong preferences, in [0, 0.5).")
    positive_weight: float = _setting("positive_weight", "Weight of the positive-reward penalty.")
    text_form: str = _setting("text_form", "Form of the text term.")
    text_beta: float = _setting("text_beta", "beta of the GRM forms of the text term.")
    weighting: str = _setting("weighting", "Weights of the consistency term.")
    form: str = _setting("form", "Form of the consistency term.")
    td_lambda: float = _setting("td_lambda", "lambda of the form 'td_lambda', in [0, 1].")
    siblings: int = _setting("siblings", "Next tokens of the form 'expected', 1 to 8.")
    centering: str = _setting("centering", "What the token rewards are centred on.")
    scale_decay: float = field(default=0.95, metadata={"help": "Decay of the running scale S."})
    scale_start: float = field(default=0.5, metadata={"help": "S before the first step."})
    padding_free: str = _setting("padding_free", "Pack responses into full rows: auto, true or false.")
    prefix_sharing: str = _setting("prefix_sharing", "Compute the prompt of a pair once: auto, true or false.")

    trained_length: int | None = field(default=None, metadata={"help": "Tokens to which the rows were cut before."})

    def __post_init__(self):
        super().__post_init__()
        self.trained_length = self.trained_length or self.max_length
        if not 0.0 <= self.consistency_weight < 1.0:
            raise ValueError(f"consistency_weight must be in [0, 1), got {self.consistency_weight}")
        for name in OPTIONS:
            value, known = getattr(self, name), options(RewardModelSettings, name)
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}; {nearest(value, list(known))}")
        if not 0.0 <= self.td_lambda <= 1.0:
            raise ValueError(f"td_lambda must be in [0, 1], got {self.td_lambda}")
        if self.form == "td_lambda" and self.weighting == "random_pairs":
            raise ValueError("form='td_lambda' looks at all tokens that follow, not at 'random_pairs'; change one")
        if self.form == "expected" and self.weighting != "uniform":
            raise ValueError(
                f"form='expected' has the generator's probabilities in its target, weighting={self.weighting!r} would "
                "count them twice; set weighting='uniform'"
            )
        if not 1 <= self.siblings <= MOST_SIBLINGS:
            raise ValueError(f"siblings must be in [1, {MOST_SIBLINGS}], got {self.siblings}")
        if self.sft_weight < 0.0 or self.positive_weight < 0.0:
            raise ValueError(f"sft_weight, positive_weight must be >= 0: {self.sft_weight}, {self.positive_weight}")
        if self.text_form != "mean_nll" and self.sft_weight >= 1.0:
            raise ValueError(f"sft_weight must be in [0, 1) for {self.text_form}, got {self.sft_weight}")
        if not self.text_beta > 0.0:
            raise ValueError(f"text_beta must be > 0, got {self.text_beta}")
        if not 0.0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing must be in [0, 0.5), got {self.label_smoothing}")
        if self.pooling == "mean" and self.loss == "process":
            raise ValueError("pooling='mean' is for losses of whole responses, not loss='process'; change one of them")
        of_pairs = ("label_smoothing", "positive_weight", "center_rewards_coefficient")
        if self.loss != "bradley_terry" and any(getattr(self, name) for name in of_pairs):
            raise ValueError(f"{', '.join(of_pairs)} go with loss='bradley_terry', not {self.loss!r}; leave them out")
        if not 0.0 <= self.scale_decay < 1.0 or self.scale_start <= 0.0:
            raise ValueError(
                f"scale_decay must be in [0, 1) and scale_start > 0, got {self.scale_decay} and {self.scale_start}"
            )
        for name in ("padding_free", "prefix_sharing"):
            setattr(self, name, _choice(name, getattr(self, name)))
        if self.centering == "positions":
            if True in (self.padding_free, self.prefix_sharing):
                raise ValueError(
                    "centering='positions' averages over padding, and padding_free has none; drop one of them"
                )
            self.padding_free = self.prefix_sharing = False
        if self.prefix_sharing is True and self.padding_free is False:
            raise ValueError("prefix_sharing=True lays pairs into full rows, and padding_free=False forbids it")

    @property
    def needs_probabilities(self) -> bool:
        """Whether training reads the generator's answers."""
        return reads_generator(self)

    @property
    def needs_siblings(self) -> bool:
        """Whether these answers are next tokens."""
        return reads_generator(self) and statistic_of(self) == SIBLINGS

    @property
    def needs_labels(self) -> bool:
        """Whether training reads a label per response."""
        return self.loss == "outcome" or (self.loss == "process" and self.consistency_weight > 0)

    @property
    def needs_tokens(self) -> bool:
        """Whether training looks at more than the reward of the closing token, or at labels of its own, or packs."""
        terms = self.consistency_weight > 0 or self.sft_weight > 0
        labels = self.loss != "bradley_terry" or self.pooling == "mean"
        return terms or labels or True in (self.padding_free, self.prefix_sharing)

    @property
    def is_trl(self) -> bool:
        """Whether the loss is TRL's own."""
        return not (self.needs_tokens or self.label_smoothing or self.positive_weight)


def _choice(name: str, value: str | bool) -> bool | str:
    choices = {"auto": "auto", "true": True, "false": False}
    if str(value).lower() not in choices:
        raise ValueError(f"{name} is {value!r}; give 'auto', True or False")
    return choices[str(value).lower()]


def reads_generator(settings: "ICRMConfig | RewardModelSettings") -> bool:
    """Say whether a training with these settings needs the generator's answers."""
    return settings.consistency_weight > 0 and (settings.weighting != "uniform" or settings.form == "expected")


def statistic_of(settings: "ICRMConfig | RewardModelSettings") -> str:
    """Return which of `generator.STATISTICS` the weights of the consistency term are, or `SIBLINGS`, its targets."""
    if settings.form == "expected":
        return SIBLINGS
    return STATISTIC_OF.get(settings.weighting, "logprobs")
