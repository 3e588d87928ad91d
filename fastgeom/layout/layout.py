"""Which tensors are measured, and in which layers; fixed when a probe is made, and checked at every step."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from fastgeom.layout.addresses import dense_strides
from fastgeom.layout.chunks import Ints, chunk_table, segments
from fastgeom.validation import check_layers, check_not_replaced, check_one_device, checked_layer_name, checked_target

LayerChoice = str | Callable[[str], str]
"""What ``layers=`` takes: ``"module"``, ``"parameter"``, ``"all"``, or a callable from parameter name to layer name."""


class Layout:
    """The measured tensors of a run.

    Args:
        target: a module (its trainable parameters; tied ones count once) or an iterable of ``(name, parameter)``.
        layers: ``"module"`` (the module that owns the parameter), ``"parameter"``, ``"all"``, or a callable from
            parameter name to layer name.

    Attributes:
        names: (tensor,) name of each parameter.
        parameters: (tensor,) the parameters.
        shapes: (tensor,) shape of each at the start.
        strides: (tensor,) strides that give each one's memory order.
        numels: (tensor,) int64 number of elements of each.
        layers: (layer,) names of the layers, in order of first appearance.
        layer: (tensor,) int64 index of each one's layer.
        device: where all parameters lie.
        chunks: the tensors cut into chunks.
        segments: the chunks gathered by layer.

    Raises:
        ValueError: no parameters, a name missing or given twice, parameters on two devices, an unknown ``layers``.
        TypeError: the target, a parameter or a layer name is of a type that cannot be measured.
    """

    def __init__(self, target: torch.nn.Module | Iterable[tuple[str, Tensor]], layers: LayerChoice = "module") -> None:
        named = checked_target(target)
        check_one_device(named)
        check_layers(layers)
        self._owners = _owners(target, named) if isinstance(target, torch.nn.Module) else []
        self.names = tuple(named)
        self.parameters = tuple(named.values())
        self.device = self.parameters[0].device
        self.shapes = tuple(p.shape for p in self.parameters)
        self.strides = tuple(dense_strides(p) for p in self.parameters)
        self.numels: Ints = np.array([p.numel() for p in self.parameters], np.int64)
        layer_names = [_layer_name(name, layers) for name in self.names]
        self.layers = tuple(dict.fromkeys(layer_names))
        index = {name: i for i, name in enumerate(self.layers)}
        self.layer: Ints = np.array([index[name] for name in layer_names], np.int64)
        self.chunks = chunk_table(self.numels)
        self.segments = segments(self.layer[self.chunks.tensor], len(self.layers))

    def check_current(self) -> None:
        """Raise if a parameter of the module has been replaced by another one, whose gradient nothing reads.

        Raises:
            ValueError: names the parameter.
        """
        if self._owners:
            current = [owner.get(attribute) for owner, attribute in self._owners]
            check_not_replaced(self.names, self.parameters, current)


def _owners(module: torch.nn.Module, named: Iterable[str]) -> list[tuple[dict[str, torch.nn.Parameter | None], str]]:
    """For each parameter, the dict of the module that owns it, and its name there."""
    paths = [(path, attribute) for path, _, attribute in (name.rpartition(".") for name in named)]
    return [(module.get_submodule(path)._parameters, attribute) for path, attribute in paths]


def _layer_name(name: str, layers: LayerChoice) -> str:
    """The layer of the parameter called ``name``."""
    if callable(layers):
        return checked_layer_name(layers(name), name)
    match layers:
        case "module":
            return name.rpartition(".")[0] or "(root)"
        case "parameter":
            return name
        case _:
            return "(all)"
