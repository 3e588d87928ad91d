"""Models for the bench of a whole training step, each with an optimizer and one fixed batch."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from reproductions.common.convolutional import small_cnn
from reproductions.common.transformer import Block

_CHARACTERS = 256


@dataclass(frozen=True)
class Training:
    """What a step of training needs.

    Attributes:
        model: its parameters are drawn from seed 0.
        optimizer: over all of them.
        loss: of the fixed batch, with its graph.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[], Tensor]

    @property
    def n_elements(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.model.parameters())


class Gpt(nn.Module):
    """Embedded characters and positions, causal pre-norm blocks, a last norm and one linear layer."""

    def __init__(self, width: int, n_heads: int, n_blocks: int, context: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_CHARACTERS, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*[Block(width, n_heads) for _ in range(n_blocks)])
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, _CHARACTERS)

    def forward(self, characters: Tensor) -> Tensor:
        """Map characters (n, context) to logits (n, context, characters)."""
        return self.linear(self.norm(self.blocks(self.embedding(characters) + self.positions.weight)))


def cnn(device: torch.device, *, small: bool = False) -> Training:
    """The network of the demo, its optimizer, and a batch of as many and as large images: 6,138 parameters."""
    n_images, shape, n_classes = 16 if small else 5000, (1, 28, 28), 10
    model = _drawn(lambda: small_cnn(shape, n_classes), device).to(memory_format=torch.channels_last)
    generator = torch.Generator(device).manual_seed(0)
    images = torch.rand(n_images, *shape, generator=generator, device=device)
    targets = torch.randint(n_classes, (n_images,), generator=generator, device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return Training(model, optimizer, lambda: functional.cross_entropy(model(images), targets))


def gpt_blocks(device: torch.device, *, small: bool = False) -> Training:
    """Four blocks of width 256 over 6 texts of 128 characters: 3.3 million parameters in float32, AdamW."""
    sizes = (16, 2, 2, 8) if small else (256, 8, 4, 128)
    return _gpt(sizes, 2 if small else 6, torch.float32, device)


def one_billion(device: torch.device, *, small: bool = False) -> Training:
    """Twenty blocks of width 2,048 over 4 texts of 1,024 characters: 1.0 billion parameters in bfloat16, AdamW."""
    sizes = (16, 2, 2, 8) if small else (2048, 16, 20, 1024)
    return _gpt(sizes, 2 if small else 4, torch.bfloat16, device)


def _gpt(sizes: tuple[int, int, int, int], n_texts: int, dtype: torch.dtype, device: torch.device) -> Training:
    model = _drawn(lambda: Gpt(*sizes), device).to(dtype)
    generator = torch.Generator(device).manual_seed(0)
    texts = torch.randint(_CHARACTERS, (n_texts, sizes[-1] + 1), generator=generator, device=device)
    inputs, targets = texts[:, :-1], texts[:, 1:].flatten()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    return Training(model, optimizer, lambda: functional.cross_entropy(model(inputs).flatten(0, 1).float(), targets))


def _drawn(make: Callable[[], nn.Module], device: torch.device) -> nn.Module:
    """A module made on the device, its initial weights from seed 0; the generators are as they were afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(0)
        return make()
