"""docs/teachers.md shows commands and output that docs/studies/teachers/run.py really ran and kept."""

from __future__ import annotations

import json
import re
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def test_every_line_shown_is_what_its_command_printed() -> None:
    ran = json.loads((DOCS / "studies" / "teachers" / "results.json").read_text(encoding="utf-8"))["commands"]
    printed = {entry["command"]: {*entry["stdout"], *entry["stderr"]} for entry in ran}
    page = (DOCS / "teachers.md").read_text(encoding="utf-8")
    command = ""
    for line in (row for block in re.findall(r"```console\n(.*?)```", page, re.DOTALL) for row in block.splitlines()):
        if line.startswith("$ "):
            command = line[2:]
            assert command in printed
        else:
            assert line in printed[command], f"{command} did not print {line!r}"
    assert len(printed) > 10


def test_the_accuracies_of_the_public_teachers_are_those_of_their_readme() -> None:
    found = json.loads((DOCS / "studies" / "teachers" / "results.json").read_text(encoding="utf-8"))["accuracy"]
    for name, percent in (("cifar10-resnet20", 81.03), ("cifar10-resnet32", 82.56)):
        assert abs(100 * found[name]["accuracy"]["teacher"] - percent) <= 0.3
        assert found[name]["images"] == 10_000
