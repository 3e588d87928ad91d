"""Train one network at a constant rate, measure every step, and draw and tabulate both geometries.

A small convolutional network is trained by plain full-batch gradient descent on real images. Every step is measured:
the correlation of each gradient with the 32 before it, overall and per layer, and the curvature met by the update. The
result is a trace, a picture and a table. The settings are ours: those of the paper are not known.

    python -m reproductions demo --data digits --steps 400
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded; see reproductions/README.md

import numpy as np
import torch
from tqdm import tqdm

import fastgeom
from fastgeom import analysis, figures
from reproductions.common import models
from reproductions.common.arguments import OneLineParser, positive_integer, positive_number, seed_number
from reproductions.common.data import IMAGES, MOST_EXAMPLES, DataNotFoundError, Examples, describe, load
from reproductions.common.descent import MICRO_BATCH, add_full_batch_gradient
from reproductions.common.shares import DEFINITIONS

PROGRAM = "python -m reproductions demo"
WINDOW = 32
THETA = 0.9
LEARNING_RATES = {"digits": 0.1, "mnist5k": 0.05, "cifar10": 0.05}
"""Rates at which the run reaches the edge of stability early and stays near it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, draw, tabulate; the exit status is 0, 2 for input that cannot be used, 130 after Ctrl-C."""
    options = parse(arguments)
    trace_path, figure_path = options.out / "demo.h5", options.out / "demo.png"
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        data = load(options.data, options.images)
        model = models.build("cnn", data, options.seed)
        settings = describe_run(data, model, options)
        print(settings)
        interrupted = not descend(model, data, options, trace_path)
        trace = fastgeom.open_trace(trace_path)
        title = "Two geometries of training: smooth and zigzag"
        figures.draw_run(trace, THETA, title=title, caption=settings).savefig(figure_path, dpi=150)
    except (DataNotFoundError, OSError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted: nothing is drawn.", file=sys.stderr)
        return 130
    print(tabulate(trace))
    print(f"trace   {trace_path}\nfigure  {figure_path}")
    return 130 if interrupted else 0


def descend(model: torch.nn.Module, data: Examples, options: argparse.Namespace, trace_path: Path) -> bool:
    """Run gradient descent at one constant learning rate, measured at every step; False where Ctrl-C cut it short.

    Raises:
        KeyboardInterrupt: Ctrl-C before the first step was measured.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=options.lr)
    measured = fastgeom.Probe(model, window=WINDOW, trace=trace_path, trace_mode="w", track_updates=True)
    trace_path.resolve().unlink(missing_ok=True)  # an earlier run's: this one's appears with its first step
    try:
        with measured as probe, tqdm(total=options.steps, unit=" steps", dynamic_ncols=True) as bar:
            for _ in range(options.steps):
                loss = add_full_batch_gradient(model, data)
                statistics = probe.step(loss=loss, lr=options.lr)
                optimizer.step()
                optimizer.zero_grad()
                bar.set_postfix_str(f"loss {loss:.4f}, correlation {statistics.lag_cosine[0]:+.3f}", refresh=False)
                bar.update()
                if not loss.isfinite():
                    bar.write("The loss is no longer finite: stopped.", file=sys.stderr)
                    break
    except KeyboardInterrupt:
        if not trace_path.exists():
            raise
        print("Interrupted: what was measured is kept and drawn.", file=sys.stderr)
        return False
    return True


def tabulate(trace: Any) -> str:
    """Steps and progress shares of each regime, the largest curvature, and what measuring cost."""
    labels = analysis.classify(trace.lag_cosine[:, 0], THETA)
    counts, shares = analysis.regime_counts(labels), analysis.progress_shares(trace.loss, labels, trace.step)
    lines = [
        "",
        f"{'':24}share of the progress",
        f"{'regime':8}{'steps':>7}{'':9}" + "".join(f"{d:>9}" for d in DEFINITIONS.values()),
    ]
    for name, count in counts.items():
        portion = count / max(1, len(labels))
        columns = "".join(f"{getattr(getattr(shares, field), name):9.2f}" for field in DEFINITIONS)
        lines.append(f"{name:8}{count:7,}{portion:9.1%}{columns}")

    kappa = analysis.step_curvature(trace.grad_dot_update, trace.next_grad_dot_update)
    if np.isfinite(kappa).any():
        row = int(np.nanargmax(kappa))
        lines.append(f"\nlargest step curvature  {kappa[row]:.2f} at step {trace.step[row]}")
    if len(trace.step) > 1:
        cost, step_time = np.median(trace.measure_time_ms), 1e3 * np.median(np.diff(trace.wall_time))
        lines.append(f"cost of measuring       {cost:.2f} ms of {step_time:.1f} ms a step: {cost / step_time:.1%}\n")
    return "\n".join(lines)


def describe_run(data: Examples, model: torch.nn.Module, options: argparse.Namespace) -> str:
    """Describe data, network and optimiser, for the figure and the terminal."""
    n_passes = -(-len(data) // MICRO_BATCH)
    return (
        f"{describe(options.data, len(data))}, cross-entropy · {models.describe('cnn')}; "
        f"{models.count_parameters(model):,} parameters\n"
        f"full-batch gradient descent ({n_passes} micro-batch{'es' if n_passes > 1 else ''} a step), "
        f"constant η = {options.lr:g}, no momentum · seed {options.seed} · settings are ours, not the paper's"
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; every default shows both regimes."""
    parser = OneLineParser(prog=PROGRAM, description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=IMAGES, default="mnist5k", help="images to train on (default: mnist5k)")
    parser.add_argument(
        "--images",
        type=positive_integer,
        default=MOST_EXAMPLES,
        metavar="N",
        help="how many of them at most (default: %(default)s)",
    )
    parser.add_argument("--steps", type=positive_integer, default=700, metavar="N", help="default: %(default)s")
    parser.add_argument("--lr", type=positive_number, metavar="X", help="default: 0.1 for digits, else 0.05")
    parser.add_argument(
        "--seed", type=seed_number, default=0, metavar="S", help="of the initialisation (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs"), metavar="FOLDER", help="default: %(default)s")
    options = parser.parse_args(arguments)
    options.lr = options.lr or LEARNING_RATES[options.data]
    return options
