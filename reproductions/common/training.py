"""Train one run as its configuration says, and measure every step."""

from __future__ import annotations

import contextlib
import platform
import re
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError
from torch import Tensor, nn

import fastgeom
from reproductions.common.batches import BatchProbes, batches
from reproductions.common.checkpoints import flatten, restart_point, set_parameters
from reproductions.common.configuration import Configuration
from reproductions.common.data import Examples, load
from reproductions.common.descent import add_batch_gradient, add_full_batch_gradient, loss_terms
from reproductions.common.models import build, count_parameters
from reproductions.common.runs import (
    SKETCH_WINDOW,
    TrainingRun,
    find,
    lock_run,
    sketch_path,
    trace_path,
    write_arrays,
    write_record,
)
from reproductions.common.sharpness import sharpness

MOMENTUM = 0.9
OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "gd": torch.optim.SGD,
    "momentum": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=MOMENTUM),
    "adam": torch.optim.Adam,
}
SKETCH_SIZE = 2**18

Report = Callable[[int, str], object]
"""Called after each step with the number of steps done and a line on how it goes."""


def train(configuration: Configuration, folder: Path, report: Report) -> None:
    """Make a run: its trace, its record, and the arrays that the configuration asks for.

    One thread computes, so that the numbers do not depend on how many cores a machine has, and several runs share them.
    Where another process is making this run, it is waited for.

    Args:
        configuration: of the run.
        folder: where its files are stored.
        report: called after each step.

    Raises:
        DataNotFoundError: the data set is not there.
        RunError: the run that this one restarts from is missing, or a trace could not be written; nothing is recorded.
        OSError: a file cannot be written.
    """
    with lock_run(configuration, folder):
        if find(configuration, folder) is None:  # another process may have made it in the meantime
            _train(configuration, folder, report)


def _train(configuration: Configuration, folder: Path, report: Report) -> None:
    started = time.perf_counter()
    with one_thread():
        examples = load(configuration.data, configuration.n_examples).to(configuration.device)
        model = build(configuration.network, examples, configuration.seed).to(configuration.device)
        if configuration.restart is not None:
            set_parameters(model, restart_point(configuration.restart, folder))
        recorder = _StateRecorder(configuration, list(model.parameters()))
        diverged_at = _descend(configuration, folder, model, examples, recorder=recorder, report=report)
    if arrays := recorder.arrays():
        write_arrays(configuration, folder, arrays)
    run = TrainingRun(
        configuration,
        folder,
        n_parameters=count_parameters(model),
        seconds=round(time.perf_counter() - started, 2),
        diverged_at=diverged_at,
        versions={name: metadata.version(name) for name in ("torch", "numpy", "numba")}
        | {"fastgeom": fastgeom.__version__, "python": platform.python_version()},
        processor=processor(configuration.device),
    )
    run.check()
    write_record(run)


def processor(device: str) -> str:
    """Name the processor: another one rounds differently, and so a chaotic run of the same seed differs there."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    match = re.search(r"^model name\s*: (.*)$", _cpu_description(), re.M)
    model = match[1] if match else platform.processor() or platform.machine()
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}"


def _cpu_description() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def _descend(
    configuration: Configuration,
    folder: Path,
    model: nn.Module,
    examples: Examples,
    *,
    recorder: _StateRecorder,
    report: Report,
) -> int | None:
    """Train and measure every step; return the first step whose loss was not finite, None if all were."""
    optimizer = OPTIMISERS[configuration.optimiser](model.parameters(), lr=configuration.lr)
    rows = batches(len(examples), configuration.batch, configuration.seed)
    batch_probes = BatchProbes(model, examples, configuration.loss) if configuration.batch_probes else None
    start_vector: np.ndarray | None = None
    with contextlib.ExitStack() as stack:
        probe, *other_probes = map(stack.enter_context, _open_probes(configuration, folder, model))
        for step in range(configuration.steps):
            scalars: dict[str, float | Tensor] = {"lr": configuration.lr}
            recorder.record_parameters(step)
            top_vector: np.ndarray | None = None
            if configuration.sharpness_every is not None:
                scalars |= dict.fromkeys(("sharpness", "top_cosine"), float("nan"))
                if step % configuration.sharpness_every == 0:
                    with contextlib.suppress(ArpackError):  # the Hessian of a run that diverges is not finite
                        scalars["sharpness"], top_vector = sharpness(
                            list(model.parameters()),
                            lambda: loss_terms(model, examples, configuration.loss, configuration.micro_batch),
                            start_vector,
                        )
                        start_vector = top_vector
            batch_rows = next(rows)
            if batch_probes is not None:
                loss = batch_probes.add_gradient(batch_rows, scalars)
            elif batch_rows is None:
                loss = add_full_batch_gradient(model, examples, configuration.loss, configuration.micro_batch)
            else:
                loss = add_batch_gradient(model, examples, batch_rows, configuration.loss)
            if top_vector is not None:
                scalars["top_cosine"] = _cosine(flatten([p.grad for p in model.parameters()]), top_vector)
            statistics = probe.step(loss=loss, **scalars)
            for other_probe in other_probes:
                other_probe.step(loss=loss)
            recorder.record_gradients()
            optimizer.step()
            optimizer.zero_grad()
            report(step + 1, f"loss {loss:.4f}, c {statistics.lag_cosine[0]:+.3f}")
            if not loss.isfinite():
                return step
    return None


def _cosine(gradient: np.ndarray, top_vector: np.ndarray) -> float:
    """Absolute cosine of the gradient and the top eigenvector, whose sign is arbitrary."""
    length = float(np.linalg.norm(gradient))
    return abs(float(gradient @ top_vector)) / length if length > 0 else float("nan")


def _open_probes(configuration: Configuration, folder: Path, model: nn.Module) -> Iterator[fastgeom.Probe]:
    yield fastgeom.Probe(
        model,
        window=configuration.window,
        history=fastgeom.Exact(),
        trace=trace_path(configuration, folder),
        trace_mode="w",
        track_updates=True,
    )
    if configuration.sketch is not None:
        yield fastgeom.Probe(
            model,
            window=SKETCH_WINDOW,
            history=fastgeom.Sketch(SKETCH_SIZE, stored_size=configuration.sketch),
            trace=sketch_path(configuration, folder),
            trace_mode="w",
        )


class _StateRecorder:
    """Records the parameters of some steps and the gradients of all, where the configuration asks for them."""

    def __init__(self, configuration: Configuration, parameters: list[nn.Parameter]) -> None:
        self.every = configuration.checkpoint_every
        self.with_gradients = configuration.keep_gradients
        self.parameters = parameters
        self.steps: list[int] = []
        self.checkpoints: list[np.ndarray] = []
        self.gradients: list[np.ndarray] = []

    def record_parameters(self, step: int) -> None:
        if self.every is not None and step % self.every == 0:
            self.steps.append(step)
            self.checkpoints.append(flatten(self.parameters))

    def record_gradients(self) -> None:
        if self.with_gradients:
            self.gradients.append(flatten([parameter.grad for parameter in self.parameters]))

    def arrays(self) -> dict[str, np.ndarray]:
        """What was recorded, under the names of ``TrainingRun.arrays``."""
        arrays: dict[str, np.ndarray] = {}
        if self.every is not None:
            arrays |= {"checkpoint_steps": np.asarray(self.steps), "checkpoints": np.stack(self.checkpoints)}
        if self.with_gradients:
            arrays["gradients"] = np.stack(self.gradients)
        return arrays


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread of torch, and restore the number of threads afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
