"""Every figure with --quick, as a user makes it: runs, verdict, picture, and the same picture again from kept runs."""

import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from reproductions.__main__ import NAMES, load_figures, main
from reproductions.common import pool
from reproductions.common.page import CLAIMS

IDS = [*(f"P{n}" for n in range(1, 11)), *(f"A{n}" for n in range(1, 5)), "B1", "B2"]
SMALL_EVEN_IF_FULL = {"P8": {"resnet", "resnet-bn", "plain", "plain-bn"}, "B2": {"cnn", "cnn-gelu"}}
FIGURES = {figure.name: figure for figure in load_figures()}


def assert_same_picture(one: str, other: str) -> None:
    """All but the last digits of places, which the layout finds to a millionth of a point, and digests of them."""
    one, other = (re.sub(r"\bp[0-9a-f]{10}\b", "p", text) for text in (one, other))
    number = re.compile(r"-?\d+(?:\.\d+)?")
    assert number.sub("", one).split() == number.sub("", other).split(), "the same runs, another picture"
    numbers = [[float(n) for n in number.findall(text)] for text in (one, other)]
    assert numbers[0] == pytest.approx(numbers[1], abs=1e-3), "the same runs, other places"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of all figures lie, so that they share them here too."""
    return tmp_path_factory.mktemp("figures")


def test_every_figure_has_one_script(checkout: Path) -> None:
    assert [FIGURES[name].id for name in NAMES] == IDS
    scripts = {path.stem for path in (checkout / "reproductions").glob("*.py") if re.match(r"[pab]\d+_", path.name)}
    assert scripts == set(NAMES)
    assert {claim for name in NAMES for claim in FIGURES[name].claims} == set(CLAIMS)


@pytest.mark.parametrize("name", NAMES)
def test_quick(name: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    figure = FIGURES[name]
    assert figure.name == name
    first = figure.seeds.start
    arguments = [figure.id, "--quick", "--runs", str(folder)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert figure.statement in printed and str(folder / f"{name}.png") in printed

    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    drawing = (folder / f"{name}.svg").read_text(encoding="utf-8")
    visible_text = " ".join(" ".join(ElementTree.fromstring(drawing).itertext()).split())
    for part in ("settings are ours", f"seeds {first} to {first + 1}", "η", figure.title):
        assert part in visible_text, f"{part!r} is not on the picture"

    record = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    assert record["id"] == figure.id and record["effort"] == "quick" and record["seeds"] == [first, first + 1]
    assert record["verdict"] == "undecided" and "a verdict takes 5" in record["reason"], "two seeds decide nothing"
    assert len(record["values"]) == 2 and record["threshold"] == figure.threshold
    assert all(value is None or math.isfinite(value) for value in record["values"])
    assert all((folder / f"{run}.h5").is_file() for run in record["runs"])

    def refuse(*_: object) -> None:
        raise AssertionError("a kept run was made again")

    monkeypatch.setattr(pool, "train", refuse)
    assert main(arguments) == 0
    assert_same_picture((folder / f"{name}.svg").read_text(encoding="utf-8"), drawing)


@pytest.mark.parametrize("name", NAMES)
def test_plans_are_whole_at_every_effort(name: str) -> None:
    figure = FIGURES[name]
    for effort in ("quick", "default", "full"):
        first, second = figure.plan(effort, 10), figure.plan(effort, 11)
        assert list(first) == list(second) and first
        assert not {c.name for c in first.values()} & {c.name for c in second.values()}
        assert {c.device for c in first.values()} == {"cuda" if effort == "full" else "cpu"}
        if effort == "full":
            networks = SMALL_EVEN_IF_FULL.get(figure.id, {"resnet18", "vgg11"})
            assert {c.data for c in first.values()} == {"cifar10"} and {c.network for c in first.values()} <= networks


def test_default_plans_share_runs() -> None:
    """All figures take fewer runs than each by itself."""
    names = [c.name for name in NAMES for c in FIGURES[name].plan("default", 10).values()]
    assert len(set(names)) < 0.9 * len(names)
