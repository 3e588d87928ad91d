"""One run of the benches as one document: what `bench.report` writes, and what page, picture and comparison read.

A document is made of the file that pytest-benchmark writes. It keeps what each bench recorded (its ``extra_info``) and
leaves out the times of single rounds.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Document = dict[str, Any]
Facts = Mapping[str, Any]

FORMAT, SCHEMA = "fastgeom bench", 1
RESULTS = Path(__file__).resolve().parent.parent / "results"
SHARED = ("device", "versions", "threads")
"""What every bench of a run repeats; a document holds it once."""

STATISTICS = ("norm", "dot", "window", "deferred", "update", "sketch", "sketch step", "step", "clip")
"""Of the registry, which takes torch to import; a test holds both together."""
COMPLETE = ("speed", "training", "accuracy", "growth", "memory")
"""The kinds that a complete run has."""
KINDS = (*COMPLETE, "roof")


class UnusableError(ValueError):
    """A file that is not what was expected; the message names it."""


def read(path: Path) -> Document:
    """The document of a file: of one that `bench.report` wrote, or of pytest-benchmark's own.

    Raises:
        UnusableError: where it is neither, holds no benches, or those of two devices.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # broken JSON, or no UTF-8
        hint = "`pytest bench --benchmark-json` writes it, but not under --benchmark-disable or where nothing was run"
        raise UnusableError(f"{path}: cannot be read as JSON ({error}); {hint}") from None
    if isinstance(content, dict) and (content.get("format"), content.get("schema")) == (FORMAT, SCHEMA):
        return content
    if not isinstance(content, dict) or not content.get("benchmarks"):
        raise UnusableError(
            f"{path}: expected the JSON of `pytest bench --benchmark-json` without --benchmark-disable, "
            f"or that of `bench.report` with schema {SCHEMA}"
        )
    return _document(content, path)


def newest(folder: Path, *, but: Document | None = None) -> list[Document]:
    """The newest document of each device among the files of a folder, CPUs first, without the run ``but``."""
    by_device: dict[str, Document] = {}
    for run in sorted(map(read, sorted(folder.glob("*.json"))), key=lambda run: run["date"]):
        slug = run["device"]["slug"]
        if not but or (but["device"]["slug"], but["date"]) != (slug, run["date"]):
            by_device[slug] = run
    return sorted(by_device.values(), key=lambda run: (run["device"]["kind"] != "cpu", run["device"]["slug"]))


def of_kind(document: Document, kind: str) -> list[Facts]:
    """Its benches of one kind, in their order."""
    return [bench for bench in document["benches"] if bench["kind"] == kind]


Identity = tuple[object, ...]


def identity(bench: Facts) -> Identity:
    """What tells a bench from the others of a run, whatever its test is called."""
    if bench["kind"] == "speed":
        case = bench["case"]
        sizes = (case.get(name) for name in ("elements", "tensors", "dtype", "traced"))
        return "speed", bench["title"], *sizes
    fields = ("model", "statistic", "distribution", "dtype", "elements", "over", "title", "what")
    return bench["kind"], *(bench.get(name) for name in fields)


def lacking(document: Document, stored: Sequence[Document]) -> list[str]:
    """What a complete run has and this one has not: a kind, a statistic, a bench of the same device's stored run."""
    kinds = {bench["kind"] for bench in document["benches"]}
    lacks = [f"no {kind}" for kind in COMPLETE if kind not in kinds]
    if "speed" in kinds:
        timed = {bench["case"]["statistic"] for bench in of_kind(document, "speed")}
        lacks += [f"no speed of {statistic}" for statistic in STATISTICS if statistic not in timed]
    present = {identity(bench) for bench in document["benches"]}
    for other in stored:
        if other["device"]["slug"] == document["device"]["slug"]:
            gone = [bench["name"] for bench in other["benches"] if identity(bench) not in present]
            lacks += [f"{len(gone)} of the stored benches are missing, {gone[0]} among them"] if gone else []
    return lacks


DRAWN = ("float32", "bfloat16")
"""The dtypes in the picture."""


def picture_name(document: Document) -> str:
    """Name of the picture of a device."""
    return f"roofline-{document['device']['slug']}.svg"


def picture_cases(document: Document) -> list[Facts]:
    """The cases in the picture: of each statistic, float32 and bfloat16, the one that moves the most bytes."""
    needed = ("operations", "bytes_moved", "time_ms", "peak_gb_per_s", "fraction_of_peak")
    largest: dict[tuple[str, str], Facts] = {}
    for case in of_kind(document, "speed"):
        key = (case["case"]["statistic"], case["case"]["dtype"])
        if key[1] in DRAWN and all(case.get(field) for field in needed):
            if key not in largest or case["bytes_moved"] > largest[key]["bytes_moved"]:
                largest[key] = case
    return list(largest.values())


def missed(goal: Facts) -> bool:
    """Whether a goal is missed; one without a number is."""
    value, least, most = goal.get("value"), goal.get("least"), goal.get("most")
    return value is None or (least is not None and value < least) or (most is not None and value > most)


def _document(content: Facts, path: Path) -> Document:
    benches: list[Facts] = []
    shared: dict[str, Any] = {}
    for benchmark in content["benchmarks"]:
        name, facts = benchmark["fullname"], _finite(benchmark.get("extra_info") or {})
        if facts.get("kind") not in KINDS:
            kinds = f"kind is {facts.get('kind')!r} in its extra_info; expected one of {', '.join(KINDS)}"
            raise UnusableError(f"{path}: {name}: {kinds} (a run with --benchmark-disable measures nothing)")
        device = facts["device"]["slug"]
        for key in SHARED:
            shared.setdefault(key, facts.pop(key, {}))
        if device != (before := shared["device"]["slug"]):
            raise UnusableError(f"{path}: {name} ran on {device}, those before it on {before}; expected one device")
        benches.append({"name": name, **facts})
    commit = content.get("commit_info", {})
    return {
        "format": FORMAT,
        "schema": SCHEMA,
        "date": content["datetime"],
        "commit": commit.get("id"),
        "dirty": bool(commit.get("dirty")),
        "seconds": content.get("seconds"),
        "device": shared["device"],
        "versions": shared["versions"],
        "threads": shared["threads"],
        "benches": benches,
    }


def _finite(value: Any) -> Any:
    """The same with ``None`` for what is not a finite number."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
