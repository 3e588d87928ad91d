"""What is timed: each cell one case, one way of doing it, one size and dtype; and what it is meant to reach."""

from dataclasses import asdict, dataclass

from bench.common.case import DEFERRED, NORM, SKETCH, SKETCH_STEP, STEP, UPDATE, WINDOW, Case
from bench.common.methods import CAT_DOTS, COMPILED, EAGER, FOREACH, LEAN
from bench.common.ways import OURS
from bench.peers.card_norms import POINTER_TABLE

_ITEM_BYTES = {"bfloat16": 2, "float32": 4}

PEAK, SMALL_STEP, SMALL_NORM = "peak", "2,000 tensors: step", "2,000 tensors: norm"

COPY, SUM, DOT = "copy", "sum", "dot"
ONE_LAYER, TRACED = "fastgeom, one layer", "fastgeom, one layer, trace"


@dataclass(frozen=True)
class Cell:
    """One line of the table.

    Attributes:
        case, method: what is measured, and how.
        dtype: of gradients and history.
        elements: how many are wanted; fewer are taken where memory is short.
        tensors: in how many tensors they lie.
        window, block: W and B.
        groups: what a layer is.
        buckets: size of the sketch.
    """

    case: str
    method: str
    dtype: str
    elements: int
    tensors: int = 1
    window: int = 0
    block: int = 1
    layers: str = "module"
    buckets: int = 0

    @property
    def item_bytes(self) -> int:
        """Bytes of an element."""
        return _ITEM_BYTES[self.dtype]

    @property
    def workload(self) -> tuple[object, ...]:
        """What ways have in common that can be compared."""
        return self.case, self.dtype, self.elements, self.window, self.block, self.buckets

    def problem(self, elements: int) -> Case:
        """The case, of as many elements as memory allows."""
        statistic = {SMALL_STEP: STEP, SMALL_NORM: NORM}.get(self.case, self.case)
        return Case(
            statistic, elements, self.tensors, self.dtype, self.window, self.block, self.buckets,
            self.layers or "module", self.method == TRACED,
        )  # fmt: skip

    def what(self) -> str:
        """The case with its sizes, for the table."""
        parts = [self.case]
        parts += [f"W={self.window}"] if self.window and self.case not in (UPDATE, SKETCH_STEP) else []
        parts += [f"B={self.block}"] if self.block > 1 else []
        parts += ["one group" if self.layers == "all" else "by layer"] if self.case == SKETCH else []
        return " ".join(parts)

    def as_dict(self) -> dict[str, str | int]:
        """For the file."""
        return asdict(self)


@dataclass(frozen=True)
class Sizes:
    """How large the cells are."""

    large: tuple[int, ...] = (1_000_000_000, 100_000_000)
    dtypes: tuple[str, ...] = ("bfloat16", "float32")
    tensors: int = 400
    windows: tuple[int, ...] = (1, 4, 16, 64)
    window: int = 16
    blocks: tuple[tuple[str, int], ...] = (("bfloat16", 8), ("float32", 16))
    buckets: int = 1 << 18
    small_tensors: int = 2000
    small_elements: int = 1000


TINY = Sizes((1200,), ("bfloat16",), 2, (2,), 2, (("bfloat16", 2),), 512, 2, 64)
"""For a dry run."""


def all_cells(sizes: Sizes) -> list[Cell]:
    """Every cell, what matters most first, since time may run out."""
    cells = [Cell(PEAK, method, "float32", sizes.large[0]) for method in (COPY, SUM, DOT)]
    for part in (_ours, _small, _torch, _compiled):
        cells += part(sizes)
    return cells


def _large(case: str, method: str, sizes: Sizes, **options: int | str) -> list[Cell]:
    return [
        Cell(case, method, dtype, elements, sizes.tensors, **options)
        for elements in sizes.large
        for dtype in sizes.dtypes
    ]  # fmt: skip


def _ours(sizes: Sizes) -> list[Cell]:
    cells = _large(NORM, OURS, sizes)
    for window in sizes.windows:
        cells += _large(WINDOW, OURS, sizes, window=window)
    cells += [
        Cell(DEFERRED, OURS, dtype, elements, sizes.tensors, sizes.window, block)
        for elements in sizes.large
        for dtype, block in sizes.blocks
    ]
    cells += _large(UPDATE, OURS, sizes, window=1)
    for groups in ("all", "module"):
        cells += _large(SKETCH, OURS, sizes, layers=groups, buckets=sizes.buckets)
    return cells + _large(SKETCH_STEP, OURS, sizes, layers="all", buckets=sizes.buckets, window=sizes.window)


def _small(sizes: Sizes) -> list[Cell]:
    elements, tensors = sizes.small_tensors * sizes.small_elements, sizes.small_tensors
    cells = []
    for dtype in sizes.dtypes:
        for method, groups in ((OURS, "parameter"), (ONE_LAYER, "all"), (TRACED, "all"), (LEAN, "")):
            cells.append(Cell(SMALL_STEP, method, dtype, elements, tensors, sizes.window, layers=groups))
        cells += [Cell(SMALL_NORM, method, dtype, elements, tensors) for method in (OURS, FOREACH)]
    return cells


def _torch(sizes: Sizes) -> list[Cell]:
    cells = _large(NORM, FOREACH, sizes) + _large(NORM, POINTER_TABLE, sizes)
    for window in sizes.windows:
        cells += _large(WINDOW, LEAN, sizes, window=window)
    cells += _large(WINDOW, CAT_DOTS, sizes, window=sizes.window)
    return cells + _large(UPDATE, EAGER, sizes, window=1)


def _compiled(sizes: Sizes) -> list[Cell]:
    cells = _large(NORM, COMPILED, sizes) + _large(WINDOW, COMPILED, sizes, window=sizes.window)
    return cells + _large(UPDATE, COMPILED, sizes, window=1)


@dataclass(frozen=True)
class Target:
    """A bound on one column of a cell."""

    column: str
    bound: float
    least: bool = True

    def missed(self, value: float) -> bool:
        """Whether a value is on the wrong side."""
        return value < self.bound if self.least else value > self.bound

    def text(self) -> str:
        """For the table."""
        column = {"fraction_of_datasheet": "of data sheet", "times_per_step_window": "× per-step window"}
        sign = "≥" if self.least else "≤"
        return f"{sign} {self.bound:g} {column.get(self.column, self.column.replace('_', ' '))}"


def target(cell: Cell) -> Target | None:
    """What a cell is meant to reach."""
    if cell.case == SMALL_STEP and cell.method == OURS:
        return Target("host_ms", 0.3, least=False)
    if cell.method != OURS:
        return None
    if cell.case == SKETCH and cell.layers == "all":
        return Target("fraction_of_datasheet", 0.80)
    if cell.case in (NORM, WINDOW):
        return Target("fraction_of_datasheet", 0.88 if cell.elements >= 1_000_000_000 else 0.75)
    if cell.case == DEFERRED and (cell.dtype, cell.block) == ("bfloat16", 8):
        return Target("times_per_step_window", 3.0)
    return None
