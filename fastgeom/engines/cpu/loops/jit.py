"""Compile the loops with numba, and cache the compiled code by a digest of all their sources.

numba's own cache notices changes in the file of the cached function only, whereas a loop contains the code of functions
and the values of constants of several files. So the code is kept in a folder named by the digest of these files: what
was compiled from other sources is not found there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from pathlib import Path

from numba import njit
from numba.core.caching import CompileResultCacheImpl, FunctionCache

from fastgeom.layout import count_sketch

_OPTIONS = {"error_model": "numpy", "nogil": True}
_REASSOCIATED = {"reassoc", "contract", "nsz"}

_PREFIX = "fastgeom-"
_FOLDERS = 4
"""Folders of compiled code that stay beside each other: the newest, so that switching branches compiles nothing."""
_DAY_S = 24 * 3600
"""A folder that was written to within a day stays too: another process may be compiling into it."""


def _digest():
    """Digest of every source from which compiled code takes functions or constants; ``None`` if they cannot be read."""
    contents = hashlib.sha256()
    try:
        for source in [*sorted(Path(__file__).parent.glob("*.py")), Path(count_sketch.__file__)]:
            contents.update(f"{source.name}\0".encode() + hashlib.sha256(source.read_bytes()).digest())
    except OSError:
        return None
    return contents.hexdigest()[:16]


_DIGEST = _digest()


class _LoopCacheImpl(CompileResultCacheImpl):
    """numba's cache of one function, in a subfolder of where it would be otherwise.

    Raises:
        RuntimeError: no folder can be written to.
    """

    def __init__(self, py_func):
        super().__init__(py_func)
        folder = Path(self.locator.get_cache_path(), _PREFIX + _DIGEST)
        _make_folder(folder)
        self.locator.get_cache_path = lambda: str(folder)
        self.locator.get_source_stamp = lambda: _DIGEST


class _LoopCache(FunctionCache):
    """numba's cache of a function, for the digest of all loops."""

    _impl_class = _LoopCacheImpl


def _make_folder(folder):
    """Make a folder of compiled code if there is none, and remove the oldest of those beside it."""
    if folder.is_dir():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RuntimeError(f"cannot cache compiled code in {folder}") from error
    with contextlib.suppress(OSError):  # another process removes them too
        for old in sorted(folder.parent.glob(f"{_PREFIX}*"), key=os.path.getmtime)[:-_FOLDERS]:
            if os.path.getmtime(old) < time.time() - _DAY_S:
                shutil.rmtree(old, ignore_errors=True)


def _compile(function, **options):
    dispatcher = njit(**_OPTIONS, **options)(function)
    if _DIGEST is not None:
        with contextlib.suppress(RuntimeError):  # no folder can be written to: the code stays in memory
            dispatcher._cache = _LoopCache(function)
    return dispatcher


def exact(function):
    """Compile a function whose floating-point operations are done as they are written."""
    return _compile(function)


def fast(function):
    """Compile a function whose sums may be reordered, and contracted with products."""
    return _compile(function, fastmath=_REASSOCIATED)
