"""Recipes as TOML: read, completed by a preset, changed by flags, checked, written.

Order of precedence: defaults of the types, then the preset, then the recipe file, then flags.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from edgekd.agent.device import files
from edgekd.errors import RecipeError, UsageError, did_you_mean
from edgekd.recipe.method import AUTO, Table
from edgekd.recipe.tables import Recipe
from edgekd.schema import MAX_DEPTH, require_shallow
from edgekd.text import first_line

LARGEST_FILE_BYTES = 2**20
LARGEST_SEED, LARGEST_COUNT = 2**63 - 1, 2**31 - 1
"""What whole numbers may be: a seed, and anything else."""
MOST_DOTS = 256
WITH_BATCHNORM, WITHOUT = "edgekd", "edgekd-replay"
"""What the preset `auto` becomes, by whether the teacher has BatchNorm."""


def recipes_folder() -> Path:
    """Return the folder of shipped recipes: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def presets() -> dict[str, Path]:
    """Return the shipped method presets by name."""
    return {path.stem: path for path in sorted((recipes_folder() / "methods").glob("*.toml"))}


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; a missing or malformed one is a `RecipeError` that names it."""
    try:
        text = files.read_text(path, limit=LARGEST_FILE_BYTES)
        _require_short_keys(text)
        return require_shallow(tomllib.loads(text))
    except FileNotFoundError:
        raise RecipeError(f"there is no recipe {path}; `edgekd recipes` lists those that come along.") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else first_line(error)
        raise RecipeError(f"{path} is not a readable TOML file: {reason}") from error


def _require_short_keys(text: str) -> None:
    """Raise ValueError for a line of more dots than any has: tomllib needs hours for a key of so many parts."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.count(".") > MOST_DOTS:
            raise ValueError(f"line {number} has more than {MOST_DOTS} dots; no key of a recipe has so many parts")


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes` laid over it, table by table."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def parse(data: Mapping[str, Any], *, origin: str) -> Recipe:
    """Check a recipe's data and complete it with its preset; all problems are raised at once.

    The preset `auto` has the values of `edgekd` until the teacher is known.
    """
    method = data.get("method", {})
    name = method.get("preset", AUTO) if isinstance(method, Mapping) else AUTO
    names = presets()
    names[AUTO] = names[WITH_BATCHNORM]
    if not isinstance(name, str) or name not in names:
        raise RecipeError(
            f'{origin}: there is no method preset "{name}" (known: {", ".join(names)}).{did_you_mean(str(name), names)}'
        )
    preset = {"method": merge(read_toml(names[name]), {"preset": name})}
    return _validate(merge(preset, data), origin=origin)


def with_preset_for(recipe: Recipe, asked: Mapping[str, Any], *, batchnorm: bool) -> Recipe:
    """Return a recipe whose preset is `auto` with the one that suits the teacher, by whether that has BatchNorm.

    What was asked for stays: the values in `asked`, the changes of a recipe file or of flags, and those in which the
    recipe differs from the values that `auto` began with.
    """
    if recipe.method.preset != AUTO:
        return recipe
    data, begun = recipe.model_dump(), parse({}, origin="preset").model_dump()
    changed = _changes(begun["method"], data["method"])
    method = merge(merge(changed, asked.get("method", {})), {"preset": WITH_BATCHNORM if batchnorm else WITHOUT})
    return parse({**data, "method": method}, origin="preset")


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested values of `new` that `old` has otherwise."""
    changed: dict[str, Any] = {}
    for key, value in new.items():
        if isinstance(value, Mapping):
            inner = _changes(old.get(key, {}), value)
            changed |= {key: inner} if inner else {}
        elif old.get(key) != value:
            changed[key] = value
    return changed


def _validate(data: Mapping[str, Any], *, origin: str) -> Recipe:
    absurd = list(_absurdities(data))
    if absurd:
        raise RecipeError(f"{origin}: " + "; ".join(absurd[:3]))
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        problems: dict[str, list[str]] = {}
        for problem in error.errors():
            key, text = _problem(problem["loc"], problem["type"], problem["msg"])
            problems.setdefault(key, []).append(text)
        # A key that may be of several types has a problem with each of them.
        lines = [
            key + " or ".join([first, *(text.split(" be ")[-1] for text in others)])
            for key, (first, *others) in problems.items()
        ]
        raise RecipeError(f"{origin}: " + "; ".join(lines)) from None


def _absurdities(data: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Say what no key takes: a NUL, which no name of a file holds, and whole numbers beyond the size of any tensor."""
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _absurdities(value, f"{prefix}{key}.")
            continue
        for item in value if isinstance(value, (list, tuple)) else (value,):
            largest = LARGEST_SEED if (prefix, key) == ("", "seed") else LARGEST_COUNT
            if isinstance(item, str) and "\0" in item:
                yield f"{prefix}{key}: it holds a NUL character"
            elif isinstance(item, int) and abs(item) > largest:
                yield f"{prefix}{key}: a whole number of at most {largest:,} is meant"


def _problem(location: tuple[int | str, ...], kind: str, message: str) -> tuple[str, str]:
    """Return the beginning of a sentence, which names the key, and the rest."""
    if kind == "extra_forbidden":
        key = ".".join(map(str, location))
        return f"unknown key {key}.", did_you_mean(str(location[-1]), _names_table(location[:-1]) or {})
    key = ".".join(map(str, _without_type(location))) or "recipe"
    message = message.removeprefix("Value error, ")
    return f"{key}: ", f"{message[:1].lower()}{message[1:]}"


def _without_type(location: tuple[int | str, ...]) -> Iterator[int | str]:
    """Yield the parts of a path to a key, without the name of the type that its value might have had."""
    for place, part in enumerate(location):
        if isinstance(part, str) and _names_table(location[:place]) is None:
            return
        yield part


def load(path: Path) -> Recipe:
    """Read, complete and check a recipe file."""
    return parse(read_toml(path), origin=str(path))


def load_any(path: Path) -> Recipe:
    """Read a recipe, or a method preset, which is the content of a recipe's [method] table."""
    data = read_toml(path)
    if isinstance(data.get("generator"), dict) or "source" in data:
        return _validate({"method": merge(data, {"preset": path.stem})}, origin=str(path))
    return parse(data, origin=str(path))


def load_resolved(path: Path) -> Recipe:
    """Read a run's recipe.toml, which holds every value: no preset is consulted again."""
    data = read_toml(path)
    lost = [table for table in ("teacher", "student", "method") if table not in data]
    if lost:
        raise RecipeError(
            f"{path} is empty or damaged: [{lost[0]}] is missing. Delete it and give the commands again that run.json "
            "beside it lists; what was made with the same values is kept."
        )
    return _validate(data, origin=str(path))


def with_changes(recipe: Recipe, changes: Mapping[str, Any], *, origin: str = "flags") -> Recipe:
    """Return the recipe with nested changes applied; another preset starts the method table anew."""
    if not changes:
        return recipe
    data = recipe.model_dump()
    method = changes.get("method")
    preset = method.get("preset") if isinstance(method, Mapping) else None
    if preset and preset != recipe.method.preset:
        data["method"] = {}
        return parse(merge(data, changes), origin=origin)
    return _validate(merge(data, changes), origin=origin)


def assignment(text: str) -> dict[str, Any]:
    """Turn `method.generator.lr=1e-3` into nested changes; the value is TOML, bare words are strings."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise UsageError(f"--set takes KEY=VALUE, such as method.student.lr=1e-3; got {text!r}.")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        raise RecipeError(f"--set {key}: the value is out of all reason ({first_line(error)}).") from None
    if key.count(".") > MAX_DEPTH:
        raise RecipeError(f"--set {key[:40]}…: no key of a recipe has so many parts.")
    table = _names_table(key.split("."))
    if table and not isinstance(parsed, dict):
        raise RecipeError(f"--set {key}: [{key}] is a table; set one of its keys, such as {key}.{next(iter(table))}.")
    for part in reversed(key.split(".")):
        parsed = {part: parsed}
    return dict(parsed)


def _names_table(path: Sequence[int | str]) -> dict[str, FieldInfo] | None:
    """The keys of the table that a path leads to; None where it leads to a value or nowhere."""
    table: type[Table] = Recipe
    for part in path:
        field = table.model_fields.get(str(part))
        if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, Table):
            return None
        table = field.annotation
    return dict(table.model_fields)


def to_toml(recipe: Recipe) -> str:
    """Return the recipe as TOML, every default written out."""
    return tomli_w.dumps(recipe.model_dump(mode="json"))


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return one line `key: old -> new` for every value that differs between two recipe slices."""
    lines = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before!r} -> {after!r}")
    return lines
