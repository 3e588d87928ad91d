"""Reads NVIDIA's machine code as ``nvdisasm -c`` prints it.

Three facts that cost time to find:

- ``BRA.DIV`` leads to code for warps that have diverged, which ours never do: it is read as no branch at all.
- ``BRX`` jumps through a table that the listing may not name: it reaches its ``BRANCH_TARGETS``, or else every label
  that nothing else names.
- A spill is ``STL`` or ``LDL``. A stack frame alone is none.
"""

import re
from collections.abc import Iterator

from bench.codegen.assembly import Instruction, Program

LABEL = re.compile(r"^(\.?[\w$.]+):")
LINE = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);")
TARGET = re.compile(r"`\(([^)]+)\)")
WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}
ACCESSES = {"LDG": "load", "LD": "load", "LDGSTS": "load", "STG": "store", "ST": "store"}
ATOMICS = frozenset({"ATOM", "ATOMG", "ATOMS", "RED", "REDG"})
SCOPES = frozenset({"E", "FTZ", "RN", "STRONG", "WEAK", "GPU", "SYS", "SM", "CTA"})
"""What an opcode says besides its operation."""


def read_sass(text: str) -> Program:
    """The program in a listing."""
    return Program(_lines(text))


def _lines(text: str) -> Iterator[str | Instruction]:
    for line in text.splitlines():
        if label := LABEL.match(line):
            yield label[1]
        elif match := LINE.match(line):
            guard, opcode, operands = match.groups()
            yield _instruction(opcode, operands, guarded=guard not in {None, "PT", "UPT"})


def _instruction(opcode: str, operands: str, *, guarded: bool) -> Instruction:
    name, *modifiers = opcode.split(".")
    if name == "BRA" and "DIV" not in modifiers:
        (target,) = TARGET.findall(operands)
        conditional = guarded or not operands.lstrip().startswith("`")
        return Instruction(opcode, (target,), falls_through=conditional)
    if name in {"BRX", "BRXU", "JMX"}:
        named = re.search(r"BRANCH_TARGETS ([^\"]+)", operands)
        targets = tuple(named[1].split(",")) if named else ()
        return Instruction(opcode, targets, anywhere=not named, falls_through=guarded)
    if name in {"EXIT", "RET"}:
        return Instruction(opcode, ends=True, falls_through=guarded)
    if name in ACCESSES:
        width = next((WIDTHS[m] for m in modifiers if m in WIDTHS), 4)
        return Instruction(opcode, access=ACCESSES[name], width=width)
    if name in ATOMICS:
        what = [m for m in modifiers if m not in SCOPES]
        return Instruction(opcode, atomic=".".join(what))
    mentions = tuple(TARGET.findall(operands))
    spill, barrier, call = name in {"STL", "LDL"}, name == "BAR", name == "CALL"
    return Instruction(opcode, mentions=mentions, spill=spill, barrier=barrier, call=call)
