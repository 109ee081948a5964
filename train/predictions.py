"""Saved predictions: written by `train.predict`, read by the two evaluations, which run no network.

A folder has one folder for each method, with `method.json` (written last: without it the method is not complete) and
for each sample `<id>.npz`, an array under the name that decides its alignment, or `<id>/bokeh_k10.png` and so on.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bokehdepth.errors import InputError
from bokehdepth.files.atomic import staged, write_file
from bokehdepth.files.png import save_image
from bokehdepth.files.stacks import bokeh_file_name
from bokehdepth.metrics import DEPTH_KEYS
from train.methods import BokehMethod, DepthMethod
from train.sources import Sample, Source, read_picture

logger = logging.getLogger("train.predictions")
CARD = "method.json"


@dataclass(frozen=True)
class MethodCard:
    """What a method's folder says about itself.

    Attributes:
        method: its name on the command line.
        kind: depth or bokeh.
        weights: what it ran on.
        uses_truth: whether it looked at truth that a user would not have.
        intrinsics_given: whether it was given the true intrinsics.
        samples: how many.
        source: description of the samples.
        options: of the run.
    """

    method: str
    kind: str
    weights: str
    uses_truth: bool
    intrinsics_given: bool
    samples: int
    source: str
    options: dict[str, Any]


def folder_name(method: str) -> str:
    """The method's name as one folder: other characters than letters, digits, `.`, `_` and `-` become `__`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "__", method).strip(".") or "method"


def predict_sample(method: DepthMethod | BokehMethod, sample: Sample, folder: Path) -> None:
    """Runs a method on one sample and writes what it gives, whole or not at all; what is there already is kept.

    Args:
        method: prepared.
        sample: the photo; a bokeh method makes the K of its targets.
        folder: of the method.

    Raises:
        InputError: the method cannot serve the sample, or gives values that are no depth or no picture.
    """
    if isinstance(method, DepthMethod):
        path = folder / f"{sample.sample_id}.npz"
        if path.exists():
            return
        depth = np.asarray(method.depth(sample), dtype=np.float32)
        if depth.shape != sample.photo.shape[:2] or not np.isfinite(depth).all():
            raise InputError(
                f"sample {sample.sample_id!r}: the method gave {depth.shape} with "
                f"{int((~np.isfinite(depth)).sum())} values that are not finite, wanted {sample.photo.shape[:2]}."
            )
        write_file(path, lambda file: np.savez_compressed(file, **{method.key: depth}))
        return
    target = folder / sample.sample_id
    if target.exists():
        return
    if not sample.targets:
        raise InputError(f"sample {sample.sample_id!r} has no target, wanted one: its K is what is asked for.")
    strengths = [frame.bokeh_strength for frame in sample.targets]
    frames = np.asarray(method.frames(sample, strengths))
    wanted = (len(strengths), *sample.photo.shape)
    if frames.shape != wanted or not np.isfinite(frames).all():
        raise InputError(f"sample {sample.sample_id!r}: the method gave {frames.shape}, wanted finite {wanted}.")
    with staged(target) as part:
        for strength, frame in zip(strengths, frames, strict=True):
            picture = Image.fromarray((np.clip(frame, 0, 1) * 255).round().astype(np.uint8))
            save_image(part / bokeh_file_name(strength), picture, ai_generated=method.weights != "none")


def predict_all(
    name: str, method: DepthMethod | BokehMethod, source: Source, output: Path, options: dict[str, Any]
) -> Path:
    """Runs a method on every sample of a source; a run that was cut off goes on where it stopped.

    Args:
        name: of the method on the command line.
        method: made with these options.
        source: the samples.
        output: folder of all methods.
        options: for the card.

    Returns:
        The method's folder.

    Raises:
        InputError: as `predict_sample`; or the folder holds a finished run of other samples or options.
    """
    folder = output / folder_name(name)
    card = MethodCard(
        method=name,
        kind="depth" if isinstance(method, DepthMethod) else "bokeh",
        weights=method.weights,
        uses_truth=method.uses_truth,
        intrinsics_given=method.uses_intrinsics,
        samples=len(source),
        source=source.description,
        options=options,
    )
    # What a cut-off run was about must be known before its samples are trusted.
    plan = folder / ".plan.json"
    text = json.dumps(asdict(card), indent=2, sort_keys=True)
    if plan.exists() and plan.read_text(encoding="utf-8") != text:
        raise InputError(f"output is {str(folder)!r}, which holds another run of {name}, wanted a new folder.")
    if not plan.exists():
        write_file(plan, lambda file: file.write(text.encode()))
    method.prepare(source)
    for number, sample in enumerate(source, 1):
        predict_sample(method, sample, folder)
        if number % 100 == 0:
            logger.info("%s: %d of %d", name, number, len(source))
    write_file(folder / CARD, lambda file: file.write(text.encode()), overwrite=True)
    return folder


def read_cards(predictions: Path, kind: str) -> list[tuple[Path, MethodCard]]:
    """The finished methods of a folder.

    Args:
        predictions: folder that `train.predict` wrote.
        kind: depth or bokeh; the others are left out.

    Returns:
        Their folders and cards, by name.

    Raises:
        InputError: there is no such folder, or a card is damaged.
    """
    if not predictions.is_dir():
        raise InputError(f"predictions is {str(predictions)!r}, which is no folder, wanted what train.predict wrote.")
    found = []
    for path in sorted(predictions.glob(f"*/{CARD}")):
        try:
            card = MethodCard(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise InputError(f"{path} is damaged ({error}), wanted a card that train.predict wrote.") from error
        if card.kind == kind:
            found.append((path.parent, card))
    return found


def read_depth_prediction(folder: Path, sample: Sample) -> tuple[np.ndarray, str]:
    """A saved depth map and its key; InputError where it is missing, has no known key or another size."""
    path = folder / f"{sample.sample_id}.npz"
    if not path.is_file():
        raise InputError(f"{folder.name} has no {path.name}, wanted a prediction of every sample.")
    with np.load(path, allow_pickle=False) as file:
        keys = [key for key in file.files if key in DEPTH_KEYS]
        if len(keys) != 1:
            raise InputError(f"{path} has the arrays {file.files}, wanted exactly one of {DEPTH_KEYS}.")
        array = file[keys[0]]
    if array.shape != sample.photo.shape[:2]:
        raise InputError(f"{path} has the shape {array.shape}, wanted the photo's {sample.photo.shape[:2]}.")
    return array, keys[0]


def read_bokeh_prediction(folder: Path, sample: Sample, bokeh_strength: float) -> np.ndarray:
    """A saved picture, float32 (H, W, 3) in [0, 1]; InputError where it is missing or has another size."""
    path = folder / sample.sample_id / bokeh_file_name(bokeh_strength)
    if not path.is_file():
        raise InputError(f"{folder.name} has no {sample.sample_id}/{path.name}, wanted every K of every sample.")
    picture = read_picture(path)
    if picture.shape != sample.photo.shape:
        raise InputError(f"{path} has the shape {picture.shape}, wanted the photo's {sample.photo.shape}.")
    return picture


def save_report(folder: Path, report: dict[str, Any], rows: Sequence[dict[str, Any]], text: str) -> None:
    """Writes a table and what it was made from, all or nothing: `report.json`, `per_image.csv`, `table.md`.

    Args:
        folder: replaced file by file.
        report: every number of the table.
        rows: one dictionary of equal keys for each picture and method.
        text: the table.
    """
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    with staged(folder, overwrite=True) as part:
        (part / "report.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
        (part / "per_image.csv").write_text(buffer.getvalue(), encoding="utf-8")
        (part / "table.md").write_text(text + "\n", encoding="utf-8")


def print_scores(of_files: Callable[[], str], of_pool: Callable[[], str]) -> None:
    """Runs one of an evaluation's two forms by its command line, and prints its table or one sentence of refusal.

    Args:
        of_files: scores saved predictions; taken where ``--predictions`` is given.
        of_pool: scores a model on the pool of procedural scenes.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # progress, on standard error
    scores_files = any(argument.split("=")[0] == "--predictions" for argument in sys.argv[1:])
    try:
        text = of_files() if scores_files else of_pool()
    except InputError as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(text + "\n")


INTERVAL = "95 %, n scenes"
"""What a header says of a column of `cell`."""


def cell(interval: Mapping[str, Any] | None, digits: int = 3, *, signed: bool = False) -> str:
    """`mean (low to high, n scenes)` of a table.

    Args:
        interval: the fields of a `bokehdepth.metrics.Interval`; None gives a dash.
        digits: behind the point.
        signed: whether a number above 0 has its sign.
    """
    if interval is None:
        return "-"
    form = f"{'+' if signed else ''}.{digits}f"
    low, high = interval["low"], interval["high"]
    ends = "no interval" if low is None else f"{low:{form}} to {high:{form}}"
    return f"{interval['mean']:{form}} ({ends}, n {interval['scenes']})"


def difference_cell(difference: Mapping[str, Any] | None, digits: int = 3) -> str:
    """`cell` of a paired difference with the p-value of its test; a dash where there is nothing to compare."""
    if difference is None:
        return "-"
    return f"{cell(difference, digits, signed=True)}, p {difference['p_value']:.2g}"


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [list(header), ["---"] * len(header), *(list(line) for line in lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows).replace("| --- ", "|---").replace("---| ", "---|")
