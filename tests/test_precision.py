"""bfloat16 ends before the last layer: depth, camera and blend levels come in float32, and so do the losses."""

import pytest
import torch
import torch.nn.functional as fn
from transformers import DepthAnythingForDepthEstimation, Dinov2Config

from bokehdepth.modeling_bokehdepth import BokehDepthAnythingConfig, BokehDepthAnythingForDepthEstimation
from bokehdepth.modeling_bokehdepth_dav2 import BokehDepthAnythingV2Config, BokehDepthAnythingV2ForDepthEstimation
from bokehdepth.modeling_bokehdepth_unidepth import BokehDepthUniDepthConfig, BokehDepthUniDepthForDepthEstimation
from bokehdepth.modeling_mini_flux import BlendDecoder
from train import losses, stage2

SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
STRENGTHS = torch.tensor([[0.0, 10.0, 20.0]]).expand(2, -1)


def model_of(name):
    torch.manual_seed(0)
    if name == "unidepth":
        sizes = {"out_indices": (1, 2, 3, 4), "decoder_hidden_size": 32, "decoder_out_channels": 8,
                 "decoder_num_heads": 2, "decoder_depths": (1, 1, 1), "dsfa_num_heads": 2}  # fmt: skip
        model = BokehDepthUniDepthForDepthEstimation(BokehDepthUniDepthConfig(**SIZES, **sizes, image_size=56))
        for parameter in model.pixel_decoder.depth_layer.to_depth_hr.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        return model.eval()
    backbone = Dinov2Config(**SIZES, image_size=56, patch_size=14, out_indices=[1, 2, 3, 4],
                            reshape_hidden_states=False, apply_layernorm=True)  # fmt: skip
    fields = {"backbone_config": backbone, "patch_size": 14, "depth_estimation_type": "metric", "max_depth": 20,
              "reassemble_hidden_size": 32, "reassemble_factors": [4, 2, 1, 0.5], "fusion_hidden_size": 16,
              "neck_hidden_sizes": [8, 8, 8, 8], "head_hidden_size": 8, "dsfa_num_heads": 2}  # fmt: skip
    if name == "v2":
        model = BokehDepthAnythingV2ForDepthEstimation(BokehDepthAnythingV2Config(**fields))
    else:
        model = BokehDepthAnythingForDepthEstimation(BokehDepthAnythingConfig(**fields))
    stage2.start_afresh(model)
    if name == "from_base":
        plain = DepthAnythingForDepthEstimation(model.config)
        plain.load_state_dict(model.state_dict(), strict=False)
        model = BokehDepthAnythingForDepthEstimation.from_base(plain, dsfa_num_heads=2)
    return model.eval()


def seen_by(layer):
    """A list that gets the layer's inputs."""
    seen = []
    layer.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    return seen


def exact(layer, x):
    """The layer in float64, of inputs and weights as they are."""
    return fn.conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=layer.padding)


@pytest.mark.parametrize("half", ["autocast", "weights"])
@pytest.mark.parametrize("name", ["v1", "v2", "from_base", "unidepth"])
@torch.no_grad()
def test_depth_is_the_last_layers_in_full_precision(name, half):
    """By hand in float64 from what the last layer sees; then a depth that is right has no loss."""
    model, frames = model_of(name), torch.randn(2, 3, 3, 56, 84, generator=torch.Generator().manual_seed(1))
    last = model.pixel_decoder.depth_layer.to_depth_hr[-1] if name == "unidepth" else model.head.conv3
    seen = seen_by(last)
    if half == "weights":
        model, frames = model.to(torch.bfloat16), frames.bfloat16()
    for pixels, strengths in ((frames, STRENGTHS), (frames[:, 0], None)):
        seen.clear()
        with torch.autocast("cpu", torch.bfloat16, enabled=half == "autocast"):
            output = model(pixels, strengths)
        depth = output.predicted_depth
        assert seen[0].dtype == torch.bfloat16 and depth.dtype == torch.float32
        if name == "unidepth":
            truth = output.rays[:, 2].double() * (exact(last, seen[0])[:, 0] + 2).exp()
        else:
            truth = model.config.max_depth * exact(last, seen[0])[:, 0].sigmoid()
        torch.testing.assert_close(depth.double(), truth, rtol=2e-6, atol=0)
        assert depth.unique().numel() > 0.5 * depth.numel()
        rounded = truth.float().bfloat16().float()
        assert rounded.unique().numel() < 700  # what 8 bits leave of it
        floor = 1.0001e-4  # of the root, without which it would have no gradient at the truth
        for share in (0.0, 0.5, 0.85):
            assert losses.scale_invariant_log_loss(depth, truth.float(), share) < floor
            assert losses.scale_invariant_log_loss(rounded, truth.float(), share) > 10 * floor
        assert losses.log_gradient_loss(depth, truth.float()) < 1e-6


@pytest.mark.parametrize("half", ["autocast", "weights"])
@torch.no_grad()
def test_the_camera_is_the_last_layers_in_full_precision(half):
    model, pixels = model_of("unidepth"), torch.randn(64, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    last = model.pixel_decoder.camera_layer.out_pinhole.proj2
    torch.nn.init.normal_(last.weight)
    seen = seen_by(last)
    if half == "weights":
        model, pixels = model.to(torch.bfloat16), pixels.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=half == "autocast"):
        focal_px = model(pixels).intrinsics[:, 0, 0]
    raw = fn.linear(seen[0].double(), last.weight.double(), last.bias.double())[:, 0, 0]
    assert seen[0].dtype == torch.bfloat16
    torch.testing.assert_close(focal_px.double(), raw.exp() * 0.7 * 28 * 2**0.5, rtol=2e-6, atol=0)


@pytest.mark.parametrize("half", ["autocast", "weights"])
@torch.no_grad()
def test_blend_levels_are_the_last_layers_in_full_precision(half):
    torch.manual_seed(0)
    decoder = BlendDecoder(16, (8, 8, 8, 8), (1, 1, 1, 1), 8)
    inputs = [torch.randn(1, 16, 4, 4), *(torch.randn(1, 8, 4 * 2**n, 4 * 2**n) for n in (3, 2, 1, 0))]
    seen = seen_by(decoder.proj_out)
    if half == "weights":
        decoder, inputs = decoder.to(torch.bfloat16), [x.bfloat16() for x in inputs]
    with torch.autocast("cpu", torch.bfloat16, enabled=half == "autocast"):
        logits = decoder(inputs[0], inputs[1:])
    assert logits.dtype == torch.float32 and logits.unique().numel() > 0.9 * logits.numel()
    torch.testing.assert_close(logits.double(), exact(decoder.proj_out, seen[0]), rtol=1e-5, atol=1e-6)
