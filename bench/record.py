"""A plugin of pytest that writes a line of JSON for each test as it ends, so that a killed run leaves its results.

FASTGEOM_RECORD=FILE python -m pytest -p bench.record ...
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from bench.outcome import RECORD


class Recorder:
    """Writes which test starts, how it ends, and what a bench recorded.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def _write(self, **line: object) -> None:
        with self._path.open("a") as lines:
            print(json.dumps(line), file=lines)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Tests are counted, where they run in this process."""
        self._write(collected=len(session.items))

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: object, ids: Sequence[str]) -> None:
        """Tests are counted, where xdist spreads them."""
        del node
        self._write(collected=len(ids))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file could not be read."""
        if report.failed:
            self._write(test=report.nodeid, outcome="failed", reason=_reason(report))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test starts."""
        self._write(started=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test has run, or its fixtures have failed; of several phases that went wrong each has a line."""
        if report.when == "call" or not report.passed:
            self._write(test=report.nodeid, outcome=report.outcome, reason=_reason(report))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        """A bench has passed: its results."""
        yield
        if (benchmark := getattr(item, "funcargs", {}).get("benchmark")) and "kind" in benchmark.extra_info:
            self._write(fullname=item.nodeid, extra_info=benchmark.extra_info)


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """What went wrong, on one line."""
    if report.passed:
        return ""
    crash = getattr(report.longrepr, "reprcrash", None)
    return " ".join((crash.message if crash is not None else str(report.longrepr)).split())[:300]


def pytest_configure(config: pytest.Config) -> None:
    """Record in the process that gathers the reports, not in the workers of xdist."""
    if RECORD in os.environ and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(Path(os.environ[RECORD])), "fastgeom-record")
