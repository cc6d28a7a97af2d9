"""What a plan tells of runs like it is what was measured, or nothing."""

from __future__ import annotations

import pytest

from edgekd.pipeline.expectation import Expectation, measured, nearest, to_json


def of(macs: float, *, alike: bool = False, side: int = 32, share: float = 0.8) -> Expectation:
    """Return a measurement."""
    return Expectation(
        teacher="resnet20",
        student="resnet8",
        images="CIFAR-10",
        input_shape=(3, side, side),
        starts_from_teacher=alike,
        macs=macs,
        share=share,
        runs=3,
    )


KNOWN = [of(13e12, alike=True), of(15e12), of(60e12), of(1e12, side=16)]


@pytest.mark.parametrize(
    ("macs", "side", "alike", "expected"),
    [
        (10e12, 32, True, KNOWN[0]),
        (10e12, 32, False, KNOWN[1]),
        (40e12, 32, False, KNOWN[2]),
        (1.2e12, 16, False, KNOWN[3]),
        (1e12, 32, True, None),  # far less than was ever measured
        (1e15, 32, False, None),
        (700e12, 224, False, None),  # other images
        (0.0, 32, False, None),
    ],
)
def test_the_nearest_budget_of_the_same_start_counts(
    macs: float, side: int, alike: bool, expected: Expectation | None
) -> None:
    assert nearest(macs, (3, side, side), starts_from_teacher=alike, known=KNOWN) == expected


def test_a_measurement_is_told_in_one_line() -> None:
    assert KNOWN[0].sentence() == (
        "measured nearest: resnet20 to resnet8 on CIFAR-10, from the teacher's layers, kept 80% of the teacher's "
        "accuracy at 13 TMAC (3 runs)"
    )


def test_what_the_study_writes_is_what_the_package_reads() -> None:
    assert to_json(measured()).startswith("[")
    assert all(0 < one.share <= 1.05 for one in measured())
