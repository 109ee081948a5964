"""Colours as files declare them, against matrices of the published primaries, littleCMS and what Chromium shows."""

import struct
import zlib

import numpy as np
import piexif
import PIL.Image
import pillow_heif
import pytest
from PIL import ImageCms

from bokehdepth.files.photos import open_photo

COLOUR = (180, 60, 40)
D65 = (0.3127, 0.3290)
SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
ADOBE = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
BT2020 = ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046))
RNG = np.random.default_rng(0)
RGB = PIL.Image.fromarray(RNG.integers(0, 256, (48, 64, 3), dtype=np.uint8))


def srgb_decoded(encoded):
    return np.where(encoded > 0.04045, ((encoded + 0.055) / 1.055) ** 2.4, encoded / 12.92)


def srgb_encoded(linear):
    return np.where(linear > 0.0031308, 1.055 * np.maximum(linear, 0) ** (1 / 2.4) - 0.055, linear * 12.92)


def expected(levels, primaries, decoded=srgb_decoded):
    """8-bit sRGB of 8-bit levels in a space with white D65: no adaptation, so one matrix each way."""

    def matrix(xy):
        columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in xy]).T
        white = np.array([D65[0] / D65[1], 1, (1 - sum(D65)) / D65[1]])
        return columns * np.linalg.solve(columns, white)

    linear = decoded(np.asarray(levels) / 255) @ (np.linalg.inv(matrix(SRGB)) @ matrix(primaries)).T
    return np.rint(np.clip(srgb_encoded(linear), 0, 1) * 255)


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(path, *chunks, image=None, **options):
    """A PNG of one colour with chunks of one's own behind the header."""
    (image or PIL.Image.new("RGB", (48, 48), COLOUR)).save(path, "PNG", **options)
    content = path.read_bytes()
    path.write_bytes(content[:33] + b"".join(chunk(*entry) for entry in chunks) + content[33:])
    return path


def chrm(primaries):
    return b"cHRM", struct.pack(">8I", *(round(value * 100_000) for pair in (D65, *primaries) for value in pair))


def gama(gamma):
    return b"gAMA", struct.pack(">I", round(gamma * 100_000))


def only_colour(photo):
    pixels = np.asarray(photo.image).reshape(-1, 3)
    assert (pixels == pixels[0]).all()
    return tuple(int(value) for value in pixels[0])


# ---------------------------------------------------------------------- PNG


@pytest.mark.parametrize(
    ("codes", "colour", "name"),
    [
        ((12, 13, 0, 1), (196, 47, 27), "Display P3"),
        ((9, 13, 0, 1), (222, 0, 27), "BT.2020"),
        ((9, 14, 0, 1), (218, 0, 7), "BT.2020"),
        ((12, 1, 0, 1), (191, 32, 6), "Display P3"),
        ((1, 8, 0, 1), (219, 133, 110), "BT.709"),
    ],
)
def test_png_code_points_as_chromium_shows_them(tmp_path, codes, colour, name):
    photo = open_photo(png(tmp_path / "a.png", (b"cICP", bytes(codes))))
    assert only_colour(photo) == colour
    assert photo.notes == (f"colours were converted from {name}, declared by PNG cICP, to sRGB",)


@pytest.mark.parametrize(("number", "primaries"), [(12, P3), (9, BT2020)])
def test_every_colour_is_that_of_the_published_primaries(tmp_path, number, primaries):
    photo = open_photo(png(tmp_path / "a.png", (b"cICP", bytes([number, 13, 0, 1])), image=RGB))
    difference = np.abs(np.asarray(photo.image) - expected(np.asarray(RGB), primaries))
    # Steep at black: littleCMS works in 16 bits, whose steps are a few levels there where another channel is bright.
    assert difference.max() <= 3 and difference.mean() < 0.1


def test_png_code_points_of_srgb_change_nothing(tmp_path):
    photo = open_photo(png(tmp_path / "a.png", (b"cICP", bytes([1, 13, 0, 1]))))
    assert only_colour(photo) == COLOUR and photo.notes == ()


@pytest.mark.parametrize(("transfer", "level_of_white"), [(16, 0.5807), (18, 0.75)])
def test_hdr_pictures_show_diffuse_white_as_white(tmp_path, transfer, level_of_white):
    # ITU-R BT.2408: 203 nits, 58 % of PQ and 75 % of HLG.
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2).repeat(48, axis=0)
    path = png(tmp_path / "a.png", (b"cICP", bytes([9, transfer, 0, 1])), image=PIL.Image.fromarray(ramp))
    photo = open_photo(path)
    grey = np.asarray(photo.image)[0, :, 1].astype(int)
    assert (np.diff(grey) >= 0).all()
    assert abs(int(np.argmax(grey >= 254)) - round(255 * level_of_white)) <= 2
    assert "HDR" in photo.notes[0]


@pytest.mark.parametrize("codes", [(200, 13, 0, 1), (12, 3, 0, 1), (12, 13, 1, 1), (12, 13, 0, 0)])
def test_png_code_points_that_are_not_known_get_one_note(tmp_path, codes):
    photo = open_photo(png(tmp_path / "a.png", (b"cICP", bytes(codes))))
    assert only_colour(photo) == COLOUR and len(photo.notes) == 1
    assert "taken as sRGB" in photo.notes[0]


def test_png_declarations_overrule_each_other_as_the_standard_says(tmp_path):
    p3, linear = (b"cICP", bytes([12, 13, 0, 1])), gama(1.0)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    by_codes = open_photo(png(tmp_path / "a.png", p3, (b"sRGB", b"\0"), linear, icc_profile=srgb))
    assert only_colour(by_codes) == (196, 47, 27)
    by_profile = open_photo(png(tmp_path / "b.png", linear, chrm(ADOBE), icc_profile=srgb))
    assert only_colour(by_profile) == COLOUR and by_profile.notes == ()
    by_srgb = open_photo(png(tmp_path / "c.png", (b"sRGB", b"\0"), linear, chrm(ADOBE)))
    assert only_colour(by_srgb) == COLOUR and by_srgb.notes == ()
    by_chunks = open_photo(png(tmp_path / "d.png", linear))
    assert only_colour(by_chunks) == (219, 133, 110)
    assert by_chunks.notes == ("colours were converted from a space of its own, declared by PNG gAMA, to sRGB",)


def test_png_gamma_and_chromaticities(tmp_path):
    assert only_colour(open_photo(png(tmp_path / "a.png", gama(0.45455)))) == COLOUR
    assert only_colour(open_photo(png(tmp_path / "b.png", gama(0.55556)))) == (193, 77, 53)
    both = open_photo(png(tmp_path / "c.png", gama(0.4547), chrm(ADOBE)))
    assert only_colour(both) == (208, 57, 34)
    alone = open_photo(png(tmp_path / "d.png", chrm(ADOBE)))
    assert only_colour(alone) == COLOUR and "without gAMA" in alone.notes[0]
    grey = open_photo(png(tmp_path / "e.png", gama(1.0), image=PIL.Image.new("L", (48, 48), 60)))
    assert only_colour(grey) == (133, 133, 133)
    for number, absurd in enumerate(((gama(0.00001), chrm(SRGB)), (gama(0.5), chrm((D65, D65, D65))))):
        photo = open_photo(png(tmp_path / f"absurd{number}.png", *absurd))
        assert only_colour(photo) == COLOUR and "cannot be" in photo.notes[0]


# ---------------------------------------------------------------------- EXIF and TIFF


def jpeg(path, exif=None, interop=None, zeroth=None):
    tags = {"0th": zeroth or {}, "Exif": exif or {}, "Interop": interop or {}}
    PIL.Image.new("RGB", (48, 48), COLOUR).save(path, quality=100, subsampling=0, exif=piexif.dump(tags))
    return path


SPACE = piexif.ExifIFD.ColorSpace
R03 = {piexif.InteropIFD.InteroperabilityIndex: b"R03"}
R98 = {piexif.InteropIFD.InteroperabilityIndex: b"R98"}


@pytest.mark.parametrize(("exif", "interop"), [({SPACE: 65535}, R03), ({SPACE: 2}, None), ({}, R03)])
def test_adobe_rgb_that_only_exif_declares(tmp_path, exif, interop):
    photo = open_photo(jpeg(tmp_path / "a.jpg", exif, interop))
    assert max(abs(a - b) for a, b in zip(only_colour(photo), (208, 57, 34), strict=True)) <= 2  # JPEG's own rounding
    assert photo.notes == ("colours were converted from Adobe RGB (1998), declared by EXIF, to sRGB",)


def test_adobe_rgb_in_exif_is_the_profile_of_adobe_rgb(tmp_path):
    RGB.save(tmp_path / "a.png", exif=piexif.dump({"Exif": {SPACE: 65535}, "Interop": R03}))
    converted = np.asarray(open_photo(tmp_path / "a.png").image)
    wanted = expected(np.asarray(RGB), ADOBE, lambda encoded: encoded ** (563 / 256))
    assert np.abs(converted - wanted).max() <= 1


@pytest.mark.parametrize(("exif", "interop"), [({SPACE: 1}, R98), ({SPACE: 1}, R03), ({}, R98), ({}, None)])
def test_srgb_in_exif_changes_nothing(tmp_path, exif, interop):
    assert open_photo(jpeg(tmp_path / "a.jpg", exif, interop)).notes == ()


@pytest.mark.parametrize("space", [65535, 65533, 7])
def test_a_space_that_exif_does_not_name_gets_one_note(tmp_path, space):
    photo = open_photo(jpeg(tmp_path / "a.jpg", {SPACE: space}))
    assert len(photo.notes) == 1 and photo.notes[0].startswith("EXIF declares ") and "sRGB" in photo.notes[0]
    assert max(abs(a - b) for a, b in zip(only_colour(photo), COLOUR, strict=True)) <= 2


def test_chromaticities_and_gamma_in_exif(tmp_path):
    def rationals(*values):
        return tuple((round(10_000 * value), 10_000) for value in values)

    zeroth = {
        piexif.ImageIFD.WhitePoint: rationals(*D65),
        piexif.ImageIFD.PrimaryChromaticities: rationals(*(value for pair in ADOBE for value in pair)),
    }
    image = PIL.Image.new("RGB", (48, 48), COLOUR)
    image.save(tmp_path / "a.png", exif=piexif.dump({"0th": zeroth, "Exif": {SPACE: 65535, 0xA500: (22, 10)}}))
    photo = open_photo(tmp_path / "a.png")
    assert only_colour(photo) == (208, 57, 34) and "PrimaryChromaticities" in photo.notes[0]
    zeroth[piexif.ImageIFD.PrimaryChromaticities] = rationals(*(0.3, 0.3) * 3)
    image.save(tmp_path / "b.png", exif=piexif.dump({"0th": zeroth}))
    assert "cannot be" in open_photo(tmp_path / "b.png").notes[0]


def test_chromaticities_and_tables_among_tiff_tags(tmp_path):
    levels = np.arange(256) / 255
    table = [round(65535 * value) for value in levels ** (563 / 256)]
    chromaticities = {318: D65, 319: tuple(value for pair in ADOBE for value in pair)}
    wanted = expected(np.asarray(RGB), ADOBE, lambda encoded: encoded ** (563 / 256))
    RGB.save(tmp_path / "a.tif", tiffinfo={**chromaticities, 301: tuple(table * 3)})
    photo = open_photo(tmp_path / "a.tif")
    assert np.abs(np.asarray(photo.image) - wanted).max() <= 1
    assert photo.notes[0].startswith(
        "colours were converted from a space of its own, declared by WhitePoint and Primary"
    )
    # Chromaticities by themselves come with TIFF's default of gamma 2.2, tables by themselves with sRGB's primaries.
    RGB.save(tmp_path / "b.tif", tiffinfo=chromaticities)
    assert np.abs(np.asarray(open_photo(tmp_path / "b.tif").image) - wanted).max() <= 1
    RGB.save(tmp_path / "c.tif", tiffinfo={301: tuple([round(65535 * value) for value in levels] * 3)})
    linear = expected(np.asarray(RGB), SRGB, lambda encoded: encoded)
    assert np.abs(np.asarray(open_photo(tmp_path / "c.tif").image) - linear).max() <= 1
    RGB.save(tmp_path / "d.tif", tiffinfo={301: tuple(range(100))})
    assert "declared by TransferFunction cannot be" in open_photo(tmp_path / "d.tif").notes[0]
    RGB.save(tmp_path / "e.tif", tiffinfo={318: D65, 319: tuple(value for pair in SRGB for value in pair)})
    assert open_photo(tmp_path / "e.tif").notes == ()


# ---------------------------------------------------------------------- AVIF and HEIC


def coded_file(path, primaries, transfer):
    """An AVIF or HEIC of one colour that declares its space by H.273 code points."""
    image = PIL.Image.new("RGB", (64, 64), COLOUR)
    if path.suffix == ".heic":
        codes = {"color_primaries": primaries, "transfer_characteristic": transfer, "matrix_coefficients": 6}
        pillow_heif.from_pillow(image).save(path, quality=98, chroma=444, save_nclx_profile=True, **codes)
    else:
        image.save(path, quality=100, subsampling="4:4:4")
        content = path.read_bytes()
        at = content.index(b"nclx") + 4
        path.write_bytes(content[:at] + struct.pack(">HH", primaries, transfer) + content[at + 4 :])
    return path


@pytest.mark.parametrize("suffix", ["heic", "avif"])
@pytest.mark.parametrize(
    ("codes", "colour", "name"),
    [
        ((12, 13), (196, 47, 27), "Display P3"),
        ((9, 14), (222, 0, 27), "BT.2020"),  # the curve of a screen, as Chromium takes it for pictures
        ((1, 13), COLOUR, None),
        ((1, 1), COLOUR, None),
        ((1, 6), COLOUR, None),
    ],
)
def test_code_points_of_avif_and_heic(tmp_path, suffix, codes, colour, name):
    photo = open_photo(coded_file(tmp_path / f"a.{suffix}", *codes))
    assert np.abs(np.asarray(photo.image, int) - colour).max() <= 3  # lossy
    kind = suffix.upper()
    wanted = () if name is None else (f"colours were converted from {name}, declared by {kind} nclx, to sRGB",)
    assert photo.notes == wanted


@pytest.mark.parametrize("suffix", ["heic", "avif"])
def test_an_icc_profile_in_avif_and_heic(tmp_path, suffix):
    swapped = channel_swapping_profile(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    image = PIL.Image.new("RGB", (64, 64), COLOUR)
    if suffix == "heic":
        image.info["icc_profile"] = swapped
        pillow_heif.from_pillow(image).save(tmp_path / "a.heic", quality=98, chroma=444)
    else:
        image.save(tmp_path / "a.avif", quality=100, subsampling="4:4:4", icc_profile=swapped)
    photo = open_photo(tmp_path / f"a.{suffix}")
    assert np.abs(np.asarray(photo.image, int) - COLOUR[::-1]).max() <= 3
    assert len(photo.notes) == 1 and "from the profile" in photo.notes[0]


# ---------------------------------------------------------------------- ICC


def channel_swapping_profile(srgb):
    """The sRGB profile with the red and blue primaries exchanged: a profile whose effect is known exactly."""
    names = {b"rXYZ": b"bXYZ", b"bXYZ": b"rXYZ"}
    profile = bytearray(srgb)
    for index in range(struct.unpack(">I", profile[128:132])[0]):
        start = 132 + 12 * index
        profile[start : start + 4] = names.get(bytes(profile[start : start + 4]), profile[start : start + 4])
    return bytes(profile)


def smooth_rgb():
    y, x = np.mgrid[0:48, 0:64]
    return PIL.Image.fromarray(np.stack([4 * x, 5 * y, 255 - 4 * x], axis=-1).astype(np.uint8))


def test_colour_profiles(tmp_path):
    def saved(image, name, profile):
        image.save(tmp_path / name, icc_profile=profile)
        return tmp_path / name

    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photo = open_photo(saved(RGB, "srgb.png", srgb))
    assert photo.notes == ()
    np.testing.assert_array_equal(np.asarray(photo.image), np.asarray(RGB))

    swapped = channel_swapping_profile(srgb)
    photo = open_photo(saved(smooth_rgb(), "swapped.png", swapped))
    assert "colours were converted from the profile" in photo.notes[0]
    converted = np.asarray(photo.image, np.int16)
    np.testing.assert_allclose(converted, np.asarray(smooth_rgb(), np.int16)[..., ::-1], atol=2)

    broken = open_photo(saved(RGB, "broken.png", b"not a profile at all" * 20))
    assert broken.notes == ("the embedded colour profile is damaged and was ignored",)
    misplaced = open_photo(saved(RGB.convert("L"), "misplaced.png", srgb))
    assert "is for RGB and was ignored" in misplaced.notes[0]
