"""Whatever stands where a checkpoint should: `edgekd ingest` exits 4 with one message, runs and writes nothing."""

import io
import json
import os
import pickle
import random
import shutil
import struct
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import safetensors.torch
import torch
from mutation import damage
from PIL import Image
from torch import nn

from edgekd.cli import program
from edgekd.models import registry


def ingest(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Give the command in the current folder; return its exit code and what it printed on stderr."""
    code = 0
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        patch.setattr(sys, "argv", ["edgekd", "ingest", str(path)])
        patch.delenv("EDGEKD_DEBUG", raising=False)
        try:
            program.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
    out, err = capsys.readouterr()
    assert out == ""
    return code, err


def good() -> dict[str, torch.Tensor]:
    return dict(registry.build("resnet8", input_shape=(3, 32, 32), classes=10, seed=0).state_dict())


class Greedy:
    """Pickled as a call that would take ten terabytes."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[int]]:
        return bytearray, (10**13,)


def zip_bytes(obj: object) -> bytes:
    stream = io.BytesIO()
    torch.save(obj, stream)
    return stream.getvalue()


def legacy_bytes(obj: object) -> bytes:
    stream = io.BytesIO()
    torch.save(obj, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def safe_bytes(tensors: dict[str, torch.Tensor]) -> bytes:
    data: bytes = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
    return data


def image_bytes(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, kind)
    return stream.getvalue()


def zip_of(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


def header(tensors: dict[str, object], data: bytes = b"", declared: int | None = None) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text) if declared is None else declared) + text + data


def safe_entry(dtype: str, shape: list[int]) -> bytes:
    return header({"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, 4]}}, b"abcd")


def npz() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, a=np.ones(3))
    return stream.getvalue()


def scripted() -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), stream)
    return stream.getvalue()


def with_tensor(**changes: torch.Tensor | None) -> bytes:
    tensors = good()
    for name, tensor in changes.items():
        key = name.replace("__", ".")
        if tensor is None:
            del tensors[key]
        else:
            tensors[key] = tensor
    return zip_bytes({"state_dict": tensors})


def filled(value: float) -> torch.Tensor:
    tensor = torch.zeros(10)
    tensor[3] = value
    return tensor


class Evil:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, ("sentinel",)


class EvilState:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return eval, ("__import__('os').mkdir('sentinel')",)


def unet() -> dict[str, torch.Tensor]:
    return dict(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 3, 3)).state_dict())


BYTES: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "one byte": lambda: b"\x80",
    "one zero byte": lambda: b"\0",
    "zeros": lambda: bytes(4096),
    "noise": lambda: np.random.default_rng(0).integers(0, 256, 4096, dtype=np.uint8).tobytes(),
    "text": lambda: b"epoch 1 loss 0.3\n" * 40,
    "json": lambda: b'{"weights": [1, 2, 3]}',
    "html": lambda: b"<!DOCTYPE html><html><title>404</title></html>",
    "lfs pointer": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
    "png": lambda: image_bytes("PNG"),
    "jpeg": lambda: image_bytes("JPEG"),
    "gif": lambda: image_bytes("GIF"),
    "bmp": lambda: image_bytes("BMP"),
    "webp": lambda: image_bytes("WEBP"),
    "tiff": lambda: image_bytes("TIFF"),
    "gzip": lambda: b"\x1f\x8b\x08" + bytes(64),
    "tar": lambda: b"weights".ljust(257, b"\0") + b"ustar\0" + bytes(300),
    "hdf5": lambda: b"\x89HDF\r\n\x1a\n" + bytes(64),
    "numpy array": lambda: b"\x93NUMPY\x01\0" + bytes(64),
    "numpy archive": npz,
    "gguf": lambda: b"GGUF" + bytes(64),
    "program": lambda: b"\x7fELF" + bytes(64),
    "zip of texts": lambda: zip_of({"a/readme.txt": b"hello", "a/b.txt": b"x"}),
    "empty zip": lambda: zip_of({}),
    "zip with an empty pickle": lambda: zip_of({"a/data.pkl": b"", "a/version": b"3\n"}),
    "zip with a broken pickle": lambda: zip_of({"a/data.pkl": b"\x80\x02}q", "a/version": b"3\n"}),
    "zip bomb": lambda: zip_of({"a/data.pkl": bytes(2**25)}, zipfile.ZIP_DEFLATED),
    "zip bomb of many parts": lambda: zip_of(
        {"a/data.pkl": b"."} | {f"a/data/{i}": bytes(2**21) for i in range(12)}, zipfile.ZIP_DEFLATED
    ),
    "zip without storages": lambda: zip_of({"a/data.pkl": pickle_of(zip_bytes(good())), "a/version": b"3\n"}),
    "zip with an encrypted pickle": lambda: flagged(zip_bytes(good()), 6, 8, 0x1),
    "zip packed in an unknown way": lambda: flagged(zip_bytes(good()), 8, 10, 97),
    "torchscript": scripted,
    "exported program": lambda: zip_of({"p/archive_format": b"pt2", "p/models/model.json": b"{}"}),
    "zip cut in half": lambda: half(zip_bytes(good())),
    "zip without its end": lambda: zip_bytes(good())[:-30],
    "zip without its head": lambda: zip_bytes(good())[100:],
    "legacy cut in half": lambda: half(legacy_bytes(good())),
    "legacy without storages": lambda: legacy_bytes(good())[:2000],
    "legacy of another magic": lambda: legacy_bytes(good()).replace(b"\x6c\xfc\x9c\x46\xf9", b"\x6c\xfc\x9c\x46\xfa"),
    "safetensors cut in half": lambda: half(safe_bytes(good())),
    "safetensors with a tail": lambda: safe_bytes(good()) + b"\0",
    "safetensors header too long": lambda: header({}, declared=2**31),
    "safetensors header past the end": lambda: header({}, declared=900),
    "safetensors header of no json": lambda: struct.pack("<Q", 8) + b"{nojson}",
    "safetensors of wrong offsets": lambda: safe_entry("F32", [4]),
    "safetensors of unknown type": lambda: safe_entry("F99", [1]),
    "safetensors of huge shape": lambda: safe_entry("F32", [2**40, 2**40]),
    "safetensors without tensors": lambda: header({}),
    "code in a zip": lambda: zip_bytes({"state_dict": good(), "x": Evil()}),
    "code in a legacy file": lambda: legacy_bytes({"state_dict": good(), "x": Evil()}),
    "code in a plain pickle": lambda: pickle.dumps(Evil()),
    "eval in a zip": lambda: zip_bytes({"state_dict": good(), "x": EvilState()}),
    "code by old opcodes": lambda: b"\x80\x02(X\x08\x00\x00\x00sentinelio s\nmkdir\n.".replace(b"io s", b"ios"),
    "whole module": lambda: zip_bytes(nn.Linear(2, 2)),
    "whole module in an entry": lambda: zip_bytes({"model": nn.Linear(2, 2), "epoch": 1}),
    "plain pickle of numbers": lambda: pickle.dumps({"a": 1}),
    "plain pickle of arrays": lambda: pickle.dumps({"w": np.ones(3)}),
    "pickle without a stop": lambda: b"\x80\x02}q\x00",
    "pickle of a deep nest": lambda: b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".",
    "a list": lambda: zip_bytes([torch.ones(2)]),
    "a tensor": lambda: zip_bytes(torch.ones(2)),
    "a number": lambda: zip_bytes(3),
    "no tensors": lambda: zip_bytes({"epoch": 3}),
    "an empty dict": lambda: zip_bytes({}),
    "an optimiser only": lambda: zip_bytes({"optimizer": torch.optim.SGD([torch.ones(1)], lr=0.1).state_dict()}),
    "numbered tensors": lambda: zip_bytes({0: torch.ones(2), 1: torch.ones(3)}),
    "two networks": lambda: zip_bytes({"generator": unet(), "critic": unet()}),
    "no classifier": lambda: zip_bytes(unet()),
    "missing key": lambda: with_tensor(layer1__0__bn1__weight=None),
    "missing head": lambda: with_tensor(linear__weight=None, linear__bias=None),
    "surplus key": lambda: with_tensor(extra__weight=torch.ones(3)),
    "wrong shape": lambda: with_tensor(layer1__0__conv1__weight=torch.ones(16, 16, 1, 1)),
    "a name of control characters": lambda: with_tensor(**{"x\n\x1b[31merror: fine__weight": filled(float("nan"))}),
    "the same name twice": lambda: with_tensor(_orig_mod__linear__weight=torch.ones(10, 64)),
    "row where a size is read": lambda: changed("lenet5", fc1__weight=torch.ones(5)),
    "scalar where a width is read": lambda: changed("wrn-10-1", block1__layer__0__conv1__weight=torch.ones(())),
    "a wide resnet of 2000 channels": lambda: changed(
        "wrn-10-1", block1__layer__0__conv1__weight=torch.ones(2000, 16, 3, 3)
    ),
    "wrong rank": lambda: with_tensor(linear__weight=torch.ones(640)),
    "scalar weight": lambda: with_tensor(linear__weight=torch.ones(())),
    "empty tensor": lambda: with_tensor(linear__weight=torch.ones(0, 64)),
    "nan": lambda: with_tensor(linear__bias=filled(float("nan"))),
    "infinity": lambda: with_tensor(bn1__running_var=filled(float("inf"))),
    "half overflow": lambda: with_tensor(linear__bias=torch.full((10,), 1e6).half()),
    "integer weights": lambda: with_tensor(linear__weight=torch.ones(10, 64, dtype=torch.int8)),
    "boolean weights": lambda: with_tensor(linear__bias=torch.ones(10, dtype=torch.bool)),
    "complex weights": lambda: with_tensor(linear__bias=torch.ones(10, dtype=torch.complex64)),
    "sparse weights": lambda: with_tensor(linear__weight=torch.ones(10, 64).to_sparse()),
    "expanded weights": lambda: with_tensor(linear__weight=torch.ones(1).expand(10, 64)),
    "weights without data": lambda: with_tensor(linear__weight=torch.empty(10, 64, device="meta")),
    "negative variance": lambda: with_tensor(bn1__running_var=-torch.ones(16)),
    "weights that overflow": lambda: with_tensor(linear__weight=torch.full((10, 64), 3e38)),
}  # fmt: skip


def changed(name: str, **tensors: torch.Tensor) -> bytes:
    weights = dict(registry.build(name, input_shape=(3, 32, 32), classes=10, seed=0).state_dict())
    return zip_bytes({**weights, **{key.replace("__", "."): tensor for key, tensor in tensors.items()}})


def flagged(data: bytes, local: int, central: int, value: int) -> bytes:
    """Set two bytes in each header of a zip: at `local` in those of its members, at `central` in its directory."""
    headers = bytearray(data)
    for magic, at in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
        start = data.find(magic)
        while start >= 0:
            headers[start + at : start + at + 2] = struct.pack("<H", value)
            start = data.find(magic, start + 1)
    return bytes(headers)


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def pickle_of(checkpoint: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(checkpoint)) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def refuse(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Check that `edgekd ingest` refuses a file as it should, and return its message."""
    here = Path.cwd()
    before = sorted(here.rglob("*"))
    code, err = ingest(path, capsys)
    assert code == 4, err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert err[:-1].isprintable()
    assert sorted(here.rglob("*")) == before
    return err


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", list(BYTES))
def test_files_that_are_no_teachers(here: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    path = here / "teacher.pt"
    path.write_bytes(BYTES[kind]())
    message = refuse(path, capsys)
    assert len(message) < 1200
    assert not (here / "sentinel").exists()


def test_there_are_enough_of_them() -> None:
    assert len(BYTES) >= 60


def test_directory(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "model.pt").mkdir()
    for path in (here, here / "model.pt", Path(), Path(".."), Path("/")):
        assert "directory" in refuse(path, capsys)


def test_missing_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "does not exist" in refuse(here / "teacher.pt", capsys)
    assert "does not exist" in refuse(Path("no/such/folder/teacher.pt"), capsys)


def test_name_too_long(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "too long" in refuse(here / ("x" * 5000), capsys)
    refuse(here / ("x" * 254), capsys)


def test_path_through_a_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "file").write_bytes(b"x")
    refuse(here / "file" / "teacher.pt", capsys)


def test_dangling_and_circular_links(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dangling, circle = here / "dangling.pt", here / "circle.pt"
    dangling.symlink_to(here / "nothing")
    circle.symlink_to(circle)
    refuse(dangling, capsys)
    refuse(circle, capsys)


def test_pipe(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(here / "pipe")
    assert "not a regular file" in refuse(here / "pipe", capsys)


def test_a_terabyte_of_holes_is_not_hashed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for head in (b"", b"\x80\x02", b"PK\x03\x04", struct.pack("<Q", 2) + b"{}"):
        with (here / "teacher.pt").open("wb") as stream:
            stream.write(head)
            stream.truncate(2**40)
        assert "1024 GiB" in refuse(here / "teacher.pt", capsys)


@pytest.mark.slow
def test_more_tensors_than_any_classifier_has(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = here / "teacher.pt"
    path.write_bytes(zip_bytes({"state_dict": {f"a.{i}.weight": torch.ones(1) for i in range(20_001)}}))
    assert "20,001 tensors" in refuse(path, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("locked", ["file", "folder"])
def test_no_permission(here: Path, locked: str) -> None:
    """Root may read everything, unless it gives that up."""
    path = here / "locked" / "teacher.pt"
    path.parent.mkdir()
    path.write_bytes(zip_bytes(good()))
    script = (
        "import sys; from edgekd.cli.program import main; sys.argv = ['edgekd', 'ingest', 'locked/teacher.pt']; main()"
    )
    command = [sys.executable, "-c", script]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root cannot give up its rights without setpriv")
        command = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", *command]
    (path if locked == "file" else path.parent).chmod(0)
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    finally:
        path.parent.chmod(0o700)
    assert (done.returncode, done.stdout) == (4, "")
    assert "locked/teacher.pt cannot be read: Permission denied" in " ".join(done.stderr.split())
    assert "Usage" not in done.stderr
    assert not (here / "runs").exists()


def test_a_name_that_is_no_text(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(os.fsdecode(os.fsencode(here) + b"/bad\xff.pt"))
    path.write_bytes(zip_bytes(good()))
    assert "not in UTF-8" in refuse(path, capsys)


@pytest.mark.parametrize("pack", [zip_bytes, legacy_bytes])
def test_a_few_bytes_that_ask_for_memory(
    here: Path, capsys: pytest.CaptureFixture[str], pack: Callable[[object], bytes]
) -> None:
    path = here / "teacher.pt"
    path.write_bytes(pack({"state_dict": good(), "rest": Greedy()}))
    assert "bytearray" in refuse(path, capsys)


def test_unreadable_file(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = here / "teacher.pt"
    path.write_bytes(zip_bytes(good()))
    opened: Callable[..., IO[Any]] = Path.open

    def denied(self: Path, *args: Any, **kwargs: Any) -> IO[Any]:
        if self == path:
            raise PermissionError(13, "Permission denied")
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", denied)
    assert "Permission denied" in refuse(path, capsys)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "nested"])
def test_the_good_checkpoint_is_accepted(here: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    makers: dict[str, Callable[[Any], bytes]] = {"zip": zip_bytes, "legacy": legacy_bytes, "safetensors": safe_bytes}
    path = here / "teacher.pt"
    path.write_bytes(with_tensor() if kind == "nested" else makers[kind](good()))
    code, err = ingest(path, capsys)
    assert (code, "resnet8" in err) == (0, True)
    assert (here / "runs" / "teacher" / "teacher" / "teacher.safetensors").is_file()


def mutated_bytes(data: bytes, chance: random.Random) -> bytes:
    """Flip, replace, delete and insert bytes of a checkpoint, mostly in its head, where its structure is."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 2, 8))):
        at = chance.randrange(len(changed) if chance.random() < 0.3 else min(4096, len(changed)))
        damage(changed, at, chance)
    return bytes(changed)


def mutated_tensors(chance: random.Random) -> bytes:
    """Rename, drop, reshape, retype, spoil and swap tensors of a checkpoint."""
    tensors: dict[str, object] = dict(good())
    for _ in range(chance.choice((1, 2, 5))):
        name = chance.choice(sorted(map(str, tensors)))
        value = tensors.get(name)
        if not isinstance(value, torch.Tensor):
            continue
        how = chance.randrange(8)
        if how == 0:
            tensors[f"{name}.x"] = tensors.pop(name)
        elif how == 1:
            del tensors[name]
        elif how == 2:
            tensors[name] = value.flatten()[: chance.randrange(1, 50)].clone()
        elif how == 3:
            tensors[name] = value.to(chance.choice((torch.float16, torch.int8, torch.bool, torch.complex64)))
        elif how == 4:
            tensors[name] = torch.full_like(value, 0 if value.dtype == torch.int64 else float("nan"))
        elif how == 5:
            other = chance.choice(sorted(map(str, tensors)))
            tensors[name], tensors[other] = tensors[other], value
        elif how == 6:
            tensors[name] = chance.choice((None, "text", [value], {"inner": value}, 3))
        else:
            tensors[name] = value[None]
    save = chance.choice((zip_bytes, legacy_bytes))
    return save(
        chance.choice((tensors, {"state_dict": tensors}, {"model": {f"module.{k}": v for k, v in tensors.items()}}))
    )


def fuzz(here: Path, capsys: pytest.CaptureFixture[str], *, seconds: float, seed: int) -> list[int]:
    """Ingest mutations of real checkpoints for a bounded time; return the exit codes."""
    chance = random.Random(seed)
    originals = [zip_bytes(good()), legacy_bytes({"state_dict": good()}), safe_bytes(good())]
    path = here / "teacher.pt"
    codes: list[int] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until or len(codes) < 6:
        broken = chance.random() < 0.5
        path.write_bytes(mutated_bytes(chance.choice(originals), chance) if broken else mutated_tensors(chance))
        started = time.process_time()
        code, err = ingest(path, capsys)
        assert time.process_time() - started < 30
        assert code in (0, 4), err
        if code == 4:
            assert err.startswith("error: ")
            assert err.count("\n") == 1
            assert sorted(entry.name for entry in here.iterdir()) == ["teacher.pt"], err
        shutil.rmtree(here / "runs", ignore_errors=True)
        codes.append(code)
    return codes


def test_mutated_checkpoints_are_taken_or_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert 4 in fuzz(here, capsys, seconds=4, seed=0)


@pytest.mark.slow
def test_many_mutated_checkpoints_are_taken_or_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    codes = fuzz(here, capsys, seconds=60, seed=1)
    assert {0, 4} <= set(codes)
