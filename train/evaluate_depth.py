"""Scores depth: saved predictions of any methods on any source, or Stage-2's own controls on its pool.

`python -m train.evaluate_depth --predictions DIR --rgbd FOLDER --protocol full --output DIR`

reads what `train.predict` saved. The array's name decides the alignment (`bokehdepth.metrics.DEPTH_KEYS`), the
protocol crop and cap. Constant depths and vertical gradients, fitted to the scored truth, are always rows. Real photos
are best scored with `--longer-side 512 --depth-range 0.1 80` in both steps: every photo is then predicted at one size,
and the prediction resized bilinearly to the truth's.

`python -m train.evaluate_depth --config train/configs/mini_stage2.yaml --model runs/mini_stage2/model
--control runs/mini_stage2_none/model --generated runs/pool_stage1`

compares on held-out scenes of the pool: the model with stacks that Stage-1 made, with rendered stacks (the ceiling),
with the sharp frame in place of every frame, and with no stack; the control, the same net trained for the same steps
on the same scenes without one; a constant guess, the training set's median depth. There AbsRel and delta1 are means
over pictures without any alignment.

Intervals are 95 % and over scenes (`bokehdepth.metrics.cluster_interval`), those of differences are paired; n is the
number of scenes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as fn

from bokehdepth.errors import InputError
from bokehdepth.metrics import (
    DEPTH_MEASURES,
    PROTOCOLS,
    DepthProtocol,
    abs_rel,
    cluster_interval,
    delta,
    median_scaled,
    paired_test,
    score_depth,
)
from bokehdepth.modeling_bokehdepth import BokehDepthAnythingForDepthEstimation
from train import config
from train.config import Stage2Config
from train.data import ScenePool
from train.methods import MethodOptions, make_method
from train.predictions import (
    INTERVAL,
    MethodCard,
    cell,
    difference_cell,
    markdown,
    print_scores,
    read_cards,
    read_depth_prediction,
    save_report,
)
from train.sources import Source, add_source_arguments, open_source
from train.stage2 import predict

ALWAYS = ("constant", "best_constant", "vertical_gradient", "best_gradient")
"""Rows of every table; computed here where they were not predicted."""
MEDIAN_SCALED = "abs_rel_median_scaled"
"""AbsRel of a metric prediction that is given the true median: what is left when its scale does not count."""
DELTA_SCALED = "delta1_median_scaled"
COMPARED = {"abs_rel": "abs_rel_minus_against", MEDIAN_SCALED: "abs_rel_median_scaled_minus_against"}
"""Measures that are compared with one method in pairs, and the names of their differences."""
ALIGNMENTS = {
    "depth_metric": "none",
    "depth_scale_invariant": "median",
    "depth_affine_invariant": "scale, shift",
    "disparity_affine_invariant": "scale, shift of 1/depth",
}


# ---------------------------------------------------------------------- saved predictions


def at_size_of(prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The prediction (h, w) at the target's size (H, W), bilinearly; itself where the sizes are equal."""
    if prediction.shape == target.shape:
        return prediction
    array = torch.from_numpy(np.ascontiguousarray(prediction))[None, None]
    return fn.interpolate(array, target.shape, mode="bilinear", align_corners=False)[0, 0].numpy()


def score(predictions: Path, source: Source, protocol: DepthProtocol) -> list[dict[str, Any]]:
    """Every measure of every method and picture.

    Args:
        predictions: folder that `train.predict` wrote for this source.
        source: the truth.
        protocol: crop, cap, and whether predictions are clipped.

    Returns:
        One row for each method and picture with method, key, sample, scene, the measures, and AbsRel and delta1 once
        the median is the truth's (NaN but for metric predictions); pictures without a pixel that counts have none.

    Raises:
        InputError: a prediction is missing, of another size, or not positive where it counts.
    """
    saved = read_cards(predictions, "depth")
    named = {card.method for _, card in saved}
    fresh = {name: make_method(name, MethodOptions()) for name in ALWAYS if name not in named}
    for method in fresh.values():
        method.prepare(source)
    rows = []
    for sample in source:
        if sample.depth_m is None:
            raise InputError(f"sample {sample.sample_id!r} has no metric depth, wanted the truth to score against.")
        found = [(card.method, *read_depth_prediction(folder, sample)) for folder, card in saved]
        found += [(name, method.depth(sample), method.key) for name, method in fresh.items()]
        for name, predicted, key in found:
            depth = at_size_of(predicted, sample.depth_m)
            try:
                scores = score_depth(depth, key, sample.depth_m, protocol)
            except InputError as error:
                raise InputError(f"{name}, sample {sample.sample_id!r}: {error}") from error
            if scores is not None:
                scaled = {"abs_rel": float("nan"), "delta1": float("nan")}
                if key == "depth_metric":
                    scaled = score_depth(depth, "depth_scale_invariant", sample.depth_m, protocol)
                scores = {**scores, MEDIAN_SCALED: scaled["abs_rel"], DELTA_SCALED: scaled["delta1"]}
                rows.append({"method": name, "key": key, "sample": sample.sample_id, "scene": sample.scene, **scores})
    if not rows:
        raise InputError(f"no sample has a pixel that counts under {protocol.name}, wanted at least one.")
    return rows


def summary(rows: Sequence[dict[str, Any]], cards: Sequence[MethodCard], against: str) -> dict[str, Any]:
    """Means with intervals, and each method against one of them by paired tests of AbsRel, as it is and median-scaled.

    Raises:
        InputError: `against` is no method of the rows.
    """
    by_method: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_method.setdefault(row["method"], []).append(row)
    if against not in by_method:
        raise InputError(f"against is {against!r}, wanted one of {', '.join(by_method)}.")
    by_method = {against: by_method[against], **by_method}
    known = {card.method: card for card in cards}
    scenes = [row["scene"] for row in by_method[against]]
    result: dict[str, Any] = {}
    for name, own in by_method.items():
        card = known.get(name)
        entry: dict[str, Any] = {
            "key": own[0]["key"],
            "weights": card.weights if card else "none",
            "uses_truth": card.uses_truth if card else True,
            "intrinsics_given": card.intrinsics_given if card else False,
        }
        for measure in (*DEPTH_MEASURES, MEDIAN_SCALED, DELTA_SCALED):
            # The boundary score is undefined where no two pixels of the truth are neighbours.
            kept = [row for row in own if np.isfinite(row[measure])]
            entry[measure] = None
            if kept:
                interval = cluster_interval([row[measure] for row in kept], [row["scene"] for row in kept])
                entry[measure] = dataclasses.asdict(interval)
        for measure, difference in COMPARED.items():
            first, second = ([row[measure] for row in kept] for kept in (own, by_method[against]))
            entry[difference] = None
            if np.isfinite([first, second]).all():
                test = paired_test(first, second, scenes)
                entry[difference] = {"p_value": test.p_value, **dataclasses.asdict(test.difference)}
        result[name] = entry
    return result


def score_table(report: dict[str, Any]) -> str:
    """The table of saved predictions as Markdown, with its header line."""

    def mean(entry: dict[str, Any], measure: str) -> str:
        value = entry[measure]
        if value is None:
            return "-"
        # The line above the table tells the scenes of those that have all pictures.
        return f"{value['mean']:.3f}" + ("" if value["pictures"] == report["pictures"] else f" (n {value['scenes']})")

    lines = []
    for name, entry in report["rows"].items():
        lines.append(
            [
                name + (" *" if entry["uses_truth"] else ""),
                ALIGNMENTS[entry["key"]],
                "yes" if entry["intrinsics_given"] else "no",
                *(cell(entry[m]) for m in ("abs_rel", "delta1", MEDIAN_SCALED, DELTA_SCALED)),
                *(mean(entry, m) for m in DEPTH_MEASURES if m not in ("abs_rel", "delta1")),
                *(difference_cell(entry[COMPARED[measure]]) for measure in COMPARED),
            ]
        )
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


def evaluate_predictions(predictions: Path, source: Source, protocol: str, against: str, output: Path) -> str:
    """Scores saved predictions and saves `report.json`, `per_image.csv` and `table.md`.

    Args:
        predictions: folder that `train.predict` wrote.
        source: the truth.
        protocol: a name of `bokehdepth.metrics.PROTOCOLS`.
        against: the method that the paired tests compare with.
        output: folder of the results.

    Returns:
        The table.

    Raises:
        InputError: as `score` and `summary` say, or there is no such protocol.
    """
    if protocol not in PROTOCOLS:
        raise InputError(f"protocol is {protocol!r}, wanted one of {', '.join(PROTOCOLS)}.")
    chosen = PROTOCOLS[protocol]
    rows = score(predictions, source, chosen)
    cards = [card for _, card in read_cards(predictions, "depth")]
    rule = dataclasses.asdict(chosen) | {
        "max_depth_m": chosen.max_depth_m if np.isfinite(chosen.max_depth_m) else None
    }
    first = [row for row in rows if row["method"] == rows[0]["method"]]
    report = {
        "source": source.description,
        "pictures": len(first),
        "scenes": len({row["scene"] for row in first}),
        "protocol": rule,
        "against": against,
        "rows": summary(rows, cards, against),
    }
    text = score_table(report)
    save_report(output, report, rows, text)
    return text


# ---------------------------------------------------------------------- controls on a pool


@torch.no_grad()
def depths(model: str, batch: dict[str, torch.Tensor], stack: str) -> np.ndarray:
    """Depth (B, H, W) in metres of every scene, at the batch's size."""
    network = BokehDepthAnythingForDepthEstimation.from_pretrained(model, dtype=torch.float32).eval()
    parts = [
        predict(network, {k: v[i : i + 8] for k, v in batch.items()}, stack) for i in range(0, len(batch["image"]), 8)
    ]
    return torch.cat(parts).numpy()


def evaluate(cfg: Stage2Config, model: str, control: str, generated: str) -> dict:
    """Every row's numbers."""
    if cfg.pool is None:
        raise InputError("config has no pool, wanted one: these controls need a pool's scenes.")
    held, train = ScenePool(cfg.pool, "held_out"), ScenePool(cfg.pool, "train")
    rows = np.arange(len(held))
    rendered = held.batch(rows, cfg.size_px)
    target = rendered["depth_m"][:, 0].numpy()
    constant = np.full_like(target, np.median(train.tensors["depth_m"].numpy()))
    predictions = {}
    if generated:
        pool = dataclasses.replace(cfg.pool, folder=generated)
        predictions["stack of Stage-1"] = depths(model, ScenePool(pool, "held_out").batch(rows, cfg.size_px), "frames")
    predictions["rendered stack (ceiling)"] = depths(model, rendered, "frames")
    predictions["sharp frame repeated"] = depths(model, rendered, "sharp")
    predictions["no stack, same weights"] = depths(model, rendered, "none")
    predictions["control: trained without a stack"] = depths(control, rendered, "none")
    predictions["constant guess"] = constant

    errors = {n: [abs_rel(p, t) for p, t in zip(v, target, strict=True)] for n, v in predictions.items()}
    baseline = np.asarray(errors["control: trained without a stack"])
    report: dict = {"scenes": len(held), "size_px": cfg.size_px, "constant_m": float(constant.flat[0]), "rows": {}}
    for name, prediction in predictions.items():
        pairs = list(zip(prediction, target, strict=True))
        measures = {
            "abs_rel": errors[name],
            "delta1": [delta(p, t) for p, t in pairs],
            "abs_rel_median_scaled": [abs_rel(median_scaled(p, t), t) for p, t in pairs],
            "abs_rel_minus_control": np.asarray(errors[name]) - baseline,
        }
        report["rows"][name] = {
            measure: dataclasses.asdict(cluster_interval(values, range(len(values))))
            for measure, values in measures.items()
        }
    return report


def table(report: dict) -> str:
    """The controls' report as Markdown."""
    lines = []
    for name, row in report["rows"].items():
        error, difference = row["abs_rel"], row["abs_rel_minus_control"]
        scaled = row["abs_rel_median_scaled"]["mean"]
        lines.append(
            [name, cell(error), f"{row['delta1']['mean']:.3f}", f"{scaled:.3f}", cell(difference, signed=True)]
        )
    header = ["row", f"AbsRel ({INTERVAL})", "delta1", "AbsRel, median-scaled",
              f"AbsRel minus control ({INTERVAL}, paired)"]  # fmt: skip
    last = f"\n\n{report['scenes']} scenes; the constant guess is {report['constant_m']:.2f} m"
    return markdown(header, lines) + last


def main() -> None:
    """Prints a table of depth scores."""
    print_scores(_files_main, _pool_main)


def _files_main() -> str:
    parser = argparse.ArgumentParser(description="Scores saved predictions of depth.")
    parser.add_argument("--predictions", type=Path, required=True, help="folder that train.predict wrote")
    add_source_arguments(parser)
    parser.add_argument("--protocol", default="full", help=f"one of {', '.join(PROTOCOLS)}")
    parser.add_argument("--against", default="constant", help="method that the paired tests compare with")
    parser.add_argument("--output", type=Path, required=True, help="folder of report.json, per_image.csv, table.md")
    arguments = parser.parse_args()
    source = open_source(arguments)
    return evaluate_predictions(arguments.predictions, source, arguments.protocol, arguments.against, arguments.output)


def _pool_main() -> str:
    parser = config.parser("Compares Stage-2 with its controls on held-out scenes; --predictions scores saved files.")
    parser.add_argument("--model", required=True, help="folder of the depth model")
    parser.add_argument("--control", required=True, help="folder of the net trained without a stack")
    parser.add_argument("--generated", default="", help="folder of the shards with stacks of Stage-1")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    cfg = config.load(Stage2Config, arguments.config, arguments.set)
    torch.set_num_threads(cfg.threads)
    report = evaluate(cfg, arguments.model, arguments.control, arguments.generated)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2))
    return table(report)


if __name__ == "__main__":
    main()
