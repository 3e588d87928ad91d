"""Which tensors are measured and in which layers; fixed when a probe is made, and checked at every step."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from fastgeom.layout.addresses import dense_strides
from fastgeom.layout.chunks import Ints, chunk_table, segments
from fastgeom.validation import check_measurable

LayerChoice = str | Callable[[str], str]


class Layout:
    """The measured tensors of a run.

    Args:
        target: a module (its trainable parameters, tied ones once) or an iterable of ``(name, parameter)``.
        layers: ``"module"`` (the module that owns the parameter), ``"parameter"``, ``"all"``, or a callable from
            parameter name to layer name.

    Attributes:
        names, parameters, shapes, strides: of each tensor; strides give the memory order.
        layers: name of each group, in order of first appearance.
        layer: (tensor,) index into ``layers``.
        device: where all of them lie.
        chunks, segments: the chunk table, and its chunks gathered by layer.

    Raises:
        ValueError: no parameters, a name missing or given twice, parameters on two devices, an unknown grouping.
        TypeError: the target, a parameter or a layer name is of a type that cannot be measured.
    """

    def __init__(self, target: torch.nn.Module | Iterable[tuple[str, Tensor]], layers: LayerChoice = "module") -> None:
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
        layer_names = [_layer_of(name, layers) for name in self.names]
        self.layers = tuple(dict.fromkeys(layer_names))
        place = {name: i for i, name in enumerate(self.layers)}
        self.layer: Ints = np.array([place[g] for g in layer_names], np.int64)
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


def _layer_of(name: str, layers: LayerChoice) -> str:
    if callable(layers):
        group = layers(name)
        if not isinstance(group, str) or not group:
            raise TypeError(f"layers: expected a callable that returns a layer name, got {group!r} for {name!r}")
        if "\0" in group or not group.isprintable():
            raise ValueError(f"layers: expected a callable that returns printable names, got {group!r} for {name!r}")
        return group
    match layers:
        case "module":
            return name.rpartition(".")[0] or "(root)"
        case "parameter":
            return name
        case "all":
            return "(all)"
    raise ValueError(f"layers: expected 'module', 'parameter', 'all' or a callable name -> group, got {layers!r}")
