"""Drawn textures and the outlines of drawn things: people, trees, boxes, bottles, stones, twigs, posts.

A thing is drawn on a canvas whose height is 1, covered with textures that a callable delivers, and comes back as
float32 ``(h, w, 4)`` of 0 to 255 with its opacity last, not premultiplied. Everything random comes from the generator
that is passed in.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

TILE_PX = 256
_DRAWN_PX = 192  # height at which outlines are drawn
_SKINS = ((0.96, 0.82, 0.71), (0.88, 0.69, 0.55), (0.76, 0.55, 0.41), (0.55, 0.37, 0.26), (0.36, 0.24, 0.18))
_HAIRS = ((0.08, 0.06, 0.05), (0.25, 0.16, 0.09), (0.5, 0.33, 0.16), (0.82, 0.68, 0.42), (0.6, 0.6, 0.6))


def power_law_noise(rng: np.random.Generator, size: tuple[int, int], slope: float) -> np.ndarray:
    """Make noise whose amplitude falls with spatial frequency, periodic in both directions.

    Args:
        rng: Source of chance.
        size: ``(H, W)`` in pixels.
        slope: The amplitude goes as 1 / frequency ** slope; 1 is natural, more is smoother.

    Returns:
        float32 ``(H, W)``, mean 0, standard deviation 1.
    """
    frequency = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1])[None])
    frequency[0, 0] = 1
    spectrum = (rng.standard_normal(frequency.shape) + 1j * rng.standard_normal(frequency.shape)) / frequency**slope
    spectrum[0, 0] = 0
    noise = np.fft.irfft2(spectrum, size)
    return (noise / noise.std()).astype(np.float32)


def random_colour(rng: np.random.Generator) -> np.ndarray:
    """Draw a display colour, mostly with little saturation: float32 ``(3,)`` in [0, 1]."""
    hue = rng.random() * 6
    wheel = np.clip(np.abs((hue + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    saturation, value = rng.beta(1.3, 2.2), rng.uniform(0.15, 0.95)
    return (value * (1 - saturation + saturation * wheel)).astype(np.float32)


def drawn_tile(rng: np.random.Generator, side_px: int = TILE_PX) -> np.ndarray:
    """Draw one square pattern, uint8 ``(side_px, side_px, 3)``."""
    y, x = np.mgrid[:side_px, :side_px].astype(np.float32) / side_px
    first, second, third = (random_colour(rng) for _ in range(3))
    noise = power_law_noise(rng, (side_px, side_px), rng.uniform(0.7, 1.6))
    kind = rng.integers(6)
    if kind <= 1:  # clouds of colour: earth, lawn, plaster
        other = power_law_noise(rng, (side_px, side_px), 1.2)
        mix = np.clip(0.5 + 0.28 * noise, 0, 1)[..., None]
        colour = first * mix + second * (1 - mix) + 0.06 * other[..., None] * third
    elif kind == 2:  # wood: warped stripes
        rings = np.sin(2 * np.pi * (rng.integers(4, 14) * x + 0.25 * noise + 0.3 * np.sin(2 * np.pi * y)))
        colour = first + (second - first) * (0.5 + 0.5 * rings)[..., None]
    elif kind == 3:  # bricks or tiles
        rows, columns = rng.integers(4, 13), rng.integers(2, 9)
        row = np.floor(y * rows)
        shift = 0.5 * (row % 2) if rng.random() < 0.7 else 0.0
        column = np.floor(x * columns + shift)
        joint = rng.uniform(0.04, 0.12)
        mortar = ((y * rows) % 1 < joint * rows / columns) | ((x * columns + shift) % 1 < joint)
        stone = 1 + 0.15 * rng.standard_normal((rows + 1, columns + 2))[row.astype(int), column.astype(int)]
        colour = np.where(mortar[..., None], second, first * stone[..., None])
    elif kind == 4:  # checks or stripes
        count = rng.integers(3, 11)
        sign = np.sin(2 * np.pi * count * x) * (np.sin(2 * np.pi * count * y) if rng.random() < 0.5 else 1)
        colour = np.where(sign[..., None] > 0, first, second)
    else:  # leaves, gravel: speckles
        cells = ndimage.zoom(rng.random((64, 64)).astype(np.float32), side_px / 64, order=1, mode="grid-wrap")
        colour = np.where((cells > 0.62)[..., None], first, second) * (0.6 + 0.6 * cells[..., None])
    colour = colour * (1 + rng.uniform(0.03, 0.15) * noise[..., None])
    return (np.clip(colour, 0, 1) * 255).astype(np.uint8)


def shading(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Light from one side: a factor around 1, float32 ``(h, w)``."""
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.45)
    y, x = np.linspace(-1, 1, size[0], dtype=np.float32), np.linspace(-1, 1, size[1], dtype=np.float32)
    return 1 + strength * (np.sin(angle) * y[:, None] + np.cos(angle) * x[None])


@dataclass(frozen=True)
class Kit:
    """What things are drawn with: a source of square textures (uint8), and how many times as finely as usual."""

    tile: Callable[[np.random.Generator], np.ndarray]
    detail: int = 1

    @property
    def height_px(self) -> int:
        """Height at which outlines are drawn."""
        return _DRAWN_PX * self.detail


class Pen:
    """Masks drawn at twice the size, on a canvas whose height is 1."""

    def __init__(self, aspect: float, height_px: int) -> None:
        self.size = (height_px, max(8, round(height_px * aspect)))

    def mask(self, *shapes: tuple[str, Sequence[float]], width: float = 0.02) -> np.ndarray:
        """Draw ``(kind, coordinates)`` shapes: float32 ``(h, w)`` in [0, 1]; coordinates in units of the height.

        Kinds are ``line`` and ``ring``, of that width, and the filled ones of `ImageDraw`.
        """
        image = Image.new("L", (2 * self.size[1], 2 * self.size[0]))
        draw, scale = ImageDraw.Draw(image), 2 * self.size[0]
        for kind, coordinates in shapes:
            scaled = [scale * float(value) for value in coordinates]
            if kind == "line":
                draw.line(scaled, fill=255, width=max(1, round(width * scale)), joint="curve")
            elif kind == "ring":
                draw.ellipse(scaled, outline=255, width=max(1, round(width * scale)))
            else:
                getattr(draw, kind)(scaled, fill=255)
        return np.asarray(image.reduce(2), dtype=np.float32) / 255


def covered(tile: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Texture in an outline: float32 ``(h, w, 4)`` of 0 to 255."""
    side = max(alpha.shape)
    picture = Image.fromarray(tile).resize((side, side), Image.Resampling.BICUBIC)
    rgba = np.empty((*alpha.shape, 4), dtype=np.float32)
    rgba[..., :3] = np.asarray(picture)[: alpha.shape[0], : alpha.shape[1]]
    rgba[..., 3] = 255 * alpha
    return rgba


def paint_over(rgba: np.ndarray, mask: np.ndarray, colour: np.ndarray) -> None:
    """Lay ``colour`` (0 to 255, ``(3,)`` or ``(h, w, 3)``) over ``rgba`` where ``mask`` is, in place."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    part, mask = rgba[box], mask[box]
    part[..., :3] += ((colour if np.ndim(colour) == 1 else colour[box]) - part[..., :3]) * mask[..., None]
    part[..., 3] = np.maximum(part[..., 3], 255 * mask)


def _half_figure(rng: np.random.Generator, kit: Kit) -> np.ndarray:
    """Draw head and shoulders, from the front or from behind, down to the chest."""
    pen = Pen(rng.uniform(0.8, 1.1), kit.height_px)
    middle = pen.size[1] / pen.size[0] / 2
    wide, head = rng.uniform(0.36, 0.46) * 2 * middle, rng.uniform(0.125, 0.16)
    eye_row = rng.uniform(0.28, 0.34)
    chin, skin = eye_row + 1.15 * head, np.array(_SKINS[rng.integers(len(_SKINS))]) * 255
    hair = np.array(_HAIRS[rng.integers(len(_HAIRS))]) * 255
    face_x = middle + rng.uniform(-0.04, 0.04)
    body = pen.mask(
        ("ellipse", (middle - wide, chin + 0.06, middle + wide, chin + 0.9)),
        ("rectangle", (middle - wide, chin + 0.45, middle + wide, 1.01)),
    )
    rgba = covered(kit.tile(rng), body)
    long = rng.uniform(0.9, 2.6) if rng.random() < 0.5 else 0.8
    back = (face_x - 1.2 * head, eye_row - 1.45 * head, face_x + 1.2 * head, eye_row + long * head)
    grain = power_law_noise(rng, pen.size, 0.6)[..., None]
    strands = hair * (1 + 0.22 * grain)
    paint_over(rgba, pen.mask(("ellipse", back)), strands)
    paint_over(
        rgba, pen.mask(("rectangle", (face_x - 0.45 * head, eye_row, face_x + 0.45 * head, chin + 0.1))), 0.85 * skin
    )
    oval = (face_x - head, eye_row - 1.25 * head, face_x + head, chin + 0.02)
    x = (np.arange(pen.size[1]) / pen.size[0] - face_x) / head
    lit = (1 + rng.uniform(-0.3, 0.3) * np.clip(x, -1, 1))[None, :, None]
    if rng.random() < 0.15:  # from behind
        paint_over(rgba, pen.mask(("ellipse", oval)), strands)
        return rgba
    paint_over(rgba, pen.mask(("ellipse", oval)), skin * lit * (1 + 0.02 * grain))
    for side in (-1, 1):
        eye = face_x + side * 0.42 * head
        white = (eye - 0.2 * head, eye_row - 0.09 * head, eye + 0.2 * head, eye_row + 0.09 * head)
        iris = (eye - 0.09 * head, eye_row - 0.1 * head, eye + 0.09 * head, eye_row + 0.1 * head)
        brow = (eye - 0.24 * head, eye_row - 0.24 * head, eye + 0.24 * head, eye_row - 0.28 * head)
        paint_over(rgba, pen.mask(("ellipse", white)), np.full(3, 235.0))
        paint_over(rgba, pen.mask(("ellipse", iris)), 120 * rng.random(3))
        paint_over(rgba, pen.mask(("line", brow), width=0.012), hair * 0.8)
    nose = (face_x, eye_row + 0.1 * head, face_x + 0.12 * head, eye_row + 0.5 * head, face_x, eye_row + 0.55 * head)
    paint_over(rgba, 0.5 * pen.mask(("line", nose), width=0.012), skin * 0.6)
    lips = (face_x - 0.32 * head, eye_row + 0.74 * head, face_x + 0.32 * head, eye_row + 0.9 * head)
    paint_over(rgba, pen.mask(("ellipse", lips)), skin * np.array([0.85, 0.55, 0.55]))
    fringe = (
        face_x - 1.05 * head,
        eye_row - 1.42 * head,
        face_x + 1.05 * head,
        eye_row - rng.uniform(0.5, 0.8) * head,
    )
    paint_over(rgba, pen.mask(("ellipse", fringe)), strands)
    return rgba


def _figure(rng: np.random.Generator, kit: Kit) -> np.ndarray:
    """Draw a whole standing person."""
    pen, middle = Pen(0.42, kit.height_px), 0.21
    skin, hair = np.array(_SKINS[rng.integers(len(_SKINS))]) * 255, np.array(_HAIRS[rng.integers(len(_HAIRS))]) * 255
    spread = rng.uniform(0.01, 0.07)
    legs = pen.mask(
        ("polygon", (middle - 0.09, 0.48, middle + 0.01, 0.48, middle - spread + 0.02, 1, middle - spread - 0.05, 1)),
        ("polygon", (middle - 0.01, 0.48, middle + 0.09, 0.48, middle + spread + 0.05, 1, middle + spread - 0.02, 1)),
    )
    rgba = covered(kit.tile(rng), legs)
    swing = rng.uniform(-0.06, 0.09, 2)
    arms = pen.mask(
        ("line", (middle - 0.1, 0.2, middle - 0.13 - swing[0] / 2, 0.35, middle - 0.12 - swing[0], 0.5)),
        ("line", (middle + 0.1, 0.2, middle + 0.13 + swing[1] / 2, 0.35, middle + 0.12 + swing[1], 0.5)),
        width=0.05,
    )
    torso = pen.mask(("rounded_rectangle", (middle - 0.12, 0.155, middle + 0.12, 0.54)))
    paint_over(rgba, np.maximum(arms, torso), covered(kit.tile(rng), torso)[..., :3])
    paint_over(rgba, pen.mask(("ellipse", (middle - 0.055, -0.002, middle + 0.055, 0.12))), hair)
    if rng.random() < 0.75:
        paint_over(rgba, pen.mask(("ellipse", (middle - 0.043, 0.025, middle + 0.043, 0.145))), skin)
    return rgba


def _bottle(rng: np.random.Generator, kit: Kit) -> np.ndarray:
    """Draw a turned thing: bottle, vase, glass, lamp."""
    knots = np.sort(rng.uniform(0, 1, 4))
    widths = rng.uniform(0.06, 0.22, 6)
    y = np.linspace(0, 1, kit.height_px)
    half_width = np.interp(y, [0, *knots, 1], widths)
    half_width = ndimage.gaussian_filter1d(half_width, rng.uniform(1, 14) * kit.detail)
    x = np.arange(round(0.5 * kit.height_px)) / kit.height_px - 0.25
    alpha = np.clip((half_width[:, None] - np.abs(x)[None]) * kit.height_px + 0.5, 0, 1).astype(np.float32)
    rgba = covered(kit.tile(rng), alpha)
    if rng.random() < 0.6:
        low, high = np.sort(rng.uniform(0.1, 0.95, 2))
        label = ((y > low) & (y < high))[:, None] * alpha
        paint_over(rgba, label, covered(kit.tile(rng), alpha)[..., :3])
    relative = np.clip(x[None] / half_width[:, None], -1, 1)
    rgba[..., :3] *= (0.45 + 0.65 * np.sqrt(1 - np.clip(relative - rng.uniform(-0.4, 0.4), -1, 1) ** 2))[..., None]
    return rgba


def _box(rng: np.random.Generator, kit: Kit) -> np.ndarray:
    """Draw a box seen at an angle: two faces of unequal light, or one."""
    aspect = np.exp(rng.uniform(np.log(0.35), np.log(2.0)))
    pen = Pen(aspect, kit.height_px)
    alpha = np.ones(pen.size, dtype=np.float32)
    rgba = covered(kit.tile(rng), alpha)
    if rng.random() < 0.7:
        edge = int(pen.size[1] * rng.uniform(0.15, 0.85))
        if rng.random() < 0.5:
            rgba[:, :edge, :3] = covered(kit.tile(rng), alpha)[:, :edge, :3]
        rgba[:, :edge, :3] *= rng.uniform(0.4, 0.85)
    for _ in range(rng.integers(3)):  # windows, handles, prints
        y, x = rng.uniform(0.08, 0.7), rng.uniform(0.05, 0.7) * aspect
        mark = pen.mask(("rectangle", (x, y, x + rng.uniform(0.08, 0.28) * aspect, y + rng.uniform(0.05, 0.25))))
        paint_over(rgba, mark, random_colour(rng) * 255)
    return rgba


def _blob(rng: np.random.Generator, kit: Kit) -> np.ndarray:
    """Draw a rounded lump: fruit, stone, shrub, ball."""
    angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    radius = np.ones_like(angle)
    rough = rng.choice([0.0, 0.25, 0.5])
    for order in range(2, 8):
        radius += rough / order * rng.standard_normal() * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
    radius = 0.47 * np.maximum(radius, 0.3) / radius.max()
    aspect = rng.uniform(0.75, 1.4)
    pen = Pen(aspect, kit.height_px)
    points = np.stack([aspect * (0.5 + radius * np.cos(angle)), 0.5 + radius * np.sin(angle)], axis=1)
    rgba = covered(kit.tile(rng), pen.mask(("polygon", points.ravel())))
    y, x = np.mgrid[-1 : 1 : pen.size[0] * 1j, -1 : 1 : pen.size[1] * 1j]
    light = rng.uniform(-0.5, 0.5, 2)
    rgba[..., :3] *= np.clip(1.2 - 0.45 * ((x - light[0]) ** 2 + (y + 0.4 - light[1]) ** 2), 0.25, 1.3)[..., None]
    return rgba


def branch(rng: np.random.Generator, start: tuple[float, float], angle: float, length: float) -> list:
    """List the shapes of a twig and of its leaves."""
    shapes: list[tuple[str, Sequence[float]]] = []
    x, y = start
    for _ in range(int(rng.integers(4, 8))):
        angle += rng.normal(0, 0.25)
        tip = (x + length / 5 * np.cos(angle), y + length / 5 * np.sin(angle))
        shapes.append(("line", (x, y, *tip)))
        for _ in range(int(rng.integers(2, 5))):
            out, size = rng.normal(0, 0.05, 2), rng.uniform(0.025, 0.06)
            leaf_x, leaf_y, squash = tip[0] + out[0], tip[1] + out[1], rng.uniform(0.35, 0.9)
            shapes.append(("ellipse", (leaf_x - size, leaf_y - squash * size, leaf_x + size, leaf_y + squash * size)))
        x, y = tip
    return shapes


def _foliage(rng: np.random.Generator, kit: Kit) -> np.ndarray:
    """Draw leafy twigs that fan out from the bottom."""
    aspect = rng.uniform(0.7, 1.3)
    pen = Pen(aspect, kit.height_px)
    shapes = []
    for _ in range(int(rng.integers(3, 7))):
        start = (rng.uniform(0.2, 0.8) * aspect, 1.0)
        shapes += branch(rng, start, -np.pi / 2 + rng.normal(0, 0.4), rng.uniform(0.6, 1.1))
    rgba = covered(kit.tile(rng), pen.mask(*shapes, width=0.015))
    _tint_leaves(rng, rgba, pen)
    return rgba


def _tree(rng: np.random.Generator, kit: Kit) -> np.ndarray:
    """Draw a trunk with a ragged crown."""
    aspect = rng.uniform(0.45, 0.95)
    pen = Pen(aspect, kit.height_px)
    trunk, low = rng.uniform(0.02, 0.05), rng.uniform(0.55, 0.85)
    base = (aspect / 2 - trunk, low - 0.2, aspect / 2 + trunk, 1)
    rgba = covered(kit.tile(rng), pen.mask(("rectangle", base)))
    rgba[..., :3] *= np.array([0.6, 0.5, 0.4])
    noise = power_law_noise(rng, pen.size, rng.uniform(0.9, 1.4))
    y, x = np.mgrid[: pen.size[0], : pen.size[1]] / kit.height_px
    inside = 1 - ((x - aspect / 2) / (0.42 * aspect)) ** 2 - ((y - low / 2) / (0.46 * low)) ** 2
    crown = np.clip(4 * (inside + 0.25 * noise - 0.12), 0, 1).astype(np.float32)
    crown[[0, -1]] = 0
    crown[:, [0, -1]] = 0
    leaves = covered(kit.tile(rng), crown)
    _tint_leaves(rng, leaves, pen)
    paint_over(rgba, crown, leaves[..., :3])
    return rgba


def _tint_leaves(rng: np.random.Generator, rgba: np.ndarray, pen: Pen) -> None:
    """Make a texture leafy, in place: mostly greens, speckled."""
    green = np.array([rng.uniform(0.2, 0.7), rng.uniform(0.35, 0.75), rng.uniform(0.05, 0.35)]) * 255
    speckle = np.clip(0.75 + 0.3 * power_law_noise(rng, pen.size, 0.5), 0.15, 1.5)[..., None]
    mix = rng.uniform(0.3, 0.95)
    rgba[..., :3] = np.clip((mix * green + (1 - mix) * rgba[..., :3]) * speckle, 0, 255)


def _bar(rng: np.random.Generator, kit: Kit) -> np.ndarray:
    """Draw a post, pole, rail or cord."""
    pen = Pen(0.35, kit.height_px)
    lean, half = rng.uniform(-0.1, 0.1), rng.uniform(0.012, 0.06)
    top, foot = 0.175 + lean, 0.175 - lean
    rgba = covered(
        kit.tile(rng), pen.mask(("polygon", (top - half, 0, top + half, 0, foot + half, 1, foot - half, 1)))
    )
    x = (np.arange(pen.size[1]) / kit.height_px - 0.175) / 0.175
    rgba[..., :3] *= (1 - 0.5 * np.abs(x + rng.uniform(-0.3, 0.3)))[None, :, None].clip(0.3, 1)
    return rgba


Shape = Callable[[np.random.Generator, Kit], np.ndarray]
FAMILIES: dict[str, tuple[Shape, tuple[float, float], tuple[str, ...]]] = {
    "half_figure": (_half_figure, (0.45, 0.6), ("bottom",)),
    "figure": (_figure, (1.5, 1.9), ()),
    "bottle": (_bottle, (0.15, 1.2), ()),
    "box": (_box, (0.2, 1.8), ()),
    "blob": (_blob, (0.1, 1.2), ()),
    "tree": (_tree, (3.0, 16.0), ()),
    "foliage": (_foliage, (0.4, 1.6), ()),
    "bar": (_bar, (0.8, 2.5), ()),
}
