"""Scores the embedded Stage-1 on held-out scenes of its pool, beside everything that a score has to beat.

`python -m train.evaluate_bokeh --config train/configs/mini_stage1.yaml --model embedded`

Rows: the model; identity (the sharp photo returned); the uniform blur whose one radius is best for each K, chosen on
the same pictures; position only (each pixel blurred by the training set's mean offset at its place); the renderer with
the depth of Stage-2, where the model has one, and with the true depth; the true radii through the model's own disks
(what its head could do at best). PSNR and SSIM are of display values; PSNR stands over the whole frame, over truly
defocused and over truly in-focus pixels. The renderer with Stage-2's depth is focused on the median depth that Stage-2
gives the pixels truly in focus. Selectivity also stands for close-ups (portraits and photographs) and the other kinds
apart; the blur's own radius is measured against K in patches of known depth (`bokehdepth.metrics.blur_response`).

Intervals are 95 % and over scenes (`bokehdepth.metrics.cluster_interval`); n is the number of scenes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bokehdepth.errors import InputError
from bokehdepth.metrics import blur_response, cluster_interval, k_response, psnr, selectivity, ssim
from bokehdepth.modeling_mini_flux import blend_disks, level_weights
from bokehdepth.pipeline_bokehdepth import BokehDepthPipeline
from bokehdepth.rendering.disk import disk_blur
from bokehdepth.rendering.refocus import render_from_depth
from train import config
from train.config import Stage1Config
from train.data import ScenePool
from train.methods.stage1 import load_stage1
from train.predictions import INTERVAL, cell, markdown
from train.stage1 import MiniNetwork

CEILING_DB = 60.0
"""PSNR of pictures that agree to less than half an 8-bit step, so that equal ones leave a mean."""
CLOSE_UPS = ("portrait", "photograph")
"""Kinds of scenes whose subject fills much of the frame."""
RESPONSE_STRENGTHS = (5.0, 10.0, 15.0, 20.0, 25.0, 30.0)
_RADII_PX = (0.6, 0.8, 1.0, 1.5, 2.0, 3.0, 4.0)  # of a picture 128 px wide
Render = Callable[[int, float], np.ndarray]


def interval(values: Sequence[float]) -> dict[str, Any] | None:
    """Mean with its interval, every value a scene of its own; None without a value."""
    return dataclasses.asdict(cluster_interval(values, range(len(values)))) if values else None


class Scenes:
    """Held-out scenes and what is compared on them.

    Args:
        pipeline: an embedded Stage-1, with Stage-2 or without.
        cfg: with the pool.
        count: how many scenes.
        steps: denoising steps.
        size_px: side of the pictures.

    Raises:
        InputError: there is no pool, or the model is not the embedded base.
    """

    def __init__(self, pipeline: BokehDepthPipeline, cfg: Stage1Config, count: int, steps: int, size_px: int) -> None:
        if cfg.pool is None or "offsets_dpt" not in pipeline.transformer.config:
            raise InputError(
                "config has no pool or model is not the embedded base, wanted both for these controls; train.predict "
                "and --predictions score any model."
            )
        self.pipeline, self.steps, self.size_px = pipeline, steps, size_px
        held = ScenePool(cfg.pool, "held_out")
        self.numbers = np.arange(min(count, len(held)))
        self.batch = held.batch(self.numbers, size_px)
        self.kinds = [str(kind) for kind in held.kinds[self.numbers]]
        self.focus_m = held.tensors["focus_distance_m"][self.numbers].numpy()
        self.sharp = self.batch["image"].permute(0, 2, 3, 1).contiguous().numpy()
        self.truth = self.batch["bokeh"].permute(0, 1, 3, 4, 2).contiguous().numpy()
        self.strengths = [float(k) for k in self.batch["strength"][0]]
        self.offset_dpt = self.batch["offset_dpt"][:, 0].numpy()
        self.depth_m = self.batch["depth_m"][:, 0].numpy()
        self.scale = size_px / 128  # the radii of metrics.selectivity are those of a 128 px picture
        self.levels = torch.tensor(pipeline.transformer.config.offsets_dpt)
        self.train = ScenePool(cfg.pool, "train")

    def radius_px(self, number: int, bokeh_strength: float) -> np.ndarray:
        """True blur radius (H, W) of a scene (Eq. 15)."""
        return bokeh_strength * self.size_px / 512 * self.offset_dpt[number]

    def stack(self, number: int, strengths: Sequence[float]) -> np.ndarray:
        """The model's frames (F, H, W, 3)."""
        frames = self.pipeline.generate_stack(
            self.sharp[number],
            list(strengths),
            num_inference_steps=self.steps,
            generator=torch.Generator().manual_seed(number),
            max_area=self.size_px**2,
            restore=False,
            output_type="np",
        ).images
        return np.clip(frames, 0, 1).astype(np.float32)

    def blend(self, number: int, strength: float, offset_dpt: torch.Tensor) -> np.ndarray:
        """A scene through the model's disks at given offsets (H, W)."""
        weights = level_weights(offset_dpt[None, None], self.levels)
        photo = self.batch["image"][number : number + 1]
        return blend_disks(photo, weights, self.levels, torch.tensor([strength]))[0].permute(1, 2, 0).numpy()

    def best_radii(self) -> dict[float, float]:
        """The one radius of a uniform blur that has the best PSNR at each K."""
        best = {}
        for index, k in enumerate(self.strengths):
            scores = {}
            for radius in (r * self.scale for r in _RADII_PX):
                pairs = zip(self.sharp, self.truth, strict=True)
                scores[radius] = np.mean([psnr(disk_blur(s, radius, gamma=2.2), t[index]) for s, t in pairs])
            best[k] = max(scores, key=scores.get)
        return best

    def mean_offset(self) -> torch.Tensor:
        """Mean offset (H, W) of the training scenes at each place."""
        total, parts = torch.zeros(self.size_px, self.size_px), np.array_split(
            np.arange(len(self.train)), -(-len(self.train) // 200)
        )  # fmt: skip
        for part in parts:
            total += self.train.batch(part, self.size_px)["offset_dpt"].sum((0, 1))
        return total / len(self.train)

    def estimated(self, stacks: Sequence[np.ndarray]) -> list[tuple[np.ndarray, float]]:
        """Stage-2's depth (H, W) of each scene from the model's stack, and the focus distance that fits it."""
        found = []
        for number, frames in enumerate(stacks):
            depth_m = self.pipeline.estimate_depth(self.sharp[number], list(frames), self.strengths).depth_m
            in_focus = self.radius_px(number, 30.0) < self.scale / 2
            found.append((depth_m, float(np.median(depth_m[in_focus] if in_focus.any() else depth_m))))
        return found


def score_row(scenes: Scenes, render: Render) -> dict:
    """PSNR, SSIM and selectivity of one row at every K."""
    row: dict = {}
    for index, k in enumerate(scenes.strengths):
        scores: dict[str, list[float]] = {"whole": [], "ssim": [], "defocused": [], "in_focus": []}
        changes: dict[str, list] = {"all": [], "close_up": [], "general": []}
        for i, photo in enumerate(scenes.sharp):
            picture, truth = np.clip(render(i, k), 0, 1).astype(np.float32), scenes.truth[i, index]
            radius = scenes.radius_px(i, k)
            scores["whole"].append(min(psnr(picture, truth), CEILING_DB))
            scores["ssim"].append(ssim(picture, truth))
            for area, mask in (("defocused", radius > scenes.scale), ("in_focus", radius < scenes.scale / 2)):
                if mask.any():
                    scores[area].append(min(psnr(picture, truth, mask=mask), CEILING_DB))
            try:
                change = selectivity(
                    photo,
                    picture,
                    radius,
                    reference_radius_px=4 * scenes.scale,
                    defocused_above_px=2 * scenes.scale,
                    in_focus_below_px=scenes.scale / 2,
                )
            except InputError:
                continue  # a scene without one of the two areas has no selectivity
            changes["all"].append(change)
            changes["close_up" if scenes.kinds[i] in CLOSE_UPS else "general"].append(change)
        entry: dict = {area: interval(values) for area, values in scores.items()}
        entry["selectivity"] = {group: _mean_change(found) for group, found in changes.items()}
        row[f"K{k:g}"] = entry
    return row


def _mean_change(changes: Sequence) -> dict:
    """Mean changes of the two areas over scenes, and the ratio of these means."""
    defocused, in_focus = (
        float(np.mean([getattr(c, area) for c in changes])) if changes else None for area in ("defocused", "in_focus")
    )
    ratio = defocused / in_focus if in_focus else None
    return {"defocused": defocused, "in_focus": in_focus, "ratio": ratio, "scenes": len(changes)}


def measured_blur(scenes: Scenes, stack: Callable[[int], np.ndarray]) -> dict:
    """Slope of the measured radius over that of Eq. 15, and the share of patches in which it rises with K."""
    slopes, monotone, numbers = [], [], []
    # In pixels of any picture: a smaller radius measures low. The largest is one of the scene.
    bounds = {"least_radius_px": 2.0, "largest_radius_px": 6 * scenes.scale}
    for number, photo in enumerate(scenes.sharp):
        found = blur_response(photo, stack(number), RESPONSE_STRENGTHS, scenes.offset_dpt[number], **bounds)
        slopes += found.slope.tolist()
        monotone += found.is_monotone.tolist()
        numbers += [number] * len(found.slope)
    if not slopes:
        return {**bounds, "patches": 0}
    return {
        **bounds,
        "patches": len(slopes),
        "median_slope": float(np.median(slopes)),
        "mean_slope": dataclasses.asdict(cluster_interval(slopes, numbers)),
        "within_20_percent": float(np.mean(np.abs(np.array(slopes) - 1) <= 0.2)),
        "monotone": float(np.mean(monotone)),
    }


def evaluate(pipeline: BokehDepthPipeline, cfg: Stage1Config, count: int, steps: int, size_px: int) -> dict:
    """Every row's numbers.

    Args:
        pipeline: an embedded Stage-1, with Stage-2 or without.
        cfg: with the pool.
        count: how many held-out scenes.
        steps: denoising steps.
        size_px: side of the pictures.

    Raises:
        InputError: there is no pool, or the model is not the embedded base.
    """
    scenes = Scenes(pipeline, cfg, count, steps, size_px)
    strengths = scenes.strengths
    every = sorted({*RESPONSE_STRENGTHS, *strengths})
    made = [scenes.stack(i, every) for i in range(len(scenes.sharp))]
    stacks = [frames[[every.index(k) for k in strengths]] for frames in made]
    responses = [frames[[every.index(k) for k in RESPONSE_STRENGTHS]] for frames in made]
    mean_offset, best = scenes.mean_offset(), scenes.best_radii()
    rows: dict[str, Render] = {
        "model": lambda i, k: stacks[i][strengths.index(k)],
        "identity": lambda i, k: scenes.sharp[i],
        "best uniform blur": lambda i, k: disk_blur(scenes.sharp[i], best[k], gamma=2.2),
        "position only": lambda i, k: scenes.blend(i, k, mean_offset),
    }
    if pipeline.depth_estimator is not None:
        depths = scenes.estimated(stacks)
        rows["renderer, Stage-2's depth"] = lambda i, k: render_from_depth(
            scenes.sharp[i], depths[i][0], k, depths[i][1]
        )
    rows["renderer, true depth"] = lambda i, k: render_from_depth(
        scenes.sharp[i], scenes.depth_m[i], k, float(scenes.focus_m[i])
    )
    rows["true radii, same disks"] = lambda i, k: scenes.blend(i, k, torch.from_numpy(scenes.offset_dpt[i]))
    report: dict = {"scenes": len(scenes.sharp), "size_px": size_px, "steps": steps, "uniform_radius_px": best}
    report["rows"] = {name: score_row(scenes, render) for name, render in rows.items()}
    uniform = [
        r * scenes.scale for r in np.interp(RESPONSE_STRENGTHS, [0, 30], [0.5, best[strengths[-1]] / scenes.scale])
    ]
    report["measured_blur"] = {
        "model": measured_blur(scenes, lambda i: responses[i]),
        "uniform blur": measured_blur(
            scenes,
            lambda i: (
                np.stack([disk_blur(scenes.sharp[i], r, gamma=2.2) for r in uniform]).clip(0, 1).astype(np.float32)
            ),
        ),
    }
    report["k_response"] = _k_response(scenes, stacks)
    report["level_change"] = level_change(scenes)
    return report


@torch.no_grad()
def level_change(scenes: Scenes, count: int = 8) -> float | None:
    """How much the probabilities of the head's levels differ between the least and the largest K, all else equal.

    The levels are offsets of the scene, so nothing of K belongs into them: it acts through the radii of the disks.

    Returns:
        Mean absolute difference over the first `count` scenes; None of a head without levels.
    """
    network = MiniNetwork(scenes.pipeline.transformer, scenes.pipeline.bokeh_adapter, scenes.pipeline.vae).eval()
    photos = (scenes.batch["image"][:count] * 2 - 1).to(scenes.pipeline.transformer.dtype)
    noise = torch.randn(photos.shape, generator=torch.Generator().manual_seed(0)).to(photos)
    sigma, found = photos.new_ones(len(photos)), []
    for strength in (RESPONSE_STRENGTHS[0], RESPONSE_STRENGTHS[-1]):
        _, logits = network.predict(photos, noise, sigma, torch.full((len(photos),), strength))
        if logits is None:
            return None
        found.append(logits.float().softmax(1))
    return (found[0] - found[1]).abs().mean().item()


def _k_response(scenes: Scenes, stacks: Sequence[np.ndarray]) -> dict:
    """How much the defocused area changes at each K, for the model and the renderer."""
    rising, curve = [], []
    for i, stack in enumerate(stacks):
        area = scenes.radius_px(i, scenes.strengths[-1]) > 2 * scenes.scale
        if area.any():
            response = k_response(scenes.sharp[i], stack, scenes.strengths, area)
            true = k_response(scenes.sharp[i], scenes.truth[i], scenes.strengths, area)
            rising.append(response.rising_share)
            curve.append((response.mean_change, true.mean_change))
    mean = np.mean(curve, axis=0)
    return {
        "bokeh_strengths": scenes.strengths,
        "model": mean[0].tolist(),
        "renderer": mean[1].tolist(),
        "rising_share": float(np.mean(rising)),
        "scenes": len(rising),
    }


def table(report: dict) -> str:
    """The report as Markdown."""
    rows = []
    for name, row in report["rows"].items():
        for k, entry in row.items():
            change = entry["selectivity"]
            ratios = [
                "-" if change[group]["ratio"] is None else f"{change[group]['ratio']:.2f}"
                for group in ("all", "close_up", "general")
            ]
            both = change["all"]
            shown = "-" if both["defocused"] is None else f"{both['defocused']:.3f} : {both['in_focus']:.3f}"
            areas = ["-" if entry[a] is None else f"{entry[a]['mean']:.2f}" for a in ("defocused", "in_focus")]
            rows.append([name, k[1:], cell(entry["whole"], 2), f"{entry['ssim']['mean']:.4f}", *areas, shown, *ratios])
    header = ["row", "K", f"PSNR whole ({INTERVAL})", "SSIM", "defocused", "in focus", "change defocused : in focus",
              "selectivity", "close-ups", "other kinds"]  # fmt: skip
    lines = [markdown(header, rows)]
    for k, entry in next(iter(report["rows"].values())).items():
        defocused, in_focus = (0 if entry[a] is None else entry[a]["scenes"] for a in ("defocused", "in_focus"))
        groups = (entry["selectivity"][group]["scenes"] for group in ("all", "close_up", "general"))
        lines.append(
            f"\nScenes at K = {k[1:]}: {report['scenes']}, with defocused pixels {defocused}, with pixels in focus "
            "{}, with a selectivity {}: {} close-ups, {} other kinds".format(in_focus, *groups)
        )
    response = report["k_response"]
    for name in ("model", "renderer"):
        curve = ", ".join(f"{v:.4f}" for v in response[name])
        lines.append(f"\nMean change in the defocused area, {name}: {curve} at K = {response['bokeh_strengths']}")
    lines.append(f"\nShare of steps that rise: {response['rising_share']:.3f}; {response['scenes']} scenes")
    if report["level_change"] is not None:
        ends = f"K = {RESPONSE_STRENGTHS[0]:g} and {RESPONSE_STRENGTHS[-1]:g}"
        lines.append(f"\nMean change of a level's probability between {ends}: {report['level_change']:.1e}")
    for name, found in report["measured_blur"].items():
        if not found["patches"]:
            lines.append(f"\nMeasured radius, {name}: no patch of one depth with texture")
            continue
        lines.append(
            f"\nMeasured radius over that of Eq. 15, K = 5 to 30, {name}: median {found['median_slope']:.2f}, mean "
            f"{cell(found['mean_slope'], 2)}, within 20 % in {found['within_20_percent']:.2f} and monotone in "
            f"{found['monotone']:.3f} of {found['patches']} patches, whose true radius at K = 30 is "
            f"{found['least_radius_px']:g} to {found['largest_radius_px']:g} px"
        )
    return "\n".join(lines)


def main() -> str:
    """Compares the embedded Stage-1 with its controls on a pool; returns the table."""
    parser = config.parser("Compares the embedded Stage-1 with controls; --predictions scores saved files.")
    parser.add_argument("--model", default="embedded", help="as in bokehdepth.hub, or the folder of a Stage-1 run")
    parser.add_argument("--scenes", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--size", type=int, help="side of the pictures; the pool's own where not given")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    cfg = config.load(Stage1Config, arguments.config, arguments.set)
    if cfg.pool is None:
        raise InputError("config has no pool, wanted one: these controls need a pool's scenes.")
    torch.set_num_threads(cfg.threads)
    pipeline = load_stage1(arguments.model)
    report = evaluate(pipeline, cfg, arguments.scenes, arguments.steps, arguments.size or cfg.pool.size_px)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2))
    return table(report)
