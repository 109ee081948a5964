"""Looks whether outdoor photos are far where they are far, and ordered from near to far.

`python -m train.evaluate_outdoors --marks train/marks/outdoors.yaml --photos $BOKEHDEPTH_DATA --model embedded`

Depth is that of both stages on the photo with its longer side at 512 px, with the camera of its EXIF where it states
one; a mark's depth is the median of the 5 x 5 px around it. The marks are points (x, y as shares of the photo) of
three kinds: `sky`, `far` (horizons and mountains, beyond 30 m), and `chains` of things from near to far. A photo is
right in a column where all its points are: far ones beyond 30 m, no other mark farther than any of the sky, and every
thing of a chain farther than the one before.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bokehdepth.errors import InputError
from train.evaluate_faces import find
from train.look import LONGER_SIDE_PX, PhotoSource, load_model, run
from train.predictions import markdown
from train.sources import Prepared

FAR_M = 30.0
_HALF_PX = 2
Point = Sequence[float]
Marks = Mapping[str, Any]


def check_marks(marks: Any) -> dict[str, Marks]:
    """The marks by photo; InputError where they are not as the module says."""

    def is_point(value: Any) -> bool:
        pair = isinstance(value, list) and len(value) == 2
        return pair and all(isinstance(share, int | float) and 0 <= share < 1 for share in value)

    if not isinstance(marks, dict) or not marks:
        raise InputError(f"`marks` must be photos with their marks, got {type(marks).__name__}.")
    for name, own in marks.items():
        known = isinstance(own, dict) and own and set(own) <= {"sky", "far", "chains"}
        chains = list(own.get("chains", [])) if known else []
        groups = [own[key] for key in ("sky", "far") if key in own] + chains if known else []
        good = known and all(isinstance(g, list) and g and all(map(is_point, g)) for g in groups)
        if not good or any(len(chain) < 2 for chain in chains):
            raise InputError(f"`marks` must be sky, far, chains of points [x, y] in [0, 1), got others of {name!r}.")
    return marks


def depth_at(depth_m: np.ndarray, point: Point) -> float:
    """Median depth around a point, metres.

    Args:
        depth_m: float (H, W).
        point: x and y as shares of the picture.
    """
    x, y = (int(share * size) for share, size in zip(point, depth_m.shape[::-1], strict=True))
    around = depth_m[max(y - _HALF_PX, 0) : y + _HALF_PX + 1, max(x - _HALF_PX, 0) : x + _HALF_PX + 1]
    return float(np.median(around))


def judge(depth_m: np.ndarray, marks: Marks) -> dict[str, Any]:
    """Metres at the marks of one photo, and whether each of the three rules holds; None where it has no such mark."""
    sky = [depth_at(depth_m, point) for point in marks.get("sky", [])]
    far = [depth_at(depth_m, point) for point in marks.get("far", [])]
    chains = [[depth_at(depth_m, point) for point in chain] for chain in marks.get("chains", [])]
    steps = [pair for chain in chains for pair in zip(chain, chain[1:], strict=False)]
    others = far + [value for chain in chains for value in chain]
    return {
        "sky": sky,
        "far": far,
        "chains": chains,
        "is_far": min(far) > FAR_M if far else None,
        "sky_farthest": min(sky) >= max(others) if sky and others else None,
        "ascending": all(nearer < farther for nearer, farther in steps) if steps else None,
    }


def table(found: Mapping[str, dict[str, Any]]) -> str:
    """Every photo and the counts of the three rules, as Markdown."""

    def metres(values: Sequence[float]) -> str:
        return ", ".join(f"{value:.1f}" for value in values) or "-"

    def verdict(value: bool | None) -> str:
        return "-" if value is None else "yes" if value else "NO"

    rules = ("is_far", "sky_farthest", "ascending")
    lines, counts = [], []
    for name, f in found.items():
        chains = "; ".join(metres(chain) for chain in f["chains"]) or "-"
        lines.append([name, metres(f["sky"]), metres(f["far"]), chains, *(verdict(f[rule]) for rule in rules)])
    for rule in rules:
        known = [f[rule] for f in found.values() if f[rule] is not None]
        counts.append(f"{sum(known)} of {len(known)}")
    header = ["photo", "sky m", "far m", "chains m", f"far beyond {FAR_M:g} m", "sky farthest", "chains ascend"]
    return markdown(header, [*lines, ["all", "", "", "", *counts]])


def evaluate(photos: Path, marks: dict[str, Marks], model: str) -> str:
    """Runs the model on every marked photo.

    Args:
        photos: folder that the names of the marks start from.
        marks: by the photo's name without suffix.
        model: as in `bokehdepth.hub`, with both stages.

    Returns:
        The table.

    Raises:
        InputError: a photo or the model cannot be found, or the marks are wrong.
    """
    marks = check_marks(marks)
    source = Prepared(PhotoSource([find(photos, name) for name in marks]), LONGER_SIDE_PX)
    pipeline = load_model(model)
    given = 0
    found = {}
    for number, (name, sample) in enumerate(zip(marks, source, strict=True)):
        found[name] = judge(run(pipeline, sample, number).depth_m, marks[name])
        given += sample.intrinsics is not None
    return f"{model}; {len(marks)} photos, {given} with the camera of their EXIF\n\n{table(found)}"


def main() -> None:
    """Prints metres at the marks and what holds."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--marks", type=Path, required=True, help="YAML file of points by the photo's name")
    parser.add_argument("--photos", type=Path, required=True, help="folder that the names start from")
    parser.add_argument("--model", default="embedded", help="as in bokehdepth.hub, with both stages")
    arguments = parser.parse_args()
    try:
        marks = yaml.safe_load(arguments.marks.read_text(encoding="utf-8"))
        sys.stdout.write(evaluate(arguments.photos, marks, arguments.model) + "\n")
    except (InputError, OSError, yaml.YAMLError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
