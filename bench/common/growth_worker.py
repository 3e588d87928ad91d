"""A rank of data-parallel training, as far as its memory goes: ``python -m bench.common.growth_worker ELEMENTS``.

It says how many bytes a step must move, then makes one for every line that it reads, and says how long it took.
"""

import json
import sys
import time

import torch

from bench.common import ours
from bench.common.case import WINDOW, Case
from bench.common.cpu import Cpu
from bench.common.problem import Problem


def main() -> None:
    """Serve steps until the input ends."""
    torch.set_num_threads(1)
    problem = Problem(Cpu(), Case(WINDOW, int(sys.argv[1]), 16, window=16))
    work = ours.window(problem)
    print(json.dumps({"bytes_moved": problem.bytes_moved()}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        work.call()
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


if __name__ == "__main__":
    main()
