"""The inner loop of the span scatter on the CPU. Importing it imports numba; `scatter.py` does when first needed."""

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

CHANNELS = 4
_ONE, _TWO, _THREE, _FOUR = (numba.uint64(n) for n in (1, 2, 3, 4))


@intrinsic
def _add_pair(typingctx, canvas, index, v0, v1, v2, v3, first, second):  # noqa: ANN001, ANN202 - numba's form
    """Add ``first * v`` and ``second * v`` to the 8 floats from ``index`` on: one vector load, product and store.

    numba does not turn such straight code into vector instructions by itself, and this loop is all of the time.
    """
    signature = types.void(canvas, index, v0, v1, v2, v3, first, second)

    def generate(context, builder, signature, arguments):  # noqa: ANN001, ANN202
        canvas, index, *values, first, second = arguments
        floats = ir.VectorType(ir.FloatType(), 2 * CHANNELS)

        def vector(scalars):  # noqa: ANN001, ANN202
            packed = ir.Constant(floats, ir.Undefined)
            for place, scalar in enumerate(scalars):
                packed = builder.insert_element(packed, scalar, ir.Constant(ir.IntType(32), place))
            return packed

        array = context.make_array(signature.args[0])(context, builder, canvas)
        pointer = builder.bitcast(builder.gep(array.data, [index]), floats.as_pointer())
        before = builder.load(pointer)
        before.align = 4
        weights = vector([first] * CHANNELS + [second] * CHANNELS)
        added = builder.fmul(vector(values * 2), weights, flags=("contract",))
        builder.store(builder.fadd(before, added, flags=("contract",)), pointer).align = 4
        return context.get_dummy_value()

    return signature, generate


@numba.njit(nogil=True, cache=True, boundscheck=False)
def scatter_band(values, kernel, top, bottom, first, offset, pair, canvas, start):  # noqa: ANN001, ANN201
    """Add the row differences of all pixels of some rows to a canvas.

    Args:
        values: float32, flat ``(H, W, 4)``.
        kernel: int32 ``(H, W)``, number of each pixel's kernel.
        top: First row.
        bottom: Row after the last.
        first: int32 ``(R + 1,)``, as in `SpanTable`.
        offset: int32 ``(n,)``, place of each pair in the flat canvas, relative to that of the source pixel.
        pair: float32 ``(n, 2)``.
        canvas: float32, flat ``(rows, stride, 4)``.
        start: int64 ``(2,)``: place of the pixel (top, 0) in the canvas, and of one row after another.
    """
    width = kernel.shape[1]
    for y in range(top, bottom):
        base = start[0] + (y - top) * start[1]
        source = numba.uint64(y * width * CHANNELS)
        for x in range(width):
            v0, v1, v2, v3 = values[source], values[source + _ONE], values[source + _TWO], values[source + _THREE]
            if v0 != 0 or v1 != 0 or v2 != 0 or v3 != 0:
                number = numba.uint64(kernel[numba.uint64(y), numba.uint64(x)])
                for place in range(numba.uint64(first[number]), numba.uint64(first[number + _ONE])):
                    at = numba.uint64(base + offset[place])
                    _add_pair(canvas, at, v0, v1, v2, v3, pair[place, 0], pair[place, 1])
            base += CHANNELS
            source += _FOUR


@numba.njit(nogil=True, cache=True, boundscheck=False)
def add_sums(canvas, out, top, left):  # noqa: ANN001, ANN201
    """Sum a canvas along its rows and add what lies inside to the picture.

    Args:
        canvas: float32 ``(rows, stride, 4)``.
        out: float32 ``(H, W, 4)``, changed in place.
        top: Row of the picture at which the canvas begins; may be negative.
        left: Column of the canvas at which the picture begins.
    """
    for y in range(max(top, 0), min(top + canvas.shape[0], out.shape[0])):
        s0 = s1 = s2 = s3 = 0.0
        for x in range(left + out.shape[1]):
            s0 += canvas[y - top, x, 0]
            s1 += canvas[y - top, x, 1]
            s2 += canvas[y - top, x, 2]
            s3 += canvas[y - top, x, 3]
            if x >= left:
                out[y, x - left, 0] += np.float32(s0)
                out[y, x - left, 1] += np.float32(s1)
                out[y, x - left, 2] += np.float32(s2)
                out[y, x - left, 3] += np.float32(s3)
