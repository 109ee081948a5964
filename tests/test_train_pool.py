"""The pool in memory: which scenes, and batches of them."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from bokehdepth.errors import InputError
from train import data, stage1
from train.config import (
    AugmentConfig,
    BaseConfig,
    LoopConfig,
    PhaseConfig,
    PictureAugmentConfig,
    PoolConfig,
    Stage1Config,
    Stage2Config,
)

PHASE = PhaseConfig(32, 4, 1, 1e-3)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Three shards of two scenes, and one held-out scene."""
    folder = str(tmp_path_factory.mktemp("pool"))
    result = PoolConfig(folder, scenes=6, held_out_scenes=1, size_px=48, renders=2, shard=2, render_missing=True)
    data.fill_pool(result)
    return result


def stage1_config(pool, **settings):
    return Stage1Config("unused", [PHASE], pool, base=BaseConfig("flux"), loop=LoopConfig(**settings))


def test_a_pool_has_the_scenes_that_are_asked_for_and_no_more(pool):
    whole, part = data.ScenePool(pool, "train"), data.ScenePool(replace(pool, scenes=3), "train")
    assert (len(whole), len(part)) == (6, 3) and len(part.kinds) == 3
    assert {k: v.dtype for k, v in whole.tensors.items()} == {
        "image": torch.uint8, "bokeh": torch.uint8, "strength": torch.float32, "depth_m": torch.float32,
        "depth_known": torch.bool, "focus_distance_m": torch.float32, "focal_px": torch.float32,
    }  # fmt: skip
    for name, block in whole.tensors.items():
        assert torch.equal(part.tensors[name], block[:3])
    with np.load(data.shard_path(pool, "train", 2)) as shard:
        assert np.array_equal(whole.tensors["bokeh"][4:].numpy(), shard["bokeh"])
        assert whole.kinds[4:].tolist() == shard["kind"].tolist()


def test_a_pool_of_some_shards_is_what_is_there(pool, tmp_path):
    there = replace(pool, folder=str(tmp_path))
    with pytest.raises(InputError, match="which has no train shard"):
        data.ScenePool(there, "train")
    for index in (0, 2):
        shutil.copy(data.shard_path(pool, "train", index), tmp_path)
    whole, part = data.ScenePool(pool, "train"), data.ScenePool(there, "train")
    assert len(part) == 4
    assert torch.equal(part.tensors["image"], whole.tensors["image"][[0, 1, 4, 5]])


@pytest.mark.parametrize("augment", [AugmentConfig(gain=0.5), PictureAugmentConfig(hue=0.5, chroma=0.5)])
def test_a_batch_is_made_as_by_hand(pool, augment):
    """Mirror before colours, both of each scene's own generator, frames alike."""
    scenes, rows = data.ScenePool(pool, "train"), np.array([5, 0, 3, 0, 2])
    batch = scenes.batch(rows, 48, [np.random.default_rng(n) for n in range(5)], augment)
    seen = set()
    for number, row in enumerate(rows):
        rng = np.random.default_rng(number)
        mirrored = rng.random() < 0.5
        seen.add(mirrored)
        turn = (lambda x: x.flip(-1)) if mirrored else (lambda x: x)
        matrix = data.colour_matrix(rng, augment)
        photo, *frames = (
            data.recoloured(turn(x.movedim(-1, 0).float() / 255)[None], matrix[None])[0]
            for x in (scenes.tensors["image"][row], *scenes.tensors["bokeh"][row])
        )
        torch.testing.assert_close(batch["image"][number], photo, rtol=0, atol=1e-6)
        torch.testing.assert_close(batch["bokeh"][number], torch.stack(frames), rtol=0, atol=1e-6)
        assert torch.equal(batch["depth_m"][number, 0], 1 / (1 / turn(scenes.tensors["depth_m"][row])))
    assert seen == {True, False}


def test_batches_know_the_focal_length_and_where_depth_is_known(pool):
    scenes = data.ScenePool(pool, "train")
    with np.load(data.shard_path(pool, "train", 1)) as shard:
        focal_px, known = shard["focal_px"], shard["depth_known"]
    assert focal_px.dtype == np.float32 and (focal_px > 0.5 * 48).all() and known.dtype == bool
    whole, half = scenes.batch(np.array([2, 3]), 48), scenes.batch(np.array([2, 3]), 24)
    assert whole["focal_px"].numpy() == pytest.approx(focal_px)
    assert half["focal_px"].numpy() == pytest.approx(focal_px / 2)
    assert np.array_equal(whole["depth_known"][:, 0].numpy(), known)
    assert half["depth_known"].dtype == torch.bool and half["depth_known"].shape == (2, 1, 24, 24)
    rng = next(np.random.default_rng(n) for n in range(9) if np.random.default_rng(n).random() < 0.5)
    mirrored = scenes.batch(np.array([2]), 48, [rng])
    assert torch.equal(mirrored["depth_known"], whole["depth_known"][:1].flip(-1))
    assert torch.equal(mirrored["focal_px"], whole["focal_px"][:1])


def test_a_pool_of_chosen_kinds_without_renders(tmp_path):
    lean = PoolConfig(str(tmp_path), scenes=4, held_out_scenes=0, size_px=32, renders=0, kinds={"street": 1.0})
    data.render_shard(lean, "train", 0)
    scenes = data.ScenePool(lean, "train")
    assert scenes.kinds.tolist() == ["street"] * 4
    assert scenes.tensors["bokeh"].shape == (4, 0, 32, 32, 3) and scenes.tensors["strength"].shape == (4, 0)
    batch = scenes.batch(np.arange(3), 16, [np.random.default_rng(n) for n in range(3)])
    assert batch["bokeh"].shape == (3, 0, 3, 16, 16) and batch["image"].shape == (3, 3, 16, 16)
    with pytest.raises(InputError, match=r"pool\.renders must be 1 or more for Stage-1, got 0\."):
        data.PoolPairs(stage1_config(lean))
    with pytest.raises(InputError, match=r"pool\.renders must be 1 or more for the stack renderer, got 0\."):
        data.PoolStacks(Stage2Config("unused", lean, stack="renderer"))
    with pytest.raises(InputError, match=r"pool\.renders is -1"):
        replace(lean, renders=-1)
    with pytest.raises(InputError, match="kinds must be weights"):
        data.render_shard(replace(lean, kinds={"sea": 1.0}), "held_out", 0)


def test_shards_of_another_version_are_refused(pool, tmp_path):
    with np.load(data.shard_path(pool, "train", 0)) as shard:
        old = {name: shard[name] for name in shard.files if name not in ("focal_px", "depth_known")}
    there = replace(pool, folder=str(tmp_path))
    np.savez(data.shard_path(there, "train", 0), **old)
    with pytest.raises(InputError, match=r"must hold shards with depth_known, focal_px, got .* of another version"):
        data.ScenePool(there, "train")


def test_white_stays_white_when_pictures_are_reduced(pool):
    scenes = data.ScenePool(pool, "train")
    scenes.tensors = {name: value.clone() for name, value in scenes.tensors.items()}
    scenes.tensors["image"][:] = scenes.tensors["bokeh"][:] = 255
    for size_px in range(16, 48):
        batch = scenes.batch(np.arange(2), size_px)
        assert batch["image"].max() == batch["bokeh"].max() == 1 and batch["image"].min() > 0.999


def test_colours_change_in_linear_light():
    """Greys keep their light, exposure and white balance are factors on it, and a blurred pair stays a pair."""
    rng, picture = np.random.default_rng(0), torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    picture = 0.3 + 0.3 * picture
    turning = PictureAugmentConfig(gain=0, white_balance=0, hue=1.0, chroma=0.3)
    turned = torch.stack([data.colour_matrix(rng, turning) for _ in range(2)])
    grey = torch.linspace(0, 1, 24).expand(2, 3, 24, 24)
    torch.testing.assert_close(data.recoloured(grey, turned), grey, rtol=0, atol=1e-5)
    assert (data.recoloured(picture, turned) - picture).abs().mean() > 0.02
    with torch.autocast("cpu", torch.bfloat16):
        assert data.recoloured(picture, turned).dtype == torch.float32
    plain = torch.stack([data.colour_matrix(rng, PictureAugmentConfig()) for _ in range(2)])
    light = picture.pow(2.2) * plain.diagonal(dim1=1, dim2=2)[..., None, None]
    torch.testing.assert_close(data.recoloured(picture, plain).pow(2.2), light.clamp(max=1), rtol=0, atol=1e-5)

    def blurred(pictures):
        return torch.nn.functional.avg_pool2d(pictures.pow(2.2), 3, 1).pow(1 / 2.2)

    small = torch.eye(3) + 0.1 * (turned - torch.eye(3))  # nothing leaves the gamut
    apart, together = data.recoloured(blurred(picture), small), blurred(data.recoloured(picture, small))
    torch.testing.assert_close(apart, together, rtol=0, atol=1e-4)


def test_noise_of_a_sample_is_the_cpu_generators():
    shape = torch.Size((3, 8, 8))
    source = torch.Generator().manual_seed(5)
    spread = torch.sigmoid(torch.randn((), generator=source) + 0.8).clamp(min=0.05)
    wanted = torch.where(torch.rand((), generator=source) < 0.5, torch.ones(()), spread)
    sigma, noise = stage1.draw_mini_noise(5, shape)
    assert torch.equal(sigma, wanted) and torch.equal(noise, torch.randn(shape, generator=source))
