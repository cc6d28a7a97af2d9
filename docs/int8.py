"""Compare what INT8 files are calibrated on, by accuracy on real images: int8.py OUT.json RUN=DATA...

RUN is the folder of a run with an export, DATA a folder with `train/` and `test/`, each with one folder per class.
Every CPU file is made four times, by the chain that `edgekd export` uses. Only the samples differ that set its ranges
and decide about its remedies:

    replay      the run's replay networks, as in an export
    noise       standard normal images in the teacher's input space
    batchnorm   images optimised until they fit the student's BatchNorm statistics, as in ZeroQ (arXiv 2001.00281)
    oracle      real training images

Accuracy, agreement with FP32 and clipping are of all test images. Nothing is written but OUT.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgekd import machine, pipeline
from edgekd.deploy import int8, onnx_export, ort_session
from edgekd.deploy.agreement import agreement
from edgekd.deploy.clipping import clipping
from edgekd.deploy.int8_chain import quantize_keeping_answers
from edgekd.deploy.parity import TOLERANCE_FP32
from edgekd.deploy.quantize import FLAVOURS
from edgekd.deploy.ranges import Batches, collect_ranges
from edgekd.realdata import RealImages, describe_transform, open_folder
from edgekd.recipe import Recipe
from edgekd.rng import Draws
from edgekd.rundir import RunDir, sha256_file
from edgekd.stages import artefacts
from edgekd.stages.onnx_files import FLAVOURS_OF
from edgekd.stages.samples import Samples, kept, of_images
from edgekd.synthesis.teacher import Teacher

BATCH, FIT_STEPS, FIT_LR = 64, 200, 0.1


@dataclass(frozen=True)
class Source:
    """Samples that set ranges, and others that choose between them."""

    calibration: Batches
    held_out: Batches


def noise(draws: Draws, shape: tuple[int, int, int], purpose: str, count: int) -> Batches:
    """Return standard normal images."""

    def batches() -> Iterator[NDArray[Any]]:
        for index, start in enumerate(range(0, count, BATCH)):
            drawn: NDArray[Any] = draws.normal(index, purpose, min(BATCH, count - start), *shape).numpy()
            yield drawn

    return batches


def fitted(student: nn.Module, description: artefacts.Description, start: Batches) -> Batches:
    """Return images whose statistics in the student are those of its BatchNorm layers, from noise, batch by batch."""
    shape = description.input_shape
    observer = Teacher(
        student,
        head=artefacts.student_head(student, shape),
        undo="",
        precision=machine.Precision(torch.device("cpu"), bf16=False),
    )

    def fit(batch: NDArray[Any]) -> NDArray[Any]:
        x = torch.from_numpy(batch).requires_grad_(True)
        optimizer = torch.optim.Adam([x], lr=FIT_LR)
        for _ in range(FIT_STEPS):
            optimizer.zero_grad()
            observer.observe(x, batchnorm=True).batchnorm.backward()
            optimizer.step()
        found: NDArray[Any] = x.detach().numpy()
        return found

    batches = [fit(batch) for batch in start()]
    return lambda: iter(batches)


def sources(run: RunDir, recipe: Recipe, student: nn.Module, train: RealImages | None) -> dict[str, Source]:
    """Return the sources that this student allows."""
    table, description = recipe.export, artefacts.describe(run)
    samples, draws = Samples(artefacts.ReplaySource(run), None), Draws(recipe.seed, "study", torch.device("cpu"))
    sizes = {"calibration": table.calibration_samples, "held-out": table.holdout_samples}
    replay = [samples.stream(f"export/{purpose}", count) for purpose, count in sizes.items()]
    normal = [noise(draws, description.input_shape, purpose, count) for purpose, count in sizes.items()]
    found = {"replay": Source(*replay), "noise": Source(*normal)}
    if any(isinstance(layer, nn.BatchNorm2d) for layer in student.modules()):
        found["batchnorm"] = Source(*(fitted(student, description, start) for start in normal))
    if train is not None:
        found["oracle"] = Source(*split(train, list(sizes.values())))
    return found


def split(images: RealImages, sizes: list[int]) -> list[Batches]:
    """Return disjoint parts of real images in an order that a seed shuffled."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()
    parts = []
    for size in sizes:
        chosen, order = order[:size], order[size:]
        stack: Tensor = torch.stack([images.normalised(images.folder.files[index]) for index in chosen])
        parts.append(list(stack.split(BATCH)))
    return [of_tensors(part) for part in parts]


def of_tensors(batches: list[Tensor]) -> Batches:
    """Return tensors as the quantiser takes them."""
    return lambda: (batch.numpy() for batch in batches)


def study(run: RunDir, data: Path) -> dict[str, Any]:
    """Return everything that is measured of one run."""
    recipe, description, pixels = pipeline.open_recipe(run), artefacts.describe(run), artefacts.read_pixels(run)
    machine.use_threads(recipe.machine.threads)

    def opened(split_name: str) -> RealImages:
        folder = open_folder(data / split_name, classes=description.classes, names=pixels.class_names)
        cached = split_name == "test"
        return RealImages(folder, description.input_shape, mean=pixels.mean, std=pixels.std, cache=cached)

    test, student = opened("test"), artefacts.student_network(run)
    labels = test.folder.labels.numpy()
    fp32 = run.stage("export") / "student.fp32.onnx"
    images = of_images(test, None)
    if ort_session.open_session(fp32).get_inputs()[0].name == onnx_export.UINT8_INPUT:
        sys.exit(f"{run.path} was exported with --uint8-input; export it with --float-input for this study.")
    reference = ort_session.all_logits(fp32, images())
    rows = []
    for name, source in sources(run, recipe, student, opened("train")).items():
        ranges = collect_ranges(fp32, source.calibration)
        judge = int8.HeldOut.of(fp32, kept(source.held_out))
        for flavour in (FLAVOURS[key] for key in FLAVOURS_OF["cpu"]):
            target = recipe.export.min_int8_agreement
            result = quantize_keeping_answers(fp32, flavour, ranges, judge, source.calibration, target=target)
            found = ort_session.all_logits(result.plan.build(), images())
            rows.append(
                {
                    "calibration": name,
                    "flavour": flavour.name,
                    "accuracy": float(np.mean(found.argmax(1) == labels)),
                    "agreement": agreement(reference, found, TOLERANCE_FP32).to_json(),
                    "clipping": clipping(result.plan, images).overall,
                    "held_out": result.quality.to_json(),
                    "passed": result.passed,
                    "method": result.plan.method,
                    "remedies": [step.name for step in result.steps if step.applied],
                    "left_in_float": len(result.plan.float_nodes),
                }
            )
            sys.stderr.write(f"{run.name} {name} {flavour.name}: {rows[-1]['accuracy']:.2%}\n")
    return {
        "student": recipe.student.name,
        "test_images": len(test),
        "transform": describe_transform(description.input_shape),
        "fp32_sha256": sha256_file(fp32),
        "fp32_accuracy": float(np.mean(reference.argmax(1) == labels)),
        "calibration_samples": recipe.export.calibration_samples,
        "holdout_samples": recipe.export.holdout_samples,
        "rows": rows,
    }


def main(out: Path, pairs: list[str]) -> None:
    """Write the study of all runs."""
    results = {}
    for pair in pairs:
        run, _, data = pair.partition("=")
        results[Path(run).name] = study(RunDir(Path(run)), Path(data))
        out.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) < 3 or not all("=" in pair for pair in sys.argv[2:]):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2:])
