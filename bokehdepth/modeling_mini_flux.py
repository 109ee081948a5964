"""The embedded Stage-1 base: FLUX blocks at small size, with the stem and head that a few million weights need.

`MiniFluxTransformer2DModel` is diffusers' `FluxTransformer2DModel` (its blocks, embeddings, conditioning and call
signature) with three differences: tokens also see what an image encoder makes of the reference photo, the head blends
disk-blurred copies of that photo (`head="picture"` generates what is added to it instead), and the network predicts
the clean picture x0, from which `forward` returns the
velocity `(x_t - x0) / sigma` that a flow-matching scheduler expects (Eq. 10-11). `PatchAutoencoder` takes the place of
the VAE: its latents are the pixels themselves, rearranged, so nothing is lost in coding.

The head works on physical offsets: level j stands for `|1/S1 - 1/S2| = offsets_dpt[j]`, and its disk has the radius
`K * (width / 512) * offsets_dpt[j]` of Eq. 15. The blur is therefore given and its place is learned. In training the
levels are mixed by their probability; in evaluation each pixel takes one disk, a quantile of them: the median, or less
where leaving the subject alone counts for more than blurring all that is behind it.

A Hub repository carries the file with the one of ours that it imports joined in front of it.
"""

from typing import Any

import torch
import torch.nn.functional as fn
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput, Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.utils import apply_lora_scale
from torch import nn

from .modeling_efficientnet_lite import EfficientNetLiteEncoder
from .weights_bokehdepth import CheckedLoading

REFERENCE_WIDTH_PX = 512
GAMMA = 2.2


class PointDistribution:
    """A latent distribution without spread, with the two readings that diffusers' pipelines use."""

    def __init__(self, latents: torch.Tensor) -> None:
        self.latents = latents

    def mode(self) -> torch.Tensor:
        """Returns the latents (B, C, h, w)."""
        return self.latents

    def sample(self, generator: torch.Generator | None = None) -> torch.Tensor:
        """Returns the latents (B, C, h, w); there is nothing to draw."""
        return self.latents


class PatchAutoencoder(CheckedLoading, ModelMixin, ConfigMixin):
    """An autoencoder without loss or weights: 8x8 pixels of an RGB picture become 192 channels of one latent position.

    It has the interface of `AutoencoderKL` as far as Flux pipelines use it.

    Args:
        patch_px: pixels on a side of the block that becomes one latent position, a power of two.
        latent_channels: 3 * patch_px^2.
        block_out_channels: as many entries as make diffusers' `2 ** (len - 1)` equal to patch_px.
        scaling_factor: factor that pipelines multiply latents by.
        shift_factor: offset that pipelines subtract before.
    """

    @register_to_config
    def __init__(
        self,
        patch_px: int = 8,
        latent_channels: int = 192,
        block_out_channels: tuple[int, ...] = (1, 1, 1, 1),
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
    ) -> None:
        super().__init__()
        if 2 ** (len(block_out_channels) - 1) != patch_px or latent_channels != 3 * patch_px**2:
            raise ValueError(
                f"patch_px is {patch_px} with {latent_channels} latent_channels and {len(block_out_channels)} "
                "block_out_channels; wanted 2 ** (blocks - 1) pixels and 3 * patch_px ** 2 channels."
            )
        # ModelMixin reads dtype and device from a tensor, and offloading hooks from a parameter.
        self.anchor = nn.Parameter(torch.zeros(()), requires_grad=False)

    def encode(self, sample: torch.Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple:
        """(B, 3, H, W) in [-1, 1] to latents (B, 3 * p^2, H/p, W/p)."""
        distribution = PointDistribution(fn.pixel_unshuffle(sample, self.config.patch_px))
        return AutoencoderKLOutput(latent_dist=distribution) if return_dict else (distribution,)

    def decode(self, latents: torch.Tensor, return_dict: bool = True, **kwargs: Any) -> DecoderOutput | tuple:
        """Latents (B, 3 * p^2, h, w) to the picture (B, 3, h * p, w * p)."""
        sample = fn.pixel_shuffle(latents, self.config.patch_px)
        return DecoderOutput(sample=sample) if return_dict else (sample,)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with group norm, added to the input (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.conv_in = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_out = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Keeps the shape."""
        hidden = self.conv_in(fn.silu(self.norm(features)))
        return features + self.conv_out(fn.silu(hidden))


def residual_levels(channels: tuple[int, ...], depths: tuple[int, ...]) -> nn.ModuleList:
    """Residual blocks of each level of a pyramid, as many as its depth."""
    levels = zip(channels, depths, strict=True)
    return nn.ModuleList(nn.Sequential(*(ResidualBlock(width) for _ in range(depth))) for width, depth in levels)


class FloatConv2d(nn.Conv2d):
    """A convolution in float32 or wider, whatever autocast and the precision of its weights."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) as `nn.Conv2d` maps it."""
        if not x.is_meta and torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return self.forward(x)
        dtype = torch.promote_types(x.dtype, torch.float32)
        return self._conv_forward(x.to(dtype), self.weight.to(dtype), self.bias.to(dtype))


class PhotoStem(nn.Module):
    """What an image encoder sees in the photo, at 1/2, 1/4, 1/8 and 1/16 of its size; the last knows 1/32 too.

    Args:
        width_factor: of the encoder.
        depth_factor: likewise.
        channels: of the four levels.
    """

    def __init__(self, width_factor: float, depth_factor: float, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.encoder = EfficientNetLiteEncoder(width_factor, depth_factor)
        *levels, deepest = self.encoder.channels
        self.lateral = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(levels, channels, strict=True))
        self.deepest = nn.Conv2d(deepest, channels[-1], 1)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """(B, 3, H, W) in [-1, 1] to the four levels, finest first."""
        *maps, deepest = self.encoder(image)
        levels = [layer(features) for layer, features in zip(self.lateral, maps, strict=True)]
        above = fn.interpolate(self.deepest(deepest), size=levels[-1].shape[-2:], mode="bilinear")
        return [*levels[:-1], fn.silu(levels[-1] + above)]


class BlendDecoder(nn.Module):
    """Tokens and the stem's levels, the last of them of the tokens' size, to maps at half of the photo's size."""

    def __init__(
        self, hidden_size: int, channels: tuple[int, ...], depths: tuple[int, ...], out_channels: int
    ) -> None:
        super().__init__()
        self.proj_in = nn.Conv2d(hidden_size, channels[-1], 1)
        wide, depths = tuple(reversed(channels)), tuple(reversed(depths))
        self.merge = nn.ModuleList(
            nn.Conv2d(a + b, b, 3, padding=1) for a, b in zip((wide[0], *wide[:-1]), wide, strict=True)
        )
        self.blocks = residual_levels(wide, depths)
        self.proj_out = FloatConv2d(wide[-1], out_channels, 3, padding=1)

    def forward(self, tokens: torch.Tensor, levels: list[torch.Tensor]) -> torch.Tensor:
        """(B, D, h, w) tokens and the stem's levels of B photos or of one to float32 (B, out_channels, H/2, W/2)."""
        features = self.proj_in(tokens)
        for merge, block, level in zip(self.merge, self.blocks, reversed(levels), strict=True):
            if features.shape[-1] != level.shape[-1]:
                features = fn.interpolate(features, scale_factor=2.0, mode="nearest")
            features = block(merge(torch.cat([features, level.expand(len(features), -1, -1, -1)], dim=1)))
        return self.proj_out(fn.silu(features))


def blend_disks(
    image: torch.Tensor, weights: torch.Tensor, offsets_dpt: torch.Tensor, bokeh_strengths: torch.Tensor
) -> torch.Tensor:
    """Blends disk-blurred copies of a photo by per-pixel weights, in linear light.

    Each copy is normalised over the pixels that are themselves out of focus, so that a sharp subject does not bleed
    into the blur behind it.

    Args:
        image: (B, 3, H, W) display values in [0, 1].
        weights: (B, J, H, W), non-negative, summing to 1 over J; level 0 is the sharp photo.
        offsets_dpt: (J,) disparity offset of each level in 1/m, ascending from 0.
        bokeh_strengths: (B,) K at the 512 px reference width.

    Returns:
        (B, 3, H, W) display values in [0, 1].
    """
    height, width = image.shape[-2:]
    radii = bokeh_strengths[:, None] * (width / REFERENCE_WIDTH_PX) * offsets_dpt[1:]  # (B, J - 1), Eq. 15
    margin = int(radii.max().ceil()) + 1
    linear = image.clamp(0, 1).pow(GAMMA)
    defocused = 1 - weights[:, :1]
    # Sizes with small prime factors keep the transforms fast.
    right, bottom = (margin + -(extent + 2 * margin) % 32 for extent in (width, height))
    layers = torch.cat([linear * defocused, defocused], dim=1)
    layers = fn.pad(layers, (margin, right, margin, bottom), mode="replicate")
    size = layers.shape[-2:]

    rows = torch.fft.fftfreq(size[0], d=1 / size[0], device=image.device)
    columns = torch.fft.fftfreq(size[1], d=1 / size[1], device=image.device)
    distance = (rows[:, None].square() + columns.square()).sqrt()
    disks = (radii[..., None, None] + 0.5 - distance).clamp(0, 1)  # one pixel of soft edge
    disks = torch.fft.rfft2(disks / disks.sum((-2, -1), keepdim=True))

    blurred = torch.fft.irfft2(torch.fft.rfft2(layers)[:, None] * disks[:, :, None], s=size)
    blurred = blurred[..., margin : margin + height, margin : margin + width]  # (B, J - 1, 4, H, W)
    floor = 1e-2  # where nothing near is out of focus the photo itself stands in
    copies = (blurred[:, :, :3] + floor * linear[:, None]) / (blurred[:, :, 3:] + floor)
    mixed = weights[:, :1] * linear + (weights[:, 1:, None] * copies).sum(1)
    return mixed.clamp(1e-5, 1).pow(1 / GAMMA)


def level_weights(offset_dpt: torch.Tensor, levels_dpt: torch.Tensor) -> torch.Tensor:
    """Blend weights that mean one disparity offset: linear between the two levels around it.

    Args:
        offset_dpt: (B, 1, H, W) in 1/m, not negative; offsets beyond the last level take the last.
        levels_dpt: (J,) ascending from 0.

    Returns:
        (B, J, H, W), non-negative, summing to 1 over J.
    """
    upper = torch.bucketize(offset_dpt, levels_dpt).clamp(1, len(levels_dpt) - 1)
    low, high = levels_dpt[upper - 1], levels_dpt[upper]
    share = ((offset_dpt - low) / (high - low)).clamp(0, 1)
    result = offset_dpt.new_zeros(offset_dpt.shape[0], len(levels_dpt), *offset_dpt.shape[2:])
    result.scatter_(1, upper - 1, 1 - share)
    return result.scatter_(1, upper, share)


def quantile_offset(weights: torch.Tensor, levels_dpt: torch.Tensor, quantile: float = 0.5) -> torch.Tensor:
    """A quantile of a distribution over levels, each level's mass spread to the middles between it and its neighbours.

    Args:
        weights: (B, J, H, W), non-negative, summing to 1 over J.
        levels_dpt: (J,) ascending from 0, where level 0 is a point: that much of the mass there makes the offset 0.
        quantile: between 0 and 1; 0.5 is the median.

    Returns:
        (B, 1, H, W) in 1/m.
    """
    middles = (levels_dpt[1:] + levels_dpt[:-1]) / 2
    edges = torch.cat([levels_dpt[:1], middles, 2 * levels_dpt[-1:] - middles[-1:]])  # level j from edge j to j + 1
    reached = weights.cumsum(1)
    level = (reached < quantile).sum(1, keepdim=True).clamp(max=len(levels_dpt) - 1)
    mass = weights.gather(1, level)
    share = ((quantile - (reached.gather(1, level) - mass)) / mass.clamp(min=1e-6)).clamp(0, 1)
    offset = edges[level] + share * (edges[level + 1] - edges[level])
    return torch.where(level > 0, offset, offset.new_zeros(()))


class MiniFluxTransformer2DModel(CheckedLoading, FluxTransformer2DModel):
    """A small Flux transformer in Kontext form whose output is a blend of disk-blurred copies of the reference.

    Arguments that are not listed are those of `FluxTransformer2DModel`.

    Args:
        in_channels: 768, the values of a token of 16x16 pixels.
        width_factor: of the image encoder, see `EfficientNetLiteEncoder`.
        depth_factor: likewise.
        decoder_channels: widths at 1/2, 1/4, 1/8 and 1/16 of the photo's size, multiples of 8.
        decoder_depths: residual blocks of each of these levels in the decoder.
        offsets_dpt: disparity offset of each blend level in 1/m, ascending from 0.
        mirrored: look at the photo's mirror image too and average what both say of the levels, in evaluation. It
            takes twice the time and is a little more often right.
        quantile: of the levels' distribution, which each pixel takes in evaluation.
        head: disks (blends disk-blurred copies of the photo) or picture (generates what is added to the photo).
        grid_extent: the longer side of the token grid in rotary positions, whatever the photo's size, so that a size
            unseen in training has familiar positions.

    Raises:
        ValueError: the decoder does not have four levels, or the head is unknown.
    """

    token_px = 16

    @register_to_config
    def __init__(
        self,
        patch_size: int = 1,
        in_channels: int = 768,
        out_channels: int | None = None,
        num_layers: int = 2,
        num_single_layers: int = 4,
        attention_head_dim: int = 32,
        num_attention_heads: int = 6,
        joint_attention_dim: int = 32,
        pooled_projection_dim: int = 64,
        guidance_embeds: bool = False,
        axes_dims_rope: tuple[int, int, int] = (8, 12, 12),
        width_factor: float = 1.1,
        depth_factor: float = 1.2,
        decoder_channels: tuple[int, ...] = (24, 48, 96, 128),
        decoder_depths: tuple[int, ...] = (1, 1, 1, 1),
        offsets_dpt: tuple[float, ...] = (0.0, 0.04, 0.08, 0.16, 0.32, 0.64, 1.1, 1.8),
        head: str = "disks",
        mirrored: bool = False,
        quantile: float = 0.5,
        grid_extent: float = 16.0,
    ) -> None:
        for name, given in (("decoder_channels", decoder_channels), ("decoder_depths", decoder_depths)):
            if len(given) != 4:
                raise ValueError(f"`{name}` must be four numbers, one for each level, got {tuple(given)}.")
        if in_channels != 3 * self.token_px**2:
            raise ValueError(f"`in_channels` must be {3 * self.token_px**2}, a token's values, got {in_channels}.")
        if head not in ("disks", "picture"):
            raise ValueError(f"head is {head!r}; wanted 'disks' or 'picture'.")
        if not 0 < quantile < 1:
            raise ValueError(f"quantile is {quantile}; wanted a number between 0 and 1.")
        if mirrored and head != "disks":
            raise ValueError(
                f"mirrored is {mirrored} with head {head!r}; wanted it with disks, whose levels it averages."
            )
        super().__init__(
            patch_size=patch_size,
            in_channels=in_channels,
            out_channels=out_channels,
            num_layers=num_layers,
            num_single_layers=num_single_layers,
            attention_head_dim=attention_head_dim,
            num_attention_heads=num_attention_heads,
            joint_attention_dim=joint_attention_dim,
            pooled_projection_dim=pooled_projection_dim,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=axes_dims_rope,
        )
        self.stem = PhotoStem(width_factor, depth_factor, tuple(decoder_channels))
        self.stem_proj = nn.Linear(decoder_channels[-1], self.inner_dim)
        maps = len(offsets_dpt) if head == "disks" else 3 * 2**2  # the picture's values, 2x2 of them at half size
        self.decoder = BlendDecoder(self.inner_dim, tuple(decoder_channels), tuple(decoder_depths), maps)
        # The blend decoder takes the place of the projection to latents.
        self.proj_out = nn.Identity()

    @apply_lora_scale("joint_attention_kwargs")
    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        pooled_projections: torch.Tensor,
        timestep: torch.Tensor,
        img_ids: torch.Tensor,
        txt_ids: torch.Tensor,
        guidance: torch.Tensor | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
        return_weights: bool = False,
        blended: int | None = None,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor, ...]:
        """Predicts the velocity of the noisy tokens.

        Args:
            hidden_states: (B, 2N, in_channels) noisy tokens, then as many reference tokens; only the ones or only the
                others where the photo is encoded apart.
            encoder_hidden_states: (B, N_text, joint_attention_dim).
            pooled_projections: (B, pooled_projection_dim).
            timestep: (B,) sigma in (0, 1]; of reference tokens alone the noise level that they are told.
            img_ids: (2N or N, 3) stream, row, column; stream 1 is the reference.
            txt_ids: (N_text, 3).
            guidance: (B,) where the base has guidance embeddings.
            joint_attention_kwargs: for the attention processors. With `bokeh_strengths` (B,) for the head: K. Beside
                noisy tokens alone, `reference_photo` (B or 1, N, in_channels), `reference_keys` and
                `reference_values` of all blocks, and `reference_features`; both of these have the photo's mirror image
                behind it where that is looked at. Beside reference tokens alone, the list `features` of `record` gets
                the stem's levels.
            return_dict: return the dataclass instead of a tuple.
            return_weights: append the blend weights' logits (B, J, H/2, W/2), for training; None with a picture head.
            blended: how many samples, the first ones, become pictures, of which blending disks is a third of the cost
                of a training step; None is all.

        Returns:
            (B or blended, 2N or N, in_channels), zero for reference tokens.

        Raises:
            ValueError: there is no reference, or no K.
        """
        attention_kwargs = dict(joint_attention_kwargs or {})
        bokeh_strengths = attention_kwargs.pop("bokeh_strengths", None)
        photo = attention_kwargs.pop("reference_photo", None)
        record = attention_kwargs.get("record")
        features = attention_kwargs.pop("reference_features", getattr(record, "features", []))
        length = hidden_states.shape[1]
        count = int((img_ids[:, 0] == 1).sum())
        own = length - count
        if own and bokeh_strengths is None:
            raise ValueError(
                "joint_attention_kwargs has no bokeh_strengths; this transformer wants K for each sample."
            )
        if own != count and (own if photo is None else count):
            raise ValueError(f"hidden_states has {length} tokens, {count} of them reference tokens; wanted half.")
        rows, columns = (int(img_ids[:, axis].max()) + 1 for axis in (1, 2))
        photo = hidden_states[:, own:] if photo is None else photo

        scaled = timestep.to(hidden_states.dtype) * 1000
        if guidance is None:
            temb = self.time_text_embed(scaled, pooled_projections)
        else:
            temb = self.time_text_embed(scaled, guidance.to(hidden_states.dtype) * 1000, pooled_projections)
        positions = img_ids.to(torch.float32) * img_ids.new_tensor(
            [1.0, *(2 * [self.config.grid_extent / max(rows, columns)])], dtype=torch.float32
        )
        rotary = self.pos_embed(torch.cat([txt_ids.to(positions), positions]))

        def mirror(tokens: torch.Tensor) -> torch.Tensor:
            parts = tokens.split(rows * columns, dim=1)
            return torch.cat([self._pack(self._unpack(part, rows, columns).flip(-1)) for part in parts], dim=1)

        views = [(hidden_states, photo)]
        if self.config.mirrored and not self.training:
            views.append((mirror(hidden_states), mirror(photo)))
        blocks, seen = len(self.transformer_blocks) + len(self.single_transformer_blocks), []
        for view, (tokens, picture) in enumerate(views):
            kept = {
                name: attention_kwargs[name][view * blocks : (view + 1) * blocks]
                for name in ("reference_keys", "reference_values")
                if name in attention_kwargs
            }
            if len(features) <= view:
                features.append(self.stem(self._unpack(picture, rows, columns)))
            levels = features[view]
            tokens = self._attend(tokens, levels, encoder_hidden_states, temb, rotary, {**attention_kwargs, **kept})
            if own:
                grid = self.norm_out(tokens[:, :own], temb).transpose(1, 2).unflatten(2, (rows, columns))
                seen.append(self.decoder(grid, levels))
        if not own:
            nothing = torch.zeros_like(hidden_states)
            return Transformer2DModelOutput(sample=nothing) if return_dict else (nothing,)

        maps = seen[0]
        if len(seen) > 1:  # the mean of both probabilities
            maps = torch.stack([maps, seen[1].flip(-1)]).log_softmax(2).logsumexp(0)
        image = self._unpack(photo, rows, columns).expand(len(hidden_states), -1, -1, -1)[:blended]
        if self.config.head == "disks":
            blend = self._blend(image.float() / 2 + 0.5, maps[:blended], bokeh_strengths[:blended]) * 2 - 1
        else:
            blend = image.float() + fn.pixel_shuffle(maps[:blended], 2)
        x0, sigma = self._pack(blend), timestep[:blended].float()
        velocity = ((hidden_states[:blended, :own].float() - x0) / sigma[:, None, None]).to(hidden_states.dtype)
        sample = torch.cat([velocity, velocity.new_zeros(len(velocity), count, velocity.shape[-1])], dim=1)
        if return_weights:
            return sample, maps if self.config.head == "disks" else None
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _attend(
        self,
        hidden_states: torch.Tensor,
        levels: list[torch.Tensor],
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        attention_kwargs: dict[str, Any],
    ) -> torch.Tensor:
        """The blocks on tokens (B, N or 2N, in_channels), with the stem's levels of B photos or of one; (B, ., D)."""
        seen = self.stem_proj(levels[-1].flatten(2).transpose(1, 2))
        tokens = self.x_embedder(hidden_states) + seen.repeat(1, hidden_states.shape[1] // seen.shape[1], 1)
        text = self.context_embedder(encoder_hidden_states)
        for block in [*self.transformer_blocks, *self.single_transformer_blocks]:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                text, tokens = self._gradient_checkpointing_func(block, tokens, text, temb, rotary, attention_kwargs)
            else:
                text, tokens = block(
                    hidden_states=tokens,
                    encoder_hidden_states=text,
                    temb=temb,
                    image_rotary_emb=rotary,
                    joint_attention_kwargs=attention_kwargs,
                )
        return tokens

    def _blend(self, image: torch.Tensor, logits: torch.Tensor, bokeh_strengths: torch.Tensor) -> torch.Tensor:
        """Blends disks by the logits (B, J, H/2, W/2) of their levels; photo (B, 3, H, W) in [0, 1], K (B,)."""
        weights = fn.interpolate(logits, size=image.shape[-2:], mode="bilinear", align_corners=False).softmax(1)
        offsets = torch.tensor(self.config.offsets_dpt, device=image.device, dtype=torch.float32)
        if not self.training:
            # One radius for each pixel: a mixture of sharp and wide disks would veil what the network is unsure of.
            weights = level_weights(quantile_offset(weights, offsets, self.config.quantile), offsets)
        return blend_disks(image, weights, offsets, bokeh_strengths.to(image.device, torch.float32))

    def _unpack(self, tokens: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """Kontext tokens (B, h * w, C * 4) to the picture (B, 3, token_px * h, token_px * w) in [-1, 1]."""
        latents = tokens.unflatten(1, (rows, columns)).unflatten(-1, (-1, 2, 2))
        latents = latents.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
        return fn.pixel_shuffle(latents, self.token_px // 2)

    def _pack(self, image: torch.Tensor) -> torch.Tensor:
        """The inverse of `_unpack`."""
        latents = fn.pixel_unshuffle(image, self.token_px // 2)
        latents = latents.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
        return latents.permute(0, 2, 4, 1, 3, 5).flatten(3, 5).flatten(1, 2)
