"""Procedural scenes with metric depth, cues that let depth be read, and a fixed rule of focus.

The rule: the lens is focused on the **subject**, the main thing near the middle of the frame. It is flat, parallel to the
sensor and exactly in focus all over. Mostly it is the nearest thing; in one scene of five something blurred is in front of
it. Nothing but the picture itself tells what is near: far things are at the top, at the bottom and beside the subject.

Depth shows by contact with the ground and contact shadows, by size (everything has a height in metres), by texture that
shrinks with distance (surfaces are textured in world coordinates), by haze, by occlusion. All lengths are metres along the
optical axis (z-depth), between 0.4 and 40 m. numpy, scipy and PIL only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from bokehdepth.errors import InputError
from bokehdepth.rendering.layered import Layer, composite, render_bokeh
from bokehdepth.rendering.materials import TILE_PX, Materials, Sprite, power_law_noise, random_colour

MIN_DEPTH_M, MAX_DEPTH_M = 0.4, 40.0
KIND_WEIGHTS = {"portrait": 0.38, "ground": 0.17, "room": 0.13, "table": 0.12, "wall": 0.12, "landscape": 0.08}
FOREGROUND_SHARE = 0.2
_MIN_SUBJECT_SHARE = 0.025
_THINGS = ("box", "blob", "bottle", "figure")
_OUTDOOR_THINGS = ("figure", "tree", "box", "blob", "bar", "foliage")


@dataclass(frozen=True)
class Scene:
    """One scene, all in focus, and what is needed to render it through a lens.

    Attributes:
        layers: The surfaces, farthest first.
        image: The all-in-focus picture, float32 ``(H, W, 3)`` display values in [0, 1].
        depth_m: z-depth of what is seen, float32 ``(H, W)`` in metres.
        focus_distance_m: S1, the depth of the subject in metres.
        focal_length_px: Focal length in pixels; the principal point is the middle of the frame.
        kind: A key of `KIND_WEIGHTS`.
        subject_mask: Where the subject is seen, bool ``(H, W)``.
    """

    layers: tuple[Layer, ...]
    image: np.ndarray
    depth_m: np.ndarray
    focus_distance_m: float
    focal_length_px: float
    kind: str
    subject_mask: np.ndarray

    def render(self, bokeh_strength: float) -> np.ndarray:
        """Render the scene through a lens focused on the subject (Eq. 15, 26).

        Args:
            bokeh_strength: K, 0 or more; 0 gives ``image`` to the last bit.

        Returns:
            float32 ``(H, W, 3)`` display values in [0, 1].

        Raises:
            InputError: If ``bokeh_strength`` is negative or not finite.
        """
        return render_bokeh(self.layers, bokeh_strength, self.focus_distance_m)


class SceneGenerator:
    """Makes scenes, each a function of ``seed`` and its index alone.

    It can be pickled and sent to worker processes; each then keeps its own cache of opened files.

    Args:
        size_px: ``(H, W)`` of the scenes, each from 32 to 2048.
        photos: Picture files for textures and backgrounds, best all in focus; none: everything is drawn.
        mattes: RGBA files of cut-out people, animals and things; half of the subjects when given.
        seed: 0 or more.

    Raises:
        InputError: If ``size_px`` or ``seed`` is out of range or a path is not a file.
    """

    def __init__(
        self, size_px: tuple[int, int], photos: Sequence[Path] = (), mattes: Sequence[Path] = (), seed: int = 0
    ) -> None:
        if len(size_px) != 2 or not all(isinstance(n, int | np.integer) and 32 <= n <= 2048 for n in size_px):
            raise InputError(f"size_px is {size_px!r}, wanted (H, W), each a whole number from 32 to 2048")
        if not (isinstance(seed, int | np.integer) and seed >= 0):
            raise InputError(f"seed is {seed!r}, wanted a whole number, 0 or more")
        self.size_px, self.seed = (int(size_px[0]), int(size_px[1])), int(seed)
        self._materials = Materials(photos, mattes, max(self.size_px), self.seed)

    def generate(self, index: int, kind: str | None = None) -> Scene:
        """Make one scene.

        Args:
            index: Which one, 0 or more.
            kind: A key of `KIND_WEIGHTS`; drawn by these weights when absent.

        Returns:
            The scene.

        Raises:
            InputError: If ``index`` or ``kind`` is not valid, or a photo or matte cannot be read.
        """
        if not (isinstance(index, int | np.integer) and index >= 0):
            raise InputError(f"index is {index!r}, wanted a whole number, 0 or more")
        if kind is not None and kind not in KIND_WEIGHTS:
            raise InputError(f"kind is {kind!r}, wanted one of {sorted(KIND_WEIGHTS)}")
        rng = np.random.default_rng([self.seed, 0, int(index)])
        drawn_kind = str(rng.choice(list(KIND_WEIGHTS), p=list(KIND_WEIGHTS.values())))
        while True:  # a subject can end up hidden or outside: few in a hundred, so this ends
            draft = _Draft(self.size_px, self._materials, rng, kind or drawn_kind)
            getattr(draft, f"build_{draft.kind}")()
            scene = draft.finished()
            if scene.subject_mask.mean() >= _MIN_SUBJECT_SHARE:
                return scene


@dataclass
class _Plane:
    """The plane ``normal . P = offset_m`` in camera coordinates, and two axes in it for the texture."""

    normal: np.ndarray
    offset_m: float
    axes: tuple[np.ndarray, np.ndarray]
    tile: np.ndarray
    span_m: float
    gain: float


@dataclass
class _Surface:
    """A layer in the making: display values ``(H, W, 3)``, alpha ``(H, W)``, disparity ``(H, W)``."""

    rgb: np.ndarray
    alpha: np.ndarray
    disparity_dpt: np.ndarray
    is_subject: bool = False


@dataclass
class _Draft:
    """A scene in the making. The camera is at the origin: x right, y down, z forward."""

    size_px: tuple[int, int]
    materials: Materials
    rng: np.random.Generator
    kind: str
    backdrop: list[_Surface] = field(default_factory=list)
    things: list[_Surface] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.height, self.width = self.size_px
        self.focal_px = self.width * self.uniform(0.85, 1.3)
        self.ray_x = (np.arange(self.width, dtype=np.float32) + 0.5 - self.width / 2)[None] / self.focal_px
        self.ray_y = (np.arange(self.height, dtype=np.float32) + 0.5 - self.height / 2)[:, None] / self.focal_px
        self.turn(0, 0, 0)

    # --- chance -------------------------------------------------------------------------------------------------

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def spread(self, low: float, high: float) -> float:
        """Draw evenly in the logarithm."""
        return float(np.exp(self.rng.uniform(np.log(low), np.log(high))))

    def happens(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    # --- geometry -----------------------------------------------------------------------------------------------

    def turn(self, yaw: float, pitch: float, roll: float) -> None:
        """Point the camera, angles in radians: ``pitch`` down, ``yaw`` to the left, ``roll`` about the axis."""
        cosine, sine = np.cos([yaw, pitch, roll]), np.sin([yaw, pitch, roll])
        about_y = np.array([[cosine[0], 0, sine[0]], [0, 1, 0], [-sine[0], 0, cosine[0]]])
        about_x = np.array([[1, 0, 0], [0, cosine[1], -sine[1]], [0, sine[1], cosine[1]]])
        about_z = np.array([[cosine[2], -sine[2], 0], [sine[2], cosine[2], 0], [0, 0, 1]])
        self.world = about_z @ about_x @ about_y  # its columns: the world's right, down and forward

    def plane(self, normal: Sequence[float], offset_m: float, span_m: float | None = None) -> _Plane:
        """Make a plane from its world normal, with a texture of its own."""
        away = self.world @ np.asarray(normal, dtype=float)
        first = np.cross(away, self.world[:, 2] if abs(away @ self.world[:, 2]) < 0.9 else self.world[:, 1])
        first /= np.linalg.norm(first)
        span = span_m or self.spread(0.8, 3.0)
        gain = self.uniform(0.65, 1.1)
        return _Plane(away, offset_m, (first, np.cross(away, first)), self.materials.tile(self.rng), span, gain)

    def disparity(self, plane: _Plane) -> np.ndarray:
        """Compute 1 / z-depth of a plane, float32 ``(H, W)``; 0 or less where it is behind the camera."""
        x, y, z = plane.normal / plane.offset_m
        return (x * self.ray_x + y * self.ray_y + z).astype(np.float32)

    def paint(self, rgb: np.ndarray, plane: _Plane, where: np.ndarray) -> None:
        """Texture the pixels ``where`` ``(H, W)`` of ``rgb`` in the plane's world coordinates, in place."""
        rows, columns = np.nonzero(where)
        if rows.size == 0:
            return
        pyramid = _pyramid(plane.tile)
        total = np.zeros((rows.size, 3), dtype=np.float32)
        texels_per_m = TILE_PX / plane.span_m
        for shift in (-0.25, 0.25):  # two samples a pixel: the texture is squeezed in one direction
            x = self.ray_x[0, columns] + np.float32(shift / self.focal_px)
            y = self.ray_y[rows, 0] + np.float32(shift / self.focal_px)
            normal = plane.normal.astype(np.float32)
            facing = normal[0] * x + normal[1] * y + normal[2]
            depth = plane.offset_m / np.maximum(facing, plane.offset_m / MAX_DEPTH_M)
            point = [depth * x, depth * y, depth]
            u, v = (sum(np.float32(axis[i] * texels_per_m) * point[i] for i in range(3)) for axis in plane.axes)
            cosine = np.clip(facing / np.sqrt(x * x + y * y + 1), 0.05, 1)
            footprint = depth / self.focal_px * texels_per_m / np.sqrt(cosine)
            total += _looked_up(pyramid, u, v, footprint)
        rgb[rows, columns] = total * (0.5 * plane.gain / 255)

    def row_on(self, plane: _Plane, depth_m: float, column: float) -> float:
        """Find the row at which a plane has a depth, in one column (fractional pixels)."""
        x, y, z = plane.normal
        ray_x = (column - self.width / 2) / self.focal_px
        return float((plane.offset_m / depth_m - z - x * ray_x) / y * self.focal_px + self.height / 2)

    # --- things -------------------------------------------------------------------------------------------------

    def sprite(self, families: Sequence[str], matte_share: float, allowed_open: Sequence[str]) -> Sprite:
        """Draw a sprite whose open sides are among the allowed ones."""
        if self.materials.has_mattes and self.happens(matte_share):
            for _ in range(8):
                sprite = self.materials.matte(self.rng)
                if sprite.open_sides <= set(allowed_open):
                    return sprite
        return self.materials.drawn(self.rng, families)

    def place(
        self, sprite: Sprite, centre_px: float, base_px: float, height_px: float, depth_m: float, is_subject: bool = False
    ) -> None:
        """Put a sprite, its foot at ``(base_px, centre_px)``, into the frame: flat, at one depth."""
        tall, wide = sprite.rgba.shape[:2]
        scale = height_px / tall
        half = 0.5 * wide * scale
        if "left" in sprite.open_sides:
            centre_px = min(centre_px, half)
        if "right" in sprite.open_sides:
            centre_px = max(centre_px, self.width - half)
        left, top = centre_px - half, base_px - height_px
        x0, x1 = max(int(np.floor(left)), 0), min(int(np.ceil(left + 2 * half)), self.width)
        y0, y1 = max(int(np.floor(top)), 0), min(int(np.ceil(base_px)), self.height)
        disparity = np.full(self.size_px, 1 / np.clip(depth_m, MIN_DEPTH_M, MAX_DEPTH_M), dtype=np.float32)
        rgb, alpha = np.zeros((*self.size_px, 3), dtype=np.float32), np.zeros(self.size_px, dtype=np.float32)
        if x1 - x0 >= 1 and y1 - y0 >= 1:
            box = [(x0 - left) / scale, (y0 - top) / scale, (x1 - left) / scale, (y1 - top) / scale]
            box = np.clip(box, 0, [wide, tall, wide, tall]).tolist()
            if box[2] - box[0] > 1e-3 and box[3] - box[1] > 1e-3:
                picture = Image.fromarray(sprite.rgba)
                cut = picture.resize((x1 - x0, y1 - y0), Image.Resampling.BICUBIC, box=tuple(box), reducing_gap=2.0)
                pixels = np.asarray(cut, dtype=np.float32) / 255
                rgb[y0:y1, x0:x1], alpha[y0:y1, x0:x1] = pixels[..., :3], pixels[..., 3]
        self.things.append(_Surface(rgb, alpha, disparity, is_subject))

    def stand(self, plane: _Plane, ground: _Surface, sprite: Sprite, depth_m: float, centre_px: float, height_m: float,
              is_subject: bool = False) -> None:  # fmt: skip
        """Stand a sprite on a plane and darken the ground at its foot."""
        base, height_px = self.row_on(plane, depth_m, centre_px), self.focal_px * height_m / depth_m
        self.shade_contact(ground, centre_px, base, 0.5 * height_px * sprite.rgba.shape[1] / sprite.rgba.shape[0])
        self.place(sprite, centre_px, base, height_px, depth_m, is_subject)

    def shade_contact(self, ground: _Surface, column: float, row: float, half_width_px: float) -> None:
        """Darken a surface around one point, as a thing on it does."""
        wide, flat = max(1.1 * half_width_px, 1.5), max(self.uniform(0.15, 0.4) * half_width_px, 1.0)
        y, x = np.arange(self.height)[:, None] - row, np.arange(self.width)[None] - column
        shadow = np.exp(-((x / wide) ** 2)) * np.exp(-((y / flat) ** 2))
        ground.rgb *= (1 - self.uniform(0.35, 0.75) * shadow)[..., None]

    def add_foreground(self, subject_depth_m: float) -> None:
        """In some scenes: something blurred in front of the subject, entering from an edge of the frame."""
        if not self.happens(FOREGROUND_SHARE) or subject_depth_m < 1.2 * MIN_DEPTH_M:
            return
        sprite = self.materials.drawn(self.rng, ("foliage", "foliage", "bar", "blob", "box"))
        depth = max(min(subject_depth_m * self.uniform(0.3, 0.75), 6.0), MIN_DEPTH_M)
        tall = self.uniform(0.35, 0.8) * self.height
        if sprite.family == "bar":
            tall = self.uniform(1.1, 1.5) * self.height
            self.place(sprite, self.uniform(0, 1) * self.width, 1.05 * self.height, tall, depth)
            return
        side = self.rng.integers(4)
        if side == 0:  # from below
            self.place(sprite, self.uniform(0, 1) * self.width, self.height + 0.45 * tall, tall, depth)
        elif side == 1:  # from above, upside down
            hanging = Sprite(np.ascontiguousarray(sprite.rgba[::-1]), sprite.open_sides, sprite.height_m, sprite.family)
            self.place(hanging, self.uniform(0, 1) * self.width, 0.55 * tall, tall, depth)
        else:
            column = self.width * (side == 3) + self.uniform(-0.1, 0.1) * self.width
            self.place(sprite, column, self.uniform(0.4, 1.3) * self.height, tall, depth)

    # --- backgrounds --------------------------------------------------------------------------------------------

    def picture(self) -> np.ndarray:
        """Fill the frame with most of one photograph, or with a drawn one: float32 ``(H, W, 3)``."""
        if self.materials.has_photos and self.happens(0.85):
            photo = self.materials.photo(self.rng)
            rows, columns = photo.shape[:2]
            scale = self.uniform(0.6, 1.0) * min(rows / self.height, columns / self.width)
            tall, wide = self.height * scale, self.width * scale
            left, top = self.uniform(0, columns - wide), self.uniform(0, rows - tall)
            picture = Image.fromarray(photo)
            if self.happens(0.5):
                picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            box = (left, top, left + wide, top + tall)
            resized = picture.resize((self.width, self.height), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
            return np.asarray(resized, dtype=np.float32) / 255
        tile = Image.fromarray(self.materials.tile(self.rng)).resize((self.width, self.height), Image.Resampling.BICUBIC)
        light = np.linspace(self.uniform(0.6, 1.1), self.uniform(0.6, 1.1), self.height, dtype=np.float32)
        return np.asarray(tile, dtype=np.float32) / 255 * light[:, None, None]

    def slope(self, depth_m: float, strength: float) -> np.ndarray:
        """Disparity around 1 / depth that rises in a random direction, by ``strength`` of itself to either side."""
        angle = self.uniform(0, 2 * np.pi)
        x, y = np.linspace(-1, 1, self.width)[None], np.linspace(-1, 1, self.height)[:, None]
        ramp = (np.cos(angle) * x + np.sin(angle) * y) / (abs(np.cos(angle)) + abs(np.sin(angle)))
        return np.clip((1 + strength * ramp) / depth_m, 1 / MAX_DEPTH_M, 1 / MIN_DEPTH_M).astype(np.float32)

    def add_backdrop(self, disparity_dpt: np.ndarray, rgb: np.ndarray) -> _Surface:
        surface = _Surface(rgb, np.ones(self.size_px, dtype=np.float32), disparity_dpt)
        self.backdrop.append(surface)
        return surface

    def add_sky(self, horizon_px: float) -> None:
        """Sky, and mostly hills before it, at 25 to 40 m: the end of the metric range."""
        top, low = random_colour(self.rng) * 0.5 + np.array([0.2, 0.35, 0.5]), np.array([0.85, 0.88, 0.9])
        fade = np.clip(np.arange(self.height) / max(horizon_px, 1.0), 0, 1)[:, None, None]
        clouds = 0.07 * power_law_noise(self.rng, self.size_px, 1.7)[..., None]
        sky = (top * (1 - fade) + low * self.uniform(0.7, 1.1) * fade + clouds).astype(np.float32)
        self.add_backdrop(np.full(self.size_px, 1 / MAX_DEPTH_M, dtype=np.float32), sky)
        if self.happens(0.75):
            ridge = power_law_noise(self.rng, (8, 4 * self.width), 1.5)[0, : self.width]
            crest = horizon_px - self.height * (self.uniform(0.02, 0.2) + 0.03 * ridge)
            alpha = np.clip(np.arange(self.height)[:, None] - crest[None] + 0.5, 0, 1).astype(np.float32)
            disparity = np.full(self.size_px, 1 / self.uniform(25, MAX_DEPTH_M), dtype=np.float32)
            self.backdrop.append(_Surface(self.picture() * self.uniform(0.5, 0.9), alpha, disparity))

    def add_plane(self, plane: _Plane, farthest_m: float) -> _Surface:
        """Add a ground or a table up to a depth, its far edge antialiased."""
        disparity = self.disparity(plane)
        edge = 1 / min(farthest_m, MAX_DEPTH_M)
        slope = np.hypot(*plane.normal[:2]) / plane.offset_m / self.focal_px
        alpha = np.clip((disparity - edge) / max(slope, 1e-6) + 0.5, 0, 1).astype(np.float32)
        rgb = np.zeros((*self.size_px, 3), dtype=np.float32)
        self.paint(rgb, plane, alpha > 0)
        clipped = np.clip(disparity, max(0.8 * edge, 1 / MAX_DEPTH_M), 1 / MIN_DEPTH_M)
        surface = _Surface(rgb, alpha, clipped)
        self.backdrop.append(surface)
        return surface

    def aim_at_horizon(self, row_px: float) -> None:
        """Pitch the camera so that the horizon is at a row; a slight roll comes with it."""
        roll = self.rng.normal(0, 0.025)
        self.turn(self.uniform(-0.5, 0.5), np.arctan((self.height / 2 - row_px) / self.focal_px), roll)

    # --- the kinds of scene -------------------------------------------------------------------------------------

    def build_portrait(self) -> None:
        """Build a close-up: the subject fills much of the frame, mostly cut by it; behind it a whole photograph."""
        sprite = self.sprite(("half_figure", "half_figure", "blob", "bottle", "box"), 0.75, ("left", "right", "bottom"))
        tall = self.uniform(0.55, 1.35) * self.height
        if sprite.family == "matte" and "bottom" not in sprite.open_sides:
            tall = self.uniform(0.7, 2.0) * self.height
        depth = np.clip(self.focal_px * self.uniform(*sprite.height_m) / tall, 0.5, 5.0)
        behind = min(depth * self.spread(2.0, 10.0), MAX_DEPTH_M)
        self.add_backdrop(self.slope(behind, self.uniform(0, 0.35)), self.picture())
        for _ in range(int(self.rng.choice(4, p=[0.55, 0.25, 0.12, 0.08]))):
            other_depth = depth * self.uniform(1.3, max(1.4, min(behind / depth, 6) * 0.8))
            other = self.sprite(("half_figure", "figure", "box", "foliage", "blob"), 0.4, ("bottom",))
            size = self.focal_px * self.uniform(*other.height_m) / other_depth
            base = self.height + self.uniform(0, 0.5) * size if other.open_sides else self.uniform(0.3, 1.4) * self.height
            self.place(other, self.uniform(-0.1, 1.1) * self.width, base, size, other_depth)
        if "bottom" in sprite.open_sides or self.happens(0.6):
            base = self.height + self.uniform(0.0, 0.3) * tall
        else:  # floating free, or cut by the top
            base = self.uniform(0.55, 1.1) * self.height
        centre = self.width * float(np.clip(self.rng.normal(0.5, 0.14), 0.2, 0.8))
        self.place(sprite, centre, base, tall, depth, is_subject=True)
        self.add_foreground(depth)

    def build_ground(self) -> None:
        """Build ground with a wall, or sky and hills, behind it; things stand on it."""
        horizon = self.uniform(0.12, 0.55) * self.height
        self.aim_at_horizon(horizon)
        sprite = self.sprite(("figure", "half_figure", "tree", "box", "blob", "bottle"), 0.55, ("bottom",))
        height_m, is_cut = self.uniform(*sprite.height_m), "bottom" in sprite.open_sides
        tall = self.uniform(0.55, 1.2) * self.height if is_cut else self.uniform(0.35, 1.1) * self.height
        depth = float(np.clip(self.focal_px * height_m / tall, 0.7, 12.0))
        # The subject's foot decides the camera height: half figures stand below the frame.
        tall = self.focal_px * height_m / depth
        foot = self.height + self.uniform(0, 0.3) * tall if is_cut else self.uniform(0.62, 1.05) * self.height
        camera_m = (foot - horizon) / self.focal_px * depth * (self.uniform(1.0, 1.8) if is_cut else 1.0)
        plane = self.plane((0, 1, 0), max(camera_m, 0.3))
        if self.happens(0.6):
            far = min(depth * self.spread(1.8, 7.0), MAX_DEPTH_M)
            self.add_backdrop(self.slope(far, 0.1), self.picture())
        else:
            far = MAX_DEPTH_M
            self.add_sky(horizon)
        ground = self.add_plane(plane, far)
        centre = self.width * float(np.clip(self.rng.normal(0.5, 0.13), 0.22, 0.78))
        self.crowd(plane, ground, depth, far, _OUTDOOR_THINGS)
        if is_cut:
            self.place(sprite, centre, foot, tall, depth, is_subject=True)
        else:
            self.stand(plane, ground, sprite, depth, centre, height_m, is_subject=True)
        self.add_foreground(depth)
        self.add_haze(0.6)

    def crowd(self, plane: _Plane, ground: _Surface, depth_m: float, far_m: float, families: Sequence[str]) -> None:
        """Stand up to four further things on the ground: mostly behind the subject, a few nearer and beside it."""
        for _ in range(int(self.rng.integers(5))):
            centre = self.uniform(-0.1, 1.1) * self.width
            other_depth = depth_m * self.spread(1.3, 7.0)
            if self.happens(0.15):
                other_depth = depth_m * self.uniform(0.55, 0.85)
                centre = self.width * (self.uniform(-0.15, 0.12) if self.happens(0.5) else self.uniform(0.88, 1.15))
            if not MIN_DEPTH_M < other_depth < 0.95 * far_m:
                continue
            other = self.sprite(families, 0.3, ())
            if not other.open_sides:
                self.stand(plane, ground, other, other_depth, centre, self.uniform(*other.height_m))

    def build_room(self) -> None:
        """Build a room: floor, ceiling, walls and back wall in perspective; things stand in it or hang."""
        self.turn(self.uniform(-0.45, 0.45), self.uniform(-0.2, 0.3), self.rng.normal(0, 0.02))
        camera_m, back_m = self.uniform(0.8, 1.7), self.spread(2.0, 8.0)
        floor = self.plane((0, 1, 0), camera_m)
        walls = [
            floor,
            self.plane((0, -1, 0), self.uniform(0.8, 1.7)),
            self.plane((-1, 0, 0), self.uniform(0.9, 3.2)),
            self.plane((1, 0, 0), self.uniform(0.9, 3.2)),
            self.plane((0, 0, 1), back_m),
        ]
        stack = np.stack([self.disparity(wall) for wall in walls])
        nearest = stack.argmax(axis=0)
        rgb = np.zeros((*self.size_px, 3), dtype=np.float32)
        for number, wall in enumerate(walls):
            self.paint(rgb, wall, nearest == number)
        room = self.add_backdrop(np.clip(stack.max(axis=0), 1 / MAX_DEPTH_M, 1 / MIN_DEPTH_M), rgb)
        sprite = self.sprite(("half_figure", "figure", "box", "bottle", "blob"), 0.55, ("bottom",))
        height_m = self.uniform(*sprite.height_m)
        tall = self.uniform(0.4, 1.15) * self.height
        depth = float(np.clip(self.focal_px * height_m / tall, 0.6, 0.7 * back_m))
        tall = self.focal_px * height_m / depth
        centre = self.width * float(np.clip(self.rng.normal(0.5, 0.13), 0.25, 0.75))
        for _ in range(int(self.rng.integers(5))):
            self.add_to_room(room, floor, depth)
        foot = self.row_on(floor, depth, centre)
        if "bottom" in sprite.open_sides:
            self.place(sprite, centre, self.height + self.uniform(0, 0.3) * tall, tall, depth, is_subject=True)
        elif foot - tall > 0.8 * self.height:  # the floor is out of sight: it hangs, or stands on something unseen
            self.place(sprite, centre, self.uniform(0.6, 1.1) * self.height, tall, depth, is_subject=True)
        else:
            self.stand(floor, room, sprite, depth, centre, height_m, is_subject=True)
        self.add_foreground(depth)

    def add_to_room(self, room: _Surface, floor: _Plane, subject_m: float) -> None:
        """Add one thing between the subject and the walls, standing or hanging at any height."""
        column = self.uniform(0.02, 0.98) * self.width
        depth = subject_m * self.spread(1.2, 4.0)
        local_m = 1 / room.disparity_dpt[: self.height // 2, min(int(column), self.width - 1)].max()
        if depth > 0.9 * local_m:
            return
        thing = self.materials.drawn(self.rng, _THINGS)
        height_m = self.uniform(*thing.height_m)
        if self.happens(0.6):
            self.stand(floor, room, thing, depth, column, height_m)
        else:
            tall = self.focal_px * 0.5 * height_m / depth
            self.place(thing, column, self.uniform(0.05, 0.7) * self.height + 0.5 * tall, tall, depth)

    def build_table(self) -> None:
        """Build a table-top at 0.4 to 1.5 m, seen at a slant or from straight above; small things are on it."""
        pitch = np.deg2rad(self.uniform(15, 90))
        from_above = pitch > np.deg2rad(60)
        self.turn(0, pitch, self.uniform(0, 2 * np.pi) if from_above else self.rng.normal(0, 0.03))
        plane = self.plane((0, 1, 0), self.uniform(0.55, 1.3) if from_above else self.uniform(0.25, 0.7), 0.6)
        nearest = self.disparity(plane).max() * MIN_DEPTH_M
        plane.offset_m *= max(1.0, 1.02 * float(nearest))  # nothing of the table nearer than the metric range allows
        edge_m = MAX_DEPTH_M if from_above else self.uniform(0.9, 2.2)
        if not from_above:
            self.add_backdrop(self.slope(edge_m * self.spread(1.3, 5.0), self.uniform(0, 0.3)), self.picture())
        table = self.add_plane(plane, edge_m)
        centre = self.width * float(np.clip(self.rng.normal(0.5, 0.14), 0.2, 0.8))
        foot = self.height * self.uniform(0.6, 1.0)
        touch = self.disparity(plane)[min(int(foot), self.height - 1), int(centre)]
        depth = float(np.clip(1 / max(touch, 1e-3), 0.45, 0.85 * edge_m if not from_above else 1.5))
        tall = self.height * self.uniform(0.3, 0.85)
        tall = self.focal_px * float(np.clip(tall * depth / self.focal_px, 0.06, 0.5)) / depth
        for _ in range(int(self.rng.integers(6))):
            column, row = self.uniform(0, 1) * self.width, self.uniform(0.1, 1.1) * self.height
            local = self.disparity(plane)[int(np.clip(row, 0, self.height - 1)), min(int(column), self.width - 1)]
            if not 1 / edge_m < local < 1 / MIN_DEPTH_M:
                continue
            thing = self.sprite(("box", "blob", "bottle"), 0.2, ())
            if not thing.open_sides:
                size = self.focal_px * self.uniform(0.05, 0.25) * local
                self.shade_contact(table, column, row, 0.5 * size * thing.rgba.shape[1] / thing.rgba.shape[0])
                self.place(thing, column, row, size, 1 / local)
        sprite = self.sprite(("box", "blob", "bottle", "bottle"), 0.35, ())
        wide = tall * sprite.rgba.shape[1] / sprite.rgba.shape[0]
        self.shade_contact(table, centre, foot, 0.5 * wide)
        self.place(sprite, centre, foot, tall, depth, is_subject=True)
        self.add_foreground(depth)

    def build_wall(self) -> None:
        """Build a slanted wall and no floor; things hang before it at all heights, near ones at the top too."""
        far = self.spread(1.2, 9.0)
        lean = self.rng.normal(0, 0.45, 2)
        normal = np.array([lean[0], lean[1], 1.0]) / np.linalg.norm([lean[0], lean[1], 1.0])
        plane = self.plane(normal, far * float(normal[2]))
        disparity = np.clip(self.disparity(plane), 1 / MAX_DEPTH_M, 1 / MIN_DEPTH_M)
        if self.happens(0.5):
            rgb = self.picture()
        else:
            rgb = np.zeros((*self.size_px, 3), dtype=np.float32)
            self.paint(rgb, plane, np.ones(self.size_px, dtype=bool))
        self.add_backdrop(disparity, rgb)
        depth = float(np.clip(0.8 / disparity.max() * self.spread(0.3, 1.0), 0.45, 6.0))
        sprite = self.sprite(("blob", "box", "bottle", "half_figure", "foliage", "tree"), 0.5, ("left", "right", "bottom"))
        tall = self.height * self.uniform(0.35, 0.9)
        near_is_up = self.happens(0.6)
        for _ in range(int(self.rng.integers(1, 6))):
            nearness = self.uniform(0, 1)  # 0: at the wall, 1: as near as the subject
            other_depth = 1 / (nearness / depth * 0.9 + (1 - nearness) * disparity.max())
            other = self.materials.drawn(self.rng, ("blob", "box", "bottle", "foliage", "bar", "figure"))
            size = self.height * self.uniform(0.15, 0.5) * min(2.0, 0.6 + depth / other_depth)
            level = (1 - nearness) if near_is_up else nearness
            row = self.height * (0.15 + 0.7 * level + self.rng.normal(0, 0.12))
            self.place(other, self.uniform(0, 1) * self.width, row + 0.5 * size, size, other_depth)
        centre = self.width * float(np.clip(self.rng.normal(0.5, 0.12), 0.25, 0.75))
        if "bottom" in sprite.open_sides:
            base = self.height + self.uniform(0, 0.25) * tall
        else:
            base = self.height * self.uniform(0.25, 0.75) + 0.5 * tall
        self.place(sprite, centre, base, tall, depth, is_subject=True)
        self.add_foreground(depth)

    def build_landscape(self) -> None:
        """Build a wide view whose subject is far: the near ground, at the bottom, is what blurs."""
        horizon = self.uniform(0.2, 0.6) * self.height
        self.aim_at_horizon(horizon)
        plane = self.plane((0, 1, 0), self.spread(0.35, 1.8), self.spread(1.0, 4.0))
        self.add_sky(horizon)
        ground = self.add_plane(plane, MAX_DEPTH_M)
        sprite = self.sprite(("tree", "box", "figure"), 0.25, ())
        height_m = self.uniform(*sprite.height_m) * (3.0 if sprite.family == "box" else 1.0)
        depth = float(np.clip(self.focal_px * height_m / (self.uniform(0.25, 0.8) * self.height), 4.0, 30.0))
        centre = self.width * float(np.clip(self.rng.normal(0.5, 0.15), 0.2, 0.8))
        for _ in range(int(self.rng.integers(6))):
            thing = self.materials.drawn(self.rng, _OUTDOOR_THINGS)
            far_m, column = self.spread(1.2, 35.0), self.uniform(0, 1) * self.width
            if far_m < depth and abs(column - centre) < 0.25 * self.width:
                continue
            self.stand(plane, ground, thing, far_m, column, self.uniform(*thing.height_m))
        self.stand(plane, ground, sprite, depth, centre, height_m, is_subject=True)
        self.add_foreground(min(depth, 5.0))
        self.add_haze(0.6)

    # --- finish -------------------------------------------------------------------------------------------------

    def add_haze(self, share: float) -> None:
        """In some scenes: air light that takes over with depth, exp(-Z / 6 to 25 m)."""
        if not self.happens(share):
            return
        length_m, air = self.uniform(6, 25), 0.5 * random_colour(self.rng) + 0.4
        for surface in self.backdrop + self.things:
            clear = np.exp(-1 / (surface.disparity_dpt * length_m))[..., None]
            surface.rgb = surface.rgb * clear + air * (1 - clear)

    def finished(self) -> Scene:
        """Order the surfaces, give all the same tone, noise and sharpness, and close the scene."""
        surfaces = self.backdrop + sorted(self.things, key=lambda thing: thing.disparity_dpt[0, 0])
        gain = (self.uniform(0.85, 1.12) * self.rng.uniform(0.95, 1.05, 3)).astype(np.float32)
        gamma = np.float32(self.uniform(0.85, 1.2))
        shape = (*self.size_px, 3)
        noise = self.rng.random(shape, dtype=np.float32) + self.rng.random(shape, dtype=np.float32) - 1
        noise *= np.float32(self.uniform(0, 0.03))  # a standard deviation of up to 0.012
        softness_px = self.uniform(0.2, 0.5) if self.happens(0.4) else 0.0
        layers, subject_mask, focus_m = [], np.zeros(self.size_px, dtype=bool), 0.0
        for surface in surfaces:
            rgb, alpha = np.zeros_like(noise), np.zeros_like(noise[..., 0])
            box = _visible(surface.alpha)
            part, alpha[box] = _softened(surface.rgb[box], surface.alpha[box], softness_px)
            np.clip(part, 0, 1, out=part)
            part **= gamma
            part *= gain
            part += noise[box]
            np.clip(part, 0, 1, out=rgb[box])
            layers.append(Layer(rgb, alpha, surface.disparity_dpt))
            seen = alpha >= 0.5
            subject_mask = seen if surface.is_subject else subject_mask & ~seen
            if surface.is_subject:
                focus_m = float(1 / np.float64(surface.disparity_dpt[0, 0]))
        image, disparity = composite(layers)
        return Scene(tuple(layers), image, 1 / disparity, focus_m, self.focal_px, self.kind, subject_mask)


def _visible(alpha: np.ndarray) -> tuple[slice, slice]:
    """Bound the pixels above 0, with a margin for softening; all of the frame when there are none."""
    rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
    if rows.size == 0:
        return slice(None), slice(None)
    return slice(max(rows[0] - 2, 0), rows[-1] + 3), slice(max(columns[0] - 2, 0), columns[-1] + 3)


def _softened(rgb: np.ndarray, alpha: np.ndarray, sigma_px: float) -> tuple[np.ndarray, np.ndarray]:
    """Blur a surface a little, as a mediocre lens does, without dark seams; float32 in and out, alpha in [0, 1]."""
    rgb, alpha = rgb.astype(np.float32), np.clip(alpha, 0, 1)
    if sigma_px == 0:
        return rgb, alpha
    sigmas = (sigma_px, sigma_px, 0)
    weight = ndimage.gaussian_filter(alpha, sigma_px, mode="nearest", truncate=3)
    rgb = ndimage.gaussian_filter(rgb * alpha[..., None], sigmas, mode="nearest", truncate=3)
    rgb /= np.maximum(weight, 1e-4)[..., None]
    # An opaque surface stays opaque: the weights of the filter sum to 1 up to rounding only.
    return rgb, np.where(weight > 0.999, np.float32(1), np.where(weight < 0.002, np.float32(0), weight))


def _pyramid(tile: np.ndarray) -> np.ndarray:
    """Halve a texture until 2 pixels are left: float32 ``(n, 3)``, the pixels of all levels, the finest first."""
    fine = tile.astype(np.float32)
    levels = [fine.reshape(-1, 3)]
    while fine.shape[0] > 2:
        rows = fine[::2] + fine[1::2]
        fine = 0.25 * (rows[:, ::2] + rows[:, 1::2])
        levels.append(fine.reshape(-1, 3))
    return np.concatenate(levels)


def _looked_up(pyramid: np.ndarray, u: np.ndarray, v: np.ndarray, footprint: np.ndarray) -> np.ndarray:
    """Read a mirrored, endless texture at points.

    Args:
        pyramid: The texture, of `_pyramid`.
        u: Horizontal coordinates in texels of the finest level, ``(n,)``.
        v: Vertical ones.
        footprint: Size of a pixel in these texels: chooses the level.

    Returns:
        float32 ``(n, 3)``.
    """
    count = int(np.log2(TILE_PX))  # levels: TILE_PX, TILE_PX / 2, ... 2
    level = np.clip(np.round(np.log2(np.maximum(footprint, 1e-6))), 0, count - 1).astype(np.intp)
    side = TILE_PX >> np.arange(count)
    first = np.concatenate([[0], np.cumsum(side**2)[:-1]])
    side, first = np.take(side, level), np.take(first, level)
    corner, part = [], []
    for coordinate in (u, v):
        folded = np.abs((coordinate.astype(np.float32) / TILE_PX + 1) % 2 - 1) * (side - 1).astype(np.float32)
        low = np.minimum(folded.astype(np.intp), side - 2)
        corner.append(low)
        part.append((folded - low).astype(np.float32)[:, None])
    (x, y), (right, down) = corner, part
    start = first + y * side + x
    upper, lower = np.take(pyramid, start, axis=0), np.take(pyramid, start + side, axis=0)
    upper += right * (np.take(pyramid, start + 1, axis=0) - upper)
    lower += right * (np.take(pyramid, start + side + 1, axis=0) - lower)
    return upper + down * (lower - upper)
