"""Rows whose every value is a function of the step, so that a reader can tell a right value from a wrong one.

Run as ``python -m tests.trace.rows PATH`` it is a training process that writes them: see ``main``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import h5py
import numpy as np

from fastgeom.schema import LAYER_LAG, Field, recorded_fields
from fastgeom.trace import Trace, TraceWriter
from fastgeom.trace import writer as trace_writer

ROOT = Path(__file__).resolve().parent.parent.parent
LAYERS = ("stem", "blocks.0", "blocks.1")
WINDOW = 8
STEERED = ("wall_time", "lag_dot", "layer_next_grad_dot_update", "step")
"""The datasets of a chunk after which a steered writer waits: the first, in the middle, the last, the commit mark."""
PROVENANCE = {"configuration": '{"window": 8, "layers": "module"}', "device": "cpu"}


def coordinates(
    layers: Sequence[str] = LAYERS, window: int = WINDOW, layer_lags: Sequence[int] | None = None
) -> dict[str, np.ndarray | Sequence[str]]:
    some = {} if layer_lags is None else {LAYER_LAG: np.array(layer_lags)}
    return {"lag": np.arange(1, window + 1), "layer": layers, **some}


def fields(*, layer_lags: Sequence[int] | None = None, scalars: Sequence[str] = ("loss", "lr")) -> tuple[Field, ...]:
    return recorded_fields(track_updates=True, scalars=scalars, all_layer_lags=layer_lags is None)


def row(step: int, all_fields: Iterable[Field], along: dict[str, np.ndarray | Sequence[str]]) -> dict[str, np.ndarray]:
    """Exact in float64, different for every field, index and step."""
    values = {}
    for number, field in enumerate(all_fields):
        shape = tuple(len(along[dim]) for dim in field.dims[1:])
        index = np.arange(int(np.prod(shape, dtype=int))).reshape(shape)
        if np.dtype(field.dtype).kind == "f":
            values[field.name] = step + 1 + number / 64 + index / 2**20
        else:
            values[field.name] = (step * 7 + number + index).astype(np.int64) % 128
    values["step"] = np.int64(step)
    del values["rows_dropped"]
    return values


def write(path: Path, steps: Iterable[int], layer_lags: Sequence[int] | None = None) -> None:
    all_fields, along = fields(layer_lags=layer_lags), coordinates(layer_lags=layer_lags)
    writer = TraceWriter(path)
    writer.create(all_fields, along, PROVENANCE)
    for step in steps:
        writer.append(row(step, all_fields, along))
    writer.close()


def assert_right(trace: Trace) -> None:
    """Every recorded value of every row is that of its step."""
    all_fields, along = fields(), coordinates()
    arrays = {f.name: trace[f.name] for f in reversed(all_fields)}  # at once: a live run has no time to catch up
    expected = [row(int(step), all_fields, along) for step in trace.step]
    for field in all_fields:
        if field.name != "rows_dropped":
            got = arrays[field.name]
            assert got.shape == (len(trace), *(len(along[dim]) for dim in field.dims[1:])), field.name
            if len(trace):
                np.testing.assert_array_equal(got, np.stack([r[field.name] for r in expected]), err_msg=field.name)


def start(*arguments: object) -> subprocess.Popen[str]:
    """This module as a process of its own; what it prints can be read from its stdout, ``--steered`` from its stdin."""
    command = [sys.executable, "-W", "error", "-m", "tests.trace.rows", *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def run_python(code: str, *arguments: object) -> str:
    """Output of the code in a fresh interpreter, which must end well."""
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def main() -> None:
    """Writes rows and prints the number of acknowledged rows whenever it grows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("path")
    parser.add_argument("--mode", default="x")
    parser.add_argument("--rows", type=int, default=10**9)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds after each chunk")
    parser.add_argument("--slow", type=float, default=0.0, help="seconds between two datasets of a chunk")
    parser.add_argument(
        "--steered", action="store_true", help="wait for a line after each dataset of STEERED and each chunk"
    )
    parser.add_argument("--hold", action="store_true", help="after the rows, keep the trace open until killed")
    parser.add_argument("--worker", action="store_true", help="fork a child that outlives this process")
    arguments = parser.parse_args()
    all_fields, along = fields(), coordinates()
    extend = trace_writer._extend

    def slowly(dataset: h5py.Dataset, rows: np.ndarray, first: int, end: int) -> None:
        extend(dataset, rows, first, end)
        time.sleep(arguments.slow)
        if arguments.steered and (name := dataset.name.lstrip("/")) in STEERED:
            print(name, flush=True)
            sys.stdin.readline()

    trace_writer._extend = slowly
    writer = TraceWriter(arguments.path, arguments.mode)
    if arguments.worker and (worker := os.fork()) == 0:
        time.sleep(60)
        os._exit(0)
    if arguments.worker:
        print("worker", worker, flush=True)
    writer.create(all_fields, along, PROVENANCE)
    acknowledged = 0
    for step in range(arguments.rows):
        writer.append(row(step, all_fields, along))
        if writer.rows_written > acknowledged:
            acknowledged = writer.rows_written
            print(acknowledged, flush=True)
            time.sleep(arguments.pause)
            if arguments.steered:
                sys.stdin.readline()
    if arguments.hold:
        print("held", flush=True)
        time.sleep(60)
    writer.close()
    print("closed", flush=True)


if __name__ == "__main__":
    main()
