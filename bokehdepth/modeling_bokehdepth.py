"""Stage-2: Divided Space Focus Attention (DSFA, Sec. 4.2, Eq. 6-9) and Depth Anything with DSFA.

``B`` batch, ``F`` frames, the sharp reference first, ``N`` patch tokens, ``D`` channels, ``H W`` pixels, ``K`` disk
radius in px per dioptre at 512 px width.
"""

import math
from typing import Any

import torch
import torch.nn.functional as fn
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForDepthEstimation, DepthAnythingConfig, DepthAnythingForDepthEstimation
from transformers import initialization as init
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import DepthEstimatorOutput
from transformers.modeling_utils import PreTrainedModel  # noqa: F401 - diffusers looks here for a base that it can load

from .weights_bokehdepth import CheckedLoading

_MEASURE_SCALES_PX = (1, 2, 4)
# Below the squared step of one 8-bit grey level in ImageNet-normalised pixels (3e-4): only true flatness is floored.
_MEASURE_FLOOR = 1e-4


class FloatConv2d(nn.Conv2d):
    """The convolution before depth, in float32 or wider: bfloat16's 8 bits would be steps of up to 0.8 % in metres."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (B, C, H, W) as `nn.Conv2d` does, whatever autocast and the precision of the weights."""
        if not x.is_meta and torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return self.forward(x)
        dtype = torch.promote_types(x.dtype, torch.float32)
        return self._conv_forward(x.to(dtype), self.weight.to(dtype), self.bias.to(dtype))


class _PackedLinear(nn.Linear):
    """A linear layer that can return a slice of its outputs; called as a module, so that offload hooks still run."""

    def forward(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Return outputs ``start:stop`` of the layer for ``x`` (..., in_features)."""
        return fn.linear(x, self.weight[start:stop], self.bias[start:stop])


class _FeedForward(nn.Module):
    """Two linear layers with the exact GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(fn.gelu(self.fc1(x)))


class _SpaceAttention(nn.Module):
    """Multi-head self-attention inside one frame (MSA of Eq. 7)."""

    def __init__(self, dim: int, num_heads: int, scale: float) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, scale
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, sequence: Tensor) -> Tensor:
        """Update (S, N, D) of patches, from normalised [K token; patches] (S, 1 + N, D); Eq. 7 drops the K token."""
        q, k, v = self.qkv(sequence).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = fn.scaled_dot_product_attention(q[:, :, 1:], k, v, scale=self.scale)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class _FocusAttention(nn.Module):
    """Multi-head self-attention across the frames at each patch location (Sec. 4.2, step 2).

    The sequences are a few frames long and there are thousands of them, too small for an attention kernel. So frames
    stay a leading axis and each query frame is a sum of products, which copies no tokens into another order.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv = _PackedLinear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, bias: Tensor) -> Tensor:
        """Update (B, Q, N, D) of the ``Q`` first frames of normalised tokens (B, F, N, D), logits' bias (B, Q, F)."""
        queries, dim = bias.shape[1], tokens.shape[-1]
        if queries == tokens.shape[1]:
            q, k, v = self.qkv(tokens).chunk(3, dim=-1)
        else:
            q = self.qkv(tokens[:, :queries], 0, dim)
            k, v = self.qkv(tokens, dim, None).chunk(2, dim=-1)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)) for x in (q, k, v))
        attended = []
        for index in range(queries):
            logits = (q[:, index : index + 1] * k).sum(dim=-1) * self.scale
            logits = logits + bias[:, index, :, None, None].to(logits.dtype)
            weights = logits.softmax(dim=1, dtype=torch.promote_types(logits.dtype, torch.float32)).to(v.dtype)
            attended.append((weights.unsqueeze(-1) * v).sum(dim=1))
        return self.out_proj(torch.stack(attended, dim=1).flatten(-2))


class FocusMeasureEmbedding(nn.Module):
    """Explicit focus cue: log local-gradient energy of the pixels, and what a frame lost of it, as a token.

    The paper has no such part; a small net from scratch did not learn to use a stack without it. ``dim`` is ``D``.
    """

    num_measures = 4 * len(_MEASURE_SCALES_PX)

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(2 * self.num_measures, dim)

    @staticmethod
    def measure(pixel_values: Tensor, patch_size: int) -> Tensor:
        """Measure local sharpness at 3 scales in the 2 x 2 sub-cells of each patch.

        At scale s (1, 2, 4 px) the channel mean is box-filtered over s x s px and differenced over s px; the squared
        gradient is averaged over each sub-cell and returned as ``0.25 * log(1 + energy / 1e-4)``: 0 where flat.

        Args:
            pixel_values: normalised frames (B, F, 3, H, W), H and W multiples of ``patch_size``.
            patch_size: side of a patch in px, even.

        Returns:
            Measures (B, F, N, 12), float32 or wider.
        """
        batch, frames, _, height_px, width_px = pixel_values.shape
        grey = (
            pixel_values.to(torch.promote_types(pixel_values.dtype, torch.float32)).flatten(0, 1).mean(1, keepdim=True)
        )
        cell_px, measures = patch_size // 2, []
        for step_px in _MEASURE_SCALES_PX:
            # The s pixels before each pixel are compared with the s pixels from it on, averaged over s pixels across.
            padded = fn.pad(grey, (step_px, step_px - 1, step_px, step_px - 1), mode="replicate")
            box = fn.avg_pool2d(padded, step_px, stride=1)
            centre = (step_px + 1) // 2
            row = box[:, :, centre : centre + height_px]
            column = box[..., centre : centre + width_px]
            gradient_x = row[..., step_px:] - row[..., :-step_px]
            gradient_y = column[:, :, step_px:] - column[:, :, :-step_px]
            energy = fn.avg_pool2d(gradient_x.square() + gradient_y.square(), cell_px, stride=cell_px)
            measures.append(0.25 * torch.log1p(energy / _MEASURE_FLOOR))
        cells = fn.pixel_unshuffle(torch.cat(measures, dim=1), 2)
        return cells.flatten(2).transpose(1, 2).unflatten(0, (batch, frames))  # (B*F, 12, h, w) to (B, F, N, 12)

    def forward(self, measures: Tensor) -> Tensor:
        """Map the frames' measures (B, F, N, 12), the sharp reference first, to (B, F, N, D)."""
        lost = measures[:, :1] - measures
        return self.proj(torch.cat([measures, lost], dim=-1).to(self.proj.weight.dtype))


class DividedSpaceFocusAttention(GradientCheckpointingLayer):
    """Divided Space Focus Attention (Sec. 4.2): rewrites patch tokens with the defocus evidence of a bokeh stack.

    Step 1, inside each frame: the K token ``t_f = g(K_f)`` (Eq. 6) is prepended and a pre-norm transformer block runs
    (Eq. 7, with the residuals that the equation leaves out). Step 2, across frames at each patch (Eq. 8): FiLM (Eq. 9)
    on the residual stream, then a pre-norm transformer block along the frame axis. The paper's text has no bias on
    that attention; here, as in its released code, ``-slope * |K_i - K_j| / bokeh_strength_scale`` is added to the
    logits. The block sees tokens only, whatever the backbone, and the order of the stack frames does not matter.

    A fresh block (``layerscale_init=0``) is the identity to the last bit: LayerScale and FiLM start at zero, with a
    gradient in the first step. With another ``layerscale_init`` FiLM starts random too.

    The switches are the rows of Table 4: ``use_focus=False`` leaves out step 2 whole, FiLM included (the stack then no
    longer reaches the reference), ``use_space=False`` step 1, ``use_film=False`` Eq. 9; with ``use_bokeh=False``
    copies of the reference at K = 0 take the stack's place. Parts that a switch turns off own no parameters.

    Args:
        dim: token width ``D``.
        num_heads: attention heads; divides ``dim``.
        mlp_ratio: hidden width of the feed-forward parts over ``dim``.
        layerscale_init: starting value of the four LayerScale vectors.
        bokeh_strength_scale: divisor of K; 30 maps the trained range to [0, 1], released checkpoints expect 1.
        focus_bias_slope, learn_focus_bias: slope of the bias, and whether it is learned; a fixed one has no key.
        use_space, use_focus, use_film, use_bokeh: keep step 1, step 2, Eq. 9; look at the stack at all.
        focus_measure: add a `FocusMeasureEmbedding` to the tokens before step 1.
        space_attention_scale: factor on the logits of step 1; None is ``head_dim ** -0.5``, released is its square.

    Raises:
        ValueError: if ``num_heads`` does not divide ``dim``, or both steps are switched off.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        *,
        layerscale_init: float = 0.0,
        bokeh_strength_scale: float = 30.0,
        focus_bias_slope: float = 1.0,
        learn_focus_bias: bool = True,
        use_space: bool = True,
        use_focus: bool = True,
        use_film: bool = True,
        use_bokeh: bool = True,
        focus_measure: bool = False,
        space_attention_scale: float | None = None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"num_heads is {num_heads}; wanted a positive divisor of dim ({dim}).")
        if not (use_space or use_focus):
            raise ValueError("use_space and use_focus are both False; wanted at least one of them True.")
        self.layerscale_init = float(layerscale_init)
        self.focus_bias_slope_init = float(focus_bias_slope)
        self.bokeh_strength_scale = float(bokeh_strength_scale)
        self.use_space, self.use_focus, self.use_bokeh = use_space, use_focus, use_bokeh
        self.use_film, self.focus_measure = use_film and use_focus, focus_measure and use_focus
        hidden = int(dim * mlp_ratio)
        if self.use_space or self.use_film:
            self.k_embed = nn.Sequential(nn.Linear(1, dim // 4), nn.ReLU(), nn.Linear(dim // 4, dim))
        if use_space:
            scale = (dim // num_heads) ** -0.5 if space_attention_scale is None else float(space_attention_scale)
            self.ln_space_attn = nn.LayerNorm(dim)
            self.space_attn = _SpaceAttention(dim, num_heads, scale)
            self.gamma_space_attn = nn.Parameter(torch.empty(dim))
            self.ln_space_ffn = nn.LayerNorm(dim)
            self.space_ffn = _FeedForward(dim, hidden)
            self.gamma_space_ffn = nn.Parameter(torch.empty(dim))
        if self.use_film:
            self.focus_film = nn.Linear(dim, 2 * dim)
        if use_focus:
            self.ln_focus_attn = nn.LayerNorm(dim)
            self.focus_attn = _FocusAttention(dim, num_heads)
            self.gamma_focus_attn = nn.Parameter(torch.empty(dim))
            self.ln_focus_ffn = nn.LayerNorm(dim)
            self.focus_ffn = _FeedForward(dim, hidden)
            self.gamma_focus_ffn = nn.Parameter(torch.empty(dim))
            # One element and not a scalar: sharded training cannot split a tensor without axes.
            self.focus_bias_slope = nn.Parameter(torch.empty(1)) if learn_focus_bias else self.focus_bias_slope_init
        if self.focus_measure:
            self.focus_measure_embed = FocusMeasureEmbedding(dim)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise every parameter; under transformers' loader, only those that no checkpoint has filled."""
        for module in self.modules():
            if type(module) is nn.LayerNorm:
                init.ones_(module.weight)
                init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                init.kaiming_uniform_(module.weight, a=math.sqrt(5))
                init.zeros_(module.bias)
        for name, parameter in self.named_parameters(recurse=False):
            init.constant_(parameter, self.layerscale_init if name.startswith("gamma") else self.focus_bias_slope_init)
        if self.use_space or self.use_film:
            # The kinks of the ReLUs must fall inside the range of K, and K = 0 must have a token that is not zero.
            init.uniform_(self.k_embed[0].bias, -1.0, 1.0)
        if self.use_film and self.layerscale_init == 0:
            init.zeros_(self.focus_film.weight)
        if self.focus_measure:  # blur takes a few tenths from a measure, beside tokens of unit variance
            init.normal_(self.focus_measure_embed.proj.weight, std=0.5 * (self.layerscale_init != 0))

    def forward(
        self,
        tokens: Tensor,
        bokeh_strengths: Tensor,
        focus_measures: Tensor | None = None,
        reference_only: bool = False,
    ) -> Tensor:
        """Fuse the stack into the frames' tokens (Eq. 6-9).

        Args:
            tokens: patch tokens (B, F, N, D), the sharp reference first.
            bokeh_strengths: K of each frame (B, F). Values are not checked here; the model that owns the block does.
            focus_measures: (B, F, N, 12) of `FocusMeasureEmbedding.measure`; wanted exactly with ``focus_measure``.
            reference_only: query and return the reference alone: the same numbers; with F = 4 at 3/8 of step 2's cost.

        Returns:
            Refined tokens (B, F, N, D), or (B, 1, N, D) with ``reference_only``. A lone frame (F = 1) comes back
            unchanged: without a stack there is nothing to fuse.

        Raises:
            ValueError: if a shape does not fit or ``focus_measures`` is missing or unwanted.
        """
        self._check_shapes(tokens, bokeh_strengths, focus_measures)
        frames = tokens.shape[1]
        if frames == 1:
            return tokens
        queries, visible = 1 if reference_only else frames, frames
        if not self.use_bokeh:
            bokeh_strengths, visible, queries = torch.zeros_like(bokeh_strengths), 1, 1
        elif not self.use_focus:
            visible = queries
        x = tokens[:, :visible]
        strengths = bokeh_strengths[:, :visible].to(x.device, torch.promote_types(x.dtype, torch.float32))
        strengths = strengths / self.bokeh_strength_scale
        if self.use_space or self.use_film:
            k_tokens = self.k_embed(strengths.unsqueeze(-1).to(self.k_embed[0].weight.dtype))  # Eq. 6, (B, F, D)
        if self.focus_measure:
            x = x + self.focus_measure_embed(focus_measures[:, :visible])
        if self.use_space:
            x = self._space_step(x, k_tokens)
        if self.use_film:
            scale, shift = self.focus_film(k_tokens).unsqueeze(2).chunk(2, dim=-1)
            x = x * (1 + scale.tanh()) + shift  # Eq. 9
        if self.use_focus:
            x = self._focus_step(x, strengths, queries)
        return x if self.use_bokeh or reference_only else x.expand(-1, frames, -1, -1)

    def _check_shapes(self, tokens: Tensor, bokeh_strengths: Tensor, focus_measures: Tensor | None) -> None:
        if tokens.ndim != 4:
            raise ValueError(f"tokens has shape {tuple(tokens.shape)}; wanted (B, F, N, D).")
        if bokeh_strengths.shape != tokens.shape[:2]:
            raise ValueError(
                f"bokeh_strengths has shape {tuple(bokeh_strengths.shape)}; tokens {tuple(tokens.shape)}."
            )
        wanted = (*tokens.shape[:3], FocusMeasureEmbedding.num_measures) if self.focus_measure else None
        shape = None if focus_measures is None else tuple(focus_measures.shape)
        if shape != wanted:
            raise ValueError(f"`focus_measures` must have the shape {wanted}, got {shape}.")

    def _space_step(self, x: Tensor, k_tokens: Tensor) -> Tensor:
        """Eq. 7 on (B, F, N, D) with the K tokens (B, F, D)."""
        sequence = torch.cat([k_tokens.unsqueeze(2).to(x.dtype), x], dim=2).flatten(0, 1)
        update = self.space_attn(self.ln_space_attn(sequence)).unflatten(0, x.shape[:2])
        x = x + self.gamma_space_attn * update
        return x + self.gamma_space_ffn * self.space_ffn(self.ln_space_ffn(x))

    def _focus_step(self, x: Tensor, strengths: Tensor, queries: int) -> Tensor:
        """Attention along the frames (B, F, N, D) at each patch; returns the first ``queries`` frames."""
        distance = (strengths[:, :queries, None] - strengths[:, None, :]).abs()
        update = self.focus_attn(self.ln_focus_attn(x), -self.focus_bias_slope * distance)
        x = x[:, :queries] + self.gamma_focus_attn * update
        return x + self.gamma_focus_ffn * self.focus_ffn(self.ln_focus_ffn(x))


@strict
class DSFAConfig(PreTrainedConfig):
    """The fields of every backbone's configuration that say how DSFA is built and which K it takes.

    dsfa_levels, dsfa_num_heads, dsfa_mlp_ratio: maps (0 is the shallowest) that DSFA rewrites; size of a block.
    dsfa_layerscale_init: start of DSFA's LayerScale; at 0 a fresh model equals its backbone's to the last bit.
    bokeh_strength_scale, bokeh_strength_max: divisor of K inside the network, and the largest K that `forward` takes.
    dsfa_focus_bias_slope, dsfa_learn_focus_bias: slope of the focus attention's bias, and whether it is learned.
    use_space, use_focus, use_film, use_bokeh: the ablations of Table 4, see `DividedSpaceFocusAttention`.
    focus_measure: whether the blocks also see sharpness measures of the pixels.
    space_attention_scale: factor on the space attention's logits; None is `head_dim ** -0.5`.
    """

    dsfa_levels: list[int] | tuple[int, ...] = ()
    dsfa_num_heads: int = 8
    dsfa_mlp_ratio: float | int = 4.0
    dsfa_layerscale_init: float | int = 0.0
    bokeh_strength_scale: float | int = 30.0
    bokeh_strength_max: float | int = 30.0
    dsfa_focus_bias_slope: float | int = 1.0
    dsfa_learn_focus_bias: bool = True
    use_space: bool = True
    use_focus: bool = True
    use_film: bool = True
    use_bokeh: bool = True
    focus_measure: bool = False
    space_attention_scale: float | int | None = None

    def validate_dsfa(self) -> None:
        """Refuse DSFA fields that cannot be built, by a ValueError; part of the `@strict` validation."""
        levels, count = list(self.dsfa_levels), len(getattr(self, "neck_hidden_sizes", range(4)))
        if len(set(levels)) != len(levels) or not all(0 <= level < count for level in levels):
            raise ValueError(f"`dsfa_levels` must be different map indices from 0 to {count - 1}, got {levels}.")
        for name in ("dsfa_mlp_ratio", "bokeh_strength_scale", "bokeh_strength_max"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"`{name}` must be a positive number, got {getattr(self, name)}.")
        if not isinstance(self.patch_size, int) or (self.focus_measure and self.patch_size % 2):
            raise ValueError(f"`patch_size` must be one integer, even with focus_measure, got {self.patch_size}.")


class DSFAModel(CheckedLoading):
    """What every backbone's model has for its DSFA blocks: their making, and the checks of pixels and strengths."""

    def _dsfa_blocks(self, widths: list[int]) -> nn.ModuleDict:
        """A block for each of the configured levels, whose feature maps have these widths."""
        config, settings = self.config, {}
        for name in DividedSpaceFocusAttention.__init__.__kwdefaults__:
            settings[name] = getattr(config, f"dsfa_{name}" if hasattr(config, f"dsfa_{name}") else name)
        sizes, levels = (config.dsfa_num_heads, config.dsfa_mlp_ratio), config.dsfa_levels
        return nn.ModuleDict({str(i): DividedSpaceFocusAttention(widths[i], *sizes, **settings) for i in levels})

    @property
    def focus_bias_slopes(self) -> dict[int, float]:
        """Slope of each level's focus bias per ``bokeh_strength_scale`` units of K; empty without focus attention."""
        blocks = {int(level): block for level, block in self.dsfa.items() if block.use_focus}
        return {level: torch.as_tensor(block.focus_bias_slope).item() for level, block in blocks.items()}

    def _check_inputs(self, pixel_values: Tensor, bokeh_strengths: Tensor | None) -> None:
        shape, patch_px = tuple(pixel_values.shape), self.config.patch_size
        if pixel_values.ndim not in (4, 5) or 0 in shape:
            raise ValueError(f"pixel_values has shape {shape}; wanted (B, 3, H, W) or (B, F, 3, H, W), not empty.")
        if not pixel_values.is_floating_point():
            raise ValueError(f"pixel_values has dtype {pixel_values.dtype}; wanted normalised floating-point pixels.")
        if shape[-2] % patch_px or shape[-1] % patch_px:
            raise ValueError(f"pixel_values is {shape[-2]} x {shape[-1]} px; wanted multiples of {patch_px} px.")
        if (bokeh_strengths is not None) != (pixel_values.ndim == 5):
            raise ValueError(f"`bokeh_strengths` must be given with 5 axes of pixels and no others, got {shape}.")
        if bokeh_strengths is None:
            return
        if bokeh_strengths.shape != shape[:2]:
            raise ValueError(f"bokeh_strengths has shape {tuple(bokeh_strengths.shape)}; wanted (B, F) = {shape[:2]}.")
        if bokeh_strengths.dtype == torch.bool or bokeh_strengths.is_complex():
            raise ValueError(f"bokeh_strengths has dtype {bokeh_strengths.dtype}; wanted real numbers.")
        if torch.compiler.is_compiling():  # values are unknown while a graph is traced
            return
        rows, maximum = bokeh_strengths.tolist(), self.config.bokeh_strength_max
        if not all(row[0] == 0 and all(0 <= value <= maximum for value in row) for row in rows):  # NaN fails too
            raise ValueError(f"`bokeh_strengths` must be in [0, {maximum:g}], of the first frame 0, got {rows}.")


@strict
class BokehDepthAnythingConfig(DSFAConfig, DepthAnythingConfig):
    r"""Configuration of `BokehDepthAnythingForDepthEstimation`: Depth Anything's own fields, `DSFAConfig`'s and two.

    processing_resolution (`int`, *optional*, defaults to 518): photos' shorter side at work in px.
    stack_scale (`float`, *optional*, defaults to 1.0): side of stack frames over the reference's, an approximation.
    """

    model_type = "bokehdepth_depth_anything"

    dsfa_levels: list[int] | tuple[int, ...] = (2, 3)
    processing_resolution: int = 518
    stack_scale: float | int = 1.0

    def validate_stack(self) -> None:
        """Refuse what this backbone cannot build, by a ValueError; part of the `@strict` validation."""
        if not self.dsfa_levels:
            raise ValueError("`dsfa_levels` must be one feature-map index or more, got none.")
        if not 0 < self.stack_scale <= 1:
            raise ValueError(f"`stack_scale` must be a number above 0 and up to 1, got {self.stack_scale}.")


class BokehDepthAnythingForDepthEstimation(DSFAModel, DepthAnythingForDepthEstimation):
    """Depth Anything (V1/V2, relative or metric) that also looks at a bokeh stack of the photo.

    Backbone, neck and head are transformers' own classes and keep their weight names; for each chosen feature map a
    `DividedSpaceFocusAttention` (`dsfa.<level>`) rewrites the reference frame's patch tokens between backbone and
    neck. A plain model's folder loads with `fresh_parts=["dsfa"]`, and equals that model until it is trained.
    """

    config: BokehDepthAnythingConfig
    config_class = BokehDepthAnythingConfig
    _no_split_modules = ["DividedSpaceFocusAttention"]

    def __init__(self, config: BokehDepthAnythingConfig) -> None:
        super().__init__(config)
        self.head.conv3 = FloatConv2d(config.head_hidden_size, 1, 1)
        self.dsfa = self._dsfa_blocks([config.reassemble_hidden_size] * len(config.neck_hidden_sizes))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, DividedSpaceFocusAttention):
            module.reset_parameters()

    @classmethod
    def from_base(
        cls, model: DepthAnythingForDepthEstimation, **config_overrides: Any
    ) -> "BokehDepthAnythingForDepthEstimation":
        """Put fresh DSFA blocks into a loaded Depth Anything model, which keeps its device, dtype and mode.

        Args:
            model: the base model. Its backbone, neck and head are shared, not copied: training the result trains them.
            config_overrides: fields of `BokehDepthAnythingConfig`.

        Raises:
            ValueError: if ``model`` is no Depth Anything model or an override is no field of the configuration.
        """
        if not isinstance(model, DepthAnythingForDepthEstimation):
            raise ValueError(f"model is a {type(model).__name__}; wanted a DepthAnythingForDepthEstimation.")
        unknown = sorted(set(config_overrides) - set(BokehDepthAnythingConfig.__dataclass_fields__))
        if unknown:
            raise ValueError(f"config_overrides has {unknown}; wanted fields of BokehDepthAnythingConfig.")
        fields = {key: value for key, value in model.config.to_dict().items() if key not in ("model_type", "auto_map")}
        with torch.device("meta"):  # the base's parts are replaced at once: allocate and draw nothing for them
            fused = cls(BokehDepthAnythingConfig(**{**fields, **config_overrides}))
        fused.backbone, fused.neck, head = model.backbone, model.neck, model.head
        fused.head.conv1, fused.head.conv2, last = head.conv1, head.conv2, fused.head.conv3
        last.weight, last.bias = head.conv3.weight, head.conv3.bias
        fused.config.backbone_config = model.config.backbone_config
        fused.dsfa.to_empty(device=model.device).to(model.dtype)
        for block in fused.dsfa.values():
            block.reset_parameters()
        return fused.train(model.training)

    def forward(
        self,
        pixel_values: Tensor,
        bokeh_strengths: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> tuple[Tensor, ...] | DepthEstimatorOutput:
        """Estimate the depth of the reference frame.

        A lone frame, as (B, 3, H, W) or F = 1, takes the base class's path and DSFA does not run. Of a model with
        ``use_bokeh=False`` the stack is not encoded at all.

        Args:
            pixel_values: one image (B, 3, H, W), or a sharp reference and then its bokeh stack (B, F, 3, H, W); H and
                W are multiples of the patch size, pixels are normalised as the image processor does.
            bokeh_strengths: K of each frame (B, F), the first 0, the others in [0, ``config.bokeh_strength_max``] in
                any order; wanted exactly with 5-D ``pixel_values``. On the CPU its check waits for no device.
            labels: not supported, as in the base class.
            output_attentions: as in the base class; with a stack, of the reference frame.
            output_hidden_states: likewise.
            return_dict: False returns a tuple.

        Returns:
            ``predicted_depth`` (B, H, W): metres when ``config.depth_estimation_type`` is "metric", else relative
            disparity; float32 whatever the precision; with ``hidden_states`` and ``attentions`` where asked for.

        Raises:
            ValueError: if shape, dtype or value of ``pixel_values`` or ``bokeh_strengths`` does not fit.
            NotImplementedError: if ``labels`` is given.
        """
        self._check_inputs(pixel_values, bokeh_strengths)
        options = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        if pixel_values.ndim == 4 or pixel_values.shape[1] == 1:
            lone = pixel_values if pixel_values.ndim == 4 else pixel_values[:, 0]
            return super().forward(lone, labels=labels, return_dict=return_dict, **options)
        if labels is not None:
            raise NotImplementedError("labels is given; wanted None, since the loss belongs to the training script.")
        return_dict = self.config.return_dict if return_dict is None else return_dict
        options = {key: getattr(self.config, key) if value is None else value for key, value in options.items()}
        frames, _, height_px, width_px = pixel_values.shape[1:]
        pixel_values = pixel_values[:, : frames if self.config.use_bokeh else 1]
        features, maps = self._encode(pixel_values, 1, options)
        measures = None
        if self.config.focus_measure and self.config.use_focus:
            measures = FocusMeasureEmbedding.measure(pixel_values, self.config.patch_size).expand(-1, frames, -1, -1)
        fused = [tokens[:, 0] for tokens in maps]
        for level, block in self.dsfa.items():
            tokens = maps[int(level)].expand(-1, frames, -1, -1)
            refined = block(tokens[:, :, 1:], bokeh_strengths, measures, True)
            fused[int(level)] = torch.cat([tokens[:, 0, :1], refined[:, 0]], dim=1)  # the class token as it was
        grid = (height_px // self.config.patch_size, width_px // self.config.patch_size)
        output = DepthEstimatorOutput(predicted_depth=self.head(self.neck(fused, *grid), *grid))
        if options["output_hidden_states"]:
            output.hidden_states = tuple(state[:: len(state) // len(pixel_values)] for state in features.hidden_states)
        if options["output_attentions"]:
            output.attentions = tuple(rows[:: len(rows) // len(pixel_values)] for rows in features.attentions)
        return output if return_dict else output.to_tuple()

    def _encode(self, frames: Tensor, kept: int, options: dict[str, bool]) -> tuple[Any, list[Tensor]]:
        """Eq. 4: the backbone's output where it ran as a whole, and its maps (B, F, 1 + N, D).

        After the last fused map only the ``kept`` first frames go on; stack frames are smaller by ``stack_scale``.
        """
        if kept and self.config.stack_scale != 1 and frames.shape[1] > 1:
            features, maps = self._encode(frames[:, :1], 1, options)
            for level, tokens in self._encode_small(frames[:, 1:]).items():
                maps[level] = torch.cat([maps[level], tokens], dim=1)
            return features, maps
        backbone, last, shape = self.backbone, max(map(int, self.dsfa)), frames.shape[:2]
        divisible = hasattr(backbone, "encoder") and hasattr(backbone, "layernorm") and not any(options.values())
        if not divisible or kept == shape[1] or last == len(backbone.out_features) - 1:
            features = backbone.forward_with_filtered_kwargs(frames.flatten(0, 1), **options)
            return features, [feature.unflatten(0, shape) for feature in features.feature_maps]
        maps, hidden = [], backbone.embeddings(frames.flatten(0, 1))
        for name, layer in zip(backbone.stage_names, [nn.Identity(), *backbone.encoder.layer], strict=True):
            hidden = layer(hidden)
            if name in backbone.out_features:
                feature = backbone.layernorm(hidden) if backbone.config.apply_layernorm else hidden
                maps.append(feature.unflatten(0, (shape[0], -1)))
                if len(maps) == last + 1:
                    hidden = hidden.unflatten(0, shape)[:, :kept].flatten(0, 1)
                    if not kept:
                        break
        return None, maps

    def _encode_small(self, stack: Tensor) -> dict[int, Tensor]:
        """Tokens (B, F, 1 + N, D) of each fused map, of frames (B, F, 3, H, W) that are encoded smaller."""
        shape, patch_px = stack.shape[:2], self.config.patch_size
        grid = [side // patch_px for side in stack.shape[-2:]]
        small = [max(1, round(side * self.config.stack_scale)) for side in grid]
        shrunk = fn.interpolate(stack.flatten(0, 1), [patch_px * s for s in small], mode="bilinear", antialias=True)
        maps, found = self._encode(shrunk.unflatten(0, shape), 0, {})[1], {}
        for level in map(int, self.dsfa):
            patches = maps[level][:, :, 1:].flatten(0, 1).transpose(1, 2).unflatten(-1, small)
            patches = fn.interpolate(patches, grid, mode="bilinear").flatten(2).transpose(1, 2).unflatten(0, shape)
            found[level] = torch.cat([maps[level][:, :, :1], patches], dim=2)
        return found


# save_pretrained then copies this file and writes the auto_map entries that remote loading reads.
BokehDepthAnythingConfig.register_for_auto_class("AutoConfig")
BokehDepthAnythingForDepthEstimation.register_for_auto_class("AutoModelForDepthEstimation")

# As remote code this file runs under another name, and must not replace the classes of the installed package.
if __name__ == "bokehdepth.modeling_bokehdepth":
    AutoConfig.register(BokehDepthAnythingConfig.model_type, BokehDepthAnythingConfig, exist_ok=True)
    AutoModelForDepthEstimation.register(BokehDepthAnythingConfig, BokehDepthAnythingForDepthEstimation, exist_ok=True)
