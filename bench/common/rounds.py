"""Times of several implementations in the same rounds, and their ratios."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_COVERAGE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A median, and the interval that holds the true one with 95 % probability, or as near as so few values allow."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """From independent values: the order statistics between which the median lies."""
        ordered = sorted(values)
        n = len(ordered)
        outside, cut = 0.0, 0
        while cut < (n - 1) // 2:
            outside += 2 * math.comb(n, cut) / 2**n
            if outside > 1 - _COVERAGE:
                break
            cut += 1
        cut = max(0, cut - 1)
        return cls(statistics.median(ordered), ordered[cut], ordered[n - 1 - cut])

    def facts(self, scale: float = 1.0) -> dict[str, float]:
        """As a ratio is recorded."""
        return {"ratio": self.value * scale, "ratio_low": self.low * scale, "ratio_high": self.high * scale}


@dataclass(frozen=True)
class Rounds:
    """Seconds of a call, in each round, by name; of a slow one in the first rounds only.

    Attributes:
        seconds: name → one number a round, on the device.
        host_s: name → one number a round, until the call has returned.
    """

    seconds: dict[str, list[float]]
    host_s: dict[str, list[float]]

    def median(self, name: str) -> float:
        """Seconds of one call."""
        return statistics.median(self.seconds[name])

    def host_median(self, name: str) -> float:
        """Seconds until one call has returned."""
        return statistics.median(self.host_s[name])

    def ratio(self, name: str, over: str) -> Estimate:
        """How many times as long ``name`` takes as ``over``: of each round, so that what slows a round slows both."""
        pairs = zip(self.seconds[name], self.seconds[over], strict=False)
        return Estimate.of([a / b for a, b in pairs])
