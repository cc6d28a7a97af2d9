"""The cache of TensorRT engines: built on this device, never copied from elsewhere, 2 GiB at most, oldest out."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.agent.device.machine import publish
from edgekd.agent.refusal import RefusedError

if TYPE_CHECKING:
    from edgekd.agent.messages import Load

LIMIT_BYTES = 2 * 2**30


def engine_key(*parts: object) -> str:
    """Return the name of an engine: all it depends on (ONNX, TensorRT's version, GPU, flags, shapes)."""
    return hashlib.sha256("\n".join(str(part) for part in parts).encode()).hexdigest()[:32]


def engine_of(request: Load, key: str, build: Callable[[Path], None]) -> tuple[Path, float | None]:
    """Return the engine of `key` from the folder that a request names, and the seconds its building took."""
    folder = Path(request.engines) if request.engines else Path.home() / ".cache" / "edgekd" / "engines"
    since_s = math.inf if request.engines_since_s is None else request.engines_since_s
    return cached(folder, key, build, used_since_s=since_s)


def cached(
    folder: Path,
    key: str,
    build: Callable[[Path], None],
    limit_bytes: int | None = None,
    used_since_s: float = math.inf,
) -> tuple[Path, float | None]:
    """Return the engine of `key` and the seconds its building took, None when it was there already.

    `build` writes the engine to the path it is given; it gets its place only when it is whole. What was used after the
    Unix time `used_since_s` belongs to the measurement under way and stays, whatever the limit.
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
        if not temporary.is_file():
            raise RefusedError("machine", "what builds its engine ended well, and wrote none")
        publish(temporary, place)
    finally:
        if temporary.exists():
            temporary.unlink()
    make_room(folder, LIMIT_BYTES if limit_bytes is None else limit_bytes, place, used_since_s)
    return place, seconds


def make_room(folder: Path, limit_bytes: int, keep: Path, used_since_s: float) -> None:
    """Delete the engines that were not used for longest until the rest fits."""
    engines = sorted(folder.glob("*.engine"), key=lambda path: path.stat().st_mtime_ns)
    total = sum(path.stat().st_size for path in engines)
    for path in engines:
        if total <= limit_bytes:
            return
        if path != keep and path.stat().st_mtime < used_since_s:
            total -= path.stat().st_size
            path.unlink()
