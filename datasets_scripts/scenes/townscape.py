"""Drawings of what towns are made of, each of one true size: houses whose windows tell the distance.

As in `drawing`, a callable delivers textures, and a thing comes back as float32 ``(h, w, 4)`` of 0 to 255. These
things are upright and are not bent; their size in metres is that of their family.
"""

import numpy as np

from datasets_scripts.scenes.drawing import (
    Kit,
    Pen,
    Shape,
    branch,
    covered,
    paint_over,
    power_law_noise,
    random_colour,
)

STOREY_M = 3.0
"""From floor to floor, in all houses."""
_PX_PER_M = 20
CAR_M = {"car": (1.8, 1.5, 4.3), "van": (2.0, 2.2, 5.2)}
"""Width, height and length of vehicles in metres; their drawings hold rear, front and left side, in this order."""


def _muted(rng: np.random.Generator, low: float = 0.3, high: float = 0.9) -> np.ndarray:
    """Draw the colour of plaster, stone or paint, 0 to 255: float32 ``(3,)``."""
    grey = rng.uniform(low, high)
    return 255 * (0.7 * grey + 0.3 * random_colour(rng)).astype(np.float32)


def facade(rng: np.random.Generator, kit: Kit, width_m: float, storeys: int) -> np.ndarray:
    """Draw a front with a window for each bay of each storey, a door or shops below: float32 ``(h, w, 4)``, opaque.

    Windows are 0.9 to 1.5 m wide and 1.2 to 1.8 m high; a bay is 2 to 3.4 m.
    """
    px, px_per_m = kit.detail, kit.detail * _PX_PER_M
    tall, wide = round(storeys * STOREY_M * px_per_m), round(width_m * px_per_m)
    wall = covered(kit.tile(rng), np.ones((tall, wide), dtype=np.float32))
    colour = _muted(rng)
    keep = rng.uniform(0.05, 0.5)
    wall[..., :3] = keep * wall[..., :3] + (1 - keep) * colour
    bays = max(1, round(width_m / rng.uniform(2.2, 3.2)))
    pitch = wide / bays
    window_w, window_h = rng.uniform(0.9, 1.5) * px_per_m, rng.uniform(1.2, 1.8) * px_per_m
    sill = rng.uniform(0.75, 0.95) * px_per_m
    frame, glass = _muted(rng, 0.3, 1.0), _muted(rng, 0.1, 0.45)
    door, has_shops, has_bars = int(rng.integers(bays)), rng.random() < 0.25, rng.random() < 0.6
    for storey in range(storeys):
        floor = tall - storey * STOREY_M * px_per_m
        if storey and rng.random() < 0.3:
            _fill(wall, floor - 3 * px, floor, 0, wide, 0.8 * colour)
        for bay in range(bays):
            middle = (bay + 0.5) * pitch
            if storey == 0 and bay == door:
                _fill(wall, floor - 2.1 * px_per_m, floor, middle - 0.5 * px_per_m, middle + 0.5 * px_per_m, frame)
                continue
            if storey == 0 and has_shops:
                left, right = middle - 0.42 * pitch, middle + 0.42 * pitch
                _fill(wall, floor - 2.5 * px_per_m, floor - 0.4 * px_per_m, left, right, 0.8 * frame)
                _fill(wall, floor - 2.2 * px_per_m, floor - 0.5 * px_per_m, left + 2 * px, right - 2 * px, glass)
                continue
            top, low = floor - sill - window_h, floor - sill
            left, right = middle - window_w / 2, middle + window_w / 2
            _fill(wall, top - 2 * px, low + 2 * px, left - 2 * px, right + 2 * px, frame)
            _fill(wall, top, low, left, right, glass * rng.uniform(0.6, 1.5))
            if has_bars:
                _fill(wall, top, low, middle - px, middle + px, frame)
                _fill(wall, top + 0.3 * window_h - px, top + 0.3 * window_h + px, left, right, frame)
    return wall


def _fill(picture: np.ndarray, top: float, low: float, left: float, right: float, colour: np.ndarray) -> None:
    """Fill a rectangle, in place; numbers in pixels."""
    y0, y1, x0, x1 = (max(round(value), 0) for value in (top, low, left, right))
    picture[y0:y1, x0:x1, :3] = colour


def _house(rng: np.random.Generator, kit: Kit) -> np.ndarray:
    """Draw a house of two storeys with a roof, 8.5 m high."""
    width_m = rng.uniform(6.0, 14.0)
    front = facade(rng, kit, width_m, 2)
    tall, wide = round(8.5 * kit.detail * _PX_PER_M), front.shape[1]
    eaves = tall - front.shape[0]
    y, x = np.arange(eaves, dtype=np.float32)[:, None] / eaves, np.linspace(-1, 1, wide, dtype=np.float32)[None]
    ridge = rng.choice([0.0, 0.6, 0.92])  # a gable, hips, or the long side
    alpha = np.clip((ridge + (1 - ridge) * y - np.abs(x)) * wide / 2 + 0.5, 0, 1)
    roof = covered(kit.tile(rng), alpha)
    colour = np.array([(130, 60, 45), (70, 70, 75), (95, 75, 60)][rng.integers(3)]) * rng.uniform(0.6, 1.2)
    roof[..., :3] = 0.35 * roof[..., :3] + 0.65 * colour
    house = np.concatenate([roof, front])
    if rng.random() < 0.5:
        column = int(wide * rng.uniform(0.3, 0.65))
        chimney = np.zeros(house.shape[:2], dtype=np.float32)
        chimney[: eaves // 2, column : column + 14 * kit.detail] = 1
        paint_over(house, chimney, _muted(rng, 0.2, 0.5))
    return house


def _block(rng: np.random.Generator, kit: Kit) -> np.ndarray:
    """Draw a block of five storeys with a flat roof, 15.5 m high."""
    front = facade(rng, kit, rng.uniform(10.0, 22.0), 5)
    rim = np.full((kit.detail * _PX_PER_M // 2, front.shape[1], 4), 255, dtype=np.float32)
    rim[..., :3] = _muted(rng, 0.2, 0.7)
    return np.concatenate([rim, front])


def _front(storeys: int) -> Shape:
    """Make the drawing of one house of a row, so many storeys high, with a cornice."""

    def draw(rng: np.random.Generator, kit: Kit) -> np.ndarray:
        wall = facade(rng, kit, rng.uniform(7.0, 15.0), storeys)
        wall[: rng.integers(2, 9) * kit.detail, :, :3] = _muted(rng, 0.3, 0.9)
        wall[..., :3] *= (1 + 0.03 * power_law_noise(rng, wall.shape[:2], 0.8))[..., None]
        return wall

    return draw


def _vehicle(width_m: float, height_m: float, length_m: float, is_van: bool) -> Shape:
    """Make the drawing of a vehicle's rear, front and left side, beside each other at one scale."""

    def draw(rng: np.random.Generator, kit: Kit) -> np.ndarray:
        wide, long = width_m / height_m, length_m / height_m
        pen = Pen(2 * wide + long, 2 * kit.height_px // 3)
        paint = 255 * (random_colour(rng) if rng.random() < 0.5 else np.full(3, rng.choice([0.06, 0.25, 0.55, 0.9])))
        glass, dark = np.array([40.0, 48.0, 55.0]) * rng.uniform(0.6, 2.2), np.full(3, 22.0)
        roof, belt = 0.0, 0.42
        inset = 0.06 if is_van else 0.22  # of the roof
        rgba = np.zeros((*pen.size, 4), dtype=np.float32)
        for number in range(2):
            x = number * wide
            wheels = [(x + a, 0.7, x + a + 0.15, 1.0) for a in (0.05, wide - 0.2)]
            paint_over(rgba, pen.mask(*[("rectangle", wheel) for wheel in wheels]), dark)
            body = (x, 0.52, x + 0.05, belt, x + wide - 0.05, belt, x + wide, 0.52, x + wide, 0.84,
                    x + wide - 0.04, 0.9, x + 0.04, 0.9, x, 0.84)  # fmt: skip
            cabin = (x + 0.05, belt + 0.04, x + inset, roof + 0.05, x + inset + 0.07, roof, x + wide - inset - 0.07,
                     roof, x + wide - inset, roof + 0.05, x + wide - 0.05, belt + 0.04)  # fmt: skip
            paint_over(rgba, pen.mask(("polygon", body), ("polygon", cabin)), paint)
            pane = (x + 0.14, belt - 0.03, x + inset + 0.06, roof + 0.08, x + wide - inset - 0.06, roof + 0.08,
                    x + wide - 0.14, belt - 0.03)  # fmt: skip
            paint_over(rgba, pen.mask(("polygon", pane)), glass)
            lights = [(x + 0.03, 0.48, x + 0.2, 0.6), (x + wide - 0.2, 0.48, x + wide - 0.03, 0.6)]
            colour = np.array([170.0, 25, 20]) if number == 0 else np.array([235.0, 235, 225])
            paint_over(rgba, pen.mask(*[("rectangle", light) for light in lights]), colour)
            if number:
                paint_over(rgba, pen.mask(("rectangle", (x + 0.3, 0.52, x + wide - 0.3, 0.66))), dark)
            middle = x + wide / 2
            paint_over(rgba, pen.mask(("rectangle", (middle - 0.17, 0.7, middle + 0.17, 0.77))), np.full(3, 225.0))
            paint_over(rgba, pen.mask(("rectangle", (x + 0.02, 0.81, x + wide - 0.02, 0.89))), 0.5 * paint + 10)
        x = 2 * wide
        end = x + long
        if is_van:
            shell = (x, 0.6, x + 0.05, 0.5, x + 0.35, 0.42, x + 0.6, 0.06, x + 0.75, 0.0, end, 0.0, end, 0.86, x, 0.86)
            panes = [(x + 0.45, 0.4, x + 0.63, 0.1, x + 0.85, 0.1, x + 0.85, 0.4)]
        else:
            shell = (x, 0.58, x + 0.1, 0.49, x + 0.8, 0.42, x + 1.2, 0.05, x + 1.4, 0.0, end - 0.5, 0.0,
                     end - 0.2, 0.05, end, 0.42, end, 0.84, x, 0.84)  # fmt: skip
            panes = [(x + 0.95, 0.4, x + 1.28, 0.09, x + 1.7, 0.09, x + 1.7, 0.4),
                     (x + 1.77, 0.4, x + 1.77, 0.09, end - 0.4, 0.1, end - 0.17, 0.4)]  # fmt: skip
        paint_over(rgba, pen.mask(("polygon", shell)), 0.9 * paint)
        paint_over(rgba, pen.mask(*[("polygon", pane) for pane in panes]), glass)
        radius = 0.21 if not is_van else 0.16
        for middle in (x + 0.2 * long, end - 0.2 * long):
            for size, colour in ((radius, dark), (0.55 * radius, np.full(3, 130.0))):
                low = 1.0 - radius
                wheel = (middle - size, low - size, middle + size, low + size)
                paint_over(rgba, pen.mask(("ellipse", wheel)), colour)
        shade = np.linspace(1.15, 0.75, pen.size[0], dtype=np.float32)[:, None, None]
        rgba[..., :3] *= shade * (1 + 0.03 * power_law_noise(rng, pen.size, 0.7))[..., None]
        return rgba

    return draw


def vehicle_views(rgba: np.ndarray, family: str) -> dict[str, np.ndarray]:
    """Cut the drawing of a vehicle into its ``rear``, ``front`` and ``side``, which is the left one."""
    width_m, _, length_m = CAR_M[family]
    first, second = (round(rgba.shape[1] * n * width_m / (2 * width_m + length_m)) for n in (1, 2))
    return {"rear": rgba[:, :first], "front": rgba[:, first:second], "side": rgba[:, second:]}


def _sign(rng: np.random.Generator, kit: Kit) -> np.ndarray:
    """Draw a traffic sign on its pole, 2.6 m high with a plate of 0.7 m."""
    pen, half, middle = Pen(0.3, kit.height_px), 0.135, 0.15
    rgba = covered(kit.tile(rng), pen.mask(("rectangle", (middle - 0.014, 0.02, middle + 0.014, 1.0))))
    rgba[..., :3] = 120 * rng.uniform(0.6, 1.4)
    red, blue, white = np.array([190.0, 25, 30]), np.array([25.0, 70, 160]), np.full(3, 235.0)
    shape = rng.integers(4)
    outer, inner = [(white, red), (red, white), (blue, blue), (blue, white), (np.array([235.0, 190, 30]), white)][
        rng.integers(5)
    ]
    for size, colour in ((half, outer), (0.72 * half, inner)):
        top, low, left, right = half - size, half + size, middle - size, middle + size
        if shape == 0:
            form = ("ellipse", (left, top, right, low))
        elif shape == 1:
            form = ("polygon", (middle, top, right, low, left, low))
        elif shape == 2:
            form = ("rectangle", (left, top, right, low))
        else:
            form = ("polygon", (middle, top, right, half, middle, low, left, half))
        paint_over(rgba, pen.mask(form), colour)
    mark = rng.uniform(0.02, 0.06)
    paint_over(rgba, pen.mask(("rectangle", (middle - mark, half - 0.02, middle + mark, half + 0.02))), 0.2 * outer)
    return rgba


def _lamp(rng: np.random.Generator, kit: Kit) -> np.ndarray:
    """Draw a street lamp with its arm, 6 m high."""
    pen, foot, reach = Pen(0.26, kit.height_px), 0.05, rng.uniform(0.1, 0.2)
    shapes = [
        ("polygon", (foot - 0.01, 0.03, foot + 0.01, 0.03, foot + 0.016, 1, foot - 0.016, 1)),
        ("line", (foot, 0.03, foot + reach, 0.012)),
        ("ellipse", (foot + reach - 0.05, 0.005, foot + reach + 0.05, 0.03)),
    ]
    rgba = covered(kit.tile(rng), pen.mask(*shapes, width=0.014))
    rgba[..., :3] = 0.2 * rgba[..., :3] + _muted(rng, 0.15, 0.6) * 0.8
    return rgba


def _bicycle(rng: np.random.Generator, kit: Kit) -> np.ndarray:
    """Draw a bicycle from its side, 1.05 m high."""
    pen, radius, low = Pen(1.7, kit.height_px), 0.33, 0.66
    hubs, crank, seat, head = ((0.34, low), (1.36, low)), (0.78, 0.68), (0.62, 0.28), (1.2, 0.24)
    rgba = np.zeros((*pen.size, 4), dtype=np.float32)
    rims, spokes = [], []
    for x, y in hubs:
        rims.append(("ring", (x - radius, y - radius, x + radius, y + radius)))
        for angle in np.linspace(0, 2 * np.pi, 20, endpoint=False):
            spokes.append(("line", (x, y, x + radius * np.cos(angle), y + radius * np.sin(angle))))
    paint_over(rgba, pen.mask(*spokes, width=0.004), np.full(3, 175.0))
    paint_over(rgba, pen.mask(*rims, width=0.03), np.full(3, 30.0))
    paint = 255 * random_colour(rng)
    tubes = [(*hubs[0], *crank), (*hubs[0], *seat), (*crank, *seat), (*crank, *head), (0.66, 0.34, *head)]
    paint_over(rgba, pen.mask(*[("line", tube) for tube in tubes], width=0.03), paint)
    fork = ("line", (1.18, 0.12, *head, 1.24, 0.4, *hubs[1]))
    paint_over(rgba, pen.mask(fork, width=0.026), 0.75 * paint)
    bars = ("line", (1.18, 0.12, 1.28, rng.uniform(0.04, 0.1), 1.34, 0.12))
    saddle = ("polygon", (0.5, 0.2, 0.66, 0.21, 0.74, 0.24, 0.6, 0.27, 0.5, 0.26))
    post = ("line", (0.58, 0.24, *seat))
    paint_over(rgba, pen.mask(bars, saddle, post, width=0.024), _muted(rng, 0.1, 0.4))
    wheel = ("ring", (crank[0] - 0.08, crank[1] - 0.08, crank[0] + 0.08, crank[1] + 0.08))
    pedals = ("line", (crank[0] - 0.06, 0.84, crank[0], crank[1], crank[0] + 0.06, 0.52))
    paint_over(rgba, pen.mask(wheel, pedals, width=0.016), np.full(3, 90.0))
    if rng.random() < 0.5:
        basket = np.array(pen.mask(("polygon", (1.28, 0.1, 1.66, 0.1, 1.6, 0.34, 1.34, 0.34))))
        paint_over(rgba, basket, covered(kit.tile(rng), basket)[..., :3])
    return rgba


def _plant(rng: np.random.Generator, kit: Kit) -> np.ndarray:
    """Draw a plant of long or broad leaves in a pot, 0.9 m high."""
    aspect = rng.uniform(0.9, 1.3)
    pen, middle, rim = Pen(aspect, kit.height_px), aspect / 2, rng.uniform(0.66, 0.78)
    rgba = np.zeros((*pen.size, 4), dtype=np.float32)
    green = np.array([rng.uniform(0.15, 0.5), rng.uniform(0.35, 0.65), rng.uniform(0.1, 0.3)]) * 255
    broad, t = rng.uniform(0.025, 0.09), np.linspace(0, 1, 14)
    for _ in range(int(rng.integers(18, 40))):
        end = np.array([middle + rng.normal(0, 0.26 * aspect), rng.uniform(0.02, 0.62)])
        start, bend = np.array([middle, rim + 0.05]), np.array([0.6 * middle + 0.4 * end[0], end[1] - 0.08])
        spine = ((1 - t) ** 2)[:, None] * start + (2 * t * (1 - t))[:, None] * bend + (t**2)[:, None] * end
        along = np.gradient(spine, axis=0)
        side = np.stack([-along[:, 1], along[:, 0]], axis=1) / np.hypot(*along.T)[:, None]
        side *= (broad * np.sin(np.pi * t**1.4) + 0.004)[:, None]
        tone = green * rng.uniform(0.5, 1.3) * rng.uniform(0.9, 1.1, 3)
        for half, light in ((side, 1.0), (-side, 0.75)):
            leaf = np.concatenate([spine, (spine + half)[::-1]])
            paint_over(rgba, pen.mask(("polygon", leaf.ravel())), tone * light)
        if rng.random() < 0.15:
            x, y = end
            paint_over(rgba, pen.mask(("ellipse", (x - 0.04, y - 0.04, x + 0.04, y + 0.04))), 255 * random_colour(rng))
    wide, foot = rng.uniform(0.16, 0.24), rng.uniform(0.1, 0.16)
    pot = pen.mask(
        ("polygon", (middle - wide, rim + 0.03, middle + wide, rim + 0.03, middle + foot, 1, middle - foot, 1)),
        ("rectangle", (middle - wide - 0.02, rim, middle + wide + 0.02, rim + 0.06)),
    )
    shade = 1.05 - 0.9 * np.abs(np.arange(pen.size[1]) / pen.size[0] - middle + 0.06)[None, :, None]
    paint_over(rgba, pot, (0.3 * covered(kit.tile(rng), pot)[..., :3] + 0.7 * _muted(rng)) * shade)
    return rgba


def _fence(rng: np.random.Generator, kit: Kit) -> np.ndarray:
    """Draw a piece of a fence of pointed bars with a climbing plant, 1.4 m high."""
    aspect, step = rng.uniform(1.0, 1.4), rng.uniform(0.09, 0.16)
    pen, half = Pen(aspect, kit.height_px), rng.uniform(0.008, 0.03)
    shapes = [("rectangle", (0, y, aspect, y + 0.035)) for y in (0.22, 0.86)]
    for x in np.arange(step / 2, aspect, step):
        top = rng.normal(0.1, 0.012)
        shapes.append(("polygon", (x - half, top, x, top - 0.07, x + half, top, x + half, 1, x - half, 1)))
    bars = pen.mask(*shapes)
    rgba = covered(kit.tile(rng), bars)
    rgba[..., :3] = 0.35 * rgba[..., :3] + 0.65 * _muted(rng, 0.1, 0.8)
    twigs = []
    for _ in range(int(rng.integers(1, 6))):
        start = (rng.uniform(0.1, 0.9) * aspect, 1.0)
        twigs += branch(rng, start, -np.pi / 2 + rng.normal(0, 0.3), rng.uniform(0.4, 0.9))
    green = np.array([rng.uniform(0.1, 0.4), rng.uniform(0.3, 0.6), 0.15]) * 255
    grain = 1 + 0.2 * power_law_noise(rng, pen.size, 0.8)[..., None]
    paint_over(rgba, pen.mask(*twigs, width=0.01), green * grain)
    return rgba


FAMILIES: dict[str, tuple[Shape, tuple[float, float], tuple[str, ...]]] = (
    {
        "house": (_house, (8.5, 8.5), ()),
        "block": (_block, (15.5, 15.5), ()),
        "sign": (_sign, (2.6, 2.6), ()),
        "lamp": (_lamp, (6.0, 6.0), ()),
    }
    | {f"front{n}": (_front(n), (n * STOREY_M, n * STOREY_M), ()) for n in (1, 2, 3, 4, 5, 6)}
    | {name: (_vehicle(*size, name == "van"), (size[1], size[1]), ()) for name, size in CAR_M.items()}
    | {  # stand in no procedural scene: one's drawings go by the place of its family here
        "bicycle": (_bicycle, (1.05, 1.05), ()),
        "plant": (_plant, (0.9, 0.9), ()),
        "fence": (_fence, (1.4, 1.4), ()),
    }
)
