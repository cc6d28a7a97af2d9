"""events.jsonl however long it is: what is held at a time, and what is read of it, do not grow with its lines."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekd.errors import InputFileError
from edgekd.run import curve
from edgekd.run.cards.events import AccuracyEvent, GeneratorEvent, TrainEvent
from edgekd.run.directory import RunDir

LINES = 20_000


def line(kind: str, step: int, **values: Any) -> str:
    return json.dumps({"kind": kind, "step": step, **values}) + "\n"


@pytest.fixture
def long(tmp_path: Path) -> RunDir:
    with (tmp_path / "events.jsonl").open("w") as stream:
        stream.write(line("generator", 0, coverage=0.5))
        stream.writelines(line("train", step, student=1 / (1 + step)) for step in range(LINES))
    return RunDir(tmp_path)


def peak_bytes(work: Callable[[], object]) -> int:
    work()  # what is imported or built once
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_last_event_is_read_from_the_end(long: RunDir) -> None:
    last = long.last_logged(TrainEvent)
    assert last is not None
    assert last.step == LINES - 1
    first = long.last_logged(GeneratorEvent)
    assert first is not None
    assert first.coverage == 0.5, "although it is the first line"
    assert long.last_logged(AccuracyEvent) is None
    assert peak_bytes(lambda: long.last_logged(TrainEvent)) < 1e6
    long.events_file.write_bytes(b"garbage\n" + long.events_file.read_bytes())
    last = long.last_logged(TrainEvent)
    assert last is not None, "nobody went there"


@pytest.mark.parametrize("torn", ["", "{", line("train", 7)[:-1], "x" * 70_000, "\0"])
@pytest.mark.parametrize("whole", ["", line("train", 3), line("train", 3) + line("reinit", 4, reason="ü" * 70_000)])
def test_a_torn_last_line_is_no_last_event(whole: str, torn: str, tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.events_file.write_text(whole + torn)
    last = run.last_logged(TrainEvent)
    assert (None if last is None else last.step) == (3 if whole else None)
    assert [event.step for event in run.logged(TrainEvent)] == ([3] if whole else [])


@pytest.mark.parametrize("damage", ["garbage\n", "[1]\n", "\n", "x" * 2**21])
def test_a_damaged_line_is_told_whichever_kind_is_read(damage: str, tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.events_file.write_text(line("train", 1) + damage)
    for read in (lambda: list(run.logged(AccuracyEvent)), lambda: run.last_logged(TrainEvent), run.events):
        with pytest.raises(InputFileError, match="holds a damaged line"):
            read()


def test_the_kind_is_what_the_line_means_however_it_is_written(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.events_file.write_text('{"kind": "tr\\u0061in", "step": 5}\n{"kind": "x", "step": 6, "of": "train"}\n')
    assert [event.step for event in run.logged(TrainEvent)] == [5]


def test_a_curve_of_any_length_is_read_in_bounded_memory(long: RunDir) -> None:
    def picture() -> list[TrainEvent]:
        return curve.thinned(long.logged(TrainEvent), ("student",))

    assert len(picture()) <= 2 * curve.SPANS + 128
    assert peak_bytes(picture) < 20e6


@pytest.mark.parametrize("length", [0, 1, 2, curve.SPANS, curve.SPANS + 1, 7777])
def test_a_thinned_curve_keeps_its_ends_and_extremes(length: int) -> None:
    values = [(step * 7919) % 10007 / 10007 for step in range(length)]
    points = [TrainEvent(step=step, student=value) for step, value in enumerate(values)]
    shown = curve.thinned(iter(points), ("student", "agreement_novel"))
    if length <= curve.SPANS:
        assert shown == points
        return
    assert (shown[0], shown[-1]) == (points[0], points[-1])
    steps = [point.step for point in shown]
    assert steps == sorted(set(steps))
    assert {values.index(min(values)), values.index(max(values))} <= set(steps)
    widest = max(after - before for before, after in itertools.pairwise(steps))
    assert widest <= 4 * -(-length // curve.SPANS)
