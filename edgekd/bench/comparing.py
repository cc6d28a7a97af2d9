"""From raw comparisons to results.json: rows, verdicts and warnings, whichever machine they were made on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import JsonValue

from edgekd.agent.measurement import BenchSettings, Comparison
from edgekd.bench.results import LatencySamples, Results
from edgekd.bench.rows import ROW, Row, SkippedRow, rows_of_comparison
from edgekd.bench.verdict import verdict
from edgekd.export.ort_session import PRECISION, integer_node_share
from edgekd.recipe import BenchTable
from edgekd.run.cards.evaluation import EvaluationCard
from edgekd.run.cards.exported import AgreementCard
from edgekd.run.cards.record import Record
from edgekd.run.directory import RunDir
from edgekd.run.unreadable import UnreadableFiles
from edgekd.schema import list_of


def settings_of(table: BenchTable) -> list[BenchSettings]:
    """Return the settings of each comparison that a recipe asks for."""
    each = {"rounds": table.rounds, "min_runs": table.min_runs, "min_seconds": table.min_seconds}
    return [BenchSettings(batch=batch, threads=threads, **each) for batch in table.batch for threads in table.threads]  # type: ignore[arg-type]


def results_of(comparisons: Sequence[Comparison], folder: Path, run: RunDir | None) -> Results:
    """Return the content of results.json; the files that were measured lie in `folder`."""
    results: list[Row | SkippedRow] = []
    warnings: list[str] = []
    for comparison in comparisons:
        results += [_by_its_own_rules(row, folder) for row in rows_of_comparison(comparison)]
        found_here = [*comparison.warnings, *_saturation(comparison)]
        warnings += [warning for warning in found_here if warning not in warnings]
    return Results(
        target=comparisons[0].target if comparisons else None,
        results=tuple(results),
        verdicts=verdicts(results, run),
        warnings=tuple(warnings),
        data_free=None if run is None else run.data_free(),
    )


def _saturation(comparison: Comparison) -> list[str]:
    """Say that the default mode, which is timed, saturates on an x86 without VNNI; no other measurement runs in it."""
    machine, jobs = comparison.environment, [measurement.job for measurement in comparison.measurements]
    files = [job.artefact for job in jobs if (job.kind, job.runtime) == ("int8-cpu-x86", "ort-cpu")]
    if not files or machine.int8_instructions or not machine.x86:
        return []
    return [
        f"{files[0]} was timed in ONNX Runtime's default mode, which saturates on a CPU without VNNI; its agreement "
        f"and accuracy are those of {PRECISION}=1, which takes longer there (docs/export.md)."
    ]


def _by_its_own_rules(row: Row | SkippedRow, folder: Path) -> Row | SkippedRow:
    """Say of an ARM file that is not timed here what share of it ONNX Runtime runs as integers on ARM."""
    file = folder / row.artefact
    if isinstance(row, Row) or row.kind != "int8-cpu-arm" or row.runtime != "ort-cpu" or not file.is_file():
        return row
    share = integer_node_share(file, arm_rules=True).share
    return replace(row, integer_share=share, skipped=f"{row.skipped}; integer share by ARM rules: {share:.0%}")


def rows_of(results: Sequence[Mapping[str, JsonValue]]) -> list[Row | SkippedRow]:
    """Return the rows that a JSON file holds; raise `SchemaError` where it holds something else."""
    return list(list_of(ROW, 10_000)(results, "results"))


def verdicts(
    rows: Sequence[Row | SkippedRow], run: RunDir | None, left_out: UnreadableFiles | None = None
) -> dict[str, str]:
    """Return one sentence for each comparison and runtime, with what is known of accuracy by now.

    What is known in a file that cannot be read is left out, and named.
    """
    left_out = UnreadableFiles() if left_out is None else left_out
    sentences: dict[str, str] = {}
    several = len({row.runtime for row in rows}) > 1
    by_accuracy, agreed = None, None
    if run is not None:
        by_accuracy, agreed = left_out.unless(accuracies, run), left_out.unless(agreements, run)
    for row in rows:
        name = f"batch {row.batch}, threads {row.threads}" + (f", {row.runtime}" if several else "")
        peers = [
            other
            for other in rows
            if (other.batch, other.threads, other.runtime) == (row.batch, row.threads, row.runtime)
        ]
        sentences.setdefault(name, (f"{row.runtime}: " if several else "") + verdict(peers, by_accuracy, agreed))
    return sentences


def shares(run: RunDir) -> dict[str, float | None] | None:
    """Return the synthetic agreement of each artefact with the one before it in export's chain; None without one."""
    if not (run.stage("export") / AgreementCard.file).is_file():
        return None
    return {link.rpartition("-> ")[2]: value.share for link, value in run.read(AgreementCard).chain.items()}


def agreements(run: RunDir) -> dict[str, float] | None:
    """Return the synthetic agreement of each file with the student, where export's chain knows it."""
    by_file = shares(run)
    if by_file is None:
        return None
    return {file: share for file, share in by_file.items() if share is not None and file.endswith(".onnx")}


def evaluations(run: RunDir) -> list[Path]:
    """Return the files of eval/, the newest last; one whose date the disk does not tell comes first."""

    def written_at(path: Path) -> int:
        try:
            return path.stat().st_mtime_ns
        except OSError:
            return 0

    return sorted(run.stage("eval").glob("[!.]*.json"), key=written_at)


def accuracies(run: RunDir) -> dict[str, float]:
    """Return the accuracy of each artefact by the newest evaluation, where it was of the present file."""
    files = evaluations(run)
    if not files:
        return {}
    newest, hashes = EvaluationCard.load_file(files[-1]), _hashes(run)
    return {k: v for k, v in newest.accuracy.items() if k in hashes and newest.artefacts_sha256.get(k) == hashes[k]}


def _hashes(run: RunDir) -> dict[str, str]:
    """The recorded hash of every artefact that eval measures, under eval's names."""
    hashes = {}
    for stage in ("teacher", "select", "export"):
        record = Record.read(run.stage(stage))
        for name, value in ({} if record is None else record.outputs).items():
            hashes[name if name.endswith(".onnx") else Path(name).stem] = value
    return hashes


def samples_of(comparison: Comparison) -> LatencySamples:
    """Return settings and every sample of a comparison, by round."""
    rounds = {
        measurement.job.label: tuple(timed_round.samples_ms for timed_round in measurement.rounds)
        for measurement in comparison.measurements
    }
    return LatencySamples(comparison.settings, rounds)


def folder_of(target: str) -> str:
    """Return the folder of a target's results: bench/<target>."""
    name = re.sub(r"[^A-Za-z0-9@._-]", "_", target).lstrip(".") or "device"
    return f"bench/{name if name != 'local' else 'local-device'}"


def targets(run: RunDir) -> list[Path]:
    """Return the folders with measurements, this machine's first."""
    folders = sorted(path.parent for path in run.stage("bench").glob("*/samples.json") if path.parent.name[:1] != ".")
    return sorted(folders, key=lambda path: path.name != "local")
