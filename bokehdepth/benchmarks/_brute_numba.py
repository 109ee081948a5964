"""The rivals of the span scatter: every pixel adds its light to every pixel of its kernel. Imports numba."""

import numba

from bokehdepth.rendering._scatter_numba import CHANNELS, _add_pair

_ONE, _TWO, _THREE = (numba.uint64(n) for n in (1, 2, 3))


@numba.njit(nogil=True, cache=True, boundscheck=False)
def brute_scatter(values, number, first, side, weight, canvas, start):  # noqa: ANN001, ANN201
    """Spread ``values``, flat ``(H, W, 4)``, by kernels ``weight[first[k]:]`` of ``side[k]`` rows to a padded canvas.

    Kernel rows have an even number of entries, so that two pixels at a time are added with one vector instruction, as
    in the span scatter. ``start``: place of the pixel (0, 0) in the flat canvas, and of one row after another.
    """
    height, width = number.shape
    for y in range(height):
        for x in range(width):
            source = numba.uint64((y * width + x) * CHANNELS)
            v0, v1, v2, v3 = values[source], values[source + _ONE], values[source + _TWO], values[source + _THREE]
            kernel = number[y, x]
            rows, place = side[kernel], first[kernel]
            half = rows // 2
            for row in range(rows):
                base = start[0] + (y + row - half) * start[1] + (x - half) * CHANNELS
                for pair in range((rows + 1) // 2):
                    at = numba.uint64(base + 2 * pair * CHANNELS)
                    spot = numba.uint64(place)
                    _add_pair(canvas, at, v0, v1, v2, v3, weight[spot], weight[spot + _ONE])
                    place += 2


@numba.njit(nogil=True, cache=True, boundscheck=False)
def plain_scatter(values, number, first, side, weight, canvas):  # noqa: ANN001, ANN201
    """Do the same as anybody would write it: ``values`` ``(H, W, 4)``, a canvas ``(H + 2 rim, stride, 4)``."""
    height, width = number.shape
    rim = (canvas.shape[0] - height) // 2
    for y in range(height):
        for x in range(width):
            kernel = number[y, x]
            rows, place = side[kernel], first[kernel]
            half = rows // 2
            for row in range(y + rim - half, y + rim + half + 1):
                for column in range(x + rim - half, x + rim + half + 1):
                    share = weight[place]
                    for channel in range(CHANNELS):
                        canvas[row, column, channel] += share * values[y, x, channel]
                    place += 1
                place += 1  # the entry that makes a row even
