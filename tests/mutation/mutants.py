"""The list: plain data. The first word of a name is the file that is changed."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """A change that must not go unnoticed."""

    name: str
    file: str
    old: str
    """What is replaced: it occurs once in the file."""
    new: str
    tests: str
    """The test file that must turn red."""
    only: str = ""
    """Its tests that are run, as for ``pytest -k``: enough to find the fault, few enough to be quick."""


CPU_WINDOW, CPU_SHARED, CPU_SIMD, CPU_MEMORY = (
    "fastgeom/engines/cpu/loops/window.py",
    "fastgeom/engines/cpu/loops/shared.py",
    "fastgeom/engines/cpu/loops/simd.py",
    "fastgeom/engines/cpu/loops/memory.py",
)
CPU_TESTS = "tests/engines/cpu/test_engine.py"
CODEGEN_TESTS = "tests/bench/test_codegen.py"

CPU = (
    Mutant(
        "cpu: differences of products",
        CPU_SHARED,
        "diff_sq += (value - before) * (value - before)",
        "diff_sq += value * value + before * before - 2 * value * before",
        CPU_TESTS,
        "where_the_formula_from_dots_says_nothing",
    ),
    Mutant(
        "cpu: sum and difference swapped",
        CPU_SHARED,
        "GRAD_SQ, DIFF_SQ, SUM_SQ = 0, 1, 2",
        "GRAD_SQ, DIFF_SQ, SUM_SQ = 0, 2, 1",
        CPU_TESTS,
        "every_size_and_number_of_rows and float32-float32-float32",
    ),
    Mutant(
        "cpu: the last element of a block left out",
        CPU_SHARED,
        "for i in range(x.size):\n        total += np.float64(x[i]) * np.float64(widen(row[i]))",
        "for i in range(x.size - 1):\n        total += np.float64(x[i]) * np.float64(widen(row[i]))",
        CPU_TESTS,
        "every_size_and_number_of_rows and float32-float32-float32",
    ),
    Mutant(
        "cpu: the largest magnitude by signed bits",
        CPU_SIMD,
        "ir.Constant(self._words, [(1 << (self._bits.width - 1)) - 1] * _LANES)",
        "ir.Constant(self._words, [(1 << self._bits.width) - 1] * _LANES)",
        CPU_TESTS,
        "every_size_and_number_of_rows and float32-float32-float32",
    ),
    Mutant(
        "cpu: inf in the last elements of a block not counted",
        CPU_WINDOW,
        "max(largest, rest_largest), n_nonfinite + rest_n_nonfinite",
        "max(largest, rest_largest), n_nonfinite",
        CPU_TESTS,
        "nonfinite or nan or inf",
    ),
    Mutant(
        "cpu: the fourth row's dot added to the third",
        CPU_WINDOW,
        "sums[3] += d",
        "sums[2] += d",
        CPU_TESTS,
        "every_size_and_number_of_rows and float32-float32-float32",
    ),
    Mutant(
        "cpu: rows done in the first pass read again",
        CPU_WINDOW,
        "for first in range(n_rows_done, count, 4):",
        "for first in range(0, count, 4):",
        CPU_TESTS,
        "every_size_and_number_of_rows and float32-float32-float32",
    ),
    Mutant(
        "cpu: what follows the last whole line is not streamed",
        CPU_WINDOW,
        "for i in range(head + n_lines * per_line, size):",
        "for i in range(head + n_lines * per_line, size - 1):",
        CPU_TESTS,
        "past_the_caches",
    ),
    Mutant(
        "cpu: a scaled gradient streamed as it came",
        CPU_WINDOW,
        "gradient_kind.dtype == row_kind.dtype and scale == 1.0",
        "gradient_kind.dtype == row_kind.dtype",
        CPU_TESTS,
        "past_the_caches",
    ),
    Mutant(
        "cpu: bfloat16 rounds half up instead of to even",
        CPU_MEMORY,
        "np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))",
        "np.uint32(0x8000)",
        CPU_TESTS,
        "narrow or stored",
    ),
    Mutant(
        "cpu: the last cache line of a long run left out",
        CPU_SHARED,
        "n_lines = min(CACHED_ELEMENTS, done - begin) // per_line",
        "n_lines = min(CACHED_ELEMENTS, done - begin) // per_line - (begin > 0)",
        CPU_TESTS,
        "every_size_and_number_of_rows and float32-float32-float32",
    ),
    Mutant(
        "cpu: bfloat16 rows read half a line too short",
        CPU_SIMD,
        "steps = max(1, LINE_BYTES // row_bytes // _LANES)",
        "steps = min(2, LINE_BYTES // row_bytes // _LANES)",
        CPU_TESTS,
        "every_size_and_number_of_rows and bfloat16-bfloat16",
    ),
)

LOADS, NORM, DOTS, SCALE, LIST_TESTS = (
    "kernels/loads.py",
    "kernels/lists/norm.py",
    "kernels/lists/dots.py",
    "kernels/lists/scale.py",
    "tests/kernels/lists/test_lists.py",
)
LISTS = (
    Mutant(
        "loads: no alignment hint on words",
        LOADS,
        "return tl.multiple_of(address.to(tl.pointer_type(WORD)), 16)",
        "return address.to(tl.pointer_type(WORD))",
        CODEGEN_TESTS,
        "lists/norm-norm-bfloat16-sm_90",
    ),
    Mutant(
        "loads: no alignment hint on elements",
        LOADS,
        "pointer = tl.multiple_of(address.to(tl.pointer_type(element_type(CODE))), 16)\n"
        "    return tl.multiple_of(pointer + start, 16)",
        "return address.to(tl.pointer_type(element_type(CODE))) + start",
        CODEGEN_TESTS,
        "lists/scale-scale-bfloat16-sm_90",
    ),
    Mutant(
        "loads: the upper half of a word loses its sign",
        LOADS,
        "(words & -65536)",
        "(words & 0x7FFF0000)",
        LIST_TESTS,
        "dots_of_every_alignment",
    ),
    Mutant(
        "loads: the last element of a short unit is not read",
        LOADS,
        "inside = elements < tl.cast(length, tl.int32)",
        "inside = elements < tl.cast(length, tl.int32) - 1",
        LIST_TESTS,
        "tiles_are_copied",
    ),
    Mutant(
        "loads: the end of a short unit is stored without a mask",
        LOADS,
        "rounded(values, CODE), mask=elements < tl.cast(length, tl.int32))",
        "rounded(values, CODE))",
        LIST_TESTS,
        "tiles_are_copied",
    ),
    Mutant(
        "loads: NaN is not counted",
        LOADS,
        '(tl.abs(values) < float("inf")).to(tl.int32) ^ 1',
        '(tl.abs(values) == float("inf")).to(tl.int32)',
        LIST_TESTS,
        "nonfinite_elements_are_counted",
    ),
    Mutant(
        "norm: what follows the last tile is left out",
        NORM,
        "if head + remaining > 0:",
        "if head > 0:",
        LIST_TESTS,
        "norm_of_every_dtype_size_and_alignment",
    ),
    Mutant(
        "norm: lanes are added in float32",
        NORM,
        "total = tl.sum(squares)",
        "total = tl.sum(squares.to(tl.float32)).to(tl.float64)",
        LIST_TESTS,
        "norm_of_long_sums_keeps_eight_digits",
    ),
    Mutant(
        "norm: an atomic on floats instead of a store",
        NORM,
        "tl.store(out_ptr + unit, total)",
        "tl.atomic_add(out_ptr + unit, total)",
        CODEGEN_TESTS,
        "lists/norm-norm-bfloat16-sum-sm_90",
    ),
    Mutant(
        "norm: the last unit is not launched",
        NORM,
        "_norm_kernel[(n_units,)]",
        "_norm_kernel[(max(n_units - 1, 1),)]",
        LIST_TESTS,
        "norm_of_mixed_dtypes",
    ),
    Mutant(
        "dots: the row is stored in the column after its own",
        DOTS,
        "tl.where(column[None, :] == row, _warp_sums(products)[:, None], gathered)",
        "tl.where(column[None, :] == row + 1, _warp_sums(products)[:, None], gathered)",
        LIST_TESTS,
        "any_number_of_rows",
    ),
    Mutant(
        "scale: a mask on full tiles",
        SCALE,
        "_scale_elements(aligned_pointer(body, 0, CODE) + offsets, None,",
        "_scale_elements(aligned_pointer(body, 0, CODE) + offsets, offsets < length,",
        CODEGEN_TESTS,
        "lists/scale-scale-bfloat16-sm_90",
    ),
    Mutant(
        "scale: the last elements are scaled twice",
        SCALE,
        "inside = offsets < remaining // VECTOR * VECTOR",
        "inside = offsets < remaining",
        LIST_TESTS,
        "scale_multiplies_in_place",
    ),
)

WINDOW, WINDOW_TESTS = "kernels/window/window.py", "tests/kernels/window/test_window.py"
WINDOWS = (
    Mutant(
        "window: differences of products",
        WINDOW,
        "differences = tl.fma(difference, difference, differences)",
        "differences += gradient[i] * gradient[i] + previous[i] * previous[i] - 2 * gradient[i] * previous[i]",
        WINDOW_TESTS,
        "differences_are_exact_where_the_ring_is_not",
    ),
    Mutant(
        "window: slots in the opposite order",
        WINDOW,
        "tl.where(lane == slot, tl.sum(products, axis=1)",
        "tl.where(lane == min(window - first, WORDS) - 1 - slot, tl.sum(products, axis=1)",
        WINDOW_TESTS,
        "windows_of_every_length",
    ),
    Mutant(
        "window: the gradient is stored before its slot is read",
        WINDOW,
        "    row = ring\n",
        "    row = ring\n"
        "    early = ring + tl.where(head + 1 < slots, head + 1, 0) * row_bytes\n"
        "    write(early, gradient, word, RING, RING, WIDE, TILES)\n",
        WINDOW_TESTS,
        "the_ring_goes_round",
    ),
    Mutant(
        "window: the previous gradient is taken from the slot before",
        WINDOW,
        "previous = read(ring + head * row_bytes,",
        "previous = read(ring + tl.where(head > 0, head - 1, slots - 1) * row_bytes,",
        WINDOW_TESTS,
        "the_ring_goes_round",
    ),
    Mutant(
        "window: the newest gradient is overwritten instead of the oldest",
        WINDOW,
        "slot = tl.where(head + 1 < slots, head + 1, 0)",
        "slot = head",
        WINDOW_TESTS,
        "the_ring_goes_round",
    ),
    Mutant(
        "window: a step to be skipped is stored",
        WINDOW,
        "if not SKIPPABLE or tl.load(skip_ptr) == 0:",
        "if not SKIPPABLE or tl.load(skip_ptr) >= 0:",
        WINDOW_TESTS,
        "skipping_stores_nothing",
    ),
    Mutant(
        "window: NaN is not counted",
        WINDOW,
        'tl.where(tl.abs(gradient[i]) < float("inf"), 0.0, 1.0)',
        'tl.where(tl.abs(gradient[i]) == float("inf"), 1.0, 0.0)',
        WINDOW_TESTS,
        "nonfinite_elements_are_counted",
    ),
    Mutant(
        "window: an infinite scale makes NaN of padding",
        WINDOW,
        "product = tl.where(element < length, product, 0.0)",
        "product = tl.where(element <= length, product, 0.0)",
        WINDOW_TESTS,
        "a_scale_that_is_not_finite",
    ),
    Mutant(
        "window: a barrier in the loop",
        WINDOW,
        "            row += row_bytes\n",
        "            row += row_bytes\n            tl.debug_barrier()\n",
        CODEGEN_TESTS,
        "window/window-bfloat16-fast-sm_90",
    ),
    Mutant(
        "window: too few registers",
        WINDOW,
        '"maxnreg": _max_registers(ring, wide)',
        '"maxnreg": _max_registers(ring, wide) - 96',
        CODEGEN_TESTS,
        "window/window-bfloat16-fast-sm_90",
    ),
)

UPDATE, UPDATE_TESTS = "kernels/window/update.py", "tests/kernels/window/test_update.py"
GRAM, GRAM_TESTS = "kernels/window/gram.py", "tests/kernels/window/test_gram.py"
OTHERS = (
    Mutant(
        "update: the snapshot is renewed before it is read",
        UPDATE,
        "        old = load_tile(",
        "        store_tile(snapshot, PARAMETER, start, offsets, length, new, PARAMETER, WIDE)\n"
        "        old = load_tile(",
        UPDATE_TESTS,
        "moments_have_the_names_and_places",
    ),
    Mutant(
        "update: the step backwards",
        UPDATE,
        "update = new - old",
        "update = old - new",
        UPDATE_TESTS,
        "moments_have_the_names_and_places",
    ),
    Mutant(
        "update: the previous gradient is always the first slot's",
        UPDATE,
        "tl.load(state_ptr) * row_elements",
        "0 * row_elements",
        UPDATE_TESTS,
        "the_row_that_the_state_names",
    ),
    Mutant(
        "gram: the new rows in the opposite order",
        GRAM,
        "head - tl.minimum(age, block - 1) + slots",
        "head + tl.minimum(age, block - 1) + slots",
        GRAM_TESTS,
        "wrap_around_anywhere",
    ),
    Mutant(
        "gram: differences from rounded products",
        GRAM,
        "diff_sq += _folded_squares(new.to(tl.float32) - before, VECTOR)",
        "diff_sq += _folded_squares((new.to(tl.float32) - before).to(tl.float16).to(tl.float32), VECTOR)",
        GRAM_TESTS,
        "differences_are_taken_from_the_elements",
    ),
)

SKETCH, ACCUMULATE, BLOCK_IO, COMPARE_AND_STORE = (
    "kernels/sketch/sketch.py",
    "kernels/sketch/accumulate.py",
    "kernels/sketch/block_io.py",
    "kernels/sketch/compare_and_store.py",
)
SKETCH_TESTS, COMPARISON_TESTS = (
    "tests/kernels/sketch/test_sketch.py",
    "tests/kernels/sketch/test_compare_and_store.py",
)
SKETCHES = (
    Mutant(
        "accumulate: lower halves keep their sign",
        ACCUMULATE,
        "sign & _BOTH_SIGNS",
        "sign & _SIGN",
        SKETCH_TESTS,
        "sums_of_whole_numbers_are_those and bfloat16",
    ),
    Mutant(
        "sketch: sums are not exchanged",
        SKETCH,
        "exchange(low, high, tl.cast(q ^ (q + 1), tl.int32))",
        "exchange(low, high, tl.cast(0, tl.int32))",
        SKETCH_TESTS,
        "sums_of_whole_numbers_are_those and bfloat16",
    ),
    Mutant(
        "accumulate: a tensor's last block is taken for a full one",
        ACCUMULATE,
        "32 * j + 32 < tensor[1]",
        "32 * j + 32 <= tensor[1]",
        SKETCH_TESTS,
        "sums_of_whole_numbers_are_those and bfloat16",
    ),
    Mutant(
        "block_io: no alignment hint",
        BLOCK_IO,
        "return tl.multiple_of(tl.max_contiguous(pointers, [1, 4]), [16, 16])",
        "return pointers",
        CODEGEN_TESTS,
        "sketch/sketch-sketch-bfloat16-sm_90",
    ),
    Mutant(
        "cpu: the oldest sketch is overwritten before it is read",
        "fastgeom/engines/cpu/loops/sketch.py",
        "    count, offset = rows.shape[0], target * 4\n",
        "    count, offset = rows.shape[0], target * 4\n    write(x, store, target, _FLOAT32)\n",
        "tests/history/test_sketched_window.py",
        "kept_one_by_one and 3",
    ),
    Mutant(
        "compare_and_store: the newest is overwritten instead of the oldest",
        COMPARE_AND_STORE,
        "target = tl.where(head + 1 < slots, head + 1, 0)",
        "target = head",
        COMPARISON_TESTS,
        "meets_every_slot and 5-2-alone",
    ),
    Mutant(
        "compare_and_store: differences from the oldest",
        COMPARE_AND_STORE,
        "previous = _load(ring_ptr + head * stride",
        "previous = _load(ring_ptr + (head + 1) % slots * stride",
        COMPARISON_TESTS,
        "meets_every_slot and 5-2-alone",
    ),
    Mutant(
        "compare_and_store: the last four buckets are left out",
        COMPARE_AND_STORE,
        "inside = buckets // 4 * 4 < length",
        "inside = buckets // 4 * 4 < length - 4",
        COMPARISON_TESTS,
        "meets_every_slot and 5-2-alone",
    ),
    Mutant(
        "compare_and_store: a skipped step is stored",
        COMPARE_AND_STORE,
        "stored = tl.load(skip_ptr) == 0",
        "stored = tl.load(skip_ptr) != 2",
        COMPARISON_TESTS,
        "skipped",
    ),
)

FINALIZE, REDUCE, TABLES, ENGINE_TESTS = (
    "kernels/finalize.py",
    "kernels/reduce.py",
    "fastgeom/engines/triton/tables.py",
    "tests/engines/triton/test_engine.py",
)
ENGINE = (
    Mutant(
        "finalize: lags in the opposite order",
        FINALIZE,
        "lag_ptr = out_ptr + _SUMS + lag - 1",
        "lag_ptr = out_ptr + _SUMS + window - lag",
        ENGINE_TESTS,
        "missing_gradients_gaps",
    ),
    Mutant(
        "reduce: the last row of a segment is left out",
        REDUCE,
        "(rows < end)[:, None]",
        "(rows < end - 1)[:, None]",
        ENGINE_TESTS,
        "more_partial_sums_than_one_segment",
    ),
    Mutant(
        "finalize: a gap counts as one step",
        FINALIZE,
        "adjacent = tl.load(slot_step_ptr + head) == step - 1",
        "adjacent = tl.load(slot_step_ptr + head) < step",
        ENGINE_TESTS,
        "missing_gradients_gaps",
    ),
    Mutant(
        "tables: a short unit is taken for a full one",
        TABLES,
        "fast = (units.length == unit_elements) & (address % VECTOR_BYTES == 0)",
        "fast = (units.length <= unit_elements) & (address % VECTOR_BYTES == 0)",
        ENGINE_TESTS,
        "list_moments_are_those",
    ),
    Mutant(
        "tables: the last unit of a layer belongs to no segment",
        TABLES,
        "edges = np.searchsorted(owner[order], np.arange(layers + 1))",
        "edges = np.maximum(np.searchsorted(owner[order], np.arange(layers + 1)) - 1, 0)",
        ENGINE_TESTS,
        "segments_cover_every_row_once",
    ),
)

MUTANTS = (*CPU, *LISTS, *WINDOWS, *OTHERS, *SKETCHES, *ENGINE)
