"""Drawn animals with fur or feathers, as `foregrounds` describes them."""

import numpy as np

from datasets_scripts.canvas import Sheet, curve, grain, leaves, mix, paint, soft, varied
from datasets_scripts.figure_parts import HEIGHT_PX, foliage, fur, inside, picture_size, round_part, shape


def cat(rng: np.random.Generator) -> np.ndarray:
    """Draw a sitting cat or a small dog, with hue."""
    aspect, dog = 0.78, rng.random() < 0.4
    size_px, x = picture_size(aspect), 0.37
    hue = varied(
        rng,
        [(0.55, 0.42, 0.3), (0.32, 0.3, 0.29), (0.78, 0.52, 0.28), (0.86, 0.82, 0.76), (0.14, 0.13, 0.13)][
            rng.integers(5)
        ],
        0.1,
    )
    y, xx = np.mgrid[: size_px[0], : size_px[1]].astype(np.float32) / HEIGHT_PX
    tabby = 0.0 if rng.random() < 0.35 else 0.35
    stripes = np.clip(2.5 * np.sin(85 * y + 14 * np.abs(xx - x) + 1.2 * grain(rng, size_px, 1.5)), 0, 1)
    coat = mix(hue, hue * 0.42, tabby * stripes) * (1 + 0.14 * grain(rng, size_px, 0.8, 0.3))[..., None]
    rgba = np.zeros((*size_px, 4), np.float32)
    tail = curve((x + 0.16, 0.93), (x + 0.42, 1.0), (x + 0.33, 0.62), 16)
    round_part(rgba, shape(size_px, ("tapered", tail, np.linspace(0.075, 0.045, 16))), coat * 0.85, 0.03)
    body = shape(
        size_px, ("ellipse", (x - 0.22, 0.5, x + 0.22, 0.985)), ("ellipse", (x - 0.155, 0.34, x + 0.155, 0.75))
    )
    round_part(rgba, np.clip(4 * soft(body, 10) - 1.5, 0, 1), coat, 0.15)
    chest = soft(shape(size_px, ("ellipse", (x - 0.075, 0.45, x + 0.075, 0.72))), 12)
    paint(rgba, 0.75 * chest, np.clip(hue * 0.4 + 0.55, 0, 1) * (1 + 0.1 * grain(rng, size_px, 0.8, 0.3))[..., None])
    for side in (-1, 1):
        leg = np.array([[x + side * 0.075, 0.62], [x + side * 0.07, 0.94]])
        round_part(rgba, shape(size_px, ("tapered", leg, np.array([0.1, 0.075]))), coat, 0.045)
        round_part(
            rgba,
            shape(size_px, ("ellipse", (x + side * 0.075 - 0.058, 0.925, x + side * 0.075 + 0.058, 0.99))),
            np.clip(coat * 1.15, 0, 1),
            0.03,
        )
        if dog:
            ear = np.concatenate(
                [
                    curve((x + side * 0.1, 0.1), (x + side * 0.25, 0.12), (x + side * 0.19, 0.36), 10),
                    curve((x + side * 0.19, 0.36), (x + side * 0.11, 0.33), (x + side * 0.1, 0.2), 8),
                ]
            )
        else:
            ear = np.array([[x + side * 0.045, 0.14], [x + side * 0.15, 0.005], [x + side * 0.168, 0.2]])
        round_part(rgba, shape(size_px, ("polygon", ear)), coat * (0.65 if dog else 1.0), 0.04)
        if not dog:
            inner = np.array([[x + side * 0.075, 0.145], [x + side * 0.14, 0.05], [x + side * 0.15, 0.18]])
            paint(rgba, 0.7 * soft(shape(size_px, ("polygon", inner)), 5), np.array((0.75, 0.5, 0.46)))
    head = shape(size_px, ("ellipse", (x - 0.175, 0.1, x + 0.175, 0.4)), ("ellipse", (x - 0.13, 0.2, x + 0.13, 0.42)))
    round_part(rgba, np.clip(4 * soft(head, 6) - 1.5, 0, 1), coat * 1.05, 0.12)
    muzzle = soft(shape(size_px, ("ellipse", (x - 0.075, 0.28, x + 0.075, 0.4))), 9)
    paint(rgba, 0.8 * muzzle, np.clip(hue * 0.4 + 0.55, 0, 1))
    sheet, eye = Sheet(size_px), varied(rng, (0.35, 0.22, 0.1) if dog else (0.72, 0.68, 0.2), 0.15)
    for side in (-1, 1):
        ex, r = x + side * 0.077, 0.027 if dog else 0.034
        sheet.ellipse((ex - 1.15 * r, 0.236 - 1.02 * r, ex + 1.15 * r, 0.236 + 1.02 * r), (0.05, 0.04, 0.04))
        sheet.ellipse((ex - r, 0.236 - 0.9 * r, ex + r, 0.236 + 0.9 * r), eye)
        wide = 0.75 if dog else 0.3
        sheet.ellipse((ex - wide * r, 0.236 - 0.82 * r, ex + wide * r, 0.236 + 0.82 * r), (0.02, 0.02, 0.02))
        sheet.ellipse((ex - 0.55 * r, 0.236 - 0.6 * r, ex - 0.05 * r, 0.236 - 0.1 * r), (1, 1, 1))
        for k in range(4):
            sheet.line(
                curve(
                    (x + side * 0.04, 0.325 + 0.01 * k),
                    (x + side * 0.13, 0.3 + 0.02 * k),
                    (x + side * rng.uniform(0.2, 0.26), 0.3 + 0.035 * k),
                    9,
                ),
                (0.92, 0.91, 0.88),
                0.0016,
            )
    nose = 0.032 if dog else 0.019
    sheet.polygon(
        np.concatenate(
            [
                curve((x - nose, 0.3), (x, 0.288), (x + nose, 0.3), 7),
                curve((x + nose, 0.3), (x, 0.345), (x - nose, 0.3), 7),
            ]
        ),
        (0.1, 0.08, 0.08) if dog else (0.72, 0.4, 0.38),
    )
    for side in (-1, 1):
        sheet.line(curve((x, 0.325), (x + side * 0.015, 0.36), (x + side * 0.05, 0.35), 8), hue * 0.3, 0.0035)
    drawn = sheet.rgba()
    paint(rgba, drawn[..., 3], drawn[..., :3])
    fur(rng, rgba, 3600)
    return inside(rgba)


def bird(rng: np.random.Generator) -> np.ndarray:
    """Draw a songbird on a twig."""
    aspect = 1.05
    size_px = picture_size(aspect)
    back = varied(
        rng, [(0.35, 0.4, 0.5), (0.45, 0.33, 0.22), (0.25, 0.38, 0.55), (0.4, 0.42, 0.25)][rng.integers(4)], 0.15
    )
    breast = varied(
        rng, [(0.85, 0.45, 0.2), (0.9, 0.85, 0.7), (0.9, 0.75, 0.25), (0.75, 0.3, 0.28)][rng.integers(4)], 0.1
    )
    twig, ends = Sheet(size_px), []
    twig.tapered(curve((0.03, 0.86), (0.5, 0.72), (1.02, 0.82), 20), np.linspace(0.035, 0.022, 20), (0.3, 0.22, 0.16))
    twig.tapered(
        curve((0.03, 0.853), (0.5, 0.712), (1.02, 0.815), 20), np.linspace(0.012, 0.006, 20), (0.48, 0.38, 0.29)
    )
    for px in rng.uniform(0.05, 1.0, 9):
        ends.append((np.array([px, 0.8]), rng.choice([-1, 1]) * np.pi / 2 + rng.normal(0, 0.5)))
    foliage(rng, twig, ends, 4, 0.085, varied(rng, (0.35, 0.52, 0.18), 0.15), 0.5)
    rgba = twig.rgba()
    feather = (1 + 0.12 * grain(rng, size_px, 0.8, 1.8))[..., None]
    round_part(
        rgba,
        shape(
            size_px, ("tapered", np.array([[0.62, 0.58], [0.93, 0.72], [0.97, 0.74]]), np.array([0.14, 0.08, 0.05]))
        ),
        back * 0.7 * feather,
        0.04,
    )
    body = np.clip(
        4 * soft(shape(size_px, ("ellipse", (0.28, 0.28, 0.72, 0.78)), ("ellipse", (0.25, 0.12, 0.52, 0.42))), 12)
        - 1.5,
        0,
        1,
    )
    y, x = np.mgrid[: size_px[0], : size_px[1]].astype(np.float32) / HEIGHT_PX
    share = np.clip(3 * (0.95 * x - 0.75 * y + 0.03) + 0.12 * grain(rng, size_px, 1.1), 0, 1)
    round_part(rgba, body, mix(breast, back, share) * feather, 0.15)
    sheet = Sheet(size_px)
    for row in range(5):  # feathers of the wing
        for k in range(9 - row):
            root = np.array([0.44 + 0.04 * k + 0.03 * row, 0.4 + 0.042 * row + 0.028 * k])
            leaves(
                sheet,
                rng,
                root[None],
                np.array([0.72 + rng.normal(0, 0.05)]),
                np.array([0.12 + 0.022 * row]),
                (back * rng.uniform(0.65, 1.1) + 0.035 * row)[None],
                width=0.4,
            )
    sheet.polygon([0.27, 0.235, 0.14, 0.275, 0.28, 0.285], (0.2, 0.18, 0.17))
    sheet.polygon([0.27, 0.24, 0.15, 0.272, 0.28, 0.262], (0.38, 0.34, 0.3))
    sheet.ellipse((0.325, 0.205, 0.365, 0.245), (0.03, 0.03, 0.03))
    sheet.ellipse((0.332, 0.21, 0.344, 0.222), (1, 1, 1))
    for fx in (0.47, 0.54):
        sheet.line([fx, 0.76, fx - 0.015, 0.79], (0.3, 0.22, 0.18), 0.01)
        for toe in (-0.03, 0.0, 0.03):
            sheet.line([fx - 0.015, 0.785, fx - 0.015 + toe, 0.805], (0.3, 0.22, 0.18), 0.007)
    drawn = sheet.rgba()
    paint(rgba, drawn[..., 3], drawn[..., :3])
    fur(rng, rgba, 1500)
    return inside(rgba)
