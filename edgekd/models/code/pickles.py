"""What a checkpoint's pickle names, read by disassembly, and what stands in for values beside the weights."""

from __future__ import annotations

import argparse
import io
import pickletools
import re
import zipfile
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

import numpy as np

_PICKLE_LIMIT_BYTES = 64 * 2**20
"""How much of a legacy file is searched for what it would run; its pickles stand before the tensors."""
_NUMBER = re.compile(r"[<>|=]?(?:b1|[iu][1248]|f[248]|c(?:8|16))")
"""NumPy's codes of truth values, integers and floating point numbers."""

_ORDINARY = {
    "collections.OrderedDict", "collections.Counter", "_codecs.encode",
    "torch.Size", "torch.device", "torch.dtype", "torch.Tensor", "torch.nn.parameter.Parameter",
    "torch.storage.UntypedStorage", "torch.storage.TypedStorage",
    "builtins.set", "builtins.complex", "argparse.Namespace",
    "numpy.dtype", "numpy.ndarray", "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar", "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct",
}  # fmt: skip


def stand_ins() -> list[Any]:
    """Return what the unpickler takes for values that scripts leave beside weights: NumPy's, paths, arguments.

    NumPy's own callables must not be among them: `np.ndarray` with a buffer and an object dtype takes bytes for
    pointers. What stands in for them here makes scalars of numbers and forgets arrays.
    """
    numpy = {"scalar": _numpy_scalar, "_reconstruct": _ForgottenArray}
    aliases = [(made, f"numpy.{core}.multiarray.{name}") for name, made in numpy.items() for core in ("core", "_core")]
    aliases += [(_NumpyType, "numpy.dtype"), (_ForgottenArray, "numpy.ndarray")]
    paths = [
        (kind, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for kind, name in (
            (PurePosixPath, "PosixPath"),
            (PurePosixPath, "PurePosixPath"),
            (PureWindowsPath, "WindowsPath"),
            (PureWindowsPath, "PureWindowsPath"),
        )
    ]
    return [argparse.Namespace, *aliases, *paths]


class _NumpyType:
    """Stands for `numpy.dtype` in a pickle: a code such as `f8`, and the byte order that follows as state."""

    def __init__(self, code: object, *_flags: object) -> None:
        self.code = str(code)

    def __setstate__(self, state: tuple[object, ...]) -> None:
        self.code = str(state[1]) + self.code if state[1] in ("<", ">") else self.code


class _ForgottenArray:
    """Stands for an array of a pickle: no weights, so nothing is kept."""

    def __init__(self, *_arguments: object) -> None:
        pass

    def __setstate__(self, _state: object) -> None:
        pass


def _numpy_scalar(kind: _NumpyType, data: object = b"") -> object:
    """The number that a pickle holds as bytes; None for text and anything else."""
    if not _NUMBER.fullmatch(kind.code):
        return None
    raw = data if isinstance(data, bytes) else str(data).encode("latin1")
    (value,) = np.frombuffer(raw, np.dtype(kind.code))
    return value


def names_bytearray(path: Path, *, zipped: bool) -> bool:
    """Return whether a checkpoint's pickle names `bytearray`, with which a few bytes ask for any amount of memory."""
    return "builtins.bytearray" in _names(path, zipped=zipped)


def code_named(path: Path, *, zipped: bool) -> list[str]:
    """Return what loading a checkpoint would run or build besides tensors and plain values, layers of torch last.

    `zipped` is what torch.load goes by: whether the file begins as a zip does, not whether it is one.
    """
    return sorted((name for name in _names(path, zipped=zipped) if not _is_ordinary(name)), key=_suspicious_first)


def _is_ordinary(name: str) -> bool:
    return (
        name in _ORDINARY
        or name.startswith(("torch._utils._rebuild", "pathlib."))
        or (name.startswith("torch.") and name.endswith("Storage"))
    )


def _suspicious_first(name: str) -> tuple[bool, str]:
    """Sort layers of torch behind everything else: a list that is cut must not hide what matters."""
    return name.startswith("torch.nn."), name


def _names(path: Path, *, zipped: bool) -> set[str]:
    """Each `module.name` that the pickle in a checkpoint names before it breaks off, by disassembly."""
    names: set[str] = set()
    try:
        if zipped:
            with zipfile.ZipFile(path) as archive:
                (member,) = (name for name in archive.namelist() if name.partition("/")[2] == "data.pkl")
                _add_globals(io.BytesIO(archive.read(member)), names)
        else:
            with path.open("rb") as stream:
                data = io.BytesIO(stream.read(_PICKLE_LIMIT_BYTES))
            # A legacy file: five pickles (magic, version, system, object, storage keys), raw storages.
            for _ in range(5):
                _add_globals(data, names)
    except (ValueError, LookupError, OSError, EOFError, OverflowError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return names  # RuntimeError: a member that is encrypted or packed in a way Python does not know
    return names


def _add_globals(stream: IO[bytes], names: set[str]) -> None:
    """Add what GLOBAL, INST and STACK_GLOBAL name, following the unpickler's stack and memo for the latter."""
    stack: list[object] = []
    memo: dict[int, object] = {}
    for opcode, argument, _ in pickletools.genops(stream):
        name, top = opcode.name, stack[-1] if stack else None
        taken = _take(stack, opcode)
        if name in ("GLOBAL", "INST"):
            names.add(_modern(str(argument).replace(" ", ".")))
        elif name == "STACK_GLOBAL":
            readable = len(taken) == 2 and all(isinstance(part, str) and part for part in taken)
            names.add(_modern(".".join(map(str, taken))) if readable else "code that cannot be named")
        elif name == "MEMOIZE":
            memo[len(memo)] = top
        elif name.endswith("PUT"):
            memo[int(str(argument))] = top
        if name.endswith("GET"):
            stack.append(memo.get(int(str(argument))))
        elif "UNICODE" in name:
            stack.append(argument)
        elif name in ("DUP", "MEMOIZE"):
            stack += [top] * len(opcode.stack_after)
        else:
            stack += [kind if kind is pickletools.markobject else None for kind in opcode.stack_after]


def _take(stack: list[object], opcode: pickletools.OpcodeInfo) -> list[object]:
    """Take from the unpickler's stack what an opcode takes; return what lay below its mark, or all of it."""
    before = list(opcode.stack_before)
    if pickletools.stackslice in before:
        while stack and stack.pop() is not pickletools.markobject:
            pass
        before = before[: before.index(pickletools.markobject)]
    place = max(0, len(stack) - len(before))
    taken = stack[place:]
    del stack[place:]
    return taken


def _modern(name: str) -> str:
    """A name of Python 2, as old protocols spell it, as it is called now."""
    module, _, rest = name.partition(".")
    return f"{ {'__builtin__': 'builtins', 'copy_reg': 'copyreg'}.get(module, module) }.{rest}"
