"""First step of an evaluation: runs methods on photos and saves what they give.

`python -m train.predict --rgbd FOLDER --method stage2 --method depth_pro --output predictions`

The second step, `train.evaluate_depth` or `train.evaluate_bokeh` with `--predictions`, reads the saved files and runs
no network. A method whose weights are absent, or that cannot serve these photos, is left out with one line that says
why, and the others go on; a run that was cut off goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from bokehdepth.errors import InputError
from train.methods import METHODS, PRESETS, MethodOptions, make_method
from train.predictions import predict_all
from train.sources import Source, add_source_arguments, open_source

logger = logging.getLogger("train.predict")


def predict(
    methods: Sequence[str], source: Source, output: Path, options: MethodOptions
) -> tuple[list[Path], dict[str, str]]:
    """Runs methods on a source.

    Args:
        methods: their names.
        source: the samples.
        output: folder of all methods.
        options: for every method.

    Returns:
        The folders written, and the methods left out with the reason of each.
    """
    written, left_out = [], {}
    settings = dataclasses.asdict(options) | {"bokeh_strengths": list(options.bokeh_strengths)}
    for name in methods:
        try:
            written.append(predict_all(name, make_method(name, options), source, output, settings))
            logger.info("%s: %d samples", name, len(source))
        except InputError as error:
            left_out[name] = str(error)
            logger.warning("%s is left out: %s", name, error)
    return written, left_out


def add_method_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that `options_of` reads."""
    parser.add_argument("--model", default="embedded", help="of stage1 and stage2: a pipeline or a trainer's folder")
    parser.add_argument("--stack-model", help="Stage-1 that makes Stage-2's stacks; the same model where not given")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, help="denoising steps; what suits the weights where not given")
    parser.add_argument("--bokeh-strengths", type=float, nargs="+", default=[10.0, 20.0, 30.0], metavar="K")
    parser.add_argument("--processing-px", type=int, help="shorter side at work for depth")
    parser.add_argument("--processing-area-px", type=int, help="pixels at work for Stage-1")
    parser.add_argument("--no-restore", action="store_true", help="Stage-1's frames as the network made them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--intrinsics", choices=("given", "guessed"), default="guessed",
        help="whether depth models that take a camera get the true one where it is known, or guess",
    )  # fmt: skip


def options_of(arguments: argparse.Namespace) -> MethodOptions:
    """The methods' options of a command line."""
    return MethodOptions(
        model=arguments.model,
        stack_model=arguments.stack_model,
        device=arguments.device,
        steps=arguments.steps,
        bokeh_strengths=tuple(arguments.bokeh_strengths),
        processing_px=arguments.processing_px,
        processing_area_px=arguments.processing_area_px,
        restore=not arguments.no_restore,
        seed=arguments.seed,
        intrinsics=arguments.intrinsics,
    )


def main() -> None:
    """Saves the predictions of one or several methods."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    add_source_arguments(parser)
    names = ", ".join([*METHODS, *PRESETS])
    parser.add_argument("--method", action="append", required=True, help=f"may be given again; one of {names}")
    parser.add_argument("--output", type=Path, required=True, help="folder of the predictions")
    add_method_arguments(parser)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        written, _ = predict(arguments.method, open_source(arguments), arguments.output, options_of(arguments))
    except InputError as error:
        sys.exit(f"error: {error}")
    if not written:
        sys.exit("error: no method could be run.")


if __name__ == "__main__":
    main()
