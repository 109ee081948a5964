"""`bokehdepth bench render`: our renderers beside the usual ones, on the same scenes, on one core, in one run.

Contenders without occlusion: the span scatter; the same operator by brute force, every pixel of every disk, as a plain
compiled loop and with the vector instructions that the span scatter uses; one FFT for each of 16 layers of radius; one
OpenCV `filter2D` for each of these layers. With occlusion: `refocus_light`. All take and return linear light, so that
no gamma is timed. The figures are millions of picture pixels a second.
"""

import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from scipy.signal import oaconvolve

from bokehdepth.benchmarks import timing
from bokehdepth.benchmarks._brute_numba import brute_scatter, plain_scatter
from bokehdepth.errors import InputError
from bokehdepth.rendering.aperture import DISK, span_table
from bokehdepth.rendering.refocus import refocus_light, signed_radius_px
from bokehdepth.rendering.scatter import kernel_numbers, span_scatter, to_light
from bokehdepth.rendering.scatter_torch import span_scatter as torch_scatter
from datasets_scripts.scenes.generator import Scene, SceneGenerator

SPAN, BRUTE, PLAIN = "span scatter", "brute scatter, vectors", "brute scatter"
FFT, OPENCV = "FFT per layer", "OpenCV per layer"
OCCLUSION, TORCH, COPY = "layered (occlusion)", "torch span scatter", "copy of the picture"
_LAYERS = 16
_TOLERANCE = 0.01
"""Largest mean absolute difference, relative to the mean of the light, between span scatter and brute force."""


def run(
    sizes_px: Sequence[int] = (512, 1024),
    mean_radii_px: Sequence[float] = (3.4, 10.0, 21.0),
    repeats: int = 3,
    scenes: int = 3,
    device: str = "cpu",
) -> dict[str, Any]:
    """Measure all contenders that are installed.

    Args:
        sizes_px: Sides of the square pictures, each from 32 to 2048.
        mean_radii_px: Mean blur radius over the picture, each above 0.
        repeats: Rounds; the median counts.
        scenes: How many procedural scenes, rendered one after the other; the first ones of seed 0.
        device: Where the torch renderer runs; on another device than the CPU copying the picture is timed beside it.

    Returns:
        ``machine``; ``rows`` with size, mean and largest radius, contender, Mpix/s and the time relative to the span
        scatter; ``gates`` with the measured difference from brute force and whether it is within the tolerance.

    Raises:
        InputError: A number is out of range.
    """
    if not mean_radii_px or min(mean_radii_px) <= 0:
        raise InputError(f"mean_radii_px is {mean_radii_px!r}, wanted radii above 0 px")
    if repeats < 1:
        raise InputError(f"repeats is {repeats!r}, wanted 1 or more")
    if scenes < 1:
        raise InputError(f"scenes is {scenes!r}, wanted 1 or more")
    rows, gates = [], []
    for size in sizes_px:
        generator = SceneGenerator((size, size), seed=0)
        pictures = [_Picture.of(generator.generate(index)) for index in range(scenes)]
        for mean in mean_radii_px:
            blurred = [picture.with_mean(mean) for picture in pictures]
            largest = max(float(picture.radius_px.max()) for picture in blurred)
            case = {"size_px": size, "mean_radius_px": float(mean), "largest_radius_px": largest}
            measured, gate = _case(blurred, repeats, device)
            rows += [case | row for row in measured]
            gates.append(case | gate)
    return {"machine": timing.machine(device), "rows": rows, "gates": gates, "tolerance": _TOLERANCE}


@dataclass(frozen=True)
class _Picture:
    """Light with a last channel of ones, float32 ``(H, W, 4)``, and the signed blur radius ``(H, W)``."""

    values: np.ndarray
    signed_px: np.ndarray

    @classmethod
    def of(cls, scene: Scene) -> "_Picture":
        light = to_light(scene.image)
        values = np.concatenate([light, np.ones_like(light[..., :1])], axis=2)
        return cls(values, signed_radius_px(scene.depth_m, 1.0, scene.focus_distance_m))

    def with_mean(self, radius_px: float) -> "_Picture":
        return _Picture(self.values, self.signed_px * np.float32(radius_px / np.abs(self.signed_px).mean()))

    @cached_property
    def light(self) -> np.ndarray:
        return np.ascontiguousarray(self.values[..., :3])

    @cached_property
    def radius_px(self) -> np.ndarray:
        return np.abs(self.signed_px)


def _case(pictures: list[_Picture], repeats: int, device: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    brutes = [_Brute(picture) for picture in pictures]
    each: dict[str, list[Callable[[], np.ndarray]]] = {
        SPAN: [partial(span_scatter, p.values, p.radius_px, border="lost") for p in pictures],
        PLAIN: [brute.plain for brute in brutes],
        BRUTE: [brute.with_vectors for brute in brutes],
        FFT: [partial(_per_layer, p, _fft_blur) for p in pictures],
        OCCLUSION: [partial(refocus_light, p.light, p.signed_px) for p in pictures],
    }
    if importlib.util.find_spec("cv2"):
        each[OPENCV] = [partial(_per_layer, p, _opencv_blur) for p in pictures]
    differences = [
        float(np.abs(spread() - brute()).mean() / brute().mean())
        for spread, *rivals in zip(each[SPAN], each[PLAIN], each[BRUTE], strict=True)
        for brute in rivals
    ]
    seconds = timing.interleaved({name: partial(_all, runs) for name, runs in each.items()}, repeats)
    seconds |= _on_device(pictures, repeats, device)
    pixels = sum(picture.radius_px.size for picture in pictures) / 1e6
    rows = [
        {"contender": name, "mpix_per_s": pixels / value, "time_over_span": value / seconds[SPAN]}
        for name, value in seconds.items()
    ]
    return rows, {"difference": max(differences), "passed": max(differences) <= _TOLERANCE}


def _all(runs: list[Callable[[], object]]) -> None:
    for run in runs:
        run()


class _Brute:
    """Brute force with the kernels of the span scatter's grid, which are made here, outside of what is timed."""

    def __init__(self, picture: _Picture) -> None:
        table = span_table(DISK, 0.0, float(picture.radius_px.max()))
        self.values, self.number = picture.values, kernel_numbers(picture.radius_px, table)
        count = int(self.number.max()) + 1
        kernels = [np.pad(DISK.kernel(k / table.steps_per_px), ((0, 0), (0, 1))) for k in range(count)]
        self.side = np.array([len(kernel) for kernel in kernels], dtype=np.int64)
        self.first = np.concatenate([[0], np.cumsum([kernel.size for kernel in kernels])[:-1]])
        self.weight = np.concatenate([kernel.ravel() for kernel in kernels]).astype(np.float32)
        self.rim = table.half_height_px

    def _canvas(self) -> np.ndarray:
        height, width = self.number.shape
        return np.zeros((height + 2 * self.rim, width + 2 * self.rim + 2, 4), dtype=np.float32)

    def _inside(self, canvas: np.ndarray) -> np.ndarray:
        height, width = self.number.shape
        return canvas[self.rim : self.rim + height, self.rim : self.rim + width]

    def plain(self) -> np.ndarray:
        canvas = self._canvas()
        plain_scatter(self.values, self.number, self.first, self.side, self.weight, canvas)
        return self._inside(canvas)

    def with_vectors(self) -> np.ndarray:
        canvas = self._canvas()
        stride = canvas.shape[1]
        start = np.array([(self.rim * stride + self.rim) * 4, stride * 4], dtype=np.int64)
        flat = self.values.reshape(-1), canvas.reshape(-1)
        brute_scatter(flat[0], self.number, self.first, self.side, self.weight, flat[1], start)
        return self._inside(canvas)


def _per_layer(picture: _Picture, blur: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """Blur 16 layers of equal steps in radius, each with the kernel of its middle, and add up."""
    values = picture.values
    edges = np.linspace(0, float(picture.radius_px.max()), _LAYERS + 1)
    layer = np.clip(np.digitize(picture.radius_px, edges) - 1, 0, _LAYERS - 1)
    out = np.zeros_like(values)
    for number in np.unique(layer):
        kernel = DISK.kernel(0.5 * (edges[number] + edges[number + 1])).astype(np.float32)
        out += blur(values * (layer == number)[..., None], kernel)
    return out


def _fft_blur(values: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return oaconvolve(values, kernel[..., None], mode="same", axes=(0, 1))


def _opencv_blur(values: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    import cv2

    cv2.setNumThreads(1)
    return cv2.filter2D(values, -1, kernel, borderType=cv2.BORDER_CONSTANT)


def _on_device(pictures: list[_Picture], repeats: int, device: str) -> dict[str, float]:
    """Time the torch renderer where it runs, and there a copy of the pictures: nothing is faster than that."""
    place = torch.device(device)
    values = torch.stack([torch.from_numpy(p.values.transpose(2, 0, 1).copy()) for p in pictures]).to(place)
    radius = torch.stack([torch.from_numpy(p.radius_px) for p in pictures]).to(place)
    threads = torch.get_num_threads()

    def finished(run: Callable[[], object]) -> None:
        run()
        if place.type == "cuda":
            torch.cuda.synchronize(place)

    contenders = {TORCH: lambda: torch_scatter(values, radius, border="lost"), COPY: values.clone}
    torch.set_num_threads(1)
    try:
        timed = {name: partial(finished, run) for name, run in contenders.items()}
        return timing.interleaved(timed, repeats, time.perf_counter)
    finally:
        torch.set_num_threads(threads)


def as_text(result: dict[str, Any]) -> str:
    """Lay a result of `run` out as a table, gates below it."""
    columns = {
        "size_px": "px",
        "mean_radius_px": "mean radius",
        "largest_radius_px": "largest",
        "contender": "contender",
        "mpix_per_s": "Mpix/s",
        "time_over_span": "time / span",
    }
    lines = [f"{result['machine']['processor']}, one core", "", timing.table(result["rows"], columns), ""]
    for gate in result["gates"]:
        lines.append(
            f"gate {gate['size_px']} px, mean radius {gate['mean_radius_px']:g} px: span scatter differs from brute "
            f"force by {gate['difference']:.2g} of the mean light, wanted at most {result['tolerance']:g}: "
            f"{'passed' if gate['passed'] else 'FAILED'}"
        )
    return "\n".join(lines)
