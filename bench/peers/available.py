"""Peers that may be absent: how one says what it lacks."""

import importlib
import warnings
from types import ModuleType

import torch
from torch import Tensor

PEERS, PEERS_CUDA = "pip install '.[peers]'", "pip install '.[peers-cuda]'"


class Missing(Exception):
    """A peer cannot run here; the message says what it needs."""


def load(module: str, package: str, install: str) -> ModuleType:
    """Import a module of a package that may be absent; warnings of the import are the package's own and are not shown.

    Raises:
        Missing: the package is not installed, or is and cannot be imported.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except Exception as error:  # packages with device code raise anything where it does not load
        absent = isinstance(error, ModuleNotFoundError) and module.partition(".")[0] == error.name
        if absent:
            raise Missing(f"needs the package {package}: {install}") from error
        raise Missing(f"the package {package} is installed and fails to import: {error!r}") from error


def require_card(tensors: list[Tensor]) -> None:
    """Raise `Missing` unless all tensors are on a CUDA card."""
    if not torch.cuda.is_available():
        raise Missing("needs a CUDA card")
    for tensor in tensors:
        if not tensor.is_cuda:
            raise Missing(f"needs tensors on a CUDA card, got one on {tensor.device}")
