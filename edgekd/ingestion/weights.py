"""The weights inside what a training script saved: un-nested, without wrapper prefixes, in float32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgekd.errors import InputFileError
from edgekd.ingestion.views import TRANSPARENT, WRAPPERS, without_transparent
from edgekd.text import listed

_ENTRIES = (
    "state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "student", "teacher",
    "classifier", "weights", "params",
)  # fmt: skip
_AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
"""Entries that hold a moving average: taken only where there is nothing else."""
ITSELF = "the file itself"
"""Where weights stand that no entry holds."""
_COPIES = 16
"""How many float32 copies of its own bytes a file may ask for: room for tied weights and numbers of 8 bits."""
_SLACK_BYTES = 2**20
_MOST_TENSORS = 20_000
"""Ten times what the deepest networks of the zoo and of timm have; comparing more with them would take minutes."""
_COUNTERS = ("num_batches_tracked", "total_ops", "total_params", "n_averaged")
_DEPTH = 8
_FLOATING_ROLES = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class Weights:
    """One set of weights of a checkpoint."""

    tensors: dict[str, Tensor]
    """float32, contiguous, finite, in the order of the file, without counters."""
    entry: str
    """Where they stand in the file: `state_dict`, `checkpoint.model`, or `ITSELF`."""
    others: tuple[str, ...]
    """Further entries that hold weights, such as their moving average."""
    module: nn.Module | None
    """The network itself where a trusted pickle held it whole."""
    arch: str
    """The architecture that the file names beside its weights (`arch`, `args.model`); empty if none."""


@dataclass(frozen=True)
class _Entry:
    path: str
    named: dict[str, object]
    module: nn.Module | None = None


def weights_of(obj: object) -> Weights:
    """Return the weights in a checkpoint: of the usual entries first, and of a moving average last.

    Un-nests the usual entries, strips any stack of wrapper prefixes that every name carries, drops counters.
    Raises InputFileError naming what was found.
    """
    entries = _entries(obj, "", set())
    if not entries:
        raise InputFileError(f"The checkpoint holds no weights: {_summary(obj)}. Save model.state_dict().")
    first, *others = entries
    found_tensors = {name: tensor for name, tensor in first.named.items() if isinstance(tensor, Tensor)}
    if len(found_tensors) > _MOST_TENSORS:
        raise InputFileError(
            f"The checkpoint holds {len(found_tensors):,} tensors; a classifier has {_MOST_TENSORS:,} at most."
        )
    _hold_to_file(found_tensors)
    named = {without_transparent(name): tensor for name, tensor in found_tensors.items()}
    if len(named) < len(found_tensors):
        raise InputFileError(
            "The checkpoint holds the same names with and without a compiler's or trainer's prefix "
            f"({', '.join(TRANSPARENT)}); save one of both networks alone."
        )
    without_counters = {name: t for name, t in named.items() if name.rpartition(".")[2] not in _COUNTERS}
    if not without_counters:
        raise InputFileError(f"The checkpoint holds no weights: {_summary(obj)}. Save model.state_dict().")
    prefix = _wrapper_prefix(list(without_counters))
    tensors = {name.removeprefix(prefix): _as_float32(name, tensor) for name, tensor in without_counters.items()}
    return Weights(tensors, first.path, tuple(other.path for other in others), first.module, _named_arch(obj))


def state_dict_of(obj: object) -> dict[str, Tensor]:
    """Return the tensors of `weights_of`."""
    return weights_of(obj).tensors


def _entries(obj: object, path: str, seen: set[int]) -> list[_Entry]:
    """Each set of weights, the preferred one first."""
    while isinstance(obj, nn.DataParallel):  # which runs on GPUs alone; what it wraps runs anywhere
        obj = obj.module
    if isinstance(obj, nn.Module):
        return [_Entry(path or ITSELF, dict(obj.state_dict()), obj)]
    if id(obj) in seen or path.count(".") > _DEPTH:
        return []
    seen.add(id(obj))
    if isinstance(obj, list | tuple):
        obj = {str(index): value for index, value in enumerate(obj) if isinstance(value, dict | nn.Module)}
    if not isinstance(obj, dict):
        return []
    nested = {str(key): value for key, value in obj.items() if isinstance(value, dict | list | tuple | nn.Module)}

    def within(name: str) -> list[_Entry]:
        return _entries(nested[name], f"{path}.{name}".strip("."), seen)

    usual = [entry for name in _ENTRIES if name in nested for entry in within(name)]
    averages = [entry for name in _AVERAGES if name in nested for entry in within(name)]
    rest = {name: within(name) for name in nested if name not in (*_ENTRIES, *_AVERAGES)}
    others = {name: entries for name, entries in rest.items() if entries and _holds_weights(entries[0].named)}
    itself = [_Entry(path or ITSELF, {str(name): value for name, value in obj.items()})]
    usual += itself if _holds_weights(obj) else []
    if len(others) > 1 and not usual:
        raise InputFileError(
            f"The checkpoint holds several networks ({listed(others, 8)}). Save the classifier alone: "
            f"torch.save(checkpoint[{next(iter(others))!r}], 'weights.pt')."
        )
    entries_in_order = [*usual, *(entry for entries in others.values() for entry in entries), *averages]
    holding = [entry for entry in entries_in_order if _holds_weights(entry.named)]
    return holding or entries_in_order or (itself if any(isinstance(value, Tensor) for value in obj.values()) else [])


def _holds_weights(named: dict[str, object]) -> bool:
    """Tell a state dict from an optimiser's or a scheduler's: named tensors, some of them called weight."""
    return any(isinstance(t, Tensor) and str(name).endswith("weight") for name, t in named.items())


def _named_arch(obj: object) -> str:
    """The name that training scripts leave: `arch` (timm, the ImageNet example), `args.model` or `args.arch`."""
    if not isinstance(obj, dict):
        return ""
    arguments = obj.get("args")
    options = arguments if isinstance(arguments, dict) else getattr(arguments, "__dict__", {})
    names = [obj.get("arch"), options.get("model"), options.get("arch"), obj.get("model_name")]
    return next((name.strip() for name in names if isinstance(name, str) and 0 < len(name) <= 80), "")


def _wrapper_prefix(names: list[str]) -> str:
    """The longest stack of usual wrapper prefixes that every name carries."""
    stripped = ""
    while True:
        rest = [name.removeprefix(stripped) for name in names]
        prefix = next((w for w in WRAPPERS if all(name.startswith(f"{w}.") for name in rest)), None)
        if prefix is None:
            return stripped
        stripped += f"{prefix}."


def _hold_to_file(tensors: dict[str, Tensor]) -> None:
    """Refuse many names for the same few bytes: as float32 each takes memory of its own."""
    plain = {name: t for name, t in tensors.items() if t.layout == torch.strided and not t.is_meta}
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in plain.values()}
    if 4 * sum(t.numel() for t in plain.values()) > _COPIES * sum(storages.values()) + _SLACK_BYTES:
        name = max(plain, key=lambda name: plain[name].numel())
        raise InputFileError(
            f'Tensor "{name}" claims {plain[name].numel()} values that the file does not hold, alone or together with '
            "others of the same bytes."
        )


def require_floats(given: Mapping[str, Tensor], network: Mapping[str, Tensor]) -> None:
    """Raise InputFileError where a network has floating-point numbers and a file whole ones, as after quantisation."""
    whole = [n for n, t in given.items() if n in network and network[n].is_floating_point() > t.is_floating_point()]
    if whole:
        raise InputFileError(
            f"The numbers in {listed(whole)} are {str(given[whole[0]].dtype).removeprefix('torch.')}, not floating "
            "point; edgekd needs weights from before quantisation."
        )


def _as_float32(name: str, tensor: Tensor) -> Tensor:
    role = name.rpartition(".")[2]
    if tensor.is_quantized or tensor.layout != torch.strided or tensor.is_meta or tensor.is_complex():
        kind = "quantised" if tensor.is_quantized else "sparse, complex or without data"
        raise InputFileError(f'Tensor "{name}" is {kind}; edgekd needs a float checkpoint of the teacher.')
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise InputFileError(f'Tensor "{name}" claims {tensor.numel()} values that the file does not hold.')
    if not tensor.is_floating_point():
        if role in _FLOATING_ROLES:
            raise InputFileError(
                f'Tensor "{name}" is {str(tensor.dtype).removeprefix("torch.")}, not floating point; '
                "edgekd needs the teacher before quantisation."
            )
        return tensor.detach().contiguous()
    value = tensor.detach().to(torch.float32).contiguous()
    if not bool(torch.isfinite(value).all()):
        bad = int((~torch.isfinite(value)).sum())
        raise InputFileError(f'Tensor "{name}" has {bad} values that are NaN or infinite; the training diverged.')
    return value


def _summary(obj: object) -> str:
    if isinstance(obj, dict):
        keys = ", ".join(str(key)[:40] for key in list(obj)[:8])
        return f"a dict with the entries {keys}" if keys else "an empty dict"
    return f"an object of type {type(obj).__name__}"
