"""Whether a device computes what the host computed: logits of golden inputs, within a tolerance per precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from edgekd.agent.kernels import ON_GPU, PRECISION, RUNTIME, TOLERANCES, Precision, Runtime
from edgekd.agent.measurement import BenchJob
from edgekd.schema import BATCH, COUNT, NAME, SHARE, SchemaError, boolean, number, optional, required


@dataclass(frozen=True)
class LogitsCheck:
    """How the logits of an artefact on a device differ from the host's."""

    artefact: str = field(metadata=required(NAME))
    runtime: Runtime = field(metadata=required(RUNTIME))
    precision: Precision = field(metadata=required(PRECISION))
    tolerance: float = field(metadata=required(SHARE))
    max_difference: float | None = field(metadata=required(optional(number(0, 1e300))))
    """As a share of the logits' range; None where they are not finite."""
    images: int = field(metadata=required(BATCH))
    clear: int = field(metadata=required(COUNT))  # answers of the host that no tolerated difference can change
    wrong_answers: int = field(metadata=required(COUNT))  # of the clear ones
    passed: bool = field(metadata=required(boolean))

    def require_consistent(self, place: str) -> None:
        """Raise `SchemaError` unless the counts go together; that it passed is no matter of opinion."""
        passed = self.max_difference is not None and self.max_difference <= self.tolerance and self.wrong_answers == 0
        if not self.wrong_answers <= self.clear <= self.images:
            raise SchemaError(f"{place}.clear", self.clear, "a count between wrong_answers and images")
        if self.passed != passed:
            raise SchemaError(f"{place}.passed", self.passed, "what max_difference and wrong_answers say")


def precision_of(job: BenchJob) -> Precision:
    """Return the precision whose tolerance holds for an artefact."""
    if job.kind.startswith("int8") or job.arithmetic == "int8":
        return "int8"
    if "fp16" in (job.kind, job.arithmetic):
        return "fp16"
    return "tf32" if job.runtime in ON_GPU and "--noTF32" not in job.flags else "fp32"


def compare_with_host(
    job: BenchJob, expected: Sequence[Sequence[float]], answers: Sequence[Sequence[float]]
) -> LogitsCheck:
    """Compare N x K logits of a job with the host's.

    It passes when no logit differs by more than the tolerance and the answer is the same wherever the host's two
    largest logits are further apart than twice the tolerance.
    """
    precision = precision_of(job)
    tolerance = TOLERANCES[precision]
    values = [value for row in expected for value in row]
    extent = max(values) - min(values) or 1.0
    shapes_fit = [len(row) for row in expected] == [len(row) for row in answers]
    largest, clear, wrong = float("inf"), 0, 0
    if shapes_fit:
        pairs = [(want, have) for wants, haves in zip(expected, answers) for want, have in zip(wants, haves)]  # noqa: B905
        differences = [abs(want - have) / extent for want, have in pairs]
        largest = max(differences) if all(value == value for value in differences) else float("inf")
        for wants, haves in zip(expected, answers):  # noqa: B905
            first, second = sorted(wants)[-1:-3:-1] if len(wants) > 1 else (wants[0], wants[0] - extent)
            if first - second > 2 * tolerance * extent:
                clear += 1
                wrong += haves.index(max(haves)) != wants.index(first)
    return LogitsCheck(
        artefact=job.artefact,
        runtime=job.runtime,
        precision=precision,
        tolerance=tolerance,
        max_difference=largest if largest != float("inf") else None,
        images=len(expected),
        clear=clear,
        wrong_answers=wrong,
        passed=largest <= tolerance and wrong == 0,
    )
