import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import optimize

from bokehdepth.errors import InputError
from bokehdepth.rendering.layered import Layer, render_bokeh
from datasets_scripts.systhebokeh300.raytraced import (
    DisparityPlane,
    TwoPlaneScene,
    disk_points,
    margin_px,
    render_raytraced,
)

ROOT = Path(__file__).resolve().parents[1]
SIZE, MARGIN = (48, 64), 16
CANVAS = (SIZE[0] + 2 * MARGIN, SIZE[1] + 2 * MARGIN)
NEAR, FAR = DisparityPlane(0, 0, 0.8), DisparityPlane(0, 0, 0.2)


def _strength(radius_px: float, offset_dpt: float) -> float:
    return radius_px / offset_dpt * 512 / SIZE[1]


def _noise(channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((*CANVAS, channels), dtype=np.float32)


def _nothing() -> np.ndarray:
    return np.zeros((*CANVAS, 4), dtype=np.float32)


def _scene(foreground=None, background=None, near=NEAR, far=FAR) -> TwoPlaneScene:
    foreground = _nothing() if foreground is None else foreground
    return TwoPlaneScene(foreground, _noise(3) if background is None else background, near, far, SIZE)


def _square(low: int, high: int, seed: int = 5) -> np.ndarray:
    foreground = _noise(4, seed)
    foreground[..., 3] = 0
    foreground[low:high, low:high, 3] = 1
    return foreground


def _psnr(first: np.ndarray, second: np.ndarray) -> float:
    return -10 * np.log10(np.mean((first.astype(np.float64) - second) ** 2))


def test_zero_strength_is_the_sharp_picture_and_visible_disparities_do_not_mix():
    foreground = _noise(4)
    scene = _scene(foreground)
    sharp = scene.all_in_focus()
    assert np.array_equal(render_raytraced(scene, 0.0, 0.3), sharp)
    frame = (slice(MARGIN, -MARGIN), slice(MARGIN, -MARGIN))
    alpha = foreground[frame][..., 3:].astype(np.float64)
    light = foreground[frame][..., :3] ** 2.2 * alpha + (1 - alpha) * _noise(3)[frame] ** 2.2
    assert np.allclose(sharp, light ** (1 / 2.2), atol=1e-5)
    assert np.array_equal(scene.disparity_dpt(), np.where(alpha[..., 0] >= 0.5, np.float32(0.8), np.float32(0.2)))


@pytest.mark.parametrize("radius_px", [0.3, 4.0, 11.0])
def test_a_uniform_scene_stays_uniform(radius_px):
    background = np.full((*CANVAS, 3), 0.37, dtype=np.float32)
    slanted = DisparityPlane(0.1, -0.15, 0.2)
    out = render_raytraced(_scene(background=background, far=slanted), _strength(radius_px, 0.6), 0.8)
    assert np.abs(out - 0.37).max() < 1e-5


@pytest.mark.parametrize("focus_dpt", [0.0, 0.9])
def test_a_point_becomes_a_disk_of_the_formula_radius_and_keeps_its_light(focus_dpt):
    background = np.zeros((*CANVAS, 3), dtype=np.float32)
    background[MARGIN + 24, MARGIN + 32] = 20.0  # far above white: what one pixel gets stays below it
    radius = _strength(8.0, abs(0.2 - focus_dpt)) * SIZE[1] / 512 * abs(0.2 - focus_dpt)
    assert radius == pytest.approx(8.0)
    out = render_raytraced(
        _scene(background=background / 10), _strength(8.0, abs(0.2 - focus_dpt)), focus_dpt, rays=4096
    )
    light = out[..., 0].astype(np.float64) ** 2.2
    assert light.sum() == pytest.approx(2.0**2.2, rel=2e-3)
    level = 2.0**2.2 / (np.pi * 8.0**2)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    distance = np.hypot(y - 24, x - 32)
    assert np.abs(light[distance < 6.5] / level - 1).max() < 0.1
    assert light[distance > 9.5].max() < 1e-3 * level
    assert (light > level / 2).sum() == pytest.approx(np.pi * 8.0**2, rel=0.04)
    # Mean square distance: that of a disk, and of the bilinear tent on both axes.
    assert (light * distance**2).sum() / light.sum() == pytest.approx(8.0**2 / 2 + 1 / 3, rel=5e-3)


def test_a_foreground_in_focus_keeps_its_pixels():
    foreground = _square(30, 60)
    scene = _scene(foreground)
    out = render_raytraced(scene, 30.0, 0.8)
    inside = (slice(31 - MARGIN, 59 - MARGIN), slice(31 - MARGIN, 59 - MARGIN))
    assert np.array_equal(out[inside], scene.all_in_focus()[inside])
    assert np.abs(out - scene.all_in_focus())[:, 50:].mean() > 0.02


@pytest.mark.parametrize("focus_dpt", [0.05, 0.7])
@pytest.mark.parametrize("point", [(1.0, 0.0), (0.0, -1.0), (-0.6, 0.8)])
def test_a_ray_meets_a_slanted_plane_where_the_equations_say(point, focus_dpt):
    plane, strength = DisparityPlane(0.25, -0.2, 0.35), 30.0
    y, x = np.mgrid[: CANVAS[0], : CANVAS[1]] / 128  # the plane shows where it was hit
    background = np.stack([x, y, np.zeros_like(x)], -1) ** (1 / 2.2)
    scene = _scene(background=background.astype(np.float32), far=plane, near=DisparityPlane(0, 0, 0.9))
    out = render_raytraced(
        scene, strength, focus_dpt, rays=1, filtered=False, aperture=lambda n: np.array([point] * n)
    )
    hit = out[..., :2].astype(np.float64) ** 2.2 * 128 - MARGIN
    for row, column in ((0, 0), (10, 50), (47, 63), (24, 32)):

        def miss(t, row=row, column=column):
            qx, qy = (2 * (column + t * point[0] + 0.5) / SIZE[1] - 1), (2 * (row + t * point[1] + 0.5) / SIZE[0] - 1)
            disparity = 0.35 / (1 - 0.25 * qx + 0.2 * qy)
            return t - strength * SIZE[1] / 512 * (disparity - focus_dpt)

        t = optimize.brentq(miss, -8, 8)
        assert hit[row, column] == pytest.approx((column + t * point[0], row + t * point[1]), abs=2e-3)
        assert abs(t) > 0.3


def test_one_ray_sees_both_planes_where_independent_layers_go_wrong():
    # A half-plane before a white stripe, both out of focus in the same way: at a pixel beside the edge, the lens half
    # that looks past the edge sees the stripe and the other half the foreground, so the stripe's light is all there.
    foreground, background = _nothing(), np.zeros((*CANVAS, 3), dtype=np.float32)
    foreground[:, : MARGIN + 32, 3] = 1
    background[:, MARGIN + 32 :] = 1
    near, far = DisparityPlane(0, 0, 0.40001), DisparityPlane(0, 0, 0.4)
    strength = _strength(8.0, 0.4)
    scene = _scene(foreground, background, near, far)
    light = render_raytraced(scene, strength, 0.8, rays=2048)[24].astype(np.float64)[:, 0] ** 2.2
    layers = [
        Layer(background, np.ones(CANVAS, np.float32), np.full(CANVAS, 0.4, np.float32)),
        Layer(
            np.ascontiguousarray(foreground[..., :3]),
            np.ascontiguousarray(foreground[..., 3]),
            np.full(CANVAS, 0.40001, np.float32),
        ),
    ]
    apart = render_bokeh(layers, strength * SIZE[1] / CANVAS[1], 1 / 0.8)[24 + MARGIN].astype(np.float64)
    apart = apart[MARGIN:-MARGIN, 0] ** 2.2
    u = np.linspace(-1, 1, 20001)
    chord = np.sqrt(1 - u**2)
    # Rays from column x hit x - 8 u: the background is seen, and white, to the right of 31.5.
    exact = np.array([chord[(x - 8 * u) > 31.5].sum() / chord.sum() for x in range(SIZE[1])])
    assert np.abs(light - exact).max() < 0.02
    assert np.abs(apart - exact).max() > 0.2
    assert np.abs(apart - exact**2).max() < 0.06  # independent: seen, and white, are multiplied


def _rich_scene() -> TwoPlaneScene:
    smooth = np.repeat(np.repeat(_noise(3, 3)[::4, ::4], 4, 0), 4, 1)
    foreground = _square(30, 56)
    foreground[30:56:5, :, 3] = 0
    return _scene(foreground, smooth, DisparityPlane(0.01, 0.02, 0.8), DisparityPlane(-0.1, 0.15, 0.25))


def test_the_result_converges_to_that_of_many_plain_rays():
    scene, strength = _rich_scene(), _strength(9.0, 0.5)
    brute = render_raytraced(scene, strength, 0.75, rays=8192, filtered=False)
    plain = _psnr(render_raytraced(scene, strength, 0.75, rays=64, filtered=False), brute)
    coarse, fine, finer = (_psnr(render_raytraced(scene, strength, 0.75, rays=n), brute) for n in (64, 256, 1024))
    assert coarse > plain + 1  # what the filter is for
    assert coarse > 38 and fine > coarse + 4 and finer > fine + 4
    quarter, whole = (render_raytraced(scene, strength, 0.75, rays=n) for n in (128, 512))
    assert _psnr(quarter, whole) > 42


def test_the_same_scene_gives_the_same_bits_in_another_process():
    code = (
        "import hashlib, sys; sys.path.append('tests'); import test_raytraced as t;"
        "out = t.render_raytraced(t._rich_scene(), 40.0, 0.75, rays=40);"
        "print(hashlib.sha256(out.tobytes()).hexdigest())"
    )
    here = hashlib.sha256(render_raytraced(_rich_scene(), 40.0, 0.75, rays=40).tobytes()).hexdigest()
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == here


def test_no_ray_leaves_the_margin():
    slanted, strength = DisparityPlane(0.2, 0.1, 0.3), 60.0
    margin = margin_px((NEAR, slanted), SIZE, strength, 0.75)
    field = slanted.disparity_dpt(SIZE, (margin, margin))
    assert margin >= strength * SIZE[1] / 512 * np.abs(field - 0.75).max() + 1
    pictures = []
    for rim in (0.0, 1.0):  # what lies beyond the margin does not show
        canvas = np.full((SIZE[0] + 2 * margin + 4, SIZE[1] + 2 * margin + 4, 3), rim, dtype=np.float32)
        canvas[2:-2, 2:-2] = 0.5
        empty = np.zeros((*canvas.shape[:2], 4), dtype=np.float32)
        scene = TwoPlaneScene(empty, canvas, NEAR, slanted, SIZE)
        pictures.append(render_raytraced(scene, strength, 0.75, filtered=False))
    assert np.array_equal(*pictures)


def test_lens_points_cover_the_disk_evenly():
    points = disk_points(256)
    assert np.abs(points.mean(axis=0)).max() < 1e-12 and np.hypot(*points.T).max() <= 1.001
    assert (points**2).sum(axis=1).mean() == pytest.approx(0.5, abs=0.01)  # of a uniform disk
    for angle in np.linspace(0, np.pi, 7):
        assert (points @ (np.cos(angle), np.sin(angle)) > 0).mean() == pytest.approx(0.5, abs=0.03)


def test_planes_that_a_ray_meets_twice_are_refused():
    steep = DisparityPlane(0.3, 0.3, 0.5)
    with pytest.raises(InputError, match="background_plane has a = 0.3, b = 0.3, too steep"):
        render_raytraced(_scene(far=steep, near=DisparityPlane(0, 0, 3.0)), 3000.0, 0.1)
    with pytest.raises(InputError, match="no margin is enough|reaches 1 - a x - b y"):
        margin_px((steep,), SIZE, 3000.0, 0.1)
