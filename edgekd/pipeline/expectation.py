"""How near students came to their teachers in edgekd's own measurements, for a distillation like the one planned.

The file beside this one is written by docs/studies/recovery from its runs; nothing is extrapolated from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

FILE = "expectations.json"
_MOST_TIMES = 4.0
"""A budget that is farther off than this, in either direction, says nothing of the one planned."""


class Expectation(BaseModel):
    """What students of one pair and budget reached: the median of its runs, last checkpoint, test images."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    teacher: str
    student: str
    images: str
    """The task, as a reader knows it."""
    input_shape: tuple[int, int, int]
    starts_from_teacher: bool
    macs: Annotated[float, Field(gt=0)]
    """Multiply-accumulates of the whole run, all networks."""
    share: Annotated[float, Field(ge=0)]
    """Accuracy of the student over that of its teacher."""
    runs: Annotated[int, Field(ge=1)]

    def sentence(self) -> str:
        """Say it in one line."""
        start = "from the teacher's layers" if self.starts_from_teacher else "from random weights"
        runs = "one run" if self.runs == 1 else f"{self.runs} runs"
        return (
            f"measured nearest: {self.teacher} to {self.student} on {self.images}, {start}, "
            f"kept {self.share:.0%} of the teacher's accuracy at {tera(self.macs)} TMAC ({runs})"
        )


_TABLE = TypeAdapter(tuple[Expectation, ...])


@cache
def measured() -> tuple[Expectation, ...]:
    """Return all that the package knows."""
    return _TABLE.validate_json((files(__package__) / FILE).read_bytes())


def to_json(expectations: Iterable[Expectation]) -> str:
    """Return the text of the file, for the study that writes it."""
    return _TABLE.dump_json(tuple(expectations), indent=1).decode() + "\n"


def nearest(
    macs: float, input_shape: tuple[int, ...], *, starts_from_teacher: bool, known: Iterable[Expectation] | None = None
) -> Expectation | None:
    """Return the measurement nearest to a planned run, None where nothing like it was measured.

    Alike are students with the same start on images with at most 4 times the pixels or a fourth. Of those the nearest
    budget counts, for images of one size, since a multiply-accumulate buys less where images are larger.
    """
    pixels = math.prod(input_shape[1:])

    def distance(one: Expectation) -> float:
        scale = math.prod(one.input_shape[1:]) / pixels
        return max(_times(scale), _times(one.macs / scale / macs) if macs else math.inf)

    alike = [
        one
        for one in (measured() if known is None else known)
        if one.starts_from_teacher == starts_from_teacher and distance(one) <= _MOST_TIMES
    ]
    return min(alike, key=distance, default=None)


def _times(ratio: float) -> float:
    return max(ratio, 1 / ratio)


def tera(macs: float) -> str:
    """Return multiply-accumulates in tera, two digits."""
    return f"{macs / 1e12:.2g}"
