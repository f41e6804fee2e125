"""What every loss asks of its inputs."""

import torch


def widen(rewards: torch.Tensor) -> torch.Tensor:
    # bfloat16 keeps 8 bits: a difference of two rewards near 50 would be off by a quarter.
    return rewards.to(torch.promote_types(rewards.dtype, torch.float32))


def positive(labels: torch.Tensor) -> torch.Tensor:
    # Outcome labels as bool; 0.5 or -1 would silently become one of the two.
    wrong = labels[(labels != 0) & (labels != 1)]
    if wrong.numel():
        raise ValueError(
            f"labels must be 0 (wrong) or 1 (right), got {wrong[0].item()}; soft labels go to process_loss"
        )
    return labels == 1


def check_tokens(rewards: torch.Tensor, **tensors: torch.Tensor) -> None:
    # Every tensor has the shape of rewards, (N, T); the first one is the mask.
    if rewards.dim() != 2:
        raise ValueError(f"rewards must have shape (N, T), one row a response; got {tuple(rewards.shape)}")
    for name, tensor in tensors.items():
        if tensor.shape != rewards.shape:
            raise ValueError(
                f"{name} must have the shape of rewards, {tuple(rewards.shape)}; got {tuple(tensor.shape)}"
            )
    name, mask = next(iter(tensors.items()))
    if mask.dtype != torch.bool:
        raise ValueError(f"{name} must be bool, got {mask.dtype}; use mask.bool()")


def check_option(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(known)}")
