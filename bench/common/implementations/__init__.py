"""Implementations of the statistics: fastgeom's, and those in torch, in numba and of other packages."""
