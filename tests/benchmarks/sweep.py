"""Error of depth from rendered bokeh sweeps with noise (Eq. 28, 34), both estimators beside constant guesses.

    python tests/benchmarks/sweep.py [--noises 0 0.01 0.03]

*planes*: the exact model of Eq. 19, the picture of a procedural scene on one plane behind the focus, blurred by one
disk. *scenes*: procedural scenes with occlusion that lie behind the focus. Frames get normal noise and are rounded to
8 bit, the sharp one too. Errors are |depth - true| / true, median and mean; pixels without a depth are counted and
left out. The constant guess is a scene's median depth, and of a plane the middle of the disparities drawn. Exit code 1
if it beats an estimator in textured areas.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import get_args

import numpy as np
from scipy import ndimage

from bokehdepth.bracket_depth import LOW_CONFIDENCE, Estimator, SweepDepth, depth_from_sweep
from bokehdepth.camera.lens import blur_radius_px
from bokehdepth.rendering.disk import disk_blur
from bokehdepth.rendering.scatter import GAMMA
from datasets_scripts.scenes.generator import SceneGenerator

AREAS = ("textured", "flat", "border", "focus")  # each pixel is of one kind
SHARP_STRENGTHS = (0.0, 2.0)  # K0 of the sharp frame; above 0 it is also taken for 0, "ignored"
TEXTURE_CONTRAST, TEXTURE_PX = 0.03, 9  # standard deviation of the display value in a window
BORDER_RATIO, BORDER_PX = 1.1, 15  # a change of depth this near
FOCUS_DPT = 0.02  # offset below which a pixel is in focus: 0.6 px of radius at K = 30 and 512 px
LARGEST_FOCUS_M = 4.0  # beyond it the blur of the farthest thing is a few pixels


@dataclass(frozen=True)
class Case:
    """A sharp picture with its frames by K, true depth and the constant guess."""

    frames: dict[float, np.ndarray]
    depth_m: np.ndarray
    focus_m: float
    constant_m: float

    def areas(self) -> dict[str, np.ndarray]:
        """Masks: in focus, else near an occlusion border, else textured, else flat."""
        grey = self.frames[0.0].mean(axis=2, dtype=np.float64)
        mean = ndimage.uniform_filter(grey, TEXTURE_PX)
        contrast = np.sqrt(np.maximum(ndimage.uniform_filter(grey**2, TEXTURE_PX) - mean**2, 0))
        nearest, farthest = (f(self.depth_m, BORDER_PX) for f in (ndimage.minimum_filter, ndimage.maximum_filter))
        border, textured = farthest > BORDER_RATIO * nearest, contrast >= TEXTURE_CONTRAST
        blurred = np.abs(1 / self.focus_m - 1 / self.depth_m) >= FOCUS_DPT
        rest = blurred & ~border
        return {"textured": textured & rest, "flat": ~textured & rest, "border": border & blurred, "focus": ~blurred}


def planes(strengths: Sequence[float], count: int, size_px: int) -> Iterator[Case]:
    generator, rng = SceneGenerator((size_px, size_px), seed=0), np.random.default_rng([0, 1])
    for index in range(count):
        sharp = generator.generate(index).image
        focus_m = float(rng.uniform(0.8, 3.0))
        depth_m = focus_m / float(rng.uniform(0.1, 0.9))
        radii_px = {k: blur_radius_px(k, focus_m, depth_m, size_px) for k in strengths if k}
        frames = {0.0: sharp} | {k: disk_blur(sharp, radius, gamma=GAMMA) for k, radius in radii_px.items()}
        yield Case(frames, np.full((size_px, size_px), depth_m, dtype=np.float32), focus_m, 2 * focus_m)


def scenes(strengths: Sequence[float], count: int, size_px: int) -> Iterator[Case]:
    generator = SceneGenerator((size_px, size_px), seed=0)
    index = 0
    while count:
        scene = generator.generate(index)
        index += 1
        focus_m = scene.focus_distance_m
        if focus_m <= LARGEST_FOCUS_M and 1 / scene.depth_m.min() <= 1 / focus_m + FOCUS_DPT:
            frames = {0.0: scene.image} | {k: scene.render(k) for k in strengths if k}
            yield Case(frames, scene.depth_m, focus_m, float(np.median(scene.depth_m)))
            count -= 1


def measured(cases: Sequence[Case], sharp_strength: float, strengths: Sequence[float], noise: float) -> dict:
    """Depth of each case by estimator and the K0 that it was told."""
    rng = np.random.default_rng([0, 2])

    def taken(picture: np.ndarray) -> np.ndarray:
        noisy = np.clip(picture + noise * rng.standard_normal(picture.shape), 0, 1)
        return (np.rint(noisy * 255) / 255).astype(np.float32)

    ways = [(estimator, sharp_strength) for estimator in get_args(Estimator)]
    results: dict[tuple[str, float], list[SweepDepth]] = {way: [] for way in [*ways, ("joint", 0.0)]}
    for case in cases:
        sharp, frames = taken(case.frames[sharp_strength]), [taken(case.frames[k]) for k in strengths]
        for (estimator, told), depths in results.items():
            call = {"side": "behind", "estimator": estimator, "sharp_bokeh_strength": told, "max_depth_m": 1000.0}
            depths.append(depth_from_sweep(sharp, frames, strengths, case.focus_m, **call))
    return results


def spread(errors: np.ndarray) -> str:
    return f"{np.median(errors):.3f} / {errors.mean():.3f}" if errors.size else "-"


def area_row(cases: Sequence[Case], depths: Sequence[SweepDepth], area: str) -> tuple[str, bool] | None:
    """Cells of one kind of pixel, and whether the constant guess is beaten; None where there are no such pixels."""
    parts = [(case, depth, case.areas()[area]) for case, depth in zip(cases, depths, strict=True)]
    true_m = np.concatenate([case.depth_m[where] for case, _, where in parts])
    if not true_m.size:
        return None
    error = np.abs(np.concatenate([depth.depth_m[where] for _, depth, where in parts]) - true_m) / true_m
    sure = np.concatenate([depth.confidence[where] for _, depth, where in parts]) >= LOW_CONFIDENCE
    guess_m = np.concatenate([np.full(where.sum(), case.constant_m) for case, _, where in parts])
    guess, valid = np.abs(guess_m - true_m) / true_m, np.isfinite(error)
    cells = f"{spread(error[valid])} | {spread(error[valid & sure])} | {sure.mean():.1%} | {1 - valid.mean():.1%}"
    return f"{cells} | {spread(guess)}", bool(np.median(error[valid]) < np.median(guess))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, metavar="PX", help="side of the pictures (default: 256)")
    parser.add_argument("--scenes", type=int, default=6, help="of each kind (default: 6)")
    parser.add_argument("--noises", type=float, nargs="+", default=[0.0, 0.01, 0.03], help="of display values")
    parser.add_argument("--stacks", nargs="+", default=["10,20,30", "30", "4,8,12"], metavar="K,K", help="their K")
    options = parser.parse_args(arguments)
    stacks = [tuple(map(float, text.split(","))) for text in options.stacks]
    every = sorted({*SHARP_STRENGTHS, *(k for strengths in stacks for k in strengths)})
    print("| scenes | K0 | K | noise | estimator, K0 told | area | all | confident | share | no depth | constant |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    passed = True
    for make in (planes, scenes):
        cases = list(make(every, options.scenes, options.size))
        for k0, strengths, noise in product(SHARP_STRENGTHS, stacks, options.noises):
            setting = f"{make.__name__} | {k0:g} | {' '.join(f'{k:g}' for k in strengths)} | {noise:g}"
            for (estimator, told), depths in measured(cases, k0, strengths, noise).items():
                for area in AREAS:
                    row = area_row(cases, depths, area)
                    if row is not None:
                        print(f"| {setting} | {estimator}, {told:g} | {area} | {row[0]} |")
                        passed &= row[1] or area != "textured" or told != k0
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
