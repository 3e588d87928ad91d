"""A compiled kernel as basic blocks, whichever assembly it was read from: its loops and its fast path.

The *fast path* is the path through a region that moves the most bytes and, among those, has the fewest instructions:
the code for full, aligned and finite data.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True)
class Instruction:
    """One instruction, in terms that both assemblies share."""

    opcode: str
    targets: tuple[str, ...] = ()
    """The labels that it may jump to."""
    mentions: tuple[str, ...] = ()
    """Labels that it names for other reasons: where threads meet again, what it calls, code for diverged warps."""
    anywhere: bool = False
    """It may jump to every label that no instruction names."""
    ends: bool = False
    """The program may end here."""
    falls_through: bool = True
    access: str | None = None
    """``load`` or ``store`` of global memory."""
    width: int = 0
    """Bytes that one thread moves."""
    spill: bool = False
    barrier: bool = False
    call: bool = False
    atomic: str | None = None
    """What an atomic does, without its cache and scope modifiers: ``ADD.F32``, ``add_f32``."""

    @property
    def may_leave(self) -> bool:
        """Whether something else than the next instruction may follow."""
        return bool(self.targets) or self.anywhere or self.ends or not self.falls_through

    @property
    def is_float_atomic(self) -> bool:
        """Whether the order in which threads come changes its result."""
        return self.atomic is not None and re.search(r"(^|[._])(b?f(16|32|64))", self.atomic.lower()) is not None


@dataclass
class Block:
    """Instructions that run one after the other, and the blocks that may follow."""

    labels: list[str] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)
    successors: list[int] = field(default_factory=list)

    @property
    def ends(self) -> bool:
        """Whether the program may end here."""
        return not self.successors or self.instructions[-1].ends

    @property
    def bytes_moved(self) -> int:
        """Bytes that one thread loads from global memory or stores there."""
        return sum(i.width for i in self.instructions)


@dataclass(frozen=True)
class Loop:
    """A natural loop: everything that reaches its header again without leaving it."""

    header: int
    blocks: frozenset[int]


class Program:
    """The blocks of one kernel; block 0 is the entry."""

    def __init__(self, lines: Iterator[str | Instruction]) -> None:
        """Cut a stream of labels (str) and instructions into blocks and connect them."""
        self.blocks = [Block()]
        for line in lines:
            last = self.blocks[-1].instructions[-1:]
            starts = isinstance(line, str) if last else False
            if starts or (last and last[0].may_leave):
                self.blocks.append(Block())
            if isinstance(line, str):
                self.blocks[-1].labels.append(line)
            else:
                self.blocks[-1].instructions.append(line)
        home = {label: index for index, block in enumerate(self.blocks) for label in block.labels}
        named = {label for i in self.instructions for label in i.targets + i.mentions}
        unnamed = [block for label, block in home.items() if label not in named and self.blocks[block].instructions]
        for index, block in enumerate(self.blocks):
            last_one = block.instructions[-1] if block.instructions else Instruction("")
            following = [index + 1] if last_one.falls_through and index + 1 < len(self.blocks) else []
            targets = [home[label] for label in last_one.targets if label in home]
            anywhere = [b for b in unnamed if b != 0] if last_one.anywhere else []
            block.successors = list(dict.fromkeys(following + targets + anywhere))

    @property
    def instructions(self) -> list[Instruction]:
        """All of them, those never reached included."""
        return [i for block in self.blocks for i in block.instructions]

    @cached_property
    def order(self) -> dict[int, int]:
        """Rank in reverse postorder of every block that the entry reaches."""
        done, seen, stack = [], {0}, [(0, iter(self.blocks[0].successors))]
        while stack:
            block, rest = stack[-1]
            successor = next((s for s in rest if s not in seen), None)
            if successor is None:
                done.append(block)
                stack.pop()
            else:
                seen.add(successor)
                stack.append((successor, iter(self.blocks[successor].successors)))
        return {block: rank for rank, block in enumerate(reversed(done))}

    @cached_property
    def predecessors(self) -> dict[int, list[int]]:
        """Of every block that the entry reaches."""
        predecessors: dict[int, list[int]] = {block: [] for block in self.order}
        for block in self.order:
            for successor in self.blocks[block].successors:
                predecessors[successor].append(block)
        return predecessors

    @cached_property
    def dominators(self) -> dict[int, set[int]]:
        """The blocks through which every path from the entry to a block leads."""
        everything = set(self.order)
        dominators = {block: {0} if block == 0 else everything for block in self.order}
        changed = True
        while changed:
            changed = False
            for block in [b for b in self.order if b != 0]:
                above = [dominators[p] for p in self.predecessors[block]]
                new = set.intersection(*above) | {block}
                changed, dominators[block] = changed or new != dominators[block], new
        return dominators

    @cached_property
    def loops(self) -> list[Loop]:
        """The innermost natural loops: those that hold no other."""
        bodies: dict[int, set[int]] = {}
        for block in self.order:
            for header in self.blocks[block].successors:
                if header in self.dominators[block]:
                    body = bodies.setdefault(header, {header})
                    pending = [block]
                    while pending:
                        member = pending.pop()
                        if member not in body:
                            body.add(member)
                            pending += self.predecessors[member]
        return [
            Loop(header, frozenset(body))
            for header, body in bodies.items()
            if not any(other != header and other in body for other in bodies)
        ]

    @cached_property
    def hot_loop(self) -> Loop | None:
        """The innermost loop that loads the most bytes; None where no loop loads any."""
        loaded = {loop: sum(i.width for i in self.inside(loop.blocks) if i.access == "load") for loop in self.loops}
        hot = max(loaded, key=lambda loop: loaded[loop], default=None)
        return hot if hot is not None and loaded[hot] else None

    def inside(self, blocks: Collection[int]) -> list[Instruction]:
        """The instructions of some blocks."""
        return [i for block in blocks for i in self.blocks[block].instructions]

    def fast_path(self, loop: Loop | None = None) -> list[int]:
        """The blocks on the fast path, through one pass of a loop or through the whole kernel, each loop once.

        Of all paths from the entry (the header) to an end (back to the header) the one that moves the most bytes, and
        of those the shortest. Loops that move less than the hot one, such as the recount of what is not finite, do
        not attract it.
        """
        start, region = (0, frozenset(self.order)) if loop is None else (loop.header, loop.blocks)
        side = {block for other in self.loops if other != self.hot_loop for block in other.blocks}
        paths: dict[int, tuple[int, int, list[int]]] = {start: (0, 0, [])}
        ends = []
        for block in sorted(region, key=self.order.__getitem__):
            before = [paths[p] for p in self.predecessors[block] if p in paths and self.order[p] < self.order[block]]
            if block != start and not before:
                continue
            moved, length, path = paths[start] if block == start else max(before, key=lambda p: p[:2])
            code = self.blocks[block]
            paths[block] = (
                moved + (0 if block in side else code.bytes_moved),
                length - len(code.instructions),
                [*path, block],
            )
            if loop.header in code.successors if loop else code.ends:
                ends.append(paths[block])
        return max(ends, key=lambda p: p[:2])[2]


def widths(instructions: list[Instruction], access: str) -> Counter[int]:
    """How many loads (or stores) there are of each width."""
    return Counter(i.width for i in instructions if i.access == access)
