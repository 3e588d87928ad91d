"""The settings that figures share, so that they share runs: a row a network and data set, tried out on other seeds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from reproductions.common.configuration import Configuration
from reproductions.common.reproduction import Effort


@dataclass(frozen=True)
class Setting:
    """How a network is trained on a data set.

    Attributes:
        n_examples: how many of the data set.
        large: a rate at which the run reaches the edge of stability early; steps: how many are taken at it.
        small: a rate at which it does not, or late; small_steps: how many are taken at it.
        loss: ``"cross-entropy"`` or ``"mse"``.
    """

    n_examples: int
    large: float
    steps: int
    small: float
    small_steps: int
    loss: str = "cross-entropy"


SETTINGS: dict[tuple[str, str], Setting] = {
    ("mlp", "digits"): Setting(1797, 0.2, 600, 0.05, 1200, "mse"),
    ("cnn", "digits"): Setting(1000, 0.1, 300, 0.025, 900),
    ("vgg", "digits"): Setting(1000, 0.0125, 400, 0.003, 800),
    ("resnet", "digits"): Setting(1000, 0.1, 300, 0.025, 600),
    ("resnet-bn", "digits"): Setting(1000, 0.4, 300, 0.1, 300),
    ("mlp", "mnist5k"): Setting(1000, 0.08, 600, 0.06, 800, "mse"),
    ("cnn", "mnist5k"): Setting(1000, 0.05, 400, 0.02, 800),
    ("vgg", "mnist5k"): Setting(500, 0.025, 300, 0.00625, 600),
    ("resnet", "mnist5k"): Setting(500, 0.1, 300, 0.025, 500),
    ("resnet-bn", "mnist5k"): Setting(500, 0.4, 300, 0.1, 300),
    ("plain", "mnist5k"): Setting(500, 0.1, 300, 0.025, 500),
    ("plain-bn", "mnist5k"): Setting(500, 0.4, 300, 0.1, 300),
    ("transformer", "text"): Setting(200, 0.1, 300, 0.025, 300),
}

QUICK = Setting(100, 0.1, 30, 0.02, 30)
FULL = Setting(5000, 0.02, 1000, 0.005, 2000)
FULL_NETWORK = {"mlp": "vgg11", "cnn": "vgg11", "vgg": "vgg11", "plain": "vgg11", "plain-bn": "resnet18",
                "resnet": "resnet18", "resnet-bn": "resnet18", "transformer": "resnet18"}  # fmt: skip
"""What stands for a small network with --full."""


def reference(
    effort: Effort, seed: int, network: str = "cnn", data: str = "mnist5k", *, rate: str = "large", **changes: Any
) -> Configuration:
    """The shared run of a network on a data set, at its large or at its small rate.

    Args:
        effort: ``"quick"`` trains a few steps on a few of the 8×8 digits (or sequences), ``"full"`` its counterpart
            among ResNet-18 and VGG-11 on 5,000 images of CIFAR-10, on a CUDA card.
        seed: of the run.
        network: a name of ``models.NETWORKS``; data: a name of ``data.NAMES``.
        rate: ``"large"`` or ``"small"``.
        changes: fields of the configuration that differ.
    """
    if effort == "default":
        setting = SETTINGS[network, data]
    elif effort == "quick":
        setting, data = QUICK, "text" if data == "text" else "digits"
    else:
        setting, network, data = FULL, FULL_NETWORK[network], "cifar10"
    configuration = Configuration(
        data=data,
        n_examples=setting.n_examples,
        network=network,
        lr=setting.large if rate == "large" else setting.small,
        steps=setting.steps if rate == "large" else setting.small_steps,
        seed=seed,
        loss=setting.loss,
        device="cuda" if effort == "full" else "cpu",
    )
    return replace(configuration, **changes)
