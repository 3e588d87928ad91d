"""A2: at a large learning rate every layer oscillates.

Four networks are trained by full-batch gradient descent at a rate that takes them to the edge of stability early. Each
layer's gradient is compared with its own of the step before: a step is zigzag in a layer where that layer's correlation
says so. The claim is of all layers, and so the statistic of a seed is the share of zigzag steps of the layer that has
the fewest, of all layers of all networks.

    python reproductions/a2_layers_large_rate.py
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from reproductions.common.command import main
from reproductions.common.configuration import Configuration
from reproductions.common.layers import draw_layers, layer_plan, layer_zigzag
from reproductions.common.reproduction import Effort, Reproduction, Runs


def plan(effort: Effort, seed: int) -> dict[str, Configuration]:
    """One run a network, at its large rate."""
    return layer_plan(effort, seed, "large")


def measure(runs: Runs, theta: float) -> float:
    """Share of zigzag steps of the calmest of all layers; NaN where all runs are too short."""
    shares = np.concatenate([layer_zigzag(run, theta) for run in runs.values()])
    known = shares[np.isfinite(shares)]
    return float(known.min()) if len(known) else math.nan


FIGURE = Reproduction(
    name="a2_layers_large_rate",
    title="Oscillation layer by layer at a large learning rate",
    claims=(5,),
    statement="At a large rate even the calmest of all layers zigzags in at least a tenth of the steps",
    statistic="share of zigzag steps of the layer with the fewest, over all networks",
    threshold=0.1,
    plan=plan,
    measure=measure,
    draw=draw_layers,
    size=(10.0, 10.0),
    notes=(
        "The maps show the first seed. All steps count, those before the first oscillation too. One calm layer of one "
        "network decides, as the claim is of all; the bars tell how the others do. A layer without a gradient is left "
        "out."
    ),
)

if __name__ == "__main__":
    sys.exit(main(FIGURE))
