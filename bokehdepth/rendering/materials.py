"""What procedural scenes are made of: textures, and cut-out things with an outline and a size in metres.

Photographs and mattes come from the caller; without any, everything is drawn here. Everything random comes from the
generator that is passed in, never from what happens to be cached. No torch import.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, UnidentifiedImageError
from scipy import ndimage

from bokehdepth.errors import InputError

TILE_PX = 256
_TILE_COUNT = 40
_DRAWN_COUNT = 64  # different drawings of each family
_DRAWN_PX = 192  # height at which outlines are drawn
_SKINS = ((0.96, 0.82, 0.71), (0.88, 0.69, 0.55), (0.76, 0.55, 0.41), (0.55, 0.37, 0.26), (0.36, 0.24, 0.18))
_HAIRS = ((0.08, 0.06, 0.05), (0.25, 0.16, 0.09), (0.5, 0.33, 0.16), (0.82, 0.68, 0.42), (0.6, 0.6, 0.6))
SIDES = ("left", "top", "right", "bottom")


@dataclass(frozen=True)
class Sprite:
    """A flat thing to stand, hang or lie in a scene.

    Attributes:
        rgba: uint8 ``(h, w, 4)``, alpha not premultiplied, cropped to what is visible.
        open_sides: The sides (of `SIDES`) where the picture, not the thing, ends: they belong outside the frame.
        height_m: Smallest and largest plausible height of ``rgba`` in metres.
        family: What it shows.
    """

    rgba: np.ndarray
    open_sides: frozenset[str]
    height_m: tuple[float, float]
    family: str


class Materials:
    """Textures and sprites from photographs, mattes and drawing.

    Args:
        photos: Picture files; opened when first used, then kept as small uint8 arrays.
        mattes: RGBA picture files of cut-out people, animals and things; opened when first used, then kept.
        side_px: The longer side of the scenes: files are kept at twice that.
        seed: Seed of the drawn textures.

    Raises:
        InputError: If a path is not a file.
    """

    def __init__(self, photos: Sequence[Path], mattes: Sequence[Path], side_px: int, seed: int) -> None:
        self._photos, self._mattes = _checked_files("photos", photos), _checked_files("mattes", mattes)
        self._side_px, self._seed = side_px, seed
        self._cache: dict[Path | int | tuple[str, int], np.ndarray | Sprite] = {}

    @property
    def has_photos(self) -> bool:
        """Whether photographs were given."""
        return bool(self._photos)

    @property
    def has_mattes(self) -> bool:
        """Whether mattes were given."""
        return bool(self._mattes)

    def photo(self, rng: np.random.Generator) -> np.ndarray:
        """Draw one of the photographs.

        Args:
            rng: Source of chance.

        Returns:
            uint8 ``(h, w, 3)``, shared: not to be changed.

        Raises:
            InputError: If no photographs were given, or the file cannot be read as a picture.
        """
        if not self._photos:
            raise InputError("photos is empty, wanted picture files for a scene with a photograph")
        path = self._photos[rng.integers(len(self._photos))]
        if path not in self._cache:
            picture = _opened(path, "RGB", 2 * self._side_px)
            picture = picture.resize(_size_for_short_side(picture.size, 2 * self._side_px), Image.Resampling.LANCZOS)
            self._cache[path] = np.asarray(picture)
        return self._cache[path]

    def tile(self, rng: np.random.Generator) -> np.ndarray:
        """Draw a square texture: a piece of a photograph, or a drawn pattern in random colours.

        Args:
            rng: Source of chance.

        Returns:
            uint8 ``(TILE_PX, TILE_PX, 3)``.
        """
        if self._photos and rng.random() < 0.55:
            photo = self.photo(rng)
            side = int(min(photo.shape[:2]) * rng.uniform(0.35, 1.0))
            top, left = (int(rng.integers(n - side + 1)) for n in photo.shape[:2])
            piece = Image.fromarray(photo[top : top + side, left : left + side])
            return np.asarray(piece.resize((TILE_PX, TILE_PX), Image.Resampling.BILINEAR))
        number = int(rng.integers(_TILE_COUNT))
        if number not in self._cache:
            self._cache[number] = _drawn_tile(np.random.default_rng([self._seed, 1, number]))
        tile = np.rot90(self._cache[number], rng.integers(4))[:, :, rng.permutation(3)]
        if rng.random() < 0.5:  # towards grey: most walls and floors have little colour
            grey = tile.mean(axis=2, keepdims=True)
            tile = grey + (tile - grey) * rng.uniform(0, 0.6)
        return (tile * rng.uniform(0.6, 1.0, 3)).astype(np.uint8)

    def matte(self, rng: np.random.Generator) -> Sprite:
        """Draw one of the mattes, mirrored and lightened or darkened by chance.

        Args:
            rng: Source of chance.

        Returns:
            The sprite. One that ends at the bottom of its file is taken for a half figure, another for a whole one.

        Raises:
            InputError: If no mattes were given, or the file is not a picture with a visible cut-out.
        """
        if not self._mattes:
            raise InputError("mattes is empty, wanted RGBA files for a scene with a matte")
        path = self._mattes[rng.integers(len(self._mattes))]
        if path not in self._cache:
            self._cache[path] = _read_matte(path, 2 * self._side_px)
        return _varied(self._cache[path], rng)

    def drawn(self, rng: np.random.Generator, families: Sequence[str]) -> Sprite:
        """Draw a thing of one of some families and cover it with textures.

        Args:
            rng: Source of chance.
            families: Some of `FAMILIES`.

        Returns:
            The sprite.
        """
        family = families[rng.integers(len(families))]
        number = int(rng.integers(_DRAWN_COUNT))
        if (family, number) not in self._cache:
            # Its own generator: the same thing whoever asks first.
            own = np.random.default_rng([self._seed, 2, list(FAMILIES).index(family), number])
            shape, height_m, open_sides = FAMILIES[family]
            rgba = shape(own, self.tile)
            rgba[..., :3] *= _shading(own, rgba.shape[:2])[..., None]
            rows, columns = np.flatnonzero(rgba[..., 3].max(1) > 8), np.flatnonzero(rgba[..., 3].max(0) > 8)
            rgba = np.clip(rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 0, 255).astype(np.uint8)
            self._cache[family, number] = Sprite(rgba, frozenset(open_sides), height_m, family)
        return _varied(self._cache[family, number], rng)


def _varied(sprite: Sprite, rng: np.random.Generator) -> Sprite:
    """Mirror a sprite and change its light and colour a little, by chance."""
    rgba, open_sides = sprite.rgba, sprite.open_sides
    if rng.random() < 0.5:
        rgba = rgba[:, ::-1]
        mirror = {"left": "right", "right": "left"}
        open_sides = frozenset(mirror.get(side, side) for side in open_sides)
    gain, gamma = rng.uniform(0.85, 1.1) * rng.uniform(0.93, 1.07, 3), rng.uniform(0.75, 1.3)
    curves = (255 * np.clip(gain[:, None] * (np.arange(256) / 255) ** gamma, 0, 1)).astype(np.uint8)
    channels = [np.take(curve, rgba[..., number]) for number, curve in enumerate(curves)]
    return Sprite(np.dstack([*channels, rgba[..., 3]]), open_sides, sprite.height_m, sprite.family)


def _checked_files(name: str, paths: Sequence[Path]) -> tuple[Path, ...]:
    checked = tuple(Path(path) for path in paths)
    for path in checked:
        if not path.is_file():
            raise InputError(f"{name} names {str(path)!r}, wanted only existing files")
    return checked


def _size_for_short_side(size: tuple[int, int], side_px: int) -> tuple[int, int]:
    scale = min(1.0, side_px / min(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _opened(path: Path, mode: str, side_px: int) -> Image.Image:
    try:
        with Image.open(path) as picture:
            picture.draft("RGB", _size_for_short_side(picture.size, side_px))  # JPEG only: decode no larger than needed
            return picture.convert(mode)
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"{str(path)!r} cannot be read as a picture ({error}), wanted a picture file") from error


def _read_matte(path: Path, side_px: int) -> Sprite:
    picture = np.asarray(_opened(path, "RGBA", side_px))
    solid = picture[..., 3] > 40
    if not solid.any():
        raise InputError(f"{str(path)!r} has no visible pixel, wanted a cut-out with an alpha channel")
    # Flecks of a predicted alpha would become floating dust: the largest piece is the thing.
    pieces, count = ndimage.label(solid)
    if count > 1:
        largest = 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
        solid = pieces == largest
    keep = ndimage.binary_dilation(solid, iterations=2)
    rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    firm = (picture[..., 3] > 128) & keep
    edges = {"left": firm[:, :2], "top": firm[:2], "right": firm[:, -2:], "bottom": firm[-2:]}
    open_sides = frozenset(side for side, edge in edges.items() if edge.any(axis=np.argmin(edge.shape)).mean() > 0.03)
    alpha = np.where(keep, picture[..., 3], 0).astype(np.uint8)
    rgba = np.dstack([picture[..., :3], alpha])[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    image = Image.fromarray(rgba)
    image = image.resize(_size_for_short_side(image.size, side_px), Image.Resampling.LANCZOS)
    whole = "bottom" not in open_sides
    return Sprite(np.asarray(image), open_sides, (0.7, 1.8) if whole else (0.4, 0.8), "matte")


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


def _drawn_tile(rng: np.random.Generator) -> np.ndarray:
    """Draw one square pattern, uint8 ``(TILE_PX, TILE_PX, 3)``."""
    y, x = np.mgrid[:TILE_PX, :TILE_PX].astype(np.float32) / TILE_PX
    first, second, third = (random_colour(rng) for _ in range(3))
    noise = power_law_noise(rng, (TILE_PX, TILE_PX), rng.uniform(0.7, 1.6))
    kind = rng.integers(6)
    if kind <= 1:  # clouds of colour: earth, lawn, plaster
        other = power_law_noise(rng, (TILE_PX, TILE_PX), 1.2)
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
        cells = ndimage.zoom(rng.random((64, 64)).astype(np.float32), TILE_PX / 64, order=1, mode="grid-wrap")
        colour = np.where((cells > 0.62)[..., None], first, second) * (0.6 + 0.6 * cells[..., None])
    colour = colour * (1 + rng.uniform(0.03, 0.15) * noise[..., None])
    return (np.clip(colour, 0, 1) * 255).astype(np.uint8)


def _shading(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Light from one side: a factor around 1, float32 ``(h, w)``."""
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.45)
    y, x = np.linspace(-1, 1, size[0], dtype=np.float32), np.linspace(-1, 1, size[1], dtype=np.float32)
    return 1 + strength * (np.sin(angle) * y[:, None] + np.cos(angle) * x[None])


_Tile = Callable[[np.random.Generator], np.ndarray]


class _Pen:
    """Masks drawn at twice the size, on a canvas whose height is 1."""

    def __init__(self, aspect: float) -> None:
        self.size = (_DRAWN_PX, max(8, round(_DRAWN_PX * aspect)))

    def mask(self, *shapes: tuple[str, Sequence[float]], width: float = 0.02) -> np.ndarray:
        """Draw ``(kind, coordinates)`` shapes: float32 ``(h, w)`` in [0, 1]; coordinates in units of the height."""
        image = Image.new("L", (2 * self.size[1], 2 * self.size[0]))
        draw, scale = ImageDraw.Draw(image), 2 * _DRAWN_PX
        for kind, coordinates in shapes:
            scaled = [scale * float(value) for value in coordinates]
            if kind == "line":
                draw.line(scaled, fill=255, width=max(1, round(width * scale)), joint="curve")
            else:
                getattr(draw, kind)(scaled, fill=255)
        return np.asarray(image.reduce(2), dtype=np.float32) / 255


def _covered(tile: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Texture in an outline: float32 ``(h, w, 4)`` of 0 to 255."""
    side = max(alpha.shape)
    picture = Image.fromarray(tile).resize((side, side), Image.Resampling.BICUBIC)
    rgba = np.empty((*alpha.shape, 4), dtype=np.float32)
    rgba[..., :3] = np.asarray(picture)[: alpha.shape[0], : alpha.shape[1]]
    rgba[..., 3] = 255 * alpha
    return rgba


def _paint(rgba: np.ndarray, mask: np.ndarray, colour: np.ndarray) -> None:
    """Lay ``colour`` (0 to 255, ``(3,)`` or ``(h, w, 3)``) over ``rgba`` where ``mask`` is, in place."""
    rgba[..., :3] += (colour - rgba[..., :3]) * mask[..., None]
    rgba[..., 3] = np.maximum(rgba[..., 3], 255 * mask)


def _half_figure(rng: np.random.Generator, tile: _Tile) -> np.ndarray:
    """Draw head and shoulders, from the front or from behind, down to the chest."""
    pen = _Pen(rng.uniform(0.8, 1.1))
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
    rgba = _covered(tile(rng), body)
    long = rng.uniform(0.9, 2.6) if rng.random() < 0.5 else 0.8
    back = (face_x - 1.2 * head, eye_row - 1.45 * head, face_x + 1.2 * head, eye_row + long * head)
    grain = power_law_noise(rng, pen.size, 0.6)[..., None]
    strands = hair * (1 + 0.22 * grain)
    _paint(rgba, pen.mask(("ellipse", back)), strands)
    _paint(rgba, pen.mask(("rectangle", (face_x - 0.45 * head, eye_row, face_x + 0.45 * head, chin + 0.1))), 0.85 * skin)
    oval = (face_x - head, eye_row - 1.25 * head, face_x + head, chin + 0.02)
    x = (np.arange(pen.size[1]) / pen.size[0] - face_x) / head
    lit = (1 + rng.uniform(-0.3, 0.3) * np.clip(x, -1, 1))[None, :, None]
    if rng.random() < 0.15:  # from behind
        _paint(rgba, pen.mask(("ellipse", oval)), strands)
        return rgba
    _paint(rgba, pen.mask(("ellipse", oval)), skin * lit * (1 + 0.02 * grain))
    for side in (-1, 1):
        eye = face_x + side * 0.42 * head
        white = (eye - 0.2 * head, eye_row - 0.09 * head, eye + 0.2 * head, eye_row + 0.09 * head)
        iris = (eye - 0.09 * head, eye_row - 0.1 * head, eye + 0.09 * head, eye_row + 0.1 * head)
        brow = (eye - 0.24 * head, eye_row - 0.24 * head, eye + 0.24 * head, eye_row - 0.28 * head)
        _paint(rgba, pen.mask(("ellipse", white)), np.full(3, 235.0))
        _paint(rgba, pen.mask(("ellipse", iris)), 120 * rng.random(3))
        _paint(rgba, pen.mask(("line", brow), width=0.012), hair * 0.8)
    nose = (face_x, eye_row + 0.1 * head, face_x + 0.12 * head, eye_row + 0.5 * head, face_x, eye_row + 0.55 * head)
    _paint(rgba, 0.5 * pen.mask(("line", nose), width=0.012), skin * 0.6)
    lips = (face_x - 0.32 * head, eye_row + 0.74 * head, face_x + 0.32 * head, eye_row + 0.9 * head)
    _paint(rgba, pen.mask(("ellipse", lips)), skin * np.array([0.85, 0.55, 0.55]))
    fringe = (face_x - 1.05 * head, eye_row - 1.42 * head, face_x + 1.05 * head, eye_row - rng.uniform(0.5, 0.8) * head)
    _paint(rgba, pen.mask(("ellipse", fringe)), strands)
    return rgba


def _figure(rng: np.random.Generator, tile: _Tile) -> np.ndarray:
    """Draw a whole standing person."""
    pen, middle = _Pen(0.42), 0.21
    skin, hair = np.array(_SKINS[rng.integers(len(_SKINS))]) * 255, np.array(_HAIRS[rng.integers(len(_HAIRS))]) * 255
    spread = rng.uniform(0.01, 0.07)
    legs = pen.mask(
        ("polygon", (middle - 0.09, 0.48, middle + 0.01, 0.48, middle - spread + 0.02, 1, middle - spread - 0.05, 1)),
        ("polygon", (middle - 0.01, 0.48, middle + 0.09, 0.48, middle + spread + 0.05, 1, middle + spread - 0.02, 1)),
    )
    rgba = _covered(tile(rng), legs)
    swing = rng.uniform(-0.06, 0.09, 2)
    arms = pen.mask(
        ("line", (middle - 0.1, 0.2, middle - 0.13 - swing[0] / 2, 0.35, middle - 0.12 - swing[0], 0.5)),
        ("line", (middle + 0.1, 0.2, middle + 0.13 + swing[1] / 2, 0.35, middle + 0.12 + swing[1], 0.5)),
        width=0.05,
    )
    torso = pen.mask(("rounded_rectangle", (middle - 0.12, 0.155, middle + 0.12, 0.54)))
    _paint(rgba, np.maximum(arms, torso), _covered(tile(rng), torso)[..., :3])
    _paint(rgba, pen.mask(("ellipse", (middle - 0.055, -0.002, middle + 0.055, 0.12))), hair)
    if rng.random() < 0.75:
        _paint(rgba, pen.mask(("ellipse", (middle - 0.043, 0.025, middle + 0.043, 0.145))), skin)
    return rgba


def _bottle(rng: np.random.Generator, tile: _Tile) -> np.ndarray:
    """Draw a turned thing: bottle, vase, glass, lamp."""
    knots = np.sort(rng.uniform(0, 1, 4))
    widths = rng.uniform(0.06, 0.22, 6)
    y = np.linspace(0, 1, _DRAWN_PX)
    half_width = np.interp(y, [0, *knots, 1], widths)
    half_width = ndimage.gaussian_filter1d(half_width, rng.uniform(1, 14))
    x = np.arange(round(0.5 * _DRAWN_PX)) / _DRAWN_PX - 0.25
    alpha = np.clip((half_width[:, None] - np.abs(x)[None]) * _DRAWN_PX + 0.5, 0, 1).astype(np.float32)
    rgba = _covered(tile(rng), alpha)
    if rng.random() < 0.6:
        low, high = np.sort(rng.uniform(0.1, 0.95, 2))
        label = ((y > low) & (y < high))[:, None] * alpha
        _paint(rgba, label, _covered(tile(rng), alpha)[..., :3])
    relative = np.clip(x[None] / half_width[:, None], -1, 1)
    rgba[..., :3] *= (0.45 + 0.65 * np.sqrt(1 - np.clip(relative - rng.uniform(-0.4, 0.4), -1, 1) ** 2))[..., None]
    return rgba


def _box(rng: np.random.Generator, tile: _Tile) -> np.ndarray:
    """Draw a box seen at an angle: two faces of unequal light, or one."""
    aspect = np.exp(rng.uniform(np.log(0.35), np.log(2.0)))
    pen = _Pen(aspect)
    alpha = np.ones(pen.size, dtype=np.float32)
    rgba = _covered(tile(rng), alpha)
    if rng.random() < 0.7:
        edge = int(pen.size[1] * rng.uniform(0.15, 0.85))
        if rng.random() < 0.5:
            rgba[:, :edge, :3] = _covered(tile(rng), alpha)[:, :edge, :3]
        rgba[:, :edge, :3] *= rng.uniform(0.4, 0.85)
    for _ in range(rng.integers(3)):  # windows, handles, prints
        y, x = rng.uniform(0.08, 0.7), rng.uniform(0.05, 0.7) * aspect
        mark = pen.mask(("rectangle", (x, y, x + rng.uniform(0.08, 0.28) * aspect, y + rng.uniform(0.05, 0.25))))
        _paint(rgba, mark, random_colour(rng) * 255)
    return rgba


def _blob(rng: np.random.Generator, tile: _Tile) -> np.ndarray:
    """Draw a rounded lump: fruit, stone, shrub, ball."""
    angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    radius = np.ones_like(angle)
    rough = rng.choice([0.0, 0.25, 0.5])
    for order in range(2, 8):
        radius += rough / order * rng.standard_normal() * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
    radius = 0.47 * np.maximum(radius, 0.3) / radius.max()
    aspect = rng.uniform(0.75, 1.4)
    pen = _Pen(aspect)
    points = np.stack([aspect * (0.5 + radius * np.cos(angle)), 0.5 + radius * np.sin(angle)], axis=1)
    rgba = _covered(tile(rng), pen.mask(("polygon", points.ravel())))
    y, x = np.mgrid[-1 : 1 : pen.size[0] * 1j, -1 : 1 : pen.size[1] * 1j]
    light = rng.uniform(-0.5, 0.5, 2)
    rgba[..., :3] *= np.clip(1.2 - 0.45 * ((x - light[0]) ** 2 + (y + 0.4 - light[1]) ** 2), 0.25, 1.3)[..., None]
    return rgba


def _branch(rng: np.random.Generator, pen: _Pen, start: tuple[float, float], angle: float, length: float) -> list:
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


def _foliage(rng: np.random.Generator, tile: _Tile) -> np.ndarray:
    """Draw leafy twigs that fan out from the bottom."""
    aspect = rng.uniform(0.7, 1.3)
    pen = _Pen(aspect)
    shapes = []
    for _ in range(int(rng.integers(3, 7))):
        start = (rng.uniform(0.2, 0.8) * aspect, 1.0)
        shapes += _branch(rng, pen, start, -np.pi / 2 + rng.normal(0, 0.4), rng.uniform(0.6, 1.1))
    rgba = _covered(tile(rng), pen.mask(*shapes, width=0.015))
    _tint_leaves(rng, rgba, pen)
    return rgba


def _tree(rng: np.random.Generator, tile: _Tile) -> np.ndarray:
    """Draw a trunk with a ragged crown."""
    aspect = rng.uniform(0.45, 0.95)
    pen = _Pen(aspect)
    trunk, low = rng.uniform(0.02, 0.05), rng.uniform(0.55, 0.85)
    base = (aspect / 2 - trunk, low - 0.2, aspect / 2 + trunk, 1)
    rgba = _covered(tile(rng), pen.mask(("rectangle", base)))
    rgba[..., :3] *= np.array([0.6, 0.5, 0.4])
    noise = power_law_noise(rng, pen.size, rng.uniform(0.9, 1.4))
    y, x = np.mgrid[: pen.size[0], : pen.size[1]] / _DRAWN_PX
    inside = 1 - ((x - aspect / 2) / (0.42 * aspect)) ** 2 - ((y - low / 2) / (0.46 * low)) ** 2
    crown = np.clip(4 * (inside + 0.25 * noise - 0.12), 0, 1).astype(np.float32)
    crown[[0, -1]] = 0
    crown[:, [0, -1]] = 0
    leaves = _covered(tile(rng), crown)
    _tint_leaves(rng, leaves, pen)
    _paint(rgba, crown, leaves[..., :3])
    return rgba


def _tint_leaves(rng: np.random.Generator, rgba: np.ndarray, pen: _Pen) -> None:
    """Make a texture leafy, in place: mostly greens, speckled."""
    green = np.array([rng.uniform(0.2, 0.7), rng.uniform(0.35, 0.75), rng.uniform(0.05, 0.35)]) * 255
    speckle = np.clip(0.75 + 0.3 * power_law_noise(rng, pen.size, 0.5), 0.15, 1.5)[..., None]
    mix = rng.uniform(0.3, 0.95)
    rgba[..., :3] = np.clip((mix * green + (1 - mix) * rgba[..., :3]) * speckle, 0, 255)


def _bar(rng: np.random.Generator, tile: _Tile) -> np.ndarray:
    """Draw a post, pole, rail or cord."""
    pen = _Pen(0.35)
    lean, half = rng.uniform(-0.1, 0.1), rng.uniform(0.012, 0.06)
    top, foot = 0.175 + lean, 0.175 - lean
    rgba = _covered(tile(rng), pen.mask(("polygon", (top - half, 0, top + half, 0, foot + half, 1, foot - half, 1))))
    x = (np.arange(pen.size[1]) / _DRAWN_PX - 0.175) / 0.175
    rgba[..., :3] *= (1 - 0.5 * np.abs(x + rng.uniform(-0.3, 0.3)))[None, :, None].clip(0.3, 1)
    return rgba


_Shape = Callable[[np.random.Generator, _Tile], np.ndarray]
FAMILIES: dict[str, tuple[_Shape, tuple[float, float], tuple[str, ...]]] = {
    "half_figure": (_half_figure, (0.45, 0.6), ("bottom",)),
    "figure": (_figure, (1.5, 1.9), ()),
    "bottle": (_bottle, (0.15, 1.2), ()),
    "box": (_box, (0.2, 1.8), ()),
    "blob": (_blob, (0.1, 1.2), ()),
    "tree": (_tree, (2.0, 7.0), ()),
    "foliage": (_foliage, (0.4, 1.6), ()),
    "bar": (_bar, (0.8, 2.5), ()),
}
