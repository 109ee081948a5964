"""The inner loops of `refocus.py`. Importing it imports numba."""

import numba
import numpy as np

from bokehdepth.rendering._scatter_numba import CHANNELS, _add_pair

_SURE = 2.0  # known pixels of four that make a pixel of half the size known; fewer take from further away too
_COARSE_FROM_PX = 2.0  # of blur: a continuation so blurred is spread by cells of 2x2
TILE_PX = 8
"""Side of the tiles in which the visibility of hidden surfaces is asked."""

_SOFT_EDGE_PX = 12  # at most, on each side of a pixel
_FLAT_PX, _FLAT_SHARE = 0.1, 0.05  # of radius, and of the steepness: a smaller change ends an edge

_NO_OPACITY = 1e-7  # less is rounding

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
def sort_by_layer(number, lowest, count):  # noqa: ANN001, ANN201
    """List the pixels of each layer in the order of rows.

    Args:
        number: int32 ``(H, W)``, each pixel's layer.
        lowest: The least of them.
        count: How many numbers there are from it on.

    Returns:
        int32 ``(count + 1,)``: where each layer's list begins in the second array, int32 ``(H * W,)``, places in the
        flat picture.
    """
    first = np.zeros(count + 1, dtype=np.int32)
    flat = number.ravel()
    for at in range(flat.size):
        first[flat[at] - lowest + 1] += 1
    for layer in range(count):
        first[layer + 1] += first[layer]
    free, place = first.copy(), np.empty(flat.size, dtype=np.int32)
    for at in range(flat.size):
        layer = flat[at] - lowest
        place[free[layer]] = at
        free[layer] += 1
    return first, place


@numba.njit(nogil=True, cache=True)
def divide_soft_edges(signed, least, out):  # noqa: ANN001, ANN201
    """Give each pixel on a soft edge of depth the radius of that side of the edge that it is nearer to.

    Depth that was smoothed or made larger goes over from one surface into the other in some pixels. A surface as steep
    as that would show nothing but itself past the nearer one. A slope that goes on is left as it is.

    Args:
        signed: float32 ``(H, W)``, radius, negative behind the focus.
        least: Steepness in pixels of radius for each pixel from which on it is an edge.
        out: float32 ``(H, W)``, written.
    """
    height, width = signed.shape
    for y in range(height):
        for x in range(width):
            here = signed[y, x]
            out[y, x] = here
            aside = signed[y, min(x + 1, width - 1)] - signed[y, max(x - 1, 0)]
            down = signed[min(y + 1, height - 1), x] - signed[max(y - 1, 0), x]
            steep = max(abs(aside), abs(down)) / 2
            if steep < least:
                continue
            dy, dx = (0, 1) if abs(aside) >= abs(down) else (1, 0)
            sign = 1 if (aside if dx else down) > 0 else -1
            flat = max(_FLAT_PX, _FLAT_SHARE * steep)
            sides, found = (here, here), 0
            for turn in (-1, 1):
                value, y1, x1 = here, y, x
                for _ in range(_SOFT_EDGE_PX):
                    y1, x1 = y1 + turn * dy, x1 + turn * dx
                    if not (0 <= y1 < height and 0 <= x1 < width):
                        found += 1
                        break
                    step = (signed[y1, x1] - value) * turn * sign
                    if step < flat:
                        found += 1
                        break
                    value = signed[y1, x1]
                sides = (value, sides[1]) if turn < 0 else (sides[0], value)
            if found == 2:
                out[y, x] = sides[0] if abs(here - sides[0]) < abs(here - sides[1]) else sides[1]


@numba.njit(nogil=True, cache=True)
def survey(signed, number, lowest, least, present, jump_px, nearest):  # noqa: ANN001, ANN201
    """Find what lies in each tile, and where the radius jumps: only there a surface goes on behind a nearer one.

    Args:
        signed: float32 ``(H, W)``, radius, negative behind the focus.
        number: int32 ``(H, W)``, each pixel's layer.
        lowest: The least layer.
        least: Difference of two neighbours' radii from which on it is a jump.
        present: bool ``(L, h, w)``, written: the tiles in which each layer has pixels.
        jump_px: float32 ``(h, w)``, written: the largest radius at a jump in each tile, less than 0 without one.
        nearest: int32 ``(h, w)``, written: the nearest layer in each tile.
    """
    height, width = number.shape
    nearest[:] = lowest
    jump_px[:] = -1
    for y in range(height):
        row = y // TILE_PX
        for x in range(width):
            column = x // TILE_PX
            here, layer = signed[y, x], number[y, x]
            present[layer - lowest, row, column] = True
            nearest[row, column] = max(nearest[row, column], layer)
            right, down = signed[y, min(x + 1, width - 1)], signed[min(y + 1, height - 1), x]
            if abs(here - right) >= least or abs(here - down) >= least:
                jump_px[row, column] = max(jump_px[row, column], abs(here), abs(right), abs(down))


@numba.njit(nogil=True, cache=True)
def take_own(light, radius, number, layer, box, half, weight):  # noqa: ANN001, ANN201
    """Average what a layer shows of itself in a part of the picture, to half the size.

    Args:
        light: float32 ``(H, W, 3)``.
        radius: float32 ``(H, W)``.
        number: int32 ``(H, W)``, each pixel's layer.
        layer: The layer.
        box: int64 ``(2,)``, first row and column of the part, both even.
        half: float32 ``(h, w, 5)``, written: light, opacity and radius, premultiplied by the opacity.
        weight: float32 ``(h, w)``, written: how far a cell is known, by pixels of the layer or of what lies behind it.
    """
    height, width = number.shape
    for row in range(half.shape[0]):
        for column in range(half.shape[1]):
            cell = half[row, column]
            cell[:] = 0
            count = 0
            y0, x0 = box[0] + 2 * row, box[1] + 2 * column
            for y in range(y0, min(y0 + 2, height)):
                for x in range(x0, min(x0 + 2, width)):
                    if number[y, x] <= layer:
                        count += 1
                    if number[y, x] == layer:
                        cell[0] += light[y, x, 0]
                        cell[1] += light[y, x, 1]
                        cell[2] += light[y, x, 2]
                        cell[3] += 1
                        cell[4] += radius[y, x]
            if count > 0:
                for c in range(5):
                    cell[c] /= count
            weight[row, column] = min(count / _SURE, 1)


@numba.njit(nogil=True, cache=True, boundscheck=False)
def scatter_own(light, radius, places, table, canvas, geometry, left, right):  # noqa: ANN001, ANN201
    """Add the row differences of some pixels to a canvas.

    Args:
        light: float32 ``(H, W, 3)``.
        radius: float32 ``(H, W)``.
        places: int32 ``(n,)``, the pixels' places in the flat picture.
        table: ``(first, offset, pair)`` of the kernels, offsets in the flat canvas.
        canvas: float32, flat ``(rows, stride, 4)``.
        geometry: int64 ``(7,)``: place of the pixel (0, 0) in the canvas, of one row after another, kernels for each
            pixel of radius, and the first and last rows and columns that can matter.
        left: int32 ``(H,)``, written: in each row the first column that spread something; W or more where none did.
        right: int32 ``(H,)``, written: and the last one.
    """
    first, offset, pair = table
    width = radius.shape[1]
    steps = np.float32(geometry[2])
    left[:] = width
    right[:] = -1
    for place in places:
        y, x = place // width, place % width
        if not (geometry[3] <= y < geometry[4] and geometry[5] <= x < geometry[6]):
            continue
        left[y], right[y] = min(left[y], x), max(right[y], x)
        base = geometry[0] + y * geometry[1] + x * CHANNELS
        v0, v1, v2 = light[y, x, 0], light[y, x, 1], light[y, x, 2]
        kernel = numba.uint64(np.int64(radius[y, x] * steps + np.float32(0.5)))
        for entry in range(numba.uint64(first[kernel]), numba.uint64(first[kernel + _ONE])):
            at = numba.uint64(base + offset[entry])
            _add_pair(canvas, at, v0, v1, v2, np.float32(1), pair[entry, 0], pair[entry, 1])


@numba.njit(nogil=True, cache=True, boundscheck=False)
def scatter_hidden(number, layer, half, weight, box, wanted, span, table, canvas, geometry, left, right):  # noqa: ANN001, ANN201
    """Add the row differences of a layer's continuation behind nearer ones to a canvas.

    Args:
        number: int32 ``(H, W)``.
        layer: The layer.
        half: float32 ``(h, w, 5)``: the continued layer at half the size, as `take_own` writes it.
        weight: float32 ``(h, w)``: how far a cell was known before it was continued.
        box: int64 ``(2,)``, as for `take_own`.
        wanted: bool, a value for each tile of `TILE_PX` pixels: where the continuation can be seen.
        span: float32 ``(2,)``: least and largest radius of the layer.
        table: As for `scatter_own`.
        canvas: As for `scatter_own`, changed in place.
        geometry: As for `scatter_own`.
        left: As for `scatter_own`, written.
        right: As for `scatter_own`, written.
    """
    first, offset, pair = table
    steps = np.float32(geometry[2])
    left[:] = number.shape[1]
    right[:] = -1
    by_cells = span[0] >= _COARSE_FROM_PX
    for tile_row in range(wanted.shape[0]):
        for tile_column in range(wanted.shape[1]):
            if not wanted[tile_row, tile_column]:
                continue
            y0, x0 = max(tile_row * TILE_PX, geometry[3]), max(tile_column * TILE_PX, geometry[5])
            y1, x1 = min((tile_row + 1) * TILE_PX, geometry[4]), min((tile_column + 1) * TILE_PX, geometry[6])
            for y in range(y0, y1):
                for x in range(x0, x1):
                    if number[y, x] <= layer:
                        continue
                    row, column = (y - box[0]) // 2, (x - box[1]) // 2
                    cell = half[row, column]
                    if cell[3] <= _SEEN:
                        continue
                    share = np.float32(1)
                    if by_cells and weight[row, column] == 0:  # all four are hidden and alike: one for all
                        if y % 2 or x % 2:
                            continue
                        share = np.float32(4)
                    left[y], right[y] = min(left[y], x), max(right[y], x)
                    v0, v1, v2, v3 = share * cell[0], share * cell[1], share * cell[2], share * cell[3]
                    kernel = numba.uint64(
                        np.int64(min(max(cell[4] / cell[3], span[0]), span[1]) * steps + np.float32(0.5))
                    )
                    base = geometry[0] + y * geometry[1] + x * CHANNELS
                    for entry in range(numba.uint64(first[kernel]), numba.uint64(first[kernel + _ONE])):
                        at = numba.uint64(base + offset[entry])
                        _add_pair(canvas, at, v0, v1, v2, v3, pair[entry, 0], pair[entry, 1])


@numba.njit(nogil=True, cache=True, boundscheck=False)
def lay_behind(canvas, out, total, passed, cover, last, layer, linked, left, right, reach, corner):  # noqa: ANN001, ANN201
    """Sum a canvas along its rows and lay the layer behind what is there; the canvas is zeroed.

    Neighbouring layers are one surface, or two whose disks look through the same half of the lens: what one of them
    leaves free the other fills. Layers further apart cover each other independently.

    Args:
        canvas: float32 ``(rows, stride, 4)``.
        out: float32 ``(H, W, 3)``: light so far, changed in place.
        total: float32 ``(H, W)``: opacity so far, changed in place.
        passed: float32 ``(H, W)``: share of the light from behind that gets through all groups of layers before the
            last one, changed in place.
        cover: float32 ``(H, W)``: opacity of the last group of linked layers, changed in place.
        last: int32 ``(H, W)``: the layer that was laid last on each pixel, changed in place.
        layer: The layer.
        linked: Difference of two layers up to which they are linked; less than 0: the layer joins what is there.
        left: int32, for each row of the continued photo the first column that spread something.
        right: int32, and the last one.
        reach: int64 ``(2,)``: rows and columns that it can have reached.
        corner: int64 ``(2,)``: row and column of the continued photo where the picture begins; twice that in the
            canvas.
    """
    height, width = passed.shape
    for row in range(canvas.shape[0]):
        source = row - corner[0]
        start, stop = canvas.shape[1], 0
        for y in range(max(source - reach[0], 0), min(source + reach[0] + 1, left.size)):
            start, stop = min(start, left[y]), max(stop, right[y] + 1)
        if start >= stop:
            continue
        start = max(start + corner[1] - reach[1], 0)
        stop = min(stop + corner[1] + reach[1] + 1, canvas.shape[1])
        y = source - corner[0]
        if 0 <= y < height:
            s0 = s1 = s2 = s3 = 0.0
            for column in range(start, min(stop, 2 * corner[1] + width)):
                s0 += canvas[row, column, 0]
                s1 += canvas[row, column, 1]
                s2 += canvas[row, column, 2]
                s3 += canvas[row, column, 3]
                x = column - 2 * corner[1]
                if x >= 0 and s3 > _NO_OPACITY:
                    if linked >= 0:
                        if last[y, x] - layer > linked:
                            passed[y, x] *= 1 - cover[y, x]
                            cover[y, x] = 0
                        last[y, x] = layer
                    taken = min(s3, 1.0 - cover[y, x])
                    share = passed[y, x] * taken / s3
                    out[y, x, 0] += np.float32(s0 * share)
                    out[y, x, 1] += np.float32(s1 * share)
                    out[y, x, 2] += np.float32(s2 * share)
                    total[y, x] += np.float32(s3 * share)
                    cover[y, x] += np.float32(taken)
        canvas[row, start:stop] = 0


@numba.njit(nogil=True, cache=True)
def lay_sharp(light, number, half, box, wanted, corner, out, total, passed):  # noqa: ANN001, ANN201
    """Lay the layer in focus, number 0, behind what is there: no pixel of it reaches another one.

    Args:
        light: float32 ``(Hc, Wc, 3)``, the picture continued beyond its frame.
        number: int32 ``(Hc, Wc)``.
        half: float32 ``(h, w, 5)``: the continued layer at half the size, as `take_own` writes it.
        box: int64 ``(2,)``, as for `take_own`.
        wanted: bool, a value for each tile of `TILE_PX` pixels: where the continuation can be seen.
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
            elif wanted[row // TILE_PX, column // TILE_PX]:
                cell = half[(row - box[0]) // 2, (column - box[1]) // 2]
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
def mark_seen(passed, cover, least, zone, tiles, corner):  # noqa: ANN001, ANN201
    """Mark the tiles of a zone in which light from behind gets through: more than ``least`` of it.

    Args:
        passed: float32 ``(H, W)``, as in `lay_behind`.
        cover: float32 ``(H, W)``, as in `lay_behind`.
        least: The share.
        zone: bool ``(h, w)``, the tiles that are asked for.
        tiles: bool ``(h, w)``, written.
        corner: int64 ``(2,)``: row and column of the first value in the picture that the tiles lie on.
    """
    tiles[:] = False
    height, width = passed.shape
    for row in range(zone.shape[0]):
        for column in range(zone.shape[1]):
            if not zone[row, column]:
                continue
            y0, x0 = row * TILE_PX - corner[0], column * TILE_PX - corner[1]
            for y in range(max(y0, 0), min(y0 + TILE_PX, height)):
                for x in range(max(x0, 0), min(x0 + TILE_PX, width)):
                    if passed[y, x] * (1 - cover[y, x]) > least:
                        tiles[row, column] = True
