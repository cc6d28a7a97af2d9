"""Points at which the crash tests let a process die."""

from __future__ import annotations

import os
import signal


def failpoint(name: str) -> None:
    """Kill this process when EDGEKD_FAILPOINT names this point (`name` or `name@k` for its k-th passing).

    The crash tests use it to die between any two steps of publishing; it costs one look-up otherwise.
    """
    asked = os.environ.get("EDGEKD_FAILPOINT")
    if asked is None:
        return
    target, _, count = asked.partition("@")
    if target == name:
        _passed[name] = _passed.get(name, 0) + 1
        if _passed[name] == int(count or 1):
            os.kill(os.getpid(), signal.SIGKILL)


_passed: dict[str, int] = {}
