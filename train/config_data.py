"""What a training reads: the parts of a configuration that name data and its augmentation, and checks of values."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from bokehdepth.errors import InputError


def among(name: str, value: Any, wanted: tuple[Any, ...]) -> None:
    """Raises InputError unless a value is among the wanted ones."""
    if value not in wanted:
        raise InputError(f"{name} is {value!r}; wanted one of {', '.join(map(str, wanted))}.")


def within(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raises InputError unless a value is finite and within two bounds."""
    if not (math.isfinite(value) and low <= value <= high):
        upper = "" if high == math.inf else f" and at most {high:g}"
        raise InputError(f"{name} is {value!r}; wanted a finite number of at least {low:g}{upper}.")


@dataclass(frozen=True)
class PoolConfig:
    """A pool of procedural scenes with renders, kept on disk as shards."""

    folder: str
    """Where the shards lie."""
    photos: list[str] = field(default_factory=list)
    """Glob patterns of photos used as textures and backgrounds; empty for procedural textures alone."""
    mattes: list[str] = field(default_factory=list)
    """Glob patterns of RGBA foregrounds; empty for procedural silhouettes alone."""
    backdrops: list[str] = field(default_factory=list)
    """Glob patterns of photos that are seen whole behind a subject; empty: the photos."""
    portraits: list[str] = field(default_factory=list)
    """Glob patterns of RGBA files, whole photographs with their subject as alpha (`cut_outs` of datasets_scripts)."""
    hold_out: float = 0.2
    """Share of photos and mattes (by file name) that only the held-out split sees."""
    scenes: int = 4000
    held_out_scenes: int = 192
    size_px: int = 192
    renders: int = 3
    """Renders of each scene, K stratified over (0, 30]; 0 for a pool that teaches depth alone."""
    shard: int = 100
    """Scenes in one shard."""
    seed: int = 0
    render_missing: bool = False
    """Let a training render the shards that are missing; sensible for a few scenes, see train.data for many."""
    kinds: dict[str, float] | None = None
    """Weights of the kinds of scenes (`generator.KIND_WEIGHTS`, or photograph); None takes these."""

    def __post_init__(self) -> None:
        """Checks the numbers."""
        within("pool.renders", self.renders, 0)


@dataclass(frozen=True)
class ManifestConfig:
    """Rows of manifest files (bokehdepth.manifest) as training data."""

    files: list[str]
    """Manifest files; environment variables are expanded."""
    splits: list[str] = field(default_factory=lambda: ["train"])
    """Rows of these splits; rows without a split count as train."""
    renders: int = 2
    """Stage-1: renders of one text-to-image group, beside its sharp photo."""
    min_strength: float = 1.0
    """Smallest K that is rendered on the fly."""
    rendered_share: float = 0.5
    """Stage-1: share of rendered samples where a row has both depth and a captured target."""

    def __post_init__(self) -> None:
        """Checks the numbers."""
        if not self.files:
            raise InputError("files is []; wanted at least one manifest.")
        within("renders", self.renders, 1)
        within("min_strength", self.min_strength, 0.0, 30.0)
        within("rendered_share", self.rendered_share, 0.0, 1.0)


@dataclass(frozen=True)
class PhotosConfig:
    """Rows of manifests that are kept in memory and mixed with a pool's scenes: the embedded model's data."""

    files: list[str]
    """Manifest files (datasets_scripts.real_photos); environment variables are expanded."""
    splits: list[str] = field(default_factory=lambda: ["train"])
    weights: dict[str, float] = field(default_factory=dict)
    """How often a data set is drawn; one that is not named weighs as many as it has photographs, 0 leaves it out."""
    scene_share: float = 0.2
    """Share of samples that are procedural scenes."""
    longer_px: int = 512
    """Longer side at which photographs are kept."""
    zoom: float = 0.5
    """Smallest side of a random crop over the largest that fits; its focal length follows."""
    zoom_share: float = 0.8
    """Share of samples that are cropped so."""
    squeeze: float = 0.08
    """Standard deviation of the log by which a crop's aspect differs from the picture that it becomes."""
    upright_share: float = 0.25
    """Share of steps whose pictures are upright."""

    def __post_init__(self) -> None:
        """Checks the numbers."""
        within("photos.longer_px", self.longer_px, 64)
        within("photos.zoom", self.zoom, 0.1, 1.0)
        within("photos.squeeze", self.squeeze, 0.0, 0.5)
        for name in ("scene_share", "zoom_share", "upright_share"):
            within(f"photos.{name}", getattr(self, name), 0.0, 1.0)
        for name, weight in self.weights.items():
            within(f"photos.weights {name}", weight, 0.0)


@dataclass(frozen=True)
class PictureAugmentConfig:
    """Augmentation of pictures: of a pool's for Stage-1, of all for Stage-2. A photo and its frames alike."""

    mirror: bool = True
    gain: float = 0.25
    """Standard deviation of the log exposure."""
    white_balance: float = 0.06
    """Standard deviation of the log gain of each channel."""
    hue: float = 0.0
    """Standard deviation of the rotation of hues, in radians."""
    chroma: float = 0.0
    """Standard deviation of the log factor on chroma."""

    def __post_init__(self) -> None:
        """Checks the numbers."""
        for name in ("gain", "white_balance", "hue", "chroma"):
            within(f"augment.{name}", getattr(self, name), 0.0)


@dataclass(frozen=True)
class AugmentConfig(PictureAugmentConfig):
    """Augmentation of Stage-2; all frames of a photo alike."""

    frames: int | None = None
    """Frames of the stack that a sample keeps, chosen at random and in random order; None keeps all, ascending."""
    strength_jitter: float = 0.0
    """Standard deviation of the log of the factor on the K that the network is told."""
    crop: float = 1.0
    """Smallest side of the random crop over the photo's shorter side; K and intrinsics follow."""

    def __post_init__(self) -> None:
        """Checks the numbers."""
        super().__post_init__()
        within("augment.strength_jitter", self.strength_jitter, 0.0)
        if self.frames is not None:
            within("augment.frames", self.frames, 1)
        within("augment.crop", self.crop, 0.1, 1.0)
