"""``python -m bench.report build/bench.json``: the kept file of a run, the page of all kept files, and its pictures.

A partial run (``make bench ARGS='-k window'``) never replaces kept results: without ``--out`` only a whole run is
written, one with every kind, every statistic, and every bench that the kept file of the same device has.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.pages import document, roofline
from bench.pages.page import render


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 where it was written or is partial, 2 where the file is unusable."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description="Write kept results and their page.")
    parser.add_argument("found", type=Path, help="what pytest bench --benchmark-json=FILE wrote")
    parser.add_argument("--out", type=Path, help="write README.md and results/ there, of a partial run too")
    asked = parser.parse_args(arguments)
    root = asked.out or document.RESULTS.parent
    try:
        run = document.read(asked.found)
        lacks = [] if asked.out else document.lacking(run, document.newest(root / "results"))
        if lacks:
            print(
                f"a partial run ({'; '.join(lacks)}): the kept results stay as they are. --out FOLDER writes a page of "
                "it; where benches are gone for good, delete the kept file first."
            )
        else:
            print(f"wrote {write(run, root)} and {root / 'README.md'}")
    except document.UnusableError as error:
        print(f"bench.report: {error}", file=sys.stderr)
        return 2
    return 0


def write(run: document.Document, root: Path) -> Path:
    """Write the document of a run, then page and pictures of the newest of each device; returns the document's path."""
    results = root / "results"
    results.mkdir(parents=True, exist_ok=True)
    path = results / f"{run['device']['slug']}-{run['date'][:10]}.json"
    path.write_text(json.dumps(run, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    found = document.newest(results)
    for one in found:
        if roofline.chosen(one):
            roofline.draw(one, results / roofline.file_name(one))
    (root / "README.md").write_text(render(found), encoding="utf-8")
    return path


if __name__ == "__main__":
    sys.exit(main())
