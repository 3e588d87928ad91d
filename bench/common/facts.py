"""What every result says of the software it was taken with."""

import importlib.metadata
import platform

PACKAGES = ("torch", "triton", "numpy", "numba", "h5py")


def versions() -> dict[str, str]:
    """Of Python and of the packages that measure; empty where one is not there."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = ""
    return found
