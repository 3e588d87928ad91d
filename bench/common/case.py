"""What is timed: a statistic, of how many elements, in how many tensors, of which dtype."""

from dataclasses import asdict, dataclass, replace

import torch

NORM, CLIP, DOT, WINDOW, STEP = "norm", "clip", "dot", "window", "step"
DEFERRED, UPDATE, SKETCH, SKETCH_STEP = "deferred", "update", "sketch", "sketch step"
MIXED = "mixed"

FEW_ELEMENTS = 30_000
"""Of a case of which no times are wanted."""
LARGE = (10**8, 10**9, 4 * 10**9) if torch.cuda.is_available() else (10**8,)
"""Elements of the largest cases: on a card what large models have, where its memory allows."""


@dataclass(frozen=True)
class Case:
    """One problem, whoever solves it.

    Attributes:
        statistic: what is measured; ``step`` is a whole ``Probe.step``, ``window`` the pass inside it.
        elements: how many are wanted; fewer are taken where memory is short.
        tensors: in how many tensors they lie, or the name of a list in `bench.common.shapes`, which says both.
        dtype: of gradients and history; ``mixed`` alternates float32 and bfloat16.
        window, block: W and B.
        buckets: size of the sketch.
        layers: what a layer is: as a probe takes it, or "7 layers" of as many tensors each.
        traced: whether a trace is written.
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

    def few(self) -> "Case":
        """The same of few elements, where no times are wanted."""
        return replace(self, elements=min(self.elements, FEW_ELEMENTS))

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
        """Short, for pytest."""
        many = f"{self.tensors} tensors" if isinstance(self.tensors, int) else self.tensors
        sizes = f"{self.elements:.0e}".replace("e+0", "e") if self.elements else ""
        return ", ".join(part for part in (self.title, sizes, many, self.dtype) if part)

    @property
    def item_bytes(self) -> float:
        """Bytes of an element, on average."""
        return {"bfloat16": 2, MIXED: 3}.get(self.dtype, 4)

    def memory_bytes(self, *, lent: bool = True) -> float:
        """Memory for each element: what the statistic needs, and one gradient more.

        Args:
            lent: whether the other ways use our ring, and need none of their own.
        """
        vectors = {
            NORM: 1, CLIP: 1, DOT: 2, WINDOW: self.window + 2, STEP: self.window + 3,
            DEFERRED: 2 * self.window + self.block + 2, UPDATE: 7, SKETCH: 1, SKETCH_STEP: 1,
        }[self.statistic]  # fmt: skip
        own_ring = 0 if lent else self.ring_rows
        return (vectors + own_ring) * self.item_bytes

    @property
    def ring_rows(self) -> int:
        """Past gradients that other ways keep."""
        return {WINDOW: self.window, STEP: self.window, DEFERRED: self.window + self.block}.get(self.statistic, 0)

    def operations(self, n_elements: int) -> int:
        """Multiplications with an addition that a step must do."""
        each = {
            NORM: 1, CLIP: 2, DOT: 1, WINDOW: self.window + 3, STEP: self.window + 3, DEFERRED: self.window + 3,
            UPDATE: 4, SKETCH: 2, SKETCH_STEP: 2,
        }[self.statistic]  # fmt: skip
        return each * n_elements

    def as_dict(self) -> dict[str, str | int | bool]:
        """For the file."""
        return asdict(self)
