"""A2: at a large learning rate every layer oscillates.

Four networks are trained by full-batch gradient descent at a large rate: the rates of the other figures, which take
them to the edge of stability, are doubled as long as the loss still halves on the seeds 0 and 1. Each layer's gradient
is compared with its own of the step before: a layer oscillates at a step where that correlation is negative. The claim
is of all layers, and so the statistic of a seed is the share of oscillating steps of the layer that has the fewest, of
all layers of all networks.

    python -m reproductions a2
"""

from __future__ import annotations

import math

import numpy as np

from reproductions.common.configuration import Configuration
from reproductions.common.layers import draw_layers, layer_oscillation, layer_plan
from reproductions.common.reproduction import Reproduction, Runs
from reproductions.common.request import Effort

RATES: dict[Effort, dict[str, tuple[float, int]]] = {
    "quick": {"cnn": (0.1, 20), "mlp": (0.1, 20)},
    "default": {"cnn": (0.4, 300), "mlp": (0.32, 300), "resnet": (0.2, 300), "vgg": (0.2, 300)},
    "full": {"vgg": (0.04, 1000), "resnet": (0.04, 1000)},
}
"""Rate and steps of each network."""


def plan(effort: Effort, seed: int) -> dict[str, Configuration]:
    """One run a network."""
    return layer_plan(effort, seed, RATES[effort])


def measure(runs: Runs, theta: float) -> float:
    """Share of oscillating steps of the calmest of all layers; NaN where all runs are too short."""
    shares = np.concatenate([layer_oscillation(run) for run in runs.values()])
    measured = shares[np.isfinite(shares)]
    return float(measured.min()) if len(measured) else math.nan


FIGURE = Reproduction(
    name="a2_layers_large_rate",
    title="Oscillation layer by layer at a large learning rate",
    claims=(5,),
    statement="At a large rate even the calmest of all layers oscillates in at least a tenth of the steps",
    statistic="share of steps with c_t < 0 of the layer with the fewest, over all networks",
    threshold=0.1,
    plan=plan,
    measure=measure,
    draw=draw_layers,
    size=(10.0, 10.0),
    seeds=range(20, 30),
    notes=(
        "The maps show the first seed. All steps count, those before the first oscillation too. One calm layer of one "
        "network decides, as the claim is of all; the bars tell how the others do. A layer without a gradient is left "
        "out. How large a rate is large decides too: these are 2 to 8 times those at which the networks of the other "
        "figures first reach the edge of stability, and 5 to 32 times those of A3. θ plays no part."
    ),
)
