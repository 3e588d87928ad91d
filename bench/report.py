"""``python -m bench.report build/bench.json``: store a run, and write the page of all stored runs and its pictures.

A partial run (``make bench ARGS='-k window'``) is printed and replaces nothing: without ``--out`` only a complete run
is stored, one with every kind, every statistic, and every bench that the stored run of the same device has.
"""

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.pages import document
from bench.pages.page import render, sections


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status: 0 where the run was stored or is partial, 2 where the file is unusable."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description="Store results and write their page.")
    parser.add_argument("file", type=Path, help="what pytest bench --benchmark-json=FILE wrote")
    parser.add_argument("--out", type=Path, help="write README.md and results/ there, of a partial run too")
    options = parser.parse_args(arguments)
    root = options.out or document.RESULTS.parent
    try:
        run = document.read(options.file)
        lacks = [] if options.out else document.lacking(run, document.newest(root / "results"))
        if not lacks:
            publish(options.file, root)
            return 0
    except document.UnusableError as error:
        print(f"bench.report: {error}", file=sys.stderr)
        return 2
    _print(run)
    print(
        f"a partial run ({'; '.join(lacks)}): the stored results stay as they are. --out FOLDER writes a page of it; "
        "where benches are gone for good, delete the stored file first."
    )
    return 0


def _print(run: document.Document) -> None:
    print("\n".join(line for line in sections(run) if not line.startswith("![")))


def publish(file: Path, root: Path, *, jobs: Sequence[dict[str, Any]] = ()) -> None:
    """Store a run, then write page and pictures of the newest run of each device into a folder.

    Args:
        file: of pytest-benchmark, or a stored run.
        root: folder of README.md and results/.
        jobs: how the processes of `bench.gpu` ended; they are stored with the run, which is printed.
    """
    run = document.read(file)
    if jobs:
        run["jobs"] = list(jobs)
        _print(run)
    results = root / "results"
    results.mkdir(parents=True, exist_ok=True)
    path = results / f"{run['device']['slug']}-{run['date'][:10]}.json"
    path.write_text(json.dumps(run, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    newest = document.newest(results)
    if importlib.util.find_spec("matplotlib") is not None:
        from bench.pages import roofline

        for each in newest:
            if document.picture_cases(each):
                roofline.draw(each, results / document.picture_name(each))
    (root / "README.md").write_text(render(newest), encoding="utf-8")
    print(f"wrote {path} and {root / 'README.md'}")


if __name__ == "__main__":
    sys.exit(main())
