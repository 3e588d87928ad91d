"""One run: a network trained as its configuration says, measured at every step, kept under its name."""

from __future__ import annotations

import contextlib
import platform
import re
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError
from torch import Tensor, nn

import fastgeom
from fastgeom import analysis
from reproductions.common.batches import BatchProbes, batches
from reproductions.common.configuration import Configuration, Restart
from reproductions.common.data import Examples, load
from reproductions.common.descent import add_batch_gradient, add_full_batch_gradient, loss_pieces
from reproductions.common.models import build, count_parameters
from reproductions.common.runs import (
    SKETCH_WINDOW,
    RunError,
    TrainingRun,
    claimed,
    find,
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
    """Make a run: trace, record and whatever arrays the configuration asks for.

    One thread computes, so that the numbers do not hang on how many cores a machine has, and several runs share them.
    Where another process is making this very run, it is waited for.

    Raises:
        DataNotFoundError: the data set is not there.
        RunError: the run that this one restarts from is missing, or a trace could not be written; nothing is recorded.
        OSError: a file cannot be written.
    """
    with claimed(configuration, folder):
        if find(configuration, folder) is None:  # another process may have made it in the meantime
            _train(configuration, folder, report)


def _train(configuration: Configuration, folder: Path, report: Report) -> None:
    started = time.perf_counter()
    with one_thread():
        examples = load(configuration.data, configuration.n_examples).to(configuration.device)
        model = build(configuration.network, examples, configuration.seed).to(configuration.device)
        if configuration.restart is not None:
            put_parameters(model, restart_point(configuration.restart, folder))
        kept = _Kept(configuration, list(model.parameters()))
        diverged_at = _descend(configuration, folder, model, examples, kept=kept, report=report)
    if arrays := kept.arrays():
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
    """What computes: another one rounds differently, and a chaotic run of the same seed is another run there."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    named = re.search(r"^model name\s*: (.*)$", _cpu_description(), re.M)
    model = named[1] if named else platform.processor() or platform.machine()
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}"


def _cpu_description() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def _descend(
    configuration: Configuration, folder: Path, model: nn.Module, examples: Examples, *, kept: _Kept, report: Report
) -> int | None:
    """Train, measured at every step; the first step whose loss was not finite, if there was one."""
    optimizer = OPTIMISERS[configuration.optimiser](model.parameters(), lr=configuration.lr)
    rows = batches(len(examples), configuration.batch, configuration.seed)
    probes = BatchProbes(model, examples, configuration.loss) if configuration.batch_probes else None
    start_vector: np.ndarray | None = None
    with contextlib.ExitStack() as stack:
        probe, *others = [stack.enter_context(made) for made in _probes(configuration, folder, model)]
        for step in range(configuration.steps):
            scalars: dict[str, float | Tensor] = {"lr": configuration.lr}
            kept.before(step)
            top: np.ndarray | None = None
            if configuration.sharpness_every is not None:
                scalars |= dict.fromkeys(("sharpness", "top_cosine"), float("nan"))
                if step % configuration.sharpness_every == 0:
                    with contextlib.suppress(ArpackError):  # the Hessian of a run that diverges is not finite
                        scalars["sharpness"], top = sharpness(
                            list(model.parameters()),
                            lambda: loss_pieces(model, examples, configuration.loss, configuration.micro_batch),
                            start_vector,
                        )
                        start_vector = top
            chosen = next(rows)
            if probes is not None:
                loss = probes.add_gradient(chosen, scalars)
            elif chosen is None:
                loss = add_full_batch_gradient(model, examples, configuration.loss, configuration.micro_batch)
            else:
                loss = add_batch_gradient(model, examples, chosen, configuration.loss)
            if top is not None:
                scalars["top_cosine"] = _cosine(flatten([p.grad for p in model.parameters()]), top)
            statistics = probe.step(loss=loss, **scalars)
            for other in others:
                other.step(loss=loss)
            kept.after()
            optimizer.step()
            optimizer.zero_grad()
            report(step + 1, f"loss {loss:.4f}, c {statistics.lag_cosine[0]:+.3f}")
            if not loss.isfinite():
                return step
    return None


def _cosine(gradient: np.ndarray, top: np.ndarray) -> float:
    """Between the gradient and the top eigenvector, from 0 to 1: the sign of an eigenvector means nothing."""
    length = float(np.linalg.norm(gradient))
    return abs(float(gradient @ top)) / length if length > 0 else float("nan")


def _probes(configuration: Configuration, folder: Path, model: nn.Module) -> Iterator[fastgeom.Probe]:
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


class _Kept:
    """Parameters of some steps and gradients of all, where the configuration asks for them."""

    def __init__(self, configuration: Configuration, parameters: list[nn.Parameter]) -> None:
        self.every = configuration.checkpoint_every
        self.keep_gradients = configuration.keep_gradients
        self.parameters = parameters
        self.steps: list[int] = []
        self.checkpoints: list[np.ndarray] = []
        self.gradients: list[np.ndarray] = []

    def before(self, step: int) -> None:
        if self.every is not None and step % self.every == 0:
            self.steps.append(step)
            self.checkpoints.append(flatten(self.parameters))

    def after(self) -> None:
        if self.keep_gradients:
            self.gradients.append(flatten([parameter.grad for parameter in self.parameters]))

    def arrays(self) -> dict[str, np.ndarray]:
        """What was kept, under the names that ``TrainingRun.arrays`` gives it."""
        kept: dict[str, np.ndarray] = {}
        if self.every is not None:
            kept |= {"checkpoint_steps": np.asarray(self.steps), "checkpoints": np.stack(self.checkpoints)}
        if self.keep_gradients:
            kept["gradients"] = np.stack(self.gradients)
        return kept


def flatten(tensors: list[Any]) -> np.ndarray:
    """All numbers of a list of tensors in one float32 array."""
    return np.concatenate([tensor.detach().cpu().reshape(-1).numpy() for tensor in tensors])


def put_parameters(model: nn.Module, values: np.ndarray) -> None:
    """Set all parameters of a network to what ``flatten`` made of them."""
    start = 0
    with torch.no_grad():
        for parameter in model.parameters():
            piece = torch.from_numpy(values[start : start + parameter.numel()])
            parameter.copy_(piece.reshape(parameter.shape))
            start += parameter.numel()


def restart_point(restart: Restart, folder: Path) -> np.ndarray:
    """The parameters that a restarted run begins with, as ``Restart`` defines them."""
    parent = find(restart.parent, folder)
    if parent is None:
        raise RunError(f"{trace_path(restart.parent, folder)}: expected the finished run to restart from, got none")
    return parent.arrays["checkpoints"][restart_index(restart, parent)]


def restart_index(restart: Restart, parent: TrainingRun) -> int:
    """Which checkpoint of the parent that is."""
    steps = parent.arrays["checkpoint_steps"]
    inside = longest_kept(parent.labels(restart.theta), analysis.ZIGZAG, steps)
    if len(inside):
        return int(inside[len(inside) // 2])
    return int(np.flatnonzero(steps < max(parent.end, 1))[-1])


def longest_kept(labels: np.ndarray, label: int, steps: np.ndarray) -> np.ndarray:
    """Which checkpoints lie inside the longest stretch of a label that has any, the first of several such.

    Args:
        labels: of every step, shape (step,).
        label: of the stretch.
        steps: of every checkpoint, shape (checkpoint,).

    Returns:
        Numbers of checkpoints, increasing; empty where no stretch has any.
    """
    stretches = [part for part in analysis.stretches(labels) if part.label == label]
    for stretch in sorted(stretches, key=lambda part: -part.length):
        inside = np.flatnonzero((steps >= stretch.start) & (steps < stretch.stop))
        if len(inside):
            return inside
    return np.zeros(0, np.int64)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread, and with as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
