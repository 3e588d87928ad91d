"""Networks small enough that a full-batch gradient takes a fraction of a second on two cores."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import nn

WIDTHS = (8, 16, 16)


def small_cnn(
    image_shape: tuple[int, ...], n_classes: int, *, seed: int, widths: tuple[int, ...] = WIDTHS
) -> nn.Module:
    """Build a stack of 3 by 3 convolutions of stride 2, ReLU after each, and one linear layer; no normalisation.

    Args:
        image_shape: (channels, height, width).
        n_classes: outputs of the linear layer.
        seed: seed of torch's generator, from which the default initialisation draws.
        widths: output channels of each convolution.
    """
    torch.manual_seed(seed)
    channels, height, width = image_shape
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (n_in, n_out) in enumerate(pairwise((channels, *widths)), start=1):
        layers[f"conv{number}"] = nn.Conv2d(n_in, n_out, kernel_size=3, stride=2, padding=1)
        layers[f"relu{number}"] = nn.ReLU()
        height, width = (height + 1) // 2, (width + 1) // 2
    layers["flatten"] = nn.Flatten()
    layers["linear"] = nn.Linear(widths[-1] * height * width, n_classes)
    return nn.Sequential(layers).to(memory_format=torch.channels_last)


def count_parameters(model: nn.Module) -> int:
    """Count what is trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
