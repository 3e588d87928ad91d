"""An implementation of a statistic: prepared for a problem, checked, then timed."""

from collections.abc import Callable
from dataclasses import dataclass, field

from bench.common.case import Case
from bench.common.problem import Problem


@dataclass(frozen=True)
class Work:
    """What is timed.

    Attributes:
        call: does it.
        relative_error: the largest error before timing, relative to the product of the norms.
        steps: how many steps a call is.
        close: called afterwards.
    """

    call: Callable[[], object]
    relative_error: float
    steps: int = 1
    close: Callable[[], object] = field(default=lambda: None)


Builder = Callable[[Problem], Work]


@dataclass(frozen=True)
class Implementation:
    """One implementation of a statistic.

    Attributes:
        name: for the table.
        build: prepares it for a problem and asserts that its result is right; raises `bench.peers.available.Missing`
            where it cannot run.
        more_gradients: memory that it takes beside the problem's own, in gradients, by the case.
        counted: whether its launches can be counted: those of compiled code are not visible.
    """

    name: str
    build: Builder
    more_gradients: Callable[[Case], float] = lambda case: 0.0
    counted: bool = True
