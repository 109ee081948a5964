"""Our defocus renderers beside the usual ones: the same procedural scenes, one core, one run.

    python tests/benchmarks/renderers.py [--size 512] [--mean-radii 3.4 10 21]

Prints millions of picture pixels a second. Without occlusion: the span scatter, the same operator by brute force with
the same vector instructions, one FFT and one OpenCV `filter2D` for each of 16 layers of radius. With occlusion:
`refocus_light`. All take and return linear light. Exit code 1 if the span scatter differs from brute force.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial

import cv2
import numba
import numpy as np
import torch
from scipy.signal import oaconvolve

from bokehdepth.rendering._scatter_numba import CHANNELS, _add_pair
from bokehdepth.rendering.aperture import DISK, span_table
from bokehdepth.rendering.refocus import refocus_light, signed_radius_px
from bokehdepth.rendering.scatter import kernel_numbers, span_scatter, to_light
from datasets_scripts.scenes.generator import Scene, SceneGenerator
from measure import Contender, seconds

LAYERS = 16
TOLERANCE = 0.01  # mean absolute difference from brute force, over the mean of the light


@numba.njit(nogil=True, cache=True, boundscheck=False)
def brute_scatter(values, number, first, side, weight, canvas, start):
    """Add the light of every pixel to every pixel of its kernel, two pixels with one instruction.

    `weight[first[k]:]` are the `side[k]` rows of kernel k, each of an even number of entries; `start` is the place of
    the pixel (0, 0) in the flat canvas, and of one row after another.
    """
    one = numba.uint64(1)
    for y, x in np.ndindex(number.shape):
        source = numba.uint64((y * number.shape[1] + x) * CHANNELS)
        v0, v1, v2, v3 = values[source], values[source + one], values[source + one + one], values[source + 3 * one]
        rows, place = side[number[y, x]], first[number[y, x]]
        for row in range(rows):
            base = start[0] + (y + row - rows // 2) * start[1] + (x - rows // 2) * CHANNELS
            for pair in range((rows + 1) // 2):
                at, spot = numba.uint64(base + 2 * pair * CHANNELS), numba.uint64(place)
                _add_pair(canvas, at, v0, v1, v2, v3, weight[spot], weight[spot + one])
                place += 2


def brute(values: np.ndarray, radius_px: np.ndarray) -> Callable[[], np.ndarray]:
    """Brute force with the kernels of the span scatter's grid, which are made here, outside of what is timed."""
    table = span_table(DISK, 0.0, float(radius_px.max()))
    number, rim = kernel_numbers(radius_px, table), table.half_height_px
    kernels = [np.pad(DISK.kernel(k / table.steps_per_px), ((0, 0), (0, 1))) for k in range(int(number.max()) + 1)]
    side = np.array([len(kernel) for kernel in kernels])
    first = np.cumsum([0, *(kernel.size for kernel in kernels)])
    weight = np.concatenate([kernel.ravel() for kernel in kernels]).astype(np.float32)
    height, width = radius_px.shape

    def run() -> np.ndarray:
        canvas = np.zeros((height + 2 * rim, width + 2 * rim + 2, CHANNELS), dtype=np.float32)
        stride = canvas.shape[1] * CHANNELS
        start = np.array([rim * stride + rim * CHANNELS, stride])
        brute_scatter(values.reshape(-1), number, first, side, weight, canvas.reshape(-1), start)
        return canvas[rim : rim + height, rim : rim + width]

    return run


def fft_blur(values: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return oaconvolve(values, kernel[..., None], mode="same", axes=(0, 1))


def opencv_blur(values: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return cv2.filter2D(values, -1, kernel, borderType=cv2.BORDER_CONSTANT)


def by_layers(blur: Callable[[np.ndarray, np.ndarray], np.ndarray], values: np.ndarray, radius_px: np.ndarray) -> None:
    """Blur layers of equal steps in radius, each with the kernel of its middle, and add up."""
    edges = np.linspace(0, float(radius_px.max()), LAYERS + 1)
    layer = np.clip(np.digitize(radius_px, edges) - 1, 0, LAYERS - 1)
    out = np.zeros_like(values)
    for number in np.unique(layer):
        kernel = DISK.kernel(0.5 * (edges[number] + edges[number + 1])).astype(np.float32)
        out += blur(values * (layer == number)[..., None], kernel)


def measured(scenes: Sequence[Scene], mean_px: float, repeats: int) -> tuple[dict[str, float], float]:
    """Millions of pixels a second of each renderer, and the span scatter's difference from brute force."""
    runs: dict[str, list[Callable[[], object]]] = {}
    differences, pixels = [], 0
    for scene in scenes:
        light = to_light(scene.image)
        values = np.concatenate([light, np.ones_like(light[..., :1])], axis=2)
        signed_px = signed_radius_px(scene.depth_m, 1.0, scene.focus_distance_m)
        signed_px = signed_px * np.float32(mean_px / np.abs(signed_px).mean())
        radius_px = np.abs(signed_px)
        each = {
            "span scatter": partial(span_scatter, values, radius_px, border="lost"),
            "brute force": brute(values, radius_px),
            "FFT per layer": partial(by_layers, fft_blur, values, radius_px),
            "OpenCV per layer": partial(by_layers, opencv_blur, values, radius_px),
            "with occlusion": partial(refocus_light, light, signed_px),
        }
        exact = each["brute force"]()
        differences.append(float(np.abs(each["span scatter"]() - exact).mean() / exact.mean()))
        pixels += radius_px.size
        for name, run in each.items():
            runs.setdefault(name, []).append(run)
    contenders = {name: Contender(lambda parts=parts: [part() for part in parts]) for name, parts in runs.items()}
    taken = seconds(contenders, repeats, torch.device("cpu"))
    return {name: pixels / 1e6 / value for name, value in taken.items()}, max(differences)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, metavar="PX", help="side of the scenes (default: 512)")
    parser.add_argument("--mean-radii", type=float, nargs="+", default=[3.4, 10.0, 21.0], metavar="PX")
    parser.add_argument("--scenes", type=int, default=3, help="how many (default: 3)")
    parser.add_argument("--repeats", type=int, default=3, help="turns; the median counts (default: 3)")
    options = parser.parse_args(arguments)
    cv2.setNumThreads(1)
    generator = SceneGenerator((options.size, options.size), seed=0)
    scenes = [generator.generate(index) for index in range(options.scenes)]
    passed = True
    for mean_px in options.mean_radii:
        rates, difference = measured(scenes, mean_px, options.repeats)
        passed &= difference <= TOLERANCE
        print(f"mean radius {mean_px:g} px: " + ", ".join(f"{name} {rate:.3g}" for name, rate in rates.items()))
        print(f"  from brute force by {difference:.2g}, {'passed' if difference <= TOLERANCE else 'FAILED'}")
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
