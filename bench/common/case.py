"""What is timed: a statistic, of how many elements, in how many tensors, of which dtype; and what it should reach."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

NORM, CLIP, DOT, WINDOW, STEP = "norm", "clip", "dot", "window", "step"
DEFERRED, UPDATE, SKETCH, SKETCH_STEP = "deferred", "update", "sketch", "sketch step"
MIXED = "mixed"
OURS = "fastgeom"

FEW_ELEMENTS = 30_000
"""Of a case of which no times are wanted."""
ON_CARD = (10**8, 10**9, 4 * 10**9) if torch.cuda.is_available() else ()
"""Elements of large models, for cases that only a card times."""
LARGE = ON_CARD or (10**8,)
"""Elements of the largest cases."""


@dataclass(frozen=True)
class Goal:
    """A bound on what a case measures.

    Attributes:
        what: ``fraction_of_peak``, ``fraction_of_datasheet``, ``ns_per_element``, ``host_ms``, or ``ratio``: the time
            of another implementation over ours.
        least: the lower bound, or
        most: the upper one.
        of: the implementation it is about; ours by default.
        on: the kind of device it is for, ``cpu`` or ``cuda``; both by default.
    """

    what: str
    least: float | None = None
    most: float | None = None
    of: str = OURS
    on: str = ""

    def judge(self, result: Mapping[str, Any]) -> dict[str, object]:
        """Put the bound beside the measured value, for the file."""
        values = result if self.of == OURS else result["peers"][self.of]
        text = {
            "fraction_of_peak": "of the measured peak",
            "fraction_of_datasheet": "of the data sheet",
            "ns_per_element": f"ns an element, {self.of}",
            "host_ms": "ms of the host",
            "ratio": f"times as fast as {self.of}",
        }[self.what]
        bound = {"most": self.most} if self.least is None else {"least": self.least}
        return {"what": text, "value": values.get(self.what), **bound}


@dataclass(frozen=True)
class Case:
    """One problem, for every implementation.

    Attributes:
        statistic: what is measured; ``step`` is a whole ``Probe.step``, ``window`` the pass inside it.
        elements: number of elements; fewer are taken where memory is short.
        tensors: number of tensors, or the name of a list in `bench.common.shapes`, which gives both numbers.
        dtype: of gradients and history; ``mixed`` alternates float32 and bfloat16.
        window: W.
        block: B.
        buckets: size of the sketch.
        layers: what a layer is: as a probe takes it, or "7 layers" of as many tensors each.
        traced: whether a trace is written.
        only: names of the other implementations that are timed; all by default.
        goals: what it should reach.
        rounds: number of rounds.
    """

    statistic: str
    elements: int
    tensors: int | str = 400
    dtype: str = "float32"
    window: int = 0
    block: int = 1
    buckets: int = 0
    layers: str = "module"
    traced: bool = False
    only: tuple[str, ...] | None = None
    goals: tuple[Goal, ...] = ()
    rounds: int = 5

    @property
    def title(self) -> str:
        """The statistic with its sizes, for the table."""
        sizes = []
        if self.window and self.statistic != UPDATE:
            sizes.append(f"W = {self.window}")
        if self.block > 1:
            sizes.append(f"B = {self.block}")
        if self.buckets:
            sizes.append(f"{self.buckets:,} buckets")
        if self.statistic in (SKETCH, STEP) and self.layers != "module":
            sizes.append({"all": "one layer", "parameter": "by parameter"}.get(self.layers, self.layers))
        if self.traced:
            sizes.append("trace")
        return ", ".join([self.statistic, *sizes])

    @property
    def name(self) -> str:
        """Short, for pytest: the statistic without spaces, so that ``-k`` takes it, a colon, and all sizes."""
        tensors = f"{self.tensors} tensors" if isinstance(self.tensors, int) else self.tensors
        elements = f"{self.elements:.0e}".replace("e+0", "e").replace("e+", "e")
        sizes = self.title.removeprefix(self.statistic).removeprefix(", ")
        statistic = self.statistic.replace(" ", "-")
        return f"{statistic}: " + ", ".join(text for text in (sizes, elements, tensors, self.dtype) if text)

    @property
    def item_bytes(self) -> float:
        """Bytes of an element, on average."""
        return {"bfloat16": 2, MIXED: 3}.get(self.dtype, 4)

    def as_dict(self) -> dict[str, str | int | bool]:
        """The problem alone, for the file."""
        return {name: value for name, value in asdict(self).items() if name not in ("only", "goals", "rounds")}
