"""The rows of bench's table, one for each artefact, a model file that is timed.

Field names are the keys of results.json and `bench --json`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace

from edgekd import schema
from edgekd.agent.kernels import KIND, PROVIDERS, REALLY_INT8, RUNTIME, Kind, Runtime
from edgekd.agent.measurement import BenchSettings, Comparison, Measurement, Skipped
from edgekd.bench.latency import Estimate, LatencySummary, median_estimate, speedup_estimate, summarize
from edgekd.schema import boolean, either, number, object_of, optional, required, text, with_default

_SPEEDUP = optional(number(0, 1e20))


@dataclass(frozen=True)
class _RowContext:
    """Which artefact a row is about, and how it was run."""

    artefact: str = field(metadata=required(schema.NAME))
    kind: Kind = field(metadata=required(KIND))
    """The precision by the artefact's file name, or "any" where the name tells none."""
    runtime: Runtime = field(metadata=required(RUNTIME))
    provider: str = field(metadata=required(text()))
    batch: int = field(metadata=required(schema.BATCH))
    threads: int = field(metadata=required(schema.THREADS))
    """Those of the CPU that the runtime may use."""


@dataclass(frozen=True)
class Row(LatencySummary, _RowContext):
    """One timed artefact. Intervals (`low`, `high`) are 95 % bootstrap intervals over rounds.

    In a round every artefact is timed once, one after another; rounds repeat.
    """

    runtime_version: str = field(metadata=required(text()))
    p50_low_ms: float = field(metadata=required(schema.POSITIVE_MS))
    p50_high_ms: float = field(metadata=required(schema.POSITIVE_MS))
    size_bytes: int = field(metadata=required(schema.SIZE_BYTES))
    """Of the model file."""
    load_ms: float | None = field(metadata=required(optional(schema.NONNEGATIVE_MS)))
    first_inference_ms: float | None = field(metadata=required(optional(schema.NONNEGATIVE_MS)))
    peak_memory_bytes: int | None = field(metadata=required(optional(schema.SIZE_BYTES)))
    """Of the process that ran the artefact, without a GPU's own memory."""
    baseline_memory_bytes: int | None = field(metadata=required(optional(schema.SIZE_BYTES)))
    """What that process used before the model was loaded."""
    stable: bool = field(metadata=required(boolean))
    """Whether the times settled within the warm-up."""
    integer_share: float | None = field(metadata=required(optional(schema.SHARE)))
    """The share of the nodes of convolution and matrix product that ran in integers; None if the runtime tells none."""
    sha256: str = field(metadata=required(schema.SHA256))
    """Of the model file."""
    reference: str | None = field(metadata=required(optional(schema.NAME)))
    """Name of the artefact that this one is compared with; None in its own row, as are the three below."""
    speedup: float | None = field(metadata=required(_SPEEDUP))
    """Median latency of the reference divided by this one's."""
    speedup_low: float | None = field(metadata=required(_SPEEDUP))
    speedup_high: float | None = field(metadata=required(_SPEEDUP))
    build_s: float | None = field(default=None, metadata=with_default(optional(schema.NONNEGATIVE_S)))
    """How long TensorRT took to build the engine; None without an engine, or with one from the cache."""
    commands: tuple[str, ...] = field(default=(), metadata=with_default(schema.COMMANDS))
    """The trtexec command lines, as they were run."""
    note: str | None = field(default=None, metadata=with_default(optional(text())))
    """The warning that an INT8 file ran mostly in float, or that the runtime does not tell; else None."""

    @property
    def int8_in_name_only(self) -> bool:
        """Whether an INT8 file ran fewer than `REALLY_INT8` of its compute nodes in integers."""
        return self.kind.startswith("int8") and self.integer_share is not None and self.integer_share < REALLY_INT8


@dataclass(frozen=True)
class SkippedRow(_RowContext):
    """One artefact that was not timed; `skipped` says why."""

    skipped: str = field(metadata=required(schema.REASON))
    integer_share: float | None = field(default=None, metadata=with_default(optional(schema.SHARE)))
    """Of an `int8-cpu-arm` file: the share of its compute nodes that ONNX Runtime would run in integers on ARM."""


ROW = either("skipped", object_of(SkippedRow), object_of(Row))


def rows_of_comparison(comparison: Comparison) -> list[Row | SkippedRow]:
    """Make one row for each job, in order.

    The reference of a row is the first FP32 artefact of its runtime or, without one, the runtime's first artefact.
    """
    settings = comparison.settings
    reference_by_runtime: dict[Runtime, Measurement] = {}
    for measurement in comparison.measurements:
        first = reference_by_runtime.setdefault(measurement.job.runtime, measurement)
        if measurement.job.kind == "fp32" and first.job.kind != "fp32":
            reference_by_runtime[measurement.job.runtime] = measurement
    return [
        _skipped_row(result, settings)
        if isinstance(result, Skipped)
        else _row(result, reference_by_runtime[result.job.runtime], settings)
        for result in comparison.results
    ]


def _skipped_row(result: Skipped, settings: BenchSettings) -> SkippedRow:
    job = result.job
    provider = PROVIDERS[job.runtime]
    return SkippedRow(job.artefact, job.kind, job.runtime, provider, settings.batch, settings.threads, result.reason)


def _row(measurement: Measurement, reference_measurement: Measurement, settings: BenchSettings) -> Row:
    rounds_ms = _rounds_ms(measurement)
    summary: LatencySummary = summarize(rounds_ms, settings.batch)
    median = median_estimate(rounds_ms, settings.seed)
    speedup: Estimate | None = None
    if measurement is not reference_measurement:
        speedup = speedup_estimate(_rounds_ms(reference_measurement), rounds_ms, settings.seed)
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
        reference=reference_measurement.job.artefact if speedup else None,
        speedup=speedup.value if speedup else None,
        speedup_low=speedup.low if speedup else None,
        speedup_high=speedup.high if speedup else None,
        build_s=measurement.build_s,
        commands=measurement.commands,
    )
    return replace(row, note=_int8_warning(row))


def _rounds_ms(measurement: Measurement) -> list[tuple[float, ...]]:
    return [one_round.samples_ms for one_round in measurement.rounds]


def _int8_warning(row: Row) -> str | None:
    """Warn of an INT8 file that ran mostly in float; the percentage is the share of nodes that ran in integers."""
    if row.kind.startswith("int8") and row.integer_share is None:
        return f"integer share n/a: {row.provider} does not say what ran"
    return (
        f"not really INT8: only {row.integer_share:.0%} of the compute nodes ran in integers"
        if row.int8_in_name_only
        else None
    )


def _integer_share(measurement: Measurement) -> float | None:
    if measurement.integer_nodes is None or measurement.compute_nodes is None:
        return None
    return measurement.integer_nodes / measurement.compute_nodes if measurement.compute_nodes else 0.0
