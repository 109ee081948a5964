"""Looks whether Stage-1 leaves the subject of a real photo alone and blurs the rest, where its mask is known.

`python -m train.evaluate_masks --manifest FOLDER/evaluate.jsonl --dataset people_supervisely --longer-side 512
--model embedded --output DIR`

A photo counts where its mask covers 5 to 80 %. What lies 4 px inside the mask is the subject, what lies 4 px outside
of it the rest. In both, the summed absolute change at one K is divided by what a uniform blur would change there: that
of the disk with half a dioptre's radius, `K * width / 512 * 0.5` px, in light. A photo is right where the subject
changes by less than 0.15 of it and the rest by more than 0.3.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import distance_transform_edt

from bokehdepth.camera.lens import REFERENCE_WIDTH_PX
from bokehdepth.errors import InputError
from bokehdepth.metrics import Interval, cluster_interval
from bokehdepth.rendering.disk import disk_blur
from train.methods import BokehMethod, make_method
from train.predict import add_method_arguments, options_of
from train.predictions import markdown, save_report
from train.sources import Source, add_source_arguments, open_source

logger = logging.getLogger("train.evaluate_masks")
SUBJECT_BELOW, REST_ABOVE = 0.15, 0.3
SHARES = (0.05, 0.8)
BORDER_PX = 4
OFFSET_DPT = 0.5
_NAMED = 3


def regions(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What surely is the subject and what surely is not, bool (H, W) each: farther than `BORDER_PX` from its outline.

    Args:
        mask: bool (H, W), neither empty nor full.
    """
    return distance_transform_edt(mask) > BORDER_PX, distance_transform_edt(~mask) > BORDER_PX


def relative_changes(
    photo: np.ndarray, bokeh: np.ndarray, mask: np.ndarray, bokeh_strength: float
) -> tuple[float, float] | None:
    """Change of the subject and of the rest, each over that of the uniform blur.

    Args:
        photo: float (H, W, 3) display values in [0, 1].
        bokeh: the same of the generated frame.
        mask: bool (H, W), the subject.
        bokeh_strength: K of the frame, above 0.

    Returns:
        The two ratios; None where one of the regions is empty or the uniform blur changes nothing in it.
    """
    radius_px = bokeh_strength * photo.shape[1] / REFERENCE_WIDTH_PX * OFFSET_DPT
    reference = np.abs(disk_blur(photo, radius_px, gamma=2.2) - photo).sum(axis=-1)
    change = np.abs(bokeh - photo).sum(axis=-1)
    areas = regions(mask)
    if any(reference[area].sum() < 1e-6 for area in areas):
        return None
    return tuple(float(change[area].sum() / reference[area].sum()) for area in areas)


def score(method: BokehMethod, source: Source, bokeh_strength: float) -> tuple[list[dict[str, Any]], int]:
    """Both ratios of every photo that counts, and how many do not count.

    Args:
        method: makes the frames.
        source: photos with masks.
        bokeh_strength: K.

    Raises:
        InputError: a photo has no mask, or none counts.
    """
    method.prepare(source)
    rows, left_out = [], 0
    for number, sample in enumerate(source, 1):
        if sample.mask is None:
            raise InputError(f"`manifest` must have masks of all chosen rows, got none of {sample.sample_id!r}.")
        share, found = float(sample.mask.mean()), None
        if SHARES[0] <= share <= SHARES[1]:
            frame = np.clip(method.frames(sample, [bokeh_strength])[0], 0, 1)
            found = relative_changes(sample.photo, frame, sample.mask, bokeh_strength)
        if found is None:
            left_out += 1
        else:
            rows.append(
                {
                    "sample": sample.sample_id,
                    "scene": sample.scene,
                    "dataset": sample.dataset or "-",
                    "mask_share": share,
                    "subject": found[0],
                    "rest": found[1],
                    "right": found[0] < SUBJECT_BELOW and found[1] > REST_ABOVE,
                }
            )
        if number % 50 == 0:
            logger.info("%d of %d", number, len(source))
    if not rows:
        raise InputError(f"`manifest` must have a mask that covers {SHARES[0]:.0%} to {SHARES[1]:.0%}, got none.")
    return rows, left_out


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Share of photos that are right and means of both ratios with intervals over scenes, by data set and of all."""
    groups = {name: [row for row in rows if row["dataset"] == name] for name in sorted({r["dataset"] for r in rows})}
    if len(groups) > 1:
        groups["all"] = list(rows)
    result = {}
    for name, own in groups.items():
        scenes = [row["scene"] for row in own]
        columns = {key: [float(row[key]) for row in own] for key in ("right", "subject", "rest")}
        entry = {key: vars(cluster_interval(values, scenes)) for key, values in columns.items()}
        subject, rest = entry["subject"]["mean"], entry["rest"]["mean"]
        result[name] = entry | {"rest_over_subject": rest / subject if subject > 0 else None}
    return result


def _cell(interval: dict[str, Any], form: Callable[[float], str]) -> str:
    value = Interval(**interval)
    ends = "" if value.low is None else f" ({form(value.low)} to {form(value.high)})"
    return form(value.mean) + ends


def table(report: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """The report as Markdown, with the best and the worst photos by name."""
    lines = []
    for name, entry in report["rows"].items():
        ratio = entry["rest_over_subject"]
        lines.append(
            [
                name,
                f"{entry['right']['pictures']} / {entry['right']['scenes']}",
                _cell(entry["right"], lambda v: f"{v:.1%}"),
                _cell(entry["subject"], lambda v: f"{v:.3f}"),
                _cell(entry["rest"], lambda v: f"{v:.3f}"),
                "-" if ratio is None else f"{ratio:.1f}",
            ]
        )
    header = ["photos of", "photos / scenes", f"subject < {SUBJECT_BELOW:g} and rest > {REST_ABOVE:g} (95 %)",
              "change of the subject", "change of the rest", "rest over subject"]  # fmt: skip
    title = (
        f"{report['source']}; {report['method']} of {report['weights']}, K = {report['bokeh_strength']:g}; changes "
        f"over those of a uniform blur; {report['left_out']} photos do not count."
    )
    ordered = sorted(rows, key=lambda row: (row["right"], row["rest"] - row["subject"]))

    def named(some: Sequence[dict[str, Any]]) -> str:
        return ", ".join(f"{r['sample']} ({r['subject']:.2f}, {r['rest']:.2f})" for r in some)

    ends = f"\n\nBest: {named(ordered[::-1][:_NAMED])}.\n\nWorst: {named(ordered[:_NAMED])}."
    return title + "\n\n" + markdown(header, lines) + ends


def main() -> None:
    """Prints the table and saves it with a line for each photo."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    add_source_arguments(parser)
    add_method_arguments(parser)
    parser.add_argument("--method", default="stage1", help="of train.predict, one that makes bokeh")
    parser.add_argument("--bokeh-strength", type=float, default=30.0, metavar="K")
    parser.add_argument("--output", type=Path, required=True, help="folder of report.json, per_image.csv, table.md")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if not arguments.bokeh_strength > 0:
            raise InputError(f"`bokeh_strength` must be above 0, got {arguments.bokeh_strength:g}.")
        source, method = open_source(arguments), make_method(arguments.method, options_of(arguments))
        if not isinstance(method, BokehMethod):
            raise InputError(f"`method` must be one that makes bokeh, got {arguments.method!r}.")
        rows, left_out = score(method, source, arguments.bokeh_strength)
        report = {
            "source": source.description,
            "method": arguments.method,
            "weights": method.weights,
            "bokeh_strength": arguments.bokeh_strength,
            "left_out": left_out,
            "rows": summary(rows),
        }
        text = table(report, rows)
        save_report(arguments.output, report, rows, text)
    except InputError as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
