"""Runs whole probes on CPU tensors with every launch compiled for a GPU and then not made; prints what was launched.

Run by `test_launching`, in a process where Triton's interpreter is off. The interpreter skips what `JITFunction.run`
does before a launch: it binds and specialises arguments, looks for globals that have changed, compiles.
"""

import collections
import json
import sys

import numpy as np
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import compiler
from triton.runtime import driver

import fastgeom
from fastgeom import probe as probe_module
from fastgeom.engines.triton.engine import TritonEngine
from fastgeom.layout.addresses import AddressTable

launched: collections.Counter[str] = collections.Counter()
compiled: list[str] = []


class NoCard:
    """A driver with a target, a stream, and nothing to launch on."""

    class utils:  # noqa: N801 - the name is Triton's
        """Nothing is loaded."""

    launcher_cls = None

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def map_python_to_cpp_type(self, kind: str) -> str:
        return kind


def pretend() -> None:
    """Let launches count instead of run."""
    driver.set_active(NoCard())
    kernel = compiler.CompiledKernel
    original = kernel.__init__

    def remember(self, source, *arguments):
        original(self, source, *arguments)
        compiled.append(source.fn.__name__)

    kernel.__init__ = remember
    kernel._init_handles = lambda self: None
    kernel.launch_metadata = lambda self, *arguments: None
    kernel.run = property(lambda self: lambda *arguments, **options: launched.update([self.src.fn.__name__]))
    kernel.function, kernel.packed_metadata = 0, None


def steps(dtype: torch.dtype, count: int, *, scaled: bool = False, **options) -> list[int]:
    """A run, ``scaled`` as an optimizer with a gradient scaler is; how many kernels were compiled after each step."""
    scaler = {"grad_scale": torch.tensor(8.0), "found_inf": torch.tensor(0.0)} if scaled else {}
    named = [
        ("large", torch.nn.Parameter(torch.zeros(9000, dtype=dtype))),
        ("small", torch.nn.Parameter(torch.zeros(7))),
    ]
    seen = []
    with fastgeom.Probe(named, backend="triton", track_updates=True, **options) as probe:
        for step in range(count):
            for _, p in named:
                p.grad = torch.ones_like(p)
            probe._step(None, step * step, 1.0, {}, **scaler)
            seen.append(len(compiled))
    return seen


if __name__ == "__main__":
    pretend()
    probe_module.select_engine = lambda backend, device: TritonEngine(device)
    runs = {
        "exact": steps(torch.bfloat16, 4, window=3),
        "kept": steps(torch.float32, 2, window=3, history=fastgeom.Exact(dtype=torch.bfloat16)),
        "deferred": steps(torch.bfloat16, 5, window=16, history=fastgeom.Exact(defer=2)),
        "sketch": steps(
            torch.bfloat16, 3, window=3, history=fastgeom.Sketch(size=1024, stored_size=128), layers="parameter"
        ),
    }
    for name, history in (
        ("exact", fastgeom.Exact()),
        ("deferred", fastgeom.Exact(defer=2)),
        ("sketch", fastgeom.Sketch(1024)),
    ):
        runs[f"{name} scaled"] = steps(torch.bfloat16, 4, scaled=True, window=3, history=history)
    engine, sizes = TritonEngine(torch.device("cpu")), np.array([9000, 7], np.int64)
    tensors = [torch.zeros(n) for n in sizes]
    table = AddressTable(np.array([t.data_ptr() for t in tensors], np.int64), np.zeros(2, np.int8))
    engine.list_moments(sizes, table)
    engine.list_moments(sizes, table, [table, table])
    engine.scale(tensors, torch.tensor(0.5))
    json.dump({"runs": runs, "launched": launched, "compiled": compiled}, sys.stdout)
