"""Stage-2 on EfficientNet-Lite: encoder against published arithmetic, metres, guided edges, DSFA."""

import pytest
import torch
import torch.nn.functional as fn
from torch import nn
from transformers import AutoModelForDepthEstimation

from bokehdepth.modeling_bokehdepth_efficientnet import (
    BokehDepthEfficientNetConfig,
    BokehDepthEfficientNetForDepthEstimation,
)
from bokehdepth.modeling_efficientnet_lite import EfficientNetLiteEncoder
from train.encoders import load_imagenet


def tiny(**changes) -> BokehDepthEfficientNetForDepthEstimation:
    torch.manual_seed(0)
    settings = {"width_factor": 0.25, "depth_factor": 0.25, "decoder_channels": (8, 8, 8, 8), "guide_channels": 8,
                "dsfa_num_heads": 2, "area_px": 64 * 96}  # fmt: skip
    return BokehDepthEfficientNetForDepthEstimation(BokehDepthEfficientNetConfig(**{**settings, **changes})).eval()


def pixels(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def moved(model):
    """The model with DSFA that does something."""
    for block in model.dsfa.values():
        for name, parameter in block.named_parameters():
            nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(len(name)))
    return model


# --- encoder ---------------------------------------------------------------------------------------------------------


def test_lite2_has_the_published_sizes():
    encoder = EfficientNetLiteEncoder()
    assert encoder.channels == (16, 24, 48, 120, 352)
    assert sum(block.expand is not None for stage in encoder.stages for block in stage) == 20
    assert [len(stage) for stage in encoder.stages] == [1, 3, 3, 4, 4, 5, 1]
    maps = encoder(torch.zeros(1, 3, 64, 96))
    assert [tuple(m.shape[-2:]) for m in maps] == [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]


def test_a_shallow_map_costs_no_deep_stage():
    encoder, runs = EfficientNetLiteEncoder(0.25, 0.25), []
    for number, stage in enumerate(encoder.stages):
        stage.register_forward_hook(lambda *_, number=number: runs.append(number))
    whole = encoder(pixels(1, 3, 64, 64))
    runs.clear()
    some = encoder(pixels(1, 3, 64, 64), maps=3)
    assert runs == [0, 1, 2] and len(some) == 3
    assert all(torch.equal(a, b) for a, b in zip(some, whole, strict=False))


def published_state(encoder: EfficientNetLiteEncoder) -> dict[str, torch.Tensor]:
    """Random weights in the published layout: convolutions without bias, and batch norms."""
    source, state = torch.Generator().manual_seed(5), {}

    def layer(convolution, name, norm):
        state[f"{name}.weight"] = torch.randn(convolution.weight.shape, generator=source) * 0.3
        for part in ("weight", "running_var"):
            state[f"{norm}.{part}"] = torch.rand(len(convolution.bias), generator=source) + 0.5
        for part in ("bias", "running_mean"):
            state[f"{norm}.{part}"] = torch.randn(len(convolution.bias), generator=source) * 0.3
        state[f"{norm}.num_batches_tracked"] = torch.tensor(7)

    layer(encoder.stem, "_conv_stem", "_bn0")
    for number, block in enumerate(block for stage in encoder.stages for block in stage):
        if block.expand is not None:
            layer(block.expand, f"_blocks.{number}._expand_conv", f"_blocks.{number}._bn0")
        layer(block.depthwise, f"_blocks.{number}._depthwise_conv", f"_blocks.{number}._bn1")
        layer(block.project, f"_blocks.{number}._project_conv", f"_blocks.{number}._bn2")
    return state


def published_arithmetic(x: torch.Tensor, state: dict[str, torch.Tensor], encoder: EfficientNetLiteEncoder):
    """The network as published: TensorFlow's padding, batch norm with 1e-3, ReLU6, no squeeze-and-excite."""

    def same(x, weight, stride, groups=1):
        total = [max((-(-size // stride) - 1) * stride + weight.shape[-1] - size, 0) for size in x.shape[-2:]]
        x = fn.pad(x, (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2))
        return fn.conv2d(x, weight, stride=stride, groups=groups)

    def norm(x, name):
        parts = [state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return fn.batch_norm(x, *parts, eps=1e-3)

    x = fn.relu6(norm(same(x, state["_conv_stem.weight"], 2), "_bn0"))
    number, outputs = 0, []
    for stage in encoder.stages:
        for block in stage:
            name, kept = f"_blocks.{number}", x
            if block.expand is not None:
                x = fn.relu6(norm(same(x, state[f"{name}._expand_conv.weight"], 1), f"{name}._bn0"))
            stride = block.depthwise.stride[0]
            x = fn.relu6(norm(same(x, state[f"{name}._depthwise_conv.weight"], stride, x.shape[1]), f"{name}._bn1"))
            x = norm(same(x, state[f"{name}._project_conv.weight"], 1), f"{name}._bn2")
            x = x + kept if x.shape == kept.shape else x
            number += 1
        outputs.append(x)
    return [outputs[index] for index in encoder.map_stages]


def test_folded_weights_equal_the_published_network(tmp_path):
    encoder = EfficientNetLiteEncoder(0.25, 0.25)
    state = published_state(encoder)
    torch.save(state, tmp_path / "lite.pth")
    load_imagenet(encoder, tmp_path / "lite.pth")
    photo = pixels(2, 3, 64, 96) * 2 - 1
    with torch.no_grad():
        for found, wanted in zip(encoder(photo), published_arithmetic(photo, state, encoder), strict=True):
            assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_another_variant_is_refused(tmp_path):
    torch.save(published_state(EfficientNetLiteEncoder(0.25, 0.25)), tmp_path / "lite.pth")
    with pytest.raises(ValueError, match=r"`_blocks.*` must be"):
        load_imagenet(EfficientNetLiteEncoder(0.5, 0.25), tmp_path / "lite.pth")


# --- metres ----------------------------------------------------------------------------------------------------------


def camera(focal_px, width=96, height=64):
    return torch.tensor([[[focal_px, 0.0, width / 2], [0.0, focal_px, height / 2], [0.0, 0.0, 1.0]]])


def test_depth_is_proportional_to_the_given_focal_length():
    model, photo = tiny(), pixels(1, 3, 64, 96) * 2 - 1
    with torch.no_grad():
        one, two, guessed = (model(photo, intrinsics=k) for k in (camera(100.0), camera(250.0), None))
        own = model(photo, intrinsics=guessed.intrinsics)
    torch.testing.assert_close(two.predicted_depth, 2.5 * one.predicted_depth)
    torch.testing.assert_close(own.predicted_depth, guessed.predicted_depth)
    torch.testing.assert_close(one.intrinsics, guessed.intrinsics)
    assert guessed.intrinsics[0, :2, 2].tolist() == [48.0, 32.0]


def test_intrinsics_of_a_photo_follow_it_to_the_size_at_work():
    """Twice as large a photo of the same camera is the same photo."""
    model, photo = tiny(), pixels(1, 3, 64, 96)
    large = fn.interpolate(photo, scale_factor=2, mode="nearest")
    small, twice = model.infer(photo, None, camera(90.0)), model.infer(large, None, camera(180.0, 192, 128))
    assert twice.predicted_depth.shape == (1, 128, 192)
    ratio = fn.avg_pool2d(twice.predicted_depth, 2) / small.predicted_depth
    assert (ratio.median() - 1).abs() < 0.02
    assert torch.allclose(twice.intrinsics[0, :2, 2], 2 * small.intrinsics[0, :2, 2])


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((64, 96), (64, 96)), ((500, 375), (96, 64)), ((3000, 4000), (64, 96)), ((40, 400), (32, 256))],
)
def test_working_size_keeps_area_and_aspect(size, wanted):
    assert tiny().working_size(*size) == wanted


# --- edges and the stack ---------------------------------------------------------------------------------------------


def test_guided_depth_stays_within_its_coarse_neighbours():
    guide = tiny().guide
    coarse = pixels(1, 1, 4, 6)
    fine = guide(coarse, pixels(1, 8, 4, 6), pixels(1, 3, 16, 24))
    low = -fn.max_pool2d(-fn.pad(coarse, (1, 1, 1, 1), mode="replicate"), 3, 1)
    high = fn.max_pool2d(fn.pad(coarse, (1, 1, 1, 1), mode="replicate"), 3, 1)
    low, high = (fn.interpolate(x, scale_factor=4, mode="nearest")[:, 0] for x in (low, high))
    assert fine.shape == (1, 16, 24) and (fine >= low - 1e-6).all() and (fine <= high + 1e-6).all()
    assert fine.std() > 0


def test_fresh_dsfa_is_the_identity_and_a_moved_one_is_not():
    model, frames = tiny(), pixels(1, 3, 3, 64, 96) * 2 - 1
    strengths = torch.tensor([[0.0, 10.0, 30.0]])
    with torch.no_grad():
        alone, fresh = model(frames[:, 0]).predicted_depth, model(frames, strengths).predicted_depth
        other = moved(model)(frames, strengths).predicted_depth
        swapped = model(frames[:, [0, 2, 1]], strengths[:, [0, 2, 1]]).predicted_depth
        untouched = model(frames[:, :1], strengths[:, :1]).predicted_depth
    assert torch.equal(alone, fresh) and torch.equal(untouched, alone)
    assert (other - alone).abs().max() > 1e-3
    torch.testing.assert_close(swapped, other, rtol=1e-4, atol=1e-5)  # the order of the frames does not matter


def test_stack_frames_stop_at_the_last_fused_map():
    model, seen = tiny(dsfa_levels=(1,)), []
    for number, stage in enumerate(model.encoder.stages):
        stage.register_forward_hook(lambda _, args, __, number=number: seen.append((number, len(args[0]))))
    model(pixels(1, 3, 3, 64, 96), torch.tensor([[0.0, 10.0, 30.0]]))
    assert [number for number, batch in seen if batch == 2] == [0, 1, 2]


@pytest.mark.parametrize("switch", ["use_focus", "use_space", "use_film", "use_bokeh", "focus_measure"])
def test_every_switch_runs(switch):
    model = moved(tiny(**{switch: False}))
    output = model(pixels(1, 3, 3, 64, 96), torch.tensor([[0.0, 10.0, 30.0]]))
    assert torch.isfinite(output.predicted_depth).all()


def test_depth_has_the_steps_of_float32_in_bfloat16():
    model, photo = tiny().to(torch.bfloat16), (pixels(1, 3, 64, 96) * 2 - 1).to(torch.bfloat16)
    depth = model(photo).predicted_depth
    assert depth.dtype == torch.float32
    assert len(depth.unique()) > 0.9 * depth.numel()


def test_gradient_checkpointing_changes_no_gradient():
    model, photo, found = tiny().train(), pixels(1, 3, 64, 96), []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        model(photo).predicted_depth.log().mean().backward()
        found.append(model.encoder.stem.weight.grad.clone())
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"pixel_values": torch.zeros(1, 3, 60, 96)}, "multiples of 32"),
        ({"pixel_values": torch.zeros(1, 3, 64, 96), "intrinsics": torch.eye(3)}, "`intrinsics` must be"),
        ({"pixel_values": torch.zeros(1, 3, 64, 96), "intrinsics": -torch.eye(3)[None]}, "`intrinsics` must be"),
        ({"pixel_values": torch.zeros(1, 2, 3, 64, 96)}, "`bokeh_strengths` must be given with 5 axes"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        tiny()(**arguments)


@pytest.mark.parametrize(
    "changes", [{"decoder_channels": (8, 8)}, {"dsfa_levels": (4,)}, {"area_px": 0}, {"patch_size": 16}]
)
def test_what_cannot_be_built_is_refused(changes):
    with pytest.raises(Exception, match=next(iter(changes))):
        tiny(**changes)


def test_saved_model_loads_by_the_auto_class(tmp_path):
    model = moved(tiny())
    model.save_pretrained(tmp_path)
    one, two = (AutoModelForDepthEstimation.from_pretrained(tmp_path).eval() for _ in range(2))
    frames, strengths = pixels(1, 3, 3, 64, 96), torch.tensor([[0.0, 10.0, 30.0]])
    with torch.no_grad():
        depths = [m(frames, strengths).predicted_depth for m in (one, two, model)]
    assert torch.equal(depths[0], depths[1])
    torch.testing.assert_close(depths[0], depths[2])  # weights at other addresses: some kernels round otherwise
