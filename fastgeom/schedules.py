"""When to measure: functions from the step's number to yes or no."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastgeom.validation import integer

Schedule = Callable[[int], bool]


def every(n: int) -> Schedule:
    """Every n-th step: 0, n, 2n and so on.

    With n > 1 no two measured steps are adjacent, so every lag that is no multiple of n stays NaN. Use `bursts` to see
    adjacent correlations at a part of the cost.

    Raises:
        ValueError: n is no integer of at least 1.

    >>> [step for step in range(7) if every(3)(step)]
    [0, 3, 6]
    """
    n = integer("n", n, 1)
    return _Bursts(n, 1, f"every({n})")


def bursts(every: int, length: int) -> Schedule:
    """``length`` adjacent steps at the start of each ``every`` steps.

    Raises:
        ValueError: ``every`` or ``length`` is no integer of at least 1, or ``length`` exceeds ``every``.

    >>> [step for step in range(12) if bursts(every=5, length=2)(step)]
    [0, 1, 5, 6, 10, 11]
    """
    every, length = integer("every", every, 1), integer("length", length, 1)
    if length > every:
        raise ValueError(f"length: expected at most every = {every}, got {length}")
    return _Bursts(every, length, f"bursts(every={every}, length={length})")


@dataclass(frozen=True)
class _Bursts:
    every: int
    length: int
    text: str

    def __call__(self, step: int) -> bool:
        return step % self.every < self.length

    def __repr__(self) -> str:
        return self.text
