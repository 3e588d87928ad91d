"""The tensors of a gradient: equal ones, or those of networks that people train."""

import math
from collections.abc import Callable, Iterator

Shape = tuple[int, ...]

_ALIGNED = 8
"""Equal tensors are a multiple of so many elements, so that each begins at 16 bytes, as torch's own do."""


def gpt2_small() -> Iterator[Shape]:
    """GPT-2 small, 124,439,808 parameters in 148 tensors; the head is the embedding."""
    d = 768
    yield from [(50257, d), (1024, d)]
    for _ in range(12):
        yield from [(d,), (d,), (d, 3 * d), (3 * d,), (d, d), (d,), (d,), (d,)]
        yield from [(d, 4 * d), (4 * d,), (4 * d, d), (d,)]
    yield from [(d,), (d,)]


def llama3_8b(blocks: int = 32) -> Iterator[Shape]:
    """Llama-3-8B, 8,030,261,248 parameters at its full depth of 32 blocks."""
    vocabulary, d, inner, keys = 128256, 4096, 14336, 1024
    yield (vocabulary, d)
    for _ in range(blocks):
        yield from [(d, d), (keys, d), (keys, d), (d, d), (inner, d), (inner, d), (d, inner), (d,), (d,)]
    yield from [(d,), (vocabulary, d)]


def resnet50() -> Iterator[Shape]:
    """ResNet-50, 25,557,032 parameters in 161 tensors."""

    def convolution(out: int, into: int, size: int) -> Iterator[Shape]:
        yield from [(out, into, size, size), (out,), (out,)]  # and its batch norm

    yield from convolution(64, 3, 7)
    into = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            yield from convolution(width, into, 1)
            yield from convolution(width, width, 3)
            yield from convolution(4 * width, width, 1)
            if block == 0:
                yield from convolution(4 * width, into, 1)
            into = 4 * width
    yield from [(1000, 2048), (1000,)]


GPT2, LLAMA, RESNET = "GPT-2 small", "Llama-3-8B, 1 block", "ResNet-50"
LISTS: dict[str, Callable[[], Iterator[Shape]]] = {
    GPT2: gpt2_small,
    LLAMA: lambda: llama3_8b(1),
    RESNET: resnet50,
}


def total(name: str) -> int:
    """Elements of a list."""
    return sum(map(math.prod, LISTS[name]()))


def numels(tensors: int | str, elements: int) -> list[int]:
    """Elements of each tensor.

    Args:
        tensors: how many equal ones, or the name of a list.
        elements: about how many in all; a list that has more is made smaller, every tensor in proportion.
    """
    if isinstance(tensors, int):
        return [_aligned(elements // tensors)] * tensors
    sizes = [math.prod(shape) for shape in LISTS[tensors]()]
    count = sum(sizes)
    return sizes if count <= elements else [_aligned(size * elements // count) for size in sizes]


def _aligned(size: int) -> int:
    return max(_ALIGNED, size // _ALIGNED * _ALIGNED)
