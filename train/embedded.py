"""Trains the embedded model within a given time: scenes, Stage-1, its stacks, Stage-2 and a control.

`python -m train.embedded --output runs/embedded --workers 14 --stage1-minutes 4 --stage2-minutes 2`

Worker processes render the pool while Stage-1 already learns from the scenes that are there. How many steps fit into
the given minutes is measured before each training begins and written into `<output>/plan.json`; the learning rate
falls over exactly so many; the same command goes on where a run was cut off. The pool stays in memory for both stages,
and Stage-1's stacks are made in batches.
`<output>/model` is what `train.export_mini` puts into the package, `<output>/control` a Stage-2 of the same steps that
has the photo alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bokehdepth.errors import InputError
from bokehdepth.staging import write_file
from train import config, export_mini, loop, stage1, stage2
from train.config import PhaseConfig, Stage1Config, Stage2Config
from train.data import PoolPairs, PoolStacks, ScenePool, shard_path
from train.methods.stage1 import load_stage1
from train.stacks import frames_of_pool

logger = logging.getLogger("train.embedded")
_SHARES = (0.2, 0.3, 0.5)
_PROBES = 6
_OVERHEAD = 1.1  # the optimiser's own work and the average of the weights
_SURE = 0.8  # of the scenes that are expected
_PATIENCE_S = 120.0


def step_seconds(
    cfg: Stage1Config | Stage2Config, network: nn.Module, draw: Callable[..., Any], phase: PhaseConfig
) -> float:
    """Seconds of one step of a phase, drawing included: the median of a few after the first.

    Args:
        cfg: of the run.
        network: on its device; its gradients are cleared.
        draw: makes a batch.
        phase: whose step it is.
    """
    device, times = next(network.parameters()).device, []
    for number in range(1 + _PROBES):
        begun = time.perf_counter()
        batch = send_to_device(draw(number, phase, np.arange(phase.batch)), device)
        attention = sdpa_kernel(SDPBackend.MATH) if cfg.loop.plain_attention else nullcontext()
        with torch.autocast(device.type, torch.bfloat16, enabled=cfg.loop.precision == "bf16"), attention:
            loss = network(batch)["loss"]
        loss.backward()
        loss.item()  # waits for the device
        times.append(time.perf_counter() - begun)
        network.zero_grad(set_to_none=True)
    return float(np.median(times[1:]))


def plan_stage1(cfg: Stage1Config, pool: ScenePool, seconds: float, scenes_per_s: float) -> Stage1Config:
    """The configuration with as many steps in each phase as its share of the seconds allows.

    Args:
        cfg: with three phases.
        pool: training scenes, on the device of the run.
        seconds: of all phases together.
        scenes_per_s: by which the pool grows; a phase draws from what is going to be there when it begins.
    """
    if len(cfg.phases) != len(_SHARES):
        raise InputError(f"phases are {len(cfg.phases)}, wanted {len(_SHARES)}, whose shares of the time are fixed.")
    torch.manual_seed(cfg.seed)
    network, _ = stage1.build_network(cfg, None)
    network = network.to(pool.device).train()
    here, elapsed, phases = pool.loaded, 0.0, []
    probed = [dataclasses.replace(phase, scenes=here) for phase in cfg.phases]
    draw = PoolPairs(cfg, pool.device, pool)
    each = [step_seconds(cfg, network, draw, phase) * _OVERHEAD for phase in probed]
    for phase, share, duration in zip(cfg.phases, _SHARES, each, strict=True):
        steps = max(1, round(share * seconds / duration))
        scenes = min(round(here + _SURE * scenes_per_s * elapsed), len(pool))
        elapsed += steps * duration
        words = (phase.size_px, phase.batch, duration, steps, scenes)
        logger.info("%d px, batch %d: %.4f s a step, %d steps, %d scenes", *words)
        phases.append(dataclasses.replace(phase, steps=steps, scenes=scenes))
    return dataclasses.replace(cfg, phases=phases)


def plan_stage2(cfg: Stage2Config, pools: tuple[ScenePool, ScenePool], seconds: float) -> Stage2Config:
    """The configuration with as many steps as the seconds allow.

    Args:
        cfg: of the run.
        pools: training scenes with the renderer's and with Stage-1's stacks, on the device of the run.
        seconds: of the run.
    """
    torch.manual_seed(cfg.seed)
    device = pools[0].device
    network = stage2.Stage2Network(stage2.build_model(cfg), cfg).to(device).train()
    phase = PhaseConfig(cfg.size_px, cfg.batch, 1, cfg.learning_rate)
    each = step_seconds(cfg, network, PoolStacks(cfg, device, *pools), phase) * _OVERHEAD
    steps = max(1, round(seconds / each))
    logger.info("depth, %d px, batch %d: %.4f s a step, %d steps", cfg.size_px, cfg.batch, each, steps)
    return dataclasses.replace(cfg, steps=steps)


def train(
    cfg1: Stage1Config,
    cfg2: Stage2Config,
    output: Path,
    minutes: tuple[float, float],
    already: int = 0,
    first_scenes: int = 3000,
    stacks: int = 8000,
) -> dict[str, Any]:
    """Trains both stages and the control on a pool that may still be rendered; goes on where a run was cut off.

    Args:
        cfg1: of Stage-1, with three phases.
        cfg2: of Stage-2, with the stack stage1.
        output: folder of the runs.
        minutes: of Stage-1 and of Stage-2; the control takes its own on top, less than Stage-2's.
        already: scenes that were rendered before, which say nothing of how fast others follow.
        first_scenes: how many are waited for before Stage-1 begins.
        stacks: scenes that get Stage-1's stacks.

    Returns:
        The plan: phases and steps of all runs, scenes and stacks, as `plan.json` in the output keeps it.
    """
    device, began, seconds = loop.start(cfg1).device, time.monotonic(), {}
    saved = output / "plan.json"
    plan = json.loads(saved.read_text()) if saved.exists() else {}

    def done(part: str, **planned: Any) -> None:
        seconds[part] = round(time.monotonic() - began - sum(seconds.values()), 1)
        logger.info("%s took %.1f s", part, seconds[part])
        spent = plan.setdefault("seconds", {})
        spent[part] = round(spent.get(part, 0.0) + seconds[part], 1)
        plan.update(planned)
        write_file(saved, lambda file: file.write(json.dumps(plan, indent=2).encode()), overwrite=True)

    cfg1 = dataclasses.replace(cfg1, output=str(output / "stage1"))
    cfg2 = dataclasses.replace(cfg2, output=str(output / "stage2"))
    growing = ScenePool(cfg1.pool, "train", device, _PATIENCE_S)
    growing.need(min(first_scenes, len(growing)))
    done("first scenes")
    if "phases" in plan:
        cfg1 = dataclasses.replace(cfg1, phases=[PhaseConfig(**phase) for phase in plan["phases"]])
    else:
        rate = max(0.0, growing.loaded - already) / (time.monotonic() - began)
        cfg1 = plan_stage1(cfg1, growing, 60 * minutes[0], rate)
    done("plan of Stage-1", phases=[dataclasses.asdict(phase) for phase in cfg1.phases])
    model = stage1.run(cfg1, "latest", growing)
    done("Stage-1")
    scenes = plan.get("scenes", growing.loaded)
    growing.need(scenes)
    pool = growing.first(scenes)
    generated = pool.first(stacks, frames_of_pool(load_stage1(str(model), str(device)), pool, stacks))
    done("stacks of Stage-1", scenes=len(pool))
    if "stage2_steps" in plan:
        cfg2 = dataclasses.replace(cfg2, steps=plan["stage2_steps"])
    else:
        cfg2 = plan_stage2(cfg2, (pool, generated), 60 * minutes[1])
    done("plan of Stage-2", stage2_steps=cfg2.steps)
    depth = stage2.run(cfg2, "latest", (pool, generated))
    export_mini.export(model, depth, output / "model", side_px=cfg2.size_px)
    done("Stage-2")
    control = dataclasses.replace(cfg2, stack="none", output=str(output / "control"))
    stage2.run(control, "latest", (pool, None))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    done("control", device=name)
    return plan


def main() -> None:
    """Trains the embedded model on one machine within a given time."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--stage1", default="train/configs/mini_stage1.yaml", metavar="FILE", help="configuration")
    parser.add_argument("--stage2", default="train/configs/mini_stage2.yaml", metavar="FILE", help="configuration")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a value of Stage-1")
    parser.add_argument("--set2", action="append", default=[], metavar="KEY=VALUE", help="change a value of Stage-2")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--workers", type=int, required=True, help="processes that render scenes")
    parser.add_argument("--stage1-minutes", type=float, required=True)
    parser.add_argument("--stage2-minutes", type=float, required=True)
    parser.add_argument("--first-scenes", type=int, default=3000, help="are waited for before Stage-1 begins")
    parser.add_argument("--stacks", type=int, default=8000, help="scenes that get Stage-1's stacks")
    arguments = parser.parse_args()
    loop.set_up_logging()
    cfg1 = config.load(Stage1Config, arguments.stage1, arguments.set)
    cfg2 = config.load(Stage2Config, arguments.stage2, arguments.set2)
    if cfg1.pool != cfg2.pool:
        raise InputError(f"pool of {arguments.stage2} is {cfg2.pool}, wanted that of {arguments.stage1}: {cfg1.pool}.")
    if cfg2.stack != "stage1":
        raise InputError(f"stack of {arguments.stage2} is {cfg2.stack!r}, wanted stage1.")
    changes = [part for change in arguments.set for part in ("--set", change)]
    command = ["-m", "train.data", "--config", arguments.stage1, *changes, "--workers", str(arguments.workers)]
    shards = -(-cfg1.pool.scenes // cfg1.pool.shard)
    already = cfg1.pool.shard * sum(shard_path(cfg1.pool, "train", index).exists() for index in range(shards))
    renderer = subprocess.Popen([sys.executable, *command], start_new_session=True)
    try:
        minutes = (arguments.stage1_minutes, arguments.stage2_minutes)
        plan = train(cfg1, cfg2, arguments.output, minutes, already, arguments.first_scenes, arguments.stacks)
    finally:
        os.killpg(renderer.pid, signal.SIGTERM)  # its workers with it
    logger.info("%s", json.dumps(plan))


if __name__ == "__main__":
    with config.one_line_errors():
        main()
