import re
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import skimage.data
from scipy import ndimage

from bokehdepth.bracket_depth import LOW_CONFIDENCE, depth_from_sweep, fit
from bokehdepth.camera.lens import disparity_offset_from_sweep
from bokehdepth.errors import InputError
from datasets_scripts.scenes.generator import SceneGenerator

STRENGTHS = (10.0, 20.0, 30.0)
INNER = (slice(16, -16), slice(16, -16))


def supersampled_disk(radius_px, finer=15):
    """A disk counted on a fine grid: shares nothing with the closed form that the fit blurs with."""
    half = int(np.ceil(radius_px + 0.5))
    fine = (np.arange((2 * half + 1) * finer) + 0.5) / finer - half - 0.5
    inside = (fine[:, None] ** 2 + fine**2 <= radius_px**2).astype(float)
    kernel = inside.reshape(2 * half + 1, finer, 2 * half + 1, finer).sum(axis=(1, 3))
    return kernel / kernel.sum()


def blurred(picture, radius_px):
    if radius_px == 0:
        return picture
    light = picture.astype(np.float64) ** 2.2
    planes = [ndimage.convolve(light[..., c], supersampled_disk(radius_px), mode="nearest") for c in range(3)]
    return np.stack(planes, axis=-1) ** (1 / 2.2)


def taken(picture, noise=0.0, seed=0):
    noisy = picture + noise * np.random.default_rng(seed).standard_normal(picture.shape)
    return (np.rint(np.clip(noisy, 0, 1) * 255) / 255).astype(np.float32)


def stack_of(sharp, offset_dpt, strengths=STRENGTHS, noise=0.0):
    scale = sharp.shape[1] / 512
    return [taken(blurred(sharp, k * scale * offset_dpt), noise, seed) for seed, k in enumerate(strengths, 1)]


@pytest.fixture(scope="module")
def texture():
    """A real photo with detail nearly everywhere, 128 x 128."""
    return (skimage.data.astronaut()[60:188, 160:288] / 255).astype(np.float32)


# --- Eq. 28 and 32 ------------------------------------------------------------------------------------------------


def test_the_slope_is_unbiased_and_its_variance_is_that_of_equation_32():
    rng, offset, error_px, count = np.random.default_rng(0), 0.8, 0.4, 40_000
    variances = {}
    for strengths in ((5.0, 10.0), (10.0, 20.0), (10.0, 20.0, 30.0), (10.0, 20.0, 30.0) * 4):
        k = np.array(strengths)
        radii = k[:, None] * offset + error_px * rng.standard_normal((k.size, count))
        found = disparity_offset_from_sweep(k, radii, 512)
        expected = error_px**2 / np.sum(k**2)
        # The sample mean and variance of n normal numbers scatter by sd/sqrt(n) and var*sqrt(2/n).
        assert abs(found.mean() - offset) < 4 * np.sqrt(expected / count)
        assert found.var() == pytest.approx(expected, rel=4 * np.sqrt(2 / count))
        variances[strengths] = found.var()
    few, many = list(variances.values())[2:]
    assert few / many == pytest.approx(4, rel=0.06)

    # Errors that differ between frames: the general form of Eq. 32.
    k, errors = np.array([10.0, 20.0, 30.0]), np.array([0.2, 0.4, 1.2])
    found = disparity_offset_from_sweep(
        k, k[:, None] * offset + errors[:, None] * rng.standard_normal((3, count)), 512
    )
    assert found.var() == pytest.approx(np.sum(k**2 * errors**2) / np.sum(k**2) ** 2, rel=4 * np.sqrt(2 / count))


# --- radii --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("radius_px", [0.0, 1.0, 2.37, 5.5, 11.0])
def test_radii_of_one_disk_are_found(texture, radius_px):
    frame = taken(blurred(texture, radius_px))
    measured = depth_from_sweep(texture, [frame], [40.0], 0.575, side="behind", estimator="per_frame")
    found = measured.radii_px[0][INNER]
    assert np.median(np.abs(found - radius_px)) < max(0.1, 0.02 * radius_px)
    assert np.median(measured.confidence) > 0.9


def test_a_frame_that_hardly_blurs_what_is_searched_claims_nothing_by_itself(texture):
    """At K = 4 the largest offset searched has less than half a pixel, at K = 60 there is blur to see."""
    strengths = (4.0, 60.0)
    frames = stack_of(texture, 0.2, strengths)
    found = depth_from_sweep(texture, frames, strengths, 2.8, side="behind", estimator="per_frame")
    assert (found.radii_px[0] == 0).all()
    assert np.median(np.abs(found.disparity_offset_dpt[INNER] - 0.2)) < 0.01


def test_the_joint_fit_is_nearer_than_the_textbook_one(texture):
    """Half a pixel of blur at K = 10 is nothing by itself, and evidence beside 1.5 px at K = 30."""
    sharp, frames = taken(texture, 0.01), stack_of(texture, 0.2, noise=0.01)
    errors, shares = {}, {}
    for estimator in ("joint", "per_frame"):
        found = depth_from_sweep(sharp, frames, STRENGTHS, 1.5, side="behind", estimator=estimator)
        errors[estimator] = np.sqrt(np.mean((found.disparity_offset_dpt[INNER] - 0.2) ** 2))
        shares[estimator] = np.mean(found.confidence >= LOW_CONFIDENCE)
    assert errors["joint"] < 0.7 * errors["per_frame"] and errors["joint"] < 0.015
    assert shares["joint"] > shares["per_frame"]


def test_the_blur_of_the_sharp_frame_is_taken_into_account(texture):
    offset, own = 0.5, 12.0
    strengths = (16.0, 24.0, 34.0)
    sharp = taken(blurred(texture, own / 4 * offset))
    frames = stack_of(texture, offset, strengths)
    errors = {}
    for assumed in (own, 0.0):
        found = depth_from_sweep(sharp, frames, strengths, 1.0, side="behind", sharp_bokeh_strength=assumed)
        errors[assumed] = np.median(np.abs(found.disparity_offset_dpt[INNER] / offset - 1))
    assert errors[own] < 0.04 < 0.08 < errors[0.0]


def test_exposure_and_vignetting_between_frames_do_not_count(texture):
    frames = stack_of(texture, 0.5)
    y, x = np.mgrid[:128, :128] - 63.5
    falloff = np.exp(-0.5 * (x**2 + y**2) / 64**2 / 2)[..., None]
    darker = [taken((f**2.2 * 0.8 * falloff) ** (1 / 2.2)) for f in frames]
    plain = depth_from_sweep(texture, frames, STRENGTHS, 1.5, side="behind")
    other = depth_from_sweep(texture, darker, STRENGTHS, 1.5, side="behind")
    assert np.median(np.abs(other.disparity_offset_dpt - 0.5)) < 0.03
    assert np.abs(plain.gains - 1).max() < 0.02
    assert other.gains[:, 0] == pytest.approx(0.8, rel=0.03) and other.gains[:, 1] == pytest.approx(0.485, rel=0.06)


@pytest.mark.parametrize(("shift_px", "share"), [((0.5, -0.4), 0.7), ((-0.7, 1.1), 0.7), ((2.4, 0.6), 0.5)])
def test_a_camera_that_moved_by_a_little_does_not_count(texture, shift_px, share):
    """The more the shift, the worse it is found beside the blur of the widest frame, and the fewer pixels are sure."""
    frames = [
        taken(np.clip(ndimage.shift(frame, (*shift_px, 0), order=3, mode="nearest"), 0, 1), 0.003, seed)
        for seed, frame in enumerate(stack_of(texture, 0.5))
    ]
    found = depth_from_sweep(taken(texture, 0.003, 9), frames, STRENGTHS, 1.5, side="behind")
    assert np.abs(found.shifts_px - shift_px).max() < 0.25
    assert np.median(np.abs(found.disparity_offset_dpt - 0.5)[INNER]) < 0.02
    assert np.mean(found.confidence[INNER] >= LOW_CONFIDENCE) > share
    still = depth_from_sweep(texture, stack_of(texture, 0.5), STRENGTHS, 1.5, side="behind")
    assert np.abs(still.shifts_px).max() == 0


@pytest.mark.parametrize(("noise", "share"), [(0.01, 0.8), (0.02, 0.5), (0.04, 0.05)])
def test_confident_pixels_are_right_and_noise_makes_them_fewer(texture, noise, share):
    sharp, frames = taken(texture, noise), stack_of(texture, 0.4, noise=noise)
    found = depth_from_sweep(sharp, frames, STRENGTHS, 1.5, side="behind")
    confident = found.confidence[INNER] >= LOW_CONFIDENCE
    error_px = np.abs(found.disparity_offset_dpt - 0.4)[INNER] * 30 * 128 / 512
    assert share < confident.mean() < (share + 0.2 if noise > 0.01 else 1.01) + 0.2
    assert np.mean(error_px[confident] < 0.5) > 0.9  # a radius of 3 px: half a pixel is the tolerance
    assert np.mean(error_px[confident] < 0.5) > np.mean(error_px[~confident] < 0.5)
    assert found.noise == pytest.approx(noise, rel=0.15)


# --- flat areas ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def half_flat(texture):
    """The same plane, textured at the left and nearly without texture at the right."""
    picture = texture.copy()
    picture[:, 64:] = 0.5
    return taken(picture, 0.01), stack_of(picture, 0.4, noise=0.01)


def test_flat_areas_have_low_confidence(half_flat):
    found = depth_from_sweep(*half_flat, STRENGTHS, 1.5, side="behind")
    # 20 columns off the seam, beyond the window and the blur
    assert np.median(found.confidence[:, :44]) > 0.95
    assert np.median(found.confidence[:, 84:]) < LOW_CONFIDENCE
    assert found.summary()["low_confidence_share"] == np.mean(found.confidence < LOW_CONFIDENCE) > 0.2
    assert not found.filled.any()


def test_filling_is_stated_and_changes_nothing_else(half_flat):
    plain = depth_from_sweep(*half_flat, STRENGTHS, 1.5, side="behind")
    filled = depth_from_sweep(*half_flat, STRENGTHS, 1.5, side="behind", fill_low_confidence=True)
    assert np.array_equal(filled.filled, plain.confidence < LOW_CONFIDENCE)
    assert np.array_equal(filled.disparity_offset_dpt[~filled.filled], plain.disparity_offset_dpt[~filled.filled])
    assert np.array_equal(filled.confidence, plain.confidence)
    hole = filled.filled[:, 84:]
    before, after = (np.abs(d.disparity_offset_dpt[:, 84:][hole] - 0.4).mean() for d in (plain, filled))
    assert after < 0.5 * before and filled.summary()["filled_share"] == filled.filled.mean()


# --- sides and ranges ---------------------------------------------------------------------------------------------


def test_sides_of_the_focus(texture):
    """Left half in front, right half behind, by the same blur."""
    frames, behind = stack_of(texture, 0.4), np.zeros((128, 128), dtype=bool)
    behind[:, 64:] = True
    near_m, far_m = 1 / (1 / 1.5 + 0.4), 1 / (1 / 1.5 - 0.4)
    true_m = np.where(behind, far_m, near_m)
    for side, wanted_m in (("behind", far_m), ("front", near_m), (behind, true_m)):
        found = depth_from_sweep(texture, frames, STRENGTHS, 1.5, side=side)
        assert np.median(np.abs(found.depth_m / wanted_m - 1)) < 0.03
    # A rough depth whose scale is wrong by so much that it takes the near half for far.
    rough = (true_m * 1.7 * np.random.default_rng(0).uniform(0.95, 1.05, true_m.shape)).astype(np.float32)
    assert (rough > 1.5).all()
    found = depth_from_sweep(texture, frames, STRENGTHS, 1.5, side="auto", rough_depth_m=rough)
    assert np.mean(found.behind_focus == behind) > 0.99
    assert found.rough_depth_scale == pytest.approx(1 / 1.7, rel=0.05)


def test_infinity_is_marked_and_not_clamped(texture):
    frames = stack_of(texture, 1 / 1.5, noise=0.01)
    found = depth_from_sweep(texture, frames, STRENGTHS, 1.5, side="behind", max_depth_m=20.0)
    assert np.mean(found.beyond[INNER]) > 0.4
    assert np.isnan(found.depth_m[~found.valid]).all() and np.isfinite(found.depth_m[found.valid]).all()
    assert found.depth_m[found.valid].max() <= 20.0 and not (found.valid & found.beyond).any()


def test_what_is_nearer_than_the_search_has_no_depth(texture):
    frames = stack_of(texture, 1.5)  # at 0.46 m
    found = depth_from_sweep(texture, frames, STRENGTHS, 1.5, side="front", min_depth_m=0.7)
    assert np.mean(~found.valid[INNER]) > 0.9 and np.median(found.confidence) == 0


def test_tiles_leave_no_seam(texture, monkeypatch):
    frames = stack_of(texture, 0.4)
    whole = depth_from_sweep(texture, frames, STRENGTHS, 1.5, side="behind").disparity_offset_dpt
    monkeypatch.setattr(fit, "_TILE_PX", 48)
    tiled = depth_from_sweep(texture, frames, STRENGTHS, 1.5, side="behind").disparity_offset_dpt
    assert np.mean(np.abs(tiled - whole) > 1e-3) < 1e-3


# --- scenes, benchmark, real photos -------------------------------------------------------------------------------


def test_a_scene_with_occlusion():
    scene = SceneGenerator((192, 192), seed=5).generate(1, "wall")
    frames = [taken(scene.render(k), 0.005, int(k)) for k in STRENGTHS]
    behind = scene.depth_m > scene.focus_distance_m
    found = depth_from_sweep(taken(scene.image, 0.005), frames, STRENGTHS, scene.focus_distance_m, side=behind)
    trusted = found.valid & (found.confidence >= LOW_CONFIDENCE)
    error = np.abs(found.depth_m / scene.depth_m - 1)[trusted]
    constant = np.abs(np.median(scene.depth_m) / scene.depth_m - 1)
    assert trusted.mean() > 0.8
    assert np.median(error) < 0.05 and error.mean() < 0.5 * constant.mean()


@pytest.mark.data
def test_a_real_photo_on_two_planes(data_root):
    path = next(iter(sorted((data_root / "photos" / "kodak").glob("*.jpg"))), None)
    if path is None:
        pytest.skip("no Kodak photo in the data")
    picture = PIL.Image.open(path).convert("RGB")
    sharp = np.asarray(picture.crop((0, 0, 192, 192)), dtype=np.float32) / 255
    frames = []
    for seed, k in enumerate(STRENGTHS):
        near, far = (blurred(sharp, k * 192 / 512 * offset) for offset in (0.1, 0.5))
        frames.append(taken(np.concatenate([near[:, :96], far[:, 96:]], axis=1), 0.005, seed))
    found = depth_from_sweep(taken(sharp, 0.005, 9), frames, STRENGTHS, 1.5, side="behind")
    trusted = found.confidence >= LOW_CONFIDENCE
    for part, offset in ((np.s_[:, :80], 0.1), (np.s_[:, 112:], 0.5)):
        values = found.disparity_offset_dpt[part][trusted[part]]
        assert values.size > 500 and np.median(values) == pytest.approx(offset, abs=0.04)


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sharp": np.zeros((64, 64, 3), np.uint8)}, "sharp is uint8 (64, 64, 3)"),
        ({"sharp": np.full((64, 64, 3), np.nan, np.float32)}, "sharp spans [nan, nan]"),
        ({"frames": [np.full((64, 64, 3), 1.5, np.float32)] * 2}, "frames[0] spans [1.5, 1.5]"),
        ({"frames": [np.zeros((64, 48, 3), np.float32)] * 2}, "frames[0] has 48 x 64 pixels"),
        ({"frames": []}, "2 values for 0 frames"),
        ({"bokeh_strengths": ()}, "bokeh_strengths is empty"),
        ({"bokeh_strengths": (10, np.inf)}, "bokeh_strengths must be finite"),
        ({"bokeh_strengths": (10, -1)}, "bokeh_strengths must be finite"),
        ({"sharp_bokeh_strength": 10.0}, "bokeh_strengths has 10, wanted more than"),
        ({"bokeh_strengths": (0.5, 1)}, "wanted 1 or more: wider apertures"),
        ({"focus_distance_m": 0}, "focus_distance_m must be greater than 0"),
        ({"focus_distance_m": np.inf, "side": "behind"}, "wanted side='front'"),
        ({"max_depth_m": 1.0}, "max_depth_m is 1"),
        ({"side": "front", "min_depth_m": 1.5}, "min_depth_m is 1.5"),
        ({"side": "left"}, "side is 'left'"),
        ({"side": np.ones((64, 63), bool)}, "side is bool (64, 63)"),
        ({"side": np.ones((64, 64))}, "side is float64"),
        ({"side": "behind", "rough_depth_m": np.ones((64, 64))}, "rough_depth_m is given"),
        ({"side": "front", "rough_depth_m": np.ones((64, 64))}, "rough_depth_m is given"),
        ({"side": "auto", "rough_depth_m": np.zeros((64, 64))}, "rough_depth_m has the value 0.0"),
        ({"side": "auto", "rough_depth_m": np.full((64, 64), np.nan)}, "rough_depth_m has the value nan"),
        ({"estimator": "guess"}, "estimator is 'guess'"),
        ({"window_px": 2}, "window_px is 2"),
    ],
)
def test_bad_input_is_refused(change, words):
    picture = np.full((64, 64, 3), 0.5, dtype=np.float32)
    good = {"sharp": picture, "frames": [picture] * 2, "bokeh_strengths": (10, 20), "focus_distance_m": 1.0}
    with pytest.raises(InputError, match=re.escape(words)):
        depth_from_sweep(**(good | change))


def test_no_torch_is_imported():
    code = (
        "import sys, bokehdepth.bracket_depth; print([m for m in ('torch', 'numba', 'diffusers') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
