"""One layer of a trace."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Protocol

import numpy as np

from fastgeom.schema import LAYER, LAYER_PREFIX


class Layered(Protocol):
    """What a view needs of its trace."""

    path: Path
    step: np.ndarray
    layers: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """All fields."""

    def dims(self, name: str) -> tuple[str, ...]:
        """Dimensions of one."""

    def _array(self, name: str, layer: int | None = None) -> np.ndarray: ...


class LayerView:
    """The quantities of one layer, under the names of the global ones.

    ``view.grad_norm`` is (step,), ``view.lag_cosine`` (step, lag); ``view["grad_norm"]`` is the same. Arrays as in
    ``Trace``, which keeps them.

    Attributes:
        name: the layer's name.
        step: ``(n,)``, that of the trace.
    """

    def __init__(self, trace: Layered, name: str) -> None:
        self.name = name
        self._trace = trace

    @property
    def step(self) -> np.ndarray:
        """Steps of the rows."""
        return self._trace.step

    @property
    def names(self) -> tuple[str, ...]:
        """All recorded and derived fields that a layer has."""
        return tuple(n.removeprefix(LAYER_PREFIX) for n in self._trace.names if LAYER in self._trace.dims(n))

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.names:
            raise KeyError(self._unknown(name))
        return self._trace._array(LAYER_PREFIX + name, self._trace.layers.index(self.name))

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


def suggest(name: str, known: Iterable[str]) -> str:
    """What to say after a wrong name: the close ones, or all."""
    known = sorted(k for k in known if not k.startswith("_"))
    close = get_close_matches(name, known)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else f"there are {', '.join(known) or 'none'}"
