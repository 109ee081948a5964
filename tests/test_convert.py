import json
import math
import pickle
import re

import numpy as np
import parity
import pytest
import released_layouts as layouts
import torch
from safetensors.torch import save_file
from transformers import AutoModelForDepthEstimation

import tiny
from bokehdepth import (
    BokehAdapter,
    BokehDepthAnythingForDepthEstimation,
    BokehDepthAnythingV2Config,
    BokehDepthAnythingV2ForDepthEstimation,
)
from bokehdepth.errors import InputError
from bokehdepth.released.checkpoint import read_checkpoint
from bokehdepth.released.convert import convert_checkpoint, convert_state, identify

HEADS, HEAD_DIM, RANK = 4, 16, 8
DIM = HEADS * HEAD_DIM
TINY_BASE = {
    "num_double_blocks": 1,
    "num_single_blocks": 1,
    "num_attention_heads": HEADS,
    "attention_head_dim": HEAD_DIM,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 24,
}
TINY_ADAPTER = {**TINY_BASE, "rank": RANK, "alpha": float(RANK), "context_dim": 48, "embedding_dim": 10}


def released_adapter(dtype=torch.float32, **changes):
    sizes = {"blocks": 2, "dim": DIM, "rank": RANK, "context": 48, "hidden": 10, **changes}
    return layouts.filled(layouts.adapter(**sizes), dtype=dtype)


def released_unidepth(dtype=torch.float32, dsfa=True):
    shapes = layouts.unidepth(dim=64, blocks=12, width=32, least=4, side=3, dsfa=dsfa)
    return layouts.filled(shapes, seed=1, dtype=dtype)


def released_depth_anything(dtype=torch.float32):
    shapes = layouts.depth_anything(dim=64, blocks=12, features=8, outs=(4, 6, 8, 8), side=3)
    return layouts.filled(shapes, seed=2, dtype=dtype)


# --- every key has a place -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shapes, kind, tensors, parameters",
    [
        (layouts.adapter(), "bokeh_adapter", 460, 145_736_576),
        (layouts.depth_anything(), "depth_anything_dsfa", 475, 390_434_497),
        (layouts.unidepth(), "unidepth_dsfa", 656, 464_068_739),
        (layouts.unidepth(384, 12, 256, 32, dsfa=False), "unidepth", 352, 34_184_323),
        (layouts.unidepth(768, 12, 384, 48, dsfa=False), "unidepth", 352, None),
    ],
    ids=["adapter", "depth anything", "unidepth", "unidepth S plain", "unidepth B plain"],
)
def test_full_size_layouts_convert_with_nothing_missing_and_nothing_left_over(shapes, kind, tensors, parameters):
    state = layouts.filled(shapes, seed=None)
    model, report = convert_state(state)
    assert report.kind == kind and report.tensors == len(state) == tensors
    assert set(report.written) == set(state)
    own = [name for names in report.written.values() for name in names]
    assert sorted(own) == sorted(model.state_dict())
    values = sum(value.numel() for value in model.state_dict().values())
    assert values == report.parameters and parameters in (None, values)
    assert set(report.dead) < set(state)
    assert "NC" in report.licence or "non-commercial" in report.licence


def test_layouts_of_these_tests_are_the_released_ones(parity_root):
    for name, shapes in (
        ("G_flux_adapter_keys", layouts.adapter()),
        ("G_dav2_dsfa_vitl_keys", layouts.depth_anything()),
        ("G_unidepth_dsfa_vitl_keys", layouts.unidepth()),
        ("E_upstream_vits_keys", layouts.unidepth(384, 12, 256, 32, dsfa=False)),
    ):
        wanted = json.loads((parity_root / f"{name}.json").read_text())
        assert shapes == {key: tuple(shape) for key, shape in wanted.items()}


@pytest.mark.parametrize("state", [released_adapter(), released_unidepth(), released_depth_anything()])
def test_every_tensor_reaches_the_model_and_the_dead_ones_change_nothing(state):
    options = TINY_ADAPTER if identify(state) == "bokeh_adapter" else {"dsfa_num_heads": 4}
    model, report = convert_state(state, **options)
    ours = model.state_dict()
    for name, own in report.written.items():
        assert torch.equal(torch.cat([ours[part] for part in own]), state[name]), name

    def outputs():
        if isinstance(model, BokehAdapter):
            transformer = tiny.transformer(**TRANSFORMER)
            model.attach(transformer)
            out = adapted(transformer, model)
            model.detach()
            return out
        frames = torch.rand(1, 3, 3, 56, 42, generator=torch.Generator().manual_seed(3))
        return model(frames, torch.tensor([[0.0, 0.5, 1.5]])).predicted_depth

    with torch.no_grad():
        before = outputs()
        for name in report.dead:
            for own in report.written[name]:
                model.get_parameter(own).normal_()
        assert torch.equal(outputs(), before)
        alive = next(name for name in report.written if name not in report.dead)
        model.get_parameter(report.written[alive][0]).add_(0.5)
        assert not torch.equal(outputs(), before)


# --- arithmetic of the released adapter ------------------------------------------------------------------------------

TRANSFORMER = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": HEAD_DIM, "num_attention_heads": HEADS,
               "axes_dims_rope": (4, 6, 6)}  # fmt: skip


def adapted(transformer, adapter, dtype=torch.float32):
    generator = torch.Generator().manual_seed(4)
    ids = torch.zeros(8, 3)
    ids[4:, 0] = 1
    ids[:, 1], ids[:, 2] = torch.arange(8) % 4 // 2, torch.arange(8) % 2
    return transformer(
        hidden_states=torch.randn(2, 8, 16, generator=generator).to(dtype),
        encoder_hidden_states=torch.randn(2, 5, 32, generator=generator).to(dtype),
        pooled_projections=torch.randn(2, 24, generator=generator).to(dtype),
        timestep=torch.tensor([0.9, 0.2], dtype=dtype),
        guidance=torch.full((2,), 7.0),
        img_ids=ids,
        txt_ids=torch.zeros(5, 3),
        joint_attention_kwargs=adapter.attention_kwargs((10.0, 30.0)),
    ).sample


def released_block(base, state, index, x, text, strengths, rotary):
    """Sec. 1.4 of the fact sheet: LoRA on projected queries and keys, V of the K token added to every token."""
    dtype = x.dtype

    def linear(name, tokens):
        return tokens @ base[f"{name}.weight"].T + base[f"{name}.bias"]

    def lora(name, tokens):
        part = f"adapter_modules.{index}.{name}"
        return tokens @ state[f"{part}.down.weight"].T @ state[f"{part}.up.weight"].T

    def heads(tokens):
        return tokens.reshape(*tokens.shape[:2], HEADS, HEAD_DIM)

    def rms(tokens, name):
        return tokens / (tokens.square().mean(-1, keepdim=True) + 1e-6).sqrt() * base[f"{name}.weight"]

    q, k, v = (linear(name, x) for name in ("to_q", "to_k", "to_v"))
    q, k = q + lora("to_q_adp", q), k + lora("to_k_adp", k)
    q, k, v = rms(heads(q), "norm_q"), rms(heads(k), "norm_k"), heads(v)
    if text is not None:
        tq, tk, tv = (heads(linear(f"add_{part}_proj", text)) for part in "qkv")
        q, k, v = (
            torch.cat(pair, dim=1) for pair in ((rms(tq, "norm_added_q"), q), (rms(tk, "norm_added_k"), k), (tv, v))
        )
    if rotary is not None:
        cos, sin = (part[:, None] for part in rotary)
        q, k = (t * cos + torch.stack([-t[..., 1::2], t[..., ::2]], dim=-1).flatten(-2) * sin for t in (q, k))
    weights = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(HEAD_DIM)
    weights = weights.exp() / weights.exp().sum(-1, keepdim=True)
    out = torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2)

    norm = torch.tensor(strengths, dtype=dtype)[:, None].clamp(1, 30) / 30
    hidden = (norm @ state["embedding_layer.0.weight"].T + state["embedding_layer.0.bias"]).clamp(min=0)
    token = hidden @ state["embedding_layer.2.weight"].T + state["embedding_layer.2.bias"]
    out = out + lora("to_v_dof", token)[:, None]
    if text is None:
        return out
    image, words = out[:, text.shape[1] :], out[:, : text.shape[1]]
    return torch.cat([linear("to_add_out", words), linear("to_out.0", image)], dim=1)


@pytest.mark.parametrize("folded", [False, True], ids=["as released", "folded"])
@pytest.mark.parametrize(
    "dtype, rotates, tolerance", [(torch.float32, True, 1e-6), (torch.float64, False, 1e-12)], ids=["f32", "f64"]
)
@pytest.mark.parametrize("index", [0, 1], ids=["double", "single"])
@torch.no_grad()
def test_adapter_computes_what_the_release_computes(index, dtype, rotates, tolerance, folded):
    state = released_adapter(dtype)
    adapter, _ = convert_state(state, **TINY_ADAPTER)
    transformer = tiny.transformer(**TRANSFORMER).to(dtype)
    attention = (transformer.transformer_blocks[0] if index == 0 else transformer.single_transformer_blocks[0]).attn
    base = {name: value.clone() for name, value in attention.state_dict().items()}
    adapter.attach(transformer)
    if folded:
        adapter.fold()
    generator = torch.Generator().manual_seed(5)
    x, text = (torch.randn(2, n, DIM, generator=generator, dtype=dtype) for n in (6, 3))
    text = text if index == 0 else None
    angles = torch.rand(6 + 3 * (index == 0), HEAD_DIM // 2, generator=generator).repeat_interleave(2, dim=1)
    rotary = (angles.cos(), angles.sin()) if rotates else None  # diffusers rotates in float32, whatever the input
    arguments = {"encoder_hidden_states": text, "image_rotary_emb": rotary, **adapter.attention_kwargs((15.0, 30.0))}
    out = attention(x, **arguments)
    out = out if text is None else torch.cat([out[1], out[0]], dim=1)
    expected = released_block(base, state, index, x, text, (15.0, 30.0), rotary)
    assert parity.close(out, expected, tolerance)
    if folded:
        part = f"adapter_modules.{index}.to_q_adp"
        product = state[f"{part}.up.weight"] @ state[f"{part}.down.weight"]
        merged = (torch.eye(DIM, dtype=dtype) + product) @ base["to_q.weight"]
        assert parity.close(attention.to_q.weight, merged, tolerance)


def test_bokeh_diffusion_has_other_names_for_the_same():
    state = released_adapter()
    renamed = {name.replace("_dof", "_bokeh"): value for name, value in state.items()}
    bare = {name.removeprefix("adapter_modules."): value for name, value in state.items()}
    adapters = [convert_state(each, **TINY_ADAPTER)[0].state_dict() for each in (state, renamed, bare)]
    for other in adapters[1:]:
        assert all(torch.equal(value, other[name]) for name, value in adapters[0].items())


def test_some_blocks_keep_their_global_numbers():
    state = {n: v for n, v in released_adapter(blocks=5).items() if not re.match(r"adapter_modules\.[024]\.", n)}
    adapter, report = convert_state(state, **{**TINY_ADAPTER, "num_double_blocks": 2, "num_single_blocks": 3})
    assert list(adapter.blocks) == ["1", "3"] and adapter.config.block_indices == [1, 3]
    assert "blocks 1, 3 are adapted" in report.notes[-1]


# --- arithmetic of the released depth models -------------------------------------------------------------------------


def released_dsfa(state, prefix, film, tokens, strengths, num_heads, doubled):
    """Sec. 3 of the fact sheet, a frame and a patch at a time; returns the reference's tokens."""

    def linear(name, x):
        return x @ state[f"{prefix}.{name}.weight"].T + state[f"{prefix}.{name}.bias"]

    def norm(name, x):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * state[f"{prefix}.{name}.weight"] + state[f"{prefix}.{name}.bias"]

    def attend(name, rows, bias, scale):
        size = rows.shape[-1] // num_heads
        q, k, v = (part.reshape(len(rows), num_heads, size) for part in linear(f"{name}.qkv", rows).chunk(3, -1))
        logits = torch.einsum("ihd,jhd->hij", q, k) * scale + bias
        return linear(f"{name}.out_proj", torch.einsum("hij,jhd->ihd", logits.softmax(-1), v).flatten(1))

    def step(which, rows, bias, scale):
        rows = rows + state[f"{prefix}.gamma_{which}_attn"] * attend(
            f"{which}_attn", norm(f"ln_{which}_attn", rows), bias, scale
        )
        hidden = linear(f"{which}_ffn.fc1", norm(f"ln_{which}_ffn", rows))
        hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
        return rows + state[f"{prefix}.gamma_{which}_ffn"] * linear(f"{which}_ffn.fc2", hidden)

    once = (tokens.shape[-1] // num_heads) ** -0.5
    k_tokens = linear("k_embed.2", linear("k_embed.0", strengths[:, None]).clamp(min=0))
    moved = torch.stack(
        [step("space", torch.cat([k[None], x]), 0.0, once**2 if doubled else once)[1:]
         for k, x in zip(k_tokens, tokens, strict=True)]
    )  # fmt: skip
    a, b = linear(film, k_tokens).chunk(2, -1)
    moved = moved * (1 + a.tanh())[:, None] + b[:, None]
    bias = -(strengths[:, None] - strengths[None]).abs()
    return torch.stack([step("focus", moved[:, n], bias, once)[0] for n in range(tokens.shape[1])])


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.float64, 1e-12)], ids=["f32", "f64"])
@pytest.mark.parametrize("doubled", [False, True], ids=["scaled once", "scaled twice"])
@pytest.mark.parametrize(
    "release, prefix, film",
    [(released_unidepth, "pixel_encoder.fusion_blocks.3", "focus_film"),
     (released_depth_anything, "encoder_fusion.layers.3.block", "focus_film.0")],
    ids=["unidepth", "depth anything"],
)  # fmt: skip
@torch.no_grad()
def test_dsfa_computes_what_the_release_computes(release, prefix, film, doubled, dtype, tolerance):
    state = release(dtype)
    model, _ = convert_state(state, dsfa_num_heads=4, double_scaled_space=doubled)
    tokens = torch.randn(4, 9, 64, generator=torch.Generator().manual_seed(6), dtype=dtype)
    strengths = torch.tensor([0.0, 0.25, 0.5, 20.0], dtype=dtype)
    expected = released_dsfa(state, prefix, film, tokens, strengths, 4, doubled)
    assert parity.close(model.dsfa["3"](tokens[None], strengths[None])[0, 0], expected, tolerance)
    other = released_dsfa(state, prefix, film, tokens, strengths, 4, not doubled)
    assert not parity.close(other, expected, 100 * tolerance)


@torch.no_grad()
def test_doubled_backbone_is_folded_into_the_queries():
    state = released_depth_anything(torch.float64)
    model, report = convert_state(state, dsfa_num_heads=4, double_scaled_backbone=True)
    assert "folded" in report.notes[-1]
    x = torch.randn(2, 7, 64, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    block = "pretrained.blocks.5.attn"
    qkv = x @ state[f"{block}.qkv.weight"].T + state[f"{block}.qkv.bias"]
    q, k, v = qkv.chunk(3, -1)  # one head of 64
    expected = (q @ k.mT / 64).softmax(-1) @ v
    expected = expected @ state[f"{block}.proj.weight"].T + state[f"{block}.proj.bias"]
    attention = model.backbone.encoder.layer[5].attention
    out = attention(x)
    assert parity.close(out[0] if isinstance(out, tuple) else out, expected, 1e-12)


@pytest.mark.parametrize(
    "file, heads, options",
    [("D_dav2_dsfa_vits", "f32/sdpa_off", {}),
     ("D_dav2_dsfa_vits", "f32/sdpa_on", {"double_scaled_space": True}),
     ("D3_dav2_dsfa_vits_cuda_branch", "f32/sdpa_on", {"double_scaled_space": True, "double_scaled_backbone": True})],
)  # fmt: skip
@torch.no_grad()
def test_numbers_of_the_released_depth_anything(parity_root, file, heads, options):
    arrays = np.load(parity_root / "open" / f"{file}.npz")
    model, _ = convert_state(layouts.drawn(parity_root / "D_dsfa_vits_keys.json"), **options)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    reference, stack = (
        (torch.from_numpy(parity.draw(f"in:D.{name}").random(shape, dtype=np.float32)) - mean) / std
        for name, shape in (("image", (1, 1, 3, 70, 98)), ("stack", (1, 3, 3, 70, 98)))
    )
    frames = torch.cat([reference, stack], dim=1)
    cases = {"stack_k10_20_30": [10, 20, 30], "stack_k_small_0.25_0.5_1": [0.25, 0.5, 1], "no_stack": []}
    for name, strengths in cases.items():
        if f"{heads}/{name}" in arrays.files:
            strengths = torch.tensor([[0.0, *strengths]])
            depth = model(frames[:, : strengths.shape[1]], strengths).predicted_depth
            parity.assert_stored(arrays, f"{heads}/{name}", depth, 1e-4, by="std")


# --- files -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_converted_folders_load_again(tmp_path):
    frames = torch.rand(1, 3, 3, 56, 42, generator=torch.Generator().manual_seed(8))
    strengths = torch.tensor([[0.0, 10.0, 20.0]])
    for state in (released_unidepth(), released_depth_anything()):
        kind = identify(state)
        torch.save(
            {"model": {f"module.{name}": value for name, value in state.items()}, "step": 3}, tmp_path / "w.pth"
        )
        report = convert_checkpoint(tmp_path / "w.pth", tmp_path / kind, dsfa_num_heads=4)
        again = AutoModelForDepthEstimation.from_pretrained(tmp_path / kind)
        model = convert_state(state, dsfa_num_heads=4)[0]
        assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
        # Products may round differently with the weights at another place in memory.
        depth = again(frames, strengths).predicted_depth
        assert parity.close(depth, model(frames, strengths).predicted_depth, 1e-5)
        written = json.loads((tmp_path / kind / "conversion.json").read_text())
        assert written["written"] == report.written and written["source"] == "w.pth"
        assert report.notes[:2] == [
            "The weights stood under 'model', beside step",
            f"The prefix 'module.' was stripped from all {len(state)} names",
        ]
    save_file(released_adapter(), tmp_path / "a.safetensors")
    convert_checkpoint(tmp_path / "a.safetensors", tmp_path / "adapter", dtype=torch.bfloat16, **TINY_ADAPTER)
    adapter = BokehAdapter.from_pretrained(tmp_path / "adapter", torch_dtype=torch.bfloat16)
    value = released_adapter()["adapter_modules.1.to_v_dof.up.weight"].bfloat16()
    assert torch.equal(adapter.blocks["1"].to_v_bokeh.up.weight, value)


@torch.no_grad()
def test_rule_of_positions_is_saved_with_depth_anything(tmp_path):
    """DINOv2's first rule, written again for one patch grid: bicubic (A = -0.75), scaled by (patches + 0.1) / side."""
    state = released_depth_anything(torch.float64)
    model, _ = convert_state(state, dsfa_num_heads=4)
    side, rows, columns = 3, 4, 5

    def along(count):
        weights = np.zeros((count, side))
        for i in range(count):
            position = (i + 0.5) * side / (count + 0.1) - 0.5
            first = math.floor(position)
            for j in range(first - 1, first + 3):
                t = abs(position - j)
                near, far = 1.25 * t**3 - 2.25 * t**2 + 1, -0.75 * (t**3 - 5 * t**2 + 8 * t - 4)
                weights[i, min(max(j, 0), side - 1)] += near if t <= 1 else far
        return weights

    table = state["pretrained.pos_embed"][0].numpy()
    grid = np.einsum("ra,cb,abd->rcd", along(rows), along(columns), table[1:].reshape(side, side, -1))
    expected = torch.from_numpy(np.concatenate([table[:1], grid.reshape(rows * columns, -1)]))
    tokens = torch.empty(1, 1 + rows * columns, 64)
    found = model.backbone.embeddings.interpolate_pos_encoding(tokens, 14 * rows, 14 * columns)[0]
    assert parity.close(found, expected, 1e-6)  # the table is interpolated in float32

    model.float().save_pretrained(tmp_path)
    again = AutoModelForDepthEstimation.from_pretrained(tmp_path)
    assert type(again) is type(model) and again.config.position_offset == 0.1
    frames = torch.rand(1, 2, 3, 14 * rows, 14 * columns, generator=torch.Generator().manual_seed(9))
    strengths = torch.tensor([[0.0, 0.5]])
    depth = model(frames, strengths).predicted_depth
    assert parity.close(again(frames, strengths).predicted_depth, depth, 1e-6)
    plain = BokehDepthAnythingForDepthEstimation.from_pretrained(tmp_path)
    assert not parity.close(plain(frames, strengths).predicted_depth, depth, 1e-4)
    with pytest.raises(Exception, match="position_offset is 1.5"):
        BokehDepthAnythingV2Config(position_offset=1.5)
    with pytest.raises(NotImplementedError, match="no from_base"):
        BokehDepthAnythingV2ForDepthEstimation.from_base(plain)


def test_averaged_weights_take_the_place_of_the_last_ones(tmp_path):
    state = released_adapter()
    averaged = [value + 1 for value in state.values()]
    torch.save({"state_dict": state, "ema": {"shadow_params": averaged}}, tmp_path / "list.pth")
    shadow = {f"module.{list(state)[3]}": averaged[3]}
    torch.save({"state_dict": state, "ema": {"shadow_params": shadow}}, tmp_path / "dict.pth")
    for name, replaced in (("list", range(len(state))), ("dict", [3])):
        read, notes = read_checkpoint(tmp_path / f"{name}.pth")
        assert f"{len(replaced)} averaged weights" in notes[-1]
        for index, (key, value) in enumerate(state.items()):
            assert torch.equal(read[key], value + (index in replaced))


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def wrong_files(folder):
    state = released_adapter()
    first = next(iter(state))
    save_file(state, folder / "cut.safetensors")
    whole = (folder / "cut.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    torch.save(state, folder / "cut.bin")
    whole = (folder / "cut.bin").read_bytes()
    (folder / "cut.bin").write_bytes(whole[: len(whole) // 2])
    (folder / "code.bin").write_bytes(pickle.dumps({"model": Evil()}))
    torch.save({**state, "extra": Evil()}, folder / "code2.bin")
    (folder / "pointer.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (folder / "page.bin").write_text("<html>not found</html>")
    torch.save([1, 2], folder / "list.bin")
    torch.save({}, folder / "empty.bin")
    torch.save({"x.lora_A.weight": torch.ones(2, 2)}, folder / "peft.bin")
    torch.save({**state, f"module.{first}": state[first]}, folder / "both.bin")
    torch.save({f"module.{n}" if n == first else n: v for n, v in state.items()}, folder / "mixed.bin")
    torch.save({f"module.module.{name}": value for name, value in state.items()}, folder / "doubled.bin")
    torch.save({"model": {f"module.module.{name}": value for name, value in state.items()}}, folder / "doubled2.bin")
    torch.save({"model": state, "state_dict": state}, folder / "two.bin")
    torch.save({"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [], "step": 3}, folder / "optimizer.bin")
    torch.save({"model": {"state_dict": state}}, folder / "nested.bin")
    torch.save({f"_orig_mod.{name}": value for name, value in state.items()}, folder / "compiled.bin")
    torch.save({**state, first: state[first] * float("nan")}, folder / "nan.bin")
    torch.save({**state, first: torch.ones(10, 1, dtype=torch.int8)}, folder / "int.bin")
    torch.save({name: value for name, value in state.items() if name != first}, folder / "missing.bin")
    torch.save({n: v for n, v in state.items() if n != "adapter_modules.1.to_q_adp.up.weight"}, folder / "hole.bin")
    torch.save({**state, first: torch.ones(11, 1)}, folder / "shape.bin")
    torch.save({**state, first: torch.ones(10, 2)}, folder / "input.bin")
    torch.save({**state, "adapter_modules.9.to_v_dof.up.weight": torch.ones(DIM, RANK)}, folder / "block.bin")
    torch.save({**state, "adapter_modules.1.to_x.up.weight": torch.ones(DIM, RANK)}, folder / "extra.bin")
    torch.save(released_adapter(rank=4), folder / "rank.bin")
    torch.save(released_adapter(dim=2 * DIM), folder / "wide.bin")
    return {
        "absent.bin": "a file that exists",
        "cut.safetensors": "damaged or not complete",
        "cut.bin": "damaged or not complete",
        "code.bin": "could run code",
        "code2.bin": "could run code",
        "pointer.bin": "Git LFS pointer",
        "page.bin": "must be a PyTorch or safetensors file",
        "list.bin": "got a list",
        "empty.bin": "got no tensors",
        "peft.bin": "match no release",
        "both.bin": "before all names or none, got it before 1 of 21",
        "mixed.bin": "before all names or none, got it before 1 of 20",
        "doubled.bin": "got it twice",
        "doubled2.bin": "got it twice",
        "two.bin": "under model and under state_dict",
        "optimizer.bin": "got only param_groups, state, step",
        "nested.bin": "a dict at state_dict",
        "compiled.bin": "no place in a bokeh_adapter",
        "nan.bin": "not finite",
        "int.bin": "torch.int8",
        "missing.bin": "lacks the tensor for k_embedding.0.weight",
        "hole.bin": "lacks 1 of",
        "shape.bin": "the shape (10, 1), got (11, 1)",
        "input.bin": "must embed K alone, got 2",
        "block.bin": "got block 9",
        "extra.bin": "no place in a bokeh_adapter",
        "rank.bin": "got rank 4",
        "wide.bin": "the shape",
    }


def test_wrong_files_are_refused_in_one_sentence_and_nothing_is_written(tmp_path, capfd):
    for name, words in wrong_files(tmp_path).items():
        with pytest.raises(InputError, match=re.escape(words)) as caught:
            convert_checkpoint(tmp_path / name, tmp_path / "out", **TINY_ADAPTER)
        sentence = str(caught.value)
        assert sentence.startswith("`checkpoint` ") and "\n" not in sentence and sentence.endswith("."), name
        assert not (tmp_path / "out").exists()
    assert "code ran" not in capfd.readouterr().out


def test_wrong_depth_files_are_refused():
    for state in (released_unidepth(), released_depth_anything()):
        names = list(state)
        with pytest.raises(InputError, match="lacks"):
            convert_state({name: state[name] for name in names[:-5]}, dsfa_num_heads=4)
        with pytest.raises(InputError, match="has no place"):
            convert_state({**state, names[0] + "x": torch.ones(1)}, dsfa_num_heads=4)
        with pytest.raises(InputError, match="`dsfa_num_heads` must be a divisor of 64, got 7"):
            convert_state(state, dsfa_num_heads=7)
        with pytest.raises(InputError, match="rank is given"):
            convert_state(state, rank=128)
