"""The tables of speed: all statistics at a glance, and for each ours, the other ways, and those that were left out."""

import itertools
from collections.abc import Callable, Sequence

from bench.pages.document import STATISTICS, Document, Facts, of_kind
from bench.pages.tables import HEADINGS, left_out, plain, span, table
from bench.pages.words import NONE, count, error, gradients, number, ratio, size, what

LARGE = 1_000_000
"""Elements from which on bytes, and not calls, are what a step costs."""


def glance(document: Document) -> list[str]:
    """A line for each statistic: the share of the peak, and the fastest other way of each case."""
    rows = []
    for statistic, cases in _by_statistic(document):
        fastest = [min(ratios) for case in cases if (ratios := list(_ratios(case).values()))]
        lost = sum(_is_faster(value) for value in fastest)
        large = [case.get("fraction_of_peak") for case in cases if case["n_elements"] >= LARGE]
        rows.append(
            [
                HEADINGS.get(statistic, (statistic,))[0],
                str(len(cases)),
                span(large, _two),
                span(fastest, _two),
                f"{f'**{lost}**' if lost else 'none'} of {len(fastest)}" if fastest else NONE,
            ]
        )
    columns = [
        "statistic",
        "cases",
        "of peak, 1 M elements or more",
        "fastest other way, × our time",
        "it beats ours in",
    ]
    return table(columns, rows)


def speed(document: Document) -> list[str]:
    """A section for each statistic: ours, the other ways, those that were left out, and cases that had to shrink."""
    lines: list[str] = []
    for statistic, cases in _by_statistic(document):
        heading, meaning = HEADINGS.get(statistic, (statistic, ""))
        common, name = _names(cases)
        lines += [f"### {heading}", "", f"{meaning} {common}".strip(), "", *_ours(cases, name), ""]
        if others := [row for case in cases for row in _others(case, name(case))]:
            columns = ["case", "other way", "ms", "× our time [95 %]", "error", "temporary", "launches"]
            lines += ["Other ways to the same:", "", *table(columns, others), ""]
        lines += left_out((name(case), case["peers"]) for case in cases)
        if notes := [f"- {name(case)}: {plain(case['note'])}" for case in cases if case.get("note")]:
            lines += ["Smaller than meant:", "", *notes, ""]
    return lines


def _names(cases: Sequence[Facts]) -> tuple[str, Callable[[Facts], str]]:
    """What all cases of a table share, as a sentence, and how to call each."""
    titles, kinds = {case["title"] for case in cases}, {gradients(case) for case in cases}
    if titles == {cases[0]["case"]["statistic"]}:
        return "", gradients
    if len(titles) == 1:
        return f"Here: {titles.pop()}.", gradients
    if len(kinds) == 1:
        return f"Here: {kinds.pop()}.", lambda case: str(case["title"])
    return "", what


def _ours(cases: Sequence[Facts], name: Callable[[Facts], str]) -> list[str]:
    columns = ["case", "ms", "GB/s", "of peak", "error", "temporary", "launches", "ms of the host"]
    return table(columns, [
        [
            name(case), number(case["time_ms"]), number(case.get("bandwidth_gb_per_s")),
            _two(case.get("fraction_of_peak")), error(case.get("relative_error")), size(case.get("peak_memory_bytes")),
            count(case.get("launches")), number(case.get("host_ms")),
        ]
        for case in cases
    ])  # fmt: skip


def _others(case: Facts, name: str) -> list[list[str]]:
    return [
        [
            name, way, number(peer.get("time_ms")),
            f"**{ratio(peer)}**" if _is_faster(peer.get("ratio")) else ratio(peer), error(peer.get("relative_error")),
            size(peer.get("peak_memory_bytes")), count(peer.get("launches")),
        ]
        for way, peer in case["peers"].items()
        if "skipped" not in peer
    ]  # fmt: skip


def _is_faster(value: float | None) -> bool:
    """Whether another way beats ours in the two decimals that are shown."""
    return value is not None and round(value, 2) < 1


def _by_statistic(document: Document) -> list[tuple[str, list[Facts]]]:
    """Cases of kind ``speed`` by statistic, in the order of `STATISTICS`; those not in it come last."""
    order = {statistic: place for place, statistic in enumerate(STATISTICS)}

    def statistic(case: Facts) -> str:
        return str(case["case"]["statistic"])

    cases = sorted(of_kind(document, "speed"), key=lambda case: (order.get(statistic(case), 99), statistic(case)))
    return [(name, list(group)) for name, group in itertools.groupby(cases, statistic)]


def _ratios(case: Facts) -> dict[str, float]:
    return {name: peer["ratio"] for name, peer in case["peers"].items() if peer.get("ratio") is not None}


def _two(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"
