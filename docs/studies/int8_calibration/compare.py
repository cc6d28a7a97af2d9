"""Compare what INT8 files are calibrated on, by accuracy on real images: compare.py OUT.json LABEL=RUN=DATA...

RUN is the folder of a run with an export, DATA a folder with `test/` and perhaps `train/`, each with one folder per
class. Every INT8 file is made up to four times, by the chain that `edgekd export` uses. Only the samples differ that
set its ranges and decide about its remedies:

    replay      the run's replay networks, as in an export
    noise       standard normal images in the teacher's input space
    batchnorm   images optimised towards the student's BatchNorm statistics, as in ZeroQ (arXiv 2001.00281); 128 and 128
    oracle      real training images

Right answers, agreement with FP32 and clipping are of the test images. CPU files are judged without saturation; where
ONNX Runtime's default mode saturates on this CPU, `right_default_mode` counts its answers, too (docs/export.md). Files
for TensorRT are computed by ONNX Runtime as they are written.

OUT.json is written after every row. A row that is there of the same files and sizes is kept: the same command goes on
where it was cut off. Nothing else is written. `--test-limit N` takes the first N test images, classes in turn.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from docs.studies.common import images
from docs.studies.common.provenance import commit, provenance
from edgekd import machine, pipeline
from edgekd.agent.device.environment import this_machine
from edgekd.agent.device.machine import sha256_of
from edgekd.errors import GateError
from edgekd.export import int8, onnx_export, ort_session
from edgekd.export.clipping import plan_clipping
from edgekd.export.fidelity import TOLERANCE_FP32, compare_answers
from edgekd.export.int8_chain import Int8Result, quantize_keeping_answers
from edgekd.export.quantize import FLAVORS, Flavor
from edgekd.export.ranges import Batches, Ranges, collect_ranges
from edgekd.export.samples import ExportSamples, cached_batches, image_batches
from edgekd.models import artefacts
from edgekd.models.description import Description
from edgekd.recipe import Recipe
from edgekd.rng import KeyedDraws
from edgekd.run.directory import RunDir
from edgekd.run.files import read_json, write_json
from edgekd.run.realdata import RealImages, describe_transform
from edgekd.synthesis.teacher import Teacher

BATCH, FIT_STEPS, FIT_LR, FITTED = 64, 60, 0.1, 128


@dataclass(frozen=True)
class Source:
    """Samples that set ranges, others that choose between them, and what is to be said of them."""

    calibration: Batches
    held_out: Batches
    facts: dict[str, Any] = field(default_factory=dict)
    headrooms: tuple[float, ...] = int8.HEADROOMS


@dataclass(frozen=True)
class Subject:
    """One run and the real images it is measured on."""

    label: str
    run: RunDir
    recipe: Recipe
    description: Description
    student: nn.Module
    test: RealImages
    train: RealImages | None
    threads: int

    @property
    def fp32(self) -> Path:
        """Return the file that INT8 files are made of."""
        return self.run.stage("export") / "student.fp32.onnx"

    def sizes(self, name: str) -> tuple[int, int]:
        """Return how many samples of a source calibrate, and how many decide."""
        table = self.recipe.export
        asked = (table.calibration_samples, table.holdout_samples)
        return (min(asked[0], FITTED), min(asked[1], FITTED)) if name == "batchnorm" else asked


def noise(draws: KeyedDraws, shape: tuple[int, int, int], purpose: str, count: int) -> Batches:
    """Return standard normal images."""

    def batches() -> Iterator[NDArray[Any]]:
        for index, start in enumerate(range(0, count, BATCH)):
            drawn: NDArray[Any] = draws.normal(index, purpose, min(BATCH, count - start), *shape).numpy()
            yield drawn

    return batches


def fitted(subject: Subject, starts: tuple[Batches, Batches]) -> Source:
    """Return images whose statistics in the student are those of its BatchNorm layers, from noise, batch by batch."""
    observer = Teacher(
        subject.student,
        head=artefacts.student_head(subject.student, subject.description.input_shape),
        output_transform="",
        precision=machine.Precision(torch.device("cpu"), bf16=False),
    )
    distances: list[tuple[float, float]] = []

    def fit(batch: NDArray[Any]) -> Tensor:
        x = torch.from_numpy(batch).requires_grad_(True)
        optimizer = torch.optim.Adam([x], lr=FIT_LR)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, FIT_STEPS)
        seen = []
        for _ in range(FIT_STEPS):
            optimizer.zero_grad()
            distance = observer.observe(x, batchnorm=True).batchnorm
            distance.backward()
            optimizer.step()
            schedule.step()
            seen.append(float(distance.detach()))
        with torch.no_grad():
            seen.append(float(observer.observe(x, batchnorm=True).batchnorm))
        distances.append((seen[0], seen[-1]))
        return x.detach()

    calibration, held_out = ([fit(batch) for batch in start()] for start in starts)
    first, last = (float(np.mean(values)) for values in zip(*distances, strict=True))
    facts = {"batchnorm_distance": {"first": first, "last": last, "steps": FIT_STEPS}}
    return Source(of_tensors(calibration), of_tensors(held_out), facts)


def split(real: RealImages, sizes: tuple[int, int]) -> Source:
    """Return disjoint parts of real images in an order that a seed shuffled."""
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(0)).tolist()

    def part(chosen: list[int]) -> Batches:
        stack: Tensor = torch.stack([real.normalized(real.folder.files[index]) for index in chosen])
        return of_tensors(list(stack.split(BATCH)))

    return Source(part(order[: sizes[0]]), part(order[sizes[0] : sum(sizes)]), headrooms=(1.0,))


def of_tensors(batches: list[Tensor]) -> Batches:
    """Return tensors as the quantiser takes them."""
    return lambda: (batch.numpy() for batch in batches)


def sources(subject: Subject) -> dict[str, Callable[[], Source]]:
    """Return how to make each source that this run allows."""

    def replay() -> Source:
        samples = ExportSamples.of_run(subject.run, None)
        calibration, held_out = subject.sizes("replay")
        return Source(samples.stream("export/calibration", calibration), samples.stream("export/held-out", held_out))

    def normal(name: str) -> tuple[Batches, Batches]:
        draws, shape = KeyedDraws(subject.recipe.seed, "study", torch.device("cpu")), subject.description.input_shape
        calibration, held_out = subject.sizes(name)
        return noise(draws, shape, "calibration", calibration), noise(draws, shape, "held-out", held_out)

    found: dict[str, Callable[[], Source]] = {"replay": replay, "noise": lambda: Source(*normal("noise"))}
    if any(isinstance(layer, nn.BatchNorm2d) for layer in subject.student.modules()):
        found["batchnorm"] = lambda: fitted(subject, normal("batchnorm"))
    train = subject.train
    if train is not None and len(train) >= sum(subject.sizes("oracle")):
        found["oracle"] = lambda: split(train, subject.sizes("oracle"))
    return found


class Study:
    """Makes the rows of one run that are missing."""

    def __init__(self, subject: Subject, known: dict[str, Any], save: Callable[[dict[str, Any]], None]) -> None:
        self.subject, self.save = subject, save
        self.labels, self.images = subject.test.folder.labels.numpy(), image_batches(subject.test, None)
        self.reference = ort_session.all_logits(subject.fp32, self.images(), threads=subject.threads)
        self.found: dict[str, Any] = {
            **provenance({subject.label: subject.recipe.method}),
            "student": subject.recipe.student.name,
            "test_set": "/".join(subject.test.folder.path.parts[-2:]),
            "test_images": len(subject.test),
            "test_images_sha256": subject.test.folder.sha256(),
            "transform": describe_transform(subject.description.input_shape),
            "fp32_sha256": sha256_of(subject.fp32),
            "fp32_right": self.right(self.reference),
        }
        same = all(known.get(name) == self.found[name] for name in ("fp32_sha256", "test_images_sha256"))
        self.found["rows"] = known["rows"] if same else []

    def right(self, logits: NDArray[np.float32]) -> int:
        """Return the number of right answers."""
        return int((logits.argmax(1) == self.labels).sum())

    def run(self) -> None:
        """Make what is missing, source by source."""
        for name, make in sources(self.subject).items():
            flavors = [flavor for flavor in FLAVORS.values() if not self._has(self._key(name, flavor))]
            if not flavors:
                continue
            source = make()
            held_out = cached_batches(source.held_out)
            judge = int8.HeldOutSet.of(self.subject.fp32, held_out)
            ranges: Ranges | GateError
            try:
                ranges = collect_ranges(self.subject.fp32, source.calibration, threads=self.subject.threads)
            except GateError as error:
                ranges = error
            for flavor in flavors:
                row = {**self._key(name, flavor), **host(self.subject.threads), **source.facts}
                row |= self._row(flavor, source, ranges, judge)
                self.found["rows"].append(row)
                self.save(self.found)
                shown = row.get("failed") or f"{row['right']} of {len(self.labels)} right"
                sys.stderr.write(f"{self.subject.label} {name} {flavor.name}: {shown}\n")

    def _key(self, name: str, flavor: Flavor) -> dict[str, Any]:
        calibration, held_out = self.subject.sizes(name)
        sizes = {"calibration_samples": calibration, "holdout_samples": held_out}
        return {"calibration": name, "flavour": flavor.name, **sizes}

    def _has(self, key: dict[str, Any]) -> bool:
        return any(key.items() <= row.items() for row in self.found["rows"])

    def _row(
        self, flavor: Flavor, source: Source, ranges: Ranges | GateError, judge: int8.HeldOutSet
    ) -> dict[str, Any]:
        """Return the numbers of one file, or why it could not be made."""
        target = self.subject.recipe.export.min_int8_agreement
        try:
            if isinstance(ranges, GateError):
                raise ranges
            result = quantize_keeping_answers(
                *(self.subject.fp32, flavor, ranges, judge, source.calibration),
                target=target,
                headrooms=source.headrooms,
            )
            return self._measured(result, flavor)
        except GateError as error:
            return {"failed": str(error)}

    def _measured(self, result: Int8Result, flavor: Flavor) -> dict[str, Any]:
        """Return what a file makes of the test images, beside what was known of it before."""
        model = result.plan.build()

        def logits(*, default_kernels: bool = False) -> NDArray[np.float32]:
            threads = self.subject.threads
            return ort_session.all_logits(
                model, self.images(), target=flavor.target, threads=threads, default_kernels=default_kernels
            )

        found = logits()
        saturates = flavor.target == "int8-cpu-x86" and ort_session.saturates()
        return {
            "right": self.right(found),
            "accuracy": self.right(found) / len(self.labels),
            "right_default_mode": self.right(logits(default_kernels=True)) if saturates else None,
            "agreement": compare_answers(self.reference, found, TOLERANCE_FP32).to_card().to_json(),
            "clipping": plan_clipping(result.plan, self.images).overall,
            "held_out": result.quality.to_card().to_json(),
            "passed": result.passed,
            "method": result.plan.range_method,
            "headroom": result.plan.headroom,
            "remedies": [change.name for change in result.changes if change.applied],
            "left_in_float": len(result.plan.float_nodes),
        }


def host(threads: int) -> dict[str, Any]:
    """Return what a row may depend on."""
    here = this_machine()
    facts = {"cpu": here.cpu_model, "int8_instructions": here.int8_instructions, "threads": threads}
    return {**facts, "onnxruntime": version("onnxruntime"), "commit": commit()}


def opened(label: str, run: RunDir, data: Path, options: argparse.Namespace) -> Subject:
    """Return a run with its images."""
    recipe = pipeline.open_recipe(run)
    threads = machine.use_threads(options.threads or recipe.machine.threads)
    test = images.labeled(run, data / "test", options.test_limit)
    train = images.labeled(run, data / "train", cache=False) if (data / "train").is_dir() else None
    return Subject(
        label, run, recipe, artefacts.description_of(run), artefacts.student_network(run), test, train, threads
    )


def main() -> None:
    """Write the study of all runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", nargs="+", metavar="LABEL=RUN=DATA")
    parser.add_argument("--test-limit", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    named = [item.split("=") for item in options.runs]
    if any(len(parts) != 3 for parts in named) or len({parts[0] for parts in named}) < len(named):
        parser.error("each run is LABEL=RUN=DATA, with a label of its own")
    results = read_json(options.out) if options.out.is_file() else {}
    for label, folder, data in named:
        subject = opened(label, RunDir(Path(folder)), Path(data), options)
        if not subject.fp32.is_file():
            sys.exit(f"{folder} holds no {subject.fp32.name}: edgekd export {folder} --int8")
        if ort_session.open_session(subject.fp32).get_inputs()[0].name == onnx_export.UINT8_INPUT:
            sys.exit(f"{folder} was exported with --uint8-input; export it with --float-input for this study.")

        def save(found: dict[str, Any], label: str = label) -> None:
            write_json(options.out, results | {label: found})

        study = Study(subject, results.get(label, {}), save)
        study.run()
        results[label] = study.found
        save(study.found)


if __name__ == "__main__":
    main()
