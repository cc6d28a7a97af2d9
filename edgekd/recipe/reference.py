"""The reference of all recipe keys, made from their types: `python -m edgekd.recipe.reference > docs/recipe.md`."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from edgekd.errors import EdgekdError
from edgekd.recipe import Recipe, presets, read_toml
from edgekd.recipe.method import MethodTable, Table

INTRODUCTION = """\
# Recipe keys

A recipe is a TOML file that holds everything a run depends on. A run keeps its own in `runs/<name>/recipe.toml`, every
default written out. This page is made from the types of `edgekd/recipe/tables.py` and `edgekd/recipe/method.py`; do
not edit it, but renew it with `python -m edgekd.recipe.reference > docs/recipe.md`.

```console
$ edgekd recipes                  # the recipes and method presets that come along
$ edgekd recipes --check my.toml  # check one and print it with every default
$ edgekd run my.toml              # the whole chain; a shipped recipe goes by its name: edgekd run quickstart
```

**Precedence.** From weakest to strongest: the defaults below, the method preset, the recipe file, the flags of the
command, `--set`. A verb that works on a run that exists takes the run's `recipe.toml` for the recipe file; only
`edgekd run` reads the file it is given each time.

**Presets.** `method.preset` names a file of `recipes/methods/` that changes defaults of the table `[method]`
([what each one sets](#what-the-presets-set)). Another preset, by `--method` or `--set`, starts that table anew: what
was set in it before is dropped.

**`--set KEY=VALUE`** sets any key; it may be given many times. KEY is the dotted path, such as `method.student.lr`.
VALUE is TOML; what is not TOML is taken as text, so `--set export.target=all` needs no quotes. Lists do:
`--set 'bench.batch=[1, 8]'`.

**Paths** are `teacher.file`, `student.weights`, `images.folder`, `pixels.classes`, `export.images` and
`eval.data`. In a recipe file they are relative to that file, and to the working directory where nothing is found there.
On the command line they are relative to the working directory.

**A recipe and a run are programs.** `teacher.arch` and `student.name` may name code of your own
(`package.module:factory`), and `teacher.trust_pickle` runs the code in the teacher's file. In a recipe or a run such a
key alone runs nothing: the code runs after you named it on the command line, after a yes on a terminal, or with
`--trust-code HASH` ([privacy](privacy.md#what-code-from-outside-may-do-here)). Read
what you are given before you run it.

**Mistakes.** An unknown key, a wrong type or a value out of range ends with exit code 3; all such keys are named at
once. So does a changed key of ingest, distillation or selection in a run where that stage has begun
([keys of the stages](run-directory.md#keys)); only `[pixels]` may change at any time.
"""
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
_NAMES = {str: "text", int: "integer", float: "number", bool: "true or false"}


def markdown() -> str:
    """Return docs/recipe.md; see `section` for errors."""
    tables = (section(path, table) for path, table in tables_of("", Recipe))
    return "\n".join([INTRODUCTION, *tables, _presets()])


def tables_of(path: str, table: type[Table]) -> Iterator[tuple[str, type[Table]]]:
    """Yield (dotted path, type) of a table and of all tables within it; the recipe itself has no path."""
    yield path, table
    for name, field in table.model_fields.items():
        inner = _inner(field)
        if inner is not None:
            yield from tables_of(f"{path}.{name}".removeprefix("."), inner)


def _inner(field: FieldInfo) -> type[Table] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Table) else None


def section(path: str, table: type[Table]) -> str:
    """Return the section of one table, its keys in order.

    Raises EdgekdError if the table or a key has no docstring.
    """
    lines = [f"## [{path}]" if path else "## Top level", "", _docstring(table, path), ""]
    lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in table.model_fields.items():
        if _inner(field) is None:
            if not field.description:
                key = f"{path}.{name}".removeprefix(".")
                raise EdgekdError(f"recipe key {key} has no docstring below it; add one line that explains it.")
            meaning = " ".join(field.description.split()).replace("|", "\\|")
            lines.append(f"| `{name}` | {_kind(field)} | `{_toml(field.default)}` | {meaning} |")
    return "\n".join([*lines, ""])


def _docstring(table: type[Table], path: str) -> str:
    if "__doc__" not in vars(table) or not table.__doc__:
        raise EdgekdError(f"recipe table [{path}] has no docstring; add one line that explains it.")
    return inspect.cleandoc(table.__doc__)


def _kind(field: FieldInfo) -> str:
    """A field's type in words, with its bounds."""
    return f"{_type(field.annotation)} {_bounds(field.metadata)}".strip()


def _bounds(rules: list[Any]) -> str:
    """The bounds of a number among a field's rules: `≥ 0, < 1`."""
    bounds = [(sign, getattr(rule, name)) for rule in rules for name, sign in _BOUNDS.items() if hasattr(rule, name)]
    return ", ".join(f"{sign} {bound:g}" for sign, bound in bounds)


def _type(kind: Any) -> str:
    parts = get_args(kind)
    if get_origin(kind) is Literal:
        return ", ".join(f"`{_toml(part)}`" for part in parts)
    if get_origin(kind) is Union:
        return " or ".join(map(_type, parts))
    if get_origin(kind) is Annotated:
        number, *fields = parts
        return " ".join([_type(number), *(_bounds(field.metadata) for field in fields)])
    if get_origin(kind) is not tuple:
        return _NAMES[kind]
    if parts[-1] is ...:
        item, *fields = get_args(parts[0]) if get_origin(parts[0]) is Annotated else (parts[0],)
        each = _type(item) + ("s" if item in _NAMES else "")
        return " ".join([f"list of {each}", *(_bounds(field.metadata) for field in fields)])
    return f"[{', '.join(_type(part) for part in parts)}]"


def _toml(value: object) -> str:
    """A default as TOML, which for text, numbers, truth values and lists is written like JSON."""
    return json.dumps(value, ensure_ascii=False)


def _presets() -> str:
    """The table of presets: every key of [method] that one of them sets to something else than the default."""
    values = {name: dict(_flat("", read_toml(path))) for name, path in presets().items()}
    lines = [
        "## What the presets set",
        "",
        "Keys of `[method]`; an empty cell is the default above. `source` says where a preset's values come from.",
        "",
        f"| key | {' | '.join(f'`{name}`' for name in values)} |",
        "|---" * (len(values) + 1) + "|",
    ]
    for path, table in tables_of("", MethodTable):
        for name, field in table.model_fields.items():
            key = f"{path}.{name}".removeprefix(".")
            default = json.loads(_toml(field.default)) if _inner(field) is None else None
            cells = [preset.get(key, default) for preset in values.values()]
            if key != "source" and any(cell != default for cell in cells):
                shown = ("" if cell == default else f"`{_toml(cell)}`" for cell in cells)
                lines.append(f"| `{key}` | {' | '.join(shown)} |")
    return "\n".join([*lines, ""])


def _flat(path: str, table: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        key = f"{path}.{name}".removeprefix(".")
        if isinstance(value, dict):
            yield from _flat(key, value)
        else:
            yield key, value


if __name__ == "__main__":
    sys.stdout.write(markdown())
