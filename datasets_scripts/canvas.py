"""What the generated foregrounds and backgrounds are drawn with: noise, polygons, leaves, round shading, lights.

Pictures are float32 display values (gamma 2.2) of 0 to 1, light sources above 1. Coordinates are in units of the
picture's height, x to the right and y downwards. Everything random comes from the generator that is passed in.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from bokehdepth.rendering.drawing import power_law_noise

_NOISE_PX = 1280
_SLOPES = (0.4, 0.8, 1.1, 1.5, 2.0)


@lru_cache(maxsize=len(_SLOPES))
def _noise(slope: float) -> np.ndarray:
    # The same for every process and scene: only where a picture is cut from it is random.
    return power_law_noise(np.random.default_rng([7, _SLOPES.index(slope)]), (_NOISE_PX, _NOISE_PX), slope)


def grain(rng: np.random.Generator, size_px: tuple[int, int], slope: float, stretch: float = 1.0) -> np.ndarray:
    """Cut a piece of power-law noise.

    Args:
        rng: source of chance.
        size_px: (H, W).
        slope: of the noise, rounded to the nearest that is kept; more is smoother.
        stretch: how much longer than high its features are (1 alike, 8 wood, 1/8 rain).

    Returns:
        (H, W) float32, mean about 0, standard deviation about 1.
    """
    field = _noise(min(_SLOPES, key=lambda kept: abs(kept - slope)))
    top, left = rng.integers(_NOISE_PX, size=2)
    if rng.random() < 0.5:
        field = field.T
    step_y, step_x = min(stretch, 1.0), min(1 / stretch, 1.0)
    rows = (top + np.arange(size_px[0]) * step_y) % _NOISE_PX
    columns = (left + np.arange(size_px[1]) * step_x) % _NOISE_PX
    if stretch == 1:
        return field[np.ix_(rows.astype(int), columns.astype(int))]
    return ndimage.map_coordinates(field, np.meshgrid(rows, columns, indexing="ij"), order=1, mode="grid-wrap")


def ridge(rng: np.random.Generator, count: int, roughness: float) -> np.ndarray:
    """Make a line of hills or tree tops: (count,) float64, mean 0, standard deviation 1."""
    spectrum = rng.standard_normal(count // 2 + 1) + 1j * rng.standard_normal(count // 2 + 1)
    spectrum[1:] /= np.arange(1, count // 2 + 1) ** (1.9 - roughness)
    spectrum[0] = 0
    line = np.fft.irfft(spectrum, count)
    return line / line.std()


def mix(first: Sequence[float], second: Sequence[float], share: np.ndarray | float) -> np.ndarray:
    """Go from one colour to another: ``share`` of any shape gives that shape and 3 channels."""
    share = np.asarray(share, dtype=np.float32)[..., None]
    return np.asarray(first, dtype=np.float32) * (1 - share) + np.asarray(second, dtype=np.float32) * share


def varied(rng: np.random.Generator, colour: Sequence[float], amount: float = 0.08) -> np.ndarray:
    """A colour near another, in [0, 1]: lighter or darker, and a little of another hue."""
    return np.clip(np.asarray(colour) * (1 + rng.normal(0, amount)) * (1 + rng.normal(0, amount / 3, 3)), 0, 1)


class Sheet:
    """Opaque shapes drawn over each other at twice the size.

    Args:
        size_px: (H, W) of the picture.
        colour: ground, 0 to 1; None is transparent.
    """

    def __init__(self, size_px: tuple[int, int], colour: Sequence[float] | None = None) -> None:
        self.size_px, self.scale = size_px, 2 * size_px[0]
        ground = (0, 0, 0, 0) if colour is None else self._ink(colour)
        self.image = Image.new("RGBA", (2 * size_px[1], 2 * size_px[0]), ground)
        self.draw = ImageDraw.Draw(self.image)

    @property
    def aspect(self) -> float:
        """Width in units of the height."""
        return self.size_px[1] / self.size_px[0]

    @staticmethod
    def _ink(colour: Sequence[float]) -> tuple[int, ...]:
        return (*(int(255 * min(max(float(c), 0.0), 1.0)) for c in colour), 255)

    def polygon(self, points: np.ndarray | Sequence[float], colour: Sequence[float]) -> None:
        """Fill a polygon: (N, 2) points or a flat list."""
        self.draw.polygon((self.scale * np.asarray(points, dtype=float)).ravel().tolist(), fill=self._ink(colour))

    def line(self, points: np.ndarray | Sequence[float], colour: Sequence[float], width: float) -> None:
        """Draw a line of a width in units of the height."""
        flat = (self.scale * np.asarray(points, dtype=float)).ravel().tolist()
        self.draw.line(flat, fill=self._ink(colour), width=max(1, round(width * self.scale)), joint="curve")

    def ellipse(self, box: Sequence[float], colour: Sequence[float]) -> None:
        """Fill an ellipse in a box of left, top, right, bottom."""
        self.draw.ellipse([self.scale * float(v) for v in box], fill=self._ink(colour))

    def ring(self, x: float, y: float, radius: float, colour: Sequence[float], width: float) -> None:
        """Draw a circle."""
        box = [self.scale * v for v in (x - radius, y - radius, x + radius, y + radius)]
        self.draw.ellipse(box, outline=self._ink(colour), width=max(1, round(width * self.scale)))

    def tapered(self, points: np.ndarray, widths: np.ndarray, colour: Sequence[float]) -> None:
        """Draw a limb along (N, 2) points whose width changes: (N,)."""
        along = np.gradient(points, axis=0)
        side = np.stack([-along[:, 1], along[:, 0]], 1) / np.maximum(np.hypot(*along.T), 1e-9)[:, None]
        left, right = points + side * widths[:, None] / 2, points - side * widths[:, None] / 2
        self.polygon(np.concatenate([left, right[::-1]]), colour)
        for (x, y), width in ((points[0], widths[0]), (points[-1], widths[-1])):
            self.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), colour)

    def rgba(self) -> np.ndarray:
        """The picture at its size: float32 (H, W, 4) in [0, 1], not premultiplied."""
        small = self.image.convert("RGBa").reduce(2).convert("RGBA")
        return np.asarray(small, dtype=np.float32) / 255

    def mask(self) -> np.ndarray:
        """Its opacity: float32 (H, W)."""
        return np.asarray(self.image.getchannel("A").reduce(2), dtype=np.float32) / 255


def curve(start: Sequence[float], bend: Sequence[float], end: Sequence[float], count: int = 16) -> np.ndarray:
    """Points of a quadratic arc from ``start`` to ``end`` that is drawn towards ``bend``: (count, 2)."""
    t = np.linspace(0, 1, count)[:, None]
    return (1 - t) ** 2 * np.asarray(start) + 2 * t * (1 - t) * np.asarray(bend) + t**2 * np.asarray(end)


def leaves(
    sheet: Sheet,
    rng: np.random.Generator,
    roots: np.ndarray,
    angles: np.ndarray,
    lengths: np.ndarray,
    colours: np.ndarray,
    *,
    width: float = 0.4,
    rib: bool = True,
) -> None:
    """Draw leaves, the first one undermost: each has a light and a dark half and a rib.

    Args:
        sheet: to draw on.
        rng: source of chance.
        roots: (N, 2) where they are attached.
        angles: (N,) radians, 0 to the right, pi / 2 downwards.
        lengths: (N,) in units of the height.
        colours: (N, 3).
        width: of a leaf, relative to its length.
        rib: whether a rib is drawn.
    """
    t = np.linspace(0, 1, 9)
    profile = width / 2 * np.sin(np.pi * t**0.8) * (1 - 0.25 * t)
    droop = rng.normal(0, 0.14, len(roots))
    squeeze = rng.uniform(0.35, 1.0, (len(roots), 2))  # each half is seen at its own angle
    for root, angle, length, colour, bend, halves in zip(roots, angles, lengths, colours, droop, squeeze, strict=True):
        along, side = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
        spine = root + length * (t[:, None] * along + (bend * t**2)[:, None] * side)
        offset = (length * profile)[:, None] * side
        tone = 0.82 + 0.3 * halves
        sheet.polygon(np.concatenate([spine, (spine + halves[0] * offset)[::-1]]), colour * tone[0])
        sheet.polygon(np.concatenate([spine, (spine - halves[1] * offset)[::-1]]), colour * tone[1] * 0.85)
        if rib and length * sheet.size_px[0] > 14:
            sheet.line(spine, np.clip(colour * 1.25 + 0.05, 0, 1), 0.0014)


def rounded(mask: np.ndarray, radius_px: float, light: Sequence[float], *, ambient: float = 0.45) -> np.ndarray:
    """Shade a silhouette as if it were inflated: light on its slopes.

    Args:
        mask: (H, W) opacity.
        radius_px: over how many pixels from its edge the surface bends away.
        light: (x, y, z) direction to the light; x to the right, y downwards, z to the viewer.
        ambient: share of light that comes from everywhere.

    Returns:
        (H, W) float32, a factor of about 0.4 to 1.2; 1 outside the mask's box.
    """
    shade = np.ones_like(mask)
    rows, columns = np.flatnonzero(mask.max(1) > 0.1), np.flatnonzero(mask.max(0) > 0.1)
    if rows.size < 4 or columns.size < 4:
        return shade
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    step = max(1, round(radius_px / 12))
    part = np.pad(mask[box], step * 2)
    small = part[::step, ::step]
    depth = ndimage.distance_transform_edt(small > 0.5) * step
    fall = 1 - np.clip(depth / radius_px, 0, 1)
    height = ndimage.gaussian_filter(radius_px * np.sqrt(1 - fall**2), max(1.2, radius_px / (5 * step)))
    slope_y, slope_x = np.gradient(height, step)
    direction = np.asarray(light, dtype=float) / np.linalg.norm(light)
    facing = (-slope_x * direction[0] - slope_y * direction[1] + direction[2]) / np.sqrt(1 + slope_x**2 + slope_y**2)
    lit = ambient + (1.15 - ambient) * np.clip(facing, 0, 1)
    big = Image.fromarray(lit.astype(np.float32)).resize(
        (small.shape[1] * step, small.shape[0] * step), Image.Resampling.BILINEAR
    )
    shade[box] = np.asarray(big)[2 * step :, 2 * step :][: mask[box].shape[0], : mask[box].shape[1]]
    return shade


def paint(rgba: np.ndarray, mask: np.ndarray, colour: np.ndarray) -> None:
    """Lay a colour, (3,) or (H, W, 3), over a picture (H, W, 4) where a mask (H, W) is, in place."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    part, share = rgba[box], mask[box]
    part[..., :3] += ((colour[box] if colour.ndim == 3 else colour) - part[..., :3]) * share[..., None]
    part[..., 3] = np.maximum(part[..., 3], share)


def soft(mask: np.ndarray, sigma_px: float) -> np.ndarray:
    """A mask with blurred edges; made at a lower resolution where that shows nothing."""
    step = max(1, int(sigma_px / 4))
    if step == 1:
        return ndimage.gaussian_filter(mask, sigma_px)
    image = Image.fromarray(mask.astype(np.float32))
    small = image.resize((max(2, mask.shape[1] // step), max(2, mask.shape[0] // step)), Image.Resampling.BOX)
    blurred = ndimage.gaussian_filter(np.asarray(small), sigma_px / step)
    return np.asarray(Image.fromarray(blurred).resize((mask.shape[1], mask.shape[0]), Image.Resampling.BICUBIC))


def add_light(
    rgb: np.ndarray, x: float, y: float, radius_px: float, colour: Sequence[float], gain: float, halo: float = 0.25
) -> None:
    """Put a light source into a picture (H, W, 3), in place.

    Args:
        rgb: display values.
        x: place in units of the height.
        y: place in units of the height.
        radius_px: of the lamp.
        colour: 0 to 1.
        gain: how many times as bright as white it is, in linear light.
        halo: strength of the glow around it.
    """
    height, width = rgb.shape[:2]
    reach = int(9 * radius_px) + 3
    row, column = int(y * height), int(x * height)
    rows = slice(max(row - reach, 0), max(min(row + reach + 1, height), 0))
    columns = slice(max(column - reach, 0), max(min(column + reach + 1, width), 0))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return
    yy, xx = np.ogrid[rows, columns]
    distance = np.hypot(yy - y * height, xx - x * height).astype(np.float32)
    lamp = np.clip(radius_px - distance + 0.5, 0, 1)[..., None]
    glow = halo * np.exp(-((distance / (3.2 * radius_px)) ** 2) * 2)[..., None]
    part = rgb[rows, columns]
    part += glow * np.asarray(colour, dtype=np.float32)
    core = np.asarray(mix(colour, (1, 1, 1), 0.35) * gain ** (1 / 2.2), dtype=np.float32)
    part += lamp * (core - part)
