"""Bad rows of a manifest: found before the run, named, left out; the others train as if they had never been there."""

import json
import logging
import pickle
import shutil
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import train_runs
from PIL import Image
from safetensors.torch import load_file

from bokehdepth.errors import InputError
from bokehdepth.manifest import CameraAnns, ManifestRow, StackFrame, read_manifest, write_manifest
from train import data, row_checks, rows, stage1, stage2
from train.config import PhaseConfig, Stage1Config, Stage2Config, load

pytestmark = pytest.mark.filterwarnings("ignore")
CONFIGS = Path(__file__).resolve().parents[1] / "train/configs"
SIZE = (72, 96)
FOCUS_M = 1.5
# 30 * 64 / 512 px for each dioptre in Stage-1's crop of 64 px: a radius of 512 px at 136.5 dpt from the focus.
NEAREST_M = 1 / (512 / (30 * 64 / 512) + 1 / FOCUS_M)


def picture(seed):
    coarse = np.random.default_rng(seed).integers(0, 256, (SIZE[0] // 4, SIZE[1] // 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(SIZE[::-1], Image.Resampling.BILINEAR)


def depth_of(*parts, fill=3.0):
    """Depth with a focused left half, and values in further (slice, slice, value) parts."""
    depth = np.full(SIZE, fill, np.float32)
    depth[:, : SIZE[1] // 2] = fill / 2
    for top, left, value in parts:
        depth[top, left] = value
    return depth


ALL = slice(None)
MIDDLE = slice((SIZE[1] - SIZE[0]) // 2, (SIZE[1] + SIZE[0]) // 2)
DEPTHS = {
    "good_a": depth_of(),
    "good_b": depth_of((slice(0, 9), ALL, np.nan)),
    "nearest": depth_of((slice(30, 40), slice(60, 70), 1.01 * NEAREST_M)),
    "beyond": depth_of(fill=500.0),
    "empty": depth_of((ALL, ALL, np.nan)),
    "zero": depth_of((ALL, ALL, 0.0)),
    "no_middle": depth_of((ALL, MIDDLE, np.nan)),
    "near": depth_of((slice(30, 40), slice(60, 70), 0.99 * NEAREST_M)),
    "small": depth_of()[:40],
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A manifest of good rows alone and one with a bad row of every kind among them."""
    folder, made = tmp_path_factory.mktemp("bad"), {}
    files = ("cut_photo", "no_photo", "cut_frame", "odd_frame", "cut_depth", "no_depth", "text_depth", "zip_depth",
             "cut_mask", "empty_mask")  # fmt: skip
    for seed, name in enumerate([*DEPTHS, *files]):
        picture(seed).save(folder / f"{name}.png")
        picture(seed + 100).save(folder / f"{name}_k20.png")
        np.save(folder / f"{name}.npy", DEPTHS.get(name, depth_of()))
        mask = np.zeros(SIZE, np.uint8)
        mask[:, :48] = 255
        Image.fromarray(mask).save(folder / f"{name}_mask.png")
        masked = name.endswith("_mask")
        made[name] = ManifestRow(
            row_id=name, scene=name, image_path=folder / f"{name}.png", depth_path=folder / f"{name}.npy",
            depth_unit="m", depth_scale=1.0, mask_path=folder / f"{name}_mask.png" if masked else None,
            strength_unit="metric", camera_anns=None if masked else CameraAnns(focus_distance_m=FOCUS_M),
            stack=(StackFrame(folder / f"{name}_k20.png", 20.0),),
        )  # fmt: skip
    for name in ("cut_photo.png", "cut_frame_k20.png", "cut_depth.npy", "cut_mask_mask.png"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) * 2 // 3])
    (folder / "no_photo.png").write_bytes(b"")
    picture(0).resize((96, 96)).save(folder / "odd_frame_k20.png")
    (folder / "no_depth.npy").write_bytes(b"")
    (folder / "text_depth.npy").write_text("three metres")
    np.savez_compressed(folder / "zip_depth.npz", depth=depth_of())
    whole = bytearray((folder / "zip_depth.npz").read_bytes())
    whole[len(whole) // 3 : len(whole) // 3 + 30] = bytes(30)
    (folder / "zip_depth.npz").write_bytes(whole)
    made["zip_depth"] = replace(made["zip_depth"], depth_path=folder / "zip_depth.npz")
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(folder / "empty_mask_mask.png")
    mixed = sorted(made.values(), key=lambda row: zlib.crc32(row.row_id.encode()))
    for name, left in (("all", ()), ("stage1", ("nearest", "beyond")), ("stage2", ("nearest", "near", "no_middle"))):
        write_manifest(folder / f"{name}.jsonl", [row for row in mixed if row.row_id not in left])
    write_manifest(folder / "good.jsonl", [row for row in mixed if row.row_id.startswith("good")])
    return folder


def stage1_config(home, name, *changes):
    files = json.dumps({"files": [str(home / f"{name}.jsonl")], "renders": 1})
    return load(Stage1Config, CONFIGS / "stage1_debug.yaml",
                ["pool=null", f"manifests={files}", "text_to_image=0.5",
                 "phases=[{size_px: 64, batch: 2, steps: 4, learning_rate: 1e-2}]",
                 "loop.log_every=1", "loop.save_every=2", "loop.sample_every=0", *changes])  # fmt: skip


def stage2_config(home, name, *changes):
    files = json.dumps({"files": [str(home / f"{name}.jsonl")]})
    return load(Stage2Config, CONFIGS / "stage2_debug.yaml",
                ["pool=null", f"manifests={files}", "stack=renderer", "strengths=[10, 30]", "steps=4",
                 "max_depth_m=80", "augment.frames=1", "augment.crop=0.3", "loop.log_every=1", "loop.save_every=2",
                 "loop.sample_every=0", *changes])  # fmt: skip


FILES = {"cut_photo", "no_photo", "cut_frame", "odd_frame"}
DEPTH_FILES = {"cut_depth", "no_depth", "text_depth", "zip_depth", "small", "empty", "zero"}
MASKS = {"cut_mask", "empty_mask"}


def names(source):
    return {row.row_id for row in source.rows}


def test_stage1_leaves_out_what_it_cannot_use_and_says_so(home, caplog):
    with caplog.at_level(logging.WARNING):
        source = rows.RowPairs(stage1_config(home, "all"), None)
    bad = FILES | DEPTH_FILES | MASKS | {"no_middle", "near"}
    usable = {source.rows[n].row_id for index in source.indices.values() for ns in index.rendered.values() for n in ns}
    # Beyond a Stage-2's range is no fault for Stage-1, which blurs it.
    assert usable == {"good_a", "good_b", "nearest", "beyond"} and not usable & bad
    text = caplog.text
    for count, reason, rows_of in (
        (3, "a picture cannot be read", ("cut_photo", "no_photo", "cut_frame")),
        (1, "frame and photo differ in size", ("odd_frame",)),
        (7, "depth cannot be used", DEPTH_FILES),
        (2, "the foreground mask cannot be used", MASKS),
        (1, "no depth inside the crop", ("no_middle",)),
        (1, "blur at K = 30 is wider than the renderer's 512 px", ("near",)),
    ):
        (line,) = [line for line in text.splitlines() if reason in line]
        assert f"{count} left out" in line and all(name in line for name in rows_of), line


def test_stage2_leaves_out_what_it_cannot_use_whatever_its_stack(home, caplog):
    kept = {}
    for stack in ("renderer", "stage1", "sharp", "none"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            kept[stack] = names(rows.RowStacks(stage2_config(home, "all", f"stack={stack}")))
        assert "1 left out altogether, no depth from 0.001 to 80 m: beyond (the first: beyond.npy: 250 to 500 m)" in (
            caplog.text
        )
    # At 56 px a blur is an eighth narrower than at Stage-1's 64: near is far enough.
    assert kept["renderer"] == {"good_a", "good_b", "nearest", "near", "no_middle"}
    assert all(found == kept["renderer"] for found in kept.values())


@pytest.mark.parametrize("distance_m, fits", [(0.1106, False), (0.1108, True)])
def test_the_widest_blur_of_the_renderer_by_hand(distance_m, fits):
    """60 px for each dioptre at K = 30 and 1024 px: 60 / d - 30 = 512 at d = 0.11070 m."""
    depth = np.full((2, 1024), 2.0, np.float32)
    depth[1, 7], depth[0, 3] = distance_m, np.nan
    found = row_checks.outcome(rows.check_blur, depth, 30.0, 2.0)
    assert (found is None) == fits


@pytest.mark.parametrize("stage, config", [(stage1, stage1_config), (stage2, stage2_config)])
def test_bad_rows_change_no_bit_of_a_run(home, tmp_path, stage, config):
    """The same run with and without them, which goes on from its checkpoint too."""
    name = stage.__name__.rpartition(".")[2]
    good, every = (config(home, rows_of, f"output={tmp_path}/{rows_of}") for rows_of in ("good", name))
    stage.run(good)
    stage.run(every)
    last = tmp_path / name / "checkpoints" / "step_00000004"
    wanted, found = (load_file(last.parents[2] / part / "checkpoints" / last.name / "trained.safetensors")
                     for part in ("good", name))  # fmt: skip
    shutil.rmtree(last)
    stage.run(every, "latest")
    again = load_file(last / "trained.safetensors")
    for tensor, value in wanted.items():
        assert value.isfinite().all() and torch.equal(found[tensor], value) and torch.equal(again[tensor], value)


def test_a_manifest_of_bad_rows_alone_is_refused_with_every_reason(home):
    bad = [row for row in read_manifest(home / "all.jsonl") if not row.row_id.startswith("good")]
    (home / "bad.jsonl").unlink(missing_ok=True)
    fit_for_one = ("nearest", "beyond", "near", "no_middle")
    write_manifest(home / "bad.jsonl", [row for row in bad if row.row_id not in fit_for_one])
    for cfg, kind in ((stage1_config(home, "bad"), rows.RowPairs), (stage2_config(home, "bad"), rows.RowStacks)):
        with pytest.raises(InputError, match=r"manifests have .*3 left out altogether, a picture cannot be read: "):
            kind(cfg, None) if kind is rows.RowPairs else kind(cfg)


def test_reasons_survive_the_way_between_processes():
    error = pickle.loads(pickle.dumps(row_checks.UnusableError("why", "what")))
    assert (error.reason, str(error)) == ("why", "what")
    many = [(ManifestRow(f"r{n}", "s", image_path=Path("x")), row_checks.UnusableError("why")) for n in range(23)]
    assert row_checks.told(many, "altogether").endswith("r18, r19 and 3 more")


def test_two_processes_read_half_of_the_rows_each_and_know_of_all(tmp_path):
    torch.multiprocessing.spawn(train_runs.shares, (str(tmp_path),), nprocs=2)
    (mine, one), (others, two) = (json.loads((tmp_path / f"{n}.json").read_text()) for n in (0, 1))
    assert (mine, others) == (["r0", "r2", "r4"], ["r1", "r3"])
    assert one == two == ["r0", "r1", "r2", "r3 is odd", "r4"]


def test_a_crop_without_depth_counts_nothing_and_leaves_the_loss_finite(home, tmp_path):
    """A row whose only depth is a corner: what its crops miss has no weight, with and without others beside it."""
    np.save(tmp_path / "corner.npy", depth_of((ALL, ALL, np.nan), (slice(66, 72), slice(90, 96), 2.0)))
    picture(0).save(tmp_path / "corner.png")
    row = ManifestRow("corner", "s", image_path=tmp_path / "corner.png", depth_path=tmp_path / "corner.npy",
                      depth_unit="m", depth_scale=1.0, camera_anns=CameraAnns(focus_distance_m=FOCUS_M))  # fmt: skip
    write_manifest(tmp_path / "corner.jsonl", [row])
    cfg = stage2_config(tmp_path, "corner", "relative_weight=0.3")
    source = rows.RowStacks(cfg)
    batch = source(0, PhaseConfig(56, 12, 1, 0.0), np.arange(12))
    seen = batch["valid"].flatten(1).any(1)
    assert 0 < seen.sum() < 12 and all(value.isfinite().all() for value in batch.values() if value.is_floating_point())
    torch.manual_seed(0)
    network = stage2.Stage2Network(stage2.build_model(cfg), cfg)
    batch = {name: value for name, value in batch.items() if name != "lone"}

    def graded(rows_of):
        network.zero_grad()
        terms = network({name: value[rows_of] for name, value in batch.items()})
        terms["loss"].backward()
        return terms, torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])

    (whole, gradient), (alone, of_alone), (nothing, of_nothing) = map(graded, (slice(None), seen, ~seen))
    assert whole["loss"] > 0.1 and gradient.norm() > 1e-3
    for term in whole:
        torch.testing.assert_close(whole[term], alone[term], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(gradient, of_alone, rtol=1e-4, atol=1e-6 * gradient.abs().max().item())
    assert nothing["loss"] == 0 and not of_nothing.any()
    stage2.run(replace(cfg, output=str(tmp_path / "run"), steps=3, batch=1))
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert np.isfinite(losses).all()


def test_a_file_that_goes_bad_later_is_drawn_around(home, tmp_path, caplog):
    """Another row in its place, the same one for every process and for all members of a group."""
    for name in ("a", "b"):
        for suffix, source in ((".png", f"good_{name}.png"), (".npy", f"good_{name}.npy")):
            (tmp_path / f"{name}{suffix}").write_bytes((home / source).read_bytes())
    made = [ManifestRow(name, "s", image_path=tmp_path / f"{name}.png", depth_path=tmp_path / f"{name}.npy",
                        depth_unit="m", depth_scale=1.0, camera_anns=CameraAnns(focus_distance_m=FOCUS_M))
            for name in "ab"]  # fmt: skip
    write_manifest(tmp_path / "two.jsonl", made)
    cfg = replace(stage1_config(tmp_path, "two"), text_to_image=1.0)
    pairs, stacks = rows.RowPairs(cfg, None), rows.RowStacks(stage2_config(tmp_path, "two"))
    (tmp_path / "b.npy").write_bytes(b"")
    phase = PhaseConfig(56, 8, 1, 0.0)
    with caplog.at_level(logging.WARNING):
        batch = pairs(0, cfg.phases[0], np.arange(8))
        halves = [pairs(0, cfg.phases[0], part) for part in (np.arange(4), np.arange(4, 8))]
        for name in ("image", "target", "strength", "seed"):
            assert torch.equal(batch[name], torch.cat([half[name] for half in halves]))
        assert torch.equal(batch["image"][::2], batch["image"][1::2]) and batch["strength"][::2].eq(0).all()
        deep = stacks(0, phase, np.arange(8))
        assert torch.equal(deep["depth_m"], stacks(0, phase, np.arange(8))["depth_m"])
    assert "another row is drawn" in caplog.text and deep["valid"].all()
    (tmp_path / "a.npy").write_bytes(b"")
    with pytest.raises(InputError, match="a.npy|b.npy"):
        stacks(1, phase, np.arange(8))


def test_pools_without_depth_are_refused_and_told(tmp_path, caplog):
    cfg = load(Stage2Config, CONFIGS / "stage2_debug.yaml", [f"pool.folder={tmp_path}", "pool.size_px=32"])
    data.fill_pool(cfg.pool)
    depth = data.ScenePool(cfg.pool, "train").tensors["depth_m"].flatten(1)
    nearest = depth.min(1).values.sort().values
    with pytest.raises(InputError, match="4 of whose 4 scenes have no depth from 0.001 to 0.1 m; wanted some"):
        data.PoolStacks(replace(cfg, max_depth_m=0.1))
    between = (nearest[1] + nearest[2]).item() / 2
    with caplog.at_level(logging.WARNING):
        source = data.PoolStacks(replace(cfg, max_depth_m=between))
    assert "2 of whose 4 scenes have no depth" in caplog.text
    batch = source(0, PhaseConfig(28, 8, 1, 0.0), np.arange(8))
    network = stage2.Stage2Network(stage2.build_model(cfg), cfg)
    assert network(batch)["loss"].isfinite() and not batch["valid"].flatten(1).any(1).all()
    path = data.shard_path(cfg.pool, "train", 0)
    with np.load(path) as shard:
        arrays = dict(shard)
    arrays["depth_m"][1, 2, 3] = np.nan
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=r"depth_m of '.*train_32px_0000.npz' must be above 0 everywhere, got nan\."):
        data.ScenePool(cfg.pool, "train")
