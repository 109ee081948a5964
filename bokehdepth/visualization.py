"""Pictures of depth and of stacks: colours, a legend in metres, a contact sheet. No torch import.

Depth is z-depth in metres, float ``(H, W)``: NaN has no value, inf is infinitely far. Colour maps are matplotlib's,
read on first use and without its window system; everything else is drawn by PIL.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bokehdepth.errors import InputError
from bokehdepth.io import check_depth, finite_range

DepthScale = Literal["linear", "log", "disparity"]

NO_VALUE_RGB = (96, 96, 96)
INFINITE_RGB = (190, 190, 190)
_DEFAULT_PERCENTILES = (1.0, 99.0)
_LINEAR_STEPS = (1, 2, 5, 2.5, 4, 3, 1.5, 8)  # the rounder, the earlier
_TICKS = 6
_INK, _PAPER = (20, 20, 20), (255, 255, 255)


class _Range(NamedTuple):
    near_m: float
    far_m: float
    least_m: float
    most_m: float


def _depth_range(depth_m: np.ndarray, near_m: float | None, far_m: float | None) -> _Range | None:
    """Find the depths of the two end colours and the least and greatest finite depth; None without finite depth."""
    for name, value in (("near_m", near_m), ("far_m", far_m)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} is {value!r}, wanted a finite number of metres above 0")
    if near_m is not None and far_m is not None and near_m >= far_m:
        raise InputError(f"near_m is {near_m:g} and far_m {far_m:g}, wanted near_m below far_m")
    finite = depth_m[np.isfinite(depth_m)].astype(np.float64)
    if finite.size == 0:
        return None
    low, high = np.percentile(finite, _DEFAULT_PERCENTILES)
    near = float(low if near_m is None else near_m)
    far = float(high if far_m is None else far_m)
    if near >= far * (1 - 1e-6):  # a flat wall, or all of the depth on one side of the one end that was given
        near, far = (near, near * 1.02) if far_m is None else (far / 1.02, far)
    return _Range(near, far, float(finite.min()), float(finite.max()))


def _position(value_m: np.ndarray, near_m: float, far_m: float, scale: DepthScale) -> np.ndarray:
    """Place depths on the colour bar: 0 at ``near_m``, 1 at ``far_m``."""
    if scale == "linear":
        return (value_m - near_m) / (far_m - near_m)
    if scale == "log":
        return np.log(value_m / near_m) / math.log(far_m / near_m)
    if scale == "disparity":
        return (1 / near_m - 1 / value_m) / (1 / near_m - 1 / far_m)
    raise InputError(f"scale is {scale!r}, wanted 'linear', 'log' or 'disparity'")


def _depth_at(position: np.ndarray, near_m: float, far_m: float, scale: DepthScale) -> np.ndarray:
    """Invert ``_position``."""
    if scale == "linear":
        return near_m + position * (far_m - near_m)
    if scale == "log":
        return near_m * (far_m / near_m) ** position
    return 1 / (1 / near_m - position * (1 / near_m - 1 / far_m))


def _lookup_table(colormap: str) -> np.ndarray:
    """Colours of a matplotlib map, uint8 ``(1024, 3)``, near first."""
    from matplotlib import colormaps

    if colormap not in colormaps:
        raise InputError(f"colormap is {colormap!r}, wanted the name of a matplotlib colour map")
    return colormaps[colormap](np.linspace(0, 1, 1024), bytes=True)[:, :3]


def _paint(depth_m: np.ndarray, table: np.ndarray, ends: _Range | None, scale: DepthScale) -> np.ndarray:
    """Colour checked depth, uint8 ``(H, W, 3)``."""
    _position(np.ones(1), 1.0, 2.0, scale)  # a wrong scale is an error for a map without finite depth too
    colors = np.empty((*depth_m.shape, 3), dtype=np.uint8)
    colors[...] = NO_VALUE_RGB
    colors[np.isposinf(depth_m)] = INFINITE_RGB
    if ends is not None:
        finite = np.isfinite(depth_m)
        position = _position(depth_m[finite].astype(np.float64), ends.near_m, ends.far_m, scale)
        colors[finite] = table[np.rint(np.clip(position, 0, 1) * (len(table) - 1)).astype(np.intp)]
    return colors


def colorize_depth(
    depth_m: np.ndarray,
    *,
    colormap: str = "magma_r",
    scale: DepthScale = "log",
    near_m: float | None = None,
    far_m: float | None = None,
) -> np.ndarray:
    """Colour a depth map; ``depth_preview`` adds the legend that says what the colours are.

    Depth below ``near_m`` and above ``far_m`` has the colour of that end.

    Args:
        depth_m: Depth in metres, floating point ``(H, W)``, above 0.
        colormap: Name of a matplotlib colour map; its first colour is near. A map without grey keeps missing values
            distinct.
        scale: What runs evenly along the colours: depth, its logarithm, or disparity (1/m).
        near_m: Depth of the first colour; by default the 1st percentile of the finite depth.
        far_m: Depth of the last colour; by default the 99th percentile of the finite depth.

    Returns:
        uint8 RGB ``(H, W, 3)``; NaN is ``NO_VALUE_RGB`` (dark grey), inf ``INFINITE_RGB`` (light grey).

    Raises:
        InputError: If ``depth_m`` is not such an array, the map or scale has no such name, or the ends are not
            ``0 < near_m < far_m``.
    """
    depth = check_depth(depth_m)
    return _paint(depth, _lookup_table(colormap), _depth_range(depth, near_m, far_m), scale)


def _linear_ticks(near: float, far: float) -> list[float]:
    """Multiples of one round step: the roundest step that gives 5 or 6 ticks, else 4 to 7."""
    exponent = math.floor(math.log10(far - near))
    candidates = [step * 10.0**power for step in _LINEAR_STEPS for power in (exponent, exponent - 1)]
    for wanted in ((5, 6), (4, 5, 6, 7)):
        for step in candidates:
            first, last = math.ceil(near / step - 1e-9), math.floor(far / step + 1e-9)
            if last - first + 1 in wanted:
                return [float(f"{index * step:.12g}") for index in range(first, last + 1)]
    return [near, far]


def _roundest(low: float, high: float, ideal: float) -> float:
    """Find the roundest number in ``[low, high]``: the multiple of the greatest 10^n, 5*10^n or 2*10^n."""
    power = math.floor(math.log10(high))
    while True:
        for factor in (10, 5, 2):
            step = factor * 10.0 ** (power - 1)
            first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
            if first <= last:
                return float(f"{min(max(round(ideal / step), first), last) * step:.12g}")
        power -= 1


def legend_ticks(near_m: float, far_m: float, scale: DepthScale = "log") -> list[float]:
    """Choose round depths for a legend, about evenly spaced along the bar of the scale.

    Args:
        near_m: Depth at the start of the bar.
        far_m: Depth at its end.
        scale: As in ``colorize_depth``.

    Returns:
        Ascending depths in metres within the bar: 6, or for ``"linear"`` 4 to 7 multiples of one round step.

    Raises:
        InputError: If the ends are not ``0 < near_m < far_m < inf`` or the scale has no such name.
    """
    if not 0 < near_m < far_m < math.inf:
        raise InputError(f"near_m is {near_m!r} and far_m {far_m!r}, wanted 0 < near_m < far_m, both finite")
    _position(np.ones(1), near_m, far_m, scale)
    if scale == "linear":
        return _linear_ticks(near_m, far_m)
    # Each tick may move within the middle 60 % of its share of the bar, so that labels never touch.
    shares = (np.arange(_TICKS)[:, None] + np.array([0.2, 0.5, 0.8])) / _TICKS
    return [_roundest(low, high, ideal) for low, ideal, high in _depth_at(shares, near_m, far_m, scale)]


def _short(value_m: float) -> str:
    """Write metres with three digits, without an exponent."""
    if value_m >= 1000:
        return f"{value_m:.0f}"
    digits = max(2 - math.floor(math.log10(value_m)), 0)
    text = f"{value_m:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _text_width(font: ImageFont.FreeTypeFont, text: str) -> int:
    return math.ceil(font.getlength(text))


def _share(count: int, total: int) -> str:
    percent = 100 * count / total
    return "< 0.1 %" if percent < 0.1 else f"{percent:.1f} %" if percent < 10 else f"{percent:.0f} %"


def _draw_bar(
    draw: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    font: ImageFont.FreeTypeFont,
    table: np.ndarray,
    ends: _Range,
    scale: DepthScale,
) -> None:
    """Draw the colour bar, near at the bottom, with ticks, and an arrow at each end that depth runs beyond."""
    left, top, right, bottom = box
    line, size = max(1, round(font.size / 14)), font.size
    for y in range(top, bottom):
        index = round((bottom - 1 - y) / max(bottom - 1 - top, 1) * (len(table) - 1))
        draw.line([(left, y), (right - 1, y)], fill=tuple(table[index].tolist()))
    draw.rectangle([left, top, right - 1, bottom - 1], outline=_INK, width=line)
    values = legend_ticks(ends.near_m, ends.far_m, scale)
    tick = round(0.35 * size)
    for value, position in zip(values, _position(np.array(values), *ends[:2], scale), strict=True):
        y = round(bottom - 1 - position * (bottom - 1 - top))
        draw.line([(right, y), (right + tick, y)], fill=_INK, width=line)
        draw.text((right + 1.6 * tick, y), f"{value:g}", font=font, fill=_INK, anchor="lm")
    centre, gap = (left + right) / 2, line + max(1, round(0.15 * size))
    if ends.most_m > ends.far_m:
        arrow = [(left, top - gap), (right - 1, top - gap), (centre, top - gap - 0.8 * size)]
        draw.polygon(arrow, fill=tuple(table[-1].tolist()), outline=_INK, width=line)
        draw.text((right + 1.6 * tick, top - gap - 0.4 * size), f"> {_short(ends.far_m)}", _INK, font, anchor="lm")
    if ends.least_m < ends.near_m:
        arrow = [(left, bottom + gap), (right - 1, bottom + gap), (centre, bottom + gap + 0.8 * size)]
        draw.polygon(arrow, fill=tuple(table[0].tolist()), outline=_INK, width=line)
        draw.text((right + 1.6 * tick, bottom + gap + 0.4 * size), f"< {_short(ends.near_m)}", _INK, font, anchor="lm")


def depth_preview(
    depth_m: np.ndarray,
    *,
    colormap: str = "magma_r",
    scale: DepthScale = "log",
    near_m: float | None = None,
    far_m: float | None = None,
    max_side_px: int | None = None,
) -> Image.Image:
    """Draw a depth map in colours beside a legend in metres.

    The legend has round ticks, an arrow with ``< near`` or ``> far`` where depth runs beyond the end colours, the true
    least and greatest depth, and the share of pixels without value or infinitely far. It grows with the picture.

    Args:
        depth_m: Depth in metres, floating point ``(H, W)``, above 0.
        colormap: As in ``colorize_depth``.
        scale: As in ``colorize_depth``.
        near_m: As in ``colorize_depth``.
        far_m: As in ``colorize_depth``.
        max_side_px: Longest side of the colours, 1 or more: of a larger map every second, third ... pixel is shown.
            The end colours are then those of what is shown; the numbers of the legend are of the whole map.

    Returns:
        RGB picture: the colours at its upper left, the legend at their right. It is higher than
        ``H`` only where the legend needs it.

    Raises:
        InputError: As ``colorize_depth`` says.
    """
    check_depth(depth_m)
    step = 1 if max_side_px is None else math.ceil(max(depth_m.shape) / max_side_px)
    shown = depth_m[step // 2 :: step, step // 2 :: step]
    ends = _depth_range(shown, near_m, far_m)
    if step > 1 and (whole := finite_range(depth_m)) is not None:
        ends = (ends or _depth_range(depth_m, near_m, far_m))._replace(least_m=whole[0], most_m=whole[1])
    table = _lookup_table(colormap)
    colors = _paint(shown, table, ends, scale)
    height, width = shown.shape

    size = max(10, math.floor(min(0.034 * math.sqrt(width * height), height / 28)))
    font = ImageFont.load_default(size)
    row, margin, bar = round(1.5 * size), round(0.8 * size), round(1.4 * size)
    missing, infinite = int(np.isnan(depth_m).sum()), int(np.isposinf(depth_m).sum())
    swatches = [
        (color, f"{name} {_share(count, depth_m.size)}")
        for color, name, count in ((NO_VALUE_RGB, "no value", missing), (INFINITE_RGB, "infinite", infinite))
        if count
    ]
    title = "depth (m)"
    summary = "no depth" if ends is None else f"{_short(ends.least_m)} to {_short(ends.most_m)} m"

    texts = [(0, title), (0, summary), *((row, text) for _, text in swatches)]
    if ends is not None:
        values = legend_ticks(ends.near_m, ends.far_m, scale)
        beside = [f"> {_short(ends.far_m)}", f"< {_short(ends.near_m)}", *(f"{value:g}" for value in values)]
        texts += [(bar + size, text) for text in beside]
    text_width = max(offset + _text_width(font, text) for offset, text in texts)
    footer = (1 + len(swatches)) * row
    canvas_height = max(height, 2 * margin + row + footer + (0 if ends is None else 2 * row + 16 * size))
    canvas = Image.new("RGB", (width + 2 * margin + text_width, canvas_height), _PAPER)
    canvas.paste(Image.fromarray(colors), (0, 0))

    draw, left = ImageDraw.Draw(canvas), width + margin
    draw.text((left, margin + row / 2), title, font=font, fill=_INK, anchor="lm")
    y = canvas_height - margin - footer
    if ends is not None:
        # A row is kept free at each end of the bar for the arrows.
        _draw_bar(draw, (left, margin + 2 * row, left + bar, y - row), font, table, ends, scale)
    draw.text((left, y + row / 2), summary, font=font, fill=_INK, anchor="lm")
    for color, text in swatches:
        y += row
        swatch = [left, y + round(0.15 * row), left + size, y + round(0.15 * row) + size]
        draw.rectangle(swatch, fill=color, outline=_INK, width=max(1, round(size / 14)))
        draw.text((left + row, y + row / 2), text, font=font, fill=_INK, anchor="lm")
    return canvas


def contact_sheet(
    images: Sequence[Image.Image],
    labels: Sequence[str],
    *,
    columns: int | None = None,
    cell_width_px: int | None = None,
) -> Image.Image:
    """Lay pictures out in a grid, each with its label above it: a stack as ``sharp, K = 10, ...``.

    Args:
        images: PIL pictures; their cells are as large as the largest of them.
        labels: One label for each.
        columns: Pictures in a row; by default all of them up to 4, else as many as make the sheet about square.
        cell_width_px: Width that every picture is resized to, aspect kept; by default none is resized.

    Returns:
        RGB picture.

    Raises:
        InputError: If there is no picture, one is not RGB or 8-bit grey, the numbers differ, or a count is below 1.
    """
    if len(images) == 0 or len(images) != len(labels):
        raise InputError(
            f"images has {len(images)} entries and labels {len(labels)}, wanted one label for each picture"
        )
    for name, count in (("columns", columns), ("cell_width_px", cell_width_px)):
        if count is not None and count < 1:
            raise InputError(f"{name} is {count!r}, wanted 1 or more")
    for image in images:
        if image.mode not in ("RGB", "L"):
            raise InputError(f"images has a picture of mode {image.mode!r}, wanted RGB or L")
    cells = [image.convert("RGB") for image in images]
    if cell_width_px is not None:
        cells = [
            cell.resize(
                (cell_width_px, max(1, round(cell.height * cell_width_px / cell.width))), Image.Resampling.LANCZOS
            )
            for cell in cells
        ]
    width, height = max(cell.width for cell in cells), max(cell.height for cell in cells)
    if columns is None:
        columns = len(cells) if len(cells) <= 4 else max(1, round(math.sqrt(len(cells) * height / width)))

    size = max(10, round(0.045 * width))
    font = ImageFont.load_default(size)
    widest = max(_text_width(font, label) for label in labels)
    if widest > width:  # a long label gets a smaller font, not a cut
        size = max(6, math.floor(size * width / widest))
        font = ImageFont.load_default(size)
    gap, caption = max(2, round(0.015 * width)), round(1.7 * size)
    rows = math.ceil(len(cells) / columns)
    columns = min(columns, len(cells))
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + caption + gap) + gap), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, (cell, label) in enumerate(zip(cells, labels, strict=True)):
        x, y = gap + index % columns * (width + gap), gap + index // columns * (height + caption + gap)
        draw.text((x + width / 2, y + caption / 2), label, font=font, fill=_INK, anchor="mm")
        sheet.paste(cell, (x + (width - cell.width) // 2, y + caption))
    return sheet
