"""Networks of the true classes with random weights, at the true size or at one that a CPU computes in seconds."""

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from torch import nn
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

from bokehdepth.modeling_bokeh_adapter import BokehAdapter
from bokehdepth.modeling_bokehdepth import BokehDepthAnythingForDepthEstimation
from bokehdepth.pipeline_bokehdepth import BokehDepthPipeline

_SMALL_FLUX = {
    "num_layers": 2,
    "num_single_layers": 4,
    "attention_head_dim": 64,
    "num_attention_heads": 4,
    "joint_attention_dim": 256,
    "pooled_projection_dim": 64,
    "axes_dims_rope": (16, 24, 24),
}
_VIT = {  # hidden size, layers, heads, maps taken, neck, fusion
    True: (1024, 24, 16, [5, 12, 18, 24], [256, 512, 1024, 1024], 256),
    False: (192, 12, 3, [3, 6, 9, 12], [24, 48, 96, 192], 32),
}


@torch.no_grad()
def randomize(module: nn.Module, seed: int) -> nn.Module:
    """Fill weights by fan-in and all biases alike: zeros make matrix products faster than they are."""
    device = next(module.parameters()).device
    if device.type == "meta":
        return module.eval()
    generator = torch.Generator(device).manual_seed(seed)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
        elif parameter.ndim == 1 and not bool(parameter.all()):
            parameter.normal_(std=0.02, generator=generator)
    return module.eval()


def _make(build: type, device: torch.device, dtype: torch.dtype, seed: int, **settings: object) -> nn.Module:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # made in its dtype: FLUX in float32 has no room on most devices
    try:
        with device:
            return randomize(build(**settings), seed)
    finally:
        torch.set_default_dtype(before)


def transformer(true_size: bool, device: torch.device, dtype: torch.dtype) -> FluxTransformer2DModel:
    """A FLUX.1-Kontext transformer; on the meta device without weights, as the others below."""
    settings = {} if true_size else _SMALL_FLUX
    return _make(FluxTransformer2DModel, device, dtype, 0, guidance_embeds=True, **settings)


def adapter(base: FluxTransformer2DModel, prompt_tokens: int, **settings: object) -> BokehAdapter:
    """A trained-like adapter of the released kind (one token, q/k change) unless told otherwise."""
    names = ("num_attention_heads", "attention_head_dim", "joint_attention_dim", "pooled_projection_dim")
    small = {"rank": 16, "alpha": 16.0, "context_dim": 64} if base.inner_dim < 1024 else {}
    made = _make(
        BokehAdapter,
        base.device,
        base.dtype,
        1,
        num_double_blocks=base.config.num_layers,
        num_single_blocks=base.config.num_single_layers,
        prompt_length=prompt_tokens,
        **{name: base.config[name] for name in names},
        **small,
        **settings,
    )
    if base.device.type != "meta":
        generator = torch.Generator(base.device).manual_seed(2)
        made.prompt_embeds.normal_(generator=generator)
        made.pooled_prompt_embeds.normal_(generator=generator)
    return made


def autoencoder(true_size: bool, device: torch.device, dtype: torch.dtype) -> AutoencoderKL:
    """FLUX's autoencoder."""
    return _make(
        AutoencoderKL,
        device,
        dtype,
        3,
        block_out_channels=(128, 256, 512, 512) if true_size else (8, 8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2 if true_size else 1,
        latent_channels=16,
        norm_num_groups=32 if true_size else 8,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.1159,
        scaling_factor=0.3611,
    )


def pipeline(
    true_size: bool, device: torch.device, dtype: torch.dtype, size_px: int, prompt_tokens: int, **settings: object
) -> BokehDepthPipeline:
    """Stage-1 with a true autoencoder, scheduler and adapter, and no depth model."""
    base = transformer(true_size, device, dtype)
    pipe = BokehDepthPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256
        ),
        vae=autoencoder(true_size, device, dtype),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=base,
        bokeh_adapter=adapter(base, prompt_tokens, max_area=size_px**2, **settings),
        depth_estimator=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def depth_anything(true_size: bool, device: torch.device, dtype: torch.dtype) -> DepthAnythingForDepthEstimation:
    """Depth Anything of ViT-L size, or a small one."""
    hidden, layers, heads, maps, neck, fusion = _VIT[true_size]
    backbone = Dinov2Config(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        patch_size=14,
        image_size=518,
        out_indices=maps,
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=14,
        reassemble_hidden_size=hidden,
        neck_hidden_sizes=neck,
        fusion_hidden_size=fusion,
        depth_estimation_type="metric",
        max_depth=20,
    )
    return _make(DepthAnythingForDepthEstimation, device, dtype, 4, config=config)


def with_dsfa(
    base: DepthAnythingForDepthEstimation, levels: Sequence[int], stack_scale: float = 1.0
) -> BokehDepthAnythingForDepthEstimation:
    """The base with trained-like DSFA on some of its maps; base weights are shared."""
    heads = 8 if base.config.reassemble_hidden_size % 8 == 0 else 3
    torch.manual_seed(5)  # what `randomize` leaves as it was drawn
    model = BokehDepthAnythingForDepthEstimation.from_base(
        base, dsfa_levels=list(levels), stack_scale=stack_scale, dsfa_layerscale_init=0.1, dsfa_num_heads=heads
    )
    randomize(model.dsfa, 5)
    return model
