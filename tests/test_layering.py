"""Imports only run down the house, data only runs right, and nothing left of `recording` copies to the host.

The table below is the design's, as data. The checker reads sources with `ast`, so that imports inside functions and
under TYPE_CHECKING count too; the last tests feed it bad sources and demand that it reports each.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import fastgeom


@dataclass(frozen=True)
class Room:
    """One row of the table: a file, or a package with everything in it."""

    layer: int
    packages: frozenset[str]
    """Third-party packages it may import."""
    layers: range = range(0)
    """Layers of which it may import every room."""
    rooms: frozenset[str] = frozenset()
    """Single rooms that it may import besides."""
    optional: frozenset[str] = frozenset()
    """Third-party packages that it may import inside functions only: the package works without them."""


def packages(*names):
    return frozenset(names)


def rooms(*names):
    return frozenset(f"fastgeom.{n}" for n in names)


ROOMS = {
    "fastgeom._version": Room(0, packages()),
    "fastgeom.kernels": Room(0, packages("triton")),
    "fastgeom.schema": Room(1, packages("numpy")),
    "fastgeom.reference": Room(1, packages("torch")),
    "fastgeom.validation": Room(1, packages("numpy", "torch")),
    "fastgeom.layout": Room(1, packages("numpy", "torch"), rooms=rooms("validation")),
    "fastgeom.engines.cpu.loops": Room(2, packages("llvmlite", "numba", "numpy"), rooms=rooms("layout")),
    "fastgeom.engines.cpu": Room(2, packages("numpy", "torch"), range(0, 2), rooms("engines", "engines.cpu.loops")),
    "fastgeom.engines.triton": Room(2, packages("numpy", "torch"), range(0, 2), rooms("engines")),
    "fastgeom.engines": Room(2, packages("numpy", "torch"), range(0, 2), rooms("engines.cpu", "engines.triton")),
    "fastgeom.trace": Room(
        2, packages("h5py", "numpy"), rooms=rooms("schema", "_version"), optional=packages("xarray")
    ),
    "fastgeom.ops": Room(3, packages("torch"), range(1, 3)),
    "fastgeom.history": Room(3, packages("numpy", "torch"), range(1, 3)),
    "fastgeom.recording": Room(3, packages("numpy", "torch"), range(1, 3)),
    "fastgeom.schedules": Room(4, packages(), range(1, 4)),
    "fastgeom.step_statistics": Room(4, packages("torch"), range(1, 4)),
    "fastgeom.run_attributes": Room(4, packages("torch"), range(1, 4), rooms("schedules")),
    "fastgeom.sweep": Room(4, packages("torch"), range(1, 4)),
    "fastgeom.probe": Room(4, packages("torch"), range(1, 4), rooms("schedules", "step_statistics", "run_attributes")),
    "fastgeom.analysis": Room(6, packages("numpy"), rooms=rooms("schema", "trace")),
    "fastgeom.figures": Room(7, packages("matplotlib", "numpy"), rooms=rooms("schema", "trace", "analysis")),
}
"""A room inside of another stands before it."""

# The file border. Rows reach the file through recording, which may use what writes it, but not the package itself,
# which reads; no one else left of the file may use either.
ENGINES = rooms("engines", "engines.cpu", "engines.cpu.loops", "engines.triton")
LEFT_OF_RECORDING = ENGINES | rooms(
    "validation", "layout", "ops", "history", "schedules", "step_statistics", "run_attributes", "probe", "sweep"
)
LEFT_OF_THE_FILE = LEFT_OF_RECORDING | rooms("reference", "recording")
WITHOUT_TORCH = rooms("schema", "trace", "analysis", "figures")
TRACE_WRITER = rooms("trace.errors", "trace.file", "trace.lock", "trace.provenance", "trace.writer")

# The host border. The CPU engine reads CPU memory, which is no copy.
CPU_ENGINE = rooms("engines.cpu", "engines.cpu.loops")
HOST_COPIES = frozenset({"bool", "cpu", "item", "numpy", "tolist"})
ALLOWED_HOST_COPIES = {
    ("fastgeom.ops", "clip_grad_norm_", "bool"): "error_if_nonfinite=True has to look at the norm, and says so",
}

REPRODUCTIONS_MAY = frozenset({"fastgeom", "fastgeom.analysis", "fastgeom.figures"})


IMPORTERS = frozenset({"import_module", "__import__"})


@dataclass(frozen=True)
class Import:
    target: str
    name: str | None
    line: int
    guarded: bool
    """Inside a function or under TYPE_CHECKING: not run when the module is loaded."""


def imports(source: str, module: str, modules: frozenset[str], *, is_package: bool = False) -> Iterator[Import]:
    """Every import of a source, each target resolved to one of ``modules`` where there is one."""

    def visit(node: ast.AST, guarded: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, None, node.lineno, guarded) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                base = ".".join([*parts[: len(parts) - node.level + is_package], *filter(None, [node.module])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                target, name = (full, None) if full in modules else (base, alias.name)
                yield Import(target, name, node.lineno, guarded)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in IMPORTERS:
            if node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str):
                yield Import(node.args[0].value, None, node.lineno, guarded)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for child in node.body:
                yield from visit(child, True)
            for child in node.orelse:
                yield from visit(child, guarded)
            return
        guarded = guarded or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, guarded)

    yield from visit(ast.parse(source), False)


def room_of(module: str) -> str | None:
    return next((name for name in ROOMS if f"{module}.".startswith(f"{name}.")), None)


def check_package(room: Room, package: str, guarded: bool) -> str | None:
    """What is wrong with importing somebody else's package, or None."""
    if package in sys.stdlib_module_names or package in room.packages or (guarded and package in room.optional):
        return None
    if package in room.optional:
        return f"{package} is optional: import it inside a function"
    return f"{package} is no package of this room"


def check_room(module: str, target: str) -> str | None:
    """What is wrong with importing one module of ours into another, or None."""
    name, other_name = room_of(module), room_of(target)
    if other_name is None:
        return f"{target} is in no room of the table"
    if name in LEFT_OF_THE_FILE and other_name == "fastgeom.trace":
        if not (name == "fastgeom.recording" and target in TRACE_WRITER):
            return f"file border: only recording may use the trace, and only what writes it, not {target}"
    room, other = ROOMS[name], ROOMS[other_name]
    if other_name == name or other_name in room.rooms or other.layer in room.layers:
        return None
    direction = "up" if other.layer > room.layer else "sideways" if other.layer == room.layer else "not in its row"
    return f"{direction}: {target} is of layer {other.layer}, {module} of layer {room.layer}"


def check_import(module: str, statement: Import, modules: frozenset[str]) -> str | None:
    """What is wrong with one import, or None."""
    target = statement.target
    package = target.partition(".")[0]
    if package != "fastgeom":
        return check_package(ROOMS[room_of(module)], package, statement.guarded)
    if target == "fastgeom":
        return "up: fastgeom/__init__ is the roof; import the module itself"
    return check_room(module, target) if target in modules else f"there is no module {target}"


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """One circle of a graph as the list of its nodes, the first one repeated at the end, or the empty list."""
    done: set[str] = set()

    def follow(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        circle = next(filter(None, (follow(n, [*path, node]) for n in sorted(graph.get(node, ())))), [])
        done.add(node)
        return circle

    return next(filter(None, (follow(n, []) for n in sorted(graph))), [])


def check_layers(sources: dict[str, str], packages: frozenset[str] = frozenset()) -> list[str]:
    """All that is wrong with the imports of a package, given as module name -> source."""
    modules, problems, graph = frozenset(sources), [], {}
    for module, source in sources.items():
        statements = list(imports(source, module, modules, is_package=module in packages))
        if module == "fastgeom":
            free = sys.stdlib_module_names | {"fastgeom._version"}
            loaded = [i for i in statements if not i.guarded and not {i.target, i.target.partition(".")[0]} & free]
            problems += [f"fastgeom:{i.line}: not lazy: loads {i.target}" for i in loaded]
        elif room_of(module) is None:
            problems.append(f"{module}: is in no room of the table")
        else:
            wrong = ((i.line, check_import(module, i, modules)) for i in statements)
            problems += [f"{module}:{line}: {message}" for line, message in wrong if message]
            graph[module] = {i.target for i in statements if i.target in modules and i.target != "fastgeom"}
    circle = circle_in(graph)
    return problems + ([f"circle: {' -> '.join(circle)}"] if circle else [])


def host_copies(source: str) -> Iterator[tuple[str, str, int]]:
    """Every call that copies from device to host: the function it stands in, its name, its line."""

    def visit(node: ast.AST, function: str) -> Iterator[tuple[str, str, int]]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).rpartition(".")[2]
            to_cpu = name == "to" and any("cpu" in ast.unparse(a) for a in [*node.args, *node.keywords])
            if to_cpu or (name in HOST_COPIES and isinstance(node.func, ast.Attribute) != (name == "bool")):
                yield function, name, node.lineno
        for child in ast.iter_child_nodes(node):
            yield from visit(child, function)

    yield from visit(ast.parse(source), "")


def check_host_border(module: str, source: str) -> list[str]:
    """The calls of a module that copy from device to host and may not."""
    if room_of(module) not in LEFT_OF_RECORDING - CPU_ENGINE:
        return []
    copies = ((f, name, line) for f, name, line in host_copies(source) if (module, f, name) not in ALLOWED_HOST_COPIES)
    return [f"{module}:{line}: host border: {name}() in {f or 'the module'}" for f, name, line in copies]


def check_reproduction(module: str, source: str) -> list[str]:
    """Where a reproduction reaches past the public API."""
    problems = []
    for statement in imports(source, module, REPRODUCTIONS_MAY):
        if statement.target.partition(".")[0] in {"bench", "kernels", "tests"}:
            problems.append(f"{module}:{statement.line}: not public: {statement.target}")
        if statement.target.partition(".")[0] == "fastgeom":
            private = statement.target == "fastgeom" and statement.name and statement.name not in fastgeom.__all__
            if private or statement.target not in REPRODUCTIONS_MAY or (statement.name or "").startswith("_"):
                problems.append(
                    f"{module}:{statement.line}: not public: {statement.target} {statement.name or ''}".rstrip()
                )
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "fastgeom":
            if node.attr not in fastgeom.__all__:
                problems.append(f"{module}:{node.lineno}: not public: fastgeom.{node.attr}")
    return problems


# The checkout

ROOT = Path(__file__).resolve().parent.parent


def modules_on_disk() -> dict[str, Path]:
    """Module name -> file, kernels/ under the name it is installed as."""
    files = [p for p in (ROOT / "fastgeom").rglob("*.py") if not p.is_relative_to(ROOT / "fastgeom" / "kernels")]
    kernels = [ROOT / "fastgeom" / p.relative_to(ROOT) for p in (ROOT / "kernels").rglob("*.py")]
    named = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in files + kernels}
    return dict(sorted(named.items()))


MODULES = modules_on_disk()
SOURCES = {name: path.read_text() for name, path in MODULES.items()}
REPRODUCTIONS = sorted((ROOT / "reproductions").rglob("*.py"))


def test_imports_run_down():
    assert {"fastgeom", "fastgeom.schema", "fastgeom.kernels.lists.norm"} <= set(SOURCES)
    assert check_layers(SOURCES, frozenset(n for n, p in MODULES.items() if p.name == "__init__.py")) == []


def test_every_room_of_the_table_exists():
    assert {room_of(module) for module in MODULES if module != "fastgeom"} == set(ROOMS)


@pytest.mark.parametrize("module", [m for m in MODULES if room_of(m) in LEFT_OF_RECORDING])
def test_nothing_left_of_recording_copies_to_the_host(module):
    assert check_host_border(module, SOURCES[module]) == []


@pytest.mark.parametrize(("module", "function", "name"), ALLOWED_HOST_COPIES)
def test_every_allowed_host_copy_is_a_real_one(module, function, name):
    assert (function, name) in {(f, n) for f, n, _ in host_copies(SOURCES[module])}


@pytest.mark.parametrize("module", [m for m in MODULES if room_of(m) in WITHOUT_TORCH])
def test_runs_without_torch(run_python, module):
    run_python(f"import sys; sys.modules['torch'] = None; import {module}")


def test_measuring_loads_no_matplotlib(run_python):
    assert run_python("import fastgeom, sys; fastgeom.Probe; print('matplotlib' in sys.modules)").strip() == "False"


@pytest.mark.parametrize("path", REPRODUCTIONS, ids=lambda p: p.stem)
def test_reproductions_use_the_public_api_only(path):
    assert check_reproduction(f"reproductions.{path.stem}", path.read_text()) == []


# The checker itself

CLEAN = {
    "fastgeom": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from fastgeom.probe import Probe\n",
    "fastgeom.kernels.lists.dot": "import triton\nfrom fastgeom.kernels import traffic",
    "fastgeom.kernels.traffic": "",
    "fastgeom._version": "",
    "fastgeom.validation": "import torch",
    "fastgeom.schema": "import math\nimport numpy as np",
    "fastgeom.layout": "import torch\nfrom fastgeom.validation import check",
    "fastgeom.engines": "from . import cpu",
    "fastgeom.engines.cpu": "from fastgeom.layout import Layout",
    "fastgeom.engines.cpu.loops": "import numba",
    "fastgeom.trace": "from fastgeom.trace.reader import open_trace\ndef to_xarray():\n    import xarray",
    "fastgeom.trace.reader": "import h5py\nfrom fastgeom import schema\nfrom fastgeom._version import __version__",
    "fastgeom.trace.writer": "from ..schema import Field",
    "fastgeom.ops": "from fastgeom.engines import cpu",
    "fastgeom.recording": "from fastgeom.trace.writer import Writer",
    "fastgeom.schedules": "",
    "fastgeom.probe": "from fastgeom.schedules import every\nfrom fastgeom.recording import Recorder",
    "fastgeom.analysis": "from fastgeom.analysis.regimes import regimes",
    "fastgeom.analysis.regimes": "import numpy\nfrom fastgeom.trace import open_trace",
    "fastgeom.figures": "import matplotlib.pyplot as plt\nfrom fastgeom import analysis",
}
PACKAGES = frozenset({"fastgeom", "fastgeom.engines", "fastgeom.engines.cpu", "fastgeom.trace", "fastgeom.analysis"})


def test_checker_accepts_a_clean_house():
    assert check_layers(CLEAN, PACKAGES) == []


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("layout", "from fastgeom.engines.cpu import run", "layout:1: up: fastgeom.engines.cpu"),
        ("layout", "def f():\n    import fastgeom.probe", "layout:2: up: fastgeom.probe"),
        ("layout", "if TYPE_CHECKING:\n    from .ops import norm", "layout:2: up: fastgeom.ops"),
        ("layout", "from importlib import import_module as i\nimportlib.import_module('fastgeom.ops')", "layout:2: up"),
        ("layout", "from . import probe", "layout:1: up: fastgeom.probe"),
        ("layout", "class A:\n    from fastgeom import Probe", "layout:2: up: fastgeom/__init__"),
        ("ops", "import fastgeom.recording", "ops:1: sideways: fastgeom.recording"),
        ("validation", "from fastgeom.layout import Layout", "validation:1: sideways: fastgeom.layout"),
        ("engines.cpu", "import numba", "cpu:1: numba is no package of this room"),
        ("engines.cpu.loops", "import torch", "loops:1: torch is no package of this room"),
        ("engines.cpu.loops", "import fastgeom.schema", "loops:1: not in its row: fastgeom.schema"),
        ("trace.reader", "from fastgeom import __version__", "reader:1: up: fastgeom/__init__"),
        ("layout", "from fastgeom.schema import Field", "layout:1: sideways: fastgeom.schema"),
        ("schedules", "from fastgeom.probe import Probe", "schedules:1: sideways: fastgeom.probe"),
        ("analysis.regimes", "from fastgeom.layout import Layout", "regimes:1: not in its row: fastgeom.layout"),
        ("engines.cpu", "from fastgeom.engines import run", "circle: fastgeom.engines -> fastgeom.engines.cpu ->"),
        (
            "kernels.traffic",
            "def f():\n    import fastgeom.kernels.lists.dot",
            "circle: fastgeom.kernels.lists.dot -> ",
        ),
        ("analysis.regimes", "def f():\n    import torch.nn", "regimes:2: torch is no package of this room"),
        ("trace.reader", "import torch", "reader:1: torch is no package of this room"),
        ("trace.reader", "import xarray", "reader:1: xarray is optional"),
        ("probe", "import matplotlib.pyplot", "probe:1: matplotlib is no package of this room"),
        ("probe", "from fastgeom.trace import open_trace", "probe:1: file border"),
        ("probe", "from fastgeom.trace.writer import Writer", "probe:1: file border"),
        ("recording", "from fastgeom.trace import reader", "recording:1: file border"),
        ("kernels.lists.dot", "import torch", "lists.dot:1: torch is no package of this room"),
        ("kernels.lists.dot", "from kernels import traffic", "lists.dot:1: kernels is no package of this room"),
        ("probe", "import fastgeom.sketch", "probe:1: there is no module fastgeom.sketch"),
        ("utils", "", "fastgeom.utils: is in no room of the table"),
        ("schema_extra", "", "fastgeom.schema_extra: is in no room of the table"),
    ],
)
def test_checker_reports_a_bad_import(module, source, expected):
    problems = check_layers({**CLEAN, f"fastgeom.{module}": source}, PACKAGES)
    assert any(expected in p for p in problems), problems


def test_checker_reports_a_roof_that_is_not_lazy():
    problems = check_layers({**CLEAN, "fastgeom": "from fastgeom.probe import Probe\nimport torch"}, PACKAGES)
    assert problems == ["fastgeom:1: not lazy: loads fastgeom.probe", "fastgeom:2: not lazy: loads torch"]


@pytest.mark.parametrize(
    "call", ["x.item()", "(a + b).sum().cpu()", "x.detach().numpy()", "x.to('cpu')", "x.tolist()", "bool(x)"]
)
@pytest.mark.parametrize("module", ["layout", "history", "probe", "ops", "schedules", "engines", "engines.triton.ring"])
def test_checker_reports_a_host_copy(module, call):
    for source in (call, f"def f(x):\n    return [{call} for x in y]"):
        assert len(check_host_border(f"fastgeom.{module}", source)) == 1


@pytest.mark.parametrize(
    "module", ["recording", "engines.cpu.engine", "engines.cpu.loops.window", "trace.writer", "analysis"]
)
def test_checker_leaves_the_host_side_alone(module):
    assert check_host_border(f"fastgeom.{module}", "x.item()\nx.cpu().numpy().tolist()") == []


def test_checker_knows_the_documented_exception_and_no_other():
    source = "def clip_grad_norm_(x):\n    bool(x)\n    x.cpu()\ndef norm(x):\n    bool(x)"
    problems = check_host_border("fastgeom.ops", source)
    assert [p.split(": ")[-1] for p in problems] == ["cpu() in clip_grad_norm_", "bool() in norm"]


def test_checker_reports_a_reproduction_that_reaches_inside():
    public = "import fastgeom\nimport torch\nfrom fastgeom import Probe, analysis\nfrom fastgeom.figures import draw\n"
    public += "from reproductions.common import data\nfastgeom.analysis.regimes(fastgeom.open_trace('run.h5'))\n"
    assert check_reproduction("p", public) == []
    private = ["import fastgeom.probe", "from fastgeom.trace import open_trace", "from fastgeom import ops"]
    private += ["fastgeom.engines.cpu", "from fastgeom.analysis import _regimes", "from bench import peak"]
    assert [len(check_reproduction("p", source)) for source in private] == [1] * len(private)
