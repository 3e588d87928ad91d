"""Everything that takes a card: the value tests natively, checks that only a card can make, and the benches.

    python -m bench.gpu        within 8 minutes; writes bench/results/ and bench/README.md

Each file of tests, and each statistic of `bench.common.registry`, has a process of its own and a time limit: where one
crashes or hangs the rest goes on, and what was measured until then stays. Exit status 0 where all tests passed and all
statistics were timed, 1 where something failed, crashed or ran out of time, 2 without a card or with a package
missing. Run from the root of the checkout; nothing is installed and nothing is fetched.
"""

import argparse
import datetime
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.outcome import RECORD, Outcome, read_record

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ("torch", "triton", "numpy", "numba", "h5py", "pytest", "pytest_benchmark")

VALUE_TESTS = (
    "tests/kernels/*/test_*.py",
    "tests/engines/triton/test_engine.py",
    "tests/recording/test_device_copy.py",
)
NATIVE_TESTS = ("bench/native/test_*.py",)
STATISTICS = ("window", "norm", "deferred", "update", "sketch", "step", "sketch step", "dot", "clip")
"""Of the registry, what matters most first, since time may run out."""
OTHER_BENCHES = ("roof", "memory", "growth", "training", "accuracy")

SECONDS = 470.0
"""For everything; `make` and the writing of results come on top."""
GROUP_S = {"values": 190.0, "native": 75.0}
"""For all value tests, and for all native checks."""
JOB_S = 90.0
"""For one process."""
_MOST_PROCESSES = 12


@dataclass(frozen=True)
class Job:
    """One run of pytest.

    Attributes:
        name: for the summary.
        arguments: of pytest.
        seconds: its limit.
        group: of the jobs that share a limit, see `GROUP_S`; none by default. Value tests may use several processes.
        optional: whether it may be cut short where the time runs out.
    """

    name: str
    arguments: tuple[str, ...]
    seconds: float
    group: str = ""
    optional: bool = False


def jobs() -> list[Job]:
    """List what is run, in its order."""
    values, native = (
        [str(path.relative_to(ROOT)) for pattern in patterns for path in sorted(ROOT.glob(pattern))]
        for patterns in (VALUE_TESTS, NATIVE_TESTS)
    )
    warnings = ("-W", "default")  # what torch warns of on a card fails no bench
    return [
        *(Job(path, (path,), JOB_S, "values") for path in values),
        *(Job(path, (path,), JOB_S, "native") for path in native),
        *(
            Job(f"bench: {name}", ("bench/bench_speed.py", "-k", f"[{name.replace(' ', '-')}:", *warnings), JOB_S)
            for name in STATISTICS
        ),
        *(Job(f"bench: {name}", (f"bench/bench_{name}.py", *warnings), JOB_S, optional=True) for name in OTHER_BENCHES),
    ]


def run_job(job: Job, folder: Path, seconds: float) -> tuple[Outcome, list[dict[str, Any]]]:
    """Run pytest in a process of its own, with record and log in a folder, for so many seconds and then kill it all.

    Returns:
        How it ended, and what its benches recorded.
    """
    stem = "".join(c if c.isalnum() else "-" for c in job.name)
    record, log = folder / f"{stem}.jsonl", folder / f"{stem}.log"
    record.touch()
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "bench.record", "-p", "no:cacheprovider"]
    if job.group == "values" and importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(min(_MOST_PROCESSES, os.cpu_count() or 1))]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    environment |= {RECORD: str(record), "PYTHONPATH": os.pathsep.join(paths)}
    started = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, *job.arguments],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _kill_group(process)
    outcome, benches = read_record(record, job.name, status)
    outcome.seconds = time.monotonic() - started
    outcome.ok |= status is None and job.optional and not outcome.failures
    if not outcome.ok:
        outcome.tail = "\n".join(log.read_text(errors="replace").splitlines()[-40:])
    return outcome, benches


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # all of it has ended by itself
    process.wait()


def run_all(todo: Sequence[Job], folder: Path, seconds: float = SECONDS) -> tuple[list[Outcome], list[dict[str, Any]]]:
    """Run all jobs, one after the other, each within its limit and all within theirs.

    Returns:
        The outcomes in the order of the jobs, and what the benches recorded.
    """
    deadline = time.monotonic() + seconds
    left = dict(GROUP_S)
    outcomes, benches = [], []
    for job in todo:
        limit = min(job.seconds, left.get(job.group, seconds), deadline - time.monotonic())
        outcome = Outcome(job.name, ok=job.optional)
        if limit > 1:
            outcome, recorded = run_job(job, folder, limit)
            benches += recorded
        if job.group in left:
            left[job.group] -= outcome.seconds
        outcomes.append(outcome)
        print(f"{'ok  ' if outcome.ok else 'FAIL'} {job.name}: {outcome.summary()}", flush=True)
        for test, reason in outcome.failures.items():
            print(f"       {test}: {reason}", flush=True)
        if outcome.tail and not outcome.failures:
            print(outcome.tail, flush=True)
    return outcomes, benches


def as_benchmark_file(benches: Sequence[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Give what was recorded the form of pytest-benchmark's own file."""
    from pytest_benchmark.utils import get_commit_info

    return {
        "datetime": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit_info": get_commit_info(),
        "seconds": seconds,
        "benchmarks": list(benches),
    }


def main() -> int:
    """Run everything, write and print the results, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description="Tests, checks and benches on a card.")
    parser.add_argument("--out", type=Path, help="folder of README.md and results/; default bench/")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="keep the logs of all processes in this folder")
    options = parser.parse_args()
    if absent := [name.replace("_", "-") for name in NEEDED if importlib.util.find_spec(name) is None]:
        print(
            f"fastgeom: make gpu installs nothing, and these packages are missing: {', '.join(absent)}", file=sys.stderr
        )
        return 2
    import torch

    if not torch.cuda.is_available():
        print("fastgeom: no CUDA card found: make gpu needs one", file=sys.stderr)
        return 2
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.logs or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        outcomes, benches = run_all(jobs(), folder)
        merged = folder / "benches.json"
        merged.write_text(json.dumps(as_benchmark_file(benches, time.monotonic() - started)))
        if benches:
            from bench.report import publish

            publish(merged, options.out or ROOT / "bench", jobs=[asdict(outcome) for outcome in outcomes])
    return 0 if benches and all(outcome.ok for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
