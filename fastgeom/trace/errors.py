"""What can go wrong with a trace file that has no fitting built-in error."""

from __future__ import annotations


class TraceLockedError(OSError):
    """Another writer holds the trace file; nothing of it was touched."""


class TraceFormatError(ValueError):
    """The file is no fastgeom trace, or one that a newer fastgeom wrote."""


class TraceDamagedError(OSError):
    """A part of the trace cannot be read: its checksum or its structure is wrong on disk."""


HDF5_ERRORS = (OSError, RuntimeError, ValueError, KeyError)
"""What h5py makes of a failure inside HDF5: it chooses by HDF5's minor error code, which varies."""
