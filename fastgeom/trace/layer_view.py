"""One layer of a trace."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fastgeom.schema import LAYER, LAYER_PREFIX
from fastgeom.trace.fields import IntArray, LayerFields


class Layered(Protocol):
    """The part of a trace that a view uses."""

    path: Path
    step: IntArray
    layers: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all fields."""

    def dims(self, name: str) -> tuple[str, ...]:
        """Names of the dimensions of a field."""

    def _array(self, name: str, layer: int | None = None) -> np.ndarray: ...


class LayerView(LayerFields):
    """The quantities of one layer, under the names of the global ones.

    ``view.grad_norm`` is (step,), ``view.lag_cosine`` (step, lag); ``view["grad_norm"]`` is the same. Arrays as in
    ``Trace``, which caches them.

    Args:
        trace: the trace.
        name: the layer's name.

    Attributes:
        name: the layer's name.
    """

    def __init__(self, trace: Layered, name: str) -> None:
        self.name = name
        self._trace = trace

    @property
    def step(self) -> IntArray:
        """Steps of the rows, ``(n,)``: those of the trace."""
        return self._trace.step

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all recorded and derived fields that a layer has."""
        return tuple(n.removeprefix(LAYER_PREFIX) for n in self._trace.names if LAYER in self._trace.dims(n))

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.names:
            raise KeyError(self._unknown(name))
        return self._trace._array(LAYER_PREFIX + name, self._trace.layers.index(self.name))

    if not TYPE_CHECKING:  # a type checker would take every misspelled field for one

        def __getattr__(self, name: str) -> np.ndarray:
            if name.startswith("_"):
                raise AttributeError(name)
            if name not in self.names:
                raise AttributeError(self._unknown(name))
            return self[name]

    def __dir__(self) -> Iterable[str]:
        return {*super().__dir__(), *self.names}

    def __repr__(self) -> str:
        return f"<LayerView {self.name!r} of {self._trace!r}>"

    def _unknown(self, name: str) -> str:
        return f"{self._trace.path}: layer {self.name!r} has no {name!r}; {suggest(name, self.names)}"


def suggest(name: str, valid: Iterable[str]) -> str:
    """Return the end of an error message about a wrong name: the valid names close to it, or all of them."""
    public = sorted(v for v in valid if not v.startswith("_"))
    close = get_close_matches(name, public)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else f"there are {', '.join(public) or 'none'}"
