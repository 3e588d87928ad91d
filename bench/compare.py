"""``python -m bench.compare NEW.json [STORED.json]``: the ratios of a run against the stored ones.

Times and GB/s are never compared: they are those of a day. What is compared, and when it is *worse by more than 15 %*:

- the time of another implementation over ours, and the fraction of the measured peak: once the stored value is more
  than 1.15 times the new one, that is, once ours takes over 15 % longer on the same yardstick;
- a training step with over without: once the part that is added to the step has grown by more than 15 % of itself and
  by more than 0.05 of a plain step. The ratio itself would hide a probe that costs twice as much (1.04 and 1.08 are 4 %
  apart); the added part alone is mostly noise where it is small (0.01 and 0.02 are 100 % apart).

Medians decide; both intervals are shown, and how many do not overlap, so that a reader can see what may be noise. Other
tools' training ratios are not compared. The exit status is 0 where nothing got worse, 1 where something did, 2 where
nothing can be compared.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.pages import document
from bench.pages.document import Document, Facts
from bench.pages.formatting import ratio, what

ALLOWED = 0.15
STEP_ALLOWED = 0.05
"""What the added part of a training step may grow by, of a plain step."""


@dataclass(frozen=True)
class Ratio:
    """One ratio of a run."""

    where: str
    facts: Facts
    """``ratio`` with its interval, where it has one."""
    adds: bool
    """Whether it is a training step with over without; all others are better when larger."""

    def worse(self, stored: "Ratio") -> float:
        """By how much it is worse than the stored one; below zero where it is better."""
        new, old = self.facts["ratio"], stored.facts["ratio"]
        if not self.adds:
            return old / new - 1
        return (new - old) / max(old - 1, STEP_ALLOWED / ALLOWED)

    def apart(self, stored: "Ratio") -> bool | None:
        """Whether the two intervals do not overlap; ``None`` where there are none."""
        ends = [each.facts.get(end) for each in (stored, self) for end in ("ratio_low", "ratio_high")]
        return None if None in ends else ends[2] > ends[1] or ends[3] < ends[0]

    def line(self, stored: "Ratio") -> str:
        """Both values and the change between them."""
        added = f"the added part went from {stored.facts['ratio'] - 1:.2f} to {self.facts['ratio'] - 1:.2f} of a step"
        worse, better = (100 * change for change in (self.worse(stored), stored.worse(self)))
        change = added if self.adds else f"{worse:.1f} % worse" if worse > 0 else f"{better:.1f} % better"
        intervals = "; the intervals overlap" if self.apart(stored) is False else ""
        return f"{self.where}: {ratio(stored.facts)}, now {ratio(self.facts)} ({change}{intervals})"


def ratios(run: Document) -> dict[tuple[document.Identity, str], Ratio]:
    """Everything that is compared of a run, by the bench and the name of the ratio."""
    return {
        (document.identity(bench), name): Ratio(f"{what(bench)}: {name}", facts, bench["kind"] == "training")
        for bench in run["benches"]
        for name, facts in _sides(bench).items()
        if facts.get("ratio")
    }


def _sides(bench: Facts) -> dict[str, Facts]:
    if bench["kind"] == "speed":
        peers = {f"× our time, {name}": peer for name, peer in bench["peers"].items()}
        return {"fraction of peak": {"ratio": bench.get("fraction_of_peak")}} | peers
    if bench["kind"] == "training":
        return {f"with / without, {name}": mode for name, mode in bench["modes"].items() if not mode.get("peer")}
    return {}


def report(new: Document, stored: Document) -> tuple[list[str], int]:
    """What to print, and the exit status."""
    if new["device"]["slug"] != stored["device"]["slug"]:
        devices = f"{new['device']['name']} and {stored['device']['name']}"
        return [f"ratios of different machines do not compare: {devices}"], 2
    here, before = ratios(new), ratios(stored)
    common = [key for key in here if key in before]
    lines = [f"{new['date'][:16]} against {stored['date'][:16]}, {new['device']['name']}"]
    changed = [key for key in ("versions", "threads") if new[key] != stored[key]]
    lines += [f"  {key} differ: {stored[key]}, now {new[key]}" for key in changed]
    worse = {key: here[key].worse(before[key]) for key in common}
    bad = [key for key in common if worse[key] > ALLOWED]
    good = [key for key in common if before[key].worse(here[key]) > ALLOWED]
    sections = {
        "worse by more than 15 %": [here[key].line(before[key]) for key in sorted(bad, key=lambda key: -worse[key])],
        "better by more than 15 %": [here[key].line(before[key]) for key in good],
        "missing now": [before[key].where for key in before if key not in here],
        "new": [here[key].where for key in here if key not in before],
    }
    for title, texts in sections.items():
        lines += ["", f"{title}:", *(f"  {text}" for text in texts)] if texts else []
    apart = sum(bool(here[key].apart(before[key])) for key in bad)
    counts = f"{len(bad)} worse ({apart} with intervals that do not overlap), {len(good)} better by more than 15 %"
    lines += ["", f"{len(common)} ratios compared: {counts}"]
    return lines, 1 if bad else 0 if common else 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description="Compare ratios with the stored ones.")
    parser.add_argument("new", type=Path, help="of pytest-benchmark or of bench.report")
    parser.add_argument("stored", type=Path, nargs="?", help="default: the newest of the same device in bench/results")
    options = parser.parse_args(arguments)
    try:
        new = document.read(options.new)
        stored = document.read(options.stored) if options.stored else _stored(new)
    except document.UnusableError as error:
        print(f"bench.compare: {error}", file=sys.stderr)
        return 2
    lines, status = report(new, stored)
    print("\n".join(lines))
    return status


def _stored(new: Document) -> Document:
    """The newest stored document of the device that is not this very run."""
    for stored in document.newest(document.RESULTS, but=new):
        if stored["device"]["slug"] == new["device"]["slug"]:
            return stored
    raise document.UnusableError(
        f"{document.RESULTS}: holds no other run of {new['device']['name']}; "
        "ratios of different machines do not compare"
    )


if __name__ == "__main__":
    sys.exit(main())
