"""Say in one sentence what a table of latencies means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgekd.bench.rows import Row, SkippedRow

# Two processes of the very same file may differ by this much: memory lies where it falls.
WORTH_NAMING = 0.02


def verdict(
    rows: Sequence[Row | SkippedRow],
    accuracies: Mapping[str, float] | None = None,
    agreements: Mapping[str, float] | None = None,
) -> str:
    """Return the verdict on the rows of one comparison: its fastest artefact that is no reference, and a slower INT8.

    Args:
        rows: the rows of one comparison.
        accuracies: accuracy on real images, 0 to 1, by artefact name, where it was evaluated.
        agreements: share of synthetic samples with the reference's answer, by artefact name.
    """
    measured = [row for row in rows if isinstance(row, Row)]
    if not measured:
        return "Nothing was timed" + "".join(f"; {row.artefact}: {row.skipped}" for row in _skipped(rows)) + "."
    compared = [row for row in measured if row.speedup is not None]
    if not compared:
        return _alone(measured[0])
    best = max(compared, key=lambda row: row.speedup or 0.0)
    reference = next(row for row in measured if (row.artefact, row.runtime) == (best.reference, best.runtime))
    sentence = _speed(best, reference)
    cost = _cost(best, reference, accuracies or {}, agreements or {})
    doubt = "" if best.stable and reference.stable else " (times had not settled; measure again)"
    return sentence + (f", {cost}" if cost and _clearly_faster(best) else "") + _slower_int8(compared, best) + doubt


def _skipped(rows: Sequence[Row | SkippedRow]) -> list[SkippedRow]:
    return [row for row in rows if isinstance(row, SkippedRow)]


def _alone(row: Row) -> str:
    threads = "1 thread" if row.threads == 1 else f"{row.threads} threads"
    times = f"{row.p50_ms:.3g} ms at p50 and {row.p99_ms:.3g} ms at p99"
    return f"{_label(row)} takes {times} on {row.runtime}, batch {row.batch}, {threads}"


def _interval(row: Row) -> tuple[float, float, float]:
    """Speedup, low and high of a row that has been compared."""
    assert row.speedup is not None
    assert row.speedup_low is not None
    assert row.speedup_high is not None
    return row.speedup, row.speedup_low, row.speedup_high


def _clear(row: Row) -> bool:
    speedup, low, high = _interval(row)
    return not low <= 1 <= high and abs(speedup - 1) >= WORTH_NAMING


def _clearly_faster(row: Row) -> bool:
    return _clear(row) and _interval(row)[0] > 1


def _speed(row: Row, reference: Row) -> str:
    speedup, low, high = _interval(row)
    name, other = _label(row), _label(reference)
    if not _clear(row):
        return f"No clear difference between {name} and {other} at p50 ({low:.2f}× to {high:.2f}×)"
    if speedup > 1:
        return f"{name} is {_times(speedup)}× faster than {other} at p50"
    times = f"{row.p50_ms:.3g} ms against {reference.p50_ms:.3g} ms at p50"
    return f"{name} is slower here: {times}; ship {other}"


def _slower_int8(compared: Sequence[Row], best: Row) -> str:
    """A clause about the fastest INT8 row where another precision beats it: who quantised wants to know."""
    quantized = [row for row in compared if row.kind.startswith("int8")]
    if not quantized or best in quantized:
        return ""
    row = min(quantized, key=lambda row: row.p50_ms)
    if row.p50_ms < best.p50_ms * (1 + WORTH_NAMING):
        return ""
    return f"; {_label(row)} is slower here: {row.p50_ms:.3g} ms against {best.p50_ms:.3g} ms"


def _times(speedup: float) -> str:
    return f"{speedup:.2f}" if speedup < 1.1 else f"{speedup:.1f}"


def _label(row: Row) -> str:
    """FP32, FP16 or INT8, with what is wrong about the name, or the artefact's own name."""
    if row.kind == "any":
        return row.artefact
    label = row.kind.partition("-")[0].upper()
    return f"{label} (not really: {row.integer_share:.0%} of its layers)" if row.not_really_int8 else label


def _cost(row: Row, reference: Row, accuracies: Mapping[str, float], agreements: Mapping[str, float]) -> str:
    """What the speed costs: points of accuracy, or other answers on synthetic samples, or nothing known."""
    name, other = _file(row), _file(reference)
    if name in accuracies and other in accuracies:
        points = round(100 * (accuracies[name] - accuracies[other]), 1)
        if points == 0:
            return "equally accurate"
        word = "more" if points > 0 else "less"
        return f"{abs(points):.1f} {'point' if abs(points) <= 1 else 'points'} {word} accurate"
    if name in agreements:
        percent = round(100 * (1 - agreements[name]), 1)
        return f"{percent:.1f} % other answers on synthetic samples" if percent else "same answers on synthetic samples"
    return ""


def _file(row: Row) -> str:
    """The exported file of a row's precision: for an engine that --fp16 makes of the FP32 file, the FP16 one."""
    file, flag, _ = row.artefact.partition(" --")
    return file.replace(".fp32.", f".{row.kind}.") if flag else file
