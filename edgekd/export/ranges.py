"""Collect the ranges of activations, streamed: memory depends on the network, not on the number of samples.

Two passes over the batches: one for minima and maxima, one for histograms between them. From the histogram
come the candidates, of which the output loss later chooses one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto
from onnx.helper import make_empty_tensor_value_info

from edgekd.errors import GateError
from edgekd.export.graph import WEIGHTED_OPS, consumers, element_types, producers, read_model, shapes, with_shapes
from edgekd.export.ort_session import open_session
from edgekd.run.cards.exported import RangesPart

# Gives the same batches each time it is called, N×C×H×W in the layout and type of the model's input.
Batches = Callable[[], Iterable[NDArray[Any]]]
# A number of samples and the values of each tensor on them.
ActivationBatch = tuple[int, list[tuple[str, NDArray[np.float32]]]]

PERCENTILES = {"p99.999": 99.999, "p99.99": 99.99, "p99.9": 99.9}
METHODS = ("absmax", *PERCENTILES, "mse")
BINS = 4096
CLIPPING_OPS = ("Relu", "Clip")
_ACTIVATION_BYTES = 256 * 2**20  # activations alive at once; larger batches are cut


@dataclass(frozen=True)
class Range:
    """What one method keeps of one tensor: [low, high], or [-magnitude, magnitude] where symmetric."""

    low: float
    high: float
    magnitude: float


@dataclass(frozen=True)
class Ranges:
    """The candidate ranges of every activation: tensor name, then method."""

    samples: int
    tensors: Mapping[str, Mapping[str, Range]]

    def widened(self, headroom: float, bounds: Mapping[str, tuple[float, float]]) -> Ranges:
        """Return the ranges times `headroom`, but no further than the bounds that a tensor cannot leave."""

        def wider(range_: Range, low: float, high: float) -> Range:
            reach = max(-low, high)
            ends = (max(range_.low * headroom, low), min(range_.high * headroom, high))
            return Range(*ends, min(range_.magnitude * headroom, reach))

        everywhere = (-math.inf, math.inf)
        return Ranges(
            self.samples,
            {
                name: {method: wider(range_, *bounds.get(name, everywhere)) for method, range_ in methods.items()}
                for name, methods in self.tensors.items()
            },
        )

    def to_card(self) -> RangesPart:
        """Return the ranges as they are written."""
        rows = {
            name: {method: (range_.low, range_.high, range_.magnitude) for method, range_ in methods.items()}
            for name, methods in self.tensors.items()
        }
        return RangesPart(samples=self.samples, tensors=rows)

    @classmethod
    def of(cls, card: RangesPart) -> Ranges:
        """Return the ranges that were written."""
        tensors = {
            name: {method: Range(*values) for method, values in methods.items()}
            for name, methods in card.tensors.items()
        }
        return cls(card.samples, tensors)


def activations(model: ModelProto) -> list[str]:
    """Return the float tensors that a quantiser may want ranges of, in graph order.

    What only feeds a Relu or Clip right after its Conv or Gemm is left out: the range behind it counts.
    """
    types, readers, makers = element_types(model), consumers(model), producers(model)
    names = [info.name for info in model.graph.input]
    for node in model.graph.node:
        for name in node.output:
            behind = [reader.op_type for reader in readers.get(name, [])]
            if makers[name].op_type not in WEIGHTED_OPS or len(behind) != 1 or behind[0] not in CLIPPING_OPS:
                names.append(name)
    return [name for name in names if types.get(name) == TensorProto.FLOAT]


def collect_ranges(source: Path | ModelProto, batches: Batches, *, threads: int = 1) -> Ranges:
    """Return the candidate ranges of a float32 model over all batches, each N×C×H×W in the input's type.

    Raises GateError if there is no batch or an activation is not finite.
    """
    probe = _Probe(read_model(source), threads)
    return ranges_of(lambda: probe.run(batches()))


def ranges_of(observe: Callable[[], Iterable[ActivationBatch]]) -> Ranges:
    """Return the candidate ranges of whatever tensors `observe` shows; it is called twice and shows the same.

    Raises GateError if there is no batch or a value is not finite.
    """
    low: dict[str, float] = {}
    high: dict[str, float] = {}
    samples = 0
    for rows, values in observe():
        samples += rows
        for name, value in values:
            low[name] = float(np.minimum(low.get(name, np.inf), value.min()))  # NaN stays, which min() would lose
            high[name] = float(np.maximum(high.get(name, -np.inf), value.max()))
    if not samples:
        raise GateError("calibration got no batch, so no activation range is known.")
    for name in low:
        if not np.isfinite(low[name]) or not np.isfinite(high[name]):
            raise GateError(f"activation {name} is not finite on the calibration samples; the network is broken.")
    histograms = {name: np.zeros(BINS, dtype=np.int64) for name in low if not _flat(low[name], high[name])}
    for _, values in observe():
        for name, value in values:
            if name in histograms:
                histograms[name] += np.histogram(value, BINS, (low[name], high[name]))[0]
    return Ranges(samples, {name: _candidates(histograms.get(name), low[name], high[name]) for name in low})


def clipped_values(
    source: Path | ModelProto, limits: Mapping[str, tuple[float, float]], batches: Batches, *, threads: int = 1
) -> dict[str, tuple[int, int]]:
    """Return, for each tensor in `limits` (low, high), how many of its values lie outside on these batches, of all."""
    probe = _Probe(read_model(source), threads, [*limits])
    outside, total = dict.fromkeys(limits, 0), dict.fromkeys(limits, 0)
    for _, values in probe.run(batches()):
        for name, value in values:
            low, high = limits[name]
            outside[name] += int(np.count_nonzero(value < low) + np.count_nonzero(value > high))
            total[name] += value.size
    return {name: (outside[name], total[name]) for name in limits if total[name]}


class _Probe:
    """A session that shows intermediate tensors, a bounded number of bytes at a time."""

    def __init__(self, model: ModelProto, threads: int, names: list[str] | None = None) -> None:
        model = with_shapes(model)
        self.names = activations(model) if names is None else names
        inferred_shapes = shapes(model)
        sizes = [np.prod([size or 1 for size in inferred_shapes[name][1:]], dtype=np.int64) for name in self.names]
        self._rows = max(1, _ACTIVATION_BYTES // max(1, 4 * int(sum(sizes))))
        inputs, outputs = ({info.name for info in part} for part in (model.graph.input, model.graph.output))
        self._input = next(iter(inputs))
        shown = [name for name in self.names if name not in inputs | outputs]
        model.graph.output.extend(make_empty_tensor_value_info(name) for name in shown)
        self._fetched = [name for name in self.names if name not in inputs]
        self._session: onnxruntime.InferenceSession = open_session(model, threads=threads)

    def run(self, batches: Iterable[NDArray[Any]]) -> Iterator[ActivationBatch]:
        """Yield the number of samples and the tensors of one slice of a batch after another."""
        for batch in batches:
            for start in range(0, len(batch), self._rows):
                part = batch[start : start + self._rows]
                values = self._session.run(self._fetched, {self._input: part}) if self._fetched else []
                pairs = list(zip(self._fetched, values, strict=True))
                if self._input in self.names:
                    pairs.append((self._input, part))
                yield len(part), pairs


def _flat(low: float, high: float) -> bool:
    """Whether float32 cannot divide [low, high] into bins: a tensor that is constant, or nearly."""
    return high - low <= 2 * BINS * float(np.spacing(np.float32(max(abs(low), abs(high)))))


def _candidates(counts: NDArray[np.int64] | None, low: float, high: float) -> dict[str, Range]:
    """The range of every method; each contains 0, which quantisation must represent exactly."""
    outer = Range(min(low, 0.0), max(high, 0.0), max(-low, high, 0.0))
    if counts is None:
        return dict.fromkeys(METHODS, outer)
    centers = low + (np.arange(BINS) + 0.5) * (high - low) / BINS
    candidates = {"absmax": outer}
    order = np.argsort(np.abs(centers), kind="stable")
    share, magnitudes = np.cumsum(counts) / counts.sum(), np.abs(centers)[order]
    magnitude_share = np.cumsum(counts[order]) / counts.sum()
    for method, percentile in PERCENTILES.items():
        tail = (1 - percentile / 100) / 2
        bottom = centers[min(int(np.searchsorted(share, tail)), BINS - 1)]
        top = centers[min(int(np.searchsorted(share, 1 - tail)), BINS - 1)]
        size = magnitudes[min(int(np.searchsorted(magnitude_share, percentile / 100)), BINS - 1)]
        candidates[method] = _within(outer, float(bottom), float(top), float(size))
    candidates["mse"] = _least_error(counts, centers, outer)
    return candidates


def _within(outer: Range, low: float, high: float, magnitude: float) -> Range:
    return Range(
        max(min(low, 0.0), outer.low), min(max(high, 0.0), outer.high), min(max(magnitude, 0.0), outer.magnitude)
    )


def _least_error(counts: NDArray[np.int64], centers: NDArray[np.float64], outer: Range) -> Range:
    """The ranges of least mean squared quantisation error, by coordinate descent over 60 shrinkages."""
    used = counts > 0
    weights, values = counts[used].astype(np.float64), centers[used]

    def error(low: float, high: float, levels: int) -> float:
        step = (high - low) / levels
        if step <= 0:
            return float(weights @ values**2)
        rounded = np.rint((values.clip(low, high) - low) / step) * step + low
        return float(weights @ (rounded - values) ** 2)

    shrinkages = np.linspace(0.05, 1.0, 60)
    magnitude = min((float(s * outer.magnitude) for s in shrinkages), key=lambda t: error(-t, t, 254))
    low, high = outer.low, outer.high
    for _ in range(2):
        high = min((float(s * outer.high) for s in shrinkages), key=lambda top: error(low, top, 255))
        low = min((float(s * outer.low) for s in shrinkages), key=lambda bottom: error(bottom, high, 255))
    return Range(low, high, magnitude)
