"""How one reward model is trained, on one device or several."""

from dataclasses import asdict, fields
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from peft.helpers import disable_input_dtype_casting
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
)
from transformers.utils import is_flash_attn_2_available
from trl import RewardConfig

from icrm_lib import runtime
from icrm_lib.generator import LowerStates
from icrm_lib.language_model import causal
from icrm_lib.language_model.checkpoints import (
    LogFile,
    SealedCheckpoints,
    data_fingerprint,
    newest_checkpoint,
    refuse_non_finite_weights,
    saving,
)
from icrm_lib.language_model.lm_head import skeleton
from icrm_lib.language_model.loading import NO_CODE, SAFE
from icrm_lib.language_model.lower_layers import decoder_layers
from icrm_lib.profiles import RewardModelSettings
from icrm_lib.reward_model.head import add_mlp_head
from icrm_lib.reward_model.loading import load_reward_model
from icrm_lib.reward_model.pooling import note_pooling
from icrm_lib.training.config import ICRMConfig
from icrm_lib.training.packing import layout_of
from icrm_lib.training.trainer import ICRMTrainer

# Settings that the trainer's configuration has beyond TRL's, by the same name.
TERMS = {item.name for item in fields(ICRMConfig)} - {item.name for item in fields(RewardConfig)}
TERMS &= {item.name for item in fields(RewardModelSettings)}


def train_reward_model(
    base_model: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    train_dataset: Dataset,
    settings: RewardModelSettings,
    *,
    folder: Path,
    seed: int,
    eval_dataset: Dataset | None = None,
    trained_length: int | None = None,
    bf16: bool | None = None,
    checkpoints: Path | None = None,
    states: LowerStates | None = None,
) -> ICRMTrainer:
    """Train one reward model with LoRA; the log goes to `log.jsonl` in `folder` as it happens.

    Under `accelerate launch` or torchrun all processes train together; `settings.batch_size * settings.accumulation`
    pairs are a step all the same.

    Args:
        base_model: local directory or hub id.
        tokenizer: its tokenizer, prepared.
        train_dataset: tokenised pairs; with the generator's log-probabilities where the settings need them.
        settings: the profile's, changed by `methods.method_settings`.
        folder: for the log.
        seed: of head, LoRA and data order.
        eval_dataset: evaluated after every epoch when given.
        trained_length: tokens to which the data were cut when they were tokenised; the model keeps it.
        bf16: frozen weights and arithmetic in bfloat16; as `settings.precision` says if None.
        checkpoints: folder of checkpoints, of this training alone, written every `settings.save_steps` steps; one that
            is there already is resumed from.
        states: what the frozen lower layers give for all rows (`generator.cached_states`): they are then left out of
            training, with the same result but for the rounding of the states' type. Computed each time when None.

    Returns:
        the finished trainer; its model is whole.

    Raises:
        ValueError: a step that the processes cannot share, checkpoints of another training, more frozen layers than
            the model has, or states of another number of layers.
        FloatingPointError: a loss, a gradient or a weight is not finite.
    """
    _refuse_frozen_layers(base_model, settings, states)
    folder.mkdir(parents=True, exist_ok=True)
    on_gpu = runtime.device() == "cuda"
    bf16 = settings.in_bfloat16(on_gpu) if bf16 is None else bf16
    batch_size, accumulation = shared_batch(settings, runtime.processes())
    args = ICRMConfig(
        **{"output_dir": str(folder), **saving(checkpoints, settings.save_steps)},
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=4 * batch_size,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup,
        max_length=None,
        trained_length=trained_length,
        bf16=bf16,
        use_cpu=not on_gpu,
        ddp_find_unused_parameters=False,  # every LoRA layer and the head are used in every step
        ddp_backend=None if on_gpu or runtime.processes() == 1 else "gloo",
        model_init_kwargs={"dtype": "bfloat16" if bf16 else "float32", **SAFE},
        gradient_checkpointing=settings.gradient_checkpointing,
        eval_strategy="no" if eval_dataset is None else "epoch",
        report_to="none",
        disable_tqdm=not runtime.watched(),
        seed=seed,
        center_rewards_coefficient=settings.center_rewards or None,
        **{name: getattr(settings, name) for name in TERMS},
    )
    if not settings.quantization:
        args.model_init_kwargs["attn_implementation"] = attention = _attention(settings)
    if not settings.quantization and settings.head != "mlp":  # its dropout draws otherwise in another layout
        # Methods without a term of ours are laid out as the others are: the same work for the same pairs.
        config = AutoConfig.from_pretrained(str(base_model), attn_implementation=attention, **NO_CODE)
        layout = layout_of(config, runtime.device(), args.padding_free, args.prefix_sharing)
        args.padding_free, args.prefix_sharing = layout["padding_free"], layout["prefix_sharing"]
    model = _start(base_model, settings, args)
    if not isinstance(model, str):
        args.model_init_kwargs = None  # used up; the trainer would warn that it ignores them
    key = {"settings": asdict(settings), "seed": seed, "base_model": str(base_model)}
    if checkpoints:
        key |= {"folder": checkpoints.name, "data": data_fingerprint(train_dataset)}
    trainer = ICRMTrainer(
        model,
        args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        peft_config=None if settings.frozen_backbone else lora_config(settings),
        failures=checkpoints or folder,
        states=states,
        callbacks=[LogFile(folder / "log.jsonl"), SealedCheckpoints(key)],
    )
    trainer.remove_callback(PrinterCallback)
    for weight in trainer.model.parameters():
        if weight.requires_grad:  # PEFT has the head, TRL a four-bit model's LoRA in bfloat16: small steps vanish
            weight.data = weight.data.float()
    # Autocast would turn back what PEFT casts for its float32 weights.
    with disable_input_dtype_casting(trainer.model, active=bf16 and not settings.quantization):
        trainer.train(resume_from_checkpoint=newest_checkpoint(checkpoints, key) if checkpoints else None)
    refuse_non_finite_weights(trainer.model)
    return trainer


def shared_batch(settings: RewardModelSettings, processes: int) -> tuple[int, int]:
    """Return batch size and accumulation of each process, so that a step holds as many pairs as in one.

    The batch is divided where it can be: two processes then compute what one does, S included. Where only the
    accumulation can, S is updated over larger batches and less often, and the last step of an epoch weighs its batches
    otherwise.

    Raises:
        ValueError: the number of processes divides neither.
    """
    if settings.batch_size % processes == 0:
        return settings.batch_size // processes, settings.accumulation
    if settings.accumulation % processes == 0:
        return settings.batch_size, settings.accumulation // processes
    raise ValueError(
        f"{processes} processes cannot share a step of {settings.accumulation} batches of {settings.batch_size} pairs; "
        "set batch_size or accumulation to a multiple of the processes"
    )


def unsharded_model(trainer: ICRMTrainer, settings: RewardModelSettings, folder: Path) -> PreTrainedModel | None:
    """Return the trained model in one piece; one shared by processes, or of four bits, as base and adapter.

    Args:
        trainer: a finished one; all its processes must call.
        settings: what it was trained with.
        folder: for the adapter, which stays there.

    Returns:
        the model; None on all processes but the first.
    """
    first = runtime.process_index() == 0
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled or settings.quantization):
        return trainer.model if first else None
    adapter = folder / "adapter"
    trainer.save_model(str(adapter))
    trainer.accelerator.wait_for_everyone()
    if not first:
        return None
    dtype = torch.bfloat16 if trainer.args.bf16 else torch.float32
    model = load_reward_model(adapter, dtype=dtype)[0]
    note_pooling(model, settings.pooling)  # an adapter has no configuration of the model
    model.config.icrm_max_length = trainer.args.trained_length
    return model


def lora_config(settings: RewardModelSettings) -> LoraConfig:
    """LoRA on every linear layer but the head's and those of the frozen layers."""
    without = r"(.*\.)?score(\..*)?"  # an MLP head's layers are trained whole
    if settings.frozen_layers:
        without += rf"|(.*\.)?layers\.({'|'.join(map(str, range(settings.frozen_layers)))})\..*"
    return causal.lora_config(settings, task_type="SEQ_CLS", exclude_modules=without)


def _refuse_frozen_layers(base_model: str | Path, settings: RewardModelSettings, states: LowerStates | None) -> None:
    if settings.frozen_layers:
        config = AutoConfig.from_pretrained(str(base_model), **NO_CODE)
        decoder_layers(skeleton(config), settings.frozen_layers)
    if states is not None and states.layers != settings.frozen_layers:
        raise ValueError(
            f"the hidden states are those after {states.layers} layers, and frozen_layers is {settings.frozen_layers}; "
            "make them anew with generator.cached_states, or leave them out"
        )
    if states is not None and settings.quantization:
        raise ValueError(
            f"hidden states of the model in full precision do not fit its {settings.quantization} weights; set "
            "frozen_states to none, or quantization to ''"
        )


def _attention(settings: RewardModelSettings) -> str:
    if settings.attn_implementation != "auto":
        return settings.attn_implementation
    return "flash_attention_2" if runtime.device() == "cuda" and is_flash_attn_2_available() else "sdpa"


def _start(base_model: str | Path, settings: RewardModelSettings, args: ICRMConfig) -> str | PreTrainedModel:
    """Return the path, which the trainer loads, or a model with another head or a frozen backbone."""
    if settings.quantization:
        args.model_init_kwargs["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if args.bf16 else torch.float32,
            llm_int8_skip_modules=["score"],
        )
    if settings.head == "linear" and not settings.frozen_backbone:
        return str(base_model)
    torch.manual_seed(args.seed)  # the trainer seeds itself later than the head is drawn
    options = {**args.model_init_kwargs, "dtype": getattr(torch, args.model_init_kwargs["dtype"])}
    model = AutoModelForSequenceClassification.from_pretrained(str(base_model), num_labels=1, **options)
    if settings.head == "mlp":
        model = add_mlp_head(model, settings.mlp_size)
    if settings.frozen_backbone:
        model.requires_grad_(False)
        model.score.requires_grad_(True)
    return model
