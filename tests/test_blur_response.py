"""The measured radius of a blur against K, on blurs whose radius is known."""

import numpy as np
import pytest

from bokehdepth.errors import InputError
from bokehdepth.metrics import blur_response
from bokehdepth.rendering.disk import disk_blur
from bokehdepth.rendering.refocus import render_from_depth
from datasets_scripts.scenes.generator import SceneGenerator
from datasets_scripts.systhebokeh300.raytraced import DisparityPlane, TwoPlaneScene, render_raytraced

STRENGTHS = (5.0, 15.0, 30.0)


@pytest.fixture(scope="module")
def photo():
    rng = np.random.default_rng(0)
    return disk_blur(rng.random((64, 64, 3)), 0.8, gamma=1.0).astype(np.float32)


def frames_of(photo, offset_dpt, factor=1.0, strengths=STRENGTHS):
    radii = [factor * k * photo.shape[1] / 512 * offset_dpt for k in strengths]
    return np.stack([disk_blur(photo, r, gamma=2.2) if r > 0.5 else photo for r in radii]).astype(np.float32)


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.4])
def test_slope_is_the_factor_of_the_radius(photo, factor):
    offset = np.full((64, 64), 1.1, np.float32)
    found = blur_response(photo, frames_of(photo, 1.1, factor), STRENGTHS, offset)
    assert len(found.slope) == 16 and found.radius_px.shape == (16, 3)
    # The largest radius decides a fit through the origin; the measurement is a quarter of a pixel fine, refined.
    assert np.abs(found.slope - factor).max() < 0.06 * max(factor, 1)
    assert found.is_monotone.all()


def test_a_blur_that_does_not_follow_k_is_seen(photo):
    offset = np.full((64, 64), 1.1, np.float32)
    same = np.repeat(frames_of(photo, 1.1)[1:2], 3, axis=0)
    assert not blur_response(photo, same, STRENGTHS, offset).is_monotone.any()
    falling = frames_of(photo, 1.1)[::-1].copy()
    assert not blur_response(photo, falling, STRENGTHS, offset).is_monotone.any()
    none = np.stack([photo] * 3)
    found = blur_response(photo, none, STRENGTHS, offset)
    assert np.abs(found.slope).max() == 0 and not found.is_monotone.any()


def test_patches_without_texture_or_with_several_depths_do_not_count(photo):
    offset = np.full((64, 64), 1.1, np.float32)
    offset[:, ::2] *= 1.5
    assert len(blur_response(photo, np.stack([photo] * 3), STRENGTHS, offset).slope) == 0
    flat = np.full_like(photo, 0.4)
    assert len(blur_response(flat, np.stack([flat] * 3), STRENGTHS, np.full((64, 64), 1.1, np.float32)).slope) == 0
    near = np.full((64, 64), 0.01, np.float32)  # 0.04 px at K = 30
    assert len(blur_response(photo, np.stack([photo] * 3), STRENGTHS, near).slope) == 0


def test_the_renderer_has_slope_one():
    slopes = []
    for index in range(3):
        scene = SceneGenerator((96, 96), seed=1).generate(index, "wall")
        offset = np.abs(1 / scene.depth_m - 1 / scene.focus_distance_m).astype(np.float32)
        stack = np.stack([scene.render(k) for k in STRENGTHS])
        slopes += blur_response(scene.image, stack, STRENGTHS, offset, patch_px=12).slope.tolist()
    assert len(slopes) > 5 and abs(np.median(slopes) - 1) < 0.05


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
    found = blur_response(photo, frames, SIX, offset, least_radius_px=0.5, largest_radius_px=8.5)
    assert len(found.slope) == 16 and np.abs(found.slope - slope).max() < exact and found.is_monotone.all()
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
    found = blur_response(photo, frames, SIX, offset * 1.001, largest_radius_px=8.5)
    assert len(found.slope) == 16 and 0 < np.median(found.slope) - 1 < most and found.is_monotone.all()


def test_bad_arguments_are_refused(photo):
    offset, stack = np.full((64, 64), 1.1, np.float32), np.stack([photo] * 3)
    for arguments, sentence in [
        ((photo, stack, (5, 15), offset), "frames has the shape"),
        ((photo, stack, (5, 5, 30), offset), r"bokeh_strengths is \(5, 5, 30\)"),
        ((photo, stack, STRENGTHS, offset[:5]), "offset_dpt"),
    ]:
        with pytest.raises(InputError, match=sentence):
            blur_response(*arguments)
    with pytest.raises(InputError, match="patch_px is 100"):
        blur_response(photo, stack, STRENGTHS, offset, patch_px=100)
