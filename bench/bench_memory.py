"""Memory of a probe beside its ring: the growth of the peak of a process that does nothing else."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastgeom
from bench.common.timing import Bench

MORE_STEPS = 100
"""Steps with a full window."""

MEASURE = """
import sys, torch, fastgeom

def resident_bytes(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

tensors, size, window, track = (int(a) for a in sys.argv[1:5])
layers, folder = sys.argv[5:7]

def run(n_tensors, n_elements, path):
    named = [(f"layer{i}.weight", torch.nn.Parameter(torch.ones(n_elements))) for i in range(n_tensors)]
    for _, p in named:
        p.grad = torch.ones(n_elements)
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
    before = resident_bytes("VmRSS")
    exact = fastgeom.Exact()
    with fastgeom.Probe(
        named, window=window, layers=layers, track_updates=bool(track), trace=path, history=exact
    ) as probe:
        for step in range(window + MORE_STEPS):
            probe.step(loss=1.0)
    return resident_bytes("VmHWM") - before

run(2, 1000, folder + "/warm.h5")  # code, libraries and threads are no part of a probe's memory
print(run(tensors, size, folder + "/run.h5"))
""".replace("MORE_STEPS", str(MORE_STEPS))


@pytest.mark.parametrize(
    "case",
    [(10, 1_000_000, 16, 0, "module"), (10, 1_000_000, 16, 1, "module"), (2000, 1000, 16, 1, "parameter")],
    ids=["large", "large with updates", "2000 small with updates"],
)
def test_memory_beside_the_ring(bench: Bench, tmp_path: Path, case: tuple[int, int, int, int, str]) -> None:
    tensors, size, window, track, layers = case
    if not bench.device.timed:
        size = min(size, 100_000)
    arguments = [str(argument) for argument in (tensors, size, window, track, layers, tmp_path)]
    done = subprocess.run([sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, check=True)
    trace = fastgeom.open_trace(tmp_path / "run.h5")
    assert trace.attributes["rows_dropped"] == 0, "rows that were dropped took no memory"
    np.testing.assert_array_equal(trace.step, np.arange(window + MORE_STEPS))

    ring = tensors * size * 4 * (window + track)
    allowed = 0.02 * ring + 16e6
    excess = int(done.stdout) - ring
    title = f"{tensors:,} tensors of {size:,} elements, W = {window}{', updates' if track else ''}"
    goal = {"what": "MB beside the ring", "value": excess / 1e6, "most": allowed / 1e6}
    bench.record(kind="memory", title=title, ring_bytes=ring, beside_bytes=excess, goals=[goal])
    assert excess <= allowed
    bench.time_once(lambda: None)  # pytest-benchmark warns of a test that times nothing
