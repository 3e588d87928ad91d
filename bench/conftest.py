"""What every bench uses: the device under test, the plain reads beside it, and the table at the end."""

import time
from collections.abc import Iterator

import numba
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.common.cpu import numpy_threads
from bench.common.device import Card, Cpu, device_under_test
from bench.common.facts import versions
from bench.common.measuring import Bench
from bench.common.reads import Reads

STARTED = time.monotonic()


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> Card | Cpu:
    """A card where there is one, else the processor; under ``--benchmark-disable`` no times are wanted of it."""
    return device_under_test(timed=not request.config.getoption("benchmark_disable"))


@pytest.fixture(scope="session")
def facts(device: Card | Cpu) -> dict[str, object]:
    """What every result says of where it was taken."""
    threads = {"torch": device.threads(), "numpy": numpy_threads(), "numba": numba.get_num_threads()}
    return {"device": device.facts(), "versions": versions(), "threads": threads}


@pytest.fixture(scope="session")
def reads(device: Card | Cpu) -> Reads:
    """The fastest plain reads."""
    found = Reads(device)
    if device.timed:
        found.keep_fastest(device)
    return found


@pytest.fixture
def bench(benchmark: BenchmarkFixture, device: Card | Cpu, facts: dict[str, object]) -> Iterator[Bench]:
    """The bench of one test."""
    yield Bench(benchmark, device, facts)
    device.forget()


def pytest_benchmark_update_json(output_json: dict[str, object]) -> None:
    """Let the file say how long all of it took."""
    output_json["seconds"] = time.monotonic() - STARTED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what was found."""
    if Bench.lines and not config.getoption("benchmark_disable"):
        terminalreporter.section("fastgeom bench")
        for line in Bench.lines:
            terminalreporter.line(line)
