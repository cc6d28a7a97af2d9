"""Whether code from outside may run here: a recipe and a run are programs, and nothing in them runs unasked.

Code is a factory of some module (`package.module:factory`, as teacher or student) and a pickle that is to be run. It
is known by a hash of what would run. The user approves of it by naming it on the command line, by a yes on a terminal,
or by `--trust-code HASH`; that is remembered outside every run, in the state folder, one file a hash.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from edgekd import console, stopping
from edgekd.agent.device.files import open_regular
from edgekd.agent.device.machine import sha256_of
from edgekd.errors import UsageError
from edgekd.models.code import imports
from edgekd.models.code.imports import Files, state_folder
from edgekd.models.families import outside
from edgekd.run.files import digest
from edgekd.text import listed


@dataclass(frozen=True)
class UntrustedCode:
    """Code from outside, as far as it is known before it runs."""

    name: str
    """`package.module:factory`, or the path of a pickle."""
    what: str
    """What it is and where it lies, for people."""
    sha256: str
    """Hash of what would run."""
    pickled: bool = False
    files: Files = field(default_factory=dict, compare=False, repr=False)
    """The files that may be imported for it; all are in the hash."""


@dataclass
class _Session:
    """What the user of one command has approved of."""

    hashes: frozenset[str]
    names: set[str] = field(default_factory=set)
    pickles: bool = False


_session: _Session | None = None


@contextmanager
def session(hashes: Sequence[str] = ()) -> Iterator[None]:
    """Serve one command of a user, who may be asked, and who gave these `--trust-code HASH`."""
    global _session
    for text in hashes:
        if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
            raise UsageError(f"--trust-code takes a hash of 64 hex digits, as the refusal prints it, not {text!r}.")
    before, _session = _session, _Session(frozenset(text.lower() for text in hashes))
    try:
        yield
    finally:
        _session = before


def approve_code(names: Iterable[str] = (), *, pickles: bool = False) -> None:
    """Take what was typed on the command line as the user's approval of the code that it names."""
    if _session is not None:
        _session.names |= {outside.own_code(_bare(name)) for name in names if runs_own_code(name)}
        _session.pickles |= pickles


def runs_own_code(arch: str) -> bool:
    """Return whether an architecture is code from outside: `package.module:factory`, but not `timm:NAME`."""
    return outside.names_own_code(_bare(arch))


def factory(arch: str) -> UntrustedCode:
    """Return the code of `package.module:factory`, located without importing it; raise UsageError if it is not there.

    The hash covers the name of the factory and every file that `imports.files_of` finds.
    """
    name = outside.own_code(_bare(arch))
    module = name.partition(":")[0]
    files = imports.files_of(module)
    if not files:
        raise UsageError(
            f"{name} cannot be built: ModuleNotFoundError: there is no module {module!r} with source files, neither "
            "in the working directory nor installed."
        )
    return UntrustedCode(name, f"{name} ({_places(module, files)})", _hash(name, files), files=files)


def pickle(path: Path) -> UntrustedCode:
    """Return the code in a pickle; its hash is the file's, unless it names code of the working directory as well."""
    from edgekd.models.code import pickles
    # which imports NumPy, and --help does without

    with open_regular(path) as stream:
        zipped = stream.read(4) == b"PK\x03\x04"
    named, sha256 = pickles.code_named(path, zipped=zipped), sha256_of(path)
    here = imports.imported_from(Path.cwd(), named)
    what = f"the pickle {path}" + (f" (it names {listed(named, 6)})" if named else "")
    return UntrustedCode(str(path), what, _hash(sha256, here) if here else sha256, pickled=True, files=here)


def require_approval(codes: Sequence[UntrustedCode], origin: str = "") -> None:
    """Return if the user approves of all this code; raise UsageError, with what would run, if not.

    `origin` says where it is named. What was approved of is remembered.
    """
    asked = [code for code in codes if not _approved(code)]
    if not asked:
        return
    told = "; ".join(f"{code.what}, hash {code.sha256}" for code in asked)
    source = f", as {origin} asks for" if origin else ""
    if _session is not None and sys.stdin is not None and sys.stdin.isatty():
        with stopping.at_once():
            agreed = console.confirm(f"This runs code that is not edgekd's{source}: {told}. Do you trust it?")
        if not agreed:
            raise UsageError("nothing was run.")
        for code in asked:
            _remember(code)
        return
    flags = " ".join(f"--trust-code {code.sha256}" for code in asked)
    raise UsageError(
        f"this would run code that nobody has approved of on this machine{source}: {told}. Nothing was run. "
        f"If you have read it and trust it, give the same command again with {flags}."
    )


def _approved(code: UntrustedCode) -> bool:
    if _remembered(code):
        return True
    typed = _session is not None and (_session.pickles if code.pickled else code.name in _session.names)
    if typed or (_session is not None and code.sha256 in _session.hashes):
        _remember(code)
        return True
    return False


def _bare(arch: str) -> str:
    """An architecture without width and options."""
    return arch.strip().partition(",")[0].partition("@")[0].strip()


def _hash(what: str, files: Files) -> str:
    compiled = imports.sourceless(files)
    if compiled is not None:
        raise UsageError(
            f"{compiled} is a compiled module without its source, so nobody can say what it would run. Nothing was "
            "run. Put its source beside it, or remove it if nothing needs it."
        )
    try:
        return digest([what, {name: sha256_of(path) for name, path in files.items()}])
    except OSError as error:
        raise UsageError(f"{error.filename} cannot be read ({error.strerror}), so nobody can approve of it.") from error


def _places(module: str, files: Files) -> str:
    own = files.get(f"{module.replace('.', '/')}.py", next(iter(files.values())))
    return str(own) if len(files) == 1 else f"{own} and what belongs to it, {len(files)} files"


def _place(code: UntrustedCode) -> Path | None:
    state = state_folder()
    return None if state is None else state / "trusted-code" / code.sha256


def _remembered(code: UntrustedCode) -> bool:
    """Whether the approval is there; one that somebody else put there is none."""
    place = _place(code)
    try:
        status = place.lstat() if place is not None else None
    except OSError:
        return False
    return status is not None and stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()


def _remember(code: UntrustedCode) -> None:
    """Keep an approval: the file is made in one step, what it says is for people."""
    place = _place(code)
    try:
        if place is None:
            raise OSError(0, "there is no home folder")
        place.parent.parent.parent.mkdir(parents=True, exist_ok=True)
        for folder in (place.parent.parent, place.parent):
            folder.mkdir(mode=0o700, exist_ok=True)
        with suppress(FileExistsError):
            descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                stream.write(f"{code.what}\n")
            console.say(f"trust    {code.what}, hash {code.sha256}, from now on: {place}")
    except OSError as error:
        console.warn(f"the approval of {code.what} cannot be kept ({error.strerror}); the next command asks again.")
