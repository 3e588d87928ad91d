"""What is compiled: the variants that the kernel files declare in their functions ``<statistic>_variants``."""

import importlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Target:
    """What a kernel is compiled for."""

    name: str
    backend: str
    architecture: int | str
    warp: int
    """Threads of a warp."""


TARGETS = {
    target.name: target
    for target in (
        Target("sm_80", "cuda", 80, 32),
        Target("sm_90", "cuda", 90, 32),
        Target("sm_100", "cuda", 100, 32),
        Target("gfx942", "hip", "gfx942", 64),
    )
}
COUNTED_TARGET = "sm_90"
"""The goals of instructions per element are for this one."""


@dataclass(frozen=True)
class Case:
    """One variant that a kernel file declares."""

    file: str
    variant: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Of the variant."""
        return self.variant["name"]

    def runs_on(self, target: Target) -> bool:
        """Whether the variant is for this target; it is for all unless it names ``backends``."""
        return target.backend in self.variant.get("backends", ("cuda", "hip"))

    @property
    def quick_target(self) -> Target:
        """The one target that tells most: that of the goals, unless the variant is not for it."""
        counted = TARGETS[COUNTED_TARGET]
        return counted if self.runs_on(counted) else TARGETS["gfx942"]

    def options(self, target: Target) -> dict[str, Any]:
        """What the compiler is told. Options of a variant for all targets are NVIDIA's."""
        applies = target.backend == "cuda" or "backends" in self.variant
        return {"num_warps": self.variant["num_warps"]} | (self.variant["options"] if applies else {})

    def threads(self, target: Target) -> int:
        """Of one program."""
        return self.variant["num_warps"] * target.warp

    def needed_width(self, target: Target) -> int:
        """Bytes that every access to data must move at a time; 0 where the variant asks for nothing."""
        needed = self.variant["min_vector_bytes"] or 0
        return min(8, needed) if target.warp == 64 else needed

    def goal(self, target: Target) -> float | None:
        """The most instructions per element."""
        return self.variant["max_instructions_per_element"] if target.name == COUNTED_TARGET else None

    @property
    def branches_on_dtype(self) -> bool:
        """Whether the dtype is known at run time only."""
        return self.variant["constexprs"].get("CODE") == -1


def kernel_files() -> list[str]:
    """All kernel files, each as its path in ``kernels/`` without the suffix."""
    folder = ROOT / "kernels"
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.py"))


def collect(files: Sequence[str] = ()) -> list[Case]:
    """Every variant of every kernel file, or of those named."""
    cases = []
    for file in files or kernel_files():
        module = importlib.import_module(f"fastgeom.kernels.{file.replace('/', '.')}")
        for name, declare in vars(module).items():
            if name.endswith("_variants") and declare.__module__ == module.__name__:
                cases += [Case(file, variant) for variant in declare()]
    twice = [name for name, n in Counter((c.file, c.name) for c in cases).items() if n > 1]
    if twice:
        raise ValueError(f"two variants of one name: {twice}")
    return cases
