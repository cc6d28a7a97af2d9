"""The shapes of a network's tensors, by which checkpoints and networks are compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

Shapes = Mapping[str, tuple[int, ...]]
"""Shape of each tensor by its name, in order."""


def shapes_in(net: nn.Module) -> Shapes:
    """Return the shape of each tensor of a network that a checkpoint needs to hold."""
    state = net.state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
