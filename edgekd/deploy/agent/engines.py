"""The cache of TensorRT engines: built on this device, never copied from elsewhere, 2 GiB at most, oldest out."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from edgekd.deploy.agent.machine import publish

LIMIT_BYTES = 2 * 2**30


def engine_key(*parts: object) -> str:
    """Return the name of an engine: all it depends on (ONNX, TensorRT's version, GPU, flags, shapes)."""
    return hashlib.sha256("\n".join(str(part) for part in parts).encode()).hexdigest()[:32]


def cached(
    folder: Path, key: str, build: Callable[[Path], None], limit_bytes: int = LIMIT_BYTES
) -> tuple[Path, float | None]:
    """Return the engine of `key` and the seconds its building took, None when it was there already.

    `build` writes the engine to the path it is given; it gets its place only when it is whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"{key}.engine"
    if place.is_file() and place.stat().st_size > 0:
        os.utime(place)
        return place, None
    temporary = folder / f".tmp-{key}-{os.getpid()}"
    try:
        begin = time.perf_counter()
        build(temporary)
        seconds = time.perf_counter() - begin
        publish(temporary, place)
    finally:
        if temporary.exists():
            temporary.unlink()
    make_room(folder, limit_bytes, keep=place)
    return place, seconds


def make_room(folder: Path, limit_bytes: int, keep: Path) -> None:
    """Delete the engines that were not used for longest until the rest fits."""
    engines = sorted(folder.glob("*.engine"), key=lambda path: path.stat().st_mtime_ns)
    total = sum(path.stat().st_size for path in engines)
    for path in engines:
        if total <= limit_bytes:
            return
        if path != keep:
            total -= path.stat().st_size
            path.unlink()
