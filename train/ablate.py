"""The paper's two ablations and the trials of the embedded Stage-1, with one command each and one table.

`python -m train.ablate stage2 --config train/configs/mini_stage2.yaml --output runs/ablation` (Table 4)

trains the configuration whole and once more for each part that is taken away (focus attention, space attention, FiLM,
the K condition, Stage-1's stacks, the stack itself), all on the same data, seed and steps, and scores them on held-out
samples. A run that was cut off goes on where it stopped.

`python -m train.ablate steps --model embedded --pool train/configs/mini_stage1.yaml --output runs/steps` (Table 5)

runs one Stage-1 with 50, 20, 10, 5 and 1 denoising steps on the same photos and noise, and scores them.

`python -m train.ablate stage1 --config train/configs/mini_stage1.yaml --output runs/trials`

trains the embedded Stage-1 briefly, with each of its decisions taken otherwise, three seeds each, and scores them on
held-out scenes of its pool.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bokehdepth.errors import InputError
from bokehdepth.metrics import PROTOCOLS
from train import config, controls, stage1, stage2
from train.checkpointing import latest
from train.config import Stage1Config, Stage2Config
from train.evaluate_bokeh import evaluate_predictions as evaluate_bokeh
from train.evaluate_depth import evaluate_predictions as evaluate_depth
from train.methods import MethodOptions, make_method
from train.methods.stage1 import load_stage1
from train.predict import add_method_arguments, options_of
from train.predictions import markdown, predict_all
from train.sources import PoolSource, RowSource, Source, add_source_arguments, open_source

logger = logging.getLogger("train.ablate")
WHOLE = "whole"
SWITCHES = {
    "no_focus": "use_focus",
    "no_space": "use_space",
    "no_film": "use_film",
    "no_bokeh": "use_bokeh",
}
"""Rows of Table 4 to the field of BokehDepthAnythingConfig that is switched off."""
VARIANTS = (WHOLE, *SWITCHES, "renderer_stacks", "no_stack")
STEPS = (50, 20, 10, 5, 1)
"""Rows of Table 5."""
TRIALS = {
    "base": {},
    "generated picture": {"base.transformer.head": "picture"},
    "K as a constant": {"adapter.null_token": False, "adapter.modulation_conditioning": False},
    "K by token and null": {"adapter.modulation_conditioning": False},
    "K by modulation": {"adapter.attention_conditioning": False, "adapter.null_token": False},
    "tokens of 8 px": {
        "base.transformer.in_channels": 192,
        "base.transformer.stem_channels": [16, 40, 96],
        "base.transformer.stem_depths": [1, 1, 2],
    },
    "causal reference": {"adapter.reference_attention": "causal"},
    "photo encoded apart": {"adapter.reference_attention": "causal", "adapter.reference_timestep": 0.0},
    "one block a level": {"base.transformer.stem_depths": [1, 1, 1, 1]},
    "levels weigh 0.3": {"level_weight": 0.3},
    "128 px, a quarter of the scenes": {"phases": [{"size_px": 128, "batch": 4, "steps": 125, "learning_rate": 1e-3}]},
    "128 px, then 256 px": {
        "phases": [
            {"size_px": 128, "batch": 4, "steps": 62, "learning_rate": 1e-3},
            {"size_px": 256, "batch": 2, "steps": 32, "learning_rate": 5e-4},
        ]
    },
    "4 denoising steps": {},
}
"""Rows of the trials of Stage-1 to the values that differ; one attention token without a null key is a constant."""
SCORED_STEPS = {"4 denoising steps": 4}
"""Denoising steps that a trial is scored with, where it is not one; the weights are those of the base."""
TRIAL_BASE = {
    "phases": [{"size_px": 64, "batch": 8, "steps": 250, "learning_rate": 1e-3}],
    "base.transformer": {
        "num_layers": 1,
        "num_single_layers": 3,
        "stem_channels": [16, 40, 96, 160],
        "stem_depths": [1, 1, 2, 3],
    },
    "adapter.reference_attention": "full",
    "adapter.reference_timestep": None,
    "loop.precision": "fp32",
    "loop.plain_attention": True,
    "loop.pool_on_device": False,
    "loop.held_out_every": 0,
    "picture_share": 1.0,
}
"""What all trials change of the configuration: half of the network and a minute on a CPU."""


def variant_config(cfg: Stage2Config, name: str, output: Path) -> Stage2Config:
    """The configuration of one row of Table 4; all else is as in `cfg`.

    Args:
        cfg: of the whole model.
        name: one of `VARIANTS`.
        output: folder of the ablation.

    Raises:
        InputError: there is no such variant, or it would equal the whole model.
    """
    if name not in VARIANTS:
        raise InputError(f"variant is {name!r}, wanted one of {', '.join(VARIANTS)}.")
    if cfg.stack not in ("renderer", "stage1"):
        raise InputError(f"stack is {cfg.stack!r}, wanted renderer or stage1: the whole model reads a stack.")
    changed = dataclasses.replace(cfg, output=str(output / "runs" / name))
    if name in SWITCHES:
        if not cfg.base.model.get(SWITCHES[name], True):
            raise InputError(f"variant is {name}, but base.model has {SWITCHES[name]} off already.")
        fields = {**cfg.base.model, SWITCHES[name]: False}
        return dataclasses.replace(changed, base=dataclasses.replace(cfg.base, model=fields))
    if name == "renderer_stacks":
        if cfg.stack != "stage1":
            raise InputError("variant is renderer_stacks, but stack is renderer already, wanted stage1.")
        return dataclasses.replace(changed, stack="renderer")
    return dataclasses.replace(changed, stack="none") if name == "no_stack" else changed


def held_out_source(cfg: Stage2Config) -> Source:
    """Held-out samples of a configuration's own data: a pool's held-out scenes, or rows of the split test.

    Raises:
        InputError: the manifests have no such row.
    """
    if cfg.pool is not None:
        return PoolSource(cfg.pool, cfg.size_px)
    # train.rows needs a configuration's splits; the held-out ones are those that training leaves out.
    from train.rows import load_rows

    rows = load_rows(dataclasses.replace(cfg.manifests, splits=["test"]))
    return RowSource([row for row in rows if row.depth_path is not None], "test rows of the manifests")


def ablate_stage2(
    cfg: Stage2Config, output: Path, variants: Sequence[str], options: MethodOptions, protocol: str = "full"
) -> str:
    """Trains and scores the rows of Table 4.

    Args:
        cfg: of the whole model.
        output: folder of runs, predictions and the table.
        variants: of `VARIANTS`; the whole model is always trained.
        options: for the methods; `stack_model` is the Stage-1 that makes held-out stacks where training had Stage-1's.
        protocol: of `bokehdepth.metrics.PROTOCOLS`.

    Returns:
        The table: AbsRel and the other measures with intervals over scenes, each row against the whole model.

    Raises:
        InputError: as the parts say; every configuration is checked before the first is trained.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"protocol is {protocol!r}, wanted one of {', '.join(PROTOCOLS)}.")
    names = list(dict.fromkeys([WHOLE, *variants]))
    configs = {name: variant_config(cfg, name, output) for name in names}
    if cfg.stack == "stage1" and options.stack_model is None:
        raise InputError("stack_model is None, wanted the Stage-1 that makes the stacks of held-out photos.")
    predictions = output / "predictions"
    source: Source | None = None
    for name, variant in configs.items():
        resume = "latest" if latest(Path(variant.output)) else None
        logger.info("%s: training", name)
        model = stage2.run(variant, resume)
        # Opened after the first training, which renders the pool where the configuration says so.
        source = source or held_out_source(cfg)
        kind = {"stage1": "stage2:generated", "renderer": "stage2:given", "none": "stage2:none"}[variant.stack]
        own = dataclasses.replace(options, model=str(model), processing_px=cfg.size_px)
        if variant.stack == "stage1" and cfg.pool is not None:
            own = dataclasses.replace(own, processing_area_px=cfg.size_px**2, restore=False)
        settings = dataclasses.asdict(own) | {"bokeh_strengths": list(own.bokeh_strengths)}
        predict_all(name, make_method(kind, own), source, predictions, settings)
    return evaluate_depth(predictions, source, protocol, WHOLE, output / "table")


def ablate_steps(source: Source, output: Path, steps: Sequence[int], options: MethodOptions) -> str:
    """Scores one Stage-1 at several numbers of denoising steps, the rows of Table 5.

    Args:
        source: photos with targets.
        output: folder of predictions and the table.
        steps: numbers of steps, each once.
        options: for Stage-1; its own number of steps is replaced.

    Returns:
        The table, each row against the largest number of steps.

    Raises:
        InputError: as the parts say, or `steps` is empty, has a number twice or one below 1.
    """
    if not steps or len(set(steps)) != len(steps) or min(steps) < 1:
        raise InputError(f"steps is {list(steps)}, wanted different numbers of 1 or more.")
    predictions = output / "predictions"
    for count in sorted(steps, reverse=True):
        own = dataclasses.replace(options, steps=count)
        settings = dataclasses.asdict(own) | {"bokeh_strengths": list(own.bokeh_strengths)}
        predict_all(f"{count:03d}_steps", make_method("stage1", own), source, predictions, settings)
    return evaluate_bokeh(predictions, source, f"{max(steps):03d}_steps", output / "table")


def _sets(values: dict[str, Any]) -> list[str]:
    """Values of a configuration as `--set` takes them."""
    return [f"{name}={json.dumps(value)}" for name, value in values.items()]


def ablate_stage1(
    path: str, changes: Sequence[str], output: Path, trials: Sequence[str], seeds: int, scenes: int
) -> str:
    """Trains and scores the trials of the embedded Stage-1.

    Args:
        path: YAML file of the whole configuration; `TRIAL_BASE` makes it short.
        changes: KEY=VALUE for all trials.
        output: folder of the runs and of `table.md`; what is there is not done again.
        trials: of `TRIALS`.
        seeds: how many trainings of each.
        scenes: held-out scenes that are scored.

    Returns:
        The table: mean over seeds, and the least and the largest of them.

    Raises:
        InputError: there is no such trial, or as the parts say.
    """
    if unknown := [name for name in trials if name not in TRIALS]:
        raise InputError(f"trial is {unknown[0]!r}, wanted one of {', '.join(TRIALS)}.")
    lines = []
    for name in trials:
        found = []
        for seed in range(seeds):
            trained = name if TRIALS[name] else "base"
            folder = output / trained.replace(" ", "_").replace(",", "") / str(seed)
            values = {**TRIALS[name], "seed": seed, "output": str(folder)}
            cfg = config.load(Stage1Config, path, [*_sets(TRIAL_BASE), *changes, *_sets(values)])
            steps = SCORED_STEPS.get(name, 1)
            saved = folder / f"scores_{steps}.json"
            if not saved.exists():
                logger.info("%s, seed %d", name, seed)
                model = stage1.run(cfg, "latest" if latest(folder) else None)
                held = controls.Scenes(load_stage1(str(model)), cfg, scenes, steps, cfg.phases[-1].size_px)
                stacks = [held.stack(i, held.strengths) for i in range(len(held.sharp))]
                row = controls.score_row(held, lambda i, k, s=stacks, h=held: s[i][h.strengths.index(k)])
                saved.write_text(json.dumps(row[f"K{held.strengths[-1]:g}"]))
            entry = json.loads(saved.read_text())
            change = entry["selectivity"]["all"]
            found.append([change["ratio"], change["defocused"], entry["whole"]["mean"], entry["in_focus"]["mean"]])
        columns = list(zip(*found, strict=True))
        lines.append([name, *(f"{sum(c) / len(c):.2f} ({min(c):.2f} to {max(c):.2f})" for c in columns)])
    header = ["trial", "selectivity at K = 30", "change where defocused", "PSNR dB", "PSNR dB in focus"]
    text = f"{seeds} seeds each: mean (least to largest); {scenes} held-out scenes\n\n{markdown(header, lines)}"
    (output / "table.md").write_text(text + "\n")
    return text


def main() -> None:
    """Trains or runs the rows of an ablation and prints its table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    four = commands.add_parser("stage2", help="Table 4: parts of DSFA and the kind of stack")
    four.add_argument("--config", required=True, help="YAML file of the whole Stage-2, see train/configs")
    four.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one value")
    four.add_argument("--variants", nargs="+", metavar="NAME", help=f"of {', '.join(VARIANTS)}; all that apply")
    four.add_argument("--protocol", default="full", help=f"one of {', '.join(PROTOCOLS)}")
    five = commands.add_parser("steps", help="Table 5: denoising steps of Stage-1")
    add_source_arguments(five)
    five.add_argument("--counts", type=int, nargs="+", default=list(STEPS), metavar="N")
    one = commands.add_parser("stage1", help="trials of the embedded Stage-1's decisions")
    one.add_argument("--config", required=True, help="YAML file of the embedded Stage-1, see train/configs")
    one.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change one value in all trials")
    one.add_argument("--trials", nargs="+", default=list(TRIALS), metavar="NAME", help=f"of {', '.join(TRIALS)}")
    one.add_argument("--seeds", type=int, default=3)
    one.add_argument("--scenes", type=int, default=48)
    one.add_argument("--output", type=Path, required=True)
    for command in (four, five):
        command.add_argument("--output", type=Path, required=True)
        add_method_arguments(command)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if arguments.command == "steps":
            text = ablate_steps(open_source(arguments), arguments.output, arguments.counts, options_of(arguments))
        elif arguments.command == "stage1":
            where = (arguments.config, arguments.set, arguments.output)
            text = ablate_stage1(*where, arguments.trials, arguments.seeds, arguments.scenes)
        else:
            cfg = config.load(Stage2Config, arguments.config, arguments.set)
            names = arguments.variants or [n for n in VARIANTS if n != "renderer_stacks" or cfg.stack == "stage1"]
            text = ablate_stage2(cfg, arguments.output, names, options_of(arguments), arguments.protocol)
    except InputError as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
