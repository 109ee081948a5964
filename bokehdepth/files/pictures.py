"""Pictures of depth and of stacks: colours, a legend in metres, a contact sheet, smaller copies. No torch import.

Depth is z-depth in metres, float ``(H, W)``: NaN has no value, inf is infinitely far. Colours and legend are
matplotlib's, without its window system: half a second once for each process, and 0.05 s for a legend.
"""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bokehdepth.errors import InputError
from bokehdepth.files.arrays import check_depth, finite_range

NO_VALUE_RGB = (96, 96, 96)
INFINITE_RGB = (190, 190, 190)
_DEFAULT_PERCENTILES = (1.0, 99.0)
_TICK_STEPS = ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 5), (1, 1.5, 2, 3, 4, 5, 7))
_PANEL_EM, _FONT_EM = 11, 0.85  # width of the legend and size of its letters, in steps that grow with the picture
_INK, _PAPER = (20, 20, 20), (255, 255, 255)


def _ends_m(depth_m: np.ndarray) -> tuple[float, float] | None:
    """Depths of the first and the last colour, a few outliers aside; None without finite depth."""
    finite = depth_m[np.isfinite(depth_m)].astype(np.float64)
    if finite.size == 0:
        return None
    near, far = map(float, np.percentile(finite, _DEFAULT_PERCENTILES))
    return near, far if far * (1 - 1e-6) > near else near * 1.02  # a flat wall


def _painted(depth_m: np.ndarray, ends_m: tuple[float, float] | None, colormap: str) -> np.ndarray:
    """Checked depth in colours, uint8 ``(H, W, 3)``, its logarithm evenly along the map between two ends."""
    from matplotlib import colormaps

    if colormap not in colormaps:
        raise InputError(f"colormap is {colormap!r}, wanted the name of a matplotlib colour map")
    colors = np.full((*depth_m.shape, 3), NO_VALUE_RGB, dtype=np.uint8)
    colors[np.isposinf(depth_m)] = INFINITE_RGB
    if ends_m is not None:
        table = colormaps[colormap](np.linspace(0, 1, 1024), bytes=True)[:, :3]
        finite = np.isfinite(depth_m)
        place = np.log(depth_m[finite].astype(np.float64) / ends_m[0]) / math.log(ends_m[1] / ends_m[0])
        colors[finite] = table[np.rint(np.clip(place, 0, 1) * (len(table) - 1)).astype(np.intp)]
    return colors


def colorize_depth(depth_m: np.ndarray, *, colormap: str = "magma_r") -> np.ndarray:
    """Colour a depth map by its logarithm; `depth_preview` adds the legend that says what the colours are.

    The map runs from the 1st to the 99th percentile of the finite depth; beyond them depth has the colour of that end.

    Args:
        depth_m: Depth in metres, floating point ``(H, W)``, above 0.
        colormap: Name of a matplotlib colour map; its first colour is near. A map without grey keeps missing values
            distinct.

    Returns:
        uint8 RGB ``(H, W, 3)``; NaN is ``NO_VALUE_RGB`` (dark grey), inf ``INFINITE_RGB`` (light grey).

    Raises:
        InputError: If ``depth_m`` is not such an array or there is no map of that name.
    """
    return _painted(check_depth(depth_m), _ends_m(depth_m), colormap)


def legend_ticks(near_m: float, far_m: float) -> list[float]:
    """Choose round depths for a legend, ascending and in metres: at least 4 within the two ends, which differ."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    locators = [LogLocator(subs=steps, numticks=100) for steps in _TICK_STEPS]
    for locator in (*locators, MaxNLocator(5, steps=(1, 2, 2.5, 5, 10)), MaxNLocator(8)):
        ticks = [float(f"{tick:.12g}") for tick in locator.tick_values(near_m, far_m)]
        ticks = [tick for tick in ticks if near_m <= tick <= far_m]
        if len(ticks) >= 4:
            break
    return ticks


def _short(value_m: float) -> str:
    """Write metres with three digits, without an exponent."""
    return np.format_float_positional(float(f"{value_m:.3g}"), trim="-")


def _share(count: int, total: int) -> str:
    percent = 100 * count / total
    return "< 0.1 %" if percent < 0.1 else f"{percent:.1f} %" if percent < 10 else f"{percent:.0f} %"


def _legend(
    size_px: tuple[int, int],
    em_px: int,
    ends_m: tuple[float, float] | None,
    range_m: tuple[float, float] | None,
    colormap: str,
    swatches: Sequence[tuple[tuple[int, int, int], str]],
) -> Image.Image:
    """Draw a legend of a given size: the bar, near at the bottom, below it the true range and what has no depth."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    em_x, em_y = (em_px / side for side in size_px)
    font_px = _FONT_EM * em_px
    canvas = FigureCanvasAgg(Figure(figsize=[side / 72 for side in size_px], dpi=72, facecolor="white"))
    figure = canvas.figure
    ink = [level / 255 for level in _INK]

    def write(row: float, text: str, left_em: float = 0.8) -> None:
        figure.text(left_em * em_x, row * em_y, text, fontsize=font_px, color=ink, va="center")

    for row, (color, text) in enumerate(reversed(swatches)):
        write(1.5 * row + 1.5, text, 2.3)
        place = (0.8 * em_x, (1.5 * row + 1) * em_y, em_x, em_y)
        box = figure.add_axes(place, facecolor=[level / 255 for level in color])
        box.set(xticks=[], yticks=[])
    write(1.5 * len(swatches) + 1.5, "no depth" if range_m is None else " to ".join(map(_short, range_m)) + " m")
    figure.text(0.8 * em_x, 1 - 1.5 * em_y, "depth (m)", fontsize=font_px, color=ink, va="center")
    if ends_m is not None:
        bottom = (1.5 * len(swatches) + 3.5) * em_y
        bar = figure.add_axes((0.8 * em_x, bottom, 1.4 * em_x, 1 - bottom - 3.5 * em_y))
        (near_m, far_m), (least_m, most_m) = ends_m, range_m
        extend = {(1, 1): "both", (1, 0): "min", (0, 1): "max"}.get((least_m < near_m, most_m > far_m), "neither")
        scale = ScalarMappable(LogNorm(near_m, far_m), colormap)
        legend = figure.colorbar(scale, cax=bar, extend=extend, extendfrac=0.8 * em_y / (1 - bottom - 3.5 * em_y))
        ticks = legend_ticks(near_m, far_m)
        legend.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks], fontsize=font_px, color=ink)
        legend.minorticks_off()
        bar.tick_params(length=0.35 * em_px, width=em_px / 14)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])


def depth_preview(depth_m: np.ndarray, *, colormap: str = "magma_r", max_side_px: int | None = None) -> Image.Image:
    """Draw a depth map in colours beside a legend in metres.

    The legend has round ticks, an arrow where depth runs beyond the end colours, the true least and greatest depth,
    and the share of pixels without value or infinitely far. It grows with the picture.

    Args:
        depth_m: Depth in metres, floating point ``(H, W)``, above 0.
        colormap: As in ``colorize_depth``.
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
    ends_m, range_m = _ends_m(shown), finite_range(depth_m)
    if ends_m is None and range_m is not None:
        ends_m = _ends_m(depth_m)
    colors = _painted(shown, ends_m, colormap)
    height, width = shown.shape

    em_px = max(10, math.floor(min(0.034 * math.sqrt(width * height), height / 28)))
    missing, infinite = int(np.isnan(depth_m).sum()), int(np.isposinf(depth_m).sum())
    swatches = [
        (color, f"{name} {_share(count, depth_m.size)}")
        for color, name, count in ((NO_VALUE_RGB, "no value", missing), (INFINITE_RGB, "infinite", infinite))
        if count
    ]
    legend_px = (round(_PANEL_EM * em_px), max(height, round((7 + 14 + 1.5 * len(swatches)) * em_px)))
    legend = _legend(legend_px, em_px, ends_m, range_m, colormap, swatches)
    canvas = Image.new("RGB", (width + legend.width, legend.height), _PAPER)
    canvas.paste(Image.fromarray(colors), (0, 0))
    canvas.paste(legend, (width, 0))
    return canvas


def contact_sheet(images: Sequence[Image.Image], labels: Sequence[str], *, columns: int | None = None) -> Image.Image:
    """Lay pictures out in a grid, each with its label above it: a stack as ``sharp, K = 10, ...``.

    Args:
        images: PIL pictures; their cells are as large as the largest of them.
        labels: One label for each.
        columns: Pictures in a row, 1 or more; by default all of them up to 4, else as many as make it about square.

    Returns:
        RGB picture.

    Raises:
        InputError: If there is no picture, or the numbers differ.
    """
    if len(images) == 0 or len(images) != len(labels):
        raise InputError(
            f"images has {len(images)} entries and labels {len(labels)}, wanted one label for each picture"
        )
    width, height = (max(sides) for sides in zip(*(image.size for image in images), strict=True))
    if columns is None:
        columns = len(images) if len(images) <= 4 else max(1, round(math.sqrt(len(images) * height / width)))
    em_px = max(10, round(0.045 * width))
    widest = max(ImageFont.load_default(em_px).getlength(label) for label in labels)
    if widest > width:  # a long label gets a smaller font, not a cut
        em_px = max(6, math.floor(em_px * width / widest))
    font = ImageFont.load_default(em_px)
    gap, caption = max(2, round(0.015 * width)), round(1.7 * em_px)
    rows = math.ceil(len(images) / columns)
    columns = min(columns, len(images))
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + caption + gap) + gap), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        x, y = gap + index % columns * (width + gap), gap + index // columns * (height + caption + gap)
        draw.text((x + width / 2, y + caption / 2), label, font=font, fill=_INK, anchor="mm")
        sheet.paste(image.convert("RGB"), (x + (width - image.width) // 2, y + caption))
    return sheet


def size_within(size_px: tuple[int, int], max_side_px: int | None) -> tuple[int, int]:
    """Size of a picture made to fit a square, its proportions kept; never larger than it is.

    Args:
        size_px: (width, height) of the picture.
        max_side_px: longest side wanted, 1 or more; None keeps the size.

    Returns:
        (width, height), 1 or more each.

    Raises:
        InputError: a number is below 1.
    """
    if min(size_px) < 1 or (max_side_px is not None and max_side_px < 1):
        raise InputError(f"size_px is {size_px} and max_side_px {max_side_px!r}, wanted 1 or more")
    if max_side_px is None or max(size_px) <= max_side_px:
        return size_px
    scale = max_side_px / max(size_px)
    return max(1, round(size_px[0] * scale)), max(1, round(size_px[1] * scale))


def shrunk_image(image: Image.Image, max_side_px: int | None) -> Image.Image:
    """A copy of a picture that fits a square.

    Args:
        image: PIL picture.
        max_side_px: as in `size_within`.

    Returns:
        The picture, resized with an area filter where it is larger.

    Raises:
        InputError: as `size_within` says.
    """
    size = size_within(image.size, max_side_px)
    return image.copy() if size == image.size else image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def shrunk_depth(depth_m: np.ndarray, size_px: tuple[int, int]) -> np.ndarray:
    """A depth map of another size, of whose values none is a mixture of near and far.

    Args:
        depth_m: z-depth in metres, floating point (H, W).
        size_px: (width, height) wanted.

    Returns:
        float32 (height, width): for each pixel the depth at its centre.

    Raises:
        InputError: `depth_m` is no depth map, or the size is below 1.
    """
    height, width = check_depth(depth_m).shape
    if min(size_px) < 1:
        raise InputError(f"size_px is {size_px}, wanted 1 or more")
    rows = ((np.arange(size_px[1]) + 0.5) * height / size_px[1]).astype(np.intp)
    columns = ((np.arange(size_px[0]) + 0.5) * width / size_px[0]).astype(np.intp)
    return depth_m[rows[:, None], columns].astype(np.float32)
