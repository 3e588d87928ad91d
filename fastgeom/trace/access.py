"""Open a trace file and read from it, with errors that name the file, what was expected and what came."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5f, h5o, h5p

from fastgeom.schema import BUCKET, LAG, LAYER, LAYER_LAG, SCHEMA_VERSION, STEP
from fastgeom.trace.errors import HDF5_ERRORS, TraceDamagedError, TraceFormatError
from fastgeom.trace.file import CHECKSUM, CONFIGURATION, DIMENSIONS, FORMAT, LAYOUT_BYTES, names_checksum
from fastgeom.trace.lock import is_being_written
from fastgeom.trace.old_names import rename_configuration

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_SWMR_SUPERBLOCK = 3
# In SWMR mode HDF5 reads metadata whose checksum is wrong again, since a writer may be at it: 100 times by default, and
# pauses 2^n ns after the n-th, so that a damaged file would hang its reader for ever. 24 times take 25 ms. The call is
# missing in h5py.
_READ_ATTEMPTS = 24

FileIdentity = tuple[int, int]


def identity(path: Path) -> FileIdentity:
    """Return device and inode of the file that has this name now.

    Args:
        path: the trace.

    Raises:
        FileNotFoundError: no such file; the message tells where a writer has the lock but no row yet.
        IsADirectoryError: a folder.
    """
    try:
        status = path.stat()
    except FileNotFoundError as error:
        waiting = "; a run that will write it has not measured a step yet" if is_being_written(path) else ""
        raise FileNotFoundError(f"expected a trace file, got no file at {path}{waiting}") from error
    if path.is_dir():
        raise IsADirectoryError(f"expected a trace file, got the folder {path}")
    return status.st_dev, status.st_ino


@contextmanager
def opened(path: Path, expected: FileIdentity) -> Iterator[h5py.File]:
    """Open a trace for reading in SWMR mode, the only one that opens live files and those of killed runs as they are.

    Args:
        path: the trace.
        expected: its identity when it was first opened.

    Yields:
        The HDF5 file, closed at the end.

    Raises:
        TraceFormatError: no HDF5, no fastgeom trace, or a newer schema.
        TraceDamagedError: HDF5 whose structure cannot be read.
        OSError: the file is missing, may not be read, or is not the expected one any more.
    """
    if identity(path) != expected:
        raise OSError(f"{path}: another file has taken the place of the trace since it was opened; open it again")
    _check_head(path)
    try:
        file = _open_swmr(path)
    except PermissionError:
        raise
    except HDF5_ERRORS as error:
        raise TraceDamagedError(f"{path}: expected a readable trace, but its HDF5 is damaged: {error}") from error
    with file:
        _check_format(file, path)
        yield file


@dataclass(frozen=True)
class Contents:
    """Contents of a trace without its large arrays.

    Attributes:
        attributes: root attributes as Python values, the configuration decoded.
        dims: recorded fields, and the names of their dimensions in the file.
        lags: lags of the window.
        layer_lags: lags recorded per layer; all of them in a file without ``layer_lag``.
        layers: names of the layers.
        step: steps of the complete rows, ``(n,)``.
    """

    attributes: dict[str, Any]
    dims: dict[str, tuple[str, ...]]
    lags: np.ndarray
    layer_lags: np.ndarray
    layers: tuple[str, ...]
    step: np.ndarray


def contents(path: Path, expected: FileIdentity) -> Contents:
    """Read the present contents of a trace; errors as of ``opened`` and ``read``."""
    with opened(path, expected) as file:
        # Read first: what is read later is cut to the rows whose step is in the file by now, for those are complete.
        step = read(file, STEP, (slice(None),), path)
        try:
            attributes = {name: _python_value(value) for name, value in file.attrs.items()}
            if CONFIGURATION in attributes:
                attributes[CONFIGURATION] = rename_configuration(json.loads(attributes[CONFIGURATION]))
            recorded = [name for name in file if name not in (LAG, LAYER, LAYER_LAG, BUCKET)]
            dims = {name: tuple(file[name].attrs[DIMENSIONS].decode().split()) for name in recorded}
            lags = file[LAG][:] if LAG in file else np.empty(0, np.int64)
            layer_lags = file[LAYER_LAG][:] if LAYER_LAG in file else lags
            layers = tuple(file[LAYER].asstr()[:]) if LAYER in file else ()
            if layers and file[LAYER].attrs[CHECKSUM] != names_checksum(layers):
                raise ValueError(f"the names of the layers, {layers}, do not have their checksum")
        except HDF5_ERRORS as error:
            raise TraceDamagedError(f"{path}: expected readable attributes and coordinates: {error}") from error
    return Contents(attributes, dims, lags, layer_lags, layers, step)


def read(file: h5py.File, name: str, selection: tuple[slice | int, ...], path: Path) -> np.ndarray:
    """Read ``file[name][selection]``.

    Args:
        file: an open trace.
        name: a dataset of it.
        selection: rows, and what of them.
        path: the file, for the message of an error.

    Raises:
        TraceDamagedError: a chunk whose checksum is wrong; names the dataset and the file.
    """
    try:
        return np.asarray(file[name][selection])
    except HDF5_ERRORS as error:
        raise TraceDamagedError(f"{path}: dataset {name!r} is damaged on disk and cannot be read: {error}") from error


def _open_swmr(path: Path) -> h5py.File:
    access = h5p.create(h5p.FILE_ACCESS)
    access.set_fclose_degree(h5f.CLOSE_STRONG)
    set_read_attempts = getattr(ctypes.CDLL(h5p.__file__), "H5Pset_metadata_read_attempts", None)
    if set_read_attempts is not None:  # None: an h5py that holds HDF5 without its symbols
        set_read_attempts.argtypes = [ctypes.c_int64, ctypes.c_uint]
        with h5o.phil:
            set_read_attempts(access.id, _READ_ATTEMPTS)
    try:
        return h5py.File(h5f.open(os.fsencode(path), h5f.ACC_RDONLY | h5f.ACC_SWMR_READ, access))
    except OSError:
        # Where this process has the finished file open already, as xarray does, HDF5 wants the same mode again.
        with suppress(OSError):
            return h5py.File(path, "r")
        raise


def _check_head(path: Path) -> None:
    with path.open("rb") as raw:
        head = raw.read(len(_HDF5_SIGNATURE) + 1)
    if not head.startswith(_HDF5_SIGNATURE):
        came = f"one that begins with {head!r}" if head else "an empty file"
        raise TraceFormatError(f"{path}: expected a fastgeom trace (an HDF5 file), got {came}")
    if len(head) > len(_HDF5_SIGNATURE) and head[-1] != _SWMR_SUPERBLOCK:
        raise TraceFormatError(f"{path}: expected a fastgeom trace, got another HDF5 file (superblock {head[-1]})")


def _check_format(file: h5py.File, path: Path) -> None:
    try:
        # Before any text: HDF5 keeps texts in a heap without checksum, and loops for ever in one that is cut off.
        size, layout = path.stat().st_size, int(file.attrs.get(LAYOUT_BYTES, 0))
        if size < layout:
            raise TraceDamagedError(f"{path}: expected at least {layout} bytes, got a file truncated to {size}")
        format_name, version = file.attrs.get("format"), file.attrs.get("schema_version")
        names = list(file)
    except TraceDamagedError:
        raise
    except HDF5_ERRORS as error:
        raise TraceDamagedError(f"{path}: expected readable HDF5 attributes: {error}") from error
    if format_name != FORMAT:
        raise TraceFormatError(
            f"{path}: expected a fastgeom trace (attribute format = {FORMAT!r}), got an HDF5 file with "
            f"{', '.join(names[:8]) or 'nothing in it'}"
        )
    if not isinstance(version, int | np.integer) or version > SCHEMA_VERSION:
        raise TraceFormatError(
            f"{path}: expected a trace of schema version at most {SCHEMA_VERSION}, got {version}; update fastgeom"
        )


def _python_value(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
