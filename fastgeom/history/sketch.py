"""`Sketch`: keep sketches of past gradients."""

from __future__ import annotations

from dataclasses import dataclass

from fastgeom.validation import integer


@dataclass(frozen=True)
class Sketch:
    r"""Keep sketches of the last ``window`` gradients: ``size`` numbers each, whatever the number of parameters.

    Norms, absolute maxima and counts stay exact. Dots, cosines and sums of differences are estimates; their standard
    errors stand beside them, as ``lag_dot_error`` and so on. A cosine :math:`\rho` of one layer with m buckets is off
    by about :math:`(1-\rho^2)/\sqrt m`. Layers share ``size`` by their share of the parameters; one that is smaller
    than its share is kept whole, and exact. Memory: window × size × 4 bytes, and with ``stored_size`` one sketch more;
    for window=16 besides 0.3 kB a layer on a CPU, on a GPU 0.9 kB and 0.1 MB.

    Args:
        size: float32 numbers of a sketch.
        seed: chooses which element goes to which bucket, with which sign. Sketches can be compared only where size,
            seed and model are the same.
        record: also store a small sketch of so many buckets at every step, in the trace as ``sketch``: any two steps of
            a run can then be compared, with an error of about :math:`1/\sqrt{\mathtt{record}}`.

    Raises:
        ValueError: a size or a record that is no positive integer, a seed that is no 32-bit number, or a record that is
            no power of two.

    Source: Charikar, Chen, Farach-Colton, "Finding frequent items in data streams", 2002; see
    ``fastgeom.layout.count_sketch``.
    """

    size: int = 2**18
    seed: int = 0
    stored_size: int | None = None

    def __post_init__(self) -> None:
        integer("sketch size", self.size, 1)
        integer("sketch seed", self.seed, 0)
        if self.stored_size is not None:
            integer("sketch stored_size", self.stored_size, 1)
