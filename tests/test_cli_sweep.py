import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import piexif
import PIL.Image
import pytest
import skimage.data

from bokehdepth.camera import read_camera
from bokehdepth.camera.lens import blur_radius_px
from bokehdepth.cli import main
from bokehdepth.files.depth_maps import load_depth, load_depth_npz
from bokehdepth.rendering.disk import disk_blur

FOCUS_M, DEPTH_M = 0.6, 2.2
OWN, WIDER = 11.0, (5.6, 2.8, 1.8)
FILES = ["confidence.png", "depth.json", "depth.npz", "depth.png", "depth_preview.png"]


def exif(f_number):
    tags = {piexif.ExifIFD.FocalLength: (50, 1), piexif.ExifIFD.FocalLengthIn35mmFilm: 50}
    if f_number is not None:
        tags[piexif.ExifIFD.FNumber] = (round(10 * f_number), 10)
    return piexif.dump({"Exif": tags})


@pytest.fixture(scope="module")
def bracket(tmp_path_factory):
    """A plane at 2.2 m through a 50 mm lens focused at 0.6 m: JPEGs with EXIF at f/11 (the photo), 5.6, 2.8, 1.8."""
    folder = tmp_path_factory.mktemp("bracket")
    sharp = (skimage.data.astronaut()[40:296, 120:376] / 255).astype(np.float32)
    PIL.Image.fromarray(np.uint8(sharp * 255)).save(folder / "lens.jpg", exif=exif(OWN))
    camera = read_camera(PIL.Image.open(folder / "lens.jpg"), focus_distance_m=FOCUS_M)
    paths = []
    for f_number in (OWN, *WIDER):
        radius_px = blur_radius_px(camera.bokeh_strength(f_number), FOCUS_M, DEPTH_M, sharp.shape[1])
        frame = np.rint(disk_blur(sharp, radius_px, gamma=2.2) * 255).astype(np.uint8)
        paths.append(folder / f"f{f_number:g}.jpg")
        PIL.Image.fromarray(frame).save(paths[-1], quality=97, subsampling=0, exif=exif(f_number))
    return [str(path) for path in paths]


def sweep(bracket, out, *options, side="behind"):
    photo, *frames = bracket
    command = ["depth", photo, "--method", "sweep", "--stack", *frames, "-o", str(out), *options]
    return main([*command, "--side", side] if side else command)


def only_error(capsys):
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("bokehdepth: error: "), err
    return err


def test_a_bracket_becomes_metres_without_a_model(bracket, tmp_path):
    """As a user starts it who says the side; K from EXIF f-numbers."""
    photo, *frames = bracket
    command = ["depth", photo, "--method", "sweep", "--stack", *frames, "--focus-m", "0.6", "-o", str(tmp_path)]
    command += ["--side", "behind"]
    script = (
        "import sys; from bokehdepth.cli import main; code = main(sys.argv[1:])\n"
        "heavy = {'torch', 'diffusers', 'transformers'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    process = subprocess.run([sys.executable, "-c", script, *command, "--json"], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    entry = json.loads(process.stdout)["photos"][0]
    folder = tmp_path / "f11"
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert entry["f_numbers"] == list(WIDER) and entry["bokeh_strengths"][-1] > 10

    depth = load_depth_npz(folder / "depth.npz")
    assert np.nanmedian(np.abs(depth.depth_m / DEPTH_M - 1)) < 0.05
    assert depth.bokeh_strengths == pytest.approx(entry["bokeh_strengths"])
    coded = load_depth(folder / "depth.png")
    assert np.array_equal(np.isnan(coded), np.isnan(depth.depth_m))

    record = json.loads((folder / "depth.json").read_text())
    about = record["depth"]
    assert (about["method"], about["estimator"], about["side"]) == ("sweep", "joint", "behind")
    assert about["side_told_by"] == "caller" and "taken to lie behind it, as asked for" in about["side_assumption"]
    assert about["photo_bokeh_strength_source"] == "read"
    assert about["photo_bokeh_strength"] / record["bokeh_strengths"][0] == pytest.approx(5.6 / 11)
    assert record["weights"] == {} and record["seed"] is None and record["arguments"]["method"] == "sweep"
    assert about == entry["depth"]
    confidence = np.asarray(PIL.Image.open(folder / "confidence.png"))
    assert confidence.shape == depth.depth_m.shape
    assert np.mean(confidence < 127.5) == pytest.approx(about["low_confidence_share"], abs=0.01)
    assert about["invalid_share"] == np.mean(np.isnan(depth.depth_m))


def without_f_numbers(bracket, folder):
    """The same files with a lens, but no f-number, in their EXIF."""
    folder.mkdir()
    paths = [folder / Path(path).name for path in bracket]
    for path, source in zip(paths, bracket, strict=True):
        piexif.insert(exif(None), source, str(path))
    return [str(path) for path in paths]


def test_the_photos_own_blur_counts(bracket, tmp_path):
    """With its f-number forgotten the photo passes for free of blur, and the plane comes out too near."""
    medians = {}
    forgotten = [without_f_numbers(bracket, tmp_path / "bare")[0], *bracket[1:]]
    for name, files in (("read", bracket), ("forgotten", forgotten)):
        assert sweep(files, tmp_path / name, "--focus-distance", "0.6") == 0
        medians[name] = np.nanmedian(load_depth_npz(tmp_path / name / "f11" / "depth.npz").depth_m)
    assert abs(medians["read"] - DEPTH_M) < abs(medians["forgotten"] - DEPTH_M)
    assert medians["forgotten"] < medians["read"]


def test_all_in_front(bracket, tmp_path):
    assert sweep(bracket, tmp_path / "front", "--focus-distance", "0.6", side="front") == 0
    depth = load_depth_npz(tmp_path / "front" / "f11" / "depth.npz").depth_m
    assert np.nanmedian(depth) == pytest.approx(1 / (2 / FOCUS_M - 1 / DEPTH_M), rel=0.05)  # the mirrored plane
    about = json.loads((tmp_path / "front" / "f11" / "depth.json").read_text())["depth"]
    assert about["side"] == "front" and "in front of it, as asked for" in about["side_assumption"]


def test_the_side_is_the_models_unless_the_caller_says_it(bracket, tmp_path):
    assert sweep(bracket, tmp_path, "--focus-distance", "0.6", "--device", "cpu", side=None) == 0
    record = json.loads((tmp_path / "f11" / "depth.json").read_text())
    about = record["depth"]
    assert (about["side"], record["arguments"]["side"], about["side_told_by"]) == ("auto", "auto", "rough depth")
    assert "nearer to the model's depth" in about["side_assumption"] and 0 <= about["side_unknown_share"] <= 1
    assert 0.25 <= about["rough_depth_scale"] <= 4 and record["arguments"]["device"] == "cpu" and record["weights"]


def test_strengths_and_filling(bracket, tmp_path):
    # 31: more than a network takes
    options = ["--focus-distance", "0.6", "--bokeh-strengths", "10", "20", "31", "--fill"]
    assert sweep(bracket, tmp_path, *options) == 0
    about = json.loads((tmp_path / "f11" / "depth.json").read_text())["depth"]
    assert about["photo_bokeh_strength_source"] == "assumed" and about["photo_bokeh_strength"] == 0
    assert about["filled_share"] == about["low_confidence_share"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--photo-f-number", "2.8"], "the photo must be the sharpest frame"),
        (["--photo-f-number", "0"], "photo_f_number must be finite and greater than 0"),
        (["--side", "left"], "invalid choice: 'left'"),
        (["--bokeh-strengths", "10", "20"], "2 values for 3 frames"),
        (["--bokeh-strengths", "0", "10", "20"], "bokeh_strengths must be finite and greater than 0"),
        (["--bokeh-strengths", "10", "10", "20"], "10 twice"),
        (["--f-numbers", "4", "4", "2"], "wanted each value once"),
        (["--f-numbers", "4", "nan", "2"], "f_numbers of the stack must be finite"),
        (["--f-numbers", "1.8", "2.8", "5.6"], "'f1.8.jpg' labelled f/5.6, but its EXIF says f/1.8"),
    ],
)
def test_wrong_options_are_refused(bracket, tmp_path, capsys, options, words):
    out = tmp_path / "out"
    assert sweep(bracket, out, "--focus-distance", "0.6", *options, side=None) == 2
    assert words in only_error(capsys)
    assert not out.exists()


def test_options_that_belong_to_the_other_method_are_refused(bracket, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main(["depth", bracket[0], "--method", "sweep", "-o", out]) == 2
    assert "--stack" in only_error(capsys)
    for options in (["--side", "front"], ["--photo-f-number", "8"], ["--fill"]):
        assert main(["depth", bracket[0], "-o", out, *options]) == 2
        assert "--method sweep" in only_error(capsys)


def test_what_is_odd_is_said_before_the_work_and_in_the_record(bracket, tmp_path, capsys):
    options = ["--focus-distance", "0.6", "--bokeh-strengths", "10", "20", "31", "--json"]
    assert sweep(bracket, tmp_path, *options) == 0
    out, err = capsys.readouterr()
    said = "frame 'f5.6.jpg' is labelled K = 10, but its EXIF f/5.6 gives "
    assert err.startswith(f"bokehdepth: warning: photo 'f11.jpg': {said}") and err.splitlines()[0].endswith(".")
    (warning,) = json.loads(out)["photos"][0]["depth"]["warnings"]
    assert warning.startswith(said)
    assert json.loads((tmp_path / "f11" / "depth.json").read_text())["depth"]["warnings"] == [warning]


def test_frames_without_enough_blur_fail_in_one_sentence(bracket, tmp_path, capsys):
    bare = without_f_numbers(bracket, tmp_path / "bare")
    assert sweep(bare, tmp_path / "out", "--focus-distance", "0.6", "--bokeh-strengths", "0.1", "0.2", "0.3") == 1
    assert "wider apertures" in only_error(capsys)
    assert not (tmp_path / "out").exists()
