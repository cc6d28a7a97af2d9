from __future__ import annotations

import pytest

from edgekd.errors import UsageError
from edgekd.models import stems


@pytest.mark.parametrize(("text", "shape"), [("3x32x32", (3, 32, 32)), ("1X28x14", (1, 28, 14))])
def test_a_shape_is_parsed(text: str, shape: tuple[int, int, int]) -> None:
    assert stems.parse_shape(text) == shape


@pytest.mark.parametrize(
    "text", ["32", "32x32", "3x32x32x1", "3x0x32", "axbxc", "3x-1x32", "3x 32x32", "", "3x²x32", f"3x32x{'1' * 5000}"]
)
def test_a_shape_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="CHANNELSxHEIGHTxWIDTH"):
        stems.parse_shape(text)


def test_an_image_that_no_memory_holds_is_refused() -> None:
    assert stems.parse_shape("3x4096x4096") == (3, 4096, 4096)
    with pytest.raises(UsageError, match="larger images"):
        stems.parse_shape("3x300000x300000")
