"""The result table: one row an artefact, with the keys of the command line's JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace

from edgekd import schema
from edgekd.agent.kernels import KIND, PROVIDERS, REALLY_INT8, RUNTIME, Kind, Runtime
from edgekd.agent.measurement import BenchSettings, Comparison, Measurement, Skipped
from edgekd.bench.latency import Estimate, LatencySummary, median_estimate, speedup_estimate, summarize
from edgekd.schema import boolean, either, number, object_of, optional, required, text, with_default

_RATIO = optional(number(0, 1e20))


@dataclass(frozen=True)
class _RowContext:
    """What a row is about."""

    artefact: str = field(metadata=required(schema.NAME))
    kind: Kind = field(metadata=required(KIND))
    runtime: Runtime = field(metadata=required(RUNTIME))
    provider: str = field(metadata=required(text()))
    batch: int = field(metadata=required(schema.BATCH))
    threads: int = field(metadata=required(schema.THREADS))


@dataclass(frozen=True)
class Row(LatencySummary, _RowContext):
    """One measured artefact; `speedup` is against `reference`, both None in the reference's own row."""

    runtime_version: str = field(metadata=required(text()))
    p50_low_ms: float = field(metadata=required(schema.POSITIVE_MS))
    p50_high_ms: float = field(metadata=required(schema.POSITIVE_MS))
    size_bytes: int = field(metadata=required(schema.SIZE_BYTES))
    load_ms: float | None = field(metadata=required(optional(schema.NONNEGATIVE_MS)))
    first_inference_ms: float | None = field(metadata=required(optional(schema.NONNEGATIVE_MS)))
    peak_memory_bytes: int | None = field(metadata=required(optional(schema.SIZE_BYTES)))
    baseline_memory_bytes: int | None = field(metadata=required(optional(schema.SIZE_BYTES)))
    stable: bool = field(metadata=required(boolean))
    integer_share: float | None = field(metadata=required(optional(schema.SHARE)))
    """None: the runtime does not say what ran."""
    sha256: str = field(metadata=required(schema.SHA256))
    reference: str | None = field(metadata=required(optional(schema.NAME)))
    speedup: float | None = field(metadata=required(_RATIO))
    speedup_low: float | None = field(metadata=required(_RATIO))
    speedup_high: float | None = field(metadata=required(_RATIO))
    build_s: float | None = field(default=None, metadata=with_default(optional(schema.NONNEGATIVE_S)))
    commands: tuple[str, ...] = field(default=(), metadata=with_default(schema.COMMANDS))
    note: str | None = field(default=None, metadata=with_default(optional(text())))
    """Where the name promises too much."""

    @property
    def not_really_int8(self) -> bool:
        """Whether the row is called INT8 but mostly ran in float."""
        return self.kind.startswith("int8") and self.integer_share is not None and self.integer_share < REALLY_INT8


@dataclass(frozen=True)
class SkippedRow(_RowContext):
    """One artefact that was not timed; `skipped` says why."""

    skipped: str = field(metadata=required(schema.REASON))
    integer_share: float | None = field(default=None, metadata=with_default(optional(schema.SHARE)))
    """What its own target would run as integers, where that can be told here."""


ROW = either("skipped", object_of(SkippedRow), object_of(Row))


def rows_of_comparison(comparison: Comparison) -> list[Row | SkippedRow]:
    """Return one row a job, in order; each is compared with the first FP32 row of its runtime, else the first."""
    settings = comparison.settings
    references: dict[Runtime, Measurement] = {}
    for measurement in comparison.measurements:
        reference = references.setdefault(measurement.job.runtime, measurement)
        if measurement.job.kind == "fp32" and reference.job.kind != "fp32":
            references[measurement.job.runtime] = measurement
    return [
        _skipped(result, settings)
        if isinstance(result, Skipped)
        else _row(result, references[result.job.runtime], settings)
        for result in comparison.results
    ]


def _skipped(result: Skipped, settings: BenchSettings) -> SkippedRow:
    job = result.job
    provider = PROVIDERS[job.runtime]
    return SkippedRow(job.artefact, job.kind, job.runtime, provider, settings.batch, settings.threads, result.reason)


def _row(measurement: Measurement, reference: Measurement, settings: BenchSettings) -> Row:
    samples = [piece.samples_ms for piece in measurement.rounds]
    summary: LatencySummary = summarize(samples, settings.batch)
    median = median_estimate(samples, settings.seed)
    speedup: Estimate | None = None
    if measurement is not reference:
        speedup = speedup_estimate([piece.samples_ms for piece in reference.rounds], samples, settings.seed)
    row = Row(
        artefact=measurement.job.artefact,
        kind=measurement.job.kind,
        runtime=measurement.job.runtime,
        runtime_version=measurement.runtime_version,
        provider=measurement.provider,
        batch=settings.batch,
        threads=settings.threads,
        **asdict(summary),
        p50_low_ms=median.low,
        p50_high_ms=median.high,
        size_bytes=measurement.size_bytes,
        load_ms=measurement.load_ms,
        first_inference_ms=measurement.first_inference_ms,
        peak_memory_bytes=measurement.peak_memory_bytes,
        baseline_memory_bytes=measurement.baseline_memory_bytes,
        stable=measurement.stable,
        integer_share=_integer_share(measurement),
        sha256=measurement.sha256,
        reference=reference.job.artefact if speedup else None,
        speedup=speedup.value if speedup else None,
        speedup_low=speedup.low if speedup else None,
        speedup_high=speedup.high if speedup else None,
        build_s=measurement.build_s,
        commands=measurement.commands,
    )
    return replace(row, note=_note(row))


def _note(row: Row) -> str | None:
    """What is to be said where a name promises too much."""
    if row.kind.startswith("int8") and row.integer_share is None:
        return f"integer share n/a: {row.provider} does not say what ran"
    return f"not really INT8: {row.integer_share:.0%} of the compute nodes" if row.not_really_int8 else None


def _integer_share(measurement: Measurement) -> float | None:
    if measurement.integer_nodes is None or measurement.compute_nodes is None:
        return None
    return measurement.integer_nodes / measurement.compute_nodes if measurement.compute_nodes else 0.0
