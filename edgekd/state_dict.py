"""Nested state as flat tensors and plain values, and the moments of optimizers in their parameters' memory layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

State = Mapping[str, Any]


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
