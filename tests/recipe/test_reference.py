"""docs/recipe.md says what the types say."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from edgekd.errors import EdgekdError
from edgekd.recipe import Recipe, parse, presets, reference
from edgekd.recipe.method import Table

PAGE = Path(__file__).parents[2] / "docs" / "recipe.md"
KEYS = [
    (f"{path}.{name}", field)
    for path, table in reference.tables_of("", Recipe)
    for name, field in table.model_fields.items()
    if not isinstance(field.default, Table)
]


class Bare(Table):
    """A table with a key that nobody explained."""

    explained: int = 1
    """What it is."""
    unexplained: int = 2


class Nameless(Table):
    explained: int = 1
    """What it is."""


def test_the_page_is_as_fresh_as_the_types() -> None:
    if PAGE.read_text(encoding="utf-8") != reference.markdown():
        pytest.fail("docs/recipe.md is stale; renew it: python -m edgekd.recipe.reference > docs/recipe.md")


def test_the_page_of_the_method_explains_every_key_of_it() -> None:
    text = PAGE.with_name("method.md").read_text(encoding="utf-8")
    named = {word.rpartition(".")[2] for word in re.findall(r"`([a-z_.]+)(?: = [^`]*)?`", text)}
    keys = [key for key, _ in KEYS if key.startswith("method.")]
    assert len(keys) > 50
    assert not [key for key in keys if key.rpartition(".")[2] not in named]


def test_every_key_has_a_docstring() -> None:
    missing = [key for key, field in KEYS if not field.description]
    assert not missing, f"write a docstring below {', '.join(missing)}"


def test_a_key_or_table_without_docstring_is_refused() -> None:
    with pytest.raises(EdgekdError, match=r"bench\.unexplained has no docstring"):
        reference.section("bench", Bare)
    with pytest.raises(EdgekdError, match=r"\[bench\] has no docstring"):
        reference.section("bench", Nameless)


def test_the_defaults_on_the_page_are_the_recipe_without_a_preset() -> None:
    documented: dict[str, Any] = {}
    table = documented
    for line in reference.markdown().partition("## What the presets set")[0].splitlines():
        if line.startswith("## ["):
            table = documented
            for part in line[4:-1].split("."):
                table = table.setdefault(part, {})
        elif row := re.match(r"\| `(\w+)` \| .+? \| `([^`]*)` \| ", line):
            table[row[1]] = tomllib.loads(f"value = {row[2]}")["value"]
    assert Recipe.model_validate(documented) == Recipe()
    assert sum(not isinstance(value, dict) for value in _leaves(documented)) == len(KEYS)


@pytest.mark.parametrize("name", list(presets()))
def test_a_presets_column_is_what_the_preset_changes(name: str) -> None:
    header, *rows = re.findall(r"^\| .*\|$", reference.markdown().partition("## What the presets set")[2], re.M)
    column = [cell.strip(" `") for cell in header.strip("|").split("|")].index(name)
    changes: dict[str, Any] = {}
    for row in rows:
        cells = [cell.strip(" `") for cell in row.strip("|").split("|")]
        if cells[column]:
            *tables, key = cells[0].split(".")
            table = changes
            for part in tables:
                table = table.setdefault(part, {})
            table[key] = tomllib.loads(f"value = {cells[column]}")["value"]
    preset = parse({"method": {"preset": name}}, origin="test")
    built = Recipe.model_validate({"method": {**changes, "preset": name, "source": preset.method.source}})
    assert built == preset


def _leaves(table: dict[str, Any]) -> list[Any]:
    return [leaf for value in table.values() for leaf in (_leaves(value) if isinstance(value, dict) else [value])]
