"""S, by which the consistency term is divided: part of every checkpoint."""

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState


class ConsistencyScale(TrainerCallback, ExportableState):
    """S, the exponential moving average of W: S <- d S + (1 - d) W, once a training forward pass, before use.

    As a stateful callback it lies in `trainer_state.json`, so every checkpoint carries it and resuming restores it.

    Args:
        decay: d.
        start: S before the first step.
    """

    def __init__(self, decay: float = 0.95, start: float = 0.5):
        self.decay, self.start = decay, start
        self.value = torch.tensor(start)  # a tensor from the start: a resumed run then rounds as an unbroken one

    def update(self, scale: torch.Tensor) -> torch.Tensor:
        """Mix in one batch's W (a scalar tensor, already averaged over the processes) and return the new S."""
        self.value = self.decay * self.value.to(scale.device) + (1.0 - self.decay) * scale
        return self.value

    def state(self) -> dict:
        return {"args": {"decay": self.decay, "start": self.start}, "attributes": {"value": float(self.value)}}

    def on_train_begin(self, args, state, control, **kwargs):
        # A fresh run starts afresh; a resumed one goes on with what its checkpoint holds.
        self.value = torch.tensor(self.start)
        if state.global_step > 0:
            stored = state.stateful_callbacks.get(type(self).__name__)
            if stored is None:
                raise ValueError(
                    "the checkpoint holds no consistency scale S, so it was not written by ICRMTrainer; resume from "
                    "one that was, or start afresh"
                )
            self.value = torch.tensor(stored["attributes"]["value"])
