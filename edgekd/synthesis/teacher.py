"""The frozen teacher as the algorithm sees it: logits, penultimate features, distance to BatchNorm statistics."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.machine import Precision, float32_head, precision_for
from edgekd.models import layout
from edgekd.models.description import Description
from edgekd.synthesis.batchnorm import statistics_distance


@dataclass(frozen=True)
class TeacherOutputs:
    """What one differentiable pass of the teacher shows."""

    logits: Tensor
    """(N, K), float32."""
    features: Tensor
    """(N, F), input of the layer that makes the logits."""
    batchnorm: Tensor
    """Distance of batch statistics to BatchNorm statistics; 0 without BatchNorm."""

    def first(self, count: int) -> TeacherOutputs:
        """Return what was seen of the first images of the batch."""
        return self.of(slice(count))

    def of(self, images: Tensor | slice) -> TeacherOutputs:
        """Return what was seen of these images of the batch, by their indices."""
        return replace(self, logits=self.logits[images], features=self.features[images])


class Teacher:
    """A frozen network in eval mode whose weights take no gradient."""

    @classmethod
    def of(cls, network: nn.Module, description: Description, precision: str, device: torch.device) -> Teacher:
        """Bring a run's teacher to a device, its logits in float32 whatever the precision of the rest."""
        network = layout.laid_out(network.to(device))
        float32_head(network, description.head)
        arithmetic = precision_for(network, device, precision)
        return cls(network, head=description.head, output_transform=description.output_transform, precision=arithmetic)

    def __init__(self, network: nn.Module, *, head: str, output_transform: str, precision: Precision) -> None:
        self.network = network.eval().requires_grad_(False)
        self.precision = precision
        self._output_transform = output_transform
        self._distances: list[Tensor] | None = None
        self._features: Tensor | None = None
        self._watch_batchnorm = False
        self.batchnorms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d) and m.track_running_stats]
        for norm in self.batchnorms:
            norm.register_forward_pre_hook(self._see_batchnorm)
        network.get_submodule(head).register_forward_pre_hook(self._see_features)

    def _see_batchnorm(self, norm: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Add ||mean - running mean|| + ||var - running var|| (DeepInversion, arXiv 1912.08795, eq. 4)."""
        if self._distances is None or not self._watch_batchnorm:
            return
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        self._distances.append(statistics_distance(inputs[0], norm.running_mean, norm.running_var))

    def _see_features(self, _head: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self._distances is not None:
            self._features = inputs[0].float().flatten(1)

    def _logits(self, x: Tensor) -> Tensor:
        with self.precision():
            output: Tensor = self.network(x).float()
        # A softmax at the end is undone: log p equals the logits up to a constant per sample.
        return output.clamp_min(1e-7).log() if self._output_transform == "log" else output

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """Return logits (N, K) without a graph."""
        return self._logits(x)

    def observe(self, x: Tensor, *, batchnorm: bool = False) -> TeacherOutputs:
        """Return logits, features and, when asked for, the BatchNorm distance, differentiable where grad is on."""
        self._distances = []
        self._watch_batchnorm = batchnorm
        try:
            logits = self._logits(x)
            assert self._features is not None
            distance = torch.stack(self._distances).sum() if self._distances else logits.new_zeros(())
            return TeacherOutputs(logits, self._features, distance)
        finally:
            self._distances = self._features = None
