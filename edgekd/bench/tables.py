"""What was measured, as tables for people: latencies, numerics and energy."""

from __future__ import annotations

from collections.abc import Sequence

from edgekd import console
from edgekd.agent.device.power import Energy
from edgekd.agent.numerics import LogitsCheck
from edgekd.bench.results import Results
from edgekd.bench.rows import Row, SkippedRow

LATENCY = ("artefact", "runtime", "batch", "threads", "p50 ms", "p95 ms", "p99 ms", "per s", "kB", "note")
NUMERICS = ("artefact", "precision", "largest difference", "allowed", "clear answers that differ", "as here")
ENERGY = ("artefact", "runtime", "W gross", "W idle", "W net", "mJ gross", "mJ net", "rails", "from")


def latency_rows(rows: Sequence[Row | SkippedRow]) -> list[tuple[str, ...]]:
    """Return bench's rows as text."""
    table_rows: list[tuple[str, ...]] = []
    for row in rows:
        if isinstance(row, SkippedRow):
            table_rows.append((row.artefact, row.runtime, *["–"] * 7, row.skipped))
            continue
        numbers = [f"{value:.3f}" for value in (row.p50_ms, row.p95_ms, row.p99_ms)]
        sizes = (f"{row.throughput_per_s:.0f}", f"{row.size_bytes / 1000:.0f}")
        table_rows.append(
            (row.artefact, row.runtime, str(row.batch), str(row.threads), *numbers, *sizes, row.note or "")
        )
    return table_rows


def numerics_rows(numerics: Sequence[LogitsCheck]) -> list[tuple[str, ...]]:
    """Return how the logits of a device differ from the host's, as text."""
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
    """Return the energy of a run of each artefact on a device, as text."""
    return [
        (
            reading.artefact,
            reading.runtime,
            *(
                f"{w:.2f}"
                for w in (
                    reading.gross_w,
                    reading.idle_w,
                    reading.net_w,
                    reading.gross_mj_per_run,
                    reading.net_mj_per_run,
                )
            ),
            reading.rails,
            f"{reading.source} every {reading.period_s:g} s",
        )
        for reading in energy
    ]


def print_latency(rows: Sequence[Row | SkippedRow]) -> None:
    """Print bench's rows."""
    console.print_table(LATENCY, latency_rows(rows))


def print_device(measured: Results) -> None:
    """Print what is known of a device besides its latencies."""
    if measured.numerics:
        console.print_table(NUMERICS, numerics_rows(measured.numerics))
    if measured.energy:
        console.print_table(ENERGY, energy_rows(measured.energy))
    if measured.energy_note:
        console.say(f"energy   {measured.energy_note}")
