"""Drawn plants: in pots, as twigs, as a little tree, cut and in a vase, as `foregrounds` describes them."""

import numpy as np

from datasets_scripts.canvas import Sheet, curve, grain, leaves, mix, paint, soft, varied
from datasets_scripts.figure_parts import blossoms, foliage, inside, picture_size, round_part, shape


def potted_plant(rng: np.random.Generator) -> np.ndarray:
    """Draw a house plant with large leaves in a pot."""
    aspect = rng.uniform(0.85, 1.05)
    size_px, x = picture_size(aspect), aspect / 2
    sheet, green = Sheet(size_px), varied(rng, (0.2, 0.42, 0.16), 0.15)
    slim = rng.random() < 0.4
    count = rng.integers(34, 60) if slim else rng.integers(20, 34)
    for k in range(count):
        lean = rng.uniform(-1, 1)
        tip = np.array([x + 0.36 * lean * aspect, 0.2 + 0.36 * rng.random() * abs(lean) + 0.24 * rng.random()])
        stalk = curve((x + 0.05 * lean, 0.72), (x + 0.12 * lean, 0.35), tip, 14)
        sheet.line(stalk, green * 0.8, 0.006)
        angle = np.arctan2(*(stalk[-1] - stalk[-4])[::-1]) + rng.normal(0.25 * lean, 0.35)
        length = rng.uniform(0.16, 0.26)
        tone = np.clip(varied(rng, green, 0.1) * (0.6 + 0.65 * k / count), 0, 1)
        leaves(
            sheet,
            rng,
            tip[None],
            np.array([angle]),
            np.array([length]),
            tone[None],
            width=0.16 if slim else rng.uniform(0.45, 0.75),
        )
        for vein in np.linspace(0.2, 0.8, 0 if slim else 6):
            along = np.array([np.cos(angle), np.sin(angle)])
            root = tip + vein * length * along
            for side in (-1, 1):
                out = side * np.array([-along[1], along[0]])
                sheet.line(
                    np.stack([root, root + 0.2 * length * np.sin(np.pi * vein) * (0.6 * out + 0.7 * along)]),
                    np.clip(tone * 1.2, 0, 1),
                    0.0013,
                )
    drawn = sheet.rgba()
    drawn[..., :3] = np.clip(drawn[..., :3] * (1 + 0.07 * grain(rng, size_px, 0.8))[..., None], 0, 1)
    pot, clay = (
        np.zeros_like(drawn),
        varied(rng, [(0.68, 0.36, 0.24), (0.85, 0.83, 0.8), (0.25, 0.3, 0.36)][rng.integers(3)], 0.1),
    )
    body = shape(
        size_px,
        ("polygon", [x - 0.17, 0.72, x + 0.17, 0.72, x + 0.125, 0.985, x - 0.125, 0.985]),
        ("ellipse", (x - 0.125, 0.965, x + 0.125, 1.0)),
    )
    round_part(pot, body, clay * (1 + 0.06 * grain(rng, size_px, 1.1))[..., None], 0.14)
    round_part(
        pot,
        shape(size_px, ("polygon", [x - 0.185, 0.68, x + 0.185, 0.68, x + 0.18, 0.735, x - 0.18, 0.735])),
        clay * 1.08,
        0.16,
    )
    if rng.random() < 0.5:
        band = Sheet(size_px)
        for k in np.linspace(-0.14, 0.14, 15):
            band.polygon(
                [x + k - 0.01, 0.83, x + k, 0.805, x + k + 0.01, 0.83, x + k, 0.855], np.clip(clay * 1.5, 0, 1)
            )
        paint(pot, 0.8 * band.mask() * body, band.rgba()[..., :3])
    paint(pot, drawn[..., 3], drawn[..., :3])
    return pot


def _bough(
    rng: np.random.Generator,
    sheet: Sheet,
    start: np.ndarray,
    angle: float,
    length: float,
    width: float,
    depth: int,
    bark: np.ndarray,
    ends: list,
) -> None:
    """Draw a branch that forks, and list where and how its twigs end."""
    tip = start + length * np.array([np.cos(angle), np.sin(angle)])
    bend = (start + tip) / 2 + rng.normal(0, 0.1, 2) * length
    spine = curve(start, bend, tip, 10)
    sheet.tapered(spine, np.linspace(width, 0.68 * width, 10), bark * 0.8)
    sheet.tapered(spine - np.array([0.18 * width, 0]), np.linspace(0.4, 0.25, 10) * width, bark * 1.25)
    if depth <= 2:
        ends += [(point, angle) for point in spine[3::2]]
    if depth == 0:
        return
    for _ in range(rng.integers(2, 4)):
        _bough(
            rng,
            sheet,
            spine[rng.integers(6, 10)],
            angle + rng.normal(0, 0.6),
            length * rng.uniform(0.6, 0.85),
            0.62 * width,
            depth - 1,
            bark,
            ends,
        )


def branches(rng: np.random.Generator) -> np.ndarray:
    """Draw leafy twigs with blossoms that rise from the lower edge."""
    aspect = rng.uniform(0.9, 1.2)
    sheet, ends, bark = Sheet(picture_size(aspect)), [], varied(rng, (0.34, 0.24, 0.17), 0.15)
    for _ in range(rng.integers(2, 4)):
        start = np.array([rng.uniform(0.3, 0.7) * aspect, 1.02])
        _bough(rng, sheet, start, -np.pi / 2 + rng.normal(0, 0.3), rng.uniform(0.28, 0.36), 0.032, 4, bark, ends)
    autumn = rng.random() < 0.3
    foliage(
        rng,
        sheet,
        ends,
        3,
        rng.uniform(0.045, 0.075),
        varied(rng, (0.72, 0.38, 0.12) if autumn else (0.36, 0.56, 0.18), 0.12),
        rng.uniform(0.35, 0.6),
    )
    if not autumn and rng.random() < 0.7:
        hue = np.array([(0.97, 0.78, 0.84), (0.97, 0.95, 0.92), (0.85, 0.3, 0.42)][rng.integers(3)])
        blossoms(
            rng,
            sheet,
            np.array([end[0] for end in ends])[rng.integers(len(ends), size=34)] + rng.normal(0, 0.02, (34, 2)),
            0.032,
            hue,
        )
    return inside(sheet.rgba())


def little_tree(rng: np.random.Generator) -> np.ndarray:
    """Draw a small tree in a bowl."""
    aspect = rng.uniform(0.95, 1.15)
    size_px, x = picture_size(aspect), aspect / 2
    sheet, ends = Sheet(size_px), []
    _bough(
        rng,
        sheet,
        np.array([x, 0.86]),
        -np.pi / 2 + rng.normal(0, 0.15),
        0.24,
        0.075,
        4,
        varied(rng, (0.36, 0.26, 0.19), 0.1),
        ends,
    )
    ends = [end for end in ends if end[0][1] < 0.68] or ends
    foliage(rng, sheet, ends, 9, rng.uniform(0.026, 0.04), varied(rng, (0.24, 0.44, 0.16), 0.15), 0.6)
    rgba = np.zeros((*size_px, 4), np.float32)
    glaze = varied(rng, [(0.2, 0.33, 0.45), (0.5, 0.27, 0.2), (0.3, 0.38, 0.3)][rng.integers(3)], 0.1)
    drawn = sheet.rgba()
    paint(rgba, drawn[..., 3], np.clip(drawn[..., :3] * (1 + 0.1 * grain(rng, size_px, 0.4))[..., None], 0, 1))
    round_part(
        rgba,
        shape(
            size_px,
            ("polygon", [x - 0.27, 0.86, x + 0.27, 0.86, x + 0.2, 0.97, x - 0.2, 0.97]),
            ("polygon", [x - 0.17, 0.96, x - 0.1, 0.96, x - 0.11, 0.995, x - 0.16, 0.995]),
            ("polygon", [x + 0.1, 0.96, x + 0.17, 0.96, x + 0.16, 0.995, x + 0.11, 0.995]),
        ),
        glaze,
        0.06,
    )
    moss = shape(size_px, ("ellipse", (x - 0.26, 0.835, x + 0.26, 0.885)))
    paint(rgba, moss, mix((0.2, 0.27, 0.1), (0.4, 0.48, 0.18), np.clip(0.5 + 0.3 * grain(rng, size_px, 0.4), 0, 1)))
    return inside(rgba)


def bouquet(rng: np.random.Generator) -> np.ndarray:
    """Draw flowers in a glass vase."""
    aspect = rng.uniform(0.85, 1.05)
    size_px, x = picture_size(aspect), aspect / 2
    sheet = Sheet(size_px)
    heads = np.stack([x + rng.normal(0, 0.17, 26) * aspect, rng.uniform(0.1, 0.5, 26)], 1)
    heads[:, 0] = np.clip(heads[:, 0], 0.1, aspect - 0.1)
    heads = heads[np.argsort(heads[:, 1])]
    for place in heads:
        sheet.line(
            curve((x + 0.2 * (place[0] - x) * 0.6, 0.95), (x + 0.1 * (place[0] - x), 0.6), place, 14),
            varied(rng, (0.28, 0.45, 0.16), 0.15),
            0.006,
        )
    ends = [(place + (0, 0.06), rng.uniform(0, 6.3)) for place in heads]
    foliage(rng, sheet, ends, 9, 0.085, varied(rng, (0.26, 0.46, 0.18), 0.12), 0.4)
    hues = [
        np.array(c)
        for c in ((0.9, 0.35, 0.45), (0.97, 0.82, 0.3), (0.95, 0.93, 0.9), (0.62, 0.42, 0.8), (0.95, 0.55, 0.25))
    ]
    picked = [hues[k] for k in rng.permutation(5)[:3]]
    for place in heads:
        blossoms(
            rng,
            sheet,
            place[None],
            rng.uniform(0.05, 0.08),
            varied(rng, picked[rng.integers(3)], 0.06),
            rng.integers(6, 14),
        )
    drawn = sheet.rgba()
    y = np.linspace(0.58, 0.99, 24)
    half = 0.085 + 0.05 * np.sin((y - 0.58) / 0.41 * np.pi * rng.uniform(0.9, 1.3) + 0.4)
    vase = shape(
        size_px,
        ("polygon", np.concatenate([np.stack([x - half, y], 1), np.stack([x + half, y], 1)[::-1]])),
        ("ellipse", (x - half[-1], 0.975, x + half[-1], 1.0)),
    )
    rgba, tint = np.zeros_like(drawn), varied(rng, (0.6, 0.74, 0.78), 0.15)
    round_part(rgba, vase, tint, 0.1, ambient=0.5)
    paint(rgba, drawn[..., 3] * (1 - 0.55 * (vase > 0.5)), drawn[..., :3])
    streak = shape(size_px, ("tapered", np.stack([x - 0.6 * half, y], 1)[4:-4], np.full(16, 0.014)))
    paint(rgba, 0.8 * soft(streak, 3) * vase, np.ones(3))
    return inside(rgba)
