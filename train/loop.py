"""The loop of both trainers. A stage brings a network with its loss as sums over samples, and the data.

Everything random is drawn from (seed, step, sample), so a run that was cut off, and one on another number of
processes with the same effective batch, sees the same samples and the same noise.
"""

from __future__ import annotations

import json
import logging
import math
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType, PartialState
from accelerate.utils import InitProcessGroupKwargs, parse_flag_from_env, send_to_device
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset

from bokehdepth.errors import InputError
from bokehdepth.files.atomic import remove_stale, staged, write_file
from bokehdepth.files.png import save_image
from train import config, publish
from train.checkpointing import Checkpoints, trained_parameters
from train.config import OptimizerConfig, PhaseConfig, Stage1Config, Stage2Config
from train.losses import SummedNetwork, total, within

logger = logging.getLogger("train.loop")
Batch = dict[str, Any]
Draw = Callable[[int, PhaseConfig, np.ndarray, int], Batch]
"""(step, its phase, (B,) numbers of the samples within the step, how many samples the step has) to a batch."""


@dataclass(frozen=True)
class Samples:
    """Pictures and numbers of a look at the model in training.

    Args:
        sheet: grid of pictures.
        numbers: scalars by name.
    """

    sheet: Image.Image
    numbers: dict[str, float]


@dataclass(frozen=True)
class Stage:
    """What a stage brings to the loop.

    Args:
        network: with its loss; frozen parameters want no gradient.
        draw: makes a batch.
        plan: phases in order.
        export: writes the model into a folder.
        sample: looks at the model, or None.
        is_head: whether a parameter of this name takes the learning rate times `optimizer.head_factor`.
    """

    network: SummedNetwork
    draw: Draw
    plan: list[PhaseConfig]
    export: Callable[[Path], None]
    sample: Callable[[], Samples] | None = None
    is_head: Callable[[str], bool] = lambda name: False


def without_accelerator() -> bool:
    """Whether the processes run on CPUs: told so (ACCELERATE_USE_CPU), or because there is nothing else.

    accelerate itself, not told, starts several processes on a machine without a GPU that do not know each other.
    """
    return parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()


def start(cfg: Stage1Config | Stage2Config) -> Accelerator:
    """Sets threads and seed, and makes the accelerator; mixed precision is the loop's own autocast."""
    torch.set_num_threads(cfg.threads)
    torch.manual_seed(cfg.seed)
    # cuDNN's fused attention fails in the backward pass of many heads at once (seen with torch 2.11 on an H200).
    torch.backends.cuda.enable_cudnn_sdp(False)
    return Accelerator(
        cpu=without_accelerator(),
        mixed_precision="no",
        gradient_accumulation_steps=cfg.loop.accumulation,
        log_with=_trackers(cfg.loop.trackers) or None,
        project_dir=cfg.output,
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False),
            InitProcessGroupKwargs(timeout=timedelta(seconds=cfg.loop.timeout_s)),
        ],
    )


def prepare_engine(cfg: Stage1Config | Stage2Config, accelerator: Accelerator, plan: list[PhaseConfig]) -> None:
    """Tells DeepSpeed what the configuration says, so that it stands in one place.

    Raises:
        InputError: weights are to be sharded, which the one writer of checkpoints and models cannot put together.
    """
    if accelerator.distributed_type == DistributedType.FSDP:
        raise InputError(
            "distributed_type is FSDP; wanted MULTI_GPU or DEEPSPEED with ZeRO-2, whose processes hold whole weights."
        )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        engine = accelerator.state.deepspeed_plugin.deepspeed_config
        if engine["zero_optimization"]["stage"] > 2:
            raise InputError("zero_stage is 3; wanted up to 2, whose processes hold whole weights.")
        engine["train_micro_batch_size_per_gpu"] = plan[0].batch
        engine["gradient_accumulation_steps"] = cfg.loop.accumulation
        engine["gradient_clipping"] = cfg.optimizer.grad_clip or 0.0


def main(kind: type, run: Callable[..., Path], module: str) -> None:
    """The command line of a trainer.

    Args:
        kind: of its configuration.
        run: trains what one says, from a checkpoint or from the start.
        module: that is started, as a published card repeats it.
    """
    parser = config.parser(f"Trains what a {kind.__name__} says.")
    parser.add_argument("--resume", metavar="latest|PATH", help="go on from the last checkpoint, or from a folder")
    parser.add_argument("--push-to-hub", metavar="USER/NAME", help="publish the model when the run is done")
    arguments = parser.parse_args()
    set_up_logging()
    cfg = config.load(kind, arguments.config, arguments.set)
    if arguments.push_to_hub:
        publish.check(cfg)
    model = run(cfg, arguments.resume)
    if arguments.push_to_hub and PartialState().is_main_process:
        changes = [part for change in arguments.set for part in ("--set", change)]
        command = shlex.join(["python", "-m", module, "--config", arguments.config, *changes])
        publish.push(cfg, model, arguments.push_to_hub, command)


def set_up_logging() -> None:
    """Lines of the project's own loggers go to the screen; of other libraries only warnings."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("train").setLevel(logging.INFO)


def _trackers(names: list[str] | None) -> list[str]:
    if names is None:
        return ["tensorboard"] if find_spec("tensorboard") else []
    for name in names:
        if name not in ("tensorboard", "wandb", "trackio"):
            raise InputError(f"loop.trackers has {name!r}; wanted tensorboard, wandb or trackio.")
        if find_spec(name) is None:
            raise InputError(f"loop.trackers has {name!r}, which is not installed; install it or leave it out.")
    return list(names)


def locate(plan: list[PhaseConfig], step: int) -> tuple[PhaseConfig, int]:
    """The phase that a step belongs to, and the step's number within it."""
    for phase in plan:
        if step < phase.steps:
            return phase, step
        step -= phase.steps
    raise ValueError(f"step is {step} beyond the last phase.")


def learning_rate(optimizer: OptimizerConfig, plan: list[PhaseConfig], step: int) -> float:
    """Learning rate of a step, counted in optimiser steps, whatever the number of processes and of accumulations.

    Linear warm-up over the whole run's first steps; within a phase cosine, polynomial (power 0.9) or constant, from
    the phase's peak down to `final_rate` of it.
    """
    phase, inner = locate(plan, step)
    done = inner / phase.steps
    fall = {"cosine": (1 + math.cos(math.pi * done)) / 2, "poly": (1 - done) ** 0.9, "constant": 1.0}
    share = optimizer.final_rate + (1 - optimizer.final_rate) * fall[optimizer.schedule]
    return phase.learning_rate * share * min(1.0, (step + 1) / max(optimizer.warmup, 1))


def build_optimizer(settings: OptimizerConfig, groups: list[list[nn.Parameter]]) -> torch.optim.Optimizer:
    """The optimiser that a configuration names, one parameter group for each list.

    Raises:
        InputError: its library is not installed.
    """
    groups = [{"params": parameters, "lr": 0.0} for parameters in groups if parameters]
    betas, decay = tuple(settings.betas), settings.weight_decay
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, betas=betas, weight_decay=decay)
    if settings.name == "sgd":
        return torch.optim.SGD(groups, weight_decay=decay)
    library = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}[settings.name]
    try:
        module = __import__(library)
    except ImportError as error:
        raise InputError(
            f"optimizer.name is {settings.name!r}, which needs {library}; install it, or take adamw."
        ) from error
    if settings.name == "adamw8bit":
        return module.optim.AdamW8bit(groups, betas=betas, weight_decay=decay)
    for group in groups:
        group["lr"] = 1.0
    return module.Prodigy(groups, betas=betas, weight_decay=decay, use_bias_correction=True, safeguard_warmup=True)


class _Steps(Dataset):
    """The batches of a process, one list of them for each optimiser step; workers load and render ahead."""

    def __init__(self, stage: Stage, accelerator: Accelerator, accumulation: int) -> None:
        self.draw, self.plan, self.accumulation = stage.draw, stage.plan, accumulation
        self.process, self.processes = accelerator.process_index, accelerator.num_processes

    def __getitem__(self, step: int) -> list[Batch]:
        phase, _ = locate(self.plan, step)
        # Samples of a step are numbered over its batches and processes, so that a twice as large batch of one process
        # holds those of two.
        firsts = [(part * self.processes + self.process) * phase.batch for part in range(self.accumulation)]
        samples = self.accumulation * self.processes * phase.batch
        return [self.draw(step, phase, np.arange(first, first + phase.batch), samples) for first in firsts]


def freeze_idle(network: nn.Module, batch: Batch) -> list[str]:
    """Freezes parameters that the loss does not depend on, as data parallel training wants; returns their names."""
    loss = network(batch)["loss"]
    if not loss.requires_grad:
        raise InputError("The loss depends on no trainable parameter; wanted at least one.")
    loss.backward()
    idle = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
    for name, parameter in network.named_parameters():
        parameter.grad = None
        if name in idle:
            parameter.requires_grad_(False)
    return idle


@contextmanager
def averaged(ema: EMAModel | None, parameters: list[nn.Parameter]) -> Iterator[None]:
    """Puts the average in place of the trained weights for as long as the context lasts."""
    if ema is None:
        yield
        return
    ema.store(parameters)
    ema.copy_to(parameters)
    try:
        yield
    finally:
        ema.restore(parameters)


def derived_numbers(cfg: Stage1Config | Stage2Config, stage: Stage, processes: int, idle: list[str]) -> dict[str, Any]:
    """Numbers that follow from a configuration, which a run prints before it begins.

    Returns:
        Effective batch of each phase, steps, parameters, and gigabytes of weights, gradients, optimiser and average
        on one process (activations not counted).
    """
    trained = sum(p.numel() for p in trained_parameters(stage.network).values())
    frozen = [p for p in stage.network.parameters() if not p.requires_grad]
    state = {"adamw": 8, "adamw8bit": 2, "prodigy": 16, "sgd": 0}[cfg.optimizer.name]
    each = 4 + 4 + state + (4 if cfg.loop.ema_decay else 0)
    fixed = sum(p.numel() * p.element_size() for p in frozen)
    return {
        "effective_batch": [phase.batch * processes * cfg.loop.accumulation for phase in stage.plan],
        "processes": processes,
        "steps": sum(phase.steps for phase in stage.plan),
        "trainable_parameters": trained,
        "frozen_parameters": sum(p.numel() for p in frozen),
        "idle_tensors": len(idle),
        "memory_without_activations_gb": round((trained * each + fixed) / 1e9, 3),
    }


def fit(cfg: Stage1Config | Stage2Config, accelerator: Accelerator, stage: Stage, resume: str | Path | None) -> Path:
    """Trains a stage.

    Args:
        cfg: configuration of the run.
        accelerator: from `start`.
        stage: network and data.
        resume: as in `Checkpoints.load`.

    Returns:
        Folder of the model, with the averaged weights: `<output>/model`.

    Raises:
        InputError: as `Checkpoints.load` says, or nothing can be trained.
        RuntimeError: the loss is not finite.
    """
    output, main = Path(cfg.output), accelerator.is_main_process
    prepare_engine(cfg, accelerator, stage.plan)
    network = stage.network.to(accelerator.device).train()
    data = _Steps(stage, accelerator, cfg.loop.accumulation)
    last = sum(phase.steps for phase in stage.plan)
    bf16 = torch.autocast(accelerator.device.type, torch.bfloat16, enabled=cfg.loop.precision == "bf16")
    with bf16:
        first = {k: v for k, v in data[0][0].items() if k != "lone"}  # a batch of photos alone would hide DSFA
        idle = freeze_idle(network, send_to_device(first, accelerator.device))
    named = trained_parameters(network)
    trainable = list(named.values())
    head = [p for name, p in named.items() if stage.is_head(name)]
    rest = [p for name, p in named.items() if not stage.is_head(name)]
    factors = [f for f, group in ((1.0, rest), (cfg.optimizer.head_factor, head)) if group]
    optimizer = build_optimizer(cfg.optimizer, [rest, head])
    on_cpu = accelerator.device.type == "cpu"
    # One kernel for each tensor: on a GPU hundreds of them cost more than the rest of a step.
    ema = EMAModel(trainable, decay=cfg.loop.ema_decay, foreach=not on_cpu) if cfg.loop.ema_decay else None
    numbers = derived_numbers(cfg, stage, accelerator.num_processes, idle)
    wrapped, optimizer = accelerator.prepare(network, optimizer)
    checkpoints = Checkpoints(accelerator, network, ema, cfg, numbers["effective_batch"])
    begin = checkpoints.load(resume)
    log = _Log(accelerator, output / "log.jsonl", begin)
    attention = partial(sdpa_kernel, SDPBackend.MATH) if cfg.loop.plain_attention else nullcontext
    if main:
        remove_stale(output)  # also where no step is left that would write there
        logger.info("%s", "\n".join(f"{name}: {value}" for name, value in numbers.items()))
        logger.info("steps %d to %d", begin, last)

    steps = range(begin, last)
    fetched = DataLoader(data, None, sampler=steps, num_workers=cfg.loop.workers)
    for step, batches in zip(steps, fetched, strict=True):
        rate = learning_rate(cfg.optimizer, stage.plan, step)
        for group, factor in zip(optimizer.param_groups, factors, strict=True):
            group["lr"] = rate * factor
        # What the loss divides by has to be known of the whole step before the gradient of its first batch.
        whole = send_to_device(total(map(network.counts, batches)), accelerator.device)
        whole, seen, parts = accelerator.reduce(whole, "sum"), {}, len(batches) * accelerator.num_processes
        for batch in batches:
            with accelerator.accumulate(wrapped):
                with bf16, attention():
                    sums = wrapped(send_to_device(batch, accelerator.device), part=True)
                seen = total([seen, sums])
                loss = network.terms(within(sums, whole))["loss"]
                if not torch.isfinite(loss):
                    raise RuntimeError(f"The loss is {loss.item()} at step {step}; checkpoints: {output}.")
                accelerator.backward(loss * parts)  # of which it takes the mean, and the parts make a sum
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(trainable, cfg.optimizer.grad_clip or math.inf)
                    if norm is not None:  # DeepSpeed clips by itself and may not say
                        log.add({"gradient_norm": norm})
                optimizer.step()
                optimizer.zero_grad()
        log.add(network.terms(accelerator.reduce(seen, "sum")))
        if ema is not None:
            ema.step(trainable)

        done = step + 1
        log.pictures += len(batches) * locate(stage.plan, step)[0].batch * accelerator.num_processes
        if done % cfg.loop.log_every == 0 or done == last:
            log.write(done, learning_rate=rate)
        if stage.sample and cfg.loop.sample_every and (done % cfg.loop.sample_every == 0 or done == last):
            if main:
                with averaged(ema, trainable):
                    log.samples(done, stage.sample(), output)
            accelerator.wait_for_everyone()
        if done % cfg.loop.save_every == 0 or done == last:
            checkpoints.save(done)
            if main:
                with averaged(ema, trainable):
                    export(stage, output / "model", {"step": done, "of": last, **numbers})
            accelerator.wait_for_everyone()
    if main:
        # A run that is killed behind its last checkpoint has no step left when it goes on, and may lack its model.
        record = output / "model" / "training.json"
        if not record.is_file() or json.loads(record.read_text()).get("step") != last:
            with averaged(ema, trainable):
                export(stage, output / "model", {"step": last, "of": last, **numbers})
    accelerator.wait_for_everyone()
    log.close()
    return output / "model"


def export(stage: Stage, folder: Path, record: dict[str, Any]) -> None:
    """Writes the model and `training.json` in the place of an earlier model, whole or not at all."""
    with staged(folder, overwrite=True, replaced=None) as place:
        stage.export(place)
        (place / "training.json").write_text(json.dumps(record, indent=2))


class _Log:
    """Means of the steps' terms since the last line: to the screen, to `log.jsonl` and to accelerate's trackers."""

    def __init__(self, accelerator: Accelerator, file: Path, begin: int) -> None:
        self.accelerator, self.file = accelerator, file
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}
        self.began = self.written = time.monotonic()
        self.pictures = 0  # of all processes since the last line
        if accelerator.is_main_process:
            file.parent.mkdir(parents=True, exist_ok=True)
            # Behind the last end of a line stands what a killed run began to write.
            lines = file.read_text().split("\n")[:-1] if file.exists() else []
            kept = "".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= begin)
            write_file(file, lambda new: new.write(kept.encode()), overwrite=True)
        if accelerator.log_with:
            accelerator.init_trackers("bokehdepth")

    def add(self, terms: dict[str, torch.Tensor]) -> None:
        for name, value in terms.items():
            value = torch.as_tensor(value).detach().float()
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def write(self, step: int, **numbers: float) -> None:
        means = {name: (self.sums[name] / self.counts[name]).item() for name in self.sums}
        now = time.monotonic()
        speed = self.pictures / max(now - self.written, 1e-9)
        self.sums, self.counts, self.written, self.pictures = {}, {}, now, 0
        self.line(step, {**means, **numbers, "pictures_per_s": speed})

    def line(self, step: int, values: dict[str, float]) -> None:
        if not self.accelerator.is_main_process:
            return
        text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        logger.info("step %d  %s  %.0f s", step, text, time.monotonic() - self.began)
        with self.file.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        self.accelerator.log(values, step=step)

    def samples(self, step: int, samples: Samples, output: Path) -> None:
        path = save_image(output / "samples" / f"step_{step:08d}.png", samples.sheet, overwrite=True)
        logger.info("samples: %s", path)
        self.line(step, samples.numbers)
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                tracker.log_images({"samples": [np.asarray(samples.sheet)]}, step=step)

    def close(self) -> None:
        # Not end_training, which would also end the process group that a next run of this process needs.
        for tracker in self.accelerator.trackers:
            tracker.finish()
