"""The measured radius of a blur against K, on blurs whose radius is known."""

import numpy as np
import pytest

from bokehdepth.errors import InputError
from bokehdepth.metrics import blur_response
from bokehdepth.rendering.disk import disk_blur
from bokehdepth.rendering.scenes import SceneGenerator

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
