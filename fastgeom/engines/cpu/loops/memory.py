"""Memory as the CPU engine's loops see it: elements at an address, widened and narrowed, lines asked for in advance.

16-bit floats have no numba type. They travel as integers and are told apart by signedness: ``uint16`` is bfloat16,
``int16`` is float16. ``widen`` and ``narrow`` convert; the compiler turns both into vector code.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from fastgeom.engines.cpu.loops.jit import exact

LINE_BYTES = 64
"""A cache line."""


@intrinsic
def _pointer(typing_context, address, like):
    """The integer ``address`` as a pointer to the element type of the array ``like``."""
    signature = types.CPointer(like.dtype)(address, like)

    def codegen(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return signature, codegen


@intrinsic
def as_float(typing_context, bits):
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


def emit_prefetch(builder, address):
    """Ask for the cache line at this address, and do not wait; any address will do."""
    byte_pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte_pointer, number, number, number])
    prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    read, nearest, data = number(0), number(3), number(1)
    builder.call(prefetch, [builder.inttoptr(address, byte_pointer), read, nearest, data])


@intrinsic
def _prefetch_line(typing_context, address):
    """See `emit_prefetch`."""

    def codegen(context, builder, signature, arguments):
        emit_prefetch(builder, arguments[0])
        return context.get_dummy_value()

    return types.none(types.int64), codegen


@exact
def prefetch(address, n_bytes):
    """Ask for ``n_bytes`` from this address on."""
    for line in range(address, address + n_bytes, LINE_BYTES):
        _prefetch_line(line)


@exact
def at(address, like, size):
    """The memory at ``address`` as an array of ``size`` elements of the type of ``like``.

    Write to it in loops only: numba drops a lone store to an array that it takes for local.
    """
    return carray(_pointer(address, like), (size,))


def widen(value):
    """The value of one stored element as float32 (float64 for float64)."""
    raise NotImplementedError("numba only")


@overload(widen, inline="always")
def _overload_widen(value):
    if isinstance(value, types.Float):
        return lambda value: value
    if value == types.uint16:
        return lambda value: as_float(np.uint32(np.uint32(value) << np.uint32(16)))
    if value == types.int16:
        return lambda value: _half_to_float(value)
    return None


def narrow(value, like):
    """``value`` rounded to nearest even in the element type of ``like``."""
    raise NotImplementedError("numba only")


@overload(narrow, inline="always")
def _overload_narrow(value, like):
    if like.dtype == types.float32:
        return lambda value, like: np.float32(value)
    if like.dtype == types.float64:
        return lambda value, like: np.float64(value)
    if like.dtype == types.uint16:
        return lambda value, like: _float32_to_bfloat16(np.float32(value))
    if like.dtype == types.int16:
        return lambda value, like: _float_to_half(np.float32(value))
    return None


@exact
def _float32_to_bfloat16(value):
    bits = _as_bits(value)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet_nan = (bits >> np.uint32(16)) | np.uint32(0x40)
    return np.uint16(quiet_nan if (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000) else rounded)
