from __future__ import annotations

from pathlib import Path

import pytest
import torch

import toy

torch.set_num_threads(1)  # toy networks are too small for two


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_teacher(tmp_path_factory.mktemp("teacher") / "teacher.pt")
