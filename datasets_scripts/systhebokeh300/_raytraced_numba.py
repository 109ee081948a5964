"""The compiled inner loop of the ray-traced renderer.

Strict IEEE arithmetic, one thread, a fixed order of sums: the same input gives the same bits.
"""

import math

import numba
import numpy as np

CHANNELS = 4
EMPTY, MIXED, OPAQUE = 0, 1, 2
"""What the foreground does to all rays of a pixel: hides nothing, some of the background, all of it."""

_jit = numba.njit(nogil=True, cache=True)


@_jit
def ray_radius_px(
    depth_term: float, slope_per_px: float, scale: float, px_per_dpt: float, focus_disparity_dpt: float
) -> float:
    """Solve where a ray meets a plane: the signed radius t with ``t = m (d(p + t u) - d_f)`` (Eq. 44, 45), exactly.

    With ``D`` = 1 - a x - b y at the pixel and ``g`` its fall per pixel along u, d is ``c / (D - g t)`` on the ray and
    the equation is the quadratic ``g t^2 - (D - m d_f g) t + m (c - d_f D) = 0``. The root is the one that goes over
    into ``m (c / D - d_f)`` when g goes to 0, in the form that does not cancel.

    Args:
        depth_term: D at the pixel, above 0.
        slope_per_px: g = u . (2 a / W, 2 b / H).
        scale: c in dioptres.
        px_per_dpt: m, pixels of radius per dioptre.
        focus_disparity_dpt: d_f in dioptres.

    Returns:
        t in pixels; positive when the plane is nearer than the focus.
    """
    linear = depth_term - px_per_dpt * focus_disparity_dpt * slope_per_px
    constant = px_per_dpt * (scale - focus_disparity_dpt * depth_term)
    return 2.0 * constant / (linear + math.sqrt(linear * linear - 4.0 * slope_per_px * constant))


@_jit
def _level(sigma_px: float, first_px: float, ratio: float) -> float:
    """Place of a filter width in the ladder 0, first, first * ratio, ...: linear up to the first, then logarithmic."""
    if sigma_px <= first_px:
        return sigma_px / first_px
    return 1.0 + math.log(sigma_px / first_px) / math.log(ratio)


@_jit
def _look(
    total: np.ndarray, data: np.ndarray, start: int, size: tuple[int, int], x: float, y: float, gain: float
) -> float:
    """Add what a plane shows at a place of its canvas, bilinear, to four sums; the opacity there is returned."""
    rows, columns = size
    x, y = min(max(x, 0.0), columns - 1.0), min(max(y, 0.0), rows - 1.0)
    left, top = int(x), int(y)
    fx, fy = np.float32(x - left), np.float32(y - top)
    one = np.float32(1.0)
    right = CHANNELS if left < columns - 1 else 0
    below = CHANNELS * columns if top < rows - 1 else 0
    at = start + CHANNELS * (top * columns + left)
    seen = one
    for channel in range(CHANNELS):
        seen = data[at + channel] * ((one - fy) * (one - fx))
        seen += data[at + right + channel] * ((one - fy) * fx)
        seen += data[at + below + channel] * (fy * (one - fx))
        seen += data[at + below + right + channel] * (fy * fx)
        total[channel] += seen * gain
    return seen


@_jit
def trace(
    out: np.ndarray,
    foreground: np.ndarray,
    background: np.ndarray,
    base_levels: tuple[int, int],
    kinds: np.ndarray,
    planes: tuple[tuple[float, float, float], tuple[float, float, float]],
    origin: tuple[int, int],
    px_per_dpt: float,
    focus_disparity_dpt: float,
    lens: np.ndarray,
    counts: np.ndarray,
    ladder: tuple[float, float, float, float],
) -> None:
    """Trace all rays of all pixels and write their mean.

    Args:
        out: (H, W, 3) float32, linear light, written.
        foreground: (F, Hc, Wc, 4) float32, premultiplied linear light and opacity at F filter widths.
        background: (F', Hc, Wc, 4) float32, linear light; the last channel is not read.
        base_levels: which step of the ladder the first filter width of each is.
        kinds: (H, W) uint8 of EMPTY, MIXED, OPAQUE.
        planes: (a, b, c) of the foreground and of the background (Eq. 44).
        origin: row and column of the frame's first pixel in the canvas.
        px_per_dpt: m, pixels of radius per dioptre.
        focus_disparity_dpt: d_f.
        lens: (P, N, 3) float64: P patterns of lens points in the unit disk, and a number in [0, 1) for each.
        counts: (P,) number of points of each pattern, ascending.
        ladder: first filter width and ratio of the ladder, width per spacing of the rays, both in pixels, and the
            spacing that is fine enough.
    """
    height, width = out.shape[:2]
    rows, columns = foreground.shape[1:3]
    first_px, ratio, share, fine_px = ladder
    (a_f, b_f, c_f), (a_b, b_b, c_b) = planes
    step_x, step_y = 2.0 / width, 2.0 / height
    size, plane_length = (rows, columns), CHANNELS * rows * columns
    front, back = foreground.reshape(-1), background.reshape(-1)
    total = np.zeros(CHANNELS, dtype=np.float32)
    one = np.float32(1.0)
    for row in range(height):
        y = (row + 0.5) * step_y - 1.0
        for column in range(width):
            x = (column + 0.5) * step_x - 1.0
            kind = kinds[row, column]
            term_f, term_b = 1.0 - a_f * x - b_f * y, 1.0 - a_b * x - b_b * y
            radius_f = abs(px_per_dpt * (c_f / term_f - focus_disparity_dpt))
            radius_b = abs(px_per_dpt * (c_b / term_b - focus_disparity_dpt))
            radius = 0.0
            if kind != EMPTY:
                radius = radius_f
            if kind != OPAQUE:
                radius = max(radius, radius_b)
            pattern = 0
            while pattern < counts.size - 1 and radius * math.sqrt(math.pi / counts[pattern]) > fine_px:
                pattern += 1
            count = counts[pattern]
            if radius == 0.0:
                count = 1
            spacing = math.sqrt(math.pi / count) * share
            level_f = max(_level(radius_f * spacing, first_px, ratio) - base_levels[0], 0.0)
            level_b = max(_level(radius_b * spacing, first_px, ratio) - base_levels[1], 0.0)
            low_f = min(int(level_f), foreground.shape[0] - 1)
            low_b = min(int(level_b), background.shape[0] - 1)
            high_f, high_b = min(low_f + 1, foreground.shape[0] - 1), min(low_b + 1, background.shape[0] - 1)
            level_f -= low_f
            level_b -= low_b
            total[:] = 0.0
            for index in range(count):
                u, v, rank = lens[pattern, index]
                through = one
                if kind != EMPTY:
                    t = ray_radius_px(
                        term_f, a_f * u * step_x + b_f * v * step_y, c_f, px_per_dpt, focus_disparity_dpt
                    )
                    start = plane_length * (high_f if rank < level_f else low_f)
                    through = one - _look(
                        total, front, start, size, column + origin[1] + u * t, row + origin[0] + v * t, one
                    )
                if kind != OPAQUE:
                    t = ray_radius_px(
                        term_b, a_b * u * step_x + b_b * v * step_y, c_b, px_per_dpt, focus_disparity_dpt
                    )
                    start = plane_length * (high_b if rank < level_b else low_b)
                    _look(total, back, start, size, column + origin[1] + u * t, row + origin[0] + v * t, through)
            scale = one / np.float32(count)
            for channel in range(3):
                out[row, column, channel] = total[channel] * scale
