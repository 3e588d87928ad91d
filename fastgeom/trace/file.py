"""Layout of the HDF5 file of a trace, and its creation, complete before the first row."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from math import prod
from pathlib import Path

import h5py
import numpy as np
from h5py import h5f, h5p

from fastgeom.schema import LAYER, STEP, Field
from fastgeom.trace.provenance import provenance

FORMAT = "fastgeom trace"
FINISHED, ROWS_DROPPED, CONFIGURATION = "finished", "rows_dropped", "configuration"
# Read before all else, and therefore neither of them a variable-length text: see access.py.
LAYOUT_BYTES, DIMENSIONS = "layout_bytes", "dimensions"
CHECKSUM = "crc32"

ROWS_PER_CHUNK = 64
MAX_CHUNK_BYTES = 2**20

Coordinates = Mapping[str, np.ndarray | Sequence[str]]

_COORDINATE_NAMES = {
    "lag": "lag: optimiser steps between the two gradients",
    "layer": "layer: group of parameters measured together",
    "bucket": "bucket of the sketch",
    "layer_lag": "lag recorded per layer: optimiser steps between the two gradients",
}


def rows_per_chunk(fields: Sequence[Field], sizes: Mapping[str, int]) -> int:
    """Rows of a chunk: 64, or as many of the largest dataset as fit 1 MiB where that is fewer, and at least one."""
    largest = max(prod(_row_shape(f, sizes)) * np.dtype(f.dtype).itemsize for f in fields)
    return max(1, min(ROWS_PER_CHUNK, MAX_CHUNK_BYTES // max(1, largest)))


def row_buffers(fields: Sequence[Field], sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Allocate one chunk of every field: ``(rows, ...)`` each, filled with the field's fill value."""
    rows = rows_per_chunk(fields, sizes)
    return {f.name: np.full((rows, *_row_shape(f, sizes)), f.fill, f.dtype) for f in fields}


def names_checksum(names: Iterable[str]) -> int:
    """CRC-32 of names without NUL: HDF5 has no checksum of its own for texts of variable length."""
    return zlib.crc32("\0".join(names).encode())


def field_attributes(field: Field) -> dict[str, str]:
    """Attributes of a field's dataset, named as the CF conventions do where they have a name."""
    return {
        "units": field.unit,
        "long_name": field.name.replace("_", " "),
        "formula": field.formula,
        "symbol": field.symbol,
        "source": field.source,
    }


def create_file(
    path: Path, fields: Sequence[Field], coordinates: Coordinates, attributes: Mapping[str, str | int | float]
) -> tuple[h5py.File, dict[str, h5py.Dataset]]:
    """Create a file with every dataset, attribute and dimension scale, and put it in SWMR mode.

    Nothing can be added to it later: what is created in SWMR mode is invisible to open readers and gone after a kill.

    Args:
        path: the file, which does not exist.
        fields: what a row has; ``step`` among them.
        coordinates: values along every dimension of the fields but ``step``.
        attributes: root attributes, beside the provenance.

    Returns:
        The open file, and the dataset of every field by name.
    """
    # HDF5's own lock belongs to every copy of the descriptor: a process forked while the file is made would keep it
    # locked for as long as it lives. Opened again it is locked up to SWMR mode, which unlocks all copies.
    unlocked = _access()
    unlocked.set_file_locking(False, True)
    with h5py.File(h5f.create(os.fsencode(path), h5f.ACC_EXCL, _creation(), unlocked)) as file:
        _lay_out(file, fields, coordinates, provenance() | dict(attributes))
    size = path.stat().st_size
    file = h5py.File(h5f.open(os.fsencode(path), h5f.ACC_RDWR, _access()))
    try:
        file.attrs.modify(LAYOUT_BYTES, np.int64(size))
        datasets = {f.name: file[f.name] for f in fields}
        file.swmr_mode = True
    except BaseException:
        file.close()
        raise
    return file, datasets


def sync(file: h5py.File) -> None:
    """Send what HDF5 has written so far to the disk itself, where a power loss does not reach it.

    Args:
        file: a file that ``create_file`` opened.

    Raises:
        OSError: the disk refuses.
    """
    os.fdatasync(file.id.get_vfd_handle())


def close_synced(file: h5py.File) -> None:
    """Close the file, then sync what closing has written, through a copy of the descriptor that HDF5 closes."""
    fd = os.dup(file.id.get_vfd_handle())
    try:
        file.close()
        os.fdatasync(fd)
    finally:
        os.close(fd)


def sync_folder(folder: Path) -> None:
    """Send the names in a folder to the disk itself, where the folder may be read and its file system can do that.

    Elsewhere it does nothing: the trace is still worth having, and a disk that fails also refuses the syncs of the
    file, which raise.
    """
    with suppress(OSError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _creation() -> h5p.PropFCID:
    creation = h5p.create(h5p.FILE_CREATE)
    creation.set_link_creation_order(h5p.CRT_ORDER_TRACKED | h5p.CRT_ORDER_INDEXED)
    # Attributes stay in the root's object header: one checksummed block, which a live reader sees old or new.
    creation.set_attr_phase_change(2**16 - 1, 0)
    return creation


def _access() -> h5p.PropFAID:
    access = h5p.create(h5p.FILE_ACCESS)
    access.set_fapl_sec2()  # whatever HDF5_DRIVER says: its handle is the file descriptor that sync() needs
    access.set_libver_bounds(h5f.LIBVER_V110, h5f.LIBVER_V110)
    access.set_fclose_degree(h5f.CLOSE_STRONG)
    # No chunk cache: chunks are written whole. By default HDF5 2 would keep the last 8 MiB of every dataset in memory,
    # some 250 MB in all, and h5py takes rdcc_nbytes=0 of create_dataset for "not given".
    access.set_cache(0, 1, 0, 0.75)
    return access


def _lay_out(
    file: h5py.File, fields: Sequence[Field], coordinates: Coordinates, attributes: Mapping[str, str | int | float]
) -> None:
    for name, value in attributes.items():
        file.attrs[name] = value
    file.attrs["format"] = FORMAT
    # Written again later, in place: safe beside live readers, since the size stays the same.
    for name, mark in ((FINISHED, np.int8(0)), (ROWS_DROPPED, np.int64(0)), (LAYOUT_BYTES, np.int64(0))):
        file.attrs[name] = mark
    for name, values in coordinates.items():
        _create_coordinate(file, name, values)
    rows = rows_per_chunk(fields, {name: len(values) for name, values in coordinates.items()})
    for field in fields:
        _create_dataset(file, field, rows)
    file[STEP].make_scale(STEP)
    for field in fields:
        for axis, dim in enumerate(field.dims):
            if field.name != STEP:
                file[field.name].dims[axis].attach_scale(file[dim])


def _create_coordinate(file: h5py.File, name: str, values: np.ndarray | Sequence[str]) -> None:
    if name == LAYER:
        dataset = file.create_dataset(name, data=list(values), dtype=h5py.string_dtype())
        dataset.attrs[CHECKSUM] = np.int64(names_checksum(values))
    else:
        dataset = file.create_dataset(name, data=np.asarray(values, np.int64))
        dataset.attrs["units"] = "1"
    dataset.attrs["long_name"] = _COORDINATE_NAMES.get(name, name)
    dataset.make_scale(name)


def _create_dataset(file: h5py.File, field: Field, rows: int) -> None:
    row_shape = tuple(len(file[dim]) for dim in field.dims[1:])
    dataset = file.create_dataset(
        field.name,
        shape=(0, *row_shape),
        maxshape=(None, *row_shape),
        chunks=_chunk_shape(rows, row_shape, np.dtype(field.dtype).itemsize),
        dtype=field.dtype,
        fillvalue=field.fill,
        fletcher32=True,
    )
    dataset.attrs[DIMENSIONS] = np.bytes_(" ".join(field.dims))
    for name, value in field_attributes(field).items():
        dataset.attrs[name] = value


def _row_shape(field: Field, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(sizes[dim] for dim in field.dims[1:])


def _chunk_shape(rows: int, row_shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Shape of ``rows`` complete rows; where one row alone is larger than a chunk may be, it is cut along axis 0."""
    if not row_shape:
        return (rows,)
    first = max(1, MAX_CHUNK_BYTES // (rows * prod(row_shape[1:]) * itemsize))
    return (rows, min(row_shape[0], first), *row_shape[1:])
