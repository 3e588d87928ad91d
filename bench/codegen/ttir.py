"""What a kernel asks for, read from Triton's own intermediate representation before any target is chosen.

There an access still is a tensor with a shape, so that the elements of gradients and history can be told from the
single entries of a table and from partial sums, which in assembly look alike.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

ACCESS = re.compile(r"\btt\.(load|store) (%[^:]*?) ?:.*?(?:tensor<([\dx]+)x)?!tt\.ptr<[a-z]+(\d+)\w*>")
DERIVED = re.compile(r"(%[\w#]+) = (?:tt\.(?:addptr|splat|broadcast|expand_dims|bitcast|reshape) )?(%[\w#]+)")
"""A pointer made from another, or carried into a loop."""
ATOMIC = re.compile(r"\btt\.atomic_rmw (\w+)")
ARGUMENT = re.compile(r"(%\w+): ")
LOOP = re.compile(r"\bscf\.(for|while)\b")
UNROLL = re.compile(r"\btt\.loop_unroll_factor = (\d+)")


@dataclass(frozen=True)
class Access:
    """One load or store, of one program."""

    kind: str
    elements: int
    item_bytes: int
    masked: bool
    loops: tuple[int, ...]
    """The loops around it, by number, the innermost last."""
    argument: str
    """The kernel's argument that it goes to; empty where its address was read from a table."""

    @property
    def bytes_moved(self) -> int:
        """Of one program."""
        return self.elements * self.item_bytes


@dataclass(frozen=True)
class Kernel:
    """What a kernel asks for, in the order of its text."""

    accesses: tuple[Access, ...]
    atomics: tuple[str, ...] = ()
    """By name: ``fadd``, ``max``."""
    multiplies_matrices: bool = False
    unroll: int = 1
    """How often a loop that asks to be unrolled (``tl.range(loop_unroll_factor=...)``) now stands in its body."""

    @cached_property
    def innermost(self) -> frozenset[int]:
        """The loops that hold accesses and no other loop that does."""
        around = {outer for a in self.accesses for outer in a.loops[:-1]}
        return frozenset(a.loops[-1] for a in self.accesses if a.loops and a.loops[-1] not in around)

    def inside(self, loop: int) -> list[Access]:
        """The accesses of an innermost loop."""
        return [a for a in self.accesses if a.loops[-1:] == (loop,)]

    @cached_property
    def outside(self) -> list[Access]:
        """The accesses in no innermost loop."""
        return [a for a in self.accesses if not set(a.loops) & self.innermost]

    @cached_property
    def hot_loop(self) -> list[Access]:
        """The accesses of one pass, as the source has it, of the innermost loop that loads the most bytes."""
        loops = [self.inside(loop) for loop in self.innermost]
        body = max(loops, key=lambda loop: bytes_moved(loop, "load"), default=[])
        shapes = [(a.kind, a.elements, a.item_bytes, a.masked) for a in body]
        once = len(body) // self.unroll
        return body[:once] if shapes == shapes[:once] * self.unroll else body


def bytes_moved(accesses: list[Access], kind: str) -> int:
    """Bytes that one program loads (or stores)."""
    return sum(a.bytes_moved for a in accesses if a.kind == kind)


def read_ttir(text: str, source: str = "") -> Kernel:
    """The accesses and atomics in a module that holds one kernel.

    Args:
        text: the module that Triton's own passes leave.
        source: the module before them, which still says what is to be unrolled.
    """
    factors = {int(factor) for factor in UNROLL.findall(source)}
    if len(factors) > 1:
        raise ValueError(f"loops with different unroll factors: {sorted(factors)}")
    return Kernel(tuple(_accesses(text)), tuple(ATOMIC.findall(text)), "tt.dot " in text, *factors)


def _accesses(text: str) -> Iterator[Access]:
    made_from = dict(DERIVED.findall(text))
    arguments = {name for line in text.splitlines() if "tt.func public" in line for name in ARGUMENT.findall(line)}
    depth, count = 0, 0
    open_loops: list[tuple[int, int]] = []  # depth of its body, number
    for line in text.splitlines():
        if line.startswith("#loc"):
            continue
        if LOOP.search(line):
            open_loops.append((depth, count))
            count += 1
        if match := ACCESS.search(line):
            kind, operands, shape, bits = match.groups()
            elements = 1
            for extent in (shape or "1").split("x"):
                elements *= int(extent)
            pointer, *others = re.findall(r"%[\w#]+", operands)
            masked = len(others) > (0 if kind == "load" else 1)
            while pointer in made_from:
                pointer = made_from[pointer]
            around = tuple(number for _, number in open_loops)
            yield Access(kind, elements, max(1, int(bits) // 8), masked, around, pointer[1:] * (pointer in arguments))
        depth += line.count("{") - line.count("}")
        if open_loops and depth <= open_loops[-1][0]:
            open_loops.pop()
