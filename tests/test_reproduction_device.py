"""Runs on the device at hand, a card where there is one: what --full trains, and everything a run can keep."""

from pathlib import Path

import numpy as np
import pytest
import torch

from reproductions.common import pool
from reproductions.common.configuration import Configuration, Restart
from reproductions.common.runs import Run, find


def made(folder: Path, **fields: object) -> Run:
    settings = {"n_examples": 20, "lr": 0.05, "steps": 3, "seed": 0, "window": 2} | fields
    configuration = Configuration(**settings)
    pool.finish([configuration], folder, workers=1)
    run = find(configuration, folder)
    assert run is not None
    return run


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with twenty made-up photographs where CIFAR-10 would be."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "cifar10.npz", x_train=pixels, y_train=np.arange(20) % 10)
    monkeypatch.setenv("FASTGEOM_DATA", str(tmp_path))


@pytest.mark.usefixtures("cifar")
@pytest.mark.parametrize("network", ["resnet18", "vgg11"])
def test_networks_of_full_train(network: str, device: torch.device, tmp_path: Path) -> None:
    run = made(tmp_path, data="cifar10", network=network, micro_batch=10, device=device.type)
    assert run.end == 3 and np.isfinite(run.cosine[1:]).all()
    assert run.trace.attributes["device"].startswith(device.type)


def test_everything_a_run_can_keep(device: torch.device, tmp_path: Path) -> None:
    run = made(
        tmp_path, data="digits", network="cnn", steps=4, sharpness_every=2, checkpoint_every=1, keep_gradients=True,
        sketch=128, device=device.type,
    )  # fmt: skip
    assert np.isfinite(run.trace["sharpness"]).tolist() == [True, False, True, False]
    moved = np.diff(run.arrays["checkpoints"].astype(np.float64), axis=0)
    np.testing.assert_allclose(moved, -0.05 * run.arrays["gradients"][:-1].astype(np.float64), atol=1e-6)
    assert run.sketches.sketch.shape == (4, 128)


@pytest.mark.parametrize("optimiser", ["gd", "momentum", "adam"])
def test_mini_batches_with_probes(optimiser: str, device: torch.device, tmp_path: Path) -> None:
    run = made(
        tmp_path, data="digits", network="cnn", optimiser=optimiser, batch=10, batch_probes=True, device=device.type
    )
    assert np.isfinite(run.trace.half_dot).all() and np.isfinite(run.trace.same_batch_cosine[1:]).all()


def test_restart_on_the_device(device: torch.device, tmp_path: Path) -> None:
    parent = Configuration(
        data="digits", n_examples=20, network="mlp", lr=0.05, steps=3, seed=0, window=2, checkpoint_every=1,
        device=device.type,
    )  # fmt: skip
    run = made(tmp_path, data="digits", network="mlp", restart=Restart(parent), checkpoint_every=1, device=device.type)
    kept = find(parent, tmp_path)
    assert kept is not None
    np.testing.assert_array_equal(run.arrays["checkpoints"][0], kept.arrays["checkpoints"][-1])
