"""The verdict: one sentence that says what a table of latencies means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgekd.bench.rows import Row, SkippedRow

MIN_DIFFERENCE = 0.02
"""Share by which latencies must differ: two processes that run the same file may differ by less."""


def verdict(
    rows: Sequence[Row | SkippedRow],
    accuracies: Mapping[str, float] | None = None,
    agreements: Mapping[str, float] | None = None,
) -> str:
    """Compare the fastest artefact that is no reference with its reference, and name an INT8 file that is slower.

    Args:
        rows: the rows of one comparison.
        accuracies: accuracy on real images, 0 to 1, by file name, where it was evaluated.
        agreements: agreement with the reference, 0 to 1, by file name.
    """
    timed = [row for row in rows if isinstance(row, Row)]
    if not timed:
        return "Nothing was timed" + "".join(f"; {row.artefact}: {row.skipped}" for row in _skipped(rows)) + "."
    compared = [row for row in timed if row.speedup is not None]
    if not compared:
        return _latency_sentence(timed[0])
    fastest = max(compared, key=lambda row: row.speedup or 0.0)
    reference_row = next(row for row in timed if (row.artefact, row.runtime) == (fastest.reference, fastest.runtime))
    sentence = _speed_sentence(fastest, reference_row)
    answers = _answers_clause(fastest, reference_row, accuracies or {}, agreements or {})
    if answers and _differs(fastest) and _speedup_interval(fastest)[0] > 1:
        sentence += f", {answers}"
    warning = "" if fastest.stable and reference_row.stable else " (times had not settled; measure again)"
    return sentence + _slower_int8_clause(compared, fastest) + warning


def _skipped(rows: Sequence[Row | SkippedRow]) -> list[SkippedRow]:
    return [row for row in rows if isinstance(row, SkippedRow)]


def _latency_sentence(row: Row) -> str:
    threads = "1 thread" if row.threads == 1 else f"{row.threads} threads"
    times = f"{row.p50_ms:.3g} ms at p50 and {row.p99_ms:.3g} ms at p99"
    return f"{_label(row)} takes {times} on {row.runtime}, batch {row.batch}, {threads}"


def _speedup_interval(row: Row) -> tuple[float, float, float]:
    """The speedup of a row that has a reference, and the ends of its interval: (speedup, low, high)."""
    assert row.speedup is not None
    assert row.speedup_low is not None
    assert row.speedup_high is not None
    return row.speedup, row.speedup_low, row.speedup_high


def _differs(row: Row) -> bool:
    """Whether a row is faster or slower than its reference: by `MIN_DIFFERENCE`, and beyond chance."""
    speedup, low, high = _speedup_interval(row)
    return not low <= 1 <= high and abs(speedup - 1) >= MIN_DIFFERENCE


def _speed_sentence(row: Row, reference_row: Row) -> str:
    speedup, low, high = _speedup_interval(row)
    name, reference = _label(row), _label(reference_row)
    if not _differs(row):
        return f"No clear difference between {name} and {reference} at p50 ({low:.2f}× to {high:.2f}×)"
    if speedup > 1:
        return f"{name} is {_factor(speedup)}× faster than {reference} at p50"
    times = f"{row.p50_ms:.3g} ms against {reference_row.p50_ms:.3g} ms at p50"
    return f"{name} is slower here: {times}; ship {reference}"


def _slower_int8_clause(compared: Sequence[Row], fastest: Row) -> str:
    """Name the fastest INT8 artefact where another precision is clearly faster; else an empty string."""
    quantized = [row for row in compared if row.kind.startswith("int8")]
    if not quantized or fastest in quantized:
        return ""
    row = min(quantized, key=lambda row: row.p50_ms)
    if row.p50_ms < fastest.p50_ms * (1 + MIN_DIFFERENCE):
        return ""
    return f"; {_label(row)} is slower here: {row.p50_ms:.3g} ms against {fastest.p50_ms:.3g} ms"


def _factor(speedup: float) -> str:
    return f"{speedup:.2f}" if speedup < 1.1 else f"{speedup:.1f}"


def _label(row: Row) -> str:
    """FP32, FP16 or INT8, or the artefact's name; for INT8 that ran in float, with the share of nodes in integers."""
    if row.kind == "any":
        return row.artefact
    label = row.kind.partition("-")[0].upper()
    return f"{label} (not really: {row.integer_share:.0%} of its layers)" if row.int8_in_name_only else label


def _answers_clause(
    row: Row, reference_row: Row, accuracies: Mapping[str, float], agreements: Mapping[str, float]
) -> str:
    """Say how the answers differ: by points of accuracy, else on synthetic samples; empty where neither is known."""
    file, reference_file = _exported_file(row), _exported_file(reference_row)
    if file in accuracies and reference_file in accuracies:
        points = round(100 * (accuracies[file] - accuracies[reference_file]), 1)
        if points == 0:
            return "equally accurate"
        word = "more" if points > 0 else "less"
        return f"{abs(points):.1f} {'point' if abs(points) <= 1 else 'points'} {word} accurate"
    if file in agreements:
        percent = round(100 * (1 - agreements[file]), 1)
        return f"{percent:.1f} % other answers on synthetic samples" if percent else "same answers on synthetic samples"
    return ""


def _exported_file(row: Row) -> str:
    """The exported file of a row's precision: the FP16 file for a TensorRT engine built from FP32 with --fp16."""
    file, flag, _ = row.artefact.partition(" --")
    return file.replace(".fp32.", f".{row.kind}.") if flag else file
