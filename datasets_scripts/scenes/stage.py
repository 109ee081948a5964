"""A camera and what stands before it: the parts of which the kinds of scenes are put together.

Camera coordinates: origin at the lens, x right, y down, z forward, metres. Depth is z-depth.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from bokehdepth.rendering.layered import extent
from datasets_scripts.scenes.materials import Materials, Sprite
from datasets_scripts.scenes.textures import Texture

MIN_DEPTH_M = 0.4
SKY_M = 2000.0
"""Where the sky is: the farthest depth of any scene, its disparity practically nothing."""
FOCAL_SHARES = (0.55, 1.4)
"""Smallest and largest focal length over the longer side: from a phone's or a car's camera to a mild tele."""
FOREGROUND_SHARE = 0.2
_FAR_DPT = 1 / 60.0  # the widest blur of infinity and of 60 m differ by a quarter of a pixel at a width of 256 px
_CORNERS = ((0, 0), (1, 0), (1, 1), (0, 1))  # of a panel, one after the other
_SIZE_TOLERANCE = 1.25  # a thing's size tells its depth as long as it is within this factor of what such things have


@dataclass
class Plane:
    """The plane ``normal . P = offset_m`` in camera coordinates, and two axes in it for the texture."""

    normal: np.ndarray
    offset_m: float
    axes: tuple[np.ndarray, np.ndarray]
    tile: np.ndarray
    span_m: float
    gain: float


@dataclass
class Surface:
    """A layer in the making: display values ``(H, W, 3)``, alpha ``(H, W)``, disparity ``(H, W)``.

    ``is_known``: whether its depth can be told from what the picture shows.
    """

    rgb: np.ndarray
    alpha: np.ndarray
    disparity_dpt: np.ndarray
    is_subject: bool = False
    is_known: bool = True


@dataclass
class Stage:
    """A scene in the making. The camera is at the origin: x right, y down, z forward."""

    size_px: tuple[int, int]
    materials: Materials
    rng: np.random.Generator
    kind: str
    backdrop: list[Surface] = field(default_factory=list)
    things: list[Surface] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.height, self.width = self.size_px
        self.focal_px = max(self.size_px) * self.spread(*FOCAL_SHARES)
        self.ray_x = (np.arange(self.width, dtype=np.float32) + 0.5 - self.width / 2)[None] / self.focal_px
        self.ray_y = (np.arange(self.height, dtype=np.float32) + 0.5 - self.height / 2)[:, None] / self.focal_px
        self.turn(0, 0, 0)

    # --- chance -------------------------------------------------------------------------------------------------

    def uniform(self, low: float, high: float) -> float:
        """Draw evenly between two numbers."""
        return float(self.rng.uniform(low, high))

    def spread(self, low: float, high: float) -> float:
        """Draw evenly in the logarithm."""
        return float(np.exp(self.rng.uniform(np.log(low), np.log(high))))

    def happens(self, share: float) -> bool:
        """Decide something that is true in a ``share`` of all cases."""
        return bool(self.rng.random() < share)

    # --- geometry -----------------------------------------------------------------------------------------------

    def turn(self, yaw: float, pitch: float, roll: float) -> None:
        """Point the camera, angles in radians: ``pitch`` down, ``yaw`` to the left, ``roll`` about the axis."""
        cosine, sine = np.cos([yaw, pitch, roll]), np.sin([yaw, pitch, roll])
        about_y = np.array([[cosine[0], 0, sine[0]], [0, 1, 0], [-sine[0], 0, cosine[0]]])
        about_x = np.array([[1, 0, 0], [0, cosine[1], -sine[1]], [0, sine[1], cosine[1]]])
        about_z = np.array([[cosine[2], -sine[2], 0], [sine[2], cosine[2], 0], [0, 0, 1]])
        self.world = about_z @ about_x @ about_y  # its columns: the world's right, down and forward

    def plane(self, normal: Sequence[float], offset_m: float, span_m: float | None = None) -> Plane:
        """Make a plane from its world normal, with a texture of its own."""
        away = self.world @ np.asarray(normal, dtype=float)
        first = np.cross(away, self.world[:, 2] if abs(away @ self.world[:, 2]) < 0.9 else self.world[:, 1])
        first /= np.linalg.norm(first)
        span = span_m or self.spread(0.8, 3.0)
        gain = self.uniform(0.65, 1.1)
        return Plane(away, offset_m, (first, np.cross(away, first)), self.materials.tile(self.rng), span, gain)

    def disparity(self, plane: Plane) -> np.ndarray:
        """Compute 1 / z-depth of a plane, float32 ``(H, W)``; 0 or less where it is behind the camera."""
        x, y, z = plane.normal / plane.offset_m
        return (x * self.ray_x + y * self.ray_y + z).astype(np.float32)

    def paint(self, rgb: np.ndarray, plane: Plane, where: np.ndarray) -> None:
        """Texture the pixels ``where`` ``(H, W)`` of ``rgb`` in the plane's world coordinates, in place."""
        rows, columns = np.nonzero(where)
        if rows.size == 0:
            return
        texture = Texture(plane.tile)
        total = np.zeros((rows.size, 4), dtype=np.float32)
        for shift in (-0.25, 0.25):  # two samples a pixel: the texture is squeezed in one direction
            x = self.ray_x[0, columns] + np.float32(shift / self.focal_px)
            y = self.ray_y[rows, 0] + np.float32(shift / self.focal_px)
            normal = plane.normal.astype(np.float32)
            facing = normal[0] * x + normal[1] * y + normal[2]
            depth = plane.offset_m / np.maximum(facing, plane.offset_m / SKY_M)
            point = [depth * x, depth * y, depth]
            u, v = (sum(np.float32(axis[i] / plane.span_m) * point[i] for i in range(3)) for axis in plane.axes)
            cosine = np.clip(facing / np.sqrt(x * x + y * y + 1), 0.05, 1)
            footprint = depth / self.focal_px * (len(plane.tile) / plane.span_m) / np.sqrt(cosine)
            total += texture.read(u, v, footprint, mirrored=True)
        rgb[rows, columns] = total[:, :3] * np.float32(0.5 * plane.gain / 255)

    def draw_panel(self, surface: Surface, texture: Texture, corner: np.ndarray, right: np.ndarray, up: np.ndarray,
                   size_m: tuple[float, float], gain: float | np.ndarray = 1.0, grow_px: float = 0.0,
                   repeats: float = 0.0) -> None:  # fmt: skip
        """Lay a rectangular picture over a surface, wherever it stands in the world; it brings its depth along.

        Args:
            surface: Changed in place.
            texture: The picture.
            corner: Its lower left corner in camera coordinates, metres ``(3,)``.
            right: Unit vector along its lower side ``(3,)``.
            up: Unit vector along its left side, square to ``right``.
            size_m: Its width and height.
            gain: Of its light, or of red, green and blue ``(3,)``.
            grow_px: By how much it is larger all around, in pixels of the frame: half of one leaves no seam to a
                neighbour.
            repeats: How often it is beside itself, every other one mirrored; 0 is once.
        """
        ends = _before_lens([corner + a * size_m[0] * right + b * size_m[1] * up for a, b in _CORNERS])
        (a, b, c), (d, e, f) = right.tolist(), up.tolist()
        normal = np.array([b * f - c * e, c * d - a * f, a * e - b * d])
        offset_m = float(normal @ corner)
        if not len(ends) or abs(offset_m) < 1e-3:
            return
        columns = ends[:, 0] / ends[:, 2] * self.focal_px + self.width / 2
        rows = ends[:, 1] / ends[:, 2] * self.focal_px + self.height / 2
        x0, x1 = max(int(columns.min()) - 1, 0), min(int(columns.max()) + 2, self.width)
        y0, y1 = max(int(rows.min()) - 1, 0), min(int(rows.max()) + 2, self.height)
        if x0 >= x1 or y0 >= y1:
            return
        near_m, far_m = (float(np.clip(z, MIN_DEPTH_M, SKY_M)) for z in (ends[:, 2].min(), ends[:, 2].max()))
        x, y = self.ray_x[:, x0:x1], self.ray_y[y0:y1]
        disparity = np.maximum((normal[0] * x + normal[1] * y + normal[2]) / offset_m, 1e-6).astype(np.float32)
        place, steps, cover = [], [], np.ones_like(disparity)
        for axis, length_m in ((right, size_m[0]), (up, size_m[1])):
            along = ((axis[0] * x + axis[1] * y + axis[2]) / disparity).astype(np.float32)
            place.append((along - np.float32(axis @ corner)) / np.float32(length_m))
            scale = np.float32(1 / (self.focal_px * length_m)) / disparity
            steps.append([(axis[i] - along * np.float32(normal[i] / offset_m)) * scale for i in (0, 1)])
            edge = np.minimum(place[-1], 1 - place[-1]) / (np.abs(steps[-1][0]) + np.abs(steps[-1][1]))
            cover *= np.clip(edge + (0.5 + grow_px), 0, 1)
        # Where it is seen from its edge, a pixel spans much of its plane: only that of the picture counts.
        chosen = np.nonzero((cover > 0.004) & (disparity > 0.8 / far_m) & (disparity < 1.25 / near_m))
        if chosen[0].size == 0:
            return
        u, v = (part[chosen] for part in place)
        (u_x, u_y), (v_x, v_y) = ((part[chosen] for part in pair) for pair in steps)
        tall, wide = texture.shape
        if repeats:
            u, u_x, u_y = (part * np.float32(repeats) for part in (u, u_x, u_y))
        footprint = np.maximum(np.hypot(u_x * wide, v_x * tall) / 3, np.hypot(u_y * wide, v_y * tall))
        seen = sum(
            texture.read(u + k * u_x, 1 - v - k * v_x, footprint, repeats > 0) for k in np.float32((-1 / 3, 0, 1 / 3))
        )
        seen *= (cover[chosen] / np.float32(3 * 255))[:, None]
        rows, columns = chosen[0] + y0, chosen[1] + x0
        alpha, below = seen[:, 3], surface.alpha[rows, columns]
        total = alpha + below * (1 - alpha)
        old = surface.rgb[rows, columns] * (below * (1 - alpha))[:, None]
        surface.rgb[rows, columns] = (seen[:, :3] * np.asarray(gain, np.float32) + old) / np.maximum(total, 1e-4)[
            :, None
        ]
        surface.alpha[rows, columns] = total
        nearer = alpha > 0.05
        depth_dpt = np.clip(disparity[chosen][nearer], 1 / far_m, 1 / near_m)  # of a pixel partly beside it, its edge
        surface.disparity_dpt[rows[nearer], columns[nearer]] = depth_dpt

    def row_on(self, plane: Plane, depth_m: float, column: float) -> float:
        """Find the row at which a plane has a depth, in one column (fractional pixels)."""
        x, y, z = plane.normal
        ray_x = (column - self.width / 2) / self.focal_px
        return float((plane.offset_m / depth_m - z - x * ray_x) / y * self.focal_px + self.height / 2)

    # --- things -------------------------------------------------------------------------------------------------

    def sprite(self, families: Sequence[str], matte_share: float, allowed_open: Sequence[str],
               depth_m: float | None = None) -> Sprite:  # fmt: skip
        """Draw a sprite whose open sides are among the allowed ones; one to be seen at a known depth costs less."""
        height_px = None if depth_m is None else 2 * self.focal_px / depth_m
        if self.materials.mattes and self.happens(matte_share):
            sprite = self.materials.matte(self.rng, allowed_open, height_px)
            if sprite is not None:
                return sprite
        return self.materials.drawn(self.rng, families)

    def place(
        self,
        sprite: Sprite,
        centre_px: float,
        base_px: float,
        height_px: float,
        depth_m: float,
        is_subject: bool = False,
        touches: bool = False,
    ) -> None:
        """Put a sprite, its foot at ``(base_px, centre_px)``, into the frame: flat, at one depth.

        Its depth counts as known where it ``touches`` a plane, or is drawn at a size that such things have.
        """
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
        disparity = np.full(self.size_px, 1 / np.clip(depth_m, MIN_DEPTH_M, SKY_M), dtype=np.float32)
        rgb, alpha = np.zeros((*self.size_px, 3), dtype=np.float32), np.zeros(self.size_px, dtype=np.float32)
        if x1 - x0 >= 1 and y1 - y0 >= 1:
            box = [(x0 - left) / scale, (y0 - top) / scale, (x1 - left) / scale, (y1 - top) / scale]
            box = np.clip(box, 0, [wide, tall, wide, tall]).tolist()
            if box[2] - box[0] > 1e-3 and box[3] - box[1] > 1e-3:
                picture = Image.fromarray(sprite.rgba)
                cut = picture.resize((x1 - x0, y1 - y0), Image.Resampling.BICUBIC, box=tuple(box), reducing_gap=2.0)
                pixels = np.asarray(cut, dtype=np.float32) / 255
                rgb[y0:y1, x0:x1], alpha[y0:y1, x0:x1] = pixels[..., :3], pixels[..., 3]
        height_m, (low_m, high_m) = height_px * depth_m / self.focal_px, sprite.height_m
        fits = sprite.has_size and low_m / _SIZE_TOLERANCE <= height_m <= high_m * _SIZE_TOLERANCE
        self.things.append(Surface(rgb, alpha, disparity, is_subject, touches or fits))

    def stand(self, plane: Plane, ground: Surface, sprite: Sprite, depth_m: float, centre_px: float, height_m: float,
              is_subject: bool = False) -> None:  # fmt: skip
        """Stand a sprite on a plane and darken the ground at its foot."""
        base, height_px = self.row_on(plane, depth_m, centre_px), self.focal_px * height_m / depth_m
        foot = sprite.rgba[-max(1, sprite.rgba.shape[0] // 16) :, :, 3] > 127
        half_px = 0.5 * height_px * max(int(foot.any(axis=0).sum()), 1) / sprite.rgba.shape[0]
        reach_m = min(self.uniform(0.3, 1.0) * half_px * depth_m / self.focal_px, 0.8)
        flat_px = abs(base - self.row_on(plane, depth_m + reach_m, centre_px))
        self.shade_contact(ground, centre_px, base, half_px, min(flat_px, 0.4 * half_px))
        self.place(sprite, centre_px, base, height_px, depth_m, is_subject, touches=True)

    def shade_contact(self, ground: Surface, column: float, row: float, half_width_px: float, flat_px: float) -> None:
        """Darken a surface around one point, as a thing on it does."""
        wide, flat = max(1.1 * half_width_px, 1.0), max(flat_px, 0.7)
        strength = self.uniform(0.35, 0.75)
        y0, y1 = (int(np.clip(row + side * 2.5 * flat, 0, self.height)) for side in (-1, 1))
        x0, x1 = (int(np.clip(column + side * 2.5 * wide, 0, self.width)) for side in (-1, 1))
        y, x = np.arange(y0, y1, dtype=np.float32)[:, None] - row, np.arange(x0, x1, dtype=np.float32)[None] - column
        shadow = np.exp(-((x / wide) ** 2)) * np.exp(-((y / flat) ** 2))
        ground.rgb[y0:y1, x0:x1] *= (1 - strength * shadow)[..., None]

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
            hanging = Sprite(
                np.ascontiguousarray(sprite.rgba[::-1]), sprite.open_sides, sprite.height_m, sprite.family
            )
            self.place(hanging, self.uniform(0, 1) * self.width, 0.55 * tall, tall, depth)
        else:
            column = self.width * (side == 3) + self.uniform(-0.1, 0.1) * self.width
            self.place(sprite, column, self.uniform(0.4, 1.3) * self.height, tall, depth)

    def ordered(self) -> list[Surface]:
        """All surfaces from far to near; neighbours that a lens cannot tell apart, far away, are made one."""
        merged: list[Surface] = []
        for surface in self.backdrop + sorted(self.things, key=lambda thing: thing.disparity_dpt[0, 0]):
            below = merged[-1] if merged else None
            if below is None or not (_is_far(below) and _is_far(surface) and below.is_known == surface.is_known):
                merged.append(surface)
                continue
            box = extent(surface.alpha)
            alpha, under = surface.alpha[box], below.alpha[box] * (1 - surface.alpha[box])
            total = alpha + under
            mixed = surface.rgb[box] * alpha[..., None] + below.rgb[box] * under[..., None]
            below.rgb[box] = mixed / np.maximum(total, 1e-4)[..., None]
            below.alpha[box] = total
            below.disparity_dpt[box] = np.where(alpha >= 0.5, surface.disparity_dpt[box], below.disparity_dpt[box])
        return merged

    # --- backgrounds --------------------------------------------------------------------------------------------

    def fit(self, sprite: Sprite, height_px: float, nearest_m: float, farthest_m: float) -> tuple[float, float]:
        """Find a depth at which a sprite is about so high in the picture and has a size that such things have.

        Returns:
            Depth in metres, from ``nearest_m`` to ``farthest_m``, and the height in pixels that goes with it.
        """
        low_m, high_m = sprite.height_m
        nearest_high_m, farthest_high_m = (depth * height_px / self.focal_px for depth in (nearest_m, farthest_m))
        height_m = float(np.clip(self.uniform(low_m, high_m), max(low_m, min(nearest_high_m, high_m)),
                                 max(low_m, min(farthest_high_m, high_m))))  # fmt: skip
        depth_m = float(np.clip(self.focal_px * height_m / height_px, nearest_m, farthest_m))
        return depth_m, self.focal_px * height_m / depth_m

    def add_picture(self, disparity_dpt: np.ndarray) -> Surface:
        """Add a picture as backdrop: nobody can tell from it how far it is."""
        return self.add_backdrop(disparity_dpt, self.picture(), is_known=False)

    def window(self, photo: np.ndarray, smallest: float) -> tuple[float, float, float, float]:
        """Draw a part of a photo in the frame's shape: a box in its pixels, from ``smallest`` of the most to all."""
        rows, columns = photo.shape[:2]
        scale = self.uniform(smallest, 1.0) * min(rows / self.height, columns / self.width)
        tall, wide = self.height * scale, self.width * scale
        left, top = self.uniform(0, columns - wide), self.uniform(0, rows - tall)
        return left, top, left + wide, top + tall

    def picture(self) -> np.ndarray:
        """Fill the frame with most of one photograph, or with a drawn one: float32 ``(H, W, 3)``."""
        if self.materials.backdrops and self.happens(0.85):
            photo = self.materials.backdrop(self.rng)
            box, picture = self.window(photo, 0.6), Image.fromarray(photo)
            if self.happens(0.5):
                picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            resized = picture.resize((self.width, self.height), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
            return np.asarray(resized, dtype=np.float32) / 255
        tile = Image.fromarray(self.materials.tile(self.rng)).resize(
            (self.width, self.height), Image.Resampling.BICUBIC
        )
        light = np.linspace(self.uniform(0.6, 1.1), self.uniform(0.6, 1.1), self.height, dtype=np.float32)
        return np.asarray(tile, dtype=np.float32) / 255 * light[:, None, None]

    def slope(self, depth_m: float, strength: float) -> np.ndarray:
        """Disparity around 1 / depth that rises in a random direction, by ``strength`` of itself to either side."""
        angle = self.uniform(0, 2 * np.pi)
        x, y = np.linspace(-1, 1, self.width)[None], np.linspace(-1, 1, self.height)[:, None]
        ramp = (np.cos(angle) * x + np.sin(angle) * y) / (abs(np.cos(angle)) + abs(np.sin(angle)))
        return np.clip((1 + strength * ramp) / depth_m, 1 / SKY_M, 1 / MIN_DEPTH_M).astype(np.float32)

    def add_backdrop(self, disparity_dpt: np.ndarray, rgb: np.ndarray, is_known: bool = True) -> Surface:
        """Add an opaque surface that fills the frame: disparity ``(H, W)`` in 1/m, display values ``(H, W, 3)``."""
        surface = Surface(rgb, np.ones(self.size_px, dtype=np.float32), disparity_dpt, is_known=is_known)
        self.backdrop.append(surface)
        return surface

    def add_plane(self, plane: Plane, farthest_m: float) -> Surface:
        """Add a ground or a table up to a depth, infinity for the horizon, its far edge antialiased."""
        disparity = self.disparity(plane)
        edge = 1 / farthest_m
        slope = np.hypot(*plane.normal[:2]) / plane.offset_m / self.focal_px
        alpha = np.clip((disparity - edge) / max(slope, 1e-6) + 0.5, 0, 1).astype(np.float32)
        rgb = np.zeros((*self.size_px, 3), dtype=np.float32)
        self.paint(rgb, plane, alpha > 0)
        clipped = np.clip(disparity, max(0.8 * edge, 1 / SKY_M), 1 / MIN_DEPTH_M)
        surface = Surface(rgb, alpha, clipped)
        self.backdrop.append(surface)
        return surface


def _is_far(surface: Surface) -> bool:
    return not surface.is_subject and float(surface.disparity_dpt.max()) <= _FAR_DPT


def _before_lens(corners: Sequence[np.ndarray]) -> np.ndarray:
    """Cut off what of a polygon is nearer than the metric range: corners ``(n, 3)`` in and out."""
    kept = []
    for first, second in zip(corners, (*corners[1:], corners[0]), strict=True):
        if first[2] >= MIN_DEPTH_M:
            kept.append(first)
        if (first[2] >= MIN_DEPTH_M) != (second[2] >= MIN_DEPTH_M):
            share = (MIN_DEPTH_M - first[2]) / (second[2] - first[2])
            kept.append(first + share * (second - first))
    return np.array(kept)
