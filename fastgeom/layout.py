"""Which tensors are measured, in which layers, and where in memory their elements lie.

A `Layout` is fixed when a probe is made: names, shapes, layers, and a *memory order* for each tensor, the order in
which its elements are paired with those of earlier steps. Where a gradient's strides are those of its parameter (the
normal case) reading it in memory order is reading it from front to back, and nothing is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""What can be measured; the place in this tuple is the dtype's code in an `AddressTable`."""

CHUNK_ELEMENTS = 1 << 16

Ints = NDArray[np.int64]
Grouping = str | Callable[[str], str]


@dataclass(frozen=True)
class ChunkTable:
    """A list of tensors cut into chunks of at most 64 Ki elements; arrays of shape (chunk,)."""

    tensor: Ints
    start: Ints
    length: Ints

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, chunks: Ints) -> ChunkTable:
        return ChunkTable(self.tensor[chunks], self.start[chunks], self.length[chunks])


def chunk_table(numels: Sequence[int] | Ints) -> ChunkTable:
    """Cut tensors of these sizes into chunks, in order; an empty tensor gets none."""
    sizes = np.asarray(numels, np.int64)
    counts = -(-sizes // CHUNK_ELEMENTS)
    tensor = np.repeat(np.arange(len(sizes)), counts)
    first = np.cumsum(counts) - counts
    start = (np.arange(len(tensor)) - first[tensor]) * CHUNK_ELEMENTS
    return ChunkTable(tensor, start, np.minimum(CHUNK_ELEMENTS, sizes[tensor] - start))


@dataclass(frozen=True)
class Segments:
    """The chunks of a table gathered by layer, for sums in a fixed order.

    Attributes:
        layers: number of layers.
        order: chunk indices, those of one layer side by side.
        first: where in ``order`` each layer that has chunks begins.
        present: which layers those are.
    """

    layers: int
    order: Ints
    first: Ints
    present: Ints


def segments(chunk_layers: Ints, layers: int) -> Segments:
    """Gather chunks, given the layer of each."""
    order = np.argsort(chunk_layers, kind="stable")
    present, first = np.unique(chunk_layers[order], return_index=True)
    return Segments(layers, order, first, present)


@dataclass(frozen=True)
class AddressTable:
    """Where a list of tensors lies: shape (tensor,) each.

    Attributes:
        address: of the first element; 0 where there is no tensor.
        code: the dtype's place in `DTYPES`.
        owners: keeps the memory alive for as long as the table is.
    """

    address: Ints
    code: NDArray[np.int8]
    owners: tuple[object, ...] = ()


def dense_strides(tensor: Tensor) -> tuple[int, ...]:
    """The tensor's own strides if its elements fill memory without gaps or overlaps, else those of a contiguous one."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return torch.empty(tensor.shape, device="meta").stride()
            expected *= size
    return tensor.stride()


def same_order(tensor: Tensor, strides: tuple[int, ...]) -> bool:
    """Whether the memory order of ``tensor`` is that of ``strides``; dimensions of size 1 do not matter."""
    return all(s == t or n == 1 for s, t, n in zip(tensor.stride(), strides, tensor.shape, strict=True))


def in_memory_order(tensor: Tensor, strides: tuple[int, ...]) -> Tensor:
    """``tensor`` itself where its memory order is that of ``strides``, else a copy for which it is."""
    if not tensor.is_neg() and (tensor.numel() == 0 or same_order(tensor, strides)):
        return tensor
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def check_measurable(tensor: Tensor, what: str) -> None:
    """Raise unless ``tensor`` is a dense float tensor of a measurable dtype.

    Raises:
        TypeError: it is no tensor, sharded, sparse, complex, integer or of an unsupported float type; names ``what``.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{what}: expected a tensor, got {type(tensor).__name__}")
    if hasattr(tensor, "placements"):
        raise TypeError(f"{what}: expected a plain tensor, got a DTensor; sharded parameters are not measured yet")
    if tensor.layout is not torch.strided:
        raise TypeError(f"{what}: expected a dense tensor, got layout {tensor.layout}")
    if tensor.dtype not in DTYPES:
        expected = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
        raise TypeError(f"{what}: expected dtype {expected}, got {str(tensor.dtype).removeprefix('torch.')}")


class Layout:
    """The measured tensors of a run.

    Args:
        target: a module (its trainable parameters, tied ones once) or an iterable of ``(name, parameter)``.
        groups: ``"layer"`` (the module that owns the parameter), ``"parameter"``, ``"global"``, or a callable from
            parameter name to group name.

    Attributes:
        names, parameters, shapes, strides: of each tensor; strides give the memory order.
        layers: name of each group, in order of first appearance.
        layer: (tensor,) index into ``layers``.
        device: where all of them lie.
        chunks, segments: the chunk table, and its chunks gathered by layer.

    Raises:
        ValueError: no parameters, a name missing or given twice, parameters on two devices, an unknown grouping.
        TypeError: the target, a parameter or a group name is of a type that cannot be measured.
    """

    def __init__(self, target: torch.nn.Module | Iterable[tuple[str, Tensor]], groups: Grouping = "layer") -> None:
        named = _named_parameters(target)
        self._owners = _owners(target, named) if isinstance(target, torch.nn.Module) else []
        self.names = tuple(named)
        self.parameters = tuple(named.values())
        devices = {str(p.device): name for name, p in named.items()}
        if len(devices) > 1:
            raise ValueError(f"parameters: expected all on one device, got {devices} (device: last parameter on it)")
        self.device = self.parameters[0].device
        self.shapes = tuple(p.shape for p in self.parameters)
        self.strides = tuple(dense_strides(p) for p in self.parameters)
        self.numels: Ints = np.array([p.numel() for p in self.parameters], np.int64)
        group_names = [_group_of(name, groups) for name in self.names]
        self.layers = tuple(dict.fromkeys(group_names))
        place = {name: i for i, name in enumerate(self.layers)}
        self.layer: Ints = np.array([place[g] for g in group_names], np.int64)
        self.chunks = chunk_table(self.numels)
        self.segments = segments(self.layer[self.chunks.tensor], len(self.layers))

    def check_current(self) -> None:
        """Raise if a parameter of the module has been replaced by another one, whose gradients nobody reads.

        Raises:
            ValueError: names the parameter.
        """
        for place, (owner, name) in enumerate(self._owners):
            if owner.get(name) is not self.parameters[place]:
                raise ValueError(
                    f"parameter {self.names[place]!r}: expected the one that the probe was made for, got a new one"
                )


def _owners(module: torch.nn.Module, named: Iterable[str]) -> list[tuple[dict[str, torch.nn.Parameter | None], str]]:
    """Where a module keeps each parameter: the dict of its owner, and its name there."""
    places = [(module.get_submodule(path), name) for path, _, name in (n.rpartition(".") for n in named)]
    return [(owner._parameters, name) for owner, name in places]


def _named_parameters(target: torch.nn.Module | Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Name → parameter; each tensor once."""
    if isinstance(target, torch.nn.Module):
        everything = list(target.named_parameters())
        pairs: Iterable[object] = [(n, p) for n, p in everything if p.requires_grad]
        found = f"{type(target).__name__} with {len(everything)} parameters, none of which requires a gradient"
    elif isinstance(target, Iterable) and not isinstance(target, Tensor):
        pairs, found = target, "an empty iterable"
    else:
        raise TypeError(f"target: expected a module or an iterable of (name, parameter), got {type(target).__name__}")
    named: dict[str, Tensor] = {}
    seen: set[int] = set()
    for place, pair in enumerate(pairs):
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str) and pair[0]):  # noqa: PLR2004
            raise ValueError(
                f"target: expected pairs (name, parameter) with a name that is not empty, got "
                f"{f'name {pair[0]!r}' if isinstance(pair, tuple) and pair else type(pair).__name__} at place {place}"
            )
        name, parameter = pair
        if name in named:
            raise ValueError(f"target: expected each name once, got parameter {name!r} twice")
        check_measurable(parameter, f"parameter {name!r}")
        if id(parameter) not in seen:
            seen.add(id(parameter))
            named[name] = parameter
    if not named:
        raise ValueError(f"target: expected at least one parameter to measure, got {found}")
    return named


def _group_of(name: str, groups: Grouping) -> str:
    if callable(groups):
        group = groups(name)
        if not isinstance(group, str) or not group:
            raise TypeError(f"groups: expected a callable that returns a group name, got {group!r} for {name!r}")
        if "\0" in group or not group.isprintable():
            raise ValueError(f"groups: expected a callable that returns printable names, got {group!r} for {name!r}")
        return group
    match groups:
        case "layer":
            return name.rpartition(".")[0] or "(root)"
        case "parameter":
            return name
        case "global":
            return "(all)"
    raise ValueError(f"groups: expected 'layer', 'parameter', 'global' or a callable name -> group, got {groups!r}")


_FACTS: tuple[Callable[[Tensor], object], ...] = (
    type, attrgetter("dtype"), attrgetter("shape"), attrgetter("device"), Tensor.stride, Tensor.is_neg,
)  # fmt: skip
"""What is looked at of every tensor at every step; taken a column at a time, which is the fastest Python has."""


class TensorReader:
    """Finds where a list of tensors lies, step after step, and refuses what does not fit the layout.

    What is checked of a tensor is looked at again only where it differs from the step before, so that a step with
    2,000 tensors costs about a millisecond.

    Args:
        layout: the measured tensors.
        what: what the tensors are, for messages: "gradient" or "parameter".
    """

    def __init__(self, layout: Layout, what: str) -> None:
        self._layout = layout
        self._what = what
        self._facts: Sequence[object] = ()
        self._in_order = False
        self._codes = np.zeros(0, np.int8)

    def locate(self, tensors: Sequence[Tensor | None]) -> AddressTable:
        """Where these tensors lie; ``None`` is an address of 0.

        Raises:
            TypeError: a tensor cannot be measured (see `check_measurable`).
            ValueError: a tensor has another shape than its parameter had, or lies on another device.

        Cost: a tensor in another memory order than its parameter's is copied.
        """
        present = [t for t in tensors if t is not None]
        try:
            facts = [[t is None for t in tensors], *(list(map(fact, present)) for fact in _FACTS)]
        except (AttributeError, RuntimeError, TypeError):  # no tensor, or one without strides
            self._check(tensors)
            raise
        if facts != self._facts:
            self._check(tensors)
            self._facts, self._codes = facts, self._dtype_codes(tensors)
            self._in_order = all(a is b for a, b in zip(tensors, self._ordered(tensors), strict=True))
        owners = tensors if self._in_order else self._ordered(tensors)
        addresses = np.array([0 if t is None else t.data_ptr() for t in owners], np.int64)
        return AddressTable(addresses, self._codes, tuple(owners))

    def _ordered(self, tensors: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        strides = self._layout.strides
        return [t if t is None else in_memory_order(t, s) for t, s in zip(tensors, strides, strict=True)]

    def _dtype_codes(self, tensors: Sequence[Tensor | None]) -> NDArray[np.int8]:
        parameters = self._layout.parameters
        # A gradient that is not there yet will be of the dtype that gradients of such parameters have.
        usual = {p.dtype: t.dtype for t, p in zip(tensors, parameters, strict=True) if t is not None}
        dtypes = [
            usual.get(p.dtype, p.dtype) if t is None else t.dtype for t, p in zip(tensors, parameters, strict=True)
        ]
        return np.array([DTYPES.index(dtype) for dtype in dtypes], np.int8)

    def _check(self, tensors: Sequence[Tensor | None]) -> None:
        layout = self._layout
        for name, tensor, shape in zip(layout.names, tensors, layout.shapes, strict=True):
            if tensor is None:
                continue
            what = f"{self._what} of {name!r}" if self._what != "parameter" else f"parameter {name!r}"
            check_measurable(tensor, what)
            if tensor.shape != shape:
                raise ValueError(f"{what}: expected shape {tuple(shape)} as at the start, got {tuple(tensor.shape)}")
            if tensor.device != layout.device:
                raise ValueError(f"{what}: expected it on {layout.device} with all others, got {tensor.device}")
