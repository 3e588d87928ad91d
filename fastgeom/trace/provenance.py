"""Provenance of a trace, as far as it can be known without torch."""

from __future__ import annotations

import platform
import shlex
import socket
import subprocess
import sys
from datetime import UTC, datetime

import h5py
import numpy as np

from fastgeom._version import __version__
from fastgeom.schema import SCHEMA_VERSION


def provenance() -> dict[str, str | int]:
    """Versions, command line, machine and time, as root attributes of a trace.

    ``git_commit`` is that of the working directory, with ``-dirty`` where tracked files differ; it is left out where
    there is none. ``argv`` is quoted for a shell.
    """
    facts: dict[str, str | int] = {
        "schema_version": SCHEMA_VERSION,
        "fastgeom_version": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "hostname": socket.gethostname(),
        "argv": shlex.join(sys.argv),
        "python_version": platform.python_version(),
        "numpy_version": np.__version__,
        "h5py_version": h5py.version.version,
        "hdf5_version": h5py.version.hdf5_version,
    }
    commit = _git_commit()
    return facts | ({"git_commit": commit} if commit else {})


def _git_commit() -> str:
    command = ["git", "--no-optional-locks", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):  # no git here, or a work tree too slow to look at
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
