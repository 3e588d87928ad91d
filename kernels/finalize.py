"""Totals of a step become its statistics: in float64, on the device.

    lag k of a layer = the dot with the slot whose step is t - k, if there is one

The steps of the ring's slots live in device memory (`state`, `slot_step`), which only `_advance_kernel` moves, in a
launch of its own after all who read them: a captured graph replays with a head that goes on.
"""

import triton
import triton.language as tl

NEVER = -(1 << 60)
"""The step of a slot that holds nothing: so far back that no lag reaches it."""

_NEVER = tl.constexpr(NEVER)
_SLOTS = tl.constexpr(32)
_SUMS = tl.constexpr(5)

FINISHED_SUMS = ("grad_sq", "grad_norm", "grad_absmax", "diff_sq", "sum_sq")
"""The first columns of the finished statistics; then come the dots, the cosines and, if asked for, the past values."""


@triton.jit
def _lags(slot_step_ptr, first, step, n_slots, window):
    """Some slots of the ring, how many steps ago each was filled, and whether that is a lag of the window."""
    slots = first + tl.arange(0, _SLOTS)
    inside = slots < n_slots
    lag = step - tl.load(slot_step_ptr + slots, mask=inside, other=0)
    return slots, lag, inside & (lag >= 1) & (lag <= window)


@triton.jit
def _store_lags(lag_ptr, dot_ptr, past_norm_ptr, norm, window, known):
    """Dots and cosines to their lags; a cosine is NaN where a norm is 0.

    Nothing is divided by such a norm: where kernels are interpreted that would be a warning.
    """
    dot = tl.load(dot_ptr, mask=known, other=0.0)
    norms = tl.load(past_norm_ptr, mask=known, other=0.0) * norm
    tl.store(lag_ptr, dot, mask=known)
    tl.store(lag_ptr + window, tl.where(norms == 0, float("nan"), dot / tl.where(norms == 0, 1.0, norms)), mask=known)


@triton.jit(do_not_specialize=["n_columns", "sums_column", "n_slots", "window", "advance"])
def _window_finish_kernel(
    total_ptr, state_ptr, slot_step_ptr, slot_norm_ptr, slot_past_ptr, past_ptr, skip_ptr, out_ptr, nonfinite_ptr,
    n_columns, sums_column, n_slots, window, advance,
    PAST: tl.constexpr, STORE: tl.constexpr, SKIPPABLE: tl.constexpr,
):  # fmt: skip
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
        slots, lag, known = _lags(slot_step_ptr, first, step, n_slots, window)
        lag_ptr = out_ptr + _SUMS + lag - 1
        _store_lags(lag_ptr, total_ptr + slots, slot_norm_ptr + row * n_slots + slots, norm, window, known)
        if PAST:
            past = tl.load(slot_past_ptr + row * n_slots + slots, mask=known, other=0.0)
            tl.store(lag_ptr + 2 * window, past, mask=known)
    if STORE:
        tl.debug_barrier()  # the slot that is written now was read above
        stored = tl.load(skip_ptr) == 0 if SKIPPABLE else True
        target = row * n_slots + (head + 1) % n_slots
        tl.store(slot_norm_ptr + target, norm, mask=stored)
        if PAST:
            tl.store(slot_past_ptr + target, tl.load(past_ptr + row), mask=stored)


@triton.jit(do_not_specialize=["n_slots", "advance"])
def _advance_kernel(
    state_ptr, slot_step_ptr, slot_known_ptr, skip_ptr, n_slots, advance,
    SKIPPABLE: tl.constexpr, DEFERRED: tl.constexpr,
):  # fmt: skip
    head, step = tl.load(state_ptr), tl.load(state_ptr + 1) + advance
    tl.store(state_ptr + 1, step)
    stored = tl.load(skip_ptr) == 0 if SKIPPABLE else True
    target = (head + 1) % n_slots
    if DEFERRED:
        tl.store(slot_known_ptr + target, tl.where(stored, step, _NEVER))
        stored = True
    tl.store(slot_step_ptr + target, step, mask=stored)
    tl.store(state_ptr, target, mask=stored)


def launch_window_finish(
    totals, state, slot_step, slot_norm, out, nonfinite, *, window, advance, past=None, slot_past=None, skip=None,
    store=True, slot_known=None,
):  # fmt: skip
    """The statistics of a step from the totals of its window pass; then the ring's head moves on.

    Args:
        totals: float64 (layer + 1, columns): dots with slots 0 …, perhaps some columns of padding, then the eight sums
            of `launch_window`.
        state: int64 (2,): head and the last step; slot_step: int64 (slots,), NEVER in a slot that holds nothing.
        slot_norm: float64 (layer + 1, slots), the norm of the gradient in each slot.
        out: float64 (layer + 1, 5 + 2 window), filled with NaN: FINISHED_SUMS, the dots and the cosines by lag; window
            columns more with ``slot_past``.
        nonfinite: int64 (layer + 1,).
        advance: steps since the last one; a graph that is captured replays with the same.
        past: float64 (layer + 1,), a value of this step to keep in ``slot_past`` if it is stored.
        slot_past: float64 (layer + 1, slots), given back at the lags; or ``None``.
        skip: a 0-d tensor; where it is not 0 the gradient was not stored.
        store: False leaves the ring's state as it is, and the step too.
        slot_known: int64 (slots,) of a deferred window, where every step has a slot: the step again, or NEVER where it
            was skipped.
    """
    n_slots, deferred = len(slot_step), slot_known is not None
    skippable = skip is not None and not deferred
    sums_column = totals.shape[1] - 8
    _window_finish_kernel[(totals.shape[0],)](
        totals, state, slot_step, slot_norm, slot_past, past, skip, out, nonfinite,
        totals.shape[1], sums_column, n_slots, window, advance,
        PAST=slot_past is not None, STORE=store, SKIPPABLE=skippable, num_warps=1,
    )  # fmt: skip
    if store:
        _advance_kernel[(1,)](
            state, slot_step, slot_known, skip, n_slots, advance, SKIPPABLE=skip is not None, DEFERRED=deferred,
            num_warps=1,
        )  # fmt: skip


@triton.jit(do_not_specialize=["advance"])
def _update_finish_kernel(total_ptr, state_ptr, slot_step_ptr, out_ptr, advance):
    row = tl.program_id(0).to(tl.int64)
    adjacent = tl.load(slot_step_ptr + tl.load(state_ptr)) == tl.load(state_ptr + 1) + advance - 1
    columns = tl.arange(0, 4)
    total = tl.load(total_ptr + row * 4 + columns)
    tl.store(out_ptr + row * 4 + columns, tl.where(adjacent | (columns == 0), total, float("nan")))


def launch_update_finish(totals, state, slot_step, out, *, advance):
    """Sums over the update, NaN where the snapshot is not that of the step before; the parameters' own always hold.

    Args:
        totals, out: float64 (layer + 1, 4): sum x^2, sum u^2, sum g_t u, sum g_{t+1} u.
        state, slot_step, advance: as in `launch_window_finish`, before it is called for this step.
    """
    _update_finish_kernel[(totals.shape[0],)](totals, state, slot_step, out, advance, num_warps=1)


@triton.jit(do_not_specialize=["n_rows", "block", "n_slots", "window"])
def _gram_finish_kernel(
    total_ptr, state_ptr, slot_step_ptr, slot_known_ptr, slot_norm_ptr, out_ptr, n_rows, block, n_slots, window
):
    row, age = tl.program_id(0).to(tl.int64), tl.program_id(1)
    slot = (tl.load(state_ptr) - age + n_slots) % n_slots
    step = tl.load(slot_step_ptr + slot)
    norm = tl.load(slot_norm_ptr + row * n_slots + slot)
    total_ptr += (row * block + age) * (n_slots + 2)
    out_ptr += (age.to(tl.int64) * n_rows + row) * (2 + 2 * window)
    adjacent = tl.load(slot_known_ptr + (slot + n_slots - 1) % n_slots) == step - 1
    tl.store(out_ptr, tl.where(adjacent, tl.load(total_ptr + n_slots), float("nan")))
    tl.store(out_ptr + 1, tl.where(adjacent, tl.load(total_ptr + n_slots + 1), float("nan")))
    for first in range(0, n_slots, _SLOTS):
        slots, lag, known = _lags(slot_known_ptr, first, step, n_slots, window)
        lag_ptr = out_ptr + 2 + lag - 1
        _store_lags(lag_ptr, total_ptr + slots, slot_norm_ptr + row * n_slots + slots, norm, window, known)


def launch_gram_finish(totals, state, slot_step, slot_known, slot_norm, out, *, window):
    """The lags of the newest steps of a deferred window, from the totals of its Gram pass.

    Args:
        totals: float64 (layer + 1, block, slots + 2), as ``launch_gram`` has it for each unit.
        state, slot_step, slot_known, slot_norm: as in `launch_window_finish`.
        out: float64 (block, layer + 1, 2 + 2 window), filled with NaN; by age: sum (g - previous)^2,
            sum (g + previous)^2, the dots and the cosines by lag.
    """
    n_rows, block = totals.shape[:2]
    _gram_finish_kernel[(n_rows, block)](
        totals, state, slot_step, slot_known, slot_norm, out, n_rows, block, len(slot_step), window, num_warps=1
    )


def finalize_variants():
    """What the code checks compile."""
    common = {"divisible_by_16": [], "num_warps": 1, "options": {}, "elements": 1, "min_vector_bytes": 0,
              "max_instructions_per_element": None, "loop": False}  # fmt: skip
    pointers = {
        "total_ptr": "*fp64", "state_ptr": "*i64", "slot_step_ptr": "*i64", "slot_norm_ptr": "*fp64",
        "slot_past_ptr": "*fp64", "past_ptr": "*fp64", "skip_ptr": "*fp32", "out_ptr": "*fp64",
        "nonfinite_ptr": "*i64",
    }  # fmt: skip
    counts = dict.fromkeys(("n_columns", "sums_column", "n_slots", "window", "advance"), "i32")
    return [
        common | {"name": "window-finish", "kernel": _window_finish_kernel, "signature": pointers | counts,
                  "constexprs": {"PAST": True, "STORE": True, "SKIPPABLE": True}},
        common | {"name": "advance", "kernel": _advance_kernel,
                  "constexprs": {"SKIPPABLE": True, "DEFERRED": True},
                  "signature": {"state_ptr": "*i64", "slot_step_ptr": "*i64", "slot_known_ptr": "*i64",
                                "skip_ptr": "*fp32", "n_slots": "i32", "advance": "i32"}},
        common | {"name": "gram-finish", "kernel": _gram_finish_kernel, "constexprs": {},
                  "signature": {"total_ptr": "*fp64", "state_ptr": "*i64", "slot_step_ptr": "*i64",
                                "slot_known_ptr": "*i64", "slot_norm_ptr": "*fp64", "out_ptr": "*fp64",
                                "n_rows": "i32", "block": "i32", "n_slots": "i32", "window": "i32"}},
        common | {"name": "update-finish", "kernel": _update_finish_kernel, "constexprs": {},
                  "signature": {"total_ptr": "*fp64", "state_ptr": "*i64", "slot_step_ptr": "*i64",
                                "out_ptr": "*fp64", "advance": "i32"}},
    ]  # fmt: skip
