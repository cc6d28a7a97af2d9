"""Whatever stands where a checkpoint should: one InputFileError, nothing run, nothing written."""

import io
import json
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from edgekd.errors import InputFileError
from edgekd.foreign import read_checkpoint
from edgekd.models import probe, registry
from edgekd.models.teacher import infer, load, state_dict_of


def ingest(path: Path) -> None:
    found = infer(state_dict_of(read_checkpoint(path)))
    probe.probe(load(found), input_shape=found.input_shape, classes=found.classes, seed=0)


def good() -> dict[str, torch.Tensor]:
    return dict(registry.build("resnet8", input_shape=(3, 32, 32), classes=10, seed=0).state_dict())


def zip_bytes(obj: object) -> bytes:
    stream = io.BytesIO()
    torch.save(obj, stream)
    return stream.getvalue()


def legacy_bytes(obj: object) -> bytes:
    stream = io.BytesIO()
    torch.save(obj, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def safe_bytes(tensors: dict[str, torch.Tensor]) -> bytes:
    return safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})


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
    def __reduce__(self):
        return os.mkdir, ("sentinel",)


class EvilState:
    def __reduce__(self):
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
    "wrong rank": lambda: with_tensor(linear__weight=torch.ones(640)),
    "scalar weight": lambda: with_tensor(linear__weight=torch.ones(())),
    "empty tensor": lambda: with_tensor(linear__weight=torch.ones(0, 64)),
    "one class": lambda: with_tensor(linear__weight=torch.ones(1, 64), linear__bias=torch.ones(1)),
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


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def pickle_of(checkpoint: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(checkpoint)) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def refuse(path: Path, folder: Path) -> str:
    before = sorted(folder.rglob("*"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputFileError) as caught:
            ingest(path)
    assert sorted(folder.rglob("*")) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", list(BYTES))
def test_files_that_are_no_teachers(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "teacher.pt"
    path.write_bytes(BYTES[kind]())
    message = refuse(path, tmp_path)
    assert len(message) < 1200
    assert not (tmp_path / "sentinel").exists()


def test_directory(tmp_path):
    assert "directory" in refuse(tmp_path, tmp_path)


def test_missing_file(tmp_path):
    assert "does not exist" in refuse(tmp_path / "teacher.pt", tmp_path)


def test_name_too_long(tmp_path):
    refuse(tmp_path / ("x" * 5000), tmp_path)


def test_path_through_a_file(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    refuse(tmp_path / "file" / "teacher.pt", tmp_path)


def test_zero_byte_in_the_name(tmp_path):
    refuse(tmp_path / "a\0b", tmp_path)


def test_dangling_and_circular_links(tmp_path):
    dangling, circle = tmp_path / "dangling.pt", tmp_path / "circle.pt"
    dangling.symlink_to(tmp_path / "nothing")
    circle.symlink_to(circle)
    refuse(dangling, tmp_path)
    refuse(circle, tmp_path)


def test_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refuse(tmp_path / "pipe", tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path):
    path = tmp_path / "teacher.pt"
    path.write_bytes(zip_bytes(good()))
    path.chmod(0)
    assert "Permission denied" in refuse(path, tmp_path)


def test_unreadable_file(tmp_path, monkeypatch):
    path = tmp_path / "teacher.pt"
    path.write_bytes(zip_bytes(good()))

    def denied(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    assert "Permission denied" in refuse(path, tmp_path)


def test_the_good_checkpoint_is_accepted(tmp_path):
    path = tmp_path / "teacher.pt"
    for data in (zip_bytes(good()), legacy_bytes(good()), safe_bytes(good()), with_tensor()):
        path.write_bytes(data)
        ingest(path)
