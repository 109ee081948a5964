"""Checkpoints that a cut-off run goes on from: whole or not there at all, the newest few kept.

A checkpoint is a folder `step_00000100`: `trained.safetensors` and `average.safetensors` (what is trained and its
average; nothing frozen), accelerate's optimiser and random states, and `state.json` (step, which is also the position
in the data and in the schedule, and the configuration).
"""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import load as load_states
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from bokehdepth.errors import InputError
from bokehdepth.files.atomic import remove_folder, remove_stale, replace_folder

FOLDER = "checkpoints"
_UNREADABLE = (
    *(pickle.UnpicklingError, RuntimeError, ValueError, LookupError),
    *(TypeError, AttributeError, EOFError, OSError),
)
_NAME = re.compile(r"step_(\d{8})")
# Where a run writes and computes, and how often it looks, has no say in what it computes.
_FREE = {"output", "threads", "card"}
_FREE_LOOP = {"log_every", "save_every", "keep", "sample_every", "samples", "trackers", "workers"}
_RETIRED = {"generated", "held_out_photos"}
"""Keys of older checkpoints that say nothing any more."""


def step_rng(seed: int, step: int, *place: int) -> np.random.Generator:
    """The random source of one step, or of one sample of it: a resumed run draws what an unbroken one draws."""
    return np.random.default_rng([seed, step, *place])


def trained_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """What is trained, each tensor once, by name."""
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


def latest(output: Path) -> Path | None:
    """The newest checkpoint of a run, or None."""
    found = sorted(p for p in (output / FOLDER).glob("step_*") if _NAME.fullmatch(p.name))
    return found[-1] if found else None


def _setting(config: Any) -> dict[str, Any]:
    """The part of a configuration that decides the numbers of a run, as JSON has it."""
    values = json.loads(json.dumps(dataclasses.asdict(config)))
    values = {k: v for k, v in values.items() if k not in _FREE}
    # Accumulation and processes may change as long as their product, the effective batch, is the same.
    values["loop"] = {k: v for k, v in values["loop"].items() if k not in _FREE_LOOP}
    return values


def _first_difference(old: Any, new: Any, name: str = "") -> str | None:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            found = _first_difference(old.get(key), new.get(key), f"{name}.{key}".lstrip("."))
            if found:
                return found
        return None
    return None if old == new else f"{name} is {new!r}, in the checkpoint {old!r}"


class Checkpoints:
    """Saves and loads the state of a run through accelerate.

    Args:
        accelerator: has prepared the network and the optimiser.
        network: the bare network.
        ema: average of what is trained, or None.
        config: of the run; its `output` holds the checkpoints.
        effective_batch: pictures of one optimiser step, of each phase.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        network: nn.Module,
        ema: EMAModel | None,
        config: Any,
        effective_batch: list[int],
    ) -> None:
        self.accelerator, self.network, self.ema, self.config = accelerator, network, ema, config
        self.folder = Path(config.output) / FOLDER
        self.effective_batch = effective_batch
        accelerator.register_save_state_pre_hook(self._write_weights)
        accelerator.register_load_state_pre_hook(self._read_weights)

    def _write_weights(self, models: list[nn.Module], weights: list[dict], folder: str) -> None:
        if self.accelerator.is_main_process:
            trained = trained_parameters(self.network)
            save_file({k: v.detach().contiguous() for k, v in trained.items()}, Path(folder) / "trained.safetensors")
            if self.ema is not None:
                average = dict(zip(trained, self.ema.shadow_params, strict=True))
                save_file({k: v.contiguous() for k, v in average.items()}, Path(folder) / "average.safetensors")
        weights.clear()  # nothing frozen is written

    def _read_weights(self, models: list[nn.Module], folder: str) -> None:
        trained = trained_parameters(self.network)
        stored = _read_tensors(Path(folder) / "trained.safetensors", trained)
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(stored[name])
            if self.ema is not None:
                average = _read_tensors(Path(folder) / "average.safetensors", trained)
                for name, shadow in zip(trained, self.ema.shadow_params, strict=True):
                    shadow.copy_(average[name])
        models.clear()

    def save(self, step: int) -> Path:
        """Writes a checkpoint after `step` steps, and removes the oldest beyond `loop.keep`; returns its folder."""
        folder = self.folder / f"step_{step:08d}"
        staging = self.folder / f".step_{step:08d}.part"
        main = self.accelerator.is_main_process
        if main:
            self._remove_rests()
            staging.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(staging))
        self.accelerator.wait_for_everyone()
        if main:
            state = {
                "step": step,
                "ema_steps": 0 if self.ema is None else self.ema.optimization_step,
                "effective_batch": self.effective_batch,
                "config": _setting(self.config),
            }
            (staging / "state.json").write_text(json.dumps(state, indent=2))
            replace_folder(staging, folder)
            kept = sorted(p for p in self.folder.glob("step_*") if _NAME.fullmatch(p.name))
            for old in kept[: -self.config.loop.keep]:
                remove_folder(old)
        self.accelerator.wait_for_everyone()
        return folder

    def _remove_rests(self) -> None:
        """Removes what a run left that was killed while it wrote; all processes of a run know the one name."""
        for rest in self.folder.glob(".step_*.part"):
            shutil.rmtree(rest)
        remove_stale(self.folder)

    def load(self, resume: str | Path | None) -> int:
        """Takes up a checkpoint.

        Args:
            resume: "latest", the folder of a checkpoint, or None for a run that begins.

        Returns:
            The number of steps that are done.

        Raises:
            InputError: there is no such checkpoint, it is of another configuration, or a run that begins would
                write over one.
        """
        if self.accelerator.is_main_process:
            self._remove_rests()
        newest = latest(Path(self.config.output))
        if resume is None:
            if newest is not None:
                raise InputError(
                    f"output is {self.config.output!r}, which holds {newest.name}; wanted --resume latest, or another "
                    "output."
                )
            return 0
        folder = newest if str(resume) == "latest" else Path(resume)
        if folder is None:
            return 0
        if not (folder / "state.json").is_file():
            raise InputError(f"resume is {str(resume)!r}, which is no checkpoint; wanted latest or a step_ folder.")
        state = _read_state(folder / "state.json")
        ours = _setting(self.config)
        if state["effective_batch"] != self.effective_batch:
            raise InputError(
                f"{folder} was trained with the effective batch {state['effective_batch']}, this run has "
                f"{self.effective_batch}; wanted the same."
            )
        difference = _first_difference(_shared(state["config"]), _shared(ours))
        if difference:
            raise InputError(f"{folder}: {difference}; wanted the same configuration.")
        _check_states(folder)
        self.accelerator.load_state(str(folder))
        if self.ema is not None:
            self.ema.optimization_step = state["ema_steps"]
        return state["step"]


def _read_tensors(path: Path, trained: dict[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    """Tensors of a checkpoint, of the names and shapes of what is trained, all finite."""
    try:
        stored = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged or missing ({error}); wanted a whole checkpoint.") from error
    if stored.keys() != trained.keys():
        odd = sorted(stored.keys() ^ trained.keys())[0]
        raise InputError(f"{path} and the network differ in the trained tensor {odd}; wanted the same ones.")
    for name, value in stored.items():
        if value.shape != trained[name].shape or not value.isfinite().all():
            got, wanted = tuple(value.shape), tuple(trained[name].shape)
            raise InputError(f"{path} has {name} of shape {got}; wanted finite values of shape {wanted}.")
    return stored


def _check_states(folder: Path) -> None:
    """Refuse states of optimizer and random numbers that are damaged or no plain data; accelerate passes some over."""
    for path in sorted(path for kind in ("bin", "pkl", "pt") for path in folder.glob(f"*.{kind}")):
        try:
            is_state = isinstance(load_states(path, map_location="cpu"), dict)
        except (
            pickle.UnpicklingError,
            RuntimeError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            EOFError,
            OSError,
        ) as e:
            raise InputError(f"{path} is damaged or could run code ({type(e).__name__}); wanted plain states.") from e
        if not is_state:
            raise InputError(f"{path} holds no states; wanted those of a checkpoint.")


def _read_state(path: Path) -> dict[str, Any]:
    """The record of a checkpoint."""
    kinds = {"step": int, "ema_steps": int, "effective_batch": list, "config": dict}
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}); wanted the record of a checkpoint.") from error
    if not isinstance(state, dict) or not all(isinstance(state.get(name), kind) for name, kind in kinds.items()):
        raise InputError(f"{path} lacks one of {', '.join(kinds)}; wanted the record of a checkpoint.")
    if state["step"] < 0 or not isinstance(state["config"].get("loop"), dict):
        raise InputError(f"{path} has step {state['step']} or no loop; wanted the record of a checkpoint.")
    return state


def _shared(setting: dict[str, Any]) -> dict[str, Any]:
    """A setting without what the effective batch stands for: batch of a process and accumulation."""
    setting = {k: v for k, v in setting.items() if k not in {"batch", *_RETIRED}}
    setting["base"] = {k: v for k, v in setting["base"].items() if k != "start_from" or v}
    setting["loop"] = {k: v for k, v in setting["loop"].items() if k != "accumulation"}
    if "phases" in setting:
        setting["phases"] = [{k: v for k, v in phase.items() if k != "batch"} for phase in setting["phases"]]
    return setting
