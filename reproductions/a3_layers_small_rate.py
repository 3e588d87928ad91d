"""A3: at a small learning rate the layers near the input oscillate more than those near the output.

The networks of A2 are trained for longer at a smaller rate, at which the oscillation comes late. Each layer's gradient
is compared with its own of the step before: a layer oscillates at a step where that correlation is negative. The
statistic of a seed is the share of oscillating steps in the first layer less that in the last one, averaged over
networks.

    python -m reproductions a3
"""

from __future__ import annotations

from reproductions.common.configuration import Configuration
from reproductions.common.layers import draw_layers, layer_oscillation, layer_plan
from reproductions.common.reproduction import Reproduction, Runs
from reproductions.common.request import Effort
from reproductions.common.spread import finite_mean

RATES: dict[Effort, dict[str, tuple[float, int]]] = {
    "quick": {"cnn": (0.02, 20), "mlp": (0.02, 20)},
    "default": {"cnn": (0.02, 800), "mlp": (0.06, 800), "resnet": (0.025, 500), "vgg": (0.00625, 600)},
    "full": {"vgg": (0.005, 2000), "resnet": (0.005, 2000)},
}
"""Rate and steps of each network; at 0.04 and less the MLP did not oscillate in so many steps, on the seeds 0 and 1."""


def plan(effort: Effort, seed: int) -> dict[str, Configuration]:
    """One run a network."""
    return layer_plan(effort, seed, RATES[effort])


def measure(runs: Runs, theta: float) -> float:
    """First layer's share of oscillating steps less the last one's, mean of networks; NaN where all are too short."""
    shares = [layer_oscillation(run) for run in runs.values()]
    return float(finite_mean([share[0] - share[-1] for share in shares]))


FIGURE = Reproduction(
    name="a3_layers_small_rate",
    title="Oscillation layer by layer at a small learning rate",
    claims=(6,),
    statement="At a small rate the first layer oscillates in more of the steps than the last, by at least 5 % of them",
    statistic="share of steps with c_t < 0 in the first layer less that in the last, averaged over networks",
    threshold=0.05,
    plan=plan,
    measure=measure,
    draw=draw_layers,
    size=(10.0, 10.0),
    notes=(
        "The maps show the first seed. A network in which no layer oscillates counts as 0, and so does one in which "
        "both ends do alike: the bars tell which. A negative number says that the last layer oscillates more. θ plays "
        "no part."
    ),
)
