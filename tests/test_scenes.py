import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bokehdepth.errors import InputError
from bokehdepth.rendering.layered import composite
from datasets_scripts.scenes.generator import KIND_WEIGHTS, Scene, SceneGenerator
from datasets_scripts.scenes.materials import FAMILIES, Materials, hue_chroma_matrix
from datasets_scripts.scenes.stage import FOCAL_SHARES, MIN_DEPTH_M, SKY_M

SIZE = (64, 80)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    generator = SceneGenerator(SIZE, seed=5)
    return [generator.generate(index, kind) for kind in KIND_WEIGHTS for index in range(3)]


def _write_matte(path: Path, left: int, top: int, right: int, bottom: int) -> None:
    rgba = np.zeros((80, 60, 4), dtype=np.uint8)
    rgba[top:bottom, left:right] = (200, 120, 40, 255)
    rgba[0, 59, 3] = 90  # a fleck of a predicted alpha
    Image.fromarray(rgba).save(path)


def test_every_kind_is_whole_and_metric(scenes):
    assert {scene.kind for scene in scenes} == set(KIND_WEIGHTS)
    for scene in scenes:
        assert scene.image.shape == (*SIZE, 3) and scene.image.dtype == np.float32
        assert scene.depth_m.shape == SIZE and scene.depth_m.dtype == np.float32
        assert scene.image.min() >= 0 and scene.image.max() <= 1 and scene.image.std() > 0.01
        assert scene.depth_m.min() >= MIN_DEPTH_M * 0.9999 and scene.depth_m.max() <= SKY_M * 1.0001
        assert scene.layers[0].is_opaque
        assert FOCAL_SHARES[0] <= scene.focal_length_px / max(SIZE) <= FOCAL_SHARES[1]
        assert scene.depth_known.shape == SIZE and scene.depth_known.dtype == bool


def test_subject_is_exactly_in_focus_and_the_rest_is_not(scenes):
    for scene in scenes:
        mask = scene.subject_mask
        assert 0.025 <= mask.mean() <= 0.85
        assert np.unique(scene.depth_m[mask]).size == 1
        assert scene.depth_m[mask][0] == pytest.approx(scene.focus_distance_m, rel=1e-6)
    offsets = [np.abs(1 / s.depth_m - 1 / s.focus_distance_m)[~s.subject_mask].mean() for s in scenes]
    assert np.median(offsets) > 0.15


def test_subject_keeps_its_pixels_and_the_rest_blurs(scenes):
    changes, kept = [], 0
    for scene in scenes:
        rendered = scene.render(30.0)
        changes.append(np.abs(rendered - scene.image)[~scene.subject_mask].mean())
        front = scene.layers[-1]
        if (
            front.disparity_dpt[0, 0]
            == front.disparity_dpt[scene.subject_mask][0]
            == np.float32(1 / scene.focus_distance_m)
        ):  # nothing in front of the subject: not one of its solid pixels may change
            solid = front.alpha == 1
            assert np.array_equal(rendered[solid], scene.image[solid])
            kept += 1
    assert kept >= len(scenes) / 3
    assert np.median(changes) > 0.005


def test_layers_and_render_agree_with_the_scene(scenes):
    for scene in scenes[::4]:
        image, disparity = composite(scene.layers)
        assert np.array_equal(image, scene.image)
        assert np.array_equal(scene.render(0.0), scene.image)
        assert np.allclose(1 / disparity, scene.depth_m)


def test_a_scene_depends_on_seed_and_index_alone():
    fresh, used = SceneGenerator(SIZE, seed=7), SceneGenerator(SIZE, seed=7)
    for index in range(6):
        used.generate(index)
    copied = pickle.loads(pickle.dumps(used))
    first, second, third = fresh.generate(4), used.generate(4), copied.generate(4)
    for other in (second, third):
        assert np.array_equal(first.image, other.image) and np.array_equal(first.depth_m, other.depth_m)
        assert first.focus_distance_m == other.focus_distance_m
    assert not np.array_equal(first.image, fresh.generate(5).image)
    assert not np.array_equal(first.image, SceneGenerator(SIZE, seed=8).generate(4).image)


def test_position_and_order_do_not_tell_depth():
    generator = SceneGenerator((32, 32), seed=1)
    made = [generator.generate(index) for index in range(50)]
    disparity = np.stack([np.log(1 / scene.depth_m) for scene in made])
    rows = np.broadcast_to(np.arange(32)[:, None], disparity.shape)
    assert np.corrcoef(rows.ravel(), disparity.ravel())[0, 1] < 0.5
    in_front = np.mean([(scene.depth_m < 0.99 * scene.focus_distance_m).mean() > 0.01 for scene in made])
    assert 0.1 < in_front < 0.7  # foreground things, nearer neighbours, near ground


def test_photos_and_mattes_are_used(tmp_path):
    photo = tmp_path / "red.jpg"
    Image.new("RGB", (90, 70), (250, 0, 0)).save(photo)
    mattes = [tmp_path / "whole.png", tmp_path / "half.png"]
    _write_matte(mattes[0], 15, 10, 45, 70)
    _write_matte(mattes[1], 15, 10, 45, 80)
    generator = SceneGenerator(SIZE, [photo], mattes, seed=3)
    pictures = [generator.generate(index, "portrait") for index in range(8)]
    behind = [scene.layers[0].rgb.mean(axis=(0, 1)) for scene in pictures]
    assert sum(colour[0] > 0.6 and colour[1] < 0.1 for colour in behind) >= 4
    orange = [scene.image[scene.subject_mask].mean(axis=0) for scene in pictures]
    assert sum(colour[0] > colour[1] > 1.5 * colour[2] for colour in orange) >= 3


def test_backdrops_replace_photos_behind_subjects(tmp_path):
    for name, colour in (("red", (250, 0, 0)), ("blue", (0, 0, 250))):
        Image.new("RGB", (90, 70), colour).save(tmp_path / f"{name}.png")
    generator = SceneGenerator(SIZE, [tmp_path / "red.png"], seed=3, backdrops=[tmp_path / "blue.png"])
    behind = [generator.generate(index, "portrait").layers[0].rgb.mean(axis=(0, 1)) for index in range(8)]
    assert sum(colour[2] > 0.6 and colour[0] < 0.1 for colour in behind) >= 4


def test_a_matte_that_ends_at_the_bottom_is_a_half_figure(tmp_path):
    _write_matte(tmp_path / "whole.png", 15, 10, 45, 70)
    _write_matte(tmp_path / "half.png", 15, 10, 45, 80)
    rng = np.random.default_rng(0)
    whole, half = (Materials([], [tmp_path / name], 64, 0).matte(rng) for name in ("whole.png", "half.png"))
    assert whole.open_sides == frozenset() and half.open_sides == {"bottom"}
    assert whole.height_m[1] > half.height_m[1]
    tall, wide = whole.rgba.shape[:2]  # bent by chance
    assert 45 < tall < 75 and 20 < wide < 40  # the fleck is gone


def test_things_are_bent_and_recoloured_but_stay_cut_where_they_were(tmp_path):
    _write_matte(tmp_path / "half.png", 15, 10, 45, 80)
    materials = Materials([], [tmp_path / "half.png"], 64, 0)
    things = [materials.matte(np.random.default_rng(seed)) for seed in range(12)]
    shapes = {thing.rgba.shape for thing in things}
    colours = np.array([thing.rgba[thing.rgba[..., 3] > 250][:, :3].mean(axis=0) for thing in things])
    assert len(shapes) > 6 and colours.std(axis=0).min() > 5
    for thing in things:
        assert (thing.rgba[-1, :, 3] > 250).mean() > 0.7  # it still ends at the picture's border, not above it
    assert all(np.array_equal(a.rgba, materials.matte(np.random.default_rng(seed)).rgba)
               for seed, a in enumerate(things))  # fmt: skip


def test_hues_turn_about_grey():
    third = hue_chroma_matrix(2 * np.pi / 3, 1.0)
    assert np.allclose(third @ [1, 0, 0], [0, 1, 0]) or np.allclose(third @ [1, 0, 0], [0, 0, 1])
    assert np.allclose(np.linalg.matrix_power(third, 3), np.eye(3))
    assert np.allclose(hue_chroma_matrix(1.0, 0.0), 1 / 3)
    assert np.allclose(hue_chroma_matrix(0.7, 1.4) @ np.ones(3), 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_drawn_families_are_cut_outs(family):
    materials = Materials([], [], 64, 0)
    sprite = materials.drawn(np.random.default_rng(0), (family,))
    assert sprite.family == family and sprite.rgba.dtype == np.uint8
    assert 0.03 < (sprite.rgba[..., 3] > 127).mean() <= 1
    assert sprite.rgba[..., :3][sprite.rgba[..., 3] > 127].std() > 2


def test_real_photos_and_mattes(data_root):
    photos = sorted((data_root / "photos" / "skimage").glob("*.jpg"))
    mattes = sorted((data_root / "mattes").glob("*/*.png"))[:6]
    generator = SceneGenerator((96, 128), photos, mattes, seed=1)
    for kind in KIND_WEIGHTS:
        scene = generator.generate(0, kind)
        assert scene.image.shape == (96, 128, 3) and scene.subject_mask.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size_px": (16, 64)}, r"size_px is \(16, 64\)"),
        ({"size_px": (64.0, 64)}, r"size_px is \(64.0, 64\)"),
        ({"size_px": (64,)}, r"size_px is \(64,\)"),
        ({"size_px": SIZE, "seed": -1}, "seed is -1"),
        ({"size_px": SIZE, "photos": [Path("nowhere.jpg")]}, "photos names 'nowhere.jpg'"),
        ({"size_px": SIZE, "mattes": [Path("nowhere.png")]}, "mattes names 'nowhere.png'"),
        ({"size_px": SIZE, "backdrops": [Path("nowhere.png")]}, "backdrops names 'nowhere.png'"),
    ],
)
def test_bad_generators_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        SceneGenerator(**arguments)


@pytest.mark.parametrize(("arguments", "message"), [((-1,), "index is -1"), ((0, "sea"), "kind is 'sea'")])
def test_bad_indices_and_kinds_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        SceneGenerator(SIZE).generate(*arguments)


def test_files_that_are_no_pictures_are_refused(tmp_path):
    text, clear = tmp_path / "text.jpg", tmp_path / "clear.png"
    text.write_text("no picture")
    Image.new("RGBA", (20, 20), (9, 9, 9, 0)).save(clear)
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="cannot be read as a picture"):
        Materials([text], [], 64, 0).backdrop(rng)
    with pytest.raises(InputError, match="has no visible pixel"):
        Materials([], [clear], 64, 0).matte(rng)
