"""Drawn people: portraits and whole figures, as `foregrounds` describes them."""

import numpy as np

from datasets_scripts.canvas import Sheet, curve, grain, paint, soft, varied
from datasets_scripts.figure_parts import CLOTHS, HAIRS, HEIGHT_PX, SKINS, cloth, picture_size, round_part, shape


def _strands(
    rng: np.random.Generator,
    sheet: Sheet,
    x: float,
    y: float,
    size: float,
    long: float,
    colour: np.ndarray,
    count: int,
) -> None:
    """Draw hair from a parting down both sides of a head."""
    part = x + rng.uniform(-0.35, 0.35) * size
    for _ in range(count):
        side = rng.choice([-1, 1])
        out = rng.beta(2.2, 1.4)
        root = (part + side * 0.15 * size * rng.random(), y - (1.42 - 0.12 * rng.random()) * size)
        turn = (x + side * size * (0.75 + 0.6 * out), y - (1.3 - 0.5 * rng.random()) * size)
        end = (
            x + side * size * (0.85 + 0.38 * out) + rng.normal(0, 0.05) * size,
            y + (long * rng.uniform(0.75, 1.0) - 0.5) * size,
        )
        tone = colour * np.clip(rng.normal(1.0, 0.25) + (0.25 if side < 0 else -0.05), 0.45, 1.7)
        sheet.line(curve(root, turn, end, 10), tone, rng.uniform(0.0016, 0.0045))


def portrait(rng: np.random.Generator) -> np.ndarray:
    """Draw head and shoulders, from the front or from behind."""
    aspect = rng.uniform(0.86, 1.04)
    size_px, x = picture_size(aspect), aspect / 2
    skin, hair = varied(rng, SKINS[rng.integers(5)], 0.05), varied(rng, HAIRS[rng.integers(5)], 0.1)
    head, eyes = rng.uniform(0.135, 0.155), rng.uniform(0.31, 0.35)
    chin, behind = eyes + 1.22 * head, rng.random() < 0.35
    rgba = np.zeros((*size_px, 4), np.float32)
    long = rng.uniform(1.4, 3.2) if rng.random() < 0.6 else 0.75
    back = Sheet(size_px)
    if long > 1:
        back.ellipse((x - 1.25 * head, eyes - 1.45 * head, x + 1.25 * head, eyes + 1.1 * head), hair * 0.5)
        _strands(rng, back, x, eyes, head * 1.02, long, hair * 0.75, 900)
    drawn = back.rgba()
    paint(rgba, drawn[..., 3], drawn[..., :3])
    wide = rng.uniform(0.34, 0.4)
    neck = shape(
        size_px, ("tapered", np.array([[x, eyes + 0.5 * head], [x, chin + 0.12]]), np.array([0.95, 1.15]) * head)
    )
    round_part(rgba, neck, skin * 0.78, 0.06)
    slope = np.array(
        [
            [x - 0.5 * head, chin + 0.03],
            [x - 0.24, chin + 0.115],
            [x - wide + 0.02, chin + 0.17],
            [x - wide - 0.03, chin + 0.3],
            [x - wide - 0.07, 1.02],
            [x + wide + 0.07, 1.02],
            [x + wide + 0.03, chin + 0.3],
            [x + wide - 0.02, chin + 0.17],
            [x + 0.24, chin + 0.115],
            [x + 0.5 * head, chin + 0.03],
        ]
    )
    body = np.clip(
        4 * soft(shape(size_px, ("polygon", slope), ("ellipse", (x - wide, chin + 0.11, x + wide, chin + 0.5))), 9)
        - 1.5,
        0,
        1,
    )
    body[-12:] = body[-13]
    fabric = cloth(rng, size_px, varied(rng, CLOTHS[rng.integers(6)], 0.15))
    round_part(rgba, body, fabric, 0.16)
    if not behind:  # neckline
        dip = rng.uniform(0.05, 0.12)
        cut = shape(
            size_px,
            (
                "polygon",
                np.concatenate([curve((x - 0.55 * head, chin), (x, chin + 2 * dip), (x + 0.55 * head, chin), 20)]),
            ),
        )
        round_part(rgba, cut * body, skin * 0.9, 0.1)
        rim = Sheet(size_px)
        rim.line(
            curve((x - 0.56 * head, chin), (x, chin + 2 * dip), (x + 0.56 * head, chin), 24),
            fabric[size_px[0] // 2 + 180, size_px[1] // 2] * 0.7,
            0.014,
        )
        paint(rgba, rim.mask() * body, rim.rgba()[..., :3])
    oval = shape(
        size_px,
        ("ellipse", (x - head, eyes - 1.3 * head, x + head, eyes + 0.85 * head)),
        (
            "polygon",
            np.array(
                [
                    [x - 0.96 * head, eyes + 0.1 * head],
                    [x - 0.72 * head, eyes + 0.85 * head],
                    [x - 0.3 * head, chin - 0.03 * head],
                    [x + 0.3 * head, chin - 0.03 * head],
                    [x + 0.72 * head, eyes + 0.85 * head],
                    [x + 0.96 * head, eyes + 0.1 * head],
                ]
            ),
        ),
        ("ellipse", (x - 0.36 * head, chin - 0.32 * head, x + 0.36 * head, chin)),
    )
    oval = np.clip(5 * soft(oval, 5) - 2, 0, 1)
    ears = shape(
        size_px,
        ("ellipse", (x - 1.13 * head, eyes - 0.22 * head, x - 0.86 * head, eyes + 0.4 * head)),
        ("ellipse", (x + 0.86 * head, eyes - 0.22 * head, x + 1.13 * head, eyes + 0.4 * head)),
    )
    shadow = soft(
        shape(size_px, ("ellipse", (x - 0.8 * head, chin - 0.35 * head, x + 0.9 * head, chin + 0.4 * head))), 14
    )
    rgba[..., :3] *= (1 - 0.35 * shadow * (neck > 0))[..., None]
    if long < 1:
        round_part(rgba, ears, skin * 0.92, 0.03)
    if behind:
        round_part(rgba, oval, hair * 0.8, 0.1)
    else:
        pores = 1 + 0.012 * grain(rng, size_px, 0.4)[..., None]
        round_part(rgba, oval, skin * pores, 0.13)
        _face(rng, rgba, x, eyes, head, skin, hair)
    crown = Sheet(size_px)
    if behind:
        _strands(rng, crown, x, eyes, head, long + 0.9, hair, 1500)
        for _ in range(1500):
            lean = rng.normal(0, 0.55)
            crown.line(
                curve(
                    (x + 0.4 * lean * head, eyes - 1.4 * head),
                    (x + 1.1 * lean * head, eyes - 0.7 * head),
                    (x + 0.95 * lean * head, eyes + (long - 0.35) * head * rng.uniform(0.7, 1)),
                    8,
                ),
                hair * np.clip(rng.normal(1.05 - 0.25 * lean, 0.22), 0.4, 1.7),
                0.003,
            )
    else:
        _strands(rng, crown, x, eyes - 0.08 * head, head * 1.0, max(long, 1.0) if long > 1 else 0.45, hair, 1300)
    drawn = crown.rgba()
    paint(rgba, drawn[..., 3], drawn[..., :3])
    if rng.random() < 0.25:  # a hat
        felt = varied(rng, CLOTHS[rng.integers(6)], 0.2)
        hat = shape(size_px, ("ellipse", (x - 1.15 * head, eyes - 1.95 * head, x + 1.15 * head, eyes - 0.35 * head)))
        hat[int((eyes - 0.72 * head) * HEIGHT_PX) :] = 0
        round_part(rgba, hat, felt * (1 + 0.05 * grain(rng, size_px, 0.4))[..., None], 0.09)
        brim = shape(size_px, ("ellipse", (x - 1.75 * head, eyes - 0.95 * head, x + 1.75 * head, eyes - 0.52 * head)))
        round_part(rgba, brim, felt * 0.9, 0.02)
    return rgba


def _face(
    rng: np.random.Generator, rgba: np.ndarray, x: float, eyes: float, head: float, skin: np.ndarray, hair: np.ndarray
) -> None:
    size_px = rgba.shape[:2]
    blush = soft(
        shape(
            size_px,
            *(
                (
                    "ellipse",
                    (
                        x + s * 0.55 * head - 0.25 * head,
                        eyes + 0.25 * head,
                        x + s * 0.55 * head + 0.25 * head,
                        eyes + 0.62 * head,
                    ),
                )
                for s in (-1, 1)
            ),
        ),
        14,
    )
    paint(rgba, 0.3 * blush * (rgba[..., 3] > 0.9), skin * np.array((1.0, 0.72, 0.68)))
    sockets = soft(
        shape(
            size_px,
            *(
                (
                    "ellipse",
                    (
                        x + s * 0.43 * head - 0.3 * head,
                        eyes - 0.25 * head,
                        x + s * 0.43 * head + 0.3 * head,
                        eyes + 0.15 * head,
                    ),
                )
                for s in (-1, 1)
            ),
        ),
        9,
    )
    paint(rgba, 0.4 * sockets, skin * 0.62)
    iris = varied(rng, [(0.25, 0.16, 0.1), (0.3, 0.42, 0.52), (0.28, 0.36, 0.2)][rng.integers(3)], 0.15)
    sheet = Sheet(size_px)
    for side in (-1, 1):
        ex, w = x + side * 0.43 * head, 0.215 * head
        upper, lower = (
            curve((ex - w, eyes), (ex, eyes - 0.25 * head), (ex + w, eyes), 14),
            curve((ex + w, eyes), (ex, eyes + 0.17 * head), (ex - w, eyes), 14),
        )
        sheet.polygon(np.concatenate([upper, lower]), (0.9, 0.88, 0.86))
        r = 0.108 * head
        sheet.ellipse((ex - r, eyes - r - 0.01 * head, ex + r, eyes + r - 0.01 * head), iris * 0.6)
        sheet.ellipse((ex - 0.8 * r, eyes - 0.8 * r, ex + 0.8 * r, eyes + 0.8 * r), iris)
        sheet.ellipse((ex - 0.45 * r, eyes - 0.5 * r, ex + 0.45 * r, eyes + 0.4 * r), (0.03, 0.03, 0.03))
        sheet.ellipse((ex - 0.55 * r, eyes - 0.65 * r, ex - 0.1 * r, eyes - 0.2 * r), (1, 1, 1))
        sheet.line(upper, skin * 0.28, 0.0062)
        sheet.line(lower, skin * 0.62, 0.002)
        sheet.line(upper - (0, 0.07 * head), skin * 0.68, 0.0025)
        for hair_x in np.linspace(-1, 1, 46):  # brow
            root = (
                ex + 0.27 * head * hair_x,
                eyes - (0.32 + 0.04 * hair_x * side - 0.07 * (1 - hair_x**2)) * head + rng.normal(0, 0.012) * head,
            )
            sheet.line(
                [*root, root[0] + side * 0.055 * head, root[1] - rng.uniform(0.0, 0.05) * head],
                hair * rng.uniform(0.5, 1),
                0.0022,
            )
    drawn = sheet.rgba()
    paint(rgba, drawn[..., 3], drawn[..., :3])
    ridge = soft(
        shape(
            size_px,
            (
                "polygon",
                [
                    x + 0.03 * head,
                    eyes - 0.05 * head,
                    x + 0.17 * head,
                    eyes + 0.5 * head,
                    x + 0.04 * head,
                    eyes + 0.52 * head,
                ],
            ),
        ),
        5,
    )
    paint(rgba, 0.5 * ridge, skin * 0.66)
    shine = soft(
        shape(size_px, ("ellipse", (x - 0.09 * head, eyes + 0.3 * head, x + 0.03 * head, eyes + 0.46 * head))), 5
    )
    paint(rgba, 0.55 * shine, np.clip(skin * 1.3, 0, 1))
    holes = soft(
        shape(
            size_px,
            *(
                (
                    "ellipse",
                    (
                        x + s * 0.09 * head - 0.045 * head,
                        eyes + 0.5 * head,
                        x + s * 0.09 * head + 0.045 * head,
                        eyes + 0.56 * head,
                    ),
                )
                for s in (-1, 1)
            ),
        ),
        2,
    )
    paint(rgba, 0.75 * holes, skin * 0.35)
    mouth, w = eyes + 0.79 * head, rng.uniform(0.28, 0.36) * head
    smile = rng.uniform(0.0, 0.09) * head
    red = skin * np.array((0.84, 0.52, 0.5)) if rng.random() < 0.6 else np.array((0.68, 0.2, 0.22))
    lips = np.concatenate(
        [
            curve((x - w, mouth), (x, mouth - 0.17 * head), (x + w, mouth), 12),
            curve((x + w, mouth), (x, mouth + 0.24 * head + smile), (x - w, mouth), 12),
        ]
    )
    paint(rgba, 0.9 * soft(shape(size_px, ("polygon", lips)), 2), red)
    line = Sheet(size_px)
    line.line(curve((x - w, mouth), (x, mouth + 0.05 * head + smile), (x + w, mouth), 14), (1, 1, 1), 0.004)
    paint(rgba, 0.8 * soft(line.mask(), 1), red * 0.4)
    gloss = soft(
        shape(size_px, ("ellipse", (x - 0.13 * head, mouth + 0.07 * head, x + 0.06 * head, mouth + 0.11 * head))), 3
    )
    paint(rgba, 0.45 * gloss, np.clip(red * 1.6, 0, 1))


def walker(rng: np.random.Generator) -> np.ndarray:
    """Draw a whole person, standing or walking, with a bag or an umbrella."""
    aspect = 0.62
    size_px, x = picture_size(aspect), 0.31
    skin, hair = varied(rng, SKINS[rng.integers(5)], 0.05), varied(rng, HAIRS[rng.integers(5)], 0.1)
    coat, trousers = (
        cloth(rng, size_px, varied(rng, CLOTHS[rng.integers(6)], 0.15)),
        varied(rng, CLOTHS[rng.integers(6)], 0.15) * (0.85 + 0.1 * grain(rng, size_px, 1.1, 0.4))[..., None],
    )
    rgba, step = np.zeros((*size_px, 4), np.float32), rng.uniform(0.01, 0.085)
    for side, gain in ((1, 0.75), (-1, 1.0)):
        leg = np.array(
            [[x + side * 0.035, 0.5], [x + side * (0.04 + 0.4 * step), 0.72], [x + side * (0.03 + step), 0.95]]
        )
        shoe = np.array([[x + side * (0.03 + step) - 0.012, 0.962], [x + side * (0.03 + step) + 0.048, 0.968]])
        round_part(
            rgba, shape(size_px, ("tapered", shoe, np.array([0.05, 0.032]))), np.array((0.2, 0.14, 0.1)) * gain, 0.02
        )
        round_part(rgba, shape(size_px, ("tapered", leg, np.array([0.1, 0.075, 0.055]))), trousers * gain, 0.04)
    swing = rng.uniform(0.02, 0.08, 2)
    arm = np.array([[x + 0.085, 0.21], [x + 0.115, 0.34], [x + 0.1 + swing[0], 0.46]])
    round_part(rgba, shape(size_px, ("tapered", arm, np.array([0.06, 0.052, 0.04]))), coat * 0.72, 0.03)
    round_part(rgba, shape(size_px, ("ellipse", (arm[2, 0] - 0.02, 0.455, arm[2, 0] + 0.02, 0.5))), skin * 0.72, 0.02)
    hem = rng.uniform(0.52, 0.72)
    torso = np.array(
        [
            [x - 0.06, 0.165],
            [x - 0.105, 0.2],
            [x - 0.088, 0.36],
            [x - 0.1 - 0.05 * (hem - 0.5), hem],
            [x + 0.1 + 0.05 * (hem - 0.5), hem],
            [x + 0.088, 0.36],
            [x + 0.105, 0.2],
            [x + 0.06, 0.165],
        ]
    )
    round_part(rgba, np.clip(4 * soft(shape(size_px, ("polygon", torso)), 5) - 1.5, 0, 1), coat, 0.075)
    trim = Sheet(size_px)
    trim.line([x + 0.01, 0.17, x + 0.005, hem], (0.1, 0.09, 0.09), 0.003)
    for y in np.arange(0.23, hem, 0.06):
        trim.ellipse((x + 0.016, y, x + 0.026, y + 0.01), (0.1, 0.08, 0.07))
    paint(rgba, trim.mask() * 0.8, trim.rgba()[..., :3])
    if rng.random() < 0.6:  # a bag on a strap
        bag, strap = varied(rng, (0.45, 0.28, 0.16), 0.25), Sheet(size_px)
        strap.line([x + 0.07, 0.18, x - 0.09, 0.47], bag * 0.7, 0.009)
        paint(rgba, strap.mask(), strap.rgba()[..., :3])
        round_part(
            rgba,
            shape(size_px, ("polygon", [x - 0.16, 0.45, x - 0.02, 0.455, x - 0.015, 0.57, x - 0.165, 0.565])),
            bag * (1 + 0.07 * grain(rng, size_px, 0.8))[..., None],
            0.02,
        )
    arm = np.array([[x - 0.085, 0.21], [x - 0.12, 0.33], [x - 0.1 - swing[1], 0.45]])
    umbrella = rng.random() < 0.35
    if umbrella:
        arm = np.array([[x - 0.085, 0.21], [x - 0.13, 0.32], [x - 0.1, 0.25]])
    round_part(rgba, shape(size_px, ("tapered", arm, np.array([0.06, 0.052, 0.04]))), np.clip(coat * 1.08, 0, 1), 0.03)
    round_part(
        rgba,
        shape(size_px, ("ellipse", (arm[2, 0] - 0.02, arm[2, 1] - 0.01, arm[2, 0] + 0.02, arm[2, 1] + 0.035))),
        skin,
        0.02,
    )
    round_part(
        rgba,
        shape(size_px, ("tapered", np.array([[x, 0.12], [x, 0.18]]), np.array([0.045, 0.055]))),
        skin * 0.75,
        0.02,
    )
    round_part(rgba, shape(size_px, ("ellipse", (x - 0.045, 0.03, x + 0.045, 0.148))), skin, 0.04)
    sheet = Sheet(size_px)
    if rng.random() < 0.6:
        _strands(rng, sheet, x, 0.085, 0.047, rng.uniform(1.0, 3.2), hair, 420)
    else:
        sheet.ellipse((x - 0.05, 0.015, x + 0.05, 0.09), hair)
    for side in (-1, 1):
        sheet.ellipse((x + side * 0.018 - 0.005, 0.085, x + side * 0.018 + 0.005, 0.092), (0.08, 0.06, 0.05))
    sheet.line([x - 0.012, 0.123, x + 0.012, 0.123], skin * 0.55, 0.003)
    drawn = sheet.rgba()
    paint(rgba, drawn[..., 3], drawn[..., :3])
    scarf = varied(rng, CLOTHS[rng.integers(6)], 0.2)
    round_part(
        rgba,
        shape(
            size_px,
            ("tapered", np.array([[x - 0.045, 0.165], [x + 0.045, 0.17]]), np.array([0.04, 0.045])),
            ("tapered", np.array([[x + 0.03, 0.17], [x + 0.045, 0.33]]), np.array([0.035, 0.04])),
        ),
        scarf,
        0.015,
    )
    if umbrella:
        canopy = varied(rng, (0.7, 0.15, 0.18), 0.25)
        sheet = Sheet(size_px)
        px = x - 0.1
        sheet.line([px, 0.3, px + 0.02, 0.02], (0.1, 0.1, 0.1), 0.007)
        for rib in range(8):
            a, b = px - 0.2 + 0.055 * rib, px - 0.2 + 0.055 * (rib + 1)
            sheet.polygon(
                np.concatenate([[[px + 0.02, 0.0]], curve((a, 0.1), ((a + b) / 2, 0.082), (b, 0.1), 6)]),
                canopy * (1.1 - 0.08 * rib),
            )
        drawn = sheet.rgba()
        paint(rgba, drawn[..., 3], drawn[..., :3])
    return rgba


def couple(rng: np.random.Generator) -> np.ndarray:
    """Draw two people side by side."""
    first, second = walker(rng), walker(rng)[:, ::-1]
    apart = round(rng.uniform(0.26, 0.36) * HEIGHT_PX)
    rgba = np.zeros((HEIGHT_PX, first.shape[1] + apart, 4), np.float32)
    rgba[:, : first.shape[1]] = first
    paint(rgba[:, apart:], second[..., 3], second[..., :3])
    return rgba
