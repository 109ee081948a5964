"""Scores saved predictions of bokeh: likeness to the true pictures, and what the method did to the photo.

PSNR and SSIM stand in linear light (value ** 2.2, as section 10 of the paper has it) and in display values (sRGB, as
most others do); LPIPS and DISTS, where their networks can be had, in display values. Selectivity, the K steps that
rise, the measured radius of the blur (`metrics_bokeh.blur_response`) and PSNR in focus (sRGB, true radius below 1/256
of the width) need true depth and focus. The photo itself
and the best uniform blur are always rows. Intervals are 95 % and over scenes (`statistics.cluster_interval`); n is the
number of scenes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bokehdepth.camera.lens import REFERENCE_WIDTH_PX
from bokehdepth.errors import InputError
from train.evaluation.metrics_bokeh import (
    CEILING_DB,
    GAMMA,
    PERCEPTUAL,
    Distance,
    blur_response,
    k_response,
    perceptual_distance,
    psnr,
    selectivity,
    ssim,
)
from train.evaluation.predictions import FreshMethod, SavedMethod, open_methods
from train.evaluation.samples import Sample, Source
from train.evaluation.statistics import compare
from train.evaluation.tables import INTERVAL, cell, markdown, number, save_report

ALWAYS = ("identity", "uniform_blur")
"""Rows of every table; computed here where they were not predicted."""
MEASURES = {
    "psnr_linear": "PSNR linear",
    "ssim_linear": "SSIM linear",
    "psnr_srgb": "PSNR sRGB",
    "ssim_srgb": "SSIM sRGB",
    "lpips": "LPIPS sRGB",
    "dists": "DISTS sRGB",
}
"""Measures to their columns; the last two where their networks can be had."""


def radius_map_px(sample: Sample, bokeh_strength: float) -> np.ndarray | None:
    """True blur radius (H, W) in pixels (Eq. 15), NaN where depth has no value; None without depth or focus."""
    offset_dpt = sample.offset_dpt()
    return None if offset_dpt is None else bokeh_strength * sample.photo.shape[1] / REFERENCE_WIDTH_PX * offset_dpt


def score_pictures(
    methods: Mapping[str, SavedMethod | FreshMethod], source: Source, distances: Mapping[str, Distance]
) -> tuple[list[dict[str, Any]], dict[str, dict[str, list[float]]]]:
    """Every measure of every method, picture and K.

    Args:
        methods: of bokeh, by name.
        source: the truth.
        distances: perceptual ones by their names, taken of display values.

    Returns:
        One row for each method, picture and K; and for each method, of the photos with two targets or more and
        defocused pixels, the share of rising steps of the K response (one number a photo), and slope and
        monotony of the measured radius (one a patch).

    Raises:
        InputError: a prediction is missing or of another size, or a sample has no target.
    """
    rows: list[dict[str, Any]] = []
    responses: dict[str, dict[str, list[float]]] = {
        name: {"rising": [], "slopes": [], "monotone": []} for name in methods
    }
    for sample in source:
        if not sample.targets:
            raise InputError(f"`target` must be known of sample {sample.sample_id!r}, got none.")
        strengths = [target.bokeh_strength for target in sample.targets]
        radii = [radius_map_px(sample, strength) for strength in strengths]
        offset_dpt = sample.offset_dpt()
        defocused = offset_dpt is not None and np.nan_to_num(radii[-1]) > 2 * sample.photo.shape[1] / 128
        for name, method in methods.items():
            stack = method.stack(sample)
            for picture, target, radius_px in zip(stack, sample.targets, radii, strict=True):
                truth = target.picture.astype(np.float32)
                change = None if radius_px is None else selectivity(sample.photo, picture, radius_px)
                in_focus = radius_px is not None and radius_px < sample.photo.shape[1] / 256
                light, true_light = picture**GAMMA, truth**GAMMA
                row = {
                    "method": name,
                    "sample": sample.sample_id,
                    "scene": sample.scene,
                    "bokeh_strength": target.bokeh_strength,
                    "psnr_linear": psnr(light, true_light),
                    "ssim_linear": ssim(light, true_light),
                    "psnr_srgb": psnr(picture, truth),
                    "ssim_srgb": ssim(picture, truth),
                    "psnr_in_focus": psnr(picture[in_focus], truth[in_focus]) if np.any(in_focus) else float("nan"),
                    "change_defocused": change.defocused if change else float("nan"),
                    "change_in_focus": change.in_focus if change else float("nan"),
                }
                rows.append(row | {key: distance(picture, truth) for key, distance in distances.items()})
            if len(strengths) > 1 and np.any(defocused):
                responses[name]["rising"].append(k_response(sample.photo, stack, defocused).rising_share)
                response = blur_response(sample.photo, stack, strengths, offset_dpt)
                responses[name]["slopes"] += response.slope.tolist()
                responses[name]["monotone"] += response.is_monotone.tolist()
    return rows, responses


def _mean_changes(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean changes of the two areas over one method's pictures, and the ratio of these means."""
    changed = [row for row in rows if np.isfinite(row["change_defocused"])]
    defocused, in_focus = (
        float(np.mean([row[key] for row in changed])) if changed else None
        for key in ("change_defocused", "change_in_focus")
    )
    return {
        "defocused": defocused,
        "in_focus": in_focus,
        "ratio": defocused / in_focus if in_focus else None,
        "pictures": len(changed),
        "scenes": len({row["scene"] for row in changed}),
    }


def table(report: Mapping[str, Any]) -> str:
    """The report as Markdown, with its header line."""
    lines = []
    for name, entry in report["rows"].items():
        change = entry["selectivity"]
        lines.append(
            [
                name + (" *" if entry["uses_truth"] else ""),
                *(cell(entry[m], ".2f" if m.startswith("psnr") else ".3f") for m in report["measures"]),
                f"{number(change['defocused'], '.3f')} : {number(change['in_focus'], '.3f')}",
                number(change["ratio"]),
                number(entry["rising_share"]),
                number(entry["median_slope"]),
                number(entry["monotone_share"], ".3f"),
                number(entry["psnr_in_focus"]),
                cell(entry["psnr_linear_minus_against"], ".2f"),
            ]
        )
    header = ["method", *(f"{MEASURES[m]} ({INTERVAL})" for m in report["measures"]), "change defocused : in focus",
              "selectivity", "K steps that rise", "radius over Eq. 15", "patches that rise", "PSNR sRGB in focus",
              f"PSNR linear minus {report['against']} ({INTERVAL})"]  # fmt: skip
    counts = report["rows"][report["against"]]
    title = (
        f"{report['source']}; {report['pictures']} pictures of {report['scenes']} scenes, changes over "
        f"{counts['selectivity']['pictures']} pictures of {counts['selectivity']['scenes']} scenes, K steps over "
        f"{counts['rising_photos']} photos, radius over {counts['patches']} patches (median), PSNR in focus over "
        f"{counts['pictures_in_focus']} pictures; linear is value ** "
        f"{GAMMA:g}, sRGB display values; PSNR counts at most {CEILING_DB:g} dB; * looks at the scored truth."
    )
    missing = "".join(f"\n\n{name} is left out: {reason}." for name, reason in report["left_out"].items())
    return title + "\n\n" + markdown(header, lines) + missing


def score(predictions: Path, source: Source, against: str, output: Path) -> str:
    """Scores saved predictions and saves `report.json`, `per_image.csv` and `table.md`.

    Args:
        predictions: folder that `predict` wrote for this source.
        source: the truth.
        against: the method that the paired tests compare with.
        output: folder of the results.

    Returns:
        The table; a perceptual measure that cannot be had is left out with its reason.

    Raises:
        InputError: as `open_methods`, `score_pictures` and `compare` say.
    """
    methods = open_methods(predictions, "bokeh", ALWAYS, source)
    distances, left_out = {}, {}
    for name in PERCEPTUAL:
        try:
            distances[name] = perceptual_distance(name)
        except InputError as error:
            left_out[name] = str(error)
    measures = [measure for measure in MEASURES if measure not in left_out]
    rows, responses = score_pictures(methods, source, distances)
    entries = compare(rows, measures, ["psnr_linear"], against)
    for name, entry in entries.items():
        rising, slopes, monotone = responses[name].values()
        in_focus = [row["psnr_in_focus"] for row in rows if row["method"] == name]
        in_focus = [value for value in in_focus if np.isfinite(value)]
        entry |= {
            "weights": methods[name].card.weights,
            "uses_truth": methods[name].card.uses_truth,
            "selectivity": _mean_changes([row for row in rows if row["method"] == name]),
            "rising_share": float(np.mean(rising)) if rising else None,
            "rising_photos": len(rising),
            "median_slope": float(np.median(slopes)) if slopes else None,
            "monotone_share": float(np.mean(monotone)) if monotone else None,
            "patches": len(slopes),
            "psnr_in_focus": float(np.mean(in_focus)) if in_focus else None,
            "pictures_in_focus": len(in_focus),
        }
    pictures = [row for row in rows if row["method"] == against]
    report = {
        "source": source.description,
        "pictures": len(pictures),
        "scenes": len({row["scene"] for row in pictures}),
        "against": against,
        "measures": measures,
        "left_out": left_out,
        "rows": entries,
    }
    text = table(report)
    save_report(output, report, rows, text)
    return text
