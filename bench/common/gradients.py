"""A list of tensors in one flat memory for each dtype, filled with normal numbers that can be drawn again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bench.common.case import MIXED
from fastgeom.layout.addresses import AddressTable
from fastgeom.layout.layout import Layout
from fastgeom.validation import DTYPES


@dataclass(frozen=True)
class Gradients:
    """Tensors that lie one after the other, those of one dtype in one memory.

    Attributes:
        flats: all elements, by dtype.
        tensors: views of them, one-dimensional.
        located: where they lie.
    """

    flats: tuple[Tensor, ...]
    tensors: list[Tensor]
    located: AddressTable

    @classmethod
    def empty(cls, numels: Sequence[int], dtype: str, device: torch.device, *, stored: bool = False) -> "Gradients":
        """Memory for tensors of these sizes; of ``mixed`` ones every second is bfloat16, the others float32.

        With ``stored`` it is allocated as our engines do: on a CPU in huge pages, as numpy asks for them and torch not.
        """
        names = ["float32", "bfloat16"] if dtype == MIXED else [dtype]
        flats, tensors = [], [torch.empty(0)] * len(numels)
        for position, name in enumerate(names):
            mine = range(position, len(numels), len(names))
            count, kind = sum(numels[k] for k in mine), getattr(torch, name)
            if stored and device.type == "cpu":
                flat = torch.from_numpy(np.zeros(count * kind.itemsize, np.uint8)).view(kind)
            else:
                flat = torch.empty(count, dtype=kind, device=device)
            flats.append(flat)
            for k, view in zip(mine, flat.split([numels[k] for k in mine]), strict=True):
                tensors[k] = view
        addresses = np.array([t.data_ptr() for t in tensors], np.int64)
        codes = np.array([DTYPES.index(t.dtype) for t in tensors], np.int8)
        return cls(tuple(flats), tensors, AddressTable(addresses, codes, tuple(flats)))

    @property
    def flat(self) -> Tensor:
        """All elements, where they have one dtype."""
        (flat,) = self.flats
        return flat

    @property
    def n_elements(self) -> int:
        """In all tensors."""
        return sum(flat.numel() for flat in self.flats)

    def draw(self, seed: int) -> "Gradients":
        """Fill with the numbers of this seed."""
        for position, flat in enumerate(self.flats):
            fill(flat, seed + 1000 * position)
        return self

    def ones(self) -> "Gradients":
        """Fill with ones."""
        for flat in self.flats:
            flat.fill_(1.0)
        return self

    def scale(self, factor: float) -> None:
        """Multiply in place."""
        for flat in self.flats:
            flat.mul_(factor)

    def named(self) -> list[tuple[str, Tensor]]:
        """As a target of a probe: every tensor a layer."""
        return [(f"layer{k}.weight", tensor) for k, tensor in enumerate(self.tensors)]

    def layout(self, layers: str = "module") -> Layout:
        """As an engine is told of them."""
        return Layout(self.named(), self.grouping(layers))

    def grouping(self, layers: str) -> str | Callable[[str], str]:
        """As `Layout` takes it; beside its own values "7 layers", each of as many tensors."""
        if not layers.endswith(" layers"):
            return layers
        n_layers = int(layers.removesuffix(" layers"))
        position = {name: k for k, (name, _) in enumerate(self.named())}
        return lambda name: f"block{position[name] * n_layers // len(position)}"


PERIOD = 1_048_583
"""A prime: an element that is left out, or read some power of two away, has another value."""


def fill(flat: Tensor, seed: int) -> None:
    """The normal numbers of this seed, the same for the same size, dtype and device; `PERIOD` of them, over and over.

    Their mean is one of seven, so that any two seeds but those a multiple of seven apart have dots of their own.
    """
    generator = torch.Generator(flat.device).manual_seed(seed)
    first = flat[:PERIOD].normal_(mean=(seed % 7 - 2.5) / 3, generator=generator)
    for chunk in flat[PERIOD:].split(PERIOD):
        chunk.copy_(first[: len(chunk)])
