"""Runs as they are started: killed and resumed, on two processes, with each configuration that ships."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import train_runs
from accelerate import Accelerator
from safetensors.torch import load_file, save_file

from bokehdepth.errors import InputError
from train import checkpointing, loop, stage1
from train.config import OptimizerConfig, PhaseConfig

pytestmark = pytest.mark.filterwarnings("ignore")
ROOT = Path(__file__).resolve().parents[1]
# In float64. What is split differently is added up in another order, and diffusers has a few steps in float32.
TOLERANCE = {"rtol": 1e-6, "atol": 1e-9}


def started(*command, check=True):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


def share_data(source, folder):
    """Lets runs in another folder see the same scenes, photographs and models."""
    for name in ("pool", "scenes", "photos"):
        (folder / name).symlink_to(source / name)


def weights(output, step=4, part="trained"):
    return load_file(Path(output) / "checkpoints" / f"step_{step:08d}" / f"{part}.safetensors")


def log(output):
    return [json.loads(line) for line in (Path(output) / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """All trainers, four steps, unbroken, in this process."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "photos").mkdir()
    train_runs.draw_photos(folder / "photos")
    train_runs.save_depth_model(folder / "photos" / "model")
    threads = torch.get_num_threads()
    for name, cfg in train_runs.configs(folder).items():
        train_runs.run(name, cfg)
    torch.set_num_threads(threads)
    return folder


def test_a_killed_run_goes_on_to_the_same_bits(unbroken, tmp_path):
    share_data(unbroken, tmp_path)
    died = started("tests/train_runs.py", "kill", str(tmp_path), check=False)
    assert died.returncode == -9, died.stderr[-3000:]
    for name, cfg in train_runs.configs(tmp_path).items():
        folder = tmp_path / name / "checkpoints"
        assert sorted(p.name for p in folder.iterdir()) == [".step_00000004.part", "step_00000002"]
        with pytest.raises(InputError, match="wanted --resume latest"):
            train_runs.run(name, cfg)
        train_runs.run(name, cfg, "latest")
        assert sorted(p.name for p in folder.iterdir()) == ["step_00000002", "step_00000004"]
        for part in ("trained", "average"):
            whole, again = weights(unbroken / name, part=part), weights(tmp_path / name, part=part)
            assert whole.keys() == again.keys() and all(torch.equal(whole[k], again[k]) for k in whole)
        assert [line["loss"] for line in log(unbroken / name)] == [line["loss"] for line in log(tmp_path / name)]


def assert_same_terms(found, wanted):
    """Two logs agree in all but speed, in the learning rate, which counts optimiser steps, to the last bit."""
    for a, b in zip(found, wanted, strict=True):
        assert a.keys() == b.keys() and a["learning_rate"] == b["learning_rate"]
        for term in a.keys() - {"pictures_per_s"}:
            assert a[term] == pytest.approx(b[term], rel=1e-6), term


def test_two_processes_with_two_batches_equal_one_with_four(unbroken, tmp_path):
    share_data(unbroken, tmp_path)
    # accelerate starts several processes on a CPU by this flag, and ACCELERATE_USE_CPU then makes it gloo.
    launch = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")
    options = ("--mixed_precision", "no", "--dynamo_backend", "no")
    started(*launch, *options, "tests/train_runs.py", "pair", str(tmp_path))
    assert json.loads((tmp_path / "two" / "model" / "training.json").read_text())["processes"] == 2
    double = tmp_path / "double"
    double.mkdir()
    share_data(unbroken, double)
    for name, cfg in train_runs.configs(double, batch_factor=4).items():
        with train_runs.in_float64():
            train_runs.run(name, cfg)
        assert_same_terms(log(tmp_path / name), log(double / name))
        whole, apart = weights(double / name), weights(tmp_path / name)
        for key in whole:
            torch.testing.assert_close(apart[key], whole[key], **TOLERANCE)
        assert any(not torch.equal(whole[k], weights(unbroken / name)[k]) for k in whole)  # the batch does matter


def gradients_of(monkeypatch):
    """A list that gets the gradients of every step, as they are before they are clipped."""
    seen, clip = [], Accelerator.clip_grad_norm_

    def look(self, parameters, *arguments):
        seen.append(torch.cat([p.grad.flatten() for p in parameters]).clone())
        return clip(self, parameters, *arguments)

    monkeypatch.setattr(Accelerator, "clip_grad_norm_", look)
    return seen


@pytest.mark.parametrize("name", ["one", "two", "photos1", "photos2"])
def test_accumulation_equals_one_large_batch(unbroken, tmp_path, monkeypatch, name):
    """Eight samples at once, and as two and four accumulated batches: loss, gradients, weights."""
    share_data(unbroken, tmp_path)
    gradients, terms, moved = gradients_of(monkeypatch), {}, {}
    factors = {1: 2, 2: 1} if name == "one" else {1: 4, 2: 2, 4: 1}  # its groups hold four
    for parts, factor in factors.items():
        cfg = train_runs.configs(tmp_path, factor, accumulation=parts)[name]
        with train_runs.in_float64():
            train_runs.run(name, replace(cfg, output=f"{tmp_path}/{parts}"))
        terms[parts], moved[parts] = log(tmp_path / str(parts)), weights(tmp_path / str(parts))
    whole = torch.stack(gradients[:4])
    for number, parts in enumerate(factors):
        assert_same_terms(terms[parts], terms[1])
        found = torch.stack(gradients[4 * number : 4 * number + 4])
        assert ((found - whole).norm(dim=1) < 1e-6 * whole.norm(dim=1)).all()
        for key, value in moved[1].items():
            torch.testing.assert_close(moved[parts][key], value, **TOLERANCE)


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


def test_samples_without_a_stack_do_not_hide_dsfa_from_training(unbroken):
    for name in ("two", "photos2"):
        before, after = weights(unbroken / name, 2), weights(unbroken / name, 4)
        moved = [k for k in before if ".dsfa." in k and not torch.equal(before[k], after[k])]
        assert any("focus_attn" in k for k in moved) and any("focus_film" in k for k in moved)


def test_schedule_by_hand():
    plan = [PhaseConfig(64, 1, 10, 1.0), PhaseConfig(64, 1, 10, 0.5)]
    rate = lambda step, **changes: loop.learning_rate(OptimizerConfig(warmup=4, **changes), plan, step)  # noqa: E731
    assert rate(0, schedule="constant") == 0.25 and rate(3, schedule="constant") == rate(9, schedule="constant") == 1
    assert rate(10) == 0.5 and rate(15, final_rate=0.0) == pytest.approx(0.25)
    assert rate(15, schedule="poly", final_rate=0.0) == pytest.approx(0.5 * 0.5**0.9)
    assert rate(19, final_rate=0.2) > 0.5 * 0.2


def test_a_checkpoint_of_another_run_is_refused(unbroken, tmp_path):
    cfg = train_runs.configs(unbroken)["one"]
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


def _poisoned(path):
    state = load_file(path)
    save_file({name: value * torch.nan for name, value in state.items()}, path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "state.json").write_text("{"), "is damaged"),
        (lambda folder: (folder / "state.json").write_bytes(b"\xff\xfe"), "is damaged"),
        (lambda folder: (folder / "state.json").write_text("[1]"), "lacks one of step, ema_steps"),
        (lambda folder: (folder / "state.json").write_text(json.dumps({"step": "4"})), "lacks one of step, ema_steps"),
        (lambda folder: (folder / "trained.safetensors").write_bytes(b"x"), "damaged or missing"),
        (lambda folder: (folder / "average.safetensors").unlink(), "damaged or missing"),
        (lambda folder: _poisoned(folder / "trained.safetensors"), "wanted finite values"),
    ],
)
def test_a_damaged_checkpoint_is_one_sentence(unbroken, tmp_path, damage, words):
    cfg = train_runs.configs(unbroken)["two"]
    folder = shutil.copytree(unbroken / "two/checkpoints/step_00000004", tmp_path / "step_00000004")
    damage(folder)
    with pytest.raises(InputError, match=words) as caught:
        train_runs.run("two", cfg, folder)
    assert "\n" not in str(caught.value)


def test_a_finished_run_whose_model_is_not_of_its_end_writes_it(unbroken, tmp_path):
    shutil.copytree(unbroken / "two", tmp_path / "two")
    cfg = replace(train_runs.configs(unbroken)["two"], output=str(tmp_path / "two"))
    model = tmp_path / "two" / "model"
    wanted = (model / "model.safetensors").read_bytes()
    kept = (model / "model.safetensors").stat().st_ino
    train_runs.run("two", cfg, "latest")
    assert kept == (model / "model.safetensors").stat().st_ino
    for change in (lambda: shutil.rmtree(model), lambda: _of_step_two(model)):
        change()
        train_runs.run("two", cfg, "latest")
        record = json.loads((model / "training.json").read_text())
        assert record["step"] == record["of"] == 4 and (model / "model.safetensors").read_bytes() == wanted


def _of_step_two(model):
    record = json.loads((model / "training.json").read_text())
    (model / "training.json").write_text(json.dumps(record | {"step": 2}))
    (model / "model.safetensors").write_bytes(b"of step two")
    (model / "config.json").unlink()


def test_accelerate_reads_every_launch_configuration():
    from accelerate.commands.config.config_args import load_config_from_file

    wanted = {"multi_gpu": "MULTI_GPU", "multi_node": "MULTI_GPU", "fsdp": "FSDP",
              "deepspeed": "DEEPSPEED"}  # fmt: skip
    found = {p.stem: p for p in (ROOT / "train/configs/accelerate").glob("*.yaml")}
    assert found.keys() == wanted.keys()
    for name, kind in wanted.items():
        assert load_config_from_file(str(found[name])).distributed_type == kind
