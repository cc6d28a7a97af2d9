"""Which names a run may have."""

from __future__ import annotations

import os

MOST_BYTES = 255
"""What a file system allows in one name."""


def name_problem(name: str) -> str | None:
    """Return why a run cannot be called so, None where it can: a name is one folder below runs/, never a path."""
    if "/" in name or "\\" in name:
        return f"{name!r} is a path; a name has no slash (--run takes a path)"
    if not name.isprintable():
        return f"{name!r} holds a character that cannot be printed"
    if name[:1] in (".", "-", "~") or name != name.strip():
        return f"{name!r} begins with a dot, dash or tilde, or begins or ends with a space"
    if len(os.fsencode(name)) > MOST_BYTES:
        return f"{name[:40]!r}… is longer than {MOST_BYTES} bytes"
    return None
