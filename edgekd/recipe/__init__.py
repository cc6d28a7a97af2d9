"""The recipe: typed tables, read from TOML, completed by a preset, changed by flags, hashed by stage.

Order of precedence: defaults of the types, then the preset, then the recipe file, then flags.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from edgekd.agent import files
from edgekd.agent.kernels import Runtime
from edgekd.errors import RecipeError, UsageError, did_you_mean
from edgekd.recipe.method import MethodTable, Table
from edgekd.recipe.names import name_problem
from edgekd.text import first_line


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


AUTO = "auto"
"""The name of a student that is still to be chosen by its latency."""


class StudentTable(Table):
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


class SelectTable(Table):
    """How the final checkpoint is chosen, without data."""

    samples: int = Field(1024, ge=64)
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
    calibration_samples: int = Field(512, ge=32)
    """Synthetic samples that set the INT8 ranges."""
    holdout_samples: int = Field(512, ge=32)
    """Further synthetic samples that choose between ranges and hold the gates."""
    min_int8_agreement: float = Field(0.97, ge=0, le=1)
    """Share of decided synthetic samples on which INT8 must give the student's answer."""
    qat: bool = False
    """Fine-tune the student, its layers fake-quantised, for an INT8 file that no other remedy brings to that share."""
    qat_steps: int = Field(200, ge=1)
    """Updates of that fine-tuning, each on 64 fresh synthetic samples."""
    qat_lr: float = Field(1e-4, gt=0)
    """Its learning rate (Adam), which falls to 0 along a cosine."""
    calibrate_on_real: str = ""
    """Folder of real images that set the INT8 ranges in place of synthetic samples, relative to the recipe (a run keeps
    its absolute path): the export is then not data-free, and says so."""

    @property
    def calibrates_on_real(self) -> bool:
        """Return whether real images set INT8 ranges."""
        return self.int8 and bool(self.calibrate_on_real)


class BenchTable(Table):
    """How latency is measured."""

    runtime: tuple[Runtime, ...] = Field(("ort-cpu",), min_length=1)
    """Runtimes to measure in here: ONNX Runtime on CPU or CUDA, PyTorch on the CPU, TensorRT."""
    batch: tuple[Annotated[int, Field(ge=1)], ...] = Field((1,), min_length=1)
    """Batch sizes."""
    threads: tuple[Annotated[int, Field(ge=1)], ...] = Field((1,), min_length=1)
    """Intra-op threads of the runtime."""
    rounds: int = Field(10, ge=2)
    """Rounds, interleaved over the artefacts."""
    min_runs: int = Field(200, ge=10)
    """Runs per artefact, at least."""
    min_seconds: float = Field(2.0, gt=0)
    """Seconds of measuring per artefact, at least."""


class EvalTable(Table):
    """Real images, for numbers only; nothing that is built depends on them."""

    data: str = ""
    """Folder with one subfolder per class, relative to the recipe."""


class MachineTable(Table):
    """Where distillation runs; in no stage's key."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:i."""
    threads: int = Field(0, ge=0)
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
    student: StudentTable = StudentTable()
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


def recipes_folder() -> Path:
    """Return the folder of shipped recipes: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def presets() -> dict[str, Path]:
    """Return the shipped method presets by name."""
    return {path.stem: path for path in sorted((recipes_folder() / "methods").glob("*.toml"))}


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; a missing or malformed one is a `RecipeError` that names it."""
    try:
        return files.shallow(tomllib.loads(files.read_text(path)))
    except FileNotFoundError:
        raise RecipeError(f"there is no recipe {path}; `edgekd recipes` lists those that come along.") from None
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else first_line(error)
        raise RecipeError(f"{path} is not a readable TOML file: {reason}") from error


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes` laid over it, table by table."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def parse(data: Mapping[str, Any], *, origin: str) -> Recipe:
    """Check a recipe's data and complete it with its preset; all problems are raised at once."""
    method = data.get("method", {})
    name = method.get("preset", "edgekd") if isinstance(method, Mapping) else "edgekd"
    known = presets()
    if not isinstance(name, str) or name not in known:
        raise RecipeError(
            f'{origin}: there is no method preset "{name}" (known: {", ".join(known)}).{did_you_mean(str(name), known)}'
        )
    preset = {"method": merge(read_toml(known[name]), {"preset": name})}
    return _validate(merge(preset, data), origin=origin)


def _validate(data: Mapping[str, Any], *, origin: str) -> Recipe:
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        lines = [_problem(problem["loc"], problem["type"], problem["msg"]) for problem in error.errors()]
        raise RecipeError(f"{origin}: " + "; ".join(lines)) from None


def _problem(location: tuple[int | str, ...], kind: str, message: str) -> str:
    key = ".".join(str(part) for part in location) or "recipe"
    if kind == "extra_forbidden":
        table = _table_at(location[:-1])
        return f"unknown key {key}.{did_you_mean(str(location[-1]), table)}"
    message = message.removeprefix("Value error, ")
    return f"{key}: {message[:1].lower()}{message[1:]}"


def _table_at(location: Iterable[int | str]) -> dict[str, FieldInfo]:
    table: type[Table] = Recipe
    for part in location:
        annotation = table.model_fields[str(part)].annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, Table)
        table = annotation
    return dict(table.model_fields)


def load(path: Path) -> Recipe:
    """Read, complete and check a recipe file."""
    return parse(read_toml(path), origin=str(path))


def load_any(path: Path) -> Recipe:
    """Read a recipe, or a method preset, which is the content of a recipe's [method] table."""
    data = read_toml(path)
    if isinstance(data.get("generator"), dict) or "source" in data:
        return _validate({"method": merge(data, {"preset": path.stem})}, origin=str(path))
    return parse(data, origin=str(path))


def load_resolved(path: Path) -> Recipe:
    """Read a run's recipe.toml, which holds every value: no preset is consulted again."""
    return _validate(read_toml(path), origin=str(path))


def with_changes(recipe: Recipe, changes: Mapping[str, Any], *, origin: str = "flags") -> Recipe:
    """Return the recipe with nested changes applied; another preset starts the method table anew."""
    if not changes:
        return recipe
    data = recipe.model_dump()
    method = changes.get("method")
    wanted = method.get("preset") if isinstance(method, Mapping) else None
    if wanted and wanted != recipe.method.preset:
        data["method"] = {}
        return parse(merge(data, changes), origin=origin)
    return _validate(merge(data, changes), origin=origin)


def assignment(text: str) -> dict[str, Any]:
    """Turn `method.generator.lr=1e-3` into nested changes; the value is TOML, bare words are strings."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise UsageError(f"--set takes KEY=VALUE, such as method.student.lr=1e-3; got {text!r}.")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
        raise RecipeError(f"--set {key}: the value is out of all reason ({first_line(error)}).") from None
    for part in reversed(key.split(".")):
        parsed = {part: parsed}
    return dict(parsed)


def to_toml(recipe: Recipe) -> str:
    """Return the recipe as TOML, every default written out."""
    return tomli_w.dumps(recipe.model_dump(mode="json"))


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return one line `key: old -> new` for every value that differs between two recipe slices."""
    lines = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before!r} -> {after!r}")
    return lines
