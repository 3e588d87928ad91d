"""Which tensors are measured and in which layers; fixed when a probe is made, and checked at every step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastgeom.tables import (
    DTYPES,
    AddressTable,
    Ints,
    check_measurable,
    chunk_table,
    dense_strides,
    in_memory_order,
    segments,
)

Grouping = str | Callable[[str], str]


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
"""What is looked at of every tensor at every step; taken a column at a time, without a loop in Python."""


class TensorReader:
    """Finds where a list of tensors lies, step after step, and refuses what does not fit the layout.

    What is checked of a tensor is looked at again only where it differs from the step before, so that a step with
    2,000 tensors costs about two milliseconds.

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
            codes, ordered = self._dtype_codes(tensors), self._ordered(tensors)  # may run out of memory
            self._in_order = all(a is b for a, b in zip(tensors, ordered, strict=True))
            self._facts, self._codes = facts, codes
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
