"""How time grows: power laws through times, and through what the bytes alone would take."""

from collections.abc import Callable, Sequence

import numpy as np

from bench.common.rounds import Estimate


def fit(sizes: Sequence[float], rounds: Sequence[Sequence[float]], reference: float) -> tuple[Estimate, float]:
    """Fit time = constant (x / reference)^exponent to every round, by least squares of the logarithms.

    Args:
        sizes: x.
        rounds: of each, seconds at every size.
        reference: where the constant is read off.

    Returns:
        The exponent, and the constant in seconds.
    """
    fits = [np.polyfit(np.log(np.array(sizes) / reference), np.log(times), 1) for times in rounds]
    constants = Estimate.of([float(np.exp(constant)) for _, constant in fits])
    return Estimate.of([float(exponent) for exponent, _ in fits]), constants.value


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
    exponent, constant = fit(sizes, rounds, reference)
    model_exponent, model_constant = fit(sizes, [[model(size) for size in sizes]], reference)
    medians = np.median(np.array(rounds), axis=0)
    return {
        "kind": "growth",
        "over": over,
        "statistic": statistic,
        "points": [[size, float(seconds)] for size, seconds in zip(sizes, medians, strict=True)],
        "exponent": exponent.value,
        "exponent_low": exponent.low,
        "exponent_high": exponent.high,
        "constant": constant * 1e3,
        "constant_unit": f"ms at {reference:,.0f}",
        "model_exponent": model_exponent.value,
        "model_constant": model_constant * 1e3,
    }
