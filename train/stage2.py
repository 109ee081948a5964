"""Trains Stage-2: `python -m train.stage2 --config FILE`, or `accelerate launch -m train.stage2 --config FILE`.

A depth model with DSFA on bokeh stacks: scale-invariant log loss, a gradient loss on log depth, and for UniDepth what
its authors add; each configuration names where it differs from the published recipe. `stack` says what stands in the
stack; sharp and none are the controls, which draw the same rows, the same crops and the same augmentation for as many
steps. `<output>/model` holds the averaged weights.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import AutoConfig, AutoModelForDepthEstimation, DepthAnythingForDepthEstimation, Dinov2Config
from transformers.modeling_outputs import DepthEstimatorOutput
from transformers.modeling_utils import PreTrainedModel

import bokehdepth.modeling_bokehdepth_unidepth  # noqa: F401 - registers its classes with transformers
from bokehdepth import modeling_bokehdepth_efficientnet as efficientnet
from bokehdepth.errors import InputError
from bokehdepth.files.pictures import contact_sheet, depth_preview
from bokehdepth.hub import load_pipeline
from bokehdepth.hub.folder import write_image_processor
from bokehdepth.modeling_bokehdepth import BokehDepthAnythingConfig, BokehDepthAnythingForDepthEstimation
from bokehdepth.modeling_bokehdepth_unidepth import BokehDepthUniDepthConfig
from bokehdepth.processing_bokehdepth import IMAGENET_MEAN, IMAGENET_STD
from train import config, loop, losses, unidepth_losses
from train.config import PhaseConfig, Stage2Config
from train.data import PoolStacks, ScenePool, fill_pool
from train.depth_photos import DepthPhotos, frames_of
from train.encoders import load_imagenet
from train.rows import RowStacks

logger = logging.getLogger("train.stage2")
_HEADS = ("dsfa.", "neck.", "head.", "pixel_decoder.", "fusion.", "context.", "camera.", "guide.")
_CAMERA = ("pixel_decoder.camera_layer.", "pixel_decoder.camera_token_adapter.")
_START_M = 3.0


def build_model(cfg: Stage2Config) -> PreTrainedModel:
    """The model that a configuration names: loaded, or with random weights; what is not trained is frozen.

    Raises:
        InputError: it predicts no metric depth, or has no DSFA.
    """
    fields = dict(cfg.base.model)
    if cfg.base.path:
        model = _load_base(cfg, fields)
    elif not cfg.base.backbone:
        config = efficientnet.BokehDepthEfficientNetConfig(**fields)
        model = efficientnet.BokehDepthEfficientNetForDepthEstimation(config)
        if cfg.base.imagenet:
            load_imagenet(model.encoder)
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


def _load_base(cfg: Stage2Config, fields: dict[str, Any]) -> PreTrainedModel:
    """The model of `base.path`, with DSFA where it has none yet."""
    path, options = cfg.base.path, {"revision": cfg.base.revision}
    known = AutoConfig.from_pretrained(path, **options)
    metric = {k: fields.pop(k) for k in ("depth_estimation_type", "max_depth") if k in fields}
    relative = getattr(known, "depth_estimation_type", "metric") == "relative"
    if relative and metric.get("depth_estimation_type") == "metric" and not cfg.base.fresh_head:
        raise InputError(
            f"`base.fresh_head` must be true to make a metric model of {path!r}, whose head is one of relative depth, "
            "got false."
        )
    if isinstance(known, BokehDepthUniDepthConfig) and not known.dsfa_levels:
        # One without DSFA is an encoder and a decoder of the same class: its configuration gets the blocks.
        metric, fields = metric | {"dsfa_levels": [0, 1, 2, 3], "fresh_parts": ["dsfa"]} | fields, {}
    model = AutoModelForDepthEstimation.from_pretrained(path, dtype=torch.float32, **options, **metric)
    plain = isinstance(model, DepthAnythingForDepthEstimation) and not hasattr(model, "dsfa")
    if plain:
        model = BokehDepthAnythingForDepthEstimation.from_base(model, **fields)
    elif fields:
        raise InputError(f"base.model is {fields} over {path!r}, which has DSFA already; wanted none.")
    if cfg.base.fresh_head:
        if not hasattr(model, "head"):
            raise InputError(f"`base.fresh_head` must be false for {path!r}, which is no Depth Anything, got true.")
        for layer in [*model.neck.modules(), *model.head.modules()]:
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
    return model


def prepare_camera(cfg: Stage2Config, model: PreTrainedModel, lacking: str | None) -> None:
    """Sees to it that nothing but its own loss trains the head that predicts the camera.

    Without that loss the head is frozen, and the depth for a predicted camera has no gradient through that.

    Args:
        cfg: of the run.
        model: any; one without a camera head is left as it is.
        lacking: name of a row without intrinsics, or None where all have them.

    Raises:
        InputError: losses of camera or confidence are weighed without such a head, or the camera's without
            intrinsics.
    """
    if not hasattr(model, "pixel_decoder"):
        for name in ("camera_weight", "confidence_weight"):
            if value := getattr(cfg, name):
                raise InputError(f"`{name}` must be 0 for a base other than UniDepth, got {value:g}.")
        return
    if cfg.camera_weight:
        if lacking is not None:
            raise InputError(
                f"`camera_weight` must be 0 where intrinsics are missing ({lacking} has none), got "
                f"{cfg.camera_weight:g}; at 0 the camera head is left as it is."
            )
        return
    for name, parameter in model.named_parameters():
        if name.startswith(_CAMERA):
            parameter.requires_grad_(False)
    model.pixel_decoder.camera_layer.register_forward_hook(lambda module, inputs, camera: camera.detach())


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


def _colours(model: PreTrainedModel) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and deviation of the colours that a model is fed."""
    return getattr(model.config, "image_mean", IMAGENET_MEAN), getattr(model.config, "image_std", IMAGENET_STD)


def predict(model: PreTrainedModel, batch: dict[str, torch.Tensor], stack: str) -> torch.Tensor:
    """Depth (B, H, W) in metres of a batch; arguments as of `predict_all`."""
    return predict_all(model, batch, stack).predicted_depth


def predict_all(model: PreTrainedModel, batch: dict[str, torch.Tensor], stack: str) -> DepthEstimatorOutput:
    """All that a model predicts of a batch.

    Args:
        model: the network.
        batch: image (B, 3, H, W) and bokeh (B, F, 3, H, W) in [0, 1], strength (B, F), and intrinsics (B, 3, 3)
            where they are known, for models that take them.
        stack: frames (the batch's), sharp (the photo in place of every frame) or none (the photo alone).
    """
    device = batch["image"].device
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in _colours(model))
    image, extra = (batch["image"] - mean) / std, {}
    if "intrinsics" in batch and "intrinsics" in inspect.signature(model.forward).parameters:
        extra["intrinsics"] = batch["intrinsics"]
    if stack == "none":
        return model(pixel_values=image, **extra)
    frames = (batch["bokeh"] - mean) / std if stack == "frames" else image[:, None].expand_as(batch["bokeh"])
    strengths = torch.cat([torch.zeros(len(image), 1, device=device), batch["strength"]], dim=1)
    pixels = torch.cat([image[:, None], frames], dim=1)
    return model(pixel_values=pixels, bokeh_strengths=strengths, **extra)


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
        """Pictures; pixels whose depth is known, and pictures and pools of pictures that have any."""
        known = batch["valid"].flatten(1).sum(1).float()
        pools = losses.pooled(known[:, None], self.cfg.pooled_pictures).flatten(1).any(1).sum().float()
        return {
            "all": torch.tensor(float(len(known)), device=known.device),
            "pictures": (known > 0).sum().float(),
            "pools": pools,
            "pixels": known.sum(),
        }

    def compared(self, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Predicted and true depth, and where that is known, (B, H, W), of a batch of `PoolStacks` or `RowStacks`."""
        depth = self._predicted(batch)["predicted_depth"].clamp(min=self.cfg.min_depth_m)
        return depth, batch["depth_m"][:, 0], batch["valid"][:, 0]

    def _predicted(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """What the model predicts of a batch, in float32, by the names of its output."""
        lone = batch.get("lone", torch.zeros(len(batch["image"]), dtype=torch.bool))
        order, alone = (~lone).long().argsort(stable=True), int(lone.sum())  # those without a stack first
        # Where the camera is to be learned, depth is that of the predicted one, as in the published training.
        hidden = {"intrinsics"} if self.cfg.camera_weight else set()
        seen = {name: value[order.to(value.device)] for name, value in batch.items() if name not in hidden}
        parts = (slice(alone), "none"), (slice(alone, None), self.stack)
        found = [
            predict_all(self.model, {name: value[part] for name, value in seen.items()}, kind)
            for part, kind in parts
            if len(seen["image"][part])
        ]
        names = [name for name in ("predicted_depth", "intrinsics", "confidence") if found[0].get(name) is not None]
        result = {name: torch.cat([output[name].float() for output in found]) for name in names}
        if alone == len(lone) and self.stack != "none":
            # Data parallel training wants every trained tensor in every part.
            idle = 0 * sum(p.sum() for p in self.model.dsfa.parameters() if p.requires_grad)
            result["predicted_depth"] = result["predicted_depth"] + idle
        return {name: value[order.argsort().to(value.device)] for name, value in result.items()}

    def sums(self, batch: dict[str, Any]) -> losses.Sums:
        """Sums of all terms over a batch."""
        cfg, found = self.cfg, self._predicted(batch)
        depth = found["predicted_depth"].clamp(min=cfg.min_depth_m)
        target, valid = batch["depth_m"][:, 0], batch["valid"][:, 0]
        known, truth = depth[valid], target[valid]  # picked first: a quotient by 0 would have no gradient
        share, pooled = cfg.variance_share, cfg.pooled_pictures
        result = {
            **self.counts(batch),
            "silog": losses.scale_invariant_log_loss(depth, target, share, valid, "sum", pooled),
            "gradient": losses.log_gradient_loss(depth, target, valid=valid, reduction="sum"),
            "abs_rel": ((known - truth).abs() / truth).sum(),
        }
        with torch.autocast(depth.device.type, enabled=False):
            counted = valid.flatten(1).any(1)
            if cfg.edge_weight:
                edge = unidepth_losses.edge_guided_error(depth, target, valid, batch["image"])
                result["edge"] = edge[counted].sum()
            if cfg.confidence_weight:
                error = unidepth_losses.confidence_error(found["confidence"], depth, target, valid)
                result["confidence"] = error[counted].sum()
            if cfg.camera_weight:
                size = depth.shape[-2:]
                result["camera"] = unidepth_losses.ray_error(found["intrinsics"], batch["intrinsics"], *size).sum()
        return result

    def terms(self, sums: losses.Sums) -> dict[str, torch.Tensor]:
        """The loss and its parts, and AbsRel."""
        cfg, counts = self.cfg, {"silog": "pools", "abs_rel": "pixels", "camera": "all"}
        names = ("silog", "gradient", "abs_rel", "edge", "camera", "confidence")
        parts = {n: sums[n] / sums[counts.get(n, "pictures")].clamp(min=1) for n in names if n in sums}
        weights = {
            "silog": 1.0,
            "gradient": cfg.gradient_weight,
            "abs_rel": cfg.relative_weight,
            "edge": cfg.edge_weight,
            "camera": cfg.camera_weight,
            "confidence": cfg.confidence_weight,
        }
        loss = sum(weights[name] * value for name, value in parts.items())
        return {"loss": loss, **parts, "abs_rel": parts["abs_rel"].detach()}


class DepthPhotosNetwork(Stage2Network):
    """A depth model that knows cameras, with its loss on batches of `DepthPhotos`: every picture counts alike."""

    def counts(self, batch: dict[str, Any]) -> losses.Sums:
        """How many pictures there are."""
        return {"pictures": torch.tensor(float(len(batch["image"])))}

    def sums(self, batch: dict[str, Any]) -> losses.Sums:
        """Sums of all terms over a batch; depth is that of the true focal length where it is known."""
        predicted, focal = self._predicted(batch), batch["focal_px"]
        guess, has_focal = predicted["intrinsics"][:, 0, 0], torch.isfinite(focal)
        focal = torch.where(has_focal, focal, 1.0)
        depth = predicted["predicted_depth"] * torch.where(has_focal, focal / guess, 1.0)[:, None, None]
        known = batch["metric"] & has_focal  # metres without a focal length are a scale of their own
        terms = losses.bounded_log_errors(depth, batch["disparity"][:, 0], batch["valid"][:, 0], known, self.cfg.far_m)
        terms["focal"] = torch.where(has_focal, (guess.log() - focal.log()).abs(), 0.0)
        return {**self.counts(batch), **{name: values.sum() for name, values in terms.items()}}

    def terms(self, sums: losses.Sums) -> dict[str, torch.Tensor]:
        """The loss and its parts, means over all pictures; a part that a picture lacks is 0 there."""
        means = {name: value / sums["pictures"] for name, value in sums.items() if name != "pictures"}
        loss = means["metric"] + self.cfg.shape_weight * means["shape"] + self.cfg.gradient_weight * means["gradient"]
        return {"loss": loss + self.cfg.focal_weight * means["focal"], **means}


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
    write_image_processor(folder, cfg.size_px, model.config.to_dict())


def run(config: Stage2Config, resume: str | Path | None = None) -> Path:
    """Trains Stage-2.

    Args:
        config: what to train, on what, and how.
        resume: "latest", the folder of a checkpoint, or None for a run that begins.

    Returns:
        Folder of the saved model, `<output>/model`.

    Raises:
        InputError: the configuration does not fit its data, base or checkpoint.
        RuntimeError: the loss is not finite.
    """
    accelerator = loop.start(config)
    if config.pool is not None:
        fill_pool(config.pool, accelerator.process_index, accelerator.num_processes, accelerator.wait_for_everyone)
    if config.photos is not None:
        scenes = None if config.pool is None else ScenePool(config.pool, "train")
        stage1 = frames_of(load_pipeline(config.stage1)) if config.stack == "stage1" else None
        source = DepthPhotos(config, scenes, stage1)
    else:
        source = PoolStacks(config) if config.manifests is None else RowStacks(config)
    model = build_model(config)
    if config.loop.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    plan, sample = config.phases, None
    if config.photos is not None:
        model.to(memory_format=torch.channels_last)  # faster convolutions on a CPU
        network = DepthPhotosNetwork(model, config)
    else:
        patch_px = model.config.patch_size
        if config.size_px % patch_px:
            raise InputError(f"size_px is {config.size_px}; wanted a multiple of the patch, {patch_px} px.")
        prepare_camera(config, model, source.without_intrinsics)
        network = Stage2Network(model, config)
        plan = [PhaseConfig(config.size_px, config.batch, config.steps, config.learning_rate)]
        sample = lambda: look(config, network, source)  # noqa: E731
    stage = loop.Stage(
        network=network,
        draw=source,
        plan=plan,
        export=lambda folder: export(config, model, folder),
        sample=sample,
        is_head=lambda name: name.removeprefix("model.").startswith(_HEADS),
    )
    return loop.fit(config, accelerator, stage, resume)


def main() -> None:
    """Trains Stage-2."""
    loop.main(Stage2Config, run, "train.stage2")


if __name__ == "__main__":
    with config.one_line_errors():
        main()
