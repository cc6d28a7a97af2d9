"""The result table: one row an artefact, with the keys of the command line's JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from edgekd.agent.kernels import PROVIDERS, REALLY_INT8, Kind, Runtime
from edgekd.agent.measurement import Comparison, Measurement, Settings, Skipped
from edgekd.bench.latency import Estimate, Summary, median_estimate, speedup_estimate, summarise


@dataclass(frozen=True)
class Row:
    """One measured artefact; `speedup` is against `reference`, both None in the reference's own row."""

    artefact: str
    kind: Kind
    runtime: Runtime
    runtime_version: str
    provider: str
    batch: int
    threads: int
    n: int
    min_ms: float
    mean_ms: float
    p50_ms: float
    p50_low_ms: float
    p50_high_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    std_ms: float
    throughput_per_s: float
    size_bytes: int
    load_ms: float | None
    first_inference_ms: float | None
    peak_memory_bytes: int | None
    baseline_memory_bytes: int | None
    stable: bool
    integer_share: float | None
    """None: the runtime does not say what ran."""
    sha256: str
    reference: str | None
    speedup: float | None
    speedup_low: float | None
    speedup_high: float | None
    build_s: float | None = None
    commands: tuple[str, ...] = ()

    @property
    def not_really_int8(self) -> bool:
        """Return whether the row is called INT8 but mostly ran in float."""
        return self.kind.startswith("int8") and self.integer_share is not None and self.integer_share < REALLY_INT8

    @property
    def note(self) -> str | None:
        """What to say where its name promises too much."""
        if self.kind.startswith("int8") and self.integer_share is None:
            return f"integer share n/a: {self.provider} does not say what ran"
        return f"not really INT8: {self.integer_share:.0%} of the compute nodes" if self.not_really_int8 else None

    def to_json(self) -> dict[str, Any]:
        """Return the row with its note."""
        return {**asdict(self), "commands": list(self.commands), "note": self.note}


@dataclass(frozen=True)
class SkippedRow:
    """One artefact that was not timed; `skipped` says why."""

    artefact: str
    kind: Kind
    runtime: Runtime
    provider: str
    batch: int
    threads: int
    skipped: str
    integer_share: float | None = None
    """What its own target would run as integers, where that can be told here."""

    def to_json(self) -> dict[str, Any]:
        """Return all fields under their own names."""
        return asdict(self)


def rows(comparison: Comparison) -> list[Row | SkippedRow]:
    """Return one row a job, in order; each is compared with the first FP32 row of its runtime, else the first."""
    settings = comparison.settings
    references: dict[Runtime, Measurement] = {}
    for one in comparison.measurements:
        known = references.setdefault(one.job.runtime, one)
        if one.job.kind == "fp32" and known.job.kind != "fp32":
            references[one.job.runtime] = one
    return [
        _skipped(result, settings)
        if isinstance(result, Skipped)
        else _row(result, references[result.job.runtime], settings)
        for result in comparison.results
    ]


def _skipped(result: Skipped, settings: Settings) -> SkippedRow:
    job = result.job
    provider = PROVIDERS[job.runtime]
    return SkippedRow(job.artefact, job.kind, job.runtime, provider, settings.batch, settings.threads, result.reason)


def _row(one: Measurement, reference: Measurement, settings: Settings) -> Row:
    samples = [piece.samples_ms for piece in one.rounds]
    summary: Summary = summarise(samples, settings.batch)
    median = median_estimate(samples, settings.seed)
    speedup: Estimate | None = None
    if one is not reference:
        speedup = speedup_estimate([piece.samples_ms for piece in reference.rounds], samples, settings.seed)
    return Row(
        artefact=one.job.artefact,
        kind=one.job.kind,
        runtime=one.job.runtime,
        runtime_version=one.runtime_version,
        provider=one.provider,
        batch=settings.batch,
        threads=settings.threads,
        **asdict(summary),
        p50_low_ms=median.low,
        p50_high_ms=median.high,
        size_bytes=one.size_bytes,
        load_ms=one.load_ms,
        first_inference_ms=one.first_inference_ms,
        peak_memory_bytes=one.peak_memory_bytes,
        baseline_memory_bytes=one.baseline_memory_bytes,
        stable=one.stable,
        integer_share=_integer_share(one),
        sha256=one.sha256,
        reference=reference.job.artefact if speedup else None,
        speedup=speedup.value if speedup else None,
        speedup_low=speedup.low if speedup else None,
        speedup_high=speedup.high if speedup else None,
        build_s=one.build_s,
        commands=one.commands,
    )


def _integer_share(one: Measurement) -> float | None:
    if one.integer_nodes is None or one.compute_nodes is None:
        return None
    return one.integer_nodes / one.compute_nodes if one.compute_nodes else 0.0


def from_json(data: Mapping[str, Any]) -> Row | SkippedRow:
    """Return the row that `to_json` wrote; what was added to it since is left out."""
    cls = SkippedRow if "skipped" in data else Row
    known = {field.name: data[field.name] for field in fields(cls) if field.name in data}
    if cls is Row:
        known["commands"] = tuple(known.get("commands", ()))
    return cls(**known)
