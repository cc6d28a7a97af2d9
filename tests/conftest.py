from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import toy

# Toy networks are too small for two threads, and two tests run at a time, whose processes would wait for each other.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_teacher(tmp_path_factory.mktemp("teacher") / "teacher.pt")
