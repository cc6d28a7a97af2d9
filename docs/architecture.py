"""Draw docs/architecture.svg: the rooms of docs/architecture.md from the top down, and their imports as arrows."""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "edgekd"
GROUND = "ground"
WIDTH, HEIGHT, GAP = 200, 46, 34
MOST_LINES, MOST_FILES = 400, 16


def floors(page: str) -> list[tuple[str, ...]]:
    """Return the rooms of the page's table, the highest floor first, the ground last."""
    table = page.split("## Rooms")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return [*(tuple(re.findall(r"`(\w+)`", row)) for row in rows), (GROUND,)]


def room_of(parts: tuple[str, ...]) -> str:
    """Return the room of a module, given by its path below the package."""
    return parts[0] if (PACKAGE / parts[0]).is_dir() else GROUND


def imports(path: Path) -> set[tuple[str, ...]]:
    """Return the modules of the package that a file imports, anywhere in it, as paths below the package."""
    found: set[tuple[str, ...]] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE.name:
            base = tuple(node.module.split(".")[1:])
            found |= {(*base, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {tuple(a.name.split(".")[1:]) for a in node.names if a.name.split(".")[0] == PACKAGE.name}
    return {parts for parts in found if parts and not parts[0].startswith("__")}


def modules() -> list[Path]:
    """Return every module of the package."""
    return sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or not path.stem.startswith("__"))


def arrows() -> Counter[tuple[str, str]]:
    """Return how many imports lead from one room to another."""
    counted: Counter[tuple[str, str]] = Counter()
    for path in modules():
        here = room_of(path.relative_to(PACKAGE).with_suffix("").parts)
        for parts in imports(path):
            if room_of(parts) != here:
                counted[here, room_of(parts)] += 1
    return counted


def drawing(levels: list[tuple[str, ...]]) -> str:
    """Return the figure as SVG."""
    sizes = Counter(room_of(path.relative_to(PACKAGE).with_suffix("").parts) for path in modules())
    width = 4 * WIDTH
    places = {}
    for row, rooms in enumerate(levels):
        for column, room in enumerate(rooms):
            x = width / 2 + (column - (len(rooms) - 1) / 2) * (WIDTH + 40)
            places[room] = (x, 20 + row * (HEIGHT + GAP) + HEIGHT / 2)
    height = 40 + len(levels) * (HEIGHT + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="14" text-anchor="middle">',
        '<defs><marker id="to" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="9" markerHeight="9" '
        'markerUnits="userSpaceOnUse" orient="auto"><path d="M 0 0 L 8 4 L 0 8 z" fill="#8aa"/></marker></defs>',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for (above, below), count in sorted(arrows().items()):
        if below == GROUND:
            continue  # from everywhere
        (x1, y1), (x2, y2) = places[above], places[below]
        floors_apart = round((y2 - y1) / (HEIGHT + GAP))
        bend = (WIDTH / 2 + 22 * floors_apart if floors_apart > 1 else 0) * (-1 if floors_apart % 2 else 1)
        y1, y2 = y1 + HEIGHT / 2, y2 - HEIGHT / 2
        curve = f"M {x1} {y1} C {x1 + bend} {y1 + 20}, {x2 + bend} {y2 - 20}, {x2} {y2}"
        thickness = 3 if count >= 16 else 1.5 if count >= 4 else 0.7
        parts.append(f'<path d="{curve}" fill="none" stroke="#8aa" stroke-width="{thickness}" marker-end="url(#to)"/>')
    for room, (x, y) in places.items():
        parts.append(
            f'<rect x="{x - WIDTH / 2}" y="{y - HEIGHT / 2}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="#eef4f4" '
            'stroke="#355"/>'
        )
        parts.append(f'<text x="{x}" y="{y - 3}" font-weight="bold">{room}</text>')
        parts.append(f'<text x="{x}" y="{y + 15}" font-size="11">{sizes[room]} files</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def too_large() -> list[str]:
    """Return one line for each file and folder of the package that wants a look: 400 lines, 16 files."""
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.rglob("*.py")}
    files = [
        f"{path.relative_to(ROOT)} has {n} lines, over {MOST_LINES}" for path, n in lengths.items() if n > MOST_LINES
    ]
    inside = Counter(path.parent for path in lengths)
    folders = [f"{at.relative_to(ROOT)} has {n} files, over {MOST_FILES}" for at, n in inside.items() if n > MOST_FILES]
    return [*files, *folders]


def main() -> None:
    """Draw the figure beside the page; with `--sizes` name what has grown too large instead, and fail."""
    if sys.argv[1:] == ["--sizes"]:
        sys.exit("\n".join(too_large()) or None)
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    (ROOT / "docs" / "architecture.svg").write_text(drawing(floors(page)), encoding="utf-8")


if __name__ == "__main__":
    main()
