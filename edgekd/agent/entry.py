"""What `python3 agent.pyz`, `python3 student.pyz` and `python edgekd/agent` start."""

from __future__ import annotations

import sys

USAGE = "usage: worker | serve    (both speak JSON lines with edgekd, not with people)\n"


def main(arguments: list[str]) -> int:
    """Be a worker, a server, or the bundle this file is."""
    if arguments[:1] == ["worker"]:
        from edgekd.agent import worker

        return worker.main()
    if arguments[:1] == ["serve"]:
        from edgekd.agent import serve

        return serve.main()
    from edgekd.agent import bundle

    if bundle.is_one():
        return bundle.main(arguments)
    sys.stderr.write(USAGE)
    return 2
