"""Records as a table that reads well in a terminal and in Markdown."""

import itertools
from collections.abc import Iterable, Sequence

from bench.codegen.cases import COUNTED_TARGET
from bench.codegen.rules import Record, counts

COLUMNS = (
    "variant",
    "target",
    "instr/el",
    "goal",
    "outside",
    "registers",
    "spills",
    "shared",
    "loads",
    "stores",
    "barriers",
    "atomics",
    "broken",
)
HEADER = """# Machine code of the kernels

Compiled ahead of time by triton {triton}, on no GPU; `make codegen` writes this page.
{summary}

Loads, stores and barriers are those of the fast path too. A kernel that learns the dtype at run time has several: its
own row counts all of it, and the rows that bear a dtype's name count that dtype's path.

| column | what |
|---|---|
| instr/el | instructions per element on the fast path: of the hot loop, or of the kernel where no loop is declared |
| goal | the most that instr/el may be, on {counted} |
| outside | the same outside of loops, where a hot loop is declared |
| registers | of a thread (vector registers on AMD) |
| spills | accesses to spilled registers: must be none |
| shared | bytes of shared memory |
| loads, stores | of global memory, of one thread: `4×16 1×8` are four of 16 bytes and one of 8 |
| barriers | on the same path |
| atomics | in the whole kernel; on floats there must be none |
| broken | the rules that are broken |
"""


def render(records: Sequence[Record], triton_version: str) -> str:
    """The page: a header, and a table for every kernel file."""
    broken = sum(bool(r.broken) for r in records)
    summary = f"{len(records)} compilations, {broken or 'none'} of which {'breaks' if broken <= 1 else 'break'} a rule."
    header = HEADER.format(triton=triton_version, counted=COUNTED_TARGET, summary=summary)
    parts = [header]
    for file, group in itertools.groupby(records, key=lambda r: r.file):
        parts.append(f"## {file}\n\n{_aligned([COLUMNS, *_rows(group)])}")
    return "\n".join(parts)


def _rows(records: Iterable[Record]) -> list[Sequence[str]]:
    rows, before = [], None
    for r in records:
        rows.append(
            (
                r.variant if r.variant != before else "",
                r.target,
                _number(r.per_element),
                "" if r.goal is None else f"{r.goal:g}",
                _number(r.outside_per_element),
                str(r.registers),
                str(r.spills),
                str(r.shared_bytes),
                counts(r.loads),
                counts(r.stores),
                str(r.barriers),
                " ".join(f"{n}×{name}" for name, n in r.atomics.items()),
                ", ".join(r.broken),
            )
        )
        before = r.variant
    return rows


def _number(per_element: float | None) -> str:
    return "" if per_element is None else f"{per_element:.2f}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are also columns in a terminal."""
    size = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(n) for cell, n in zip(row, size, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (n + 2) for n in size) + "|", *lines[1:], ""])
