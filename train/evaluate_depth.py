"""Scores Stage-2 on held-out scenes beside its controls.

`python -m train.evaluate_depth --config train/configs/mini_stage2.yaml --model runs/mini_stage2/model
--control runs/mini_stage2_none/model --generated runs/pool_stage1`

Rows: the model with stacks that Stage-1 made, with rendered stacks (the ceiling), with the sharp frame in place of
every frame, and with no stack; the control, the same net trained for the same steps on the same scenes without one; a
constant guess, the training set's median depth. AbsRel and delta1 are means over pictures without any alignment;
intervals are 95 % bootstraps over scenes, those of differences are paired.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import torch

from bokehdepth.metrics import abs_rel, delta, median_scaled
from bokehdepth.modeling_bokehdepth import BokehDepthAnythingForDepthEstimation
from train import config
from train.config import Stage2Config
from train.data import ScenePool
from train.evaluate_bokeh import interval
from train.stage2 import predict

logger = logging.getLogger("train.evaluate_depth")


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
    held, train = ScenePool(cfg.pool, "held_out"), ScenePool(cfg.pool, "train")
    rows = np.arange(len(held))
    rendered = held.batch(rows, cfg.size_px)
    target = rendered["depth_m"][:, 0].numpy()
    constant = np.full_like(target, np.median(train.arrays["depth_m"]))
    predictions = {}
    if generated:
        pool = dataclasses.replace(cfg.pool, folder=generated)
        predictions["stack of Stage-1"] = depths(model, ScenePool(pool, "held_out").batch(rows, cfg.size_px), "frames")
    predictions["rendered stack (ceiling)"] = depths(model, rendered, "frames")
    predictions["sharp frame repeated"] = depths(model, rendered, "sharp")
    predictions["no stack, same weights"] = depths(model, rendered, "none")
    predictions["control: trained without a stack"] = depths(control, rendered, "none")
    predictions["constant guess"] = constant

    rng = np.random.default_rng(0)
    errors = {n: [abs_rel(p, t) for p, t in zip(v, target, strict=True)] for n, v in predictions.items()}
    baseline = np.asarray(errors["control: trained without a stack"])
    report: dict = {"scenes": len(held), "size_px": cfg.size_px, "constant_m": float(constant.flat[0]), "rows": {}}
    for name, prediction in predictions.items():
        pairs = list(zip(prediction, target, strict=True))
        report["rows"][name] = {
            "abs_rel": interval(errors[name], rng),
            "delta1": interval([delta(p, t) for p, t in pairs], rng),
            "abs_rel_median_scaled": interval([abs_rel(median_scaled(p, t), t) for p, t in pairs], rng),
            "abs_rel_minus_control": interval(list(np.asarray(errors[name]) - baseline), rng),
        }
    return report


def table(report: dict) -> str:
    """The report as Markdown."""
    lines = [
        "| row | AbsRel (95 %) | delta1 | AbsRel, median-scaled | AbsRel minus control (95 %, paired) |",
        "|---|---|---|---|---|",
    ]
    for name, row in report["rows"].items():
        error, difference = row["abs_rel"], row["abs_rel_minus_control"]
        lines.append(
            f"| {name} | {error[0]:.3f} ({error[1]:.3f} to {error[2]:.3f}) | {row['delta1'][0]:.3f} | "
            f"{row['abs_rel_median_scaled'][0]:.3f} | "
            f"{difference[0]:+.3f} ({difference[1]:+.3f} to {difference[2]:+.3f}) |"
        )
    return "\n".join([*lines, f"\n{report['scenes']} scenes; the constant guess is {report['constant_m']:.2f} m"])


def main() -> None:
    """Prints the table; with --json also writes every number."""
    parser = config.parser(main.__doc__)
    parser.add_argument("--model", required=True, help="folder of the depth model")
    parser.add_argument("--control", required=True, help="folder of the net trained without a stack")
    parser.add_argument("--generated", default="", help="folder of the shards with stacks of Stage-1")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    cfg = config.load(Stage2Config, arguments.config, arguments.set)
    torch.set_num_threads(cfg.threads)
    report = evaluate(cfg, arguments.model, arguments.control, arguments.generated)
    logger.info("%s", table(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
