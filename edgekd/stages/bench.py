"""Measure the latency of ONNX files side by side on this machine, by the protocol of docs/benchmarking.md."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgekd import console
from edgekd.deploy.agent.kernels import kind_of
from edgekd.deploy.agent.measure import Progress, measure
from edgekd.deploy.agent.measurement import Comparison, Job, Settings
from edgekd.deploy.rows import rows
from edgekd.deploy.verdict import verdict
from edgekd.recipe import BenchTable, Recipe
from edgekd.rundir import RunDir, read_json, write_json
from edgekd.stopping import Stop


def run(run_dir: RunDir, recipe: Recipe, *, key: str, inputs: dict[str, str], stop: Stop) -> None:
    """Publish bench/local/: environment.json, samples.json, results.json."""
    export = run_dir.stage("export")
    files = [export / name.removeprefix("export/") for name in sorted(inputs) if name.endswith(".onnx")]
    results, comparisons = compare(files, recipe.bench, stop, agreements=agreements(run_dir))
    with run_dir.publish("bench/local") as (folder, record):
        write_json(folder / "environment.json", comparisons[0].environment.to_json())
        write_json(folder / "samples.json", [_samples(comparison) for comparison in comparisons])
        write_json(folder / "results.json", results)
        record |= {"stage": "bench", "version": 1, "key": key, "inputs": inputs}
        record["recipe_slice"] = recipe.bench.model_dump(mode="json")


def compare(
    files: list[Path], table: BenchTable, stop: Stop, agreements: dict[str, float] | None = None
) -> tuple[dict[str, Any], list[Comparison]]:
    """Measure files against one another for each batch size and thread count; return results.json and raw samples."""
    jobs = [Job(file.name, file, kind_of(file.name)) for file in files]
    results: list[dict[str, Any]] = []
    verdicts: dict[str, str] = {}
    warnings: list[str] = []
    comparisons = []
    for batch in table.batch:
        for threads in table.threads:
            stop.raise_if_requested("bench")
            settings = Settings(
                batch=batch,
                threads=threads,
                rounds=table.rounds,
                min_runs=table.min_runs,
                min_seconds=table.min_seconds,
            )
            comparison = _measure(jobs, settings, stop)
            measured = rows(comparison)
            verdicts[f"batch {batch}, threads {threads}"] = verdict(measured, agreements=agreements)
            results += [row.to_json() for row in measured]
            warnings += [warning for warning in comparison.warnings if warning not in warnings]
            comparisons.append(comparison)
    target = comparisons[0].target
    return {"target": target, "results": results, "verdicts": verdicts, "warnings": warnings}, comparisons


def _measure(jobs: list[Job], settings: Settings, stop: Stop) -> Comparison:
    total = len(jobs) * (settings.rounds + 2)
    done = 0
    with console.progress(f"bench batch {settings.batch} threads {settings.threads}", total) as bar:

        def show(progress: Progress) -> None:
            nonlocal done
            stop.raise_if_requested("bench")
            done += 1
            bar.update(min(done, total), f"{progress.step} {progress.artefact}")

        return measure(jobs, settings, show)


def agreements(run_dir: RunDir) -> dict[str, float] | None:
    """Return the synthetic agreement of each file with the student, from export's agreement chain."""
    path = run_dir.stage("export") / "agreement.json"
    if not path.is_file():
        return None
    chain = read_json(path)["chain"]
    return {link.split(" -> ")[1]: value["share"] for link, value in chain.items() if link.endswith(".onnx")}


def _samples(comparison: Comparison) -> dict[str, Any]:
    return {
        "settings": asdict(comparison.settings),
        "samples_ms": {
            found.job.artefact: [list(round_.samples_ms) for round_ in found.rounds]
            for found in comparison.measurements
        },
    }
