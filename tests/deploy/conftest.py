"""One small network, its float32 file and its activation ranges, made once for this room's tests."""

from __future__ import annotations

import pytest
from small_nets import Student


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Student:
    return Student.exported(tmp_path_factory.mktemp("student"))
