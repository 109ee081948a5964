"""Streets: a road with its marks, rows of houses whose windows tell the distance, vehicles, people, trees and poles.

World coordinates: x to the right, z along the street, both in metres from the camera. Everything has one true size, so
road, windows, cars and people agree on how far things are.
"""

from dataclasses import dataclass

import numpy as np

from bokehdepth.rendering.layered import extent
from datasets_scripts.scenes.materials import Sprite
from datasets_scripts.scenes.outdoors import Outdoors
from datasets_scripts.scenes.stage import MIN_DEPTH_M, SKY_M, Plane, Surface
from datasets_scripts.scenes.textures import Texture
from datasets_scripts.scenes.townscape import CAR_M, STOREY_M, vehicle_views

_NEAREST_M = 1.4  # of a house's wall or a thing beside the camera
_HOUSE_DEPTH_M = 10.0
_EACH_HOUSE_M = 70.0  # beyond, the row of houses is one without gaps
_ROOF = np.deg2rad(38)
_PAVED = ((0.42, 0.42, 0.43), (0.5, 0.48, 0.44), (0.36, 0.34, 0.33), (0.55, 0.5, 0.46))
_VERGES = ((0.3, 0.38, 0.18), (0.45, 0.42, 0.3), (0.4, 0.4, 0.4))


@dataclass
class Road:
    """A street's cross-section in metres: the road's middle, half its width, the width of each pavement, its houses.

    ``ends_m`` is where its rows of houses end; ``sides`` are those (-1: left, 1: right) that have one.
    """

    middle_m: float
    half_m: float
    pavement_m: float
    sides: tuple[int, ...]
    ends_m: float

    def wall(self, side: int) -> float:
        """X of the line of houses on a side."""
        return self.middle_m + side * (self.half_m + self.pavement_m)


class Streets(Outdoors):
    """A stage with a street."""

    def build_street(self) -> None:
        """Build a street as a driver or somebody on foot sees it; a vehicle, person, sign or house is in focus."""
        is_driver = self.happens(0.5)
        road = Road(0.0, self.uniform(2.5, 6.5), self.uniform(1.2, 4.5) if self.happens(0.85) else 0.3,
                    ((-1, 1), (-1,), (1,), ())[self.rng.choice(4, p=[0.58, 0.16, 0.16, 0.1])],
                    self.spread(35, 180))  # fmt: skip
        if is_driver:
            camera, yaw = self.uniform(1.3, 2.0), self.rng.normal(0, 0.08)
            road.middle_m = (1 if self.happens(0.5) else -1) * road.half_m * self.uniform(0.3, 0.6)
            horizon = self.uniform(0.35, 0.6)
        else:
            camera, yaw = self.uniform(1.3, 1.8), self.rng.normal(0, 0.35)
            reach = road.half_m + road.pavement_m - 1.5
            road.middle_m = self.uniform(-reach, reach) if self.happens(0.4) else reach * self.rng.choice((-1, 1))
            if self.happens(0.25):  # across the street, from its other side
                side = 1 if self.happens(0.5) else -1
                yaw, road.middle_m = -side * self.uniform(0.8, 1.4), side * reach
            horizon = self.uniform(0.3, 0.7)
        for side in (-1, 1):  # nobody stands in a wall
            shift = max(_NEAREST_M - side * road.wall(side), 0)
            road.middle_m += side * shift
        self.turn(yaw, float(np.arctan((0.5 - horizon) * self.height / self.focal_px)), self.rng.normal(0, 0.015))
        plane = self.plane((0, 1, 0), camera, self.spread(1.5, 4.0))
        plane.offset_m *= max(1.0, 1.02 * MIN_DEPTH_M * float(self.disparity(plane).max()))
        self.camera_m = plane.offset_m
        self.add_sky(self.camera_m)
        ground = self.add_road(plane, road)
        self.add_beyond(plane, ground, road)
        self.add_rows(road)
        self.add_subject(plane, ground, road)
        self.add_traffic(plane, ground, road)
        self.add_furniture(plane, ground, road)
        self.add_haze()

    # --- places -------------------------------------------------------------------------------------------------

    def at(self, x_m: float, up_m: float, z_m: float) -> np.ndarray:
        """Find a place, ``up_m`` above the ground, in camera coordinates: ``(3,)``."""
        return self.world @ np.array([x_m, self.camera_m - up_m, z_m])

    def stand_at(self, plane: Plane, ground: Surface, sprite: Sprite, x_m: float, z_m: float,
                 height_m: float | None = None) -> None:  # fmt: skip
        """Stand something on the ground of the street, unless it would hide the subject or be at the lens."""
        place = self.at(x_m, 0.0, z_m)
        if place[2] < 1.5:
            return
        column = self.focal_px * place[0] / place[2] + self.width / 2
        height_m = height_m or self.uniform(*sprite.height_m)
        half_px = 0.5 * self.focal_px * height_m / place[2] * sprite.rgba.shape[1] / sprite.rgba.shape[0]
        if not -half_px < column < self.width + half_px or self.hides(column - half_px, column + half_px, place[2]):
            return
        self.stand(plane, ground, sprite, float(place[2]), float(column), height_m)

    def hides(self, left_px: float, right_px: float, depth_m: float) -> bool:
        """Whether something from one column to another would hide much of the subject."""
        first, last, subject_m = self.subject_extent
        overlap = min(right_px, last) - max(left_px, first)
        return depth_m < 1.02 * subject_m and overlap > 0.2 * (last - first)

    # --- the ground ---------------------------------------------------------------------------------------------

    def add_road(self, plane: Plane, road: Road) -> Surface:
        """Add the ground to the horizon: road, marks, kerbs, pavements, and what is beside them."""
        if self.happens(0.95):
            plane.tile = self.tinted(plane.tile, _PAVED, self.uniform(0.1, 0.6))
        ground = self.add_plane(plane, np.inf)
        top = int(np.flatnonzero(ground.alpha.any(axis=1))[0]) if ground.alpha.any() else self.height - 1
        pixels, depth = ground.rgb[top:], 1 / np.maximum(ground.disparity_dpt[top:], np.float32(1 / SKY_M))
        ray_x, ray_y = self.ray_x, self.ray_y[top:]
        places, widths = [], []  # of each pixel, across and along the street
        for axis in self.world[:, [0, 2]].T.astype(np.float32):
            place = depth * (axis[0] * ray_x + axis[1] * ray_y + axis[2])
            slopes = [axis[i] - place * np.float32(plane.normal[i] / plane.offset_m) for i in (0, 1)]
            places.append(place)
            widths.append((np.abs(slopes[0]) + np.abs(slopes[1])) * depth / np.float32(self.focal_px))
        (x, z), (wide_x, wide_z) = places, widths
        x = x - np.float32(road.middle_m)
        off = np.zeros(self.size_px, dtype=bool)
        off[top:] = np.abs(x) > road.half_m
        beside = self.plane((0, 1, 0), plane.offset_m, self.spread(0.8, 2.5))
        beside.tile = self.tinted(beside.tile, _PAVED if road.pavement_m > 1 else _VERGES)
        self.paint(ground.rgb, beside, off)

        def lay(colour: np.ndarray | float, cover: np.ndarray) -> None:
            box = extent(cover)
            pixels[box] += (np.asarray(colour, dtype=np.float32) - pixels[box]) * cover[box][..., None]

        if len(road.sides) < 2:  # meadow beyond the pavement
            verge = np.array(_VERGES[self.rng.integers(3)], dtype=np.float32) * self.uniform(0.7, 1.2)
            beyond = np.abs(x) - (road.half_m + road.pavement_m)
            for side in {-1, 1} - set(road.sides):
                lay(verge, 0.6 * np.clip(beyond / wide_x + 0.5, 0, 1) * (np.sign(x) == side))
        kerb = self.uniform(0.35, 0.75)
        for side in (-1, 1):
            lay(kerb, 0.9 * _band(x, wide_x, side * road.half_m - 0.08, side * road.half_m + 0.08))
        white = np.full(3, self.uniform(0.6, 0.95)) if self.happens(0.9) else np.array([0.85, 0.7, 0.2])
        wear = self.uniform(0.5, 1.0)
        if self.happens(0.75) and road.half_m > 2.8:
            dash, gap = ((3.0, 3.0), (3.0, 6.0), (4.0, 8.0), (1.0, 0.0))[self.rng.integers(4)]
            middle = _band(x, wide_x, -0.07, 0.07)
            lay(white, wear * middle * _dashes(z, wide_z, dash, dash + gap))
        if self.happens(0.4):
            for side in (-1, 1):
                edge = side * (road.half_m - self.uniform(0.3, 0.5))
                lay(white, wear * _band(x, wide_x, edge - 0.06, edge + 0.06))
        if self.happens(0.3):  # a zebra crossing, stripes of half a metre
            start = self.spread(4.0, 40.0)
            stripes = _dashes(x + 0.25, wide_x, 0.5, 1.0) * (np.abs(x) < road.half_m - 0.3)
            lay(white, wear * stripes * _band(z, wide_z, start, start + 3.5))
        if self.happens(0.35):  # one side of the street is in the shade
            edge, side = self.uniform(-0.8, 0.8) * road.half_m, self.rng.choice((-1, 1))
            shade = self.uniform(0.3, 0.55) * np.clip(side * (x - edge) / (wide_x + 0.1) + 0.5, 0, 1)
            pixels *= (1 - shade)[..., None].astype(np.float32)
        return ground

    # --- houses -------------------------------------------------------------------------------------------------

    def add_rows(self, road: Road) -> None:
        """Add the houses along the street: fronts, roofs, and the end walls that are seen through gaps."""
        self.rows: list[Surface] = []
        storeys = int(self.rng.choice((1, 2, 3, 4, 5), p=(0.1, 0.3, 0.3, 0.2, 0.1)))
        gap_share, has_roofs = self.uniform(0.0, 0.6), storeys <= 3 and self.happens(0.75)
        fronts = []
        for _ in range(4):
            floors = storeys if has_roofs else int(np.clip(storeys + self.rng.integers(-1, 2), 1, 6))
            texture = self.materials.textures(self.rng, f"front{floors}")["front"]
            tall = floors * STOREY_M
            fronts.append((texture, (tall * texture.shape[1] / texture.shape[0], tall)))
        roof = Texture(self.tinted(self.materials.tile(self.rng), ((0.5, 0.25, 0.18), (0.28, 0.28, 0.3)))[::2, ::2])
        along, up = self.world[:, 2], -self.world[:, 1]
        for side in road.sides:
            light = self.uniform(0.6, 1.1)
            wall_x, row, ends = road.wall(side), self.surface_on(road.wall(side)), []
            z, follows_gap = self.uniform(-40, -25), False
            while z < road.ends_m:
                texture, (wide, tall) = fronts[self.rng.integers(len(fronts))]
                gain = light * self.uniform(0.85, 1.1) * self.rng.uniform(0.88, 1.06, 3)
                repeats = 0.0 if z < _EACH_HOUSE_M else np.ceil((road.ends_m - z) / wide)
                long = wide * max(repeats, 1)
                start = self.at(wall_x, 0, z if side < 0 else z + long)
                self.draw_panel(row, texture, start, -side * along, up, (long, tall), gain, 0.5, repeats)
                if has_roofs:
                    lean = side * np.cos(_ROOF) * self.world[:, 0] + np.sin(_ROOF) * up
                    size = (long, 0.5 * _HOUSE_DEPTH_M / np.cos(_ROOF))
                    self.draw_panel(row, roof, start + tall * up, -side * along, lean, size, 1.05 * gain, 0.5, repeats)
                if follows_gap and z > 1:
                    ends.append((z, texture, tall, gain))
                follows_gap = self.happens(gap_share)
                z += long + (self.spread(2.0, 14.0) if follows_gap else 0.0)
            for start_z, texture, tall, gain in ends[:3][::-1]:
                self.add_end_wall(wall_x, side, start_z, texture, tall, gain, has_roofs)
            self.backdrop.append(row)
            self.rows.append(row)

    def surface_on(self, wall_x: float) -> Surface:
        """Start an empty surface on the wall along the street."""
        toward = self.world[:, 0] / wall_x
        disparity = toward[0] * self.ray_x + toward[1] * self.ray_y + toward[2]
        disparity = np.clip(disparity, 1 / SKY_M, 1 / MIN_DEPTH_M).astype(np.float32)
        rgb = np.zeros((*self.size_px, 3), dtype=np.float32)
        return Surface(rgb, np.zeros(self.size_px, dtype=np.float32), disparity)

    def add_end_wall(self, wall_x: float, side: int, z_m: float, texture: Texture, tall_m: float, gain: np.ndarray,
                     has_gable: bool) -> None:  # fmt: skip
        """Add the wall of a house that faces along the street, with a gable under a roof."""
        corner = self.at(wall_x if side > 0 else wall_x - _HOUSE_DEPTH_M, 0, z_m)
        edges = [corner, corner + _HOUSE_DEPTH_M * self.world[:, 0]]
        columns = [self.focal_px * place[0] / max(place[2], 0.1) + self.width / 2 for place in edges]
        if max(columns) < 0 or min(columns) > self.width:
            return
        colour = texture.mean() * self.uniform(0.8, 1.1)
        ridge_m = 0.5 * _HOUSE_DEPTH_M * np.tan(_ROOF) if has_gable else 0.0
        px_per_m = 8
        rows, columns = round((tall_m + ridge_m) * px_per_m), round(_HOUSE_DEPTH_M * px_per_m)
        wall = np.full((rows, columns, 4), 255, dtype=np.uint8)
        wall[..., :3] = np.clip(colour, 0, 255)
        y, x = np.arange(rows)[:, None] + 0.5, np.linspace(-1, 1, columns)[None]
        wall[..., 3] = 255 * (y >= ridge_m * px_per_m * np.abs(x))
        for storey in range(round(tall_m / STOREY_M)):
            low = rows - round((storey * STOREY_M + 0.9) * px_per_m)
            for middle in (0.3, 0.7)[: int(self.rng.integers(3))]:
                left = round(middle * columns)
                wall[low - 10 : low, left - 4 : left + 4, :3] = 55
        depth = max(float(corner[2]), 1.0)
        rgb = np.zeros((*self.size_px, 3), dtype=np.float32)
        alpha, disparity = np.zeros(self.size_px, dtype=np.float32), np.full(self.size_px, 1 / depth, np.float32)
        surface = Surface(rgb, alpha, disparity)
        size = (_HOUSE_DEPTH_M, tall_m + ridge_m)
        self.draw_panel(surface, Texture(wall), corner, self.world[:, 0], -self.world[:, 1], size, gain)
        if surface.alpha.any():
            self.backdrop.append(surface)
            self.rows.append(surface)

    def add_beyond(self, plane: Plane, ground: Surface, road: Road) -> None:
        """Close the street, or one side of it, with further houses and trees; or leave it open."""
        self.subject_extent = (0.0, 0.0, 0.0)
        if self.happens(0.45):
            self.add_wood(plane, road.ends_m + self.spread(10, 200))
        places = []
        if self.happens(0.55):  # the street ends at houses
            x = -self.uniform(10, 40)
            while x < 30:
                places.append((x, road.ends_m + self.uniform(5, 25), ("house", "block", "tree")))
                x += self.uniform(8, 22)
        for side in {-1, 1} - set(road.sides):
            for _ in range(int(self.rng.integers(2, 6))):
                out_m, z = self.spread(14.0, 60.0), self.spread(8.0, 150.0)  # none reaches into the street
                places.append((road.wall(side) + side * out_m, z, ("house", "house", "tree", "tree", "block")))
        sprites: dict[str, Sprite] = {}
        for x, z, families in sorted(places, key=lambda place: -place[1]):
            family = families[self.rng.integers(len(families))]
            if family not in sprites or self.happens(0.25):
                sprites[family] = self.materials.drawn(self.rng, (family,))
            self.stand_at(plane, ground, sprites[family], x, z)
        self.backdrop += sorted(self.things, key=lambda thing: thing.disparity_dpt[0, 0])  # behind the rows of houses
        self.things = []

    # --- things -------------------------------------------------------------------------------------------------

    def views(self) -> tuple[str, dict[str, np.ndarray]]:
        """Draw a vehicle: its family, and its rear, front and side."""
        sprite = self.materials.drawn(self.rng, ("car", "car", "car", "van"))
        return sprite.family, vehicle_views(sprite.rgba, sprite.family)

    def add_subject(self, plane: Plane, ground: Surface, road: Road) -> None:
        """Stand the subject before the houses, flat and parallel to the sensor."""
        family = str(self.rng.choice(("vehicle", "figure", "sign", "house"), p=(0.45, 0.33, 0.1, 0.12)))
        if family == "vehicle":
            name, views = self.views()
            view = "side" if self.happens(0.2) else ("rear", "front")[self.rng.integers(2)]
            picture = views[view] if view != "side" or self.happens(0.5) else views[view][:, ::-1]
            sprite = Sprite(np.ascontiguousarray(picture), frozenset(), (CAR_M[name][1],) * 2, name)
        elif family == "figure":
            sprite = self.sprite(("figure",), 0.6, ())
        else:
            sprite = self.materials.drawn(self.rng, ("sign",) if family == "sign" else ("house", "block"))
        height_m = self.uniform(*sprite.height_m)
        filled = float((sprite.rgba[..., 3] > 127).mean()) * sprite.rgba.shape[1] / sprite.rgba.shape[0]
        tall = float(np.sqrt(self.uniform(0.035, 0.2) * self.height * self.width / filled))
        depth = self.focal_px * height_m / min(tall, 1.1 * self.height)
        column = self.width * float(np.clip(self.rng.normal(0.5, 0.15), 0.15, 0.85))
        half = 0.5 * self.focal_px * height_m * sprite.rgba.shape[1] / sprite.rgba.shape[0]
        for _ in range(4):  # nearer until it is before the houses, from side to side
            foot = int(np.clip(self.row_on(plane, depth, column) - 2, 0, self.height - 1))
            sides = np.clip([column - half / depth, column + half / depth], 0, self.width - 1).astype(int)
            walls_dpt = [float(row.disparity_dpt[foot, side]) for row in self.rows for side in sides
                         if row.alpha[foot, side] > 0.5]  # fmt: skip
            depth = min([depth, *(0.92 / wall for wall in walls_dpt)])
        depth = max(depth, 1.0)
        self.subject_extent = (column - half / depth, column + half / depth, depth)
        self.stand(plane, ground, sprite, depth, column, height_m, is_subject=True)

    def add_traffic(self, plane: Plane, ground: Surface, road: Road) -> None:
        """Add parked and driving vehicles: near ones as boxes, far ones flat."""
        fleet = []
        for _ in range(4):
            name = "van" if self.happens(0.25) else "car"
            fleet.append((name, self.materials.textures(self.rng, name)))
        is_right = self.happens(0.6)  # which side of the road is driven on
        places = []
        for side in (-1, 1):
            if road.half_m > 3.0 and self.happens(0.6):
                z = self.uniform(3.0, 12.0)
                for _ in range(int(self.rng.integers(1, 5))):
                    places.append((road.middle_m + side * (road.half_m - 1.1), z, side))
                    z += self.uniform(5.5, 9.0)
        for _ in range(int(self.rng.integers(3))):
            side = int(self.rng.choice((-1, 1)))
            places.append(
                (road.middle_m + side * min(0.5 * road.half_m, 1.9), min(self.spread(8, 120), road.ends_m), side)
            )
        for x, z, side in places:
            name, views = fleet[self.rng.integers(len(fleet))]
            is_oncoming = (side > 0) != is_right
            self.add_vehicle(plane, ground, name, views, x, z, is_oncoming)

    def add_vehicle(self, plane: Plane, ground: Surface, name: str, views: dict[str, Texture], x_m: float,
                    z_m: float, is_oncoming: bool) -> None:  # fmt: skip
        """Add one vehicle that stands along the street, its nearer end at ``z_m``: two walls of a box."""
        wide, tall, long = CAR_M[name]
        corners = [self.at(x_m + a * wide / 2, b * tall, z_m + c * long)
                   for a in (-1, 1) for b in (0, 1) for c in (0, 1)]  # fmt: skip
        if min(corner[2] for corner in corners) < 1.5:
            return
        columns = [self.focal_px * corner[0] / corner[2] + self.width / 2 for corner in corners]
        nearest = min(corner[2] for corner in corners)
        if max(columns) < 0 or min(columns) > self.width or self.hides(min(columns), max(columns), nearest):
            return
        rgb, alpha = np.zeros((*self.size_px, 3), dtype=np.float32), np.zeros(self.size_px, dtype=np.float32)
        surface = Surface(rgb, alpha, np.full(self.size_px, 1 / nearest, dtype=np.float32))
        up, light = -self.world[:, 1], self.uniform(0.8, 1.1) * self.rng.uniform(0.85, 1.05, 3)
        if abs(x_m) > wide / 2:
            faces_left = x_m > 0  # the camera sees the side that faces it
            side_x = x_m - wide / 2 if faces_left else x_m + wide / 2
            # Its front is at the picture's left: for a side that faces right, the picture is seen from behind.
            start = self.at(side_x, 0, z_m if is_oncoming else z_m + long)
            along = self.world[:, 2] * (1 if is_oncoming else -1)
            self.draw_panel(surface, views["side"], start, along, up, (long, tall), 0.8 * light)
        start = self.at(x_m - wide / 2, 0, z_m)
        end = views["front" if is_oncoming else "rear"]
        self.draw_panel(surface, end, start, self.world[:, 0], up, (wide, tall), light)
        middle = self.at(x_m, 0, z_m + 0.2)
        column = self.focal_px * middle[0] / middle[2] + self.width / 2
        base = self.row_on(plane, float(middle[2]), column)
        flat = abs(base - self.row_on(plane, float(middle[2]) + 0.8, column))
        self.shade_contact(ground, column, base, 0.55 * wide * self.focal_px / middle[2], flat)
        self.things.append(surface)

    def add_furniture(self, plane: Plane, ground: Surface, road: Road) -> None:
        """Add people, trees, lamps and signs on the pavements."""
        for side in (-1, 1):
            edge, wall = road.middle_m + side * (road.half_m + 0.4), road.wall(side)
            if road.pavement_m > 1:
                for _ in range(int(self.rng.integers(3))):
                    x = self.uniform(*sorted((edge, wall - side * 0.4)))
                    z = self.spread(3.0, 70.0)
                    self.stand_at(plane, ground, self.sprite(("figure",), 0.4, (), z), x, z)
            family = ("tree", "lamp", "sign", "bar")[self.rng.choice(4, p=[0.35, 0.3, 0.25, 0.1])]
            if self.happens(0.6):
                z, step = self.uniform(2.5, 12.0), self.uniform(7.0, 30.0)
                sprite, height_m = self.materials.drawn(self.rng, (family,)), None
                for _ in range(int(self.rng.integers(1, 5))):
                    height_m = height_m or self.uniform(*sprite.height_m)
                    self.stand_at(plane, ground, sprite, edge, z, min(height_m, 9.0))
                    z += step * self.uniform(0.9, 1.1)


def _band(place_m: np.ndarray, width_m: np.ndarray, low_m: float, high_m: float) -> np.ndarray:
    """Share of each pixel, ``width_m`` wide around its place, that lies from one line to another."""
    half = 0.5 * np.maximum(width_m, 1e-3)
    return np.maximum(np.minimum(place_m + half, high_m) - np.maximum(place_m - half, low_m), 0) / (2 * half)


def _dashes(place_m: np.ndarray, width_m: np.ndarray, dash_m: float, period_m: float) -> np.ndarray:
    """Share of each pixel that lies on dashes which begin at every whole period."""

    def length(place: np.ndarray) -> np.ndarray:  # of all dashes before it
        return np.floor(place / period_m) * dash_m + np.minimum(place % period_m, dash_m)

    half = 0.5 * np.maximum(width_m, 1e-3)
    return (length(place_m + half) - length(place_m - half)) / (2 * half)
