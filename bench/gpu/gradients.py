"""A list of tensors in one flat memory, filled with normal numbers that can be drawn again."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastgeom.layout import Layout
from fastgeom.tables import DTYPES, AddressTable

_ALIGNED = 8
"""Every tensor is a multiple of so many elements, so that each begins at a multiple of 16 bytes as torch's own do."""


@dataclass(frozen=True)
class Gradients:
    """Tensors that lie one after the other.

    Attributes:
        flat: all elements.
        tensors: views of it.
        located: where they lie.
    """

    flat: Tensor
    tensors: list[Tensor]
    located: AddressTable

    @classmethod
    def random(cls, n_elements: int, n_tensors: int, dtype: torch.dtype, device: torch.device) -> "Gradients":
        """The numbers of seed 0, about ``n_elements`` of them."""
        each = max(_ALIGNED, n_elements // n_tensors // _ALIGNED * _ALIGNED)
        flat = torch.empty(each * n_tensors, dtype=dtype, device=device)
        tensors = list(flat.split(each))
        addresses = np.array([t.data_ptr() for t in tensors], np.int64)
        codes = np.full(n_tensors, DTYPES.index(dtype), np.int8)
        found = cls(flat, tensors, AddressTable(addresses, codes, (flat,)))
        found.draw(0)
        return found

    def draw(self, seed: int) -> None:
        """Fill with the numbers of this seed."""
        fill(self.flat, seed)

    def named(self) -> list[tuple[str, Tensor]]:
        """As a target of a probe: every tensor a layer."""
        return [(f"layer{place}.weight", tensor) for place, tensor in enumerate(self.tensors)]

    def layout(self, groups: str = "layer") -> Layout:
        """As an engine is told of them."""
        return Layout(self.named(), groups)


def fill(flat: Tensor, seed: int) -> None:
    """The normal numbers of this seed, the same for the same size, dtype and device.

    Their mean is one of seven, so that any two seeds but those a multiple of seven apart have dots of their own.
    """
    generator = torch.Generator(flat.device).manual_seed(seed)
    flat.normal_(mean=(seed % 7 - 2.5) / 3, generator=generator)
