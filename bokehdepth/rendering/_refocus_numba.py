"""The inner loops of `refocus.py`. Importing it imports numba."""

import numba
import numpy as np

from bokehdepth.rendering._scatter_numba import CHANNELS, _add_pair

_SURE = 2.0  # known pixels of four that make a pixel of half the size known; fewer take from further away too
_COARSE_FROM_PX = 2.0  # of blur: a continuation so blurred is spread by cells of 2x2
TILE_PX = 8
"""Side of the tiles in which the visibility of hidden surfaces is asked."""

_SEEN = 1e-3  # opacity of a continued surface from which on it is drawn

_ONE, _TWO = numba.uint64(1), numba.uint64(2)


@numba.njit(nogil=True, cache=True)
def halve(values, weight):  # noqa: ANN001, ANN201
    """Average a picture ``(H, W, C)`` to half its size by the weights ``(H, W)``: the picture and its weights."""
    height, width, channels = values.shape
    small = np.zeros(((height + 1) // 2, (width + 1) // 2, channels), dtype=np.float32)
    known = np.zeros(small.shape[:2], dtype=np.float32)
    for y in range(small.shape[0]):
        for x in range(small.shape[1]):
            total = np.float32(0)
            for row in range(2 * y, min(2 * y + 2, height)):
                for column in range(2 * x, min(2 * x + 2, width)):
                    share = weight[row, column]
                    if share > 0:
                        total += share
                        for c in range(channels):
                            small[y, x, c] += share * values[row, column, c]
            if total > 0:
                for c in range(channels):
                    small[y, x, c] /= total
            known[y, x] = min(total / np.float32(_SURE), np.float32(1))
    return small, known


@numba.njit(nogil=True, cache=True)
def complete(values, weight, small):  # noqa: ANN001, ANN201
    """Give every pixel that is not fully known its missing part from the picture of half the size, in place."""
    height, width, channels = values.shape
    low, right = small.shape[0] - 1, small.shape[1] - 1
    for y in range(height):
        above = y // 2 - 1 + y % 2
        down = np.float32(0.25 if y % 2 else 0.75)
        y0, y1 = max(above, 0), min(above + 1, low)
        for x in range(width):
            share = weight[y, x]
            if share >= 1:
                continue
            left = x // 2 - 1 + x % 2
            aside = np.float32(0.25 if x % 2 else 0.75)
            x0, x1 = max(left, 0), min(left + 1, right)
            for c in range(channels):
                upper = small[y0, x0, c] + aside * (small[y0, x1, c] - small[y0, x0, c])
                lower = small[y1, x0, c] + aside * (small[y1, x1, c] - small[y1, x0, c])
                values[y, x, c] = share * values[y, x, c] + (1 - share) * (upper + down * (lower - upper))


@numba.njit(nogil=True, cache=True)
def take_own(light, radius, number, layer, known, half, weight):  # noqa: ANN001, ANN201
    """Average what a layer shows of itself into a picture of half the size.

    Args:
        light: float32 ``(H, W, 3)``.
        radius: float32 ``(H, W)``.
        number: int32 ``(H, W)``, each pixel's layer.
        layer: The layer.
        known: int32 ``(h, w)``: pixels of each cell that belong to the layer or lie behind it.
        half: float32 ``(h, w, 5)``, written: light, opacity and radius, premultiplied by the opacity.
        weight: float32 ``(h, w)``, written: how far a cell is known.
    """
    half[:] = 0
    for y in range(number.shape[0]):
        for x in range(number.shape[1]):
            if number[y, x] == layer:
                cell = half[y // 2, x // 2]
                cell[0] += light[y, x, 0]
                cell[1] += light[y, x, 1]
                cell[2] += light[y, x, 2]
                cell[3] += 1
                cell[4] += radius[y, x]
    for y in range(half.shape[0]):
        for x in range(half.shape[1]):
            count = known[y, x]
            if count > 0:
                for c in range(5):
                    half[y, x, c] /= count
            weight[y, x] = min(count / _SURE, 1)


@numba.njit(nogil=True, cache=True)
def forget(number, layer, known):  # noqa: ANN001, ANN201
    """Take the pixels of a layer off the count of known ones in each cell of 2x2, in place."""
    for y in range(number.shape[0]):
        for x in range(number.shape[1]):
            if number[y, x] == layer:
                known[y // 2, x // 2] -= 1


@numba.njit(nogil=True, cache=True, boundscheck=False)
def scatter_layer(light, radius, number, layer, half, known, wanted, span, table, canvas, geometry):  # noqa: ANN001, ANN201
    """Add the row differences of one layer to a canvas: its own pixels, and its continuation where it is hidden.

    Args:
        light: float32 ``(H, W, 3)``.
        radius: float32 ``(H, W)``.
        number: int32 ``(H, W)``.
        layer: The layer.
        half: float32 ``(h, w, 5)``: the continued layer at half the size, as `take_own` writes it.
        known: int32 ``(h, w)``, as for `take_own`.
        wanted: bool, a value for each tile of `TILE_PX` pixels: where the continuation can be seen.
        span: float32 ``(2,)``: least and largest radius of the layer.
        table: ``(first, offset, pair)`` of the kernels, offsets in the flat canvas.
        canvas: float32, flat ``(rows, stride, 4)``.
        geometry: int64 ``(7,)``: place of the pixel (0, 0) in the canvas, of one row after another, kernels for each
            pixel of radius, and the first and last rows and columns that can matter.

    Returns:
        The first row that spread anything and the row after the last.
    """
    first, offset, pair = table
    top, bottom = geometry[4], geometry[3]
    steps = np.float32(geometry[2])
    by_cells = span[0] >= _COARSE_FROM_PX
    for y in range(geometry[3], geometry[4]):
        base = geometry[0] + y * geometry[1] + geometry[5] * CHANNELS
        for x in range(geometry[5], geometry[6]):
            other = number[y, x] - layer
            if other == 0:
                v0, v1, v2 = light[y, x, 0], light[y, x, 1], light[y, x, 2]
                v3, r = np.float32(1), radius[y, x]
            elif other > 0 and wanted[y // TILE_PX, x // TILE_PX] and half[y // 2, x // 2, 3] > _SEEN:
                cell = half[y // 2, x // 2]
                share = np.float32(1)
                if by_cells and known[y // 2, x // 2] == 0:  # all four are hidden and alike: one for all
                    if y % 2 or x % 2:
                        base += CHANNELS
                        continue
                    share = np.float32(4)
                v0, v1, v2, v3 = share * cell[0], share * cell[1], share * cell[2], share * cell[3]
                r = min(max(cell[4] / cell[3], span[0]), span[1])
            else:
                base += CHANNELS
                continue
            top, bottom = min(top, y), y + 1
            kernel = numba.uint64(np.int64(r * steps + np.float32(0.5)))
            for place in range(numba.uint64(first[kernel]), numba.uint64(first[kernel + _ONE])):
                at = numba.uint64(base + offset[place])
                _add_pair(canvas, at, v0, v1, v2, v3, pair[place, 0], pair[place, 1])
            base += CHANNELS
    return top, bottom


@numba.njit(nogil=True, cache=True, boundscheck=False)
def lay_behind(canvas, out, total, passed, top, bottom, corner):  # noqa: ANN001, ANN201
    """Sum a canvas along its rows and lay the layer behind what is there; the canvas is zeroed.

    Args:
        canvas: float32 ``(rows, stride, 4)``.
        out: float32 ``(H, W, 3)``: light so far, changed in place.
        total: float32 ``(H, W)``: opacity so far, changed in place.
        passed: float32 ``(H, W)``: share of the light from behind that still gets through, changed in place.
        top: First row of the canvas that was written.
        bottom: Row after the last.
        corner: int64 ``(2,)``: row and column of the canvas where the picture begins.
    """
    height, width = passed.shape
    for row in range(top, bottom):
        y = row - corner[0]
        if 0 <= y < height:
            s0 = s1 = s2 = s3 = 0.0
            for column in range(corner[1] + width):
                s0 += canvas[row, column, 0]
                s1 += canvas[row, column, 1]
                s2 += canvas[row, column, 2]
                s3 += canvas[row, column, 3]
                x = column - corner[1]
                if x >= 0 and s3 > 1e-7:
                    # Where neighbouring disks pile up, an opacity above 1 is one that is full.
                    excess = max(s3, 1.0)
                    share = passed[y, x] / excess
                    out[y, x, 0] += np.float32(s0 * share)
                    out[y, x, 1] += np.float32(s1 * share)
                    out[y, x, 2] += np.float32(s2 * share)
                    total[y, x] += np.float32(s3 * share)
                    passed[y, x] = np.float32(passed[y, x] * (1 - s3 / excess))
        canvas[row] = 0


@numba.njit(nogil=True, cache=True)
def lay_sharp(light, number, half, corner, out, total, passed):  # noqa: ANN001, ANN201
    """Lay the layer in focus, number 0, behind what is there: no pixel of it reaches another one.

    Args:
        light: float32 ``(Hc, Wc, 3)``, the picture continued beyond its frame.
        number: int32 ``(Hc, Wc)``.
        half: float32 ``(h, w, 5)``: the continued layer at half the size, as `take_own` writes it.
        corner: int64 ``(2,)``: row and column where the frame begins.
        out: float32 ``(H, W, 3)``, changed in place, as in `lay_behind`.
        total: float32 ``(H, W)``, changed in place.
        passed: float32 ``(H, W)``, changed in place.
    """
    for y in range(passed.shape[0]):
        for x in range(passed.shape[1]):
            row, column = y + corner[0], x + corner[1]
            share = passed[y, x]
            if number[row, column] < 0 or share == 0:
                continue
            if number[row, column] == 0:
                for c in range(3):
                    out[y, x, c] += share * light[row, column, c]
                total[y, x] += share
                passed[y, x] = 0
            else:
                cell = half[row // 2, column // 2]
                for c in range(3):
                    out[y, x, c] += share * cell[c]
                total[y, x] += share * cell[3]
                passed[y, x] = share * (1 - cell[3])


@numba.njit(nogil=True, cache=True)
def divide(out, total, least):  # noqa: ANN001, ANN201
    """Divide light ``(H, W, 3)`` by the opacity ``(H, W)`` that it has come with, at least ``least``, in place."""
    for y in range(total.shape[0]):
        for x in range(total.shape[1]):
            share = np.float32(1) / max(total[y, x], np.float32(least))
            out[y, x, 0] *= share
            out[y, x, 1] *= share
            out[y, x, 2] *= share


@numba.njit(nogil=True, cache=True)
def tiles_above(passed, least, tiles, corner):  # noqa: ANN001, ANN201
    """Mark the tiles in which a value ``(H, W)`` is above ``least``; ``corner``: row and column of the first value."""
    tiles[:] = False
    for y in range(passed.shape[0]):
        for x in range(passed.shape[1]):
            if passed[y, x] > least:
                tiles[(y + corner[0]) // TILE_PX, (x + corner[1]) // TILE_PX] = True
