"""State dicts in the released layouts, at any size: names and shapes of the fact sheets, values random or none."""

import functools

import parity
import torch


@functools.cache
def drawn(keys_file):
    """Weights by the rule of `../shared/parity`, drawn once for all tests, which must not write to them."""
    return parity.released_weights(keys_file)


def filled(shapes, seed=0, dtype=torch.float32):
    """Random tensors of a size that keeps signals alive through all layers; on the meta device for ``seed=None``."""
    if seed is None:
        return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        last = name.split(".")[-1]
        if "gamma" in last:
            value = 0.3 + 0.03 * noise
        elif last == "weight" and len(shape) == 1:
            value = 1 + 0.1 * noise
        elif name.endswith("k_embed.0.weight"):
            value = 0.05 * noise
        elif last == "weight":
            value = noise / noise[0].numel() ** 0.5
        else:
            value = 0.1 * noise
        state[name] = value.to(dtype)
    return state


def _linear(name, out, into, bias=True):
    return {f"{name}.weight": (out, into), **({f"{name}.bias": (out,)} if bias else {})}


def _norm(name, dim):
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def _conv(name, out, into, side, bias=True):
    return {f"{name}.weight": (out, into, side, side), **({f"{name}.bias": (out,)} if bias else {})}


def adapter(blocks=57, dim=3072, rank=128, context=768, hidden=64, branch="dof"):
    """`bokeh_lora.bin`; ``branch="bokeh"`` gives BokehDiffusion's names."""
    shapes = {**_linear("embedding_layer.0", hidden, 1), **_linear("embedding_layer.2", context, hidden)}
    for i in range(blocks):
        for part, into in (
            (f"to_k_{branch}", context),
            (f"to_v_{branch}", context),
            ("to_q_adp", dim),
            ("to_k_adp", dim),
        ):
            shapes |= _linear(f"adapter_modules.{i}.{part}.down", rank, into, bias=False)
            shapes |= _linear(f"adapter_modules.{i}.{part}.up", dim, rank, bias=False)
    return shapes


def _dinov2(prefix, dim, blocks, side, registers):
    shapes = {f"{prefix}.cls_token": (1, 1, dim), f"{prefix}.pos_embed": (1, side * side + 1, dim)}
    if registers:
        shapes[f"{prefix}.register_tokens"] = (1, 1, dim)
    shapes[f"{prefix}.mask_token"] = (1, dim)
    shapes |= _conv(f"{prefix}.patch_embed.proj", dim, 3, 14)
    for i in range(blocks):
        block = f"{prefix}.blocks.{i}"
        shapes |= _norm(f"{block}.norm1", dim) | _linear(f"{block}.attn.qkv", 3 * dim, dim)
        shapes |= _linear(f"{block}.attn.proj", dim, dim) | {f"{block}.ls1.gamma": (dim,)}
        shapes |= _norm(f"{block}.norm2", dim) | _linear(f"{block}.mlp.fc1", 4 * dim, dim)
        shapes |= _linear(f"{block}.mlp.fc2", dim, 4 * dim) | {f"{block}.ls2.gamma": (dim,)}
    return shapes | _norm(f"{prefix}.norm", dim)


def _dsfa(prefix, dim, film):
    shapes = {f"{prefix}.gamma_{step}_{part}": (dim,) for step in ("space", "focus") for part in ("attn", "ffn")}
    for step in ("space", "focus"):
        shapes |= _norm(f"{prefix}.ln_{step}_attn", dim) | _linear(f"{prefix}.{step}_attn.qkv", 3 * dim, dim)
        shapes |= _linear(f"{prefix}.{step}_attn.out_proj", dim, dim) | _norm(f"{prefix}.ln_{step}_ffn", dim)
        shapes |= _linear(f"{prefix}.{step}_ffn.fc1", 4 * dim, dim) | _linear(f"{prefix}.{step}_ffn.fc2", dim, 4 * dim)
    shapes |= _linear(f"{prefix}.k_embed.0", dim // 4, 1) | _linear(f"{prefix}.k_embed.2", dim, dim // 4)
    return shapes | _linear(f"{prefix}.{film}", 2 * dim, dim)


def depth_anything(dim=1024, blocks=24, features=256, outs=(256, 512, 1024, 1024), levels=(2, 3), side=37):
    """`DAV2_dsfa_release.pth`."""
    shapes = _dinov2("pretrained", dim, blocks, side, registers=False)
    for level in levels:
        shapes |= _dsfa(f"encoder_fusion.layers.{level}.block", dim, "focus_film.0")
    for i, out in enumerate(outs):
        shapes |= _conv(f"depth_head.projects.{i}", out, dim, 1)
    for i, size in ((0, 4), (1, 2), (3, 3)):
        shapes |= _conv(f"depth_head.resize_layers.{i}", outs[i], outs[i], size)
    for i, out in enumerate(outs):
        shapes |= _conv(f"depth_head.scratch.layer{i + 1}_rn", features, out, 3, bias=False)
    for i in range(1, 5):
        net = f"depth_head.scratch.refinenet{i}"
        shapes |= _conv(f"{net}.out_conv", features, features, 1)
        for unit in (1, 2):
            for conv in (1, 2):
                shapes |= _conv(f"{net}.resConfUnit{unit}.conv{conv}", features, features, 3)
    shapes |= _conv("depth_head.scratch.output_conv1", features // 2, features, 3)
    shapes |= _conv("depth_head.scratch.output_conv2.0", 32, features // 2, 3)
    return shapes | _conv("depth_head.scratch.output_conv2.2", 1, 32, 1)


def _normed_mlp(prefix, dim, hidden, out):
    return (
        _norm(f"{prefix}.norm", dim)
        | _linear(f"{prefix}.proj1", hidden, dim)
        | _linear(f"{prefix}.proj2", out, hidden)
    )


def _cross_block(prefix, dim, scaled):
    shapes = _normed_mlp(f"{prefix}.mlp", dim, 4 * dim, dim)
    shapes |= _linear(f"{prefix}.kv", 2 * dim, dim, bias=False) | _linear(f"{prefix}.q", dim, dim, bias=False)
    shapes |= _norm(f"{prefix}.norm_attnx", dim) | _norm(f"{prefix}.norm_attnctx", dim)
    shapes |= _linear(f"{prefix}.out", dim, dim, bias=False)
    return shapes | ({f"{prefix}.ls1.gamma": (dim,), f"{prefix}.ls2.gamma": (dim,)} if scaled else {})


def unidepth(dim=1024, blocks=24, width=512, least=64, side=37, dsfa=True):
    """`UDv2_dsfa_release.pth`, or with ``dsfa=False`` the published UniDepthV2."""
    encoder, head = ("pixel_encoder.backbone" if dsfa else "pixel_encoder"), "pixel_decoder.depth_layer"
    shapes = _dinov2(encoder, dim, blocks, side, registers=True)
    for i in range(4 if dsfa else 0):
        shapes |= _dsfa(f"pixel_encoder.fusion_blocks.{i}", dim, "focus_film")
    shapes["pixel_decoder.level_embeds"] = (1, 1, 4, width)
    for i in range(4):
        shapes |= _linear(f"pixel_decoder.input_adapter.input_adapters.{i}", width, dim)
        shapes |= _linear(f"pixel_decoder.camera_token_adapter.input_adapters.{i}", width, dim)
    camera = "pixel_decoder.camera_layer"
    shapes[f"{camera}.latents_pos"] = (1, 4, width)
    shapes |= _cross_block(f"{camera}.aggregate1", width, True) | _cross_block(f"{camera}.aggregate2", width, True)
    shapes |= _normed_mlp(f"{camera}.project", width, width, width)
    shapes |= _normed_mlp(f"{camera}.out_pinhole", width, width, 1)
    into = width
    for i in range(3):
        out = max(width // 2**i, least)
        for unit in (0, 1):
            shapes[f"{head}.ups.{i}.convs.{unit}.gamma"] = (1, into, 1, 1)
            for conv in (1, 2):
                shapes |= _conv(f"{head}.ups.{i}.convs.{unit}.conv{conv}", into, into, 3)
        shapes |= _conv(f"{head}.ups.{i}.up.0", out, into, 1)
        size = max(1, 2 * i)
        shapes |= {f"{head}.process_features.{i}.weight": (width, into, size, size)}
        shapes |= {f"{head}.process_features.{i}.bias": (into,)}
        into = out
    shapes |= _norm(f"{head}.depth_mlp.2.0", out) | _linear(f"{head}.depth_mlp.2.1", out, out)
    for i in range(4):
        shapes |= _cross_block(f"{head}.prompt_camera.{i}.layers.0", width, False)
    shapes |= _linear(f"{head}.to_latents", width, width)
    shapes |= _norm(f"{head}.confidence_mlp.0", out) | _linear(f"{head}.confidence_mlp.1", out, out)
    for part in ("depth", "confidence"):
        shapes |= _conv(f"{head}.to_{part}_lr", out // 2, out, 3) | _conv(f"{head}.to_{part}_hr.0", 32, out // 2, 3)
        shapes |= _conv(f"{head}.to_{part}_hr.2", 1, 32, 1)
    return shapes
