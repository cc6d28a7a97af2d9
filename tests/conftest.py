from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

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
