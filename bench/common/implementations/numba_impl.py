"""The same as one would write it with numba: parallel loops, float32 sums, everything in one vector."""

import numpy as np
import torch
from numba import njit, prange, set_num_threads
from numpy.typing import NDArray
from torch import Tensor

from bench.common.implementations import torch_impl
from bench.common.implementations.base import Work
from bench.common.problem import Problem
from bench.peers.available import Missing

Floats = NDArray[np.float32]

_FAST = {"parallel": True, "fastmath": True, "cache": True}
_TILE = 1 << 14


@njit(**_FAST)
def _sum_sq(x: Floats) -> float:
    total = np.float32(0)
    for i in prange(x.size):
        total += x[i] * x[i]
    return total


@njit(**_FAST)
def _dot(x: Floats, y: Floats) -> float:
    total = np.float32(0)
    for i in prange(x.size):
        total += x[i] * y[i]
    return total


@njit(**_FAST)
def _window(rows: Floats, x: Floats, slot: int) -> tuple[Floats, float]:
    """Dots with all rows and the squared norm, tile by tile, and the gradient stored."""
    tiles = (x.size + _TILE - 1) // _TILE
    partial = np.zeros((tiles, rows.shape[0] + 1), np.float32)
    for tile in prange(tiles):
        begin, end = tile * _TILE, min(x.size, (tile + 1) * _TILE)
        for row in range(rows.shape[0]):
            total = np.float32(0)
            for i in range(begin, end):
                total += rows[row, i] * x[i]
            partial[tile, row] = total
        total = np.float32(0)
        for i in range(begin, end):
            total += x[i] * x[i]
            rows[slot, i] = x[i]
        partial[tile, -1] = total
    return partial.sum(0)[:-1], partial[:, -1].sum()


def norm(problem: Problem) -> Work:
    """Norm of a vector."""
    x = _array(problem, problem.g.flats)
    return torch_impl.check_norm(problem, lambda: _sum_sq(x) ** 0.5)


def dot(problem: Problem) -> Work:
    """Dot of two vectors."""
    x, y = _array(problem, problem.g.flats), _array(problem, problem.second.flats)
    return torch_impl.check_dot(problem, lambda: _dot(x, y))


def window(problem: Problem) -> Work:
    """Dots with all rows, the norm and the store in one pass of tiles that stay in the cache."""
    x = _array(problem, problem.g.flats)
    ring = torch_impl.TorchRing(problem)
    rows = ring.rows.numpy()

    def call() -> tuple[Floats, float]:
        dots, sum_sq = _window(rows, x, ring.slot())
        return dots, sum_sq**0.5

    return ring.work(call)


def _array(problem: Problem, flats: tuple[Tensor, ...]) -> Floats:
    if problem.device.device.type != "cpu":
        raise Missing("numba's loops run on the CPU")
    if [str(flat.dtype) for flat in flats] != ["torch.float32"]:
        raise Missing("numba has no bfloat16, and mixed tensors are not one vector")
    set_num_threads(torch.get_num_threads())
    return flats[0].numpy()
