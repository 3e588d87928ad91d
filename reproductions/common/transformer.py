"""A small transformer that predicts the next character."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH, N_HEADS = 32, 2


class Block(nn.Module):
    """Causal attention and a two-layer network, each on the normalised sum so far and added to it (pre-norm)."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm1 = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, stream: Tensor) -> Tensor:
        """Map (n, context, width) to the same shape."""
        stream = stream + self.project(self._attend(self.query_key_value(self.norm1(stream))))
        return stream + self.contract(functional.gelu(self.expand(self.norm2(stream))))

    def _attend(self, query_key_value: Tensor) -> Tensor:
        n, context, _ = query_key_value.shape
        query, key, value = query_key_value.view(n, context, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return mixed.transpose(1, 2).reshape(n, context, -1)


class Transformer(nn.Module):
    """Embedded characters and learned positions, causal blocks, a last norm and one linear layer.

    Everything keeps torch's default initialisation, but for embedding and positions: normal with deviation 0.1.

    Args:
        input_shape: (context,).
        n_classes: number of characters.
    """

    def __init__(self, input_shape: tuple[int, ...], n_classes: int) -> None:
        super().__init__()
        (context,) = input_shape
        self.embedding = nn.Embedding(n_classes, WIDTH)
        self.positions = nn.Embedding(context, WIDTH)
        self.block1 = Block(WIDTH, N_HEADS)
        self.block2 = Block(WIDTH, N_HEADS)
        self.norm = nn.LayerNorm(WIDTH)
        self.linear = nn.Linear(WIDTH, n_classes)
        for table in (self.embedding, self.positions):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, characters: Tensor) -> Tensor:
        """Map characters (n, context) to logits (n, context, n_classes) of the next ones."""
        positions = torch.arange(characters.shape[1], device=characters.device)
        stream = self.embedding(characters) + self.positions(positions)
        return self.linear(self.norm(self.block2(self.block1(stream))))
