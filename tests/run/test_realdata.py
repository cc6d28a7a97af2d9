"""Real images: sizes, channels and batches, and one clear error for each way a file can be wrong."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.v2 import functional as transforms

from edgekd.errors import InputFileError, UsageError
from edgekd.run import realdata
from edgekd.run.image_folder import open_folder
from edgekd.run.realdata import RealImages, read_image


def picture(path: Path, *, size: tuple[int, int] = (8, 8), seed: int = 0, mode: str = "RGB") -> np.ndarray:
    """Write a smooth random picture of (width, height) and return its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).convert(mode)
    image.save(path)
    return np.array(image)


def folders(root: Path, *names: str) -> Path:
    for index, name in enumerate(names):
        picture(root / name / f"{index}.png", seed=index)
    return root


def opened_with_a_warning(root: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a picture that Pillow opens and has something to say about."""
    file = root / "a" / "x.png"
    pixels = picture(file)
    if case == "transparency":
        Image.fromarray(pixels).convert("P").save(file, transparency=bytes(range(200)))
    elif case == "exif":
        file.unlink()
        file = file.with_suffix(".jpg")
        Image.fromarray(pixels).save(file, exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\x01")
    else:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)
    return file


# Pixels


@pytest.mark.parametrize("case", ["transparency", "exif", "large"])
def test_what_pillow_says_of_a_picture_that_it_reads_is_told_to_nobody(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = opened_with_a_warning(tmp_path, case, monkeypatch)
    assert read_image(file, (3, 8, 8)).shape == (3, 8, 8)
    folder = open_folder(tmp_path, classes=1, names=None)
    assert RealImages(folder, (3, 8, 8), mean=(0.0,), std=(1.0,)).own_size() == (8, 8)


def test_an_orientation_of_exif_is_passed_over_as_training_does(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "x.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    for name in ("x.png", "turned.png"):
        found = read_image(tmp_path / name, (3, 8, 8)).permute(1, 2, 0).numpy()
        np.testing.assert_allclose(found * 255, pixels, atol=1e-3)


def test_pixels_come_as_fractions_with_the_channels_of_the_teacher(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "x.png")
    color = read_image(tmp_path / "x.png", (3, 8, 8))
    assert torch.equal(color, torch.from_numpy(pixels).permute(2, 0, 1).float() / 255)
    gray = read_image(tmp_path / "x.png", (1, 8, 8))
    assert gray.shape == (1, 8, 8)
    luma = (pixels @ np.array([0.299, 0.587, 0.114])) / 255
    assert np.abs(gray[0].numpy() - luma).max() < 1.5 / 255


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_other_modes_are_converted(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    picture(path, mode=mode)
    assert read_image(path, (3, 8, 8)).shape == (3, 8, 8)
    assert read_image(path, (1, 8, 8)).shape == (1, 8, 8)


def test_a_gray_picture_has_three_equal_channels(tmp_path: Path) -> None:
    picture(tmp_path / "x.png", mode="L")
    x = read_image(tmp_path / "x.png", (3, 8, 8))
    assert torch.equal(x[0], x[1])
    assert torch.equal(x[0], x[2])


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
@pytest.mark.parametrize("channels", [1, 3])
def test_gray_of_16_bits_is_scaled_not_clipped(suffix: str, channels: int, tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / f"deep.{suffix}")
    found = read_image(tmp_path / f"deep.{suffix}", (channels, 8, 8))
    assert found.shape == (channels, 8, 8)
    np.testing.assert_allclose(found.numpy(), np.stack([values / 65535] * channels), atol=0.51 / 255)


def test_a_tiff_of_12_bits_is_scaled_from_12_bits(tmp_path: Path) -> None:
    values = np.linspace(0, 4095, 64).astype(np.uint16).reshape(8, 8)
    packed = np.unpackbits(values.astype(">u2").view(np.uint8).reshape(-1, 2), axis=1)[:, 4:]
    (tmp_path / "twelve.tif").write_bytes(_tiff_of_12_bits(np.packbits(packed).tobytes(), side=8))
    found = read_image(tmp_path / "twelve.tif", (1, 8, 8))
    np.testing.assert_allclose(found.numpy()[0], values / 4095, atol=0.51 / 255)


def _tiff_of_12_bits(pixels: bytes, side: int) -> bytes:
    """A grey TIFF of one strip; Pillow writes none of 12 bits."""
    tags = {256: side, 257: side, 258: 12, 259: 1, 262: 1, 273: 122, 277: 1, 278: side, 279: len(pixels)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4)
    return head.ljust(122, b"\0") + pixels


@pytest.mark.parametrize(
    "values", [np.full((4, 4), 0.5, np.float32), *(np.full((4, 4), value, np.int32) for value in (-3, 200, 60_000))]
)
def test_pixels_of_unknown_range_are_refused(values: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(values).save(tmp_path / "odd.tif")
    with pytest.raises(InputFileError, match=r"odd\.tif cannot be decoded"):
        read_image(tmp_path / "odd.tif", (1, 4, 4))


def test_another_number_of_channels_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "x.png")
    with pytest.raises(UsageError, match="1 or 3 channels, not for 4"):
        read_image(tmp_path / "x.png", (4, 8, 8))


def test_small_inputs_are_resized_straight_to_size(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "x.png", size=(20, 10))
    x = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    expected = transforms.resize(x, [6, 8], antialias=True)
    assert torch.equal(read_image(tmp_path / "x.png", (3, 6, 8)), expected)
    assert realdata.describe_transform((3, 6, 8)) == "bilinear with antialias to 6x8"


@pytest.mark.parametrize("size", [(400, 200), (200, 400), (100, 150)])
def test_large_inputs_are_resized_by_the_shorter_side_and_cropped(size: tuple[int, int], tmp_path: Path) -> None:
    pixels = picture(tmp_path / "x.png", size=size)
    x = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    height, width = (round(side * 160 / min(size)) for side in reversed(size))  # 140 / 0.875 = 160
    resized = transforms.resize(x, [height, width], antialias=True)
    top, left = round((height - 140) / 2), round((width - 140) / 2)
    found = read_image(tmp_path / "x.png", (3, 140, 140))
    assert torch.allclose(found, resized[:, top : top + 140, left : left + 140])
    expected = "shorter side to 160, bilinear with antialias, centre crop 140x140"
    assert realdata.describe_transform((3, 140, 140)) == expected


def test_an_image_of_the_right_size_is_taken_as_it_is_even_when_large(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "x.png", size=(140, 140))
    found = read_image(tmp_path / "x.png", (3, 140, 140))
    assert torch.equal(found, torch.from_numpy(pixels).permute(2, 0, 1).float() / 255)


@pytest.mark.parametrize("damage", ["text", "truncated", "empty", "gone"])
def test_a_damaged_image_is_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    picture(path, size=(64, 64))
    content = {"text": b"hello", "truncated": path.read_bytes()[:-400], "empty": b""}
    path.unlink()
    if damage != "gone":
        path.write_bytes(content[damage])
    with pytest.raises(InputFileError, match=r"broken\.png cannot be decoded"):
        read_image(path, (3, 64, 64))


# Batches and accuracy


def images(root: Path, *, count: int = 5) -> RealImages:
    for label in range(2):
        for index in range(count):
            picture(root / str(label) / f"{index:02d}.png", seed=10 * label + index)
    return RealImages(open_folder(root, classes=2, names=None), (3, 8, 8), mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 2.0))


def test_an_unknown_normalization_is_refused_with_the_way_to_set_it(tmp_path: Path) -> None:
    folder = open_folder(folders(tmp_path, "a"), classes=1, names=None)
    for mean, std in ((None, None), ((0.0,), None), (None, (1.0,))):
        with pytest.raises(UsageError, match="--normalize"):
            RealImages(folder, (3, 8, 8), mean=mean, std=std)


@pytest.mark.parametrize("cached", [True, False])
def test_batches_are_normalized_and_in_order(cached: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not cached:
        monkeypatch.setattr(realdata, "CACHE_BYTES", 0)
    found = images(tmp_path)
    batches = list(found.batches(size=4))
    assert [len(x) for x, _ in batches] == [4, 4, 2]
    assert torch.cat([labels for _, labels in batches]).tolist() == [0] * 5 + [1] * 5
    mean, std = torch.tensor([0.5, 0.25, 0.0])[:, None, None], torch.tensor([0.5, 1.0, 2.0])[:, None, None]
    expected = torch.stack([(read_image(file, (3, 8, 8)) - mean) / std for file in found.folder.files])
    assert torch.equal(torch.cat([x for x, _ in batches]), expected)


def test_accuracy_is_the_share_of_right_answers(tmp_path: Path) -> None:
    found = images(tmp_path)
    assert found.share_right(found.answers(lambda x: torch.tensor([[1.0, 0.0]]).repeat(len(x), 1))) == 0.5
    right = nn.functional.one_hot(found.folder.labels, 2).float()
    assert found.share_right(found.answers(lambda x: right)) == 1.0
    assert len(found) == 10


@pytest.mark.parametrize("training", [True, False])
def test_a_network_is_measured_in_eval_mode_and_left_as_it_was(training: bool, tmp_path: Path) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert not self.training
            assert not torch.is_grad_enabled()
            logits: torch.Tensor = self.norm(x).mean((2, 3))[:, :2]
            return logits

    network = Network().train(training)
    found = images(tmp_path).network_accuracy(network)
    assert 0 <= found <= 1
    assert network.training is training
    assert int(network.get_buffer("norm.num_batches_tracked")) == 0


def test_a_png_that_is_damaged_further_on_is_named(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300), dtype=np.uint8)).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    place = data.index(b"IDAT", data.index(b"IDAT") + 4)
    data[place : place + 4] = b"\xff\xfe\xfd\xfc"
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(InputFileError, match=r"a\.png cannot be decoded"):
        realdata.read_image(tmp_path / "a.png", (1, 300, 300))


def test_only_the_message_tells_of_a_damaged_tiff(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """libtiff writes to the descriptor of stderr itself."""
    file = tmp_path / "x.tif"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(file, compression="tiff_lzw")
    data = bytearray(file.read_bytes())
    data[200:1200] = b"\xff" * 1000
    file.write_bytes(data)
    with pytest.raises(InputFileError, match=r"x\.tif cannot be decoded as an image"):
        read_image(file, (1, 64, 64))
    assert capfd.readouterr() == ("", "")


def test_a_picture_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow decides by content: PostScript in a .jpg would go to the gs of the PATH."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "a.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n")
    with pytest.raises(InputFileError, match="cannot be decoded as an image"):
        realdata.read_image(tmp_path / "a.jpg", (1, 8, 8))
    assert not (tmp_path / "ran").exists()
