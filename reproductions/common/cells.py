"""The networks × data sets that figures compare, each run at its large rate and shared by all of them."""

from __future__ import annotations

from reproductions.common.configuration import Configuration
from reproductions.common.reproduction import Effort
from reproductions.common.settings import reference

IMAGE_NETWORKS = ("mlp", "cnn", "vgg", "resnet", "resnet-bn")

CELLS = {
    "quick": [("mlp", "digits"), ("cnn", "digits"), ("resnet", "digits"), ("transformer", "text")],
    "default": [
        *((network, data) for data in ("digits", "mnist5k") for network in IMAGE_NETWORKS),
        ("transformer", "text"),
    ],
    "full": [("vgg", "cifar10"), ("resnet", "cifar10")],
}
"""Of each effort: network and data set of every cell."""


def cells(effort: Effort, seed: int) -> dict[str, Configuration]:
    """One run a cell, named "network on data set" after what is trained."""
    chosen = [reference(effort, seed, network, data) for network, data in CELLS[effort]]
    return {f"{c.network} on {c.data}": c for c in chosen}
