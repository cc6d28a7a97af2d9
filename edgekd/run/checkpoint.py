"""Tensors and nested state on disk: safetensors for bytes, JSON for the rest, hashes over both."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from edgekd.errors import InputFileError, RecipeError
from edgekd.run.cards.record import CheckpointNotes, Environment, Record, hash_as_recorded
from edgekd.run.directory import RunDir
from edgekd.run.failpoints import failpoint
from edgekd.run.files import read_json
from edgekd.run.ownership import CHECKPOINT, STATE_TENSORS, STATE_VALUES, is_output, remove_all_but, strangers
from edgekd.state_dict import StateDict, flatten, unflatten


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors: contiguous, on the CPU, without shared storage.

    The bytes are made in memory and written by Python, whose errors say what the disk said.
    """
    path.write_bytes(save({k: v.detach().cpu().contiguous().clone() for k, v in sorted(tensors.items())}))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file of a run; a damaged one, by the record beside it, is an `InputFileError`.

    The format has no checksum of its own: a bit that fell over would be a weight like any other.
    """
    try:
        hash_as_recorded(path)
        return dict(load_file(path))
    except (OSError, SafetensorError, ValueError) as error:
        raise InputFileError(f"{path} cannot be read ({error}).") from error


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint: its step, state, and the length of events.jsonl it belongs to."""

    step: int
    state: StateDict
    events_bytes: int
    environment: Environment


def _folder(step: int) -> str:
    return f"distill/checkpoints/step-{step:08d}"


def write_checkpoint(run: RunDir, step: int, state: StateDict, *, key: str, environment: Environment) -> None:
    """Publish the checkpoint of `step` and delete all but the newest two."""
    tensors, plain = flatten(state)
    run.sync_events()
    with run.publish(_folder(step)) as (folder, record):
        save_tensors(tensors, folder / STATE_TENSORS)
        (folder / STATE_VALUES).write_text(json.dumps(plain, sort_keys=True, allow_nan=False) + "\n")
        record |= {
            "stage": "checkpoint",
            "version": 1,
            "key": key,
            "recipe_slice": {},
            "inputs": {},
            "notes": CheckpointNotes(events_bytes=run.events_bytes(), environment=environment).to_json(),
        }
    keep_newest(run)
    failpoint("checkpoint.after_delete")


def keep_newest(run: RunDir, keep: int = 2) -> None:
    """Delete all but the newest checkpoints."""
    for old in _steps(run)[:-keep]:
        folder = run.path / _folder(old)
        remove_all_but(folder, strangers(folder))


def read_state(folder: Path) -> StateDict:
    """Return the state that lies in a checkpoint's folder."""
    plain = read_json(folder / STATE_VALUES)
    if not isinstance(plain, dict):
        raise InputFileError(f"{folder / STATE_VALUES} does not hold what belongs there (it is no object).")
    return unflatten(load_tensors(folder / STATE_TENSORS), plain)


def _steps(run: RunDir) -> list[int]:
    folder = run.path / "distill" / "checkpoints"
    named = (path for path in folder.glob("step-*") if CHECKPOINT.fullmatch(path.name) and path.is_dir())
    return sorted(
        int(path.name.removeprefix("step-")) for path in named if any(is_output(path, p.name) for p in path.iterdir())
    )


def newest(run: RunDir, *, key: str) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest intact checkpoint and one warning for each damaged one set aside.

    Raises `InputFileError` when checkpoints exist but none is intact: training is never restarted silently.
    """
    warnings: list[str] = []
    steps = _steps(run)
    for step in reversed(steps):
        folder = run.path / _folder(step)
        record = Record.read(folder)
        damage = "its record is unreadable" if record is None else record.damaged_output(folder)
        if record is not None and damage is None and record.key != key:
            raise RecipeError(
                f"the checkpoints in {run.path / 'distill'} belong to another recipe or teacher; start anew with "
                "--fresh, or use another run with --run NAME."
            )
        if record is not None and damage is None:
            notes = record.notes_as(CheckpointNotes)
            return Checkpoint(step, read_state(folder), notes.events_bytes, notes.environment), warnings
        aside = folder.with_name(f"damaged-{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        warnings.append(f"checkpoint {folder} is unusable ({damage}); set aside as {aside.name}")
    damaged = list((run.path / "distill" / "checkpoints").glob("damaged-*"))
    if damaged:
        raise InputFileError(
            f"no intact checkpoint is left in {run.path / 'distill'}; give the same command with --fresh to train anew."
        )
    return None, warnings
