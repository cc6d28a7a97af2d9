"""Tensors and nested state on disk: safetensors for bytes, JSON for the rest, hashes over both."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from edgekd.errors import InputFileError, RecipeError
from edgekd.failpoints import failpoint
from edgekd.rundir import Record, RunDir

State = Mapping[str, Any]


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors: contiguous, on the CPU, without shared storage.

    The bytes are made in memory and written by Python, whose errors say what the disk said.
    """
    path.write_bytes(save({k: v.detach().cpu().contiguous().clone() for k, v in sorted(tensors.items())}))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file of a run; a damaged one is an `InputFileError`."""
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError, ValueError) as error:
        raise InputFileError(f"{path} cannot be read ({error}).") from error


def flatten(state: State, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split nested dicts into tensors and plain values, keyed by paths joined with `/`."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    for key, value in state.items():
        path = f"{prefix}{key}"
        if isinstance(value, Tensor):
            tensors[path] = value
        elif isinstance(value, Mapping):
            inner_tensors, inner_plain = flatten(value, f"{path}/")
            tensors |= inner_tensors
            plain |= inner_plain
        else:
            plain[path] = value
    return tensors, plain


def unflatten(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> dict[str, Any]:
    """Rebuild the nested state that `flatten` split."""
    state: dict[str, Any] = {}
    for path, value in [*tensors.items(), *plain.items()]:
        *parents, leaf = path.split("/")
        node = state
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return state


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint: its step, state, and the length of events.jsonl it belongs to."""

    step: int
    state: dict[str, Any]
    events_bytes: int
    environment: dict[str, Any]


def _folder(step: int) -> str:
    return f"distill/checkpoints/step-{step:08d}"


def write(run: RunDir, step: int, state: State, *, key: str, environment: dict[str, Any]) -> None:
    """Publish the checkpoint of `step` and delete all but the newest two."""
    tensors, plain = flatten(state)
    run.sync_events()
    with run.publish(_folder(step)) as (folder, record):
        save_tensors(tensors, folder / "state.safetensors")
        (folder / "state.json").write_text(json.dumps(plain, sort_keys=True, allow_nan=False) + "\n")
        record |= {
            "stage": "checkpoint",
            "version": 1,
            "key": key,
            "recipe_slice": {},
            "inputs": {},
            "notes": {"events_bytes": run.events_bytes(), "environment": environment},
        }
    keep_newest(run)
    failpoint("checkpoint.after_delete")


def keep_newest(run: RunDir, keep: int = 2) -> None:
    """Delete all but the newest checkpoints."""
    for old in _steps(run)[:-keep]:
        shutil.rmtree(run.path / _folder(old))


def read_state(folder: Path) -> dict[str, Any]:
    """Return the state that lies in a checkpoint's folder."""
    plain = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    return unflatten(load_tensors(folder / "state.safetensors"), plain)


def _steps(run: RunDir) -> list[int]:
    folder = run.path / "distill" / "checkpoints"
    return sorted(int(p.name.removeprefix("step-")) for p in folder.glob("step-*") if p.is_dir())


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
            notes = record.notes
            return Checkpoint(step, read_state(folder), notes["events_bytes"], notes["environment"]), warnings
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


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the moments of an optimiser by parameter position; hyper-parameters come from the recipe."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return {str(i): dict(optimizer.state[p]) for i, p in enumerate(params) if p in optimizer.state}


def restore_optimizer(optimizer: torch.optim.Optimizer, state: State) -> None:
    """Restore moments into the memory layout of their parameters.

    Fused optimisers walk raw storage: a contiguous moment beside a channels-last weight would silently be
    paired element by element in the wrong order, so every tensor is copied into `empty_like(parameter)`.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    fused = bool(optimizer.defaults.get("fused"))
    optimizer.state.clear()
    for position, values in state.items():
        parameter = params[int(position)]
        restored = {}
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            elif isinstance(value, Tensor) and fused:  # the step counter, which the fused kernel reads on the device
                value = value.to(parameter.device)
            restored[name] = value
        optimizer.state[parameter] = restored
