"""Trains Stage-2: `python -m train.stage2 --config FILE`, or `accelerate launch -m train.stage2 --config FILE`.

A depth model with DSFA on bokeh stacks, by the base's published recipe: scale-invariant log loss, and a gradient loss
on log depth. `stack` says what stands in the stack; sharp and none are the controls, which draw the same rows, the
same crops and the same augmentation for as many steps. `<output>/model` holds the averaged weights.
"""

from __future__ import annotations

import inspect
import json
import logging
import math
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from PIL import Image
from torch import nn
from transformers import AutoModelForDepthEstimation, DepthAnythingForDepthEstimation, Dinov2Config
from transformers.modeling_utils import PreTrainedModel

import bokehdepth.modeling_bokehdepth_unidepth  # noqa: F401 - registers its classes with transformers
from bokehdepth.errors import InputError
from bokehdepth.modeling_bokehdepth import BokehDepthAnythingConfig, BokehDepthAnythingForDepthEstimation
from bokehdepth.processing_bokehdepth import IMAGENET_MEAN, IMAGENET_STD
from bokehdepth.visualization import contact_sheet, depth_preview
from train import config, loop, losses, publish
from train.config import PhaseConfig, Stage2Config
from train.data import PoolStacks, ScenePool, fill_pool
from train.rows import RowStacks

logger = logging.getLogger("train.stage2")
_HEADS = ("dsfa.", "neck.", "head.", "pixel_decoder.")
_START_M = 3.0


def build_model(cfg: Stage2Config) -> PreTrainedModel:
    """The model that a configuration names: loaded, or with random weights; what is not trained is frozen.

    Raises:
        InputError: it predicts no metric depth, or has no DSFA.
    """
    fields = dict(cfg.base.model)
    if cfg.base.path:
        options = {"revision": cfg.base.revision, "dtype": torch.float32}
        metric = {k: fields.pop(k) for k in ("depth_estimation_type", "max_depth") if k in fields}
        model = AutoModelForDepthEstimation.from_pretrained(cfg.base.path, **options, **metric)
        plain = isinstance(model, DepthAnythingForDepthEstimation) and not hasattr(model, "dsfa")
        if plain:
            model = BokehDepthAnythingForDepthEstimation.from_base(model, **fields)
        elif fields:
            raise InputError(f"base.model is {fields} over {cfg.base.path!r}, which has DSFA already; wanted none.")
    else:
        backbone = Dinov2Config(reshape_hidden_states=False, apply_layernorm=True, **cfg.base.backbone)
        fields = {"depth_estimation_type": "metric", **fields}
        model = BokehDepthAnythingForDepthEstimation(BokehDepthAnythingConfig(backbone_config=backbone, **fields))
        start_afresh(model)
    if getattr(model.config, "depth_estimation_type", "metric") != "metric":
        raise InputError(f"base.path is {cfg.base.path!r}, which predicts relative depth; wanted metric depth.")
    if not hasattr(model, "dsfa"):
        raise InputError(f"base.path is {cfg.base.path!r}, which is no model with DSFA; wanted one of the house.")
    kept = {"dsfa": _HEADS[:1], "head": _HEADS, "all": ("",)}[cfg.base.trainable]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(kept))
    return model


@torch.no_grad()
def start_afresh(model: BokehDepthAnythingForDepthEstimation) -> None:
    """Random weights of a decoder that is to be trained from nothing.

    transformers draws each with a standard deviation of 0.02, whatever the width: nine narrow layers in a row then
    keep a thousandth of what the encoder says, and the first hundreds of steps go into growing them. Here each layer
    keeps the variance (He et al. 2015), residual branches begin small, and the last bias is that of a few metres:
    half of `max_depth`, a sigmoid's own start, is far from every scene. By chance a network can begin ten times nearer
    or farther; steps of Adam correct that within the first hundred.

    Args:
        model: whose neck and head are drawn again; the encoder and DSFA stay.
    """
    last = model.head.conv3
    for name, layer in [*model.neck.named_modules(), *model.head.named_modules()]:
        if not isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            continue
        if isinstance(layer, nn.ConvTranspose2d):  # as far apart as wide: each output sees one input
            nn.init.normal_(layer.weight, std=layer.in_channels**-0.5)
        else:
            linear = layer is last or "projection" in name
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear" if linear else "relu")
        if name.endswith("convolution2"):
            layer.weight.mul_(0.1)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    last.weight.mul_(0.5)
    share = _START_M / model.config.max_depth
    nn.init.constant_(last.bias, math.log(share / (1 - share)))


def predict(model: PreTrainedModel, batch: dict[str, torch.Tensor], stack: str) -> torch.Tensor:
    """Depth (B, H, W) in metres of a batch.

    Args:
        model: the network.
        batch: image (B, 3, H, W) and bokeh (B, F, 3, H, W) in [0, 1], strength (B, F), and intrinsics (B, 3, 3)
            where they are known, for models that take them.
        stack: frames (the batch's), sharp (the photo in place of every frame) or none (the photo alone).
    """
    device = batch["image"].device
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    image, extra = (batch["image"] - mean) / std, {}
    if "intrinsics" in batch and "intrinsics" in inspect.signature(model.forward).parameters:
        extra["intrinsics"] = batch["intrinsics"]
    if stack == "none":
        return model(pixel_values=image, **extra).predicted_depth
    frames = (batch["bokeh"] - mean) / std if stack == "frames" else image[:, None].expand_as(batch["bokeh"])
    strengths = torch.cat([torch.zeros(len(image), 1, device=device), batch["strength"]], dim=1)
    pixels = torch.cat([image[:, None], frames], dim=1)
    return model(pixel_values=pixels, bokeh_strengths=strengths, **extra).predicted_depth


class Stage2Network(losses.SummedNetwork):
    """A depth model and its loss.

    Args:
        model: with DSFA.
        cfg: of the run.
    """

    def __init__(self, model: PreTrainedModel, cfg: Stage2Config) -> None:
        super().__init__()
        self.model, self.cfg = model, cfg
        self.stack = cfg.stack if cfg.stack in ("sharp", "none") else "frames"

    def counts(self, batch: dict[str, Any]) -> losses.Sums:
        """Pixels whose depth is known, and pictures that have any."""
        known = batch["valid"].flatten(1).sum(1)
        return {"pictures": (known > 0).sum().float(), "pixels": known.sum().float()}

    def compared(self, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Predicted and true depth, and where that is known, (B, H, W), of a batch of `PoolStacks` or `RowStacks`."""
        lone = batch.get("lone", torch.zeros(len(batch["image"]), dtype=torch.bool))
        order, stacks = lone.long().argsort(stable=True), int((~lone).sum())  # those with a stack first
        batch = {name: value[order.to(value.device)] for name, value in batch.items()}
        with_stack, alone = ({name: value[part] for name, value in batch.items()} for part in
                             (slice(stacks), slice(stacks, None)))  # fmt: skip
        kinds = [(with_stack, self.stack), (alone, "none")]
        depth = torch.cat([predict(self.model, part, kind).float() for part, kind in kinds if len(part["image"])])
        if not stacks and self.stack != "none":  # data parallel training wants every trained tensor in every part
            depth = depth + 0 * sum(p.sum() for p in self.model.dsfa.parameters() if p.requires_grad)
        return depth.clamp(min=self.cfg.min_depth_m), batch["depth_m"][:, 0], batch["valid"][:, 0]

    def sums(self, batch: dict[str, Any]) -> losses.Sums:
        """Sums of all terms over a batch."""
        depth, target, valid = self.compared(batch)
        known, truth = depth[valid], target[valid]  # picked first: a quotient by 0 would have no gradient
        return {
            **self.counts(batch),
            "silog": losses.scale_invariant_log_loss(depth, target, self.cfg.variance_share, valid, "sum"),
            "gradient": losses.log_gradient_loss(depth, target, valid=valid, reduction="sum"),
            "abs_rel": ((known - truth).abs() / truth).sum(),
        }

    def terms(self, sums: losses.Sums) -> dict[str, torch.Tensor]:
        """The loss and its parts, and AbsRel."""
        pictures, pixels = (sums[name].clamp(min=1) for name in ("pictures", "pixels"))
        silog, gradient, error = sums["silog"] / pictures, sums["gradient"] / pictures, sums["abs_rel"] / pixels
        loss = silog + self.cfg.gradient_weight * gradient + self.cfg.relative_weight * error
        return {"loss": loss, "silog": silog, "gradient": gradient, "abs_rel": error.detach()}


@torch.no_grad()
def look(cfg: Stage2Config, network: Stage2Network, source: PoolStacks | RowStacks) -> loop.Samples:
    """True and predicted depth of the first photos, and what the prediction owes to the stack."""
    device = next(network.parameters()).device
    batch = {name: value.to(device) for name, value in source.looks(cfg.loop.samples).items()}
    network.eval()
    with torch.autocast(device.type, torch.bfloat16, enabled=cfg.loop.precision == "bf16"):
        depth = predict(network.model, batch, network.stack).float()
        reversed_stack = {**batch, "bokeh": batch["bokeh"].flip(1)}
        other = predict(network.model, reversed_stack, network.stack).float()
    network.train()
    pictures, labels = [], []
    for photo, truth, guess in zip(batch["image"], batch["depth_m"][:, 0], depth, strict=True):
        array = (photo.permute(1, 2, 0).cpu().numpy() * 255).round().astype("uint8")
        pictures.append(Image.fromarray(array))
        pictures += [depth_preview(x.cpu().numpy()) for x in (truth, guess)]
        labels += ["photo", "true depth", "predicted depth"]
    # Frames whose K are exchanged contradict the depth; a model that reads them answers differently.
    response = ((other - depth).abs() / depth).mean().item()
    return loop.Samples(contact_sheet(pictures, labels, columns=3), {"stack_response": response})


def export(cfg: Stage2Config, model: PreTrainedModel, folder: Path) -> None:
    """Writes the model, and what size it works at, in the form that the depth-estimation task reads."""
    model.save_pretrained(folder)
    settings = {
        "image_processor_type": "DPTImageProcessorPil",
        "size": {"height": cfg.size_px, "width": cfg.size_px},
        "keep_aspect_ratio": True,
        "ensure_multiple_of": model.config.patch_size,
        "resample": 3,  # bicubic, as the pipeline
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_pad": False,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2))


def run(
    config: Stage2Config,
    resume: str | Path | None = None,
    pools: tuple[ScenePool, ScenePool | None] | None = None,
) -> Path:
    """Trains Stage-2.

    Args:
        config: what to train, on what, and how.
        resume: "latest", the folder of a checkpoint, or None for a run that begins.
        pools: training scenes that are in memory already, so that both stages can share them: with rendered stacks,
            and with Stage-1's where there are any; None loads them.

    Returns:
        Folder of the saved model, `<output>/model`.

    Raises:
        InputError: the configuration does not fit its data, base or checkpoint.
        RuntimeError: the loss is not finite.
    """
    accelerator = loop.start(config)
    if config.pool is not None:
        fill_pool(config.pool, accelerator.process_index, accelerator.num_processes, accelerator.wait_for_everyone)
    if config.manifests is None:
        source = PoolStacks(config, accelerator.device, *(pools or ()))
    else:
        source = RowStacks(config)
    model = build_model(config)
    if config.size_px % model.config.patch_size:
        raise InputError(f"size_px is {config.size_px}; wanted a multiple of the patch, {model.config.patch_size} px.")
    if config.loop.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    network = Stage2Network(model, config)
    phase = PhaseConfig(config.size_px, config.batch, config.steps, config.learning_rate)
    stage = loop.Stage(
        network=network,
        draw=source,
        plan=[phase],
        export=lambda folder: export(config, model, folder),
        sample=lambda: look(config, network, source),
        held_out=lambda: source.held_out(phase),
        is_head=lambda name: name.removeprefix("model.").startswith(_HEADS),
    )
    return loop.fit(config, accelerator, stage, resume)


def main() -> None:
    """Trains Stage-2."""
    arguments = config.trainer_parser(main.__doc__).parse_args()
    loop.set_up_logging()
    cfg = config.load(Stage2Config, arguments.config, arguments.set)
    if arguments.push_to_hub:
        publish.check(cfg)
    model = run(cfg, arguments.resume)
    if arguments.push_to_hub and PartialState().is_main_process:
        publish.push(cfg, model, arguments.push_to_hub, config.command("train.stage2", arguments))


if __name__ == "__main__":
    with config.one_line_errors():
        main()
