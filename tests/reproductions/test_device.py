"""Runs on the device at hand, a card where there is one: what --full trains, and everything a run can keep."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from reproductions.common.configuration import Configuration, Restart
from reproductions.common.runs import find
from tests.reproductions.test_runs import made


@pytest.fixture
def tiny(device: torch.device) -> Configuration:
    return Configuration(
        data="digits", n_examples=20, network="cnn", lr=0.05, steps=3, seed=0, window=2, device=device.type
    )


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with twenty made-up photographs where CIFAR-10 would be."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "cifar10.npz", x_train=pixels, y_train=np.arange(20) % 10)
    monkeypatch.setenv("FASTGEOM_DATA", str(tmp_path))


@pytest.mark.usefixtures("cifar")
@pytest.mark.parametrize("network", ["resnet18", "vgg11"])
def test_networks_of_full_train(network: str, tiny: Configuration, tmp_path: Path) -> None:
    run = made(replace(tiny, data="cifar10", network=network, micro_batch=10), tmp_path)
    assert run.end == 3 and np.isfinite(run.cosine[1:]).all()
    assert run.trace.attributes["device"].startswith(tiny.device)


def test_everything_a_run_can_keep(tiny: Configuration, tmp_path: Path) -> None:
    run = made(replace(tiny, steps=4, sharpness_every=2, checkpoint_every=1, keep_gradients=True, sketch=128), tmp_path)
    assert np.isfinite(run.trace["sharpness"]).tolist() == [True, False, True, False]
    moved = np.diff(run.arrays["checkpoints"].astype(np.float64), axis=0)
    np.testing.assert_allclose(moved, -0.05 * run.arrays["gradients"][:-1].astype(np.float64), atol=1e-6)
    assert run.sketches.sketch.shape == (4, 128)


@pytest.mark.parametrize("optimiser", ["gd", "momentum", "adam"])
def test_mini_batches_with_probes(optimiser: str, tiny: Configuration, tmp_path: Path) -> None:
    run = made(replace(tiny, optimiser=optimiser, batch=10, batch_probes=True), tmp_path)
    assert np.isfinite(run.trace.half_dot).all() and np.isfinite(run.trace.same_batch_cosine[1:]).all()


def test_restart_on_the_device(tiny: Configuration, tmp_path: Path) -> None:
    parent = replace(tiny, network="mlp", checkpoint_every=1)
    run = made(replace(parent, restart=Restart(parent)), tmp_path)
    parent_run = find(parent, tmp_path)
    assert parent_run is not None
    np.testing.assert_array_equal(run.arrays["checkpoints"][0], parent_run.arrays["checkpoints"][-1])
