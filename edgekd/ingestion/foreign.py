"""Read checkpoints from outside; the only `torch.load` of the project.

To Python's pickle a checkpoint is a program. Files are read with `weights_only=True`, which knows tensors and
plain values; anything else is refused with the list of what it would have run. There is no fallback:
`trust_pickle` is the user's decision. The unpickler is a filter, not a sandbox, so what it returns is bounded too.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from edgekd.errors import InputFileError
from edgekd.ingestion.outside_files import ZIP, first_bytes, looks_like_safetensors, require_checkpoint
from edgekd.models import imports, pickles, trust
from edgekd.text import first_line, listed

EXPANSION_LIMIT = 4
"""A zip may unpack to this many times its own size, and 16 MiB more (torch itself stores without compression)."""
EXPANSION_SLACK_BYTES = 16 * 2**20
HEADER_LIMIT_BYTES = 32 * 2**20
"""The longest header accepted of a .safetensors file."""
PIECE_BYTES = 2**20
"""How much of a file is in memory while its checksums are compared."""
_ARCHIVES = {
    "model.weights.h5": "a Keras file",
    "MAR-INF/": "a TorchServe archive (the weights lie inside)",
    "com.apple.CoreML": "a Core ML package",
    "saved_model.pb": "a packed TensorFlow SavedModel",
    ".safetensors": "a zip archive of .safetensors files; unpack it first",
}
"""What a zip is by a part of the name of one of its members."""
_OTHER_LIBRARIES = {"sklearn": "scikit-learn", "joblib": "joblib", "xgboost": "XGBoost", "lightgbm": "LightGBM"}
"""Libraries of pickles that hold no PyTorch network, by their module."""
_FOLDER = 0x10
"""Attribute of DOS by which torch's zip reader takes a member for a folder, whatever it is called."""


def read_checkpoint(path: Path, *, trust_pickle: bool | None = False) -> object:
    """Read a .safetensors file or what `torch.save` wrote (zip or legacy), whatever its suffix.

    Returns nested dicts and lists of CPU tensors and plain values, or with `trust_pickle` any object, after running
    the code the file names, of which the user must have approved (`models/trust.py`). Raises InputFileError for
    everything else, with one message and nothing executed; where `trust_pickle` is None, no flag sets it and the
    message offers none.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what libraries have to say about a file is in the one message
        return _read(path, trust_pickle=trust_pickle)


def _read(path: Path, *, trust_pickle: bool | None) -> object:
    head, size = require_checkpoint(path)
    if looks_like_safetensors(head, size):
        return _read_safetensors(path, head, size)
    limit = size
    if head.startswith(ZIP):
        limit = _check_zip(path, size)
        _check_sums(path)
    loaded = _read_pickle(path, trust_pickle=trust_pickle)
    if not trust_pickle:
        _check_storages(path, loaded, limit)
    return loaded


def tensors_within(value: object) -> Iterator[Tensor]:
    """Yield each tensor in nested dicts, lists and tuples once; cycles and shared parts cost nothing extra."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, dict):
            waiting.extend(item.values())
        elif isinstance(item, list | tuple | set):
            waiting.extend(item)


def _read_safetensors(path: Path, head: bytes, size: int) -> dict[str, Tensor]:
    header_bytes = int.from_bytes(head[:8], "little")
    if header_bytes > HEADER_LIMIT_BYTES:
        raise InputFileError(
            f"{path} declares a safetensors header of {header_bytes} bytes; at most {HEADER_LIMIT_BYTES} are accepted."
        )
    if header_bytes > size - 8:
        raise InputFileError(
            f"{path} is truncated: its safetensors header needs {header_bytes} bytes, {size - 8} are there. "
            "Copy or download it again."
        )
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
    except Exception as error:
        raise InputFileError(f"{path} is a damaged .safetensors file: {first_line(error)}.") from error
    return tensors


def _check_zip(path: Path, size: int) -> int:
    """Refuse zips that are no plain `torch.save` file or a bomb; return the bytes the archive may unpack to."""
    limit = EXPANSION_LIMIT * size + EXPANSION_SLACK_BYTES
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except Exception as error:
        raise InputFileError(
            f"{path} is a truncated or damaged zip: {first_line(error)}. Copy or download it again."
        ) from error
    if members and min(member.header_offset for member in members) > 0:
        raise InputFileError(
            f"{path} has something in front of its zip archive, such as another archive: two downloads in one file? "
            "Copy or download it again."
        )
    folder = next((member.filename for member in members if member.external_attr & _FOLDER or member.is_dir()), None)
    if folder is not None:  # torch would read nothing of it and hand out memory as it found it
        raise InputFileError(f"{path} is damaged: {folder} in it is marked as a folder. Copy or download it again.")
    unpacked = sum(member.file_size for member in members)
    if unpacked > limit:
        raise InputFileError(
            f"{path} has {size} bytes and would unpack to {unpacked}, over the limit of {limit}: "
            "this is a zip bomb, not a checkpoint."
        )
    inner = {member.filename.partition("/")[2] for member in members}
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        raise InputFileError(
            f"{path} is a TorchScript program, which would run code. Save its weights instead: "
            f"torch.save(torch.jit.load({str(path)!r}, 'cpu').state_dict(), 'weights.pt')."
        )
    whole = {member.filename for member in members} | inner
    if "archive_format" in whole or any(
        name.endswith(("serialized_exported_program.json", "models/model.json")) for name in whole
    ):
        raise InputFileError(
            f"{path} is an exported program (.pt2), which would run code. Save its weights instead: "
            f"torch.save(torch.export.load({str(path)!r}).state_dict, 'weights.pt')."
        )
    if "data.pkl" not in inner:
        raise InputFileError(
            f"{path} is {_archive_name(whole)}, not a checkpoint: it holds no data.pkl as torch.save writes it."
        )
    return limit


def _archive_name(members: set[str]) -> str:
    """What a zip is that torch did not write."""
    if all(name.endswith(".npy") for name in members - {""}):
        return "a NumPy .npz archive"
    for part, name in _ARCHIVES.items():
        if any(part in member for member in members):
            return name
    return "a zip archive"


def _check_sums(path: Path) -> None:
    """Hold each member of a zip against its CRC-32, in pieces: torch.load itself does not look at it.

    After `torch.serialization.set_crc32_options(False)` torch writes 0 for every member, so that says nothing.
    """
    name = "its directory"
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if member.file_size]
            if not any(member.CRC for member in members):
                return
            for member in members:
                name = member.filename
                with archive.open(member) as stream:
                    while stream.read(PIECE_BYTES):
                        pass
    except Exception as error:  # zlib and zipfile raise many kinds
        raise InputFileError(
            f"{path} is damaged: {name} in it does not match its checksum ({first_line(error)}). "
            "Copy or download it again."
        ) from error


def _read_pickle(path: Path, *, trust_pickle: bool | None) -> object:
    zipped = first_bytes(path)[0].startswith(ZIP)
    if not trust_pickle and pickles.names_bytearray(path, zipped=zipped):
        raise InputFileError(
            f"{path} names bytearray, which may ask for any amount of memory and is no weight. Save a state_dict "
            "instead (torch.save(model.state_dict(), 'weights.pt'))."
        )
    here: AbstractContextManager[None] = nullcontext()
    if trust_pickle:
        code = trust.pickle(path)
        trust.require_approval([code])
        here = imports.from_here(code.files)  # the code it was written with may lie there
    try:
        with here, torch.serialization.safe_globals(pickles.stand_ins()), path.open("rb") as stream:
            # The open file: given a path, torch would let the suffix decide what is in it.
            return torch.load(stream, map_location="cpu", weights_only=not trust_pickle)
    except Exception as error:  # a damaged or hostile pickle may raise anything
        if trust_pickle:
            raise InputFileError(
                f"{path} cannot be unpickled: {type(error).__name__}: {first_line(error)}. "
                f"The code it was written with must be importable here.{imports.unapproved(error)}"
            ) from error
        foreign = pickles.code_named(path, zipped=zipped)
        makers = {name.partition(".")[0] for name in foreign} & _OTHER_LIBRARIES.keys()
        if makers and not zipped:  # torch.save writes zips
            library = _OTHER_LIBRARIES[max(makers)]
            raise InputFileError(
                f"{path} is a pickle of {library}'s, not of PyTorch's: it would run {listed(foreign)}. Nothing was "
                "run; edgekd distils networks of PyTorch."
            ) from error
        if foreign:
            way_on = "" if trust_pickle is None else ", or load it with --trust-pickle if you trust its author"
            raise InputFileError(
                f"{path} is a pickle that would run {listed(foreign, 12)}. Nothing was run. Save a state_dict "
                f"instead (torch.save(model.state_dict(), 'weights.pt')){way_on}."
            ) from error
        if isinstance(error, pickle.UnpicklingError):
            raise InputFileError(
                f"{path} is damaged, or a pickle that torch.save does not write by default (another protocol, "
                "plain pickle). Save the weights with torch.save(model.state_dict(), 'weights.pt')."
            ) from error
        raise InputFileError(
            f"{path} is a truncated or damaged checkpoint: {first_line(error)}. Copy or download it again."
        ) from error


def _check_storages(path: Path, loaded: object, limit: int) -> None:
    """Refuse tensors that claim more memory than the file holds: a storage may be declared too large."""
    storages: dict[int, int] = {}
    for tensor in tensors_within(loaded):
        if tensor.layout == torch.strided and not tensor.is_meta:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    if sum(storages.values()) > limit:
        raise InputFileError(
            f"{path} declares tensors of {sum(storages.values())} bytes, more than the file can hold; "
            "it is damaged or hostile."
        )
