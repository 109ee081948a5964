"""Outdoors in metres: ground, sky, houses, vehicles and the camera's height, against plain trigonometry."""

import numpy as np
import pytest
from PIL import Image

from bokehdepth.errors import InputError
from datasets_scripts.scenes import stage as staging
from datasets_scripts.scenes.generator import KIND_WEIGHTS, SceneGenerator, _Draft
from datasets_scripts.scenes.materials import Materials
from datasets_scripts.scenes.outdoors import Outdoors
from datasets_scripts.scenes.stage import SKY_M, Surface
from datasets_scripts.scenes.textures import Texture
from datasets_scripts.scenes.townscape import CAR_M, vehicle_views

SIZE = (96, 128)
OUTDOORS = ("landscape", "street")
MATERIALS = Materials([], [], 128, 0)


def draft(kind="street", seed=0, size=SIZE, stage=_Draft):
    return stage(size, MATERIALS, np.random.default_rng(seed), kind)


def empty(size=SIZE):
    return Surface(np.zeros((*size, 3), np.float32), np.zeros(size, np.float32), np.full(size, 1e-3, np.float32))


@pytest.fixture(scope="module")
def outdoors():
    generator = SceneGenerator(SIZE, seed=2)
    return [generator.generate(index, kind) for kind in OUTDOORS for index in range(8)]


@pytest.mark.parametrize("pitch_deg", [0, 12, -8, 35])
@pytest.mark.parametrize("camera_m", [1.2, 1.8, 20.0])
def test_ground_is_focal_length_times_height_over_rows_below_the_horizon(pitch_deg, camera_m):
    stage, pitch = draft(stage=Outdoors), np.deg2rad(pitch_deg)
    stage.turn(0, pitch, 0)
    ground = stage.add_plane(stage.plane((0, 1, 0), camera_m), np.inf)
    horizon = SIZE[0] / 2 - stage.focal_px * np.tan(pitch)
    assert stage.horizon_row() == pytest.approx(horizon, abs=1e-6)
    rows = np.arange(SIZE[0]) + 0.5
    depth = stage.focal_px * camera_m / np.maximum(np.cos(pitch) * (rows - horizon), 1e-6)
    seen = (ground.alpha[:, 5] == 1) & (depth > 0.4) & (depth < SKY_M)
    assert seen.sum() > 10
    assert np.allclose(1 / ground.disparity_dpt[seen, 5], depth[seen], rtol=1e-3)
    below = rows > horizon + 1  # it reaches the horizon: not a row of sky between them
    assert (ground.alpha[below, 5] > 0.5).all() and not ground.alpha[rows < horizon - 1, 5].any()


@pytest.mark.parametrize("kind", OUTDOORS)
@pytest.mark.parametrize("seed", range(4))
def test_all_ground_of_a_scene_is_one_plane_below_the_camera(kind, seed, monkeypatch):
    made = []
    add_plane = _Draft.add_plane
    monkeypatch.setattr(_Draft, "add_plane", lambda self, *a: made.append((a[0], add_plane(self, *a))) or made[-1][1])
    stage = draft(kind, seed)
    getattr(stage, f"build_{kind}")()
    ((plane, ground),) = made
    rows, columns = np.nonzero(ground.alpha == 1)
    depth = 1 / ground.disparity_dpt[rows, columns]
    ray = np.stack([stage.ray_x[0, columns], stage.ray_y[rows, 0], np.ones_like(depth)])
    assert np.allclose(stage.world[:, 1] @ (ray * depth), plane.offset_m, rtol=1e-3)
    assert 0.3 < plane.offset_m < 40 and depth.max() > 100
    assert sum((surface.alpha > 0.5).mean() for surface in stage.backdrop) > 1


def test_sky_is_far_and_things_are_at_all_distances(outdoors):
    farthest = [scene.depth_m.max() for scene in outdoors]
    assert np.mean(np.array(farthest) > 1000) > 0.7  # some look at a house alone
    for scene in outdoors:
        assert scene.layers[0].disparity_dpt.min() == np.float32(1 / SKY_M)
    depths = np.concatenate([scene.depth_m.ravel() for scene in outdoors])
    shares = np.histogram(depths, [0.4, 3, 10, 30, 100, 1000, 3000])[0] / depths.size
    assert shares.min() > 0.02


def test_most_cameras_are_held_by_hand():
    stage = draft(stage=Outdoors)
    heights = np.array([stage.camera_height() for _ in range(500)])
    assert 0.6 < ((heights > 1.2) & (heights < 1.8)).mean() < 0.85
    assert heights.min() < 0.7 and heights.max() > 4


def window_wall():
    """A wall of 12 x 6 m, 20 px to a metre, with white windows 1.2 m wide every 3 m."""
    picture = np.zeros((120, 240, 3), np.uint8)
    for left in range(18, 240, 60):
        picture[40:70, left : left + 24] = 255
    return Texture(picture)


@pytest.mark.parametrize("depth_m", [10.0, 14.0, 25.0])
def test_windows_times_depth_over_focal_length_are_metres(depth_m):
    stage, surface = draft(size=(192, 256), stage=Outdoors), empty((192, 256))
    stage.turn(0, 0, 0)
    right, up = np.array([1.0, 0, 0]), np.array([0, -1.0, 0])
    stage.draw_panel(surface, window_wall(), np.array([-6.0, 3.0, depth_m]), right, up, (12.0, 6.0))
    metres = depth_m / stage.focal_px
    columns, rows = surface.alpha[96].sum(), surface.alpha[:, 128].sum()
    shown_m = min(12.0, 256 * metres)
    assert columns * metres == pytest.approx(shown_m, rel=2e-3) and rows * metres == pytest.approx(6.0, rel=2e-3)
    light = surface.rgb[96, :, 0] * surface.alpha[96]
    middle = (
        np.abs((np.arange(256) + 0.5 - 128) * metres) < 3
    )  # two windows, from -2.1 to -0.9 m and from 0.9 to 2.1 m
    assert light[middle].sum() * metres == pytest.approx(2.4, rel=0.03)
    assert np.allclose(1 / surface.disparity_dpt[surface.alpha > 0.5], depth_m, rtol=1e-5)


def test_windows_along_a_street_are_where_perspective_has_them():
    stage, surface = draft(size=(192, 256), stage=Outdoors), empty((192, 256))
    stage.turn(0, 0, 0)
    along, up = np.array([0, 0, -1.0]), np.array([0, -1.0, 0])
    stage.draw_panel(surface, window_wall(), np.array([4.0, 1.5, 22.0]), along, up, (12.0, 6.0))
    column = np.arange(256) + 0.5 - 128
    seen = surface.alpha[96] > 0.99
    depth = stage.focal_px * 4.0 / column[seen]
    assert np.allclose(1 / surface.disparity_dpt[96, seen], depth, rtol=1e-5) and seen.sum() > 15
    position = (22.0 - depth) % 3.0  # from 0.9 to 2.1 m there is a window; rows 40 to 70 px are 2.5 to 4 m high
    high = np.array([int(96 - 1.75 * stage.focal_px / z) for z in depth])
    keep = high >= 0
    light = surface.rgb[high[keep], np.flatnonzero(seen)[keep], 0]
    inside = np.abs(position[keep] - 1.5)
    assert (light[inside < 0.35] > 0.5).all() and (light[inside > 1.0] < 0.5).all()


def test_a_panel_that_passes_the_camera_is_cut_at_the_lens():
    stage, surface = draft(stage=Outdoors), empty()
    stage.turn(0, 0, 0)
    along, up = np.array([0, 0, 1.0]), np.array([0, -1.0, 0])
    stage.draw_panel(surface, window_wall(), np.array([-2.0, 1.5, -30.0]), along, up, (60.0, 6.0), repeats=5)
    seen = surface.alpha > 0.5
    assert seen[:, :40].mean() > 0.5 and not seen[:, 66:].any()
    assert np.isfinite(surface.rgb).all()
    depth = 1 / surface.disparity_dpt[seen]
    assert depth.min() >= 0.4 * 0.999 and depth.max() <= 30 * 1.001
    behind = empty()
    stage.draw_panel(behind, window_wall(), np.array([-2.0, 1.5, -30.0]), along, up, (20.0, 6.0))
    assert not behind.alpha.any()


@pytest.mark.parametrize("family", CAR_M)
def test_vehicles_have_their_size(family):
    wide_m, tall_m, long_m = CAR_M[family]
    views = vehicle_views(MATERIALS.drawn(np.random.default_rng(1), (family,)).rgba, family)
    for view, length_m in (("rear", wide_m), ("front", wide_m), ("side", long_m)):
        tall, wide = views[view].shape[:2]
        seen = views[view][..., 3] > 127
        assert seen.any(axis=0).sum() / tall * tall_m == pytest.approx(length_m, rel=0.02)
        assert wide / tall * tall_m == pytest.approx(length_m, rel=0.02)
        assert seen[-2:].any() and seen[:2].any()
    stage = draft(size=(192, 256))
    stage.turn(0, 0, 0)
    stage.camera_m, stage.subject_extent = 1.5, (0.0, 0.0, 0.0)
    plane = stage.plane((0, 1, 0), 1.5)
    ground = stage.add_plane(plane, np.inf)
    for x_m, z_m in ((0.0, 8.0), (2.5, 12.0)):
        stage.things = []
        textures = MATERIALS.textures(np.random.default_rng(3), family)
        stage.add_vehicle(plane, ground, family, textures, x_m, z_m, False)
        (vehicle,) = stage.things
        depth = np.where(vehicle.alpha > 0.5, 1 / vehicle.disparity_dpt, np.nan)
        end = np.isclose(depth, z_m, rtol=1e-4)  # its rear
        columns = np.flatnonzero(end.any(axis=0)) + 0.5 - 128
        metres = z_m / stage.focal_px
        assert (columns[-1] - columns[0] + 1) * metres == pytest.approx(wide_m, abs=2.1 * metres)
        assert columns.mean() * metres == pytest.approx(x_m, abs=1.1 * metres)
        foot = np.flatnonzero(end.any(axis=1))[-1] + 1
        assert foot == pytest.approx(96 + 1.5 / metres, abs=1.5)
        assert np.nanmax(depth) == pytest.approx(z_m + (long_m if x_m else 0), rel=0.1)


def test_subjects_stand_before_the_houses_on_the_ground(outdoors):
    for scene in outdoors[8:]:
        assert scene.kind == "street"
        rows, columns = np.nonzero(scene.subject_mask)
        foot = rows.max()
        if foot < SIZE[0] - 1:  # under its foot is the ground at its distance
            under = scene.depth_m[foot + 1, columns[rows == foot]]
            assert (under <= 1.001 * scene.focus_distance_m).all()
            if np.ptp(columns) < 0.5 * SIZE[1]:
                assert np.median(under) > 0.7 * scene.focus_distance_m


@pytest.mark.parametrize("size", [(192, 256), (160, 384), (128, 96)])
def test_any_aspect(size):
    generator = SceneGenerator(size, seed=4)
    for kind in KIND_WEIGHTS:
        scene = generator.generate(3, kind)
        assert scene.image.shape == (*size, 3) and scene.kind == kind
        assert 0.5 * max(size) < scene.focal_length_px < 1.45 * max(size)


def test_a_street_depends_on_seed_and_index_alone():
    used = SceneGenerator((64, 64), seed=7)
    for index in range(5):
        used.generate(index, "street")
    first, second = used.generate(9, "street"), SceneGenerator((64, 64), seed=7).generate(9, "street")
    assert np.array_equal(first.image, second.image) and np.array_equal(first.depth_m, second.depth_m)


def test_far_things_share_a_layer_and_nothing_is_seen_of_it(monkeypatch):
    together = [SceneGenerator(SIZE, seed=6).generate(index, "landscape") for index in range(6)]
    monkeypatch.setattr(staging, "_FAR_DPT", 0.0)
    apart = [SceneGenerator(SIZE, seed=6).generate(index, "landscape") for index in range(6)]
    assert sum(len(scene.layers) for scene in together) < sum(len(scene.layers) for scene in apart)
    for one, other in zip(together, apart, strict=True):
        assert np.abs(one.image - other.image).mean() < 0.002
        assert (np.abs(one.depth_m / other.depth_m - 1) < 1e-5).mean() > 0.995
        assert np.abs(one.render(30.0) - other.render(30.0)).mean() < 0.003


def test_depth_is_known_where_the_picture_can_tell_it(tmp_path):
    Image.new("RGB", (90, 70), (250, 0, 0)).save(tmp_path / "red.png")
    matte = np.zeros((80, 60, 4), np.uint8)
    matte[10:70, 15:45] = (200, 120, 40, 255)
    Image.fromarray(matte).save(tmp_path / "matte.png")
    generator = SceneGenerator(SIZE, [], seed=3, backdrops=[tmp_path / "red.png"])
    for index in range(6):
        scene = generator.generate(index, "portrait")
        behind = scene.depth_m == 1 / scene.layers[0].disparity_dpt
        for layer in scene.layers[1:]:
            behind &= layer.alpha < 0.5
        assert behind.any() and not scene.depth_known[behind].any()
        assert scene.depth_known[scene.subject_mask].all()  # a drawn person is as large as people are
    known = {
        kind: np.mean([generator.generate(n, kind).depth_known.mean() for n in range(6)]) for kind in KIND_WEIGHTS
    }
    assert known["portrait"] < 0.6 and known["room"] > 0.9 and known["landscape"] > 0.95 and known["street"] == 1
    mattes = SceneGenerator(SIZE, [], [tmp_path / "matte.png"], seed=3)
    seen = [mattes.generate(index, "portrait") for index in range(12)]
    shares = {bool(scene.depth_known[scene.subject_mask].all()) for scene in seen}
    assert shares == {True, False}  # drawn subjects are known, mattes of whatever size are not


def test_kinds_are_chosen():
    generator = SceneGenerator((32, 32), seed=0, kinds={"street": 3, "room": 1.0, "wall": 0})
    kinds = [generator.generate(index).kind for index in range(40)]
    assert set(kinds) == {"street", "room"} and 20 <= kinds.count("street") < 40


@pytest.mark.parametrize(
    "kinds", [{"sea": 1.0}, {"street": -1.0}, {"street": 0.0}, {}, {"street": float("nan")}, {"street": "1"},
              {"photograph": 1.0}, ["street"]]
)  # fmt: skip
def test_other_kinds_are_refused(kinds):
    with pytest.raises(InputError, match="kinds must be weights of some of"):
        SceneGenerator((32, 32), kinds=kinds)
