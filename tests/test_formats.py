"""Which picture of which file is the photo, and how it comes upright."""

import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import piexif
import PIL.Image
import PIL.ImageOps
import pillow_heif
import pytest
from PIL import PngImagePlugin

from bokehdepth.camera import read_camera
from bokehdepth.errors import InputError
from bokehdepth.files.formats import PICTURE_SUFFIXES
from bokehdepth.files.photos import open_photo, upright_size_px
from bokehdepth.manifest import ManifestRow
from bokehdepth.tasks.photo_job import photo_paths
from train.rows import picture_size, read_depth

ROOT = Path(__file__).resolve().parents[1]
EXIF_6 = piexif.dump({"0th": {piexif.ImageIFD.Orientation: 6}, "Exif": {piexif.ExifIFD.FNumber: (28, 10)}})
XMP_6 = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    b"</rdf:RDF></x:xmpmeta>"
)


def gradient(width_px=96, height_px=64):
    """A picture without symmetry, smooth enough to survive lossy formats."""
    y, x = np.mgrid[0:height_px, 0:width_px]
    levels = [230 * x / width_px, 230 * y / height_px, 200 - 150 * x / width_px]
    return PIL.Image.fromarray(np.stack(levels, axis=-1).astype(np.uint8))


def assert_close(image, expected, levels=4):
    assert image.size == expected.size
    np.testing.assert_allclose(np.asarray(image, float).mean(), np.asarray(expected, float).mean(), atol=levels)
    assert np.abs(np.asarray(image, float) - np.asarray(expected, float)).mean() < levels


def tiff(*pages, order="<"):
    """Bytes of a TIFF: a chain of pages, each (width, height, grey level, {tag: number or bytes}, sub-page)."""
    content = bytearray((b"II*\0" if order == "<" else b"MM\0*") + bytes(4))

    def write(page, link_at):
        width_px, height_px, level, tags, child = page
        pixels_at = len(content)
        content.extend(bytes([level]) * (width_px * height_px))
        entries = {256: width_px, 257: height_px, 258: 8, 259: 1, 262: 1, 273: pixels_at, 277: 1, 278: height_px}
        entries |= {279: width_px * height_px, **tags}
        if child is not None:
            at = len(content)
            content.extend(bytes(4))
            write(child, at)
            entries[330] = struct.unpack_from(order + "I", content, at)[0]
        struct.pack_into(order + "I", content, link_at, len(content))
        content.extend(struct.pack(order + "H", len(entries)))
        for tag, value in sorted(entries.items()):
            if isinstance(value, bytes):
                content.extend(struct.pack(order + "HHI", tag, 1, len(value)) + value.ljust(4, b"\0"))
            else:
                content.extend(struct.pack(order + "HHII", tag, 4, 1, value))
        content.extend(bytes(4))
        return len(content) - 4

    link_at = 4
    for page in pages:
        link_at = write(page, link_at)
    return bytes(content)


def page(width_px, height_px, level, tags=None, child=None):
    return width_px, height_px, level, tags or {}, child


def written(path, content):
    path.write_bytes(content)
    return path


# ---------------------------------------------------------------------- formats


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif", "a.avif", "a.heic", "a.gif", "a.bmp", "a.mpo"])
def test_every_named_format_is_read(tmp_path, name):
    path = tmp_path / name
    if name == "a.heic":
        pillow_heif.from_pillow(gradient()).save(path, quality=90)
    else:
        options = {"save_all": True, "append_images": [gradient()]} if name == "a.mpo" else {}
        gradient().save(path, **options)
    assert_close(open_photo(path).image, gradient(), levels=8)
    assert upright_size_px(path) == (96, 64)
    assert path.suffix in PICTURE_SUFFIXES and photo_paths([tmp_path]) == [path]
    # What is in the file decides, not what it is called.
    assert_close(open_photo(path.rename(tmp_path / "photo.nef" if name != "a.tif" else path)).image, gradient(), 8)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a.jp2", "got JPEG 2000"),
        ("a.ppm", "got PNM or PFM"),
        ("a.tga", "not a picture of these"),
        ("a.ico", "got Windows icon"),
        ("a.pdf", "got PDF or PostScript"),
        ("a.eps", "got PDF or PostScript"),
        ("a.sgi", "not a picture of these"),
        ("a.dds", "not a picture of these"),
    ],
)
def test_other_formats_that_pil_reads_are_refused_by_name(tmp_path, name, words):
    path = tmp_path / name
    gradient().save(path)
    for disguised in (path, written(tmp_path / "a.jpg", path.read_bytes())):
        with pytest.raises(InputError, match=f"^photo '{disguised.name}' must be a JPEG, PNG, .*{words}"):
            open_photo(disguised)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "video"),
        (b"8BPS\0\1", "Photoshop"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\xff\x0a\0\0", "JPEG XL"),
        (b"v/1\x01\x02\0\0\0", "OpenEXR"),
    ],
)
def test_formats_that_pil_does_not_read_are_named_too(tmp_path, content, words):
    with pytest.raises(InputError, match=f"^photo 'a.jpg' must be a JPEG.* got .*{words}"):
        open_photo(written(tmp_path / "a.jpg", content + bytes(64)))


# ---------------------------------------------------------------------- camera RAW

FULL = page(1200, 800, 90)
SENSOR = page(1200, 800, 90, {262: 32803})
THUMBNAIL = {254: 1}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("name", "pages", "kind"),
    [
        ("a.nef", [page(160, 120, 20, THUMBNAIL, FULL)], "NEF"),
        ("a.dng", [page(160, 120, 20, {**THUMBNAIL, 50706: b"\1\4\0\0"}, FULL)], "DNG"),
        ("renamed.tif", [page(160, 120, 20, {**THUMBNAIL, 50706: b"\1\4\0\0"}, FULL)], "DNG"),
        ("linear.tif", [page(1200, 800, 20, {50706: b"\1\4\0\0", 262: 34892})], "DNG"),
        ("nikon.tif", [page(160, 120, 20, THUMBNAIL, SENSOR)], "sensor data"),
        ("pentax.tif", [page(1200, 800, 20, {259: 65535})], "sensor data"),
        ("a.ARW", [page(1200, 800, 20)], "ARW"),
    ],
)
def test_camera_raw_with_the_structure_of_a_tiff_is_refused_by_name(tmp_path, name, pages, kind, order):
    path = written(tmp_path / name, tiff(*pages, order=order))
    for read in (open_photo, upright_size_px):
        with pytest.raises(InputError, match=rf"^photo '{name}' is a camera RAW file \(.*{kind}\): develop it first"):
            read(path)


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"FUJIFILMCCD-RAW 0201", "RAF"),
        (b"IIRO\x08\0\0\0", "ORF"),
        (b"IIU\0\x18\0\0\0", "RW2"),
        (b"II*\0\x10\0\0\0CR\x02\0", "CR2"),
        (b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom", "CR3"),
    ],
)
@pytest.mark.parametrize("suffix", [".jpg", ".raw"])
def test_camera_raw_with_a_signature_is_refused_by_name(tmp_path, start, kind, suffix):
    with pytest.raises(InputError, match=rf"is a camera RAW file \({kind}\): develop it first"):
        open_photo(written(tmp_path / f"a{suffix}", start + bytes(200)))


# ---------------------------------------------------------------------- primary picture


def test_the_first_frame_of_several_is_taken(tmp_path):
    other = PIL.Image.eval(gradient(), lambda level: 255 - level)
    for name in ("a.gif", "a.png", "a.webp", "a.avif", "a.mpo"):
        gradient().save(tmp_path / name, save_all=True, append_images=[other])
        photo = open_photo(tmp_path / name)
        assert photo.notes[0] == "the first of several frames was taken"
        assert_close(photo.image, gradient(), levels=8)
    gradient().save(tmp_path / "a.tif", save_all=True, append_images=[other.copy()])
    assert open_photo(tmp_path / "a.tif").notes == ("the first of several pages was taken",)
    with PIL.Image.open(tmp_path / "a.gif") as image:
        image.seek(1)
        photo = open_photo(image)
    assert photo.notes[0] == "one of several frames was taken"
    assert_close(photo.image, other, levels=8)


@pytest.mark.parametrize(
    ("pages", "level", "note"),
    [
        ([page(1200, 800, 90), page(160, 120, 20, THUMBNAIL)], 90, None),
        ([page(160, 120, 20, THUMBNAIL), page(1200, 800, 90)], 90, "page 2 of the TIFF"),
        ([page(160, 120, 20, {255: 2}), page(1200, 800, 90)], 90, "page 2 of the TIFF"),
        ([page(160, 120, 20, {254: 4}), page(1200, 800, 90)], 90, "page 2 of the TIFF"),
        ([page(150, 100, 20), page(1200, 800, 90)], 90, "page 2 of the TIFF"),  # a thumbnail that is not marked
        ([page(150, 100, 20), page(600, 400, 50), page(1200, 800, 90)], 90, "page 3 of the TIFF"),
        ([page(150, 100, 20), page(900, 600, 50), page(1200, 800, 90)], 90, "page 3 of the TIFF"),
        ([page(150, 100, 20), page(800, 1200, 90)], 20, "the first of several pages"),  # of another shape
        ([page(1200, 800, 90, {254: 2}), page(1200, 800, 20, {254: 2})], 90, "the first of several pages"),
        ([page(1200, 800, 90, None, page(600, 400, 20, THUMBNAIL))], 90, None),  # a pyramid
    ],
)
def test_the_full_size_page_of_a_tiff_is_the_photo(tmp_path, pages, level, note):
    path = written(tmp_path / "a.tif", tiff(*pages))
    photo = open_photo(path)
    assert photo.image.getpixel((0, 0)) == (level,) * 3
    assert photo.image.size == upright_size_px(path)
    about = [text for text in photo.notes if "TIFF" in text or "pages" in text]
    assert about == [] if note is None else about[0].startswith(note)


def test_a_tiff_of_reduced_pictures_alone_is_refused(tmp_path):
    path = written(tmp_path / "a.tif", tiff(page(160, 120, 20, THUMBNAIL, FULL)))
    with pytest.raises(InputError, match="only reduced pictures"):
        open_photo(path)


@pytest.mark.parametrize("tags", [{}, THUMBNAIL])
def test_pages_are_not_counted(tmp_path, tags):
    count = 100_000
    entries = {256: 500, 257: 64, 258: 8, 259: 1, 262: 1, 277: 1, 278: 64, 279: 500 * 64} | tags
    size = 2 + 12 * (len(entries) + 1) + 4
    content = bytearray(b"II*\0\x08\0\0\0")
    for number in range(count):
        content += struct.pack("<H", len(entries) + 1)
        for tag, value in sorted((entries | {273: 8 + count * size}).items()):
            content += struct.pack("<HHII", tag, 4, 1, value)
        content += struct.pack("<I", 8 + (number + 1) * size if number < count - 1 else 0)
    path = written(tmp_path / "a.tif", bytes(content) + bytes(500 * 64))
    tracemalloc.start()
    started = time.process_time()
    if tags:
        with pytest.raises(InputError, match="only reduced pictures"):
            open_photo(path)
    else:
        assert open_photo(path).notes[0] == "the first of several pages was taken"
    assert time.process_time() - started < 1
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_big_tiff_and_its_pages(tmp_path):
    gradient().save(tmp_path / "a.tif", big_tiff=True)
    assert (tmp_path / "a.tif").read_bytes()[:4] == b"II+\0"
    assert_close(open_photo(tmp_path / "a.tif").image, gradient())
    gradient(600, 400).save(tmp_path / "b.tif", big_tiff=True, tiffinfo={254: 1})
    with pytest.raises(InputError, match="only reduced pictures"):
        open_photo(tmp_path / "b.tif")


def test_many_tags_that_name_the_same_bytes_are_not_read(tmp_path):
    blob, count = 1_000_000, 5000
    entries = b"".join(struct.pack("<HHII", tag, 7, blob, 8) for tag in range(1000, 1000 + count))
    content = b"II*\0" + struct.pack("<I", 8 + blob) + bytes(blob) + struct.pack("<H", count) + entries + bytes(4)
    started = time.process_time()
    with pytest.raises(InputError, match="damaged .* more values than its file holds"):
        open_photo(written(tmp_path / "a.tif", content))
    assert time.process_time() - started < 1


# ---------------------------------------------------------------------- HEIC


def heic(path, image, **options):
    pillow_heif.from_pillow(image).save(path, quality=95, chroma=444, **options)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
def test_heic_is_turned_once(tmp_path, orientation):
    image = gradient()
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    exif.get_ifd(0x8769)[0x829D] = 2.8
    # The writer states the turn twice, in EXIF and as `irot` and `imir`, beside the pixels as they are.
    path = heic(tmp_path / "a.heic", gradient(), exif=exif.tobytes())
    image.info["exif"] = exif.tobytes()
    assert (b"irot" in path.read_bytes() or b"imir" in path.read_bytes()) == (orientation != 1)
    upright = PIL.ImageOps.exif_transpose(image)
    upright.info = {}
    photo = open_photo(path)
    assert_close(photo.image, upright)
    assert upright_size_px(path) == upright.size and photo.notes == ()
    camera = read_camera(photo)
    assert camera.f_number.value == pytest.approx(2.8)
    assert (camera.image_width_px, camera.image_height_px) == upright.size


def test_heic_orientation_in_exif_alone_counts_for_nothing(tmp_path):
    image = gradient()
    heif = pillow_heif.from_pillow(image)
    path = tmp_path / "a.heic"
    heif.save(path, quality=95, exif=piexif.dump({"0th": {piexif.ImageIFD.Orientation: 1}}))
    content = path.read_bytes()
    short = struct.pack(">HHIHH", 0x0112, 3, 1, 1, 0)
    assert content.count(short) == 1 and b"irot" not in content
    path.write_bytes(content.replace(short, struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)))
    assert_close(open_photo(path).image, image)
    assert upright_size_px(path) == image.size


def test_the_primary_item_of_a_heic_is_the_photo(tmp_path):
    heif = pillow_heif.from_pillow(PIL.Image.new("RGB", (64, 64), "red"))
    heif.add_from_pillow(gradient(160, 128))
    heif.save(tmp_path / "a.heic", primary_index=1)
    photo = open_photo(tmp_path / "a.heic")
    assert photo.notes == ("the primary one of several pictures was taken",)
    assert_close(photo.image, gradient(160, 128), levels=8)


def test_heic_of_10_bits_and_with_transparency(tmp_path):
    levels = np.asarray(gradient()).astype(np.uint16) * 257
    pillow_heif.from_bytes("RGB;16", (96, 64), levels.tobytes()).save(tmp_path / "ten.heic", quality=95)
    photo = open_photo(tmp_path / "ten.heic")
    assert photo.notes == ("10 bits a channel were reduced to 8",)
    assert_close(photo.image, gradient())

    clear = gradient().convert("RGBA")
    clear.putalpha(PIL.Image.new("L", clear.size, 0))
    photo = open_photo(heic(tmp_path / "clear.heic", clear))
    assert photo.notes == ("transparency was composited over white",)
    assert np.asarray(photo.image).min() > 250


def test_damaged_heic_gets_one_sentence(tmp_path):
    content = heic(tmp_path / "a.heic", gradient()).read_bytes()
    rng = np.random.default_rng(5)
    refused = 0
    for share in (0.02, 0.3, 0.9, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1):
        damaged = bytearray(content[: int(len(content) * share)])
        for position in rng.integers(0, len(damaged), 6 if share == 1 else 0):
            damaged[position] = rng.integers(0, 256)
        path = written(tmp_path / "b.heic", damaged)
        try:
            assert open_photo(path).image.mode == "RGB"
        except InputError as error:
            refused += 1
            assert "\n" not in str(error) and str(error).startswith("photo 'b.heic'")
    assert refused >= 3


def test_large_heic_is_refused_from_its_header(tmp_path):
    path = heic(tmp_path / "a.heic", gradient())
    with pytest.raises(InputError, match="96 x 64 pixels; at most 6,000"):
        open_photo(path, max_pixels=6000)


def test_reading_heic_registers_nothing_with_pil(tmp_path):
    path = heic(tmp_path / "a.heic", gradient())
    code = (
        "import sys, PIL.Image, bokehdepth.files.photos as imaging; print('pi_heif' in sys.modules);"
        f"imaging.open_photo({str(path)!r}); PIL.Image.init(); print('HEIF' in PIL.Image.OPEN)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.split() == ["False", "False"]


# ---------------------------------------------------------------------- orientation


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.avif", "a.tif"])
def test_an_orientation_that_only_xmp_states_is_named_and_not_applied(tmp_path, name):
    path = tmp_path / name
    if name == "a.png":
        text = PngImagePlugin.PngInfo()
        text.add_itxt("XML:com.adobe.xmp", XMP_6.decode())
        gradient().save(path, pnginfo=text)
    elif name == "a.tif":
        gradient().save(path, tiffinfo={700: XMP_6})
    else:
        gradient().save(path, xmp=XMP_6)
    photo = open_photo(path)
    assert_close(photo.image, gradient(), levels=8)
    note = "the orientation 6 was not applied, as in browsers: XMP states it and EXIF does not"
    assert photo.notes == (note,) and upright_size_px(path) == (96, 64)
    with PIL.Image.open(path) as image:
        camera = read_camera(image)
        assert (camera.image_width_px, camera.image_height_px) == (96, 64) == open_photo(image).image.size
    # EXIF decides where both speak.
    if name != "a.tif":
        gradient().save(path, exif=EXIF_6, xmp=XMP_6.replace(b'"6"', b'"3"'))
        photo = open_photo(path)
        assert photo.image.size == upright_size_px(path) == (64, 96)
        assert photo.notes == ("the EXIF orientation 6 was applied",)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.avif", "a.tif"])
def test_a_turned_photo_in_a_manifest_has_the_size_as_seen(tmp_path, name):
    path, depth_path = tmp_path / name, tmp_path / "depth.npy"
    gradient(60, 90).save(path, exif=EXIF_6)
    assert open_photo(path).image.size == upright_size_px(path) == (90, 60)
    assert picture_size(path) == (60, 90)
    np.save(depth_path, np.full((60, 90), 2.0, np.float32))
    row = ManifestRow("a", "scene", image_path=path, depth_path=depth_path, depth_unit="m", depth_scale=1.0)
    assert read_depth(row).shape == (60, 90)
    np.save(depth_path, np.full((90, 60), 2.0, np.float32))
    with pytest.raises(InputError, match=r"wanted the photo's \(60, 90\) px"):
        read_depth(row)
