"""Two steps of each training, and that a resumed run equals an unbroken one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from bokehdepth.modeling_bokehdepth import BokehDepthAnythingForDepthEstimation
from bokehdepth.modeling_mini_flux import level_weights
from train import config, data, evaluate_bokeh, evaluate_depth, losses, stacks, stage1, stage2
from train.config import Stage1Config, Stage2Config

pytestmark = pytest.mark.filterwarnings("ignore")
ROOT = Path(__file__).resolve().parents[1]
POOL = {"scenes": 4, "held_out_scenes": 2, "shard": 2, "size_px": 64, "photos": [], "mattes": []}
STAGE1 = {
    "transformer": {
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "axes_dims_rope": [4, 6, 6],
        "joint_attention_dim": 8,
        "pooled_projection_dim": 8,
        "stem_channels": [8, 8, 8, 8],
    },
    "adapter": {"context_dim": 8, "rank": 2, "alpha": 2.0, "null_token": True, "query_key_lora": False},
    "phases": [
        {"size_px": 32, "batch": 2, "steps": 2, "learning_rate": 1e-3},
        {"size_px": 64, "batch": 1, "steps": 1, "learning_rate": 1e-3},
    ],
    "warmup": 2,
    "save_every": 1,
    "log_every": 1,
}
STAGE2 = {
    "backbone": {
        "hidden_size": 24,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "patch_size": 14,
        "image_size": 56,
        "out_indices": [1, 2, 3, 4],
    },
    "model": {
        "patch_size": 14,
        "max_depth": 60,
        "reassemble_hidden_size": 24,
        "reassemble_factors": [4, 2, 1, 0.5],
        "neck_hidden_sizes": [8, 8, 8, 8],
        "fusion_hidden_size": 8,
        "head_hidden_size": 8,
        "dsfa_levels": [1, 3],
        "dsfa_num_heads": 2,
        "dsfa_layerscale_init": 0.1,
        "focus_measure": True,
    },
    "size_px": 56,
    "batch": 2,
    "steps": 2,
    "save_every": 1,
    "log_every": 1,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    pool = {**POOL, "folder": str(folder / "pool")}
    (folder / "stage1.yaml").write_text(yaml.safe_dump({**STAGE1, "pool": pool, "output": str(folder / "one")}))
    (folder / "stage2.yaml").write_text(yaml.safe_dump({**STAGE2, "pool": pool, "output": str(folder / "two")}))
    cfg = config.load(Stage1Config, folder / "stage1.yaml", [])
    for split, shards in (("held_out", 1), ("train", 2)):
        for index in range(shards):
            data.render_shard(cfg.pool, split, index)
    return folder


def call(module, monkeypatch, *arguments):
    threads = torch.get_num_threads()
    monkeypatch.setattr("sys.argv", ["train", *map(str, arguments)])
    module.main()
    torch.set_num_threads(threads)


def test_pool_is_the_same_again_and_splits_differ(root, tmp_path):
    cfg = config.load(Stage1Config, root / "stage1.yaml", [])
    again = replace(cfg.pool, folder=str(tmp_path))
    data.render_shard(again, "train", 1)
    with np.load(data.shard_path(cfg.pool, "train", 1)) as a, np.load(data.shard_path(again, "train", 1)) as b:
        assert sorted(a.files) == sorted(b.files)
        assert all(np.array_equal(a[k], b[k]) for k in a.files)
    train, held = data.ScenePool(cfg.pool, "train"), data.ScenePool(cfg.pool, "held_out")
    assert len(train) == 4 and len(held) == 2
    assert not np.array_equal(train.arrays["image"][0], held.arrays["image"][0])


def test_augmentation_keeps_the_pair_exact(root):
    cfg = config.load(Stage1Config, root / "stage1.yaml", [])
    pool = data.ScenePool(cfg.pool, "train")
    plain = pool.batch(np.arange(4), 64)
    changed = pool.batch(np.arange(4), 64, np.random.default_rng(1))
    assert not torch.equal(plain["image"], changed["image"])
    for name in ("offset_dpt", "depth_m"):
        same = [
            torch.equal(a, b) or torch.equal(a, b.flip(-1)) for a, b in zip(plain[name], changed[name], strict=True)
        ]
        assert all(same)
    assert torch.isfinite(changed["depth_m"]).all() and changed["image"].max() <= 1


def test_files_are_split_by_name(tmp_path):
    for number in range(40):
        (tmp_path / f"{number}.png").touch()
    parts = [data.split_files([str(tmp_path / "*.png")], 0.3, split) for split in data.SPLITS]
    assert not set(parts[0]) & set(parts[1]) and len(parts[0]) + len(parts[1]) == 40 and parts[1]
    with pytest.raises(ValueError, match="No file matches"):
        data.split_files([str(tmp_path / "*.gif")], 0.3, "train")


def test_stage1_trains_resumes_and_is_scored(root, monkeypatch, caplog):
    file = root / "stage1.yaml"
    call(stage1, monkeypatch, "--config", file)
    whole = torch.load(root / "one" / "state.pt", weights_only=True)
    assert whole["step"] == 3
    broken = root / "broken"
    original = stage1.checkpointing.save

    def save_and_stop(path, **state):
        original(path, **state)
        if state["step"] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(stage1.checkpointing, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        call(stage1, monkeypatch, "--config", file, "--set", f"output={broken}")
    monkeypatch.setattr(stage1.checkpointing, "save", original)
    call(stage1, monkeypatch, "--config", file, "--set", f"output={broken}")
    resumed = torch.load(broken / "state.pt", weights_only=True)
    for part in ("model", "ema"):
        assert whole[part].keys() == resumed[part].keys()
        assert all(torch.equal(whole[part][k], resumed[part][k]) for k in whole[part])
    moved = [not torch.equal(whole["model"][k], whole["ema"][k]) for k in whole["model"]]
    assert any(moved)
    caplog.set_level("INFO")
    call(evaluate_bokeh, monkeypatch, "--config", file, "--model", root / "one" / "model", "--steps", 1,
         "--json", root / "bokeh.json")  # fmt: skip
    table = caplog.text
    for row in ("model", "identity", "best uniform blur", "position only", "true radii, same disks"):
        assert f"| {row} |" in table
    import json

    rows = json.loads((root / "bokeh.json").read_text())["rows"]
    assert rows["identity"]["K30"]["selectivity"]["defocused"] == 0
    assert rows["true radii, same disks"]["K30"]["whole"][0] > rows["identity"]["K30"]["whole"][0]


def test_stage2_trains_on_both_kinds_of_stack_and_is_scored(root, monkeypatch, caplog):
    one, two = root / "stage1.yaml", root / "stage2.yaml"
    if not (root / "one" / "model").exists():
        call(stage1, monkeypatch, "--config", one)
    generated = root / "generated"
    call(stacks, monkeypatch, "--config", one, "--model", root / "one" / "model", "--output", generated)
    cfg = config.load(Stage2Config, two, [])
    with np.load(data.shard_path(cfg.pool, "train", 0)) as a, np.load(generated / "train_64px_0000.npz") as b:
        assert np.array_equal(a["image"], b["image"]) and not np.array_equal(a["bokeh"], b["bokeh"])
    call(stage2, monkeypatch, "--config", two, "--set", f"generated={generated}")
    for stack in ("none", "sharp"):
        call(stage2, monkeypatch, "--config", two, "--set", f"stack={stack}", "--set", f"output={root / stack}")
    model = BokehDepthAnythingForDepthEstimation.from_pretrained(root / "two" / "model")
    fresh = stage2.build_model(cfg)
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))
    caplog.set_level("INFO")
    call(evaluate_depth, monkeypatch, "--config", two, "--model", root / "two" / "model", "--control",
         root / "none" / "model", "--generated", generated)  # fmt: skip
    assert "| constant guess |" in caplog.text and "| stack of Stage-1 |" in caplog.text
    assert "+0.000 (+0.000 to +0.000)" in caplog.text


def test_configurations_are_strict(tmp_path):
    for name, kind in (("mini_stage1", Stage1Config), ("mini_stage2", Stage2Config)):
        config.load(kind, ROOT / f"train/configs/{name}.yaml", [])
    values = yaml.safe_load((ROOT / "train/configs/mini_stage1.yaml").open())
    with pytest.raises(ValueError, match="unknown key 'batchsize'"):
        config.build(Stage1Config, {**values, "batchsize": 3}, "here")
    with pytest.raises(ValueError, match="unknown key 'foto'"):
        config.load(Stage1Config, ROOT / "train/configs/mini_stage1.yaml", ["pool.foto=1"])
    with pytest.raises(ValueError, match="'output' is missing"):
        config.build(Stage1Config, {k: v for k, v in values.items() if k != "output"}, "here")
    with pytest.raises(ValueError, match="stack is 'wild'"):
        config.load(Stage2Config, ROOT / "train/configs/mini_stage2.yaml", ["stack=wild"])


def test_level_weights_are_linear_between_levels():
    levels = torch.tensor([0.0, 0.1, 0.4])
    offsets = torch.tensor([0.0, 0.05, 0.1, 0.25, 0.4, 9.0]).view(1, 1, 1, 6)
    targets = level_weights(offsets, levels)[0, :, 0].T
    wanted = torch.tensor([[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.5, 0.5], [0, 0, 1], [0, 0, 1]])
    torch.testing.assert_close(targets, wanted.float())


def test_level_loss_is_least_at_the_truth():
    levels = torch.tensor([0.0, 0.1, 0.4])
    offsets = torch.rand(2, 1, 8, 8) * 0.5
    truth = level_weights(offsets, levels).clamp(min=1e-6).log()
    best = losses.level_loss(truth, offsets, levels)
    assert best < losses.level_loss(torch.zeros(2, 3, 8, 8), offsets, levels)
    assert best < losses.level_loss(truth + torch.randn(2, 3, 8, 8), offsets, levels)


def test_depth_losses_by_hand():
    target = torch.rand(2, 8, 8) + 1
    assert losses.scale_invariant_log_loss(target * 2, target, 1.0) < 1e-3
    torch.testing.assert_close(losses.scale_invariant_log_loss(target * 2, target, 0.0), torch.tensor(2.0).log())
    torch.testing.assert_close(losses.scale_invariant_log_loss(target * 2, target), torch.tensor(2.0).log() * 0.5**0.5)
    assert losses.log_gradient_loss(target * 3, target) < 1e-6
    ramp = torch.exp(torch.arange(8.0)).expand(1, 8, 8)
    torch.testing.assert_close(losses.log_gradient_loss(ramp, torch.ones(1, 8, 8), scales=1), torch.tensor(1.0))


def test_balanced_loss_weighs_both_areas_alike():
    radius = torch.zeros(1, 1, 10, 10)
    radius[..., :1] = 5
    target = torch.zeros(1, 3, 10, 10)
    few, many = target.clone(), target.clone()
    few[..., :1], many[..., 1:] = 0.5, 0.5
    few, many = (losses.balanced_pixel_loss(x, target, radius) for x in (few, many))
    assert 0.85 < few / many < 1.15
