"""Photographs as training data, and the losses on them, against values that follow from optics."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import train_runs
from PIL import Image

from bokehdepth.errors import InputError
from train import bokeh_photos, depth_photos, losses
from train.config import PhotosConfig
from train.photos import Photograph, PhotoPool, cut, scene_photo


def photograph(disparity, *, metric=True, focal=100.0, mask=None, dataset="rooms"):
    disparity = None if disparity is None else np.asarray(disparity, np.float32)
    shape = mask.shape if disparity is None else disparity.shape
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    return Photograph(dataset, image, disparity, metric, focal, mask)


def centre(photo, size):
    """The largest part in the middle of a photograph, not mirrored."""
    middle = SimpleNamespace(
        uniform=lambda low, high: (low + high) / 2, normal=lambda mean, _: mean, random=lambda: 1.0
    )
    return cut(photo, size, middle, PhotosConfig(["-"]))


# --- cutting ---------------------------------------------------------------------------------------------------------


def test_an_enlarged_crop_is_the_picture_of_a_longer_lens():
    photo, cfg = photograph(np.full((96, 128), 0.5)), PhotosConfig(["-"], zoom=0.5, zoom_share=1.0, squeeze=0.0)
    plain = centre(photo, (48, 64))
    assert plain["focal_px"] == pytest.approx(50.0) and plain["image"].shape == (3, 48, 64)
    found = [cut(photo, (48, 64), np.random.default_rng(seed), cfg) for seed in range(30)]
    focal = [sample["focal_px"].item() for sample in found]
    assert 50.0 <= min(focal) < 60 and 85 < max(focal) <= 100.0001  # twice as long at half of the side
    for sample in found:  # distances are of the scene, not of the lens
        assert sample["valid"].all() and torch.equal(sample["disparity"], torch.full((1, 48, 64), 0.5))


def test_unknown_depth_stays_unknown_and_mirrors_with_the_picture():
    disparity = np.full((64, 64), 0.25)
    disparity[:, :16] = np.nan
    cfg = PhotosConfig(["-"], zoom_share=0.0, squeeze=0.0)
    sides = set()
    for seed in range(12):
        sample = cut(photograph(disparity, focal=math.nan), (64, 64), np.random.default_rng(seed), cfg)
        assert sample["valid"].sum() == 64 * 48 and not sample["disparity"][~sample["valid"]].any()
        assert torch.isnan(sample["focal_px"])
        sides.add(bool(sample["valid"][0, 0, 0]))
    assert sides == {True, False}


def test_a_data_set_is_drawn_by_its_weight(tmp_path):
    file = str(train_runs.draw_photos(tmp_path))
    pool = PhotoPool(PhotosConfig([file], weights={"rooms": 3.0, "people_ccp": 1.0}))
    assert pool.shares[:4].sum() == pytest.approx(0.75) and len(pool) == 6
    assert len(PhotoPool(PhotosConfig([file], weights={"rooms": 0}))) == 2
    assert len(PhotoPool(PhotosConfig([file]), with_depth=True)) == 4
    with pytest.raises(InputError, match="`photos.weights` must name data sets of the manifests, got 'cellar'"):
        PhotoPool(PhotosConfig([file], weights={"cellar": 1.0}))
    with pytest.raises(InputError, match="must have rows of splits"):
        PhotoPool(PhotosConfig([file], splits=["test"]))


def test_bad_photographs_are_left_out_by_name(tmp_path, caplog):
    file = str(train_runs.draw_photos(tmp_path))
    (tmp_path / "photo1.png").write_bytes(b"")
    Image.new("L", (7, 7)).save(tmp_path / "mask4.png")
    Image.new("I;16", (64, 96)).save(tmp_path / "depth0.png")
    assert len(PhotoPool(PhotosConfig([file]))) == 3
    assert "3 left out of the photographs, a file cannot be used: photo0, photo1, photo4" in caplog.text
    for number in (2, 3):
        (tmp_path / f"photo{number}.png").write_bytes(b"")
    with pytest.raises(InputError, match="with depth, got none .4 left out of the photographs"):
        PhotoPool(PhotosConfig([file]), with_depth=True)


def test_what_a_lone_photo_cannot_tell_of_a_scene_is_not_valid():
    known = torch.ones(1, 32, 32, dtype=torch.bool)
    known[:, :8] = False
    tensors = {"depth_m": torch.full((1, 32, 32), 2.0), "depth_known": known, "focal_px": torch.tensor([30.0]),
               "image": torch.zeros(1, 32, 32, 3, dtype=torch.uint8)}  # fmt: skip
    sample = centre(scene_photo(SimpleNamespace(tensors=tensors), 0), (32, 32))
    assert torch.equal(sample["valid"], known) and bool(sample["metric"]) and sample["focal_px"] == 30


# --- Stage-1 ---------------------------------------------------------------------------------------------------------


def test_a_marked_subject_is_in_focus_and_what_is_behind_it_is_not():
    mask = np.zeros((64, 64), bool)
    mask[16:48, 16:48] = True
    disparity = np.where(mask, 0.5, 0.45)  # a depth model that sees hardly a step
    sample = bokeh_photos._in_focus_within(centre(photograph(disparity, mask=mask), (64, 64)))
    inside = torch.from_numpy(mask)[None]
    assert not sample["offset_dpt"][inside].any()
    # The offset behind is raised by at most four times towards the typical quarter of a dioptre.
    torch.testing.assert_close(sample["offset_dpt"][~inside], torch.full((64 * 64 - 32 * 32,), 0.2))
    assert 0 < (~sample["known"]).sum() < 64 * 20  # a rim around the outline says nothing


def test_a_pasted_figure_has_the_size_of_its_distance():
    mask = np.zeros((60, 20), bool)
    mask[5:55, 5:15] = True
    sprite = photograph(None, mask=mask, dataset="people_ccp")
    for seed in range(20):
        sample = centre(photograph(np.full((96, 128), 0.02), focal=120.0), (96, 128))
        before = sample["image"].clone()
        focus = bokeh_photos._paste(sample, sprite, np.random.default_rng(seed))
        assert focus is not None
        seen = sample["disparity"][0] > 0.021
        torch.testing.assert_close(sample["disparity"][0][seen], torch.full((int(seen.sum()),), focus))
        changed = (sample["image"] != before).any(0)
        assert (changed & ~seen).sum() < 0.1 * changed.sum()
        rows = seen.any(1).nonzero()[:, 0]
        if rows[0] > 0 and rows[-1] < 95:  # whole in the picture: height = f * metres / distance
            metres = (rows[-1] - rows[0] + 1) / 120.0 / focus
            assert 1.4 < metres < 2.0
    near = centre(photograph(np.full((96, 128), 5.0), focal=120.0), (96, 128))
    assert bokeh_photos._paste(near, sprite, np.random.default_rng(0)) is None  # everything there is nearer


# --- Stage-2 ---------------------------------------------------------------------------------------------------------


def test_rendered_frames_leave_the_focus_alone_and_blur_the_rest_more_with_k():
    disparity = np.full((64, 96), 1.0)
    disparity[:, 48:] = 0.2
    sample = {name: value[None] for name, value in centre(photograph(disparity), (64, 96)).items()}
    sharp = sample["image"][0]
    frames = depth_photos._frames(sample, 0, np.array([5.0, 20.0], np.float32), np.random.default_rng(3))
    change = (frames - sharp).abs().mean(1)
    halves = torch.stack([change[:, :, :40].mean((1, 2)), change[:, :, 56:].mean((1, 2))])
    focused, other = halves[halves[:, 1].argsort()]
    assert focused.max() < 1e-3 and 0.02 < other[0] < other[1]


def test_bounded_log_errors_by_hand():
    far = 100.0
    disparity = torch.full((4, 16, 16), 0.5)
    disparity[3] = 0.0  # a sky
    valid = torch.ones_like(disparity, dtype=torch.bool)
    valid[2, :8] = False
    metric = torch.tensor([True, False, True, True])
    depth = torch.stack([torch.full((16, 16), 4.0)] * 2 + [torch.full((16, 16), 2.0), torch.full((16, 16), 1e4)])
    depth[2, :8] = 77.0  # where nothing is known
    terms = losses.bounded_log_errors(depth, disparity, valid, metric, far)
    twice = math.log((0.25 + 0.01) / (0.5 + 0.01))
    rounded = math.sqrt(twice**2 + 1e-4) - 0.01
    sky = math.sqrt(math.log((1e-4 + 0.01) / 0.01) ** 2 + 1e-4) - 0.01
    torch.testing.assert_close(terms["metric"], torch.tensor([rounded, 0.0, 0.0, sky]), rtol=1e-4, atol=1e-6)
    assert terms["shape"].max() < 1e-6 and terms["gradient"].max() < 1e-6  # a constant factor is no shape
    torch.testing.assert_close(terms["abs_rel"], torch.tensor([1.0, 0.0, 0.0, 0.0]))
    # Another unit of a depth without scale changes nothing.
    bumpy = torch.rand(4, 16, 16, generator=torch.Generator().manual_seed(0)) + 1
    one, two = (losses.bounded_log_errors(bumpy, s * disparity, valid, torch.zeros_like(metric), far) for s in (1, 7))
    torch.testing.assert_close(one["shape"][:3], two["shape"][:3], rtol=1e-4, atol=1e-5)
    assert one["shape"][0] > 0.05


def test_halves_of_a_picture_count_alike_however_large_they_are():
    errors = torch.tensor([[1.0, 3.0, 10.0, 10.0], [2.0, 2.0, 2.0, 2.0]])
    first = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    found = losses.balanced_means(errors, first, 1 - first)
    torch.testing.assert_close(found, torch.tensor([(1 + 23 / 3) / 2, 1.0]))
