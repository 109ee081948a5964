"""Brackets that contradict themselves are refused or named; sound ones with the faults of real cameras are not."""

import re

import numpy as np
import piexif
import PIL.Image
import pytest
import skimage.data
from scipy import ndimage

from bokehdepth.bracket_depth import LOW_CONFIDENCE
from bokehdepth.camera import read_camera
from bokehdepth.camera.lens import blur_radius_px
from bokehdepth.errors import InputError
from bokehdepth.files.depth_maps import load_depth_npz
from bokehdepth.rendering.disk import disk_blur
from bokehdepth.tasks.photo_job import plan_job, run_job

FOCUS_M, LEFT_M, RIGHT_M = 1.8, 2.5, 4.0
OWN, WIDER = 32.0, (8.0, 4.0, 2.0)
WIDTH_PX = 320
CAMERA = {"focal_length_mm": 85, "sensor_width_mm": 36, "focus_distance_m": FOCUS_M}


def exif(f_number=None, focal_mm=85, focus_m=FOCUS_M, model="One", lens="85 mm", time=(1, 100), iso=100):
    image = {piexif.ImageIFD.Make: "Maker", piexif.ImageIFD.Model: model}
    photo = {
        piexif.ExifIFD.FocalLength: (focal_mm, 1),
        piexif.ExifIFD.FocalLengthIn35mmFilm: focal_mm,
        piexif.ExifIFD.SubjectDistance: (round(1000 * focus_m), 1000),
        piexif.ExifIFD.LensModel: lens,
        piexif.ExifIFD.ExposureTime: time,
        piexif.ExifIFD.ISOSpeedRatings: iso,
    }
    if f_number is not None:
        photo[piexif.ExifIFD.FNumber] = (round(10 * f_number), 10)
        if time == (1, 100):  # as aperture priority exposes
            photo[piexif.ExifIFD.ExposureTime] = (round(10 * f_number**2), 100_000)
    return piexif.dump({"0th": image, "Exif": photo})


def scene(name="astronaut"):
    return np.ascontiguousarray(getattr(skimage.data, name)()[40:280, 100 : 100 + WIDTH_PX] / 255, dtype=np.float32)


def textured(picture):
    grey = picture.mean(axis=2, dtype=np.float64)
    spread = ndimage.uniform_filter(grey**2, 9) - ndimage.uniform_filter(grey, 9) ** 2
    return spread > 0.03**2


TEXTURED = textured(scene())


def strength(f_number):
    return read_camera(PIL.Image.new("RGB", (WIDTH_PX, 240)), **CAMERA).bokeh_strength(f_number)


def taken(picture, f_number, noise=0.003, gain=1.0, shift_px=(0, 0), focus_m=FOCUS_M):
    """A wall at 2.5 m on the left and one at 4 m on the right, through an 85 mm lens focused at 1.8 m."""
    frame = picture.copy()
    for part, depth_m in ((np.s_[:, : WIDTH_PX // 2], LEFT_M), (np.s_[:, WIDTH_PX // 2 :], RIGHT_M)):
        radius_px = blur_radius_px(strength(f_number), focus_m, depth_m, WIDTH_PX)
        frame[part] = disk_blur(picture, radius_px, gamma=2.2)[part]
    frame = np.clip(ndimage.shift(frame, (*shift_px, 0), order=3, mode="nearest"), 0, 1) * gain ** (1 / 2.2)
    noisy = frame + noise * np.random.default_rng(round(10 * f_number)).standard_normal(frame.shape)
    return PIL.Image.fromarray(np.rint(np.clip(noisy, 0, 1) * 255).astype(np.uint8))


@pytest.fixture(scope="module")
def pictures():
    return {f_number: taken(scene(), f_number) for f_number in (OWN, *WIDER)}


def saved(path, picture, tags=None):
    path.parent.mkdir(exist_ok=True)
    given = {"exif": tags} if tags else {}
    picture.save(path, **({"quality": 97, "subsampling": 0} if path.suffix == ".jpg" else {}), **given)
    return path


@pytest.fixture
def bracket(pictures, tmp_path):
    """The photo at f/32 and frames at f/8, f/4, f/2, with EXIF."""
    return [saved(tmp_path / f"f{n:g}.jpg", picture, exif(n)) for n, picture in pictures.items()]


@pytest.fixture
def bare(pictures, tmp_path):
    """The same without EXIF."""
    return [saved(tmp_path / "bare" / f"f{n:g}.png", picture) for n, picture in pictures.items()]


def plan(photo, frames, side="behind", **options):
    lens = {} if options.pop("by_exif", False) else CAMERA
    folder = photo.parent / "out"
    return plan_job(photo, folder, makes_stack=False, frame_paths=frames, sweep_side=side, **lens, **options)


def depth_of(job):
    done = run_job(None, job, arguments={}, weights={})
    depth_m = load_depth_npz(job.folder / "depth.npz").depth_m
    depth_m[:, 140:180] = np.nan  # the border of the walls
    confidence = np.asarray(PIL.Image.open(job.folder / "confidence.png"), dtype=float) / 255
    trusted = np.where(confidence >= LOW_CONFIDENCE, depth_m, np.nan)
    left_m, right_m = np.nanmedian(trusted[:, :140]), np.nanmedian(trusted[:, 180:])
    return left_m, right_m, np.mean((confidence >= LOW_CONFIDENCE)[TEXTURED]), done


def refused(words, *arguments, **options):
    with pytest.raises(InputError) as caught:
        plan(*arguments, **options)
    assert all(word in str(caught.value) for word in words), caught.value
    assert not (arguments[0].parent / "out").exists()


# --- labels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (2, 1, 0)])
def test_right_labels_in_any_order_give_metres_with_confidence(bracket, order):
    photo, frames = bracket[0], [bracket[1 + place] for place in order]
    job = plan(photo, frames, f_numbers=[WIDER[place] for place in order], by_exif=True)
    assert job.f_numbers == WIDER and job.frame_paths == tuple(bracket[1:]) and job.warnings == ()
    left_m, right_m, share, done = depth_of(job)
    assert left_m == pytest.approx(LEFT_M, rel=0.03) and right_m == pytest.approx(RIGHT_M, rel=0.05)
    # What JPEG adds to a texture counts as misfit.
    assert share > 0.5 and done.depth_details["contradiction"] < 0.05


def test_labels_that_exif_contradicts_are_refused(bracket):
    photo, *frames = bracket
    for side in ("behind", None):
        refused(["'f2.jpg'", "f/8,", "f/2,"], photo, frames[::-1], side, f_numbers=WIDER)
    (warning,) = plan(photo, frames, photo_f_number=22).warnings  # the caller corrects the photo's EXIF
    assert "'f32.jpg' counts as f/22" in warning and "f/32" in warning
    assert plan(photo, frames, f_numbers=(8.2, 4.1, 1.95)).f_numbers == (8.2, 4.1, 1.95)  # as numbers are rounded
    assert plan(photo, frames, photo_f_number=32.5).warnings == ()


def test_strengths_out_of_proportion_to_exif_are_refused(bracket):
    photo, *frames = bracket
    refused(["'f8.jpg'", "K = 5", "f/8", "'f4.jpg'", "K = 20", "f/4"], photo, frames, bokeh_strengths=(5, 20, 40))
    (warning,) = plan(photo, frames, bokeh_strengths=(20, 40, 80)).warnings  # in proportion, of another lens
    assert "'f8.jpg'" in warning and "K = 20" in warning and f"{strength(8):.3g}" in warning
    assert plan(photo, frames, bokeh_strengths=[strength(n) for n in WIDER]).warnings == ()


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ((2, 4, 8), "'f2.png' (f/8)|'f8.png' (f/2)"),
        ((4, 8, 2), "'f4.png' (f/8)|'f8.png' (f/4)"),
        ((8, 2, 4), "'f2.png' (f/4)|'f4.png' (f/2)"),
    ],
)
def test_blur_that_contradicts_the_order_of_labels_is_refused(bare, labels, names):
    """Files without EXIF; a network gets them with a sentence that names the frames."""
    photo, *frames = bare
    refused(
        ["blurred more than", *(names.split("|") if labels[1] != 4 else ["(f/8)"])], photo, frames, f_numbers=labels
    )
    options = {"f_numbers": labels} | CAMERA
    job = plan_job(photo, photo.parent / "net", makes_stack=False, frame_paths=frames, **options)
    assert any("blurred more than" in warning and ".png' (f/" in warning for warning in job.warnings)


def test_blur_out_of_proportion_is_named_and_lowers_the_confidence(bare):
    photo, *frames = bare
    job = plan(photo, frames, f_numbers=(8, 4, 1))
    assert job.warnings and all("'f2.png' (f/1)" in warning for warning in job.warnings)
    *_, share, done = depth_of(job)
    assert done.depth_details["contradiction"] > 0.2 and done.depth_details["warnings"] == list(job.warnings)
    assert share < 0.05


# --- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"focal_mm": 70}, ["a focal length of 70 mm", "a focal length of 85 mm"]),
        ({"focus_m": 2.4}, ["a focus at 2.4 m", "a focus at 1.8 m"]),
        ({"model": "Two"}, ["the camera 'Maker Two'", "the camera 'Maker One'"]),
    ],
)
def test_settings_that_contradict_the_photo_are_refused(bracket, pictures, change, words):
    photo, wide, middle, _ = bracket
    odd = saved(photo.parent / "odd.jpg", pictures[2.0], exif(**({"f_number": 2} | change)))
    for side in ("behind", None):
        refused(["'odd.jpg'", "'f32.jpg'", *words], photo, [wide, middle, odd], side)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"lens": "85 mm II"}, "'85 mm II'"), ({"time": (1, 400)}, "stops more"), ({"iso": 25}, "2.0 stops less")],
)
def test_odd_settings_are_named(bracket, pictures, change, words):
    photo, wide, middle, _ = bracket
    odd = saved(photo.parent / "odd.jpg", pictures[2.0], exif(2, **change))
    (warning,) = plan(photo, [wide, middle, odd]).warnings
    assert "'odd.jpg'" in warning and words in warning
    near = saved(photo.parent / "near.jpg", pictures[2.0], exif(2, focus_m=1.85, lens="85 MM"))
    assert plan(photo, [wide, middle, near]).warnings == ()


# --- pictures -----------------------------------------------------------------------------------------------------


def test_a_frame_given_twice_is_refused(bracket, bare):
    photo, *frames = bare
    copied = saved(photo.parent / "copy.tif", PIL.Image.open(frames[1]))
    refused(["'copy.tif'", "'f4.png'", "each frame once"], photo, [*frames, copied], bokeh_strengths=(5, 10, 20, 11))
    again = saved(photo.parent / "again.png", PIL.Image.open(photo))
    refused(["'again.png'", "the photo 'f32.png'"], photo, [*frames[:2], again], bokeh_strengths=(5, 10, 20))
    # Of exposures whose EXIF tells them apart, equal pixels are odd: where nothing is blurred, they may be.
    same = bracket[0].parent / "f11.jpg"
    piexif.insert(exif(11), str(bracket[0]), str(same))
    warnings = plan(bracket[0], [*bracket[1:], same]).warnings
    assert any(warning.startswith("frame 'f11.jpg' has the same pixels as 'f32.jpg'") for warning in warnings)


def test_the_photo_must_be_the_sharpest_frame(bracket, bare):
    sharp, wide, middle, blurred = bare
    refused(["sharper than the photo 'f2.png'"], blurred, [wide, middle, sharp], bokeh_strengths=(5, 10, 20))
    job = plan(blurred, [wide, middle, sharp], None, bokeh_strengths=(5, 10, 20))
    assert any("'f32.png'" in warning and "sharper than the photo" in warning for warning in job.warnings)
    refused(["must be the sharpest"], bracket[3], bracket[:3])
    narrow = saved(bracket[0].parent / "f45.jpg", PIL.Image.open(bracket[1]), exif(45))
    given = {"bokeh_strengths": [5, 28]}
    refused(["'f45.jpg'", "f/45,", "f/32,", "the sharpest"], bracket[0], [narrow, bare[1]], **given)
    warnings = plan(bracket[0], [narrow, bare[1]], None, **given).warnings
    assert any("'f45.jpg' is at f/45" in warning and "the photo at f/32" in warning for warning in warnings)


def test_a_frame_of_another_scene_is_refused(bare):
    photo, *frames = bare
    other = saved(photo.parent / "coffee.png", taken(scene("coffee"), 2))
    for side in ("behind", None):
        refused(["'coffee.png'", "scene of the photo"], photo, [*frames[:2], other], side, f_numbers=WIDER)


def test_a_camera_or_a_focus_that_moved_is_named(bare):
    photo, *frames = bare
    moved = saved(photo.parent / "moved.png", taken(scene(), 2, shift_px=(6, -8)))
    warnings = plan(photo, [*frames[:2], moved], f_numbers=WIDER).warnings
    found = re.fullmatch(r"frame 'moved.png' is shifted by about (\d+) px .*", warnings[0])
    assert 8 <= int(found[1]) <= 12  # 6 down and 8 to the left
    # The photo is focused on the wall at the left, the frame on that at the right.
    left = saved(photo.parent / "left.png", taken(scene(), 2.8, focus_m=LEFT_M))
    focused = saved(photo.parent / "focused.png", taken(scene(), 2, focus_m=RIGHT_M))
    warnings = plan(left, [focused], bokeh_strengths=[27]).warnings
    assert any("'focused.png'" in warning and "focus may have moved" in warning for warning in warnings)


@pytest.mark.parametrize(
    ("noise", "gains", "shift_px"),
    [(0.01, (1, 1, 1), 0), (0.003, (0.97, 1.03, 0.97), 0), (0.003, (1, 1, 1), 0.4), (0.003, (1.03, 0.97, 1), 1.3)],
)
def test_what_real_cameras_do_is_no_fault(tmp_path, noise, gains, shift_px):
    photo = saved(tmp_path / "photo.png", taken(scene(), OWN, noise))
    frames = [
        saved(tmp_path / f"f{n:g}.png", taken(scene(), n, noise, gain, (shift_px, -shift_px)))
        for n, gain in zip(WIDER, gains, strict=True)
    ]
    job = plan(photo, frames, f_numbers=WIDER, photo_f_number=OWN)
    assert job.warnings == ()
    left_m, right_m, share, done = depth_of(job)
    assert left_m == pytest.approx(LEFT_M, rel=0.05) and right_m == pytest.approx(RIGHT_M, rel=0.1)
    assert share > 0.75 and done.depth_details["contradiction"] < 0.1


def test_flat_and_tiny_pictures_contradict_nothing(tmp_path):
    for side_px in (32, 100):
        rng = np.random.default_rng(side_px)
        for name in ("photo", "a", "b"):
            grey = np.clip(128 + rng.standard_normal((side_px, side_px, 3)), 0, 255).astype(np.uint8)
            saved(tmp_path / f"{name}.png", PIL.Image.fromarray(grey))
        assert plan(tmp_path / "photo.png", [tmp_path / "a.png", tmp_path / "b.png"], f_numbers=(8, 4)).warnings == ()


# --- containers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "ending"),
    [
        ("RGBA", "png"),
        ("CMYK", "jpg"),
        ("CMYK", "tif"),
        ("RGB", "webp"),
        ("RGBA", "webp"),
        ("RGB", "tif"),
        ("P", "png"),
    ],
)
def test_one_reader_for_all_frames(bracket, pictures, mode, ending):
    """The f-number comes from EXIF in whatever container; the pixels are those of the photo's reader."""
    photo, frames = bracket[0], []
    for f_number in WIDER:
        path = photo.parent / f"{mode}{f_number:g}.{ending}"
        options = {"jpg": {"quality": 97, "subsampling": 0}, "webp": {"lossless": True}}.get(ending, {})
        pictures[f_number].convert(mode).save(path, exif=exif(f_number), **options)
        frames.append(path)
    job = plan(photo, frames, by_exif=True)
    assert job.f_numbers == WIDER and job.frame_paths == tuple(frames)
    refused([repr(frames[1].name), "f/8,", "f/4,"], photo, frames, f_numbers=(4, 8, 2))
    if mode != "P":  # a palette has too few colours
        left_m, right_m, *_ = depth_of(job)
        assert left_m == pytest.approx(LEFT_M, rel=0.05) and right_m == pytest.approx(RIGHT_M, rel=0.1)


def test_deep_grey_frames(bracket, pictures):
    frames = []
    for f_number in (OWN, *WIDER):
        grey = np.asarray(pictures[f_number].convert("L"), dtype=np.uint16) * 257
        frames.append(bracket[0].parent / f"grey{f_number:g}.png")
        PIL.Image.fromarray(grey).save(frames[-1], exif=exif(f_number))
    job = plan(frames[0], frames[1:], by_exif=True)
    assert job.f_numbers == WIDER
    assert depth_of(job)[1] == pytest.approx(RIGHT_M, rel=0.1)
