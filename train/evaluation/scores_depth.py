"""Scores saved predictions of depth: every measure of every method and picture, and one table.

The array's name decides the alignment (`protocols.ALIGNMENTS`), the protocol crop and cap. Constant depths and
vertical gradients, fitted to the scored truth, are always rows. Intervals are 95 % and over scenes
(`statistics.cluster_interval`), those of differences are paired; n is the number of scenes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as fn

from bokehdepth.errors import InputError
from train.evaluation.predictions import FreshMethod, SavedMethod, open_methods
from train.evaluation.protocols import ALIGNMENTS, DEPTH_MEASURES, PROTOCOLS, DepthProtocol, score_depth
from train.evaluation.samples import Source
from train.evaluation.statistics import compare
from train.evaluation.tables import INTERVAL, cell, markdown, save_report

ALWAYS = ("constant", "best_constant", "vertical_gradient", "best_gradient")
"""Rows of every table; computed here where they were not predicted."""
SCALED = {"abs_rel": "abs_rel_median_scaled", "delta1": "delta1_median_scaled"}
"""Measures of a metric prediction that is given the true median: what is left when its scale does not count."""
COMPARED = ("abs_rel", SCALED["abs_rel"])


def at_size_of(prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The prediction (h, w) at the target's size (H, W), bilinearly; itself where the sizes are equal."""
    if prediction.shape == target.shape:
        return prediction
    array = torch.from_numpy(np.ascontiguousarray(prediction))[None, None]
    return fn.interpolate(array, target.shape, mode="bilinear", align_corners=False)[0, 0].numpy()


def score_pictures(
    methods: Mapping[str, SavedMethod | FreshMethod], source: Source, protocol: DepthProtocol
) -> list[dict[str, Any]]:
    """Every measure of every method and picture.

    Args:
        methods: of depth, by name.
        source: the truth.
        protocol: crop, cap, and whether predictions are clipped.

    Returns:
        One row for each method and picture with method, key, sample, scene, the measures, and those of `SCALED` (NaN
        but for metric predictions); pictures without a pixel that counts have none.

    Raises:
        InputError: a prediction is missing, of another size, or not positive where it counts.
    """
    rows = []
    for sample in source:
        if sample.depth_m is None:
            raise InputError(f"`depth` must be known of sample {sample.sample_id!r}, got none.")
        for name, method in methods.items():
            prediction, key = method.depth(sample)
            depth = at_size_of(prediction, sample.depth_m)
            try:
                scores = score_depth(depth, key, sample.depth_m, protocol)
            except InputError as error:
                raise InputError(f"{name}, sample {sample.sample_id!r}: {error}") from error
            if scores is None:
                continue
            scaled = dict.fromkeys(SCALED, float("nan"))
            if key == "depth_metric":
                scaled = score_depth(depth, "depth_scale_invariant", sample.depth_m, protocol)
            scores |= {name: scaled[measure] for measure, name in SCALED.items()}
            rows.append({"method": name, "key": key, "sample": sample.sample_id, "scene": sample.scene, **scores})
    if not rows:
        raise InputError(f"`source` must have a pixel that counts under {protocol.name}, got none.")
    return rows


def table(report: Mapping[str, Any]) -> str:
    """The report as Markdown, with its header line."""

    def mean(entry: Mapping[str, Any], measure: str) -> str:
        value = entry[measure]
        if value is None:
            return "-"
        # The line above the table tells the scenes of those that have all pictures.
        return f"{value['mean']:.3f}" + ("" if value["pictures"] == report["pictures"] else f" (n {value['scenes']})")

    lines = [
        [
            name + (" *" if entry["uses_truth"] else ""),
            ALIGNMENTS[entry["key"]],
            "yes" if entry["intrinsics_given"] else "no",
            *(cell(entry[measure]) for measure in (*SCALED, *SCALED.values())),
            *(mean(entry, measure) for measure in DEPTH_MEASURES if measure not in SCALED),
            *(cell(entry[f"{measure}_minus_against"]) for measure in COMPARED),
        ]
        for name, entry in report["rows"].items()
    ]
    header = ["method", "alignment", "intrinsics given", f"AbsRel ({INTERVAL})", f"delta1 ({INTERVAL})",
              f"AbsRel, median-scaled ({INTERVAL})", f"delta1, median-scaled ({INTERVAL})", "SqRel m", "RMSE m",
              "RMSE log", "log10", "SILog", "delta2", "delta3", "boundary F1",
              f"AbsRel minus {report['against']} ({INTERVAL})",
              f"median-scaled AbsRel minus {report['against']} ({INTERVAL})"]  # fmt: skip
    protocol = report["protocol"]
    cap = "none" if protocol["max_depth_m"] is None else f"{protocol['max_depth_m']:g} m"
    clipped = "clipped to it" if protocol["clips_prediction"] else "not clipped"
    title = (
        f"{report['source']}; {report['pictures']} pictures of {report['scenes']} scenes; protocol "
        f"{protocol['name']}, cap {cap}, predictions {clipped}; * looks at the scored truth."
    )
    return title + "\n\n" + markdown(header, lines)


def score(predictions: Path, source: Source, protocol: str, against: str, output: Path) -> str:
    """Scores saved predictions and saves `report.json`, `per_image.csv` and `table.md`.

    Args:
        predictions: folder that `predict` wrote for this source.
        source: the truth.
        protocol: a name of `PROTOCOLS`.
        against: the method that the paired tests compare with.
        output: folder of the results.

    Returns:
        The table.

    Raises:
        InputError: as `open_methods`, `score_pictures` and `compare` say, or there is no such protocol.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"`protocol` must be one of {', '.join(PROTOCOLS)}, got {protocol!r}.")
    methods = open_methods(predictions, "depth", ALWAYS, source)
    rows = score_pictures(methods, source, PROTOCOLS[protocol])
    entries = compare(rows, (*DEPTH_MEASURES, *SCALED.values()), COMPARED, against)
    keys = {row["method"]: row["key"] for row in rows}
    for name, entry in entries.items():
        card = methods[name].card
        entry |= {"key": keys[name], "weights": card.weights, "uses_truth": card.uses_truth,
                  "intrinsics_given": card.intrinsics_given}  # fmt: skip
    first = [row for row in rows if row["method"] == against]
    report = {
        "source": source.description,
        "pictures": len(first),
        "scenes": len({row["scene"] for row in first}),
        "protocol": dataclasses.asdict(PROTOCOLS[protocol]),
        "against": against,
        "rows": entries,
    }
    text = table(report)
    save_report(output, report, rows, text)
    return text
