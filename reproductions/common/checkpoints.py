"""Checkpoints of a run: copies of a network's parameters, and which of them another run begins with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fastgeom import analysis
from reproductions.common.configuration import Restart
from reproductions.common.runs import RunError, TrainingRun, find, trace_path


def flatten(tensors: list[Any]) -> np.ndarray:
    """Concatenate a list of tensors into one float32 array, shape (element,)."""
    return np.concatenate([tensor.detach().cpu().reshape(-1).numpy() for tensor in tensors])


def set_parameters(model: nn.Module, values: np.ndarray) -> None:
    """Set all parameters of a network to the values of an array that ``flatten`` made of them."""
    start = 0
    with torch.no_grad():
        for parameter in model.parameters():
            flat = torch.from_numpy(values[start : start + parameter.numel()])
            parameter.copy_(flat.reshape(parameter.shape))
            start += parameter.numel()


def restart_point(restart: Restart, folder: Path) -> np.ndarray:
    """Parameters that a restarted run begins with, as ``Restart`` defines them."""
    parent = find(restart.parent, folder)
    if parent is None:
        raise RunError(f"{trace_path(restart.parent, folder)}: expected the finished run to restart from, got none")
    return parent.arrays["checkpoints"][restart_index(restart, parent)]


def restart_index(restart: Restart, parent: TrainingRun) -> int:
    """Index of the parent's checkpoint that a restarted run begins with."""
    steps = parent.arrays["checkpoint_steps"]
    inside = checkpoints_in_longest_stretch(parent.labels(restart.theta), analysis.ZIGZAG, steps)
    if len(inside):
        return int(inside[len(inside) // 2])
    return int(np.flatnonzero(steps < max(parent.end, 1))[-1])


def checkpoints_in_longest_stretch(labels: np.ndarray, label: int, steps: np.ndarray) -> np.ndarray:
    """Checkpoints inside the longest stretch of a label that has any, the first of several such.

    Args:
        labels: of every step, shape (step,).
        label: of the stretch.
        steps: of every checkpoint, shape (checkpoint,).

    Returns:
        Indices of checkpoints, increasing; empty where no stretch has any.
    """
    stretches = [stretch for stretch in analysis.stretches(labels) if stretch.label == label]
    for stretch in sorted(stretches, key=lambda stretch: -stretch.length):
        inside = np.flatnonzero((steps >= stretch.start) & (steps < stretch.stop))
        if len(inside):
            return inside
    return np.zeros(0, np.int64)
