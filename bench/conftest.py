"""What every bench uses: the device under test, the plain reads beside it, and the fixture that times."""

import os
import time
from collections.abc import Iterator

import numba
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.common.cpu import numpy_threads
from bench.common.device import Card, Cpu, device_under_test, versions
from bench.common.peak import Peak
from bench.common.timing import Bench

STARTED = time.monotonic()


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> Card | Cpu:
    """A card where there is one, else the processor; under ``--benchmark-disable`` no times are wanted of it."""
    return device_under_test(timed=not request.config.getoption("benchmark_disable"))


@pytest.fixture(autouse=True)
def memory_released(device: Card | Cpu) -> Iterator[None]:
    """No bench finds the tensors of another in its way."""
    yield
    device.forget()


@pytest.fixture(scope="session")
def facts(device: Card | Cpu) -> dict[str, object]:
    """What every result says of where it was taken."""
    threads = {"torch": torch.get_num_threads(), "numpy": numpy_threads(), "numba": numba.get_num_threads()}
    return {"device": device.facts(), "versions": versions(), "threads": threads}


@pytest.fixture(scope="session")
def peak(device: Card | Cpu) -> Peak:
    """The fastest plain reads."""
    reads = Peak(device)
    if device.timed:
        reads.select_fastest(device)
    return reads


@pytest.fixture
def bench(benchmark: BenchmarkFixture, device: Card | Cpu, facts: dict[str, object]) -> Bench:
    """The bench of one test."""
    return Bench(benchmark, device, facts)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where files are spread over processes, start with the longest."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: item.path.name != "bench_speed.py")


def pytest_benchmark_update_json(output_json: dict[str, object]) -> None:
    """Let the file say how long all of it took."""
    output_json["seconds"] = time.monotonic() - STARTED
