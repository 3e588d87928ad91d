"""What every way of measuring is: made ready for a problem, seen to be right, then timed."""

from collections.abc import Callable
from dataclasses import dataclass, field

from bench.common.case import Case
from bench.common.problem import Problem

OURS = "fastgeom"


@dataclass(frozen=True)
class Work:
    """What is timed.

    Attributes:
        call: does it.
        relative_error: the largest that was seen before timing, relative to the product of the norms.
        steps: how many steps a call is.
        close: afterwards.
    """

    call: Callable[[], object]
    relative_error: float
    steps: int = 1
    close: Callable[[], object] = field(default=lambda: None)


Builder = Callable[[Problem], Work]


@dataclass(frozen=True)
class Way:
    """One way of measuring a statistic.

    Attributes:
        name: for the table.
        build: makes it ready for a problem and asserts that it is right; raises `bench.peers.available.Missing` where
            it cannot run.
        more_gradients: memory that it takes beside the problem's own, in gradients, by the case.
        counted: whether its launches can be counted: those of compiled code are not seen.
    """

    name: str
    build: Builder
    more_gradients: Callable[[Case], float] = lambda case: 0.0
    counted: bool = True
