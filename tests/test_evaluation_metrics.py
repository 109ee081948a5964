"""Measures of depth and bokeh by hand, by plain loops and on blurs whose radius is known."""

import math

import numpy as np
import pytest

from bokehdepth.errors import InputError
from bokehdepth.rendering.disk import disk_blur
from bokehdepth.rendering.refocus import render_from_depth
from datasets_scripts.systhebokeh300.raytraced import DisparityPlane, TwoPlaneScene, render_raytraced
from train.evaluation.metrics_bokeh import (
    CEILING_DB,
    PERCEPTUAL,
    blur_response,
    k_response,
    perceptual_distance,
    psnr,
    relative_change,
    selectivity,
    ssim,
    uniform_change,
)
from train.evaluation.metrics_depth import boundary_f1, depth_errors

RNG = np.random.default_rng(11)


def test_depth_errors_by_hand():
    errors = depth_errors(np.array([2.0, 4.0, 9.0]), np.array([1.0, 5.0, 9.0]))
    gaps = [math.log(2), math.log(0.8), 0.0]
    assert errors == pytest.approx(
        {
            "abs_rel": (1 + 0.2 + 0) / 3,
            "sq_rel": (1 + 0.2) / 3,
            "rmse_m": math.sqrt(2 / 3),
            "rmse_log": math.sqrt(sum(g * g for g in gaps) / 3),
            "log10": (math.log10(2) + math.log10(1.25)) / 3,
            "si_log": np.std(gaps),
            "delta1": 1 / 3,  # 5/4 is not below 1.25
            "delta2": 2 / 3,
            "delta3": 2 / 3,
        }
    )


def test_no_scale_changes_the_scale_invariant_error():
    target = RNG.uniform(0.5, 20, 130)
    assert depth_errors(target * 7, target)["si_log"] == pytest.approx(0, abs=1e-12)


def brute_boundary_f1(prediction, target, valid):
    """The published definition, one pixel, neighbour and ratio at a time."""
    total = weight = 0.0
    height, width = target.shape
    for ratio in np.linspace(1.05, 1.25, 10):
        shares = []
        for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            hits = drawn = wanted = 0
            for y in range(height):
                for x in range(width):
                    v, u = y + dy, x + dx
                    if 0 <= v < height and 0 <= u < width and valid[y, x] and valid[v, u]:
                        guess = prediction[v, u] / prediction[y, x] > ratio
                        truth = target[v, u] / target[y, x] > ratio
                        hits, drawn, wanted = hits + (guess and truth), drawn + guess, wanted + truth
            shares.append((hits / max(drawn, 1), hits / max(wanted, 1)))
        precision, recall = (sum(column) / 4 for column in zip(*shares, strict=True))
        total += ratio * (2 * precision * recall / (precision + recall) if precision + recall else 0)
        weight += ratio
    return total / weight


def test_boundary_f1_against_brute_force():
    target = np.exp(RNG.normal(0, 0.08, (9, 12)))
    target[:, 6:] *= 1.6
    prediction = target * np.exp(RNG.normal(0, 0.05, target.shape))
    valid = RNG.random(target.shape) > 0.15
    for where in (valid, np.ones_like(valid)):
        expected = brute_boundary_f1(prediction, target, where)
        assert 0.2 < expected < 0.95
        assert boundary_f1(prediction, target, where) == pytest.approx(expected, rel=1e-12)
        assert boundary_f1(prediction * 7, target, where) == pytest.approx(expected, rel=1e-9)
        assert boundary_f1(target, target, where) == pytest.approx(brute_boundary_f1(target, target, where), rel=1e-12)


def test_boundary_f1_by_hand():
    def score(prediction, target, valid=None):
        return boundary_f1(prediction, target, np.ones(target.shape, bool) if valid is None else valid)

    step = np.where(np.arange(8) < 4, 1.0, 2.0) * np.ones((5, 1))
    # One of the four directions has a contour, so precision and recall are 1/4 at best.
    assert score(step, step) == pytest.approx(0.25)
    assert score(np.ones_like(step), step) == 0.0
    assert score(1 / step, step) == 0.0  # the wrong side is nearer
    moved = np.roll(step, 1, axis=1)
    moved[:, 0] = 1.0
    assert score(moved, step) == 0.0
    # Steps up and down in both axes: every direction has a contour, and the truth reaches 1.
    box = np.ones((7, 7))
    box[2:5, 2:5] = 2.0
    assert score(box, box) == pytest.approx(1.0)
    # A rise of 10 % and its fall are contours at 1.05, 1.072 and 1.094 alone: there the right precision is 5 of 10 and
    # another direction has only false ones; P = 1/8, R = 1/4, F1 = 1/6.
    both = step.copy()
    both[:, 2:3] *= 1.1
    ratios = np.linspace(1.05, 1.25, 10)
    expected = (ratios[:3].sum() / 6 + ratios[3:].sum() / 4) / ratios.sum()
    assert score(both, step) == pytest.approx(expected)
    # A truth without contours gives 0 to everything, itself too.
    flat = np.ones_like(step)
    assert score(step, flat) == score(flat, flat) == 0.0
    # Sparse truth: pairs of valid neighbours count, and where there are none the score is not defined.
    grid = np.indices(step.shape).sum(axis=0) % 2 == 0
    assert math.isnan(boundary_f1(step, step, grid))
    rows = np.zeros_like(grid)
    rows[::2] = True
    assert score(step, step, rows) == pytest.approx(0.25)


# ---------------------------------------------------------------------- bokeh


def test_likeness_by_hand():
    flat = np.zeros((12, 12, 3), np.float32)
    assert psnr(flat + np.float32(0.1), flat) == pytest.approx(20.0, abs=1e-4)
    assert psnr(flat, flat) == CEILING_DB and ssim(flat, flat) == 1.0
    # Flat pictures differ in their means alone: (2 m1 m2 + C1) / (m1^2 + m2^2 + C1).
    assert ssim(flat + 0.5, flat + 0.4) == pytest.approx((0.4 + 1e-4) / (0.41 + 1e-4), abs=1e-6)


@pytest.mark.parametrize("name", PERCEPTUAL)
def test_perceptual_distances_are_refused_where_their_networks_are_absent(name):
    with pytest.raises(InputError, match=f"{name} needs the package torch(metrics|vision), which is not installed"):
        perceptual_distance(name)


def half_blurred():
    """A textured picture: left half in focus with strong texture, right half 3 px out of focus with faint texture."""
    texture = np.random.default_rng(5).random((48, 128, 3))
    sharp = np.where(np.arange(128)[None, :, None] < 64, texture, 0.45 + 0.1 * texture)
    radius = np.where(np.arange(128)[None, :] < 64, 0.0, 3.0) * np.ones((48, 1))
    return sharp, radius


def test_selectivity_tells_depth_aware_from_uniform_blur():
    sharp, radius = half_blurred()
    for uniform_px in (1.0, 3.0, 6.0):
        change = selectivity(sharp, disk_blur(sharp, uniform_px, gamma=2.2), radius)
        assert change.defocused / change.in_focus == pytest.approx(1, abs=0.12)
    strong = disk_blur(sharp, 4.0, gamma=2.2)
    assert selectivity(sharp, strong, radius) == pytest.approx((1, 1))
    assert selectivity(sharp, sharp.copy(), radius) == (0, 0)
    partial = np.where(radius[..., None] > 0, strong, 0.25 * strong + 0.75 * sharp)
    assert selectivity(sharp, partial.astype(np.float32), radius) == pytest.approx((1, 0.25), abs=1e-4)
    # The radii belong to a picture 128 px wide: at half of the width half of them counts.
    assert selectivity(sharp[:, 32:96], sharp[:, 32:96], radius[:, 32:96] / 2.5) == (0, 0)
    assert selectivity(sharp, sharp, radius / 2.5) is None


def test_an_area_without_texture_or_pixels_has_no_change():
    sharp, radius = half_blurred()
    nowhere, flat = np.zeros(radius.shape, bool), np.full_like(sharp, 0.5)
    assert relative_change(sharp, sharp, nowhere, uniform_change(sharp, 4.0)) is None
    assert relative_change(flat, flat, radius > 2, uniform_change(flat, 4.0)) is None
    unknown = np.where(radius > 2, np.nan, radius)  # a hole in the depth belongs to neither area
    assert selectivity(sharp, sharp, unknown) is None


def test_k_response_by_hand():
    sharp = np.full((4, 6, 3), 0.5)
    area = np.zeros((4, 6), dtype=bool)
    area[:, 3:] = True
    frames = np.stack([sharp + change * area[..., None] for change in (0.1, -0.2, 0.15)])
    frames[:, :, :3] = 0.0  # outside the area: of no effect
    response = k_response(sharp, frames, area)
    assert response.mean_change == pytest.approx((0.1, 0.2, 0.15)) and response.rising_share == 0.5


# ---------------------------------------------------------------------- the measured radius of a blur

STRENGTHS = (5.0, 15.0, 30.0)


@pytest.fixture(scope="module")
def photo():
    rng = np.random.default_rng(0)
    return disk_blur(rng.random((64, 64, 3)), 0.8, gamma=1.0).astype(np.float32)


def frames_of(photo, offset_dpt, factor=1.0, strengths=STRENGTHS):
    radii = [factor * k * photo.shape[1] / 512 * offset_dpt for k in strengths]
    return np.stack([disk_blur(photo, r, gamma=2.2) if r > 0.5 else photo for r in radii]).astype(np.float32)


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 1.4])
def test_slope_is_the_factor_of_the_radius(photo, factor):
    offset = np.full((64, 64), 1.1, np.float32)
    found, is_monotone = blur_response(photo, frames_of(photo, 1.1, factor), STRENGTHS, offset)
    assert len(found) == 16 and is_monotone.all() == (factor > 0) == is_monotone.any()
    # The largest radius decides a fit through the origin; the measurement is a quarter of a pixel fine, refined.
    assert np.abs(found - factor).max() < 0.06 * max(factor, 1)


def test_patches_without_texture_or_with_several_depths_do_not_count(photo):
    offset = np.full((64, 64), 1.1, np.float32)
    offset[:, ::2] *= 1.5
    assert len(blur_response(photo, np.stack([photo] * 3), STRENGTHS, offset).slope) == 0
    flat = np.full_like(photo, 0.4)
    assert len(blur_response(flat, np.stack([flat] * 3), STRENGTHS, np.full((64, 64), 1.1, np.float32)).slope) == 0
    near = np.full((64, 64), 0.01, np.float32)  # 0.04 px at K = 30
    assert len(blur_response(photo, np.stack([photo] * 3), STRENGTHS, near).slope) == 0


SIX = (5.0, 10.0, 15.0, 20.0, 25.0, 30.0)
FOCUS_M = 4.0


def wall(radius_px):
    """Offset of a wall that is blurred by a radius at K = 30 in a picture 64 px wide, behind nothing."""
    return np.full((64, 64), radius_px / (30 * 64 / 512), np.float32)


@pytest.mark.parametrize(
    ("radius_px", "slope", "exact"),
    [(1.0, 0.87, 0.02), (1.5, 0.955, 0.02), (2.0, 1.0, 0.02), (3.0, 1.0, 0.02), (5.0, 1.0, 0.01), (8.0, 1.0, 0.01)],
)
def test_rendered_radii_are_measured_from_two_pixels_on(photo, radius_px, slope, exact):
    """The claim of the docstring, by the renderer: low below 2 px, where no patch counts unless asked for."""
    offset = wall(radius_px)
    depth_m = 1 / (1 / FOCUS_M + offset)
    frames = np.stack([render_from_depth(photo, depth_m, k, FOCUS_M) for k in SIX])
    found = blur_response(photo, frames, SIX, offset, least_radius_px=0.5, largest_radius_px=8.5).slope
    assert len(found) == 16 and np.abs(found - slope).max() < exact
    counted = blur_response(photo, frames, SIX, offset * 1.001, largest_radius_px=8.5).slope
    assert len(counted) == (16 if radius_px >= 2 else 0)


@pytest.mark.parametrize(("radius_px", "most"), [(2.0, 0.08), (3.0, 0.05), (5.0, 0.02), (8.0, 0.02)])
def test_radii_of_a_ray_traced_lens(photo, radius_px, most):
    """Rays, which know no kernel, read between the pixels and so measure somewhat more, the less the wider."""
    offset = wall(radius_px)
    canvas = np.pad(photo, ((10, 10), (10, 10), (0, 0)), mode="edge")
    behind = DisparityPlane(0, 0, 0.2 + float(offset[0, 0]))
    nothing = np.zeros((*canvas.shape[:2], 4), np.float32)
    scene = TwoPlaneScene(nothing, canvas, DisparityPlane(0, 0, 9), behind, (64, 64))
    frames = np.stack([render_raytraced(scene, k, 0.2, rays=512) for k in SIX])
    found = blur_response(photo, frames, SIX, offset * 1.001, largest_radius_px=8.5).slope
    assert len(found) == 16 and 0 < np.median(found) - 1 < most
