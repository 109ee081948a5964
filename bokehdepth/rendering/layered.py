"""Occlusion-aware defocus of a scene made of layers: what lies behind a blurred edge is really there.

A picture with a depth map lacks the light that comes from behind its near objects; a layered scene has it (and
`refocus.py` makes layers of a picture and its depth). Each layer is scattered in linear light, premultiplied by its
opacity, every pixel over its own disk, and the layers are laid over each other from far to near:

    r_px = K * (W / 512) * |1/S1 - disparity|          (paper, Eq. 15 and 26)
    out  = C + out * (1 - A)                           (C, A: blurred light and blurred opacity of one layer)

A layer may be slanted: where its radius changes, disks of neighbours pile up or leave gaps, so the sum is divided by
what a fully opaque layer of the same shape in depth would give, and a slanted wall stays opaque. Outside the frame a
layer continues with its edge pixels, as in `disk_blur`. Two layers that are both blurred are taken to cover each other
independently of the point of the lens, which is exact where one of them is sharp; `raytraced.py` does without that.
No torch import.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bokehdepth.camera.lens import REFERENCE_WIDTH_PX, check_number
from bokehdepth.errors import InputError
from bokehdepth.rendering.aperture import DISK, Aperture
from bokehdepth.rendering.scatter import from_light, span_scatter, to_light

IDENTITY_RADIUS_PX = 0.5
"""Up to this radius a pixel's blur lies inside it, and the layer is taken as it is."""

_LITTLE_CHANGE = 1e-3  # of the radius over a layer: less is one disk for all of it


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
        """Premultiplied linear light and, last, the opacity: float32 ``(H, W, 4)``."""
        light = np.zeros((*self.alpha.shape, 4), dtype=np.float32)
        box = extent(self.alpha)
        light[box][..., :3] = to_light(self.rgb[box]) * self.alpha[box][..., None]
        light[..., 3] = self.alpha
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
    out = np.zeros((*layers[0].alpha.shape, 3), dtype=np.float32)
    disparity = layers[0].disparity_dpt.copy()
    for layer in layers:
        box = extent(layer.alpha)
        _over(out[box], layer.light[box])
        seen = layer.alpha >= 0.5
        disparity[seen] = layer.disparity_dpt[seen]
    return from_light(out), disparity


def render_bokeh(
    layers: Sequence[Layer],
    bokeh_strength: float,
    focus_distance_m: float,
    *,
    aperture: Aperture = DISK,
    threads: int | None = 1,
) -> np.ndarray:
    """Render the scene through a lens focused at one distance (Eq. 15, 26; occlusion by layers).

    Args:
        layers: One or more layers of one size, the farthest first. The first should be opaque; where nothing is, the
            picture is black.
        bokeh_strength: K, the radius in pixels per 1/m at a width of 512 px, 0 or more. 0 gives the first result of
            `composite`, to the last bit.
        focus_distance_m: S1 in metres, more than 0; infinity is allowed.
        aperture: Shape of the lens opening.
        threads: CPU threads, as in `span_scatter`; the result does not depend on it.

    Returns:
        The picture, float32 ``(H, W, 3)`` display values in [0, 1].

    Raises:
        InputError: If ``layers`` is empty, the layers differ in size, a number is out of range, or a blur radius is
            more than 512 px.
    """
    layers = _checked_layers(layers)
    strength = check_number(bokeh_strength, "bokeh_strength", zero=True)
    focus_dpt = np.float32(1 / check_number(focus_distance_m, "focus_distance_m", "m", infinity=True))
    height, width = layers[0].alpha.shape
    px_per_dpt = np.float32(strength * width / REFERENCE_WIDTH_PX)
    out = np.zeros((height, width, 3), dtype=np.float32)
    for layer in layers:
        nearness_px = px_per_dpt * (layer.disparity_dpt - focus_dpt)
        _over(out, _blurred(layer, nearness_px, aperture, threads))
    return from_light(out)


def _described(value: object) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__


def _checked_layers(layers: Sequence[Layer]) -> Sequence[Layer]:
    if len(layers) == 0:
        raise InputError("layers is empty, wanted at least one layer")
    sizes = {layer.alpha.shape for layer in layers}
    if len(sizes) > 1:
        raise InputError(f"layers have the sizes {sorted(sizes)}, wanted one size")
    return layers


def _over(out: np.ndarray, light: np.ndarray) -> None:
    """Lay premultiplied ``light`` ``(H, W, 4)`` over ``out`` ``(H, W, 3)``, in place."""
    out *= 1 - light[..., 3:]
    out += light[..., :3]


def _blurred(layer: Layer, nearness_px: np.ndarray, aperture: Aperture, threads: int | None) -> np.ndarray:
    """Blur one layer: premultiplied light and opacity ``(H, W, 4)``.

    ``nearness_px`` ``(H, W)`` is the blur radius, negative behind the focus: there the opening is seen upright, in
    front of the focus through its centre.
    """
    seen = nearness_px[extent(layer.alpha)]
    if seen.size == 0 or np.abs(seen).max() <= IDENTITY_RADIUS_PX:
        return layer.light
    if aperture.mirrored() != aperture and seen.min() < -IDENTITY_RADIUS_PX and seen.max() > IDENTITY_RADIUS_PX:
        raise InputError(
            f"aperture has {aperture.blades} blades and a layer lies on both sides of the focus, wanted an even "
            "number of blades, a disk, or layers that end at the focus"
        )
    shape = aperture.mirrored() if seen.max() > IDENTITY_RADIUS_PX else aperture
    radius_px = np.abs(nearness_px)
    low, high = float(np.abs(seen).min()), float(np.abs(seen).max())
    is_even = high - low <= _LITTLE_CHANGE * high
    if is_even:  # parallel to the sensor: one exact disk
        radius_px = np.full_like(radius_px, 0.5 * (low + high))
    box = _reached(extent(layer.alpha), int(np.ceil(2 * high)) + 1, layer.alpha.shape)
    part, radius_px = layer.light[box], radius_px[box]
    if is_even or layer.is_opaque:
        spread = span_scatter(part, radius_px, aperture=shape, threads=threads)
        if not is_even:
            spread /= np.maximum(spread[..., 3:], 1e-6)
    else:  # fifth channel: the same surface without holes
        whole = np.concatenate([part, np.ones_like(part[..., :1])], axis=2)
        spread = span_scatter(whole, np.minimum(radius_px, high), aperture=shape, threads=threads)
        spread = spread[..., :4] / np.maximum(spread[..., 4:], 1e-6)
    out = np.zeros_like(layer.light)
    out[box] = np.clip(spread, 0, 1)
    return out


def extent(mask: np.ndarray) -> tuple[slice, slice]:
    """Bounding box of the pixels above 0 of ``(H, W)``; empty slices when there are none."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return slice(0, 0), slice(0, 0)
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _reached(box: tuple[slice, slice], reach_px: int, size: tuple[int, int]) -> tuple[slice, slice]:
    """Widen a box by what its blur reaches, inside the frame."""
    return tuple(
        slice(max(side.start - reach_px, 0), min(side.stop + reach_px, length))
        for side, length in zip(box, size, strict=True)
    )
