"""Sources, methods as rows, and saved predictions: files with their units and holes, oracles, real networks."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTImageProcessorPil,
)

import tiny
from bokehdepth.errors import InputError
from bokehdepth.manifest import CameraAnns, Intrinsics, ManifestRow, StackFrame
from bokehdepth.rendering.disk import disk_blur
from bokehdepth.rendering.refocus import render_from_depth
from given_samples import Given
from train.evaluation.methods import PRESETS, BokehMethod, DepthMethod, MethodOptions, bokeh, depth, make_method
from train.evaluation.methods.bokeh import OFFSETS_DPT, prompt_for
from train.evaluation.predictions import open_methods, predict
from train.evaluation.protocols import PROTOCOLS
from train.evaluation.samples import Frame, RowSource, Sample, read_depth, rows_of_rgbd

pytestmark = pytest.mark.filterwarnings("ignore")
OPTIONS = MethodOptions()


def scene(name="a", seed=0, height=48, width=64):
    """A textured photo before a slanted plane, focused at 2 m, blurred by one disk of 0.15 dpt."""
    rng = np.random.default_rng(seed)
    photo = disk_blur(rng.random((height, width, 3)).astype(np.float32), 1.2)
    depth = np.repeat(np.linspace(4.0, 1.0, height, dtype=np.float32)[:, None], width, axis=1)
    targets = tuple(
        Frame(k, np.clip(disk_blur(photo, k * width / 512 * 0.15, gamma=2.2), 0, 1).astype(np.float32))
        for k in (10.0, 30.0)
    )
    return Sample(name, name, photo, depth, 2.0, targets, targets)


def made(name, source, options=OPTIONS):
    method = make_method(name, options)
    method.prepare(source)
    return method


def test_every_name_resolves_to_a_class_of_one_kind():
    assert all(issubclass(kind, BokehMethod) for kind in bokeh.METHODS.values())
    assert all(issubclass(kind, DepthMethod) for kind in depth.METHODS.values())
    for target in PRESETS.values():
        assert target.partition(":")[0] in depth.METHODS
    for name, sentence in [
        ("magic", "`method` must be one of identity.*, got 'magic'"),
        ("identity:3", "identity without anything behind it"),
        ("render", "must be one of"),
        ("render:identity", "render: and a method of metric depth"),
        ("stage2:wild", "stage2: and one of generated"),
        ("constant:-2", "constant:METRES"),
        ("uniform_blur:x", "uniform_blur:OFFSET"),
        ("transformers", "cannot be had"),
        ("stage1:x", "stage1 without anything behind it"),
    ]:
        with pytest.raises(InputError, match=sentence):
            make_method(name, OPTIONS)


def test_baselines_of_bokeh():
    sample = scene()
    identity = made("identity", Given(sample))
    assert isinstance(identity, BokehMethod) and not isinstance(identity, DepthMethod)
    assert np.array_equal(identity.frames(sample, [10, 30]), np.stack([sample.photo] * 2))
    uniform = made("uniform_blur", Given(sample))
    assert uniform.offset_dpt == 0.15 and 0.15 in OFFSETS_DPT  # what the targets were made with
    found = uniform.frames(sample, [10.0, 30.0])
    assert np.allclose(found, np.stack([t.picture for t in sample.targets]), atol=1e-6)
    with pytest.raises(InputError, match="must have targets"):
        made("uniform_blur", Given(replace(sample, targets=())))
    assert np.array_equal(made("uniform_blur:0", Given(sample)).frames(sample, [30.0])[0], sample.photo)


def test_position_only_blurs_by_the_mean_offset_at_each_place():
    """Of one photo the mean is the truth, so it is the renderer's picture of what lies behind the focus."""
    sample = scene(height=128, width=128)
    behind = replace(sample, focus_distance_m=1.0)  # the plane goes from 4 to 1 m
    place, truth = made("position_only", Given(behind)), made("render:truth", Given(behind))
    np.testing.assert_allclose(place.frames(behind, [30.0]), truth.frames(behind, [30.0]), atol=1e-4)
    other = replace(behind, depth_m=np.full((128, 128), 1.0, np.float32))  # in focus everywhere: half of the offset
    halved = made("position_only", Given(behind, other)).frames(behind, [30.0])
    np.testing.assert_allclose(halved, place.frames(behind, [15.0]), atol=1e-4)
    with pytest.raises(InputError, match="must have depth and focus distances"):
        made("position_only", Given(replace(sample, focus_distance_m=None)))


def test_baselines_of_depth():
    holed = scene("b")
    depth_m = holed.depth_m.copy()
    depth_m[:, :10] = np.nan
    holed = replace(holed, depth_m=depth_m)
    source = Given(
        holed, replace(scene("c"), depth_m=np.full((48, 64), 9.0, np.float32)), replace(holed, depth_m=None)
    )
    constant = made("constant", source)
    assert isinstance(constant, DepthMethod) and constant.key == "depth_metric"
    assert constant.depth(holed)[3, 4] == pytest.approx((np.nanmedian(depth_m) + 9.0) / 2)
    assert made("constant:2.5", source).depth(holed).max() == 2.5
    # disparity that is a line over the height is found exactly
    height = (np.arange(64) + 0.5) / 64
    line = np.repeat((1 / (0.1 + 0.6 * height)).astype(np.float32)[:, None], 8, axis=1)
    exact = replace(holed, photo=np.zeros((64, 8, 3), np.float32), depth_m=line)
    gradient = made("vertical_gradient", Given(exact))
    assert (gradient.top_dpt, gradient.bottom_dpt) == pytest.approx((0.1, 0.7), abs=1e-6)
    np.testing.assert_allclose(gradient.depth(exact), line, rtol=1e-5)
    truth = made("truth", source).depth(holed)
    assert np.array_equal(truth[:, 10:], depth_m[:, 10:]) and np.array_equal(truth[:, 0], depth_m[:, 10])
    with pytest.raises(InputError, match="must have true depth"):
        made("constant", Given(replace(holed, depth_m=None)))


def test_renderer_renders_with_any_metric_depth():
    sample = scene()
    truth = made("render:truth", Given(sample))
    expected = [render_from_depth(sample.photo, sample.depth_m, k, 2.0) for k in (10.0, 30.0)]
    assert np.array_equal(truth.frames(sample, (10.0, 30.0)), np.stack(expected)) and truth.uses_truth
    # one depth, in focus: nothing is blurred
    flat = made("render:constant:2", Given(sample))
    assert np.array_equal(flat.frames(sample, (30.0,))[0], sample.photo) and not flat.uses_truth
    with pytest.raises(InputError, match="`focus_distance_m` must be known"):
        truth.frames(replace(sample, focus_distance_m=None), (10.0,))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny Depth Anything models, relative and metric, and a whole tiny pipeline, as folders."""
    root = tmp_path_factory.mktemp("models")
    backbone = Dinov2Config(
        hidden_size=24, num_hidden_layers=4, num_attention_heads=2, patch_size=14, image_size=56,
        out_indices=[1, 2, 3, 4], reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip
    for kind in ("relative", "metric"):
        torch.manual_seed(5)
        settings = DepthAnythingConfig(
            backbone_config=backbone, patch_size=14, reassemble_hidden_size=24, reassemble_factors=[4, 2, 1, 0.5],
            neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, head_hidden_size=8, depth_estimation_type=kind,
            max_depth=20 if kind == "metric" else 1,
        )  # fmt: skip
        DepthAnythingForDepthEstimation(settings).eval().save_pretrained(root / kind)
        DPTImageProcessorPil(size={"height": 56, "width": 56}, ensure_multiple_of=14, keep_aspect_ratio=True,
                             do_pad=False).save_pretrained(root / kind)  # fmt: skip
    tiny.pipeline().save_pretrained(root / "pipeline")
    return root


def test_a_model_of_transformers_is_run_as_its_page_says(folders):
    sample = scene()
    for kind, key in (("relative", "disparity_affine_invariant"), ("metric", "depth_metric")):
        method = made(f"transformers:{folders / kind}", Given(sample))
        assert method.key == key and not method.uses_truth
        found = method.depth(sample)
        processor = DPTImageProcessorPil.from_pretrained(folders / kind)
        model = DepthAnythingForDepthEstimation.from_pretrained(folders / kind)
        picture = Image.fromarray((sample.photo * 255).round().astype(np.uint8))
        with torch.no_grad():
            raw = model(**processor(images=picture, return_tensors="pt")).predicted_depth
        expected = torch.nn.functional.interpolate(raw[None], (48, 64), mode="bicubic", align_corners=False)[0, 0]
        assert found.shape == (48, 64)
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
    assert made(f"render:transformers:{folders / 'metric'}", Given(sample)).frames(sample, (20.0,)).shape[0] == 1
    with pytest.raises(InputError, match="render: and a method of metric depth"):
        make_method(f"render:transformers:{folders / 'relative'}", OPTIONS)


@pytest.mark.parametrize("name", ["depth_anything_v2", "depth_pro", "zoedepth", "kontext", "render:depth_pro"])
def test_absent_weights_say_so_in_one_line(name):
    with pytest.raises(
        InputError, match="(cannot be had|that cannot be had): .* is not complete in the cache"
    ) as error:
        make_method(name, OPTIONS)
    assert "\n" not in str(error.value)


def test_our_stages_are_the_pipeline(folders):
    sample, options = scene(), replace(OPTIONS, model=str(folders / "pipeline"), seed=3)
    source = Given(replace(sample, sample_id="other"), sample)
    stage1 = made("stage1", source, options)
    frames = stage1.frames(sample, (10.0, 30.0))
    pipe = tiny.pipeline()
    noise = torch.Generator().manual_seed(3 + 1)  # the seed and the sample's number
    expected = pipe.generate_stack(sample.photo, (10.0, 30.0), generator=noise, output_type="np").images
    np.testing.assert_allclose(frames, expected, atol=1e-5)
    strengths = (10.0, 20.0, 30.0)
    depths = {}
    for stack in ("generated", "none", "sharp", "given"):
        method = made(f"stage2:{stack}", source, options)
        depths[stack] = method.depth(sample)
        assert method.uses_truth == (stack == "given")
    np.testing.assert_allclose(depths["none"], pipe.estimate_depth(sample.photo).depth_m, atol=1e-5)
    sharp = pipe.estimate_depth(sample.photo, [sample.photo] * 3, strengths).depth_m
    np.testing.assert_allclose(depths["sharp"], sharp, atol=1e-5)
    given = pipe.estimate_depth(sample.photo, [t.picture for t in sample.stack], (10.0, 30.0)).depth_m
    np.testing.assert_allclose(depths["given"], given, atol=1e-5)
    assert len({d.tobytes() for d in depths.values()}) == 4
    with pytest.raises(InputError, match="`stack` must be in the row"):
        made("stage2:given", source, options).depth(replace(sample, stack=()))
    # the folder of a depth model alone, as train.stage2 writes it
    tiny.depth_model().save_pretrained(folders / "alone")
    (folders / "alone" / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 56, "width": 56}}))
    alone = made("stage2:none", source, replace(options, model=str(folders / "alone")))
    np.testing.assert_allclose(alone.depth(sample), depths["none"], atol=1e-5)
    with pytest.raises(InputError, match="model is"):
        make_method("stage1", replace(options, model=str(folders / "alone")))


def test_kontext_is_driven_by_its_prompt_alone(tmp_path):
    """A tiny FLUX.1-Kontext of the true classes, text encoders and all."""
    tiny.kontext().save_pretrained(tmp_path)
    sample = scene()
    options = replace(OPTIONS, steps=2, processing_area_px=64 * 64)
    method = made(f"kontext:{tmp_path}", Given(sample), options)
    frames = method.frames(sample, (10.0, 30.0))
    assert frames.shape == (2, 48, 64, 3) and frames.min() >= 0 and frames.max() <= 1
    assert np.array_equal(frames, method.frames(sample, (10.0, 30.0)))  # one noise for one sample
    assert np.abs(frames[0] - frames[1]).max() > 1e-3  # the same noise, another f-number in the prompt
    # 50 mm on 36 mm, focused at 2 m: K = 18.2 / N
    assert "at f/1.8:" in prompt_for(10.0) and "at f/0.6:" in prompt_for(30.0)


def test_predictions_are_saved_resumed_and_refused(tmp_path, caplog):
    source = Given(scene("a"), scene("b", 1))
    caplog.set_level("INFO")
    names = ["truth", "identity", "kontext", "magic", "render:truth"]
    written, left_out = predict(names, source, tmp_path, OPTIONS)
    assert [p.name for p in written] == ["truth", "identity", "render__truth"]
    assert set(left_out) == {"kontext", "magic"} and "kontext is left out" in caplog.text
    saved = open_methods(tmp_path, "bokeh", (), source)
    assert set(saved) == {"identity", "render:truth"} and saved["render:truth"].card.uses_truth
    truth = open_methods(tmp_path, "depth", (), source)["truth"]
    stored, key = truth.depth(source[0])
    assert key == "depth_metric" and np.array_equal(stored, source[0].depth_m)
    picture = saved["identity"].stack(source[1])[1]
    assert np.abs(picture - source[1].photo).max() <= 0.5 / 255 + 1e-6
    # a cut-off run: one sample and the card are missing; what is there is kept
    (tmp_path / "truth" / "b.npz").unlink()
    (tmp_path / "truth" / "method.json").unlink()
    kept = (tmp_path / "truth" / "a.npz").stat().st_mtime_ns
    predict(["truth"], source, tmp_path, OPTIONS)
    assert (tmp_path / "truth" / "b.npz").exists() and (tmp_path / "truth" / "a.npz").stat().st_mtime_ns == kept
    _, left_out = predict(["truth"], source, tmp_path, replace(OPTIONS, seed=9))
    assert "holds another run" in left_out["truth"]
    (tmp_path / "truth" / "b.npz").unlink()
    with pytest.raises(InputError, match="got no b.npz"):
        truth.depth(source[1])
    np.savez(tmp_path / "truth" / "b.npz", depth=stored)
    with pytest.raises(InputError, match="must have exactly one of"):
        truth.depth(source[1])


def test_depth_files_of_every_kind(tmp_path):
    stored = np.array([[1000, 0, 2500], [500, 65535, 1]], np.uint16)
    Image.fromarray(stored).save(tmp_path / "d.png")
    depth = read_depth(tmp_path / "d.png", 0.001)
    assert depth.dtype == np.float32 and np.isnan(depth[0, 1])
    np.testing.assert_allclose(depth[~np.isnan(depth)], [1.0, 2.5, 0.5, 65.535, 0.001], rtol=1e-6)
    disparity = np.array([[0.5, 0.0, np.nan, -1.0, np.inf]])
    np.save(tmp_path / "d.npy", disparity)
    found = read_depth(tmp_path / "d.npy", 1.0, "dpt")
    assert found[0, 0] == 2.0 and np.isnan(found[0, 1:]).all()
    np.savez(tmp_path / "d.npz", depth=disparity)
    np.savez(tmp_path / "e.npz", other=disparity)
    assert read_depth(tmp_path / "d.npz", 2.0)[0, 0] == 1.0
    Image.new("RGB", (4, 4)).save(tmp_path / "rgb.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for name, sentence in [("e.npz", "must be a depth map"), ("rgb.png", "one channel"), ("broken.png", "cannot")]:
        with pytest.raises(InputError, match=sentence):
            read_depth(tmp_path / name, 1.0)
    with pytest.raises(InputError, match="relative disparity has no metres"):
        read_depth(tmp_path / "d.png", 1.0, "relative_disparity")


def test_rows_become_samples(tmp_path):
    sample = scene()
    for name, picture in (("p.png", sample.photo), ("t.png", sample.targets[0].picture)):
        Image.fromarray((picture * 255).round().astype(np.uint8)).save(tmp_path / name)
    Image.fromarray((sample.depth_m * 1000).round().astype(np.uint16)).save(tmp_path / "d.png")
    row = ManifestRow(
        "r", "s", tmp_path / "p.png", tmp_path / "t.png", tmp_path / "d.png", "m", 0.001, strength_unit="metric",
        camera_anns=CameraAnns(bokeh_strength=10.0, focus_distance_m=2.0),
        stack=(StackFrame(tmp_path / "t.png", 10.0),), intrinsics=Intrinsics(70.0, 71.0, 32.0, 24.0),
    )  # fmt: skip
    read = RowSource([row], "one row")[0]
    assert np.abs(read.photo - sample.photo).max() < 0.003 and np.abs(read.depth_m - sample.depth_m).max() < 0.001
    assert read.focus_distance_m == 2.0 and read.stack[0].bokeh_strength == read.targets[0].bokeh_strength == 10.0
    assert read.intrinsics.tolist() == [[70, 0, 32], [0, 71, 24], [0, 0, 1]]
    Image.new("RGB", (64, 47)).save(tmp_path / "t.png")
    with pytest.raises(InputError, match="`target_image_path` must have the photo's 64 x 48 pixels, got 64 x 47"):
        RowSource([row], "one row")[0]
    target_only = ManifestRow("r", "s", target_path=tmp_path / "t.png", strength_unit="metric",
                              camera_anns=CameraAnns(bokeh_strength=10.0))  # fmt: skip
    with pytest.raises(InputError, match="`input_image_path` must be in every row"):
        RowSource([target_only], "one row")


def test_a_bad_index_is_refused_by_line(tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "p.png")
    header = "id,rgb,depth,units_per_m,fx,fy,cx,cy\n"
    for text, sentence in [
        (header + "a,p.png,p.png,0,1,1,1,1\n", "line 2"),
        (header + "a,p.png,none.png,1000,1,1,1,1\n", "line 2: 'none.png' is no file"),
        ("id,rgb\na,p.png\n", "no column 'depth'"),
        (header, "must have rows"),
    ]:
        (tmp_path / "index.csv").write_text(text)
        with pytest.raises(InputError, match=sentence):
            rows_of_rgbd(tmp_path)
    with pytest.raises(InputError, match="with an index.csv"):
        rows_of_rgbd(tmp_path / "none")


def test_real_rgbd_has_its_units_holes_and_crops(data_root):
    """The index's own numbers, computed by whoever collected the pairs, are found again through our reader."""
    import csv

    folder = data_root / "rgbd"
    rows = rows_of_rgbd(folder)
    source = RowSource(rows, "rgbd")
    lines = {line["id"]: line for line in csv.DictReader((folder / "index.csv").open())}
    assert len(source) == len(lines) == 55
    wanted = [  # one of each depth scale and density
        "nyuv2_metric3d_rgb_00000", "slambook2_tum1", "kitti_object_000001", "nuscenes_CAM_BACK",
        "sunrgbd_mmdet3d_000017",
    ]  # fmt: skip
    for name in wanted:
        sample, line = source[source.ids.index(name)], lines[name]
        assert sample.photo.shape == (int(line["h"]), int(line["w"]), 3)
        known = np.isfinite(sample.depth_m)
        assert known.mean() == pytest.approx(float(line["valid"]), abs=6e-5)
        assert np.median(sample.depth_m[known]) == pytest.approx(float(line["zmed"]), abs=2e-3)
        assert sample.intrinsics[0, 0] == pytest.approx(float(line["fx"]))
        assert PROTOCOLS["full"].valid(sample.depth_m).sum() == known.sum()
    kitti = source[source.ids.index("kitti_object_000001")]
    counted = PROTOCOLS["kitti_garg"].valid(kitti.depth_m)
    assert not counted[:153].any() and not counted[371:].any() and 0 < counted.sum() < np.isfinite(kitti.depth_m).sum()
    nyu = source[source.ids.index("nyuv2_metric3d_rgb_00000")]
    assert PROTOCOLS["nyuv2_eigen"].valid(nyu.depth_m).sum() == np.isfinite(nyu.depth_m[45:471, 41:601]).sum()
