"""Tiny random models of the true classes."""

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxKontextPipeline, FluxTransformer2DModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    Dinov2Config,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from bokehdepth import BokehAdapter, BokehDepthAnythingConfig, BokehDepthAnythingForDepthEstimation, BokehDepthPipeline

HEADS, HEAD_DIM = 2, 16
# K of two stacks, each behind its photo.
STRENGTHS = torch.tensor([[0.0, 10.0, 20.0, 30.0], [0.0, 4.5, 1.0, 25.0]])


def transformer(seed: int = 0, **changes) -> FluxTransformer2DModel:
    torch.manual_seed(seed)
    settings = {
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": HEAD_DIM,
        "num_attention_heads": HEADS,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 24,
        "guidance_embeds": True,
        "axes_dims_rope": (4, 4, 8),
    }
    return FluxTransformer2DModel(**{**settings, **changes}).eval()


def adapter(seed: int = 1, trained: bool = True, **changes) -> BokehAdapter:
    """A fresh adapter, or one whose zero-initialised weights were replaced by noise."""
    torch.manual_seed(seed)
    settings = {
        "num_double_blocks": 2,
        "num_single_blocks": 2,
        "num_attention_heads": HEADS,
        "attention_head_dim": HEAD_DIM,
        "context_dim": 24,
        "rank": 4,
        "alpha": 4.0,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 24,
        "prompt_length": 5,
        "num_inference_steps": 2,
        "max_area": 64 * 64,
    }
    model = BokehAdapter(**{**settings, **changes}).eval()
    if trained:
        with torch.no_grad():
            for parameter in model.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.3)
            if model.prompt_embeds is not None:
                model.prompt_embeds.normal_()
                model.pooled_prompt_embeds.normal_()
    return model


def autoencoder(seed: int = 2) -> AutoencoderKL:
    torch.manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.0609,
        scaling_factor=1.5035,
    ).eval()


def depth_model(seed: int = 3) -> BokehDepthAnythingForDepthEstimation:
    torch.manual_seed(seed)
    backbone = Dinov2Config(
        hidden_size=48,
        num_hidden_layers=4,
        num_attention_heads=3,
        patch_size=14,
        image_size=70,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    config = BokehDepthAnythingConfig(
        backbone_config=backbone,
        patch_size=14,
        reassemble_hidden_size=48,
        reassemble_factors=[4, 2, 1, 0.5],
        neck_hidden_sizes=[8, 12, 16, 16],
        fusion_hidden_size=8,
        head_hidden_size=8,
        depth_estimation_type="metric",
        max_depth=20,
        dsfa_num_heads=3,
        dsfa_layerscale_init=0.1,
        processing_resolution=56,
    )
    model = BokehDepthAnythingForDepthEstimation(config).eval()
    # The library's own start is so small that depth would be one number everywhere.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return model


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(
        shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256
    )


def pipeline(**changes) -> BokehDepthPipeline:
    parts = {
        "scheduler": scheduler(),
        "vae": autoencoder(),
        "text_encoder": None,
        "tokenizer": None,
        "text_encoder_2": None,
        "tokenizer_2": None,
        "transformer": transformer(),
        "bokeh_adapter": adapter(),
        "depth_estimator": depth_model(),
    }
    pipe = BokehDepthPipeline(**{**parts, **changes})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def lora(seed: int = 6, layers=("attn.to_q", "attn.to_v")) -> dict[str, torch.Tensor]:
    """A LoRA for `transformer`, as files hold it."""
    source, width, state = torch.Generator().manual_seed(seed), HEADS * HEAD_DIM, {}
    for group in ("transformer_blocks", "single_transformer_blocks"):
        for index in range(2):
            for layer in layers:
                name = f"transformer.{group}.{index}.{layer}"
                state[f"{name}.lora_A.weight"] = torch.randn(2, width, generator=source)
                state[f"{name}.lora_B.weight"] = 0.3 * torch.randn(width, 2, generator=source)
    return state


def kontext(seed: int = 4, **parts) -> FluxKontextPipeline:
    """A FLUX.1-Kontext with text encoders, which read printable ASCII a character at a time."""
    characters = [chr(code) for code in range(33, 127)]
    words = [*characters, *(c + "</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -1.0), *((c, -2.0) for c in characters)]
    tokenizer_2 = T5Tokenizer(vocab=pieces, extra_ids=0)
    torch.manual_seed(seed)
    clip = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=24,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
        pad_token_id=len(words) - 1,
    )
    t5 = T5Config(vocab_size=len(tokenizer_2), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    own = {
        "scheduler": scheduler(),
        "vae": autoencoder(),
        "transformer": transformer(),
        "text_encoder": CLIPTextModel(clip).eval(),
        "tokenizer": CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77),
        "text_encoder_2": T5EncoderModel(t5).eval(),
        "tokenizer_2": tokenizer_2,
    }
    return FluxKontextPipeline(**{**own, **parts})
