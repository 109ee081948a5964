"""Occlusion-aware defocus of a scene made of layers: what lies behind a blurred edge is really there.

A picture with a depth map lacks the light that comes from behind its near objects; a layered scene has it. Each layer
is blurred in linear light, premultiplied by its opacity, and the layers are laid over each other from far to near:

    r_px = K * (W / 512) * |1/S1 - disparity|          (paper, Eq. 15 and 26)
    out  = C + out * (1 - A)                           (C, A: blurred light and blurred opacity of one layer)

A layer may be slanted: its radius then varies from pixel to pixel. Every pixel is shared between the two nearest of a
fixed ladder of radii (50 dB against a ladder of many more), and the sum is divided by what a fully opaque layer of the
same shape in depth would give, so that a slanted wall stays opaque. Beyond the frame every layer continues with its
edge pixels, as in `disk_blur`. Two layers that are both blurred are taken to cover each other independently of the
point of the lens, which is exact where one of them is sharp. No torch import.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import scipy.fft

from bokehdepth.errors import InputError
from bokehdepth.rendering.disk import disk_kernel

GAMMA = 2.2
REFERENCE_WIDTH_PX = 512
_IDENTITY_RADIUS_PX = 0.5  # disk_kernel is one pixel up to here
_DIRECT_TAPS = 9  # kernels of up to 3x3 are cheaper as shifted sums than as transforms


@dataclass(frozen=True)
class Layer:
    """One surface of a scene, at least as large as what is seen of it. Its arrays are not to be changed afterwards.

    Attributes:
        rgb: Display values in [0, 1], float32 ``(H, W, 3)``; where ``alpha`` is 0 they do not matter.
        alpha: Opacity in [0, 1], float32 ``(H, W)``.
        disparity_dpt: 1 / depth in 1/m, more than 0, float32 ``(H, W)``; smooth, and defined where ``alpha`` is 0 too.

    Raises:
        InputError: If an array has another type or shape, values that are not finite, or values out of range.
    """

    rgb: np.ndarray
    alpha: np.ndarray
    disparity_dpt: np.ndarray

    def __post_init__(self) -> None:
        if not (isinstance(self.alpha, np.ndarray) and self.alpha.ndim == 2 and self.alpha.size):
            raise InputError(f"alpha is {_described(self.alpha)}, wanted a float32 array (H, W)")
        wanted = {"rgb": (*self.alpha.shape, 3), "alpha": self.alpha.shape, "disparity_dpt": self.alpha.shape}
        for name, shape in wanted.items():
            array = getattr(self, name)
            if not (isinstance(array, np.ndarray) and array.dtype == np.float32 and array.shape == shape):
                raise InputError(f"{name} is {_described(array)}, wanted a float32 array {shape}")
            low, high = array.min(), array.max()
            if name == "disparity_dpt":
                if not (low > 0 and np.isfinite(high)):
                    raise InputError(f"disparity_dpt spans [{low:g}, {high:g}], wanted finite values above 0 in 1/m")
            elif not (low >= 0 and high <= 1):
                raise InputError(f"{name} spans [{low:g}, {high:g}], wanted values in [0, 1]")

    @cached_property
    def light(self) -> np.ndarray:
        """Premultiplied linear light and, last, the opacity: float32 ``(4, H, W)``."""
        light = np.zeros((4, *self.alpha.shape), dtype=np.float32)
        box = _extent(self.alpha)
        part = np.ascontiguousarray(self.rgb[box].transpose(2, 0, 1))
        part **= np.float32(GAMMA)
        part *= self.alpha[box]
        light[(slice(3), *box)] = part
        light[3] = self.alpha
        return light

    @cached_property
    def is_opaque(self) -> bool:
        """Whether nothing behind the layer can be seen while it is sharp."""
        return bool(self.alpha.min() == 1)


def composite(layers: Sequence[Layer]) -> tuple[np.ndarray, np.ndarray]:
    """Lay the layers over each other, all in focus.

    Args:
        layers: One or more layers of one size, the farthest first.

    Returns:
        The picture, float32 ``(H, W, 3)`` display values in [0, 1], and the disparity of what is seen, float32
        ``(H, W)`` in 1/m: that of the nearest layer whose opacity is at least one half. Disparities are never mixed.

    Raises:
        InputError: If ``layers`` is empty or the layers differ in size.
    """
    layers = _checked_layers(layers)
    out = np.zeros((3, *layers[0].alpha.shape), dtype=np.float32)
    disparity = layers[0].disparity_dpt.copy()
    for layer in layers:
        _over(out, layer.light)
        seen = layer.alpha >= 0.5
        disparity[seen] = layer.disparity_dpt[seen]
    return _encoded(out), disparity


def render_bokeh(layers: Sequence[Layer], bokeh_strength: float, focus_distance_m: float) -> np.ndarray:
    """Render the scene through a lens focused at one distance (Eq. 15, 26; occlusion by layers).

    Args:
        layers: One or more layers of one size, the farthest first. The first should be opaque; where nothing is, the
            picture is black.
        bokeh_strength: K, the radius in pixels per 1/m at a width of 512 px, 0 or more. 0 gives the first result of
            `composite`, to the last bit.
        focus_distance_m: S1 in metres, more than 0; infinity is allowed.

    Returns:
        The picture, float32 ``(H, W, 3)`` display values in [0, 1].

    Raises:
        InputError: If ``layers`` is empty, the layers differ in size, or a number is out of range.
    """
    layers = _checked_layers(layers)
    if not (np.isfinite(bokeh_strength) and bokeh_strength >= 0):
        raise InputError(f"bokeh_strength is {bokeh_strength!r}, wanted a finite number, 0 or more")
    if not focus_distance_m > 0:
        raise InputError(f"focus_distance_m is {focus_distance_m!r}, wanted metres, more than 0")
    height, width = layers[0].alpha.shape
    px_per_dpt = np.float32(bokeh_strength * width / REFERENCE_WIDTH_PX)
    out = np.zeros((3, height, width), dtype=np.float32)
    for layer in layers:
        radius_px = px_per_dpt * np.abs(np.float32(1 / focus_distance_m) - layer.disparity_dpt)
        _over(out, _blurred(layer, radius_px))
    return _encoded(out)


def _described(value: object) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__


def _checked_layers(layers: Sequence[Layer]) -> Sequence[Layer]:
    if len(layers) == 0:
        raise InputError("layers is empty, wanted at least one layer")
    sizes = {layer.alpha.shape for layer in layers}
    if len(sizes) > 1:
        raise InputError(f"layers have the sizes {sorted(sizes)}, wanted one size")
    return layers


def _encoded(light: np.ndarray) -> np.ndarray:
    """Turn linear light ``(3, H, W)`` into display values ``(H, W, 3)``; it is out of range by rounding only."""
    return np.ascontiguousarray((np.clip(light, 0, 1) ** np.float32(1 / GAMMA)).transpose(1, 2, 0))


def _over(out: np.ndarray, light: np.ndarray) -> None:
    """Lay premultiplied ``light`` ``(4, H, W)`` over ``out`` ``(3, H, W)``, in place."""
    out *= 1 - light[3]
    out += light[:3]


@lru_cache(maxsize=256)
def _kernel(radius_px: float) -> np.ndarray:
    return disk_kernel(radius_px)


@lru_cache(maxsize=64)
def _ladder(top_px: float) -> np.ndarray:
    """Radii from "sharp" up to at least ``top_px``; the steps grow with the radius, as what the eye can tell does."""
    radii = [_IDENTITY_RADIUS_PX]
    while radii[-1] < top_px:
        radii.append(radii[-1] + max(0.6, 0.28 * radii[-1]))
    return np.array(radii, dtype=np.float32)


def _blurred(layer: Layer, radius_px: np.ndarray) -> np.ndarray:
    """Blur one layer, each pixel spread over its own disk: premultiplied light and opacity ``(4, H, W)``."""
    rows, columns = _extent(layer.alpha)
    seen = radius_px[rows, columns]
    if seen.size == 0 or seen.max() <= _IDENTITY_RADIUS_PX:
        return layer.light
    low, high = float(seen.min()), float(seen.max())
    out = np.zeros_like(layer.light)
    if high - low <= 1e-3 * high:  # parallel to the sensor: one exact disk
        _spread(out, layer.light, 0.5 * (low + high), (rows, columns))
        return np.clip(out, 0, 1, out=out)

    radii = _ladder(float(np.ceil(high)))
    step = np.interp(radius_px, radii, np.arange(len(radii), dtype=np.float32)).astype(np.float32)
    source = layer.light
    if not layer.is_opaque:  # fifth channel: the same surface without holes, as far as it can matter
        source = np.concatenate([source, np.zeros_like(source[:1])])
        reach = 2 * int(np.ceil(high))
        source[
            4, max(rows.start - reach, 0) : rows.stop + reach, max(columns.start - reach, 0) : columns.stop + reach
        ] = 1
        out = np.zeros_like(source)
    for index, radius in enumerate(radii):
        share = np.maximum(1 - np.abs(step - index), 0)
        box = _extent(share * source[-1])
        if box[0].stop > box[0].start:
            _spread(out, source, float(radius), box, share)
    # Where the radius changes, disks of neighbours pile up or leave gaps; a continuous surface shows neither.
    out[:4] /= np.maximum(out[-1], 1e-6)
    return np.clip(out[:4], 0, 1)


def _extent(mask: np.ndarray) -> tuple[slice, slice]:
    """Bounding box of the pixels above 0 of ``(H, W)``; empty slices when there are none."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return slice(0, 0), slice(0, 0)
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _spread(
    out: np.ndarray, source: np.ndarray, radius_px: float, box: tuple[slice, slice], share: np.ndarray | None = None
) -> None:
    """Blur ``source`` ``(C, H, W)``, continued beyond the frame, by one disk and add it to ``out`` of its shape.

    ``share`` ``(H, W)`` is what part of each pixel takes part, all of it when absent; outside ``box`` nothing does.
    """
    kernel = _kernel(radius_px)
    half = kernel.shape[0] // 2
    height, width = source.shape[1:]
    rows, columns = box
    top, bottom = max(rows.start - half, 0), min(rows.stop + half, height)
    left, right = max(columns.start - half, 0), min(columns.stop + half, width)
    region = out[:, top:bottom, left:right]
    padded = source[:, max(top - half, 0) : bottom + half, max(left - half, 0) : right + half]
    if share is not None:
        padded = padded * share[max(top - half, 0) : bottom + half, max(left - half, 0) : right + half]
    if half == 0:
        region += padded
        return
    rim = [(max(half - top, 0), max(bottom + half - height, 0)), (max(half - left, 0), max(right + half - width, 0))]
    if np.any(rim):
        padded = np.pad(padded, [(0, 0), *rim], mode="edge")
    if kernel.size <= _DIRECT_TAPS:
        for row in range(kernel.shape[0]):
            for column in range(kernel.shape[1]):
                window = padded[:, row : row + bottom - top, column : column + right - left]
                region += kernel[row, column] * window
        return
    # A circular convolution as large as the padded part wraps into its rim only, which is cut off.
    shape = tuple(scipy.fft.next_fast_len(n, real=True) for n in padded.shape[1:])
    spectrum = scipy.fft.rfft2(padded, shape, workers=1)
    spectrum *= scipy.fft.rfft2(kernel, shape, workers=1)
    blurred = scipy.fft.irfft2(spectrum, shape, workers=1, overwrite_x=True)
    region += blurred[:, 2 * half : 2 * half + bottom - top, 2 * half : 2 * half + right - left]
