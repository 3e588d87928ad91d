"""Errors of a trace file for which Python has no built-in one."""

from __future__ import annotations


class TraceLockedError(OSError):
    """Another writer has the lock of the trace file, which was not touched."""


class TraceFormatError(ValueError):
    """The file is no fastgeom trace, or one that a newer fastgeom wrote."""


class TraceDamagedError(OSError):
    """A part of the trace cannot be read: its checksum or its structure is wrong on disk."""


HDF5_ERRORS = (OSError, RuntimeError, ValueError, KeyError)
"""Errors that h5py raises for a failure inside HDF5: it chooses by HDF5's minor error code, which varies."""
