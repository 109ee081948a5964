"""Procedural scenes with metric depth, cues that let depth be read, and a fixed rule of focus.

The rule: the lens is focused on the **subject**, the main thing near the middle of the frame. It is flat, parallel to
the sensor and exactly in focus all over. Mostly it is the nearest thing; in one scene of five something blurred is put
in front of it. The place in the frame tells little: far things are at the top, at the bottom and beside the subject.

Depth shows by contact with the ground and contact shadows, by size (things have a height in metres), by texture that
shrinks with distance (surfaces are textured in world coordinates), by haze, by occlusion. All lengths are metres along
the optical axis (z-depth), between 0.4 m and the sky at 2000 m. numpy, scipy and PIL only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from bokehdepth.errors import InputError
from bokehdepth.rendering.layered import Layer, composite, render_bokeh
from datasets_scripts.scenes.materials import Materials
from datasets_scripts.scenes.stage import MIN_DEPTH_M, SKY_M, Plane, Surface
from datasets_scripts.scenes.streets import Streets

KIND_WEIGHTS = {
    "portrait": 0.3, "ground": 0.17, "street": 0.14, "room": 0.12, "landscape": 0.1, "table": 0.09, "wall": 0.08,
}  # fmt: skip
PHOTOGRAPH_SHARE = 0.3
"""Of scenes, where whole photographs with a subject are given: the kind ``photograph``."""
_SUBJECT_SHARES = (0.025, 0.85)  # of the frame, smallest and largest
_THINGS = ("box", "blob", "bottle", "figure")


@dataclass(frozen=True)
class Scene:
    """One scene, all in focus, and what is needed to render it through a lens.

    Attributes:
        layers: The surfaces, farthest first.
        image: The all-in-focus picture, float32 ``(H, W, 3)`` display values in [0, 1].
        depth_m: z-depth of what is seen, float32 ``(H, W)`` in metres.
        focus_distance_m: S1, the depth of the subject in metres.
        focal_length_px: Focal length in pixels; the principal point is the middle of the frame.
        kind: A key of `KIND_WEIGHTS`, or ``photograph``.
        subject_mask: Where the subject is seen, bool ``(H, W)``.
        depth_known: Where the picture alone can tell the depth, bool ``(H, W)``: not where a photograph, or something
            of no particular size, was put at an invented distance.
    """

    layers: tuple[Layer, ...]
    image: np.ndarray
    depth_m: np.ndarray
    focus_distance_m: float
    focal_length_px: float
    kind: str
    subject_mask: np.ndarray
    depth_known: np.ndarray

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
        backdrops: Photos to be seen whole behind a subject: best views without a large face in them, which would be
            blurred there and teach that faces are. None: all photos.
        portraits: RGBA files of whole photographs with their subject as alpha (`cut_outs` makes them). Three
            scenes in ten are then such a photograph itself, its subject where it was.
        kinds: Weights of the kinds that are made, keys as `generate` takes them. None: `KIND_WEIGHTS`, and
            ``photograph`` in `PHOTOGRAPH_SHARE` of the scenes where portraits are given.
        detail: How many times as finely things and textures are drawn as suits scenes of 256 px; another one gives
            other drawings.

    Raises:
        InputError: If ``size_px`` or ``seed`` is out of range, a path is not a file, or ``kinds`` names something
            else or has a weight that is negative or not finite, or none above 0.
    """

    def __init__(
        self,
        size_px: tuple[int, int],
        photos: Sequence[Path] = (),
        mattes: Sequence[Path] = (),
        seed: int = 0,
        *,
        backdrops: Sequence[Path] = (),
        portraits: Sequence[Path] = (),
        kinds: Mapping[str, float] | None = None,
        detail: int = 1,
    ) -> None:
        if len(size_px) != 2 or not all(isinstance(n, int | np.integer) and 32 <= n <= 2048 for n in size_px):
            raise InputError(f"size_px is {size_px!r}, wanted (H, W), each a whole number from 32 to 2048")
        if not (isinstance(seed, int | np.integer) and seed >= 0):
            raise InputError(f"seed is {seed!r}, wanted a whole number, 0 or more")
        self.size_px, self.seed = (int(size_px[0]), int(size_px[1])), int(seed)
        self._materials = Materials(photos, mattes, max(self.size_px), self.seed, backdrops=backdrops,
                                    portraits=portraits, detail=detail)  # fmt: skip
        self._kinds = self._checked_kinds(kinds)

    def _checked_kinds(self, kinds: Mapping[str, float] | None) -> dict[str, float]:
        """Make shares that sum to 1 of weights; every kind that can be made has one, 0 where it is not wanted."""
        share = PHOTOGRAPH_SHARE if self._materials.portraits else 0.0
        usual = {kind: (1 - share) * weight for kind, weight in KIND_WEIGHTS.items()}
        if self._materials.portraits:
            usual["photograph"] = share
        if kinds is None:
            return usual
        wanted = f"kinds must be weights of some of {sorted(usual)}, at least one above 0"
        if not isinstance(kinds, Mapping) or not set(kinds) <= set(usual):
            raise InputError(f"{wanted}, got {kinds!r}.")
        weights = np.array([kinds.get(kind, 0) for kind in usual], dtype=object)
        numbers = all(isinstance(w, int | float) and not isinstance(w, bool) and 0 <= w < np.inf for w in weights)
        if not numbers or not sum(weights):
            raise InputError(f"{wanted}, got {kinds!r}.")
        return {kind: float(weight / sum(weights)) for kind, weight in zip(usual, weights, strict=True)}

    def generate(self, index: int, kind: str | None = None) -> Scene:
        """Make one scene.

        Args:
            index: Which one, 0 or more.
            kind: A key of `KIND_WEIGHTS`, or ``photograph`` where portraits were given; drawn when absent.

        Returns:
            The scene.

        Raises:
            InputError: If ``index`` or ``kind`` is not valid, or a photo or matte cannot be read.
        """
        if not (isinstance(index, int | np.integer) and index >= 0):
            raise InputError(f"index is {index!r}, wanted a whole number, 0 or more")
        if kind is not None and kind not in self._kinds:
            raise InputError(f"kind is {kind!r}, wanted one of {sorted(self._kinds)}")
        rng = np.random.default_rng([self.seed, 0, int(index)])
        drawn_kind = str(rng.choice(list(self._kinds), p=list(self._kinds.values())))
        while True:  # a subject can end up hidden, outside or filling the frame: few in a hundred, so this ends
            draft = _Draft(self.size_px, self._materials, rng, kind or drawn_kind)
            getattr(draft, f"build_{draft.kind}")()
            scene = draft.finished()
            if _SUBJECT_SHARES[0] <= scene.subject_mask.mean() <= _SUBJECT_SHARES[1]:
                return scene


class _Draft(Streets):
    """A scene in the making: one method for each kind, and the finish."""

    # --- the kinds of scene -------------------------------------------------------------------------------------

    def build_portrait(self) -> None:
        """Build a close-up: the subject fills much of the frame, mostly cut by it; behind it a whole photograph."""
        sprite = self.sprite(4 * ("half_figure",) + ("blob", "bottle"), 0.6, ("left", "right", "bottom"))
        tall = self.uniform(0.55, 1.35) * self.height
        if sprite.family == "matte" and "bottom" not in sprite.open_sides:
            tall = self.uniform(0.7, 2.0) * self.height
        depth, tall = self.fit(sprite, tall, 0.5, 5.0)
        behind = depth * self.spread(2.0, 10.0)
        self.add_picture(self.slope(behind, self.uniform(0, 0.35)))
        for _ in range(int(self.rng.choice(4, p=[0.55, 0.25, 0.12, 0.08]))):
            other_depth = depth * self.uniform(1.3, max(1.4, min(behind / depth, 6) * 0.8))
            other = self.sprite(("half_figure", "figure", "box", "foliage", "blob"), 0.4, ("bottom",))
            size = self.focal_px * self.uniform(*other.height_m) / other_depth
            base = (
                self.height + self.uniform(0, 0.5) * size if other.open_sides else self.uniform(0.3, 1.4) * self.height
            )
            self.place(other, self.uniform(-0.1, 1.1) * self.width, base, size, other_depth)
        if "bottom" in sprite.open_sides or self.happens(0.6):
            base = self.height + self.uniform(0.0, 0.3) * tall
        else:  # floating free, or cut by the top
            base = self.uniform(0.55, 1.1) * self.height
        centre = self.width * float(np.clip(self.rng.normal(0.5, 0.14), 0.2, 0.8))
        self.place(sprite, centre, base, tall, depth, is_subject=True)
        self.add_foreground(depth)

    def build_photograph(self) -> None:
        """Build a real photograph from its subject and, behind it, the rest, which is given a plausible depth."""
        photo = self.materials.portrait(self.rng)
        box = self.window(photo, 0.55)
        bands = [
            Image.fromarray(np.ascontiguousarray(photo[..., i])).resize(
                (self.width, self.height), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0
            )
            for i in range(4)
        ]
        rgba = np.stack([np.asarray(band, dtype=np.float32) / 255 for band in bands], axis=-1)
        rgb, alpha = rgba[..., :3], rgba[..., 3]
        depth = self.spread(0.7, 5.0)
        behind = depth * self.spread(1.6, 8.0)
        disparity = self.slope(behind, self.uniform(0, 0.35))
        filled = np.flatnonzero((alpha > 0.5).any(axis=1))
        foot = int(filled[-1]) if filled.size else self.height - 1
        if foot < 0.97 * self.height or self.happens(0.4):  # it stands on ground that rises to a horizon behind it
            foot = foot if foot < 0.97 * self.height else self.height * self.uniform(1.0, 1.6)
            horizon = foot - self.uniform(0.15, 0.7) * self.height
            ramp = (np.arange(self.height, dtype=np.float32)[:, None] - horizon) / (foot - horizon)
            disparity = np.maximum(disparity, np.minimum(ramp / depth, 1 / MIN_DEPTH_M))
        self.add_backdrop(disparity, _continued(rgb, alpha), is_known=False)
        flat = np.full(self.size_px, 1 / depth, dtype=np.float32)
        self.things.append(Surface(rgb.copy(), alpha.copy(), flat, is_subject=True, is_known=False))
        self.add_foreground(depth)

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
        room = self.add_backdrop(np.clip(stack.max(axis=0), 1 / SKY_M, 1 / MIN_DEPTH_M), rgb)
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

    def add_to_room(self, room: Surface, floor: Plane, subject_m: float) -> None:
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
        edge_m = SKY_M if from_above else self.uniform(0.9, 2.2)
        if not from_above:
            self.add_picture(self.slope(edge_m * self.spread(1.3, 5.0), self.uniform(0, 0.3)))
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
                half = 0.5 * size * thing.rgba.shape[1] / thing.rgba.shape[0]
                self.shade_contact(table, column, row, half, self.uniform(0.15, 0.4) * half)
                self.place(thing, column, row, size, 1 / local, touches=True)
        sprite = self.sprite(("box", "blob", "bottle", "bottle"), 0.35, ())
        half = 0.5 * tall * sprite.rgba.shape[1] / sprite.rgba.shape[0]
        self.shade_contact(table, centre, foot, half, self.uniform(0.15, 0.4) * half)
        self.place(sprite, centre, foot, tall, depth, is_subject=True, touches=True)
        self.add_foreground(depth)

    def build_wall(self) -> None:
        """Build a slanted wall and no floor; things hang before it at all heights, near ones at the top too."""
        far = self.spread(1.2, 9.0)
        lean = self.rng.normal(0, 0.45, 2)
        normal = np.array([lean[0], lean[1], 1.0]) / np.linalg.norm([lean[0], lean[1], 1.0])
        plane = self.plane(normal, far * float(normal[2]))
        plane.offset_m *= max(1.0, 0.8 * float(self.disparity(plane).max()))  # room for things before it
        disparity = np.maximum(self.disparity(plane), 1 / SKY_M)
        if self.happens(0.5):
            self.add_picture(disparity)
        else:
            rgb = np.zeros((*self.size_px, 3), dtype=np.float32)
            self.paint(rgb, plane, np.ones(self.size_px, dtype=bool))
            self.add_backdrop(disparity, rgb)
        nearest_m = 0.8 / float(disparity.max())
        sprite = self.sprite(("blob", "box", "bottle", "half_figure", "foliage"), 0.5, ("left", "right", "bottom"))
        tall = self.height * self.uniform(0.35, 0.9)
        depth, tall = self.fit(sprite, tall, max(0.3 * nearest_m, 0.45), min(nearest_m, 6.0))
        near_is_up = self.happens(0.6)
        for _ in range(int(self.rng.integers(1, 6))):
            nearness = self.uniform(0, 1)  # 0: at the wall, 1: as near as the subject
            other_depth = 1 / (nearness / depth * 0.9 + (1 - nearness) * disparity.max())
            other = self.materials.drawn(self.rng, ("blob", "box", "bottle", "foliage", "bar"))
            size = self.height * self.uniform(0.15, 0.5) * min(2.0, 0.6 + depth / other_depth)
            other_depth, size = self.fit(other, size, 0.8 * other_depth, other_depth)
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

    # --- finish -------------------------------------------------------------------------------------------------

    def finished(self) -> Scene:
        """Order the surfaces, give all the same tone, noise and sharpness, and close the scene."""
        gain = (self.uniform(0.85, 1.12) * self.rng.uniform(0.95, 1.05, 3)).astype(np.float32)
        gamma = np.float32(self.uniform(0.85, 1.2))
        shape = (*self.size_px, 3)
        noise = self.rng.random(shape, dtype=np.float32) + self.rng.random(shape, dtype=np.float32) - 1
        noise *= np.float32(self.uniform(0, 0.03))  # a standard deviation of up to 0.012
        softness_px = self.uniform(0.2, 0.5) if self.happens(0.4) else 0.0
        layers, focus_m = [], 0.0
        subject_mask, known = np.zeros(self.size_px, dtype=bool), np.ones(self.size_px, dtype=bool)
        for surface in self.ordered():
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
            known[seen] = surface.is_known
            subject_mask = seen if surface.is_subject else subject_mask & ~seen
            if surface.is_subject:
                focus_m = float(1 / np.float64(surface.disparity_dpt[0, 0]))
        image, disparity = composite(layers)
        return Scene(tuple(layers), image, 1 / disparity, focus_m, self.focal_px, self.kind, subject_mask, known)


def _continued(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Continue what is around a cut-out smoothly behind it: float32 ``(H, W, 3)``, from that and alpha ``(H, W)``."""
    known = (ndimage.grey_dilation(alpha, size=5) < 0.02).astype(np.float32)
    result, missing = rgb * known[..., None], known < 0.5
    sigma_px = 2.0
    while missing.any() and sigma_px < 4 * max(alpha.shape):
        weight = ndimage.gaussian_filter(known, sigma_px, truncate=3)
        mean = ndimage.gaussian_filter(rgb * known[..., None], (sigma_px, sigma_px, 0), truncate=3)
        reached = missing & (weight > 1e-2)
        result[reached] = mean[reached] / weight[reached][:, None]
        missing &= ~reached
        sigma_px *= 2
    result[missing] = rgb.mean((0, 1))
    return result.astype(np.float32)


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
