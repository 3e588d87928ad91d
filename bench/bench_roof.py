"""How fast this machine multiplies and adds, in the numbers that our sums are taken in: the roofline's flat part."""

import torch

from bench.common.timing import Bench

ROUNDS = 7


def test_compute_roof(bench: Bench) -> None:
    on_cpu = bench.device.device.type == "cpu"
    n, dtype = (1024, torch.float64) if on_cpu else (8192, torch.float32)
    n = n if bench.device.timed else 64
    a, b = (torch.rand(n, n, dtype=dtype, device=bench.device.device) for _ in range(2))
    product = a @ b
    exact = (a[0].double()[:, None] * b.double()).sum(0)
    torch.testing.assert_close(product[0].double(), exact, rtol=1e-4, atol=0)
    what = f"torch.mm, {str(dtype).removeprefix('torch.')}"
    timed = bench.rounds({what: lambda: torch.mm(a, b, out=product)}, rounds=ROUNDS)
    bench.record(kind="roof", gflop_per_s=2 * n**3 / timed.median(what) / 1e9, what=what)
