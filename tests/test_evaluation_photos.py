"""Real photos as they are evaluated: one size for the photo, the truth's own for the score, subjects, outdoors."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import tiny
from bokehdepth.errors import InputError
from bokehdepth.manifest import Intrinsics, ManifestRow, write_manifest
from bokehdepth.rendering.disk import disk_blur
from bokehdepth.rendering.refocus import render_from_depth
from given_samples import Given
from train.evaluation import scores_depth, scores_photos
from train.evaluation.__main__ import main
from train.evaluation.methods import BokehMethod, MethodOptions, make_method
from train.evaluation.methods.depth import best_constant, best_line
from train.evaluation.predictions import predict
from train.evaluation.samples import Frame, Prepared, Sample, add_source_arguments, open_source

pytestmark = pytest.mark.filterwarnings("ignore")
HEIGHT, WIDTH = 48, 64


def scene(name="a", seed=0):
    """A textured photo of a slanted plane from 1 to 4 m with a hole."""
    photo = disk_blur(np.random.default_rng(seed).random((HEIGHT, WIDTH, 3)).astype(np.float32), 1.2)
    depth = np.repeat(np.linspace(4.0, 1.0, HEIGHT, dtype=np.float32)[:, None], WIDTH, axis=1)
    depth[:5, :5] = np.nan
    matrix = np.array([[70.0, 0, 32], [0, 72, 24], [0, 0, 1]])
    return Sample(name, name, photo, depth, intrinsics=matrix, mask=np.arange(WIDTH)[None] < np.full((HEIGHT, 1), 20))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "pipeline"
    tiny.pipeline().save_pretrained(folder)
    return str(folder)


# ---------------------------------------------------------------------- sizes and ranges


def test_a_photo_at_another_size_keeps_its_truth():
    sample = replace(scene(), stack=(Frame(10.0, scene().photo),))
    found = Prepared(Given(sample), 128, (1.5, 3.5))[0]
    assert found.photo.shape == found.stack[0].picture.shape == (96, 128, 3) and found.depth_m.shape == (HEIGHT, WIDTH)
    assert found.intrinsics.tolist() == [[140, 0, 64], [0, 144, 48], [0, 0, 1]]
    assert found.mask.shape == (96, 128) and found.mask[:, :39].all() and not found.mask[:, 41:].any()
    known = np.isfinite(found.depth_m)
    assert np.array_equal(known, (sample.depth_m > 1.5) & (sample.depth_m < 3.5))
    assert np.array_equal(found.depth_m[known], sample.depth_m[known])
    at_photo = found.depth_of_photo_m()  # each value twice in both directions, holes too
    assert np.array_equal(at_photo, np.repeat(np.repeat(found.depth_m, 2, 0), 2, 1), equal_nan=True)
    half = Prepared(Given(sample), 32)[0]  # with antialiasing, so noise becomes flatter
    assert half.photo.shape == (24, 32, 3) and half.photo.std() < sample.photo.std()
    for arguments in ((16, None), (None, (3.0, 1.0)), (None, (-1.0, 1.0))):
        with pytest.raises(InputError, match="must be"):
            Prepared(Given(sample), *arguments)


def test_a_prediction_is_scored_at_the_size_of_the_truth(tmp_path):
    source = Prepared(Given(replace(scene(), depth_m=np.full((HEIGHT, WIDTH), 2.0, np.float32))), 128, (0.1, 80))
    predict(["truth", "constant:3"], source, tmp_path / "p", MethodOptions())
    text = scores_depth.score(tmp_path / "p", source, "full", "constant:3", tmp_path / "out")
    rows = json.loads((tmp_path / "out/report.json").read_text())["rows"]
    assert rows["truth"]["abs_rel"]["mean"] == 0 and rows["constant:3"]["abs_rel"]["mean"] == pytest.approx(0.5)
    assert rows["constant:3"]["delta1_median_scaled"]["mean"] == 1 and rows["constant:3"]["delta1"]["mean"] == 0
    assert rows["truth"]["abs_rel_median_scaled_minus_against"]["mean"] == pytest.approx(0)
    assert "longer side 128 px, depth 0.1 to 80 m" in text and "delta1, median-scaled" in text
    enlarged = scores_depth.at_size_of(np.array([[1.0, 3.0]], np.float32), np.zeros((1, 4)))
    assert enlarged.tolist() == [[1.0, 1.5, 2.5, 3.0]]


def test_the_best_guesses_have_the_smallest_error():
    near, far = scene("a"), replace(scene("b"), depth_m=scene().depth_m * 6)
    source = Given(near, far, replace(near, depth_m=None))
    truths = [s.depth_m[np.isfinite(s.depth_m)].astype(np.float64) for s in (near, far)]

    def error(guess):
        return np.mean([np.mean(np.abs(guess / truth - 1)) for truth in truths])

    found = best_constant(source)
    tried = np.geomspace(0.5, 30, 20000)
    assert found == pytest.approx(tried[np.argmin([error(t) for t in tried])], rel=0.01)
    # a disparity that is a line over the height is found again
    height = (np.arange(HEIGHT) + 0.5) / HEIGHT
    line = np.repeat((1 / (0.1 + 0.6 * height)).astype(np.float32)[:, None], WIDTH, axis=1)
    assert best_line(Given(replace(near, depth_m=line)), 1e-3) == pytest.approx((0.1, 0.7), abs=0.01)
    constant, gradient = (make_method(name, MethodOptions()) for name in ("best_constant", "best_gradient"))
    for method in (constant, gradient):
        method.prepare(source)
        assert method.uses_truth
    assert constant.depth(near)[0, 0] == np.float32(found)
    errors = {}
    for name in ("best_gradient", "vertical_gradient"):
        method = make_method(name, MethodOptions())
        method.prepare(source)
        guesses = [method.depth(s)[np.isfinite(s.depth_m)] for s in (near, far)]
        errors[name] = np.mean([np.mean(np.abs(g / t - 1)) for g, t in zip(guesses, truths, strict=True)])
    assert errors["best_gradient"] < min(errors["vertical_gradient"], error(found))
    for call in (best_constant, lambda s: best_line(s, 1e-3)):
        with pytest.raises(InputError, match="must have true depth"):
            call(Given(replace(near, depth_m=None)))
    with pytest.raises(InputError, match="vertical_gradient:best"):
        make_method("vertical_gradient:worst", MethodOptions())


def test_rows_are_chosen_by_data_set_and_split(tmp_path):
    rows = []
    for name, dataset, split in (("x_1", "x", "test"), ("x_2", "x", "train"), ("y_1", "y", "test")):
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / f"{name}.png")
        Image.new("L", (WIDTH, HEIGHT), 255).save(tmp_path / f"{name}_mask.png")
        rows.append(ManifestRow(name, name, tmp_path / f"{name}.png", mask_path=tmp_path / f"{name}_mask.png",
                                intrinsics=Intrinsics(50, 50, 32, 24), dataset=dataset, split=split))  # fmt: skip
    write_manifest(tmp_path / "rows.jsonl", rows)
    parser = argparse.ArgumentParser()
    add_source_arguments(parser)

    def chosen(*words):
        return open_source(parser.parse_args(["--manifest", str(tmp_path / "rows.jsonl"), *words]))

    assert chosen("--dataset", "x", "y", "--split", "test").ids == ["x_1", "y_1"]
    assert chosen("--only", "x_2", "y").ids == ["x_2", "y_1"]
    source = chosen("--dataset", "x", "--longer-side", "128")
    assert source[0].mask.all() and source[0].dataset == "x" and source[0].intrinsics[0, 0] == 100
    assert source.description == "2 rows of rows.jsonl (x), longer side 128 px"
    with pytest.raises(InputError, match="`dataset` must be one of x, y, got 'z'"):
        chosen("--dataset", "z")
    with pytest.raises(InputError, match="`dataset` and `split` must stay away from a pool"):
        open_source(parser.parse_args(["--pool", "none.yaml", "--split", "test"]))


# ---------------------------------------------------------------------- Stage-2 with a camera, and with true stacks


def test_stage2_with_frames_of_the_true_depth(model):
    sample = replace(scene(), focus_distance_m=2.0)
    method = make_method("stage2_rendered", MethodOptions(model=model))
    assert method.uses_truth and not method.uses_intrinsics  # Depth Anything takes no camera
    depth = make_method("truth", MethodOptions()).depth(sample)
    frames = [render_from_depth(sample.photo, depth, k, 2.0) for k in (10.0, 20.0, 30.0)]
    expected = tiny.pipeline().estimate_depth(sample.photo, frames, (10.0, 20.0, 30.0)).depth_m
    np.testing.assert_allclose(method.depth(sample), expected, atol=1e-5)
    # without a focus it is on what the middle shows: rows 16 to 31 of the plane
    unfocused = method.depth(replace(sample, focus_distance_m=None))
    middle = float(1 / np.median(1 / depth[16:32]))
    frames = [render_from_depth(sample.photo, depth, k, middle) for k in (10.0, 20.0, 30.0)]
    np.testing.assert_allclose(
        unfocused, tiny.pipeline().estimate_depth(sample.photo, frames, (10.0, 20.0, 30.0)).depth_m, atol=1e-5
    )


def test_a_camera_is_given_where_it_is_wanted_and_known():
    """The embedded Stage-2 takes a camera."""
    given, guessed = (make_method("stage2_no_stack", MethodOptions(intrinsics=i)) for i in ("given", "guessed"))
    assert given.uses_intrinsics and not guessed.uses_intrinsics
    sample = scene()
    expected = given.pipeline.estimate_depth(sample.photo, intrinsics=sample.intrinsics).depth_m
    np.testing.assert_allclose(given.depth(sample), expected, rtol=1e-5)
    unknown = given.depth(replace(sample, intrinsics=None))
    np.testing.assert_allclose(guessed.depth(sample), unknown, rtol=1e-5)
    assert not np.allclose(unknown, expected, rtol=0.01)


# ---------------------------------------------------------------------- subjects


def test_changes_of_subject_and_rest_are_relative_to_a_uniform_blur():
    sample = scene()
    blurred = disk_blur(sample.photo, 30 * WIDTH / 512 * 0.5, gamma=2.2)

    def changes(photo, picture, mask, offset_dpt=0.5):
        return scores_photos.subject_and_rest(photo, picture, scores_photos.regions(mask), 30.0, offset_dpt)

    assert changes(sample.photo, blurred, sample.mask) == pytest.approx((1, 1), abs=1e-5)
    assert max(changes(sample.photo, blurred, sample.mask, 1.0)) < 0.9  # of a wider blur
    assert changes(sample.photo, sample.photo, sample.mask) == (0, 0)
    mixed = np.where(sample.mask[..., None], sample.photo, blurred)
    assert changes(sample.photo, mixed, sample.mask) == pytest.approx((0, 1), abs=1e-5)
    subject, rest = scores_photos.regions(sample.mask)  # 20 columns; 4 px on both sides of the outline are out
    assert subject[:, :16].all() and not subject[:, 16:].any() and rest[:, 24:].all() and not rest[:, :24].any()
    assert changes(sample.photo * 0, blurred * 0, sample.mask) is None
    assert changes(sample.photo, blurred, sample.mask & (np.arange(WIDTH) < 3)) is None
    boxes = scores_photos.face_mask([[0.25, 0.25, 0.75, 0.75]], HEIGHT, WIDTH)
    assert boxes[12:36, 16:48].all() and boxes.sum() == 24 * 32


class Halves(BokehMethod):
    """Leaves the left alone and blurs the right, but for one photo."""

    def frames(self, sample, bokeh_strengths):
        blurred = disk_blur(sample.photo, bokeh_strengths[0] * WIDTH / 512 * 0.5, gamma=2.2)
        kept = sample.photo if sample.sample_id == "bad" else np.where(sample.mask[..., None], sample.photo, blurred)
        return kept[None]


def test_photos_are_counted_by_data_set():
    one, two = replace(scene("one"), dataset="x"), replace(scene("two", 1), dataset="y")
    bad, thin = replace(scene("bad", 2), dataset="y"), replace(scene("thin"), mask=np.arange(WIDTH)[None] < 1)
    thin = replace(thin, mask=np.repeat(thin.mask, HEIGHT, axis=0))
    rows, left_out = scores_photos.score_subjects(Halves(), Given(one, two, bad, thin), 30.0)
    assert left_out == 1 and [row["right"] for row in rows] == [True, True, False]
    found = scores_photos.subject_summary(rows)
    assert [found[name]["right"]["mean"] for name in ("x", "y", "all")] == pytest.approx([1, 0.5, 2 / 3])
    assert found["y"]["rest"]["mean"] == pytest.approx(0.5) and found["x"]["rest_over_subject"] is None
    report = {"source": "given", "method": "m", "weights": "w", "bokeh_strength": 30, "left_out": 1, "rows": found}
    text = scores_photos.subject_table(report, rows)
    assert "| all | 3 | 66.7% (" in text and "Worst: bad (0.00, 0.00)" in text
    for samples in ((replace(one, mask=None),), (thin,)):
        with pytest.raises(InputError, match="`manifest` must have"):
            scores_photos.score_subjects(Halves(), Given(*samples), 30.0)


def command(*words):
    main([str(word) for word in words])


def test_the_command_scores_a_manifest_of_masks(tmp_path, model, monkeypatch, capsys):
    sample = scene()
    Image.fromarray((sample.photo * 255).astype(np.uint8)).save(tmp_path / "p.png")
    Image.fromarray(sample.mask.astype(np.uint8) * 255).save(tmp_path / "m.png")
    row = ManifestRow("p", "s", tmp_path / "p.png", mask_path=tmp_path / "m.png", dataset="x", split="test")
    write_manifest(tmp_path / "rows.jsonl", [row])
    words = (
        "--manifest",
        tmp_path / "rows.jsonl",
        "--model",
        model,
        "--longer-side",
        64,
        "--output",
        tmp_path / "out",
    )
    command("score-masks", *words)
    assert "| x | 1 |" in capsys.readouterr().out and (tmp_path / "out/per_image.csv").is_file()
    for extra in (("--method", "truth"), ("--bokeh-strength", 0)):
        with pytest.raises(SystemExit, match="error: `(method|bokeh_strength)` must be"):
            command("score-masks", *words, *extra)


# ---------------------------------------------------------------------- outdoors and sheets

MARKS = {"sky": [[0.5, 0.1]], "far": [[0.5, 0.45]], "chains": [[[0.5, 0.95], [0.5, 0.6]], [[0.2, 0.7], [0.2, 0.45]]]}


def test_marks_are_judged_by_their_metres():
    depth = np.repeat(np.linspace(100.0, 1.0, 100, dtype=np.float32)[:, None], 60, axis=1)
    found = scores_photos.judge(depth, MARKS)
    assert (found["sky"], found["far"], found["chains"][0]) == ([90.0], [55.0], [5.0, 40.0])
    assert (found["is_far"], found["sky_farthest"], found["ascending"]) == (True, True, True)
    near = scores_photos.judge(depth / 2, MARKS)
    assert (near["is_far"], near["sky_farthest"], near["ascending"]) == (False, True, True)
    turned = scores_photos.judge(depth[::-1], MARKS)
    assert (turned["is_far"], turned["sky_farthest"], turned["ascending"]) == (True, False, False)
    flat = scores_photos.judge(np.full_like(depth, 200), MARKS)
    assert (flat["is_far"], flat["sky_farthest"], flat["ascending"]) == (True, True, False)
    assert scores_photos.judge(depth, {"sky": [[0.5, 0.1]]})["sky_farthest"] is None
    spike = depth.copy()
    spike[45, 30] = 1.0  # one wrong pixel does not count
    assert scores_photos.judge(spike, MARKS)["far"] == [55.0]
    text = scores_photos.outdoor_table({"one": found, "two": near})
    assert "| one | 90.0 | 55.0 | 5.0, 40.0; 30.0, 55.0 | yes | yes | yes |" in text
    assert "| all |  |  |  | 1 of 2 | 2 of 2 | 2 of 2 |" in text


@pytest.mark.parametrize(
    "marks",
    [{"a": []}, {"a": {"sea": [[0, 0]]}}, {"a": {"sky": [[0.5, 1.0]]}}, {"a": {"sky": []}},
     {"a": {"chains": [[[0.1, 0.1]]]}}, {"a": {"far": [[0.1, "b"]]}}],
)  # fmt: skip
def test_wrong_marks_are_refused(marks):
    with pytest.raises(InputError, match="`marks` must be"):
        scores_photos.check_outdoor_marks(marks)


def test_marks_of_the_project_are_good_and_their_photos_there(data_root):
    path = Path(__file__).parents[1] / "train/marks/outdoors.yaml"
    marks = scores_photos.read_marks(path)
    scores_photos.check_outdoor_marks(marks)
    assert len(marks) == 22 and all(scores_photos.find(data_root, name) for name in marks)


def test_the_commands_look_at_photos(tmp_path, model, monkeypatch, capsys):
    for name in ("one", "two"):
        photo = Image.fromarray((scene(seed=3).photo * 255).astype(np.uint8)).resize((80, 60))
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0xA405] = 28  # 35 mm equivalent focal length
        photo.save(tmp_path / f"{name}.jpg", **({"exif": exif} if name == "one" else {}))
    (tmp_path / "marks.yaml").write_text(yaml.safe_dump({"one": MARKS, "two": {"sky": [[0.5, 0.1]]}}))
    monkeypatch.setattr(scores_photos, "LONGER_SIDE_PX", 64)
    words = ("--marks", tmp_path / "marks.yaml", "--photos", tmp_path, "--model", model)
    command("score-outdoors", *words)
    text = capsys.readouterr().out
    assert "2 photos, 1 with the camera of their EXIF" in text and "| two |" in text
    command("look", "--photos", tmp_path / "*.jpg", "--model", model, "--output", tmp_path / "out/sheet.png")
    assert "one: " in (text := capsys.readouterr().out) and "two: " in text and text.count("no camera given") == 1
    with Image.open(tmp_path / "out/sheet.png") as sheet:
        assert sheet.width > 3 * 64 and sheet.height > 2 * 48
    with pytest.raises(SystemExit, match="`photos` must find files"):
        command("look", "--photos", tmp_path / "*.gif", "--model", model, "--output", tmp_path / "x.png")
    with pytest.raises(SystemExit, match="error: "):
        command("score-outdoors", "--marks", tmp_path / "none.yaml", "--photos", tmp_path)


def test_the_command_looks_at_faces(tmp_path, capsys):
    for name in ("one", "two"):
        Image.fromarray((scene().photo * 255).astype(np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "marks.yaml").write_text(yaml.safe_dump({"one": [[0.2, 0.2, 0.8, 0.8]], "two": [[0, 0, 1, 0.5]]}))
    words = ("score-faces", "--marks", tmp_path / "marks.yaml", "--photos", tmp_path, "--method", "uniform_blur:0.01",
             "--output", tmp_path / "out" / "sheet.png")  # fmt: skip
    command(*words)
    table = capsys.readouterr().out
    assert "2 of 2 faces are sharp" in table and "| one |" in table and "| two |" in table
    command(*words[:-4], "--method", "uniform_blur:2", *words[-2:])
    assert "0 of 2 faces are sharp" in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.width > 4 * 300
    (tmp_path / "one.jpg").write_bytes(b"")
    with pytest.raises(SystemExit, match=r"one file one\.\*, got 2"):
        command(*words)
    (tmp_path / "marks.yaml").write_text("[]")
    with pytest.raises(SystemExit, match="`marks` must be photos with their marks"):
        command(*words)
