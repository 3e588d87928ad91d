"""The documents are true where a program can tell: links, paths, names, and the code of the README runs."""

import re
from pathlib import Path

import pytest
import torch

import fastgeom

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TOPS = ("bench/", "docs/", "fastgeom/", "kernels/", "reproductions/", "tests/")


def python_blocks(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)


def exists(path: str) -> bool:
    return (ROOT / path).exists() or (ROOT / path.replace("fastgeom/kernels", "kernels")).exists()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (document.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_paths_and_public_names_exist(document: Path) -> None:
    code = re.findall(r"`([^`\n]+)`", document.read_text(encoding="utf-8"))
    paths = [word for word in code if word.startswith(TOPS) and not re.search(r"[<{*\s]", word)]
    assert [path for path in paths if not exists(path)] == []
    names = re.findall(r"\bfastgeom\.(\w+(?:\.\w+)?)", "\n".join(python_blocks(document) + code))
    missing = []
    for name in names:
        value: object = fastgeom
        for part in name.split("."):
            value = getattr(value, part, None)
        module = f"fastgeom/{name.replace('.', '/')}"
        if value is None and not exists(module) and not exists(f"{module}.py"):
            missing.append(name)
    assert missing == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 100


def test_the_code_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One block after another, as a reader would type them, on a model that has the layer they name."""
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Module()
    model.blocks = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(4)))
    model.forward = model.blocks.forward
    criterion, lr = torch.nn.MSELoss(), 0.1
    given = {
        "model": model,
        "criterion": criterion,
        "lr": lr,
        "loader": [(torch.randn(8, 4), torch.randn(8, 4)) for _ in range(40)],
        "optimizer": torch.optim.SGD(model.parameters(), lr=lr),
    }
    blocks = python_blocks(ROOT / "README.md")
    assert len(blocks) == 2
    for block in blocks:
        exec(block, given)
    assert given["trace"].lag_cosine.shape == (40, 32) and given["trace"].status == "finished"
    assert sum(given["shares"].net) == pytest.approx(1)
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
