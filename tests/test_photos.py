import io
import struct
import zlib

import numpy as np
import piexif
import PIL.Image
import pytest
from PIL import ImageCms

from bokehdepth.camera import read_camera
from bokehdepth.errors import InputError
from bokehdepth.files.photos import MAX_PIXELS, open_photo

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (48, 64, 3), dtype=np.uint8)
RGB = PIL.Image.fromarray(PIXELS)


def smooth_rgb():
    y, x = np.mgrid[0:48, 0:64]
    return PIL.Image.fromarray(np.stack([4 * x, 5 * y, 255 - 4 * x], axis=-1).astype(np.uint8))


def saved(image, path, **options):
    image.save(path, **options)
    return path


def test_plain_rgb_is_returned_untouched(tmp_path):
    photo = open_photo(saved(RGB, tmp_path / "a.png"))
    assert photo.image.mode == "RGB" and photo.notes == () and photo.path == tmp_path / "a.png"
    np.testing.assert_array_equal(np.asarray(photo.image), PIXELS)
    in_memory = open_photo(RGB)
    assert in_memory.image is not RGB and in_memory.path is None
    np.testing.assert_array_equal(np.asarray(in_memory.image), PIXELS)


def test_the_callers_image_is_left_as_it_is():
    image = RGB.copy()
    image.info["exif"] = piexif.dump({"0th": {piexif.ImageIFD.Orientation: 6}})
    photo = open_photo(image)
    assert photo.image.size == (48, 64) and image.size == (64, 48) and "exif" in image.info
    np.testing.assert_array_equal(np.asarray(image), PIXELS)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_undone(tmp_path, orientation):
    # The inverse of each orientation, written with NumPy: what a camera held that way would have stored.
    upright = PIXELS
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = piexif.dump({"0th": {piexif.ImageIFD.Orientation: orientation}})
    for name in ("a.png", "a.tif"):
        path = saved(PIL.Image.fromarray(np.ascontiguousarray(stored)), tmp_path / name, exif=exif)
        photo = open_photo(path)
        np.testing.assert_array_equal(np.asarray(photo.image), upright)
        assert photo.notes == (() if orientation == 1 else (f"the EXIF orientation {orientation} was applied",))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "RGBA"])
@pytest.mark.parametrize("compression", [None, "tiff_deflate"])
def test_a_turned_tiff_of_every_mode_is_turned_back(tmp_path, mode, compression):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    stored = RGB.convert("L").convert(mode)
    photo = open_photo(saved(stored, tmp_path / "a.tif", exif=exif, compression=compression))
    upright = np.asarray(RGB.convert("L").transpose(PIL.Image.Transpose.ROTATE_270).convert("RGB"), dtype=int)
    assert photo.image.size == (48, 64) and np.abs(np.asarray(photo.image) - upright).max() <= 1


@pytest.mark.parametrize("orientation", [1, 6, 8])
def test_read_camera_sees_a_photo_as_the_file(tmp_path, orientation):
    tags = {
        piexif.ExifIFD.FNumber: (2, 1),
        piexif.ExifIFD.FocalLength: (50, 1),
        piexif.ExifIFD.PixelXDimension: 6400,
        piexif.ExifIFD.PixelYDimension: 4800,
        piexif.ExifIFD.FocalPlaneXResolution: (200, 1),
        piexif.ExifIFD.FocalPlaneYResolution: (200, 1),
        piexif.ExifIFD.FocalPlaneResolutionUnit: 4,
    }
    exif = piexif.dump({"0th": {piexif.ImageIFD.Orientation: orientation}, "Exif": tags})
    for suffix in ("jpg", "tif", "webp"):
        path = saved(RGB, tmp_path / f"a.{suffix}", exif=exif)
        with PIL.Image.open(path) as image:
            from_file = read_camera(image)
            image.load()
            once_decoded = read_camera(image)
        photo = open_photo(path)
        assert read_camera(photo) == from_file == once_decoded
        assert ("the EXIF orientation" in " ".join(photo.notes)) == (orientation != 1)
        assert photo.image.size == (from_file.image_width_px, from_file.image_height_px)
        assert from_file.sensor_width_mm.value == pytest.approx(32 if orientation == 1 else 24)


def test_transparency_is_composited_over_white(tmp_path):
    alpha = RNG.integers(0, 256, (48, 64, 1), dtype=np.uint8)
    rgba = PIL.Image.fromarray(np.concatenate([PIXELS, alpha], axis=-1))
    expected = PIXELS * (alpha / 255) + 255 * (1 - alpha / 255)
    photo = open_photo(saved(rgba, tmp_path / "a.png"))
    np.testing.assert_allclose(np.asarray(photo.image), expected, atol=1.01)
    assert photo.notes == ("transparency was composited over white",)

    grey_alpha = PIL.Image.fromarray(np.concatenate([PIXELS[..., :1], alpha], axis=-1))
    assert grey_alpha.mode == "LA"
    photo = open_photo(saved(grey_alpha, tmp_path / "la.png"))
    np.testing.assert_allclose(np.asarray(photo.image)[..., 1], expected[..., 0], atol=1.01)
    assert "transparency was composited over white" in photo.notes

    opaque = open_photo(RGB.convert("RGBA"))
    np.testing.assert_array_equal(np.asarray(opaque.image), PIXELS)
    assert "opaque throughout" in opaque.notes[0]


def test_palette_with_and_without_transparency(tmp_path):
    palette = PIL.Image.fromarray((np.arange(48 * 64).reshape(48, 64) % 2).astype(np.uint8), "P")
    palette.putpalette([200, 10, 30, 0, 0, 0])
    plain = np.asarray(open_photo(saved(palette, tmp_path / "p.png")).image)
    assert tuple(plain[0, 0]) == (200, 10, 30) and tuple(plain[0, 1]) == (0, 0, 0)
    clear = np.asarray(open_photo(saved(palette, tmp_path / "t.png", transparency=1)).image)
    assert tuple(clear[0, 0]) == (200, 10, 30) and tuple(clear[0, 1]) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "YCbCr", "HSV", "RGBX", "RGBa", "La", "PA"])
def test_other_modes_become_the_rgb_that_pil_shows(mode):
    source = smooth_rgb()
    if mode == "PA":
        image = source.convert("P").convert("PA")
    elif mode in ("RGBa", "La"):
        image = source.convert("RGBA" if mode == "RGBa" else "LA").convert(mode)
    else:
        image = source.convert(mode)
    assert image.mode == mode
    photo = open_photo(image)
    expected = image.convert("LA").convert("RGB") if mode == "La" else image.convert("RGBA").convert("RGB")
    if mode == "1":
        assert set(np.unique(np.asarray(photo.image))) == {0, 255}
    np.testing.assert_allclose(np.asarray(photo.image, np.int16), np.asarray(expected, np.int16), atol=1)
    assert photo.image.mode == "RGB" and any(mode in note for note in photo.notes)


def test_lab_files(tmp_path):
    source = smooth_rgb()
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    path = saved(ImageCms.applyTransform(source, to_lab), tmp_path / "lab.tif")
    photo = open_photo(path)
    assert np.abs(np.asarray(photo.image, np.int16) - np.asarray(source, np.int16)).mean() < 3
    assert photo.notes == ("mode LAB was converted to sRGB",)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_16_bit_grey_keeps_its_range(mode):
    values = np.linspace(0, 65535, 48 * 64).reshape(48, 64)
    dtype = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]
    image = PIL.Image.frombytes(mode, (64, 48), np.rint(values).astype(dtype).tobytes())
    photo = open_photo(image)
    np.testing.assert_allclose(np.asarray(photo.image)[..., 2], values / 257, atol=0.51)
    assert photo.notes[0] == "16-bit grey was reduced to 8 bit"


def test_16_bit_png_and_tiff_files_keep_their_range(tmp_path):
    values = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)
    for name in ("a.png", "a.tif"):
        photo = open_photo(saved(PIL.Image.fromarray(values), tmp_path / name))
        np.testing.assert_allclose(np.asarray(photo.image)[..., 0], values / 257, atol=0.51)


def test_float_and_32_bit_grey():
    ramp = np.linspace(0, 1, 48 * 64, dtype=np.float32).reshape(48, 64)
    unit = open_photo(PIL.Image.fromarray(ramp * 0.5))
    assert np.asarray(unit.image).max() == 128
    wide = open_photo(PIL.Image.fromarray(ramp * 300 - 20))
    assert np.asarray(wide.image).min() == 0 and np.asarray(wide.image).max() == 255
    assert "from its range -20 to 280" in wide.notes[0]
    huge = open_photo(PIL.Image.fromarray((ramp * 2e9).astype(np.int32)))
    assert np.asarray(huge.image).max() == 255 and "32-bit" in huge.notes[0]
    ramp[3, 3] = np.nan
    with pytest.raises(InputError, match="not finite"):
        open_photo(PIL.Image.fromarray(ramp))


def png_header(width_px, height_px):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width_px, height_px, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels_are_refused_from_the_header(tmp_path):
    path = tmp_path / "bomb.png"
    for width_px, height_px in [(40_000, 40_000), (10_001, 10_000), (12_000, 12_000)]:
        path.write_bytes(png_header(width_px, height_px))
        with pytest.raises(InputError, match=rf"^photo 'bomb\.png' .* at most {MAX_PIXELS:,}"):
            open_photo(path)
    with pytest.raises(InputError, match="64 x 48 pixels; at most 3,000"):
        open_photo(RGB, max_pixels=3000)


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_a_bomb_warning_made_an_error_is_our_sentence_too(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(12_000, 12_000))
    with pytest.raises(InputError, match="declares too many pixels"):
        open_photo(path)


@pytest.mark.parametrize("size", [(31, 100), (100, 31)])
def test_too_small_is_refused(size):
    with pytest.raises(InputError, match=f"{size[0]} x {size[1]} pixels; each side must have at least 32"):
        open_photo(PIL.Image.new("RGB", size))
    assert open_photo(PIL.Image.new("RGB", (32, 32))).image.size == (32, 32)


@pytest.mark.parametrize("size", [(8000, 32), (40, 20000), (257, 32)])
def test_a_strip_is_refused_from_its_header(size, tmp_path, monkeypatch):
    path = tmp_path / "strip.png"
    PIL.Image.new("RGB", size).save(path)
    monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", lambda self: pytest.fail("pixels were decoded"))
    with pytest.raises(InputError, match=f"{size[0]} x {size[1]} pixels; a side may be 8 times the other"):
        open_photo(path)


def test_eight_times_the_other_side_is_no_strip():
    assert open_photo(PIL.Image.new("RGB", (256, 32))).image.size == (256, 32)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp", "a.gif", "a.bmp"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_truncated_files_are_refused(tmp_path, name, share):
    noise = PIL.Image.fromarray(np.random.default_rng(1).integers(0, 256, (200, 200, 3), dtype=np.uint8))
    path = saved(noise, tmp_path / name)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=f"^photo '{name}' (is damaged or cut short|.* is not a picture)"):
        open_photo(path)


def test_what_is_no_picture_is_refused(tmp_path):
    text = tmp_path / "text.jpg"
    text.write_text("This is no photo.")
    empty = tmp_path / "empty.png"
    empty.touch()
    for path in (text, empty):
        with pytest.raises(InputError, match=f"^photo '{path.name}' must be a JPEG.* is not a picture"):
            open_photo(path)
    with pytest.raises(InputError, match=r"^photo 'none\.jpg' does not exist"):
        open_photo(str(tmp_path / "none.jpg"))
    with pytest.raises(InputError, match="it is a folder"):
        open_photo(tmp_path)
    with pytest.raises(InputError, match="^source must be a path or a PIL image, got ndarray"):
        open_photo(PIXELS)
    with pytest.raises(InputError, match=r"bytes; at most 1,000 are read"):
        open_photo(saved(RGB, tmp_path / "large.png"), max_file_bytes=1000)


def test_messages_tell_no_folder(tmp_path):
    for path in (tmp_path / "none.jpg", tmp_path):
        with pytest.raises(InputError) as caught:
            open_photo(path / "x" / "y.png")
        assert str(tmp_path) not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Truncated File", "ignore:Metadata Warning")
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "gif"])
def test_corrupted_bytes_give_a_picture_or_our_sentence(tmp_path, suffix):
    rng = np.random.default_rng(2)
    path = saved(smooth_rgb(), tmp_path / f"a.{suffix}", exif=piexif.dump({"Exif": {piexif.ExifIFD.FNumber: (2, 1)}}))
    content = path.read_bytes()
    refused = 0
    for _ in range(150):
        damaged = bytearray(content)
        for position in rng.integers(0, len(damaged), rng.integers(1, 20)):
            damaged[position] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            photo = open_photo(path, max_pixels=10**6)
        except InputError as error:
            refused += 1
            assert str(error).count("\n") == 0
        else:
            assert photo.image.mode == "RGB"
            read_camera(photo)
    assert refused > 0


@pytest.mark.data
def test_real_photos_open(data_root):
    paths = (
        sorted((data_root / "exif" / "resized640").glob("*.jpg"))[::6]
        + sorted((data_root / "mattes").rglob("*.png"))[:3]
    )
    assert len(paths) > 10
    for path in paths:
        photo = open_photo(path)
        camera = read_camera(photo)
        with PIL.Image.open(path) as image:
            assert camera == read_camera(image)
        assert photo.image.size == (camera.image_width_px, camera.image_height_px)


def test_a_photo_from_memory_may_come_from_a_stream():
    stream = io.BytesIO()
    RGB.save(stream, "PNG")
    photo = open_photo(PIL.Image.open(stream))
    np.testing.assert_array_equal(np.asarray(photo.image), PIXELS)
    with pytest.raises(InputError, match="^image is damaged or cut short"):
        open_photo(PIL.Image.open(io.BytesIO(stream.getvalue()[:2000])))
