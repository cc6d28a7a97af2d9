"""Collect candidate ranges of activations, streamed: memory depends on the network, not on the number of samples.

Two passes over the batches: one for minima and maxima, one for histograms between them. The histograms give one range
for each method of RANGE_METHODS; the output loss later decides which method a file uses (`int8.try_ranges`).
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

Batches = Callable[[], Iterable[NDArray[Any]]]
"""Gives the same batches at each call, N×C×H×W in the layout and type of the model's input."""
ActivationBatch = tuple[int, list[tuple[str, NDArray[np.float32]]]]
"""The number of samples, and (tensor name, values) of each activation."""

PERCENTILES = {"p99.999": 99.999, "p99.99": 99.99, "p99.9": 99.9}
RANGE_METHODS = ("absmax", *PERCENTILES, "mse")
"""Ways to set a range: all values, a percentile of them, least mean squared quantisation error."""
BINS = 4096
"""Of a histogram."""
CLIPPING_OPS = ("Relu", "Clip")
"""Operators whose work the range of their output does, so that they fuse with the layer before."""
_ACTIVATION_BYTES = 256 * 2**20  # activations in memory at once; larger batches are cut into chunks


@dataclass(frozen=True)
class Range:
    """One range of one tensor: [low, high], or [-magnitude, magnitude] where quantisation is symmetric."""

    low: float
    high: float
    magnitude: float


@dataclass(frozen=True)
class Ranges:
    """The candidate ranges of every activation, by tensor name, then method."""

    samples: int
    tensors: Mapping[str, Mapping[str, Range]]

    def widened(self, headroom: float, bounds: Mapping[str, tuple[float, float]]) -> Ranges:
        """Multiply all ranges by `headroom`, but keep those of a tensor in `bounds` within its (low, high)."""

        def widen(range_: Range, low: float, high: float) -> Range:
            return Range(
                max(range_.low * headroom, low),
                min(range_.high * headroom, high),
                min(range_.magnitude * headroom, max(-low, high)),
            )

        unbounded = (-math.inf, math.inf)
        return Ranges(
            self.samples,
            {
                name: {method: widen(range_, *bounds.get(name, unbounded)) for method, range_ in methods.items()}
                for name, methods in self.tensors.items()
            },
        )

    def to_card(self) -> RangesPart:
        """Convert to the form in calibration.json."""
        rows = {
            name: {method: (range_.low, range_.high, range_.magnitude) for method, range_ in methods.items()}
            for name, methods in self.tensors.items()
        }
        return RangesPart(samples=self.samples, tensors=rows)

    @classmethod
    def of(cls, card: RangesPart) -> Ranges:
        """Convert from the form in calibration.json."""
        tensors = {
            name: {method: Range(*values) for method, values in methods.items()}
            for name, methods in card.tensors.items()
        }
        return cls(card.samples, tensors)


def activation_names(model: ModelProto) -> list[str]:
    """List the float tensors that a quantiser may need ranges of, in graph order.

    The output of a Conv or Gemm that only a Relu or Clip reads is left out: the range of the latter's output counts.
    """
    types, consumers_of, producer_of = element_types(model), consumers(model), producers(model)
    names = [info.name for info in model.graph.input]
    for node in model.graph.node:
        for name in node.output:
            ops = [consumer.op_type for consumer in consumers_of.get(name, [])]
            if producer_of[name].op_type not in WEIGHTED_OPS or len(ops) != 1 or ops[0] not in CLIPPING_OPS:
                names.append(name)
    return [name for name in names if types.get(name) == TensorProto.FLOAT]


def collect_ranges(source: Path | ModelProto, batches: Batches, *, threads: int = 1) -> Ranges:
    """Collect the candidate ranges of a float32 model over all batches.

    Raises GateError if there is no batch or an activation is not finite.
    """
    session = _ActivationSession(read_model(source), threads)
    return ranges_of(lambda: session.run(batches()))


def ranges_of(activations: Callable[[], Iterable[ActivationBatch]]) -> Ranges:
    """Collect the candidate ranges of the tensors that `activations` yields; it is called twice and must repeat itself.

    Raises GateError if there is no batch or a value is not finite.
    """
    low: dict[str, float] = {}
    high: dict[str, float] = {}
    samples = 0
    for count, values in activations():
        samples += count
        for name, value in values:
            low[name] = float(np.minimum(low.get(name, np.inf), value.min()))  # keeps NaN, unlike min()
            high[name] = float(np.maximum(high.get(name, -np.inf), value.max()))
    if not samples:
        raise GateError("calibration got no batch, so no activation range is known.")
    for name in low:
        if not np.isfinite(low[name]) or not np.isfinite(high[name]):
            raise GateError(f"activation {name} is not finite on the calibration samples; the network is broken.")
    histograms = {name: np.zeros(BINS, dtype=np.int64) for name in low if not _nearly_constant(low[name], high[name])}
    for _, values in activations():
        for name, value in values:
            if name in histograms:
                histograms[name] += np.histogram(value, BINS, (low[name], high[name]))[0]
    return Ranges(samples, {name: _candidates(histograms.get(name), low[name], high[name]) for name in low})


def clipped_values(
    source: Path | ModelProto, limits: Mapping[str, tuple[float, float]], batches: Batches, *, threads: int = 1
) -> dict[str, tuple[int, int]]:
    """Count, for each tensor in `limits`, the values outside its (low, high) and all values: (outside, total)."""
    session = _ActivationSession(read_model(source), threads, [*limits])
    outside, total = dict.fromkeys(limits, 0), dict.fromkeys(limits, 0)
    for _, values in session.run(batches()):
        for name, value in values:
            low, high = limits[name]
            outside[name] += int(np.count_nonzero(value < low) + np.count_nonzero(value > high))
            total[name] += value.size
    return {name: (outside[name], total[name]) for name in limits if total[name]}


class _ActivationSession:
    """An ONNX Runtime session that outputs activations, at most _ACTIVATION_BYTES at a time."""

    def __init__(self, model: ModelProto, threads: int, names: list[str] | None = None) -> None:
        model = with_shapes(model)
        names = activation_names(model) if names is None else names
        inferred_shapes = shapes(model)
        sizes = [np.prod([size or 1 for size in inferred_shapes[name][1:]], dtype=np.int64) for name in names]
        self._chunk_size = max(1, _ACTIVATION_BYTES // max(1, 4 * int(sum(sizes))))
        inputs, outputs = ({info.name for info in infos} for infos in (model.graph.input, model.graph.output))
        self._input = next(iter(inputs))
        intermediate = [name for name in names if name not in inputs | outputs]
        model.graph.output.extend(make_empty_tensor_value_info(name) for name in intermediate)
        self._outputs = [name for name in names if name not in inputs]
        self._with_input = self._input in names
        self._session: onnxruntime.InferenceSession = open_session(model, threads=threads)

    def run(self, batches: Iterable[NDArray[Any]]) -> Iterator[ActivationBatch]:
        """Yield the activations of each chunk of each batch."""
        for batch in batches:
            for start in range(0, len(batch), self._chunk_size):
                chunk = batch[start : start + self._chunk_size]
                values = self._session.run(self._outputs, {self._input: chunk}) if self._outputs else []
                activations = list(zip(self._outputs, values, strict=True))
                if self._with_input:
                    activations.append((self._input, chunk))
                yield len(chunk), activations


def _nearly_constant(low: float, high: float) -> bool:
    """Whether [low, high] is too narrow for float32 to divide it into bins."""
    return high - low <= 2 * BINS * float(np.spacing(np.float32(max(abs(low), abs(high)))))


def _candidates(counts: NDArray[np.int64] | None, low: float, high: float) -> dict[str, Range]:
    """Compute the range of every method; each contains 0, which INT8 must represent exactly."""
    absmax = Range(min(low, 0.0), max(high, 0.0), max(-low, high, 0.0))
    if counts is None:
        return dict.fromkeys(RANGE_METHODS, absmax)
    centers = low + (np.arange(BINS) + 0.5) * (high - low) / BINS
    candidates = {"absmax": absmax}
    order = np.argsort(np.abs(centers), kind="stable")
    cumulative, magnitudes = np.cumsum(counts) / counts.sum(), np.abs(centers)[order]
    cumulative_magnitude = np.cumsum(counts[order]) / counts.sum()
    for method, percentile in PERCENTILES.items():
        tail = (1 - percentile / 100) / 2
        low_center = centers[min(int(np.searchsorted(cumulative, tail)), BINS - 1)]
        high_center = centers[min(int(np.searchsorted(cumulative, 1 - tail)), BINS - 1)]
        magnitude = magnitudes[min(int(np.searchsorted(cumulative_magnitude, percentile / 100)), BINS - 1)]
        candidates[method] = _clamped(absmax, float(low_center), float(high_center), float(magnitude))
    candidates["mse"] = _mse_range(counts, centers, absmax)
    return candidates


def _clamped(absmax: Range, low: float, high: float, magnitude: float) -> Range:
    """Clamp a range so that it contains 0 and lies within absmax."""
    return Range(
        max(min(low, 0.0), absmax.low), min(max(high, 0.0), absmax.high), min(max(magnitude, 0.0), absmax.magnitude)
    )


def _mse_range(counts: NDArray[np.int64], centers: NDArray[np.float64], absmax: Range) -> Range:
    """Find the range of least mean squared quantisation error, by coordinate descent over 60 fractions of absmax."""
    nonempty = counts > 0
    weights, values = counts[nonempty].astype(np.float64), centers[nonempty]

    def error(low: float, high: float, quantization_steps: int) -> float:
        scale = (high - low) / quantization_steps
        if scale <= 0:
            return float(weights @ values**2)
        rounded = np.rint((values.clip(low, high) - low) / scale) * scale + low
        return float(weights @ (rounded - values) ** 2)

    fractions = np.linspace(0.05, 1.0, 60)
    magnitude = min(
        (float(fraction * absmax.magnitude) for fraction in fractions), key=lambda value: error(-value, value, 254)
    )
    low, high = absmax.low, absmax.high
    for _ in range(2):
        high = min((float(fraction * absmax.high) for fraction in fractions), key=lambda value: error(low, value, 255))
        low = min((float(fraction * absmax.low) for fraction in fractions), key=lambda value: error(value, high, 255))
    return Range(low, high, magnitude)
