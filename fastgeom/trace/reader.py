"""Read a trace, finished, live or crashed: complete rows only; the file is never written to."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from fastgeom.schema import DERIVED_FIELDS, LAG, LAYER, LAYER_LAG, LAYER_PREFIX, STEP, reserved_names
from fastgeom.trace.access import contents, identity, opened, read
from fastgeom.trace.derived import INPUTS, derive
from fastgeom.trace.errors import TraceDamagedError
from fastgeom.trace.fields import IntArray, TraceFields
from fastgeom.trace.file import FINISHED
from fastgeom.trace.layer_view import LayerView, suggest
from fastgeom.trace.lock import is_being_written

if TYPE_CHECKING:
    import xarray

_DERIVED = {prefix + f.name: (f.name, prefix) for prefix in ("", LAYER_PREFIX) for f in DERIVED_FIELDS}


def open_trace(path: str | os.PathLike[str]) -> Trace:
    """Open a trace for reading: of a finished, a live or a crashed run.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: a folder.
        PermissionError: the file may not be read.
        TraceFormatError: no HDF5 file, no fastgeom trace, or one of a newer schema version.
        TraceDamagedError: a trace whose structure or whose ``step`` cannot be read.
    """
    return Trace(path)


class Trace(TraceFields):
    """One run's measurements as numpy arrays, read when first asked for.

    Every recorded field, scalar and derived field is an attribute: ``trace.grad_norm`` (step,), ``trace.lag_cosine``
    (step, lag), ``trace.layer_lag_cosine`` (step, layer, lag), ``trace.loss`` (step,); ``trace["loss"]`` is the same.
    Type checkers and editors see the fields of ``fastgeom.schema`` and ``loss``; for them a scalar with a name of your
    own is ``trace["lr"]``, though ``trace.lr`` works as well. Arrays are float64, counts and steps integers; they are
    cached until ``refresh()`` and read-only. Lag k stands at index k - 1; lags that were not recorded are NaN.

    No file handle is open between reads, so that a trace never blocks a writer.

    Args:
        path: the file.

    Attributes:
        path: the file.
        identity: its device and inode.
        status: ``"finished"``, ``"live"`` (a writer has it now) or ``"crashed"``, as of the last refresh.
        attributes: root attributes; ``"configuration"`` decoded from JSON.
        step: ``(n,)`` int64, strictly increasing; ``len(trace)`` is n.
        lags: the lags of the window, 1 to ``window``.
        layer_lags: the lags recorded per layer.
        layers: names of the layers.
        scalars: names of the scalars that the trainer gave.

    Raises:
        AttributeError: a name that the trace does not have; the message lists close ones.
        KeyError: the same, of ``trace[name]``.
        TraceDamagedError: a field cannot be read; names the field and the file.
        ValueError: the trace is closed.
    """

    path: Path
    status: Literal["finished", "live", "crashed"]
    attributes: dict[str, Any]
    lags: IntArray
    layer_lags: IntArray
    layers: tuple[str, ...]
    scalars: tuple[str, ...]

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.identity = identity(self.path)
        self._closed = False
        self.refresh()

    def refresh(self) -> None:
        """Read new rows of a live run, and its status; arrays are read again when next asked for.

        Raises:
            OSError: the file is gone, or another one has replaced it.
        """
        self._check_open()
        # Asked before the file is opened: a run that ends in between is called live, never crashed.
        live = is_being_written(self.path)
        current = contents(self.path, self.identity)
        self.status = "finished" if current.attributes.get(FINISHED) else "live" if live else "crashed"
        self.attributes, self.layers = current.attributes, current.layers
        self.step, self.lags = _frozen(current.step), _frozen(current.lags)
        self.layer_lags = _frozen(current.layer_lags)
        self.scalars = tuple(n for n in current.dims if n not in reserved_names())
        self._dims = current.dims
        self._cache: dict[tuple[str, int | None], np.ndarray] = {(STEP, None): self.step}

    @property
    def window(self) -> int:
        """The largest lag."""
        return len(self.lags)

    @property
    def names(self) -> tuple[str, ...]:
        """All recorded and derived fields that this trace has."""
        derived = (n for n, (field, prefix) in _DERIVED.items() if all(prefix + i in self._dims for i in INPUTS[field]))
        return (*self._dims, *derived)

    def dims(self, name: str) -> tuple[str, ...]:
        """Names of an array's dimensions, such as ``("step", "layer", "lag")``."""
        if name in _DERIVED:
            field, prefix = _DERIVED[name]
            return self.dims(prefix + INPUTS[field][0])
        return tuple(LAG if d == LAYER_LAG else d for d in self._dims[name])

    def __len__(self) -> int:
        return len(self.step)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self:
            raise KeyError(self._unknown(name))
        return self._array(name)

    if not TYPE_CHECKING:  # a type checker would take every misspelled field for one

        def __getattr__(self, name: str) -> np.ndarray:
            if name.startswith("_"):  # asked for by copy, pickle and the like, also before __init__
                raise AttributeError(name)
            if name not in self:
                raise AttributeError(self._unknown(name))
            return self[name]

    def __dir__(self) -> Iterable[str]:
        return {*super().__dir__(), *self.names}

    def __repr__(self) -> str:
        steps = f" ({self.step[0]} to {self.step[-1]})" if len(self) else ""
        return (
            f"<Trace {self.path}: {self.status}, {len(self)} steps{steps}, "
            f"{len(self.layers)} layers, window {self.window}>"
        )

    def layer(self, name: str) -> LayerView:
        """Return a view of one layer: ``trace.layer("blocks.3").lag_cosine`` is (step, lag). Reads that layer alone.

        Args:
            name: one of ``layers``.

        Raises:
            KeyError: no such layer; lists close names.
        """
        if name not in self.layers:
            raise KeyError(f"{self.path}: no layer {name!r}; {suggest(name, self.layers)}")
        return LayerView(self, name)

    def to_xarray(self) -> xarray.Dataset:
        """Return everything recorded and derived, in memory, with coordinates, units and formulas; times as datetimes.

        Raises:
            ImportError: xarray is not installed.
        """
        from fastgeom.trace.labelled import to_xarray

        arrays = {name: (self.dims(name), self[name]) for name in self.names}
        coordinates: dict[str, np.ndarray | list[str]] = {STEP: self.step, LAG: self.lags, LAYER: list(self.layers)}
        return to_xarray(self.path, self.identity, arrays, coordinates, self.attributes)

    def close(self) -> None:
        """Stop reading: arrays that were not read before cannot be read any more."""
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _array(self, name: str, layer: int | None = None) -> np.ndarray:
        """Return a field that the trace has, of one layer or of all, read or computed once."""
        if (name, layer) not in self._cache:
            if (name, None) in self._cache:
                array = self._cache[name, None][:, layer]
            elif name in self._dims:
                array = self._read(name, layer)
            else:
                field, prefix = _DERIVED[name]
                inputs = {i: self._array(prefix + i, layer) for i in INPUTS[field]}
                array = derive(field, inputs, self.step)
            self._cache[name, layer] = _frozen(array)
        return self._cache[name, layer]

    def _read(self, name: str, layer: int | None = None) -> np.ndarray:
        """Read the complete rows of a field, of one layer or of all; NaN at the lags that were not recorded."""
        self._check_open()
        rows = slice(len(self))
        with opened(self.path, self.identity) as file:
            array = read(file, name, (rows,) if layer is None else (rows, layer), self.path)
        if len(array) != len(self):
            raise TraceDamagedError(f"{self.path}: dataset {name!r}: expected {len(self)} rows, got {len(array)}")
        if self._dims[name][-1] != LAYER_LAG:
            return array
        every_lag = np.full((*array.shape[:-1], self.window), np.nan)
        every_lag[..., self.layer_lags - 1] = array
        return every_lag

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"{self.path}: the trace is closed")

    def _unknown(self, name: str) -> str:
        if name in reserved_names():
            return f"{self.path}: this run did not record {name!r}"
        return f"{self.path}: a trace has no {name!r}; {suggest(name, sorted(dir(self)))}"


def _frozen(array: np.ndarray) -> np.ndarray:
    """Make an array read-only, since the trace hands out the one in its cache."""
    array.flags.writeable = False
    return array
