"""Captions: what was trained, from the configurations alone."""

from __future__ import annotations

from collections.abc import Sequence

from reproductions.common import data, models
from reproductions.common.configuration import Configuration

LOSSES = {"cross-entropy": "cross-entropy", "mse": "squared error"}
OPTIMISERS = {"gd": "gradient descent", "momentum": "gradient descent with momentum 0.9", "adam": "Adam"}
MOST_RATES = 8


def describe_settings(configurations: Sequence[Configuration]) -> str:
    """Describe data sets, networks, optimisers, rates and seeds of some runs, each once."""
    examples = _unique(data.describe(c.data, c.n_examples) for c in configurations)
    losses = _unique(LOSSES[c.loss] for c in configurations)
    networks = _unique(models.describe(c.network) for c in configurations)
    optimisers = "; ".join(_unique(_optimiser(c) for c in configurations))
    rates = sorted({c.lr for c in configurations})
    if len(rates) > MOST_RATES:
        eta = f"η from {rates[0]:.3g} to {rates[-1]:.3g}"
    else:
        eta = "η = " + ", ".join(f"{rate:.3g}" for rate in rates)
    steps = sorted({c.steps for c in configurations})
    length = f"{steps[0]:,} steps" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,} steps"
    seeds = _ranges(sorted({c.seed for c in configurations}))
    return (
        f"Data: {'; '.join(examples)}. Loss: {' and '.join(losses)}. Networks: {'; '.join(networks)}.\n"
        f"{optimisers[0].upper()}{optimisers[1:]}; constant {eta}; {length}; {seeds}. "
        "All settings are ours, not the paper's."
    )


def _optimiser(c: Configuration) -> str:
    name = OPTIMISERS[c.optimiser]
    if c.batch is not None:
        return f"{name} on mini-batches of {c.batch:,}"
    n_passes = -(-c.n_examples // c.micro_batch)
    return f"full-batch {name}" + (f" ({n_passes} micro-batches)" if n_passes > 1 else "")


def _ranges(seeds: list[int]) -> str:
    """Describe seeds: successive numbers by the first and the last of them."""
    rows: list[list[int]] = []
    for seed in seeds:
        if rows and seed == rows[-1][-1] + 1:
            rows[-1].append(seed)
        else:
            rows.append([seed])
    texts = [str(row[0]) if len(row) == 1 else f"{row[0]} to {row[-1]}" for row in rows]
    return f"seed{'s' * (len(seeds) > 1)} {' and '.join(texts)}"


def _unique(texts: object) -> list[str]:
    return list(dict.fromkeys(texts))  # type: ignore[call-overload]
