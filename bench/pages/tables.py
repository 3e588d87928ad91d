"""The tables of the page but those of speed: goals, training, accuracy, growth, memory; and what a table is."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from bench.pages.document import Document, Facts, missed, of_kind
from bench.pages.words import NONE, count, error, given, number, ratio, size, what

HEADINGS = {
    "norm": ("Norm", "The norm of a list of tensors."),
    "dot": ("Dot product", "The inner product of two lists of tensors."),
    "window": ("Window", "Inner products with the W gradients before, norms, and the gradient stored, in one pass."),
    "deferred": ("Deferred window", "The same for B steps at once."),
    "update": ("Update", "Norms of parameters and update, and the products of the update with the gradients."),
    "sketch": ("Sketch", "The count sketch of a gradient."),
    "sketch step": ("Probe.step with sketches", "One whole step with a window of sketches."),
    "step": ("Probe.step", "Every statistic of a step, through the public call."),
    "clip": ("Clipping", "Scaling gradients down to a given norm."),
}

_NAMED = 3
"""Cases that a line names; of more it says how many."""


def goals(document: Document) -> list[str]:
    """Every goal with what was measured; those that are missed come first."""
    judged = [(goal, bench) for bench in document["benches"] for goal in bench.get("goals") or ()]
    if not judged:
        return ["No goal was set for what this run holds."]
    judged.sort(key=lambda pair: not missed(pair[0]))
    rows = [
        [what(bench), str(goal["what"]), _limit(goal), _measured(goal), "**missed**" if missed(goal) else "reached"]
        for goal, bench in judged
    ]
    n_reached = sum(row[-1] == "reached" for row in rows)
    return [f"{n_reached} of {len(rows)} reached.", "", *table(["case", "goal", "limit", "measured", "verdict"], rows)]


def training(document: Document) -> list[str]:
    """What measuring adds to a step, ours and other tools."""
    benches = of_kind(document, "training")
    rows = [
        [
            f"{bench['model']}, {count(bench['n_elements'])}",
            f"{name}, another tool" if mode.get("peer") else name,
            number(bench["time_ms"]), number(mode.get("time_ms")), ratio(mode), number(mode.get("added_ms")),
        ]
        for bench in benches
        for name, mode in bench["modes"].items()
        if "skipped" not in mode
    ]  # fmt: skip
    columns = ["model, parameters", "with", "ms without", "ms with", "with / without [95 %]", "ms added"]
    return [*table(columns, rows), "", *left_out((bench["model"], bench["modes"]) for bench in benches)]


def accuracy(document: Document) -> list[str]:
    """Errors: a table for each statistic and dtype, a row for each size and distribution, a column for each way."""
    lines: list[str] = []
    groups: dict[tuple[str, str], list[Facts]] = {}
    for bench in of_kind(document, "accuracy"):
        groups.setdefault((bench["statistic"], bench["dtype"]), []).append(bench)
    for (statistic, dtype), benches in groups.items():
        ways = list(dict.fromkeys(way for bench in benches for way in bench["errors"]))
        rows = [
            [
                f"{count(bench['elements'])}, {bench['distribution']}",
                *(_error_cell(bench, way) for way in ways),
                error(bench.get("bound")),
            ]
            for bench in benches
        ]
        heading = HEADINGS.get(statistic, (statistic,))[0]
        lines += [f"**{heading}, {dtype}**", "", *table([f"{dtype} elements", *ways, "bound"], rows), ""]
    return lines


def growth(document: Document) -> list[str]:
    """Fitted exponents and constants beside those that the bytes moved would give."""
    rows = []
    for bench in of_kind(document, "growth"):
        places = [x for x, _ in bench["points"]]
        unit = f" {bench['constant_unit']}" if bench.get("constant_unit") else ""
        constants = (bench.get("constant"), bench.get("model_constant"))
        rows.append(
            [
                bench["statistic"],
                f"{bench['over']}, {count(min(places))} to {count(max(places))}" if places else bench["over"],
                ratio(bench, "exponent"),
                ratio({"ratio": bench.get("model_exponent")}),
                *(NONE if value is None else f"{number(value)}{unit}" for value in constants),
            ]
        )
    columns = ["time of", "over", "exponent [95 %]", "exponent of the bytes", "constant", "constant of the bytes"]
    notes = [f"- {bench['statistic']} over {bench['over']}: {bench['note']}" for bench in of_kind(document, "growth")
             if bench.get("note")]  # fmt: skip
    return [*table(columns, rows), *(["", "Smaller than meant:", "", *map(plain, notes)] if notes else [])]


def memory(document: Document) -> list[str]:
    """What is held beside the ring."""
    rows = [
        [bench["title"], size(bench["ring_bytes"]), size(bench["beside_bytes"])]
        for bench in of_kind(document, "memory")
    ]
    return table(["case", "ring", "beside it"], rows)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Markdown, without the columns in which no row has anything; numbers to the right."""
    rows = [[plain(cell) for cell in row] for row in rows]
    full = [place for place in range(len(columns)) if any(row[place] != NONE for row in rows)]
    lines = ["| " + " | ".join(plain(columns[place]) for place in full) + " |"]
    right = [place > 0 and all(row[place].strip("*")[:1] in "0123456789–" for row in rows) for place in full]
    lines.append("|" + "|".join("---:" if numbers else "---" for numbers in right) + "|")
    return lines + ["| " + " | ".join(row[place] for place in full) + " |" for row in rows]


def left_out(ways: Iterable[tuple[str, Mapping[str, Facts]]]) -> list[str]:
    """Those that were skipped: one line for each name and reason."""
    skipped: dict[tuple[str, str], list[str]] = {}
    n_cases = 0
    for case, found in ways:
        n_cases += 1
        for name, way in found.items():
            if "skipped" in way:
                skipped.setdefault((name, str(way["skipped"])), []).append(case)
    lines = [f"- {name}: {plain(reason)} ({_which(cases, n_cases)})" for (name, reason), cases in skipped.items()]
    return ["Left out:", "", *lines, ""] if lines else []


def _which(cases: Sequence[str], of: int) -> str:
    if len(cases) == of:
        return "every case"
    return "; ".join(cases) if len(cases) <= _NAMED else f"{len(cases)} of {of} cases"


def _error_cell(bench: Facts, way: str) -> str:
    value, bound = bench["errors"].get(way), bench.get("bound")
    cell = error(value)
    if (relative := (bench.get("relative_errors") or {}).get(way)) is not None:
        cell += f" ({error(relative)})"
    return f"**{cell}**" if None not in (value, bound) and value > bound else cell


def _measured(goal: Facts) -> str:
    """With as many digits as it takes to see that a missed goal is missed."""
    value = goal.get("value")
    if value is None:
        return "no number"
    if not missed(goal):
        return number(value)
    digits = (digits for digits in range(3, 16) if missed({**goal, "value": float(f"{value:.{digits - 1}e}")}))
    return number(value, next(digits, 16))


def _limit(goal: Facts) -> str:
    limits = [f"{sign} {given(goal[key])}" for key, sign in (("least", "≥"), ("most", "≤")) if key in goal]
    return " and ".join(limits) or NONE


def span(values: Sequence[float | None], word: Callable[[float | None], str]) -> str:
    """From the lowest to the highest, in words."""
    known = sorted(value for value in values if value is not None)
    if not known:
        return NONE
    low, high = word(known[0]), word(known[-1])
    return low if low == high else f"{low} to {high}"


def plain(cell: str) -> str:
    """On one line, and no end of a cell."""
    return " ".join(cell.replace("|", "\\|").split())
