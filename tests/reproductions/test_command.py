"""The one command: names of figures, the other programs, and the help that lists them."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from reproductions.__main__ import NAMES, PROGRAM, PROGRAMS, RESULTS, main
from reproductions.common import command


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the figures that the command would make."""
    names: list[str] = []

    def record(figures, program, request) -> int:
        names.extend(figure.name for figure in figures)
        return 3

    monkeypatch.setattr(command, "make_figures", record)
    return names


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["p1"], ["p1_two_geometries"]),
        (["P10", "--quick"], ["p10_scale_sweep"]),
        (["b2_kinks"], ["b2_kinks"]),
        (["--quick", "a1", "--theta", "0.8", "p1"], ["a1_stages", "p1_two_geometries"]),
        (["p1", "P1", "p1_two_geometries"], ["p1_two_geometries"]),
        ([], list(NAMES)),
    ],
    ids=lambda value: " ".join(value) or "none",
)
def test_figures_are_made_by_name(made: list[str], arguments: list[str], expected: list[str]) -> None:
    assert main(arguments) == 3
    assert made == expected


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("p11", "did you mean p1 or p10?"),
        ("two_geometries", "did you mean p1_two_geometries?"),
        ("xyz", "--help lists them"),
    ],
)
def test_unknown_name_is_one_line(name: str, hint: str, made: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["p1", name])
    assert stopped.value.code == 2 and made == []
    expected = f"{PROGRAM}: argument FIGURE: expected the name of a figure, got {name!r}: {hint}\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("program", PROGRAMS)
def test_other_programs_have_options_of_their_own(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([program, "--theta", "0.5"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"{PROGRAM} {program}: unrecognized arguments: --theta 0.5\n"
    with pytest.raises(SystemExit) as stopped:
        main(["--quick", program])
    assert stopped.value.code == 2
    assert f"write {PROGRAM} {program} [options]" in capsys.readouterr().err


def test_help_lists_every_figure_and_program(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    entries = capsys.readouterr().out.split("figures and programs:")[1]
    listed = re.findall(r"^  (\S+) +\w.* .*\w[.?]$", entries, re.M)
    assert listed == [*(name.partition("_")[0] for name in NAMES), *PROGRAMS]


@pytest.mark.parametrize("names", [[], ["p1"]])
def test_committed_results_are_of_the_default_settings(
    names: list[str], made: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*names, "--quick", "--out", str(RESULTS)]) == 2
    assert made == [] and "keeps results of the default settings only" in capsys.readouterr().err


def test_no_torch_before_a_program_is_chosen(run_python: Callable[..., str]) -> None:
    """The demo sets a variable that torch reads when it is loaded."""
    assert run_python("import reproductions.__main__, sys; print('torch' in sys.modules)").strip() == "False"


def test_no_module_edits_the_search_path(checkout: Path) -> None:
    sources = [*(checkout / "reproductions").rglob("*.py")]
    assert len(sources) > 30
    assert [path.name for path in sources if "sys.path" in path.read_text(encoding="utf-8")] == []
