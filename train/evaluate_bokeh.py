"""Scores Stage-1 on held-out scenes beside its controls.

`python -m train.evaluate_bokeh --config train/configs/mini_stage1.yaml --model embedded`

Rows: the model; identity (the sharp photo returned); the uniform blur whose one radius is best for each K, chosen on
the same pictures; position-only (each pixel blurred by the training set's mean offset at its place); the renderer's
own radii through the model's disk levels (the head's ceiling). PSNR is in display values, averaged over pictures, over
the whole frame, over truly defocused and over truly in-focus pixels; intervals are 95 % bootstraps over scenes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from bokehdepth.errors import InputError
from bokehdepth.hub import load_pipeline
from bokehdepth.metrics import k_response, psnr, selectivity
from bokehdepth.modeling_mini_flux import MiniFluxTransformer2DModel, blend_disks, level_weights
from bokehdepth.pipeline_bokehdepth import BokehDepthPipeline
from bokehdepth.rendering.disk import disk_blur
from train import config
from train.config import Stage1Config
from train.data import ScenePool

logger = logging.getLogger("train.evaluate_bokeh")
CEILING_DB = 60.0
"""PSNR of pictures that agree to less than half an 8-bit step, so that equal ones leave a mean."""
Render = Callable[[int, float], np.ndarray]


def interval(values: list[float], rng: np.random.Generator) -> tuple[float, float, float]:
    """Mean and the 95 % bootstrap interval of the mean, over scenes."""
    array = np.asarray(values)
    means = array[rng.integers(len(array), size=(1000, len(array)))].mean(1)
    return float(array.mean()), float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def load_stage1(model: str) -> BokehDepthPipeline:
    """A pipeline that can make stacks: a whole one, or the component folders that train.stage1 writes."""
    folder = Path(model)
    if not (folder / "transformer").is_dir() or (folder / "model_index.json").exists():
        return load_pipeline(model)
    from diffusers import FlowMatchEulerDiscreteScheduler

    from bokehdepth.modeling_bokeh_adapter import BokehAdapter
    from bokehdepth.modeling_mini_flux import PatchAutoencoder

    others = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "depth_estimator")
    return BokehDepthPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        vae=PatchAutoencoder.from_pretrained(folder / "vae"),
        transformer=MiniFluxTransformer2DModel.from_pretrained(folder / "transformer"),
        bokeh_adapter=BokehAdapter.from_pretrained(folder / "bokeh_adapter"),
        **dict.fromkeys(others),
    )


def evaluate(pipeline: BokehDepthPipeline, cfg: Stage1Config, count: int, steps: int, size: int) -> dict:
    """Every row's numbers."""
    held, train = ScenePool(cfg.pool, "held_out"), ScenePool(cfg.pool, "train")
    batch = held.batch(np.arange(min(count, len(held))), size)
    sharp = batch["image"].permute(0, 2, 3, 1).numpy()
    truth = batch["bokeh"].permute(0, 1, 3, 4, 2).numpy()
    strengths = [float(k) for k in batch["strength"][0]]
    offsets = batch["offset_dpt"][:, 0]
    radius = {k: (k * size / 512 * offsets).numpy() for k in strengths}
    scale = size / 128  # the radii of metrics.selectivity are those of a 128 px picture
    levels = torch.tensor(pipeline.transformer.config.offsets_dpt)

    stacks = []
    for number, photo in enumerate(sharp):
        stacks.append(
            pipeline.generate_stack(
                photo,
                strengths,
                num_inference_steps=steps,
                generator=torch.Generator().manual_seed(number),
                processing_area_px=size * size,
                restore=False,
                output_type="np",
            ).images
        )

    def blend(number: int, strength: float, offset: torch.Tensor) -> np.ndarray:
        weights = level_weights(offset[None, None], levels)
        result = blend_disks(batch["image"][number : number + 1], weights, levels, torch.tensor([strength]))
        return result[0].permute(1, 2, 0).numpy()

    everything = train.batch(np.arange(len(train)), size)["offset_dpt"]
    mean_offset = everything.mean((0, 1))
    candidates = [r * scale for r in (0.6, 0.8, 1.0, 1.5, 2.0, 3.0, 4.0)]
    best = {}
    for index, k in enumerate(strengths):
        scores = {
            r: np.mean([psnr(disk_blur(s, r, gamma=2.2), t[index]) for s, t in zip(sharp, truth, strict=True)])
            for r in candidates
        }
        best[k] = max(scores, key=scores.get)

    rows: dict[str, Render] = {
        "model": lambda i, k: stacks[i][strengths.index(k)],
        "identity": lambda i, k: sharp[i],
        "best uniform blur": lambda i, k: disk_blur(sharp[i], best[k], gamma=2.2),
        "position only": lambda i, k: blend(i, k, mean_offset),
        "true radii, same disks": lambda i, k: blend(i, k, offsets[i]),
    }
    rng = np.random.default_rng(0)
    report: dict = {"scenes": len(sharp), "size_px": size, "steps": steps, "uniform_radius_px": best, "rows": {}}
    for name, render in rows.items():
        row: dict = {}
        for index, k in enumerate(strengths):
            scores: dict[str, list[float]] = {"whole": [], "defocused": [], "in_focus": []}
            changes = []
            for i in range(len(sharp)):
                picture = np.clip(render(i, k), 0, 1).astype(np.float32)
                scores["whole"].append(min(psnr(picture, truth[i, index]), CEILING_DB))
                for area, mask in (("defocused", radius[k][i] > scale), ("in_focus", radius[k][i] < scale / 2)):
                    if mask.any():
                        scores[area].append(min(psnr(picture, truth[i, index], mask=mask), CEILING_DB))
                try:
                    changes.append(
                        selectivity(
                            sharp[i],
                            picture,
                            radius[k][i],
                            reference_radius_px=4 * scale,
                            defocused_above_px=2 * scale,
                            in_focus_below_px=scale / 2,
                        )
                    )
                except InputError:
                    continue  # a scene without one of the two areas has no selectivity
            entry = {area: interval(values, rng) for area, values in scores.items()}
            defocused = float(np.mean([c.defocused for c in changes]))
            in_focus = float(np.mean([c.in_focus for c in changes]))
            entry["selectivity"] = {
                "defocused": defocused,
                "in_focus": in_focus,
                "ratio": defocused / in_focus if in_focus > 0 else None,
                "scenes": len(changes),
            }
            row[f"K{k:g}"] = entry
        report["rows"][name] = row

    rising, curve = [], []
    top = radius[strengths[-1]]
    for i, stack in enumerate(stacks):
        area = top[i] > 2 * scale
        if area.any():
            response = k_response(sharp[i], np.clip(stack, 0, 1).astype(np.float32), strengths, area)
            true = k_response(sharp[i], truth[i], strengths, area)
            rising.append(response.rising_share)
            curve.append((response.mean_change, true.mean_change))
    mean = np.mean(curve, axis=0)
    report["k_response"] = {
        "bokeh_strengths": strengths,
        "model": mean[0].tolist(),
        "renderer": mean[1].tolist(),
        "rising_share": float(np.mean(rising)),
    }
    return report


def table(report: dict) -> str:
    """The report as Markdown."""
    first = next(iter(report["rows"].values()))
    lines = [
        "| row | K | PSNR whole (95 %) | defocused | in focus | change defocused : in focus | selectivity |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in report["rows"].items():
        for k in first:
            entry, change = row[k], row[k]["selectivity"]
            mean, low, high = entry["whole"]
            ratio = "-" if change["ratio"] is None else f"{change['ratio']:.2f}"
            lines.append(
                f"| {name} | {k[1:]} | {mean:.2f} ({low:.2f} to {high:.2f}) | {entry['defocused'][0]:.2f} | "
                f"{entry['in_focus'][0]:.2f} | {change['defocused']:.3f} : {change['in_focus']:.3f} | {ratio} |"
            )
    response = report["k_response"]
    for name in ("model", "renderer"):
        curve = ", ".join(f"{v:.4f}" for v in response[name])
        lines.append(f"\nMean change in the defocused area, {name}: {curve} at K = {response['bokeh_strengths']}")
    lines.append(f"\nShare of steps that rise: {response['rising_share']:.3f}; {report['scenes']} scenes")
    return "\n".join(lines)


def main() -> None:
    """Prints the table; with --json also writes every number."""
    parser = config.parser(main.__doc__)
    parser.add_argument("--model", default="embedded", help="as in bokehdepth.hub, or the folder of a Stage-1 run")
    parser.add_argument("--scenes", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--size", type=int, help="side of the pictures; the pool's own where not given")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    cfg = config.load(Stage1Config, arguments.config, arguments.set)
    torch.set_num_threads(cfg.threads)
    pipeline = load_stage1(arguments.model)
    pipeline.set_progress_bar_config(disable=True)
    report = evaluate(pipeline, cfg, arguments.scenes, arguments.steps, arguments.size or cfg.pool.size_px)
    logger.info("%s", table(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
