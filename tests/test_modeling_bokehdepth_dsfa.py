"""Divided space focus attention and the focus measure of its frames, apart from the model that carries them."""

import re

import numpy as np
import parity
import pytest
import torch
import torch.nn.functional as fn
from torch.utils.flop_counter import FlopCounterMode

from bokehdepth.modeling_bokehdepth import DividedSpaceFocusAttention, FocusMeasureEmbedding
from tiny import STRENGTHS


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
    assert parity.close(block(x, strengths), expected, 1e-12)
    assert not parity.close(expected, x, 0.1)


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
    assert parity.close(alone, block(x, strengths)[:, :1], tolerance)


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
    assert parity.close(block(x, strengths)[0, 0], expected, 1e-12)


@torch.no_grad()
def test_strength_scale_divides_every_use_of_the_strength():
    x, strengths = tokens_and_strengths()
    by_30, by_1 = make_block(), make_block(bokeh_strength_scale=1.0)
    assert parity.close(by_1(x, strengths / 30), by_30(x, strengths), 1e-6)
    assert not parity.close(by_1(x, strengths), by_30(x, strengths), 1e-2)


@torch.no_grad()
def test_order_of_stack_frames_does_not_matter():
    block = make_block()
    x, strengths = tokens_and_strengths()
    order = [0, 3, 1, 2]
    expected = block(x, strengths)
    assert parity.close(block(x[:, order], strengths[:, order]), expected[:, order], 1e-6)
    mislabelled = block(x[:, order], strengths)
    assert not parity.close(mislabelled[:, 0], expected[:, 0], 1e-4)


@torch.no_grad()
def test_batch_equals_singles():
    block = make_block()
    x, strengths = tokens_and_strengths()
    singles = torch.cat([block(x[b : b + 1], strengths[b : b + 1]) for b in range(2)])
    assert parity.close(block(x, strengths), singles, 1e-6)


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
    assert not parity.close(expected, x, 0.1)
    assert parity.close(block(x, strengths, reference_only=True), expected[:, :1], 1e-6)
    assert not any("focus" in name for name in parameter_names(block))


@torch.no_grad()
def test_ablation_without_space_mixes_no_patches():
    block = make_block(use_space=False)
    x, strengths = tokens_and_strengths()
    other = x.clone()
    other[:, :, 0] += torch.randn(32)
    first, second = block(x, strengths), block(other, strengths)
    assert torch.equal(first[:, :, 1:], second[:, :, 1:])
    assert not parity.close(first[:, :, 0], second[:, :, 0], 1e-2)
    assert not any("space" in name for name in parameter_names(block))


@torch.no_grad()
def test_ablation_without_film():
    full, without = make_block(), make_block(use_film=False)
    without.load_state_dict({k: v for k, v in full.state_dict().items() if "film" not in k})
    x, strengths = tokens_and_strengths()
    assert not parity.close(without(x, strengths), full(x, strengths), 1e-2)
    full.focus_film.weight.zero_()
    full.focus_film.bias.zero_()
    assert parity.close(without(x, strengths), full(x, strengths), 1e-6)


@torch.no_grad()
def test_ablation_without_bokeh_equals_copies_of_the_reference_at_zero():
    full, without = make_block(), make_block(use_bokeh=False)
    x, strengths = tokens_and_strengths()
    expected = full(x[:, :1].expand(-1, 4, -1, -1), torch.zeros_like(strengths))
    actual = without(x, strengths)
    assert actual.shape == x.shape
    assert parity.close(actual, expected, 1e-6)
    assert parity.close(without(x, strengths, reference_only=True), expected[:, :1], 1e-6)


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
        (
            lambda: make_block(focus_measure=True)(torch.ones(2, 4, 15, 32), STRENGTHS),
            "(2, 4, 15, 12), got None",
        ),
        (
            lambda: make_block()(torch.ones(2, 4, 15, 32), STRENGTHS, torch.ones(2)),
            "got (2,)",
        ),
        (
            lambda: make_block(focus_measure=True)(torch.ones(2, 4, 15, 32), STRENGTHS, torch.ones(2, 4, 15, 3)),
            "got (2, 4, 15, 3)",
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


# --- parity with the released code: weights and inputs are drawn by name, as the arrays' README says -----------------


@pytest.mark.parametrize("precision, tolerance", [("f32", 5e-6), ("f64", 1e-9)])
@pytest.mark.parametrize("path", ["sdpa_on", "sdpa_off"])
@pytest.mark.parametrize("released", ["C_dsfa_block_dav2.npz", "E1_dsfa_block_unidepth.npz"])
@torch.no_grad()
def test_block_parity(parity_root, released, path, precision, tolerance):
    arrays = np.load(parity_root / "open" / released)
    dtype = torch.float32 if precision == "f32" else torch.float64
    weights = parity.released_weights(parity_root / f"{released.split('_')[0]}_block_keys.json")
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
    reference = torch.from_numpy(parity.draw("in:DSFA.ref").standard_normal((2, 15, 64), dtype=np.float32)).to(dtype)
    stack = torch.from_numpy(parity.draw("in:DSFA.stack").standard_normal((2, 3, 15, 64), dtype=np.float32)).to(dtype)

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
        parity.assert_stored(arrays, f"{prefix}/{name}", output[:, 0], tolerance)
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
        parity.assert_stored(arrays, f"{prefix}/k_small_stage/{name}", output, tolerance)
    # Dividing FiLM out again costs some digits.
    parity.assert_stored(arrays, f"{prefix}/k_small_stage/after_space", after_space, 10 * tolerance)


@torch.no_grad()
def test_focus_measure_embedding_knows_what_a_frame_lost():
    embed = FocusMeasureEmbedding(8)
    measures = torch.rand(2, 3, 15, 12)
    own, lost = embed.proj.weight.split(12, dim=1)
    expected = measures @ own.T + (measures[:, :1] - measures) @ lost.T + embed.proj.bias
    assert torch.allclose(embed(measures), expected, atol=1e-6)
    # Before step 1, so that a frame's patches see one another's sharpness.
    block = make_block(focus_measure=True, layerscale_init=1.0)
    tokens, measures = torch.randn(2, 4, 15, 32), torch.rand(2, 4, 15, 12)
    changed = measures.clone()
    changed[:, 2, 0] += 1
    moved = (block(tokens, STRENGTHS, changed) - block(tokens, STRENGTHS, measures)).abs().amax(dim=(0, 3))
    assert (moved[:, 1:] > 0).all()
