"""Work dealt to as many threads as torch uses, and its partial sums gathered in a fixed order."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache

import numpy as np
import torch

from fastgeom.layout.chunks import Ints

SERIAL_ELEMENTS = 1 << 19
"""Below this many element reads a pass costs less than waking a thread."""
_PIECES_PER_THREAD, _PIECE_READS = 4, 1 << 24
"""Pieces for each thread, or as many as take some milliseconds each: a thread that is done first waits for the last."""


@lru_cache(maxsize=1)
def _threads(count: int, process: int) -> ThreadPoolExecutor:
    """The worker threads; ``process`` is part of the key because a forked child has none of its parent's."""
    return ThreadPoolExecutor(count, thread_name_prefix="fastgeom-cpu")


def run_chunks(loop: Callable[..., None], chunks: Ints, cost: Ints, *arguments: object) -> None:
    """Run ``loop`` over pieces of ``chunks`` of about equal cost, on as many threads as torch uses."""
    count = torch.get_num_threads()
    total = int(cost.sum())
    if count == 1 or total < SERIAL_ELEMENTS:
        loop(chunks, *arguments)
        return
    n_pieces = min(len(chunks), max(count * _PIECES_PER_THREAD, total // _PIECE_READS))
    cuts = np.searchsorted(np.cumsum(cost), total * np.arange(1, n_pieces) / n_pieces)
    pieces = iter(np.split(chunks, np.unique(cuts)))

    def work() -> None:
        for piece in pieces:
            loop(piece, *arguments)

    others = [_threads(count - 1, os.getpid()).submit(work) for _ in range(count - 1)]
    try:
        work()
    finally:
        wait(others)  # whatever happens here: they read memory that is the caller's
    for other in others:
        other.result()
