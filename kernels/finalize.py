"""Statistics of a step from its totals, in float64, on the device.

    lag k of a layer = the dot with the slot whose step is t - k, if there is one

The head and the steps of the ring's slots are in device memory (`state`, `slot_step`). `_advance_kernel` alone changes
them, in a launch of its own after all reads, so that the head moves on in every replay of a captured graph.
"""

import triton
import triton.language as tl

NEVER = -(1 << 60)
"""The step of an empty slot: so far back that no lag reaches it."""

_NEVER = tl.constexpr(NEVER)
_SLOTS = tl.constexpr(32)
_SUMS = tl.constexpr(5)
_SUM_COLUMNS = 8
"""Columns of totals after those of the dots: the sums of `launch_window`, the last three of them zero."""

FINISHED_SUMS = ("grad_sq", "grad_norm", "grad_absmax", "diff_sq", "sum_sq")
"""The first columns of the results; then come the dots, the cosines and, if asked for, the past values."""


@triton.jit
def _lags(slot_step_ptr, first, step, n_slots, window):
    """Some slots of the ring, how many steps ago each was filled, and whether that is a lag of the window."""
    slots = first + tl.arange(0, _SLOTS)
    inside = slots < n_slots
    lag = step - tl.load(slot_step_ptr + slots, mask=inside, other=0)
    return slots, lag, inside & (lag >= 1) & (lag <= window)


@triton.jit
def _store_lags(lag_ptr, dot_ptr, past_norm_ptr, norm, window, valid):
    """Dots and cosines to their lags; a cosine is NaN where a norm is 0.

    Nothing is divided by such a norm: where kernels are interpreted that would be a warning.
    """
    dot = tl.load(dot_ptr, mask=valid, other=0.0)
    norms = tl.load(past_norm_ptr, mask=valid, other=0.0) * norm
    tl.store(lag_ptr, dot, mask=valid)
    tl.store(lag_ptr + window, tl.where(norms == 0, float("nan"), dot / tl.where(norms == 0, 1.0, norms)), mask=valid)


@triton.jit(do_not_specialize=["n_columns", "sums_column", "n_slots", "window", "advance"])
def _window_finish_kernel(
    total_ptr,
    state_ptr,
    slot_step_ptr,
    slot_norm_ptr,
    slot_past_ptr,
    past_ptr,
    skip_ptr,
    out_ptr,
    nonfinite_ptr,
    n_columns,
    sums_column,
    n_slots,
    window,
    advance,
    PAST: tl.constexpr,
    STORE: tl.constexpr,
    SKIPPABLE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head, step = tl.load(state_ptr), tl.load(state_ptr + 1) + advance
    total_ptr += row * n_columns
    sums_ptr = total_ptr + sums_column
    out_ptr += row * (_SUMS + (3 if PAST else 2) * window)
    norm = tl.sqrt(tl.load(sums_ptr))
    adjacent = tl.load(slot_step_ptr + head) == step - 1
    tl.store(out_ptr, tl.load(sums_ptr))
    tl.store(out_ptr + 1, norm)
    tl.store(out_ptr + 2, tl.load(sums_ptr + 3))
    tl.store(out_ptr + 3, tl.where(adjacent, tl.load(sums_ptr + 1), float("nan")))
    tl.store(out_ptr + 4, tl.where(adjacent, tl.load(sums_ptr + 2), float("nan")))
    tl.store(nonfinite_ptr + row, tl.load(sums_ptr + 4).to(tl.int64))
    for first in range(0, n_slots, _SLOTS):
        slots, lag, valid = _lags(slot_step_ptr, first, step, n_slots, window)
        lag_ptr = out_ptr + _SUMS + lag - 1
        _store_lags(lag_ptr, total_ptr + slots, slot_norm_ptr + row * n_slots + slots, norm, window, valid)
        if PAST:
            past = tl.load(slot_past_ptr + row * n_slots + slots, mask=valid, other=0.0)
            tl.store(lag_ptr + 2 * window, past, mask=valid)
    if STORE:
        tl.debug_barrier()  # the slot that is written now was read above
        stored = tl.load(skip_ptr) == 0 if SKIPPABLE else True
        target = row * n_slots + (head + 1) % n_slots
        tl.store(slot_norm_ptr + target, norm, mask=stored)
        if PAST:
            tl.store(slot_past_ptr + target, tl.load(past_ptr + row), mask=stored)


@triton.jit(do_not_specialize=["n_slots", "advance"])
def _advance_kernel(
    state_ptr,
    slot_step_ptr,
    valid_step_ptr,
    skip_ptr,
    n_slots,
    advance,
    SKIPPABLE: tl.constexpr,
    DEFERRED: tl.constexpr,
):
    head, step = tl.load(state_ptr), tl.load(state_ptr + 1) + advance
    tl.store(state_ptr + 1, step)
    stored = tl.load(skip_ptr) == 0 if SKIPPABLE else True
    target = (head + 1) % n_slots
    if DEFERRED:
        tl.store(valid_step_ptr + target, tl.where(stored, step, _NEVER))
        stored = True
    tl.store(slot_step_ptr + target, step, mask=stored)
    tl.store(state_ptr, target, mask=stored)


def launch_window_finish(
    totals,
    state,
    slot_step,
    slot_norm,
    out,
    nonfinite,
    *,
    window,
    advance,
    past=None,
    slot_past=None,
    skip=None,
    store=True,
    valid_step=None,
):
    """The statistics of a step from the totals of its window pass; then the ring's head moves on.

    Args:
        totals: float64 (layer + 1, columns): dots with slots 0 …, perhaps some columns of padding, then the eight sums
            of `launch_window`.
        state: int64 (2,): head and the last step.
        slot_step: int64 (slots,), the step in each slot, NEVER in an empty one.
        slot_norm: float64 (layer + 1, slots), the norm of the gradient in each slot.
        out: float64 (layer + 1, 5 + 2 window), filled with NaN: FINISHED_SUMS, the dots and the cosines by lag; window
            columns more with ``slot_past``.
        nonfinite: int64 (layer + 1,), all of it written.
        window: the largest lag.
        advance: steps since the last one; a graph that is captured replays with the same.
        past: float64 (layer + 1,), a value of this step that is written to ``slot_past`` if the step is stored.
        slot_past: float64 (layer + 1, slots), the past values, returned by lag; or ``None``.
        skip: a 0-d tensor; where it is not 0 the gradient was not stored.
        store: False leaves the ring's state as it is, and the step too.
        valid_step: int64 (slots,) of a deferred window, in which skipped steps have slots too: the step in each slot,
            NEVER where it was skipped.
    """
    n_slots, deferred = len(slot_step), valid_step is not None
    skippable = skip is not None and not deferred
    sums_column = totals.shape[1] - _SUM_COLUMNS
    _window_finish_kernel[(totals.shape[0],)](
        totals,
        state,
        slot_step,
        slot_norm,
        slot_past,
        past,
        skip,
        out,
        nonfinite,
        totals.shape[1],
        sums_column,
        n_slots,
        window,
        advance,
        PAST=slot_past is not None,
        STORE=store,
        SKIPPABLE=skippable,
        num_warps=1,
    )
    if store:
        _advance_kernel[(1,)](
            state,
            slot_step,
            valid_step,
            skip,
            n_slots,
            advance,
            SKIPPABLE=skip is not None,
            DEFERRED=deferred,
            num_warps=1,
        )


@triton.jit(do_not_specialize=["advance"])
def _update_finish_kernel(total_ptr, state_ptr, slot_step_ptr, out_ptr, advance):
    row = tl.program_id(0).to(tl.int64)
    adjacent = tl.load(slot_step_ptr + tl.load(state_ptr)) == tl.load(state_ptr + 1) + advance - 1
    columns = tl.arange(0, 4)
    total = tl.load(total_ptr + row * 4 + columns)
    tl.store(out_ptr + row * 4 + columns, tl.where(adjacent | (columns == 0), total, float("nan")))


def launch_update_finish(totals, state, slot_step, out, *, advance):
    """Sums over the update: all but sum x^2 are NaN where the snapshot is not that of the step before.

    Args:
        totals: float64 (layer + 1, 4): sum x^2, sum u^2, sum g_t u, sum g_{t+1} u.
        state: as in `launch_window_finish`, before it is called for this step.
        slot_step: as in `launch_window_finish`, before it is called for this step.
        out: float64 (layer + 1, 4), all of it written.
        advance: as in `launch_window_finish`.
    """
    _update_finish_kernel[(totals.shape[0],)](totals, state, slot_step, out, advance, num_warps=1)


@triton.jit(do_not_specialize=["n_rows", "block", "n_slots", "window"])
def _gram_finish_kernel(
    total_ptr, state_ptr, slot_step_ptr, valid_step_ptr, slot_norm_ptr, out_ptr, n_rows, block, n_slots, window
):
    row, age = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = (tl.load(state_ptr) - age + n_slots) % n_slots
    step = tl.load(slot_step_ptr + slot)
    norm = tl.load(slot_norm_ptr + row * n_slots + slot)
    total_ptr += (row * block + age) * (n_slots + 2)
    out_ptr += (age.to(tl.int64) * n_rows + row) * (2 + 2 * window)
    adjacent = tl.load(valid_step_ptr + (slot + n_slots - 1) % n_slots) == step - 1
    tl.store(out_ptr, tl.where(adjacent, tl.load(total_ptr + n_slots), float("nan")))
    tl.store(out_ptr + 1, tl.where(adjacent, tl.load(total_ptr + n_slots + 1), float("nan")))
    for first in range(0, n_slots, _SLOTS):
        slots, lag, valid = _lags(valid_step_ptr, first, step, n_slots, window)
        lag_ptr = out_ptr + 2 + lag - 1
        _store_lags(lag_ptr, total_ptr + slots, slot_norm_ptr + row * n_slots + slots, norm, window, valid)


def launch_gram_finish(totals, state, slot_step, valid_step, slot_norm, out, *, window):
    """The lags of the newest steps of a deferred window, from the totals of its Gram pass.

    Args:
        totals: float64 (layer + 1, block, slots + 2), as ``launch_gram`` has it for each unit.
        state: as in `launch_window_finish`.
        slot_step: as in `launch_window_finish`.
        valid_step: as in `launch_window_finish`.
        slot_norm: as in `launch_window_finish`.
        out: float64 (block, layer + 1, 2 + 2 window), filled with NaN; by age: sum (g - previous)^2,
            sum (g + previous)^2, the dots and the cosines by lag.
        window: the largest lag.
    """
    n_rows, block = totals.shape[:2]
    _gram_finish_kernel[(n_rows, block)](
        totals, state, slot_step, valid_step, slot_norm, out, n_rows, block, len(slot_step), window, num_warps=1
    )


def finalize_variants():
    """What is compiled ahead of time: each kernel with all of its branches."""
    return [
        _variant("window-finish", _window_finish_kernel, PAST=True, STORE=True, SKIPPABLE=True),
        _variant("advance", _advance_kernel, SKIPPABLE=True, DEFERRED=True),
        _variant("gram-finish", _gram_finish_kernel),
        _variant("update-finish", _update_finish_kernel),
    ]


def _variant(name, kernel, **constexprs):
    pointers = dict.fromkeys(("total_ptr", "slot_norm_ptr", "slot_past_ptr", "past_ptr", "out_ptr"), "*fp64")
    pointers |= dict.fromkeys(("state_ptr", "slot_step_ptr", "valid_step_ptr", "nonfinite_ptr"), "*i64")
    pointers["skip_ptr"] = "*fp32"
    return {
        "name": name,
        "kernel": kernel,
        "signature": {a: pointers.get(a, "i32") for a in kernel.arg_names if a not in constexprs},
        "constexprs": constexprs,
        "divisible_by_16": [],
        "num_warps": 1,
        "options": {},
        "elements": 1,
        "min_vector_bytes": 0,
        "max_instructions_per_element": None,
        "loop": False,
    }
