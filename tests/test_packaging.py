"""A built distribution holds every kernel file, runs far from the checkout, and leaves the name `kernels` alone."""

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import fastgeom

NEVER_SHIPPED = (".git", ".venv", "*.egg-info", "__pycache__", "build", "dist", "runs", ".*_cache", ".benchmarks")


def run(*command, cwd):
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def copy_sources(checkout: Path, target: Path) -> Path:
    """Copy what a commit of the checkout would hold: tracked files and new ones that are not ignored."""
    if not (checkout / ".git").exists():
        return shutil.copytree(checkout, target, symlinks=True, ignore=shutil.ignore_patterns(*NEVER_SHIPPED))
    trust = ("-c", "safe.directory=*")  # whoever owns the checkout
    listed = run("git", *trust, "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=checkout)
    for name in filter(None, listed.split("\0")):
        source, copy = checkout / name, target / name
        if source.is_symlink() or source.is_file():  # a deleted file is listed until its deletion is staged
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy, follow_symlinks=False)
    return target


def build(kind: str, sources: Path, target: Path) -> Path:
    """Build one distribution with the setuptools of this environment; nothing is downloaded."""
    command = (sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", str(target), str(sources))
    run(*command, cwd=target.parent)
    (built,) = target.iterdir()
    return built


def names_in(distribution: Path) -> set[str]:
    """The files of a wheel, or those of an sdist without its leading folder."""
    if distribution.suffix == ".whl":
        with zipfile.ZipFile(distribution) as wheel:
            return {n for n in wheel.namelist() if not n.endswith("/")}
    with tarfile.open(distribution) as sdist:
        return {m.name.partition("/")[2] for m in sdist.getmembers() if not m.isdir()}


def kernel_files(sources: Path) -> set[str]:
    files = {f"fastgeom/kernels/{p.relative_to(sources / 'kernels')}" for p in (sources / "kernels").rglob("*.py")}
    assert "fastgeom/kernels/lists/norm.py" in files
    return files


def package_files(sources: Path) -> set[str]:
    """Every file that an installed fastgeom needs, read from where it really lies."""
    modules = {str(p.relative_to(sources)) for p in (sources / "fastgeom").rglob("*.py")}
    return modules | kernel_files(sources) | {"fastgeom/py.typed"}


@pytest.fixture(scope="module")
def sources(checkout, tmp_path_factory):
    return copy_sources(checkout, tmp_path_factory.mktemp("packaging") / "sources")


@pytest.fixture(scope="module")
def wheel(sources):
    return build("wheel", sources, sources.parent / "wheel")


@pytest.fixture(scope="module")
def sdist(sources):
    return build("sdist", sources, sources.parent / "sdist")


@pytest.fixture(scope="module")
def fresh_python(wheel):
    """The interpreter of an environment that has the wheel; its dependencies come from the running environment.

    They come through a .pth file. A folder named in one is searched, but the .pth files inside it are not read, so an
    editable install of the checkout, which works through such a file, stays behind.
    """
    root = wheel.parent.parent / "fresh"
    venv.create(root, with_pip=False, symlinks=True)
    python = str(root / "bin" / "python")
    options = ("--no-deps", "--no-index", "--no-compile", "--quiet")
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, str(wheel), cwd=root)
    (site,) = (root / "lib").glob("python*/site-packages")
    dependencies = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "dependencies.pth").write_text("\n".join(sorted(dependencies)) + "\n")
    return python


@pytest.fixture
def run_outside(fresh_python, tmp_path):
    """Run code in the fresh environment, far from the checkout: -I ignores PYTHONPATH and the current folder."""
    return lambda code: run(fresh_python, "-I", "-c", code, cwd=tmp_path).strip()


def test_the_symlink_is_one(checkout):
    link = checkout / "fastgeom" / "kernels"
    assert link.is_symlink() and link.readlink() == Path("../kernels")
    assert not (checkout / "kernels" / "__init__.py").exists()


def test_wheel_holds_the_package_and_nothing_else(sources, wheel):
    metadata = {n for n in names_in(wheel) if n.startswith(f"fastgeom-{fastgeom.__version__}.dist-info/")}
    assert names_in(wheel) - metadata == package_files(sources)
    assert any(n.endswith("/licenses/LICENSE") for n in metadata)


def test_sdist_holds_the_package(sources, sdist):
    assert package_files(sources) | {"LICENSE", "README.md", "pyproject.toml"} <= names_in(sdist)


def test_wheel_from_the_sdist_is_the_same(sdist, wheel, tmp_path):
    with tarfile.open(sdist) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.0 to 3.11.3 have none
        archive.extractall(tmp_path / "unpacked")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert names_in(build("wheel", unpacked, tmp_path / "wheel")) == names_in(wheel)


def test_a_lost_symlink_is_seen(checkout, tmp_path):
    """Git without symlinks leaves a text file in its place; the build then says nothing, the list of files does."""
    sources = copy_sources(checkout, tmp_path / "sources")
    link = sources / "fastgeom" / "kernels"
    link.unlink()
    link.write_text("../kernels")
    missing = package_files(sources) - names_in(build("wheel", sources, tmp_path / "wheel"))
    assert missing == kernel_files(sources)


def test_installed_package_is_the_wheel_s(run_outside, fresh_python, checkout):
    site = Path(run_outside("import fastgeom; print(fastgeom.__file__)")).parent.parent
    assert site.is_relative_to(Path(fresh_python).parent.parent)
    path = run_outside("import sys; print(*sys.path, *sys.meta_path, sep='\\n')")
    assert str(checkout / "fastgeom") not in path and str(checkout) not in path.splitlines()
    assert "editable" not in path


def test_installed_package_finds_its_kernels(run_outside, fresh_python):
    file = run_outside("import importlib.util as i; print(i.find_spec('fastgeom.kernels.lists.norm').origin)")
    assert Path(file).is_relative_to(Path(fresh_python).parent.parent)


def test_installed_package_knows_its_version(run_outside):
    code = "import importlib.metadata as m, fastgeom; print(fastgeom.__version__, m.version('fastgeom'))"
    assert run_outside(code).split() == [fastgeom.__version__] * 2


def test_the_name_kernels_is_left_alone(run_outside, fresh_python, checkout):
    """Somebody else's kernels may be installed here; ours may not."""
    code = "import importlib.util as u; s = u.find_spec('kernels'); print(*(s.submodule_search_locations if s else []))"
    for folder in run_outside(code).split():
        assert not Path(folder).is_relative_to(Path(fresh_python).parent.parent)
        assert not Path(folder).resolve().is_relative_to(checkout / "kernels")
