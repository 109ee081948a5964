"""Depth of other programs, written here by their own libraries or byte by byte, and files made to harm."""

from __future__ import annotations

import json
import re
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bokehdepth.cli import main
from bokehdepth.errors import InputError
from bokehdepth.files.arrays import open_arrays
from bokehdepth.files.depth_maps import (
    depth_step_m,
    fill_unknown,
    load_depth,
    load_depth_npz,
    save_depth_npz,
    save_depth_png,
)
from bokehdepth.files.exr import save_depth_exr
from bokehdepth.rendering.refocus import focus_distance_at, render_from_depth, signed_radius_px

SIZE = (40, 56)  # height, width


def slanted() -> np.ndarray:
    """Metres, in whole millimetres, with a pixel without depth in the corner."""
    depth_mm = 700 + 3 * np.arange(SIZE[0])[:, None] + 5 * np.arange(SIZE[1])
    depth_m = (depth_mm / 1000).astype(np.float32)
    depth_m[0, 0] = np.nan
    return depth_m


def millimetres() -> np.ndarray:
    return np.round(np.nan_to_num(slanted()) * 1000)


def write_pfm(path: Path, values: np.ndarray, scale: str, kind: str = "Pf") -> Path:
    """A PFM by its definition: three lines of text, then rows from the lowest up; a scale below 0 is little-endian."""
    order = "<f4" if scale.startswith("-") else ">f4"
    head = f"{kind}\n{values.shape[1]} {values.shape[0]}\n{scale}\n".encode()
    path.write_bytes(head + values[::-1].astype(order).tobytes())
    return path


def saved_image(path: Path, values: np.ndarray) -> Path:
    Image.fromarray(values).save(path)
    return path


def saved_npy(path: Path, values: np.ndarray) -> Path:
    np.save(path, values)
    return path


def saved_npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez_compressed(path, **arrays)
    return path


def saved_exr(path: Path, **channels: np.ndarray) -> Path:
    library = pytest.importorskip("OpenEXR")
    header = {"compression": library.ZIP_COMPRESSION, "type": library.scanlineimage}
    library.File(header, {name.replace("_", "."): np.ascontiguousarray(c) for name, c in channels.items()}).write(
        str(path)
    )
    return path


def float_metres() -> np.ndarray:
    return slanted()


def float_millimetres() -> np.ndarray:
    return millimetres().astype(np.float32)


FOREIGN = {
    "png16_mm": (lambda p: saved_image(p / "a.png", millimetres().astype(np.uint16)), "mm"),
    "png16_step": (lambda p: saved_image(p / "a.png", np.round(millimetres() * 0.256).astype(np.uint16)), "1/256m"),
    "tiff_uint16": (lambda p: saved_image(p / "a.tif", millimetres().astype(np.uint16)), "mm"),
    "tiff_float": (lambda p: saved_image(p / "a.tiff", float_metres()), "m"),
    "tiff_int32": (lambda p: saved_image(p / "a.tiff", (millimetres() * 10).astype(np.int32)), "0.1 mm"),
    "pfm_little": (lambda p: write_pfm(p / "a.pfm", float_metres(), "-1.0"), "m"),
    "pfm_big": (lambda p: write_pfm(p / "a.pfm", float_metres(), "1"), "m"),
    "npy": (lambda p: saved_npy(p / "a.npy", float_metres().astype(np.float64)), "m"),
    "npy_fortran": (lambda p: saved_npy(p / "a.npy", np.asfortranarray(float_metres())), "m"),
    "npy_big_endian": (lambda p: saved_npy(p / "a.npy", float_metres().astype(">f8")), "m"),
    "npy_uint16": (lambda p: saved_npy(p / "a.npy", millimetres().astype(np.uint16)), "mm"),
    "npy_1hw": (lambda p: saved_npy(p / "a.npy", float_metres()[None]), "m"),
    "npy_hw1": (lambda p: saved_npy(p / "a.npy", float_metres()[..., None]), "m"),
    "npy_11hw": (lambda p: saved_npy(p / "a.npy", float_metres()[None, None]), "m"),
    "npz_known": (lambda p: saved_npz(p / "a.npz", depth=float_millimetres()[None], confidence=float_metres()), "mm"),
    "npz_alone": (lambda p: saved_npz(p / "a.npz", arr_0=float_metres(), focal=np.float64(3)), "m"),
    "npz_metres": (lambda p: saved_npz(p / "a.npz", depth_m=float_metres(), mask=np.ones(SIZE, bool)), None),
    "exr_z": (lambda p: saved_exr(p / "a.exr", Z=float_metres(), R=float_metres() * 2), "m"),
    "exr_blender": (
        lambda p: saved_exr(p / "a.exr", ViewLayer_Depth_Z=float_metres(), ViewLayer_A=float_metres()),
        "m",
    ),
    "exr_layer": (lambda p: saved_exr(p / "a.exr", Depth_V=float_metres(), Image_R=float_metres() * 3), "m"),
    "exr_v": (lambda p: saved_exr(p / "a.exr", V=float_metres()), "m"),
    "exr_y": (lambda p: saved_exr(p / "a.exr", Y=float_metres(), A=float_metres()), "m"),
    "exr_grey": (lambda p: saved_exr(p / "a.exr", R=float_metres(), G=float_metres(), B=float_metres()), "m"),
    "exr_uint": (lambda p: saved_exr(p / "a.exr", Z=millimetres().astype(np.uint32)), "mm"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_depth_of_other_programs_is_read_with_its_unit(kind: str, tmp_path: Path) -> None:
    write, unit = FOREIGN[kind]
    path = write(tmp_path)
    loaded = load_depth(path, unit=unit)
    assert loaded.dtype == np.float32 and loaded.shape == SIZE
    np.testing.assert_array_equal(np.isnan(loaded), np.isnan(slanted()))
    step_m = 0.5 / 256 if kind == "png16_step" else 1e-6
    np.testing.assert_allclose(loaded, slanted(), atol=step_m, rtol=1e-6)
    renamed = path.rename(tmp_path / "depth")  # what a file is does not hang on its name
    np.testing.assert_array_equal(load_depth(renamed, unit=unit), loaded)
    if unit is not None:
        with pytest.raises(InputError, match=r"does not say its unit, wanted depth_unit \(--depth-unit\): m, cm, mm"):
            load_depth(renamed)


def test_half_floats_come_back_as_they_are(tmp_path: Path) -> None:
    half = np.linspace(0.5, 60, SIZE[0] * SIZE[1]).reshape(SIZE).astype(np.float16)
    half[3, 4] = np.inf
    for path in (saved_exr(tmp_path / "a.exr", Z=half), saved_npy(tmp_path / "a.npy", half)):
        np.testing.assert_array_equal(load_depth(path, unit="m"), half.astype(np.float32))


def test_our_own_files_say_metres_and_are_not_scaled_again(tmp_path: Path) -> None:
    depth = slanted()
    depth[5, 5] = np.inf
    pytest.importorskip("OpenEXR")
    paths = [
        save_depth_npz(tmp_path / "d.npz", depth, focal_length_px=50.0, bokeh_strengths=[]),
        save_depth_png(tmp_path / "d.png", depth),
        save_depth_exr(tmp_path / "d.exr", depth, focal_length_px=50.0),
    ]
    for path in paths:
        for unit in (None, "m"):
            np.testing.assert_allclose(load_depth(path, unit=unit), depth, rtol=2e-5, atol=1e-5)
        with pytest.raises(
            InputError, match=f"depth_unit is 'mm', wanted none, since file '{path.name}' states its own"
        ):
            load_depth(path, unit="mm")


@pytest.mark.parametrize(
    ("unit", "step_m"),
    [
        ("m", 1),
        ("cm", 0.01),
        ("mm", 1e-3),
        ("1/256m", 1 / 256),
        (" 1/5000 M ", 2e-4),
        ("0.2mm", 2e-4),
        ("1e-4m", 1e-4),
    ],
)
def test_units(unit: str, step_m: float) -> None:
    assert depth_step_m(unit) == pytest.approx(step_m, rel=1e-12)


@pytest.mark.parametrize("unit", ["", "km", "256", "1/256", "-1m", "1/0m", "0m", "nanm", "m/256", 3, "9" * 400 + "m"])
def test_what_states_no_unit_is_refused(unit: object) -> None:
    with pytest.raises(InputError, match=r"depth_unit is .{1,50}, wanted m, cm, mm, or the depth of one step"):
        depth_step_m(unit)


def two_pages(path: Path) -> Path:
    page = Image.fromarray(float_metres())
    page.save(path, save_all=True, append_images=[page])
    return path


UNCLEAR = {
    "8-bit": (
        lambda p: saved_image(p / "a.png", np.ones(SIZE, np.uint8)),
        "mode L, wanted a grey picture of 16 or 32",
    ),
    "colours": (lambda p: saved_image(p / "a.tif", np.ones((*SIZE, 3), np.uint8)), "mode RGB, wanted a grey picture"),
    "jpeg": (lambda p: saved_image(p / "a.jpg", np.ones(SIZE, np.uint8)), "is no depth map, wanted npz"),
    "two_maps": (lambda p: saved_npz(p / "a.npz", a=float_metres(), b=float_metres()), "wanted one called depth_m or"),
    "no_map": (lambda p: saved_npz(p / "a.npz", a=np.ones(3)), "wanted one called depth_m or"),
    "cube": (lambda p: saved_npy(p / "a.npy", np.ones((2, 3, 4))), r"shape \(2, 3, 4\), wanted \(H, W\)"),
    "row": (lambda p: saved_npy(p / "a.npy", np.ones((1, 1, 4))), r"shape \(1, 1, 4\), wanted \(H, W\)"),
    "complex": (
        lambda p: saved_npy(p / "a.npy", np.ones(SIZE, complex)),
        "array of 'complex128', wanted plain numbers",
    ),
    "objects": (lambda p: saved_npy(p / "a.npy", np.full(SIZE, None)), "array of 'object', wanted plain numbers"),
    "records": (lambda p: saved_npy(p / "a.npy", np.zeros(SIZE, "f4,f4")), "wanted plain numbers"),
    "empty": (lambda p: saved_npy(p / "a.npy", np.ones((0, 4))), "no pixel with a depth"),
    "negative": (lambda p: saved_npy(p / "a.npy", -float_metres()), "has the depth -"),
    "no_depth": (lambda p: saved_npy(p / "a.npy", np.zeros(SIZE)), "no pixel with a depth"),
    "pfm_scaled": (lambda p: write_pfm(p / "a.pfm", float_metres(), "-0.5"), "has the scale 0.5, wanted 1 in a PFM"),
    "pfm_colours": (lambda p: write_pfm(p / "a.pfm", float_metres(), "-1", "PF"), "is no depth map"),
    "pages": (lambda p: two_pages(p / "a.tif"), "has several pages, wanted one depth map"),
    "exr_colours": (
        lambda p: saved_exr(p / "a.exr", R=slanted(), G=2 * slanted(), B=slanted()),
        "a picture in colour",
    ),
    "exr_two": (lambda p: saved_exr(p / "a.exr", a_Z=slanted(), b_Z=slanted()), r"channels a\.Z, b\.Z, wanted one"),
    "text": (lambda p: p / "a.txt", "does not exist"),
    "folder": (lambda p: p, "must be a plain file"),
}


@pytest.mark.parametrize("kind", UNCLEAR)
def test_what_is_no_clear_depth_map_is_refused(kind: str, tmp_path: Path) -> None:
    write, sentence = UNCLEAR[kind]
    with pytest.raises(InputError, match=sentence) as refusal:
        load_depth(write(tmp_path), unit="m")
    assert str(tmp_path.parent) not in str(refusal.value)


@pytest.mark.parametrize("kind", ["png16_mm", "tiff_float", "pfm_big", "npy", "npz_known", "exr_z"])
def test_damage_and_size_are_one_sentence(kind: str, tmp_path: Path) -> None:
    path = FOREIGN[kind][0](tmp_path)
    whole = path.read_bytes()
    with pytest.raises(InputError, match="56 x 40 pixels; at most 2,239 in all are read"):
        load_depth(path, unit="m", max_pixels=SIZE[0] * SIZE[1] - 1)
    with pytest.raises(InputError, match="has 56 x 40 pixels, wanted the photo's 40 x 56"):
        load_depth(path, unit="m", size_px=SIZE)
    for cut in (len(whole) // 2, len(whole) - 40, 5, 4):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match="damaged or cut short") as refusal:
            load_depth(path, unit="m")
        assert str(tmp_path) not in str(refusal.value) and "pickle" not in str(refusal.value)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="is no depth map"):
        load_depth(path, unit="m")


# --- files made to harm ------------------------------------------------------------------------------------------


def npy_bytes(shape: object, descr: object = "<f4", data: bytes = b"", header: str | None = None) -> bytes:
    text = header or repr({"descr": descr, "fortran_order": False, "shape": shape})
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text) + 1) + text.encode() + b"\n" + data


def archive(path: Path, entries: dict[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return path


def own_entries(depth: bytes) -> dict[str, bytes]:
    return {
        "depth_m.npy": depth,
        "focal_length_px.npy": npy_bytes((), data=struct.pack("<f", 50)),
        "bokeh_strengths.npy": npy_bytes((0,)),
    }


def hostile_archives(folder: Path) -> dict[str, Path]:
    good = npy_bytes((2, 2), data=np.ones(4, "<f4").tobytes())
    zeros = bytes(2**26)
    huge = npy_bytes((10**6, 10**6))
    made = {
        "bomb": own_entries(npy_bytes((4096, 4096), data=zeros)),
        "bomb_beside": own_entries(good) | {"extra.npy": npy_bytes((4096, 4096), data=zeros)},
        "bomb_after": own_entries(good + zeros),
        "huge": own_entries(huge),
        "overflow": own_entries(npy_bytes((2**40, 2**40))),
        "negative": own_entries(npy_bytes((-2, -2), data=bytes(16))),
        "objects": own_entries(npy_bytes((2, 2), "|O", b"cos\nsystem\n(S'id'\ntR.")),
        "text": own_entries(npy_bytes((2, 2), "<U900000000")),
        "nested": own_entries(npy_bytes(None, header="(" * 5000)),
        "code": own_entries(npy_bytes(None, header="__import__('os').getcwd()")),
        "tokens": own_entries(npy_bytes(None, header="'''")),
        "no_key": own_entries(npy_bytes(None, header="{'shape': (2, 2)}")),
        "version": own_entries(b"\x93NUMPY\x09\0" + good[8:]),
        "long_header": own_entries(b"\x93NUMPY\x02\0" + struct.pack("<I", 2**31) + b" " * 2**20),
        "short": own_entries(npy_bytes((2, 2), data=bytes(7))),
        "nan_focal": own_entries(good) | {"focal_length_px.npy": npy_bytes((), data=struct.pack("<f", np.nan))},
        "long_strengths": own_entries(good) | {"bokeh_strengths.npy": npy_bytes((10**7,), data=bytes(4 * 10**7))},
        "entries": own_entries(good) | {f"{number:0200}.npy": b"" for number in range(1000)},
        "no_array": own_entries(b"hello"),
        "nothing": {},
    }
    paths = {name: archive(folder / f"{name}.npz", entries) for name, entries in made.items()}
    paths["bzip2"] = archive(folder / "bzip2.npz", own_entries(good), zipfile.ZIP_BZIP2)
    paths["lzma"] = archive(folder / "lzma.npz", own_entries(good), zipfile.ZIP_LZMA)
    whole = archive(folder / "whole.npz", own_entries(good)).read_bytes()
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(folder / "twice.npz", "w") as file:
        for _ in range(2):
            file.writestr("depth_m.npy", good)
    paths["twice"] = folder / "twice.npz"
    encrypted = bytearray(whole)
    for start in (match.start() for match in re.finditer(b"PK\x01\x02", whole)):
        encrypted[start + 8] |= 1
    flipped = bytearray(archive(folder / "stored.npz", own_entries(good), zipfile.ZIP_STORED).read_bytes())
    flipped[flipped.index(np.float32(1).tobytes())] ^= 1
    pointer = bytearray(whole)
    end = whole.rindex(b"PK\x05\x06")
    pointer[end + 16 : end + 20] = b"\xff\xff\xff\x7f"
    for name, data in (("encrypted", encrypted), ("flipped", flipped), ("pointer", pointer), ("half", whole[:150])):
        paths[name] = folder / f"{name}.npz"
        paths[name].write_bytes(data)
    return paths


def test_hostile_archives_are_refused_at_once_with_flat_memory(tmp_path: Path) -> None:
    paths = hostile_archives(tmp_path)
    whole = load_depth_npz(tmp_path / "whole.npz", max_pixels=10**6)
    assert whole.depth_m.tolist() == [[1, 1], [1, 1]] and whole.focal_length_px == 50
    assert load_depth(paths["bomb_beside"], max_pixels=10**6).shape == (2, 2)  # what is not wanted is not inflated
    tracemalloc.start()
    for name, path in paths.items():
        started = time.process_time()
        with pytest.raises(InputError) as refusal:
            load_depth_npz(path, max_pixels=10**6)
        assert time.process_time() - started < 1, name
        sentence = str(refusal.value)
        assert path.name in sentence and str(tmp_path) not in sentence and "pickle" not in sentence, name
        assert len(sentence) < 250 and "\n" not in sentence, sentence
        if name not in ("bomb_beside", "nan_focal", "long_strengths"):  # of which the depth itself is good
            with pytest.raises(InputError):
                load_depth(path, unit="m", max_pixels=10**6)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 4 * 2**20


def test_arrays_are_read_as_numpy_reads_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number, dtype in enumerate(("<f4", ">f8", "<f2", "|u1", ">i2", "<u4", "<i8")):
        for order in "CF":
            values = np.asarray(rng.uniform(0, 100, (7, 5, 3)), dtype=dtype, order=order)
            loose = saved_npy(tmp_path / f"{number}{order}.npy", values)
            with open_arrays(loose) as arrays:
                np.testing.assert_array_equal(arrays[""].read(105), np.load(loose))
            packed = saved_npz(tmp_path / f"{number}{order}.npz", a=values, b=np.ones(3))
            with open_arrays(packed) as arrays:
                assert sorted(arrays) == ["a", "b"]
                np.testing.assert_array_equal(arrays["a"].read(105), values)


def test_damaged_exr_leaves_no_half_map(tmp_path: Path) -> None:
    path = saved_exr(tmp_path / "a.exr", Z=np.tile(float_metres(), (5, 5)))
    whole = path.read_bytes()
    for at in (len(whole) // 3, len(whole) // 2, len(whole) - 50):
        path.write_bytes(whole[:at] + bytes(20) + whole[at + 20 :])
        with pytest.raises(InputError, match="damaged"):
            load_depth(path, unit="m")


# --- infinitely far, and unknown ---------------------------------------------------------------------------------


def test_the_sky_is_blurred_as_a_point_at_infinity(tmp_path: Path) -> None:
    depth = np.full(SIZE, 2.0, np.float32)
    depth[:20] = np.inf
    strength, focus_m = 30.0, 2.0
    radius = signed_radius_px(depth, strength, focus_m)
    assert radius[0, 0] == pytest.approx(-strength * SIZE[1] / 512 / focus_m) and radius[-1, -1] == 0
    picture = np.random.default_rng(0).uniform(0, 1, (*SIZE, 3)).astype(np.float32)
    far = np.where(np.isinf(depth), np.float32(1e9), depth)
    sky = render_from_depth(picture, depth, strength, focus_m)
    np.testing.assert_array_equal(sky, render_from_depth(picture, far, strength, focus_m))
    assert np.abs(sky - picture)[:15].max() > 0.05
    assert focus_distance_at(depth, 10, 5) == np.inf and focus_distance_at(depth, 10, 30) == 2
    at_infinity = render_from_depth(picture, depth, strength, np.inf)
    np.testing.assert_allclose(at_infinity[:10], picture[:10], atol=1e-6)


def test_unknown_depth_takes_the_nearest(tmp_path: Path) -> None:
    depth = np.full(SIZE, np.nan)
    depth[:, 0], depth[:, -1], depth[0, :] = 1, 3, np.inf
    filled = fill_unknown(depth)
    assert filled[30, 5] == 1 and filled[30, -5] == 3 and filled[1, 30] == np.inf and filled.dtype == np.float32
    with pytest.raises(InputError, match="no value anywhere"):
        fill_unknown(np.full(SIZE, np.nan))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return saved_image(tmp_path / "photo.png", np.random.default_rng(1).integers(0, 256, (*SIZE, 3), dtype=np.uint8))


def render(photo: Path, depth: Path, *options: str) -> int:
    out = str(photo.parent / "out")
    blur = ["--bokeh-strength", "40", "--overwrite"]
    return main(["render", str(photo), "--depth", str(depth), "-o", out, *blur, *options])


def test_the_command_asks_for_the_unit_and_for_the_unknown(photo: Path, capsys: pytest.CaptureFixture) -> None:
    path = saved_image(photo.parent / "kinect.png", millimetres().astype(np.uint16))
    assert render(photo, path, "--focus-m", "0.8") == 2
    assert (
        "file 'kinect.png' does not say its unit, wanted depth_unit (--depth-unit): m, cm" in capsys.readouterr().err
    )
    assert render(photo, path, "--focus-m", "0.8", "--depth-unit", "feet") == 2
    assert "depth_unit is 'feet', wanted m, cm, mm" in capsys.readouterr().err
    assert render(photo, path, "--focus-m", "0.8", "--depth-unit", "mm") == 2
    error = capsys.readouterr().err
    assert "file 'kinect.png' has 1 pixels without depth, wanted --fill-depth" in error and error.count("\n") == 1
    assert not (photo.parent / "out").exists()
    assert render(photo, path, "--focus-m", "0.8", "--depth-unit", "mm", "--fill-depth", "--json") == 0
    written = Path(json.loads(capsys.readouterr().out)["files"][0])
    image = np.asarray(Image.open(photo), dtype=np.float32) / 255
    expected = render_from_depth(image, fill_unknown(slanted()), 40.0, 0.8)
    assert np.abs(np.asarray(Image.open(written)) / 255 - expected).max() < 0.01
    record = json.loads(written.with_suffix(".json").read_text())
    assert record["arguments"]["depth_unit"] == "mm" and record["arguments"]["fill_depth"] is True
    assert "1 pixels without depth took that of the nearest pixel" in " ".join(record["assumptions"])


def test_the_command_renders_the_sky_and_focuses_on_it(photo: Path, capsys: pytest.CaptureFixture) -> None:
    depth = np.full(SIZE, 2.0, np.float32)
    depth[:20] = np.inf
    path = save_depth_npz(photo.parent / "sky.npz", depth, focal_length_px=50.0, bokeh_strengths=[])
    assert render(photo, path, "--focus-at", "20,30") == 0
    assert render(photo, path, "--focus-at", "20,5", "--json") == 0
    document = json.loads(capsys.readouterr().out.split("\n", 1)[1])
    assert document["focus_distance_m"] == "inf" and document["files"][0].endswith("refocus_k40_infm.png")
    image = np.asarray(Image.open(photo)).astype(int)
    focused_far = np.asarray(Image.open(document["files"][0])).astype(int)
    assert np.abs(focused_far - image)[:10].max() <= 1 and np.abs(focused_far - image)[30:].max() > 20


def test_unit_and_depth_are_checked_before_a_picture_is_written(photo: Path, capsys: pytest.CaptureFixture) -> None:
    path = saved_npy(photo.parent / "small.npy", np.ones((9, 12)))
    assert render(photo, path, "--focus-m", "2", "--depth-unit", "m") == 2
    assert "file 'small.npy' has 12 x 9 pixels, wanted the photo's 56 x 40" in capsys.readouterr().err
    assert not (photo.parent / "out").exists()
