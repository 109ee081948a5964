"""Encoder and decoder of UniDepthV2 (arXiv 2502.20110), for `modeling_bokehdepth_unidepth.py`.

The file stands alone. The layers are written from the shapes and names of the
published checkpoints and from the papers. Parameters keep the published names, so weights load by their own keys.

``S`` frames of all photos, ``B`` batch, ``N = h w`` patch tokens, ``D`` encoder channels, ``C`` decoder channels,
``H W`` pixels at the network. ``config`` is a `BokehDepthUniDepthConfig`.
"""

import math

import torch
import torch.nn.functional as fn
from torch import Tensor, nn
from transformers.configuration_utils import PreTrainedConfig

_FOCAL_SHARE = 0.7  # the camera head's unit: this share of the picture's diagonal


# --- encoder ---------------------------------------------------------------------------------------------------------


class Scale(nn.Module):
    """One learned factor for each channel (LayerScale)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Scale (..., D)."""
        return x * self.gamma


class _SelfAttention(nn.Module):
    """Multi-head self-attention of the encoder, (S, T, D) to (S, T, D)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(fn.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _EncoderFeedForward(nn.Module):
    """Two linear layers with the exact GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(fn.gelu(self.fc1(x)))


class _EncoderBlock(nn.Module):
    """Pre-norm transformer block with LayerScale."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        dim = config.hidden_size
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = _SelfAttention(dim, config.num_attention_heads)
        self.ls1 = Scale(dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = _EncoderFeedForward(dim, config.mlp_ratio * dim)
        self.ls2 = Scale(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class _PatchEmbed(nn.Module):
    """Non-overlapping patches, (S, 3, H, W) to (S, D, h, w)."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.hidden_size, config.patch_size, stride=config.patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.proj(pixels)


class UniDepthEncoder(nn.Module):
    """DINOv2 (arXiv 2304.07193) read at four depths, each through the final norm."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        dim = config.hidden_size
        self.out_indices = tuple(config.out_indices)
        self.table_side = config.image_size // config.patch_size
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, self.table_side**2 + 1, dim))
        # Two parameters of the published checkpoints that the forward pass never reads.
        self.register_tokens = nn.Parameter(torch.empty(1, 1, dim))
        self.mask_token = nn.Parameter(torch.empty(1, dim))
        self.patch_embed = _PatchEmbed(config)
        self.blocks = nn.ModuleList([_EncoderBlock(config) for _ in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(dim, eps=1e-5)

    def _positions(self, height: int, width: int) -> Tensor:
        """Position table (1, 1 + N, D), interpolated in float32 to ``height`` x ``width`` patches."""
        if height == width == self.table_side:
            return self.pos_embed
        table = self.pos_embed[:, 1:].unflatten(1, (self.table_side, -1)).permute(0, 3, 1, 2).float()
        factors = (height / self.table_side, width / self.table_side)
        grid = fn.interpolate(table, scale_factor=factors, mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2).to(self.pos_embed.dtype)], dim=1)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Encode frames.

        Args:
            pixels: normalised frames (S, 3, H, W).

        Returns:
            Four levels (S, 1 + N, D), the class token first.
        """
        patches = self.patch_embed(pixels)
        height, width = patches.shape[-2:]
        tokens = torch.cat([self.cls_token.expand(len(pixels), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        tokens = tokens + self._positions(height, width)
        levels = []
        for number, block in enumerate(self.blocks[: self.out_indices[-1]], start=1):
            tokens = block(tokens)
            if number in self.out_indices:
                levels.append(self.norm(tokens))
        return levels


# --- decoder ---------------------------------------------------------------------------------------------------------


class _NormedMLP(nn.Module):
    """LayerNorm and two linear layers with the exact GELU between them."""

    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.proj1 = nn.Linear(dim, hidden)
        self.proj2 = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj2(fn.gelu(self.proj1(self.norm(x))))


class _CrossBlock(nn.Module):
    """Pre-norm attention to a context, then a feed-forward part; no biases in the attention."""

    def __init__(self, config: PreTrainedConfig, scaled: bool) -> None:
        super().__init__()
        dim = config.decoder_hidden_size
        self.num_heads = config.decoder_num_heads
        self.mlp = _NormedMLP(dim, config.mlp_ratio * dim, dim)
        self.kv = nn.Linear(dim, 2 * dim, bias=False)
        self.q = nn.Linear(dim, dim, bias=False)
        self.norm_attnx = nn.LayerNorm(dim)
        self.norm_attnctx = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, dim, bias=False)
        self.ls1 = Scale(dim) if scaled else nn.Identity()
        self.ls2 = Scale(dim) if scaled else nn.Identity()

    def forward(self, x: Tensor, context: Tensor, query_offset: Tensor | None = None) -> Tensor:
        """Update (B, T, C) from the context (B, S, C); ``query_offset`` (1, T, C) is added to the queries."""
        q = self.q(self.norm_attnx(x))
        if query_offset is not None:
            q = q + query_offset
        k, v = self.kv(self.norm_attnctx(context)).chunk(2, dim=-1)
        q, k, v = (y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for y in (q, k, v))
        x = x + self.ls1(self.out(fn.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))
        return x + self.ls2(self.mlp(x))


class _LevelAdapters(nn.Module):
    """One linear layer for each level, D to C."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.input_adapters = nn.ModuleList(
            [nn.Linear(config.hidden_size, config.decoder_hidden_size) for _ in config.out_indices]
        )

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        return [adapter(level) for adapter, level in zip(self.input_adapters, levels, strict=True)]


class _CameraHead(nn.Module):
    """Four class tokens to a pinhole camera."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        dim = config.decoder_hidden_size
        self.latents_pos = nn.Parameter(torch.empty(1, 4, dim))
        self.project = _NormedMLP(dim, dim, dim)
        self.aggregate1 = _CrossBlock(config, scaled=True)
        self.aggregate2 = _CrossBlock(config, scaled=True)
        self.out_pinhole = _NormedMLP(dim, dim, 1)

    def forward(self, tokens: Tensor, height_px: int, width_px: int) -> Tensor:
        """Map (B, 4, C) to intrinsics (B, 3, 3) in px, float32 or wider."""
        tokens = self.project(tokens)
        for block in (self.aggregate1, self.aggregate2):
            tokens = block(tokens, tokens, self.latents_pos)
        raw = self.out_pinhole(tokens)[..., 0]
        raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
        focal_px = raw[:, :2].exp() * _FOCAL_SHARE * math.hypot(height_px, width_px)
        centre_px = raw[:, 2:].sigmoid() * raw.new_tensor([width_px, height_px])
        intrinsics = torch.eye(3, dtype=raw.dtype, device=raw.device).repeat(len(raw), 1, 1)
        intrinsics[:, 0, 0], intrinsics[:, 1, 1] = focal_px.unbind(-1)
        intrinsics[:, 0, 2], intrinsics[:, 1, 2] = centre_px.unbind(-1)
        return intrinsics


class _PromptedLevel(nn.Module):
    """Features that attend to the rays of the camera."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList([_CrossBlock(config, scaled=False)])

    def forward(self, x: Tensor, rays: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, rays)
        return x


class ResidualUnit(nn.Module):
    """Two convolutions, each after a leaky ReLU, on a scaled residual path."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)
        self.gamma = nn.Parameter(torch.ones(1, dim, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape."""
        return x + self.gamma * self.conv2(fn.leaky_relu(self.conv1(fn.leaky_relu(x))))


class _Upsampling(nn.Module):
    """Residual units, a 1 x 1 convolution, twice the size."""

    def __init__(self, dim: int, out: int, depth: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList([ResidualUnit(dim) for _ in range(depth)])
        self.up = nn.Sequential(nn.Conv2d(dim, out, 1), nn.Upsample(scale_factor=2, mode="bilinear"))

    def forward(self, x: Tensor) -> Tensor:
        for unit in self.convs:
            x = unit(x)
        return self.up(x)


class _DepthHead(nn.Module):
    """Camera-prompted features to log distance and log confidence."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        dim, least = config.decoder_hidden_size, config.decoder_out_channels
        widths = [min(dim, 2 * dim // 2**i) for i in range(3)]
        outs = [max(2 * dim // 2 ** (i + 1), least) for i in range(3)]
        self.dim = dim
        self.prompt_camera = nn.ModuleList([_PromptedLevel(config) for _ in range(4)])
        self.to_latents = nn.Linear(dim, dim)
        self.process_features = nn.ModuleList(
            [nn.ConvTranspose2d(dim, width, max(1, 2 * i), stride=max(1, 2 * i)) for i, width in enumerate(widths)]
        )
        self.ups = nn.ModuleList(
            [_Upsampling(*sizes) for sizes in zip(widths, outs, config.decoder_depths, strict=True)]
        )
        last = outs[-1]
        # Published checkpoints name this part by its place behind two parts without parameters.
        self.depth_mlp = nn.ModuleList(
            [nn.Identity(), nn.Identity(), nn.Sequential(nn.LayerNorm(last), nn.Linear(last, last))]
        )
        self.confidence_mlp = nn.Sequential(nn.LayerNorm(last), nn.Linear(last, last))
        self.to_depth_lr, self.to_confidence_lr = (self._smoothing(last, last // 2) for _ in range(2))
        self.to_depth_hr, self.to_confidence_hr = (
            nn.Sequential(self._smoothing(last // 2, 32), nn.LeakyReLU(), nn.Conv2d(32, 1, 1)) for _ in range(2)
        )

    @staticmethod
    def _smoothing(dim: int, out: int) -> nn.Conv2d:
        return nn.Conv2d(dim, out, 3, padding=1, padding_mode="reflect")

    def embed_rays(self, rays: Tensor, grid: tuple[int, int]) -> Tensor:
        """Sines of polar angle and azimuth at ``C / 2`` octave-spaced frequencies.

        Args:
            rays: unit vectors (B, 3, H, W).
            grid: patches h, w.

        Returns:
            (B, N, C), in the rays' precision.
        """
        if rays.shape[-2:] != grid:
            rays = fn.interpolate(rays, grid, mode="bilinear", align_corners=False, antialias=True)
        x, y, z = (rays / rays.norm(dim=1, keepdim=True).clamp(min=1e-4)).flatten(2).unbind(1)
        # Near the vertical plane through the axis, where x changes its sign, the azimuth is kept from jumping.
        x = torch.where(x >= 0, 1.0, -1.0) * x.abs().clamp(min=1e-3)
        angles = torch.stack([z.acos(), torch.atan2(y, x)], dim=-1)
        octaves = math.log2(max(grid) // 2) if max(grid) > 1 else 0.0
        frequencies = 2.0 ** torch.linspace(0.0, octaves, self.dim // 2, dtype=rays.dtype, device=rays.device)
        return (angles.unsqueeze(-1) * frequencies * math.pi).sin().flatten(-2)

    def forward(self, levels: list[Tensor], rays: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Decode.

        Args:
            levels: four levels of patch tokens (B, N, C).
            rays: unit vectors (B, 3, H, W).
            grid: patches h, w.

        Returns:
            Log distance and log confidence (B, 1, H, W), before their limits.
        """
        embedded = self.embed_rays(rays, grid).to(levels[0].dtype)
        prompted = [prompt(level, embedded) for prompt, level in zip(self.prompt_camera, levels, strict=True)]
        x = self.to_latents(prompted[0]).transpose(1, 2).unflatten(2, grid)
        for index, (process, up) in enumerate(zip(self.process_features, self.ups, strict=True)):
            x = up(x + process(prompted[index + 1].transpose(1, 2).unflatten(2, grid)))
        channels_last = x.permute(0, 2, 3, 1)
        outputs = []
        for mlp, smooth, finish in (
            (self.depth_mlp[-1], self.to_depth_lr, self.to_depth_hr),
            (self.confidence_mlp, self.to_confidence_lr, self.to_confidence_hr),
        ):
            y = smooth(mlp(channels_last).permute(0, 3, 1, 2))
            y = fn.interpolate(y, rays.shape[-2:], mode="bilinear", align_corners=True)
            outputs.append(finish(y))
        return outputs[0], outputs[1]


class UniDepthDecoder(nn.Module):
    """Camera head and depth head of UniDepthV2."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__()
        # Read by no output of the published model, but part of its checkpoints.
        self.level_embeds = nn.Parameter(torch.empty(1, 1, 4, config.decoder_hidden_size))
        self.input_adapter = _LevelAdapters(config)
        self.camera_token_adapter = _LevelAdapters(config)
        self.camera_layer = _CameraHead(config)
        self.depth_layer = _DepthHead(config)


def pinhole_rays(intrinsics: Tensor, height_px: int, width_px: int) -> Tensor:
    """Unit vectors through the centres of all pixels.

    Args:
        intrinsics: (B, 3, 3) pinhole matrices in px, the corner of the first pixel at 0.
        height_px: ``H``.
        width_px: ``W``.

    Returns:
        (B, 3, H, W): x right, y down, z forward.
    """
    options = {"dtype": intrinsics.dtype, "device": intrinsics.device}
    x_px = torch.arange(width_px, **options) + 0.5
    y_px = torch.arange(height_px, **options) + 0.5
    x = (x_px - intrinsics[:, 0, 2, None]) / intrinsics[:, 0, 0, None]
    y = (y_px - intrinsics[:, 1, 2, None]) / intrinsics[:, 1, 1, None]
    x, y = (v.expand(-1, height_px, width_px) for v in (x[:, None], y[:, :, None]))
    return fn.normalize(torch.stack([x, y, torch.ones_like(x)], dim=1), dim=1)
