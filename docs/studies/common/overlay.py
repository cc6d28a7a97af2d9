"""Print a TOML file of recipe keys as the `--set` flags of edgekd, a word a line: overlay.py FILE..."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def assignments(file: Path) -> list[str]:
    """Return the keys of a TOML file as `--set` takes them: `method.vae.latent=64`."""
    return list(_flat(tomllib.loads(file.read_text(encoding="utf-8")), ""))


def _flat(table: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}={str(value).lower() if isinstance(value, bool) else value}"


def flags(file: Path) -> list[str]:
    """Return a TOML file as words of a command line."""
    return [word for assignment in assignments(file) for word in ("--set", assignment)]


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        sys.stdout.writelines(f"{word}\n" for word in flags(Path(argument)))
