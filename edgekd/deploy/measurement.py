"""What is to be measured, how long, and the raw result: everything a table or plot is made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekd.deploy.environment import Environment
from edgekd.deploy.kernels import Kind, Runtime
from edgekd.errors import UsageError


@dataclass(frozen=True)
class Job:
    """One artefact to measure; `artefact` names it in every result and must be unique in a comparison."""

    artefact: str
    model: Path
    kind: Kind = "any"
    runtime: Runtime = "ort-cpu"
    image_shape: tuple[int, ...] | None = None  # C, H, W where the file leaves them open


@dataclass(frozen=True)
class Settings:
    """How each artefact is measured; `min_runs` and `min_seconds` are its totals over all rounds."""

    batch: int = 1
    threads: int = 1
    rounds: int = 10
    min_runs: int = 500
    min_seconds: float = 5.0
    settle_runs: int = 5  # untimed, at the start of each round
    warm_up_window: int = 50
    warm_up_agreement: float = 0.02
    warm_up_seconds: float = 10.0
    seed: int = 0
    reply_timeout_s: float = 600.0

    def __post_init__(self) -> None:
        least = {"batch": 1, "threads": 1, "rounds": 2, "min_runs": 1, "settle_runs": 0, "warm_up_window": 3}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise UsageError(f"{name} must be at least {bound}, not {getattr(self, name)}.")
        for name in ("min_seconds", "warm_up_agreement", "warm_up_seconds", "reply_timeout_s"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} must be above 0, not {getattr(self, name)}.")


@dataclass(frozen=True)
class Activity:
    """What the machine did besides the measured process, between two readings of its monotonic clock."""

    start_s: float
    end_s: float
    other_cpus: float | None  # CPUs kept busy by other processes; None where the system does not say
    stolen_cpus: float | None  # CPUs that a hypervisor gave to others
    clock_mhz: float | None  # of the fastest core, at the end
    throttle_events: int


@dataclass(frozen=True)
class Round:
    """The raw samples of one round of one artefact, and what else went on meanwhile."""

    samples_ms: tuple[float, ...]
    activity: Activity


@dataclass(frozen=True)
class Measurement:
    """One artefact, measured. Memory is that of the host process; a GPU's own memory is not in it."""

    job: Job
    provider: str
    runtime_version: str
    sha256: str
    size_bytes: int
    load_ms: float
    first_inference_ms: float
    baseline_memory_bytes: int  # before the model was loaded
    peak_memory_bytes: int
    integer_nodes: int  # of `compute_nodes`: Conv, Gemm and MatMul that really ran
    compute_nodes: int
    stable: bool  # the warm-up settled in time
    warm_up_ms: tuple[float, ...]  # the median of each window
    rounds: tuple[Round, ...]


@dataclass(frozen=True)
class Skipped:
    """One artefact that was not timed, with the reason: "n/a: ..."."""

    job: Job
    reason: str


@dataclass(frozen=True)
class Comparison:
    """Artefacts measured side by side; their times compare with each other and with no other comparison's."""

    target: str
    environment: Environment
    settings: Settings
    before: Activity
    results: tuple[Measurement | Skipped, ...]
    warnings: tuple[str, ...]

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """Return what was really measured, in the order of the jobs."""
        return tuple(result for result in self.results if isinstance(result, Measurement))
