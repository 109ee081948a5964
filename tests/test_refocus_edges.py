"""Occlusion inside an octave of radii, and slanted surfaces without seams: against rays, and against plain scatter."""

import numpy as np
import pytest
import skimage.data
from scipy import ndimage

from bokehdepth.rendering.aperture import Aperture
from bokehdepth.rendering.refocus import refocus_light, render_from_depth, signed_radius_px
from bokehdepth.rendering.scatter import from_light, span_scatter, to_light
from datasets_scripts.systhebokeh300.raytraced import DisparityPlane, TwoPlaneScene, margin_px, render_raytraced

SIZE, STRENGTH = 160, 100.0
PX_PER_DPT = STRENGTH * SIZE / 512


def photo(name, side):
    return (getattr(skimage.data, name)()[60 : 60 + side, 100 : 100 + side] / 255).astype(np.float32)


def grey(value, side):
    return np.full((side, side, 3), value, dtype=np.float32)


def checker(side, square_px=8):
    y, x = np.mgrid[:side, :side] // square_px
    return np.repeat(((y + x) % 2 * 0.8 + 0.1)[..., None], 3, axis=2).astype(np.float32)


def soft(side):
    noise = ndimage.gaussian_filter(np.random.default_rng(2).standard_normal((side, side, 3)), (3, 3, 0))
    return np.clip(0.5 + 0.15 * noise / noise.std(), 0, 1).astype(np.float32)


def a_disk_before_a_wall(near_px, far_px, texture):
    """A disk whose blur has the radius ``near_px`` before a wall of ``far_px``, negative behind the focus."""
    focus_dpt = 1.0
    near, far = (DisparityPlane(0, 0, focus_dpt + radius / PX_PER_DPT) for radius in (near_px, far_px))
    margin = margin_px((near, far), (SIZE, SIZE), STRENGTH, focus_dpt)
    side = SIZE + 2 * margin
    front, back = {
        "photo": lambda: (photo("astronaut", side), photo("coffee", side)),
        "grey": lambda: (grey(0.15, side), grey(0.85, side)),
    }[texture]()
    y, x = np.mgrid[:side, :side] - side / 2 + 0.5
    alpha = (np.hypot(y, x) < 45).astype(np.float32)
    scene = TwoPlaneScene(np.dstack([front, alpha]), back, near, far, (SIZE, SIZE))
    mask = alpha[margin:-margin, margin:-margin] > 0
    distance = ndimage.distance_transform_edt(mask) + ndimage.distance_transform_edt(~mask)
    reach = max(abs(near_px), abs(far_px))
    edge = distance <= 2 * reach
    rim = int(np.ceil(reach)) + 1  # what lies beyond the frame is guessed
    edge[:rim] = edge[-rim:] = edge[:, :rim] = edge[:, -rim:] = False
    return scene, focus_dpt, edge


def psnr(first, second, where):
    return -10 * np.log10(np.mean((first - second)[where] ** 2))


@pytest.mark.parametrize(
    ("near_px", "far_px"),
    [(7.8, 4.2), (7.8, 5.8), (3.8, 2.2), (15.5, 8.5), (-4.2, -7.8), (-2.2, -3.8), (8.2, 3.8)],
)
def test_a_nearer_thing_covers_a_farther_one_inside_an_octave(near_px, far_px):
    """8.2 against 3.8 px is more than an octave: there what is hidden is guessed more, and photos set the limit."""
    for texture, least_db in (("photo", 39 if near_px == 8.2 else 42), ("grey", 47)):
        scene, focus_dpt, edge = a_disk_before_a_wall(near_px, far_px, texture)
        traced = render_raytraced(scene, STRENGTH, focus_dpt, rays=1024)
        ours = render_from_depth(scene.all_in_focus(), 1 / scene.disparity_dpt(), STRENGTH, 1 / focus_dpt)
        assert psnr(ours, traced, edge) > least_db


@pytest.mark.parametrize(("near_px", "far_px"), [(7.8, -4.2), (4.2, -7.8), (8.0, 0.0), (0.0, -8.0)])
def test_a_nearer_thing_covers_a_farther_one_across_the_focus(near_px, far_px):
    scene, focus_dpt, edge = a_disk_before_a_wall(near_px, far_px, "grey")
    traced = render_raytraced(scene, STRENGTH, focus_dpt, rays=1024)
    ours = render_from_depth(scene.all_in_focus(), 1 / scene.disparity_dpt(), STRENGTH, 1 / focus_dpt)
    assert psnr(ours, traced, edge) > 49


def test_radii_that_hardly_differ_mix_and_little_is_wrong():
    """The worst case: the ends of one layer, 6.7 and 5.7 px."""
    for texture, least_db in (("photo", 42), ("grey", 32)):
        scene, focus_dpt, edge = a_disk_before_a_wall(6.7, 5.7, texture)
        traced = render_raytraced(scene, STRENGTH, focus_dpt, rays=1024)
        ours = render_from_depth(scene.all_in_focus(), 1 / scene.disparity_dpt(), STRENGTH, 1 / focus_dpt)
        assert psnr(ours, traced, edge) > least_db


@pytest.mark.parametrize(
    ("near_px", "far_px", "least_db"), [(7.8, 4.2, 44), (8.0, 0.0, 46), (0.0, -8.0, 50), (-4.2, -7.8, 46), (20, 2, 45)]
)
def test_a_soft_edge_of_depth_is_an_edge(near_px, far_px, least_db):
    """Depth from a network goes over from one surface into the other; one that steep would hide all behind it."""
    scene, focus_dpt, edge = a_disk_before_a_wall(near_px, far_px, "grey")
    traced = render_raytraced(scene, STRENGTH, focus_dpt, rays=1024)
    depth = (1 / ndimage.gaussian_filter(scene.disparity_dpt(), 1.5)).astype(np.float32)
    assert psnr(render_from_depth(scene.all_in_focus(), depth, STRENGTH, 1 / focus_dpt), traced, edge) > least_db


def a_slanted_wall(steepness, centre_px, texture):
    """A wall whose radius changes by ``steepness`` for each pixel along x, and is ``centre_px`` in the middle."""
    focus_dpt = 3.0
    disparity = focus_dpt + centre_px / PX_PER_DPT
    slope = steepness * SIZE / 2 / PX_PER_DPT / disparity
    plane = DisparityPlane(slope, 0.3 * slope, disparity)
    margin = margin_px((plane,), (SIZE, SIZE), STRENGTH, focus_dpt)
    side = SIZE + 2 * margin
    back = {"checker": checker, "soft": soft, "photo": lambda side: photo("astronaut", side)}[texture](side)
    empty = np.zeros((side, side, 4), dtype=np.float32)
    return TwoPlaneScene(empty, back, DisparityPlane(0, 0, 50.0), plane, (SIZE, SIZE)), focus_dpt


@pytest.mark.parametrize("texture", ["checker", "soft", "photo"])
@pytest.mark.parametrize(
    ("steepness", "centre_px"), [(0.1, 10.0), (0.1, -10.0), (0.02, 4.0), (0.02, -4.0), (0.05, 8.0), (0.2, 18.0)]
)
def test_slanted_walls_show_no_seam(steepness, centre_px, texture):
    """Through r = 2, 4, 8 and 16 px. Nothing is hidden, so scatter without occlusion is right, up to what rays say."""
    scene, focus_dpt = a_slanted_wall(steepness, centre_px, texture)
    image, depth = scene.all_in_focus(), 1 / scene.disparity_dpt()
    signed = signed_radius_px(depth, STRENGTH, 1 / focus_dpt)
    light = np.dstack([to_light(image), np.ones_like(depth)])
    spread = span_scatter(light, np.abs(signed))
    plain = from_light(spread[..., :3] / spread[..., 3:])
    ours = render_from_depth(image, depth, STRENGTH, 1 / focus_dpt)
    traced = render_raytraced(scene, STRENGTH, focus_dpt, rays=1024)
    rim = int(np.ceil(np.abs(signed).max())) + 1
    inside = np.s_[rim:-rim, rim:-rim]
    assert np.abs(ours - plain)[inside].max() * 255 < 2.5
    away_from_rays = [np.abs(picture - traced)[inside].max() * 255 for picture in (ours, plain)]
    assert away_from_rays[0] < away_from_rays[1] + 1.5


@pytest.mark.parametrize("texture", ["soft", "checker"])
@pytest.mark.parametrize("centre_px", [2.0, 0.0, -2.0])
def test_a_wall_through_the_focus_shows_no_seam(centre_px, texture):
    scene, focus_dpt = a_slanted_wall(0.05, centre_px, texture)
    image, depth = scene.all_in_focus(), 1 / scene.disparity_dpt()
    signed = signed_radius_px(depth, STRENGTH, 1 / focus_dpt)
    spread = span_scatter(np.dstack([to_light(image), np.ones_like(depth)]), np.abs(signed))
    plain = spread[..., :3] / spread[..., 3:]
    ours = to_light(render_from_depth(image, depth, STRENGTH, 1 / focus_dpt))
    # In light, since black shows very little of it. A pixel in focus takes nothing from what lies behind it, and plain
    # scatter lets a neighbour of 0.6 px add the share of its disk that lies outside of it: 4 % on one side.
    assert np.abs(ours - plain)[9:-9, 9:-9].max() < 0.045


def test_a_slanted_wall_keeps_its_light():
    y, x = np.mgrid[:200, :200]
    for side in (1, -1):
        lamps = np.zeros((200, 200, 3), dtype=np.float32)
        lamps[100, 30:180:20] = 1
        spread = refocus_light(lamps, (side * (1 + x * 0.08)).astype(np.float32))
        assert spread[..., 0].sum(dtype=np.float64) == pytest.approx(8, rel=5e-3)


@pytest.mark.parametrize("aperture", [Aperture(squeeze=3.0), Aperture(squeeze=0.3), Aperture(3), Aperture(5, 20.0)])
@pytest.mark.parametrize("side", [1, -1])
def test_a_wide_aperture_sees_all_that_it_reaches_beyond_the_frame(aperture, side):
    light = np.random.default_rng(0).random((70, 90, 3), dtype=np.float32)
    radius = np.full((70, 90), 7.25, dtype=np.float32)
    expected = span_scatter(light, radius, aperture=aperture.mirrored() if side > 0 else aperture)
    assert np.abs(refocus_light(light, side * radius, aperture=aperture) - expected).max() < 2e-2 * 7.25**-1
    assert np.abs(refocus_light(light, side * radius, aperture=aperture) - expected)[:4].mean() < 1e-3


def test_light_in_focus_is_itself():
    light = np.random.default_rng(0).random((20, 30, 3), dtype=np.float32)
    assert np.array_equal(refocus_light(light, np.zeros((20, 30), dtype=np.float32)), light)
