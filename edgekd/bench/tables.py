"""Tables of bench's results, for the terminal and the report: latencies, logits against the host's, and energy."""

from __future__ import annotations

from collections.abc import Sequence

from edgekd import console
from edgekd.agent.device.power import Energy
from edgekd.agent.numerics import LogitsCheck
from edgekd.bench.results import Results
from edgekd.bench.rows import Row, SkippedRow

LATENCY_HEADER = ("artefact", "runtime", "batch", "threads", "p50 ms", "p95 ms", "p99 ms", "per s", "kB", "note")
NUMERICS_HEADER = ("artefact", "precision", "largest difference", "allowed", "clear answers that differ", "as here")
ENERGY_HEADER = ("artefact", "runtime", "W gross", "W idle", "W net", "mJ gross", "mJ net", "rails", "from")


def latency_rows(rows: Sequence[Row | SkippedRow]) -> list[tuple[str, ...]]:
    """Format rows as cells under `LATENCY_HEADER`; of a skipped one the note says why."""
    table_rows: list[tuple[str, ...]] = []
    for row in rows:
        if isinstance(row, SkippedRow):
            table_rows.append((row.artefact, row.runtime, *["–"] * 7, row.skipped))
            continue
        latencies = [f"{value:.3f}" for value in (row.p50_ms, row.p95_ms, row.p99_ms)]
        throughput, size = f"{row.throughput_per_s:.0f}", f"{row.size_bytes / 1000:.0f}"
        table_rows.append(
            (row.artefact, row.runtime, str(row.batch), str(row.threads), *latencies, throughput, size, row.note or "")
        )
    return table_rows


def numerics_rows(numerics: Sequence[LogitsCheck]) -> list[tuple[str, ...]]:
    """Format how a device's logits differ from the host's, as cells under `NUMERICS_HEADER`."""
    return [
        (
            check.artefact,
            check.precision,
            "not finite" if check.max_difference is None else f"{check.max_difference:.2g}",
            f"{check.tolerance:g}",
            f"{check.wrong_answers} of {check.clear}",
            "yes" if check.passed else "NO",
        )
        for check in numerics
    ]


def energy_rows(energy: Sequence[Energy]) -> list[tuple[str, ...]]:
    """Format each artefact's power and energy per inference, as cells under `ENERGY_HEADER`."""
    return [
        (
            artefact_energy.artefact,
            artefact_energy.runtime,
            *(
                f"{value:.2f}"
                for value in (
                    artefact_energy.gross_w,
                    artefact_energy.idle_w,
                    artefact_energy.net_w,
                    artefact_energy.gross_mj_per_run,
                    artefact_energy.net_mj_per_run,
                )
            ),
            artefact_energy.rails,
            f"{artefact_energy.source} every {artefact_energy.period_s:g} s",
        )
        for artefact_energy in energy
    ]


def print_latency(rows: Sequence[Row | SkippedRow]) -> None:
    """Print the latency table."""
    console.print_table(LATENCY_HEADER, latency_rows(rows))


def print_numerics_and_energy(results: Results) -> None:
    """Print the tables that only a bench on a device has."""
    if results.numerics:
        console.print_table(NUMERICS_HEADER, numerics_rows(results.numerics))
    if results.energy:
        console.print_table(ENERGY_HEADER, energy_rows(results.energy))
    if results.energy_note:
        console.say(f"energy   {results.energy_note}")
