"""Zip files that Python runs: the agent that travels to a device, and the bundle that holds models too."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import edgekd
from edgekd import agent, cpus, errors, locking, schema, text
from edgekd.agent.bundle import MANIFEST, Manifest
from edgekd.agent.device.files import open_regular
from edgekd.schema import to_json

MAIN = """import sys
import zipfile

if sys.version_info < (3, 8):
    sys.exit("Python 3.8 or newer is needed; this is " + sys.version.split()[0])
if sys.argv[1:2] != ["worker"]:  # a worker is started by what was looked at already
    try:  # Python itself imports from a zip file without a look at its checksums
        with zipfile.ZipFile(sys.argv[0]) as archive:
            damaged = archive.testzip()
    except Exception as error:
        damaged = str(error)
    if damaged:
        sys.stderr.write("error: %s is damaged (%s); copy it again\\n" % (sys.argv[0], damaged))
        sys.exit(4)
from edgekd.agent.entry import main

sys.exit(main(sys.argv[1:]))
"""
_LONG_AGO = (2020, 1, 1, 0, 0, 0)
"""One date for every member: equal content gives equal bytes, hence one hash."""


def travellers() -> dict[str, str]:
    """Return the sources that travel, by their path in the zip file; all of them standard library only."""
    root = Path(edgekd.__file__).parent
    files = sorted(path for path in Path(agent.__file__).parent.rglob("*.py") if path.name != "__main__.py")
    files += [Path(str(module.__file__)) for module in (edgekd, cpus, errors, locking, schema, text)]
    texts = {f"edgekd/{path.relative_to(root).as_posix()}": path.read_text(encoding="utf-8") for path in files}
    return {"__main__.py": MAIN, **texts}


def agent_zip() -> bytes:
    """Return the agent as a zip file."""
    return _zip({name: source.encode() for name, source in travellers().items()})


def bundle_zip(manifest: Manifest, files: Mapping[str, bytes]) -> bytes:
    """Return a bundle: the agent, a manifest and the files it names."""
    code = {name: source.encode() for name, source in travellers().items()}
    data = {f"files/{name}": content for name, content in files.items()}
    return _zip({**code, MANIFEST: json.dumps(to_json(manifest), indent=1, sort_keys=True).encode(), **data})


def is_bundle(path: Path) -> bool:
    """Return whether a file is a bundle, by what is in it."""
    try:
        with open_regular(path) as stream, zipfile.ZipFile(stream) as archive:
            return {MANIFEST, "__main__.py"} <= set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _zip(members: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    stream.write(b"#!/usr/bin/env python3\n")
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name, _LONG_AGO)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, data)
    return stream.getvalue()
