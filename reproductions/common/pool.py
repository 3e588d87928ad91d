"""Many runs on all cores: finished runs are not made again, and an interrupted set of runs resumes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.context import SpawnContext
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

from tqdm import tqdm

from reproductions.common.configuration import Configuration
from reproductions.common.runs import find
from reproductions.common.training import train

REFRESH_S = 0.5


def finish(configurations: Iterable[Configuration], folder: Path, workers: int) -> None:
    """Finish every run, and every run that one of them restarts from.

    Args:
        configurations: the runs; one that occurs twice is made once.
        folder: where runs are stored.
        workers: runs made at a time, each on one thread; 1 makes them in this process.

    Raises:
        RunError, OSError, DataNotFoundError: as ``train``; finished runs stay.
    """
    waves: list[dict[str, Configuration]] = []
    for configuration in configurations:
        _assign_wave(configuration, waves)
    for wave in waves:
        missing = [c for c in wave.values() if find(c, folder) is None]
        missing.sort(key=lambda c: -c.steps * c.n_examples)  # the longest first, so that none is left over at the end
        if workers == 1 or len(missing) < 2:
            for configuration in missing:
                _train_with_bar(configuration, folder, position=0)
        elif missing:
            _in_processes(missing, folder, min(workers, len(missing)))


def _assign_wave(configuration: Configuration, waves: list[dict[str, Configuration]]) -> int:
    """Put a run into the wave after that of the run it restarts from, and return the index of its wave."""
    number = 0 if configuration.restart is None else 1 + _assign_wave(configuration.restart.parent, waves)
    while len(waves) <= number:
        waves.append({})
    waves[number][configuration.name] = configuration
    return number


def _in_processes(missing: list[Configuration], folder: Path, workers: int) -> None:
    context: SpawnContext = multiprocessing.get_context("spawn")
    lock, slots = context.RLock(), context.Value("i", 0)
    executor = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(lock, slots))
    tqdm.set_lock(lock)
    try:
        with tqdm(total=len(missing), unit=" runs", desc="all runs", position=0, mininterval=REFRESH_S) as bar:
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Ctrl-C is not the workers' to handle
            try:
                futures = [executor.submit(_train_in_slot, configuration, folder) for configuration in missing]
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            for future in as_completed(futures):
                future.result()
                bar.update()
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        tqdm.set_lock(threading.RLock())  # a process that was killed may never release the other
        raise
    executor.shutdown()


_slot = 0


def _start_worker(lock: Any, slots: Synchronized[int]) -> None:
    """Take a line of the terminal for this process's bars, and end with the process that started this one."""
    global _slot  # noqa: PLW0603 - a process of the pool can store its number nowhere else
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tqdm.set_lock(lock)
    with slots.get_lock():
        slots.value += 1
        _slot = slots.value


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _train_in_slot(configuration: Configuration, folder: Path) -> None:
    _train_with_bar(configuration, folder, _slot)


def _train_with_bar(configuration: Configuration, folder: Path, position: int) -> None:
    title = configuration.title
    with tqdm(
        total=configuration.steps, unit=" steps", desc=title, position=position, leave=False, mininterval=REFRESH_S
    ) as bar:

        def report(done: int, line: str) -> None:
            bar.set_postfix_str(line, refresh=False)
            bar.update(done - bar.n)

        train(configuration, folder, report)
