"""How time grows: power laws through times, and through what the bytes alone would take."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bench.common.rounds import Estimate


@dataclass(frozen=True)
class PowerLaw:
    """time = constant (x / reference)^exponent, by least squares of the logarithms.

    Attributes:
        exponent: with the interval of the median over rounds.
        constant: seconds at the reference.
    """

    exponent: Estimate
    constant: float


def fit(sizes: Sequence[float], rounds: Sequence[Sequence[float]], reference: float) -> PowerLaw:
    """Fit every round by itself.

    Args:
        sizes: x.
        rounds: of each, seconds at every size.
        reference: where the constant is read off.
    """
    fits = [np.polyfit(np.log(np.array(sizes) / reference), np.log(times), 1) for times in rounds]
    constants = Estimate.of([float(np.exp(constant)) for _, constant in fits])
    return PowerLaw(Estimate.of([float(exponent) for exponent, _ in fits]), constants.value)


def recorded(
    over: str,
    statistic: str,
    sizes: Sequence[float],
    rounds: Sequence[Sequence[float]],
    *,
    model: Callable[[float], float],
    reference: float,
) -> dict[str, object]:
    """What is recorded of a growth.

    Args:
        over: what grows.
        statistic: what is timed.
        sizes: as in `fit`.
        rounds: as in `fit`.
        model: seconds by the bytes alone.
        reference: as in `fit`.
    """
    law = fit(sizes, rounds, reference)
    by_bytes = fit(sizes, [[model(size) for size in sizes]], reference)
    medians = np.median(np.array(rounds), axis=0)
    return {
        "kind": "growth",
        "over": over,
        "statistic": statistic,
        "points": [[size, float(seconds)] for size, seconds in zip(sizes, medians, strict=True)],
        "exponent": law.exponent.value,
        "exponent_low": law.exponent.low,
        "exponent_high": law.exponent.high,
        "constant": law.constant * 1e3,
        "constant_unit": f"ms at {reference:,.0f}",
        "model_exponent": by_bytes.exponent.value,
        "model_constant": by_bytes.constant * 1e3,
    }
