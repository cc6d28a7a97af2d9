"""Start the device's side from a folder: `python edgekd/agent worker`."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # this file's neighbours are not its libraries
    from edgekd.agent.entry import main

    sys.exit(main(sys.argv[1:]))
