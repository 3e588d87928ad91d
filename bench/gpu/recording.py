"""A plugin of pytest that writes a line of JSON for each test as it ends, so that a run that is cut short has said all.

FASTGEOM_GPU_RECORD=FILE python -m pytest -p bench.gpu.recording ...
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

RECORD = "FASTGEOM_GPU_RECORD"
"""Names the file."""


class Recorder:
    """Writes how each test ended; of several phases that went wrong each has a line."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def _say(self, **line: object) -> None:
        with self._path.open("a") as lines:
            print(json.dumps(line), file=lines)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test has run, or its fixtures have failed."""
        if report.when == "call" or not report.passed:
            self._say(test=report.nodeid, outcome=report.outcome, why=_why(report))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file could not be read."""
        if report.failed:
            self._say(test=report.nodeid, outcome="failed", why=_why(report))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """How many there are, where they run in this process."""
        self._say(collected=len(session.items))

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: object, ids: Sequence[str]) -> None:
        """How many there are, where xdist spreads them."""
        del node
        self._say(collected=len(ids))


def _why(report: pytest.TestReport | pytest.CollectReport) -> str:
    """What went wrong, on one line."""
    if report.passed:
        return ""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else str(report.longrepr)
    return " ".join(text.split())[:300]


def pytest_configure(config: pytest.Config) -> None:
    """Record in the process that gathers the reports, not in the workers of xdist."""
    if RECORD in os.environ and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(Path(os.environ[RECORD])), "fastgeom-gpu-record")
