"""`edgekd recipes`: list, copy and check recipes and method presets."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from edgekd import console
from edgekd.cli import flags
from edgekd.cli.verb import verb
from edgekd.errors import UsageError
from edgekd.text import path_argument


@verb("edgekd recipes", "edgekd recipes --copy quickstart", "edgekd recipes --check my.toml")
def recipes(
    copy: Annotated[str, typer.Option(metavar="NAME", help="Copy a shipped recipe or preset here.")] = "",
    check: Annotated[Path | None, typer.Option(metavar="FILE", help="Check a recipe and print it resolved.")] = None,
    json: flags.Json = False,
) -> None:
    """List, copy and check recipes and method presets."""
    from edgekd import recipe

    shipped = {path.stem: path for path in sorted(recipe.recipes_folder().glob("*.toml"))}
    methods = recipe.presets()
    if check is not None:
        _check(check, methods, json=json)
    elif copy:
        _copy(copy, shipped, methods)
    else:
        _list(shipped, methods, json=json)


def _check(file: Path, methods: dict[str, Path], *, json: bool) -> None:
    from edgekd import recipe

    resolved = recipe.load_any(file)
    if json:
        console.print_json(resolved.model_dump(mode="json"))
    else:
        console.print_toml(recipe.to_toml(resolved))
    headline, following = f"{file} is valid", f"edgekd run {path_argument(file)}"
    if not resolved.teacher.file:
        preset = methods.get(file.stem)
        unchanged = preset is not None and preset.read_bytes() == file.read_bytes()
        headline += " and names no teacher; a method's keys belong into the [method] table of a recipe"
        following = f"edgekd distill TEACHER --method {file.stem}" if unchanged else "edgekd recipes --copy quickstart"
    console.closing("nothing", headline, following)


def _copy(name: str, shipped: dict[str, Path], methods: dict[str, Path]) -> None:
    """Copy a recipe or preset, with the teacher that is shipped beside it, here."""
    from edgekd import recipe

    source = shipped.get(name) or methods.get(name)
    if source is None:
        raise UsageError(f"there is no recipe {name!r} (known: {', '.join([*shipped, *methods])}).")
    target = Path(source.name)
    teacher = recipe.load_any(source).teacher.file
    copies = {target: source}
    if teacher and (source.parent / teacher).is_file():
        copies = {Path(teacher): source.parent / teacher, **copies}
    for place, original in copies.items():
        same = place != target and place.is_file() and place.read_bytes() == original.read_bytes()
        if place.exists() and not same:  # the same teacher: of a copying that was killed
            raise UsageError(f"{place} exists already; move it away first.")
    for place, original in copies.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_name(f".tmp-{place.name}")
        shutil.copyfile(original, temporary)
        temporary.rename(place)
    console.closing(str(target), f"a copy of {name}", f"edgekd recipes --check {target}")


def _list(shipped: dict[str, Path], methods: dict[str, Path], *, json: bool) -> None:
    listing = {
        "recipes": {name: _first_comment(path) for name, path in shipped.items()},
        "methods": {name: _first_comment(path) for name, path in methods.items()},
    }
    if json:
        console.print_json(listing)
    else:
        rows = [(f"{kind[:-1]} {name}", text) for kind, entries in listing.items() for name, text in entries.items()]
        console.print_list(rows)
    console.closing("nothing", f"{len(shipped)} recipes, {len(methods)} method presets", "edgekd run quickstart")


def _first_comment(path: Path) -> str:
    return path.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("# ")
