"""Partial sums of chunks added by layer, in a fixed order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastgeom.layout.chunks import Segments


def reduce_by_layer(add: np.ufunc, partials: NDArray[np.generic], layers: Segments) -> NDArray[np.generic]:
    """Reduce partial results of chunks to layers, in a fixed order.

    Args:
        add: the reduction, ``np.add`` or ``np.maximum``.
        partials: (chunk, ...).
        layers: the chunks of each layer.

    Returns:
        (layer + 1, ...); the last row is over all layers. A layer without chunks is 0.
    """
    reduced = np.zeros((layers.layers + 1, *partials.shape[1:]), partials.dtype)
    if len(layers.order):
        with np.errstate(invalid="ignore", over="ignore"):  # inf - inf in a gradient is data
            gathered = partials[layers.order]
            if len(layers.nonempty) < len(layers.order):
                gathered = add.reduceat(gathered, layers.first, axis=0)
            reduced[layers.nonempty] = gathered
            reduced[-1] = add.reduce(reduced[:-1], axis=0)
    return reduced
