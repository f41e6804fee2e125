"""LoRA as every stage of the kit uses it: on all linear layers, rank and scale from the profile."""

from peft import LoraConfig

from icrm_lib.profiles import GeneratorSettings, RewardModelSettings


def lora_config(
    settings: GeneratorSettings | RewardModelSettings, *, task_type: str = "CAUSAL_LM", **options
) -> LoraConfig:
    """Return the adapter's configuration.

    Args:
        settings: `lora_rank` and `lora_alpha` of the profile.
        task_type: PEFT's name of what the model is for.
        options: more of `LoraConfig`, e.g. `exclude_modules`.
    """
    size = {"r": settings.lora_rank, "lora_alpha": settings.lora_alpha}
    return LoraConfig(task_type=task_type, target_modules="all-linear", **size, **options)
