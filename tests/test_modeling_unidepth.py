import copy
import functools
import importlib.util
import math
import re
from pathlib import Path

import numpy as np
import parity
import pytest
import released_layouts as layouts
import torch
import torch.nn.functional as fn
from transformers import AutoModelForDepthEstimation

from bokehdepth.modeling_bokehdepth_unidepth import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    BokehDepthUniDepthConfig,
    BokehDepthUniDepthForDepthEstimation,
)
from bokehdepth.modeling_unidepth_parts import pinhole_rays
from bokehdepth.released.convert import convert_state

DIM, WIDTH, HEADS = 64, 32, 8
CAMERA = torch.tensor([[[45.0, 0, 25], [0, 50, 19], [0, 0, 1]]])
STRENGTHS = torch.tensor([[0.0, 0.25, 1.5]])


def plain_state(dtype=torch.float32, side=3):
    return layouts.filled(layouts.unidepth(DIM, 12, WIDTH, 4, side=side, dsfa=False), seed=1, dtype=dtype)


@functools.cache
def dsfa_model():
    """Shared by tests, which leave it as it is."""
    state = layouts.filled(layouts.unidepth(DIM, 12, WIDTH, 4, side=3), seed=2)
    return convert_state(state, dsfa_num_heads=4)[0]


def frames(height_px=42, width_px=56, dtype=torch.float32):
    return torch.randn(1, 3, 3, height_px, width_px, generator=torch.Generator().manual_seed(3)).to(dtype)


# --- the published model, stage by stage, written again from its facts ----------------------------------------------


class Arithmetic:
    """UniDepthV2 on a released state dict with nothing but elementary operations; stages are kept by name."""

    def __init__(self, state):
        self.state, self.stages = state, {}

    def linear(self, name, x, bias=True):
        y = x @ self.state[f"{name}.weight"].T
        return y + self.state[f"{name}.bias"] if bias else y

    def norm(self, name, x, eps):
        centred = x - x.mean(-1, keepdim=True)
        y = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
        return y * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    @staticmethod
    def gelu(x):
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))

    @staticmethod
    def attention(q, k, v, heads):
        q, k, v = (y.reshape(*y.shape[:2], heads, -1) for y in (q, k, v))
        logits = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(q.shape[-1])
        return torch.einsum("bhij,bjhd->bihd", logits.softmax(-1), v).flatten(2)

    def encode(self, pixels):
        s, rows, columns = self.state, pixels.shape[2] // 14, pixels.shape[3] // 14
        patches = pixels.reshape(len(pixels), 3, rows, 14, columns, 14).permute(0, 2, 4, 1, 3, 5).flatten(3)
        kernel = s["pixel_encoder.patch_embed.proj.weight"].flatten(1)
        x = (patches @ kernel.T + s["pixel_encoder.patch_embed.proj.bias"]).flatten(1, 2)
        x = torch.cat([s["pixel_encoder.cls_token"].expand(len(pixels), -1, -1), x], 1) + s["pixel_encoder.pos_embed"]
        levels = []
        for i in range(12):
            block = f"pixel_encoder.blocks.{i}"
            q, k, v = self.linear(f"{block}.attn.qkv", self.norm(f"{block}.norm1", x, 1e-6)).chunk(3, -1)
            update = self.linear(f"{block}.attn.proj", self.attention(q, k, v, DIM // 64))
            x = x + s[f"{block}.ls1.gamma"] * update
            hidden = self.gelu(self.linear(f"{block}.mlp.fc1", self.norm(f"{block}.norm2", x, 1e-6)))
            x = x + s[f"{block}.ls2.gamma"] * self.linear(f"{block}.mlp.fc2", hidden)
            if i in (2, 5, 8, 11):
                levels.append(self.norm("pixel_encoder.norm", x, 1e-5))
        return levels

    def mlp(self, name, x):
        hidden = self.gelu(self.linear(f"{name}.proj1", self.norm(f"{name}.norm", x, 1e-5)))
        return self.linear(f"{name}.proj2", hidden)

    def cross(self, name, x, context, offset=0.0):
        q = self.linear(f"{name}.q", self.norm(f"{name}.norm_attnx", x, 1e-5), bias=False) + offset
        k, v = self.linear(f"{name}.kv", self.norm(f"{name}.norm_attnctx", context, 1e-5), bias=False).chunk(2, -1)
        update = self.linear(f"{name}.out", self.attention(q, k, v, HEADS), bias=False)
        x = x + self.state.get(f"{name}.ls1.gamma", 1.0) * update
        return x + self.state.get(f"{name}.ls2.gamma", 1.0) * self.mlp(f"{name}.mlp", x)

    def conv(self, name, x, padding=None):
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        pad = weight.shape[-1] // 2
        if padding == "reflect":
            x, pad = fn.pad(x, (pad,) * 4, mode="reflect"), 0
        return fn.conv2d(x, weight, bias, padding=pad)

    def run(self, pixels):
        s, keep = self.state, self.stages
        height, width = pixels.shape[-2:]
        grid = (height // 14, width // 14)
        keep["levels"] = levels = self.encode(pixels)
        camera = "pixel_decoder.camera_layer"
        adapter = "pixel_decoder.camera_token_adapter.input_adapters"
        x = torch.cat([self.linear(f"{adapter}.{i}", level[:, :1]) for i, level in enumerate(levels)], 1)
        x = self.mlp(f"{camera}.project", x)
        for block in ("aggregate1", "aggregate2"):
            x = self.cross(f"{camera}.{block}", x, x, s[f"{camera}.latents_pos"])
        fx, fy, cx, cy = self.mlp(f"{camera}.out_pinhole", x)[0, :, 0]
        unit = 0.7 * math.sqrt(height**2 + width**2)
        fx, fy, cx, cy = unit * fx.exp(), unit * fy.exp(), width / (1 + (-cx).exp()), height / (1 + (-cy).exp())
        keep["intrinsics"] = torch.tensor([[[fx, 0, cx], [0, fy, cy], [0, 0, 1]]], dtype=pixels.dtype)
        u, v = (torch.arange(n, dtype=pixels.dtype) + 0.5 for n in (width, height))
        rays = torch.stack(
            [((u - cx) / fx).expand(height, width), ((v - cy) / fy)[:, None].expand(height, width),
             torch.ones(height, width, dtype=pixels.dtype)]
        )  # fmt: skip
        keep["rays"] = rays = (rays / rays.square().sum(0).sqrt())[None]

        small = fn.interpolate(rays, grid, mode="bilinear", antialias=True)
        small = (small / small.square().sum(1, keepdim=True).sqrt()).flatten(2)[0]
        across = torch.where(small[0] >= 0, small[0].clamp(min=1e-3), small[0].clamp(max=-1e-3))
        octaves = math.log2(max(grid) // 2)
        frequencies = [2 ** (octaves * i / (WIDTH // 2 - 1)) for i in range(WIDTH // 2)]
        polar, azimuth = torch.acos(small[2]), torch.atan2(small[1], across)
        keep["embedded"] = embedded = torch.stack(
            [torch.sin(math.pi * f * angle) for angle in (polar, azimuth) for f in frequencies], -1
        )[None]

        head, inputs = "pixel_decoder.depth_layer", "pixel_decoder.input_adapter.input_adapters"
        keep["prompted"] = prompted = [
            self.cross(f"{head}.prompt_camera.{i}.layers.0", self.linear(f"{inputs}.{i}", level[:, 1:]), embedded)
            for i, level in enumerate(levels)
        ]
        image = [y.transpose(1, 2).reshape(len(y), WIDTH, *grid) for y in prompted]
        x = self.linear(f"{head}.to_latents", prompted[0]).transpose(1, 2).reshape(image[0].shape)
        for i in range(3):
            name = f"{head}.process_features.{i}"
            x = x + fn.conv_transpose2d(image[i + 1], s[f"{name}.weight"], s[f"{name}.bias"], stride=max(1, 2 * i))
            for unit in range(2):
                name = f"{head}.ups.{i}.convs.{unit}"
                y = self.conv(f"{name}.conv1", torch.where(x > 0, x, 0.01 * x))
                y = self.conv(f"{name}.conv2", torch.where(y > 0, y, 0.01 * y))
                x = x + s[f"{name}.gamma"] * y
            x = fn.interpolate(self.conv(f"{head}.ups.{i}.up.0", x), scale_factor=2, mode="bilinear")
        keep["decoded"] = x
        logs = []
        for part, mlp in (("depth", "depth_mlp.2"), ("confidence", "confidence_mlp")):
            y = self.linear(f"{head}.{mlp}.1", self.norm(f"{head}.{mlp}.0", x.permute(0, 2, 3, 1), 1e-5))
            y = self.conv(f"{head}.to_{part}_lr", y.permute(0, 3, 1, 2), "reflect")
            y = fn.interpolate(y, (height, width), mode="bilinear", align_corners=True)
            y = self.conv(f"{head}.to_{part}_hr.0", y, "reflect")
            logs.append(self.conv(f"{head}.to_{part}_hr.2", torch.where(y > 0, y, 0.01 * y))[:, 0])
        keep["distance_m"] = (logs[0].clamp(-8, 8) + 2).exp()
        keep["confidence"] = logs[1].clamp(-8, 8).exp()
        keep["predicted_depth"] = rays[:, 2] * keep["distance_m"]
        return keep


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-4), (torch.float64, 1e-11)], ids=["f32", "f64"])
@torch.no_grad()
def test_stages_equal_their_arithmetic(dtype, tolerance):
    state = plain_state(dtype)
    model = convert_state(state)[0]
    assert not model.dsfa
    seen, decoder = {}, model.pixel_decoder
    model.pixel_encoder.register_forward_hook(lambda m, a, out: seen.update(levels=out))
    embed = decoder.depth_layer.embed_rays
    decoder.depth_layer.embed_rays = lambda *a: seen.setdefault("embedded", embed(*a))
    for prompt in decoder.depth_layer.prompt_camera:
        prompt.register_forward_hook(lambda m, a, out: seen.setdefault("prompted", []).append(out))
    decoder.depth_layer.ups[-1].register_forward_hook(lambda m, a, out: seen.update(decoded=out))
    # At the position table's own size nothing is interpolated, so that float64 stays float64.
    pixels = frames(42, 42, dtype)[:, 0]
    seen |= dict(model(pixels).items())
    expected = Arithmetic(state).run(pixels)
    for name, wanted in expected.items():
        pairs = zip(seen[name], wanted, strict=True) if isinstance(wanted, list) else [(seen[name], wanted)]
        for got, want in pairs:
            assert got.shape == want.shape, name
            assert parity.close(got, want, tolerance), name
    assert expected["predicted_depth"].std() > 0.05 * expected["predicted_depth"].mean()


def test_pinhole_rays_pass_through_pixel_centres():
    rays = pinhole_rays(CAMERA, 42, 56)
    assert rays.shape == (1, 3, 42, 56)
    assert torch.allclose(rays.norm(dim=1), torch.ones(1, 42, 56))
    back = CAMERA[0] @ (rays[0] / rays[0, 2]).flatten(1)
    x, y = back[0].reshape(42, 56), back[1].reshape(42, 56)
    assert torch.allclose(x[5], torch.arange(56) + 0.5, atol=1e-4)
    assert torch.allclose(y[:, 7], torch.arange(42) + 0.5, atol=1e-4)


# --- our model around it ---------------------------------------------------------------------------------------------


@torch.no_grad()
def test_camera_stack_and_lone_frame():
    model, pixels = dsfa_model(), frames()
    alone = model(pixels[:, 0])
    assert torch.equal(model(pixels[:, :1], STRENGTHS[:, :1]).predicted_depth, alone.predicted_depth)
    stack = model(pixels, STRENGTHS)
    assert not parity.close(stack.predicted_depth, alone.predicted_depth, 1e-3)
    # Class tokens are not fused: the camera is the lone photo's.
    assert parity.close(stack.intrinsics, alone.intrinsics, 1e-6)
    order = [0, 2, 1]
    turned = model(pixels[:, order], STRENGTHS[:, order]).predicted_depth
    assert parity.close(turned, stack.predicted_depth, 1e-4)
    given = model(pixels, STRENGTHS, CAMERA)
    assert torch.equal(given.rays, pinhole_rays(CAMERA, 42, 56)) and torch.equal(given.intrinsics, stack.intrinsics)
    assert not parity.close(given.predicted_depth, stack.predicted_depth, 1e-3)
    assert torch.equal(given.predicted_depth, given.rays[:, 2] * given.distance_m)
    twice = model(torch.cat([pixels, pixels.flip(-1)]), STRENGTHS.expand(2, -1)).predicted_depth
    assert parity.close(twice[:1], stack.predicted_depth, 1e-4)


@torch.no_grad()
def test_fresh_dsfa_changes_no_bit_and_learns(tmp_path):
    plain = convert_state(plain_state())[0]
    plain.save_pretrained(tmp_path)
    torch.manual_seed(0)
    model, info = BokehDepthUniDepthForDepthEstimation.from_pretrained(
        tmp_path, dsfa_levels=[1, 3], dsfa_num_heads=4, output_loading_info=True, fresh_parts=["dsfa"]
    )
    assert info["missing_keys"] and all(name.startswith("dsfa.") for name in info["missing_keys"])
    expected = plain(frames()[:, :1].expand(-1, 3, -1, -1, -1), STRENGTHS).predicted_depth
    assert parity.close(model(frames(), STRENGTHS).predicted_depth, expected, 1e-6)
    with torch.enable_grad():
        model(frames(), STRENGTHS).predicted_depth.log().sum().backward()
    assert model.dsfa["3"].gamma_focus_attn.grad.abs().sum() > 0


@torch.no_grad()
def test_photos_of_any_size_keep_their_size_and_their_camera():
    model = copy.deepcopy(dsfa_model())
    model.config.pixels_min, model.config.pixels_max = 2000, 6000
    for height_px, width_px in ((56, 70), (20, 70), (90, 20), (33, 47)):
        pixels = torch.rand(1, 3, 3, height_px, width_px, generator=torch.Generator().manual_seed(4))
        pads, scale, size = model.working_size(height_px, width_px)
        wide, tall = width_px + pads[0] + pads[1], height_px + pads[2] + pads[3]
        assert 0.5 - 1 / tall <= wide / tall <= 2.5 + 3 / tall and not (size[0] % 14 or size[1] % 14)
        out = model.infer(pixels, STRENGTHS, CAMERA)
        assert out.predicted_depth.shape == out.confidence.shape == (1, height_px, width_px)
        assert (out.predicted_depth > 0).all() and out.intrinsics.shape == (1, 3, 3)
        if (height_px, width_px) == (56, 70):  # nothing is padded, resized or rounded up to whole patches
            assert pads == (0, 0, 0, 0) and scale == 1 and size == (56, 70)
            assert (out.rays - pinhole_rays(CAMERA, height_px, width_px)).abs().max() < 1e-5
            plain = (pixels - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]
            assert parity.close(out.predicted_depth, model(plain, STRENGTHS, CAMERA).predicted_depth, 1e-4)
    assert model.working_size(40, 50, 0)[2] < model.working_size(40, 50, 9)[2]
    black = model.infer(torch.rand(1, 3, 20, 70), pad_with_black=True)
    assert black.predicted_depth.shape == (1, 20, 70)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: m(frames(), None), "`bokeh_strengths` must be given with 5 axes"),
        (lambda m: m(frames(), STRENGTHS + 1), "must be in [0, 30], of the first frame 0, got"),
        (lambda m: m(frames(), STRENGTHS * 30), "must be in [0, 30], of the first frame 0, got"),
        (lambda m: m(frames(40, 56), STRENGTHS), "wanted multiples of 14 px"),
        (lambda m: m(frames(), STRENGTHS, CAMERA[0]), "intrinsics has shape (3, 3)"),
        (lambda m: m(frames(), STRENGTHS, -CAMERA), "fx, fy > 0"),
        (lambda m: m(frames(), STRENGTHS, CAMERA * float("nan")), "fx, fy > 0"),
        (lambda m: m.infer(torch.rand(3, 40, 50)), "pixels has shape (3, 40, 50)"),
        (lambda m: m.infer(torch.rand(1, 3, 40, 50) * 255), "outside [0, 1]"),
        (lambda m: m.infer(torch.full((1, 3, 40, 50), math.nan)), "outside [0, 1]"),
        (lambda m: m.infer(torch.rand(1, 3, 40, 50), resolution_level=10), "resolution_level is 10"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call(dsfa_model())


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"out_indices": [3, 6, 9]}, "out_indices is [3, 6, 9]"),
        ({"out_indices": [3, 6, 9, 30]}, "wanted numbers up to 24"),
        ({"dsfa_levels": [0, 4]}, "from 0 to 3, got [0, 4]"),
        ({"num_attention_heads": 7}, "num_attention_heads is 7"),
        ({"bokeh_strength_max": 0}, "`bokeh_strength_max` must be a positive number, got 0"),
        ({"pixels_max": 5}, "pixels_max is 5"),
    ],
)
def test_config_refuses_what_cannot_be_built(fields, message):
    with pytest.raises(Exception, match=re.escape(message)):
        BokehDepthUniDepthConfig(**fields)


@torch.no_grad()
def test_saved_folder_has_its_code_and_loads_with_the_package(tmp_path):
    """`test_hub_unidepth` loads such a folder as remote code."""
    model, folder = dsfa_model(), tmp_path / "model"
    model.save_pretrained(folder)
    own = Path(importlib.util.find_spec("bokehdepth").origin).parent
    for name in ("modeling_bokehdepth_unidepth", "modeling_bokehdepth", "modeling_unidepth_parts"):
        assert (folder / f"{name}.py").read_bytes() == (own / f"{name}.py").read_bytes()
    again = AutoModelForDepthEstimation.from_pretrained(folder)
    assert type(again) is BokehDepthUniDepthForDepthEstimation
    expected = model(frames(), STRENGTHS).predicted_depth
    assert parity.close(again(frames(), STRENGTHS).predicted_depth, expected, 1e-5)


# --- parity with the released code -----------------------------------------------------------------------------------

PARITY_CAMERA = torch.tensor([[[150.0, 0, 97], [0, 160, 69], [0, 0, 1]]])
WIDE_CAMERA = torch.tensor([[[180.0, 0, 101], [0, 175, 29], [0, 0, 1]]])
LEVEL_2_CAMERA = torch.tensor([[[140.0, 0, 80], [0, 140, 60], [0, 0, 1]]])


def uniform(name, shape):
    return torch.from_numpy(parity.draw(f"in:{name}").random(shape, dtype=np.float32))


def normalised(name, shape):
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (uniform(name, shape) - mean) / std


def eight_bit(name, shape):
    return torch.floor(uniform(name, shape) * 256) / 255


def assert_output(arrays, name, out):
    maps = {"depth": out.predicted_depth, "confidence": out.confidence, "radius": out.distance_m}
    maps = {key: value[:, None] for key, value in maps.items()} | {"intrinsics": out.intrinsics, "rays": out.rays}
    for key, value in maps.items():
        parity.assert_stored(arrays, f"{name}/out/{key}", value, 1e-3, by="std")


@torch.no_grad()
def test_numbers_of_the_published_model(parity_root):
    arrays = np.load(parity_root / "open" / "E_unidepth_upstream_vits.npz")
    model = convert_state(layouts.drawn(parity_root / "E_upstream_vits_keys.json"))[0]
    image = normalised("E.image", (1, 3, 140, 196))
    assert_output(arrays, "raw_predicted_camera", model(image))
    assert_output(arrays, "raw_given_camera", model(image, intrinsics=PARITY_CAMERA))
    assert_output(arrays, "raw_batch2_112x84", model(normalised("E.image2", (2, 3, 112, 84))))
    wide = eight_bit("E.infer_60x200", (3, 60, 200))[None]
    assert_output(arrays, "infer_60x200_given_K", model.infer(wide, intrinsics=WIDE_CAMERA))
    tall = eight_bit("E.infer_160x72", (1, 3, 160, 72))
    assert_output(arrays, "infer_160x72_level0", model.infer(tall, resolution_level=0))
    assert_output(arrays, "infer_60x200", model.infer(wide))
    photo = eight_bit("E.infer_120x160", (1, 3, 120, 160))
    assert_output(arrays, "infer_120x160", model.infer(photo))
    level_2 = model.infer(photo, intrinsics=LEVEL_2_CAMERA, resolution_level=2)
    assert_output(arrays, "infer_120x160_level2_given_K", level_2)


@pytest.mark.parametrize("path", ["sdpa_on", "sdpa_off"])
@torch.no_grad()
def test_numbers_of_the_released_model_with_dsfa(parity_root, path):
    arrays = np.load(parity_root / "open" / "E_unidepth_dsfa_vits.npz")
    state = layouts.drawn(parity_root / "E_dsfa_vits_keys.json")
    model = convert_state(state, double_scaled_space=path == "sdpa_on")[0]
    stack = normalised("E.stack", (1, 3, 3, 140, 196))
    pixels = torch.cat([normalised("E.image", (1, 3, 140, 196))[:, None], stack], dim=1)
    strengths = torch.tensor([[0.0, 10, 20, 30]])
    assert_output(arrays, f"{path}/stack_k10_20_30_predicted", model(pixels, strengths))
    assert_output(arrays, f"{path}/stack_k10_20_30_given", model(pixels, strengths, PARITY_CAMERA))
    small = torch.tensor([[0.0, 0.25, 0.5, 1]])
    cases = {
        "no_stack_predicted": (pixels[:, :1], strengths[:, :1]),
        "stack_k_none": (pixels, 0 * strengths),
        "stack_k_small_0.25_0.5_1": (pixels, small),
        "one_frame_k20": (pixels[:, [0, 2]], strengths[:, [0, 2]]),
    }
    for name, arguments in cases.items():
        depth = model(*arguments).predicted_depth[:, None]
        parity.assert_stored(arrays, f"{path}/{name}/depth_only", depth, 1e-3, by="std")
    if path == "sdpa_off":
        return
    for size, camera, suffix in (((60, 200), WIDE_CAMERA, "_given_K"), ((120, 160), None, "")):
        name = f"{size[0]}x{size[1]}"
        photo = torch.cat(
            [eight_bit(f"E.infer_{name}", (1, 3, *size)), eight_bit(f"E.infer_stack_{name}", (3, 3, *size))]
        )
        assert_output(arrays, f"{path}/infer_{name}{suffix}_stack", model.infer(photo[None], strengths, camera))
    for block in (0, 2):
        state = {name: value for name, value in state.items() if f"fusion_blocks.{block}." not in name}
    some = convert_state(state)[0]
    assert list(some.dsfa) == ["1", "3"]
    depth = some(pixels, strengths).predicted_depth[:, None]
    parity.assert_stored(arrays, f"{path}/fusion_layers_1_3/depth_only", depth, 1e-3, by="std")
