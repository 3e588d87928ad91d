"""Settings that figures share, so that they share runs: one of each network and data set, tuned on other seeds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from reproductions.common.configuration import Configuration
from reproductions.common.request import Effort


@dataclass(frozen=True)
class Setting:
    """How a network is trained on a data set.

    Attributes:
        n_examples: how many of the data set.
        lr: a rate at which the run reaches the edge of stability early.
        steps: how many are taken.
        loss: ``"cross-entropy"`` or ``"mse"``.
    """

    n_examples: int
    lr: float
    steps: int
    loss: str = "cross-entropy"


SETTINGS: dict[tuple[str, str], Setting] = {
    ("mlp", "digits"): Setting(1797, 0.2, 600, "mse"),
    ("cnn", "digits"): Setting(1000, 0.1, 300),
    ("vgg", "digits"): Setting(1000, 0.0125, 400),
    ("resnet", "digits"): Setting(1000, 0.1, 300),
    ("resnet-bn", "digits"): Setting(1000, 0.4, 300),
    ("mlp", "mnist5k"): Setting(1000, 0.08, 600, "mse"),
    ("cnn", "mnist5k"): Setting(1000, 0.05, 400),
    ("vgg", "mnist5k"): Setting(500, 0.025, 300),
    ("resnet", "mnist5k"): Setting(500, 0.1, 300),
    ("resnet-bn", "mnist5k"): Setting(500, 0.4, 300),
    ("transformer", "text"): Setting(200, 0.1, 300),
}

QUICK = Setting(100, 0.1, 20)
FULL = Setting(5000, 0.02, 1000)
FULL_NETWORK = {
    "mlp": "vgg11",
    "cnn": "vgg11",
    "vgg": "vgg11",
    "resnet": "resnet18",
    "resnet-bn": "resnet18",
}
"""The network that replaces a small one with --full."""


def reference(effort: Effort, seed: int, network: str = "cnn", data: str = "mnist5k", **changes: Any) -> Configuration:
    """Configure the shared run of a network on a data set.

    Args:
        effort: ``"quick"`` trains a few steps on a few of the 8×8 digits (or sequences), ``"full"`` its counterpart
            among ResNet-18 and VGG-11 on 5,000 images of CIFAR-10, on a CUDA card.
        seed: of the run.
        network: a name of ``models.NETWORKS``.
        data: a name of ``data.NAMES``.
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
        lr=setting.lr,
        steps=setting.steps,
        seed=seed,
        loss=setting.loss,
        device="cuda" if effort == "full" else "cpu",
    )
    return replace(configuration, **changes)
