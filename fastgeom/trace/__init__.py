"""Write and read traces: one run's measurements in HDF5, written row by row, read at any time, without torch."""

from fastgeom.trace.errors import TraceDamagedError, TraceFormatError, TraceLockedError
from fastgeom.trace.layer_view import LayerView
from fastgeom.trace.lock import is_being_written
from fastgeom.trace.reader import Trace, open_trace
from fastgeom.trace.writer import TraceWriter

__all__ = [
    "LayerView",
    "Trace",
    "TraceDamagedError",
    "TraceFormatError",
    "TraceLockedError",
    "TraceWriter",
    "is_being_written",
    "open_trace",
]
