"""What people put into a training loop to watch its gradients.

Each monitor is made from a model and a folder for what it writes, is told the loss after every backward pass and before
the optimizer, and is closed, when it writes what is left. None changes the training. ``name`` is how it stands in a
table.
"""

import os
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from bench.peers.available import PEERS, load

WINDOW = 16
"""Past gradients that are remembered, where any are."""


class GlobalNorm:
    """The norm of all gradients by torch, read back and written down each step."""

    name = "global norm, read back"

    def __init__(self, model: nn.Module, folder: Path) -> None:
        self._model, self._file = model, (folder / "norm.csv").open("w", encoding="ascii")

    def step(self, loss: Tensor) -> None:
        """Write the loss and the norm."""
        self._write(loss.item(), torch.nn.utils.get_total_norm(_gradients(self._model)).item())

    def close(self) -> None:
        """Finish the table."""
        self._file.close()

    def _write(self, *values: float) -> None:
        self._file.write(",".join(map(repr, values)) + "\n")


class ParameterNorms(GlobalNorm):
    """The norm of each parameter's gradient, read back and written down each step: Lightning's ``grad_norm``."""

    name = "norm of each parameter, read back"

    def step(self, loss: Tensor) -> None:
        """Write the loss, the norm of each gradient and the norm of all."""
        norms = [g.norm().item() for g in _gradients(self._model)]
        self._write(loss.item(), *norms, torch.tensor(norms).norm().item())


def _gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


class LeanWindow:
    """Dots with the W gradients before and the norm, in the fewest bytes that torch's own calls can move.

    A ring of W + 1 flat gradients: one concatenation into it, one matrix-vector product, one norm. Results stay on the
    device and are written at the end, so that nothing waits. Overall, not by layer.
    """

    name = "cat(out=) + mv + norm, W = 16"

    def __init__(self, model: nn.Module, folder: Path) -> None:
        self._model, self._path = model, folder / "dots.npy"
        self._ring: Tensor | None = None
        self._rows: list[Tensor] = []

    def step(self, loss: Tensor) -> None:
        """Store the gradient, and keep its products with all rows of the ring, its norm and the loss."""
        flat = [g.reshape(-1) for g in _gradients(self._model)]
        if self._ring is None:
            self._ring = flat[0].new_zeros(WINDOW + 1, sum(map(len, flat)))
        row = self._ring[len(self._rows) % (WINDOW + 1)]
        torch.cat(flat, out=row)
        self._rows.append(torch.cat([torch.mv(self._ring, row), torch.linalg.vector_norm(row)[None], loss[None]]))

    def close(self) -> None:
        """Write a row a step: dots with the gradients 1, 2, … W steps before (0 where none was), its norm, the loss."""
        rows = torch.stack(self._rows).double().cpu().numpy()
        lags = np.arange(1, WINDOW + 1)
        slots = (np.arange(len(rows))[:, None] - lags) % (WINDOW + 1)
        np.save(self._path, np.hstack([np.take_along_axis(rows[:, : WINDOW + 1], slots, 1), rows[:, WINDOW + 1 :]]))


class NumpyWindow(GlobalNorm):
    """Dots with the W gradients before, as the script behind a paper does it: a list of flat numpy arrays."""

    name = "list of numpy arrays, W = 16"

    def __init__(self, model: nn.Module, folder: Path) -> None:
        super().__init__(model, folder)
        self._past: list[np.ndarray] = []

    def step(self, loss: Tensor) -> None:
        """Write the loss, the norm and the dots with the gradients 1, 2, … W steps before."""
        flat = np.concatenate([g.float().cpu().numpy().ravel() for g in _gradients(self._model)])
        dots = [float(np.dot(flat, past)) for past in self._past]
        self._write(loss.item(), float(np.linalg.norm(flat)), *dots)
        self._past = [flat, *self._past[: WINDOW - 1]]


class TensorBoard:
    """A histogram of each parameter's gradient and the loss, each step, in TensorBoard's event file."""

    name = "TensorBoard, a histogram of each gradient"

    def __init__(self, model: nn.Module, folder: Path) -> None:
        load("tensorboard", "tensorboard", PEERS)
        writer = load("torch.utils.tensorboard", "tensorboard", PEERS)
        self._model, self._writer, self._step = model, writer.SummaryWriter(folder), 0

    def step(self, loss: Tensor) -> None:
        """Add the histograms and the loss."""
        for name, parameter in self._model.named_parameters():
            if parameter.grad is not None:
                self._writer.add_histogram(f"gradients/{name}", parameter.grad, self._step)
        self._writer.add_scalar("loss", loss.item(), self._step)
        self._step += 1

    def close(self) -> None:
        """Write what waits."""
        self._writer.close()


class WeightsAndBiases:
    """``wandb.watch(model, log="gradients", log_freq=1)``, offline: a histogram of each gradient, and the loss.

    Its hooks measure in the backward pass, into the one run that a process has: one at a time. It writes through a
    process of its own, which ends with `close`.
    """

    name = "wandb.watch, a histogram of each gradient"

    def __init__(self, model: nn.Module, folder: Path) -> None:
        folders = {f"WANDB_{kind}_DIR": str(folder / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
        with patch.dict(os.environ, folders, WANDB_ERROR_REPORTING="false"):
            self._wandb = load("wandb", "wandb", PEERS)
            settings = self._wandb.Settings(
                silent=True, console="off", disable_git=True, x_disable_stats=True, x_disable_meta=True
            )
            self._run = self._wandb.init(mode="offline", project="bench", dir=str(folder), settings=settings)
        self._model = model
        self._run.watch(model, log="gradients", log_freq=1)

    def step(self, loss: Tensor) -> None:
        """Log the loss, and with it what the hooks have measured."""
        self._run.log({"loss": loss.item()})

    def close(self) -> None:
        """Remove the hooks, end the run and the process."""
        self._run.unwatch(self._model)
        self._run.finish()
        self._wandb.teardown()


class Cockpit:
    """Cockpit (Schneider, Dangel, Hennig 2021): norm of each gradient, size of each update, distance from the start.

    These come of the gradient alone. Its other instruments need the gradient of every example, for which BackPACK
    extends the backward pass of some kinds of layer: they are left out. It imports ``pkg_resources``, which setuptools
    has up to version 80.
    """

    name = "Cockpit, its first-order quantities"

    def __init__(self, model: nn.Module, folder: Path) -> None:
        install = (
            "pip install --no-deps cockpit-for-pytorch backpack-for-pytorch, and what they import, 'setuptools<81'"
        )
        cockpit = load("cockpit", "cockpit-for-pytorch", install)
        quantities = load("cockpit.quantities", "cockpit-for-pytorch", install)
        every = load("cockpit.utils.schedules", "cockpit-for-pytorch", install).linear(1)
        chosen = [kind(every) for kind in (quantities.GradNorm, quantities.UpdateSize, quantities.Distance)]
        self._cockpit = cockpit.Cockpit(model.parameters(), quantities=chosen)
        self._path, self._step = folder / "cockpit", 0

    def step(self, loss: Tensor) -> None:
        """Track the quantities; the gradients are there, so that nothing is left to do inside the context."""
        with self._cockpit(self._step, info={"loss": loss}):
            pass
        self._step += 1

    def close(self) -> None:
        """Write what was tracked."""
        self._cockpit.write(str(self._path))


MONITORS = (GlobalNorm, ParameterNorms, LeanWindow, NumpyWindow, TensorBoard, WeightsAndBiases, Cockpit)
