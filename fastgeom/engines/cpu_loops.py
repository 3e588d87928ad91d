"""The CPU engine's inner loops, compiled by numba: memory in, float64 partial sums out.

Tensors are named by address, so that a list of thousands of them is one call. A *chunk* is a piece of one tensor; each
gets its own row of partial sums, which makes the result independent of how chunks are dealt to threads. Inside a chunk
the work goes in blocks that stay in the cache: a block of the gradient is read from memory once and meets every history
row there. Products and sums are float64 throughout, so that no block of equal or of extreme values is rounded; on
float32 rows, four at a time, the loops wait for loads rather than for this.

16-bit floats have no numba type. They travel as integers and are told apart by signedness: ``uint16`` is bfloat16,
``int16`` is float16. ``_widen`` and ``_narrow`` convert; the compiler turns both into vector code.

All of it is one file because numba looks for changes in the file of a cached function alone, and not in what it calls.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

BLOCK = 8192
SUM_SQ, DIFF, SUM = 0, 1, 2
"""Columns of the window's partial sums that follow the dots: sum g^2, sum (g - previous)^2, sum (g + previous)^2."""


def _can_cache():
    """Whether numba finds a folder to keep compiled code in; without one it would refuse to compile at all."""
    try:
        njit(cache=True)(_can_cache)
    except RuntimeError:
        return False
    return True


_EXACT = {"error_model": "numpy", "nogil": True, "cache": _can_cache()}
_FAST = {"fastmath": {"reassoc", "contract", "nsz"}, **_EXACT}


@intrinsic
def _pointer(typing_context, address, witness):
    """The integer ``address`` as a pointer to the element type of the array ``witness``."""
    signature = types.CPointer(witness.dtype)(address, witness)

    def codegen(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return signature, codegen


@intrinsic
def _as_float(typing_context, bits):
    """The float with these bits."""
    floats = {types.uint32: (types.float32, ir.FloatType()), types.uint64: (types.float64, ir.DoubleType())}
    result, element = floats[bits]

    def codegen(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], element)

    return result(bits), codegen


@intrinsic
def _half_to_float(typing_context, half):
    """The value of a float16 given as int16; one instruction on processors since 2012."""

    def codegen(context, builder, signature, arguments):
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.int16), codegen


@intrinsic
def _float_to_half(typing_context, value):
    """``value`` rounded to float16, as int16."""

    def codegen(context, builder, signature, arguments):
        return builder.bitcast(builder.fptrunc(arguments[0], ir.HalfType()), ir.IntType(16))

    return types.int16(types.float32), codegen


@intrinsic
def _as_bits(typing_context, value):
    """The 32 bits of a float32."""

    def codegen(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], cgutils.int32_t)

    return types.uint32(types.float32), codegen


@njit(**_EXACT)
def _at(address, witness, size):
    """The memory at ``address`` as an array of ``size`` elements of the type of ``witness``.

    Write to it in loops only: numba drops a lone store to an array that it takes for local.
    """
    return carray(_pointer(address, witness), (size,))


def _widen(value):
    """The value of one stored element as float32 (float64 for float64)."""
    raise NotImplementedError("numba only")


@overload(_widen, inline="always")
def _overload_widen(value):
    if isinstance(value, types.Float):
        return lambda value: value
    if value == types.uint16:
        return lambda value: _as_float(np.uint32(np.uint32(value) << np.uint32(16)))
    if value == types.int16:
        return lambda value: _half_to_float(value)
    return None


def _narrow(value, witness):
    """``value`` rounded to nearest even in the element type of ``witness``."""
    raise NotImplementedError("numba only")


@overload(_narrow, inline="always")
def _overload_narrow(value, witness):
    if witness.dtype == types.float32:
        return lambda value, witness: np.float32(value)
    if witness.dtype == types.float64:
        return lambda value, witness: np.float64(value)
    if witness.dtype == types.uint16:
        return lambda value, witness: _float32_to_bfloat16(np.float32(value))
    if witness.dtype == types.int16:
        return lambda value, witness: _float_to_half(np.float32(value))
    return None


@njit(**_EXACT)
def _float32_to_bfloat16(value):
    bits = _as_bits(value)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet_nan = (bits >> np.uint32(16)) | np.uint32(0x40)
    return np.uint16(quiet_nan if (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000) else rounded)


def _block(address, witness, size, scale, buffer):
    """``size`` elements of a gradient, widened and scaled: in ``buffer`` or, where nothing is to do, in place."""
    raise NotImplementedError("numba only")


@overload(_block)
def _overload_block(address, witness, size, scale, buffer):
    def in_place(address, witness, size, scale, buffer):
        source = _at(address, witness, size)
        if scale == 1.0:
            return source
        block = buffer[:size]
        for i in range(size):
            block[i] = source[i] * scale
        return block

    def widened(address, witness, size, scale, buffer):
        source = _at(address, witness, size)
        block = buffer[:size]
        for i in range(size):
            block[i] = _widen(source[i]) * scale
        return block

    return in_place if witness.dtype == buffer.dtype else widened


@njit(**_FAST)
def _dot(x, row):
    total = 0.0
    for i in range(x.size):
        total += np.float64(x[i]) * np.float64(_widen(row[i]))
    return total


@njit(**_FAST)
def _dot4(x, row0, row1, row2, row3):
    total0, total1, total2, total3 = 0.0, 0.0, 0.0, 0.0
    for i in range(x.size):
        value = np.float64(x[i])
        total0 += value * np.float64(_widen(row0[i]))
        total1 += value * np.float64(_widen(row1[i]))
        total2 += value * np.float64(_widen(row2[i]))
        total3 += value * np.float64(_widen(row3[i]))
    return total0, total1, total2, total3


@njit(**_FAST)
def _sum_sq(x):
    total = 0.0
    for i in range(x.size):
        value = np.float64(_widen(x[i]))
        total += value * value
    return total


@njit(**_FAST)
def _difference_and_sum_sq(x, previous):
    difference_sq, sum_sq = 0.0, 0.0
    for i in range(x.size):
        value, before = np.float64(x[i]), np.float64(_widen(previous[i]))
        difference_sq += (value - before) * (value - before)
        sum_sq += (value + before) * (value + before)
    return difference_sq, sum_sq


@njit(**_FAST)
def _update_sums(x, old, gradient, previous):
    """sum u^2, sum previous u, sum gradient u for u = x - old."""
    update_sq, before, after = 0.0, 0.0, 0.0
    for i in range(gradient.size):
        update = np.float64(_widen(x[i])) - np.float64(_widen(old[i]))
        update_sq += update * update
        before += np.float64(_widen(previous[i])) * update
        after += np.float64(gradient[i]) * update
    return update_sq, before, after


def _largest_magnitude(x):
    """max |x| by bit pattern: not finite if and only if some element is not."""
    raise NotImplementedError("numba only")


@overload(_largest_magnitude)
def _overload_largest_magnitude(x):
    def largest_of_float32(x):
        bits = x.view(np.uint32)
        largest = np.uint32(0)
        for i in range(bits.size):
            largest = max(largest, np.uint32(bits[i] & np.uint32(0x7FFFFFFF)))
        return np.float64(_as_float(largest))

    def largest_of_float64(x):
        bits = x.view(np.uint64)
        largest = np.uint64(0)
        for i in range(bits.size):
            largest = max(largest, bits[i] & np.uint64(0x7FFFFFFFFFFFFFFF))
        return _as_float(largest)

    return largest_of_float32 if x.dtype == types.float32 else largest_of_float64


@njit(**_EXACT)
def _absmax_and_nonfinite(x):
    """max |x| over what is not NaN, and the count of inf and NaN.

    Without the sign bit floats order like their bit patterns, and every non-finite one lies above every finite one:
    one integer maximum, which vectorises, answers both for a finite block.
    """
    absmax = _largest_magnitude(x)
    if np.isfinite(absmax):
        return absmax, 0
    absmax, nonfinite = 0.0, 0
    for i in range(x.size):
        if not np.isfinite(x[i]):
            nonfinite += 1
        if not np.isnan(x[i]):
            absmax = max(absmax, np.float64(abs(x[i])))
    return absmax, nonfinite


@njit(**_EXACT)
def _row_dots(x, rows, tensor, offset, witness, sums):
    """Add sum x row to ``sums`` for every row."""
    count = rows.shape[0]
    fours = count - count % 4
    for row in range(0, fours, 4):
        dot0, dot1, dot2, dot3 = _dot4(
            x,
            _at(rows[row, tensor] + offset, witness, x.size),
            _at(rows[row + 1, tensor] + offset, witness, x.size),
            _at(rows[row + 2, tensor] + offset, witness, x.size),
            _at(rows[row + 3, tensor] + offset, witness, x.size),
        )
        sums[row] += dot0
        sums[row + 1] += dot1
        sums[row + 2] += dot2
        sums[row + 3] += dot3
    for row in range(fours, count):
        sums[row] += _dot(x, _at(rows[row, tensor] + offset, witness, x.size))


@njit(**_EXACT)
def _write(x, address, begin, witness):
    """Round ``x`` to the type of ``witness`` at element ``begin`` of the tensor at ``address``, unless that is 0."""
    if address != 0:
        row = _at(address + begin * witness.itemsize, witness, x.size)
        for i in range(x.size):
            row[i] = _narrow(x[i], witness)


@njit(**_EXACT)
def window_moments(
    chunks, tensors, starts, lengths, gradient, rows, previous, store, keep,
    gradient_kind, row_kind, previous_kind, buffer_kind, scale, sums, absmax, nonfinite,
):  # fmt: skip
    """Window moments of these chunks; then the gradient is stored.

    Bytes: each gradient element once, each row element once, and the stored element; the previous row is in the cache
    where it is one of the rows.

    Args:
        chunks: indices into the arrays that follow, and into the results.
        tensors, starts, lengths: of each chunk, its tensor, first element and number of elements.
        gradient, previous, store, keep: address of each tensor; gradient 0 reads as zeros, the others are left out
            at 0.
        rows: (row, tensor) addresses.
        gradient_kind, row_kind, previous_kind: empty arrays of the types in memory; store is of row_kind, keep of
            previous_kind.
        buffer_kind: an empty array of the type to compute in.
        scale: what the gradient is multiplied by when read, in the type to compute in.
        sums: (chunk, row + 3) float64, added to: the dots, then SUM_SQ, DIFF, SUM.
        absmax, nonfinite: (chunk,) float64 and int64.
    """
    count = rows.shape[0]
    buffer = np.empty(BLOCK, buffer_kind.dtype)
    zeros = np.zeros(BLOCK, buffer_kind.dtype)
    for chunk in chunks:
        tensor, start = tensors[chunk], starts[chunk]
        largest, bad = 0.0, 0
        for begin in range(start, start + lengths[chunk], BLOCK):
            size = min(BLOCK, start + lengths[chunk] - begin)
            x = zeros[:size]
            if gradient[tensor] != 0:
                x = _block(gradient[tensor] + begin * gradient_kind.itemsize, gradient_kind, size, scale, buffer)
                block_absmax, block_bad = _absmax_and_nonfinite(x)
                largest, bad = max(largest, block_absmax), bad + block_bad
                _row_dots(x, rows, tensor, begin * row_kind.itemsize, row_kind, sums[chunk])
                sums[chunk, count + SUM_SQ] += _sum_sq(x)
            if previous[tensor] != 0:
                before = _at(previous[tensor] + begin * previous_kind.itemsize, previous_kind, size)
                difference_sq, sum_sq = _difference_and_sum_sq(x, before)
                sums[chunk, count + DIFF] += difference_sq
                sums[chunk, count + SUM] += sum_sq
            _write(x, store[tensor], begin, row_kind)
            _write(x, keep[tensor], begin, previous_kind)
        absmax[chunk], nonfinite[chunk] = largest, bad


@njit(**_EXACT)
def update_moments(
    chunks, tensors, starts, lengths, gradient, previous, parameter, snapshot,
    gradient_kind, previous_kind, parameter_kind, buffer_kind, scale, known, sums,
):  # fmt: skip
    """Moments of the update u = parameter - snapshot, and the new snapshot, of these chunks.

    Bytes: gradient, previous gradient, parameter and snapshot once, and the snapshot written.

    Args:
        parameter, snapshot: address of each tensor, both of parameter_kind.
        known: whether the snapshot holds the parameters of the step before; else only sum x^2 is taken.
        sums: (chunk, 4) float64, added to: sum x^2, sum u^2, sum previous u, sum gradient u.
        The others are those of ``window_moments``.
    """
    buffer = np.empty(BLOCK, buffer_kind.dtype)
    zeros = np.zeros(BLOCK, buffer_kind.dtype)
    for chunk in chunks:
        tensor, start = tensors[chunk], starts[chunk]
        for begin in range(start, start + lengths[chunk], BLOCK):
            size = min(BLOCK, start + lengths[chunk] - begin)
            x = _at(parameter[tensor] + begin * parameter_kind.itemsize, parameter_kind, size)
            old = _at(snapshot[tensor] + begin * parameter_kind.itemsize, parameter_kind, size)
            sums[chunk, 0] += _sum_sq(x)
            if known:
                g = zeros[:size]
                if gradient[tensor] != 0:
                    g = _block(gradient[tensor] + begin * gradient_kind.itemsize, gradient_kind, size, scale, buffer)
                before = _at(previous[tensor] + begin * previous_kind.itemsize, previous_kind, size)
                update_sq, before_dot, after_dot = _update_sums(x, old, g, before)
                sums[chunk, 1] += update_sq
                sums[chunk, 2] += before_dot
                sums[chunk, 3] += after_dot
            for i in range(size):
                old[i] = x[i]
