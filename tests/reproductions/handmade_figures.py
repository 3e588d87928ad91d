"""One seed's runs of every figure, made by hand, and the statistic that they must give."""

import importlib
import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from reproductions.__main__ import NAMES
from reproductions.common.runs import TrainingRun
from tests.figures.handmade_runs import made, walk
from tests.trajectories import rotation

Runs = Mapping[str, TrainingRun]

LR = 0.1
HARD, SOFT = 12 / LR, 1.8 / LR
"""Curvatures of P10's loss: a step along the gradient comes back from 1/12 of the learning rate on, and from 1/1.8."""

EXACTLY_5, BELOW_5 = "zz" + "s" * 38, "zz" + "s" * 39
EXACTLY_2, BELOW_2 = "zz" + "s" * 98, "zz" + "s" * 99
"""Turns of which zigzag is 1/20 and 1/50, and a little less."""

HALF_AT_ONCE, LESS_AT_ONCE = "m" * 10 + "z" * 10 + "m" * 20, "m" * 11 + "z" * 29
"""Turns of which zigzag is a half of the first twenty, and a little less, though more of all."""

IMPLIED = 0.5 * math.log2(1.9 / 0.1)
"""Octaves that P7's labels imply at a threshold of 0.9."""


class Line(nn.Module):
    """P10's network of one parameter, at 1."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.ones(1))


def add_quadratic_gradient(model: Line, *_: object) -> Tensor:
    """A parabola, HARD at x > 0 and SOFT below."""
    loss = (torch.where(model.x > 0, HARD, SOFT) * model.x**2 / 2).sum()
    loss.backward()
    return loss.detach()


def measured(figure_id: str, runs: Runs, theta: float = 0.9) -> float:
    """The statistic of a figure."""
    (name,) = (name for name in NAMES if name.startswith(f"{figure_id.lower()}_"))
    return importlib.import_module(f"reproductions.{name}").FIGURE.measure(runs, theta)


def turning(*turns: str, **changes: object) -> TrainingRun:
    """A run of one layer, or of one layer a word, whose gradients turn so."""
    layers = [walk(word) for word in turns]
    return made(np.concatenate(layers, axis=1), layers=layers, window=1, **changes)


def dirichlet(angle: float, size: int = 16) -> float:
    """Mean of cos(angle (i - j)) over all i < j < size."""
    total = math.sin(size * angle / 2) / math.sin(angle / 2)
    return (total**2 - size) / (size * (size - 1))


def rotating(smooth: float, zigzag: float) -> TrainingRun:
    """40 gradients that turn by one angle a step, then 40 that reverse and turn by the other."""
    return made(np.concatenate([rotation(smooth, 40), rotation(math.pi + zigzag, 40)]))


def by_loss_and_rate(turns: Mapping[tuple[str, float], str], final: Mapping[tuple[str, float], float] = {}) -> Runs:
    """Runs whose loss falls from 2 to 1, by just as much as a run must learn, unless ``final`` says where it ends."""
    return {
        f"{key[0]} {key[1]}": turning(
            word, loss=key[0], lr=key[1], losses=np.linspace(2.0, final.get(key, 1.0), len(word) + 1)
        )
        for key, word in turns.items()
    }


PARENT = "mm" + "z" * 60
"""A parent that zigzags on where its restarts begin, at step 32."""


def restarts(**turns: tuple[str, str, str, str, str]) -> Runs:
    """A loss's parent, kept at every other step but the last two, and its runs at the rate over 1.5, 2, 4, 10."""
    runs = {}
    for loss, (parent, *turns_of_restarts) in turns.items():
        steps = np.arange(0, len(parent) - 1, 2)
        arrays = {"checkpoint_steps": steps, "checkpoints": np.zeros((len(steps), 2), np.float32)}
        made_of_loss = [turning(parent, arrays=arrays), *map(turning, turns_of_restarts)]
        name = loss.replace("_", "-")
        runs |= {f"{name}, rate / {d}": run for d, run in zip(("1", "1.5", "2", "4", "10"), made_of_loss, strict=True)}
    return runs


def losing(smoothness: list[float], losses: list[float], *, network: str) -> TrainingRun:
    """Gradients of +1 and -1, and updates that make L_t what is asked, in the last step too if a run went on."""
    gradients = (-1.0) ** np.arange(len(losses))
    return made(gradients, losses=losses, updates=2 / np.asarray(smoothness), network=network)


PARTS = np.arange(10)
MIDDLES = list(1.05 + PARTS / 10)
"""Middles of ten equal parts of the losses from 1 to 2."""


def at_equal_loss(ratio: np.ndarray) -> Runs:
    """L of the network without aids is ``ratio`` (part,) times that of the one with both, which grows with the loss.

    The other two fix the range; outside of it, and in one step of three inside, L of the first is anything.
    """
    both = 2.0**PARTS
    return {
        "plain": losing(
            [1e6, *(ratio * both).repeat(2), *[1e6] * 11], [3.0, *np.repeat(MIDDLES, 2), *MIDDLES, 0.5], network="plain"
        ),
        "resnet": losing([7.0, 7.0], [2.0, 0.5], network="resnet"),
        "plain-bn": losing([7.0, 7.0], [3.0, 1.0], network="plain-bn"),
        "resnet-bn": losing([1e-3, *both, 1e-3, 1.0], [3.0, *MIDDLES, 0.5, 1.95], network="resnet-bn"),
    }


def swept(*positions: float) -> Runs:
    """20 smooth gradients, 18 zigzag ones and 20 others; kept points are at x = 1, each third of the zigzag at these.

    Every step has a kept point, and so have steps that the run never came to.
    """
    turns = "m" * 5 + "s" * 20 + "z" * 19 + "m" * 20
    x = np.ones(len(turns) + 41, np.float32)
    x[26:44] = np.repeat(positions, 6)
    arrays = {"checkpoint_steps": np.arange(len(x)), "checkpoints": x[:, None]}
    return {"run": made(walk(turns), arrays=arrays, lr=LR)}


def oscillating_at(time: float, count: int = 11) -> TrainingRun:
    """A run of 100 steps of which eleven, around ``time`` of it, oscillate, and too little for zigzag."""
    before = round(100 * time) - 6
    return turning("s" * before + "w" * count + "s" * (99 - before - count), steps=100)


def twice(first: tuple[float, ...], again: tuple[float, ...]) -> Runs:
    """Architectures a, b, ... with the times of their oscillation in two runs each."""
    names = [f"{letter} on digits" for letter in "abcdefgh"[: len(first)]]
    return {name: oscillating_at(time) for name, time in zip(names, first, strict=True)} | {
        f"{name}, again": oscillating_at(time) for name, time in zip(names, again, strict=True)
    }


def at_the_edge() -> TrainingRun:
    """K_t = 4, 6, 3, 4 where c_{t+1} is zigzag, over sharpnesses 8, unknown, 4, 4."""
    return made(
        [4, 3, 2, -2, 4, -2, 2],
        updates=[-2, -1.5, -1, 1, -2, 1, 1],
        sharpness=[5, 9, 8, math.nan, 4, 4, 9],
        top_cosine=[0.9, 0.8, 0.5, math.nan, 1, 0.5, 0.7],
    )


def changing(change: float) -> TrainingRun:
    """Twelve gradients of one direction that differ from the one before by this, by their own length.

    Those of the first half by something else.
    """
    ratios = np.where(np.arange(11) < 5, 3.0, 1 / (1 - change))
    return made(np.cumprod([1.0, *ratios]))


def p1() -> tuple[Runs, float]:
    return {"run": turning("ssss" + "mmm" + "zzz")}, 0.3


def p2() -> tuple[Runs, float]:
    """Two of six cells count: with exactly 2 % of zigzag, and of smooth; not with less, with one regime, too short."""
    turns = [
        EXACTLY_2,
        EXACTLY_2.translate({ord("s"): "z", ord("z"): "s"}),
        BELOW_2,
        "s" * 100,
        "z" * 100,
        "z",
    ]
    return {f"cell {number}": turning(word) for number, word in enumerate(turns)}, 2 / 6


def p3() -> tuple[Runs, float]:
    return {"run": rotating(0.0, 0.0)}, 1.0


def p4() -> tuple[Runs, float]:
    """Cross-entropy: a row of 0.1 and 1, which stand for 0.045 to 1.4, beside one of more rates and less width.

    Squared error: rates that do not neighbour, each for a factor of two, and one whose loss did not halve.
    """
    cross_entropy = {
        **{1.0: "z" * 40, 0.1: EXACTLY_5, 2.0: "m" * 40},
        **{0.013: "z" * 9, 0.01: EXACTLY_5, 0.012: "z" * 9, 0.02: BELOW_5},
    }
    squared = {0.1: "z" * 40, 0.4: BELOW_5, 0.8: EXACTLY_5, 1.6: "z" * 40}
    runs = {("cross-entropy", rate): word for rate, word in cross_entropy.items()}
    runs |= {("mse", rate): word for rate, word in squared.items()}
    return by_loss_and_rate(runs, final={("mse", 1.6): 1.01}), (1.5 + math.log10(2)) / 2


def p5() -> tuple[Runs, float]:
    """Cross-entropy: down to a fourth of the rate, 2 octaves, though not at a half; squared error: to 2/3 of it."""
    runs = restarts(
        cross_entropy=(PARENT, "z" * 20, LESS_AT_ONCE, HALF_AT_ONCE, LESS_AT_ONCE),
        mse=(PARENT, HALF_AT_ONCE, "z" * 19, "m" * 40, "m" * 20),
    )
    return runs, (2 + math.log2(1.5)) / 2


def p6() -> tuple[Runs, float]:
    """Steps 3 and 4 are zigzag: they change the first loss by -(8 - 7) + (8 - 4) of 8, the second by -1 of 4."""
    losses = {"mnist5k": [10, 9, 8, 7, 8, 4, 2], "digits": [5, 4, 3, 2, 2.5, 3, 1]}
    return {data: turning("sszzmm", losses=values, data=data) for data, values in losses.items()}, (3 / 8 - 1 / 4) / 2


def p7() -> tuple[Runs, float]:
    """L_t is 2, 2, 4 where c_{t+1} is smooth and 16, 8, 4 where it is zigzag, and then half as much; once no zigzag."""
    g, u = [8, 7, 6, 4, -4, 4, -4], np.array([0.5, 0.5, 0.5, 0.5, 1, 2, 1])
    calmer = np.array([1, 1, 1, 8, 16, 32, 1])
    return {
        "a": made(g, updates=u),
        "b": made(g, updates=calmer),
        "c": made([8, 7, 6, 5], updates=[1, 1, 1, 1]),
    }, (2 + -1) / 2 - IMPLIED


def p8() -> tuple[Runs, float]:
    return at_equal_loss(np.full(10, 4.0)), 2.0


def p9() -> tuple[Runs, float]:
    turns = {"gd": "s" * 10, "momentum": "zzz" + "s" * 7, "adam": "zzzz" + "m" * 6, "batch 1/2": "s" * 10}
    return {name: turning(word) for name, word in turns.items()}, 0.3


def p10() -> tuple[Runs, float]:
    return swept(1, -1, 1), 2 / 3


def a1() -> tuple[Runs, float]:
    """Times 0.2, 0.4 and 0.9 in both runs: the variance between them is (0.09 + 0.01 + 0.16) / 2.

    The 0.4 of one run is the mean of two stretches, around 19 and 61 of 100, of single steps that oscillate.
    """
    times = (0.2, 0.4, 0.9)
    apart = turning("s" * 9 + "ws" * 10 + "s" * 22 + "ws" * 10 + "s" * 28, steps=100)
    return {**twice(times, times), "b on digits": apart}, math.sqrt(0.26 / 2)


def a2() -> tuple[Runs, float]:
    """The calmest of five layers oscillates in 2 steps of 10."""
    return {"a": turning("z" * 10, "ssww" + "s" * 6), "b": turning("zwz" + "s" * 7, "s" + "z" * 9, "ss" + "z" * 8)}, 0.2


def a3() -> tuple[Runs, float]:
    """First less last: 0.6 - 0.2 and 0.2 - 0.3; the layers between do not count."""
    return {
        "a": turning("w" * 6 + "ssss", "z" * 10, "zz" + "s" * 8),
        "b": turning("zz" + "s" * 8, "s" * 10, "wsw" + "s" * 6 + "w"),
    }, (0.4 - 0.1) / 2


def a4() -> tuple[Runs, float]:
    """c < 0 at steps 2, 4 and 5 (the last, whose change is unknown): -1 + 3 of 8, then -1 - 1 of 4, then none of 5."""
    losses = {"mlp": [10, 9, 7, 8, 5, 2], "cnn": [8, 6, 4, 5, 3, 4], "vgg": [6, 5, 4, 3, 2, 1]}
    turns = {"mlp": "swsww", "cnn": "swsww", "vgg": "sssss"}
    return {n: turning(turns[n], losses=values, network=n) for n, values in losses.items()}, (2 / 8 - 2 / 4 + 0) / 3


def b1() -> tuple[Runs, float]:
    """Cosines of 0.5, unknown, 1 and 0.5 where c_{t+1} is zigzag."""
    return {"run": at_the_edge()}, (0.25 + 1 + 0.25) / 3


def b2() -> tuple[Runs, float]:
    """With ReLU the change is 0.1 after every restart but the first, and with GELU in proportion to the rate."""
    runs = {"ReLU, rate / 1.5": changing(0.9), **{f"ReLU, rate / {d}": changing(0.1) for d in ("2", "4", "10")}}
    return runs | {f"GELU, rate / {d}": changing(0.15 / float(d)) for d in ("1.5", "2", "4", "10")}, 1.0


EXAMPLES: dict[str, Callable[[], tuple[Runs, float]]] = {
    example.__name__.upper(): example for example in (p1, p2, p3, p4, p5, p6, p7, p8, p9, p10, a1, a2, a3, a4, b1, b2)
}
