"""Training configurations: one strict dataclass for each stage, read from YAML and changed with `--set key=value`."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

T = TypeVar("T")


@dataclass(frozen=True)
class PoolConfig:
    """A pool of procedural scenes with renders, kept on disk as shards."""

    folder: str
    """Where the shards lie."""
    photos: list[str] = field(default_factory=list)
    """Glob patterns of photos used as textures and backgrounds; empty for procedural textures alone."""
    mattes: list[str] = field(default_factory=list)
    """Glob patterns of RGBA foregrounds; empty for procedural silhouettes alone."""
    hold_out: float = 0.2
    """Share of photos and mattes (by file name) that only the held-out split sees."""
    scenes: int = 4000
    held_out_scenes: int = 192
    size_px: int = 192
    renders: int = 3
    """Renders of each scene, K stratified over (0, 30]."""
    shard: int = 100
    """Scenes in one shard."""
    seed: int = 0


@dataclass(frozen=True)
class Stage1Config:
    """Full training of a small Stage-1 model on procedural scenes."""

    pool: PoolConfig
    output: str
    transformer: dict[str, Any]
    """Arguments of MiniFluxTransformer2DModel."""
    adapter: dict[str, Any]
    """Arguments of BokehAdapter."""
    phases: list[dict[str, Any]]
    """In order: size_px, batch, steps, learning_rate (peak; cosine over the phase to final_rate)."""
    warmup: int = 100
    final_rate: float = 0.1
    """Share of the peak rate that a phase ends with."""
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    ema_decay: float = 0.998
    level_weight: float = 0.3
    """Weight of the supervision of the blend levels by the true disparity offset."""
    log_every: int = 50
    save_every: int = 200
    threads: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Stage2Config:
    """Training of a small Stage-2 model on stacks of procedural scenes."""

    pool: PoolConfig
    output: str
    backbone: dict[str, Any]
    """Arguments of Dinov2Config."""
    model: dict[str, Any]
    """Arguments of BokehDepthAnythingConfig."""
    stack: str = "frames"
    """frames (the pool's stack), sharp (the sharp frame in place of every frame) or none (no stack, no DSFA)."""
    generated: str = ""
    """Folder of the same shards with stacks that Stage-1 made, see train.stacks."""
    generated_share: float = 0.5
    """Share of batches that take their stack from there, where the folder is named."""
    start_from: str = ""
    """Folder of a model to go on from; empty starts from random weights."""
    size_px: int = 140
    batch: int = 8
    steps: int = 900
    learning_rate: float = 1e-3
    warmup: int = 50
    weight_decay: float = 0.05
    grad_clip: float = 1.0
    ema_decay: float = 0.995
    gradient_weight: float = 0.5
    """Weight of the gradient loss on log depth."""
    log_every: int = 50
    save_every: int = 100
    threads: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses an unknown kind of stack."""
        if self.stack not in ("frames", "sharp", "none"):
            raise ValueError(f"stack is {self.stack!r}; wanted frames, sharp or none.")


def build(kind: type[T], values: dict[str, Any], where: str) -> T:
    """Makes a configuration of `kind`; unknown and missing keys are errors that name `where`."""
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; wanted one of {sorted(fields)}.")
    missing = [
        name
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and name not in values
    ]
    if missing:
        raise ValueError(f"{where}: key {missing[0]!r} is missing.")
    if isinstance(values.get("pool"), dict):
        values = {**values, "pool": build(PoolConfig, values["pool"], f"{where}, pool")}
    return kind(**values)


def load(kind: type[T], path: str | Path, changes: list[str]) -> T:
    """Reads a YAML file and applies changes of the form `key=value` or `pool.key=value`, values in YAML."""
    values = yaml.safe_load(Path(path).read_text())
    for change in changes:
        name, separator, text = change.partition("=")
        if not separator:
            raise ValueError(f"--set is {change!r}; wanted key=value.")
        *parents, leaf = name.split(".")
        target = values
        for parent in parents:
            target = target.setdefault(parent, {})
        target[leaf] = yaml.safe_load(text)
    return build(kind, values, str(path))


def parser(description: str) -> argparse.ArgumentParser:
    """The command line that every training script has."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--config", required=True, help="YAML file, see train/configs")
    result.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one value")
    return result
