"""Euclidean norm of a list of CUDA tensors, as others compute it in few launches.

None of them is told in the timed call where the tensors lie: lists are grouped and tables are made beforehand, though a
trainer's gradients move from step to step.
"""

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bench.peers.available import PEERS_CUDA, Missing, load, require_card

CHUNK_ELEMENTS = 8192
"""Elements of a program of the pointer-table kernel."""
MOST_INTERPRETED = 100
"""Tensors of a list that the interpreter is given."""
_TILE_ELEMENTS = tl.constexpr(1024)
_TYPES = {torch.float32: tl.float32, torch.float64: tl.float64, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def transformer_engine(tensors: list[Tensor]) -> Callable[[], Tensor]:
    """``multi_tensor_l2norm`` of NVIDIA TransformerEngine: float32 sums, one call for each dtype."""
    optimizers = load("transformer_engine.pytorch.optimizers", "transformer-engine", PEERS_CUDA)
    require_card(tensors)
    return _applied(optimizers.multi_tensor_applier, optimizers.multi_tensor_l2norm, tensors)


def apex(tensors: list[Tensor]) -> Callable[[], Tensor]:
    """``multi_tensor_l2norm`` of NVIDIA Apex: float32 sums, one call for each dtype."""
    source = "build Apex from its source with its CUDA extensions"
    kernels = load("amp_C", "apex", source)
    applier = load("apex.multi_tensor_apply", "apex", source).multi_tensor_applier
    require_card(tensors)
    return _applied(applier, kernels.multi_tensor_l2norm, tensors)


def _applied(applier: Callable[..., Any], operator: Callable[..., Any], tensors: list[Tensor]) -> Callable[[], Tensor]:
    """What applies such an operator: it takes one dtype a call, and no empty tensors."""
    groups = list(_by_dtype(tensors).values())
    overflow = torch.zeros(1, dtype=torch.int32, device=tensors[0].device)

    def call() -> Tensor:
        norms = [applier(operator, overflow, [group], False)[0].reshape(()) for group in groups]
        return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))

    return call


def pointer_table(tensors: list[Tensor]) -> Callable[[], Tensor]:
    """A kernel written as NVIDIA NeMo Automodel's Triton norm (pull request 3685) is described.

    A table of int64 addresses, programs of 8,192 elements that sum 1,024 at a time in float64, a float64 partial sum a
    program, one launch for each dtype, no hint of alignment. On CPU tensors it runs through Triton's interpreter.
    """
    interpreted = not isinstance(_pointer_table_kernel, triton.JITFunction)
    if not interpreted:
        require_card(tensors)
    elif len(tensors) > MOST_INTERPRETED:
        raise Missing(f"Triton's interpreter takes long for more than {MOST_INTERPRETED} tensors")
    groups = [_Group(group) for group in _by_dtype(tensors).values()]

    def call() -> Tensor:
        return torch.stack([group.sum_of_squares() for group in groups]).sum().sqrt()

    return call


class _Group:
    """Tensors of one dtype, and the tables that say where they lie and which program reads what."""

    def __init__(self, tensors: list[Tensor]) -> None:
        for tensor in tensors:
            if not tensor.is_contiguous():
                raise Missing("reads contiguous tensors only")
        device = tensors[0].device
        chunks = [(i, start) for i, t in enumerate(tensors) for start in range(0, t.numel(), CHUNK_ELEMENTS)]
        self._tensors = tensors  # their memory must stay
        self._table = torch.tensor([(t.data_ptr(), t.numel()) for t in tensors], dtype=torch.int64, device=device)
        self._chunks = torch.tensor(chunks, dtype=torch.int64, device=device)
        self._partial = torch.empty(len(chunks), dtype=torch.float64, device=device)

    def sum_of_squares(self) -> Tensor:
        _pointer_table_kernel[(len(self._partial),)](
            self._table, self._chunks, self._partial, _TYPES[self._tensors[0].dtype], CHUNK_ELEMENTS
        )
        return self._partial.sum()


@triton.jit
def _pointer_table_kernel(table_ptr, chunks_ptr, partial_ptr, TYPE: tl.constexpr, CHUNK: tl.constexpr):
    program = tl.program_id(0)
    tensor = tl.load(chunks_ptr + 2 * program)
    start = tl.load(chunks_ptr + 2 * program + 1)
    values_ptr = tl.load(table_ptr + 2 * tensor).to(tl.pointer_type(TYPE))
    length = tl.load(table_ptr + 2 * tensor + 1)
    total = tl.zeros((), tl.float64)
    for tile in range(0, CHUNK, _TILE_ELEMENTS):
        element = start + tile + tl.arange(0, _TILE_ELEMENTS)
        values = tl.load(values_ptr + element, mask=element < length, other=0.0).to(tl.float64)
        total += tl.sum(values * values)
    tl.store(partial_ptr + program, total)


def _by_dtype(tensors: list[Tensor]) -> dict[torch.dtype, list[Tensor]]:
    """Those that are not empty."""
    groups: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.numel():
            groups.setdefault(tensor.dtype, []).append(tensor)
    if not groups:
        raise Missing("needs at least one element")
    return groups


PEERS = {
    "TransformerEngine multi_tensor_l2norm": transformer_engine,
    "Apex multi_tensor_l2norm": apex,
    "pointer table, float64 partials (as NeMo Automodel 3685)": pointer_table,
}
