"""The fixture that every bench uses, and the table at the end."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.measuring import LINES, Bench


@pytest.fixture
def bench(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> Bench:
    """The bench of one test."""
    return Bench(benchmark, request.node.name.removeprefix("test_"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was found, each number beside its goal."""
    if LINES:
        terminalreporter.section("fastgeom bench")
        for line in LINES:
            terminalreporter.line(line)
