import argparse
import collections
import os
import pickle
import random
import struct
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from mutation import damage
from torch import nn

from edgekd.errors import InputFileError
from edgekd.ingestion import foreign, outside_files
from edgekd.ingestion.foreign import read_checkpoint, tensors_within

WEIGHTS = {"conv.weight": torch.arange(36.0).reshape(4, 1, 3, 3), "conv.bias": torch.ones(4)}


class Bomb:
    """Pickles to a call of os.mkdir, which leaves a folder behind if anybody runs it."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.sentinel),)


def read(path: Path, *, trust_pickle: bool | None = False) -> Any:
    return read_checkpoint(path, trust_pickle=trust_pickle)


def refused(path: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputFileError) as caught:
            read(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".ckpt", ".bin", ""])
@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saves_is_read_whatever_its_suffix(tmp_path: Path, suffix: str, zipped: bool) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save({"state_dict": WEIGHTS, "epoch": 3, "names": ["a", "b"]}, path, _use_new_zipfile_serialization=zipped)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = read(path)
    assert loaded["epoch"] == 3
    assert loaded["names"] == ["a", "b"]
    assert all(torch.equal(loaded["state_dict"][name], WEIGHTS[name]) for name in WEIGHTS)


def test_safetensors_are_read_whatever_their_suffix(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    safetensors.torch.save_file(WEIGHTS, path)
    loaded = read(path)
    assert all(torch.equal(loaded[name], WEIGHTS[name]) for name in WEIGHTS)


def test_plain_values_of_training_scripts_are_read(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    values = {
        "best": np.float64(0.5),
        "loss": np.float32(2),
        "epoch": np.int64(7),
        "args": argparse.Namespace(lr=0.1),
        "flags": {1, 2},
        "data": PurePosixPath("data/train"),
        "cache": PureWindowsPath("c:/cache"),
        "python": random.Random(0).getstate(),
    }
    torch.save({"state_dict": WEIGHTS, **values}, path)
    assert {key: value for key, value in read(path).items() if key != "state_dict"} == values


@pytest.mark.parametrize(
    "array", [np.arange(4.0), np.ones((2, 3), np.int32), np.array(["cat", "dog"]), np.array([True])]
)
def test_arrays_stand_in_nobodys_way(tmp_path: Path, array: np.ndarray[Any, Any]) -> None:
    path = tmp_path / "c.pt"
    torch.save({"state_dict": WEIGHTS, "array": array, "folder": Path("data")}, path)
    loaded = read(path)
    assert all(torch.equal(loaded["state_dict"][name], WEIGHTS[name]) for name in WEIGHTS)
    assert not isinstance(loaded["array"], np.ndarray), "no weights: not kept"
    assert str(loaded["folder"]) == "data"


def test_numpy_is_not_to_be_called_by_a_file(tmp_path: Path) -> None:
    """np.ndarray with a buffer would take the file's bytes for pointers; hashing one of them ends the process."""
    codes = ("O", "O8", "V8", "M8", "f4")
    paths = [pointers(tmp_path / f"{code}.pt", code) for code in codes]
    program = """if True:
        import sys
        from pathlib import Path
        from edgekd import errors
        from edgekd.ingestion import foreign
        for name in sys.argv[1:]:
            try:
                foreign.read_checkpoint(Path(name))
            except errors.InputFileError:
                print("refused")
    """
    ran = subprocess.run([sys.executable, "-c", program, *paths], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, "an error, not a signal"
    assert ran.stdout.split() == ["refused"] * len(codes)


def pointers(path: Path, code: str) -> Path:
    """Write a file that has NumPy make a set of an array of this type from its bytes."""
    made = b"cnumpy\nndarray\n(K\x01\x85cnumpy\ndtype\n(X%b%b\x89\x88tR" % (
        len(code).to_bytes(4, "little"),
        code.encode(),
    )
    made += b"c_codecs\nencode\n(X\x08\x00\x00\x00AAAAAAAAX\x06\x00\x00\x00latin1tRtR"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("c/data.pkl", b"\x80\x02c__builtin__\nset\n(" + made + b"tR.")
        archive.writestr("c/version", b"3\n")
    return path


def test_a_file_called_safetensors_may_be_of_torch(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    torch.save(WEIGHTS, path)
    assert torch.equal(read(path)["conv.bias"], WEIGHTS["conv.bias"])


def test_only_the_pickle_that_torch_reads_counts(tmp_path: Path) -> None:
    path, sentinel = tmp_path / "c.pt", tmp_path / "sentinel"
    torch.save({"payload": Bomb(sentinel)}, path)
    other = tmp_path / "other.pt"
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(other, "w") as forged:
        forged.writestr("c/old_data.pkl", pickle.dumps({}, protocol=2))
        for name in archive.namelist():
            forged.writestr(name, archive.read(name))
    assert "mkdir" in refused(other)


def test_a_history_of_lists_is_named_in_todays_words(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    torch.save({"state_dict": WEIGHTS, "history": collections.defaultdict(list)}, path)
    message = refused(path)
    assert "builtins.list" in message
    assert "collections.defaultdict" in message


def test_arrays_of_objects_are_code(tmp_path: Path) -> None:
    path, sentinel = tmp_path / "c.pt", tmp_path / "sentinel"
    torch.save({"state_dict": WEIGHTS, "array": np.array([Bomb(sentinel)], dtype=object)}, path)
    assert "mkdir" in refused(path)
    assert not sentinel.exists()


def test_a_trusted_pickle_finds_code_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, approve: Callable[..., None]
) -> None:
    approve(pickles=True)
    (tmp_path / "nets_of_mine.py").write_text("from torch import nn\nclass Net(nn.Linear):\n    pass\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    torch.save({"a": 1}, "plain.pt")
    (tmp_path / "mine.pkl").write_bytes(b"\x80\x02cnets_of_mine\nNet\n.")
    with pytest.raises(InputFileError, match=r"nets_of_mine\.Net"):
        read(Path("mine.pkl"))
    assert "nets_of_mine" not in sys.modules
    with pytest.raises(InputFileError, match="cannot be unpickled"):  # no torch file, but the code was found
        read(Path("mine.pkl"), trust_pickle=True)
    assert "nets_of_mine" in sys.modules
    monkeypatch.delitem(sys.modules, "nets_of_mine")
    assert sys.path == before


def test_other_pickle_protocols_are_refused_with_the_way_on(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    torch.save(WEIGHTS, path, pickle_protocol=4)
    assert "torch.save(model.state_dict(), 'weights.pt')" in refused(path)


def save_zip(obj: object, path: Path) -> None:
    torch.save(obj, path)


def save_legacy(obj: object, path: Path) -> None:
    torch.save(obj, path, _use_new_zipfile_serialization=False)


def save_plain(protocol: int) -> Callable[[object, Path], object]:
    return lambda obj, path: path.write_bytes(pickle.dumps(obj, protocol=protocol))


@pytest.mark.parametrize("save", [save_zip, save_legacy, save_plain(2), save_plain(3), save_plain(4), save_plain(5)])
def test_code_is_named_and_not_run(tmp_path: Path, save: Callable[[object, Path], object]) -> None:
    path, sentinel = tmp_path / "evil.pt", tmp_path / "sentinel"
    save({"state_dict": {}, "payload": Bomb(sentinel)}, path)
    message = refused(path)
    assert f"{os.mkdir.__module__}.mkdir" in message
    assert "--trust-pickle" in message
    assert "state_dict" in message
    assert not sentinel.exists()


def test_trusted_code_runs(tmp_path: Path, approve: Callable[..., None]) -> None:
    approve(pickles=True)
    path, sentinel = tmp_path / "trusted.pt", tmp_path / "sentinel"
    torch.save({"state_dict": WEIGHTS, "payload": Bomb(sentinel)}, path)
    assert torch.equal(read(path, trust_pickle=True)["state_dict"]["conv.bias"], WEIGHTS["conv.bias"])
    assert sentinel.exists()


def test_payload_named_through_the_memo_is_listed(tmp_path: Path) -> None:
    path = tmp_path / "memo.pkl"
    module = os.mkdir.__module__.encode()
    short = bytes([len(module)]) + module
    path.write_bytes(
        b"\x80\x04\x8c" + short + b"\x94\x8c\x05mkdir\x94" + b"00" + b"h\x00h\x01\x93" + b"\x8c\x01x\x85R."
    )
    assert f"{os.mkdir.__module__}.mkdir" in refused(path)


@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_whole_modules_need_trust(
    tmp_path: Path, save: Callable[[object, Path], object], approve: Callable[..., None]
) -> None:
    approve(pickles=True)
    path = tmp_path / "module.pt"
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    save(net, path)
    message = refused(path)
    assert "torch.nn.modules.linear.Linear" in message
    assert "torch.nn.modules.container.Sequential" in message
    assert "OrderedDict" not in message
    loaded = read(path, trust_pickle=True)
    assert torch.equal(loaded[0].weight, net.get_parameter("0.weight"))


def test_trusted_pickle_whose_code_is_missing_is_an_input_error(tmp_path: Path, approve: Callable[..., None]) -> None:
    approve(pickles=True)
    path = tmp_path / "lost.pt"
    path.write_bytes(b"\x80\x02cno_such_module\nNet\n)\x81.")
    with pytest.raises(InputFileError, match="importable"):
        read(path, trust_pickle=True)


def test_torchscript_and_exported_programs_name_the_way_on(tmp_path: Path) -> None:
    script, program = tmp_path / "script.pt", tmp_path / "program.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), script)
        torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), program)
    assert f"torch.jit.load('{script}', 'cpu').state_dict()" in refused(script)
    assert f"torch.export.load('{program}').state_dict" in refused(program)


@pytest.mark.parametrize("name", ["", "nowhere.pt", "a\0b", "x" * 5000])
def test_what_is_no_file_is_told_before_anything_is_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputFileError):
        outside_files.require_file(tmp_path / name)
    (tmp_path / "empty").touch()
    with pytest.raises(InputFileError, match="empty"):
        outside_files.require_file(tmp_path / "empty")
    (tmp_path / "full").write_bytes(b"x")
    outside_files.require_file(tmp_path / "full")


def test_zip_bombs_are_refused_before_unpacking(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", b"\0" * (foreign.EXPANSION_SLACK_BYTES + 2**20))
    assert "zip bomb" in refused(path)


def test_tensors_larger_than_their_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.pt"
    with zipfile.ZipFile(path, "w") as archive:
        # torch.Tensor(10**8) has no storage in the file that torch could miss.
        large = b"\x80\x02}X\x01\x00\x00\x00wctorch\nTensor\n(J" + struct.pack("<i", 10**8) + b"tRs."
        archive.writestr("large/data.pkl", large)
        archive.writestr("large/version", b"3\n")
    assert "declares tensors of 400000000 bytes" in refused(path)


def test_a_zip_at_the_end_of_a_pickle_hides_no_code(tmp_path: Path) -> None:
    path, sentinel = tmp_path / "both.pt", tmp_path / "sentinel"
    torch.save({"state_dict": WEIGHTS}, tmp_path / "good.pt")
    save_legacy({"state_dict": WEIGHTS, "payload": Bomb(sentinel)}, path)
    path.write_bytes(path.read_bytes() + (tmp_path / "good.pt").read_bytes())
    assert zipfile.is_zipfile(path)
    assert f"{os.mkdir.__module__}.mkdir" in refused(path)
    assert not sentinel.exists()


def test_safetensors_header_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "long.safetensors"
    path.write_bytes(struct.pack("<Q", foreign.HEADER_LIMIT_BYTES + 1) + b"{" + b" " * 600)
    assert "header" in refused(path)
    path.write_bytes(struct.pack("<Q", 5000) + b"{" + b" " * 600)
    assert "truncated" in refused(path)


def test_tensors_within_sees_shared_and_cyclic_parts_once() -> None:
    tensor = torch.ones(2)
    nested: list[object] = [tensor, {"again": tensor}, (tensor,)]
    nested.append(nested)
    doubled: object = nested
    for _ in range(200):
        doubled = [doubled, doubled]
    assert [id(t) for t in tensors_within(doubled)] == [id(tensor)]


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_mutated_checkpoints_load_or_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "seed"
    if kind == "safetensors":
        safetensors.torch.save_file(WEIGHTS, path)
    else:
        torch.save({"state_dict": WEIGHTS, "epoch": 3}, path, _use_new_zipfile_serialization=kind == "zip")
    original = path.read_bytes()
    chance = random.Random(0)
    messages = []
    for _ in range(250):
        data = bytearray(original)
        for _ in range(chance.choice((1, 1, 4, 30))):
            damage(data, chance.randrange(len(data)), chance)
        path.write_bytes(data)
        try:
            read(path)
        except InputFileError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert not any("\n" in message for message in messages)
    assert list(tmp_path.iterdir()) == [path]


def whole_members(path: Path) -> list[tuple[zipfile.ZipInfo, int]]:
    """Return the members of a zip that hold bytes, and where in the file these begin."""
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if member.file_size]
    starts = [struct.unpack_from("<HH", data, member.header_offset + 26) for member in members]
    return [(m, m.header_offset + 30 + sum(lengths)) for m, lengths in zip(members, starts, strict=True)]


@pytest.mark.parametrize("trust", [False, True, None])
def test_a_bit_that_fell_over_in_any_member_of_a_zip_is_found(tmp_path: Path, trust: bool | None) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"state_dict": {**WEIGHTS, "fc.weight": torch.ones(300, 300)}, "epoch": 3}, path)
    original, members = path.read_bytes(), whole_members(path)
    assert len(members) >= 7
    for member, start in members:
        for place in (start, start + member.file_size // 2, start + member.file_size - 1):
            data = bytearray(original)
            data[place] ^= 0x10
            path.write_bytes(data)
            with pytest.raises(InputFileError, match="does not match its checksum") as caught:
                read(path, trust_pickle=trust)
            assert member.filename in str(caught.value)


def test_a_packed_zip_is_held_against_its_checksums_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "PIECE_BYTES", 7)
    stored, packed = tmp_path / "stored.pt", tmp_path / "packed.pt"
    torch.save(WEIGHTS, stored)
    with zipfile.ZipFile(stored) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in source.namelist():
            archive.writestr(name, source.read(name))
    original = packed.read_bytes()
    assert torch.equal(read(packed)["conv.weight"], WEIGHTS["conv.weight"])
    for member, start in whole_members(packed):
        packed.write_bytes(original[:start] + bytes([original[start] ^ 0x20]) + original[start + 1 :])
        assert member.filename in refused(packed)


def test_a_zip_that_torch_wrote_without_checksums_is_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(WEIGHTS, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert {member.CRC for member, _ in whole_members(path)} == {0}
    assert torch.equal(read(path)["conv.weight"], WEIGHTS["conv.weight"])


def test_two_archives_in_one_file_are_refused(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "good.pt")
    data = (tmp_path / "good.pt").read_bytes()
    (tmp_path / "both.pt").write_bytes(bytes(data) + data)
    with pytest.raises(InputFileError, match="in front of its zip archive"):
        read(tmp_path / "both.pt")


def test_a_member_that_torch_would_take_for_a_folder_is_refused(tmp_path: Path) -> None:
    """One bit of its attributes: the data match their checksum, and torch reads none of them."""
    path = tmp_path / "weights.pt"
    torch.save(WEIGHTS, path)
    original = path.read_bytes()
    (member, _), *_ = [(m, s) for m, s in whole_members(path) if "/data/" in m.filename]
    entry = original.rindex(b"PK\x01\x02", 0, original.rindex(member.filename.encode()))
    path.write_bytes(original[: entry + 38] + bytes([original[entry + 38] | 0x10]) + original[entry + 39 :])
    assert member.filename in refused(path)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"\x08\x07\x12\x07pytorch\x1a\x031.9", "an ONNX file"),
        (b"\x08\x03\x1a\x06keras2", "an ONNX file"),
        (b"\x08\x0a:\x80\x01graph", "an ONNX file"),
        (b"\x1c\x00\x00\x00TFL3\x14\x00", "a TensorFlow Lite file"),
        (b"\x08\x01\x12\xa0\x4b\x0a", "a TensorFlow SavedModel"),
        (b"\x0a\x30\x0a\x05input\x12\x0bPlaceholder", "a TensorFlow"),
        (b"\x89HDF\r\n\x1a\n", "Keras"),
        (b"GGUF\x03\x00", "GGUF"),
        (b"\x93NUMPY\x01\x00", "NumPy"),
        (b"x\x9c\xed\x9d", "joblib"),
        (b'{\n "metadata": {},\n "weight_map": {', "an index of several .safetensors files"),
        (b"\x00\x01\x02\x03\x04\x05\x06\x07", "in an unknown format"),
        (b"\x08\xff\xff\xff\xff\xff\xff", "in an unknown format"),
    ],
)
def test_files_of_others_are_called_by_their_names(tmp_path: Path, head: bytes, name: str) -> None:
    path = tmp_path / "model"
    path.write_bytes(head + bytes(600))
    assert name in refused(path)


@pytest.mark.parametrize(
    ("member", "name"),
    [
        ("model.weights.h5", "a Keras file"),
        ("MAR-INF/MANIFEST.json", "a TorchServe archive"),
        ("net/saved_model.pb", "a packed TensorFlow SavedModel"),
        ("weights/model.safetensors", "a zip archive of .safetensors files; unpack it first"),
        ("notes.txt", "is a zip archive, not a checkpoint"),
    ],
)
def test_archives_of_others_are_called_by_their_names(tmp_path: Path, member: str, name: str) -> None:
    path = tmp_path / "model.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, b"x")
    assert name in refused(path)


@pytest.mark.parametrize("module", ["sklearn.ensemble._forest", "joblib.numpy_pickle", "xgboost.core"])
def test_a_pickle_of_another_library_is_called_so(tmp_path: Path, module: str) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(b"\x80\x02c" + module.encode() + b"\nModel\n)\x81.")
    message = refused(path)
    assert "not of PyTorch's" in message
    assert "--trust-pickle" not in message
