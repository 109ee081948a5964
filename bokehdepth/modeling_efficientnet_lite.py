"""EfficientNet-Lite (arXiv 1905.11946 and its Lite variant) as an encoder: a photo's feature maps at 1/2 to 1/32.

The Lite variant has no squeeze-and-excite and ReLU6 in place of Swish, so that it runs fast on a CPU. Normalisation is
part of the convolutions: each has the batch norm that followed it in ImageNet training folded in, and a bias.

The file stands alone; Hub repositories carry it joined in front of the files of ours that import it.
"""

import math

import torch
import torch.nn.functional as fn
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

EFFICIENTNET_STAGES = (
    # kernel, stride, expansion, channels and repeats of EfficientNet-B0, before the variant's own multipliers
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
_STEM_CHANNELS = 32


def _rounded(channels: int, factor: float) -> int:
    """Channels times the factor, to a multiple of 8 that is at least nine tenths of it."""
    wanted = channels * factor
    result = max(8, int(wanted + 4) // 8 * 8)
    return result + 8 if result < 0.9 * wanted else result


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow does, which the published weights come from: more at the right and bottom.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel: its side in px, odd.
        stride: 1, or 2 for inputs of even sides.
        groups: as in `torch.nn.Conv2d`.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, groups: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, kernel // 2 if stride == 1 else 0, groups=groups)
        before = (kernel - stride) // 2
        self.margins = (before, kernel - stride - before) * 2 if stride > 1 else None

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, out_channels, H / stride, W / stride)."""
        return super().forward(features if self.margins is None else fn.pad(features, self.margins))


class InvertedResidual(nn.Module):
    """Inverted residual block (MBConv): 1x1 expansion, depthwise convolution, 1x1 projection, ReLU6 between them.

    Args:
        in_channels: of the input.
        out_channels: of the output; equal to the input's and with stride 1 the input is added.
        kernel: side of the depthwise kernel in px.
        stride: of the depthwise convolution.
        expansion: factor on the channels inside; 1 has no expansion layer.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = in_channels * expansion
        self.expand = nn.Conv2d(in_channels, inner, 1) if expansion > 1 else None
        self.depthwise = SameConv2d(inner, inner, kernel, stride, groups=inner)
        self.project = nn.Conv2d(inner, out_channels, 1)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, C, H, W) to (B, out_channels, H / stride, W / stride)."""
        hidden = features if self.expand is None else fn.relu6(self.expand(features))
        hidden = self.project(fn.relu6(self.depthwise(hidden)))
        return features + hidden if self.residual else hidden


class EfficientNetLiteEncoder(nn.Module):
    """EfficientNet-Lite without its classifier.

    Args:
        width_factor: on the channels of each stage: 1.0 for Lite0 and Lite1, 1.1 for Lite2.
        depth_factor: on the blocks of each stage but the first and last: 1.0, 1.1, 1.2.

    Attributes:
        channels: of the five maps.
    """

    strides = (2, 4, 8, 16, 32)

    def __init__(self, width_factor: float = 1.1, depth_factor: float = 1.2) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.stem = SameConv2d(3, _STEM_CHANNELS, 3, 2)
        stages, before, maps = [], _STEM_CHANNELS, []
        for number, (kernel, stride, expansion, channels, repeats) in enumerate(EFFICIENTNET_STAGES):
            width = _rounded(channels, width_factor)
            if 0 < number < len(EFFICIENTNET_STAGES) - 1:
                repeats = math.ceil(repeats * depth_factor)
            blocks = [InvertedResidual(before, width, kernel, stride, expansion)]
            blocks += [InvertedResidual(width, width, kernel, 1, expansion) for _ in range(repeats - 1)]
            stages.append(nn.Sequential(*blocks))
            before = width
            if stride == 2:  # the stage before it ends a map
                maps.append(number - 1)
        self.stages = nn.ModuleList(stages)
        self.map_stages = (*maps, len(stages) - 1)
        self.channels = tuple(stages[number][-1].project.out_channels for number in self.map_stages)

    def forward(self, pixels: Tensor, maps: int = 5) -> list[Tensor]:
        """Encode pictures.

        Args:
            pixels: (B, 3, H, W) in [-1, 1], H and W multiples of 32.
            maps: how many of the five maps are wanted; deeper stages do not run.

        Returns:
            Feature maps (B, C, H / s, W / s) for s = 2, 4, 8, 16, 32, the first `maps` of them.
        """
        features, found = fn.relu6(self.stem(pixels)), []
        for number, stage in enumerate(self.stages[: self.map_stages[maps - 1] + 1]):
            if self.gradient_checkpointing and torch.is_grad_enabled():
                features = checkpoint(stage, features, use_reentrant=False)
            else:
                features = stage(features)
            if number in self.map_stages:
                found.append(features)
        return found
