import ast
import copy
import importlib.util
import json
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as fn
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForDepthEstimation,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTImageProcessorPil,
)

from bokehdepth.modeling_bokehdepth import (
    BokehDepthAnythingConfig,
    BokehDepthAnythingForDepthEstimation,
    DividedSpaceFocusAttention,
    FocusMeasureEmbedding,
)

STRENGTHS = torch.tensor([[0.0, 10.0, 20.0, 30.0], [0.0, 4.5, 1.0, 25.0]])
# A lone frame's rounding in the backbone's matrix products may differ from that of a batch by a few float32 steps.
FLOAT32_RELATIVE = 2e-6


def tiny_config(config_class=BokehDepthAnythingConfig, **fields):
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
    sizes = {"reassemble_hidden_size": 48, "neck_hidden_sizes": [8, 12, 16, 24]}
    sizes |= {"fusion_hidden_size": 16, "head_hidden_size": 8}
    depth = {"depth_estimation_type": "metric", "max_depth": 20}
    return config_class(backbone_config=backbone, patch_size=14, **sizes, **depth, **fields)


def enliven(module, seed=0):
    """Give the base's parameters a size at which depth varies over the image; leave DSFA's starting values alone."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if not name.startswith("dsfa"):
                fan_in = parameter[0].numel() if parameter.ndim > 1 else 400
                noise = torch.randn(parameter.shape, generator=generator) / fan_in**0.5
                parameter.copy_(noise if parameter.ndim > 1 else parameter + noise)
    return module.eval()


@pytest.fixture
def base():
    torch.manual_seed(0)
    return enliven(DepthAnythingForDepthEstimation(tiny_config(DepthAnythingConfig)))


@pytest.fixture
def frames():
    return torch.randn(2, 4, 3, 70, 98, generator=torch.Generator().manual_seed(1))


def trained_like(base, **fields):
    torch.manual_seed(2)
    fields = {"dsfa_layerscale_init": 0.5, "dsfa_num_heads": 4, **fields}
    return BokehDepthAnythingForDepthEstimation.from_base(copy.deepcopy(base), **fields)


def make_block(dim=32, num_heads=4, seed=3, dtype=torch.float32, **options):
    torch.manual_seed(seed)
    block = DividedSpaceFocusAttention(dim, num_heads, **{"layerscale_init": 0.5, **options}).to(dtype)
    with torch.no_grad():
        for parameter in block.parameters():  # no parameter at a value (0, 1) that could hide a missing term
            parameter.add_(0.1 * torch.randn_like(parameter))
    return block.eval()


def tokens_and_strengths(dtype=torch.float32, dim=32):
    generator = torch.Generator().manual_seed(4)
    return torch.randn(2, 4, 15, dim, generator=generator).to(dtype), STRENGTHS.to(dtype)


def close(actual, expected, relative):
    return (actual - expected).abs().max().item() <= relative * expected.abs().max().item()


# --- the block -------------------------------------------------------------------------------------------------------


def plain_dsfa(block, x, strengths, num_heads, space_scale=None):
    """Eq. 6-9 written out with explicit softmax, one frame and one patch at a time."""
    scaled = strengths / block.bokeh_strength_scale
    t = block.k_embed(scaled[..., None])
    dim = x.shape[-1]
    head_dim = dim // num_heads

    def attend(attention, rows, bias, scale):
        heads = attention.qkv(rows).reshape(len(rows), 3, num_heads, head_dim).permute(1, 2, 0, 3)
        logits = heads[0] @ heads[1].transpose(-1, -2) * scale + bias
        return attention.out_proj(
            (logits.exp() / logits.exp().sum(-1, True) @ heads[2]).transpose(0, 1).reshape(-1, dim)
        )

    out = x.clone()
    for b in range(x.shape[0]):
        for f in range(x.shape[1]):
            rows = torch.cat([t[b, f][None], x[b, f]])
            scale = head_dim**-0.5 if space_scale is None else space_scale
            rows = rows + block.gamma_space_attn * attend(block.space_attn, block.ln_space_attn(rows), 0.0, scale)
            hidden = fn.gelu(block.space_ffn.fc1(block.ln_space_ffn(rows)))
            out[b, f] = (rows + block.gamma_space_ffn * block.space_ffn.fc2(hidden))[1:]
        a, shift = block.focus_film(t[b]).chunk(2, -1)
        for j in range(x.shape[2]):
            rows = out[b, :, j] * (1 + torch.tanh(a)) + shift
            bias = -block.focus_bias_slope * (scaled[b][:, None] - scaled[b]).abs()
            normed = block.ln_focus_attn(rows)
            rows = rows + block.gamma_focus_attn * attend(block.focus_attn, normed, bias, head_dim**-0.5)
            hidden = fn.gelu(block.focus_ffn.fc1(block.ln_focus_ffn(rows)))
            out[b, :, j] = rows + block.gamma_focus_ffn * block.focus_ffn.fc2(hidden)
    return out


@pytest.mark.parametrize("space_scale", [None, 1 / 8])
@torch.no_grad()
def test_block_equals_explicit_softmax(space_scale):
    block = make_block(dtype=torch.float64, space_attention_scale=space_scale, focus_bias_slope=3.0)
    x, strengths = tokens_and_strengths(torch.float64)
    expected = plain_dsfa(block, x, strengths, 4, space_scale)
    assert close(block(x, strengths), expected, 1e-12)
    assert not close(expected, x, 0.1)


@torch.no_grad()
def test_fresh_block_is_the_identity_to_the_last_bit():
    x, strengths = tokens_and_strengths()
    block = DividedSpaceFocusAttention(32, 4)
    assert torch.equal(block(x, strengths), x)
    assert not torch.equal(DividedSpaceFocusAttention(32, 4, layerscale_init=1e-3)(x, strengths), x)


@torch.no_grad()
def test_lone_frame_comes_back_unchanged():
    x, strengths = tokens_and_strengths()
    assert torch.equal(make_block()(x[:, :1], strengths[:, :1]), x[:, :1])


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-14)])
@torch.no_grad()
def test_reference_only_equals_all_frames(dtype, tolerance):
    block = make_block(dtype=dtype)
    x, strengths = tokens_and_strengths(dtype)
    alone = block(x, strengths, reference_only=True)
    assert alone.shape == (2, 1, 15, 32)
    assert close(alone, block(x, strengths)[:, :1], tolerance)


@torch.no_grad()
def test_reference_only_projects_three_eighths_of_the_focus_step():
    block = make_block(use_space=False, use_film=False)
    x, strengths = tokens_and_strengths()
    flops = []
    for reference_only in (False, True):
        with FlopCounterMode(display=False) as counter:
            block(x, strengths, reference_only=reference_only)
        flops.append(counter.get_total_flops())
    assert flops[1] / flops[0] == pytest.approx(18 / 48)


@torch.no_grad()
def test_focus_bias_is_slope_times_strength_distance_over_30():
    block = make_block(dtype=torch.float64, use_space=False, use_film=False, focus_bias_slope=2.0)
    torch.nn.init.constant_(block.focus_bias_slope, 2.0)
    attention = block.focus_attn
    for layer, weight in (
        (attention.qkv, torch.cat([torch.zeros(64, 32), torch.eye(32)])),
        (attention.out_proj, torch.eye(32)),
    ):
        layer.weight.copy_(weight)
        layer.bias.zero_()
    block.gamma_focus_attn.fill_(1.0)
    block.gamma_focus_ffn.fill_(0.0)
    x, strengths = tokens_and_strengths(torch.float64)
    weights = torch.exp(-2.0 * torch.tensor([0.0, 10.0, 20.0, 30.0], dtype=torch.float64) / 30.0)
    normed = block.ln_focus_attn(x[0])
    expected = x[0, 0] + (weights[:, None, None] * normed).sum(0) / weights.sum()
    assert close(block(x, strengths)[0, 0], expected, 1e-12)


@torch.no_grad()
def test_strength_scale_divides_every_use_of_the_strength():
    x, strengths = tokens_and_strengths()
    by_30, by_1 = make_block(), make_block(bokeh_strength_scale=1.0)
    assert close(by_1(x, strengths / 30), by_30(x, strengths), 1e-6)
    assert not close(by_1(x, strengths), by_30(x, strengths), 1e-2)


@torch.no_grad()
def test_order_of_stack_frames_does_not_matter():
    block = make_block()
    x, strengths = tokens_and_strengths()
    order = [0, 3, 1, 2]
    expected = block(x, strengths)
    assert close(block(x[:, order], strengths[:, order]), expected[:, order], 1e-6)
    mislabelled = block(x[:, order], strengths)
    assert not close(mislabelled[:, 0], expected[:, 0], 1e-4)


@torch.no_grad()
def test_batch_equals_singles():
    block = make_block()
    x, strengths = tokens_and_strengths()
    singles = torch.cat([block(x[b : b + 1], strengths[b : b + 1]) for b in range(2)])
    assert close(block(x, strengths), singles, 1e-6)


@torch.no_grad()
def test_bfloat16_stays_near_float32():
    block = make_block()
    x, strengths = tokens_and_strengths()
    expected = block(x, strengths)
    half = block.to(torch.bfloat16)(x.bfloat16(), strengths)
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).norm() <= 1e-2 * expected.norm()


def parameter_names(block):
    return {name for name, _ in block.named_parameters()}


@torch.no_grad()
def test_ablation_without_focus_keeps_each_frame_to_itself():
    block = make_block(use_focus=False)
    x, strengths = tokens_and_strengths()
    expected = block(x, strengths)
    other = x.clone()
    other[:, 1:] += 1
    assert torch.equal(block(other, strengths)[:, 0], expected[:, 0])
    assert not close(expected, x, 0.1)
    assert close(block(x, strengths, reference_only=True), expected[:, :1], 1e-6)
    assert not any("focus" in name for name in parameter_names(block))


@torch.no_grad()
def test_ablation_without_space_mixes_no_patches():
    block = make_block(use_space=False)
    x, strengths = tokens_and_strengths()
    other = x.clone()
    other[:, :, 0] += torch.randn(32)
    first, second = block(x, strengths), block(other, strengths)
    assert torch.equal(first[:, :, 1:], second[:, :, 1:])
    assert not close(first[:, :, 0], second[:, :, 0], 1e-2)
    assert not any("space" in name for name in parameter_names(block))


@torch.no_grad()
def test_ablation_without_film():
    full, without = make_block(), make_block(use_film=False)
    without.load_state_dict({k: v for k, v in full.state_dict().items() if "film" not in k})
    x, strengths = tokens_and_strengths()
    assert not close(without(x, strengths), full(x, strengths), 1e-2)
    full.focus_film.weight.zero_()
    full.focus_film.bias.zero_()
    assert close(without(x, strengths), full(x, strengths), 1e-6)


@torch.no_grad()
def test_ablation_without_bokeh_equals_copies_of_the_reference_at_zero():
    full, without = make_block(), make_block(use_bokeh=False)
    x, strengths = tokens_and_strengths()
    expected = full(x[:, :1].expand(-1, 4, -1, -1), torch.zeros_like(strengths))
    actual = without(x, strengths)
    assert actual.shape == x.shape
    assert close(actual, expected, 1e-6)
    assert close(without(x, strengths, reference_only=True), expected[:, :1], 1e-6)


def test_fixed_slope_is_no_parameter():
    fixed = make_block(learn_focus_bias=False, focus_bias_slope=0.5)
    assert fixed.focus_bias_slope == 0.5
    assert parameter_names(make_block()) - parameter_names(fixed) == {"focus_bias_slope"}


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: DividedSpaceFocusAttention(32, 5), "num_heads is 5; wanted a positive divisor of dim (32)"),
        (lambda: DividedSpaceFocusAttention(32, 4, use_space=False, use_focus=False), "use_space and use_focus"),
        (lambda: make_block()(torch.ones(2, 15, 32), STRENGTHS), "tokens has shape (2, 15, 32)"),
        (lambda: make_block()(torch.ones(2, 4, 15, 32), STRENGTHS[:, :3]), "bokeh_strengths has shape (2, 3)"),
        (lambda: make_block(focus_measure=True)(torch.ones(2, 4, 15, 32), STRENGTHS), "focus_measures is None"),
        (lambda: make_block()(torch.ones(2, 4, 15, 32), STRENGTHS, torch.ones(2)), "focus_measures is given"),
        (
            lambda: make_block(focus_measure=True)(torch.ones(2, 4, 15, 32), STRENGTHS, torch.ones(2, 4, 15, 3)),
            "focus_measures has shape (2, 4, 15, 3)",
        ),
    ],
)
def test_block_refuses_bad_input(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


# --- focus measure ---------------------------------------------------------------------------------------------------


def test_focus_measure_of_a_ramp_and_of_flatness():
    ramp = (0.01 * torch.arange(70, dtype=torch.float64)).expand(1, 1, 3, 56, 70)
    measures = FocusMeasureEmbedding.measure(ramp, 14)
    assert measures.shape == (1, 1, 20, 12)
    interior = measures.unflatten(2, (4, 5))[0, 0, :, 1:4]
    # Across s pixels the ramp rises by 0.01 s, wherever the cell lies.
    for index, step_px in enumerate((1, 2, 4)):
        expected = 0.25 * np.log1p((0.01 * step_px) ** 2 / 1e-4)
        assert interior[..., 4 * index : 4 * index + 4].sub(expected).abs().max() < 1e-12
    assert FocusMeasureEmbedding.measure(torch.full((1, 1, 3, 28, 28), 0.7), 14).abs().max() == 0


def test_focus_measure_equals_its_description():
    grey = np.random.default_rng(0).random((28, 28))
    padded = np.pad(grey, 4, mode="edge")
    energy = np.zeros((3, 28, 28))
    for index, step in enumerate((1, 2, 4)):
        for y, x in np.ndindex(28, 28):
            top, left = y + 4 - step // 2, x + 4 - step // 2  # windows across the direction of the difference
            rows, columns = slice(top, top + step), slice(left, left + step)
            gradient_x = padded[rows, x + 4 : x + 4 + step].mean() - padded[rows, x + 4 - step : x + 4].mean()
            gradient_y = padded[y + 4 : y + 4 + step, columns].mean() - padded[y + 4 - step : y + 4, columns].mean()
            energy[index, y, x] = gradient_x**2 + gradient_y**2
    cells = 0.25 * np.log1p(energy.reshape(3, 2, 2, 7, 2, 2, 7).mean((3, 6)) / 1e-4)
    expected = cells.transpose(1, 3, 0, 2, 4).reshape(4, 12)
    image = torch.from_numpy(grey).expand(1, 1, 3, 28, 28)
    assert np.abs(FocusMeasureEmbedding.measure(image, 14)[0, 0].numpy() - expected).max() < 1e-12


def test_focus_measure_finds_the_sub_cell_and_falls_with_blur():
    image = torch.zeros(1, 1, 3, 28, 42)
    image[..., 14 + 9 : 14 + 12, 14 + 2 : 14 + 5] = 1  # patch (1, 1), lower left sub-cell
    finest = FocusMeasureEmbedding.measure(image, 14)[0, 0, :, :4]
    assert finest.nonzero().tolist() == [[4, 2]]
    noise = torch.rand(1, 1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    blurred = fn.avg_pool2d(fn.pad(noise[0], (3, 3, 3, 3), mode="replicate"), 7, stride=1)[None]
    sharp, soft = (FocusMeasureEmbedding.measure(x, 14) for x in (noise, blurred))
    assert (sharp > soft).all()


def test_focus_measure_reaches_the_depth(base, frames):
    model = trained_like(base, focus_measure=True)
    with torch.no_grad():
        before = model(frames, STRENGTHS).predicted_depth
        model.dsfa["3"].focus_measure_embed.proj.weight.add_(0.5)
        assert not close(model(frames, STRENGTHS).predicted_depth, before, 1e-4)


# --- the model -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"focus_measure": True, "dsfa_levels": [0, 1, 3]}])
@torch.no_grad()
def test_fresh_model_equals_base_to_the_last_bit(base, frames, fields):
    model = BokehDepthAnythingForDepthEstimation.from_base(base, **fields)
    expected = base(frames[:, 0]).predicted_depth
    assert expected.std() > 0.5
    assert torch.equal(model(frames, STRENGTHS).predicted_depth, expected)


@torch.no_grad()
def test_lone_frame_takes_the_base_path(base, frames):
    model = trained_like(base)
    expected = base(frames[:, 0]).predicted_depth
    assert torch.equal(model(frames[:, 0]).predicted_depth, expected)
    assert torch.equal(model(frames[:, :1], STRENGTHS[:, :1]).predicted_depth, expected)
    assert not close(model(frames, STRENGTHS).predicted_depth, expected, 1e-2)


@torch.no_grad()
def test_model_invariances(base, frames):
    model = trained_like(base)
    expected = model(frames, STRENGTHS).predicted_depth
    assert expected.shape == (2, 70, 98)
    order = [0, 2, 3, 1]
    assert close(model(frames[:, order], STRENGTHS[:, order]).predicted_depth, expected, FLOAT32_RELATIVE)
    singles = [model(frames[b : b + 1], STRENGTHS[b : b + 1]).predicted_depth for b in range(2)]
    assert close(torch.cat(singles), expected, FLOAT32_RELATIVE)
    assert torch.equal(model(frames, STRENGTHS.to(torch.float64)).predicted_depth, expected)


@torch.no_grad()
def test_model_in_bfloat16(base, frames):
    model = trained_like(base, focus_measure=True)
    expected = model(frames, STRENGTHS).predicted_depth
    half = model.to(torch.bfloat16)(frames.bfloat16(), STRENGTHS).predicted_depth.float()
    assert (half - expected).norm() <= 0.1 * expected.norm()


@torch.no_grad()
def test_model_without_bokeh_ignores_the_stack(base, frames):
    model, full = trained_like(base, use_bokeh=False), trained_like(base)
    full.load_state_dict(model.state_dict())
    expected = full(frames[:, :1].expand(-1, 4, -1, -1, -1), torch.zeros(2, 4)).predicted_depth
    encoded = []
    model.backbone.embeddings.register_forward_pre_hook(lambda module, args: encoded.append(len(args[0])))
    assert close(model(frames, STRENGTHS).predicted_depth, expected, FLOAT32_RELATIVE)
    assert not close(full(frames, STRENGTHS).predicted_depth, expected, 1e-2)
    assert encoded == [2]


@torch.no_grad()
def test_only_patch_tokens_of_chosen_levels_change(base, frames):
    model = trained_like(base, dsfa_levels=[1, 3])
    captured = {}
    for name, owner in (("base", base), ("model", model)):
        owner.neck.register_forward_pre_hook(lambda module, args, name=name: captured.update({name: args[0]}))
    base(frames[:, 0])
    model(frames, STRENGTHS)
    for level, (before, after) in enumerate(zip(captured["base"], captured["model"], strict=True)):
        assert torch.equal(before[:, 0], after[:, 0])
        assert torch.equal(before[:, 1:], after[:, 1:]) == (level not in (1, 3))


def test_gradient_reaches_every_frame_and_parameter(base, frames):
    model = trained_like(base, focus_measure=True)
    frames = frames.requires_grad_()
    model(frames, STRENGTHS).predicted_depth.square().mean().backward()
    assert (frames.grad.flatten(2).norm(dim=-1) > 0).all()
    base(frames[:, 0]).predicted_depth.square().mean().backward()
    wanted = {name for name, p in base.named_parameters() if p.grad is not None}
    wanted |= {name for name, _ in model.named_parameters() if name.startswith("dsfa")}
    parameters = dict(model.named_parameters())
    assert [name for name in wanted if parameters[name].grad is None or parameters[name].grad.norm() == 0] == []


def test_fresh_model_starts_to_learn_at_once(base, frames):
    model = BokehDepthAnythingForDepthEstimation.from_base(base, focus_measure=True).train()
    optimiser = torch.optim.SGD(model.dsfa.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        model(frames, STRENGTHS).predicted_depth.square().mean().backward()
        optimiser.step()
    assert [name for name, p in model.dsfa.named_parameters() if p.grad is None or p.grad.norm() == 0] == []


def test_activation_checkpointing_changes_no_gradient(base, frames):
    gradients, calls = [], []
    for enable in (False, True):
        model = trained_like(base).train()
        if enable:
            model.activation_checkpointing_enable()
            assert all(block.gradient_checkpointing for block in model.dsfa.values())
            model.dsfa["3"].ln_focus_ffn.register_forward_hook(lambda *_: calls.append(1))
        model(frames, STRENGTHS).predicted_depth.square().mean().backward()
        gradients.append([p.grad for p in model.dsfa.parameters()])
    assert len(calls) == 2  # once forward, once again for the backward pass
    assert all(torch.equal(plain, checkpointed) for plain, checkpointed in zip(*gradients, strict=True))


@torch.no_grad()
def test_outputs_of_the_reference_frame(base, frames):
    model = BokehDepthAnythingForDepthEstimation.from_base(base)
    model.backbone.set_attn_implementation("eager")
    options = {"output_hidden_states": True, "output_attentions": True}
    expected, actual = base(frames[:, 0], **options), model(frames, STRENGTHS, **options)
    assert len(actual.hidden_states) == 5 and len(actual.attentions) == 4
    mine, theirs = (out.hidden_states + out.attentions for out in (actual, expected))
    assert all(close(*pair, FLOAT32_RELATIVE) for pair in zip(mine, theirs, strict=True))
    as_tuple = model(frames, STRENGTHS, return_dict=False)
    assert len(as_tuple) == 1 and torch.equal(as_tuple[0], actual.predicted_depth)


BAD_STRENGTHS = [
    ([[0.0, 10.0, 20.0, 31.0]] * 2, "wanted finite values in [0, 30]"),
    ([[0.0, -1.0, 20.0, 30.0]] * 2, "wanted finite values in [0, 30]"),
    ([[0.0, float("nan"), 20.0, 30.0]] * 2, "wanted finite values in [0, 30]"),
    ([[5.0, 10.0, 20.0, 30.0]] * 2, "wanted 0 for the first frame"),
    ([[0.0, 10.0, 20.0]] * 2, "bokeh_strengths has shape (2, 3); wanted (B, F) = (2, 4)"),
    ([[False, True, True, True]] * 2, "bokeh_strengths has dtype torch.bool"),
]


@pytest.mark.parametrize("strengths, message", BAD_STRENGTHS)
def test_model_refuses_bad_strengths(base, frames, strengths, message):
    model = BokehDepthAnythingForDepthEstimation.from_base(base)
    with pytest.raises(ValueError, match=re.escape(message)):
        model(frames, torch.tensor(strengths))


def test_model_refuses_bad_pixels(base, frames):
    model = BokehDepthAnythingForDepthEstimation.from_base(base)
    cases = [
        (frames[0, 0], None, "pixel_values has shape (3, 70, 98)"),
        (frames[:, :0], STRENGTHS[:, :0], "pixel_values has shape (2, 0, 3, 70, 98)"),
        (frames.to(torch.uint8), STRENGTHS, "pixel_values has dtype torch.uint8"),
        (frames[..., 1:], STRENGTHS, "pixel_values is 70 x 97 px; wanted multiples of 14 px"),
        (frames, None, "bokeh_strengths is None"),
        (frames[:, 0], STRENGTHS[:, :1], "bokeh_strengths is given"),
    ]
    for pixel_values, strengths, message in cases:
        with pytest.raises(ValueError, match=re.escape(message)):
            model(pixel_values, strengths)
    for pixel_values, strengths in ((frames, STRENGTHS), (frames[:, 0], None)):
        with pytest.raises(NotImplementedError):
            model(pixel_values, strengths, labels=torch.zeros(2, 70, 98))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"dsfa_levels": [2, 4]}, "dsfa_levels is [2, 4]"),
        ({"dsfa_levels": []}, "dsfa_levels is []"),
        ({"dsfa_levels": [3, 3]}, "dsfa_levels is [3, 3]"),
        ({"bokeh_strength_scale": 0.0}, "bokeh_strength_scale is 0.0"),
        ({"patch_size": [14, 14]}, "patch_size is [14, 14]"),
        ({"use_focus": "no"}, "use_focus"),
    ],
)
def test_config_refuses_bad_fields(fields, message):
    with pytest.raises(Exception, match=re.escape(message)):
        BokehDepthAnythingConfig(**fields)


# --- building, saving, loading ---------------------------------------------------------------------------------------


def test_from_base_shares_and_leaves_the_base_alone(base, frames):
    keys = set(base.state_dict())
    model = BokehDepthAnythingForDepthEstimation.from_base(base, dsfa_levels=[1], dsfa_focus_bias_slope=2.5)
    assert model.backbone is base.backbone and set(base.state_dict()) == keys
    assert base.config.model_type == "depth_anything" and model.config.model_type == "bokehdepth_depth_anything"
    assert model.config.max_depth == 20 and model.focus_bias_slopes == {1: 2.5}
    assert model.training == base.training and model.config.backbone_config is base.backbone.config
    wanted = DividedSpaceFocusAttention(48, 8).state_dict()
    assert {name: value.shape for name, value in model.dsfa["1"].state_dict().items()} == {
        name: value.shape for name, value in wanted.items()
    }
    with pytest.raises(ValueError, match="dsfa_level'"):
        BokehDepthAnythingForDepthEstimation.from_base(base, dsfa_level=[1])
    with pytest.raises(ValueError, match="model is a Linear"):
        BokehDepthAnythingForDepthEstimation.from_base(torch.nn.Linear(1, 1))


@torch.no_grad()
def test_plain_folder_loads_with_only_dsfa_missing(base, frames, tmp_path):
    base.save_pretrained(tmp_path)
    torch.manual_seed(5)
    model, info = BokehDepthAnythingForDepthEstimation.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == {name for name in model.state_dict() if name.startswith("dsfa.")}
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    block = model.dsfa["2"]
    assert block.gamma_focus_ffn.abs().max() == 0 and block.focus_bias_slope.item() == 1
    assert block.k_embed[0].bias.abs().max() > 0.5 and block.focus_film.weight.abs().max() == 0
    assert block.space_attn.qkv.weight.std().item() == pytest.approx((3 * 48) ** -0.5, rel=0.1)
    assert torch.equal(model(frames, STRENGTHS).predicted_depth, base(frames[:, 0]).predicted_depth)


@torch.no_grad()
def test_save_and_load_round_trip(base, frames, tmp_path):
    model = trained_like(base, focus_measure=True, dsfa_levels=[1, 3], space_attention_scale=1 / 12, use_film=False)
    with torch.no_grad():
        model.dsfa["3"].focus_bias_slope.fill_(1.75)
    model.save_pretrained(tmp_path)
    again, info = BokehDepthAnythingForDepthEstimation.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert again.focus_bias_slopes == {1: 1.0, 3: 1.75}
    assert torch.equal(again(frames, STRENGTHS).predicted_depth, model(frames, STRENGTHS).predicted_depth)
    assert again.config.to_dict().items() >= {"focus_measure": True, "use_film": False}.items()
    automatic = AutoModelForDepthEstimation.from_pretrained(tmp_path)
    assert type(automatic) is BokehDepthAnythingForDepthEstimation


REMOTE = """
import json, sys
import numpy as np, torch
from PIL import Image
from transformers import AutoModelForDepthEstimation, DPTImageProcessorPil, pipeline

folder = sys.argv[1]
model = AutoModelForDepthEstimation.from_pretrained(folder, trust_remote_code=True).eval()
inputs = np.load("inputs.npz")
photo = Image.open("photo.png")
processor = DPTImageProcessorPil.from_pretrained(folder)
task = pipeline("depth-estimation", model=folder, image_processor=processor, trust_remote_code=True)
with torch.no_grad():
    depth = model(torch.from_numpy(inputs["frames"]), torch.from_numpy(inputs["strengths"])).predicted_depth
    direct = model(**processor(photo, return_tensors="pt"))
direct = processor.post_process_depth_estimation(direct, [photo.size[::-1]])[0]["predicted_depth"]
np.save("depth.npy", depth.numpy())
print(json.dumps({
    "module": type(model).__module__,
    "package_seen": any(name.split(".")[0] == "bokehdepth" for name in sys.modules),
    "pipeline_equals_direct": torch.equal(task(photo)["predicted_depth"], direct),
    "pipeline_shape": list(direct.shape),
}))
"""


@torch.no_grad()
def test_folder_loads_as_remote_code_without_the_package(base, frames, tmp_path):
    folder = tmp_path / "model"
    model = trained_like(base, focus_measure=True)
    model.save_pretrained(folder)
    processor = DPTImageProcessorPil(
        size={"height": 70, "width": 70}, ensure_multiple_of=14, keep_aspect_ratio=True, resample=3
    )
    processor.save_pretrained(folder)
    package_file = Path(importlib.util.find_spec("bokehdepth.modeling_bokehdepth").origin)
    assert (folder / "modeling_bokehdepth.py").read_bytes() == package_file.read_bytes()
    assert json.loads((folder / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "modeling_bokehdepth.BokehDepthAnythingConfig",
        "AutoModelForDepthEstimation": "modeling_bokehdepth.BokehDepthAnythingForDepthEstimation",
    }
    np.savez(tmp_path / "inputs.npz", frames=frames.numpy(), strengths=STRENGTHS.numpy())
    y, x = np.mgrid[:96, :128]
    Image.fromarray(np.stack([x, y, (x * y) % 256], axis=-1).astype(np.uint8)).save(tmp_path / "photo.png")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", REMOTE, str(folder)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report.pop("module").startswith("transformers_modules.")
    assert report == {"package_seen": False, "pipeline_equals_direct": True, "pipeline_shape": [96, 128]}
    expected = model(frames, STRENGTHS).predicted_depth
    assert close(torch.from_numpy(np.load(tmp_path / "depth.npy")), expected, FLOAT32_RELATIVE)


def test_file_stands_alone():
    source = Path(importlib.util.find_spec("bokehdepth.modeling_bokehdepth").origin).read_text(encoding="utf-8")
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not any(getattr(node, "level", 0) for node in imports)
    names = {getattr(node, "module", None) or node.names[0].name for node in imports}
    assert {name.split(".")[0] for name in names} == {"huggingface_hub", "math", "torch", "transformers", "typing"}
    assert len(source.splitlines()) < 600


# --- parity with the released code: weights and inputs are drawn by name, as the arrays' README says -----------------


@pytest.fixture(scope="module")
def parity_root(data_root):
    root = data_root.parent / "parity"
    if not root.is_dir():
        pytest.skip(f"no parity arrays at {root}")
    return root


def draw(name):
    return np.random.Generator(np.random.Philox(key=[1, zlib.crc32(name.encode())]))


def released_weight(name, shape):
    noise = draw(name).standard_normal(shape, dtype=np.float32)
    last = name.split(".")[-1]
    if last.startswith("gamma"):
        weight = 0.3 * (1 + 0.1 * noise)
    elif last == "bias":
        weight = 0.05 * noise
    elif last == "weight" and len(shape) == 1:
        weight = 1 + 0.1 * noise
    elif name.endswith("k_embed.0.weight"):
        weight = 0.05 * noise
    elif last == "weight":
        weight = noise / np.sqrt(np.prod(shape[1:]))
    else:
        weight = 0.2 * noise
    return torch.from_numpy(np.asarray(weight, dtype=np.float32))


def released_weights(keys_file):
    return {name: released_weight(name, shape) for name, shape in json.loads(keys_file.read_text()).items()}


def assert_stored(arrays, name, actual, max_relative, by="largest"):
    expected = torch.from_numpy(arrays[name]).to(actual.dtype)
    stats = arrays[f"{name}__stats"]
    if f"{name}__step" in arrays:
        assert list(actual.shape) == arrays[f"{name}__shape"].tolist()
        actual = actual.reshape(-1)[:: int(arrays[f"{name}__step"])]
    assert actual.shape == expected.shape
    size = stats[3] if by == "largest" else stats[1]
    assert (actual - expected).abs().max().item() <= max_relative * size, name


@pytest.mark.parametrize("precision, tolerance", [("f32", 5e-6), ("f64", 1e-9)])
@pytest.mark.parametrize("path", ["sdpa_on", "sdpa_off"])
@pytest.mark.parametrize("released", ["C_dsfa_block_dav2.npz", "E1_dsfa_block_unidepth.npz"])
@torch.no_grad()
def test_block_parity(parity_root, released, path, precision, tolerance):
    arrays = np.load(parity_root / "open" / released)
    dtype = torch.float32 if precision == "f32" else torch.float64
    weights = released_weights(parity_root / f"{released.split('_')[0]}_block_keys.json")
    weights = {name.replace("focus_film.0.", "focus_film."): value for name, value in weights.items()}

    def block_of(slope):
        block = DividedSpaceFocusAttention(
            64,
            4,
            bokeh_strength_scale=1.0,
            focus_bias_slope=slope,
            learn_focus_bias=False,
            space_attention_scale=1 / 16 if path == "sdpa_on" else None,
        )
        block.load_state_dict(weights)
        return block.to(dtype).eval()

    block = block_of(1.0)
    reference = torch.from_numpy(draw("in:DSFA.ref").standard_normal((2, 15, 64), dtype=np.float32)).to(dtype)
    stack = torch.from_numpy(draw("in:DSFA.stack").standard_normal((2, 3, 15, 64), dtype=np.float32)).to(dtype)

    def run(strengths, frames=stack, of=block, **options):
        strengths = torch.tensor([[0.0, *row] for row in strengths], dtype=dtype)
        return of(torch.cat([reference[:, None], frames], dim=1), strengths, **options)

    small = [[0.25, 0.5, 1.0], [1.5, 0.75, 2.0]]
    outputs = {
        "k10_20_30": run([[10, 20, 30]] * 2),
        "k_none": run([[0, 0, 0]] * 2),
        "k_small": run(small, reference_only=True),
        "k_mixed": run([[10, 20, 30], [1, 11, 29]]),
        "one_frame_k20": run([[20]] * 2, stack[:, :1]),
        "reversed_frames_k30_20_10": run([[30, 20, 10]] * 2, stack.flip(1)),
        "k_small_alibi_half": run(small, of=block_of(0.5)),
    }
    prefix = f"{precision}/{path}"
    for name, output in outputs.items():
        assert_stored(arrays, f"{prefix}/{name}", output[:, 0], tolerance)
    stages = {}
    for module, keep in ((block.k_embed, "k_tokens"), (block.focus_film, "film"), (block.ln_focus_attn, "film_out")):
        module.register_forward_hook(lambda m, args, out, keep=keep: stages.update({keep: (args[0], out)}))
    stages["after_focus_all_frames"] = run(small)
    scale, shift = stages["film"][1].chunk(2, dim=-1)
    modulated = stages["film_out"][0]
    after_space = (modulated - shift.unsqueeze(2)) / (1 + scale.tanh().unsqueeze(2))
    named = {"k_tokens": stages["k_tokens"][1], "film_scale_before_tanh": scale, "film_shift": shift}
    named["after_focus_all_frames"] = stages["after_focus_all_frames"]
    for name, output in named.items():
        assert_stored(arrays, f"{prefix}/k_small_stage/{name}", output, tolerance)
    # Dividing FiLM out again costs some digits.
    assert_stored(arrays, f"{prefix}/k_small_stage/after_space", after_space, 10 * tolerance)


RELEASED_TO_OURS = [
    (r"^pretrained\.(cls_token|mask_token)", r"backbone.embeddings.\1"),
    (r"^pretrained\.pos_embed", "backbone.embeddings.position_embeddings"),
    (r"^pretrained\.patch_embed\.proj", "backbone.embeddings.patch_embeddings.projection"),
    (r"^pretrained\.norm", "backbone.layernorm"),
    (r"^pretrained\.blocks\.", "backbone.encoder.layer."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.ls(\d)\.gamma", r".layer_scale\1.lambda1"),
    (r"^encoder_fusion\.layers\.(\d)\.block", r"dsfa.\1"),
    (r"focus_film\.0", "focus_film"),
    (r"^depth_head\.projects\.(\d)", r"neck.reassemble_stage.layers.\1.projection"),
    (r"^depth_head\.resize_layers\.(\d)", r"neck.reassemble_stage.layers.\1.resize"),
    (r"^depth_head\.scratch\.output_conv1", "head.conv1"),
    (r"^depth_head\.scratch\.output_conv2\.0", "head.conv2"),
    (r"^depth_head\.scratch\.output_conv2\.2", "head.conv3"),
    (r"resConfUnit(\d)\.conv(\d)", r"residual_layer\1.convolution\2"),
    (r"out_conv", "projection"),
]


def to_our_names(weights):
    ours = {}
    for name, value in weights.items():
        new = name
        for pattern, replacement in RELEASED_TO_OURS:
            new = re.sub(pattern, replacement, new)
        new = re.sub(r"^depth_head\.scratch\.layer(\d)_rn", lambda m: f"neck.convs.{int(m[1]) - 1}", new)
        new = re.sub(
            r"^depth_head\.scratch\.refinenet(\d)", lambda m: f"neck.fusion_stage.layers.{4 - int(m[1])}", new
        )
        if ".attn.qkv." in new:
            for part, piece in zip(("query", "key", "value"), value.chunk(3), strict=True):
                ours[new.replace(".attn.qkv.", f".attention.attention.{part}.")] = piece
        else:
            ours[new] = value
    return ours


def released_position_rule(embeddings):
    """Upstream interpolates the position table by a scale factor with an offset of 0.1; transformers by the size."""

    def interpolate(tokens, height, width):
        table = embeddings.position_embeddings.float()
        grid = table[:, 1:].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
        scale = ((height // 14 + 0.1) / 37, (width // 14 + 0.1) / 37)
        grid = fn.interpolate(grid, scale_factor=scale, mode="bicubic")
        return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], dim=1).to(tokens.dtype)

    return interpolate


@pytest.mark.parametrize("path", ["sdpa_on", "sdpa_off"])
@torch.no_grad()
def test_full_model_parity(parity_root, path, monkeypatch):
    arrays = np.load(parity_root / "open" / "D_dav2_dsfa_vits.npz")
    backbone = {"hidden_size": 384, "num_attention_heads": 6, "image_size": 518, "out_indices": [3, 6, 9, 12]}
    config = BokehDepthAnythingConfig(
        backbone_config=Dinov2Config(**backbone, reshape_hidden_states=False),
        depth_estimation_type="metric",
        max_depth=80,
        bokeh_strength_scale=1.0,
        dsfa_learn_focus_bias=False,
        space_attention_scale=1 / 48 if path == "sdpa_on" else None,
    )
    weights = to_our_names(released_weights(parity_root / "D_dsfa_vits_keys.json"))
    model, info = BokehDepthAnythingForDepthEstimation.from_pretrained(
        None, config=config, state_dict=weights, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    embeddings = model.backbone.embeddings
    monkeypatch.setattr(embeddings, "interpolate_pos_encoding", released_position_rule(embeddings))
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    reference, stack = (
        (torch.from_numpy(draw(f"in:D.{name}").random(shape, dtype=np.float32)) - mean) / std
        for name, shape in (("image", (1, 3, 70, 98)), ("stack", (1, 3, 3, 70, 98)))
    )
    frames = torch.cat([reference[:, None], stack], dim=1)
    refined = {}
    model.neck.register_forward_pre_hook(lambda module, args: refined.update(enumerate(args[0])))
    cases = {
        "stack_k_small_0.25_0.5_1": (frames, [[0, 0.25, 0.5, 1]]),
        "stack_one_frame_k20": (frames[:, :2], [[0, 20.0]]),
        "stack_k10_20_30": (frames, [[0, 10.0, 20.0, 30.0]]),
    }
    for name, (pixels, strengths) in cases.items():
        depth = model(pixels, torch.tensor(strengths)).predicted_depth
        assert_stored(arrays, f"f32/{path}/{name}", depth, 1e-4, by="std")
    for level in range(4):
        name = f"f32/{path}/refined_level{level}_patch"
        assert_stored(arrays, name, refined[level][:, 1:], 1e-4, by="std")
    assert_stored(arrays, f"f32/{path}/no_stack", model(reference).predicted_depth, 1e-4, by="std")


# --- what the stack costs --------------------------------------------------------------------------------------------


def counted_layers(model, call):
    """Frames (or frames x patches) that each backbone layer saw."""
    seen = []
    handles = [
        layer.register_forward_pre_hook(lambda m, args: seen.append(tuple(args[0].shape[:2])))
        for layer in model.backbone.encoder.layer
    ]
    out = call()
    for handle in handles:
        handle.remove()
    return out, seen


@torch.no_grad()
@pytest.mark.parametrize("measure", [False, True])
def test_stack_frames_stop_after_the_last_fused_map(base, frames, measure):
    model = trained_like(base, dsfa_levels=[0, 1], focus_measure=measure)
    out, seen = counted_layers(model, lambda: model(frames, STRENGTHS).predicted_depth)
    assert [rows for rows, _ in seen] == [8, 8, 2, 2]
    # Asked for the states of all layers the backbone runs whole.
    whole, seen = counted_layers(model, lambda: model(frames, STRENGTHS, output_hidden_states=True))
    assert [rows for rows, _ in seen] == [8, 8, 8, 8]
    assert len(whole.hidden_states) == 5 and all(len(state) == 2 for state in whole.hidden_states)
    assert close(out, whole.predicted_depth, 1e-5)


@torch.no_grad()
def test_smaller_stack_frames_cost_less_and_change_little(base, frames):
    model = trained_like(base, dsfa_levels=[1, 2])
    exact = model(frames, STRENGTHS).predicted_depth
    model.config.stack_scale = 0.5
    out, seen = counted_layers(model, lambda: model(frames, STRENGTHS).predicted_depth)
    grid = [side // 14 for side in frames.shape[-2:]]
    full, small = 1 + grid[0] * grid[1], 1 + round(grid[0] / 2) * round(grid[1] / 2)
    assert seen == 4 * [(2, full)] + 3 * [(6, small)]
    stackless = model(frames[:, 0]).predicted_depth
    off, effect = (out - exact).abs().mean(), (exact - stackless).abs().mean()
    assert 0 < off < effect, (off, effect)
    model.config.stack_scale = 1.0
    assert torch.equal(model(frames, STRENGTHS).predicted_depth, exact)


def test_stack_scale_is_checked():
    for wrong in (0.0, 1.5, float("nan")):
        with pytest.raises(Exception, match="stack_scale is .*wanted a number above 0 and up to 1"):
            tiny_config(stack_scale=wrong)


def test_gradients_are_the_same_where_stack_frames_stop(base, frames):
    gradients = []
    for whole in (False, True):
        model = trained_like(base, dsfa_levels=[0, 1]).double()
        model.zero_grad()
        depth = model(frames.double(), STRENGTHS, output_hidden_states=whole).predicted_depth
        depth.mean().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    largest = max(float(gradient.abs().max()) for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        assert (gradient - gradients[1][name]).abs().max() < 1e-6 * largest, name
