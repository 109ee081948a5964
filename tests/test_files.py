import dataclasses
import json
import os
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from bokehdepth.errors import InputError
from bokehdepth.files import depth_maps
from bokehdepth.files.atomic import staged, write_file
from bokehdepth.files.depth_maps import save_depth_npz, save_depth_png
from bokehdepth.files.png import save_image
from bokehdepth.files.run_record import run_record, save_json
from bokehdepth.files.stacks import bokeh_file_name, load_stack, save_stack


def _depth(shape=(37, 53), low=0.31, high=79.3, seed=0):
    depth = np.exp(np.random.default_rng(seed).uniform(np.log(low), np.log(high), shape)).astype(np.float32)
    depth[0, 0], depth[0, 1] = low, high
    depth[2:5, 3:9] = np.nan
    depth[7, :] = np.inf
    return depth


def _picture(seed=0, size=(20, 14)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def _everything_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*"))


# --- depth PNG ---------------------------------------------------------------------------------------------------


def test_linear_png_comes_back_within_half_a_step(tmp_path):
    depth = _depth()
    loaded = depth_maps.load_depth(save_depth_png(tmp_path / "d.png", depth))
    finite = np.isfinite(depth)
    step = 79.3 / 65534
    assert loaded.dtype == np.float32 and loaded.shape == depth.shape
    error = np.abs(loaded[finite].astype(np.float64) - depth[finite])
    assert 0.4 * step < error.max() <= 0.5 * step + 79.3 * 2**-24  # float32 rounding on top
    assert np.array_equal(np.isnan(loaded), np.isnan(depth)) and np.array_equal(np.isinf(loaded), np.isinf(depth))


def test_linear_png_is_read_by_its_text_alone(tmp_path):
    depth = np.array([[1.0, 2.0], [np.nan, np.inf]])
    with Image.open(save_depth_png(tmp_path / "d.png", depth)) as image:
        codes = np.asarray(image).astype(int)
        text = image.text
    assert codes.tolist() == [[32767, 65534], [0, 65535]]
    assert float(text["depth_scale_m"]) == 2.0 / 65534
    assert (text["depth_unit"], text["depth_no_value"], text["depth_infinite"]) == ("m", "0", "65535")
    assert codes[0, 0] * float(text["depth_scale_m"]) == pytest.approx(1.0)


def test_log_png_keeps_near_things_beside_a_very_far_pixel(tmp_path):
    depth = _depth(low=0.05, high=50_000.0)
    loaded = depth_maps.load_depth(save_depth_png(tmp_path / "d.png", depth, encoding="log"))
    finite = np.isfinite(depth)
    half_step = np.log(50_000 / 0.05) / 65533 / 2
    relative = np.abs(np.log(loaded[finite].astype(np.float64) / depth[finite]))
    assert 0.4 * 2 * half_step < relative.max() < half_step + 2e-7
    assert np.array_equal(np.isnan(loaded), np.isnan(depth)) and np.array_equal(np.isinf(loaded), np.isinf(depth))
    with pytest.raises(InputError, match="depth_m has the value 0.05 m, less than half a step"):
        save_depth_png(tmp_path / "e.png", depth)
    assert _everything_in(tmp_path) == ["d.png"]


@pytest.mark.parametrize("encoding", ["linear", "log"])
def test_depth_png_of_one_value_and_of_none(tmp_path, encoding):
    flat = depth_maps.load_depth(save_depth_png(tmp_path / "a.png", np.full((3, 4), 2.5), encoding=encoding))
    assert flat == pytest.approx(2.5)
    empty = np.array([[np.nan, np.inf]])
    loaded = depth_maps.load_depth(save_depth_png(tmp_path / "b.png", empty, encoding=encoding))
    assert np.array_equal(loaded, empty.astype(np.float32), equal_nan=True)


def test_one_scale_for_several_maps_and_no_clipping(tmp_path):
    depth = np.full((2, 2), 5.0)
    save_depth_png(tmp_path / "a.png", depth, max_depth_m=65.534)
    with Image.open(tmp_path / "a.png") as image:
        assert np.asarray(image).max() == 5000 and float(image.text["depth_scale_m"]) == pytest.approx(1e-3)
    with pytest.raises(InputError, match="max_depth_m is 4, wanted at least the largest finite depth, 5 m"):
        save_depth_png(tmp_path / "b.png", depth, max_depth_m=4.0)


@pytest.mark.parametrize(
    ("depth", "sentence"),
    [
        (np.ones((2, 2), dtype=np.uint16), r"depth_m is uint16 \(2, 2\)"),
        (np.ones((1, 2, 2)), r"depth_m is float64 \(1, 2, 2\)"),
        (np.ones((0, 2)), r"depth_m is float64 \(0, 2\)"),
        ([[1.0]], "depth_m is list"),
        (np.array([[0.0, np.nan]]), "depth_m has the value 0"),
        (np.array([[-np.inf, 1.0]]), "depth_m has the value -inf"),
    ],
)
def test_what_is_no_depth_map_is_refused(tmp_path, depth, sentence):
    with pytest.raises(InputError, match=sentence):
        save_depth_png(tmp_path / "d.png", depth)
    with pytest.raises(InputError, match=sentence):
        save_depth_npz(tmp_path / "d.npz", depth, focal_length_px=1.0, bokeh_strengths=[0])
    assert _everything_in(tmp_path) == []


def test_png_that_says_no_depth_is_refused(tmp_path):
    _picture().save(tmp_path / "rgb.png")
    Image.fromarray(np.ones((2, 2), dtype=np.uint16)).save(tmp_path / "plain16.png")
    good = save_depth_png(tmp_path / "good.png", _depth()).read_bytes()
    (tmp_path / "cut.png").write_bytes(good[: len(good) // 2])
    for name, sentence in [
        ("rgb.png", "mode RGB, wanted a grey picture of 16"),
        ("plain16.png", "does not say its unit"),
        ("cut.png", "damaged or cut short"),
        ("missing.png", "does not exist"),
    ]:
        with pytest.raises(InputError, match=sentence):
            depth_maps.load_depth(tmp_path / name)


def test_depth_png_of_a_real_sensor(tmp_path, data_root):
    codes = np.asarray(Image.open(data_root / "rgbd" / "nyuv2_metric3d" / "rgb_00050_depth.png"))
    depth = np.where(codes > 0, codes / 1000.0, np.nan)
    loaded = depth_maps.load_depth(save_depth_png(tmp_path / "d.png", depth))
    assert np.nanmax(np.abs(loaded - depth)) < 0.0001  # 0.13 mm step at 8.3 m
    assert np.array_equal(np.isnan(loaded), codes == 0)


# --- depth npz ---------------------------------------------------------------------------------------------------


def test_npz_round_trip_and_exact_keys(tmp_path):
    depth = _depth()
    path = save_depth_npz(tmp_path / "d.npz", depth, focal_length_px=1234.5, bokeh_strengths=[0, 7.5, 30])
    with np.load(path) as file:
        assert sorted(file.files) == ["bokeh_strengths", "depth_m", "focal_length_px"]
        assert {file[key].dtype.name for key in file.files} == {"float32"}
        assert file["focal_length_px"].shape == ()
    loaded = depth_maps.load_depth_npz(path)
    assert np.array_equal(loaded.depth_m, depth, equal_nan=True)
    assert loaded.focal_length_px == 1234.5 and loaded.bokeh_strengths.tolist() == [0, 7.5, 30]


@pytest.mark.parametrize(
    ("focal", "strengths", "sentence"),
    [
        (0.0, [0], "focal_length_px must be .* got 0.0"),
        (float("nan"), [0], "focal_length_px must be .* got nan"),
        (1.0, [3, 2], "ascending"),
        (1.0, [1, 1], "ascending"),
        (1.0, [-1], "finite numbers, 0 or more"),
        (1.0, 3.0, "wanted a list"),
    ],
)
def test_npz_refuses_bad_values(tmp_path, focal, strengths, sentence):
    with pytest.raises(InputError, match=sentence):
        save_depth_npz(tmp_path / "d.npz", np.ones((2, 2)), focal_length_px=focal, bokeh_strengths=strengths)


def test_load_npz_never_unpickles_and_checks_the_keys(tmp_path):
    marker = tmp_path / "ran"

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (marker,))

    np.savez(tmp_path / "bomb.npz", depth_m=np.array([Bomb()], dtype=object))
    np.savez(tmp_path / "less.npz", depth_m=np.ones((2, 2), np.float32))
    np.savez(tmp_path / "type.npz", depth_m=np.ones((2, 2)), focal_length_px=1.0, bokeh_strengths=np.ones(1))
    np.save(tmp_path / "array.npy", np.ones((2, 2)))
    (tmp_path / "empty.npz").write_bytes(b"")
    whole = save_depth_npz(tmp_path / "d.npz", _depth(), focal_length_px=1, bokeh_strengths=[0]).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:500])
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    (tmp_path / "flipped.npz").write_bytes(flipped)
    for name in ("bomb.npz", "less.npz", "type.npz", "array.npy", "empty.npz", "cut.npz", "flipped.npz", "none.npz"):
        with pytest.raises(InputError, match=name):
            depth_maps.load_depth_npz(tmp_path / name)
    assert not marker.exists()


# --- pictures and stacks -----------------------------------------------------------------------------------------


def test_image_carries_text_and_the_ai_mark(tmp_path):
    picture = _picture()
    path = save_image(tmp_path / "a.png", picture, metadata={"title": "Straße in Kyōto", "bokeh_strength": "10"})
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image), np.asarray(picture))
        text = image.text
    assert text["title"] == "Straße in Kyōto" and text["bokeh_strength"] == "10"
    assert text["ai_generated"] == "true" and text["Software"].startswith("bokehdepth ")
    description = ElementTree.fromstring(text["XML:com.adobe.xmp"]).find(
        ".//{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description"
    )
    source = description.get("{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType")
    assert source == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def test_unmarked_image_and_no_exif_leak(tmp_path):
    exif = Image.Exif()
    exif[0x010F] = "A camera maker"
    _picture().save(tmp_path / "photo.jpg", exif=exif, icc_profile=b"a profile")
    with Image.open(tmp_path / "photo.jpg") as photo:
        path = save_image(tmp_path / "a.png", photo, ai_generated=False)
    data = path.read_bytes()
    assert b"A camera maker" not in data and b"trainedAlgorithmicMedia" not in data and b"ai_generated" not in data
    with Image.open(path) as image:
        assert image.info["icc_profile"] == b"a profile"


@pytest.mark.parametrize(
    ("image", "metadata", "sentence"),
    [
        (np.zeros((2, 2, 3), np.uint8), None, "image is ndarray"),
        (Image.new("CMYK", (2, 2)), None, "mode 'CMYK'"),
        (Image.new("RGB", (2, 2)), {"Software": "mine"}, "key 'Software'"),
        (Image.new("RGB", (2, 2)), {"k" * 80: "x"}, "1 to 79"),
        (Image.new("RGB", (2, 2)), {"": "x"}, "1 to 79"),
        (Image.new("RGB", (2, 2)), {"seed": 3}, "wanted a string"),
        (Image.new("RGB", (2, 2)), {"a": "b\0c"}, "NUL"),
    ],
)
def test_save_image_refuses(tmp_path, image, metadata, sentence):
    with pytest.raises(InputError, match=sentence):
        save_image(tmp_path / "a.png", image, metadata=metadata)
    assert _everything_in(tmp_path) == []


def test_file_names_are_unique_and_read_back():
    assert bokeh_file_name(10) == bokeh_file_name(10.0) == bokeh_file_name(np.int64(10)) == "bokeh_k10.png"
    assert bokeh_file_name(7.5) == "bokeh_k7.5.png" and bokeh_file_name(np.float32(7.1)) == "bokeh_k7.1.png"
    assert bokeh_file_name(-0.0) == "bokeh_k0.png" and bokeh_file_name(100) == "bokeh_k100.png"
    values = [7.1, np.nextafter(7.1, 8), 1e-7, 1 / 3, 29.999999999]
    names = [bokeh_file_name(value) for value in values]
    assert len(set(names)) == len(values)
    assert [float(name[7:-4]) for name in names] == values
    for bad in (-1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="bokeh_strength must be"):
            bokeh_file_name(bad)


def test_stack_round_trip(tmp_path):
    frames = [_picture(seed, size=(40, 34)) for seed in range(3)]
    paths = save_stack(tmp_path / "stack", frames, [0, 7.5, 30], {"seed": "4"})
    assert [path.name for path in paths] == ["bokeh_k0.png", "bokeh_k7.5.png", "bokeh_k30.png"]
    assert _everything_in(tmp_path) == ["stack", *sorted(f"stack/{path.name}" for path in paths)]
    loaded, strengths = load_stack(paths)
    assert strengths == [0, 7.5, 30]
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(loaded, frames, strict=True))
    marks = []
    for path in paths:
        with Image.open(path) as image:
            marks.append("ai_generated" in image.text)
            assert image.text["seed"] == "4" and image.text["bokeh_strength_unit"].startswith("px radius per dioptre")
    assert marks == [False, True, True]  # the frame at K = 0 is the photo


def test_strength_from_the_text_wins_over_the_name_and_names_alone_do(tmp_path):
    (saved,) = save_stack(tmp_path, [_picture(size=(40, 34))], [7.5])
    renamed = saved.rename(tmp_path / "bokeh_k9.png")
    _picture(size=(40, 34)).save(tmp_path / "bokeh_k12.5.jpg")
    _picture(size=(40, 34)).save(tmp_path / "f2.jpg")
    assert load_stack([renamed])[1] == [7.5]
    assert load_stack([tmp_path / "bokeh_k12.5.jpg"])[1] == [12.5]
    assert load_stack([tmp_path / "f2.jpg", tmp_path / "f2.jpg"])[1] is None
    with pytest.raises(InputError, match="f2.jpg', which has no bokeh strength"):
        load_stack([renamed, tmp_path / "f2.jpg"])


def test_load_stack_reads_frames_as_photos_are_read(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = _picture(size=(40, 34))
    picture.convert("CMYK").save(tmp_path / "print.tif", exif=exif)
    (frame,), strengths = load_stack([tmp_path / "print.tif"])
    assert strengths is None and frame.mode == "RGB" and frame.size == (34, 40)
    upright = picture.transpose(Image.Transpose.ROTATE_270)
    assert np.abs(np.asarray(frame, dtype=int) - np.asarray(upright)).max() <= 1


def test_load_stack_refuses(tmp_path):
    _picture(size=(40, 34)).save(tmp_path / "a.png")
    _picture(size=(41, 34)).save(tmp_path / "wide.png")
    write_file(tmp_path / "text.png", lambda file: file.write(b"hello"))
    for names, sentence in [
        (["a.png", "wide.png"], r"size \(41, 34\), wanted \(40, 34\)"),
        (["text.png"], "a file that is not a picture"),
    ]:
        with pytest.raises(InputError, match=sentence):
            load_stack([tmp_path / name for name in names])
    with pytest.raises(InputError, match="wanted a list of at least one file"):
        load_stack(str(tmp_path / "a.png"))


@pytest.mark.parametrize(
    ("sizes", "strengths", "sentence"),
    [
        ([(4, 4)], [1, 2], "1 frames for 2 bokeh_strengths"),
        ([], [], "0 frames"),
        ([(4, 4), (4, 5)], [1, 2], "one size"),
        ([(4, 4), (4, 4)], [2, 1], "ascending"),
    ],
)
def test_save_stack_refuses_and_leaves_nothing(tmp_path, sizes, strengths, sentence):
    with pytest.raises(InputError, match=sentence):
        save_stack(tmp_path / "s", [_picture(size=size) for size in sizes], strengths)
    with pytest.raises(InputError, match="mode 'F'"):
        save_stack(tmp_path / "s", [_picture(size=(4, 4)), Image.new("F", (4, 4))], [1, 2])
    assert _everything_in(tmp_path) == []


# --- whole or not at all -----------------------------------------------------------------------------------------


def test_existing_files_stay_unless_overwrite(tmp_path):
    depth = np.full((2, 2), 3.0)
    savers = {
        "a.png": lambda path, **kw: save_image(path, _picture(), **kw),
        "d.png": lambda path, **kw: save_depth_png(path, depth, **kw),
        "d.npz": lambda path, **kw: save_depth_npz(path, depth, focal_length_px=1, bokeh_strengths=[0], **kw),
        "r.json": lambda path, **kw: save_json(path, {}, **kw),
    }
    for name, save in savers.items():
        path = tmp_path / name
        path.write_bytes(b"mine")
        with pytest.raises(InputError, match="exists, wanted a new name or overwrite=True"):
            save(path)
        assert path.read_bytes() == b"mine"
        save(path, overwrite=True)
        assert path.read_bytes() != b"mine"
        with pytest.raises(InputError, match="wanted a folder"):
            save(path / "below" / name)
    with pytest.raises(InputError, match="which is a folder"):
        save_json(tmp_path, {}, overwrite=True)
    with pytest.raises(InputError, match="which is a file, wanted a folder"):
        save_stack(tmp_path / "a.png", [_picture()], [1])
    assert _everything_in(tmp_path) == sorted(savers)


def test_a_writer_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "new" / "a.bin"
    write_file(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_file(path, fail, overwrite=True)
    assert path.read_bytes() == b"old" and _everything_in(tmp_path) == ["new", "new/a.bin"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("exists", [False, True])
def test_staged_publishes_all_or_nothing(tmp_path, exists):
    folder = tmp_path / "photo"
    if exists:
        folder.mkdir()
        (folder / "other.txt").write_text("stays")
    before = _everything_in(tmp_path)
    with pytest.raises(KeyboardInterrupt), staged(folder) as staging:
        (staging / "a.txt").write_text("a")
        raise KeyboardInterrupt
    assert _everything_in(tmp_path) == before
    with staged(folder) as staging:
        (staging / "a.txt").write_text("a")
        (staging / "sub").mkdir()
        (staging / "sub" / "b.txt").write_text("b")
        assert not (folder / "a.txt").exists()
    assert set(_everything_in(tmp_path)) - set(before) == {"photo/a.txt", "photo/sub", "photo/sub/b.txt"} | (
        set() if exists else {"photo"}
    )


def test_staged_refuses_before_work_and_at_the_end(tmp_path):
    (tmp_path / "b.txt").write_text("old")
    with pytest.raises(InputError, match="b.txt', which exists"), staged(tmp_path, names=["b.txt"]):
        pytest.fail("the body ran")
    with pytest.raises(InputError, match="b.txt', which exists"), staged(tmp_path) as staging:
        (staging / "a.txt").write_text("new")
        (staging / "b.txt").write_text("new")
    assert _everything_in(tmp_path) == ["b.txt"] and (tmp_path / "b.txt").read_text() == "old"
    with staged(tmp_path, names=["b.txt"], overwrite=True) as staging:
        (staging / "b.txt").write_text("new")
    assert _everything_in(tmp_path) == ["b.txt"] and (tmp_path / "b.txt").read_text() == "new"


def test_staged_takes_back_what_it_moved_when_a_move_fails(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    (tmp_path / "sub").write_text("a file where a folder is wanted")
    before = _everything_in(tmp_path)
    with pytest.raises(InputError, match="sub', where a file stands"), staged(tmp_path, overwrite=True) as staging:
        (staging / "a.txt").write_text("new")
        (staging / "sub").mkdir()
        (staging / "sub" / "b.txt").write_text("new")
    assert _everything_in(tmp_path) == before and (tmp_path / "a.txt").read_text() == "old"


# --- JSON --------------------------------------------------------------------------------------------------------


def test_json_is_strict_and_takes_what_the_library_holds(tmp_path):
    @dataclasses.dataclass
    class Lens:
        focus_distance_m: float
        source: Path

    value = {
        "lens": Lens(float("inf"), Path("a") / "b.jpg"),
        "k": np.float32(7.5),
        "n": np.int64(3),
        "flag": np.bool_(True),
        "array": np.array([[1.0, np.nan]]),
        "tuple": (1, None, "ü", -float("inf")),
        "odd": "\udce9",  # a byte of a file name that is not UTF-8
    }

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    path = save_json(tmp_path / "r.json", value)
    loaded = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert loaded == {
        "lens": {"focus_distance_m": "inf", "source": "a/b.jpg"},
        "k": 7.5,
        "n": 3,
        "flag": True,
        "array": [[1.0, "nan"]],
        "tuple": [1, None, "ü", "-inf"],
        "odd": "\udce9",
    }
    with pytest.raises(InputError, match=r"has the value \{2\}"):
        save_json(tmp_path / "s.json", {"a": [1, {2}]})
    with pytest.raises(InputError, match="texts as keys"):
        save_json(tmp_path / "s.json", {"a": {3: 4}})


def _record(**changes):
    values = {
        "arguments": {"input": Path("photo.jpg"), "steps": 4},
        "seed": 7,
        "weights": {"depth_estimator": {"id": "someone/some-model", "revision": "abc"}},
        "camera": {"focal_length_mm": {"value": np.float64(50.0), "source": "EXIF"}},
        "bokeh_strengths": np.array([10, 20], dtype=np.float32),
        "sizes_px": {"photo": (4000, 3000)},
        "timings_s": {"stack": 1.25},
        "assumptions": ["focus distance 2 m"],
    }
    return run_record(**(values | changes))


def test_run_record_says_what_is_needed(tmp_path):
    record = _record()
    assert json.loads(save_json(tmp_path / "r.json", record).read_text()) == record
    assert record["versions"]["numpy"] == np.__version__ and record["versions"]["python"].startswith("3.")
    assert record["arguments"] == {"input": "photo.jpg", "steps": 4} and record["seed"] == 7
    assert record["bokeh_strengths"] == [10, 20] and "dioptre" in record["bokeh_strength_unit"]
    assert record["camera"]["focal_length_mm"] == {"value": 50.0, "source": "EXIF"}
    assert record["sizes_px"] == {"photo": [4000, 3000]} and record["assumptions"] == ["focus distance 2 m"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"bokeh_strengths": [2, 1]}, "ascending"),
        ({"arguments": {"model": object()}}, "has the value <object"),
    ],
)
def test_run_record_refuses(change, sentence):
    with pytest.raises(InputError, match=sentence):
        _record(**change)
