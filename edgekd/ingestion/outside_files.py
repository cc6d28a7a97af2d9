"""Files from outside before they are read: is it a file at all, how large, what is it by its first bytes; no torch."""

from __future__ import annotations

from pathlib import Path

from edgekd.agent.device import files, machine
from edgekd.errors import InputFileError

LARGEST_BYTES = 64 * 2**30
"""No file larger than this is read or hashed: no classifier's checkpoint is, but a file of holes can be."""
ZIP, PICKLE = b"PK\x03\x04", b"\x80"
"""How what torch.save writes begins, today and before 1.6."""
MAGIC = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"BM": "a BMP image",
    b"RIFF": "a RIFF file (WebP image, audio)",
    b"II*\x00": "a TIFF image",
    b"MM\x00*": "a TIFF image",
    b"%PDF": "a PDF document",
    b"\x1f\x8b": "a gzip archive; unpack it first",
    b"BZh": "a bzip2 archive; unpack it first",
    b"\xfd7zXZ": "an xz archive; unpack it first",
    b"7z\xbc\xaf": "a 7-zip archive; unpack it first",
    b"\x28\xb5\x2f\xfd": "a zstd archive; unpack it first",
    b"\x89HDF": "an HDF5 file (Keras weights); edgekd reads PyTorch weights",
    b"\x93NUMPY": "a NumPy array",
    b"\x12\x01\x00\x00\x00\x00\x00\x00": "an MXNet parameter file",
    b"x\x01": "packed with zlib, as joblib.dump does",
    b"x\x9c": "packed with zlib, as joblib.dump does",
    b"x\xda": "packed with zlib, as joblib.dump does",
    b"GGUF": "a GGUF file; edgekd reads PyTorch weights",
    b"\x7fELF": "a program",
    b"#!": "a script",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; run `git lfs pull`",
    b"<": "an HTML or XML page (a failed download?)",
    b"{": "a JSON text",
}


def is_pickle(path: Path) -> bool:
    """Return whether a checkpoint is one that torch.save wrote, not a .safetensors file."""
    return not looks_like_safetensors(*first_bytes(path))


def sha256_of_input(path: Path) -> str:
    """Return the SHA-256 of a file from outside; raise InputFileError as `require_file` does."""
    require_file(path)
    return machine.sha256_of(path)


def require_file(path: Path) -> None:
    """Raise InputFileError unless `path` is a regular file that is not empty, not absurdly large and can be read."""
    first_bytes(path)


def first_bytes(path: Path) -> tuple[bytes, int]:
    """Return the first bytes and the size of a regular, readable, non-empty file."""
    try:
        if path.is_dir():
            raise InputFileError(f"{path} is a directory; name the file inside it.")
        if not path.exists():
            raise InputFileError(f"{path} does not exist.")
        if not path.is_file():
            raise InputFileError(f"{path} is not a regular file.")
        with path.open("rb") as stream:
            head = stream.read(512)
        size = path.stat().st_size
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputFileError(f"{path} cannot be read: {reason}.") from error
    if size > LARGEST_BYTES:
        raise InputFileError(f"{path} has {size / 2**30:.0f} GiB; no checkpoint of a classifier is as large.")
    if size == 0:
        raise InputFileError(f"{path} is empty; the program that wrote it may have been interrupted.")
    return head, size


def require_checkpoint(path: Path) -> tuple[bytes, int]:
    """Return first bytes and size; raise InputFileError unless they may be those of a checkpoint, which is cheap."""
    head, size = first_bytes(path)
    if not looks_like_safetensors(head, size) and not head.startswith((ZIP, PICKLE)):
        raise InputFileError(
            f"{path} is no checkpoint: it is {format_name(head)}. edgekd reads .safetensors and what torch.save writes."
        )
    return head, size


def read_class_names(path: Path) -> list[str]:
    """Read one class name a line; raise InputFileError for a file that cannot be read as text."""
    try:
        lines = files.read_text(path).splitlines()
    except OSError as error:
        raise InputFileError(f"class names {path} cannot be read ({error.strerror}).") from error
    return [line.strip() for line in lines if line.strip()]


def format_name(head: bytes) -> str:
    """Return what a file is by its first bytes, for a message."""
    if head.lstrip().startswith(b"{") and b'"weight_map"' in head:
        return "an index of several .safetensors files; name one that holds all weights"
    for magic, name in MAGIC.items():
        if head.startswith(magic):
            return name
    if head[257:262] == b"ustar":
        return "a tar archive"
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite file"
    if head[:3] == b"\x08\x01\x12" or (head[:1] == b"\x0a" and (b"Placeholder" in head or b"Const" in head)):
        return "a TensorFlow SavedModel or graph (.pb)"
    if _is_onnx(head):
        return "an ONNX file"
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return "a text file"
    return "in an unknown format"


def _is_onnx(head: bytes) -> bool:
    """Whether a protobuf message begins with a small `ir_version`, then with a producer's name or what follows it."""
    if len(head) < 6 or head[0] != 0x08 or not 0 < head[1] < 64:
        return False
    named = head[2] == 0x12 and head[4 : 4 + head[3]].isascii() and head[4:6].isalnum()
    return named or head[2] in (0x1A, 0x22, 0x28, 0x3A, 0x42)


def looks_like_safetensors(head: bytes, size: int) -> bool:
    """Return whether the first bytes are those of a .safetensors file."""
    return len(head) >= 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= max(size, 2**32)
