"""What procedural scenes are made of: textures, and cut-out things with an outline and a size in metres.

Photographs and mattes come from the caller; without any, everything is drawn here. Everything random comes from the
generator that is passed in, never from what happens to be cached. No torch import.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from scipy import ndimage

from bokehdepth.errors import InputError
from datasets_scripts.scenes import drawing, townscape
from datasets_scripts.scenes.drawing import TILE_PX, Kit, drawn_tile, shading
from datasets_scripts.scenes.textures import Texture
from datasets_scripts.scenes.townscape import CAR_M, vehicle_views

FAMILIES = drawing.FAMILIES | townscape.FAMILIES
"""Of drawn things: how they are drawn, their smallest and largest height in metres, their open sides."""
_TILE_COUNT = 40
_DRAWN_COUNT, _RIGID_COUNT = 64, 24  # different drawings of each family; of those that are not bent, larger ones
_BEND_CELLS = 4  # on a side
_BEND_ROOM = 0.08  # of the size, beyond a side that may move
_BEND_SHARE, _LEAN_SHARE, _STRETCH_SHARE = 0.025, 0.1, 0.12  # standard deviations
_BILINEAR = Image.Resampling.BILINEAR
SIDES = ("left", "top", "right", "bottom")


@dataclass(frozen=True)
class Sprite:
    """A flat thing to stand, hang or lie in a scene.

    Attributes:
        rgba: uint8 ``(h, w, 4)``, alpha not premultiplied, cropped to what is visible.
        open_sides: The sides (of `SIDES`) where the picture, not the thing, ends: they belong outside the frame.
        height_m: Smallest and largest plausible height of ``rgba`` in metres.
        family: What it shows.
        has_size: Whether ``height_m`` is what such things have in the world, not a guess.
    """

    rgba: np.ndarray
    open_sides: frozenset[str]
    height_m: tuple[float, float]
    family: str
    has_size: bool = True


class Materials:
    """Textures and sprites from photographs, mattes and drawing.

    Args:
        photos: Picture files; opened when first used, then kept as small uint8 arrays.
        mattes: RGBA picture files of cut-out people, animals and things; opened when first used, then kept.
        side_px: The longer side of the scenes: files are kept at twice that.
        seed: Seed of the drawn textures.
        backdrops: Picture files for whole backgrounds; none: the photos.
        portraits: RGBA files of whole photographs, the subject as their alpha.
        detail: How many times as finely things and textures are drawn as suits scenes of 256 px.

    Raises:
        InputError: If a path is not a file; later, if one cannot be read as a picture.
    """

    def __init__(
        self,
        photos: Sequence[Path],
        mattes: Sequence[Path],
        side_px: int,
        seed: int,
        *,
        backdrops: Sequence[Path] = (),
        portraits: Sequence[Path] = (),
        detail: int = 1,
    ) -> None:
        self._kit = Kit(self.tile, detail)
        self._tile_px = TILE_PX * detail
        self._photos, self.mattes = _checked_files("photos", photos), _checked_files("mattes", mattes)
        self.backdrops = _checked_files("backdrops", backdrops) or self._photos
        self.portraits = _checked_files("portraits", portraits)
        self._side_px, self._seed = side_px, seed
        self._cache: dict[Any, Any] = {}  # files and drawings, by path, number and use

    def backdrop(self, rng: np.random.Generator) -> np.ndarray:
        """Draw one of the backgrounds: uint8 ``(h, w, 3)``, shared, not to be changed."""
        return self._read(self.backdrops, rng)

    def portrait(self, rng: np.random.Generator) -> np.ndarray:
        """Draw one of the whole photographs with a subject; mirrored, bent and recoloured by chance.

        Returns:
            uint8 ``(h, w, 4)``, alpha not premultiplied and above 0 on the subject.
        """
        photo = self._read(self.portraits, rng, "RGBA")
        if rng.random() < 0.5:
            photo = photo[:, ::-1]
        # Of RGBA, Pillow would forget the colours of what is transparent.
        rgb, alpha = (Image.fromarray(np.ascontiguousarray(part)) for part in (photo[..., :3], photo[..., 3]))
        size, mesh = _bent(rgb.size, frozenset(SIDES), rng)
        rgb, alpha = (part.transform(size, Image.Transform.MESH, mesh, _BILINEAR) for part in (rgb, alpha))
        return np.dstack([_recoloured(np.asarray(rgb), rng), np.asarray(alpha)])

    def _read(self, paths: Sequence[Path], rng: np.random.Generator, mode: str = "RGB") -> np.ndarray:
        path = paths[rng.integers(len(paths))]
        key = (path, mode)
        if key not in self._cache:
            picture = _opened(path, mode, 2 * self._side_px)
            size = _size_for_short_side(picture.size, 2 * self._side_px)
            # Band by band: of RGBA, Pillow would forget the colours of what is transparent.
            bands = [band.resize(size, Image.Resampling.LANCZOS) for band in picture.split()]
            self._cache[key] = np.asarray(Image.merge(mode, bands))
        return self._cache[key]

    def tile(self, rng: np.random.Generator) -> np.ndarray:
        """Draw a square texture, uint8: a piece of a photograph, or a drawn pattern in random colours."""
        if self._photos and rng.random() < 0.55:
            photo = self._read(self._photos, rng)
            side = int(min(photo.shape[:2]) * rng.uniform(0.35, 1.0))
            top, left = (int(rng.integers(n - side + 1)) for n in photo.shape[:2])
            piece = Image.fromarray(photo[top : top + side, left : left + side])
            return np.asarray(piece.resize((self._tile_px, self._tile_px), Image.Resampling.BILINEAR))
        number = int(rng.integers(_TILE_COUNT))
        if number not in self._cache:
            self._cache[number] = drawn_tile(np.random.default_rng([self._seed, 1, number]), self._tile_px)
        tile = np.rot90(self._cache[number], rng.integers(4))[:, :, rng.permutation(3)]
        if rng.random() < 0.5:  # towards grey: most walls and floors have little colour
            grey = tile.mean(axis=2, keepdims=True)
            tile = grey + (tile - grey) * rng.uniform(0, 0.6)
        return (tile * rng.uniform(0.6, 1.0, 3)).astype(np.uint8)

    def matte(
        self, rng: np.random.Generator, allowed_open: Sequence[str] = SIDES, height_px: float | None = None
    ) -> Sprite | None:
        """Draw one of the mattes, mirrored and lightened or darkened by chance.

        Args:
            rng: Source of chance.
            allowed_open: Sides of `SIDES` that may be open; left and right only together, since it may be mirrored.
            height_px: How high it will be seen: a small one costs less. None: as large as it is kept.

        Returns:
            The sprite. One that ends at the bottom of its file is taken for a half figure, another for a whole one.
            None where eight that were drawn have other open sides.
        """
        for _ in range(8):
            path = self.mattes[rng.integers(len(self.mattes))]
            if path not in self._cache:
                self._cache[path] = read_matte(path, 2 * self._side_px)
            sprite = self._cache[path]
            if sprite.open_sides <= set(allowed_open):
                break
        else:
            return None
        factor = 1 if height_px is None else int(min(sprite.rgba.shape[:2]) // max(1.5 * height_px, 24))
        if factor > 1:
            sprite = replace(sprite, rgba=np.asarray(Image.fromarray(sprite.rgba).reduce(factor)))
        return _varied(sprite, rng)

    def drawn(self, rng: np.random.Generator, families: Sequence[str]) -> Sprite:
        """Draw a thing of one of some of the `FAMILIES` and cover it with textures."""
        return _varied(self._thing(*self._chosen(families[rng.integers(len(families))], rng)), rng)

    def textures(self, rng: np.random.Generator, family: str) -> dict[str, Texture]:
        """Draw a front of a house, or a vehicle, to be laid on walls in the world: kept, so it costs nothing again.

        Returns:
            ``rear``, ``front`` and ``side`` of a vehicle, the ``front`` of any other of `townscape.FAMILIES`.
        """
        family, number = self._chosen(family, rng)
        key = (family, number, "textures")
        if key not in self._cache:
            rgba = self._thing(family, number).rgba
            views = vehicle_views(rgba, family) if family in CAR_M else {"front": rgba}
            self._cache[key] = {name: Texture(picture) for name, picture in views.items()}
        return self._cache[key]

    def _chosen(self, family: str, rng: np.random.Generator) -> tuple[str, int]:
        return family, int(rng.integers(_RIGID_COUNT if family in townscape.FAMILIES else _DRAWN_COUNT))

    def _thing(self, family: str, number: int) -> Sprite:
        """One of the drawings of a family, as it was drawn."""
        if (family, number) not in self._cache:
            # Its own generator: the same thing whoever asks first.
            own = np.random.default_rng([self._seed, 2, list(FAMILIES).index(family), number])
            shape, height_m, open_sides = FAMILIES[family]
            rgba = shape(own, self._kit)
            if family not in townscape.FAMILIES:
                rgba[..., :3] *= shading(own, rgba.shape[:2])[..., None]
            rows, columns = np.flatnonzero(rgba[..., 3].max(1) > 8), np.flatnonzero(rgba[..., 3].max(0) > 8)
            rgba = np.clip(rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 0, 255).astype(np.uint8)
            self._cache[family, number] = Sprite(rgba, frozenset(open_sides), height_m, family)
        return self._cache[family, number]


def _varied(sprite: Sprite, rng: np.random.Generator) -> Sprite:
    """Mirror and bend a sprite that has no true shape, and change its light and colour, by chance."""
    rgba, open_sides = sprite.rgba, sprite.open_sides
    is_rigid = sprite.family in townscape.FAMILIES  # these have one true shape, size and left side
    if not is_rigid and rng.random() < 0.5:
        rgba = rgba[:, ::-1]
        mirror = {"left": "right", "right": "left"}
        open_sides = frozenset(mirror.get(side, side) for side in open_sides)
    if not is_rigid:
        picture = Image.fromarray(np.ascontiguousarray(rgba))
        size, mesh = _bent(picture.size, open_sides, rng)
        rgba = np.asarray(picture.transform(size, Image.Transform.MESH, mesh, _BILINEAR))
        seen = rgba[..., 3] > 8
        rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
        if rows.size:  # something thinner than a pixel may be lost on the way
            rgba = rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    recoloured = np.dstack([_recoloured(rgba[..., :3], rng), rgba[..., 3]])
    return replace(sprite, rgba=recoloured, open_sides=open_sides)


def _bent(
    size_px: tuple[int, int], open_sides: frozenset[str], rng: np.random.Generator
) -> tuple[tuple[int, int], list[tuple[tuple[int, ...], tuple[float, ...]]]]:
    """Draw a smooth change of shape: proportions, lean and bends, so that no outline is met twice.

    Open sides stay straight and where they are; beyond the others there is room to move into.

    Returns:
        ``(width, height)`` of the bent picture, and the quadrilaterals that Pillow's mesh transform wants.
    """
    width, height = size_px
    left, top, right, bottom = (0.0 if side in open_sides else _BEND_ROOM for side in SIDES)
    x, y = np.meshgrid(np.linspace(-left, 1 + right, _BEND_CELLS + 1), np.linspace(-top, 1 + bottom, _BEND_CELLS + 1))
    move_x, move_y = rng.normal(0, _BEND_SHARE, (2, *x.shape))
    move_x[:, [0, -1]] = 0
    move_y[[0, -1]] = 0
    lean = rng.normal(0, _LEAN_SHARE) if left and right else 0.0
    x, y = x + move_x + lean * (1 - y), y + move_y
    stretch = np.exp(rng.normal(0, _STRETCH_SHARE))
    wide, tall = max(round(width * (1 + left + right) * stretch), 4), max(round(height * (1 + top + bottom)), 4)
    corners = np.stack([x * width, y * height], axis=-1)
    columns, rows = (np.linspace(0, side, _BEND_CELLS + 1).round().astype(int) for side in (wide, tall))
    mesh = []
    for i in range(_BEND_CELLS):
        for j in range(_BEND_CELLS):
            box = tuple(int(n) for n in (columns[j], rows[i], columns[j + 1], rows[i + 1]))
            around = (corners[i, j], corners[i + 1, j], corners[i + 1, j + 1], corners[i, j + 1])
            mesh.append((box, tuple(float(n) for corner in around for n in corner)))
    return (wide, tall), mesh


def _recoloured(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change light, contrast, hue and chroma of a picture by chance: uint8 ``(h, w, 3)`` in and out."""
    gain, gamma = rng.uniform(0.85, 1.1) * rng.uniform(0.93, 1.07, 3), rng.uniform(0.7, 1.4)
    curves = (255 * np.clip(gain[:, None] * (np.arange(256) / 255) ** gamma, 0, 1)).round().astype(np.uint8)
    picture = Image.fromarray(np.dstack([np.take(curve, rgb[..., i]) for i, curve in enumerate(curves)]))
    matrix = hue_chroma_matrix(rng.normal(0, 0.3), np.exp(rng.normal(-0.1, 0.35)))
    rows = np.concatenate([matrix, np.zeros((3, 1))], axis=1)
    return np.asarray(picture.convert("RGB", tuple(rows.ravel().tolist())))


def hue_chroma_matrix(angle_rad: float, chroma: float) -> np.ndarray:
    """Compute the matrix that turns hues about the grey axis and scales chroma; greys stay as they are.

    Args:
        angle_rad: Rotation.
        chroma: Factor; 0 makes everything grey.

    Returns:
        float64 ``(3, 3)``, to be multiplied with RGB from the left; its rows sum to 1.
    """
    grey, axis = np.full((3, 3), 1 / 3), 1 / np.sqrt(3)
    turned = np.cross(np.eye(3), np.full(3, -axis))
    return grey + chroma * (np.cos(angle_rad) * (np.eye(3) - grey) + np.sin(angle_rad) * turned)


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
            picture.draft(
                "RGB", _size_for_short_side(picture.size, side_px)
            )  # JPEG only: decode no larger than needed
            return picture.convert(mode)
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"{str(path)!r} cannot be read as a picture ({error}), wanted a picture file") from error


def read_matte(path: Path, side_px: int) -> Sprite:
    """Read a cut-out: its largest piece, its short side no longer than ``side_px``; InputError if there is none."""
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
    return Sprite(np.asarray(image), open_sides, (0.7, 1.8) if whole else (0.4, 0.8), "matte", has_size=False)
