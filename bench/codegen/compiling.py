"""Compiles one variant for one target and reads what comes out."""

import hashlib
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bench.codegen import gcn, sass, ttir
from bench.codegen.assembly import Program
from bench.codegen.cases import Case, Target


@dataclass(frozen=True)
class Compiled:
    """The code of one variant for one target."""

    program: Program
    asked: ttir.Kernel
    registers: int
    spilled: int
    """Registers that the compiler itself says it spilled."""
    shared_bytes: int


def compile_case(case: Case, target: Target) -> Compiled:
    """Compile a variant. Triton keeps what it compiles in TRITON_CACHE_DIR, and so do we the disassembly."""
    variant, kernel = case.variant, case.variant["kernel"]
    names = kernel.arg_names
    signature = {name: "constexpr" if name in variant["constexprs"] else variant["signature"][name] for name in names}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in variant["divisible_by_16"]}
    built = triton.compile(
        ASTSource(kernel, signature, dict(variant["constexprs"]), attributes),
        target=GPUTarget(target.backend, target.architecture, target.warp),
        options=case.options(target),
    )
    asked, shared = ttir.read_ttir(built.asm["ttir"], built.asm["source"]), built.metadata.shared
    if target.backend == "cuda":
        # Following data takes a quarter of the disassembler's time, and only names the targets of jump tables.
        options = ("-c",) if "brx.idx" in built.asm["ptx"] else ("-c", "-ndf")
        listing, usage = _disassembled(built.asm["cubin"], options)
        return Compiled(sass.read_sass(listing), asked, _number(r"\bREG:(\d+)", usage), 0, shared)
    text = built.asm["amdgcn"]
    spilled = _number(r"\.vgpr_spill_count:\s+(\d+)", text)
    return Compiled(gcn.read_gcn(text), asked, _number(r"\.vgpr_count:\s+(\d+)", text), spilled, shared)


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    if not match:
        raise ValueError(f"no {pattern} in what the compiler printed")
    return int(match[1])


def _disassembled(cubin: bytes, options: tuple[str, ...]) -> tuple[str, str]:
    """SASS and resource usage of a cubin, by the tools that come with triton."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    listing = Path(os.environ["TRITON_CACHE_DIR"]) / f"{hashlib.sha256(cubin).hexdigest()}.sass"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        if not listing.exists():
            unfinished = listing.with_suffix(f".{os.getpid()}")
            unfinished.write_text(_run(tools / "nvdisasm", *options, file.name))
            unfinished.replace(listing)
        return listing.read_text(), _run(tools / "cuobjdump", "--dump-resource-usage", file.name)


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{Path(command[0]).name}: {done.stderr.strip()}")
    return done.stdout
