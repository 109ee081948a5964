"""Scores bokeh: saved predictions of any methods on any source, or the embedded Stage-1's own controls on its pool.

`python -m train.evaluate_bokeh --predictions DIR --pool train/configs/mini_stage1.yaml --output DIR`

reads what `train.predict` saved. PSNR and SSIM stand in linear light (value ** 2.2, as section 10 of the paper has it)
and in display values (sRGB, as most others do); LPIPS and DISTS, where their networks can be had, in display values.
The photo itself and the best uniform blur are always rows.

`python -m train.evaluate_bokeh --config train/configs/mini_stage1.yaml --model embedded`

compares the embedded Stage-1 with its controls on held-out scenes of the pool (`train.controls`).

Intervals are 95 % and over scenes (`bokehdepth.metrics.cluster_interval`); n is the number of scenes.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bokehdepth.camera.lens import blur_radius_px
from bokehdepth.errors import InputError
from bokehdepth.metrics import (
    PERCEPTUAL,
    Selectivity,
    cluster_interval,
    k_response,
    paired_test,
    perceptual_distance,
    psnr,
    selectivity,
    ssim,
    to_linear,
)
from train import controls
from train.controls import CEILING_DB
from train.methods import MethodOptions, make_method
from train.predictions import (
    INTERVAL,
    cell,
    difference_cell,
    markdown,
    print_scores,
    read_bokeh_prediction,
    read_cards,
    save_report,
)
from train.sources import Sample, Source, add_source_arguments, open_source

ALWAYS = ("identity", "uniform_blur")
"""Rows of every table; computed here where they were not predicted."""
MEASURES = ("psnr_linear", "ssim_linear", "psnr_srgb", "ssim_srgb")


# ---------------------------------------------------------------------- saved predictions


def radius_map_px(sample: Sample, bokeh_strength: float) -> np.ndarray | None:
    """True blur radius in pixels (Eq. 15), NaN where depth has no value; None without depth or focus distance."""
    true_m = sample.depth_of_photo_m()
    if true_m is None or sample.focus_distance_m is None:
        return None
    depth_m = np.where(np.isfinite(true_m), true_m, 1.0)
    radius_px = blur_radius_px(bokeh_strength, sample.focus_distance_m, depth_m, depth_m.shape[1])
    return np.where(np.isfinite(true_m), radius_px, np.nan)


def picture_selectivity(sample: Sample, picture: np.ndarray, bokeh_strength: float) -> Selectivity | None:
    """`metrics.selectivity` at radii scaled to the photo's width; None where the photo lacks one of the two areas."""
    radius_px = radius_map_px(sample, bokeh_strength)
    if radius_px is None:
        return None
    scale = sample.photo.shape[1] / 128  # the radii of metrics.selectivity are those of a 128 px picture
    # A pixel without depth belongs to neither area.
    radius_px = np.where(np.isnan(radius_px), 1.25 * scale, radius_px)
    try:
        return selectivity(
            sample.photo,
            picture,
            radius_px,
            reference_radius_px=4 * scale,
            defocused_above_px=2 * scale,
            in_focus_below_px=scale / 2,
        )
    except InputError:
        return None


def score(
    predictions: Path, source: Source, perceptual: Sequence[str] = ()
) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
    """Every measure of every method, picture and K.

    Args:
        predictions: folder that `train.predict` wrote for this source.
        source: the truth.
        perceptual: of `metrics.PERCEPTUAL`, measured on display values.

    Returns:
        One row for each method, picture and K; and for each method the share of rising steps of its K response, one
        number for each photo with two targets or more and defocused pixels.

    Raises:
        InputError: a prediction is missing or of another size, a sample has no target, or a perceptual measure cannot
            be had.
    """
    distances = {name: perceptual_distance(name) for name in perceptual}
    saved = read_cards(predictions, "bokeh")
    named = {card.method for _, card in saved}
    fresh = {name: make_method(name, MethodOptions()) for name in ALWAYS if name not in named}
    for method in fresh.values():
        method.prepare(source)
    rows: list[dict[str, Any]] = []
    rising: dict[str, list[float]] = {name: [] for name in [*(card.method for _, card in saved), *fresh]}
    for sample in source:
        if not sample.targets:
            raise InputError(f"sample {sample.sample_id!r} has no target, wanted the truth to score against.")
        strengths = [frame.bokeh_strength for frame in sample.targets]
        stacks = {
            card.method: np.stack([read_bokeh_prediction(folder, sample, k) for k in strengths])
            for folder, card in saved
        }
        # Rounded like saved ones, so that no row has finer steps than another.
        stacks |= {
            name: (np.clip(method.frames(sample, strengths), 0, 1) * 255).round().astype(np.float32) / 255
            for name, method in fresh.items()
        }
        for name, stack in stacks.items():
            for picture, target in zip(stack, sample.targets, strict=True):
                truth = target.picture.astype(np.float32)
                change = picture_selectivity(sample, picture, target.bokeh_strength)
                row = {
                    "method": name,
                    "sample": sample.sample_id,
                    "scene": sample.scene,
                    "bokeh_strength": target.bokeh_strength,
                    "psnr_linear": min(psnr(to_linear(picture), to_linear(truth)), CEILING_DB),
                    "ssim_linear": ssim(to_linear(picture), to_linear(truth)),
                    "psnr_srgb": min(psnr(picture, truth), CEILING_DB),
                    "ssim_srgb": ssim(picture, truth),
                    "change_defocused": change.defocused if change else float("nan"),
                    "change_in_focus": change.in_focus if change else float("nan"),
                }
                rows.append(row | {key: distance(picture, truth) for key, distance in distances.items()})
            top = radius_map_px(sample, strengths[-1])
            area = None if top is None else np.nan_to_num(top) > 2 * sample.photo.shape[1] / 128
            if len(strengths) > 1 and area is not None and area.any():
                rising[name].append(k_response(sample.photo, stack, strengths, area).rising_share)
    return rows, rising


def summary(
    rows: Sequence[dict[str, Any]], rising: dict[str, list[float]], measures: Sequence[str], against: str
) -> dict[str, Any]:
    """Means with intervals, selectivity, and each method against one of them by a paired test of linear PSNR.

    Raises:
        InputError: `against` is no method of the rows.
    """
    by_method: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_method.setdefault(row["method"], []).append(row)
    if against not in by_method:
        raise InputError(f"against is {against!r}, wanted one of {', '.join(by_method)}.")
    by_method = {against: by_method[against], **by_method}
    scenes = [row["scene"] for row in by_method[against]]
    baseline = [row["psnr_linear"] for row in by_method[against]]
    result: dict[str, Any] = {}
    for name, own in by_method.items():
        entry: dict[str, Any] = {
            measure: dataclasses.asdict(cluster_interval([row[measure] for row in own], scenes))
            for measure in measures
        }
        changed = [row for row in own if np.isfinite(row["change_defocused"])]
        defocused, in_focus = (
            float(np.mean([row[key] for row in changed])) if changed else None
            for key in ("change_defocused", "change_in_focus")
        )
        entry["selectivity"] = {
            "defocused": defocused,
            "in_focus": in_focus,
            "ratio": defocused / in_focus if changed and in_focus > 0 else None,
            "pictures": len(changed),
            "scenes": len({row["scene"] for row in changed}),
        }
        entry["rising_share"] = float(np.mean(rising[name])) if rising[name] else None
        entry["rising_photos"] = len(rising[name])
        test = paired_test([row["psnr_linear"] for row in own], baseline, scenes)
        entry["psnr_linear_minus_against"] = {"p_value": test.p_value, **dataclasses.asdict(test.difference)}
        result[name] = entry
    return result


def score_table(report: dict[str, Any]) -> str:
    """The table of saved predictions as Markdown, with its header line."""
    lines = []
    for name, entry in report["rows"].items():
        cells = [cell(entry[m], 2 if m.startswith("psnr") else 3) for m in report["measures"]]
        change = entry["selectivity"]
        selective = "-" if change["ratio"] is None else f"{change['ratio']:.2f}"
        shown = "-" if change["defocused"] is None else f"{change['defocused']:.3f} : {change['in_focus']:.3f}"
        rises = "-" if entry["rising_share"] is None else f"{entry['rising_share']:.2f}"
        lines.append(
            [
                name + (" *" if name in report["uses_truth"] else ""),
                *cells,
                shown,
                selective,
                rises,
                difference_cell(entry["psnr_linear_minus_against"], 2),
            ]
        )
    titles = {"psnr_linear": "PSNR linear", "ssim_linear": "SSIM linear", "psnr_srgb": "PSNR sRGB",
              "ssim_srgb": "SSIM sRGB", "lpips": "LPIPS sRGB", "dists": "DISTS sRGB"}  # fmt: skip
    header = ["method", *(f"{titles[m]} ({INTERVAL})" for m in report["measures"]), "change defocused : in focus",
              "selectivity", "K steps that rise", f"PSNR linear minus {report['against']} ({INTERVAL})"]  # fmt: skip
    counts = report["rows"][report["against"]]
    title = (
        f"{report['source']}; {report['pictures']} pictures of {report['scenes']} scenes, changes over "
        f"{counts['selectivity']['pictures']} pictures of {counts['selectivity']['scenes']} scenes, K steps over "
        f"{counts['rising_photos']} photos; linear is value ** 2.2, sRGB display values; PSNR counts at most "
        f"{CEILING_DB:g} dB; * looks at the scored truth."
    )
    missing = "".join(f"\n\n{name} is left out: {reason}." for name, reason in report["left_out"].items())
    return title + "\n\n" + markdown(header, lines) + missing


def evaluate_predictions(predictions: Path, source: Source, against: str, output: Path) -> str:
    """Scores saved predictions and saves `report.json`, `per_image.csv` and `table.md`.

    Args:
        predictions: folder that `train.predict` wrote.
        source: the truth.
        against: the method that the paired tests compare with.
        output: folder of the results.

    Returns:
        The table; LPIPS and DISTS are left out with one line where they cannot be had.

    Raises:
        InputError: as `score` and `summary` say.
    """
    perceptual, left_out = [], {}
    for name in PERCEPTUAL:
        try:
            perceptual_distance(name)
            perceptual.append(name)
        except InputError as error:
            left_out[name] = str(error)
    rows, rising = score(predictions, source, perceptual)
    measures = [*MEASURES, *perceptual]
    cards = [card for _, card in read_cards(predictions, "bokeh")]
    uses_truth = {card.method: card.uses_truth for card in cards}
    entries = summary(rows, rising, measures, against)
    first = [row for row in rows if row["method"] == rows[0]["method"]]
    report = {
        "source": source.description,
        "pictures": len(first),
        "scenes": len({row["scene"] for row in first}),
        "against": against,
        "measures": measures,
        "left_out": left_out,
        "uses_truth": [name for name in entries if uses_truth.get(name, name == "uniform_blur")],
        "weights": {card.method: card.weights for card in cards},
        "rows": entries,
    }
    text = score_table(report)
    save_report(output, report, rows, text)
    return text


def main() -> None:
    """Prints a table of bokeh scores."""
    print_scores(_files_main, controls.main)


def _files_main() -> str:
    parser = argparse.ArgumentParser(description="Scores saved predictions of bokeh.")
    parser.add_argument("--predictions", type=Path, required=True, help="folder that train.predict wrote")
    add_source_arguments(parser)
    parser.add_argument("--against", default="identity", help="method that the paired tests compare with")
    parser.add_argument("--output", type=Path, required=True, help="folder of report.json, per_image.csv, table.md")
    arguments = parser.parse_args()
    return evaluate_predictions(arguments.predictions, open_source(arguments), arguments.against, arguments.output)


if __name__ == "__main__":
    main()
