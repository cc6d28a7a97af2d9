"""The command line: one door, `main`; `verbs/` has one file a verb."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; a Ctrl-C is heard while its own modules are being imported, too."""
    try:
        from edgekd.cli import program
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted before anything began.\n")
        sys.exit(130)
    program.main()
