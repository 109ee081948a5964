"""`bokehdepth bench sweep`: depth from rendered bokeh sweeps with noise, both estimators beside constant guesses.

Two kinds of scene, each with known depth:

* `planes`: the exact model of Eq. 19. Each scene is the all-in-focus picture of a procedural scene on one plane behind
  the focus, blurred by one disk for each frame; nothing is occluded.
* `scenes`: procedural scenes with occlusion, seen through the layered renderer, that lie behind the focus.

The frames get normal noise of equal size and are rounded to 8 bit, the sharp one too. Pixels are sorted by the sharp
picture without noise and the true depth: in focus, else near an occlusion border, else textured, else flat.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from scipy import ndimage

from bokehdepth.bracket_depth import LOW_CONFIDENCE, Estimator, SweepDepth, depth_from_sweep
from bokehdepth.camera.lens import blur_radius_px, check_number
from bokehdepth.errors import InputError
from bokehdepth.rendering.disk import disk_blur
from bokehdepth.rendering.scatter import GAMMA
from bokehdepth.rendering.scenes import SceneGenerator

AREAS = ("textured", "flat", "border", "focus")
"""Kinds of pixels, each pixel of one kind."""

_TEXTURE_CONTRAST = 0.03  # standard deviation of the display value in a window, from which it is texture
_TEXTURE_PX = 9
_BORDER_PX = 15  # a change of depth this near counts
_BORDER_RATIO = 1.1
_FOCUS_DPT = 0.02  # offset below which a pixel counts as in focus: 0.6 px of radius at K = 30 and 512 px
_FRONT_TOLERANCE_DPT = 0.02  # a scene whose nearest pixel is nearer than this in front of the focus is left out
_LARGEST_FOCUS_M = 4.0  # beyond it the blur of the farthest thing is a few pixels


@dataclass(frozen=True)
class _Case:
    sharp: np.ndarray
    frames: dict[float, np.ndarray]
    depth_m: np.ndarray
    focus_distance_m: float
    constant_m: float
    areas: dict[str, np.ndarray]


def run(
    noises: Sequence[float] = (0.0, 0.01, 0.03),
    strength_sets: Sequence[Sequence[float]] = ((10.0, 20.0, 30.0), (30.0,), (4.0, 8.0, 12.0)),
    *,
    sharp_bokeh_strengths: Sequence[float] = (0.0, 2.0),
    scenes: int = 6,
    size_px: int = 256,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure both estimators on both kinds of scene.

    Errors are `|depth - true| / true`. Pixels without a depth (infinity, or the end of the search) are counted in
    `invalid_share` and left out of the errors. `constant` is a constant guess: of a scene the median of its true
    depth, of a plane twice the focus distance, the middle of the disparities drawn; a method that does not beat it
    measures nothing.

    Args:
        noises: Standard deviations of the noise in display values, each 0 or more.
        strength_sets: K of the frames, one set for each stack.
        sharp_bokeh_strengths: K0 of the sharp frame. For K0 above 0, rows `corrected` use it and rows `ignored` take
            the frame for K = 0.
        scenes: Scenes of each kind.
        size_px: Side of the pictures, from 128 to 1024.
        seed: Of the scenes and of the noise.

    Returns:
        `rows`: one for each kind of scene, K0, set, noise, estimator and area, with `pixels`, `median` and `mean`
        error, `confident_share`, `confident_median` and `confident_mean` on those, `invalid_share`,
        `constant_median` and `constant_mean`; None where there is no pixel. And the arguments.

    Raises:
        InputError: A number is out of range.
    """
    if isinstance(scenes, bool) or not isinstance(scenes, int) or scenes < 1:
        raise InputError(f"scenes is {scenes!r}, wanted a whole number, 1 or more")
    if isinstance(size_px, bool) or not isinstance(size_px, int) or not 128 <= size_px <= 1024:
        raise InputError(f"size_px is {size_px!r}, wanted a whole number from 128 to 1024")
    noises = [check_number(noise, "noises", zero=True) for noise in noises]
    sets = [tuple(check_number(k, "strength_sets") for k in strengths) for strengths in strength_sets]
    sharp_strengths = [check_number(k, "sharp_bokeh_strengths", zero=True) for k in sharp_bokeh_strengths]
    wanted = sorted({*sharp_strengths, *(k for strengths in sets for k in strengths)})
    rows = []
    for kind, make in (("planes", _planes), ("scenes", _scenes)):
        cases = list(make(wanted, scenes, size_px, seed))
        for sharp_strength in sharp_strengths:
            for strengths in sets:
                if min(strengths) <= sharp_strength:
                    continue
                for noise in noises:
                    setting = {
                        "kind": kind,
                        "sharp_bokeh_strength": sharp_strength,
                        "bokeh_strengths": strengths,
                        "noise": noise,
                    }
                    rows += [setting | row for row in _measure(cases, sharp_strength, strengths, noise, seed)]
    return {
        "rows": rows,
        "scenes": scenes,
        "size_px": size_px,
        "seed": seed,
        "low_confidence": LOW_CONFIDENCE,
    }


def _areas(sharp: np.ndarray, depth_m: np.ndarray, focus_m: float) -> dict[str, np.ndarray]:
    grey = sharp.mean(axis=2, dtype=np.float64)
    mean = ndimage.uniform_filter(grey, _TEXTURE_PX)
    contrast = np.sqrt(np.maximum(ndimage.uniform_filter(grey**2, _TEXTURE_PX) - mean**2, 0))
    border = ndimage.maximum_filter(depth_m, _BORDER_PX) > _BORDER_RATIO * ndimage.minimum_filter(depth_m, _BORDER_PX)
    textured, blurred = contrast >= _TEXTURE_CONTRAST, np.abs(1 / focus_m - 1 / depth_m) >= _FOCUS_DPT
    rest = blurred & ~border
    return {"textured": textured & rest, "flat": ~textured & rest, "border": border & blurred, "focus": ~blurred}


def _planes(strengths: Sequence[float], count: int, size_px: int, seed: int) -> Iterator[_Case]:
    generator = SceneGenerator((size_px, size_px), seed=seed)
    rng = np.random.default_rng([seed, 1])
    for index in range(count):
        sharp = generator.generate(index).image
        focus_m = float(rng.uniform(0.8, 3.0))
        depth_m = 1 / (float(rng.uniform(0.1, 0.9)) / focus_m)
        frames = {
            k: disk_blur(sharp, blur_radius_px(k, focus_m, depth_m, size_px), gamma=GAMMA) if k else sharp
            for k in strengths
        }
        depth = np.full(sharp.shape[:2], depth_m, dtype=np.float32)
        yield _Case(sharp, frames, depth, focus_m, 2 * focus_m, _areas(sharp, depth, focus_m))


def _scenes(strengths: Sequence[float], count: int, size_px: int, seed: int) -> Iterator[_Case]:
    generator = SceneGenerator((size_px, size_px), seed=seed)
    index = found = 0
    while found < count:
        scene = generator.generate(index)
        index += 1
        focus_m = scene.focus_distance_m
        if focus_m > _LARGEST_FOCUS_M or 1 / scene.depth_m.min() > 1 / focus_m + _FRONT_TOLERANCE_DPT:
            continue
        found += 1
        frames = {k: scene.render(k) for k in strengths}
        areas = _areas(scene.image, scene.depth_m, focus_m)
        yield _Case(scene.image, frames, scene.depth_m, focus_m, float(np.median(scene.depth_m)), areas)


def _measure(
    cases: Sequence[_Case], sharp_strength: float, strengths: Sequence[float], noise: float, seed: int
) -> list[dict[str, Any]]:
    """Rows of one setting: for each way to measure and each area."""
    rng = np.random.default_rng([seed, 2])

    def taken(picture: np.ndarray) -> np.ndarray:
        noisy = np.clip(picture + noise * rng.standard_normal(picture.shape), 0, 1)
        return (np.rint(noisy * 255) / 255).astype(np.float32)

    ways = [(estimator, sharp_strength) for estimator in get_args(Estimator)]
    if sharp_strength:
        ways.append(("joint", 0.0))
    found: dict[tuple[str, float], list[SweepDepth]] = {way: [] for way in ways}
    for case in cases:
        sharp = taken(case.frames[sharp_strength] if sharp_strength else case.sharp)
        frames = [taken(case.frames[k]) for k in strengths]
        for estimator, assumed in ways:
            measured = depth_from_sweep(
                sharp,
                frames,
                strengths,
                case.focus_distance_m,
                side="behind",
                sharp_bokeh_strength=assumed,
                estimator=estimator,
                max_depth_m=1000.0,
            )
            found[estimator, assumed].append(measured)
    rows = []
    for (estimator, assumed), results in found.items():
        blur = "none" if not sharp_strength else "corrected" if assumed else "ignored"
        for area in AREAS:
            rows.append({"estimator": estimator, "sharp_blur": blur, "area": area} | _errors(cases, results, area))
    return rows


def _errors(cases: Sequence[_Case], results: Sequence[SweepDepth], area: str) -> dict[str, Any]:
    errors, confidences, constant = [], [], []
    for case, result in zip(cases, results, strict=True):
        where = case.areas[area]
        true_m = case.depth_m[where]
        errors.append(np.abs(result.depth_m[where] - true_m) / true_m)
        confidences.append(result.confidence[where])
        constant.append(np.abs(case.constant_m - true_m) / true_m)
    error, confident = np.concatenate(errors), np.concatenate(confidences) >= LOW_CONFIDENCE
    valid = np.isfinite(error)
    return {
        "pixels": int(error.size),
        **_two("", error[valid]),
        "confident_share": float(confident.mean()) if error.size else None,
        **_two("confident_", error[valid & confident]),
        "invalid_share": float(1 - valid.mean()) if error.size else None,
        **_two("constant_", np.concatenate(constant)),
    }


def _two(prefix: str, errors: np.ndarray) -> dict[str, float | None]:
    if errors.size == 0:
        return {f"{prefix}median": None, f"{prefix}mean": None}
    return {f"{prefix}median": float(np.median(errors)), f"{prefix}mean": float(errors.mean())}


def as_text(result: dict[str, Any]) -> str:
    """Lay the rows out as a Markdown table.

    Args:
        result: As `run` returned it.

    Returns:
        A line on what the columns mean, the table, without a line break at the end.
    """
    lines = [
        f"AbsRel of depth, median / mean, {result['scenes']} scenes of {result['size_px']} px each; confident: from "
        f"{result['low_confidence']:g} on; constant: a constant depth.",
        "",
        "| scenes | K0 | K | noise | estimator | K0 is | area | all | confident | share confident | no depth "
        "| constant |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        if not row["pixels"]:
            continue
        cells = [
            row["kind"],
            f"{row['sharp_bokeh_strength']:g}",
            " ".join(f"{k:g}" for k in row["bokeh_strengths"]),
            f"{row['noise']:g}",
            row["estimator"],
            row["sharp_blur"],
            row["area"],
            _pair(row, ""),
            _pair(row, "confident_"),
            f"{row['confident_share']:.1%}",
            f"{row['invalid_share']:.1%}",
            _pair(row, "constant_"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _pair(row: dict[str, Any], prefix: str) -> str:
    median, mean = row[f"{prefix}median"], row[f"{prefix}mean"]
    return "-" if median is None else f"{median:.3f} / {mean:.3f}"
