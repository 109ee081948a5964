"""Under the sky: ground that reaches to the horizon, hills, trees, houses, haze, and a camera held as people hold it.

The kinds ``ground`` and ``landscape``. Distances go from less than a metre to `SKY_M`; what stands on the ground is as
large as such things are, and the camera is mostly at the height of eyes, so that a foot's row tells the distance.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from bokehdepth.rendering.layered import extent
from datasets_scripts.scenes.drawing import power_law_noise, random_colour
from datasets_scripts.scenes.materials import Sprite
from datasets_scripts.scenes.stage import MIN_DEPTH_M, SKY_M, Plane, Stage, Surface

_NEAR_THINGS = ("figure", "figure", "tree", "box", "blob", "bar", "foliage")
_FAR_THINGS = ("tree", "tree", "tree", "house", "house", "block", "figure", "bar")
_PITCHES = np.deg2rad((-20.0, 42.0))  # up and down, of a camera that shows the ground
_GROUNDS = ((0.35, 0.42, 0.2), (0.5, 0.45, 0.33), (0.45, 0.45, 0.44), (0.6, 0.52, 0.36), (0.3, 0.33, 0.22),
            (0.75, 0.75, 0.77))  # fmt: skip  # lawn, earth, stone, sand, scrub, snow
_HILLS = ((0.2, 0.28, 0.15), (0.35, 0.35, 0.22), (0.4, 0.38, 0.36), (0.28, 0.33, 0.36))
_SKIES = (  # top, horizon
    ((0.25, 0.45, 0.8), (0.75, 0.85, 0.95)),
    ((0.4, 0.6, 0.9), (0.85, 0.9, 0.95)),
    ((0.7, 0.73, 0.78), (0.88, 0.89, 0.9)),
    ((0.5, 0.53, 0.58), (0.7, 0.72, 0.74)),
    ((0.35, 0.4, 0.6), (0.95, 0.75, 0.55)),
)


class Outdoors(Stage):
    """A stage with a sky."""

    air: np.ndarray | None = None  # the sky's colour at the horizon

    # --- the camera ---------------------------------------------------------------------------------------------

    def camera_height(self) -> float:
        """Draw how high above the ground the camera is: mostly hand-held, some low, some high."""
        chance = self.rng.random()
        if chance < 0.7:
            return self.uniform(1.2, 1.8)
        return self.spread(0.35, 1.2) if chance < 0.85 else self.spread(1.8, 8.0)

    def pitch_to(self, row_px: float, below_m: float, depth_m: float) -> float:
        """Compute the pitch at which a point ``below_m`` under the camera, at a depth, is seen in a row."""
        ray = (row_px - self.height / 2) / self.focal_px
        sine = below_m / (depth_m * np.hypot(1, ray))
        return float(np.clip(np.arcsin(np.clip(sine, -1, 1)) - np.arctan(ray), *_PITCHES))

    def ground_below(self, pitch: float, camera_m: float, span_m: float | None = None) -> Plane:
        """Point the camera and make the ground, raised so that nothing of it is nearer than the metric range."""
        self.turn(self.uniform(-0.5, 0.5), pitch, self.rng.normal(0, 0.02))
        plane = self.plane((0, 1, 0), camera_m, span_m or self.spread(1.0, 4.0))
        plane.offset_m *= max(1.0, 1.02 * MIN_DEPTH_M * float(self.disparity(plane).max()))
        if self.happens(0.6):
            plane.tile = self.tinted(plane.tile, _GROUNDS)
        return plane

    def tinted(self, tile: np.ndarray, colours: Sequence[Sequence[float]], contrast: float = 1.0) -> np.ndarray:
        """Give a texture about one of some colours, and less contrast: uint8 in and out."""
        colour = np.array(colours[self.rng.integers(len(colours))], dtype=np.float32) * self.uniform(0.7, 1.15)
        mean = tile.reshape(-1, 3).mean(axis=0)
        keep, grey = self.uniform(0.0, 0.4), max(float(mean.mean()), 30.0)
        # Grey times the colour, and some of what the tile is itself: one matrix, about the mean.
        matrix = (1 - keep) * np.outer(np.full(3, 1 / 3), colour * 255 / grey) + keep * np.eye(3)
        middle = mean @ matrix * (1 - contrast)
        rows = np.column_stack([contrast * matrix.T, middle])
        return np.asarray(Image.fromarray(tile).convert("RGB", tuple(rows.ravel().tolist())))

    def horizon_row(self) -> float:
        """Row of the horizon in the middle of the frame."""
        down = self.world[:, 1]
        return float(self.height / 2 - down[2] / down[1] * self.focal_px)

    # --- far away -----------------------------------------------------------------------------------------------

    def add_sky(self, camera_m: float) -> None:
        """Sky, and mostly hills before it at 100 m to almost 2 km, their foot at the horizon.

        Args:
            camera_m: How high above the ground the camera is.
        """
        horizon = self.horizon_row()
        top, low = (np.array(colour) for colour in _SKIES[self.rng.integers(len(_SKIES))])
        gain = self.uniform(0.75, 1.08) * self.rng.uniform(0.95, 1.05, 3)
        top, low = top * gain, low * gain
        self.air = np.clip(low, 0, 1)
        up = np.maximum(horizon - np.arange(self.height, dtype=np.float32), 0)[:, None, None] / self.focal_px
        fade = np.exp(-up / self.uniform(0.1, 0.5))
        noise = power_law_noise(self.rng, self.size_px, self.uniform(1.1, 1.8))
        sky = (top + (low - top) * fade).astype(np.float32)
        cover = np.clip(self.uniform(0.1, 0.9) * (noise + self.uniform(-1.5, 0.8)), 0, 1)[..., None]
        cloud = np.float32(self.uniform(0.75, 1.0)) * (1 - 0.15 * np.roll(noise, 3, axis=0)[..., None])
        sky = np.broadcast_to(sky, (*self.size_px, 3)) * (1 - cover) + np.clip(cloud, 0.3, 1.05) * cover
        self.add_backdrop(np.full(self.size_px, 1 / SKY_M, dtype=np.float32), sky.astype(np.float32))
        if horizon < 0.03 * self.height:
            return
        grain = 1 + 0.16 * np.clip(np.roll(noise, self.width // 2, axis=1), -2.5, 2.5)[..., None]
        count = int(self.rng.choice(4, p=[0.25, 0.35, 0.25, 0.15]))
        highest = min(0.3, 0.7 * horizon / self.focal_px)
        nearest_m = float(np.clip(camera_m * self.focal_px / 3, 100, 1500))  # the foot is within three pixels of it
        for distance_m in sorted((self.spread(nearest_m, 0.95 * SKY_M) for _ in range(count)), reverse=True):
            crest = horizon - self.focal_px * self.uniform(0.1, 1.0) * highest * self.ridge(self.uniform(0.2, 0.6))
            alpha = np.clip(np.arange(self.height, dtype=np.float32)[:, None] - crest[None] + 0.5, 0, 1)
            colour = np.array(_HILLS[self.rng.integers(len(_HILLS))], dtype=np.float32) * self.uniform(0.6, 1.3)
            disparity = np.full(self.size_px, 1 / distance_m, dtype=np.float32)
            self.backdrop.append(Surface((colour * grain).astype(np.float32), alpha, disparity))

    def ridge(self, roughness: float) -> np.ndarray:
        """Draw the height of a skyline in each column: float32 ``(W,)`` around 1, above 0."""
        noise = power_law_noise(self.rng, (2, 3 * self.width), 1.4)[0, : self.width]
        return np.maximum(1 + roughness * noise, 0.05).astype(np.float32)

    def add_wood(self, plane: Plane, depth_m: float) -> None:
        """Add a line of trees across the view: crowns 4 to 20 m high whose foot is on the ground."""
        foot = [self.row_on(plane, depth_m, column) for column in (0, self.width)]
        foot = np.linspace(*foot, self.width, dtype=np.float32)
        grain = power_law_noise(self.rng, self.size_px, 0.9)
        tall_px = self.focal_px / depth_m * self.spread(4.0, 16.0)
        crest = foot - tall_px * self.ridge(0.12) * (1 + 0.05 * grain[0])
        rows = np.arange(self.height, dtype=np.float32)[:, None]
        alpha = np.clip(rows - crest + 0.5, 0, 1) * np.clip(foot - rows + 0.5, 0, 1)
        shade = np.clip(0.55 + 0.45 * (foot - rows) / tall_px, 0.4, 1.2)
        colour = np.array((self.uniform(0.15, 0.45), self.uniform(0.25, 0.5), self.uniform(0.05, 0.25)))
        rgb = (colour * (shade * (1 + 0.28 * np.clip(grain, -2, 2)))[..., None]).astype(np.float32)
        disparity = np.full(self.size_px, 1 / depth_m, dtype=np.float32)
        self.things.append(Surface(rgb, alpha.astype(np.float32), disparity))

    def add_haze(self) -> None:
        """In three scenes of five: air light that takes over with depth, over hundreds of metres; in a few, fog."""
        chance = self.rng.random()
        if chance > 0.6:
            return
        is_fog = chance < 0.06
        length_m = self.spread(12, 90) if is_fog else self.spread(200, 8000)
        air = self.air if self.air is not None else 0.5 * random_colour(self.rng) + 0.4
        air = np.asarray(air * self.uniform(0.9, 1.02), dtype=np.float32)
        for surface in self.backdrop + self.things:
            nearest, farthest = float(surface.disparity_dpt.max()), float(surface.disparity_dpt.min())
            if farthest == nearest <= 1 / SKY_M and not is_fog:
                continue  # the sky has the colour of the air already
            box = extent(surface.alpha)
            if farthest == nearest:
                clear = np.float32(np.exp(-1 / (nearest * length_m)))
            else:
                clear = np.exp(-1 / (surface.disparity_dpt[box] * np.float32(length_m)))[..., None]
            surface.rgb[box] = surface.rgb[box] * clear + air * (1 - clear)

    # --- the kinds of scene -------------------------------------------------------------------------------------

    def build_ground(self) -> None:
        """Build ground with a photograph, or sky and hills, behind it; things stand on it."""
        sprite = self.sprite(("figure", "figure", "half_figure", "tree", "box", "blob", "bottle"), 0.55, ("bottom",))
        is_cut = "bottom" in sprite.open_sides
        tall = self.uniform(0.55, 1.2) * self.height if is_cut else self.uniform(0.3, 1.05) * self.height
        depth, tall = self.fit(sprite, tall, 0.7, 40.0)
        height_m = tall * depth / self.focal_px
        if is_cut:  # it goes on below the frame: its head is where heads are
            head_m = self.uniform(1.1, 1.85)
            camera = max(head_m + self.uniform(-0.5, 0.35), 0.5)
            foot = self.height + self.uniform(0, 0.3) * tall
            pitch = self.pitch_to(foot, camera - head_m + height_m, depth)
        else:
            camera = self.camera_height() if height_m > 0.6 else self.spread(0.35, 1.5)
            camera = min(camera, 0.85 * depth + 0.4)  # near things on the ground are not looked at from above alone
            foot = self.uniform(0.62, 1.03) * self.height
            pitch = self.pitch_to(foot, camera, depth)
        plane = self.ground_below(pitch, camera)
        if self.happens(0.4):
            far = depth * self.spread(1.8, 7.0)
            self.add_picture(self.slope(far, 0.1))
        else:
            far = np.inf
            self.add_sky(plane.offset_m)
        ground = self.add_plane(plane, far)
        self.crowd(plane, ground, depth, far)
        centre = self.width * float(np.clip(self.rng.normal(0.5, 0.13), 0.22, 0.78))
        if is_cut:
            self.place(sprite, centre, foot, tall, depth, is_subject=True)
        else:
            self.stand(plane, ground, sprite, depth, centre, height_m, is_subject=True)
        self.add_foreground(depth)
        self.add_haze()

    def build_landscape(self) -> None:
        """Build a wide view whose subject is far: the near ground, at the bottom, is what blurs."""
        horizon = self.uniform(0.2, 0.65) * self.height
        camera = self.camera_height() if self.happens(0.8) else self.spread(3.0, 30.0)
        pitch = float(np.arctan((self.height / 2 - horizon) / self.focal_px))
        plane = self.ground_below(pitch, camera, self.spread(1.0, 6.0))
        self.add_sky(plane.offset_m)
        ground = self.add_plane(plane, np.inf)
        sprite = self.sprite(("tree", "tree", "house", "block", "box", "figure"), 0.2, ())
        depth, tall = self.fit(sprite, self.uniform(0.2, 0.8) * self.height, 3.0, 150.0)
        centre = self.width * float(np.clip(self.rng.normal(0.5, 0.15), 0.2, 0.8))
        if self.happens(0.4):
            self.add_wood(plane, max(depth * self.spread(1.5, 6.0), 40.0))
        self.crowd(plane, ground, depth, np.inf)
        for _ in range(int(self.rng.integers(4))):
            near_m, column = self.spread(1.5, depth), self.uniform(0, 1) * self.width
            if abs(column - centre) > 0.25 * self.width:
                thing = self.materials.drawn(self.rng, _NEAR_THINGS)
                self.stand(plane, ground, thing, near_m, column, self.uniform(*thing.height_m))
        self.stand(plane, ground, sprite, depth, centre, tall * depth / self.focal_px, is_subject=True)
        self.add_foreground(min(depth, 5.0))
        self.add_haze()

    def crowd(self, plane: Plane, ground: Surface, depth_m: float, far_m: float) -> None:
        """Stand some further things on the ground: mostly behind the subject, a few nearer and beside it."""
        for _ in range(int(self.rng.integers(6))):
            centre = self.uniform(-0.1, 1.1) * self.width
            other_depth = min(depth_m * self.spread(1.3, 40.0), self.spread(100, 400))
            if self.happens(0.15):
                other_depth = depth_m * self.uniform(0.55, 0.85)
                centre = self.width * (self.uniform(-0.15, 0.12) if self.happens(0.5) else self.uniform(0.88, 1.15))
            if not MIN_DEPTH_M < other_depth < 0.95 * far_m:
                continue
            other = self.thing_at(other_depth)
            if not other.open_sides:
                self.stand(plane, ground, other, other_depth, centre, self.uniform(*other.height_m))

    def thing_at(self, depth_m: float) -> Sprite:
        """Draw something to stand outdoors: small and near, or large and far."""
        if depth_m > 15:
            return self.materials.drawn(self.rng, _FAR_THINGS)
        return self.sprite(_NEAR_THINGS, 0.3, (), depth_m)
