"""What `student.pyz` does with the place it is to write to; the rest runs on a real bundle in tests/cli."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.agent import bundle
from edgekd.agent.refusal import RefusedError

DEEP = "[" * 5000 + "]" * 5000


@pytest.mark.parametrize("text", ["mine", DEEP, "{}", "[]"], ids=["text", "nested", "empty", "list"])
def test_a_file_that_holds_no_results_is_not_overwritten(text: str, tmp_path: Path) -> None:
    output = tmp_path / "r.json"
    output.write_text(text)
    with pytest.raises(RefusedError, match="holds no results of edgekd"):
        bundle._recorded(bundle._parser().parse_args(["check", "--output", str(output)]))
    assert output.read_text() == text


@pytest.mark.parametrize("place", ["/dev/zero", "/dev/full"])
def test_a_device_is_not_read_without_end(place: str) -> None:
    assert not bundle._is_results(Path(place))


def test_what_a_killed_process_left_goes_with_the_next(tmp_path: Path) -> None:
    """Here the next one fails, too, since the tests are no bundle: nothing is left of either."""
    mine = tmp_path / "mine"
    mine.write_text("mine")
    (tmp_path / ".tmp-r.json").symlink_to(mine)
    with pytest.raises(Exception, match=r"."):
        bundle._recorded(bundle._parser().parse_args(["check", "--output", str(tmp_path / "r.json")]))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert mine.read_text() == "mine"
