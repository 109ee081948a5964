"""Drawn views outdoors, as `backgrounds` describes them."""

import numpy as np

from datasets_scripts.canvas import Sheet, add_light, curve, grain, mix, ridge, soft, varied
from datasets_scripts.view_parts import crowns, fill_below, grass, lay, rows_of, sky


def meadow(rng: np.random.Generator, size_px: tuple[int, int]) -> np.ndarray:
    """Draw a park or a meadow with hills, trees, grass and flowers under a sky."""
    horizon = rng.uniform(0.38, 0.55)
    rgb = sky(rng, size_px, varied(rng, (0.3, 0.52, 0.85)), varied(rng, (0.78, 0.87, 0.94)), rng.uniform(0.2, 0.95))
    for level in range(3):
        line = horizon - 0.09 * (2 - level) / 2 + 0.025 * ridge(rng, size_px[1], 0.25)
        hill = mix((0.52, 0.63, 0.68), (0.3, 0.45, 0.2), level / 2) * (1 + 0.06 * grain(rng, size_px, 0.8))[..., None]
        fill_below(rgb, line, hill)
    green = varied(rng, (0.36, 0.52, 0.16), 0.12)
    ground = green * (0.75 + 0.35 * rows_of(size_px)[..., None]) * (1 + 0.12 * grain(rng, size_px, 1.1, 3))[..., None]
    fill_below(rgb, np.full(size_px[1], horizon + 0.03), ground)
    sheet = Sheet(size_px)
    for x in rng.uniform(0, sheet.aspect, rng.integers(3, 8)):  # trees: trunk, then clumps
        size, foot = rng.uniform(0.05, 0.13), horizon + rng.uniform(0.02, 0.08)
        sheet.tapered(np.array([[x, foot], [x, foot - 2 * size]]), np.array([0.2, 0.12]) * size, (0.25, 0.19, 0.13))
        tone = varied(rng, (0.24, 0.4, 0.13), 0.15) if rng.random() < 0.8 else varied(rng, (0.7, 0.42, 0.12), 0.1)
        crowns(rng, sheet, foot - 2.3 * size, size, 4, tone, x - 0.7 * size, x + 0.7 * size)
    crowns(rng, sheet, horizon + 0.03, 0.04, 14, (0.2, 0.36, 0.12), 0, sheet.aspect)
    if rng.random() < 0.5:  # a path that narrows towards the horizon
        x, end = rng.uniform(0.2, 0.8, 2) * sheet.aspect
        bend = ((x + end) / 2, horizon + 0.1)
        path = curve((end, horizon + 0.05), bend, (x, 1.05), 20)
        sheet.tapered(path, np.linspace(0.01, 0.35, 20), varied(rng, (0.68, 0.62, 0.5)))
    grass(rng, sheet, horizon + 0.06, 2600, green)
    count = rng.integers(60, 260)
    hue = varied(rng, [(0.95, 0.85, 0.2), (0.9, 0.25, 0.3), (0.95, 0.95, 0.97), (0.65, 0.45, 0.85)][rng.integers(4)])
    for share, x in zip(rng.random(count), rng.uniform(0, sheet.aspect, count), strict=True):
        y, radius = horizon + 0.08 + 0.55 * share, 0.0015 + 0.007 * share
        sheet.ellipse((x - radius, y - 0.8 * radius, x + radius, y + 0.8 * radius), varied(rng, hue))
    lay(rgb, sheet)
    return rgb * (1 + 0.05 * grain(rng, size_px, 1.5)[..., None])


def forest(rng: np.random.Generator, size_px: tuple[int, int]) -> np.ndarray:
    """Draw a forest: trunks behind trunks, sunlit leaves, bright holes of sky between them."""
    autumn = rng.random() < 0.35
    green = varied(rng, (0.68, 0.45, 0.14) if autumn else (0.34, 0.5, 0.15), 0.12)
    glow = soft(np.clip(grain(rng, size_px, 1.5), 0, 3), 30)
    rgb = mix(green * 0.5, (0.86, 0.9, 0.68), np.clip(0.75 - 0.9 * rows_of(size_px) + 0.3 * glow, 0, 1))
    ground = mix((0.3, 0.24, 0.14), green * 0.8, np.clip(0.5 + 0.3 * grain(rng, size_px, 1.1, 3), 0, 1))
    fill_below(rgb, 0.7 + 0.01 * ridge(rng, size_px[1], 0.6), ground)
    for layer in range(3):
        sheet, nearness = Sheet(size_px), layer / 2
        haze = 0.55 * (1 - nearness)
        for x in rng.uniform(-0.05, sheet.aspect + 0.05, 13 - 4 * layer):
            width, foot = rng.uniform(0.012, 0.03) * (1 + 1.9 * nearness), 0.7 + 0.2 * nearness + rng.normal(0, 0.02)
            spine = curve((x, foot), (x + rng.normal(0, 0.02), 0.5), (x + rng.normal(0, 0.05), -0.05), 12)
            bark = mix(varied(rng, (0.27, 0.2, 0.15), 0.15), green * 1.3, haze)
            sheet.tapered(spine, np.linspace(1.25, 0.7, 12) * width, bark * 0.75)
            lit = spine - np.array([0.2 * width, 0])
            sheet.tapered(lit, np.linspace(0.5, 0.3, 12) * width, bark * 1.25)
        tone = mix(green, (0.85, 0.88, 0.6), 0.8 * haze)
        crowns(rng, sheet, 0.12, 0.1 + 0.06 * nearness, 12, tone, -0.05, sheet.aspect + 0.05)
        crowns(rng, sheet, 0.66 + 0.2 * nearness, 0.05 + 0.03 * nearness, 12, tone * 0.8, 0, sheet.aspect)
        lay(rgb, sheet, 1 + 0.16 * grain(rng, size_px, 0.8, 0.3))
    for _ in range(rng.integers(60, 160)):  # the sky through the leaves
        add_light(
            rgb,
            rng.uniform(0, size_px[1] / size_px[0]),
            rng.beta(1.2, 3) * 0.62,
            rng.uniform(0.8, 3.2),
            (0.96, 1.0, 0.82),
            rng.uniform(1.2, 9),
            0.12,
        )
    return rgb


def seaside(rng: np.random.Generator, size_px: tuple[int, int]) -> np.ndarray:
    """Draw the sea with a low sun, glitter on the water, and a shore."""
    aspect, horizon, sun = size_px[1] / size_px[0], rng.uniform(0.42, 0.55), rng.uniform(0.2, 0.8)
    evening = rng.random() < 0.65
    top, low = ((0.25, 0.3, 0.52), (0.98, 0.62, 0.36)) if evening else ((0.22, 0.46, 0.82), (0.8, 0.9, 0.97))
    rgb = sky(rng, size_px, varied(rng, top), varied(rng, low), rng.uniform(0.3, 0.9))
    y, x = np.mgrid[: size_px[0], : size_px[1]].astype(np.float32) / size_px[0]
    height = horizon - rng.uniform(0.06, 0.2)
    rgb += 0.4 * np.exp(-(np.hypot(x - sun * aspect, y - height) ** 2) / 0.05)[..., None] * np.array((1, 0.8, 0.5))
    for level in range(2):
        line = horizon - 0.008 - 0.03 * (1 - level) * np.clip(ridge(rng, size_px[1], 0.2) + 0.4, 0, 3)
        fill_below(rgb, line.astype(np.float32), mix(low, top, 0.35 + 0.35 * level) * 0.72)
    waves = grain(rng, size_px, 0.8, 9) * (0.25 + (y - horizon).clip(0)) + 0.4 * grain(rng, size_px, 1.1, 5)
    water = mix(
        np.asarray(low) * 0.85, varied(rng, (0.1, 0.26, 0.36)), np.clip(2.2 * (y - horizon) + 0.12 * waves + 0.2, 0, 1)
    )
    fill_below(rgb, np.full(size_px[1], horizon), water + 0.035 * waves[..., None])
    shore = 0.83 + 0.02 * ridge(rng, size_px[1], 0.1)
    sand = (
        varied(rng, (0.76, 0.65, 0.47))
        * (1 + 0.07 * grain(rng, size_px, 0.8, 2) + 0.05 * grain(rng, size_px, 0.4))[..., None]
    )
    fill_below(rgb, shore - 0.012, np.array((0.92, 0.93, 0.92)))
    fill_below(rgb, shore, sand * (0.68 + 0.35 * np.clip((y - 0.83) * 9, 0, 1))[..., None])
    sheet = Sheet(size_px)
    for _ in range(rng.integers(2, 6)):  # boats
        bx, size = rng.uniform(0, aspect), rng.uniform(0.012, 0.04)
        by = horizon + 0.5 * size
        sheet.polygon(
            [bx - size, by, bx + size, by, bx + 0.7 * size, by + 0.3 * size, bx - 0.8 * size, by + 0.3 * size],
            varied(rng, (0.5, 0.2, 0.15), 0.3),
        )
        sheet.polygon([bx, by - 2 * size, bx + 0.8 * size, by - 0.1 * size, bx, by - 0.1 * size], (0.94, 0.92, 0.88))
    for _ in range(rng.integers(20, 60)):  # stones
        sx, share = rng.uniform(0, aspect), rng.random()
        size, sy = 0.004 + 0.018 * share, 0.86 + 0.14 * share
        tone = varied(rng, (0.42, 0.39, 0.36), 0.15)
        sheet.ellipse((sx - size, sy - 0.6 * size, sx + size, sy + 0.6 * size), tone * 0.7)
        sheet.ellipse((sx - 0.9 * size, sy - 0.6 * size, sx + 0.7 * size, sy + 0.3 * size), tone)
    lay(rgb, sheet, 1 + 0.06 * grain(rng, size_px, 0.8))
    add_light(rgb, sun * aspect, height, 13, (1, 0.9, 0.7), 14, 0.5)
    for share in rng.beta(0.8, 1.8, rng.integers(90, 260)):
        spread = 0.02 + 0.22 * share
        add_light(
            rgb,
            sun * aspect + rng.normal(0, spread),
            horizon + 0.01 + 0.32 * share,
            rng.uniform(0.7, 1.0 + 2.0 * share),
            (1, 0.85, 0.6) if evening else (1, 1, 1),
            rng.uniform(2, 16),
            0.1,
        )
    return rgb


def mountains(rng: np.random.Generator, size_px: tuple[int, int]) -> np.ndarray:
    """Draw mountain ranges in haze, with a lake or fields in front."""
    top, low = varied(rng, (0.3, 0.48, 0.78)), varied(rng, (0.9, 0.82, 0.74), 0.06)
    rgb = sky(rng, size_px, top, low, rng.uniform(0.2, 0.8))
    near, foot = varied(rng, (0.14, 0.22, 0.2), 0.2), rng.uniform(0.58, 0.68)
    for level in range(5):
        share = level / 4
        line = foot - 0.3 + 0.27 * share + (0.075 - 0.05 * share) * ridge(rng, size_px[1], 0.35 + 0.2 * share)
        facet = grain(rng, size_px, 1.1, 0.7)
        rock = mix(low * 0.8, near, 0.25 + 0.75 * share) * (1 + (0.12 + 0.1 * share) * facet)[..., None]
        if level < 2:  # snow on the far heights
            snow = np.clip((line[None] + 0.09 - rows_of(size_px)) * 14 + 0.7 * facet, 0, 1)
            rock = rock + (np.array((0.95, 0.95, 0.98)) - rock) * snow[..., None] * 0.85
        fill_below(rgb, line, rock.astype(np.float32))
    rows = int(foot * size_px[0])
    mirror = rgb[max(0, 2 * rows - size_px[0]) : rows][::-1]
    depth = np.zeros(size_px, np.float32)
    depth[rows:] = np.linspace(0, 1, size_px[0] - rows)[:, None]
    lake = rgb.copy()
    lake[rows : rows + len(mirror)] = mirror
    ripple = grain(rng, size_px, 1.1, 8)
    shift = (ripple * (1 + 5 * depth)).astype(int)
    columns = np.clip(np.arange(size_px[1])[None] + shift, 0, size_px[1] - 1)
    lake = np.take_along_axis(lake, columns[..., None], 1) * (0.82 + 0.05 * ripple)[..., None]
    fill_below(rgb, np.full(size_px[1], foot), mix((0, 0, 0), (1, 1, 1), 0.92) * lake)
    sheet = Sheet(size_px)
    for x in rng.uniform(-0.02, sheet.aspect, rng.integers(18, 46)):  # firs on the near shore
        size = rng.uniform(0.04, 0.16)
        y, tone = rng.uniform(0.9, 1.02), varied(rng, (0.1, 0.2, 0.12), 0.3)
        for tier in range(8):
            share = tier / 8
            wide = size * (0.06 + 0.3 * share)
            jag = np.array(
                [
                    [x, y - size * (1.55 - share)],
                    [x + wide, y - size * (1.2 - share)],
                    [x + 0.4 * wide, y - size * (1.25 - share)],
                    [x - 0.5 * wide, y - size * (1.23 - share)],
                    [x - wide, y - size * (1.19 - share)],
                ]
            )
            sheet.polygon(jag, tone * rng.uniform(0.75, 1.25))
    crowns(rng, sheet, 1.0, 0.06, 16, (0.26, 0.36, 0.14), 0, sheet.aspect)
    lay(rgb, sheet, 1 + 0.1 * grain(rng, size_px, 0.4))
    for _ in range(rng.integers(0, 60)):
        add_light(
            rgb,
            rng.uniform(0, sheet.aspect),
            foot + 0.2 * rng.random(),
            rng.uniform(0.7, 1.8),
            (1, 0.95, 0.85),
            rng.uniform(2, 8),
            0.1,
        )
    return rgb


def garden_wall(rng: np.random.Generator, size_px: tuple[int, int]) -> np.ndarray:
    """Draw an old brick wall with ivy, a bed of flowers and dappled sun."""
    aspect = size_px[1] / size_px[0]
    brick, sheet = varied(rng, (0.55, 0.32, 0.24) if rng.random() < 0.6 else (0.62, 0.58, 0.52), 0.12), None
    sheet = Sheet(size_px, varied(rng, (0.66, 0.62, 0.56), 0.06))
    high, wide = 0.034, 0.1
    for row in range(int(0.84 / high) + 1):
        for column in range(-1, int(aspect / wide) + 2):
            x, y = (column + 0.5 * (row % 2)) * wide, row * high
            tone = varied(rng, brick, 0.13)
            corners = np.array(
                [[x, y], [x + wide - 0.006, y], [x + wide - 0.006, y + high - 0.006], [x, y + high - 0.006]]
            )
            sheet.polygon(corners + rng.normal(0, 0.0007, (4, 2)), tone)
            sheet.line(corners[:2] + (0, 0.001), np.clip(tone * 1.18, 0, 1), 0.002)
    soil = varied(rng, (0.25, 0.18, 0.12), 0.1)
    sheet.polygon([0, 0.84, aspect, 0.84, aspect, 1.01, 0, 1.01], soil)
    rgb = sheet.rgba()[..., :3] * (1 + 0.09 * grain(rng, size_px, 0.8) + 0.08 * grain(rng, size_px, 1.5))[..., None]
    plants = Sheet(size_px)
    for _ in range(rng.integers(2, 6)):
        crowns(
            rng,
            plants,
            rng.uniform(0.0, 0.4),
            rng.uniform(0.05, 0.09),
            6,
            (0.2, 0.38, 0.13),
            *np.sort(rng.uniform(-0.05, aspect, 2)),
        )
    crowns(rng, plants, 0.84, 0.06, 14, (0.27, 0.44, 0.16), 0, aspect)
    for _ in range(rng.integers(50, 150)):
        x, y, r = rng.uniform(0, aspect), rng.normal(0.84, 0.035), rng.uniform(0.006, 0.014)
        hue = varied(
            rng, [(0.9, 0.3, 0.45), (0.95, 0.8, 0.25), (0.9, 0.88, 0.9), (0.6, 0.4, 0.8)][rng.integers(4)], 0.1
        )
        for k in range(5):
            px, py = x + r * np.cos(k * 1.2566), y + r * np.sin(k * 1.2566)
            plants.ellipse((px - 0.7 * r, py - 0.7 * r, px + 0.7 * r, py + 0.7 * r), hue * rng.uniform(0.85, 1.1))
        plants.ellipse((x - 0.5 * r, y - 0.5 * r, x + 0.5 * r, y + 0.5 * r), (0.9, 0.75, 0.2))
    grass(rng, plants, 0.86, 700, (0.3, 0.46, 0.16))
    lay(rgb, plants)
    sun = soft((grain(rng, size_px, 1.1) > 0.25).astype(np.float32), 4)
    rgb = rgb * (0.58 + 0.62 * sun)[..., None] * mix((0.92, 0.97, 1.06), (1.08, 1.0, 0.86), sun)
    for _ in range(rng.integers(20, 90)):
        add_light(
            rgb,
            rng.uniform(0, aspect),
            rng.uniform(0, 0.95),
            rng.uniform(0.7, 1.6),
            (1, 1, 0.85),
            rng.uniform(2, 8),
            0.05,
        )
    return rgb.astype(np.float32)
