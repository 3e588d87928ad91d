"""Numbers, cases and tables as text: the digits that a number deserves, and what a bench measured."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

NONE = "–"
"""For what has no number."""


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits, or ``digits``; a power of ten below 0.001 and from a million on."""
    if value is None or not math.isfinite(value):
        return NONE
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    if not -3 <= int(exponent) < 6:
        return f"{mantissa}e{int(exponent)}"
    return f"{value:,.{max(0, digits - 1 - int(exponent))}f}"


def given(value: float) -> str:
    """A number that was chosen and not measured: with the digits it was given."""
    return re.sub(r"e([+-])0*", lambda sign: "e" + sign[1].strip("+"), f"{value:g}")


def error(value: float | None) -> str:
    """An error: two digits and its power of ten."""
    if not value:
        return NONE if value is None else "0"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def ratio(facts: Mapping[str, Any], name: str = "ratio") -> str:
    """A ratio with the 95 % interval of its median, where it has one: ``1.62 [1.55, 1.71]``."""
    value, low, high = (facts.get(key) for key in (name, f"{name}_low", f"{name}_high"))
    if value is None:
        return NONE
    decimals = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    texts = ["" if x is None else f"{round(x, decimals) + 0.0:,.{decimals}f}" for x in (value, low, high)]
    return texts[0] + (f" [{texts[1]}, {texts[2]}]" if texts[1] and texts[2] else "")


def count(value: float | None) -> str:
    """How many: ``1,000``, ``124 k``, ``100 M``, ``1.5 G``."""
    if value is None:
        return NONE
    for least, power, unit in ((1e9, 1e9, " G"), (1e6, 1e6, " M"), (1e4, 1e3, " k")):
        if value >= 0.9995 * least:
            return f"{value / power:.3g}{unit}" if value < 999.5 * power else f"{value / power:,.0f}{unit}"
    return f"{value:,.0f}"


def size(n_bytes: float | None) -> str:
    """Bytes, in powers of 1000: ``512 B``, ``2.1 kB``, ``400 MB``."""
    if n_bytes is None:
        return NONE
    for power, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if n_bytes >= 0.9995 * power:
            return f"{number(n_bytes / power)} {unit}"
    return f"{n_bytes:.0f} B"


def gradients(bench: Mapping[str, Any]) -> str:
    """What a case of kind ``speed`` works on: ``100 M float32, 400 tensors``."""
    tensors = str(bench["case"].get("tensors", ""))
    if tensors.isdigit():
        tensors = f"{int(tensors):,} tensor{'' if tensors == '1' else 's'}"
    return ", ".join(filter(None, (f"{count(bench['n_elements'])} {bench['case']['dtype']}", tensors)))


def what(bench: Mapping[str, Any]) -> str:
    """What a bench measured, in a line."""
    match bench["kind"]:
        case "speed":
            return f"{bench['title']}; {gradients(bench)}"
        case "training":
            return f"training of {bench['model']}"
        case "accuracy":
            return (
                f"error of {bench['statistic']}; {count(bench['elements'])} {bench['dtype']}, {bench['distribution']}"
            )
        case "growth":
            return f"growth of {bench['statistic']} over {bench['over']}"
        case kind:
            return str(bench.get("title") or bench.get("what") or kind)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Markdown, without the columns in which no row has anything; numbers to the right."""
    rows = [[plain(cell) for cell in row] for row in rows]
    full = [k for k in range(len(columns)) if any(row[k] != NONE for row in rows)]
    right = [k > 0 and all(row[k].strip("*")[:1] in "0123456789–" for row in rows) for k in full]
    lines = [[plain(columns[k]) for k in full], ["---:" if numbers else "---" for numbers in right]]
    return ["| " + " | ".join(line) + " |" for line in [*lines, *([row[k] for k in full] for row in rows)]]


def plain(cell: str) -> str:
    """On one line, and no end of a cell."""
    return " ".join(cell.replace("|", "\\|").split())
