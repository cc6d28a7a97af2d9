"""A process dies at the point that the crash tests name, and nowhere else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest


@pytest.mark.parametrize(("wanted", "printed"), [("b", "a\n"), ("a@2", "a\nb\n"), ("c", "a\nb\na\nb\nend\n")])
def test_a_failpoint_kills_at_its_passing(wanted: str, printed: str) -> None:
    script = (
        "from edgekd.run.failpoints import failpoint\n"
        "for _ in range(2):\n  for name in 'ab':\n    failpoint(name)\n    print(name, flush=True)\n"
        "print('end')"
    )
    env = {**os.environ, "EDGEKD_FAILPOINT": wanted}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)
    assert done.stdout == printed
    assert done.returncode == (0 if wanted == "c" else -signal.SIGKILL)
