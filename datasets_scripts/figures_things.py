"""Drawn things with holes and thin parts, or of glass, as `foregrounds` describes them."""

import numpy as np

from datasets_scripts.canvas import Sheet, curve, grain, leaves, mix, paint, soft, varied
from datasets_scripts.figure_parts import (
    CLOTHS,
    HEIGHT_PX,
    blossoms,
    cloth,
    foliage,
    inside,
    picture_size,
    round_part,
    shape,
)


def _tube(sheet: Sheet, points: np.ndarray, width: float, colour: np.ndarray) -> None:
    """Draw a round bar: dark edge, body, a streak of light."""
    sheet.line(points, colour * 0.45, width)
    sheet.line(np.asarray(points, dtype=float).reshape(-1, 2) - (0.12 * width, 0.12 * width), colour, 0.66 * width)
    sheet.line(
        np.asarray(points, dtype=float).reshape(-1, 2) - (0.2 * width, 0.2 * width),
        np.clip(colour * 1.3 + 0.3, 0, 1),
        0.16 * width,
    )


def bicycle(rng: np.random.Generator) -> np.ndarray:
    """Draw a bicycle with spokes, chain ring, basket."""
    size_px, r = picture_size(1.62), 0.3
    sheet, paint_ = (
        Sheet(size_px),
        varied(
            rng,
            [(0.6, 0.12, 0.12), (0.12, 0.3, 0.45), (0.85, 0.82, 0.72), (0.1, 0.32, 0.22), (0.12, 0.12, 0.13)][
                rng.integers(5)
            ],
            0.1,
        ),
    )
    hubs, steel = ((0.34, 0.68), (1.26, 0.68)), np.array((0.62, 0.63, 0.65))
    for hx, hy in hubs:
        sheet.ring(hx, hy, r, (0.06, 0.06, 0.07), 0.03)
        sheet.ring(hx, hy, r - 0.006, (0.2, 0.2, 0.21), 0.006)
        sheet.ring(hx, hy, r - 0.03, steel, 0.011)
        turn = rng.uniform(0, 1)
        for k in range(32):
            a = turn + 2 * np.pi * k / 32
            off = a + (0.5 if k % 2 else -0.5)
            sheet.line(
                [
                    hx + 0.02 * np.cos(off),
                    hy + 0.02 * np.sin(off),
                    hx + (r - 0.03) * np.cos(a),
                    hy + (r - 0.03) * np.sin(a),
                ],
                (0.7, 0.7, 0.72),
                0.0022,
            )
        sheet.ellipse((hx - 0.024, hy - 0.024, hx + 0.024, hy + 0.024), (0.4, 0.4, 0.42))
        sheet.draw.arc(
            [sheet.scale * v for v in (hx - r - 0.035, hy - r - 0.035, hx + r + 0.035, hy + r + 0.035)],
            195,
            330,
            fill=sheet._ink(paint_ * 0.8),
            width=round(0.014 * sheet.scale),
        )
    crank, seat, neck = (0.74, 0.7), (0.62, 0.3), (1.1, 0.26)
    for a, b, w in (
        (hubs[0], crank, 0.018),
        (hubs[0], (0.635, 0.36), 0.016),
        (neck, hubs[1], 0.022),
        (crank, (1.115, 0.34), 0.03),
        ((0.645, 0.38), (1.105, 0.3), 0.028),
        (crank, seat, 0.028),
    ):
        _tube(sheet, np.array([a, b]), w, paint_)
    sheet.ring(*crank, 0.075, steel * 0.8, 0.012)
    for k in range(5):
        a = 0.3 + 2 * np.pi * k / 5
        sheet.line([*crank, crank[0] + 0.07 * np.cos(a), crank[1] + 0.07 * np.sin(a)], steel * 0.8, 0.008)
    for y in (-0.072, 0.03):
        sheet.line([crank[0], crank[1] + max(y, -0.072), hubs[0][0], hubs[0][1] + 0.5 * y], (0.12, 0.12, 0.12), 0.006)
    _tube(sheet, np.array([crank, (0.83, 0.82)]), 0.016, steel)
    sheet.polygon([0.79, 0.815, 0.88, 0.815, 0.88, 0.835, 0.79, 0.835], (0.1, 0.1, 0.1))
    _tube(sheet, np.array([seat, (0.605, 0.24)]), 0.02, steel)
    leather = np.array((0.35, 0.2, 0.11))
    sheet.polygon(
        np.concatenate(
            [
                curve((0.5, 0.2), (0.52, 0.165), (0.6, 0.195), 8),
                curve((0.6, 0.195), (0.66, 0.21), (0.74, 0.215), 8),
                curve((0.74, 0.235), (0.6, 0.25), (0.5, 0.255), 8),
            ]
        ),
        leather,
    )
    sheet.line(curve((0.51, 0.195), (0.53, 0.175), (0.7, 0.217), 10), leather * 1.7, 0.006)
    _tube(sheet, np.array([neck, (1.075, 0.15)]), 0.02, steel)
    _tube(sheet, curve((1.075, 0.15), (1.2, 0.06), (1.16, 0.2), 14), 0.018, steel)
    sheet.tapered(np.array([[1.165, 0.2], [1.12, 0.235]]), np.array([0.028, 0.026]), leather)
    if rng.random() < 0.7:  # a wicker basket with flowers
        box = [1.16, 0.2, 1.5, 0.2, 1.46, 0.41, 1.2, 0.41]
        wicker = np.array((0.66, 0.5, 0.3))
        places = np.stack([rng.uniform(1.18, 1.48, 22), rng.uniform(0.12, 0.2, 22)], 1)
        ends = [(place, -np.pi / 2 + rng.normal(0, 0.5)) for place in places]
        foliage(rng, sheet, ends, 6, 0.06, np.array((0.3, 0.5, 0.2)), 0.45)
        blossoms(rng, sheet, places - (0, 0.03), 0.028, varied(rng, (0.9, 0.45, 0.55), 0.2))
        sheet.polygon(box, wicker * 0.5)
        for row in np.arange(0.2, 0.41, 0.017):
            inset = 0.04 * (row - 0.2) / 0.21
            for k, c in enumerate(np.arange(1.16 + inset, 1.49 - inset, 0.024)):
                sheet.line(
                    [c, row + 0.004 * (k % 2), c + 0.02, row + 0.004 * (k % 2)], wicker * rng.uniform(0.8, 1.2), 0.012
                )
        sheet.line([1.15, 0.2, 1.51, 0.2], wicker * 1.1, 0.016)
    return inside(sheet.rgba())


def chair(rng: np.random.Generator) -> np.ndarray:
    """Draw a wooden chair with a back of bars, something on it."""
    size_px = picture_size(0.8)
    wood, sheet = (
        varied(
            rng, [(0.55, 0.36, 0.2), (0.75, 0.6, 0.42), (0.3, 0.2, 0.14), (0.35, 0.45, 0.45)][rng.integers(4)], 0.1
        ),
        Sheet(size_px),
    )
    for a, b in (((0.2, 0.55), (0.17, 0.93)), ((0.6, 0.55), (0.65, 0.93))):
        _tube(sheet, np.array([a, b]), 0.032, wood * 0.7)
    for k in np.linspace(0, 1, rng.integers(6, 10)):
        _tube(
            sheet,
            np.array([(0.2 + 0.4 * k, 0.1 + 0.02 * np.cos(6 * k - 3)), (0.22 + 0.36 * k, 0.55)]),
            0.014,
            wood * 0.95,
        )
    for a, b in (((0.15, 0.06), (0.19, 0.58)), ((0.65, 0.06), (0.61, 0.58))):
        _tube(sheet, np.array([a, b]), 0.03, wood)
    sheet.tapered(curve((0.13, 0.07), (0.4, 0.0), (0.67, 0.07), 16), np.full(16, 0.055), wood * 0.8)
    sheet.tapered(curve((0.13, 0.06), (0.4, -0.01), (0.67, 0.06), 16), np.full(16, 0.025), wood * 1.25)
    for y in (0.72, 0.8):
        _tube(sheet, np.array([(0.12, y), (0.7, y)]), 0.018, wood * 0.85)
    for a, b in (((0.12, 0.6), (0.06, 0.985)), ((0.68, 0.6), (0.74, 0.985))):
        _tube(sheet, np.array([a, b]), 0.036, wood)
    sheet.polygon([0.17, 0.53, 0.63, 0.53, 0.74, 0.6, 0.06, 0.6], wood * 1.1)
    sheet.polygon([0.06, 0.6, 0.74, 0.6, 0.73, 0.635, 0.07, 0.635], wood * 0.65)
    rgba = sheet.rgba()
    rgba[..., :3] = np.clip(rgba[..., :3] * (1 + 0.11 * grain(rng, size_px, 0.8, 0.12))[..., None], 0, 1)
    if rng.random() < 0.7:
        cushion = shape(size_px, ("tapered", np.array([[0.2, 0.52], [0.6, 0.52]]), np.array([0.1, 0.1])))
        round_part(rgba, cushion, cloth(rng, size_px, varied(rng, CLOTHS[rng.integers(6)], 0.2)), 0.04)
    if rng.random() < 0.5:  # a shawl over the back
        shawl = shape(
            size_px,
            (
                "polygon",
                np.concatenate(
                    [
                        curve((0.3, 0.0), (0.45, -0.02), (0.6, 0.02), 8),
                        [[0.63, 0.36], [0.55, 0.4], [0.45, 0.37], [0.36, 0.42], [0.29, 0.38]],
                    ]
                ),
            ),
        )
        round_part(rgba, shawl, cloth(rng, size_px, varied(rng, CLOTHS[rng.integers(6)], 0.2)), 0.03)
    return inside(rgba)


def fence(rng: np.random.Generator) -> np.ndarray:
    """Draw a wrought iron gate with scrolls, overgrown by a climbing plant."""
    aspect = rng.uniform(1.0, 1.25)
    sheet, iron, count = Sheet(picture_size(aspect)), varied(rng, (0.2, 0.21, 0.22), 0.15), int(rng.integers(8, 13))
    for y in (0.22, 0.34, 0.9):
        _tube(sheet, np.array([(0.05, y), (aspect - 0.05, y)]), 0.024, iron)
    for k, x in enumerate(np.linspace(0.07, aspect - 0.07, count)):
        top = 0.08 - 0.05 * np.sin(np.pi * k / (count - 1)) + (0.04 if k % 2 else 0)
        _tube(sheet, np.array([(x, top + 0.02), (x, 1.02)]), 0.019, iron)
        sheet.polygon([x, top - 0.035, x + 0.019, top + 0.01, x, top + 0.04, x - 0.019, top + 0.01], iron * 1.2)
        if k < count - 1:
            gap = (aspect - 0.14) / (count - 1)
            for y, s in ((0.28, 1), (0.6, -1)):
                t = np.linspace(0, 3.3 * np.pi, 46)
                radius = 0.4 * gap * (1 - t / 13)
                _tube(
                    sheet,
                    np.stack([x + gap / 2 + radius * np.cos(s * t), y + 0.62 * radius * np.sin(t)], 1),
                    0.009,
                    iron * 1.1,
                )
    ends = []
    for _ in range(rng.integers(3, 6)):
        x = rng.uniform(0.1, aspect - 0.1)
        vine = np.stack(
            [
                x + 0.06 * np.sin(np.linspace(0, rng.uniform(6, 14), 40)) + np.linspace(0, rng.normal(0, 0.18), 40),
                np.linspace(1.02, rng.uniform(0.1, 0.5), 40),
            ],
            1,
        )
        sheet.line(vine, (0.3, 0.26, 0.16), 0.007)
        ends += [(point, rng.uniform(0, 6.3)) for point in vine[::2]]
    foliage(rng, sheet, ends, 7, 0.06, varied(rng, (0.27, 0.48, 0.17), 0.15), 0.62)
    if rng.random() < 0.8:
        places = np.array([end[0] for end in ends])[rng.integers(len(ends), size=26)] + rng.normal(0, 0.03, (26, 2))
        blossoms(
            rng,
            sheet,
            places,
            0.03,
            varied(rng, [(0.9, 0.4, 0.5), (0.55, 0.45, 0.85), (0.95, 0.93, 0.88)][rng.integers(3)], 0.08),
        )
    return inside(sheet.rgba())


def bottles(rng: np.random.Generator) -> np.ndarray:
    """Draw bottles, jars and fruit on a board."""
    aspect = rng.uniform(1.0, 1.2)
    size_px, rgba = picture_size(aspect), np.zeros((*picture_size(aspect), 4), np.float32)
    wood = varied(rng, (0.55, 0.38, 0.23), 0.15) * (1 + 0.16 * grain(rng, size_px, 0.8, 9))[..., None]
    round_part(
        rgba,
        shape(size_px, ("polygon", [0.03, 0.93, aspect - 0.03, 0.93, aspect - 0.05, 0.995, 0.05, 0.995])),
        np.clip(wood * 0.8, 0, 1),
        0.03,
    )
    round_part(
        rgba,
        shape(size_px, ("polygon", [0.08, 0.885, aspect - 0.08, 0.885, aspect - 0.03, 0.94, 0.03, 0.94])),
        np.clip(wood * 1.15, 0, 1),
        0.02,
        0.7,
    )
    count = int(rng.integers(4, 6))
    places = np.linspace(0.18, aspect - 0.18, count) + rng.normal(0, 0.012, count)
    for k in rng.permutation(count):
        x, top, base = places[k], rng.uniform(0.03, 0.4), 0.9 + rng.uniform(0, 0.02)
        wide = rng.uniform(0.075, 0.115)
        y = np.linspace(top, base, 80)
        share = (y - top) / (base - top)
        neck, shoulder = rng.uniform(0.2, 0.38), rng.uniform(0.12, 0.25)
        half = wide * (
            0.32
            + 0.68 * np.clip((share - neck) / shoulder, 0, 1) ** 2 * (3 - 2 * np.clip((share - neck) / shoulder, 0, 1))
        )
        half[share < 0.05] *= 1.2
        half *= 1 - 0.08 * np.clip((share - 0.96) / 0.04, 0, 1)
        mask = shape(
            size_px,
            ("polygon", np.concatenate([np.stack([x - half, y], 1), np.stack([x + half, y], 1)[::-1]])),
            ("ellipse", (x - half[-1], base - 0.02, x + half[-1], base + 0.015)),
        )
        glass = varied(
            rng,
            [(0.12, 0.3, 0.16), (0.4, 0.22, 0.08), (0.25, 0.4, 0.5), (0.75, 0.72, 0.65), (0.5, 0.12, 0.12)][
                rng.integers(5)
            ],
            0.15,
        )
        lower = np.clip(
            (np.arange(size_px[0])[:, None] / HEIGHT_PX - (top + (base - top) * 0.42)) * 20, 0, 1
        ) * np.ones((1, size_px[1]))
        round_part(rgba, mask, mix(glass * 1.25, glass * 0.75, lower), 0.55 * wide, 0.3)
        rows = (np.arange(size_px[0]) / HEIGHT_PX)[:, None]
        if rng.random() < 0.75:  # a label
            low, high = base - rng.uniform(0.28, 0.34), base - 0.08
            band = mask * ((rows > low) & (rows < high))
            label = np.ones((*size_px, 3), np.float32) * varied(rng, (0.92, 0.88, 0.78), 0.05)
            print_ = Sheet(size_px)
            for line in np.linspace(low + 0.03, high - 0.02, 5):
                print_.line(
                    [x - wide * rng.uniform(0.3, 0.7), line, x + wide * rng.uniform(0.3, 0.7), line],
                    glass * 0.5,
                    rng.uniform(0.004, 0.014),
                )
            label += (glass * 0.5 - label) * print_.mask()[..., None]
            round_part(rgba, band, label, wide)
        for off, strength, thick in ((-0.62, 0.85, 0.1), (0.7, 0.35, 0.06)):
            inner = slice(int(8 if off < 0 else 30), -8)
            streak = shape(size_px, ("tapered", np.stack([x + off * half, y], 1)[inner], thick * half[inner]))
            paint(rgba, strength * soft(streak, 2) * mask, np.ones(3))
        if rng.random() < 0.6:
            cap = shape(
                size_px,
                (
                    "polygon",
                    [
                        x - 0.36 * wide,
                        top - 0.02,
                        x + 0.36 * wide,
                        top - 0.02,
                        x + 0.38 * wide,
                        top + 0.045,
                        x - 0.38 * wide,
                        top + 0.045,
                    ],
                ),
            )
            round_part(rgba, cap, varied(rng, (0.62, 0.45, 0.28), 0.2), 0.02)
    for x in rng.uniform(0.14, aspect - 0.14, rng.integers(2, 5)):  # fruit
        r, y = rng.uniform(0.045, 0.065), 0.9
        skin = varied(
            rng, [(0.75, 0.16, 0.12), (0.92, 0.6, 0.12), (0.5, 0.62, 0.16), (0.9, 0.8, 0.25)][rng.integers(4)], 0.1
        )
        ball = shape(size_px, ("ellipse", (x - r, y - r, x + r, y + r)))
        round_part(rgba, ball, np.clip(skin * (1 + 0.08 * grain(rng, size_px, 0.8))[..., None], 0, 1), r, 0.3)
        paint(
            rgba,
            0.7 * soft(shape(size_px, ("ellipse", (x - 0.5 * r, y - 0.6 * r, x - 0.15 * r, y - 0.3 * r))), 3),
            np.ones(3),
        )
        stalk = Sheet(size_px)
        stalk.line(
            curve((x, y - 0.85 * r), (x, y - 1.2 * r), (x + 0.2 * r, y - 1.35 * r), 6), (0.28, 0.2, 0.12), 0.006
        )
        leaves(
            stalk, rng, np.array([[x, y - r]]), np.array([-0.5]), np.array([0.9 * r]), np.array([[0.25, 0.45, 0.15]])
        )
        drawn = stalk.rgba()
        paint(rgba, drawn[..., 3], drawn[..., :3])
    return inside(rgba)
