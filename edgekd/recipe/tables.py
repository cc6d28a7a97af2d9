"""The tables of a recipe besides `[method]`, as typed keys; docs/recipe.md is made from their docstrings."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from edgekd import console
from edgekd.agent.kernels import Runtime
from edgekd.agent.measurement import BenchSettings
from edgekd.cpus import MOST_THREADS
from edgekd.recipe.method import AUTO, MethodTable, Table
from edgekd.recipe.names import name_problem

MOST_SAMPLES = 100_000
"""More than any choice needs; all of them are held in memory."""


class TeacherTable(Table):
    """The teacher and what is known of it; only `file` is needed."""

    file: str = ""
    """Checkpoint, relative to the recipe."""
    arch: str = ""
    """Architecture with options (`resnet18,maxpool=false`) or `package.module:factory`, code that has to be approved
    of; inferred when empty."""
    input: str = ""
    """Input shape such as `3x32x32`; inferred or assumed when empty."""
    trust_pickle: bool = False
    """Run the code inside a pickled module, which has to be approved of (its sha256 is printed and recorded)."""
    accept_mapping: bool = False
    """Accept a mapping between differing parameter names that was shown before."""


class PixelsTable(Table):
    """How real pixels become the teacher's input. Distillation never needs it and never reads it."""

    normalize: Literal["", "imagenet", "cifar10", "cifar100", "mnist", "none"] = ""
    """A known mean and standard deviation; `none` is plain [0, 1]; empty means unknown."""
    mean: tuple[float, ...] = ()
    """Mean per channel of pixels in [0, 1]; overrides `normalize`."""
    std: tuple[float, ...] = ()
    """Standard deviation per channel."""
    classes: str = ""
    """File with one class name a line."""


class StudentNetworkTable(Table):
    """The student network."""

    name: str = "mobilenetv2"
    """Architecture, with a width multiplier (`mobilenetv2@0.35`) or options; see `edgekd students`. `auto` is
    replaced, once, by the largest that `auto_budget_ms` allows."""
    auto_budget_ms: float = Field(0.0, ge=0)
    """The FP32 latency that `auto` was asked to keep, in ms; the student it led to stands in `name`."""
    auto_on: str = ""
    """The device, as in `edgekd bench --on`, on which `auto` measures; empty for this machine."""
    weights: str = ""
    """Checkpoint the student starts from, relative to the recipe; empty leaves it to `method.student.inherit`."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.name == AUTO and not self.auto_budget_ms:
            raise ValueError('name = "auto" needs auto_budget_ms, the latency in ms that the student may take')
        if self.name == AUTO and self.weights:
            raise ValueError('weights belong to one architecture; name it in place of "auto"')
        return self


class ImagesTable(Table):
    """Pictures that the user has and may use, in place of generated images."""

    folder: str = ""
    """Folder of unlabelled pictures, relative to the recipe (a run keeps its absolute path), on which the student
    learns the teacher's answers: the run is then not data-free, and says so."""


class SelectTable(Table):
    """How the final checkpoint is chosen, without data."""

    samples: int = Field(1024, ge=64, le=MOST_SAMPLES)
    """Synthetic samples, half replayed and half from the averaged generator."""
    reestimate_batches: int = Field(32, ge=0)
    """Training batches over which BatchNorm statistics are re-estimated as further candidates; 0 skips them."""


class ExportTable(Table):
    """Which ONNX files leave the house, and their gates."""

    int8: bool = False
    """Also write INT8 files, calibrated on replayed samples."""
    target: Literal["cpu", "tensorrt", "all"] = "all"
    """Runtimes the INT8 files are for."""
    uint8_input: bool = False
    """Put the normalisation into the graph: uint8 pixels in (needs mean and std)."""
    calibration_samples: int = Field(512, ge=32, le=MOST_SAMPLES)
    """Synthetic samples that set the INT8 ranges."""
    holdout_samples: int = Field(512, ge=32, le=MOST_SAMPLES)
    """Further synthetic samples that choose between ranges and hold the gates."""
    min_int8_agreement: float = Field(0.97, ge=0, le=1)
    """Share of decided synthetic samples on which INT8 must give the student's answer."""
    qat: bool = False
    """Fine-tune the student, its layers fake-quantised, for an INT8 file that no other remedy brings to that share."""
    qat_steps: int = Field(200, ge=1)
    """Updates of that fine-tuning, each on 64 fresh synthetic samples."""
    qat_lr: float = Field(1e-4, gt=0)
    """Its learning rate (Adam), which falls to 0 along a cosine."""
    images: str = ""
    """Folder of pictures that set the INT8 ranges in place of synthetic samples, relative to the recipe (a run keeps
    its absolute path): the export is then not data-free, and says so."""

    @property
    def calibrates_on_images(self) -> bool:
        """Whether pictures set INT8 ranges."""
        return self.int8 and bool(self.images)

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: object) -> object:
        """Take `calibrate_on_real`, the old name of `images`."""
        if not isinstance(values, Mapping) or "calibrate_on_real" not in values:
            return values
        rest = {key: value for key, value in values.items() if key != "calibrate_on_real"}
        folder = values["calibrate_on_real"]
        if folder and rest.get("images"):
            raise ValueError("images and calibrate_on_real, its old name, are both given: keep images")
        if folder:
            _name_new_key()
        return {**rest, "images": folder}


@cache
def _name_new_key() -> None:
    """Say once what export.calibrate_on_real is called now."""
    console.warn("the recipe key export.calibrate_on_real is now called export.images")


class BenchTable(Table):
    """How latency is measured."""

    runtime: tuple[Runtime, ...] = Field(("ort-cpu",), min_length=1)
    """Runtimes to measure in here: ONNX Runtime on CPU or CUDA, PyTorch on the CPU, TensorRT."""
    batch: tuple[Annotated[int, Field(ge=1)], ...] = Field((1,), min_length=1)
    """Batch sizes."""
    threads: tuple[Annotated[int, Field(ge=1, le=MOST_THREADS)], ...] = Field((1,), min_length=1)
    """Intra-op threads of the runtime."""
    rounds: int = Field(BenchSettings.rounds, ge=2)
    """Rounds, interleaved over the artefacts."""
    min_runs: int = Field(BenchSettings.min_runs, ge=10)
    """Runs per artefact, at least."""
    min_seconds: float = Field(BenchSettings.min_seconds, gt=0)
    """Seconds of measuring per artefact, at least."""


class EvalTable(Table):
    """Real images, for numbers only; nothing that is built depends on them."""

    data: str = ""
    """Folder with one subfolder per class, relative to the recipe."""


class MachineTable(Table):
    """Where distillation runs; in no stage's key."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:i."""
    threads: int = Field(0, ge=0, le=MOST_THREADS)
    """CPU threads; 0 takes as many as the process has CPUs, by affinity and control group, rounded up."""


class Recipe(Table):
    """Everything a run depends on, with every default written out."""

    name: str = ""
    """Name of the run, a folder under runs/ and never a path; the recipe's file name when empty."""
    seed: int = 1
    """Seed that every random draw is derived from."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of convolutions in distillation; auto decides per network from CPU flags or GPU capability."""
    checkpoint_period: int = Field(0, ge=0)
    """Steps between two checkpoints; 0: 20 a run and one every 5 minutes, as long as they take under 1 % of it."""
    teacher: TeacherTable = TeacherTable()
    pixels: PixelsTable = PixelsTable()
    student: StudentNetworkTable = StudentNetworkTable()
    images: ImagesTable = ImagesTable()
    method: MethodTable = MethodTable()
    select: SelectTable = SelectTable()
    export: ExportTable = ExportTable()
    bench: BenchTable = BenchTable()
    eval: EvalTable = EvalTable()
    machine: MachineTable = MachineTable()

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        problem = name_problem(name)
        if problem:
            raise ValueError(problem)
        return name
