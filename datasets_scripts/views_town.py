"""Drawn views of streets and rooms, as `backgrounds` describes them."""

import numpy as np

from datasets_scripts.canvas import Sheet, add_light, curve, grain, mix, soft, varied
from datasets_scripts.view_parts import crowns, fill_below, lay, rows_of, sky

WARM, COOL = (1.0, 0.78, 0.45), (0.75, 0.87, 1.0)


def _house(
    rng: np.random.Generator, sheet: Sheet, left: float, right: float, top: float, foot: float, night: bool
) -> list:
    """Draw one house front and list where a window is lit."""
    wall = varied(
        rng, [(0.75, 0.68, 0.58), (0.6, 0.36, 0.28), (0.82, 0.78, 0.7), (0.5, 0.53, 0.56)][rng.integers(4)], 0.12
    )
    wall = wall * (0.17 if night else 1.0)
    sheet.polygon([left, top, right, top, right, foot, left, foot], wall)
    sheet.polygon([left, top, right, top, right, top + 0.012, left, top + 0.012], wall * 0.6)
    lit, columns = [], max(2, round((right - left) / rng.uniform(0.045, 0.075)))
    rows = max(2, round((foot - 0.08 - top) / rng.uniform(0.07, 0.1)))
    for row in range(rows):
        for column in range(columns):
            x = left + (right - left) * (column + 0.5) / columns
            y = top + 0.03 + (foot - 0.13 - top) * (row + 0.5) / rows
            half, tall = 0.3 * (right - left) / columns, 0.28 * (foot - 0.1 - top) / rows
            bright = night and rng.random() < 0.4
            glass = (
                varied(rng, WARM if rng.random() < 0.75 else COOL, 0.15)
                if bright
                else varied(rng, (0.25, 0.31, 0.38), 0.25)
            )
            glass = glass * (1.0 if bright or not night else 0.2)
            sheet.polygon(
                [
                    x - half * 1.2,
                    y - tall * 1.15,
                    x + half * 1.2,
                    y - tall * 1.15,
                    x + half * 1.2,
                    y + tall * 1.2,
                    x - half * 1.2,
                    y + tall * 1.2,
                ],
                wall * 1.25,
            )
            sheet.polygon([x - half, y - tall, x + half, y - tall, x + half, y + tall, x - half, y + tall], glass)
            if not bright:  # what the glass mirrors
                sheet.polygon([x - half, y - tall, x + 0.2 * half, y - tall, x - half, y + 0.6 * tall], glass * 1.5)
            sheet.line([x, y - tall, x, y + tall], wall * 1.1, 0.0018)
            sheet.line([x - half, y - 0.3 * tall, x + half, y - 0.3 * tall], wall * 1.1, 0.0018)
            sheet.polygon(
                [
                    x - 1.3 * half,
                    y + 1.2 * tall,
                    x + 1.3 * half,
                    y + 1.2 * tall,
                    x + 1.3 * half,
                    y + 1.35 * tall,
                    x - 1.3 * half,
                    y + 1.35 * tall,
                ],
                wall * 0.7,
            )
            if bright:
                lit.append((x, y, glass))
    shop = varied(rng, (0.3, 0.2, 0.16) if rng.random() < 0.5 else (0.12, 0.24, 0.22), 0.3) * (0.3 if night else 1)
    sheet.polygon([left, foot - 0.1, right, foot - 0.1, right, foot, left, foot], shop)
    bays = max(1, round((right - left) / 0.1))
    for bay in range(bays):
        x0, x1 = left + (right - left) * (bay + 0.1) / bays, left + (right - left) * (bay + 0.9) / bays
        pane = varied(rng, WARM, 0.1) * 0.95 if night else varied(rng, (0.32, 0.36, 0.38), 0.2)
        sheet.polygon([x0, foot - 0.08, x1, foot - 0.08, x1, foot - 0.015, x0, foot - 0.015], pane)
        if not night:
            stripes = 8
            cloth = varied(rng, (0.7, 0.2, 0.18), 0.2)
            for stripe in range(stripes):
                a, b = (x0 + (x1 - x0) * (stripe + k) / stripes for k in (0, 1))
                sheet.polygon(
                    [a, foot - 0.1, b, foot - 0.1, b, foot - 0.07, a, foot - 0.07],
                    cloth if stripe % 2 else (0.93, 0.9, 0.85),
                )
    return lit


def street(rng: np.random.Generator, size_px: tuple[int, int], night: bool | None = None) -> np.ndarray:
    """Draw a street of houses with lamps, cars and passers-by, by day or by night."""
    night = bool(rng.random() < 0.6) if night is None else night
    aspect, foot = size_px[1] / size_px[0], rng.uniform(0.62, 0.72)
    if night:
        rgb = sky(rng, size_px, (0.03, 0.045, 0.11), varied(rng, (0.26, 0.2, 0.28), 0.2), 0.12)
    else:
        rgb = sky(rng, size_px, varied(rng, (0.42, 0.6, 0.85)), (0.85, 0.9, 0.95), 0.8)
    sheet, lit, x = Sheet(size_px), [], -0.05
    while x < aspect + 0.05:
        wide = rng.uniform(0.16, 0.36)
        lit += _house(rng, sheet, x, x + wide, foot - rng.uniform(0.3, 0.66), foot, night)
        x += wide + (0.0 if rng.random() < 0.8 else 0.04)
    lay(rgb, sheet, 1 + 0.05 * grain(rng, size_px, 0.8) + 0.06 * grain(rng, size_px, 1.5))
    y = rows_of(size_px)
    pave = varied(rng, (0.42, 0.41, 0.4)) * (0.16 if night else 1.0)
    road = pave * (1 + 0.08 * grain(rng, size_px, 0.4) + 0.1 * grain(rng, size_px, 1.1, 4))[..., None]
    fill_below(rgb, np.full(size_px[1], foot), road)
    if night:  # wet: what stands above is mirrored, smeared downwards
        rows = int(foot * size_px[0])
        mirror = np.zeros_like(rgb)
        part = rgb[max(0, 2 * rows - size_px[0]) : rows][::-1]
        mirror[rows : rows + len(part)] = part
        mirror = np.stack([soft(mirror[..., c], 7) for c in range(3)], -1)
        rgb += (
            0.5 * mirror * np.clip(0.55 + 0.35 * grain(rng, size_px, 1.1, 6), 0, 1)[..., None] * (y > foot)[..., None]
        )
    sheet = Sheet(size_px)
    sheet.polygon([0, foot + 0.03, aspect, foot + 0.03, aspect, foot + 0.042, 0, foot + 0.042], pave * 1.35)
    for dash in np.arange(0, aspect, 0.16):
        sheet.polygon([dash, 0.86, dash + 0.08, 0.86, dash + 0.075, 0.875, dash - 0.005, 0.875], pave * 1.9)
    dark = 0.28 if night else 1.0
    cars, lamps = [], []
    for cx in rng.uniform(0, aspect, rng.integers(2, 6)):
        size, cy = rng.uniform(0.08, 0.12), foot + rng.uniform(0.06, 0.12)
        paint = (
            varied(
                rng,
                [(0.6, 0.1, 0.1), (0.15, 0.2, 0.35), (0.8, 0.8, 0.82), (0.1, 0.1, 0.11), (0.75, 0.6, 0.2)][
                    rng.integers(5)
                ],
                0.1,
            )
            * dark
        )
        roof = [
            cx - 0.6 * size,
            cy - 0.28 * size,
            cx - 0.38 * size,
            cy - 0.58 * size,
            cx + 0.32 * size,
            cy - 0.58 * size,
            cx + 0.68 * size,
            cy - 0.28 * size,
        ]
        sheet.polygon(
            [
                cx - size,
                cy,
                cx - size,
                cy - 0.22 * size,
                cx - 0.85 * size,
                cy - 0.3 * size,
                cx + 0.8 * size,
                cy - 0.3 * size,
                cx + size,
                cy - 0.18 * size,
                cx + size,
                cy,
            ],
            paint,
        )
        sheet.polygon(roof, np.array((0.2, 0.25, 0.3)) * dark)
        sheet.line(roof, paint * 1.1, 0.005)
        for wheel in (-0.58, 0.58):
            sheet.ellipse(
                (cx + (wheel - 0.19) * size, cy - 0.17 * size, cx + (wheel + 0.19) * size, cy + 0.2 * size),
                (0.04, 0.04, 0.05),
            )
            sheet.ellipse(
                (cx + (wheel - 0.1) * size, cy - 0.08 * size, cx + (wheel + 0.1) * size, cy + 0.11 * size),
                np.array((0.55, 0.55, 0.57)) * dark,
            )
        cars.append((cx, cy, size))
    for px in rng.uniform(0, aspect, rng.integers(2, 8)):
        tall, py = rng.uniform(0.09, 0.13), foot + rng.uniform(0.03, 0.06)
        coat = varied(rng, mix((0.3, 0.28, 0.33), rng.random(3), 0.3), 0.3) * dark
        sheet.tapered(np.array([[px, py - 0.78 * tall], [px, py - 0.35 * tall]]), np.array([0.2, 0.26]) * tall, coat)
        for leg in (-0.07, 0.07):
            sheet.line([px, py - 0.4 * tall, px + leg * tall * 1.5, py], coat * 0.5, 0.09 * tall)
        sheet.ellipse(
            (px - 0.08 * tall, py - tall, px + 0.08 * tall, py - 0.82 * tall), np.array((0.75, 0.55, 0.43)) * dark
        )
    for lx in np.arange(rng.uniform(0.02, 0.15), aspect, rng.uniform(0.2, 0.34)):
        high = rng.uniform(0.3, 0.36)
        sheet.line([lx, foot + 0.03, lx, foot - high], np.array((0.12, 0.13, 0.13)) * (0.5 if night else 1), 0.006)
        sheet.line([lx, foot - high, lx + 0.035, foot - high - 0.008], np.array((0.12, 0.13, 0.13)), 0.005)
        lamps.append((lx + 0.038, foot - high))
    if not night:
        for tx in rng.uniform(0, aspect, rng.integers(1, 4)):
            sheet.tapered(
                np.array([[tx, foot + 0.04], [tx, foot - 0.2]]), np.array([0.018, 0.012]), (0.24, 0.18, 0.13)
            )
            crowns(rng, sheet, foot - 0.26, 0.075, 6, (0.28, 0.44, 0.14), tx - 0.05, tx + 0.05)
    lay(rgb, sheet, 1 + 0.05 * grain(rng, size_px, 1.1))
    if night:
        for wx, wy, glass in lit:
            if rng.random() < 0.4:
                add_light(rgb, wx, wy, rng.uniform(1.5, 3.5), glass, rng.uniform(2, 6), 0.1)
        for lx, ly in lamps:
            add_light(rgb, lx, ly, rng.uniform(4, 6), WARM, rng.uniform(14, 30), 0.35)
            add_light(rgb, lx, 2 * foot - ly + 0.08, 4, WARM, 2.0, 0.2)
        for cx, cy, size in cars:
            add_light(rgb, cx + 0.96 * size, cy - 0.14 * size, 3.5, COOL, 24, 0.35)
            add_light(rgb, cx - 0.96 * size, cy - 0.17 * size, 3, (1, 0.12, 0.08), 12, 0.3)
        for _ in range(rng.integers(10, 40)):
            hue = [(1, 0.2, 0.15), (0.2, 0.9, 0.4), WARM, COOL, (0.95, 0.3, 0.8), (0.2, 0.5, 1)][rng.integers(6)]
            add_light(
                rgb, rng.uniform(0, aspect), rng.uniform(0.35, foot), rng.uniform(1.5, 4), hue, rng.uniform(4, 18), 0.2
            )
    else:
        for cx, cy, size in cars:
            add_light(rgb, cx - 0.2 * size, cy - 0.5 * size, 1.6, (1, 1, 1), 9, 0.15)
    return rgb


def _shelf_row(rng: np.random.Generator, sheet: Sheet, left: float, right: float, foot: float, tall: float) -> None:
    """Fill a shelf with books, jars and bottles."""
    x = left
    while x < right - 0.01:
        wide, high = rng.uniform(0.01, 0.026), tall * rng.uniform(0.55, 0.95)
        colour = varied(rng, rng.uniform(0.15, 0.8) * mix((0.8, 0.72, 0.6), rng.random(3), 0.55), 0.1)
        if rng.random() < 0.72:
            wide = min(wide, right - x)
            sheet.polygon([x, foot - high, x + wide, foot - high, x + wide, foot, x, foot], colour)
            sheet.polygon([x, foot - high, x + 0.25 * wide, foot - high, x + 0.25 * wide, foot, x, foot], colour * 1.3)
            for band in (0.2, 0.75):
                sheet.line([x, foot - band * high, x + wide, foot - band * high], np.clip(colour + 0.35, 0, 1), 0.002)
        else:
            wide = min(2 * wide, right - x)
            sheet.polygon([x, foot - 0.6 * high, x + wide, foot - 0.6 * high, x + wide, foot, x, foot], colour)
            sheet.polygon(
                [
                    x + 0.3 * wide,
                    foot - high,
                    x + 0.7 * wide,
                    foot - high,
                    x + 0.7 * wide,
                    foot - 0.6 * high,
                    x + 0.3 * wide,
                    foot - 0.6 * high,
                ],
                colour * 0.8,
            )
            sheet.line(
                [x + 0.2 * wide, foot - 0.55 * high, x + 0.2 * wide, foot - 0.1 * high],
                np.clip(colour + 0.4, 0, 1),
                0.003,
            )
        x += wide + 0.001


def room(rng: np.random.Generator, size_px: tuple[int, int]) -> np.ndarray:
    """Draw a living room: wall, window with a view, shelf, sofa, lamp, pictures, a floor of planks."""
    aspect, foot = size_px[1] / size_px[0], rng.uniform(0.68, 0.76)
    y = rows_of(size_px)
    wall = varied(
        rng, [(0.8, 0.76, 0.68), (0.55, 0.64, 0.62), (0.72, 0.6, 0.52), (0.62, 0.66, 0.74)][rng.integers(4)], 0.08
    )
    rgb = (wall * (0.62 + 0.3 * soft(np.clip(grain(rng, size_px, 2.0), -2, 2), 20) * 0.3 + 0.2 * y)[..., None]).astype(
        np.float32
    )
    rgb *= 1 + 0.02 * grain(rng, size_px, 0.4)[..., None]
    sheet = Sheet(size_px)
    wx, wide = rng.uniform(0.08, 0.55) * aspect, rng.uniform(0.26, 0.36)  # the window, and what is behind it
    pane = sky(rng, size_px, (0.75, 0.86, 0.98), (0.98, 0.98, 0.95), 0.8)
    view = Sheet(size_px)
    view.polygon([wx, 0.12, wx + wide, 0.12, wx + wide, 0.56, wx, 0.56], (1, 1, 1))
    trees = Sheet(size_px)
    crowns(rng, trees, 0.5, 0.07, 9, (0.45, 0.62, 0.28), wx, wx + wide)
    lay(pane, trees)
    rgb += (1.15 * pane - rgb) * view.mask()[..., None]
    for k in range(3):
        sheet.line([wx + wide * k / 2, 0.12, wx + wide * k / 2, 0.56], (0.93, 0.92, 0.9), 0.014)
    for k in (0.12, 0.3, 0.56):
        sheet.line([wx, k, wx + wide, k], (0.93, 0.92, 0.9), 0.014)
    cloth = varied(rng, (0.75, 0.66, 0.58) if rng.random() < 0.5 else (0.4, 0.5, 0.6), 0.15)
    for side in (wx - 0.03, wx + wide - 0.05):
        for fold in np.linspace(0, 0.08, 9):
            tone = 0.72 + 0.3 * np.sin(fold * 170) ** 2
            sheet.tapered(
                curve((side + fold, 0.08), (side + fold, 0.3), (side + fold * 1.25, 0.62), 6),
                np.full(6, 0.0125),
                cloth * tone,
            )
    sx, shelf = (wx + wide + 0.12) % (aspect - 0.2), varied(rng, (0.42, 0.29, 0.18), 0.15)
    sheet.polygon([sx, 0.16, sx + 0.28, 0.16, sx + 0.28, foot + 0.02, sx, foot + 0.02], shelf * 0.45)
    for row in np.arange(0.16, foot - 0.04, 0.12):
        sheet.polygon([sx - 0.01, row, sx + 0.29, row, sx + 0.29, row + 0.012, sx - 0.01, row + 0.012], shelf * 1.1)
        _shelf_row(rng, sheet, sx + 0.005, sx + 0.275, row + 0.12, 0.1)
    for k in (sx, sx + 0.28):
        sheet.line([k, 0.16, k, foot + 0.02], shelf, 0.012)
    for _ in range(rng.integers(1, 4)):
        px, py, w, h = (
            rng.uniform(0, aspect - 0.2),
            rng.uniform(0.1, 0.3),
            rng.uniform(0.08, 0.16),
            rng.uniform(0.1, 0.16),
        )
        if px + w < wx - 0.05 or (px > wx + wide + 0.05 and (px + w < sx - 0.02 or px > sx + 0.32)):
            sheet.polygon([px, py, px + w, py, px + w, py + h, px, py + h], (0.15, 0.12, 0.1))
            sheet.polygon(
                [
                    px + 0.01,
                    py + 0.01,
                    px + w - 0.01,
                    py + 0.01,
                    px + w - 0.01,
                    py + h - 0.01,
                    px + 0.01,
                    py + h - 0.01,
                ],
                (0.93, 0.92, 0.88),
            )
            for _ in range(5):
                cx, cy, r = px + w * rng.uniform(0.3, 0.7), py + h * rng.uniform(0.3, 0.7), rng.uniform(0.008, 0.025)
                sheet.ellipse((cx - r, cy - r, cx + r, cy + r), rng.random(3))
    sheet.polygon([0, foot - 0.02, aspect, foot - 0.02, aspect, foot, 0, foot], (0.9, 0.89, 0.86))
    tone, vanish = varied(rng, (0.5, 0.34, 0.21), 0.15), aspect * rng.uniform(0.3, 0.7)
    for plank in range(-22, 24):  # planks towards one vanishing point
        a, b = (vanish + 0.055 * (plank + k) for k in (0, 1))
        c, d = (vanish + 0.16 * (plank + k) for k in (0, 1))
        sheet.polygon([a, foot, b, foot, d, 1.01, c, 1.01], tone * rng.uniform(0.78, 1.15))
        sheet.line([a, foot, c, 1.01], tone * 0.5, 0.0016)
    sofa, ox = varied(rng, rng.uniform(0.2, 0.6, 3), 0.1), rng.uniform(-0.1, aspect - 0.5)
    for part, gain in (
        ((0, -0.2, 0.52, 0.06), 0.85),
        ((-0.03, -0.1, 0.06, 0.1), 1.1),
        ((0.46, -0.1, 0.55, 0.1), 0.9),
        ((0.04, -0.03, 0.48, 0.09), 1.05),
    ):
        box = [sheet.scale * v for v in (ox + part[0], foot + part[1], ox + part[2], foot + part[3])]
        sheet.draw.rounded_rectangle(box, radius=0.02 * sheet.scale, fill=sheet._ink(sofa * gain))
    for k in (0.1, 0.33):
        pillow = varied(rng, rng.uniform(0.3, 0.9, 3), 0.1)
        sheet.polygon(
            [ox + k, foot - 0.12, ox + k + 0.1, foot - 0.135, ox + k + 0.11, foot - 0.03, ox + k - 0.01, foot - 0.025],
            pillow,
        )
    lx = (ox + 0.62) % aspect
    sheet.line([lx, foot + 0.06, lx, 0.36], (0.2, 0.17, 0.13), 0.007)
    sheet.ellipse((lx - 0.05, foot + 0.05, lx + 0.05, foot + 0.07), (0.2, 0.17, 0.13))
    sheet.polygon([lx - 0.04, 0.28, lx + 0.04, 0.28, lx + 0.075, 0.38, lx - 0.075, 0.38], (1.0, 0.86, 0.6))
    lay(rgb, sheet, 1 + 0.07 * grain(rng, size_px, 0.8, 4) + 0.05 * grain(rng, size_px, 2.0))
    add_light(rgb, lx, 0.36, 9, WARM, 10, 0.5)
    yy, xx = np.mgrid[: size_px[0], : size_px[1]].astype(np.float32) / size_px[0]
    shine = np.exp(-((xx - wx - wide / 2) ** 2) / 0.02 - (yy - foot - 0.12) ** 2 / 0.008)
    rgb += 0.22 * shine[..., None] + 0.2 * np.exp(-(np.hypot(xx - lx, yy - 0.33) ** 2) / 0.03)[..., None] * np.array(
        WARM
    )
    for _ in range(rng.integers(4, 20)):
        add_light(
            rgb, rng.uniform(sx, sx + 0.28), rng.uniform(0.18, foot), 1.4, (1, 0.95, 0.85), rng.uniform(2, 10), 0.05
        )
    return rgb


def cafe(rng: np.random.Generator, size_px: tuple[int, int]) -> np.ndarray:
    """Draw a bar or a shop at night: shelves, a counter, hanging lamps, strings of small lights."""
    aspect = size_px[1] / size_px[0]
    wood = varied(rng, (0.34, 0.22, 0.14), 0.15)
    rgb = (wood * 0.6 * (1 + 0.2 * grain(rng, size_px, 0.8, 6))[..., None]).astype(np.float32)
    sheet = Sheet(size_px)
    for row in np.arange(0.2, 0.7, rng.uniform(0.12, 0.16)):
        sheet.polygon([0, row, aspect, row, aspect, row + 0.012, 0, row + 0.012], wood * 1.3)
        _shelf_row(rng, sheet, 0, aspect, row, 0.1)
    sheet.polygon([0, 0.74, aspect, 0.74, aspect, 0.78, 0, 0.78], wood * 1.9)
    for x in np.arange(0, aspect, 0.11):
        sheet.polygon([x, 0.78, x + 0.105, 0.78, x + 0.105, 1.01, x, 1.01], wood * rng.uniform(0.75, 1.05))
    for x in rng.uniform(0, aspect, rng.integers(4, 10)):
        size, cup = rng.uniform(0.02, 0.035), varied(rng, (0.85, 0.82, 0.76), 0.2)
        sheet.polygon(
            [x - size, 0.74 - 1.3 * size, x + size, 0.74 - 1.3 * size, x + 0.7 * size, 0.745, x - 0.7 * size, 0.745],
            cup,
        )
        sheet.ring(x + 1.2 * size, 0.74 - 0.7 * size, 0.4 * size, cup * 0.9, 0.004)
    lamps = [(x, rng.uniform(0.1, 0.18)) for x in np.arange(rng.uniform(0.05, 0.15), aspect, rng.uniform(0.18, 0.3))]
    for x, y in lamps:
        sheet.line([x, 0, x, y - 0.04], (0.05, 0.05, 0.05), 0.003)
        sheet.polygon(
            [x - 0.015, y - 0.05, x + 0.015, y - 0.05, x + 0.05, y, x - 0.05, y], varied(rng, (0.12, 0.14, 0.15), 0.3)
        )
    lay(rgb, sheet, 1 + 0.06 * grain(rng, size_px, 0.8, 3))
    yy, xx = np.mgrid[: size_px[0], : size_px[1]].astype(np.float32) / size_px[0]
    light = sum(
        np.exp(-((xx - x) ** 2) / 0.02 - (yy - y - 0.12).clip(0) ** 2 / 0.12) * (yy > y - 0.02) for x, y in lamps
    )
    rgb *= (0.4 + 0.8 * light)[..., None] * np.array((1.05, 0.95, 0.8), np.float32)
    for x, y in lamps:
        add_light(rgb, x, y + 0.004, rng.uniform(5, 8), WARM, rng.uniform(10, 26), 0.4)
    for _ in range(rng.integers(2, 5)):  # strings of lights
        start, end = (-0.05, rng.uniform(0.05, 0.5)), (aspect + 0.05, rng.uniform(0.05, 0.5))
        string = curve(start, (aspect / 2, max(start[1], end[1]) + rng.uniform(0.1, 0.35)), end, rng.integers(18, 34))
        hue = WARM if rng.random() < 0.6 else None
        for x, y in string:
            colour = hue or [(1, 0.25, 0.2), (0.3, 1, 0.4), (0.3, 0.5, 1), WARM, (1, 0.4, 0.8)][rng.integers(5)]
            add_light(rgb, x, y, rng.uniform(1.8, 3.2), colour, rng.uniform(8, 24), 0.25)
    for _ in range(rng.integers(30, 80)):  # glints on glass
        add_light(
            rgb,
            rng.uniform(0, aspect),
            rng.uniform(0.12, 0.74),
            rng.uniform(0.8, 1.5),
            (1, 0.9, 0.75),
            rng.uniform(2, 8),
            0.05,
        )
    return rgb
