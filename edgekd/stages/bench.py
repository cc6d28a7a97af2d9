"""Measure the latency of ONNX files side by side on this machine, by the protocol of docs/benchmarking.md."""

from __future__ import annotations

from edgekd.agent.device import scratch
from edgekd.bench import comparing, measuring
from edgekd.bench.results import write_results
from edgekd.stages.base import Execution


def measure_latency(execution: Execution) -> None:
    """Publish bench/local/: environment.json, samples.json, results.json."""
    run_dir, table = execution.run, execution.recipe.bench
    names = [name for name in sorted(execution.inputs) if name.endswith(".onnx")]
    files = [run_dir.stage("export") / name.removeprefix("export/") for name in names]
    with scratch.folder() as place:
        program = measuring.torch_job(run_dir, place) if "torch" in table.runtime else None
        results, comparisons = measuring.measure_side_by_side(
            measuring.jobs_of(files, table.runtime, program), table, execution.stop, run_dir
        )
    with execution.publish() as (folder, _):
        write_results(folder / "environment.json", comparisons[0].environment)
        write_results(folder / "samples.json", [comparing.samples_of(comparison) for comparison in comparisons])
        write_results(folder / "results.json", results)
