"""A figure: its claim, the runs it needs, the statistic that decides it, and how it is drawn."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from matplotlib.figure import Figure, SubFigure

from reproductions.common.caption import describe_settings
from reproductions.common.configuration import Configuration
from reproductions.common.picture import new_picture, save_picture
from reproductions.common.pool import finish
from reproductions.common.request import Effort, Request
from reproductions.common.runs import RunError, TrainingRun, find
from reproductions.common.verdict import Verdict, format_interval, judge

SEEDS = range(20, 25)
"""Settings were tried out on seeds below 10, and 10 to 17 had been seen when statistics were changed."""

QUICK_SEEDS = 2

Runs = Mapping[str, TrainingRun]
"""The runs of one seed, by the keys that the plan gave them."""


@dataclass(frozen=True)
class Results:
    """Runs and verdict that a figure is drawn from.

    Attributes:
        runs: seed -> key -> run.
        theta: threshold of the regimes.
        verdict: of the statistic over the seeds.
    """

    runs: Mapping[int, Runs]
    theta: float
    verdict: Verdict

    @property
    def first(self) -> Runs:
        """The runs of the first seed: what is drawn where one run has to stand for all."""
        return self.runs[min(self.runs)]


@dataclass(frozen=True)
class Reproduction:
    """A figure and its verdict.

    Attributes:
        name: stem of the script and of what it writes; the part before the first ``_`` is the figure's id.
        title: line above the figure.
        claims: numbers of the paper's claims that it tests; none for figures beyond the paper.
        statement: the claim as this figure tests it, one sentence that is true or false.
        statistic: what is measured of each seed, with its unit.
        threshold: the statement holds where the mean over seeds is at least this; committed before the results.
        plan: the runs of one seed at an effort, each under a unique key.
        measure: the statistic of one seed's runs, given theta; NaN where they are too short.
        draw: fills a figure of ``size`` inches.
        notes: what else a reader should know: what was chosen, what the statistic does not say.
        seeds: those of the default settings; other efforts and numbers of seeds begin at the first of them.
    """

    name: str
    title: str
    claims: tuple[int, ...]
    statement: str
    statistic: str
    threshold: float
    plan: Callable[[Effort, int], Mapping[str, Configuration]]
    measure: Callable[[Runs, float], float]
    draw: Callable[[Figure | SubFigure, Results], None]
    size: tuple[float, float]
    notes: str = ""
    seeds: range = SEEDS

    @property
    def id(self) -> str:
        """Letter and number, as in P1, A4 or B2."""
        return self.name.partition("_")[0].upper()


def planned(figure: Reproduction, request: Request) -> dict[int, dict[str, Configuration]]:
    """All runs of a figure: seed -> key -> configuration."""
    first = figure.seeds.start if request.first_seed is None else request.first_seed
    number = request.seeds or (QUICK_SEEDS if request.effort == "quick" else len(figure.seeds))
    return {
        seed: {key: _apply_request(c, request) for key, c in figure.plan(request.effort, seed).items()}
        for seed in range(first, first + number)
    }


def _apply_request(configuration: Configuration, request: Request) -> Configuration:
    steps = configuration.steps if request.steps is None else min(configuration.steps, request.steps)
    restart = configuration.restart
    if restart is not None:
        restart = replace(restart, parent=_apply_request(restart.parent, request), theta=request.theta)
    return replace(configuration, steps=steps, lr=configuration.lr * request.lr_scale, restart=restart)


def train_all(figures: Sequence[Reproduction], request: Request) -> None:
    """Finish every run of some figures; shared runs are made once."""
    configurations = [c for figure in figures for runs in planned(figure, request).values() for c in runs.values()]
    finish(configurations, request.runs_folder, request.workers)


def conclude(figure: Reproduction, request: Request) -> tuple[Verdict, Path]:
    """Analyse the finished runs, draw the figure and write its verdict; return the verdict and the picture's path.

    Raises:
        RunError: a run is missing or its files cannot be used.
    """
    started = time.perf_counter()
    configurations = planned(figure, request)
    runs = {
        seed: {key: _load_run(c, request) for key, c in seed_runs.items()} for seed, seed_runs in configurations.items()
    }
    values = [figure.measure(seed_runs, request.theta) for seed_runs in runs.values()]
    results = Results(runs, request.theta, judge(values, figure.threshold))

    all_runs = [run for seed_runs in runs.values() for run in seed_runs.values()]
    settings = describe_settings([run.configuration for run in all_runs])
    diverged = [run for run in all_runs if run.diverged_at is not None]
    if diverged:
        settings += f"\n{len(diverged)} of {len(all_runs)} runs diverged to infinity; they are read up to there"
    picture, body = new_picture(
        figure.size, f"{figure.id}  {figure.title}", verdict_line(figure, results.verdict, request.theta), settings
    )
    figure.draw(body, results)
    path = save_picture(picture, request.out / figure.name)
    record = {
        "id": figure.id,
        "name": figure.name,
        "title": figure.title,
        "claims": list(figure.claims),
        "statement": figure.statement,
        "statistic": figure.statistic,
        **asdict(results.verdict),
        "theta": request.theta,
        "effort": request.effort,
        "is_default": request.is_default,
        "seeds": list(runs),
        "settings": settings,
        "notes": figure.notes,
        "runs": sorted({run.configuration.name for run in all_runs}),
        "diverged": len(diverged),
        "training_s": round(sum({run.configuration.name: run.seconds for run in all_runs}.values()), 1),
        "drawing_s": round(time.perf_counter() - started, 1),
        "processor": _each_once(run.processor for run in all_runs),
        "versions": {
            name: _each_once(run.versions.get(name, "unknown") for run in all_runs) for name in all_runs[0].versions
        },
    }
    text = json.dumps(_without_nan(record), indent=1, ensure_ascii=False, allow_nan=False)
    path.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    return results.verdict, path


def verdict_line(figure: Reproduction, verdict: Verdict, theta: float) -> str:
    """Format a verdict: the statement on one line, its numbers on a second one."""
    n_valid = sum(map(math.isfinite, verdict.values))
    seeds = f"{n_valid} seeds" if n_valid == len(verdict.values) else f"{n_valid} of {len(verdict.values)} seeds"
    return (
        f"{figure.statement}: {verdict.verdict.upper()}\n"
        f"{figure.statistic}: {format_interval(verdict.mean, verdict.low, verdict.high)}; "
        f"threshold {verdict.threshold:g}, θ = {theta:g}, {seeds}"
    )


def _each_once(texts: Iterable[str]) -> str:
    return "; ".join(sorted(set(texts)))


def _load_run(configuration: Configuration, request: Request) -> TrainingRun:
    run = find(configuration, request.runs_folder)
    if run is None:
        raise RunError(f"{request.runs_folder}: expected the finished run {configuration.name}, found none")
    return run


def _without_nan(value: object) -> object:
    """Replace NaN and infinity, which JSON lacks, by null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return value
