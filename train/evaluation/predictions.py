"""Saved predictions: written by `predict`, read by `score-depth` and `score-bokeh`, which run no network.

A folder has one folder for each method, with `method.json` (written last: without it the method is not complete) and
for each sample `<id>.npz`, an array under the name that decides its alignment, or `<id>/bokeh_k10.png` and so on.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bokehdepth.errors import InputError
from bokehdepth.files.atomic import staged, write_file
from bokehdepth.files.png import save_image
from bokehdepth.files.stacks import bokeh_file_name
from train.evaluation.methods import BokehMethod, DepthMethod, MethodOptions, make_method
from train.evaluation.protocols import ALIGNMENTS
from train.evaluation.samples import Sample, Source, read_picture

logger = logging.getLogger("train.evaluation")
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


def card_of(name: str, method: DepthMethod | BokehMethod, source: Source, options: MethodOptions) -> MethodCard:
    """The card of a method that was made with these options."""
    kind = "depth" if isinstance(method, DepthMethod) else "bokeh"
    return MethodCard(
        name, kind, method.weights, method.uses_truth, method.uses_intrinsics, len(source), source.description,
        asdict(options),
    )  # fmt: skip


def folder_name(method: str) -> str:
    """The method's name as one folder: other characters than letters, digits, `.`, `_` and `-` become `__`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "__", method).strip(".") or "method"


def predict(
    names: Sequence[str], source: Source, output: Path, options: MethodOptions
) -> tuple[list[Path], dict[str, str]]:
    """Runs methods on a source. One that cannot serve it is left out with a line that says why; the others go on.

    Args:
        names: of the methods.
        source: the samples.
        output: folder of all methods.
        options: for every method.

    Returns:
        The folders written, and the methods left out with the reason of each.
    """
    written, left_out = [], {}
    for name in names:
        try:
            written.append(predict_all(name, make_method(name, options), source, output, options))
            logger.info("%s: %d samples", name, len(source))
        except InputError as error:
            left_out[name] = str(error)
            logger.warning("%s is left out: %s", name, error)
    return written, left_out


def predict_all(
    name: str, method: DepthMethod | BokehMethod, source: Source, output: Path, options: MethodOptions
) -> Path:
    """Runs a method on every sample of a source; a run that was cut off goes on where it stopped.

    Args:
        name: under which it is saved.
        method: made with these options.
        source: the samples.
        output: folder of all methods.
        options: for the card.

    Returns:
        The method's folder.

    Raises:
        InputError: the method cannot serve a sample, or gives values that are no depth or no picture; or the folder
            holds a run of other samples or options.
    """
    folder = output / folder_name(name)
    # What a cut-off run was about must be known before its samples are trusted.
    plan = folder / ".plan.json"
    text = json.dumps(asdict(card_of(name, method, source, options)), indent=2, sort_keys=True)
    if plan.exists() and plan.read_text(encoding="utf-8") != text:
        raise InputError(f"`output` must be a new folder, got {str(folder)!r}, which holds another run of {name}.")
    if not plan.exists():
        write_file(plan, lambda file: file.write(text.encode()))
    method.prepare(source)
    for number, sample in enumerate(source, 1):
        if isinstance(method, DepthMethod):
            _predict_depth(method, sample, folder / f"{sample.sample_id}.npz")
        else:
            _predict_bokeh(method, sample, folder / sample.sample_id)
        if number % 100 == 0:
            logger.info("%s: %d of %d", name, number, len(source))
    write_file(folder / CARD, lambda file: file.write(text.encode()), overwrite=True)
    return folder


def _checked(array: np.ndarray, shape: tuple[int, ...], sample: Sample) -> np.ndarray:
    if array.shape != shape or not np.isfinite(array).all():
        raise InputError(
            f"The method must give finite values {shape}, got {array.shape} with {(~np.isfinite(array)).sum()} that "
            f"are not finite of sample {sample.sample_id!r}."
        )
    return array


def _predict_depth(method: DepthMethod, sample: Sample, path: Path) -> None:
    if not path.exists():
        depth = _checked(np.asarray(method.depth(sample), dtype=np.float32), sample.photo.shape[:2], sample)
        write_file(path, lambda file: np.savez_compressed(file, **{method.key: depth}))


def _predict_bokeh(method: BokehMethod, sample: Sample, folder: Path) -> None:
    if folder.exists():
        return
    if not sample.targets:
        raise InputError(f"`target` must be known of sample {sample.sample_id!r}, whose K is made, got none.")
    strengths = [frame.bokeh_strength for frame in sample.targets]
    frames = _checked(np.asarray(method.frames(sample, strengths)), (len(strengths), *sample.photo.shape), sample)
    with staged(folder) as part:
        for strength, frame in zip(strengths, frames, strict=True):
            picture = Image.fromarray((np.clip(frame, 0, 1) * 255).round().astype(np.uint8))
            save_image(part / bokeh_file_name(strength), picture, ai_generated=method.weights != "none")


@dataclass(frozen=True)
class SavedMethod:
    """A finished method of a folder.

    Attributes:
        folder: its own.
        card: what it says about itself.
    """

    folder: Path
    card: MethodCard

    def depth(self, sample: Sample) -> tuple[np.ndarray, str]:
        """A saved depth map and its key; InputError where it is missing, has no known key or another size."""
        path = self.folder / f"{sample.sample_id}.npz"
        if not path.is_file():
            raise InputError(f"{self.folder.name} must have a prediction of every sample, got no {path.name}.")
        with np.load(path, allow_pickle=False) as file:
            keys = [key for key in file.files if key in ALIGNMENTS]
            if len(keys) != 1:
                raise InputError(f"{path} must have exactly one of {', '.join(ALIGNMENTS)}, got {file.files}.")
            array = file[keys[0]]
        return self._of_size(array, sample, path), keys[0]

    def stack(self, sample: Sample) -> np.ndarray:
        """The saved pictures at the K of the targets, float32 (F, H, W, 3); InputError as `depth` says."""
        frames = []
        for target in sample.targets:
            path = self.folder / sample.sample_id / bokeh_file_name(target.bokeh_strength)
            if not path.is_file():
                place = f"{sample.sample_id}/{path.name}"
                raise InputError(f"{self.folder.name} must have every K of every sample, got no {place}.")
            frames.append(self._of_size(read_picture(path), sample, path))
        return np.stack(frames)

    @staticmethod
    def _of_size(array: np.ndarray, sample: Sample, path: Path) -> np.ndarray:
        if array.shape[:2] != sample.photo.shape[:2]:
            raise InputError(f"{path} must have the photo's size {sample.photo.shape[:2]}, got {array.shape[:2]}.")
        return array


class FreshMethod:
    """A method that runs as it is scored, with what a saved one offers.

    Args:
        name: of the method; it needs no weights.
        source: the samples.
    """

    def __init__(self, name: str, source: Source) -> None:
        self.method = make_method(name, MethodOptions())
        self.method.prepare(source)
        self.card = card_of(name, self.method, source, MethodOptions())

    def depth(self, sample: Sample) -> tuple[np.ndarray, str]:
        """Its depth map and key."""
        return self.method.depth(sample), self.method.key

    def stack(self, sample: Sample) -> np.ndarray:
        """Its pictures, rounded like saved ones, so that no row has finer steps than another."""
        frames = self.method.frames(sample, [target.bokeh_strength for target in sample.targets])
        return (np.clip(frames, 0, 1) * 255).round().astype(np.float32) / 255


def open_methods(
    predictions: Path, kind: str, always: Sequence[str], source: Source
) -> dict[str, SavedMethod | FreshMethod]:
    """The finished methods of a folder by name, and those that every table has.

    Args:
        predictions: folder that `predict` wrote.
        kind: depth or bokeh; the others are left out.
        always: names of methods that run now where they were not predicted.
        source: the samples.

    Raises:
        InputError: there is no such folder, or a card is damaged.
    """
    if not predictions.is_dir():
        raise InputError(f"`predictions` must be a folder that predict wrote, got {str(predictions)!r}.")
    methods: dict[str, SavedMethod | FreshMethod] = {}
    for path in sorted(predictions.glob(f"*/{CARD}")):
        try:
            card = MethodCard(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise InputError(f"{path} must be a card that predict wrote, got a damaged one ({error}).") from error
        if card.kind == kind:
            methods[card.method] = SavedMethod(path.parent, card)
    return methods | {name: FreshMethod(name, source) for name in always if name not in methods}
