"""Parts that several drawn foregrounds share: outlines, cloth, round bodies, leaves, blossoms, fur."""

import numpy as np

from datasets_scripts.canvas import Sheet, curve, grain, leaves, mix, paint, rounded, soft, varied

HEIGHT_PX = 960
_LIGHT = (-0.55, -0.6, 0.75)
SKINS = ((0.95, 0.78, 0.67), (0.87, 0.68, 0.54), (0.75, 0.54, 0.41), (0.54, 0.36, 0.26), (0.36, 0.24, 0.18))
HAIRS = ((0.09, 0.07, 0.06), (0.24, 0.15, 0.09), (0.46, 0.3, 0.15), (0.78, 0.62, 0.38), (0.55, 0.54, 0.53))
CLOTHS = (
    (0.2, 0.27, 0.42),
    (0.55, 0.2, 0.2),
    (0.8, 0.77, 0.7),
    (0.2, 0.32, 0.25),
    (0.25, 0.24, 0.26),
    (0.75, 0.55, 0.25),
)


def picture_size(aspect: float) -> tuple[int, int]:
    """(H, W) in pixels of a picture of some width in units of its height."""
    return HEIGHT_PX, round(HEIGHT_PX * aspect)


def shape(size_px: tuple[int, int], *parts: tuple) -> np.ndarray:
    """Opacity of some shapes: ("ellipse", box), ("polygon", points) or ("tapered", points, widths)."""
    sheet = Sheet(size_px)
    for kind, *values in parts:
        getattr(sheet, kind)(*values, (1, 1, 1))
    return sheet.mask()


def cloth(rng: np.random.Generator, size_px: tuple[int, int], colour: np.ndarray) -> np.ndarray:
    """A fabric: plain, knitted, striped or checked, with folds."""
    y, x = np.mgrid[: size_px[0], : size_px[1]].astype(np.float32) / HEIGHT_PX
    bend = 0.012 * grain(rng, size_px, 2.0)
    kind, other = rng.integers(4), np.clip(varied(rng, colour, 0.2) + rng.choice([-0.25, 0.3]), 0.03, 0.95)
    if kind == 0:
        field = mix(colour, other, 0.1 + 0.05 * grain(rng, size_px, 0.4))
    elif kind == 1:  # knitted
        field = mix(colour * 0.78, colour * 1.12, 0.5 + 0.5 * np.sin(420 * (x + bend)) * np.sin(300 * (y + bend)))
    elif kind == 2:
        field = mix(colour, other, np.clip(6 * np.sin(rng.uniform(60, 160) * (y + bend)), 0, 1))
    else:
        wide = rng.uniform(50, 110)
        checks = np.clip(5 * np.sin(wide * (x + bend)), 0, 1) + np.clip(5 * np.sin(wide * (y + bend)), 0, 1)
        field = mix(colour, other, 0.45 * checks)
    folds = grain(rng, size_px, 1.5, 0.4)
    return np.clip(field * (1 + 0.13 * folds + 0.03 * grain(rng, size_px, 0.4))[..., None], 0, 1)


def round_part(rgba: np.ndarray, mask: np.ndarray, colour: np.ndarray, radius: float, ambient: float = 0.42) -> None:
    """Paint a rounded body part."""
    lit = rounded(mask, radius * HEIGHT_PX, _LIGHT, ambient=ambient)
    paint(rgba, mask, np.clip(colour * lit[..., None], 0, 1))


def foliage(
    rng: np.random.Generator, sheet: Sheet, ends: list, per_end: int, size: float, green: np.ndarray, width: float
) -> None:
    """Draw leaves at the ends of twigs (``ends``: place and angle of each), the darkest undermost."""
    count = len(ends) * per_end
    which = rng.integers(len(ends), size=count)
    roots = np.array([ends[k][0] for k in which]) + rng.normal(0, 0.4 * size, (count, 2))
    angles = np.array([ends[k][1] for k in which]) + rng.normal(0, 1.0, count)
    lit = np.clip(1.25 - 0.7 * roots[:, 1] + 0.25 * (0.5 - roots[:, 0]) + rng.normal(0, 0.14, count), 0.45, 1.45)
    colours = np.clip(green * lit[:, None] * rng.uniform(0.85, 1.15, (count, 3)), 0, 1)
    order = np.argsort(lit + rng.normal(0, 0.2, count))
    leaves(sheet, rng, roots[order], angles[order], size * rng.uniform(0.65, 1.2, count), colours[order], width=width)


def blossoms(
    rng: np.random.Generator, sheet: Sheet, places: np.ndarray, size: float, hue: np.ndarray, petals: int = 5
) -> None:
    """Draw open flowers at places (N, 2), of a radius in units of the height."""
    for place in places:
        turn, r, squash = rng.uniform(0, 6), size * rng.uniform(0.7, 1.2), rng.uniform(0.55, 1.0)
        for k in range(petals):
            a = turn + 2 * np.pi * k / petals
            tip = place + r * np.array([np.cos(a), squash * np.sin(a)])
            side = 0.42 * r * np.array([-np.sin(a), squash * np.cos(a)]) * 5 / petals * 1.1
            tone = np.clip(hue * rng.uniform(0.82, 1.12), 0, 1)
            sheet.polygon(
                np.concatenate(
                    [
                        curve(place, place + 0.7 * (tip - place) + side * 1.6, tip, 7),
                        curve(tip, place + 0.7 * (tip - place) - side * 1.6, place, 7),
                    ]
                ),
                tone,
            )
            sheet.line(np.stack([place, place + 0.6 * (tip - place)]), tone * 0.8, 0.0014)
        sheet.ellipse((*(place - 0.24 * r), *(place + 0.24 * r)), (0.85, 0.68, 0.15))
        sheet.ellipse((*(place - 0.13 * r), *(place + 0.1 * r)), (0.6, 0.4, 0.1))


def fur(rng: np.random.Generator, rgba: np.ndarray, count: int) -> None:
    """Let hairs stand out from the outline, in the colour of where they grow, in place."""
    size_px = rgba.shape[:2]
    inside = rgba[..., 3] > 0.5
    depth = soft(inside.astype(np.float32), 8)
    rows, columns = np.nonzero(inside & (depth < 0.8))
    slope_y, slope_x = np.gradient(depth)
    sheet = Sheet(size_px)
    for k in rng.integers(len(rows), size=count):
        r, c = rows[k], columns[k]
        out = -np.array([slope_x[r, c], slope_y[r, c]])
        out = out / max(np.hypot(*out), 1e-9) + np.array([rng.normal(0, 0.5), 0.6 + rng.normal(0, 0.3)])
        root = np.array([c, r]) / HEIGHT_PX
        sheet.line(
            np.stack([root, root + out * rng.uniform(0.004, 0.014)]),
            np.clip(rgba[r, c, :3] * rng.uniform(0.75, 1.3), 0, 1),
            0.0014,
        )
    drawn = sheet.rgba()
    paint(rgba, drawn[..., 3], drawn[..., :3])


def inside(rgba: np.ndarray) -> np.ndarray:
    """Keep a cut-out off the side borders of its picture, where it would end in a straight cut."""
    edge = np.clip(np.arange(rgba.shape[1]) / 6, 0, 1).astype(np.float32)
    rgba[..., 3] *= np.minimum(edge, edge[::-1])
    return rgba
