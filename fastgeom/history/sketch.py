"""`Sketch`: a history of sketches of past gradients."""

from __future__ import annotations

from dataclasses import dataclass

from fastgeom.validation import checked_integer


@dataclass(frozen=True)
class Sketch:
    r"""Keep sketches of the last ``window`` gradients: ``size`` numbers each, whatever the number of parameters.

    Norms, absolute maxima and counts stay exact. Dots, cosines and sums of differences are estimates; their standard
    errors are recorded beside them, as ``lag_dot_error`` and so on. A cosine :math:`\rho` of one layer with m buckets
    is off by about :math:`(1-\rho^2)/\sqrt m`. Layers share ``size`` in proportion to their parameters; the sketch of
    a layer that is smaller than its share is the layer itself, and its numbers are exact.

    Args:
        size: float32 numbers of a sketch, for all layers together.
        seed: chooses the bucket and the sign of each element. Sketches can be compared only where size, seed and model
            are the same.
        stored_size: also record a small sketch of so many buckets at every step, in the trace as ``sketch``: any two
            steps of a run can then be compared, with an error of about :math:`1/\sqrt{\mathtt{stored\_size}}`. A power
            of two from 128 to ``size``; ``None`` records none.

    Raises:
        ValueError: a ``size`` or ``stored_size`` that is no positive integer, a ``seed`` that is no integer of at least
            0; when a probe is made, a ``size`` that is too small for its layers, a seed of more than 32 bits, or a
            ``stored_size`` that is no such power of two.

    Memory: window × size × 4 bytes, and with ``stored_size`` one sketch more; for window=16 besides 0.3 kB a layer on a
    CPU, on a GPU 0.9 kB a layer and 0.1 MB.

    Source: Charikar, Chen, Farach-Colton, "Finding frequent items in data streams", 2002; see
    ``fastgeom.layout.count_sketch``.
    """

    size: int = 2**18
    seed: int = 0
    stored_size: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", checked_integer("sketch size", self.size, 1))
        object.__setattr__(self, "seed", checked_integer("sketch seed", self.seed, 0))
        if self.stored_size is not None:
            object.__setattr__(self, "stored_size", checked_integer("sketch stored_size", self.stored_size, 1))
