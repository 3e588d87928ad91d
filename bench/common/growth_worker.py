"""A rank of data-parallel training, as far as its memory goes: ``python -m bench.common.growth_worker ELEMENTS``.

It prints how many bytes a step must move, then makes a step for every line that it reads, and prints its seconds.
"""

import json
import sys
import time

import torch

from bench.common.case import WINDOW, Case
from bench.common.cpu import Cpu
from bench.common.problem import Problem
from bench.common.registry import REGISTRY


def main() -> None:
    """Serve steps until the input ends."""
    torch.set_num_threads(1)
    problem = Problem(Cpu(), Case(WINDOW, int(sys.argv[1]), 16, window=16))
    statistic = REGISTRY[WINDOW]
    work = statistic.implementations[0].build(problem)
    print(json.dumps({"bytes_moved": statistic.bytes_moved(problem)}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        work.call()
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


if __name__ == "__main__":
    main()
