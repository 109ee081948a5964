"""Checkpoints that a cut-off run goes on from, written whole or not at all."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn


class Ema:
    """Exponential moving average of a model's weights and buffers, with the usual slow start.

    Args:
        model: the model that is trained.
        decay: share of the old average that a step keeps, at most.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.average = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves the average towards the model."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - decay)
            else:
                self.average[name].copy_(value)


def save(path: Path, *, config: Any, step: int, model: nn.Module, ema: Ema, optimizer: torch.optim.Optimizer) -> None:
    """Writes everything that a run needs to go on, under a temporary name first."""
    state = {
        "config": dataclasses.asdict(config),
        "step": step,
        "model": model.state_dict(),
        "ema": ema.average,
        "ema_steps": ema.steps,
        "optimizer": optimizer.state_dict(),
        "torch_rng": torch.get_rng_state(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}_{path.name}")
    torch.save(state, temporary)
    temporary.rename(path)


def resume(path: Path, *, model: nn.Module, ema: Ema, optimizer: torch.optim.Optimizer) -> int:
    """Takes up a checkpoint where there is one; returns the number of steps that are done."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    ema.average, ema.steps = state["ema"], state["ema_steps"]
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["torch_rng"])
    return state["step"]


def step_rng(seed: int, step: int) -> np.random.Generator:
    """The random source of one step: a resumed run draws what an unbroken one would have drawn."""
    return np.random.default_rng([seed, step])
