"""Parts that several drawn views share: sky, ground, crowns of trees, grass."""

import numpy as np

from datasets_scripts.canvas import Sheet, curve, grain, leaves, mix, varied


def rows_of(size_px: tuple[int, int]) -> np.ndarray:
    """Height of each pixel in the picture, 0 at the top and 1 at the bottom: (H, W)."""
    return np.linspace(0, 1, size_px[0], dtype=np.float32)[:, None] * np.ones((1, size_px[1]), np.float32)


def sky(rng: np.random.Generator, size_px: tuple[int, int], top: tuple, low: tuple, clouds: float) -> np.ndarray:
    """Draw a sky from a colour above to one at the horizon, with clouds: (H, W, 3)."""
    rgb = mix(top, low, np.clip(rows_of(size_px) * 1.6, 0, 1))
    cover = np.clip(0.5 * grain(rng, size_px, 1.5, 2.5) + 0.15 * grain(rng, size_px, 1.1, 2.0) - 0.1, 0, 1) * clouds
    shade = 0.9 + 0.08 * grain(rng, size_px, 1.5, 2.5)
    return rgb + (np.minimum(shade, 1.0)[..., None] * mix((0.98, 0.97, 0.96), low, 0.25) - rgb) * cover[..., None]


def fill_below(rgb: np.ndarray, line: np.ndarray, colour: np.ndarray) -> None:
    """Cover what lies below a line (W,), in units of the height, in place; the edge is a pixel soft."""
    height = rgb.shape[0]
    mask = np.clip(np.arange(height)[:, None] - line[None] * height + 0.5, 0, 1).astype(np.float32)[..., None]
    rgb += (colour - rgb) * mask


def lay(rgb: np.ndarray, sheet: Sheet, gain: np.ndarray | float = 1.0) -> None:
    """Lay what is drawn on a sheet over a picture, in place; ``gain`` is its texture, (H, W)."""
    drawn = sheet.rgba()
    rgb += (drawn[..., :3] * (gain[..., None] if isinstance(gain, np.ndarray) else gain) - rgb) * drawn[..., 3:]


def crowns(
    rng: np.random.Generator,
    sheet: Sheet,
    row: float,
    size: float,
    count: int,
    green: tuple,
    left: float,
    right: float,
) -> None:
    """Draw clumps of leaves along a row: crowns of trees, or a hedge."""
    for x in rng.uniform(left, right, count):
        centre = np.array([x, row + rng.normal(0, 0.15) * size])
        number = int(110 + 1400 * size)
        angle, radius = rng.uniform(0, 2 * np.pi, number), size * np.sqrt(rng.random(number)) * rng.uniform(0.6, 1.2)
        places = centre + np.stack([radius * np.cos(angle), 0.75 * radius * np.sin(angle)], 1)
        # The upper left of a clump is lit.
        lit = np.clip(0.72 - (places - centre) @ np.array([0.35, 0.6]) / size, 0.3, 1.35)
        tone = varied(rng, green, 0.15)
        colours = np.clip(tone * lit[:, None] * rng.uniform(0.75, 1.2, (number, 1)), 0, 1)
        leaves(
            sheet,
            rng,
            places,
            rng.uniform(0, 2 * np.pi, number),
            rng.uniform(0.12, 0.24, number) * size**0.5 * 0.28,
            colours,
            width=0.6,
            rib=False,
        )


def grass(rng: np.random.Generator, sheet: Sheet, top: float, count: int, green: tuple) -> None:
    """Draw blades of grass from a row downwards, larger towards the viewer."""
    depth = np.sort(rng.random(count) ** 1.6)
    for share, x, lean, tone in zip(
        depth,
        rng.uniform(0, sheet.aspect, count),
        rng.normal(0, 0.3, count),
        rng.uniform(0.55, 1.3, count),
        strict=True,
    ):
        y = top + (1.03 - top) * share
        length = 0.012 + 0.075 * share
        colour = np.clip(np.asarray(green) * tone + (0.06 * tone, 0.04, 0), 0, 1)
        sheet.line(
            curve((x, y), (x, y - 0.6 * length), (x + lean * length, y - length), 5), colour, 0.0012 + 0.002 * share
        )
