"""A plugin of pytest that writes a line of JSON for each test as it ends, so that a killed run leaves its results.

FASTGEOM_RECORD=FILE python -m pytest -p bench.record ...
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from bench.outcome import RECORD


def pytest_configure(config: pytest.Config) -> None:
    """Of the processes of xdist only the one that gathers the reports records."""
    if hasattr(config, "workerinput"):
        config.pluginmanager.unregister(name="bench.record")


def _write(**line: object) -> None:
    with Path(os.environ[RECORD]).open("a") as lines:
        print(json.dumps(line), file=lines)


def pytest_collection_finish(session: pytest.Session) -> None:
    _write(collected=len(session.items))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(ids: Sequence[str]) -> None:
    _write(collected=len(ids))


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        _write(test=report.nodeid, outcome="failed", reason=_reason(report))


def pytest_runtest_logstart(nodeid: str) -> None:
    _write(started=nodeid)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Of several phases that went wrong each has a line."""
    if report.when == "call" or not report.passed:
        _write(test=report.nodeid, outcome=report.outcome, reason=_reason(report))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """What a bench that has passed recorded."""
    yield
    if (benchmark := getattr(item, "funcargs", {}).get("benchmark")) and "kind" in benchmark.extra_info:
        _write(fullname=item.nodeid, extra_info=benchmark.extra_info)


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """What went wrong, on one line."""
    if report.passed:
        return ""
    crash = getattr(report.longrepr, "reprcrash", None)
    return " ".join((crash.message if crash is not None else str(report.longrepr)).split())[:300]
