"""Table 4 and Table 5 at tiny size: real trainings of the debug configuration, real runs of the embedded model."""

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bokehdepth.errors import InputError
from bokehdepth.modeling_bokehdepth import BokehDepthAnythingForDepthEstimation
from train import ablate, config
from train.config import ManifestConfig, Stage2Config
from train.evaluation.methods import MethodOptions
from train.evaluation.samples import PoolSource, pool_of
from train.evaluation.scores_depth import ALWAYS

pytestmark = pytest.mark.filterwarnings("ignore")
DEBUG = Path(__file__).resolve().parents[1] / "train/configs/stage2_debug.yaml"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("ablation")


@pytest.fixture(scope="module")
def cfg(root):
    changes = [f"pool.folder={root / 'pool'}", f"output={root / 'unused'}", "steps=2", "optimizer.warmup=1",
               "loop.sample_every=0", "learning_rate=0.01", "pool.held_out_scenes=3"]  # fmt: skip
    return config.load(Stage2Config, DEBUG, changes)


def test_a_variant_differs_in_one_thing(cfg, root):
    for name, field in ablate.SWITCHES.items():
        variant = ablate.variant_config(cfg, name, root)
        assert variant.base.model == {**cfg.base.model, field: False}
        assert replace(variant, base=cfg.base, output=cfg.output) == cfg
    stage1 = replace(cfg, stack="stage1", pool=None, manifests=ManifestConfig(["rows.jsonl"]))
    assert ablate.variant_config(stage1, "renderer_stacks", root).stack == "renderer"
    assert ablate.variant_config(cfg, "no_stack", root).stack == "none"
    outputs = {ablate.variant_config(stage1, name, root).output for name in ablate.VARIANTS}
    assert len(outputs) == len(ablate.VARIANTS) == 7
    off = replace(cfg, base=replace(cfg.base, model={**cfg.base.model, "use_film": False}))
    for bad, name, sentence in [
        (cfg, "no_luck", "`variants` must be of whole.*, got 'no_luck'"),
        (cfg, "renderer_stacks", "must be stage1 for the variant"),
        (replace(cfg, stack="none"), "no_focus", "the whole model reads a stack"),
        (off, "no_film", "use_film` must be on"),
    ]:
        with pytest.raises(InputError, match=sentence):
            ablate.variant_config(bad, name, root)


def test_table_4_is_trained_scored_and_gone_on_with(cfg, root, monkeypatch):
    output = root / "four"
    names = ["no_focus", "no_bokeh", "no_stack"]
    text = ablate.ablate_stage2(cfg, output, names, MethodOptions())
    report = json.loads((output / "table" / "report.json").read_text())
    assert list(report["rows"])[0] == "whole" and report["against"] == "whole"
    assert set(report["rows"]) == {"whole", *names, *ALWAYS}
    assert (report["pictures"], report["scenes"]) == (3, 3)
    assert all(f"| {name}" in text for name in report["rows"])
    models = {
        name: BokehDepthAnythingForDepthEstimation.from_pretrained(output / "runs" / name / "model")
        for name in ("whole", "no_focus", "no_bokeh")
    }
    assert not models["no_focus"].config.use_focus and models["whole"].config.use_focus
    assert not models["no_bokeh"].config.use_bokeh
    rows = list(csv.DictReader((output / "table" / "per_image.csv").open()))
    errors = {name: [row["abs_rel"] for row in rows if row["method"] == name] for name in ["whole", *names]}
    assert len({tuple(values) for values in errors.values()}) == 4  # four different networks were scored
    # The same command again trains nothing and gives the same table; a part added later joins it.
    logged = (output / "runs" / "whole" / "log.jsonl").read_text()
    assert ablate.ablate_stage2(cfg, output, names, MethodOptions()) == text
    assert (output / "runs" / "whole" / "log.jsonl").read_text() == logged
    stacked = replace(cfg, stack="stage1", pool=None, manifests=ManifestConfig(["rows.jsonl"]))
    for bad, options, sentence in [
        (stacked, {}, "`stack_model` must be"),
        (cfg, {"protocol": "nyu"}, "`protocol` must be one of full.*, got 'nyu'"),
        (cfg, {"variants": ["no_luck"]}, "got 'no_luck'"),
    ]:
        named = dict(output=root / "bad", variants=names, options=MethodOptions())
        with pytest.raises(InputError, match=sentence):
            ablate.ablate_stage2(bad, **{**named, **options})
    assert not (root / "bad").exists()


def test_table_5_runs_one_model_at_several_steps(cfg, root, monkeypatch, capsys):
    changes = ["--set", f"pool.folder={root / 'pool'}"]
    assert pool_of(DEBUG, changes[1:]).folder == str(root / "pool")
    ablate.stage2.fill_pool(cfg.pool)
    threads = torch.get_num_threads()
    arguments = ["steps", "--pool", DEBUG, *changes, "--counts", 1, 4, "--processing-area-px", 64 * 64, "--no-restore",
                 "--output", root / "five"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["ablate", *map(str, arguments)])
    ablate.main()
    torch.set_num_threads(threads)
    report = json.loads((root / "five" / "table" / "report.json").read_text())
    assert list(report["rows"]) == ["004_steps", "001_steps", "identity", "uniform_blur"]
    cards = [root / "five" / "predictions" / name / "method.json" for name in ("004_steps", "001_steps")]
    assert [json.loads(card.read_text())["options"]["steps"] for card in cards] == [4, 1]
    one, four = (report["rows"][name]["psnr_srgb"]["mean"] for name in ("001_steps", "004_steps"))
    assert one != four and report["rows"]["004_steps"]["psnr_linear_minus_against"]["mean"] == 0
    assert "| 001_steps |" in capsys.readouterr().out
    for steps, sentence in (([], r"got \[\]"), ([1, 1], r"got \[1, 1\]"), ([0], r"got \[0\]")):
        with pytest.raises(InputError, match=sentence):
            ablate.ablate_steps(PoolSource(cfg.pool), root / "six", steps, MethodOptions())
