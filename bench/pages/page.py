"""The page of stored results, bench/README.md: made of the documents and of nothing else."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from bench.common.registry import REGISTRY
from bench.pages.document import Document, Facts, missed, of_kind, picture_cases, picture_name
from bench.pages.formatting import NONE, count, error, given, number, plain, ratio, size, table, what

HEAD = """\
# Benchmarks

*`make bench` writes this page from the newest file of each device in [results/](results), which also has the errors,
times and launches of the others.* Ratios are taken inside one run and hold on other days; times are those of one
machine on one day. [How to read](#how-to-read) says how each number came about.
"""
TAIL = """\
## How to read

- A column with the name of another implementation is **its time over ours**: above 1 ours is faster; below 1 the number
  is bold. In every round each of them runs once, in turn, and the ratio is that of two times of one round. The page
  gives the median and, in brackets, the 95 % interval of that median (of five rounds and fewer: their range); it says
  how much rounds differ, not days or machines. Then, from 1 MB on, the memory that a step takes and gives back.
- **of peak** is the fewest bytes that the statistic can move over our time, as a fraction of the *measured peak*: of
  five plain reads, none of which finds its data in a cache, the two fastest are timed in every round, and the faster
  one counts. Our loops prefetch and the reads do not: a fraction can be above 1. Small cases cost calls, not bytes.
- **error** is the distance from float64, before anything is timed: of a norm relative to it, of an inner product
  relative to the product of the two norms. **launches** counts kernels, copies and fills.
- Buffers rotate, so that nobody finds in a cache what another has just read. torch.compile and numba are given
  gradients in one vector; ours and the others take the list of tensors, and look at every call where they lie.
- **–** stands where something was not timed, or has no meaning.
"""


def render(documents: Sequence[Document]) -> str:
    """The page in Markdown, of the newest document of each device."""
    lines = [HEAD]
    for document in documents:
        lines += [*sections(document), ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n\n" + TAIL


def sections(document: Document) -> list[str]:
    """All of one run: goals first, then a table a statistic."""
    goals = [goal for bench in document["benches"] for goal in bench.get("goals") or ()]
    reached = sum(not missed(goal) for goal in goals)
    lines = [f"## {document['device']['name']}", *_machine(document), ""]
    lines += [f"### Goals: {reached} of {len(goals)} reached", *_goals(document), ""] if goals else []
    if picture_cases(document):
        lines += [f"![Roofline: {document['device']['name']}](results/{picture_name(document)})", ""]
    cases = of_kind(document, "speed")
    for statistic in dict.fromkeys([*REGISTRY, *(case["case"]["statistic"] for case in cases)]):
        if of_statistic := [case for case in cases if case["case"]["statistic"] == statistic]:
            lines += [*_speed(statistic, of_statistic), ""]
    for kind, make in (("training", _training), ("accuracy", _accuracy), ("growth", _growth), ("memory", _memory)):
        if benches := of_kind(document, kind):
            lines += [f"### {kind.capitalize()}", *make(benches), ""]
    return lines


def _goals(document: Document) -> list[str]:
    """Every goal with its measured value; those that are missed come first."""
    judged = [(goal, bench) for bench in document["benches"] for goal in bench.get("goals") or ()]
    judged.sort(key=lambda pair: not missed(pair[0]))
    rows = [
        [what(bench), str(goal["what"]), _limit(goal), _measured(goal), "**missed**" if missed(goal) else "reached"]
        for goal, bench in judged
    ]
    return table(["case", "goal", "limit", "measured", "verdict"], rows)


def _limit(goal: Facts) -> str:
    return f"≥ {given(goal['least'])}" if "least" in goal else f"≤ {given(goal['most'])}"


def _measured(goal: Facts) -> str:
    """With as many digits as it takes to see that a missed goal is missed."""
    value = goal.get("value")
    if value is None:
        return "no number"
    if not missed(goal):
        return number(value)
    digits = (digits for digits in range(3, 16) if missed({**goal, "value": float(f"{value:.{digits - 1}e}")}))
    return number(value, next(digits, 16))


def _speed(statistic: str, cases: Sequence[Facts]) -> list[str]:
    """Ours, and the ratio of each other implementation."""
    entry = REGISTRY.get(statistic)
    others = list(dict.fromkeys(name for case in cases for name in case["peers"]))
    on_card = any(case.get("fraction_of_datasheet") for case in cases)
    rows = [
        [
            what(case).removeprefix(f"{statistic}, ").removeprefix(f"{statistic}; "),
            number(case["time_ms"]),
            number(case.get("bandwidth_gb_per_s")),
            *(ratio(case, fraction) for fraction in ("fraction_of_peak", "fraction_of_datasheet")),
            error(case.get("relative_error")),
            count(case.get("launches")),
            number(case.get("host_ms")) if on_card else NONE,
            *(_other(case["peers"].get(name, {})) for name in others),
        ]
        for case in cases
    ]
    columns = ["case", "ms", "GB/s", "of peak", "of data sheet", "error", "launches", "ms of the host"]
    ratios = [[peer["ratio"] for peer in case["peers"].values() if peer.get("ratio")] for case in cases]
    fastest = [min(each) for each in ratios if each]
    text = entry.meaning if entry else ""
    if fastest:
        faster = sum(map(_is_faster, fastest))
        text += f" The fastest other is faster in {faster or 'none'} of {len(fastest)} cases."
    notes = [f"Smaller than meant: {case['note']}." for case in cases if case.get("note")]
    notes += _skipped(case["peers"] for case in cases)
    return [
        f"### {entry.heading if entry else statistic}",
        text,
        "",
        *table([*columns, *others], rows),
        *(["", *map(plain, notes)] if notes else []),
    ]


def _other(peer: Facts) -> str:
    if "skipped" in peer or peer.get("ratio") is None:
        return NONE
    text = f"**{ratio(peer)}**" if _is_faster(peer["ratio"]) else ratio(peer)
    temporary = peer.get("peak_memory_bytes") or 0
    return text + (f", {size(temporary)}" if temporary >= 1e6 else "")


def _is_faster(value: float) -> bool:
    """Whether another implementation beats ours in the two decimals that are shown."""
    return round(value, 2) < 1


def _skipped(benches: Iterable[Mapping[str, Facts]]) -> list[str]:
    """Those that were not timed, by the reason."""
    names: dict[str, dict[str, None]] = {}
    for name, peer in (item for peers in benches for item in peers.items()):
        if "skipped" in peer:
            names.setdefault(str(peer["skipped"]), {})[name] = None
    reasons = "; ".join(f"{', '.join(each)} ({reason})" for reason, each in names.items())
    return [f"Not timed: {reasons}."] if names else []


def _training(benches: Sequence[Facts]) -> list[str]:
    """What measuring adds to a step, ours and other tools."""
    columns, rows = ["with"], {}
    for bench in benches:
        columns += [f"{bench['model']}, {count(bench['n_elements'])}, {number(bench['time_ms'])} ms", "ms added"]
        for name, mode in bench["modes"].items():
            rows.setdefault(name, [f"{name}, another tool" if mode.get("peer") else name])
    for name, row in rows.items():
        for mode in (bench["modes"].get(name, {}) for bench in benches):
            row += [ratio(mode), number(mode.get("added_ms"))]
    skipped = _skipped(bench["modes"] for bench in benches)
    return [
        "A whole training step with measuring over one without: by model, its parameters, and the time without.",
        "",
        *table(columns, rows.values()),
        *(["", *map(plain, skipped)] if skipped else []),
    ]


def _accuracy(benches: Sequence[Facts]) -> list[str]:
    """A row for each statistic, dtype and distribution, a column for each implementation."""
    groups: dict[tuple[str, str, str], list[Facts]] = {}
    for bench in benches:
        groups.setdefault((bench["statistic"], bench["dtype"], bench["distribution"]), []).append(bench)
    names = list(dict.fromkeys(name for bench in benches for name in bench["errors"]))
    rows = [
        [
            f"{', '.join(key)}, {_range([bench['elements'] for bench in group])}",
            *(_largest_error(group, name) for name in names),
            error(group[0].get("bound")),
        ]
        for key, group in groups.items()
    ]
    return [
        "The largest distance from float64 over all sizes. In parentheses, where the result may cancel: relative to "
        "the result itself. Bold is beyond the bound.",
        "",
        *table(["case, elements", *names, "bound"], rows),
    ]


def _largest_error(group: Sequence[Facts], name: str) -> str:
    def largest(field: str) -> float | None:
        values = [(bench.get(field) or {}).get(name) for bench in group]
        return max((value for value in values if value is not None), default=None)

    value, relative, bound = largest("errors"), largest("relative_errors"), group[0].get("bound")
    cell = error(value) + (f" ({error(relative)})" if relative is not None else "")
    return f"**{cell}**" if value is not None and bound is not None and value > bound else cell


def _range(values: Sequence[float]) -> str:
    low, high = count(min(values)), count(max(values))
    return low if low == high else f"{low} to {high}"


def _growth(benches: Sequence[Facts]) -> list[str]:
    """Fitted exponents and constants beside those that the bytes moved would give."""
    text = (
        "The time of a step fitted as constant × size^exponent, beside what the bytes at the measured peak would give."
    )
    columns = ["time of", "exponent [95 %]", "exponent of the bytes", "constant", "constant of the bytes"]
    rows, notes = [], []
    for bench in benches:
        name = f"{bench['statistic']} over {bench['over']}"
        size_range = _range([x for x, _ in bench["points"]])
        exponents = ratio(bench, "exponent"), ratio({"ratio": bench["model_exponent"]})
        constants = (f"{number(bench[key])} {bench['constant_unit']}" for key in ("constant", "model_constant"))
        rows.append([f"{name}, {size_range}", *exponents, *constants])
        notes += [f"- {name}: {plain(bench['note'])}"] if bench.get("note") else []
    return [text, "", *table(columns, rows), *(["", "Smaller than meant:", "", *notes] if notes else [])]


def _memory(benches: Sequence[Facts]) -> list[str]:
    rows = [[bench["title"], size(bench["ring_bytes"]), size(bench["beside_bytes"])] for bench in benches]
    text = "The ring holds the past gradients; beside it is everything else that measuring holds."
    return [text, "", *table(["case", "ring", "beside it"], rows)]


def _machine(document: Document) -> list[str]:
    """A line a fact; a fact without a name of its own here is shown under its key."""
    device, threads = document["device"], document["threads"]
    run = document["date"][:16].replace("T", " ")
    if document.get("seconds") is not None:
        run += f", {document['seconds'] / 60:.0f} min in all"
    commit = f"{document['commit'] or 'unknown'}{', with changes that are not in it' if document['dirty'] else ''}"
    facts = {"run": run, "commit": commit, "cores": device.get("cores"), "memory": size(device.get("memory_bytes"))}
    shown = {"kind", "name", "slug", "cores", "memory_bytes"}
    facts |= {key.replace("_", " "): value for key, value in device.items() if key not in shown}
    facts["threads"] = ", ".join(f"{name} {n}" for name, n in threads.items())
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in document["versions"].items() if version)
    facts["measured peak"] = _peak(document)
    facts["compute roof"] = ", ".join(
        f"{number(roof['gflop_per_s'])} GFLOP/s: {roof['what']}" for roof in of_kind(document, "roof")
    )
    lines = ["; ".join(f"{name} {plain(str(value))}" for name, value in facts.items() if value) + "."]
    lines += [""] if document.get("jobs") else []
    for job in document.get("jobs") or ():
        if job["name"].startswith(("tests/", "bench/native")) or not job["ok"]:
            ending = "" if job["ending"] == "finished" else f"; **{plain(job['ending'])}**"
            lines.append(f"- `{job['name']}`: {job['passed']} of {job['collected']} passed{ending}")
            lines += [f"  - `{test}`: {plain(reason)}" for test, reason in job["failures"].items()]
    return lines


def _peak(document: Document) -> str:
    peaks = [(case["peak_gb_per_s"], case["peak_way"]) for case in of_kind(document, "speed")]
    if not peaks:
        return ""
    (lowest, _), (highest, _) = min(peaks), max(peaks)
    fastest = ", ".join(f"{name} in {n}" for name, n in Counter(name for _, name in peaks).most_common())
    return f"{number(lowest)} to {number(highest)} GB/s over {len(peaks)} cases (fastest read: {fastest})"
