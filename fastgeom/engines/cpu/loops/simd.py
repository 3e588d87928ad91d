"""Several rows side by side: the CPU engine's innermost loops, written out in LLVM's vectors.

Left to itself, the compiler asks for nothing in advance, and the processor waits for memory and computes by turns. Here
every line that is read has a request for what comes later beside it.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastgeom.engines.cpu.loops.memory import LINE_BYTES, emit_prefetch

_AHEAD_BYTES = 1024
"""How far ahead of its loads every row is asked for: by itself a processor stops at a page of 4 KiB."""
_LANES = 8


def _load(builder, address, element):
    """Eight elements from memory, of any of the four kinds, as float32; float64 stays what it is."""
    kind = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}.get(element, ir.IntType(16))
    pointer = builder.inttoptr(address, ir.VectorType(kind, _LANES).as_pointer())
    values = builder.load(pointer, align=element.bitwidth // 8)
    floats = ir.VectorType(ir.FloatType(), _LANES)
    if element == types.uint16:
        words = builder.zext(values, ir.VectorType(ir.IntType(32), _LANES))
        sixteen = ir.Constant(words.type, [16] * _LANES)
        return builder.bitcast(builder.shl(words, sixteen), floats)
    if element == types.int16:
        return builder.fpext(builder.bitcast(values, ir.VectorType(ir.HalfType(), _LANES)), floats)
    return values


def _wide(builder, values):
    """Eight elements as float64."""
    doubles = ir.VectorType(ir.DoubleType(), _LANES)
    return values if values.type == doubles else builder.fpext(values, doubles)


def _fold(builder, vector, fold):
    """One number of the lanes of a vector, half by half."""
    while (lanes := vector.type.count) > 1:
        halves = [
            builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(ir.IntType(32), lanes // 2), list(half)))
            for half in (range(lanes // 2), range(lanes // 2, lanes))
        ]
        vector = fold(*halves)
    return builder.extract_element(vector, ir.IntType(32)(0))


class _Largest:
    """The largest magnitude of vectors of floats, by bit pattern."""

    def __init__(self, builder, element):
        self._builder, self._float = builder, ir.DoubleType() if element == types.float64 else ir.FloatType()
        self._bits = ir.IntType(64 if element == types.float64 else 32)
        self._words = ir.VectorType(self._bits, _LANES)
        self._largest = cgutils.alloca_once_value(builder, ir.Constant(self._words, [0] * _LANES))
        self._magnitude = ir.Constant(self._words, [(1 << (self._bits.width - 1)) - 1] * _LANES)

    def include(self, values):
        """Take one more vector into account."""
        bits = self._builder.and_(self._builder.bitcast(values, self._words), self._magnitude)
        self._builder.store(self._larger(bits, self._builder.load(self._largest)), self._largest)

    def result(self):
        """As float64."""
        value = self._builder.bitcast(
            _fold(self._builder, self._builder.load(self._largest), self._larger), self._float
        )
        return value if self._float == ir.DoubleType() else self._builder.fpext(value, ir.DoubleType())

    def _larger(self, a, b):
        return self._builder.select(self._builder.icmp_unsigned(">", a, b), a, b)


def _line_sums(signature, *, moments):
    """What emits the code of `line_dots` and `line_moments`."""
    x_kind, row_kind, count = signature.args[4].dtype, signature.args[5].dtype, signature.args[1].count
    x_bytes, row_bytes = x_kind.bitwidth // 8, row_kind.bitwidth // 8
    steps = max(1, LINE_BYTES // row_bytes // _LANES)
    flags = ("reassoc", "contract", "nsz")

    def codegen(context, builder, signature, arguments):
        word, doubles = ir.IntType(64), ir.VectorType(ir.DoubleType(), _LANES)
        zero = ir.Constant(doubles, [0.0] * _LANES)
        sums = [cgutils.alloca_once_value(builder, zero) for _ in range(count + moments)]
        largest = _Largest(builder, x_kind)
        rows = [builder.add(row, arguments[2]) for row in cgutils.unpack_tuple(builder, arguments[1])]

        def add(total, product):
            builder.store(builder.fadd(builder.load(total), product, flags=flags), total)

        with cgutils.for_range(builder, arguments[3], intp=word) as loop:
            first = builder.mul(loop.index, word(steps * _LANES))
            x = builder.add(arguments[0], builder.mul(first, word(x_bytes)))
            lines = [builder.add(row, builder.mul(first, word(row_bytes))) for row in rows]
            if moments:
                lines += [builder.add(x, word(at)) for at in range(0, steps * _LANES * x_bytes, LINE_BYTES)]
            for line in lines:
                emit_prefetch(builder, builder.add(line, word(_AHEAD_BYTES)))
            for step in range(steps):
                values = _load(builder, builder.add(x, word(step * _LANES * x_bytes)), x_kind)
                value = _wide(builder, values)
                for line, total in zip(lines, sums[:count], strict=False):
                    row = _wide(builder, _load(builder, builder.add(line, word(step * _LANES * row_bytes)), row_kind))
                    add(total, builder.fmul(value, row, flags=flags))
                if moments:
                    add(sums[-1], builder.fmul(value, value, flags=flags))
                    largest.include(values)
        results = [_fold(builder, builder.load(total), builder.fadd) for total in sums]
        results += [largest.result()] * moments
        return context.make_tuple(builder, signature.return_type, results)

    return codegen


@intrinsic
def line_dots(typing_context, x, rows, offset, n_lines, x_like, row_like):
    """Dots of the memory at ``x`` with that ``offset`` behind each of ``rows``, over ``n_lines`` cache lines of a row.

    Returns a tuple of float64.
    """
    signature = types.UniTuple(types.float64, rows.count)(x, rows, offset, n_lines, x_like, row_like)
    return signature, _line_sums(signature, moments=False)


@intrinsic
def line_moments(typing_context, x, rows, offset, n_lines, x_like, row_like):
    """The dots of `line_dots`, then sum x^2, then max |x|, which is finite if and only if all elements are.

    The memory at ``x`` is asked for in advance too.
    """
    signature = types.UniTuple(types.float64, rows.count + 2)(x, rows, offset, n_lines, x_like, row_like)
    return signature, _line_sums(signature, moments=True)


@intrinsic
def stream_lines(typing_context, source, target, n_lines):
    """Copy so many cache lines past the caches; ``target`` is the address of a line."""

    def codegen(context, builder, signature, arguments):
        word, line = ir.IntType(64), ir.VectorType(ir.IntType(32), LINE_BYTES // 4)
        no_reuse = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        with cgutils.for_range(builder, arguments[2], intp=word) as loop:
            offset = builder.mul(loop.index, word(LINE_BYTES))
            read, written = (builder.inttoptr(builder.add(first, offset), line.as_pointer()) for first in arguments[:2])
            builder.store(builder.load(read, align=1), written, align=LINE_BYTES).set_metadata("nontemporal", no_reuse)
        builder.fence("seq_cst")  # such stores are otherwise not ordered before what tells other threads of them
        return context.get_dummy_value()

    return types.none(source, target, n_lines), codegen
