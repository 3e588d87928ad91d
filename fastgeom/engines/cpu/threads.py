"""Run a compiled loop over chunks on as many threads as torch uses."""

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
_SHARES_PER_THREAD, _SHARE_READS = 4, 1 << 24
"""Shares for each thread, or as many as take some milliseconds each: a thread that is done first waits for the last."""


@lru_cache(maxsize=1)
def _threads(count: int, process: int) -> ThreadPoolExecutor:
    """The worker threads; ``process`` is part of the key because a forked child has none of its parent's."""
    return ThreadPoolExecutor(count, thread_name_prefix="fastgeom-cpu")


def run_chunks(loop: Callable[..., None], chunks: Ints, cost: Ints, *arguments: object) -> None:
    """Run ``loop(some_chunks, *arguments)`` until every chunk is done, on as many threads as torch uses.

    Args:
        loop: a compiled function that releases the GIL; what it writes for one chunk no other chunk touches.
        chunks: indices, handed out in shares of about equal cost.
        cost: (chunk,) element reads of each.
        arguments: passed on to every call.
    """
    count = torch.get_num_threads()
    total = int(cost.sum())
    if count == 1 or total < SERIAL_ELEMENTS:
        loop(chunks, *arguments)
        return
    n_shares = min(len(chunks), max(count * _SHARES_PER_THREAD, total // _SHARE_READS))
    cuts = np.searchsorted(np.cumsum(cost), total * np.arange(1, n_shares) / n_shares)
    shares = iter(np.split(chunks, np.unique(cuts)))

    def work() -> None:
        for share in shares:
            loop(share, *arguments)

    others = [_threads(count - 1, os.getpid()).submit(work) for _ in range(count - 1)]
    try:
        work()
    finally:
        wait(others)  # whatever happens here: they read memory that is the caller's
    for other in others:
        other.result()
