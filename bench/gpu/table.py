"""The page that a run's document makes."""

from collections.abc import Mapping, Sequence

from bench.gpu.cells import Cell

_COLUMNS = (
    "case", "way", "elements", "ms a step", "GB moved", "GB/s", "of peak", "of data sheet", "launches", "host ms",
    "× ours", "error", "target",
)  # fmt: skip
_WHAT = """\
*GB moved* is the least that the statistic must move, whoever computes it, and *GB/s* that over the time on the device:
a way that moves more shows less. *ms a step* is the median of single calls between device events, each behind reads
that clear the caches and keep the device busy until the host has sent all. *host ms* is the time until the call has
returned. *launches* counts kernels, copies and fills. *× ours* compares the time an element. *error* is against
float64, relative to the product of the norms, seen before timing.
"""
_CELL_FIELDS = tuple(Cell.__dataclass_fields__)


def page(found: Mapping[str, object]) -> str:
    """Markdown."""
    card, versions = found["card"], found["versions"]
    used = ", ".join(f"{name} {version or 'unknown'}" for name, version in versions.items())
    lines = [f"# GPU: {card.get('name', 'no card')}", ""]
    if found["dry"]:
        lines += ["**A dry run on CPU tensors: no number here means anything.**", ""]
    lines += [
        f"{found['date']}; commit {found['commit'] or 'unknown'}; {used}; driver {card.get('driver') or 'unknown'}, "
        f"CUDA {card.get('cuda') or 'unknown'}; {found['seconds']:.0f} s in all.",
        "",
        f"Measured peak {_number(found['peak_gb_per_s'], '.0f')} GB/s (the fastest of a copy, a sum and a dot in this "
        f"run); data sheet {_number(found['datasheet_gb_per_s'], '.0f') or 'unknown'} GB/s.",
        "",
        *_tests(found["tests"]),
        "## Benches",
        "",
        "| " + " | ".join(_COLUMNS) + " |",
        "|" + "---|" * len(_COLUMNS),
        *("| " + " | ".join(_row(row)) + " |" for row in found["cells"]),
        "",
        _WHAT,
    ]
    notes = [
        f"- {_what(row)}, {row['method']}, {row['dtype']}: {row['note']}." for row in found["cells"] if "note" in row
    ]
    if notes:
        lines += ["Cells that are smaller than they were meant to be:", "", *notes, ""]
    return "\n".join(lines)


def _tests(tests: Mapping[str, Mapping[str, object]]) -> list[str]:
    lines = ["## Tests", ""]
    for kind, run in tests.items():
        lines.append(f"- {kind}: {run['summary']}")
        lines += [f"  - `{test}`: {why}" for test, why in run["failures"].items()]
        if not run["fine"] and not run["failures"] and run["said"]:
            lines += ["", "```", str(run["said"]), "```"]
    return [*lines, ""]


def _what(row: Mapping[str, object]) -> str:
    return Cell(**{name: row[name] for name in _CELL_FIELDS}).what()


def _row(row: Mapping[str, object]) -> Sequence[str]:
    way = f"{row['method']}, {row['dtype']}"
    if "error" in row:
        return [
            _what(row),
            way,
            f"{row['elements']:.3g}",
            f"**did not run: {_plain(row['error'])}**",
            *[""] * 8,
            row["target"],
        ]
    goal = str(row["target"])
    if row["missed"] is not None:
        goal += ": missed" if row["missed"] else ": reached"
    if row["times_per_step_window"] is not None and not goal:
        goal = f"{row['times_per_step_window']:.2f} × per-step window"
    elif row["times_per_step_window"] is not None:
        goal += f" ({row['times_per_step_window']:.2f})"
    return [
        _what(row), way, f"{row['n_elements']:.3g}", _number(row["time_ms"], ".4g"),
        _number(row["bytes_moved"] / 1e9, ".3g"), _number(row["bandwidth_gb_per_s"], ".0f"),
        _number(row["fraction_of_peak"], ".2f"), _number(row["fraction_of_datasheet"], ".2f"),
        _number(row["launches"], ".4g"), _number(row["host_ms"], ".3g"), _number(row["times_as_long"], ".2f"),
        _number(row["relative_error"], ".1g"), goal,
    ]  # fmt: skip


def _number(value: object, form: str) -> str:
    return "" if value is None else format(value, form)


def _plain(text: object) -> str:
    return str(text).replace("|", "\\|").replace("*", "\\*")
