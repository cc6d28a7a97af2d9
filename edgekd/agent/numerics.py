"""Whether a device computes what the host computed: logits of golden inputs, within a tolerance per precision."""

from __future__ import annotations

from typing import Any

from edgekd.agent.measurement import Job

TOLERANCES = {"fp32": 1e-3, "tf32": 1e-2, "fp16": 2e-2, "int8": 1e-1}
"""Largest difference allowed, as a share of the logits' range. INT8 kernels may round a tie either way, and each such
step goes on through the layers; FP16 has 11 bits of mantissa, TF32 as many, added up in another order."""


def precision_of(job: Job) -> str:
    """Return the precision whose tolerance holds for an artefact."""
    if job.kind.startswith("int8") or job.arithmetic == "int8":
        return "int8"
    if "fp16" in (job.kind, job.arithmetic):
        return "fp16"
    on_gpu = job.runtime in ("ort-cuda", "tensorrt")
    return "tf32" if on_gpu and "--noTF32" not in job.flags else "fp32"


def compare(expected: list[list[float]], found: list[list[float]], precision: str) -> dict[str, Any]:
    """Compare N x K logits with the host's.

    It passes when no logit differs by more than the tolerance and the answer is the same wherever the host's two
    largest logits are further apart than twice the tolerance.
    """
    tolerance = TOLERANCES[precision]
    values = [value for row in expected for value in row]
    extent = max(values) - min(values) or 1.0
    shapes_fit = [len(row) for row in expected] == [len(row) for row in found]
    largest, clear, wrong = float("inf"), 0, 0
    if shapes_fit:
        pairs = [(want, have) for wants, haves in zip(expected, found) for want, have in zip(wants, haves)]  # noqa: B905
        differences = [abs(want - have) / extent for want, have in pairs]
        largest = max(differences) if all(value == value for value in differences) else float("inf")
        for wants, haves in zip(expected, found):  # noqa: B905
            first, second = sorted(wants)[-1:-3:-1] if len(wants) > 1 else (wants[0], wants[0] - extent)
            if first - second > 2 * tolerance * extent:
                clear += 1
                wrong += haves.index(max(haves)) != wants.index(first)
    return {
        "precision": precision,
        "tolerance": tolerance,
        "max_difference": largest if largest != float("inf") else None,
        "images": len(expected),
        "clear": clear,
        "wrong_answers": wrong,
        "passed": largest <= tolerance and wrong == 0,
    }
