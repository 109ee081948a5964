import ast
import copy
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import parity
import pytest
import torch
import torch.nn.functional as fn
from PIL import Image
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
)
from tiny import STRENGTHS

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
    assert not parity.close(model(frames, STRENGTHS).predicted_depth, expected, 1e-2)


@torch.no_grad()
def test_model_invariances(base, frames):
    model = trained_like(base)
    expected = model(frames, STRENGTHS).predicted_depth
    assert expected.shape == (2, 70, 98)
    order = [0, 2, 3, 1]
    assert parity.close(model(frames[:, order], STRENGTHS[:, order]).predicted_depth, expected, FLOAT32_RELATIVE)
    singles = [model(frames[b : b + 1], STRENGTHS[b : b + 1]).predicted_depth for b in range(2)]
    assert parity.close(torch.cat(singles), expected, FLOAT32_RELATIVE)
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
    assert parity.close(model(frames, STRENGTHS).predicted_depth, expected, FLOAT32_RELATIVE)
    assert not parity.close(full(frames, STRENGTHS).predicted_depth, expected, 1e-2)
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


def test_focus_measure_reaches_the_depth(base, frames):
    model = trained_like(base, focus_measure=True)
    with torch.no_grad():
        before = model(frames, STRENGTHS).predicted_depth
        model.dsfa["3"].focus_measure_embed.proj.weight.add_(0.5)
        assert not parity.close(model(frames, STRENGTHS).predicted_depth, before, 1e-4)


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
    optimiser = torch.optim.SGD(model.dsfa.parameters(), lr=0.01)
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
    assert all(parity.close(*pair, FLOAT32_RELATIVE) for pair in zip(mine, theirs, strict=True))
    as_tuple = model(frames, STRENGTHS, return_dict=False)
    assert len(as_tuple) == 1 and torch.equal(as_tuple[0], actual.predicted_depth)


BAD_STRENGTHS = [
    ([[0.0, 10.0, 20.0, 31.0]] * 2, "must be in [0, 30], of the first frame 0, got"),
    ([[0.0, -1.0, 20.0, 30.0]] * 2, "must be in [0, 30], of the first frame 0, got"),
    ([[0.0, float("nan"), 20.0, 30.0]] * 2, "must be in [0, 30], of the first frame 0, got"),
    ([[5.0, 10.0, 20.0, 30.0]] * 2, "must be in [0, 30], of the first frame 0, got"),
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
        (frames, None, "`bokeh_strengths` must be given with 5 axes"),
        (frames[:, 0], STRENGTHS[:, :1], "`bokeh_strengths` must be given with 5 axes"),
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
        ({"dsfa_levels": [2, 4]}, "from 0 to 3, got [2, 4]"),
        ({"dsfa_levels": []}, "`dsfa_levels` must be one feature-map index or more, got none"),
        ({"dsfa_levels": [3, 3]}, "got [3, 3]"),
        ({"bokeh_strength_scale": 0.0}, "`bokeh_strength_scale` must be a positive number, got 0.0"),
        ({"patch_size": [14, 14]}, "`patch_size` must be one integer, even with focus_measure, got [14, 14]"),
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
    options = {"output_loading_info": True, "fresh_parts": ["dsfa"]}
    model, info = BokehDepthAnythingForDepthEstimation.from_pretrained(tmp_path, **options)
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
    assert parity.close(torch.from_numpy(np.load(tmp_path / "depth.npy")), expected, FLOAT32_RELATIVE)


def test_file_stands_alone():
    source = Path(importlib.util.find_spec("bokehdepth.modeling_bokehdepth").origin).read_text(encoding="utf-8")
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert {node.module for node in imports if getattr(node, "level", 0)} == {"weights_bokehdepth"}
    imports = [node for node in imports if not getattr(node, "level", 0)]
    names = {getattr(node, "module", None) or node.names[0].name for node in imports}
    assert {name.split(".")[0] for name in names} == {"huggingface_hub", "math", "torch", "transformers", "typing"}
    assert len(source.splitlines()) < 600


# --- parity with the released code: weights and inputs are drawn by name, as the arrays' README says -----------------


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
    weights = to_our_names(parity.released_weights(parity_root / "D_dsfa_vits_keys.json"))
    model, info = BokehDepthAnythingForDepthEstimation.from_pretrained(
        None, config=config, state_dict=weights, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    embeddings = model.backbone.embeddings
    monkeypatch.setattr(embeddings, "interpolate_pos_encoding", released_position_rule(embeddings))
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    reference, stack = (
        (torch.from_numpy(parity.draw(f"in:D.{name}").random(shape, dtype=np.float32)) - mean) / std
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
        parity.assert_stored(arrays, f"f32/{path}/{name}", depth, 1e-4, by="std")
    for level in range(4):
        name = f"f32/{path}/refined_level{level}_patch"
        parity.assert_stored(arrays, name, refined[level][:, 1:], 1e-4, by="std")
    parity.assert_stored(arrays, f"f32/{path}/no_stack", model(reference).predicted_depth, 1e-4, by="std")


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
    assert parity.close(out, whole.predicted_depth, 1e-5)


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
        with pytest.raises(Exception, match="`stack_scale` must be a number above 0 and up to 1"):
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
