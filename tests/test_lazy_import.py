"""`import fastgeom` loads nothing heavy, and reading a trace never loads torch."""

import ast
import importlib

import pytest

import fastgeom

LOADED = "import sys\n{code}\nprint(*sorted(m for m in ('h5py', 'matplotlib', 'numpy', 'torch') if m in sys.modules))"
WITHOUT_TORCH = "import sys\nsys.modules['torch'] = None\n"


def test_import_loads_nothing(run_python):
    assert run_python(LOADED.format(code="import fastgeom; dir(fastgeom)")).split() == []


def test_analysis_loads_only_numpy_and_the_reader(run_python):
    loaded = run_python(LOADED.format(code="import fastgeom.analysis")).split()
    assert "numpy" in loaded
    assert not {"matplotlib", "torch"} & set(loaded)


def test_open_trace_loads_no_torch(run_python):
    assert run_python(LOADED.format(code="import fastgeom; fastgeom.open_trace")).split() == ["h5py", "numpy"]


@pytest.mark.parametrize("name", ["open_trace", "analysis", "figures"])
def test_what_reads_a_trace_works_without_torch(run_python, name):
    run_python(f"{WITHOUT_TORCH}import fastgeom; fastgeom.{name}")


@pytest.mark.parametrize("name", sorted(fastgeom._SUBMODULES))
def test_submodules_are_attributes(run_python, name):
    assert run_python(f"import fastgeom; print(fastgeom.{name}.__name__)").strip() == f"fastgeom.{name}"


@pytest.mark.parametrize("name", sorted(fastgeom._HOMES))
def test_every_public_name_is_its_home_s(name):
    assert getattr(fastgeom, name) is getattr(importlib.import_module(fastgeom._HOMES[name]), name)


def test_the_lists_of_public_names_agree():
    assert set(fastgeom.__all__) == {"__version__", *fastgeom._SUBMODULES, *fastgeom._HOMES}
    assert set(fastgeom.__all__) <= set(dir(fastgeom))


def test_type_checkers_see_the_same_homes(checkout):
    """The TYPE_CHECKING block, which nothing runs, names the modules that __getattr__ loads."""
    tree = ast.parse((checkout / "fastgeom" / "__init__.py").read_text())
    guarded = [n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    homes = {name.name: node.module for block in guarded for node in block.body for name in node.names}
    assert homes == {**fastgeom._HOMES, **dict.fromkeys(fastgeom._SUBMODULES, "fastgeom")}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'fastgeom' has no attribute 'no_such_name'"):
        _ = fastgeom.no_such_name
    with pytest.raises(ImportError, match="no_such_name"):
        exec("from fastgeom import no_such_name")


def test_version_is_readable_without_any_package_and_uninstalled(run_python, checkout):
    """-S leaves out site-packages: nothing but this checkout and the standard library."""
    code = "import subprocess, sys; subprocess.run([sys.executable, '-I', '-S', '-c', *sys.argv[1:]], check=True)"
    inner = "import sys; sys.path.insert(0, sys.argv[1]); import fastgeom; print(fastgeom.__version__)"
    assert run_python(code, inner, str(checkout)).strip() == fastgeom.__version__
