import csv
import json
import math
import random

import numpy as np
import piexif
import PIL.Image
import pytest

from bokehdepth.camera import lens as optics
from bokehdepth.camera import read_camera
from bokehdepth.camera.exif import read_exif
from bokehdepth.errors import InputError

EXIF = piexif.ExifIFD


def picture(size=(600, 400), orientation=None, **tags):
    """A picture whose EXIF piexif wrote, reread through its JPEG bytes' EXIF block."""
    directory = {getattr(EXIF, name): value for name, value in tags.items()}
    zeroth = {} if orientation is None else {piexif.ImageIFD.Orientation: orientation}
    image = PIL.Image.new("RGB", size)
    image.info["exif"] = piexif.dump({"0th": zeroth, "Exif": directory})
    return image


FULL_LENS = {"FNumber": (18, 10), "FocalLength": (50, 1), "FocalLengthIn35mmFilm": 75, "SubjectDistance": (25, 10)}


def test_everything_read():
    camera = read_camera(picture(**FULL_LENS))
    assert camera.f_number.value == pytest.approx(1.8) and camera.f_number.source == "read"
    assert camera.focal_length_mm.value == 50 and camera.focal_length_mm.source == "read"
    assert camera.focal_length_35mm.value == 75 and camera.focal_length_35mm.source == "read"
    assert camera.focus_distance_m.value == 2.5 and camera.focus_distance_m.source == "read"
    assert camera.sensor_width_mm.value == pytest.approx(24.0, abs=0.01) and camera.sensor_width_mm.source == "derived"
    assert camera.focal_length_px.value == pytest.approx(50 / 24.0 * 600, rel=1e-3)
    assert camera.assumptions() == [] and camera.notes == ()
    assert (camera.image_width_px, camera.image_height_px) == (600, 400)


def test_strength_and_its_inverse_are_those_of_optics():
    camera = read_camera(picture(**FULL_LENS))
    width_mm = camera.sensor_width_mm.value
    assert camera.bokeh_strength() == pytest.approx(optics.bokeh_strength(50, 1.8, 2.5, width_mm))
    assert camera.bokeh_strength(4.0) == pytest.approx(optics.bokeh_strength(50, 4.0, 2.5, width_mm))
    assert camera.f_number_for(camera.bokeh_strength(4.0)) == pytest.approx(4.0)
    with pytest.raises(InputError, match="^f_number must be"):
        camera.bokeh_strength(0)


def test_intrinsics_are_known_only_with_a_focal_length_that_is_not_assumed():
    assert read_camera(picture()).known_intrinsics is None
    camera = read_camera(picture(), focal_length_35mm=50.0)
    assert np.array_equal(camera.known_intrinsics, camera.intrinsics)


def test_intrinsics_are_those_of_a_pinhole_at_the_centre():
    camera = read_camera(picture(**FULL_LENS))
    intrinsics = camera.intrinsics
    assert intrinsics.shape == (3, 3) and intrinsics.dtype == np.float64
    # A point that the sensor's edge sees at its half field of view falls on the image's edge.
    half_width = camera.sensor_width_mm.value / 2 / camera.focal_length_mm.value
    x, y, w = intrinsics @ np.array([half_width, 0.0, 1.0])
    assert (x / w, y / w) == (pytest.approx(600), pytest.approx(200))


def test_nothing_known_is_all_assumed_and_said_so():
    camera = read_camera(PIL.Image.new("RGB", (600, 400)))
    values = camera._lens_values
    assert {value.source for value in values.values()} == {"assumed"}
    assert values["focal_length_35mm"].value == 28 and values["focal_length_mm"].value == pytest.approx(28)
    assert values["sensor_width_mm"].value == pytest.approx(36, abs=5e-3)
    assert values["f_number"].value == 2.8 and values["focus_distance_m"].value == 2.0
    sentences = camera.assumptions()
    for name in values:
        assert sum(f"{name} = " in sentence for sentence in sentences) == 1
    assert all(sentence.endswith(".") for sentence in sentences)


def test_an_unknown_sensor_is_never_larger_than_a_full_frame():
    short = read_camera(picture(FocalLength=(8, 1)))
    assert short.focal_length_35mm.value == 28 and short.sensor_width_mm.value == pytest.approx(36 * 8 / 28, rel=1e-3)
    long = read_camera(picture(FocalLength=(200, 1)))
    assert long.sensor_width_mm.value == pytest.approx(36, rel=1e-3) and long.sensor_width_mm.source == "assumed"
    assert long.focal_length_mm.source == "read" and long.focus_distance_m.value == 2.0


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_orientation_swaps_the_axes(orientation):
    camera = read_camera(picture(orientation=orientation, **FULL_LENS))
    assert (camera.image_width_px, camera.image_height_px) == (400, 600)
    assert camera.sensor_width_mm.value == pytest.approx(16.0, abs=0.01)
    assert camera.focal_length_px.value == pytest.approx(read_camera(picture(**FULL_LENS)).focal_length_px.value)
    assert camera.intrinsics[0, 2] == 200 and camera.intrinsics[1, 2] == 300


PLANE = {"PixelXDimension": 6000, "PixelYDimension": 4000, "FocalLength": (50, 1)}


@pytest.mark.parametrize(("unit", "unit_mm"), [(None, 25.4), (2, 25.4), (3, 10.0), (4, 1.0)])
def test_focal_plane_resolution_in_every_unit_and_of_a_resized_picture(unit, unit_mm):
    per_unit = round(6000 / 22.3 * unit_mm * 1000), 1000  # a sensor 22.3 mm wide
    tags = {**PLANE, "FocalPlaneXResolution": per_unit, "FocalPlaneYResolution": per_unit}
    if unit is not None:
        tags["FocalPlaneResolutionUnit"] = unit
    camera = read_camera(picture((600, 400), **tags))
    assert camera.sensor_width_mm.value == pytest.approx(22.3, rel=1e-4)
    assert camera.sensor_width_mm.source == "derived" and camera.focal_length_px.source == "derived"
    assert camera.focal_length_px.value == pytest.approx(50 / 22.3 * 600, rel=1e-4)


def test_focal_plane_axes_follow_the_orientation_and_a_turn_by_software():
    tags = {**PLANE, **resolution(250)}  # 24 mm along x, 16 mm along y
    assert read_camera(picture((600, 400), **tags)).sensor_width_mm.value == pytest.approx(24)
    assert read_camera(picture((600, 400), orientation=6, **tags)).sensor_width_mm.value == pytest.approx(16)
    assert read_camera(picture((400, 600), **tags)).sensor_width_mm.value == pytest.approx(16)


def resolution(per_mm_x, per_mm_y=None):
    """Focal-plane resolution in pixels per mm."""
    per_mm = {"X": per_mm_x, "Y": per_mm_x if per_mm_y is None else per_mm_y}
    tags = {f"FocalPlane{axis}Resolution": (round(1000 * value), 1000) for axis, value in per_mm.items()}
    return {**tags, "FocalPlaneResolutionUnit": 4}


def model(image, make, name):
    """The same picture by a known camera."""
    tags = piexif.load(image.info["exif"])
    tags["0th"] |= {piexif.ImageIFD.Make: make, piexif.ImageIFD.Model: name}
    image.info["exif"] = piexif.dump(tags)
    return image


def test_a_wrong_focal_plane_resolution_loses_against_the_cameras_model():
    # A Canon 6D Mark II: its firmware states 6673.8 and 6720.5 pixels an inch where 4415 are true.
    tags = {"PixelXDimension": 6240, "PixelYDimension": 4160, "FocalLength": (50, 1), "FNumber": (8, 1)}
    tags |= {"FocalPlaneXResolution": (66738, 10), "FocalPlaneYResolution": (672052, 100)}
    image = model(picture((624, 416), **tags), "Canon", "Canon EOS 6D Mark II")
    camera = read_camera(image, focus_distance_m=1.8)
    assert camera.sensor_width_mm.value == pytest.approx(35.9, abs=0.01)
    assert camera.focal_length_px.value == pytest.approx(869, abs=0.5)
    assert camera.bokeh_strength() == pytest.approx(2.29, abs=0.005)
    assert any("differ by 0.7%" in note for note in camera.notes)
    # Square pixels do not make it right.
    tags |= {"FocalPlaneYResolution": (66738, 10)}
    square = read_camera(model(picture((624, 416), **tags), "Canon", "Canon EOS 6D Mark II"))
    assert square.sensor_width_mm.value == pytest.approx(35.9, abs=0.01)
    assert any("23.7 mm wide where the camera's model gives 35.9 mm" in note for note in square.notes)


@pytest.mark.parametrize("name", [None, "Canon EOS 7D"])
def test_counts_rewritten_beside_a_kept_resolution(name):
    tags = {"PixelXDimension": 1200, "PixelYDimension": 800, "FocalLength": (50, 1)}
    tags |= {"FocalPlaneXResolution": (57155457, 10000), "FocalPlaneYResolution": (58084034, 10000)}
    image = picture((1200, 800), **tags)
    camera = read_camera(image if name is None else model(image, "Canon", name), f_number=8, focus_distance_m=1.8)
    assert any("differ by 1.6%" in note for note in camera.notes)
    if name is None:
        assert camera.sensor_width_mm.source == "assumed" and camera.bokeh_strength() < 4
    else:
        assert camera.sensor_width_mm.source == "derived"
        assert camera.sensor_width_mm.value == pytest.approx(22.3, abs=0.1)


def test_focal_plane_resolution_by_itself_is_marked_as_unconfirmed():
    counts = {"PixelXDimension": 1600, "PixelYDimension": 1200, "FocalLength": (58, 10)}
    alone = read_camera(picture((640, 480), **counts, **resolution(281)))
    assert alone.sensor_width_mm.value == pytest.approx(1600 / 281) and alone.sensor_width_mm.source == "derived"
    assert "unconfirmed" in alone.sensor_width_mm.note and "5.69 mm wide is unconfirmed" in alone.notes[0]
    known = read_camera(picture((640, 480), **counts, **resolution(281), FocalLengthIn35mmFilm=35))
    assert known.sensor_width_mm.value == pytest.approx(1600 / 281) and known.notes == ()
    assert "confirmed by the 35 mm equivalent" in known.sensor_width_mm.note
    body = {**PLANE, **resolution(6000 / 22.2)}
    canon = read_camera(model(picture(**body), "Canon", "Canon EOS 350D DIGITAL"))
    assert canon.sensor_width_mm.value == pytest.approx(22.2, rel=1e-4) and canon.notes == ()


@pytest.mark.parametrize(
    ("name", "width_mm"),
    [
        ("Canon EOS-1Ds Mark III", 35.9),
        ("Canon EOS-1D X", 35.9),
        ("Canon EOS-1D Mark IV", 28.05),
        ("Canon EOS 5D Mark IV", 35.9),
        ("Canon EOS R", 35.9),
        ("Canon EOS RP", 35.9),
        ("Canon EOS R6m2", 35.9),
        ("Canon EOS R7", 22.3),
        ("Canon EOS R10", 22.3),
        ("Canon EOS R100", 22.3),
        ("Canon EOS REBEL T3i", 22.3),
        ("Canon EOS Kiss X7", 22.3),
        ("Canon EOS DIGITAL REBEL XT", 22.3),
        ("Canon EOS 50D", 22.3),
        ("Canon EOS 7D", 22.3),
        ("Canon EOS 1000D", 22.3),
        ("Canon EOS M50m2", 22.3),
        ("Canon PowerShot G2", None),
        ("E-P3", None),  # by its name alone, without its maker
    ],
)
def test_sensors_of_known_models(name, width_mm):
    camera = read_camera(model(picture(FocalLength=(50, 1)), "Canon", name))
    if width_mm is None:
        assert camera.sensor_width_mm.source == "assumed"
    else:
        assert camera.sensor_width_mm.value == pytest.approx(width_mm, abs=0.06)


def test_a_known_sensor_under_a_frame_of_another_shape_and_of_four_thirds():
    pen = model(picture((640, 480), FocalLength=(17, 1)), "OLYMPUS IMAGING CORP.", "E-P3")
    assert read_camera(pen).sensor_width_mm.value == pytest.approx(17.3, abs=0.05)
    bridge = model(picture((640, 480), FocalLength=(9, 1)), "OLYMPUS OPTICAL CO.,LTD", "E-10")
    assert read_camera(bridge).sensor_width_mm.source == "assumed"
    square = model(picture((400, 400), FocalLength=(50, 1)), "Canon", "Canon EOS 5D")
    assert read_camera(square).sensor_width_mm.value == pytest.approx(24, abs=0.05)
    upright = model(picture((600, 400), orientation=8, FocalLength=(50, 1)), "Canon", "Canon EOS 5D")
    assert read_camera(upright).sensor_width_mm.value == pytest.approx(23.93, abs=0.05)
    # A panorama is wider than any frame that its counts describe.
    counts = {"PixelXDimension": 600, "PixelYDimension": 400, "FocalLength": (50, 1)}
    assert read_camera(model(picture((3000, 400), **counts), "Canon", "Canon EOS 5D")).sensor_width_mm.source == (
        "assumed"
    )


def test_a_35mm_equivalent_that_fits_no_sensor_is_set_aside():
    camera = read_camera(picture(FocalLength=(4, 1), FocalLengthIn35mmFilm=400))
    assert camera.focal_length_35mm.source == "assumed" and "0.36 mm long" in camera.notes[0]


def test_digital_zoom_is_named_where_the_field_of_view_depends_on_it():
    tags = {"FocalLength": (415, 100), "FocalLengthIn35mmFilm": 57, "DigitalZoomRatio": (197, 100)}
    camera = read_camera(picture((640, 480), **tags))
    assert camera.focal_length_35mm.value == 57 and any("DigitalZoomRatio is 1.97" in note for note in camera.notes)


def test_a_crop_sees_a_part_of_the_sensor():
    tags = {
        **PLANE,
        "FocalPlaneXResolution": (250, 1),
        "FocalPlaneYResolution": (250, 1),
        "FocalPlaneResolutionUnit": 4,
    }
    whole = read_camera(picture((600, 400), **tags))
    square = read_camera(picture((400, 400), **tags))
    assert whole.sensor_width_mm.value == pytest.approx(24) and square.sensor_width_mm.value == pytest.approx(16)
    assert square.focal_length_px.value == pytest.approx(whole.focal_length_px.value)
    # The same from the 35 mm equivalent, which describes the whole frame.
    tags = {**PLANE, "FocalLengthIn35mmFilm": 75}
    whole, square = read_camera(picture((600, 400), **tags)), read_camera(picture((400, 400), **tags))
    assert square.focal_length_px.value == pytest.approx(whole.focal_length_px.value)
    assert square.focal_length_35mm.source == "derived" and square.focal_length_35mm.value > 75


def test_stale_focal_plane_counts_lose_against_the_35mm_equivalent():
    tags = {"FocalPlaneXResolution": (250, 1), "FocalPlaneYResolution": (250, 1), "FocalPlaneResolutionUnit": 4}
    counts = {"PixelXDimension": 1200, "PixelYDimension": 800}
    camera = read_camera(picture((1200, 800), **tags, **counts, FocalLength=(50, 1), FocalLengthIn35mmFilm=75))
    assert camera.sensor_width_mm.value == pytest.approx(24, rel=1e-3)
    assert any("4.8 mm" in note for note in camera.notes)


def test_absurd_sensors_and_unknown_counts_are_set_aside():
    tags = {"FocalPlaneXResolution": (250, 1), "FocalPlaneYResolution": (250, 1), "FocalPlaneResolutionUnit": 4}
    tiny = read_camera(picture(**tags, PixelXDimension=300, PixelYDimension=200, FocalLength=(50, 1)))
    assert tiny.sensor_width_mm.source == "assumed" and "1.2 mm" in tiny.notes[0]
    uncounted = read_camera(picture(**tags, FocalLength=(50, 1)))
    assert uncounted.sensor_width_mm.source == "assumed" and "unknown number of pixels" in uncounted.notes[0]


@pytest.mark.parametrize(
    ("raw", "value", "source"),
    [
        ((25, 10), 2.5, "read"),
        ((0, 10), 2.0, "assumed"),
        ((0xFFFFFFFF, 1), math.inf, "read"),
        ((0xFFFFFFFF, 10), math.inf, "read"),
        ((0xFFFFFFFF, 0), math.inf, "read"),
        ((0, 0), 2.0, "assumed"),
        ((30, 1000), 2.0, "assumed"),  # within the focal length of 50 mm
    ],
)
def test_subject_distance(raw, value, source):
    camera = read_camera(picture(FocalLength=(50, 1), SubjectDistance=raw))
    assert (camera.focus_distance_m.value, camera.focus_distance_m.source) == (value, source)


def test_aperture_value_stands_in_for_a_missing_f_number():
    camera = read_camera(picture(ApertureValue=(4, 1)))
    assert camera.f_number.value == pytest.approx(4.0) and camera.f_number.source == "derived"
    assert read_camera(picture(ApertureValue=(0, 1))).f_number.source == "assumed"


@pytest.mark.parametrize(
    "tags",
    [
        {"FNumber": (0, 1)},
        {"FNumber": (0, 0)},
        {"FNumber": (9999, 1)},
        {"FocalLength": (0, 0)},
        {"FocalLength": (0, 5)},
        {"FocalLengthIn35mmFilm": 0},
        {"FocalLengthIn35mmFilm": 65535},
    ],
)
def test_absurd_tags_count_as_absent(tags):
    camera = read_camera(picture(**tags))
    assert {value.source for value in camera._lens_values.values()} == {"assumed"}


def test_text_where_a_number_belongs_counts_as_absent():
    image = PIL.Image.new("RGB", (600, 400))
    exif = image.getexif()
    exif.get_ifd(0x8769).update(
        {EXIF.FNumber: "f/2.8", EXIF.FocalLength: b"\x00\x01", EXIF.FocalLengthIn35mmFilm: (1, 2)}
    )
    camera = read_camera(image)
    assert camera.f_number.source == camera.focal_length_mm.source == camera.focal_length_35mm.source == "assumed"
    assert sum("holds no number" in note for note in camera.notes) == 3


def test_given_values_win_and_stay_consistent():
    image = picture(**FULL_LENS)
    camera = read_camera(image, f_number=4, focus_distance_m=1.0, focal_length_mm=100)
    assert camera.f_number.source == camera.focus_distance_m.source == camera.focal_length_mm.source == "given"
    assert camera.sensor_width_mm.value == pytest.approx(24, abs=0.01)  # a property of the camera, not of the lens
    assert camera.focal_length_35mm.value == pytest.approx(150, abs=0.1)

    in_px = read_camera(image, focal_length_px=900)
    assert in_px.focal_length_px.value == 900 and in_px.focal_length_px.source == "given"
    assert in_px.focal_length_mm.value == 50 and in_px.sensor_width_mm.value == pytest.approx(50 * 600 / 900)

    in_35mm = read_camera(PIL.Image.new("RGB", (600, 400)), focal_length_35mm=50, sensor_width_mm=6)
    assert in_35mm.focal_length_35mm.value == 50 and in_35mm.focal_length_35mm.source == "given"
    assert in_35mm.focal_length_mm.value == pytest.approx(50 / 6, rel=1e-3)
    assert in_35mm.focal_length_mm.source == in_35mm.focal_length_px.source == "derived"

    for case in (camera, in_px, in_35mm):
        expected_px = case.focal_length_mm.value / case.sensor_width_mm.value * case.image_width_px
        assert case.focal_length_px.value == pytest.approx(expected_px, rel=1e-12)
        crop = optics.crop_factor(case.focal_length_mm.value, case.focal_length_35mm.value)
        diagonal_mm = case.sensor_width_mm.value * math.hypot(600, 400) / 600
        assert diagonal_mm * crop == pytest.approx(optics.FULL_FRAME_DIAGONAL_MM, rel=1e-12)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"f_number": 0}, "^f_number must be"),
        ({"focal_length_mm": math.nan}, "^focal_length_mm must be"),
        ({"sensor_width_mm": math.inf}, "^sensor_width_mm must be"),
        ({"focus_distance_m": "2"}, "^focus_distance_m must be"),
        ({"focus_distance_m": 0.04}, "^focus_distance_m must be greater than the focal length"),
        ({"focal_length_px": 500, "focal_length_35mm": 28}, "both state the field of view"),
        ({"focal_length_px": 500, "focal_length_mm": 28, "sensor_width_mm": 36}, "at most two of the three"),
    ],
)
def test_wrong_or_contradicting_given_values_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        read_camera(picture(**FULL_LENS), **given)


def test_to_dict_is_strict_json():
    camera = read_camera(picture(FocalLength=(50, 1), SubjectDistance=(0xFFFFFFFF, 1)))
    record = json.loads(json.dumps(camera.to_dict(), allow_nan=False))
    assert record["focus_distance_m"] == {
        "value": "infinity",
        "source": "read",
        "note": camera.focus_distance_m.note,
    }
    assert record["focal_length_mm"]["value"] == 50 and np.shape(record["intrinsics"]) == (3, 3)
    assert math.isfinite(camera.bokeh_strength())


@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Truncated File", "ignore:Metadata Warning")
def test_damaged_exif_never_crashes():
    good = picture(
        orientation=6, **FULL_LENS, **{name: value for name, value in PLANE.items() if name != "FocalLength"}
    )
    block = good.info["exif"]
    rng = random.Random(0)
    unreadable = 0
    for _ in range(600):
        damaged = bytearray(block)
        for _ in range(rng.randint(1, 12)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        image = PIL.Image.new("RGB", (600, 400))
        image.info["exif"] = bytes(damaged[: rng.randint(8, len(damaged))])
        unreadable += read_exif(image) is None
        assert read_camera(image).bokeh_strength() > 0
    assert unreadable > 10


@pytest.mark.data
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_real_photos_agree_with_the_reference_table(data_root):
    rows = list(csv.DictReader((data_root / "exif" / "index.csv").open()))
    # Focal-plane tags left by an editor (they give a sensor of 1.3 to 2.0 mm), and one crop whose 35 mm
    # equivalent the table applies to the cropped picture as it is.
    expected = {
        "me_canon_ixus_v3.jpg",
        "me_canon_powershot_g2_3.jpg",
        "me_fujifilm_finepix_a303.jpg",
        "me_konica_q_m100_1.jpg",
        "me_nikon_d60.jpg",
        # Canon bodies whose sensor, 22.3 mm wide, is known: their focal-plane resolution gives 30.8 and 23.0 mm.
        "me_canon_eos_20d_1.jpg",
        "me_canon_eos_20d_3.jpg",
        "me_canon_eos_rebel_t3i.jpg",
    }
    compared, differing = 0, set()
    for row in rows:
        with PIL.Image.open(data_root / "exif" / row["file"]) as image:
            camera = read_camera(image)
        assert camera.f_number.value == pytest.approx(float(row["f_number"]), abs=0.01)
        assert camera.focal_length_mm.value == pytest.approx(float(row["focal_mm"]), abs=0.01)
        if row["subject_distance_m"]:
            assert camera.focus_distance_m.value == pytest.approx(float(row["subject_distance_m"]), abs=0.01)
        if row["focal_px_resized"]:
            compared += 1
            if abs(camera.focal_length_px.value / float(row["focal_px_resized"]) - 1) > 0.01:
                differing.add(row["file"].split("/")[-1])
    assert len(rows) == 154 and compared == 96
    assert differing == expected


@pytest.mark.data
def test_original_and_resized_photo_have_the_same_field_of_view(data_root):
    folder = data_root / "exif"
    compared = 0
    for row in csv.DictReader((folder / "index.csv").open()):
        if not row["original"]:
            continue
        with PIL.Image.open(folder / row["file"]) as image:
            small = read_camera(image)
        with PIL.Image.open(folder / row["original"]) as image:
            large = read_camera(image)
        if image.size[0] > image.size[1] and large.focal_length_px.source != "assumed":
            compared += 1
            ratio = (small.focal_length_px.value / small.image_width_px) / (
                large.focal_length_px.value / large.image_width_px
            )
            assert ratio == pytest.approx(1, abs=0.01), row["file"]
    assert compared >= 10
