"""Partial sums on the device, and their sums by layer, in a fixed order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastgeom.engines.triton.device import to_device
from fastgeom.engines.triton.tables import PartialRows, segment_tables
from fastgeom.kernels.reduce import launch_reduce


class LayerSums:
    """Matrices of partial sums whose rows belong to layers, and their reduction: rows → segments → layers.

    Args:
        launches: for each matrix, the rows of each launch that writes to it.
        layers: number of layers.
        n_columns: columns, at most.
        device: where the matrices are.
        dtypes: dtype of each matrix; float64 by default.
    """

    def __init__(
        self,
        launches: list[list[PartialRows]],
        layers: int,
        n_columns: int,
        device: torch.device,
        dtypes: Sequence[torch.dtype] | None = None,
    ) -> None:
        segments, by_layer = segment_tables(launches, layers)
        self._layers = layers
        self._n_rows = [max((rows.end for rows in several), default=0) for several in launches]
        self._n_segments = int(by_layer[1, -1])
        self._segment_tables = [to_device(s, device) for s in segments]
        self._layer_table = to_device(by_layer, device)
        self._matrices = [
            torch.zeros(n * n_columns, dtype=dtype, device=device)
            for n, dtype in zip(self._n_rows, dtypes or [torch.float64] * len(launches), strict=True)
        ]
        self._segments = torch.zeros(self._n_segments * n_columns, dtype=torch.float64, device=device)

    def rows(self, matrix: int, n_columns: int) -> Tensor:
        """(row, n_columns), contiguous, not initialised: the partial sums of one matrix."""
        return _first(self._matrices[matrix], self._n_rows[matrix], n_columns)

    def totals(self, n_columns: int, *, max_column: int = -1) -> Tensor:
        """(layer + 1, n_columns) float64; the last row is over all layers. One column may be a maximum instead."""
        segments = _first(self._segments, self._n_segments, n_columns)
        for matrix, table in enumerate(self._segment_tables):
            launch_reduce(self.rows(matrix, n_columns), table, segments, max_column=max_column)
        totals = segments.new_empty(self._layers + 1, n_columns)
        launch_reduce(segments, self._layer_table, totals, max_column=max_column)
        return totals


def _first(memory: Tensor, n_rows: int, n_columns: int) -> Tensor:
    return memory[: n_rows * n_columns].view(n_rows, n_columns)
