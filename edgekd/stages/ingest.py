"""Read a teacher checkpoint from outside, find out what it is, and publish it in a form that needs no guessing."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgekd import console
from edgekd.agent import files
from edgekd.errors import InputFileError, UsageError
from edgekd.ingestion import foreign, outside_files, teacher
from edgekd.models import probe
from edgekd.models.stems import parse_shape
from edgekd.recipe import PixelsTable, Recipe, TeacherTable
from edgekd.run import checkpoint
from edgekd.run.directory import Record, RunDir, read_json, sha256_file, write_json
from edgekd.stages.base import Execution

NORMALISATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "mnist": ((0.1307,), (0.3081,)),
}
"""Mean and standard deviation per channel of well-known data sets, of pixels in [0, 1]."""


def run(execution: Execution) -> None:
    """Publish teacher/: weights, description and the moments of real pixels."""
    execution.stop.raise_if_requested("ingest")
    run_dir, recipe = execution.run, execution.recipe
    published = run_dir.stage("teacher")
    notes: dict[str, Any] = {}
    if _still_holds(execution):
        # The checkpoint moved away, or only the pixels changed: what was read from it is still here, bit for bit.
        tensors = checkpoint.load_tensors(published / "teacher.safetensors")
        description: dict[str, Any] = read_json(published / "teacher.json")
        kept = Record.read(published)
        notes = {} if kept is None else kept.notes
    else:
        found, description, notes = _examined(run_dir, recipe)
        tensors = dict(found.state_dict)
    pixels = pixel_moments(recipe.pixels, channels=description["input_shape"][0], classes=description["classes"])
    if recipe.pixels.classes:
        run_dir.note_file(Path(recipe.pixels.classes), sha256_file(Path(recipe.pixels.classes)))
    with execution.publish() as (folder, kept_notes):
        checkpoint.save_tensors(tensors, folder / "teacher.safetensors")
        write_json(folder / "teacher.json", description)
        write_json(folder / "pixels.json", pixels)
        kept_notes |= notes


def _still_holds(execution: Execution) -> bool:
    """Return whether teacher/ was read from this file with these settings."""
    folder = execution.run.stage("teacher")
    record = Record.read(folder)
    if record is None or record.inputs != execution.inputs or record.damaged_output(folder) is not None:
        return False
    read_with = record.recipe_slice["teacher"]  # which held other keys, too, before the hashed slice was recorded
    wanted = execution.stage.slice(execution.recipe)["teacher"]
    return all(name in read_with and read_with[name] == value for name, value in wanted.items())


def _examined(run_dir: RunDir, recipe: Recipe) -> tuple[teacher.Inferred, dict[str, Any], dict[str, Any]]:
    """Read, identify and probe the teacher; return it, its description, and notes for the record."""
    table = recipe.teacher
    path = Path(table.file)
    sha256 = outside_files.sha256_of(path)
    run_dir.note_file(path, sha256)
    notes: dict[str, Any] = {}
    if table.trust_pickle:
        trusted = run_dir.ledger().get("trusted_pickles", {})
        if trusted and sha256 not in trusted.values():
            raise InputFileError(
                f"{path} is not the pickle that this run was told to trust (sha256 {', '.join(trusted.values())}); "
                "read it into another run with --run NAME."
            )
        console.warn(f"--trust-pickle: any code that {path} names is run, sha256 {sha256}")
        notes = {"trusted_pickle": sha256}
        run_dir.note("trusted_pickles", {**trusted, str(path): sha256})
    weights = teacher.weights_of(foreign.read_checkpoint(path, trust_pickle=table.trust_pickle))
    found = _identified(weights, table)
    network = teacher.load(found)
    seen = probe.probe(network, input_shape=found.input_shape, classes=found.classes, seed=recipe.seed)
    if not seen.head_alive:
        raise InputFileError("the teacher answers every input alike: its last layer is dead or was never trained.")
    if weights.module is not None:
        _hold_to_module(weights.module, network, found, recipe.seed)
    timing = {"images": seen.batch, "seconds": seen.seconds_per_batch, "threads": torch.get_num_threads()}
    run_dir.note("teacher_probe", timing)
    return found, describe(found, seen, network), notes


def _identified(weights: teacher.Weights, table: TeacherTable) -> teacher.Inferred:
    """Infer the architecture; for a whole module of other code, add to the error which code that is."""
    try:
        found = teacher.infer(
            weights.tensors,
            arch=table.arch or None,
            input_shape=parse_shape(table.input) if table.input else None,
            accept_mapping=table.accept_mapping,
            hint=weights.arch,
        )
    except InputFileError as error:
        kind = type(weights.module)
        if weights.module is None or table.arch or kind.__module__.startswith("torch."):
            raise
        raise InputFileError(f"{error} The pickle's own is {kind.__module__}:{kind.__qualname__}.") from error
    return replace(found, assumptions=(*teacher.other_entries(weights), *found.assumptions))


def _hold_to_module(module: nn.Module, network: nn.Module, found: teacher.Inferred, seed: int) -> None:
    """Refuse a pickled module that answers otherwise than the network of the zoo with its weights."""
    if not probe.same_answers(module.float(), network, found.input_shape, seed=seed):
        shown = [assumption.flag for assumption in found.assumptions if not assumption.flag.startswith("--input")]
        flags = ", ".join(shown) or "another --arch"
        raise InputFileError(
            f"the pickled module answers otherwise than {found.arch} with its weights: what weights do not show "
            f"differs. Try {flags}, or give its code with --arch package.module:factory."
        )


def describe(found: teacher.Inferred, seen: probe.Probe, network: nn.Module) -> dict[str, Any]:
    """Return what teacher.json holds."""
    facts = asdict(seen)
    facts.pop("seconds_per_batch", None)  # a timing would make equal teachers differ
    return {
        "arch": str(found.arch),
        "input_shape": list(found.input_shape),
        "classes": found.classes,
        "head": probe.head_name(network, found.input_shape),
        "undo": seen.undo,
        "assumptions": [asdict(assumption) for assumption in found.assumptions],
        "mapping": dict(found.mapping),
        "probe": facts,
    }


def pixel_moments(table: PixelsTable, *, channels: int, classes: int) -> dict[str, Any]:
    """Return what pixels.json holds: mean, std and class names, each None when unknown."""
    mean, std = table.mean, table.std
    if not mean and not std and table.normalize == "none":
        mean, std = (0.0,) * channels, (1.0,) * channels
    elif not mean and not std and table.normalize:
        mean, std = NORMALISATIONS[table.normalize]
    if len(mean) != len(std) or (mean and len(mean) != channels) or any(s <= 0 for s in std):
        raise UsageError(
            f"mean {list(mean)} and std {list(std)} do not fit a teacher of {channels} channels: give one positive "
            "value per channel to both --mean and --std, or --normalize none."
        )
    if max((*mean, *std), default=0) > 1:
        raise UsageError(f"mean {list(mean)} and std {list(std)} are of pixels in [0, 1]; divide them by 255.")
    names = None
    if table.classes:
        names = class_names(Path(table.classes), classes)
    return {"mean": list(mean) or None, "std": list(std) or None, "class_names": names}


def class_names(path: Path, classes: int) -> list[str]:
    """Read one class name a line; another number than the teacher has is an `InputFileError`."""
    try:
        # "-sig": editors on Windows begin a file with a mark.
        names = [line.strip() for line in files.read_bytes(path).decode("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputFileError(f"class names {path} cannot be read ({reason}).") from error
    if len(names) != classes or len(set(names)) != classes:
        raise InputFileError(
            f"{path} names {len(set(names))} different classes, but the teacher has {classes}; one name a line."
        )
    return names
