"""What is to be measured, how long, and the raw result: everything a table or plot is made from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekd import schema
from edgekd.agent.device.environment import Environment
from edgekd.agent.device.machine import Activity
from edgekd.agent.kernels import ARITHMETIC, KIND, RUNTIME, Arithmetic, Kind, Runtime
from edgekd.errors import UsageError
from edgekd.schema import (
    SchemaError,
    boolean,
    either,
    integer,
    list_of,
    number,
    object_of,
    optional,
    required,
    text,
    with_default,
)

FILE_NAME = text(255, r"[^/\0]*[^/\0.][^/\0]*")
"""The name of a file, without a folder."""
_ROUNDS = integer(2, 10**5)


def _file(value: Any, place: str) -> Path:
    """Accept the name of a file; where it lies is a matter of each machine."""
    return Path(schema.NAME(value, place))


@dataclass(frozen=True)
class BenchJob:
    """One artefact to measure; artefact and runtime name it in every result and must be unique in a comparison."""

    artefact: str = field(metadata=required(schema.NAME))
    model: Path = field(metadata=required(_file))
    kind: Kind = field(default="any", metadata=required(KIND))
    runtime: Runtime = field(default="ort-cpu", metadata=required(RUNTIME))
    image_shape: tuple[int, ...] | None = field(default=None, metadata=required(optional(schema.SHAPE)))
    """C, H, W where the file leaves them open."""
    input_name: str = field(default="input", metadata=required(text(5000)))
    declared: tuple[int | None, ...] | None = field(default=None, metadata=required(optional(schema.DECLARED_SHAPE)))
    """N, C, H, W as in the file, None where it leaves them open."""
    flags: tuple[str, ...] = field(default=(), metadata=required(schema.FLAGS))  # TensorRT's, for the precision
    first_engine: bool = field(default=False, metadata=required(boolean))
    """Of those that TensorRT makes of the file; else each."""
    arithmetic: Arithmetic = field(default="fp32", metadata=required(ARITHMETIC))
    """By the nodes and weights of the file, whatever its name."""
    weights: tuple[str, ...] = field(default=(), metadata=with_default(list_of(FILE_NAME, 1000)))
    """Names of the files beside the model that it keeps weights in."""

    @property
    def label(self) -> str:
        """What tells this job from all others of a comparison."""
        return self.artefact if self.runtime == "ort-cpu" else f"{self.artefact} [{self.runtime}]"


@dataclass(frozen=True)
class BenchSettings:
    """How each artefact is measured; `min_runs` and `min_seconds` are its totals over all rounds."""

    batch: int = field(default=1, metadata=required(schema.BATCH))
    threads: int = field(default=1, metadata=required(schema.THREADS))
    rounds: int = field(default=10, metadata=required(_ROUNDS))
    min_runs: int = field(default=200, metadata=required(schema.RUNS))
    min_seconds: float = field(default=2.0, metadata=required(schema.POSITIVE_S))
    settle_runs: int = field(default=5, metadata=required(schema.COUNT))  # untimed, at the start of each round
    warm_up_window: int = field(default=50, metadata=required(integer(3, 10**9)))
    warm_up_agreement: float = field(default=0.02, metadata=required(number(1e-12, 1e6)))
    warm_up_seconds: float = field(default=10.0, metadata=required(schema.POSITIVE_S))
    seed: int = field(default=0, metadata=required(integer(-(2**63), 2**63)))
    reply_timeout_s: float = field(default=600.0, metadata=required(schema.POSITIVE_S))

    def __post_init__(self) -> None:
        least = {"batch": 1, "threads": 1, "rounds": 2, "min_runs": 1, "settle_runs": 0, "warm_up_window": 3}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise UsageError(f"{name} must be at least {bound}, not {getattr(self, name)}.")
        for name in ("min_seconds", "warm_up_agreement", "warm_up_seconds", "reply_timeout_s"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} must be above 0, not {getattr(self, name)}.")


@dataclass(frozen=True)
class MeasurementProgress:
    """One finished step of a measurement: `done` of `total`."""

    step: str = field(metadata=required(schema.NAME))  # of load, warm-up and round
    artefact: str = field(metadata=required(text(500)))
    done: int = field(metadata=required(integer(1, 10**7)))
    total: int = field(metadata=required(integer(1, 10**7)))


@dataclass(frozen=True)
class Round:
    """The raw samples of one round of one artefact, and what else went on meanwhile."""

    samples_ms: tuple[float, ...] = field(metadata=required(schema.SAMPLES_MS))
    activity: Activity = field(metadata=required(object_of(Activity)))


@dataclass(frozen=True)
class LoadedFacts:
    """What is known of an artefact once it is loaded; None where the runtime does not say."""

    sha256: str = field(metadata=required(schema.SHA256))
    size_bytes: int = field(metadata=required(schema.SIZE_BYTES))
    runtime_version: str = field(metadata=required(text()))
    provider: str = field(metadata=required(text()))
    build_s: float | None = field(metadata=required(optional(schema.NONNEGATIVE_S)))
    """Of the engine; None where there is none, or it came from the cache."""
    commands: tuple[str, ...] = field(metadata=required(schema.COMMANDS))  # of trtexec, as they were run
    load_ms: float | None = field(metadata=required(optional(schema.NONNEGATIVE_MS)))
    first_inference_ms: float | None = field(metadata=required(optional(schema.NONNEGATIVE_MS)))


@dataclass(frozen=True)
class MemoryUse:
    """The memory of the process that runs an artefact; a GPU's own memory is not in it."""

    peak_memory_bytes: int | None = field(metadata=required(optional(schema.SIZE_BYTES)))
    baseline_memory_bytes: int | None = field(
        metadata=required(optional(schema.SIZE_BYTES))
    )  # before the model was loaded


@dataclass(frozen=True)
class NodeCounts:
    """How many compute nodes (Conv, Gemm, MatMul) really ran, and how many of them as integers."""

    integer_nodes: int | None = field(metadata=required(optional(schema.COUNT)))
    compute_nodes: int | None = field(metadata=required(optional(schema.COUNT)))

    def require_consistent(self, place: str) -> None:
        """Raise `SchemaError` where there are more integer nodes than nodes."""
        nodes, all_nodes = self.integer_nodes, self.compute_nodes
        if nodes is not None and all_nodes is not None and nodes > all_nodes:
            raise SchemaError(f"{place}.integer_nodes".lstrip("."), nodes, f"at most the {all_nodes} compute nodes")


@dataclass(frozen=True)
class Measurement(LoadedFacts, MemoryUse, NodeCounts):
    """One artefact, measured."""

    job: BenchJob = field(metadata=required(object_of(BenchJob)))
    stable: bool = field(metadata=required(boolean))  # the warm-up settled in time
    warm_up_ms: tuple[float, ...] = field(metadata=required(schema.WINDOWS_MS))  # the median of each window
    rounds: tuple[Round, ...] = field(metadata=required(list_of(object_of(Round), 10**5, 2)))


@dataclass(frozen=True)
class Skipped:
    """One artefact that was not timed, with the reason: "n/a: ..."."""

    job: BenchJob = field(metadata=required(object_of(BenchJob)))
    reason: str = field(metadata=required(schema.REASON))


@dataclass(frozen=True)
class Comparison:
    """Artefacts measured side by side; their times compare with each other and with no other comparison's."""

    target: str = field(metadata=required(schema.TARGET))
    environment: Environment = field(metadata=required(object_of(Environment)))
    settings: BenchSettings = field(metadata=required(object_of(BenchSettings)))
    before: Activity = field(metadata=required(object_of(Activity)))
    results: tuple[Measurement | Skipped, ...] = field(
        metadata=required(list_of(either("reason", object_of(Skipped), object_of(Measurement)), 1000))
    )
    warnings: tuple[str, ...] = field(metadata=required(list_of(schema.REASON, 1000)))

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """What was really measured, in the order of the jobs."""
        return tuple(result for result in self.results if isinstance(result, Measurement))

    def require_consistent(self, place: str) -> None:
        """Raise `SchemaError` unless each row has a name of its own, and as many rounds as were asked."""
        seen = set()
        for index, result in enumerate(self.results):
            here, name = f"{place}.results[{index}]".lstrip("."), (result.job.artefact, result.job.runtime)
            if name in seen:
                raise SchemaError(f"{here}.job", name, "another row than those before it")
            seen.add(name)
            if isinstance(result, Measurement) and len(result.rounds) != self.settings.rounds:
                raise SchemaError(f"{here}.rounds", len(result.rounds), f"{self.settings.rounds} rounds")
