import json
import logging
import re
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import piexif
import PIL.Image
import PIL.ImageFilter
import pytest
import skimage.data

import bokehdepth
import tiny
from bokehdepth.camera import read_camera
from bokehdepth.camera.f_numbers import smallest_f_number, strengths_from_f_numbers
from bokehdepth.cli import main
from bokehdepth.errors import InputError
from bokehdepth.files.depth_maps import load_depth, load_depth_npz

SIZE_PX = (96, 64)
RUN_FILES = ["bokeh_k10.png", "bokeh_k20.png", "depth.npz", "depth.png", "depth_preview.png", "run.json"]
FAST = ["--steps", "1", "--device", "cpu", "--threads", "1"]


def photo_of(name, size=SIZE_PX):
    return PIL.Image.fromarray(getattr(skimage.data, name)()).convert("RGB").resize(size)


def lens_exif(f_number=(2, 1), focal_mm=(50, 1), focal_35mm=50, distance_m=(9, 5), orientation=1):
    tags = {
        piexif.ExifIFD.FNumber: f_number,
        piexif.ExifIFD.FocalLength: focal_mm,
        piexif.ExifIFD.FocalLengthIn35mmFilm: focal_35mm,
        piexif.ExifIFD.SubjectDistance: distance_m,
    }
    return piexif.dump({"0th": {piexif.ImageIFD.Orientation: orientation}, "Exif": tags})


def saved(image, path, **options):
    image.save(path, **options)
    return path


def png_header(path, width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")))
    return path


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def only_error(capsys):
    """The one sentence on stderr; stdout must be empty."""
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"bokehdepth: error: [^\n]+[.)]\n", err), err
    assert ". " not in err and "Traceback" not in err, err
    return err


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    photo_of("astronaut").save(folder / "astronaut.jpg", exif=lens_exif())
    photo_of("chelsea").save(folder / "chelsea.png")
    return folder


@pytest.fixture(scope="module")
def finished_run(photos, tmp_path_factory):
    """``run`` as a user starts it: another process, both photos of a folder."""
    out = tmp_path_factory.mktemp("run") / "out"
    command = [sys.executable, "-m", "bokehdepth", "run", photos, "-o", out, "--bokeh-strengths", "20", "10", *FAST]
    return out, subprocess.run([*command, "--json"], capture_output=True, text=True)


# --- run ---------------------------------------------------------------------------------------------------------


def test_run_writes_every_file_of_every_photo(finished_run):
    out, process = finished_run
    assert process.returncode == 0, process.stderr
    assert names_in(out) == ["astronaut", "chelsea"]
    document = json.loads(process.stdout)
    assert (document["command"], document["done"], document["failed"]) == ("run", 2, 0)
    for entry in document["photos"]:
        folder = Path(entry["folder"])
        assert names_in(folder) == RUN_FILES == sorted(Path(file).name for file in entry["files"])
        assert all(Path(file).is_file() for file in entry["files"])
        for strength in (10, 20):
            with PIL.Image.open(folder / f"bokeh_k{strength}.png") as image:
                assert image.size == SIZE_PX
                assert image.text["ai_generated"] == "true"
                assert float(image.text["bokeh_strength"]) == strength and image.text["seed"] == "0"
        with PIL.Image.open(folder / "depth_preview.png") as image:
            assert image.width > SIZE_PX[0]  # the legend is beside the map


def test_stderr_of_a_run_holds_our_lines_alone(finished_run):
    lines = finished_run[1].stderr.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("bokehdepth: warning: photo 'chelsea.png': ")
    assert "focus_distance_m" in lines[0] and "f_number" not in lines[0]


def test_depth_files_agree_and_are_metres(finished_run):
    folder = finished_run[0] / "astronaut"
    exact = load_depth_npz(folder / "depth.npz")
    assert exact.depth_m.shape == SIZE_PX[::-1] and (exact.depth_m > 0).all()
    assert exact.bokeh_strengths.tolist() == [10, 20]
    assert exact.focal_length_px == pytest.approx(50 / 43.27 * np.hypot(*SIZE_PX), rel=1e-6)
    with PIL.Image.open(folder / "depth.png") as image:
        assert image.mode == "I;16"
        step_m = float(image.text["depth_scale_m"])
    coded = load_depth(folder / "depth.png")
    assert np.abs(coded.astype(np.float64) - exact.depth_m).max() <= 0.51 * step_m
    assert step_m < 2e-3


def test_run_record_says_what_was_done(finished_run, photos):
    out, process = finished_run
    record = json.loads((out / "astronaut" / "run.json").read_text())
    arguments = record["arguments"]
    assert arguments["photo"] == str(photos / "astronaut.jpg")
    assert (arguments["steps"], arguments["model"], arguments["device"]) == (1, "embedded", "cpu")
    assert record["seed"] == 0 and record["bokeh_strengths"] == [10, 20]
    assert record["camera"]["focal_length_mm"] == {"value": 50.0, "source": "read"}
    assert record["camera"]["focus_distance_m"] == {"value": 1.8, "source": "read"}
    assert record["camera"]["sensor_width_mm"]["source"] == "derived"
    assert record["assumptions"] == []
    assert record["sizes_px"] == {name: list(SIZE_PX) for name in ("photo", "stack", "depth")}
    seconds = record["timings_s"]
    parts = "load_model decode to_network_size stack restore depth depth_to_photo_size write_preview write_files rest"
    assert list(seconds)[-2:] == ["rest", "total"] and set(seconds) == {*parts.split(), "total"}
    assert sum(seconds.values()) - seconds["total"] == pytest.approx(seconds["total"], abs=0.01)
    assert min(seconds.values()) >= 0 and seconds["rest"] < 0.2 * seconds["total"]
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", record["weights"]["pipeline"]["revision"])
    assert record["versions"]["torch"] and record["bokehdepth_version"] == bokehdepth.__version__
    assert sorted(record["files"]) == RUN_FILES
    without_exif = json.loads((out / "chelsea" / "run.json").read_text())
    assert without_exif["camera"]["focus_distance_m"]["source"] == "assumed" and without_exif["assumptions"]


def test_the_same_seed_gives_the_same_bytes_whatever_else_runs(finished_run, photos, tmp_path, capsys):
    arguments = ["run", str(photos / "chelsea.png"), "--bokeh-strengths", "10", "20", *FAST]
    assert main([*arguments, "-o", str(tmp_path / "same")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'same' / 'chelsea'}\n"
    for name in RUN_FILES[:-1]:
        first, second = finished_run[0] / "chelsea" / name, tmp_path / "same" / "chelsea" / name
        assert first.read_bytes() == second.read_bytes(), name
    # The embedded model is a regressor that hardly looks at the noise: a model that samples shows the seed.
    tiny.pipeline().save_pretrained(tmp_path / "model")
    capsys.readouterr()
    for out, seed in (("first", "0"), ("again", "0"), ("other", "1")):
        sampler = ["stack", *arguments[1:], "--model", str(tmp_path / "model"), "--seed", seed, "-q"]
        assert main([*sampler, "-o", str(tmp_path / out)]) == 0
        assert capsys.readouterr().err == ""
    first, again, other = (
        np.asarray(PIL.Image.open(tmp_path / out / "chelsea" / "bokeh_k20.png")) for out in ("first", "again", "other")
    )
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_photos_of_every_mode_are_accepted(tmp_path, capsys):
    rgb = photo_of("coffee")
    folder = tmp_path / "photos"
    folder.mkdir()
    rgba = rgb.copy()
    rgba.putalpha(PIL.Image.linear_gradient("L").resize(SIZE_PX))
    rgba.save(folder / "rgba.png")
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgb.quantize(64).save(folder / "palette.gif")
    PIL.Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257).save(folder / "grey16.png")
    upright = rgb.transpose(PIL.Image.Transpose.ROTATE_90)  # stored so that orientation 6 turns it upright
    upright.save(folder / "rotated.jpg", quality=95, exif=lens_exif(orientation=6))
    (folder / "notes.txt").write_text("no picture")
    out = tmp_path / "out"
    assert main(["run", str(folder), "-o", str(out), "--bokeh-strengths", "0", "15", *FAST, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    stems = ["cmyk", "grey16", "palette", "rgba", "rotated"]
    assert [Path(entry["folder"]).name for entry in document["photos"]] == stems == names_in(out)
    for stem in stems:
        with PIL.Image.open(out / stem / "bokeh_k15.png") as image:
            assert image.size == SIZE_PX and image.mode == "RGB"
        assert load_depth_npz(out / stem / "depth.npz").depth_m.shape == SIZE_PX[::-1]
    with PIL.Image.open(out / "rotated" / "bokeh_k0.png") as image:  # K = 0 is the photo: upright, not marked
        assert np.abs(np.asarray(image).astype(int) - np.asarray(rgb)).mean() < 6
        assert "ai_generated" not in image.text
    notes = {stem: " ".join(json.loads((out / stem / "run.json").read_text())["photo_notes"]) for stem in stems}
    assert "16-bit grey" in notes["grey16"] and "CMYK" in notes["cmyk"] and "orientation 6" in notes["rotated"]
    assert "white" in notes["rgba"] and "mode P" in notes["palette"]


def test_f_numbers_become_ascending_bokeh_strengths(photos, tmp_path, capsys):
    photo = str(photos / "astronaut.jpg")
    arguments = ["stack", photo, "-o", str(tmp_path), "--f-numbers", "2", "4", "2.8", *FAST, "--json"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    entry = json.loads(out)["photos"][0]
    assert err == ""  # every value was read
    assert entry["f_numbers"] == [4, 2.8, 2]
    # 50 mm, f/2 at 1.8 m: 9.143 on a frame 36 mm wide; the 35 mm equivalent makes this one 36.003 mm wide.
    assert entry["bokeh_strengths"] == pytest.approx([4.571, 6.530, 9.142], abs=1.5e-3)
    names = [f"bokeh_k{strength:g}.png" for strength in entry["bokeh_strengths"]]
    assert names_in(tmp_path / "astronaut") == sorted([*names, "stack.json"])


# --- depth -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_stack(photos, tmp_path_factory):
    """Three frames of the photo, in no order, by box blur: a stack from elsewhere."""
    folder = tmp_path_factory.mktemp("bracket")
    photo = PIL.Image.open(photos / "astronaut.jpg").convert("RGB")
    for name, radius, n in (("wide.png", 4, (2, 1)), ("narrow.png", 1, (8, 1)), ("middle.png", 2, (4, 1))):
        photo.filter(PIL.ImageFilter.BoxBlur(radius)).save(folder / name, exif=lens_exif(f_number=n))
    return [str(folder / name) for name in ("wide.png", "narrow.png", "middle.png")]


def test_depth_of_a_photo_alone_and_with_a_stack(photos, own_stack, tmp_path, capsys):
    photo = str(photos / "astronaut.jpg")
    assert main(["depth", photo, "-o", str(tmp_path / "alone"), "--device", "cpu"]) == 0
    folder = tmp_path / "alone" / "astronaut"
    assert names_in(folder) == ["depth.json", "depth.npz", "depth.png", "depth_preview.png"]
    record = json.loads((folder / "depth.json").read_text())
    assert record["bokeh_strengths"] == [] and record["seed"] is None
    assert load_depth_npz(folder / "depth.npz").bokeh_strengths.size == 0

    capsys.readouterr()
    # K of the frames from their own EXIF f-numbers
    stack = ["depth", photo, "-o", str(tmp_path / "stack"), "--device", "cpu", "--json", "--stack", *own_stack]
    assert main(stack) == 0
    entry = json.loads(capsys.readouterr().out)["photos"][0]
    assert entry["f_numbers"] == [8, 4, 2]
    assert load_depth_npz(entry["files"][0]).bokeh_strengths == pytest.approx([2.2855, 4.571, 9.142], abs=1.5e-3)
    record = json.loads((tmp_path / "stack" / "astronaut" / "depth.json").read_text())
    assert [Path(path).name for path in record["arguments"]["stack"]] == ["narrow.png", "middle.png", "wide.png"]


def test_depth_joins_a_stack_in_its_folder_and_reads_its_strengths(finished_run, photos, tmp_path, capsys):
    folder = tmp_path / "chelsea"
    folder.mkdir()
    frames = [shutil.copy(finished_run[0] / "chelsea" / name, folder) for name in ("bokeh_k20.png", "bokeh_k10.png")]
    photo = str(photos / "chelsea.png")
    assert main(["depth", photo, "-o", str(tmp_path), "--device", "cpu", "--stack", *map(str, frames)]) == 0
    joined, direct = load_depth_npz(folder / "depth.npz"), load_depth_npz(finished_run[0] / "chelsea" / "depth.npz")
    assert joined.bokeh_strengths.tolist() == [10, 20]
    # A saved stack is the stack, rounded to 8 bit.
    np.testing.assert_allclose(joined.depth_m, direct.depth_m, rtol=1e-3)
    assert "bokeh_k10.png" in names_in(folder)


# --- failures while running --------------------------------------------------------------------------------------


class Act(logging.Handler):
    """Does something at the moment when a certain line is logged."""

    def __init__(self, text, action):
        super().__init__()
        self.text, self.action = text, action

    def emit(self, record):
        if self.text in record.getMessage():
            self.action()


@pytest.fixture
def when_logged():
    logger, handlers = logging.getLogger("bokehdepth"), []

    def register(text, action):
        handlers.append(Act(text, action))
        logger.addHandler(handlers[-1])

    yield register
    for handler in handlers:
        logger.removeHandler(handler)


def test_a_photo_that_fails_does_not_stop_the_others(tmp_path, capsys, when_logged):
    paths = [saved(photo_of(name), tmp_path / f"{name}.png") for name in ("chelsea", "coffee", "rocket")]
    (tmp_path / "out").mkdir()
    when_logged("device: ", lambda: (tmp_path / "out" / "coffee").write_text("made after it was checked"))
    arguments = ["stack", *map(str, paths), "-o", str(tmp_path / "out"), "--bokeh-strengths", "10", "--steps", "1"]
    assert main([*arguments, "--json"]) == 1
    out, err = capsys.readouterr()
    assert len(re.findall("error: photo 'coffee.png' failed: output folder .* is a file", err)) == 1
    assert "Traceback" not in err
    document = json.loads(out)
    assert (document["done"], document["failed"]) == (2, 1) and "error" in document["photos"][1]
    assert names_in(tmp_path / "out") == ["chelsea", "coffee", "rocket"]
    assert names_in(tmp_path / "out" / "rocket") == ["bokeh_k10.png", "stack.json"]


def test_interrupt_leaves_finished_photos_and_nothing_half_done(tmp_path, capsys, when_logged):
    paths = [saved(photo_of(name), tmp_path / f"{name}.png") for name in ("chelsea", "coffee")]
    when_logged("photo 2 of 2", lambda: signal.raise_signal(signal.SIGINT))
    arguments = ["stack", *map(str, paths), "-o", str(tmp_path / "out"), "--bokeh-strengths", "10", *FAST, "-v"]
    assert main(arguments) == 130
    err = capsys.readouterr().err
    assert "bokehdepth: photo 1 of 2" in err and "interrupted" in err and "Traceback" not in err
    assert names_in(tmp_path / "out") == ["chelsea"]


# --- input that is refused ---------------------------------------------------------------------------------------


def test_broken_photos_are_refused_before_any_work(photos, tmp_path, capsys):
    text = tmp_path / "text.jpg"
    text.write_text("This is no photo.")
    truncated = tmp_path / "truncated.jpg"
    truncated.write_bytes((photos / "astronaut.jpg").read_bytes()[:-900])
    one = saved(PIL.Image.new("RGB", (1, 1)), tmp_path / "one.png")
    huge = png_header(tmp_path / "huge.png", 40000, 40000)
    wanted = {
        text: "not a picture",
        truncated: "cut short",
        one: "1 x 1",
        huge: "pixels",
        tmp_path / "no.jpg": "exist",
    }
    for command in ("run", "stack", "depth"):
        for path, words in wanted.items():
            out = tmp_path / "out"
            assert main([command, str(path), "-o", str(out)]) == 2
            error = only_error(capsys)
            assert words in error and path.name in error
            assert not out.exists()
    assert main(["optics", str(text)]) == 2
    only_error(capsys)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--bokeh-strengths", "-1"], "bokeh_strengths must be finite and at least 0, got -1.0"),
        (["--bokeh-strengths", "10", "nan"], "bokeh_strengths must be finite and at least 0, got nan"),
        (["--bokeh-strengths", "31"], "in [0, 30], the trained range, got 31"),
        (["--bokeh-strengths", "10", "10.0"], "10 twice"),
        (["--bokeh-strengths", "ten"], "invalid float value: 'ten'"),
        (["--f-numbers", "0"], "f_numbers for photo 'astronaut.jpg' must be finite and greater than 0"),
        (["--f-numbers", "2", "4", "2"], "f/2 and f/2"),
        (["--f-numbers", "0.5"], "K = 36.6"),
        (["--f-numbers", "2", "--bokeh-strengths", "3"], "not allowed with"),
        (["--focus-distance", "0.05"], "focus_distance_m must be greater than the focal length"),
        (["--focal-length-35mm", "nan"], "focal_length_35mm"),
        (["--steps", "0"], "whole number from 1"),
        (["--seed", "-3"], "whole number from 0"),
        (["--device", "toaster"], "none of auto, cpu"),
        (["--model", "./no/such/folder"], "model is ./no/such/folder"),
        (["--revision", "main"], "no Hub repository"),
        (["--no-such-option"], "unrecognized arguments"),
    ],
)
def test_wrong_options_are_refused(photos, tmp_path, capsys, options, words):
    out = tmp_path / "out"
    assert main(["run", str(photos / "astronaut.jpg"), "-o", str(out), *options]) == 2
    assert words in only_error(capsys)
    assert not out.exists()


def test_a_model_that_is_not_there_is_refused(photos, tmp_path, capsys):
    photo, out = str(photos / "astronaut.jpg"), tmp_path / "out"
    empty = tmp_path / "empty"
    empty.mkdir()
    for model, words in (
        (empty, "without model_index.json"),
        ("nobody/nothing", "nobody/nothing is not complete in the cache"),
    ):
        assert main(["run", photo, "-o", str(out), "--model", str(model), "--device", "cpu"]) == 2
        assert words in only_error(capsys)
    assert not out.exists()


def test_missing_commands_and_arguments_are_one_sentence(capsys):
    for arguments in ([], ["run"], ["run", "x.jpg"], ["draw"]):
        assert main(arguments) == 2
        only_error(capsys)


def test_output_that_cannot_be_used_is_refused(finished_run, photos, tmp_path, capsys):
    photo = str(photos / "astronaut.jpg")
    file = tmp_path / "file"
    file.write_text("mine")
    for out in (file, file / "below"):
        assert main(["run", photo, "-o", str(out)]) == 2
        assert "is a file" in only_error(capsys)
    assert file.read_text() == "mine"

    before = {path: path.read_bytes() for path in finished_run[0].rglob("*") if path.is_file()}
    again = ["run", photo, "-o", str(finished_run[0]), "--bokeh-strengths"]
    assert main([*again, "10", "20"]) == 2
    assert "exists" in only_error(capsys)
    # Frames of another K would stay and pass for a part of the new stack.
    assert main([*again, "5"]) == 2
    assert "holds an earlier result (bokeh_k10.png exists)" in only_error(capsys)
    assert before == {path: path.read_bytes() for path in finished_run[0].rglob("*") if path.is_file()}


def test_overwrite_replaces_a_result(photos, tmp_path, capsys):
    folder = tmp_path / "chelsea"
    folder.mkdir()
    (folder / "bokeh_k10.png").write_text("an older result")
    (folder / "mine.txt").write_text("mine")
    arguments = ["stack", str(photos / "chelsea.png"), "-o", str(tmp_path), "--bokeh-strengths", "10", *FAST]
    assert main([*arguments, "--overwrite"]) == 0
    assert names_in(folder) == ["bokeh_k10.png", "mine.txt", "stack.json"]
    with PIL.Image.open(folder / "bokeh_k10.png") as image:
        assert image.size == SIZE_PX


def test_a_folder_without_pictures_is_refused(tmp_path, capsys):
    out = tmp_path / "out"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(["run", str(empty), "-o", str(out)]) == 2
    assert "without pictures" in only_error(capsys)
    assert not out.exists()


def test_stacks_that_do_not_fit_are_refused(photos, own_stack, tmp_path, capsys):
    photo, out = str(photos / "astronaut.jpg"), tmp_path / "out"
    other = str(saved(photo_of("astronaut", (48, 64)), tmp_path / "other.png"))
    silent = str(saved(photo_of("astronaut"), tmp_path / "silent.png"))
    wrong = {
        "48 x 64": ["--stack", own_stack[0], other, "--bokeh-strengths", "10", "20"],
        "2 values for 3 frames": ["--stack", *own_stack, "--bokeh-strengths", "10", "20"],
        "got 31": ["--stack", own_stack[0], "--bokeh-strengths", "31"],
        "neither its bokeh strength": ["--stack", own_stack[0], silent],
        "f/2 and f/2": ["--stack", own_stack[0], own_stack[0]],
        "wanted a stack with them": ["--bokeh-strengths", "10"],
        "got 2 photos": [str(photos / "chelsea.png"), "--stack", own_stack[0]],
    }
    for words, options in wrong.items():
        assert main(["depth", photo, *options, "-o", str(out)]) == 2
        assert words in only_error(capsys)
    assert not out.exists()


# --- optics ------------------------------------------------------------------------------------------------------


def python(*arguments):
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True)


def test_light_commands_import_no_torch(photos):
    script = (
        "import sys; from bokehdepth.cli import main\n"
        "try: code = main(sys.argv[1:])\n"
        "except SystemExit as end: code = end.code\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    photo = photos / "astronaut.jpg"
    for arguments, code in (
        (["--help"], 0),
        (["--version"], 0),
        (["run", "--help"], 0),
        (["optics", photo], 0),
        (["run", photo, "-o", photo], 2),
    ):
        process = python("-c", script, *arguments)
        assert process.returncode == code, (arguments, process.stderr)
        assert (process.stdout == "") == (code == 2)


def test_module_and_console_script_are_the_same_program(tmp_path):
    script = shutil.which("bokehdepth", path=str(Path(sys.executable).parent))
    if script is None:
        pytest.skip("the package is not installed with its console script")
    process = subprocess.run([script, "--version"], capture_output=True, text=True)
    assert process.stdout == python("-m", "bokehdepth", "--version").stdout == f"bokehdepth {bokehdepth.__version__}\n"
    process = subprocess.run([script, "optics", tmp_path / "no.jpg"], capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == "bokehdepth: error: photo 'no.jpg' does not exist.\n"


def test_optics_tells_the_golden_numbers(photos, capsys):
    assert main(["optics", str(photos / "astronaut.jpg"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    rows = {row["f_number"]: row for row in document["apertures"]}
    width_mm = document["camera"]["sensor_width_mm"]["value"]
    assert rows[2]["bokeh_strength"] == pytest.approx(9.143 * 36 / width_mm, abs=1e-3)
    # Blur of the background at infinity by hand: f^2 / (N (S1 - f)) = 2500 / (2 * 1750) mm.
    assert rows[2]["background_coc_mm"] == pytest.approx(2500 / 3500)
    assert rows[2]["background_coc_px"] == pytest.approx(2500 / 3500 / width_mm * SIZE_PX[0])
    assert rows[2]["background_radius_px"] == pytest.approx(rows[2]["background_coc_px"] / 2)
    # Depth of field by hand from the hyperfocal distance H = 2500 / (2 * 0.03) mm, with H - f for H in both limits.
    coc_mm = document["acceptable_coc_mm"]
    reach_m = 2.5 / (2 * coc_mm)
    assert rows[2]["near_m"] == pytest.approx(reach_m * 1.8 / (reach_m + 1.75))
    assert rows[2]["far_m"] == pytest.approx(reach_m * 1.8 / (reach_m - 1.75))
    assert rows[32]["far_m"] == pytest.approx(2.5 / (32 * coc_mm) * 1.8 / (2.5 / (32 * coc_mm) - 1.75))
    assert coc_mm == pytest.approx(0.03) and all(row["fits"] for row in rows.values())
    assert document["camera"]["focus_distance_m"]["source"] == "read"


def test_optics_marks_apertures_beyond_the_trained_range(photos, capsys):
    photo = str(photos / "chelsea.png")
    lens = ["--focal-length", "85", "--focal-length-35mm", "85", "--focus-distance", "1.5"]
    assert main(["optics", photo, *lens]) == 0
    text = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1] for line in text.splitlines() if line.strip().startswith("f/")}
    assert rows["f/1.4"] == "38.900*" and rows["f/2"] == "27.230"
    assert "nearest f-number that fits is f/1.82." in text
    assert re.search(r"focal_length_mm +85  given", text) and re.search(r"sensor_width_mm +36  derived", text)
    assert re.search(r"f_number +2.8  assumed", text) and "this photo" not in text

    assert main(["run", photo, "-o", "unused", "--f-numbers", "1.4", *lens]) == 2
    error = only_error(capsys)
    assert "K = 38.9" in error and "nearest f-number that fits is f/1.82." in error


def test_optics_at_infinity_is_valid_json(photos, capsys):
    assert main(["optics", str(photos / "astronaut.jpg"), "--focus-distance", "inf", "--json"]) == 0
    document = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert document["camera"]["focus_distance_m"]["value"] == "infinity"
    assert {row["far_m"] for row in document["apertures"]} == {"inf"}
    assert {row["background_coc_px"] for row in document["apertures"]} == {0}


def test_the_smallest_f_number_fits_for_any_lens():
    photo = PIL.Image.new("RGB", (64, 48))
    for focal_mm in (4.2, 24, 50, 85, 200, 600):
        for focus_m in (0.9, 3.7, np.inf):
            camera = read_camera(photo, focal_length_mm=focal_mm, focal_length_35mm=focal_mm, focus_distance_m=focus_m)
            f_number = smallest_f_number(camera)
            assert 29.6 < camera.bokeh_strength(f_number) <= 30
            assert strengths_from_f_numbers(camera, [f_number])[1] == (f_number,)
            with pytest.raises(InputError, match=f"fits is f/{f_number:g}\\."):
                strengths_from_f_numbers(camera, [0.98 * f_number])


def test_a_real_photo_runs_to_the_end(data_root, tmp_path, capsys):
    photo = min((data_root / "photos" / "kodak").iterdir())
    arguments = ["run", str(photo), "-o", str(tmp_path), "--bokeh-strengths", "20", *FAST, "-q"]
    assert main(arguments) == 0
    folder = Path(capsys.readouterr().out.strip())
    with PIL.Image.open(photo) as image, PIL.Image.open(folder / "bokeh_k20.png") as frame:
        assert frame.size == image.size
        assert load_depth_npz(folder / "depth.npz").depth_m.shape == image.size[::-1]
