"""What is measured side by side, and measuring it with its progress shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from edgekd import console
from edgekd.agent.kernels import Runtime, kind_of
from edgekd.agent.measure import measure_jobs, require_some
from edgekd.agent.measurement import BenchJob, BenchSettings, Comparison, MeasurementProgress
from edgekd.bench import comparing, golden
from edgekd.bench.results import Results
from edgekd.errors import UsageError
from edgekd.models import artefacts
from edgekd.recipe import BenchTable
from edgekd.run.directory import RunDir
from edgekd.stopping import Stop


def torch_job(run_dir: RunDir, folder: Path) -> BenchJob:
    """Save the student as a program of PyTorch, which a child process can load without edgekd."""
    shape = artefacts.description_of(run_dir).input_shape
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.export.export(
        artefacts.student_network(run_dir), (torch.zeros(2, *shape),), dynamic_shapes=({0: batch},)
    )
    file = folder / "student.pt2"
    torch.export.save(program, file)
    return BenchJob("student", file, "fp32", "torch", image_shape=shape)


def jobs_of(
    files: Sequence[Path],
    runtimes: Sequence[Runtime],
    program: BenchJob | None = None,
    image_shape: tuple[int, ...] | None = None,
) -> list[BenchJob]:
    """Return the jobs of each runtime in turn; PyTorch has one, the student itself."""
    jobs = []
    for runtime in dict.fromkeys(runtimes):
        if runtime == "torch":
            if program is None:
                raise UsageError("--runtime torch measures the student of a run; an ONNX file has no PyTorch network.")
            jobs.append(program)
            continue
        file_jobs = [
            BenchJob(file.name, file, kind_of(file.name), runtime, image_shape, weights=golden.weights_of(file))
            for file in files
        ]
        jobs += [golden.described(job) for job in file_jobs] if runtime == "tensorrt" else file_jobs
    return jobs


def measure_side_by_side(
    jobs: Sequence[BenchJob], table: BenchTable, stop: Stop, run_dir: RunDir | None = None
) -> tuple[Results, list[Comparison]]:
    """Measure jobs against one another for each batch size and thread count; return results.json and raw samples.

    Raises MachineError with the reasons where this machine runs none of them.
    """
    comparisons = []
    for settings in comparing.settings_of(table):
        stop.raise_if_requested("bench")
        with shown(jobs, settings, stop) as show:
            asked = partial(stop.raise_if_requested, "bench")
            comparisons.append(measure_jobs(jobs, settings, show, while_waiting=asked))
    require_some([result for comparison in comparisons for result in comparison.results])
    return comparing.results_of(comparisons, jobs[0].model.parent, run_dir), comparisons


@contextmanager
def shown(
    jobs: Sequence[BenchJob], settings: BenchSettings, stop: Stop, where: str = ""
) -> Iterator[Callable[[MeasurementProgress], None]]:
    """Show the progress of one comparison, and stop it when asked to."""
    total = len(jobs) * (settings.rounds + 2)
    with console.progress(f"bench{where} batch {settings.batch} threads {settings.threads}", total) as bar:

        def show(progress: MeasurementProgress) -> None:
            stop.raise_if_requested("bench")
            bar.update(min(total * progress.done // progress.total, total), f"{progress.step} {progress.artefact}")

        yield show
