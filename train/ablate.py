"""The paper's two ablations, with one command each and one table.

`python -m train.ablate stage2 --config train/configs/mini_stage2.yaml --output runs/ablation` (Table 4)

trains the configuration whole and once more for each part that is taken away (focus attention, space attention, FiLM,
the K condition, Stage-1's stacks, the stack itself), all on the same data, seed and steps, and scores them on held-out
samples. A run that was cut off goes on where it stopped.

`python -m train.ablate steps --model embedded --pool train/configs/mini_stage1.yaml --output runs/steps` (Table 5)

runs one Stage-1 with 50, 20, 10, 5 and 1 denoising steps on the same photos and noise, and scores them.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from bokehdepth.errors import InputError
from train import config, stage2
from train.checkpointing import latest
from train.config import Stage2Config
from train.evaluation import scores_bokeh, scores_depth
from train.evaluation.methods import MethodOptions, add_method_arguments, make_method, options_of
from train.evaluation.predictions import predict_all
from train.evaluation.protocols import PROTOCOLS
from train.evaluation.samples import PoolSource, RowSource, Source, add_source_arguments, open_source

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
        raise InputError(f"`variants` must be of {', '.join(VARIANTS)}, got {name!r}.")
    if cfg.stack not in ("renderer", "stage1"):
        raise InputError(
            f"`stack` must be renderer or stage1, since the whole model reads a stack, got {cfg.stack!r}."
        )
    changed = dataclasses.replace(cfg, output=str(output / "runs" / name))
    if name in SWITCHES:
        if not cfg.base.model.get(SWITCHES[name], True):
            raise InputError(f"`base.model.{SWITCHES[name]}` must be on for the variant {name}, got it off.")
        fields = {**cfg.base.model, SWITCHES[name]: False}
        return dataclasses.replace(changed, base=dataclasses.replace(cfg.base, model=fields))
    if name == "renderer_stacks":
        if cfg.stack != "stage1":
            raise InputError(f"`stack` must be stage1 for the variant renderer_stacks, got {cfg.stack!r}.")
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
        protocol: of `PROTOCOLS`.

    Returns:
        The table: AbsRel and the other measures with intervals over scenes, each row against the whole model.

    Raises:
        InputError: as the parts say; every configuration is checked before the first is trained.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"`protocol` must be one of {', '.join(PROTOCOLS)}, got {protocol!r}.")
    names = list(dict.fromkeys([WHOLE, *variants]))
    configs = {name: variant_config(cfg, name, output) for name in names}
    if cfg.stack == "stage1" and options.stack_model is None:
        raise InputError("`stack_model` must be the Stage-1 that makes the stacks of held-out photos, got none.")
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
        predict_all(name, make_method(kind, own), source, predictions, own)
    return scores_depth.score(predictions, source, protocol, WHOLE, output / "table")


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
        raise InputError(f"`steps` must be different numbers of 1 or more, got {list(steps)}.")
    predictions = output / "predictions"
    for count in sorted(steps, reverse=True):
        own = dataclasses.replace(options, steps=count)
        predict_all(f"{count:03d}_steps", make_method("stage1", own), source, predictions, own)
    return scores_bokeh.score(predictions, source, f"{max(steps):03d}_steps", output / "table")


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
    for command in (four, five):
        command.add_argument("--output", type=Path, required=True)
        add_method_arguments(command)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if arguments.command == "steps":
            text = ablate_steps(open_source(arguments), arguments.output, arguments.counts, options_of(arguments))
        else:
            cfg = config.load(Stage2Config, arguments.config, arguments.set)
            names = arguments.variants or [n for n in VARIANTS if n != "renderer_stacks" or cfg.stack == "stage1"]
            text = ablate_stage2(cfg, arguments.output, names, options_of(arguments), arguments.protocol)
    except InputError as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
