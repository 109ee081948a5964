"""Runs as they are started: killed and resumed, on two processes, with each configuration that ships."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import train_runs
from PIL import Image
from safetensors.torch import load_file

import tiny
from bokehdepth.errors import InputError
from bokehdepth.manifest import CameraAnns, ManifestRow, read_manifest, write_manifest
from train import checkpointing, loop, stage1, stage2
from train.config import OptimizerConfig, PhaseConfig

pytestmark = pytest.mark.filterwarnings("ignore")
ROOT = Path(__file__).resolve().parents[1]
STAGES = {"one": stage1, "two": stage2}
# CPU tensors that other code splits differently are added up in another order; nothing else may differ.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-6}


def started(*command, check=True):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


def two_processes(what, folder):
    # accelerate starts several processes on a CPU by this flag, and ACCELERATE_USE_CPU then makes it gloo.
    launch = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")
    options = ("--mixed_precision", "no", "--dynamo_backend", "no")
    return started(*launch, *options, "tests/train_runs.py", what, str(folder))


def weights(output, step=4, part="trained"):
    return load_file(Path(output) / "checkpoints" / f"step_{step:08d}" / f"{part}.safetensors")


def log(output):
    return [json.loads(line) for line in (Path(output) / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Both stages, four steps, unbroken, in this process."""
    folder = tmp_path_factory.mktemp("runs")
    threads = torch.get_num_threads()
    for cfg, stage in zip(train_runs.configs(folder), STAGES.values(), strict=True):
        stage.run(cfg)
    torch.set_num_threads(threads)
    return folder


def test_a_killed_run_goes_on_to_the_same_bits(unbroken, tmp_path):
    (tmp_path / "pool").symlink_to(unbroken / "pool")
    died = started("tests/train_runs.py", "kill", str(tmp_path), check=False)
    assert died.returncode == -9, died.stderr[-3000:]
    for cfg, (name, stage) in zip(train_runs.configs(tmp_path), STAGES.items(), strict=True):
        folder = tmp_path / name / "checkpoints"
        assert sorted(p.name for p in folder.iterdir()) == [".step_00000004.part", "step_00000002"]
        with pytest.raises(InputError, match="wanted --resume latest"):
            stage.run(cfg)
        stage.run(cfg, "latest")
        assert sorted(p.name for p in folder.iterdir()) == ["step_00000002", "step_00000004"]
        for part in ("trained", "average"):
            whole, again = weights(unbroken / name, part=part), weights(tmp_path / name, part=part)
            assert whole.keys() == again.keys() and all(torch.equal(whole[k], again[k]) for k in whole)
        assert [line["loss"] for line in log(unbroken / name)] == [line["loss"] for line in log(tmp_path / name)]


def test_two_processes_equal_one_with_twice_the_batch(unbroken, tmp_path):
    (tmp_path / "pool").symlink_to(unbroken / "pool")
    two_processes("pair", tmp_path)
    assert json.loads((tmp_path / "two" / "model" / "training.json").read_text())["processes"] == 2
    double = tmp_path / "double"
    double.mkdir()
    (double / "pool").symlink_to(unbroken / "pool")
    for cfg, (name, stage) in zip(train_runs.configs(double, batch_factor=2), STAGES.items(), strict=True):
        stage.run(cfg)
        one, two = log(double / name), log(tmp_path / name)
        for a, b in zip(one, two, strict=True):
            assert a["learning_rate"] == b["learning_rate"]  # the schedule counts optimiser steps, not processes
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
            assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-3)
        whole, apart = weights(double / name), weights(tmp_path / name)
        for key in whole:
            torch.testing.assert_close(apart[key], whole[key], **TOLERANCE)
        assert any(not torch.equal(whole[k], weights(unbroken / name)[k]) for k in whole)  # the batch does matter


def manifest(folder, name, captions=((), ())):
    """A manifest of as many photos as there are lists of captions."""
    made = []
    for number, texts in enumerate(captions):
        colours = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(colours).resize((64, 64)).save(folder / f"p{number}.png")
        made.append(ManifestRow(row_id=f"p{number}", scene=f"p{number}", image_path=folder / f"p{number}.png",
                                target_path=folder / f"p{number}.png", strength_unit="metric", captions=texts,
                                camera_anns=CameraAnns(bokeh_strength=10.0)))  # fmt: skip
    write_manifest(folder / name, made)


def test_nobody_waits_while_one_process_does_the_work_of_all(tmp_path):
    """One process alone takes longer for pool or captions than another may wait here; the halves take less."""
    assert train_runs.ITEMS * train_runs.ITEM_S > train_runs.WAIT_S > 1.1 * train_runs.ITEMS * train_runs.ITEM_S / 2
    tiny.kontext().save_pretrained(tmp_path / "kontext")
    texts = tuple(f"scene {n}" for n in range(train_runs.ITEMS - 2))  # and the constant and the empty prompt
    manifest(tmp_path, "captions.jsonl", (texts[:3], texts[3:]))
    two_processes("wait", tmp_path)
    first, second = (json.loads((tmp_path / f"{n}.json").read_text()) for n in range(2))
    assert first["encoded"] == second["encoded"] == train_runs.ITEMS
    assert len(list((tmp_path / "pool").glob("*.npz"))) == train_runs.ITEMS
    # loop.timeout_s is what the process group works with: who waits longer gives up.
    assert first["limit"] == second["limit"] == train_runs.WAIT_S
    assert train_runs.WAIT_S - 1 < second["gave_up_s"] < train_runs.WAIT_S + 3


def test_stacks_wait_for_the_slowest_process(tmp_path):
    """The rows are divided beforehand, so the first to be done waits as long as the others differ from it."""
    manifest(tmp_path, "photos.jsonl")
    two_processes("stacks", tmp_path)
    assert [json.loads((tmp_path / f"{n}.json").read_text())["limit"] for n in range(2)] == [48 * 3600] * 2
    assert [len(row.stack) for row in read_manifest(tmp_path / "stacks.jsonl")] == [2, 2]


def test_accumulation_equals_one_large_batch(unbroken, tmp_path):
    (tmp_path / "pool").symlink_to(unbroken / "pool")
    for half, whole, stage in zip(
        train_runs.configs(tmp_path, accumulation=2), train_runs.configs(tmp_path, 2), STAGES.values(), strict=True
    ):
        stage.run(half)
        stage.run(replace(whole, output=f"{tmp_path}/whole_{stage.__name__}"))
        a, b = weights(half.output), weights(f"{tmp_path}/whole_{stage.__name__}")
        for key in a:
            torch.testing.assert_close(a[key], b[key], **TOLERANCE)


def test_gradients_are_clipped_to_the_norm(unbroken):
    """Plain descent: two steps move the weights by at most the rates times the clipped norm (and weight decay)."""
    for name, decay in (("one", 0.01), ("two", 0.05)):
        before, after = weights(unbroken / name, 2), weights(unbroken / name, 4)
        steps = log(unbroken / name)[2:]
        assert all(line["gradient_norm"] > 1.2 * train_runs.CLIP for line in steps), "the test wants clipping to bite"
        rate = sum(line["learning_rate"] for line in steps)
        moved = torch.cat([(after[k] - before[k]).flatten() for k in before]).norm().item()
        size = torch.cat([x.flatten() for x in before.values()]).norm().item()
        assert 0 < moved <= rate * (train_runs.CLIP + decay * size) * 1.001


def test_schedule_by_hand():
    plan = [PhaseConfig(64, 1, 10, 1.0), PhaseConfig(64, 1, 10, 0.5)]
    rate = lambda step, **changes: loop.learning_rate(OptimizerConfig(warmup=4, **changes), plan, step)  # noqa: E731
    assert rate(0, schedule="constant") == 0.25 and rate(3, schedule="constant") == rate(9, schedule="constant") == 1
    assert rate(10) == 0.5 and rate(15, final_rate=0.0) == pytest.approx(0.25)
    assert rate(15, schedule="poly", final_rate=0.0) == pytest.approx(0.5 * 0.5**0.9)
    assert rate(19, final_rate=0.2) > 0.5 * 0.2


def test_a_checkpoint_of_another_run_is_refused(unbroken, tmp_path):
    cfg, _ = train_runs.configs(unbroken)
    for changed, words in (
        (replace(cfg, seed=5), "seed is 5, in the checkpoint 0"),
        (replace(cfg, phases=[replace(cfg.phases[0], batch=8)]), "effective batch"),
        (replace(cfg, loop=replace(cfg.loop, precision="bf16")), "loop.precision is 'bf16'"),
    ):
        with pytest.raises(InputError, match=words):
            stage1.run(changed, "latest")
    with pytest.raises(InputError, match="which is no checkpoint"):
        stage1.run(cfg, tmp_path)
    assert checkpointing.latest(unbroken / "one").name == "step_00000004"


def test_accelerate_reads_every_launch_configuration():
    from accelerate.commands.config.config_args import load_config_from_file

    wanted = {"multi_gpu": "MULTI_GPU", "multi_node": "MULTI_GPU", "fsdp": "FSDP",
              "deepspeed": "DEEPSPEED"}  # fmt: skip
    found = {p.stem: p for p in (ROOT / "train/configs/accelerate").glob("*.yaml")}
    assert found.keys() == wanted.keys()
    for name, kind in wanted.items():
        assert load_config_from_file(str(found[name])).distributed_type == kind
