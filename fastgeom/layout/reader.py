"""Locate the tensors of a step: addresses anew at every step, checks only where something has changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastgeom.layout.addresses import AddressTable, in_memory_order
from fastgeom.layout.layout import Layout
from fastgeom.validation import DTYPES, check_fits

_FACTS: tuple[Callable[[Tensor], object], ...] = (
    type,
    attrgetter("dtype"),
    attrgetter("shape"),
    attrgetter("device"),
    Tensor.stride,
    Tensor.is_neg,
)
"""What is compared of every tensor at every step; read a column at a time, without a loop in Python."""


class TensorReader:
    """Locates a list of tensors at every step, and refuses what does not fit the layout.

    A tensor is checked again only where it differs from that of the step before, so that a step with 2,000 tensors
    costs about two milliseconds.

    Args:
        layout: the measured tensors.
        what: what the tensors are, for messages: "gradient" or "parameter".
    """

    def __init__(self, layout: Layout, what: str) -> None:
        self._layout = layout
        self._what = what
        self._facts: Sequence[object] = ()
        self._in_order = False
        self._codes = np.zeros(0, np.int8)

    def locate(self, tensors: Sequence[Tensor | None]) -> AddressTable:
        """Addresses and dtypes of these tensors; ``None`` has the address 0.

        Raises:
            TypeError: a tensor cannot be measured (see `check_measurable`).
            ValueError: a tensor has another shape than its parameter had, or lies on another device.

        Cost: a tensor in another memory order than its parameter's is copied.
        """
        given = [t for t in tensors if t is not None]
        try:
            facts = [[t is None for t in tensors], *(list(map(fact, given)) for fact in _FACTS)]
        except (AttributeError, RuntimeError, TypeError):  # no tensor, or one without strides
            self._check(tensors)
            raise
        if facts != self._facts:
            self._check(tensors)
            codes, ordered = self._dtype_codes(tensors), self._ordered(tensors)  # may run out of memory
            self._in_order = all(a is b for a, b in zip(tensors, ordered, strict=True))
            self._facts, self._codes = facts, codes
        owners = tensors if self._in_order else self._ordered(tensors)
        addresses = np.array([0 if t is None else t.data_ptr() for t in owners], np.int64)
        return AddressTable(addresses, self._codes, tuple(owners))

    def _ordered(self, tensors: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        strides = self._layout.strides
        return [t if t is None else in_memory_order(t, s) for t, s in zip(tensors, strides, strict=True)]

    def _dtype_codes(self, tensors: Sequence[Tensor | None]) -> NDArray[np.int8]:
        parameters = self._layout.parameters
        # A gradient that is not there yet will be of the dtype that gradients of such parameters have.
        usual = {p.dtype: t.dtype for t, p in zip(tensors, parameters, strict=True) if t is not None}
        dtypes = [
            usual.get(p.dtype, p.dtype) if t is None else t.dtype for t, p in zip(tensors, parameters, strict=True)
        ]
        return np.array([DTYPES.index(dtype) for dtype in dtypes], np.int8)

    def _check(self, tensors: Sequence[Tensor | None]) -> None:
        layout = self._layout
        for name, tensor, shape in zip(layout.names, tensors, layout.shapes, strict=True):
            if tensor is not None:
                what = f"{self._what} of {name!r}" if self._what != "parameter" else f"parameter {name!r}"
                check_fits(tensor, what, shape, layout.device)
