"""The networks by name: small ones whose full-batch gradient takes milliseconds on one core, two larger for a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from reproductions.common import convolutional
from reproductions.common.convolutional import ResidualNetwork, Shape
from reproductions.common.data import Examples
from reproductions.common.transformer import Transformer


@dataclass(frozen=True)
class Network:
    """An entry of ``NETWORKS``.

    Attributes:
        caption: what it is, for a figure.
        make: builds it from the shape of an input without the batch, and the number of classes.
        reads: ``"images"`` or ``"text"``.
    """

    caption: str
    make: Callable[[Shape, int], nn.Module]
    reads: str = "images"


NETWORKS = {
    "mlp": Network("MLP: two hidden layers of 64, ReLU, linear", convolutional.mlp),
    "cnn": Network("CNN: 3×3 convolutions of stride 2, 8-16-16 channels, ReLU, linear", convolutional.small_cnn),
    "vgg": Network("VGG-like: pairs of 3×3 convolutions, 8-16-16 channels, ReLU, max pooling", convolutional.vgg),
    "resnet": Network("ResNet: three blocks, 8-16-16 channels, ReLU, no normalisation", ResidualNetwork),
    "resnet-bn": Network(
        "ResNet: three blocks, 8-16-16 channels, ReLU, batch norm", partial(ResidualNetwork, normalise=True)
    ),
    "plain": Network("the ResNet without skips, no normalisation", partial(ResidualNetwork, skips=False)),
    "plain-bn": Network("the ResNet without skips, batch norm", partial(ResidualNetwork, skips=False, normalise=True)),
    "cnn-gelu": Network("the CNN with GELU for ReLU", partial(convolutional.small_cnn, activation=nn.GELU)),
    "transformer": Network("transformer: two pre-norm blocks, width 32, 2 heads, causal", Transformer, reads="text"),
    "resnet18": Network("ResNet-18 for small images: 3×3 stem, batch norm", convolutional.resnet18),
    "vgg11": Network("VGG-11 with one linear layer, no normalisation", convolutional.vgg11),
}


def build(network: str, examples: Examples, seed: int) -> nn.Module:
    """Build a network for ``examples``, on the CPU, with its weights of four dimensions channels last in memory.

    Args:
        network: a key of ``NETWORKS``.
        examples: what it shall read; gives the shape of an input and the number of classes.
        seed: of torch's generator, from which the initial weights are drawn; its state is put back afterwards.

    Raises:
        ValueError: an unknown network, or one that cannot read such examples.
    """
    if network not in NETWORKS:
        raise ValueError(f"network: expected one of {', '.join(NETWORKS)}, got {network!r}")
    kind, row = "images" if examples.are_images else "text", NETWORKS[network]
    if row.reads != kind:
        raise ValueError(f"network {network!r}: expected {row.reads} to read, got {kind} ({examples.name})")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = row.make(tuple(examples.inputs.shape[1:]), examples.n_classes)
    return model.to(memory_format=torch.channels_last)


def describe(network: str) -> str:
    """Caption of a network, a key of ``NETWORKS``."""
    return NETWORKS[network].caption


def count_parameters(model: nn.Module) -> int:
    """Count the trained parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
