"""Schedules: functions from a step's number to whether it is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastgeom.validation import checked_burst, checked_integer

Schedule = Callable[[int], bool]


def every(n: int) -> Schedule:
    """Measure every n-th step: 0, n, 2n and so on.

    With n > 1 no two measured steps are adjacent, and every lag that is no multiple of n stays NaN. Use `bursts` to
    measure adjacent steps at a fraction of the cost.

    Args:
        n: the period, at least 1.

    Returns:
        A function from the step's number to whether it is measured.

    Raises:
        ValueError: n is no integer of at least 1.

    >>> [step for step in range(7) if every(3)(step)]
    [0, 3, 6]
    """
    n = checked_integer("n", n, 1)
    return _Bursts(n, 1, f"every({n})")


def bursts(every: int, length: int) -> Schedule:
    """Measure ``length`` adjacent steps at the start of each ``every`` steps.

    Args:
        every: the period, at least 1.
        length: how many steps of each period to measure, from 1 to ``every``.

    Returns:
        A function from the step's number to whether it is measured.

    Raises:
        ValueError: ``every`` or ``length`` is no integer of at least 1, or ``length`` exceeds ``every``.

    >>> [step for step in range(12) if bursts(every=5, length=2)(step)]
    [0, 1, 5, 6, 10, 11]
    """
    every, length = checked_burst(every, length)
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
