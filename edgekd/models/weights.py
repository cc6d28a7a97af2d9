"""The weights inside what a training script saved: un-nested, without wrapper prefixes, in float32."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgekd.errors import InputFileError

_ENTRIES = (
    "state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "student", "teacher",
    "classifier", "weights", "params", "state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema",
)  # fmt: skip
_PREFIXES = (
    "module.", "_orig_mod.", "model.", "backbone.", "net.", "network.", "encoder.", "classifier.", "student.",
    "teacher.", "ema_model.", "model_ema.", "ema.", "_model.", "_forward_module.", "_fsdp_wrapped_module.",
)  # fmt: skip
_COUNTERS = ("num_batches_tracked", "total_ops", "total_params", "n_averaged")
_FLOATING_ROLES = ("weight", "bias", "running_mean", "running_var")


def state_dict_of(obj: object) -> dict[str, Tensor]:
    """Return the weights in a checkpoint: float32, contiguous, finite, in the order of the file.

    Un-nests the usual entries (raw weights before EMA ones; `weight_entries` lists what is there), strips any stack
    of wrapper prefixes that every name carries, drops counters. Raises InputFileError naming what was found.
    """
    found = _entries(obj, "", set())
    if not found:
        raise InputFileError(f"The checkpoint holds no weights: {_summary(obj)}. Save model.state_dict().")
    named = {name: tensor for name, tensor in found[0][1].items() if isinstance(tensor, Tensor)}
    kept = {name: t for name, t in named.items() if name.rpartition(".")[2] not in _COUNTERS}
    if not kept:
        raise InputFileError(f"The checkpoint holds no weights: {_summary(obj)}. Save model.state_dict().")
    prefix = _wrapper_prefix(list(kept))
    return {name.removeprefix(prefix): _as_float32(name, tensor) for name, tensor in kept.items()}


def weight_entries(obj: object) -> list[str]:
    """Return the path of each set of weights in a checkpoint; `state_dict_of` uses the first."""
    return [path for path, _ in _entries(obj, "", set())]


def _entries(obj: object, path: str, seen: set[int]) -> list[tuple[str, dict[str, object]]]:
    """Return (path, dict that holds tensors) for each set of weights, the preferred one first."""
    if isinstance(obj, nn.Module):
        obj = dict(obj.state_dict())
    if not isinstance(obj, dict) or id(obj) in seen:
        return []
    seen.add(id(obj))
    nested = {str(key): value for key, value in obj.items() if isinstance(value, dict | nn.Module)}
    found = [
        entry
        for name in _ENTRIES
        if name in nested
        for entry in _entries(nested[name], f"{path}.{name}".strip("."), seen)
    ]
    if found:
        return found
    if any(isinstance(value, Tensor) for value in obj.values()):
        return [(path or "the file itself", {str(name): value for name, value in obj.items()})]
    holders = [name for name, value in nested.items() if _holds_weights(value)]
    if len(holders) > 1:
        raise InputFileError(
            f"The checkpoint holds several networks ({', '.join(holders[:8])}). Save the classifier alone: "
            f"torch.save(checkpoint[{holders[0]!r}], 'weights.pt')."
        )
    return [e for name in holders for e in _entries(nested[name], f"{path}.{name}".strip("."), seen)]


def _holds_weights(value: object) -> bool:
    """Tell a state dict from an optimiser's or a scheduler's: named tensors, some of them called weight."""
    return isinstance(value, nn.Module) or (
        isinstance(value, dict)
        and any(isinstance(t, Tensor) and str(name).endswith("weight") for name, t in value.items())
    )


def _wrapper_prefix(names: list[str]) -> str:
    """Return the longest stack of known wrapper prefixes that every name carries."""
    stripped = ""
    while True:
        rest = [name.removeprefix(stripped) for name in names]
        found = next((p for p in _PREFIXES if all(name.startswith(p) for name in rest)), None)
        if found is None:
            return stripped
        stripped += found


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
