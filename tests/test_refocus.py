import json

import numpy as np
import piexif
import pytest
import skimage.data
from PIL import Image
from scipy import ndimage

from bokehdepth.camera.lens import blur_radius_px
from bokehdepth.camera.lens import bokeh_strength as strength_of_lens
from bokehdepth.cli import main
from bokehdepth.errors import InputError
from bokehdepth.files.depth_maps import save_depth_npz, save_depth_png
from bokehdepth.rendering.aperture import Aperture
from bokehdepth.rendering.disk import disk_kernel
from bokehdepth.rendering.layered import Layer, render_bokeh
from bokehdepth.rendering.refocus import focus_distance_at, refocus_light, render_from_depth, signed_radius_px
from bokehdepth.rendering.scatter import to_light
from datasets_scripts.scenes.generator import SceneGenerator
from datasets_scripts.systhebokeh300.raytraced import DisparityPlane, TwoPlaneScene, margin_px, render_raytraced

SIZE = (90, 120)


def picture(seed=0, size=SIZE):
    return np.random.default_rng(seed).random((*size, 3), dtype=np.float32)


def subject_mask(size=SIZE):
    y, x = np.mgrid[: size[0], : size[1]]
    return np.hypot(y - size[0] / 2, x - size[1] / 2) < size[0] / 3.5


def subject_depth(near_m=1.0, far_m=4.0, size=SIZE):
    return np.where(subject_mask(size), np.float32(near_m), np.float32(far_m))


def psnr(first, second, where=np.s_[:]):
    return -10 * np.log10(np.mean((first - second)[where] ** 2))


# --- against the ray-traced reference ---------------------------------------------------------------------------


def two_planes(seed, size=160):
    """A random scene of two slanted planes covered with photos, a K and a focus."""
    rng = np.random.default_rng(seed)
    front = DisparityPlane(*rng.uniform(-0.06, 0.06, 2), rng.uniform(0.6, 1.0))
    back = DisparityPlane(*rng.uniform(-0.2, 0.2, 2), rng.uniform(0.1, 0.35))
    focus_dpt = (front.c, back.c, 0.5 * (front.c + back.c))[seed % 3]
    strength = rng.uniform(8, 40)
    margin = margin_px((front, back), (size, size), strength, focus_dpt)
    side = size + 2 * margin
    photos = [getattr(skimage.data, name)() for name in rng.permutation(["astronaut", "coffee", "chelsea", "rocket"])]
    corners = [rng.integers(photo.shape[0] - side) for photo in photos[:2]]
    textures = [p[c : c + side, c : c + side].astype(np.float32) / 255 for p, c in zip(photos, corners, strict=False)]
    lump = ndimage.gaussian_filter(rng.standard_normal((side, side)), 12)
    y, x = (np.mgrid[:side, :side] - side / 2) / (size / 2)
    alpha = np.clip((lump / lump.std() * 0.25 + 0.75 - 1.3 * np.hypot(y, x)) * 10, 0, 1).astype(np.float32)
    scene = TwoPlaneScene(np.dstack([textures[0], alpha]), textures[1], front, back, (size, size))
    return scene, strength, focus_dpt, margin


@pytest.mark.parametrize("seed", range(20))
def test_layers_agree_with_rays(seed):
    scene, strength, focus_dpt, margin = two_planes(seed)
    size = scene.size_px[0]
    side = size + 2 * margin
    traced = render_raytraced(scene, strength, focus_dpt, rays=256)
    alpha = scene.foreground_rgba[..., 3].copy()
    frame = (slice(margin, margin + size),) * 2
    planes = scene.background_plane, scene.foreground_plane
    disparity = [plane.disparity_dpt((size, size), (margin, margin)).astype(np.float32) for plane in planes]
    layers = [
        Layer(scene.background_rgb, np.ones_like(alpha), disparity[0]),
        Layer(np.ascontiguousarray(scene.foreground_rgba[..., :3]), alpha, disparity[1]),
    ]
    # K belongs to 512 px of the frame, and the layers are as wide as the canvas.
    layered = render_bokeh(layers, strength * size / side, 1 / focus_dpt)[frame]
    radius = [strength * size / 512 * np.abs(plane[frame] - focus_dpt) for plane in disparity]
    edge = (alpha[frame] > 0.02) & (alpha[frame] < 0.98)
    near = ndimage.distance_transform_edt(~edge) <= 2 * max(r.max() for r in radius)
    # Below 3/4 of a pixel the models differ: a ray reads between pixels and so blurs by more than the disk, while a
    # disk inside its pixel is the identity. In focus, and from there on, they must agree.
    seen = np.where(alpha[frame] >= 0.5, radius[1], radius[0])
    away = ~near & ((seen < 0.1) | (seen > 0.75))
    assert near.any() and away.any()
    assert psnr(layered, traced, away) > 40
    assert psnr(layered, traced, near) > 32
    # The photo and its depth alone: the edge is hard, and what is behind it and beyond the frame is guessed.
    sharp = scene.all_in_focus()
    guessed = render_from_depth(sharp, 1 / scene.disparity_dpt(), strength, 1 / focus_dpt)
    reach = int(np.ceil(max(r.max() for r in radius)))
    inside = np.zeros_like(near)
    inside[reach:-reach, reach:-reach] = True
    assert psnr(guessed, traced, away & inside) > 38
    assert psnr(guessed, traced, near) > max(28, psnr(sharp, traced, near))


@pytest.mark.parametrize("kind", ["portrait", "ground", "room", "table", "landscape"])
def test_a_photo_with_its_depth_comes_near_the_layered_scene(kind):
    scene = SceneGenerator((160, 160), seed=2).generate(0, kind)
    true = scene.render(25.0)
    ours = render_from_depth(scene.image, scene.depth_m, 25.0, scene.focus_distance_m)
    assert psnr(ours, true) > 35 and psnr(ours, true) > psnr(scene.image, true) + 5


# --- what must hold exactly -------------------------------------------------------------------------------------


def test_no_strength_is_the_photo_itself():
    assert np.array_equal(render_from_depth(picture(), subject_depth(), 0.0, 1.0), picture())


def test_constant_pictures_stay_constant():
    depth = np.random.default_rng(1).uniform(0.5, 20, SIZE).astype(np.float32)
    for value in (0.0, 0.3, 1.0):
        constant = np.full((*SIZE, 3), value, dtype=np.float32)
        assert np.abs(render_from_depth(constant, depth, 40.0, 2.0) - value).max() < 1e-5


def test_a_plane_becomes_its_disk_blur():
    image, depth = picture(), np.full(SIZE, 4.0, dtype=np.float32)
    radius = blur_radius_px(40.0, 1.0, 4.0, SIZE[1])
    point = np.zeros((*SIZE, 3), dtype=np.float32)
    point[45, 60] = 1
    spread = refocus_light(point, signed_radius_px(depth, 40.0, 1.0))[..., 0]
    assert np.sqrt((spread > 0.5 * spread.max()).sum() / np.pi) == pytest.approx(radius, abs=0.5)
    kernel = disk_kernel(radius)
    half = len(kernel) // 2
    expected = np.zeros(SIZE)
    expected[45 - half : 46 + half, 60 - half : 61 + half] = kernel
    assert np.abs(spread - expected).sum() < 0.05
    assert spread.sum() == pytest.approx(1, abs=1e-4)
    assert image.std() > render_from_depth(image, depth, 40.0, 1.0).std()


def test_the_focused_subject_is_untouched_and_gets_no_halo():
    """White behind black: any light of the background on the subject in focus would show."""
    mask = subject_mask()
    image = np.where(mask[..., None], np.float32(0), np.float32(1)) * np.ones(3, dtype=np.float32)
    rendered = render_from_depth(image, subject_depth(), 100.0, 1.0)
    assert rendered[mask].max() < 1e-5
    # Nor does the subject darken what is behind it: the background behind it is continued, not black.
    assert rendered[~mask].min() > 0.98
    textured = np.where(mask[..., None], picture(), image)
    assert np.abs(render_from_depth(textured, subject_depth(), 100.0, 1.0) - textured)[mask].max() < 1e-5


def test_a_blurred_foreground_lets_the_background_through_at_its_edge():
    mask = subject_mask()
    image = np.where(mask[..., None], np.float32(0), np.float32(1)) * np.ones(3, dtype=np.float32)
    rendered = to_light(render_from_depth(image, subject_depth(), 60.0, 4.0))[..., 0]
    radius = abs(signed_radius_px(subject_depth(), 60.0, 4.0)[45, 60])
    distance = ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)
    assert rendered[np.abs(distance) < 2].mean() == pytest.approx(0.5, abs=0.08)
    assert rendered[distance > radius + 2].max() < 1e-3 and rendered[distance < -radius - 2].min() > 0.999


def test_an_odd_aperture_turns_over_at_the_focus():
    point = np.zeros((81, 81, 3), dtype=np.float32)
    point[40, 40] = 1
    radius = np.full((81, 81), 12.0, dtype=np.float32)
    front, behind = (refocus_light(point, sign * radius, aperture=Aperture(3))[..., 0] for sign in (1, -1))
    assert np.abs(front - behind[::-1]).max() < 1e-6 and np.abs(front - behind).max() > 1e-3


def test_the_side_of_the_focus_is_in_the_sign():
    signed = signed_radius_px(subject_depth(1.0, 4.0), 51.2, 2.0)
    assert signed[45, 60] == pytest.approx(51.2 * 120 / 512 * 0.5) and signed[0, 0] == pytest.approx(-3.0)


def test_focus_is_read_off_the_depth():
    depth = subject_depth()
    assert focus_distance_at(depth, 60, 45) == 1.0 and focus_distance_at(depth, 0, 0) == 4.0
    assert focus_distance_at(depth, 119.9, 89.9) == 4.0


@pytest.mark.parametrize("point", [(-1, 5), (120, 5), (5, 90), (float("nan"), 5)])
def test_focus_outside_the_picture_is_refused(point):
    with pytest.raises(InputError, match="focus point is .* wanted a point inside the picture of 120 x 90"):
        focus_distance_at(subject_depth(), *point)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth_m": np.ones((90, 119), np.float32)}, "depth_m has 119 x 90 pixels, wanted the picture's 120 x 90"),
        ({"depth_m": np.full(SIZE, np.nan, np.float32)}, "depth_m has 10800 pixels that are not above 0"),
        ({"depth_m": np.full(SIZE, -1.0, np.float32)}, "the first is -1.0"),
        ({"depth_m": np.zeros(SIZE, np.float32)}, "the first is 0.0"),
        ({"depth_m": np.ones(SIZE, np.int32)}, "depth_m is int32"),
        ({"depth_m": [1.0]}, "depth_m is list"),
        ({"image": np.ones((*SIZE, 3))}, "image is float64"),
        ({"bokeh_strength": -1.0}, "bokeh_strength must be finite and at least 0, got -1.0"),
        ({"bokeh_strength": 1e5}, "bokeh_strength is 100000, which blurs a pixel with a radius of"),
        ({"focus_distance_m": 0.0}, "focus_distance_m must be greater than 0"),
    ],
)
def test_bad_input_is_refused(change, message):
    good = {"image": picture(), "depth_m": subject_depth(), "bokeh_strength": 10.0, "focus_distance_m": 1.0}
    with pytest.raises(InputError, match=message):
        render_from_depth(**(good | change))


# --- the command ------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    exif = piexif.dump(
        {
            "Exif": {
                piexif.ExifIFD.FocalLength: (50, 1),
                piexif.ExifIFD.FocalLengthIn35mmFilm: 50,
                piexif.ExifIFD.FNumber: (8, 1),
            }
        }
    )
    pixels = Image.fromarray(
        np.round(255 * ndimage.zoom(picture(size=(9, 12)), (10, 10, 1), order=1)).astype(np.uint8)
    )
    pixels.save(tmp_path / "photo.jpg", exif=exif, quality=95)
    save_depth_npz(tmp_path / "depth.npz", subject_depth(), focal_length_px=120.0, bokeh_strengths=[10.0])
    save_depth_png(tmp_path / "depth.png", subject_depth())
    np.save(tmp_path / "depth.npy", subject_depth().astype(np.float64))
    return tmp_path


@pytest.mark.parametrize("depth", ["depth.npz", "depth.png", "depth.npy"])
def test_the_command_writes_what_the_library_renders(files, depth, capsys):
    photo = files / "photo.jpg"
    command = ["render", str(photo), "--depth", str(files / depth), "-o", str(files / "out"), "--bokeh-strength", "40"]
    assert main([*command, "--depth-unit", "m", "--focus-at", "60,45", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    path = files / "out" / "photo" / "refocus_k40_1m.png"
    assert document["files"][0] == str(path) and document["focus_distance_m"] == pytest.approx(1, abs=1e-3)
    image = np.asarray(Image.open(photo), dtype=np.float32) / 255
    expected = render_from_depth(image, subject_depth(), 40.0, 1.0)
    written = Image.open(path)
    assert np.abs(np.asarray(written) / 255 - expected).max() < 0.01
    assert written.text["bokeh_strength"] == "40" and "ai_generated" not in written.text
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["arguments"]["focus_at"] == [60.0, 45.0] and record["bokeh_strengths"] == [40.0]


def test_an_f_number_gives_the_lens_its_strength(files, capsys):
    command = ["render", str(files / "photo.jpg"), "--depth", str(files / "depth.npz"), "-o", str(files / "out")]
    assert main([*command, "--focus-m", "1.5", "--f-number", "1.4", "--blades", "7", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    # 50 mm at the sensor that EXIF implies: the diagonal rule at 4:3.
    width_mm = 43.27 / np.hypot(1, 90 / 120)
    assert document["bokeh_strength"] == pytest.approx(strength_of_lens(50, 1.4, 1.5, width_mm), rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--focus-at", "500,45", "--bokeh-strength", "10"], "wanted a point inside the picture"),
        (["--focus-at", "here", "--bokeh-strength", "10"], "'here' is no point X,Y"),
        (["--focus-m", "0", "--bokeh-strength", "10"], "focus_distance_m"),
        (["--focus-m", "2", "--bokeh-strength", "-3"], "bokeh_strength must be finite and at least 0, got -3.0"),
        (["--focus-m", "2", "--f-number", "0"], "f_number must be finite and greater than 0"),
        (["--focus-m", "2", "--bokeh-strength", "10", "--blades", "2"], "blades is 2"),
        (["--focus-m", "2"], "one of the arguments --f-number --bokeh-strength is required"),
        (["--bokeh-strength", "10"], "one of the arguments --focus-at --focus-distance/--focus-m is required"),
    ],
)
def test_wrong_commands_get_one_sentence(files, arguments, message, capsys):
    command = ["render", str(files / "photo.jpg"), "--depth", str(files / "depth.npz"), "-o", str(files / "out")]
    assert main([*command, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (files / "out").exists()


def test_depth_that_does_not_fit_is_refused(files, capsys):
    np.save(files / "small.npy", np.ones((9, 12)))
    (files / "text.npy").write_text("no array")
    command = ["render", str(files / "photo.jpg"), "-o", str(files / "out"), "--focus-m", "2", "--bokeh-strength", "9"]
    for name, message in [
        ("small.npy", "file 'small.npy' has 12 x 9 pixels, wanted the photo's 120 x 90"),
        ("text.npy", "is no depth map"),
        ("photo.jpg", "wanted npz, npy, 16-bit PNG, TIFF, PFM or EXR"),
        ("nowhere.npz", "does not exist"),
    ]:
        assert main([*command, "--depth", str(files / name), "--depth-unit", "m"]) == 2
        assert message in capsys.readouterr().err
    assert not (files / "out").exists()
