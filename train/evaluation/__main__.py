"""Runs methods on photos, and scores what they give.

`predict` runs networks and saves what they give; `score-depth` and `score-bokeh` read the saved files and run none.
The others run a model on marked photos and score it in one step.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from bokehdepth.errors import InputError
from train.evaluation import scores_bokeh, scores_depth, scores_photos
from train.evaluation.methods import (
    BokehMethod,
    DepthMethod,
    add_method_arguments,
    make_method,
    method_names,
    options_of,
)
from train.evaluation.methods.depth import Stage2
from train.evaluation.predictions import predict
from train.evaluation.protocols import PROTOCOLS
from train.evaluation.samples import add_source_arguments, open_source
from train.evaluation.scores_photos import read_marks

TABLE = "folder of report.json, per_image.csv, table.md"


def _bokeh_method(arguments: argparse.Namespace) -> BokehMethod:
    if not arguments.bokeh_strength > 0:
        raise InputError(f"`bokeh_strength` must be above 0, got {arguments.bokeh_strength:g}.")
    method = make_method(arguments.method, options_of(arguments))
    if not isinstance(method, BokehMethod):
        raise InputError(f"`method` must be one that makes bokeh, got {arguments.method!r}.")
    return method


def _predict(arguments: argparse.Namespace) -> str:
    written, _ = predict(arguments.method, open_source(arguments), arguments.output, options_of(arguments))
    if not written:
        raise InputError("no method could be run.")
    return "\n".join(map(str, written))


def _score_depth(arguments: argparse.Namespace) -> str:
    source = open_source(arguments)
    return scores_depth.score(arguments.predictions, source, arguments.protocol, arguments.against, arguments.output)


def _score_bokeh(arguments: argparse.Namespace) -> str:
    return scores_bokeh.score(arguments.predictions, open_source(arguments), arguments.against, arguments.output)


def _score_masks(arguments: argparse.Namespace) -> str:
    source, method = open_source(arguments), _bokeh_method(arguments)
    return scores_photos.score_masks(arguments.method, method, source, arguments.bokeh_strength, arguments.output)


def _score_faces(arguments: argparse.Namespace) -> str:
    marks, method = read_marks(arguments.marks), _bokeh_method(arguments)
    return scores_photos.score_faces(arguments.photos, marks, method, arguments.bokeh_strength, arguments.output)


def _score_outdoors(arguments: argparse.Namespace) -> str:
    marks, method = read_marks(arguments.marks), make_method(arguments.method, options_of(arguments))
    if not isinstance(method, DepthMethod) or method.key != "depth_metric":
        raise InputError(f"`method` must be one of metric depth, got {arguments.method!r}.")
    return scores_photos.score_outdoors(arguments.photos, marks, method)


def _look(arguments: argparse.Namespace) -> str:
    method = Stage2("", options_of(arguments))
    return scores_photos.look(arguments.photos, method, arguments.output, arguments.colormap)


def build_parser() -> argparse.ArgumentParser:
    """The command line, a sub-command for each step."""
    parser = argparse.ArgumentParser("python -m train.evaluation", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], str], help_text: str) -> argparse.ArgumentParser:
        child = commands.add_parser(name, help=help_text, description=help_text)
        child.set_defaults(run=run)
        return child

    names = ", ".join(method_names())
    child = command("predict", _predict, "run methods on photos and save what they give")
    add_source_arguments(child)
    child.add_argument("--method", action="append", required=True, help=f"may be given again; one of {names}")
    child.add_argument("--output", type=Path, required=True, help="folder of the predictions")
    add_method_arguments(child)

    for kind, run, against in (("depth", _score_depth, "constant"), ("bokeh", _score_bokeh, "identity")):
        child = command(f"score-{kind}", run, f"score saved predictions of {kind}")
        child.add_argument("--predictions", type=Path, required=True, help="folder that predict wrote")
        add_source_arguments(child)
        if kind == "depth":
            child.add_argument("--protocol", default="full", help=f"one of {', '.join(PROTOCOLS)}")
        child.add_argument("--against", default=against, help="method that the paired tests compare with")
        child.add_argument("--output", type=Path, required=True, help=TABLE)

    child = command("score-masks", _score_masks, "score whether subjects stay as they are and the rest is blurred")
    add_source_arguments(child)
    child.add_argument("--method", default="stage1", help="one that makes bokeh")
    child.add_argument("--bokeh-strength", type=float, default=30.0, metavar="K")
    child.add_argument("--output", type=Path, required=True, help=TABLE)
    add_method_arguments(child)

    child = command("score-faces", _score_faces, "score whether faces that are the subject stay sharp")
    child.add_argument("--marks", type=Path, required=True, help="YAML file: boxes of faces by the photo's name")
    child.add_argument("--photos", type=Path, required=True, help="folder that the names start from")
    child.add_argument("--method", default="stage1", help="one that makes bokeh")
    child.add_argument("--bokeh-strength", type=float, default=30.0, metavar="K")
    child.add_argument("--output", type=Path, required=True, help="PNG file of a sheet of photos and results")
    add_method_arguments(child)

    child = command("score-outdoors", _score_outdoors, "score whether far things are far, and in order")
    child.add_argument("--marks", type=Path, required=True, help="YAML file of points by the photo's name")
    child.add_argument("--photos", type=Path, required=True, help="folder that the names start from")
    child.add_argument("--method", default="stage2", help="one of metric depth")
    add_method_arguments(child)
    child.set_defaults(intrinsics="given")

    child = command("look", _look, "write one sheet with each photo, its blurred frame and its depth")
    child.add_argument("--photos", nargs="+", required=True, metavar="GLOB", help="paths or patterns of photos")
    child.add_argument("--colormap", default="turbo_r", help="of depth, its first colour near")
    child.add_argument("--output", type=Path, required=True, help="PNG file of the sheet")
    add_method_arguments(child)
    child.set_defaults(intrinsics="given")
    return parser


def main(words: list[str] | None = None) -> None:
    """Runs one sub-command and prints its table, or one sentence of refusal."""
    arguments = build_parser().parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # progress, on standard error
    try:
        sys.stdout.write(arguments.run(arguments) + "\n")
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
