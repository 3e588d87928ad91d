"""Reads the assembly that the compiler hands to AMD's assembler.

An access whose base is not known to be the same for all threads of a warp stands in a loop of its own, over the bases
that occur. With us there is one, so the branch back (on ``execnz``, after ``s_xor_b64 exec``) is read as none.
"""

import re
from collections.abc import Iterator

from bench.codegen.assembly import Instruction, Program

LABEL = re.compile(r"^(\.?[\w$.]+):")
LINE = re.compile(r"^\s+([a-z]\w+)\s*([^;]*)")
ACCESS = re.compile(r"^(?:buffer|global|flat)_(load|store)_(?:lds_)?(dwordx\d|[a-z]+)")
ATOMIC = re.compile(r"^(?:buffer|global|flat)_atomic_(\w+)|^ds_((?:add|sub|min|max|pk_add|cmpst)_(?:rtn_)?\w+)")
WIDTHS = {"ubyte": 1, "sbyte": 1, "byte": 1, "ushort": 2, "sshort": 2, "short": 2, "dword": 4}
WIDTHS |= {f"dwordx{n}": 4 * n for n in (2, 3, 4)}


def read_gcn(text: str) -> Program:
    """The program of the first function."""
    return Program(_lines(text))


def _lines(text: str) -> Iterator[str | Instruction]:
    previous = ""
    for line in text.splitlines():
        if line.startswith(".Lfunc_end"):
            return
        if label := LABEL.match(line):
            yield label[1]
        elif match := LINE.match(line):
            opcode, operands = match[1], match[2].strip()
            repeats = opcode == "s_cbranch_execnz" and previous.startswith("s_xor_b64 exec, exec")
            yield Instruction(opcode, mentions=(operands,)) if repeats else _instruction(opcode, operands)
            previous = f"{opcode} {operands}"


def _instruction(opcode: str, operands: str) -> Instruction:
    if opcode == "s_branch" or opcode.startswith("s_cbranch_"):
        return Instruction(opcode, (operands,), falls_through=opcode != "s_branch")
    if opcode in {"s_endpgm", "s_setpc_b64"}:
        return Instruction(opcode, ends=True, falls_through=False)
    if match := ACCESS.match(opcode):
        return Instruction(opcode, access=match[1], width=WIDTHS[match[2]])
    if match := ATOMIC.match(opcode):
        return Instruction(opcode, atomic=match[1] or match[2])
    spill = opcode.startswith(("scratch_load", "scratch_store"))
    return Instruction(opcode, spill=spill, barrier=opcode == "s_barrier", call=opcode == "s_swappc_b64")
