"""What a stage costs, by closed formulas: weights, products, and the bytes alive at once.

A row has T tokens; r is LoRA's rank; the other letters are those of `Decoder`. In a stage's type a number has c bytes.

FLOPs of a row, two a product:
    forward     2 N T + 4 T^2 A L            linear layers; scores, and their mean over the values
    backward    2 (N + trained) T + 10 T^2 A L    frozen weights need the gradient of their inputs alone
    checkpointing repeats the forward pass; the vocabulary adds 2 V T for each product with the LM head.

Bytes alive in a training step, at the beginning of its backward pass:
    weights (adapter and head in float32), eight a trained weight for Adam, four more where batches are accumulated;
    kept of a layer and token:  4 i + 4 A + 4 h + 7 r numbers, all linear layers having an adapter; in bfloat16 one A
        and five h more (norms compute in float32, each adapter casts its input);
    checkpointing keeps h of every layer and the rest of one;
    temporaries: 2 (i + h) float32 numbers a token, or the logits of one chunk, whichever is more.

`tests/plan/test_costs.py` compares the products with `FlopCounterMode` and the kept numbers with what autograd saves;
`bench/plan_memory.py` compares the sum with measured memory.
"""

import inspect
from dataclasses import dataclass, replace

import torch
from transformers import AutoModel, PreTrainedConfig

from icrm_lib.generator import model_scorer, states_reader
from icrm_lib.generator.states import WINDOW as STATES_WINDOW
from icrm_lib.language_model.causal import ROWS_PER_CHUNK
from icrm_lib.profiles import GeneratorSettings, RewardModelSettings
from icrm_lib.training.config import reads_generator

TOKENS_PER_BATCH, STATES_TOKENS = (
    inspect.signature(asked).parameters["tokens_per_batch"].default for asked in (model_scorer, states_reader)
)
FLOAT, ADAM = 4, 8  # bytes of a float32 number, and of Adam's two


@dataclass(frozen=True)
class Cost:
    """What one stage needs.

    Attributes:
        parameters: weights of the model, adapter and head included.
        trainable: those that get a gradient.
        flops: for one row of the expected length, a pair having two.
        peak_bytes: most bytes alive at once in the worst batch: weights, gradients, optimiser, activations.
        rows: of the worst batch.
        row_tokens: tokens of each of them.
    """

    parameters: int
    trainable: int
    flops: float
    peak_bytes: float
    rows: int
    row_tokens: int


@dataclass(frozen=True)
class Decoder:
    """What the formulas read of a language model.

    Attributes:
        weights: without the LM head.
        linear: those of its linear layers (N), summed over layers.
        sides: inputs and outputs of all linear layers: LoRA of rank r has r times as many weights.
        layers, width, inner: L, h, and the width i of the MLP.
        attention, cached: width of all heads (A), and of keys or values.
        head: weights of the LM head (V), vocabulary times width; `words` is the vocabulary.
        tied: whether the LM head is the embeddings.
    """

    weights: int
    linear: int
    sides: int
    layers: int
    width: int
    inner: int
    attention: int
    cached: int
    words: int
    tied: bool

    def part(self, layers: int) -> "Decoder":
        """Return what only so many of its layers cost; the embeddings stay among its weights."""
        share = layers / self.layers
        return replace(self, linear=round(self.linear * share), sides=round(self.sides * share), layers=layers)

    @property
    def head(self) -> int:
        return self.words * self.width

    @property
    def causal(self) -> int:
        """Weights with the LM head."""
        return self.weights + (0 if self.tied else self.head)

    def forward(self, length: int) -> float:
        """FLOPs of a forward pass of a row."""
        return 2 * self.linear * length + 4 * length**2 * self.attention * self.layers

    def training(self, length: int, trained: int, *, checkpointing: bool) -> float:
        """FLOPs of a forward and a backward pass of a row; `trained` weights get a gradient."""
        added = 2 * trained * length  # an adapter is a product of the forward pass, too
        backward = 2 * (self.linear + trained) * length + 10 * length**2 * self.attention * self.layers
        return (1 + checkpointing) * (self.forward(length) + added) + backward + added

    def kept(self, tokens: int, rank: int, *, bf16: bool, checkpointing: bool) -> float:
        """Bytes that a forward pass keeps for the backward pass."""
        numbers = 4 * self.inner + 4 * self.attention + 4 * self.width + 7 * rank
        numbers += (self.attention + 5 * self.width) if bf16 else 0
        of_layer = tokens * numbers * _bytes(bf16) + (2 * rank * self.sides / self.layers if bf16 else 0)
        if checkpointing:
            return of_layer + tokens * self.width * _bytes(bf16) * self.layers
        return of_layer * self.layers


def decoder(config: PreTrainedConfig) -> Decoder:
    """Return the sizes of a model, instantiated without memory (device "meta")."""
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    config = config.get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Decoder(
        weights=model.num_parameters(),
        linear=sum(module.weight.numel() for module in linear),
        sides=sum(module.in_features + module.out_features for module in linear),
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        inner=config.intermediate_size,
        attention=config.num_attention_heads * size,
        cached=config.num_key_value_heads * size,
        words=config.vocab_size,
        tied=config.tie_word_embeddings,
    )


def reward_model_cost(
    config: PreTrainedConfig, settings: RewardModelSettings, *, max_length: int, length: int, bf16: bool
) -> Cost:
    """Cost of training a reward model, as `training.fit.train_reward_model` does it.

    Args:
        config: of the base model.
        settings: those of a method (`methods.method_settings`).
        max_length: tokens of every row of the worst batch.
        length: tokens of an expected row.
        bf16: weights and arithmetic in bfloat16, adapter and head in float32, as on a GPU; else all in float32.
    """
    model, rows = decoder(config), 2 * settings.batch_size
    score = model.width if settings.head == "linear" else (model.width + 2) * settings.mlp_size + 1
    # The text term reads all rows, or the chosen half.
    text_rows = (1 if settings.text_form in ("grm_dpo_noref", "grm_dpo") else 0.5) if settings.sft_weight else 0
    frozen = model.weights + (0 if model.tied or not text_rows else model.head)  # an LM head is held for the text term
    if settings.frozen_backbone:
        peak = _held(frozen, score, settings, bf16) + _passing(model, rows * max_length, bf16)
        run = model.part(model.layers - settings.frozen_layers) if settings.keeps_states else model
        flops = run.forward(length) + 6 * score * length
        return Cost(model.weights + score, score, flops, peak, rows, max_length)
    # The frozen layers are run, unless what they give is kept; nothing of them is kept for the way back.
    upper, lower = model.part(model.layers - settings.frozen_layers), model.part(settings.frozen_layers)
    adapter = settings.lora_rank * upper.sides
    # In bfloat16 all forms but the mean compute their logits once more on the way back.
    products = 3 if bf16 and settings.text_form != "mean_nll" else 2
    flops = upper.training(length, adapter, checkpointing=settings.gradient_checkpointing)
    flops += 0 if settings.keeps_states else lower.forward(length)
    flops += 6 * score * length + text_rows * 2 * products * model.head * (length - 1)
    passed = 0
    if reads_generator(settings) and settings.form == "expected":
        # The rows once more, next tokens below every token of theirs; at most, as a prompt's bear none.
        branches = 1 + settings.siblings
        flops += model.forward(branches * length)
        seen = rows * (branches * max_length) ** 2  # one byte each: who sees whom
        passed = _passing(model, rows * branches * max_length, bf16) + seen
    # PEFT keeps the head that it was given next to the one that it trains.
    held = _held(frozen + score, adapter + score, settings, bf16)
    peak = held + max(_alive(upper, rows * max_length, settings, bf16, logits=text_rows > 0), passed)
    return Cost(model.weights + 2 * score + adapter, adapter + score, flops, peak, rows, max_length)


def generator_fit_cost(
    config: PreTrainedConfig, settings: GeneratorSettings, *, max_length: int, length: int, bf16: bool
) -> Cost:
    """Cost of fitting the generator, as `generator.fit_generator` does it. Arguments: see `reward_model_cost`."""
    model, rows = decoder(config), 2 * settings.batch_size
    adapter = settings.lora_rank * model.sides
    flops = model.training(length, adapter, checkpointing=settings.gradient_checkpointing)
    flops += 6 * model.head * (length - 1)  # logits on the way forward and again on the way back, gradient of states
    held = _held(model.causal, adapter, settings, bf16)
    peak = held + _alive(model, rows * max_length, settings, bf16, logits=True)
    return Cost(model.causal + adapter, adapter, flops, peak, rows, max_length)


def base_model_cost(config: PreTrainedConfig, *, rows: int, max_length: int, length: int, bf16: bool) -> Cost:
    """Cost of training a base model from nothing, as `language_model` does it, all weights in float32.

    Args:
        config: of the base model.
        rows: sequences a batch.
        max_length, length, bf16: see `reward_model_cost`.
    """
    model, tokens = decoder(config), rows * max_length
    flops = 6 * model.linear * length + 14 * length**2 * model.attention * model.layers
    flops += 8 * model.head * (length - 1)  # logits, on the way back again, gradients of states and head
    kept = model.kept(tokens, 0, bf16=bf16, checkpointing=False)
    kept += tokens * 2 * model.width * model.layers * _bytes(bf16)  # norms are trained: what they scale is kept
    cast = 2 * model.linear if bf16 else 0
    more = max(_temporaries(model, tokens), _logits(model, bf16) + FLOAT * model.head)
    peak = (FLOAT + ADAM) * model.causal + cast + kept + more
    return Cost(model.causal, model.causal, flops, peak, rows, max_length)


def generator_pass_cost(
    config: PreTrainedConfig, settings: GeneratorSettings, *, max_length: int, length: int, bf16: bool
) -> Cost:
    """Cost of asking the generator once, as `generator.model_scorer` does it. Arguments: see `reward_model_cost`."""
    model, rows = decoder(config), max(1, TOKENS_PER_BATCH // max_length)
    tokens = rows * max_length
    logits = _logits(model, bf16) * (4 if settings.top_p < 1 else 1)  # a nucleus sorts them, and sums them up
    states = tokens * model.width * _bytes(bf16)
    peak = model.causal * _bytes(bf16) + max(_passing(model, tokens, bf16), states + logits)
    return Cost(model.causal, 0, model.forward(length) + 2 * model.head * length, peak, rows, max_length)


def states_pass_cost(
    config: PreTrainedConfig, *, probabilities: bool, max_length: int, length: int, bf16: bool
) -> Cost:
    """Cost of keeping the lower layers' states, as `generator.states_reader` does it: the whole model once.

    Args:
        config: of the base model.
        probabilities: whether the tokens' probabilities are asked for in the same pass.
        max_length, length, bf16: see `reward_model_cost`.
    """
    model, rows = decoder(config), max(1, STATES_TOKENS // max_length)
    tokens = rows * max_length
    flops = model.forward(length) + (2 * model.head * length if probabilities else 0)
    states = 2 * tokens * model.width * _bytes(bf16)  # those that are kept, and the last
    passing = max(_passing(model, tokens, bf16), _logits(model, bf16) if probabilities else 0)
    window = STATES_WINDOW * model.width * FLOAT * 2
    return Cost(model.causal, 0, flops, model.causal * _bytes(bf16) + states + passing + window, rows, max_length)


def sampling_cost(config: PreTrainedConfig, *, rows: int, max_length: int, length: int, bf16: bool) -> Cost:
    """Cost of drawing responses with "transformers": the last token of the longest responses, behind a full cache.

    Args:
        config: of the model that is sampled.
        rows: responses drawn at once.
        max_length: tokens of prompt and longest response.
        length: tokens of the expected prompt and response.
        bf16: see `reward_model_cost`.
    """
    model = decoder(config)
    cache = 2 * rows * max_length * model.cached * _bytes(bf16) * (model.layers + 1)  # a layer's is copied to grow
    peak = model.causal * _bytes(bf16) + cache
    return Cost(model.causal, 0, model.forward(length) + 2 * model.head * length, peak, rows, max_length)


def _bytes(bf16: bool) -> int:
    return 2 if bf16 else FLOAT


def _held(frozen: int, trained: int, settings: RewardModelSettings | GeneratorSettings, bf16: bool) -> float:
    """Bytes alive from step to step; the gradients are, too, where batches are accumulated."""
    return frozen * _bytes(bf16) + trained * (FLOAT + ADAM + (FLOAT if settings.accumulation > 1 else 0))


def _alive(
    model: Decoder, tokens: int, settings: RewardModelSettings | GeneratorSettings, bf16: bool, *, logits: bool
) -> float:
    """Bytes that a step with LoRA adds to them."""
    kept = model.kept(tokens, settings.lora_rank, bf16=bf16, checkpointing=settings.gradient_checkpointing)
    return kept + max(_temporaries(model, tokens), _logits(model, bf16) if logits else 0)


def _temporaries(model: Decoder, tokens: int) -> float:
    return tokens * 2 * (model.inner + model.width) * FLOAT


def _passing(model: Decoder, tokens: int, bf16: bool) -> float:
    """Bytes of a forward pass that keeps nothing: an MLP's gate, values and product, and the stream around it."""
    return tokens * (3 * model.inner + 4 * model.width) * _bytes(bf16)


def _logits(model: Decoder, bf16: bool) -> float:
    """Bytes of the logits of one chunk, in float32, and in bfloat16 a copy."""
    return ROWS_PER_CHUNK * model.words * (FLOAT + (2 if bf16 else 0))
