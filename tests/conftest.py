from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import toy
from edgekd import trust

# Toy networks are too small for two threads, and two tests run at a time, whose processes would wait for each other.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what edgekd remembers of its user out of the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture
def approve() -> Iterator[Callable[..., None]]:
    """Approve of code as a command that names it does."""
    with trust.session():
        yield trust.confirm


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_teacher(tmp_path_factory.mktemp("teacher") / "teacher.pt")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five grey pictures for each of the toy teacher's four classes."""
    root = tmp_path_factory.mktemp("data") / "photos"
    noise = np.random.default_rng(0)
    for label in range(toy.CLASSES):
        (root / f"class{label}").mkdir(parents=True)
        for index in range(5):
            pixels = noise.integers(0, 256, toy.SHAPE[1:], dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"class{label}" / f"{index}.png")
    return root
