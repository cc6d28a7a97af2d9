"""Start the device's side from a folder: `python edgekd/deploy/agent worker`."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[3])  # this file's neighbours are not its libraries
    from edgekd.deploy.agent.entry import main

    sys.exit(main(sys.argv[1:]))
