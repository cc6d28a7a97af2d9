"""The table of students in docs/students.md, made from their families: `python -m docs.students` writes it again."""

from __future__ import annotations

from pathlib import Path

from edgekd.models import families
from edgekd.models.families.base import Family

PAGE = Path(__file__).with_suffix(".md")
BEGIN, END = "<!-- made by python -m docs.students -->\n", "<!-- end of what was made -->\n"


def table() -> str:
    """Return the table: a row for each family that students are taken from."""
    rows = [_row(family) for family in families.FAMILIES if family.students or family.note]
    return "\n".join(["| student | widths | options |", "|---|---|---|", *rows, ""])


def _row(family: Family) -> str:
    names = " ".join([", ".join(f"`{name}`" for name in family.students), family.note]).strip()
    widths = "any" if family.widths is None else ", ".join(f"{width:g}" for width in family.widths)
    options = ", ".join(f"`{name}`" for name in sorted(family.options))
    return f"| {names} | {widths or '–'} | {options or '–'} |"


def renewed(page: str) -> str:
    """Return the page with the table of today."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}{table()}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
