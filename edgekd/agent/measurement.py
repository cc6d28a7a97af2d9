"""What is to be measured, how long, and the raw result: everything a table or plot is made from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgekd.agent.device.environment import Environment, from_facts
from edgekd.agent.kernels import Arithmetic, Kind, Runtime
from edgekd.errors import UsageError


@dataclass(frozen=True)
class Job:
    """One artefact to measure; artefact and runtime name it in every result and must be unique in a comparison."""

    artefact: str
    model: Path
    kind: Kind = "any"
    runtime: Runtime = "ort-cpu"
    image_shape: tuple[int, ...] | None = None  # C, H, W where the file leaves them open
    input_name: str = "input"
    declared: tuple[int | None, ...] | None = None  # N, C, H, W as in the file, None where it leaves them open
    flags: tuple[str, ...] = ()  # TensorRT's, for the precision
    first_engine: bool = False  # of those that TensorRT makes of the file; else each
    arithmetic: Arithmetic = "fp32"  # by the nodes and weights of the file, whatever its name

    @property
    def label(self) -> str:
        """Return what tells this job from all others of a comparison."""
        return self.artefact if self.runtime == "ort-cpu" else f"{self.artefact} [{self.runtime}]"


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
    gpu_clock_mhz: float | None = None  # a Jetson's, the highest meanwhile


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
    load_ms: float | None  # None here and below: the runtime does not say
    first_inference_ms: float | None
    baseline_memory_bytes: int | None  # before the model was loaded
    peak_memory_bytes: int | None
    integer_nodes: int | None  # of `compute_nodes`: Conv, Gemm and MatMul that really ran
    compute_nodes: int | None
    stable: bool  # the warm-up settled in time
    warm_up_ms: tuple[float, ...]  # the median of each window
    rounds: tuple[Round, ...]
    build_s: float | None = None  # of the engine; None where there is none, or it came from the cache
    commands: tuple[str, ...] = ()  # of trtexec, as they were run


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


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as JSON values; of the model's path only the name is kept."""
    found = asdict(comparison)
    for result in found["results"]:
        result["job"]["model"] = Path(result["job"]["model"]).name
    return found


def job_from_json(data: dict[str, Any], folder: Path = Path()) -> Job:
    """Return a job whose model lies in `folder`."""
    shapes = {name: data[name] and tuple(data[name]) for name in ("image_shape", "declared")}
    return Job(**{**data, **shapes, "model": folder / data["model"], "flags": tuple(data["flags"])})


def job_to_json(job: Job) -> dict[str, Any]:
    """Return a job as JSON values, its model by name."""
    return {**asdict(job), "model": job.model.name}


def from_json(data: dict[str, Any]) -> Comparison:
    """Return the comparison that `to_json` wrote and `answers.comparison` accepted."""
    return Comparison(
        target=data["target"],
        environment=from_facts(data["environment"]),
        settings=Settings(**data["settings"]),
        before=Activity(**data["before"]),
        results=tuple(_result(one) for one in data["results"]),
        warnings=tuple(data["warnings"]),
    )


def _result(data: dict[str, Any]) -> Measurement | Skipped:
    job = job_from_json(data["job"])
    if "reason" in data:
        return Skipped(job, data["reason"])
    rounds = tuple(Round(tuple(one["samples_ms"]), Activity(**one["activity"])) for one in data["rounds"])
    lists = {"warm_up_ms": tuple(data["warm_up_ms"]), "commands": tuple(data["commands"])}
    return Measurement(**{**data, "job": job, "rounds": rounds, **lists})
