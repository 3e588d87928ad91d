"""Everything that decides a run's numbers, and the name that follows from it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any

GENERATION = 2
"""Counted up when a change of the training code, or of a default below, changes numbers: runs stored before are then
made again. Nothing else tells them apart; ``tests/reproductions/test_runs.py`` turns red where it was forgotten, for
the small networks on the 8x8 digits."""


@dataclass(frozen=True)
class Restart:
    """Where a run begins that does not begin at an initialisation: in the zigzag of an earlier one.

    Attributes:
        parent: the earlier run; it keeps checkpoints.
        theta: threshold of the zigzag that is looked for. The run begins at the middle one of the checkpoints inside of
            the longest zigzag stretch (the first of several such), or at the last checkpoint where there is none.
    """

    parent: Configuration
    theta: float = 0.9


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """A run. Two runs of one configuration are the same run: it is made once and every figure reads its trace.

    Attributes:
        data: data set, a name of ``data.NAMES``.
        n_examples: how many of its examples.
        network: a name of ``models.NETWORKS``.
        lr: constant learning rate.
        steps: optimiser steps.
        seed: of the initialisation and of the order of mini-batches.
        loss: ``"cross-entropy"`` or ``"mse"``.
        optimiser: ``"gd"``, ``"momentum"`` (0.9) or ``"adam"``.
        batch: examples a step; None is all of them, the exact gradient.
        micro_batch: examples a backward pass; batch norm's statistics, and so its gradient, depend on it.
        window: past gradients that each one is compared with.
        sketch: numbers a step of a second trace with stored sketches; None writes none.
        checkpoint_every: steps between two stored copies of the parameters; None stores none.
        sharpness_every: steps between two measurements of the largest Hessian eigenvalue, and of the cosine between
            its eigenvector and the gradient; None makes none.
        batch_probes: whether a mini-batch run evaluates the batch before once more at the new point, and both halves of
            each batch.
        keep_gradients: whether all gradients are stored, to check the trace against them.
        restart: where the run begins; None is the initialisation.
        device: ``"cpu"`` or ``"cuda"``.
    """

    data: str
    n_examples: int
    network: str
    lr: float
    steps: int
    seed: int
    loss: str = "cross-entropy"
    optimiser: str = "gd"
    batch: int | None = None
    micro_batch: int = 1000
    window: int = 32
    sketch: int | None = None
    checkpoint_every: int | None = None
    sharpness_every: int | None = None
    batch_probes: bool = False
    keep_gradients: bool = False
    restart: Restart | None = None
    device: str = "cpu"

    @property
    def name(self) -> str:
        """What a person looks for first, and a digest of everything: the stem of the run's files."""
        text = json.dumps([GENERATION, self.as_dict()], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        return f"{self.network}-{self.data}-{self.optimiser}-lr{self.lr:.6g}-seed{self.seed}-{digest}"

    def as_dict(self) -> dict[str, Any]:
        """All that is not left at its default, so that a new field renames no stored run."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        chosen = {field.name: values[field.name] for field in fields(self) if values[field.name] != field.default}
        if self.restart is not None:
            chosen["restart"] = {**asdict(self.restart), "parent": self.restart.parent.as_dict()}
        return chosen

    @property
    def title(self) -> str:
        """One line for a progress bar."""
        start = " restarted" if self.restart else ""
        return f"{self.network} on {self.data}, {self.loss}, {self.optimiser}, η = {self.lr:g}, seed {self.seed}{start}"
