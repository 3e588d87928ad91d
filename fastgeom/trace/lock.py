"""Lock of a trace, which has one writer: a file beside it, locked with flock(2).

HDF5's own lock comes too late: mode ``"w"`` of a second process truncates the file before it looks, and a file in SWMR
mode is not locked at all. The kernel frees the lock on ``run.h5.lock`` however its holder dies; the content, pid and
host, is for the error message only.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
import weakref
from pathlib import Path

from fastgeom.trace.errors import TraceLockedError

# A reader that asks whether a trace is live holds the lock, shared, for microseconds: no reason to refuse a writer.
_ATTEMPTS, _PAUSE_S = 10, 0.01

_open_locks: weakref.WeakSet[WriterLock] = weakref.WeakSet()


class WriterLock:
    """Exclusive lock of the writer of one trace, from construction to ``release()``.

    Args:
        path: the trace; two names of one file (links, relative paths) share a lock.

    Raises:
        TraceLockedError: another writer, of this process or of another, has the lock; names the trace, pid and host.
        OSError: the folder is missing, is no folder, or may not be written; names the folder. Or the name is too long
            (errno ENAMETOOLONG).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = _lock_path(path)
        for attempt in range(1, _ATTEMPTS + 1):
            fd = self._open()
            if _try_lock(fd, fcntl.LOCK_EX):
                if _is_at(fd, self.path):
                    break
            elif attempt == _ATTEMPTS:
                holder = _describe(fd)
                os.close(fd)
                raise TraceLockedError(
                    f"{os.fspath(path)}: expected a trace that nobody is writing, but {holder} is writing it; "
                    "give this run another path, or end that one"
                )
            else:
                time.sleep(_PAUSE_S)
            os.close(fd)
        else:
            raise TraceLockedError(f"{os.fspath(path)}: other writers keep taking and leaving the lock {self.path}")
        self._fd = fd
        os.ftruncate(fd, 0)
        os.write(fd, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        _open_locks.add(self)

    def _open(self) -> int:
        folder = self.path.parent
        if not folder.is_dir():
            kind = NotADirectoryError if folder.exists() else FileNotFoundError
            raise kind(f"expected an existing folder for the trace, got {folder}")
        try:
            return os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                size = len(os.fsencode(self.path.name))
                message = f"expected a shorter name for the trace: that of its lock, {size} bytes, is too long"
                raise OSError(errno.ENAMETOOLONG, message, str(self.path)) from error
            raise type(error)(f"expected a folder that can be written, got {folder}: {error}") from error

    def release(self) -> None:
        """Release the lock and remove its file; a second call does nothing."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        try:
            if _is_at(fd, self.path):
                self.path.unlink()
        finally:
            os.close(fd)


def is_being_written(path: str | os.PathLike[str]) -> bool:
    """Whether a writer, in this process or another on this machine, has the trace locked now. Writes nothing."""
    try:
        fd = os.open(_lock_path(path), os.O_RDONLY)
    except OSError:  # no lock file, or one that is not for us to read
        return False
    try:
        return not _try_lock(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)


def _lock_path(path: str | os.PathLike[str]) -> Path:
    return Path(os.path.realpath(path) + ".lock")


def _try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(fd: int, path: Path) -> bool:
    """Whether the open file still has that name: a holder removes it on release."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _describe(fd: int) -> str:
    try:
        holder = json.loads(os.pread(fd, 4096, 0))
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError, TypeError):  # taken a moment ago: nothing written yet
        return "another process"


def _forget_in_child() -> None:
    """Close inherited locks: a forked data-loader worker that outlives its killed trainer must not keep its lock."""
    for lock in list(_open_locks):
        if lock._fd >= 0:
            os.close(lock._fd)
            lock._fd = -1


os.register_at_fork(after_in_child=_forget_in_child)
