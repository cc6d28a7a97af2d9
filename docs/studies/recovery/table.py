"""Print the table of docs/studies/recovery as Markdown, and write what a plan tells of it.

    python -m docs.studies.recovery.table

The rows without data go to edgekd/pipeline/expectations.json, from which `edgekd distill` says what to expect.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docs.studies.recovery.run import HERE, PAIRS, Row, rows
from edgekd.pipeline import expectation
from edgekd.pipeline.expectation import Expectation

SOURCES = {"free": "none", "real": "training images", "photos": "1,000 photographs of other things"}


@dataclass(frozen=True)
class Group:
    """The runs of one pair, start, source and budget, from several seeds."""

    row: Row
    runs: tuple[dict[str, Any], ...]

    @property
    def accuracies(self) -> list[float]:
        """Accuracy of the last checkpoint on all test images, in % and in the order of the seeds."""
        return [100 * accuracy(run, "student") for run in self.runs]

    @property
    def median(self) -> float:
        """The median of the accuracies, in %."""
        median: float = statistics.median(self.accuracies)
        return median

    @property
    def regret(self) -> float:
        """The largest distance of a last point from its curve's best, in points."""
        largest: float = max(100 * run["curve"]["regret"] for run in self.runs)
        return largest


def accuracy(run: dict[str, Any], network: str) -> float:
    """Return the accuracy of the run's student or teacher on all test images."""
    evaluation = max(run["evals"].values(), key=lambda one: one["images"])  # the other one is of the curve's images
    found: float = evaluation["accuracy"][network]
    return found


def groups(folder: Path = HERE / "rows") -> list[Group]:
    """Return what has been measured, in the order of the rows."""
    measured: dict[tuple[str, ...], Group] = {}
    for row in rows():
        file = folder / f"{row.name}.json"
        if file.is_file():
            key = (row.pair, row.start, row.source, row.budget)
            before = measured[key].runs if key in measured else ()
            measured[key] = Group(row, (*before, json.loads(file.read_text(encoding="utf-8"))))
    return list(measured.values())


def line(group: Group, oracle: Group | None) -> str:
    """Return one line of the table."""
    row, first = group.row, group.runs[0]
    teacher = accuracy(first, "teacher")
    cells = [
        f"{row.pair}{', ' + row.start + ' start' if row.start else ''}",
        SOURCES[row.source],
        f"{statistics.median(run['macs'] for run in group.runs) / 1e12:.1f}",
        f"{statistics.median(run['seconds'] for run in group.runs) / 60:.1f}",
        " ".join(f"{accuracy:.2f}" for accuracy in group.accuracies),
        f"**{group.median:.2f}**",
        f"{100 * teacher:.2f}",
        f"{group.median / oracle.median:.2f}" if oracle else "",
        f"{group.regret:.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def expectations(measured: list[Group]) -> list[Expectation]:
    """Return what a plan may tell of the rows: those that no real image had a part in."""
    return [
        Expectation(
            teacher=PAIRS[row.pair].called,
            student=PAIRS[row.pair].student,
            images=PAIRS[row.pair].images,
            input_shape=PAIRS[row.pair].input_shape,
            starts_from_teacher=PAIRS[row.pair].alike and row.start != "random",
            macs=statistics.median(run["macs"] for run in group.runs),
            share=round(group.median / 100 / accuracy(group.runs[0], "teacher"), 3),
            runs=len(group.runs),
        )
        for group in measured
        if (row := group.row).source == "free"
    ]


def main() -> None:
    """Print the table, and write the file of expectations."""
    measured = groups()
    text = expectation.to_json(expectations(measured))
    Path(expectation.__file__).with_name(expectation.FILE).write_text(text, encoding="utf-8")
    oracles = {
        (group.row.pair, group.row.start, group.row.budget): group for group in measured if group.row.source == "real"
    }
    titles = ("pair", "images", "TMAC", "minutes", "seeds, %", "median, %", "teacher, %", "recovery", "regret")
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    for group in measured:
        key = (group.row.pair, group.row.start, group.row.budget)
        lines.append(line(group, oracles.get(key) if group.row.source == "free" else None))
    print("\n".join(lines))  # noqa: T201


if __name__ == "__main__":
    main()
