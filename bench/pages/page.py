"""The page of kept results, bench/README.md: made of the documents and of nothing else."""

import re
from collections import Counter
from collections.abc import Sequence

from bench.pages import roofline, speed, tables
from bench.pages.document import Document, missed, of_kind
from bench.pages.words import number, size

HEAD = """\
# Benchmarks

*`make bench` writes this page from the newest file of each device in [results/](results); see `bench/pages/`.*
Ratios are taken inside one run and hold on other days; times and GB/s are those of one machine on one day. How each
number came about stands under [How to read](#how-to-read).
"""
TAIL = """\
## How to repeat

    make bench                             # everything; writes results/<device>-<date>.json, its picture, this page
    make bench ARGS='-k window'            # some of it; kept results and this page stay as they are
    .venv/bin/python -m bench.report build/bench.json --out /tmp/page      # a page of whatever was run last
    .venv/bin/python -m bench.compare build/bench.json                     # its ratios against the kept ones

`bench.compare` holds ratios and never times; it flags what got worse by more than 15 %, and shows both intervals.

## How to read

- **× our time** is the time of another way over ours: above 1 ours is faster, and where it is below 1 the number is
  bold. In every round each way runs once, in turn, and the ratio is that of two times of one round. The page gives the
  median over the rounds and, in brackets, the 95 % interval of that median (of five rounds and fewer: their range). It
  says how much the rounds differ, not how much another day or another machine would.
- **ms** are medians over the same rounds.
- **GB/s** is the fewest bytes that the statistic can move, whoever computes it, over our time. A way that moves more
  than that gets no credit for it.
- **of peak** is that over the *measured peak*, not the number of a data sheet: of five plain ways through memory, none
  of which finds it in a cache, the two that are fastest at the start of the run are timed in every round of every case,
  and the faster one counts. As a ratio it is taken round by round: GB/s over a median peak can differ from it. It is no
  law: on a processor our loops ask for memory ahead of themselves, the plain reads do not, and so a fraction can be
  above 1.
- Buffers rotate: no way finds in a cache what another has just read, and between two rounds the plain reads go through
  all of it.
- On a processor gradients lie in torch's memory, in pages of 4 KiB; the plain reads and our ring, in huge pages where
  the system has them. Whoever reads small pages that no cache holds is slower: a norm or a dot stays below that peak.
- In one piece: torch.compile and numba are given gradients that already lie in one piece; ours and the others take the
  list of tensors, and look at every call where they lie.
- **error** is the distance from the same in float64, seen before anything is timed: of a norm relative to it, of an
  inner product relative to the product of the two norms.
- **temporary** is the memory that one step takes and gives back; what is held between steps is not in it.
- **launches** counts kernels, copies and fills; **ms of the host** is the time until the call has returned.
- Small cases (a thousand elements, say) cost calls and not bytes: their fraction of the peak is low by nature.
- A missed goal is shown and does not stop a run. Where a case had to shrink to fit the memory, that is said below it.
- **–** means: not measured, or without meaning here. A column in which nothing was measured is left out.
"""


def render(documents: Sequence[Document]) -> str:
    """Markdown.

    Args:
        documents: the newest of each device, as `bench.pages.document.newest` gives them.
    """
    lines = [HEAD, "| device | run | goals reached |", "|---|---|---|"]
    for found in documents:
        name = found["device"]["name"]
        goals = [goal for bench in found["benches"] for goal in bench.get("goals") or ()]
        reached = sum(not missed(goal) for goal in goals)
        lines.append(f"| [{name}](#{_anchor(name)}) | {found['date'][:10]} | {reached} of {len(goals)} |")
    for found in documents:
        lines += ["", *_device(found)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n\n" + TAIL


def _device(found: Document) -> list[str]:
    lines = [f"## {found['device']['name']}", "", "### Goals", "", *tables.goals(found), ""]
    if of_kind(found, "speed"):
        lines += ["### At a glance", "", "From the lowest to the highest over the cases of a statistic.", ""]
        lines += [*speed.glance(found), ""]
    if roofline.chosen(found):
        lines += [f"![Roofline: {found['device']['name']}](results/{roofline.file_name(found)})", ""]
    lines += speed.speed(found)
    for kind, heading, text, rows in (
        ("training", "Training", TRAINING, tables.training),
        ("accuracy", "Accuracy", ACCURACY, tables.accuracy),
        ("growth", "Growth", GROWTH, tables.growth),
        ("memory", "Memory", MEMORY, tables.memory),
    ):
        if of_kind(found, kind):
            lines += [f"### {heading}", "", text, "", *rows(found), ""]
    return [*lines, "### Machine", "", *_machine(found)]


TRAINING = "A whole training step with and without measuring, in turn."
ACCURACY = (
    "Distance from float64. In parentheses, where the result may cancel: relative to the result itself. Bold is beyond "
    "the bound."
)
GROWTH = (
    "The time of a step fitted as constant × size^exponent, beside what the bytes at the measured peak would give. "
    "Where calls cost more than bytes the exponent is lower, and the constant higher."
)
MEMORY = "The ring holds the past gradients; beside it is everything else that measuring holds."


def _machine(found: Document) -> list[str]:
    """A line a fact; a fact without a name of its own here is shown under the one it has."""
    device, threads = found["device"], found["threads"]
    facts = {"device": device["name"], "cores": device.get("cores"), "memory": size(device.get("memory_bytes"))}
    known = {"kind", "name", "slug", "cores", "memory_bytes"}
    facts |= {key.replace("_", " "): value for key, value in device.items() if key not in known}
    facts["threads"] = ", ".join(f"{name} {n}" for name, n in threads.items())
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in found["versions"].items() if version)
    facts["measured peak"] = _peak(found)
    facts["compute roof"] = ", ".join(
        f"{number(roof['gflop_per_s'])} GFLOP/s: {roof['what']}" for roof in of_kind(found, "roof")
    )
    facts["commit"] = f"{found['commit'] or 'unknown'}{', with changes that are not in it' if found['dirty'] else ''}"
    facts["run"] = found["date"][:16].replace("T", " ")
    if found.get("seconds") is not None:
        facts["run"] += f", {found['seconds'] / 60:.0f} min in all"
    return tables.table(["", ""], [[name, str(value)] for name, value in facts.items() if value])


def _peak(found: Document) -> str:
    cases = [case for case in of_kind(found, "speed") if case.get("peak_gb_per_s") is not None]
    if not cases:
        return ""
    peaks = sorted(case["peak_gb_per_s"] for case in cases)
    ways = Counter(str(case.get("peak_way", "a way not named")) for case in cases)
    fastest = ", ".join(f"{way} in {n}" for way, n in ways.most_common())
    return f"{number(peaks[0])} to {number(peaks[-1])} GB/s over {len(cases)} cases; the fastest read was {fastest}"


def _anchor(heading: str) -> str:
    """GitHub's anchor of a heading."""
    return "".join(c for c in heading.lower() if c.isalnum() or c in " -_").replace(" ", "-")
