"""The embedded model's whole training in one command, with tiny networks."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bokehdepth.errors import InputError
from bokehdepth.hub import load_pipeline
from train import config, embedded, stacks, stage1
from train.config import Stage1Config, Stage2Config
from train.data import PoolPairs, PoolStacks, ScenePool, fill_pool
from train.methods.stage1 import load_stage1

pytestmark = pytest.mark.filterwarnings("ignore")
CONFIGS = Path(__file__).resolve().parents[1] / "train" / "configs"
COMMON = [
    *(f"pool.{name}=[]" for name in ("photos", "backdrops", "portraits", "mattes")),
    *("pool.scenes=8", "pool.held_out_scenes=2", "pool.shard=4", "pool.size_px=32", "pool.render_missing=true"),
    *("loop.precision=fp32", "loop.plain_attention=true", "loop.pool_on_device=false", "loop.trackers=[]"),
    *("loop.log_every=1", "optimizer.warmup=1"),
]
TRANSFORMER = {
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 8,
    "pooled_projection_dim": 8,
    "axes_dims_rope": [4, 6, 6],
    "stem_channels": [8, 8, 16, 16],
    "stem_depths": [1, 1, 1, 1],
    "mirrored": True,
    "quantile": 0.45,
}
PHASE = {"size_px": 16, "batch": 2, "steps": 1, "learning_rate": 1e-3}


def configs(folder):
    own = [f"pool.folder={folder / 'pool'}", *COMMON]
    one = [f"base.transformer={json.dumps(TRANSFORMER)}", "adapter.context_dim=8", "adapter.rank=2",
           f"phases={json.dumps([PHASE, PHASE, {**PHASE, 'size_px': 32}])}"]  # fmt: skip
    two = ["size_px=28", "batch=2", "base.backbone.hidden_size=16", "base.backbone.num_attention_heads=2",
           "base.backbone.image_size=28", "base.model.reassemble_hidden_size=16", "base.model.dsfa_num_heads=2",
           "base.model.neck_hidden_sizes=[8, 8, 8, 8]", "base.model.fusion_hidden_size=8",
           "base.model.head_hidden_size=8"]  # fmt: skip
    return (
        config.load(Stage1Config, CONFIGS / "mini_stage1.yaml", [*own, *one]),
        config.load(Stage2Config, CONFIGS / "mini_stage2.yaml", [*own, *two]),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedded")
    cfg1, cfg2 = configs(folder)
    fill_pool(cfg1.pool)
    threads = torch.get_num_threads()
    plan = embedded.train(cfg1, cfg2, folder / "run", (0.02, 0.01), already=8, stacks=5)
    torch.set_num_threads(threads)
    return folder, plan


def lines(path):
    return [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]


def test_steps_are_planned_and_every_part_is_trained_by_the_plan(trained):
    folder, plan = trained
    run = folder / "run"
    assert plan == json.loads((run / "plan.json").read_text())
    assert [phase["scenes"] for phase in plan["phases"]] == [8, 8, 8] and plan["scenes"] == 8
    assert lines(run / "stage1")[-1]["step"] == sum(phase["steps"] for phase in plan["phases"])
    for part in ("stage2", "control"):
        assert lines(run / part)[-1]["step"] == plan["stage2_steps"]
    stored = [json.loads((next(iter((run / part / "checkpoints").iterdir())) / "state.json").read_text())["config"]
              for part in ("stage2", "control")]  # fmt: skip
    assert [one["stack"] for one in stored] == ["stage1", "none"]


def test_the_exported_model_loads_as_every_embedded_model(trained):
    pipe = load_pipeline(str(trained[0] / "run" / "model"))
    pipe.set_progress_bar_config(disable=True)
    out = pipe(torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)), (10.0, 30.0))
    assert len(out.images) == 2 and out.depth_m.shape == (32, 32)
    assert pipe.config.depth_processing_px == 28 and pipe.transformer.config.quantile == 0.45
    assert pipe.bokeh_adapter.config.reference_timestep == 0.0


def test_the_same_call_trains_nothing_twice(trained):
    folder, plan = trained
    before = {part: (folder / "run" / part / "log.jsonl").read_text() for part in ("stage1", "stage2", "control")}
    again = embedded.train(*configs(folder), folder / "run", (9.0, 9.0), already=8, stacks=5)
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in plan.items() if k != "seconds"}
    assert before == {part: (folder / "run" / part / "log.jsonl").read_text() for part in before}


def test_frames_made_together_are_those_of_the_pipeline(trained):
    folder, _ = trained
    cfg, _ = configs(folder)
    pool = ScenePool(cfg.pool, "train")
    pipe = load_stage1(str(folder / "run" / "stage1" / "model"))
    pipe.transformer.register_to_config(quantile=0.9)  # so that a net that is hardly trained blurs
    frames = stacks.frames_of_pool(pipe, pool, 3, batch=2)
    assert frames.shape == (3, 3, 32, 32, 3) and frames.dtype == torch.uint8
    for row in range(3):
        found = pipe.generate_stack(
            pool.tensors["image"][row].numpy(), pool.tensors["strength"][row].tolist(), num_inference_steps=1,
            processing_area_px=32 * 32, restore=False, output_type="np",
        ).images  # fmt: skip
        # Another noise: the net looks at it a little, so what agrees is the picture and not its last bits.
        difference = abs(frames[row].numpy() / 255.0 - found)
        blur = abs(pool.tensors["image"][row].numpy() / 255.0 - found)
        assert difference.mean() < 0.01 and difference.mean() < 0.2 * blur.mean()
    part = pool.first(3, frames)
    assert len(part) == 3 and torch.equal(part.batch([2], 32)["bokeh"][0, 1], frames[2, 1].permute(2, 0, 1) / 255)
    assert torch.equal(part.tensors["image"], pool.tensors["image"][:3]) and not torch.equal(
        pool.tensors["bokeh"][:3], frames
    )


def test_a_training_goes_on_from_a_model(trained, tmp_path):
    folder, _ = trained
    cfg, _ = configs(folder)
    model = folder / "run" / "stage1" / "model"
    changes = [f"pool.folder={folder / 'pool'}", *COMMON, "base.transformer={}", f"base.start_from={model}",
               f"output={tmp_path}", f"phases={json.dumps([{**PHASE, 'learning_rate': 0.0}])}"]  # fmt: skip
    again = stage1.run(config.load(Stage1Config, CONFIGS / "mini_stage1.yaml", changes))
    old, new = (load_stage1(str(path)).transformer.state_dict() for path in (model, again))
    assert all(torch.equal(old[name], new[name]) for name in old)
    # Its sizes hold, but not how the photo is attended to.
    apart = config.load(
        Stage1Config, CONFIGS / "mini_stage1.yaml", [*changes, "adapter.reference_timestep=0.25", "picture_share=0.5"]
    )
    network, _ = stage1.build_network(apart, None)
    assert network.adapter.config.reference_timestep == 0.25 and network.picture_share == 0.5
    with pytest.raises(InputError, match="start_from is .* with base.transformer"):
        config.load(Stage1Config, CONFIGS / "mini_stage1.yaml", ["base.start_from=there"])


def held_out_run(folder, output, **loop):
    cfg, _ = configs(folder)
    phases = [dataclasses.replace(cfg.phases[-1], steps=4, learning_rate=0.05)]
    settings = dataclasses.replace(cfg.loop, held_out_every=1, save_every=1, keep=9, **loop)
    return dataclasses.replace(cfg, phases=phases, loop=settings, output=str(output))


def test_a_run_leaves_the_model_that_is_best_on_held_out_scenes(trained, tmp_path):
    cfg = held_out_run(trained[0], tmp_path / "run")
    model = stage1.run(cfg)
    found = {line["step"]: line["held_out_loss"] for line in lines(tmp_path / "run") if "held_out_loss" in line}
    best = min(found, key=found.get)
    assert sorted(found) == [1, 2, 3, 4] and best < 4  # such a rate makes it worse in the end
    record = json.loads((model / "training.json").read_text())
    assert record["step"] == best and record["held_out_loss"] == pytest.approx(found[best])
    average = load_file(tmp_path / "run" / "checkpoints" / f"step_{best:08d}" / "average.safetensors")
    left = load_stage1(str(model)).transformer.state_dict()
    assert all(torch.equal(left[name.removeprefix("transformer.")], value)
               for name, value in average.items() if name.startswith("transformer."))  # fmt: skip
    # Gone on with, it does not take a later and worse one.
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_00000004")
    assert json.loads((stage1.run(cfg, "latest") / "training.json").read_text())["step"] == best


def test_both_stages_look_at_the_same_held_out_scenes_every_time(trained):
    cfg1, cfg2 = configs(trained[0])
    pool = ScenePool(cfg1.pool, "held_out")
    stacks_of = PoolStacks(dataclasses.replace(cfg2, stack="renderer"))
    for source, phase, size in ((PoolPairs(cfg1), cfg1.phases[-1], 32), (stacks_of, cfg1.phases[0], 16)):
        first, again = (list(source.held_out(phase)) for _ in range(2))
        seen = torch.cat([batch["image"] for batch in first])
        assert torch.equal(seen, pool.batch(range(len(pool)), size)["image"])
        assert all(
            torch.equal(a[k], b[k]) for a, b in zip(first, again, strict=True) for k in a if k != "text_to_image"
        )
    with pytest.raises(InputError, match="held_out_every is 5 without a pool"):
        config.load(Stage1Config, CONFIGS / "stage1_flux.yaml", ["loop.held_out_every=5"])
