"""What the machine code must not do, and the count of what it does.

- **compiles**, for every target.
- **spills**: no register is spilled to memory (STL or LDL in SASS, scratch in GCN).
- **atomics**: no atomic on floats, whose result would depend on the order of threads.
- **loads**, **stores**: gradients and history move at least ``min_vector_bytes`` at a time (8 where a warp has 64
  threads, each of which has half as much of the same tile). *Data* are the accesses that in Triton's own
  representation have that many bytes for every thread of the program, which entries of tables have not, and that do
  not go to results, which are arguments called ``out_ptr`` or ``partials_ptr``. In the hot loop, and outside of loops,
  two things must hold: accesses that are wide enough carry all bytes of data, and the fast path has no more narrow
  accesses than the others need.
  A kernel that branches on the dtype at run time (CODE = -1) has its fast paths checked in its twins; of itself only
  that wide accesses carry all data read or written without a mask.
- **instructions**: those of one thread on the fast path, times the threads, per element, do not pass the variant's goal
  on sm_90; of one pass of the hot loop if the variant has one, else of the kernel. What is outside of loops may have a
  goal of its own, ``max_outside_instructions_per_element``. A path that calls a function, or a loop that the variant
  does not declare, makes the count meaningless and breaks the rule too.
- **barriers**: none in a hot loop whose instructions have a goal, unless the kernel multiplies matrices, whose tiles
  pass through shared memory.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from bench.codegen import ttir
from bench.codegen.assembly import Instruction, widths
from bench.codegen.cases import Case, Target
from bench.codegen.compiling import Compiled

RESULTS = frozenset({"out_ptr", "partials_ptr"})
OUTSIDE_GOAL = "max_outside_instructions_per_element"
RULES = ("compiles", "spills", "atomics", "loads", "stores", "instructions", "barriers")


@dataclass(frozen=True)
class Record:
    """What was found in the code of one variant for one target."""

    file: str
    variant: str
    target: str
    goal: float | None = None
    registers: int = 0
    spills: int = 0
    shared_bytes: int = 0
    loads: Mapping[int, int] = field(default_factory=dict)
    """On the fast path (of all, where there are several): how many of each width in bytes."""
    stores: Mapping[int, int] = field(default_factory=dict)
    atomics: Mapping[str, int] = field(default_factory=dict)
    """In the whole kernel."""
    barriers: int = 0
    """On the fast path."""
    per_element: float | None = None
    """Instructions per element on the fast path: of the hot loop, or of the kernel where there is none. None where a
    kernel has a path for every dtype, a loop that is not declared, or no elements."""
    outside_per_element: float | None = None
    """Instructions per element on the fast path outside of loops, where there is a hot one."""
    broken: Mapping[str, str] = field(default_factory=dict)
    """Rule -> what breaks it."""


@dataclass(frozen=True)
class Region:
    """A part of the machine code, and the accesses of the source that must be found in it."""

    name: str
    instructions: list[Instruction]
    fast_path: list[Instruction]
    asked: list[ttir.Access]
    exempt: list[ttir.Access]
    """Accesses whose narrow parts may be on the fast path."""


class Examination:
    """One variant's code for one target, beside what the variant declares."""

    def __init__(self, case: Case, target: Target, compiled: Compiled) -> None:
        """Find the fast path."""
        self.case, self.target, self.compiled = case, target, compiled
        self.threads, self.needed = case.threads(target), case.needed_width(target)
        program = compiled.program
        self.loop = program.hot_loop if case.variant["loop"] else None
        self.has_one_path = self.loop is not None or not case.branches_on_dtype
        self.path = program.inside(program.fast_path(self.loop) if self.has_one_path else program.order)
        looping = {block for loop in program.loops for block in loop.blocks}
        self.beside = program.inside([block for block in program.order if block not in looping])
        self.path_beside = program.inside([block for block in program.fast_path() if block not in looping])

    def record(self) -> Record:
        """Count, and apply every rule."""
        case, program = self.case, self.compiled.program
        counted = self.has_one_path and case.variant["elements"] > 1 and (self.loop or not program.hot_loop)
        return Record(
            case.file,
            case.name,
            self.target.name,
            case.goal(self.target),
            registers=self.compiled.registers,
            spills=self.spills,
            shared_bytes=self.compiled.shared_bytes,
            loads=dict(widths(self.path, "load")),
            stores=dict(widths(self.path, "store")),
            atomics=dict(Counter(i.atomic for i in program.instructions if i.atomic)),
            barriers=self.barriers,
            per_element=self.per_element(self.path, self.passes) if counted else None,
            outside_per_element=self.per_element(self.path_beside) if self.loop else None,
            broken={rule: problem for rule, problem in self.problems() if problem},
        )

    @property
    def spills(self) -> int:
        """Accesses to spilled registers, wherever they are."""
        return sum(i.spill for i in self.compiled.program.instructions) + self.compiled.spilled

    @property
    def barriers(self) -> int:
        """On the fast path."""
        return sum(i.barrier for i in self.path)

    def per_element(self, instructions: list[Instruction], passes: int = 1) -> float:
        """Instructions, times threads, per element."""
        return len(instructions) * self.threads / (self.case.variant["elements"] * passes)

    @property
    def passes(self) -> int:
        """How many passes of the source's hot loop one pass of the compiled one makes: compilers unroll."""
        asked = ttir.bytes_moved(self.data(self.compiled.asked.hot_loop), "load") if self.loop else 0
        loaded = sum(i.width for i in self.path if i.access == "load" and i.width >= self.needed)
        return max(1, round(loaded * self.threads / asked)) if asked else 1

    def data(self, accesses: Iterable[ttir.Access]) -> list[ttir.Access]:
        """The accesses to gradients and history: those that must be wide, and can."""
        enough = self.threads * max(1, self.needed)
        return [a for a in accesses if a.bytes_moved >= enough and a.argument not in RESULTS]

    def problems(self) -> Iterator[tuple[str, str]]:
        """Every rule, and what breaks it or nothing."""
        yield "spills", f"{self.spills} accesses to spilled registers" if self.spills else ""
        floats = [i.opcode for i in self.compiled.program.instructions if i.is_float_atomic]
        floats += [atomic for atomic in self.compiled.asked.atomics if atomic == "fadd"]
        yield "atomics", f"on floats: {', '.join(sorted(set(floats)))}" if floats else ""
        for kind in ("load", "store"):
            regions = self.regions() if self.needed else []
            yield f"{kind}s", "; ".join(p for region in regions for p in self.narrow(region, kind))
        goal = self.case.goal(self.target)
        if goal is not None:
            yield "instructions", self.too_many(goal)
            needless = self.loop and self.barriers and not self.compiled.asked.multiplies_matrices
            yield "barriers", f"{self.barriers} in the hot loop" if needless else ""

    def too_many(self, goal: float) -> str:
        """What is wrong with the number of instructions per element."""
        if not self.has_one_path:
            return "the kernel has a path for every dtype: count its twins"
        measured = self.per_element(self.path, self.passes)
        if any(i.call for i in self.path):
            return "the fast path calls a function, whose instructions are not counted"
        if self.compiled.program.hot_loop and not self.loop:
            return "a loop loads data, but the variant declares none"
        if measured > goal:
            return f"{measured:.2f} per element, allowed {goal:g}"
        outside, most = self.per_element(self.path_beside), self.case.variant.get(OUTSIDE_GOAL, math.inf)
        return f"{outside:.2f} per element outside of loops, allowed {most:g}" if outside > most else ""

    def regions(self) -> Iterator[Region]:
        """Where the rules about widths apply."""
        program, asked = self.compiled.program, self.compiled.asked
        if self.case.branches_on_dtype:
            unmasked = [a for a in asked.accesses if not a.masked]
            yield Region("", program.instructions, [], unmasked, [])
            return
        yield Region(" outside of loops", self.beside, self.path_beside, asked.outside, list(asked.accesses))
        if self.loop:
            within = program.inside(self.loop.blocks)
            yield Region(" in the hot loop", within, self.path, asked.hot_loop, asked.hot_loop * self.passes)

    def narrow(self, region: Region, kind: str) -> Iterator[str]:
        """What is too narrow in a region."""
        data = ttir.bytes_moved(self.data(region.asked), kind)
        wide = sum(i.width for i in region.instructions if i.access == kind and i.width >= self.needed)
        if wide * self.threads < data:
            yield f"{wide * self.threads} of {data} bytes{region.name} move {self.needed} bytes at a time"
        exempt = [a for a in region.exempt if a.kind == kind and not self.data([a])]
        most = sum(max(1, a.elements // self.threads) for a in exempt)
        narrow = Counter(i.width for i in region.fast_path if i.access == kind and i.width < self.needed)
        if narrow.total() > most:
            yield f"{counts(narrow)} bytes{region.name} are narrow, {most} would be exempt"


def counts(accesses: Mapping[int, int]) -> str:
    """Accesses by width, the widest first: ``4×16 2×8``."""
    return " ".join(f"{n}×{width}" for width, n in sorted(accesses.items(), reverse=True))
