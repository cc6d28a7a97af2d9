from __future__ import annotations

from dataclasses import replace

import pytest
from latencies import row

from edgekd.bench.rows import Row, SkippedRow
from edgekd.bench.verdict import verdict

FP32 = row(p50_low_ms=2.35, p50_high_ms=2.45, p99_ms=3.0)


def int8(speedup: float, low: float, high: float) -> Row:
    return replace(
        FP32,
        artefact="student.int8-cpu-x86.onnx",
        kind="int8-cpu-x86",
        p50_ms=FP32.p50_ms / speedup,
        integer_share=1.0,
        reference=FP32.artefact,
        speedup=speedup,
        speedup_low=low,
        speedup_high=high,
    )


FAST = int8(2.4, 2.3, 2.5)


@pytest.mark.parametrize(
    ("accuracies", "cost"),
    [
        ((0.913, 0.910), ", 0.3 point less accurate"),
        ((0.913, 0.891), ", 2.2 points less accurate"),
        ((0.910, 0.913), ", 0.3 point more accurate"),
        ((0.9100, 0.9101), ", equally accurate"),
    ],
)
def test_faster_with_accuracies(accuracies: tuple[float, float], cost: str) -> None:
    known = dict(zip((FP32.artefact, FAST.artefact), accuracies, strict=True))
    assert verdict([FP32, FAST], known, {FAST.artefact: 0.5}) == f"INT8 is 2.4× faster than FP32 at p50{cost}"


def test_faster_with_agreement_only() -> None:
    faster = "INT8 is 2.4× faster than FP32 at p50"
    assert verdict([FP32, FAST], None, {FAST.artefact: 0.996}) == faster + ", 0.4 % other answers on synthetic samples"
    assert verdict([FP32, FAST], None, {FAST.artefact: 1.0}) == faster + ", same answers on synthetic samples"
    assert verdict([FP32, FAST], {FP32.artefact: 0.9}) == faster


def test_small_but_clear_gain_keeps_its_digits() -> None:
    assert verdict([FP32, int8(1.04, 1.03, 1.05)]) == "INT8 is 1.04× faster than FP32 at p50"


def test_slower_says_what_to_ship() -> None:
    sentence = verdict([FP32, int8(0.4, 0.39, 0.41)], {FP32.artefact: 0.9, FAST.artefact: 0.9})
    assert sentence == "INT8 is slower here: 6 ms against 2.4 ms at p50; ship FP32"


@pytest.mark.parametrize("row", [int8(1.05, 0.98, 1.12), int8(0.97, 0.9, 1.0), int8(1.01, 1.005, 1.015)])
def test_no_clear_difference(row: Row) -> None:
    assert verdict([FP32, row], {FP32.artefact: 0.9, FAST.artefact: 0.8}).startswith(
        "No clear difference between INT8 and FP32 at p50 ("
    )


def test_the_fastest_is_judged() -> None:
    half = replace(int8(1.5, 1.4, 1.6), artefact="student.fp16.onnx", kind="fp16")
    assert verdict([half, FP32, FAST]).startswith("INT8 is 2.4×")
    assert verdict([half, FP32, int8(0.5, 0.4, 0.6)]).startswith("FP16 is 1.5×")


def test_a_slower_int8_beside_a_faster_fp16_is_told() -> None:
    half = replace(int8(1.5, 1.4, 1.6), artefact="student.fp32.onnx --fp16", kind="fp16")
    slow = int8(1.2, 1.1, 1.3)
    clause = "; INT8 is slower here: 2 ms against 1.6 ms"
    assert verdict([FP32, half, slow]) == "FP16 is 1.5× faster than FP32 at p50" + clause
    assert verdict([FP32, half, int8(1.49, 1.4, 1.6)]) == "FP16 is 1.5× faster than FP32 at p50", "about as fast"
    assert verdict([FP32, half, FAST]).startswith("INT8 is 2.4× faster than FP32 at p50")
    assert ";" not in verdict([FP32, half, FAST])


def test_an_engine_made_with_fp16_is_as_accurate_as_the_fp16_file() -> None:
    half = replace(int8(1.5, 1.4, 1.6), artefact="student.fp32.onnx --fp16", kind="fp16")
    known = {"student.fp32.onnx": 0.913, "student.fp16.onnx": 0.910}
    assert verdict([FP32, half], known) == "FP16 is 1.5× faster than FP32 at p50, 0.3 point less accurate"
    assert verdict([FP32, half], None, {"student.fp16.onnx": 0.996}).endswith(
        "0.4 % other answers on synthetic samples"
    )
    assert verdict([FP32, half], {"student.fp32.onnx": 0.913}) == "FP16 is 1.5× faster than FP32 at p50", "unknown"


def test_pretended_int8_is_named() -> None:
    pretended = replace(FAST, integer_share=0.4)
    assert verdict([FP32, pretended]).startswith("INT8 (not really: 40% of its layers) is 2.4× faster")


def test_unsettled_times_are_doubted() -> None:
    assert verdict([replace(FP32, stable=False), FAST]).endswith(" (times had not settled; measure again)")


def test_single_artefact_has_its_times() -> None:
    alone = replace(FP32, artefact="net.onnx", kind="any", threads=2)
    assert verdict([alone]) == "net.onnx takes 2.4 ms at p50 and 3 ms at p99 on ort-cpu, batch 1, 2 threads"


def test_nothing_timed_gives_the_reasons() -> None:
    skipped = SkippedRow("h.onnx", "fp16", "ort-cpu", "CPUExecutionProvider", 1, 1, "n/a: no kernels")
    assert verdict([skipped]) == "Nothing was timed; h.onnx: n/a: no kernels."
    assert verdict([FP32, skipped]).startswith("FP32 takes 2.4 ms")
