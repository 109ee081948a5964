"""Stage-2 on EfficientNet-Lite: metric depth from a photo and its bokeh stack, small enough for one CPU core.

The encoder is that of MiDaS small; what reads it is a feature pyramid with Divided Space Focus Attention (Sec. 4.2 of
arXiv 2512.12425, Eq. 6-9) between the two, and a last step that takes depth to the photo's own edges by convex
combinations of its coarse neighbours (as in arXiv 2003.12039). Depth is predicted for a canonical focal length and
scaled by the camera's, given or guessed (as in arXiv 2307.10984), so that metres hold on another lens.

Hub repositories carry this file with the files of ours that it imports joined in front of it, see
`hub.folder.joined_source`.

``B`` batch, ``F`` frames with the sharp reference first, ``N = h w`` positions of a feature map, ``D`` its channels,
``H W`` pixels at the network.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as fn
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForDepthEstimation
from transformers import initialization as init
from transformers.modeling_outputs import DepthEstimatorOutput
from transformers.modeling_utils import PreTrainedModel

from .modeling_bokehdepth import DividedSpaceFocusAttention, DSFAConfig, DSFAModel, FocusMeasureEmbedding
from .modeling_efficientnet_lite import EfficientNetLiteEncoder

_FINEST = 1  # the encoder's map at 1/4 of the photo, the first that is read
_GUIDE_PX = 4
_LOG_DEPTH_LIMITS = (-4.0, 8.0)
_START_FOCAL = 0.85  # focal length over the longer side: a phone's main camera
_MULTIPLE_PX = 32
_TOKEN_SCALE = 8.0  # about the deviation of the encoder's maps; DSFA's blocks begin with tokens near 1


@strict
class BokehDepthEfficientNetConfig(DSFAConfig):
    r"""Configuration of `BokehDepthEfficientNetForDepthEstimation`; the defaults are EfficientNet-Lite2.

    width_factor, depth_factor (`float`, *optional*, default to 1.1 and 1.2):
        The variant, see `EfficientNetLiteEncoder`.
    decoder_channels (`list[int]`, *optional*, defaults to `(48, 64, 96, 128)`):
        Channels of the decoder at 1/4, 1/8, 1/16 and 1/32 of the photo.
    guide_channels (`int`, *optional*, defaults to 64):
        Width of the layer that weighs coarse neighbours of each pixel.
    canonical_focal_px (`float`, *optional*, defaults to 320.0):
        Focal length in px at the network that depth is predicted for.
    area_px (`int`, *optional*, defaults to 81920):
        Pixels that `infer` works at.
    image_mean, image_std (`list[float]`, *optional*, default to 0.5):
        Display values become `(value - mean) / std`.
    dsfa_levels (`list[int]`, *optional*, defaults to `(1, 2)`):
        Feature maps that DSFA rewrites: 0 is at 1/4, 3 at 1/32; empty is the network without DSFA.
    The other fields are those of `DSFAConfig`.
    """

    model_type = "bokehdepth_efficientnet"

    width_factor: float | int = 1.1
    depth_factor: float | int = 1.2
    decoder_channels: list[int] | tuple[int, ...] = (48, 64, 96, 128)
    guide_channels: int = 64
    canonical_focal_px: float | int = 320.0
    area_px: int = 256 * 320
    image_mean: list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: list[float] | tuple[float, ...] = (0.5, 0.5, 0.5)
    patch_size: int = _MULTIPLE_PX
    depth_estimation_type: str = "metric"
    dsfa_levels: list[int] | tuple[int, ...] = (1, 2)
    dsfa_num_heads: int = 4
    dsfa_mlp_ratio: float | int = 2.0
    focus_measure: bool = True

    def validate_efficientnet(self) -> None:
        """Refuse fields that cannot be built; part of the `@strict` validation.

        Raises:
            ValueError: with the name of the field, what it must be, and its value.
        """
        if len(self.decoder_channels) != 4 or min(self.decoder_channels) < 1:
            raise ValueError(f"`decoder_channels` must be four positive numbers, got {list(self.decoder_channels)}.")
        if self.patch_size != _MULTIPLE_PX:
            raise ValueError(
                f"`patch_size` must be {_MULTIPLE_PX}, the stride of the last map, got {self.patch_size}."
            )
        for name in ("width_factor", "depth_factor", "canonical_focal_px", "area_px", "guide_channels"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"`{name}` must be a positive number, got {getattr(self, name)}.")


@dataclass
class EfficientNetDepthOutput(DepthEstimatorOutput):
    """What `BokehDepthEfficientNetForDepthEstimation` predicts for the reference frame.

    Args:
        loss: always None.
        predicted_depth: (B, H, W) metres along the optical axis.
        intrinsics: (B, 3, 3) pinhole matrix in px that the network guesses, also where one was given; its principal
            point is the middle.
    """

    intrinsics: Tensor | None = None


class _Fusion(nn.Module):
    """One level of the pyramid: the encoder's map, what comes from the coarser level, and two convolutions."""

    def __init__(self, in_channels: int, above: int | None, channels: int) -> None:
        super().__init__()
        self.lateral = nn.Conv2d(in_channels, channels, 1)
        self.above = None if above is None else nn.Conv2d(above, channels, 1)
        self.conv_in = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_out = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features: Tensor, above: Tensor | None = None) -> Tensor:
        """Map (B, C, h, w) and the coarser level (B, C', h / 2, w / 2) to (B, channels, h, w)."""
        fused = self.lateral(features)
        if above is not None:
            fused = fused + fn.interpolate(self.above(above), size=fused.shape[-2:], mode="bilinear")
        return fused + self.conv_out(fn.relu(self.conv_in(fn.relu(fused))))


class _GuidedUpsampling(nn.Module):
    """Four times finer: each pixel is a convex combination of its 3 x 3 coarse neighbours, weighed by the photo."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels + 3 * _GUIDE_PX**2, hidden, 3, padding=1)
        self.conv_out = nn.Conv2d(hidden, 9 * _GUIDE_PX**2, 1)

    def forward(self, coarse: Tensor, features: Tensor, pixels: Tensor) -> Tensor:
        """Map coarse values (B, 1, h, w), features (B, C, h, w) and pixels (B, 3, 4h, 4w) to (B, 4h, 4w)."""
        guide = torch.cat([features, fn.pixel_unshuffle(pixels, _GUIDE_PX).to(features.dtype)], dim=1)
        logits = self.conv_out(fn.relu(self.conv_in(guide)))
        weights = _widened(logits).unflatten(1, (9, -1)).softmax(dim=1)  # (B, 9, 16, h, w)
        around = fn.unfold(fn.pad(_widened(coarse), (1, 1, 1, 1), mode="replicate"), 3)  # (B, 9, h * w)
        around = around.unflatten(2, coarse.shape[-2:])[:, :, None]
        return fn.pixel_shuffle((weights * around).sum(dim=1), _GUIDE_PX)[:, 0]


class BokehDepthEfficientNetForDepthEstimation(DSFAModel, PreTrainedModel):
    """EfficientNet-Lite with a feature pyramid that also looks at a bokeh stack of the photo.

    For each chosen feature map a `DividedSpaceFocusAttention` (`dsfa.<level>`) rewrites the reference frame's values
    between encoder and decoder. Stack frames are encoded up to the last of these maps. A lone photo is not touched by
    DSFA.
    """

    config: BokehDepthEfficientNetConfig
    config_class = BokehDepthEfficientNetConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _no_split_modules = ["InvertedResidual", "DividedSpaceFocusAttention"]

    def __init__(self, config: BokehDepthEfficientNetConfig) -> None:
        super().__init__(config)
        self.encoder = EfficientNetLiteEncoder(config.width_factor, config.depth_factor)
        channels, widths = self.encoder.channels[_FINEST:], list(config.decoder_channels)
        self.dsfa = self._dsfa_blocks(channels)
        above = [*widths[1:], None]
        self.fusion = nn.ModuleList(_Fusion(*sizes) for sizes in zip(channels, above, widths, strict=True))
        self.context = nn.Linear(channels[-1], widths[-1])
        self.camera = nn.Sequential(nn.Linear(channels[-1], 64), nn.ReLU(), nn.Linear(64, 1))
        self.head = nn.Conv2d(widths[0], 1, 3, padding=1)
        self.guide = _GuidedUpsampling(widths[0], config.guide_channels)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, DividedSpaceFocusAttention):
            module.reset_parameters()
        elif isinstance(module, nn.Conv2d | nn.Linear):  # each layer keeps the variance (He et al. 2015)
            fan_in = module.weight[0].numel()
            small = [self.head, self.guide.conv_out, self.camera[-1], *(fusion.conv_out for fusion in self.fusion)]
            small += [self.context, self.camera[0], *(f.lateral for f in self.fusion)]  # the encoder's maps are large
            scale = 0.1 if any(module is layer for layer in small) else 1.0
            init.normal_(module.weight, std=scale * (2 / fan_in) ** 0.5)
            init.zeros_(module.bias)
            if module is self.camera[-1]:
                init.constant_(module.bias, math.log(_START_FOCAL))
            elif module is self.head:
                init.constant_(module.bias, -1.0)  # a depth of 2.7 m

    def forward(
        self,
        pixel_values: Tensor,
        bokeh_strengths: Tensor | None = None,
        intrinsics: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> tuple[Tensor, ...] | EfficientNetDepthOutput:
        """Estimate depth and camera of the reference frame.

        Args:
            pixel_values: one image (B, 3, H, W), or a sharp reference and then its bokeh stack (B, F, 3, H, W); H and
                W are multiples of 32, pixels are display values in [-1, 1].
            bokeh_strengths: K of each frame (B, F), the first 0, the others in [0, ``config.bokeh_strength_max``] in
                any order; wanted exactly with 5-D ``pixel_values``.
            intrinsics: (B, 3, 3) pinhole matrices in px of ``pixel_values``, whose focal lengths scale the depth in
                place of the guessed one.
            labels: not supported.
            return_dict: False returns a tuple.

        Returns:
            `EfficientNetDepthOutput`.

        Raises:
            ValueError: if shape, dtype or value of an argument does not fit.
            NotImplementedError: if ``labels`` is given.
        """
        self._check_inputs(pixel_values, bokeh_strengths)
        if labels is not None:
            raise NotImplementedError("labels is given; wanted None, since the loss belongs to the training script.")
        frames = pixel_values if pixel_values.ndim == 5 else pixel_values.unsqueeze(1)
        if intrinsics is not None:
            check_intrinsics(intrinsics, len(frames))
        reference, height_px, width_px = frames[:, 0], *frames.shape[-2:]
        maps = self.encoder(reference)[_FINEST:]
        if frames.shape[1] > 1 and self.dsfa:
            maps = self._fuse(maps, frames, bokeh_strengths)

        pooled = maps[-1].mean(dim=(2, 3))
        features = self.fusion[-1](maps[-1]) + fn.relu(self.context(pooled))[..., None, None]
        for fusion, encoded in zip(reversed(self.fusion[:-1]), reversed(maps[:-1]), strict=True):
            features = fusion(encoded, features)
        # Rounded to bfloat16, depth would have steps of half a per cent.
        with torch.autocast(frames.device.type, enabled=False):
            log_depth = -_wide(self.head, features)
            log_depth = self.guide(log_depth, features, reference).clamp(*_LOG_DEPTH_LIMITS)
            guessed_px = _wide(self.camera, pooled).exp()[:, 0] * max(height_px, width_px)
            focal_px = guessed_px
            if intrinsics is not None:
                focal_px = (intrinsics[:, 0, 0] * intrinsics[:, 1, 1]).sqrt().to(guessed_px)
            depth = log_depth.exp() * (focal_px / self.config.canonical_focal_px)[:, None, None]
        output = EfficientNetDepthOutput(
            predicted_depth=depth, intrinsics=_centred_camera(guessed_px, height_px, width_px)
        )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    def _fuse(self, maps: list[Tensor], frames: Tensor, bokeh_strengths: Tensor) -> list[Tensor]:
        """The reference's maps (B, D, h, w), rewritten by DSFA where it is; frames (B, F, 3, H, W)."""
        batch, count = frames.shape[:2]
        levels = {int(name): block for name, block in self.dsfa.items()}
        stack = []
        if self.config.use_bokeh:
            stack = self.encoder(frames[:, 1:].flatten(0, 1), max(levels) + _FINEST + 1)[_FINEST:]
        maps = list(maps)
        for level, block in levels.items():
            own = maps[level].unsqueeze(1)  # (B, 1, D, h, w)
            others = stack[level].unflatten(0, (batch, -1)) if stack else own.expand(-1, count - 1, -1, -1, -1)
            tokens = torch.cat([own, others], dim=1).flatten(3).transpose(2, 3) / _TOKEN_SCALE  # (B, F, N, D)
            measures = None
            if self.config.focus_measure and self.config.use_focus:
                seen = frames if self.config.use_bokeh else frames[:, :1]
                measures = FocusMeasureEmbedding.measure(seen, self.encoder.strides[level + _FINEST])
                measures = measures.expand(-1, count, -1, -1)
            refined = block(tokens, bokeh_strengths, measures, True)[:, 0] * _TOKEN_SCALE
            maps[level] = refined.transpose(1, 2).unflatten(2, maps[level].shape[-2:])
        return maps

    def working_size(self, height_px: int, width_px: int) -> tuple[int, int]:
        """The network's (H, W) for a photo: about ``config.area_px`` pixels of its aspect, multiples of 32."""
        scale = math.sqrt(self.config.area_px / (height_px * width_px))
        sides = (max(1, round(side * scale / _MULTIPLE_PX)) * _MULTIPLE_PX for side in (height_px, width_px))
        return tuple(sides)

    @torch.no_grad()
    def infer(
        self,
        pixels: Tensor,
        bokeh_strengths: Tensor | None = None,
        intrinsics: Tensor | None = None,
        photo_size: tuple[int, int] | None = None,
    ) -> EfficientNetDepthOutput:
        """Estimate depth of photos of any size.

        Args:
            pixels: display values in [0, 1], (B, 3, H, W) or with a stack (B, F, 3, H, W).
            bokeh_strengths: as in `forward`.
            intrinsics: (B, 3, 3) in px of the photo.
            photo_size: (H, W) of the photo where ``pixels`` have been brought to its `working_size` already; depth
                then stays at that size too.

        Returns:
            `EfficientNetDepthOutput` at the size of ``pixels``; ``intrinsics`` are in px of the photo.

        Raises:
            ValueError: if an argument does not fit.
        """
        if pixels.ndim not in (4, 5) or pixels.shape[-3] != 3 or 0 in pixels.shape:
            raise ValueError(f"`pixels` must be (B, 3, H, W) or (B, F, 3, H, W), got {tuple(pixels.shape)}.")
        if not pixels.is_floating_point() or not bool((pixels >= 0).all() & (pixels <= 1).all()):
            raise ValueError(f"`pixels` must be display values in [0, 1], got {pixels.dtype} or values outside.")
        height_px, width_px = photo_size or pixels.shape[-2:]
        size = self.working_size(height_px, width_px)
        if photo_size is not None and pixels.shape[-2:] != size:
            raise ValueError(f"`pixels` must be {size} for a photo of {photo_size}, got {tuple(pixels.shape[-2:])}.")
        factors = pixels.new_tensor([size[1] / width_px, size[0] / height_px, 1.0], dtype=torch.float32)
        flat = pixels.to(self.device, torch.float32).reshape(-1, *pixels.shape[-3:])
        if photo_size is None:
            flat = fn.interpolate(flat, size, mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (flat.new_tensor(v)[:, None, None] for v in (self.config.image_mean, self.config.image_std))
        values = ((flat - mean) / std).to(self.dtype).unflatten(0, pixels.shape[:-3])
        camera = None if intrinsics is None else intrinsics.float().cpu() * factors.cpu()[:, None]
        output = self(values, bokeh_strengths, None if camera is None else camera.to(self.device))
        depth = output.predicted_depth
        if photo_size is None:
            depth = fn.interpolate(depth[:, None], (height_px, width_px), mode="bilinear")[:, 0]
        guessed = output.intrinsics / factors.to(output.intrinsics)[:, None]
        return EfficientNetDepthOutput(predicted_depth=depth, intrinsics=guessed)


def check_intrinsics(intrinsics: Tensor, batch: int) -> None:
    """Refuse what is no pinhole matrix for each of the batch; ValueError."""
    if tuple(intrinsics.shape) != (batch, 3, 3):
        raise ValueError(f"`intrinsics` must be (B, 3, 3) = {(batch, 3, 3)}, got {tuple(intrinsics.shape)}.")
    if torch.compiler.is_compiling():  # values are unknown while a graph is traced
        return
    for matrix in intrinsics.double().tolist():
        (fx, skew, cx), (lower, fy, cy), last = matrix
        finite = all(math.isfinite(value) for value in (fx, fy, cx, cy))
        if not finite or min(fx, fy) <= 0 or skew != 0 or lower != 0 or last != [0, 0, 1]:
            raise ValueError(f"`intrinsics` must be [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], fx, fy > 0, got {matrix}.")


def _widened(values: Tensor) -> Tensor:
    """The values in float32, or in float64 as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _wide(layers: nn.Module, features: Tensor) -> Tensor:
    """The result of convolutions or linear layers in float32 or wider, whatever the weights' dtype."""
    for layer in layers if isinstance(layers, nn.Sequential) else [layers]:
        if isinstance(layer, nn.ReLU):
            features = layer(features)
            continue
        features, weight, bias = (_widened(values) for values in (features, layer.weight, layer.bias))
        if isinstance(layer, nn.Conv2d):
            features = fn.conv2d(features, weight, bias, padding=layer.padding)
        else:
            features = fn.linear(features, weight, bias)
    return features


def _centred_camera(focal_px: Tensor, height_px: int, width_px: int) -> Tensor:
    """Pinhole matrices (B, 3, 3) of focal lengths (B,) whose principal point is the middle of the picture."""
    camera = focal_px.new_zeros(len(focal_px), 3, 3)
    camera[:, 0, 0] = camera[:, 1, 1] = focal_px
    camera[:, 0, 2], camera[:, 1, 2], camera[:, 2, 2] = width_px / 2, height_px / 2, 1.0
    return camera


# save_pretrained then copies this file and the ones it imports, and writes the entries that remote loading reads.
BokehDepthEfficientNetConfig.register_for_auto_class("AutoConfig")
BokehDepthEfficientNetForDepthEstimation.register_for_auto_class("AutoModelForDepthEstimation")

# As remote code this file runs under another name, and must not replace the classes of the installed package.
if __name__ == "bokehdepth.modeling_bokehdepth_efficientnet":
    AutoConfig.register(BokehDepthEfficientNetConfig.model_type, BokehDepthEfficientNetConfig, exist_ok=True)
    AutoModelForDepthEstimation.register(
        BokehDepthEfficientNetConfig, BokehDepthEfficientNetForDepthEstimation, exist_ok=True
    )
