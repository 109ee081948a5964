"""Stage-2 on UniDepthV2 (arXiv 2502.20110): metric depth, confidence and camera from a photo and its bokeh stack.

The two backbones share one Divided Space Focus Attention (Sec. 4.2 of arXiv 2512.12425, Eq. 6-9), which is in
`modeling_bokehdepth.py`. Hub repositories carry this file with the two of ours that it imports joined in front of it,
see `hub.folder.joined_source`.

**The published UniDepthV2 weights are licensed CC BY-NC 4.0:** they, and all that is fine-tuned from them, are for
non-commercial use. This code is Apache-2.0 and holds no weights.

``B`` batch, ``F`` frames with the sharp reference first, ``N = h w`` patch tokens, ``D`` channels, ``H W`` pixels at
the network.
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

from .modeling_bokehdepth import (
    DividedSpaceFocusAttention,
    DSFAConfig,
    DSFAModel,
    FloatConv2d,
    FocusMeasureEmbedding,
)
from .modeling_unidepth_parts import ResidualUnit, Scale, UniDepthDecoder, UniDepthEncoder, pinhole_rays

UNIDEPTH_LICENCE = "CC BY-NC 4.0"
"""Licence of the published UniDepthV2 weights, and so of all that is fine-tuned from them."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_LOG_LIMIT = 8.0
_RADIUS_SHIFT = 2.0


@strict
class BokehDepthUniDepthConfig(DSFAConfig):
    r"""Configuration of `BokehDepthUniDepthForDepthEstimation`; the defaults are UniDepthV2 Large with DSFA.

    hidden_size, num_hidden_layers, num_attention_heads, patch_size, image_size (`int`, *optional*):
        The DINOv2 encoder; `image_size` is that of its position table.
    out_indices (`list[int]`, *optional*, defaults to `(6, 12, 18, 24)`):
        Encoder blocks (counted from 1) whose normalised output is a level.
    decoder_hidden_size, decoder_out_channels, decoder_num_heads (`int`, *optional*, default to 512, 64, 8):
        Width of the decoder, channels before the two outputs, heads of its attentions.
    decoder_depths (`list[int]`, *optional*, defaults to `(2, 2, 2)`):
        Residual units before each of the three upsamplings.
    mlp_ratio (`int`, *optional*, defaults to 4):
        Hidden width of all feed-forward parts over their width.
    pixels_min, pixels_max (`int`, *optional*, default to 200000, 600000):
        Area in px that `infer` works at.
    aspect_min, aspect_max (`float`, *optional*, default to 0.5, 2.5):
        Width over height that `infer` pads photos to.
    dsfa_levels (`list[int]`, *optional*, defaults to `(0, 1, 2, 3)`):
        Levels (0 is the shallowest) that DSFA rewrites; empty is plain UniDepthV2.
    The other fields are those of `DSFAConfig`.
    """

    model_type = "bokehdepth_unidepth"

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    patch_size: int = 14
    image_size: int = 518
    out_indices: list[int] | tuple[int, ...] = (6, 12, 18, 24)
    decoder_hidden_size: int = 512
    decoder_out_channels: int = 64
    decoder_num_heads: int = 8
    decoder_depths: list[int] | tuple[int, ...] = (2, 2, 2)
    mlp_ratio: int = 4
    initializer_range: float = 0.02
    pixels_min: int = 200_000
    pixels_max: int = 600_000
    aspect_min: float | int = 0.5
    aspect_max: float | int = 2.5
    depth_estimation_type: str = "metric"
    dsfa_levels: list[int] | tuple[int, ...] = (0, 1, 2, 3)

    def validate_unidepth(self) -> None:
        """Refuse fields that cannot be built; part of the `@strict` validation.

        Raises:
            ValueError: with the name of the field, its value and what was wanted.
        """
        indices = list(self.out_indices)
        if len(indices) != 4 or sorted(set(indices)) != indices or not 0 < indices[0] <= indices[-1]:
            raise ValueError(f"out_indices is {indices}; wanted four ascending block numbers from 1.")
        if indices[-1] > self.num_hidden_layers:
            raise ValueError(f"out_indices is {indices}; wanted numbers up to {self.num_hidden_layers}.")
        if len(self.decoder_depths) != 3:
            raise ValueError(f"decoder_depths is {list(self.decoder_depths)}; wanted three numbers.")
        for width, heads in (("hidden_size", "num_attention_heads"), ("decoder_hidden_size", "decoder_num_heads")):
            if getattr(self, heads) < 1 or getattr(self, width) % getattr(self, heads):
                raise ValueError(f"{heads} is {getattr(self, heads)}; wanted a divisor of {width}.")
        for name in ("aspect_min", "pixels_min"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} is {getattr(self, name)}; wanted a positive number.")
        for low, high in (("aspect_min", "aspect_max"), ("pixels_min", "pixels_max")):
            if not getattr(self, low) <= getattr(self, high):
                raise ValueError(f"{high} is {getattr(self, high)}; wanted {low} ({getattr(self, low)}) or more.")


@dataclass
class UniDepthOutput(DepthEstimatorOutput):
    """What `BokehDepthUniDepthForDepthEstimation` predicts for the reference frame.

    Args:
        loss: always None.
        predicted_depth: (B, H, W) metres along the optical axis.
        confidence: (B, H, W), positive; larger means a larger expected error, as the published loss trains it.
        intrinsics: (B, 3, 3) pinhole matrix in px that the camera head predicts, also where one was given.
        distance_m: (B, H, W) metres along the ray of the pixel.
        rays: (B, 3, H, W) unit vectors: x right, y down, z forward. Of the given camera where there is one.
    """

    confidence: Tensor | None = None
    intrinsics: Tensor | None = None
    distance_m: Tensor | None = None
    rays: Tensor | None = None


class _FloatLinear(nn.Linear):
    """The linear layer before the camera, in float32 or wider, as `FloatConv2d`."""

    def forward(self, x: Tensor) -> Tensor:
        if not x.is_meta and torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return self.forward(x)
        dtype = torch.promote_types(x.dtype, torch.float32)
        return fn.linear(x.to(dtype), self.weight.to(dtype), self.bias.to(dtype))


# --- the model -------------------------------------------------------------------------------------------------------


class BokehDepthUniDepthForDepthEstimation(DSFAModel, PreTrainedModel):
    """UniDepthV2 that also looks at a bokeh stack of the photo.

    For each chosen level a `DividedSpaceFocusAttention` (`dsfa.<level>`) rewrites the reference frame's patch tokens
    between encoder and decoder; class tokens, and with them the predicted camera, stay as they were. A lone photo
    takes the plain model's path. Published weights are CC BY-NC 4.0, see the head of this file.
    """

    config: BokehDepthUniDepthConfig
    config_class = BokehDepthUniDepthConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    _no_split_modules = ["_EncoderBlock", "DividedSpaceFocusAttention"]
    _supports_sdpa = True

    def __init__(self, config: BokehDepthUniDepthConfig) -> None:
        super().__init__(config)
        self.pixel_encoder = UniDepthEncoder(config)
        self.pixel_decoder = UniDepthDecoder(config)
        self.pixel_decoder.camera_layer.out_pinhole.proj2 = _FloatLinear(config.decoder_hidden_size, 1)
        for last in (self.pixel_decoder.depth_layer.to_depth_hr, self.pixel_decoder.depth_layer.to_confidence_hr):
            last[-1] = FloatConv2d(last[-1].in_channels, 1, 1)
        self.dsfa = self._dsfa_blocks([config.hidden_size] * len(config.out_indices))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, DividedSpaceFocusAttention):
            module.reset_parameters()
        elif isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, Scale | ResidualUnit):
            init.ones_(module.gamma)
        else:
            for name in ("cls_token", "pos_embed", "register_tokens", "mask_token", "latents_pos", "level_embeds"):
                if name in module._parameters:
                    init.trunc_normal_(module._parameters[name], std=self.config.initializer_range)

    def forward(
        self,
        pixel_values: Tensor,
        bokeh_strengths: Tensor | None = None,
        intrinsics: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> tuple[Tensor, ...] | UniDepthOutput:
        """Estimate depth, confidence and camera of the reference frame.

        Args:
            pixel_values: one image (B, 3, H, W), or a sharp reference and then its bokeh stack (B, F, 3, H, W); H and
                W are multiples of the patch size, pixels are normalised by ImageNet's mean and deviation.
            bokeh_strengths: K of each frame (B, F), the first 0, the others in [0, ``config.bokeh_strength_max``] in
                any order; wanted exactly with 5-D ``pixel_values``.
            intrinsics: (B, 3, 3) pinhole matrices in px of ``pixel_values``, used in place of the predicted camera.
            labels: not supported.
            return_dict: False returns a tuple.

        Returns:
            `UniDepthOutput`.

        Raises:
            ValueError: if shape, dtype or value of an argument does not fit.
            NotImplementedError: if ``labels`` is given.
        """
        self._check_inputs(pixel_values, bokeh_strengths)
        if labels is not None:
            raise NotImplementedError("labels is given; wanted None, since the loss belongs to the training script.")
        frames = pixel_values if pixel_values.ndim == 5 else pixel_values.unsqueeze(1)
        batch, count, _, height_px, width_px = frames.shape
        if intrinsics is not None:
            self._check_intrinsics(intrinsics, batch)
        # Frames that no part reads are not encoded.
        encoded = count if self.config.use_bokeh and self.dsfa else 1
        patch_px = self.config.patch_size
        grid = (height_px // patch_px, width_px // patch_px)
        levels = [
            level.unflatten(0, (batch, encoded)) for level in self.pixel_encoder(frames[:, :encoded].flatten(0, 1))
        ]
        tokens = [level[:, 0, 1:] for level in levels]
        if count > 1:
            measures = None
            if self.config.focus_measure and self.config.use_focus and self.dsfa:
                measures = FocusMeasureEmbedding.measure(frames[:, :encoded], patch_px).expand(-1, count, -1, -1)
            for name, block in self.dsfa.items():
                patches = levels[int(name)][:, :, 1:].expand(-1, count, -1, -1)
                tokens[int(name)] = block(patches, bokeh_strengths, measures, True)[:, 0]

        decoder = self.pixel_decoder
        class_tokens = decoder.camera_token_adapter([level[:, 0, :1] for level in levels])
        predicted = decoder.camera_layer(torch.cat(class_tokens, dim=1), height_px, width_px)
        camera = predicted if intrinsics is None else intrinsics.to(predicted)
        rays = pinhole_rays(camera, height_px, width_px)
        log_distance, log_confidence = decoder.depth_layer(decoder.input_adapter(tokens), rays, grid)
        limited = [x[:, 0].to(rays.dtype).clamp(-_LOG_LIMIT, _LOG_LIMIT) for x in (log_distance, log_confidence)]
        distance_m = (limited[0] + _RADIUS_SHIFT).exp()
        output = UniDepthOutput(
            predicted_depth=rays[:, 2] * distance_m,
            confidence=limited[1].exp(),
            intrinsics=predicted,
            distance_m=distance_m,
            rays=rays,
        )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    def _check_intrinsics(self, intrinsics: Tensor, batch: int) -> None:
        if tuple(intrinsics.shape) != (batch, 3, 3):
            raise ValueError(f"intrinsics has shape {tuple(intrinsics.shape)}; wanted (B, 3, 3) = {(batch, 3, 3)}.")
        if torch.compiler.is_compiling():  # values are unknown while a graph is traced
            return
        for matrix in intrinsics.double().tolist():
            (fx, skew, cx), (lower, fy, cy), last = matrix
            finite = all(math.isfinite(value) for value in (fx, fy, cx, cy))
            if not finite or min(fx, fy) <= 0 or skew != 0 or lower != 0 or last != [0, 0, 1]:
                raise ValueError(f"intrinsics is {matrix}; wanted [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], fx, fy > 0.")

    # ------------------------------------------------------------------ photos of any size

    def working_size(
        self, height_px: int, width_px: int, resolution_level: int | None = None
    ) -> tuple[tuple[int, int, int, int], float, tuple[int, int]]:
        """How `infer` brings a photo to the network: pad to an aspect in range, then scale to an area in range.

        Args:
            height_px: of the photo.
            width_px: of the photo.
            resolution_level: tenth (0 to 9) of the area range to stay in; None uses the whole range.

        Returns:
            Pads (left, right, top, bottom) in px, the scale of the camera, and the network's (H, W).

        Raises:
            ValueError: if ``resolution_level`` is none of 0 to 9.
        """
        config = self.config
        low, high = config.pixels_min, config.pixels_max
        if resolution_level is not None:
            if isinstance(resolution_level, bool) or resolution_level not in range(10):
                raise ValueError(f"resolution_level is {resolution_level}; wanted None or a whole number from 0 to 9.")
            tenth = (high - low) / 10
            low, high = low + resolution_level * tenth, low + (resolution_level + 1) * tenth
        aspect = width_px / height_px
        wide, tall = width_px, height_px
        if aspect > config.aspect_max:
            tall = int(width_px / config.aspect_max)
        elif aspect < config.aspect_min:
            wide = int(height_px * config.aspect_min)
        left, top = (wide - width_px) // 2, (tall - height_px) // 2
        pads = (left, wide - width_px - left, top, tall - height_px - top)
        scale = (min(high, max(low, wide * tall)) / (wide * tall)) ** 0.5
        size = [config.patch_size * math.ceil(int(side * scale) / config.patch_size) for side in (tall, wide)]
        return pads, scale, (size[0], size[1])

    @torch.no_grad()
    def infer(
        self,
        pixels: Tensor,
        bokeh_strengths: Tensor | None = None,
        intrinsics: Tensor | None = None,
        resolution_level: int | None = None,
        pad_with_black: bool = False,
    ) -> UniDepthOutput:
        """Estimate depth of photos of any size, with the published padding and resizing.

        Args:
            pixels: display values in [0, 1], (B, 3, H, W) or with a stack (B, F, 3, H, W).
            bokeh_strengths: as in `forward`.
            intrinsics: (B, 3, 3) in px of the photo, used in place of the predicted camera.
            resolution_level: as in `working_size`.
            pad_with_black: pad before normalisation, as BokehDepth's released pipeline does; False pads with the
                mean colour, as UniDepthV2 does.

        Returns:
            `UniDepthOutput` at the photo's size; ``intrinsics`` and the camera are in px of the photo.

        Raises:
            ValueError: if an argument does not fit.
        """
        if pixels.ndim not in (4, 5) or pixels.shape[-3] != 3 or 0 in pixels.shape:
            raise ValueError(f"pixels has shape {tuple(pixels.shape)}; wanted (B, 3, H, W) or (B, F, 3, H, W).")
        if not pixels.is_floating_point() or not bool((pixels >= 0).all() & (pixels <= 1).all()):
            raise ValueError(f"pixels has dtype {pixels.dtype} or values outside [0, 1]; wanted display values.")
        if intrinsics is not None:
            self._check_intrinsics(intrinsics, len(pixels))
        height_px, width_px = pixels.shape[-2:]
        pads, scale, size = self.working_size(height_px, width_px, resolution_level)
        flat = pixels.to(self.device, torch.promote_types(pixels.dtype, torch.float32)).reshape(-1, *pixels.shape[-3:])
        mean, std = (flat.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        flat = (fn.pad(flat, pads) - mean) / std if pad_with_black else fn.pad((flat - mean) / std, pads)
        padded_hw = flat.shape[-2:]
        flat = fn.interpolate(flat, size, mode="bilinear", align_corners=False).to(self.dtype)
        shift, factors = torch.zeros(3, 3), torch.tensor([[scale], [scale], [1.0]])
        shift[0, 2], shift[1, 2] = pads[0], pads[2]
        camera = None if intrinsics is None else (intrinsics.float().cpu() + shift) * factors
        output = self(flat.unflatten(0, pixels.shape[:-3]), bokeh_strengths, camera)

        points = output.rays * output.distance_m.unsqueeze(1)
        maps = torch.cat([points, output.confidence.unsqueeze(1), output.rays], dim=1)
        maps = fn.interpolate(maps, padded_hw, mode="bilinear", align_corners=False)
        maps = maps[..., pads[2] : pads[2] + height_px, pads[0] : pads[0] + width_px]
        return UniDepthOutput(
            predicted_depth=maps[:, 2],
            confidence=maps[:, 3],
            intrinsics=output.intrinsics / factors.to(output.intrinsics) - shift.to(output.intrinsics),
            distance_m=maps[:, :3].norm(dim=1),
            rays=fn.normalize(maps[:, 4:], dim=1, eps=1e-5),
        )


# save_pretrained then copies this file and the one it imports, and writes the entries that remote loading reads.
BokehDepthUniDepthConfig.register_for_auto_class("AutoConfig")
BokehDepthUniDepthForDepthEstimation.register_for_auto_class("AutoModelForDepthEstimation")

# As remote code this file runs under another name, and must not replace the classes of the installed package.
if __name__ == "bokehdepth.modeling_bokehdepth_unidepth":
    AutoConfig.register(BokehDepthUniDepthConfig.model_type, BokehDepthUniDepthConfig, exist_ok=True)
    AutoModelForDepthEstimation.register(BokehDepthUniDepthConfig, BokehDepthUniDepthForDepthEstimation, exist_ok=True)
