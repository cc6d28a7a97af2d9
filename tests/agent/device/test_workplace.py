"""The folder of edgekd on a device: what is forgotten there is removed, what is under way or for good is not."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from edgekd.agent.device.workplace import FORGOTTEN_S, Workplace
from edgekd.agent.refusal import RefusedError


def test_work_that_nobody_took_up_goes_with_the_next_hold(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    old, new = place.work("old"), place.work("new")
    place.engines.mkdir()
    (old / "net.onnx").write_bytes(b"weights")
    for folder in (old, place.engines):
        os.utime(folder, (0, time.time() - FORGOTTEN_S - 60))
    os.utime(new, (0, time.time() - FORGOTTEN_S + 60))
    place.hold()
    assert sorted(path.name for path in place.root.iterdir()) == ["engines", "lock", new.name]
    place.release()


def test_who_does_not_hold_the_device_removes_nothing(tmp_path: Path) -> None:
    first, second = Workplace(tmp_path), Workplace(tmp_path)
    first.hold()
    old = first.work("old")
    os.utime(old, (0, 0))
    with pytest.raises(RefusedError, match="another bench is under way"):
        second.hold()
    assert old.is_dir()
    first.release()
