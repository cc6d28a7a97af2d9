"""Golden inputs, seeded noise and no synthetic image, and the logits that this machine computes for them."""

from __future__ import annotations

import base64
import io
import math
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from edgekd.agent.kernels import INTEGER_OPS, Arithmetic, kind_of
from edgekd.agent.measurement import BenchJob
from edgekd.agent.messages import LogitsArray
from edgekd.agent.refusal import runtime_reason
from edgekd.agent.runners.inputs import noise
from edgekd.errors import InputFileError, MachineError, UsageError, lacks_memory
from edgekd.export import ort_session
from edgekd.text import listed

IMAGES, SEED = 8, 20250115
_TYPES = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.UINT8: "uint8"}

_NO_TENSORS = ("sequence_type", "map_type")


@dataclass(frozen=True)
class Signature:
    """What an ONNX classifier takes: one image input."""

    name: str
    dtype: str
    image_shape: tuple[int, ...]
    declared: tuple[int | None, ...]
    """The whole shape as the file has it, None where it is open: no number, or one below 1."""
    arithmetic: Arithmetic

    @property
    def batch(self) -> int | None:
        """The batch of the file, None for any."""
        return self.declared[0]


def signature(file: Path, image_shape: tuple[int, ...] | None = None) -> Signature:
    """Read the input of an ONNX file; `image_shape` fills what the file leaves open.

    Raises:
        InputFileError: it is no ONNX file, has not one image input, or keeps weights where `weights_of` refuses them.
        UsageError: the image size is open and not given, or not the given one.
    """
    model = _read(file)
    weights_in(model, file)
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initializers]
    if len(inputs) != 1 or inputs[0].type.tensor_type.elem_type not in _TYPES:
        have = listed(f"{value.name} ({_type_of(value)})" for value in inputs) or "none"
        raise InputFileError(f"{file} must have one float or uint8 image input to be measured; it has {have}.")
    others = [value.name for value in model.graph.output if value.type.WhichOneof("value") in _NO_TENSORS]
    if others:
        raise InputFileError(f"{file} must answer with tensors to be measured; {others[0]} is a sequence or a map.")
    if not inputs[0].type.tensor_type.HasField("shape"):
        raise InputFileError(
            f"{file} leaves open how many dimensions its input has; export it with the size of an image."
        )
    sizes = tuple(d.dim_value if d.dim_value > 0 else None for d in inputs[0].type.tensor_type.shape.dim)
    if not sizes:
        raise InputFileError(f"{file} must have an image input with a batch, not a single number.")
    rest = sizes[1:] if image_shape is None else image_shape
    if len(rest) != len(sizes) - 1 or any(have not in (None, want) for have, want in zip(sizes[1:], rest, strict=True)):
        raise UsageError(f"the input of {file} is {_written(sizes)}; {_written(rest)} does not fit it.")
    if any(size is None for size in rest):
        raise UsageError(f"{file} leaves the size of an image open; give it with --input, such as --input 3x224x224.")
    shape = tuple(int(size) for size in rest if size is not None)
    dtype = _TYPES[inputs[0].type.tensor_type.elem_type]
    return Signature(inputs[0].name, dtype, shape, sizes, _arithmetic(model.graph))


def _read(file: Path) -> onnx.ModelProto:
    try:
        return onnx.load(str(file), load_external_data=False)
    except Exception as error:  # protobuf's own errors have no common base
        raise InputFileError(f"{file} is not a readable ONNX file ({type(error).__name__}: {error}).") from error


def weights_of(file: Path) -> tuple[str, ...]:
    """Return the names of the files beside an ONNX file that it keeps weights in, as PyTorch exports large ones.

    Raises InputFileError for weights in another folder, behind a link, in what is no file, or in one that is too short:
    what an ONNX file names may be anything.
    """
    return weights_in(_read(file), file)


def weights_in(model: onnx.ModelProto, file: Path) -> tuple[str, ...]:
    """Return what `weights_of` does, of a model that was read from the file."""
    ends: dict[str, int] = {}
    in_functions = (_of_nodes(function.node) for function in model.functions)
    for tensor in chain(_of_graph(model.graph), *in_functions):
        if tensor.data_location == TensorProto.EXTERNAL:
            said = {entry.key: entry.value for entry in reversed(tensor.external_data)}
            name, end = str(Path(said.get("location", ""))), sum(_bytes(said, key) for key in ("offset", "length"))
            ends[name] = max(end, ends.get(name, 0))
    for name, end in ends.items():
        try:
            facts = file.with_name(name).lstat() if Path(name).name == name else None
        except FileNotFoundError:
            raise InputFileError(
                f"{file} keeps weights in {name!r}, which is not there; copy that file to its place beside it, too."
            ) from None
        except (OSError, ValueError):  # no file can have such a name
            facts = None
        if facts is None or not stat.S_ISREG(facts.st_mode):
            raise InputFileError(
                f"{file} keeps weights in {name!r}, and only a file beside it is read, not one in another folder or "
                "behind a link; save it as one file (onnx.save of onnx.load)."
            )
        if facts.st_size < end:
            raise InputFileError(
                f"{file.with_name(name)} holds {facts.st_size:,} bytes, and {file} keeps weights there up to byte "
                f"{end:,}; it was copied in part, or it belongs to another export."
            )
    return tuple(sorted(ends))


def _bytes(said: Mapping[str, str], key: str) -> int:
    """A count of bytes that a file names; 0 for what is none, which ONNX Runtime refuses."""
    value = said.get(key, "")
    return int(value) if re.fullmatch("[0-9]{1,19}", value) else 0


def _of_graph(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """Every tensor of a graph: its initializers, those in its nodes, and those of the graphs in its nodes."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[TensorProto]:
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for graph in (attribute.g, *attribute.graphs):
            yield from _of_graph(graph)


def _arithmetic(graph: onnx.GraphProto) -> Arithmetic:
    """The coarsest numbers a file computes with: quantised, half precision weights or casts, else float."""
    if any("quantize" in node.op_type.lower() or node.op_type in INTEGER_OPS for node in graph.node):
        return "int8"
    casts = (attribute.i for node in graph.node if node.op_type == "Cast" for attribute in node.attribute)
    types = {*casts, *(tensor.data_type for tensor in graph.initializer)}
    return "fp32" if types.isdisjoint((TensorProto.FLOAT16, TensorProto.BFLOAT16)) else "fp16"


def _type_of(value: onnx.ValueInfoProto) -> str:
    """What a value holds, as ONNX calls it: float, double, …; a sequence, map or optional by its own name."""
    if value.type.WhichOneof("value") != "tensor_type":
        return (value.type.WhichOneof("value") or "unknown").removesuffix("_type")
    element = value.type.tensor_type.elem_type
    return TensorProto.DataType.Name(element).lower() if element in TensorProto.DataType.values() else str(element)


def _written(shape: tuple[int | None, ...]) -> str:
    return "x".join("?" if size is None else str(size) for size in shape)


def described(job: BenchJob) -> BenchJob:
    """Return the job with what a device needs to know of its input."""
    takes = signature(job.model, job.image_shape)
    return replace(
        job,
        image_shape=takes.image_shape,
        input_name=takes.name,
        declared=takes.declared,
        arithmetic=takes.arithmetic,
    )


def images(takes: Signature) -> NDArray[Any]:
    """Return the golden inputs: a few, and a whole number of batches where the batch is fixed."""
    count = IMAGES if takes.batch is None else takes.batch * math.ceil(IMAGES / takes.batch)
    drawn: NDArray[Any] = noise(np, [count, *takes.image_shape], takes.dtype, SEED)
    return drawn


def to_npy(array: NDArray[Any]) -> bytes:
    """Return the bytes of an .npy file."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def reference_logits(file: Path, inputs: NDArray[Any]) -> list[list[float]]:
    """Return the N x K logits of an ONNX file in ONNX Runtime on this CPU, by the rules of the file's own target."""
    kind, takes = kind_of(file.name), signature(file, inputs.shape[1:])
    session = ort_session.open_for_target(file, kind)
    step = takes.batch or len(inputs)
    try:
        batches = [ort_session.logits(session, inputs[first : first + step]) for first in range(0, len(inputs), step)]
        rows = np.concatenate(batches)
        other = next((batch.shape for batch in batches if len(batch) != step), None)
        if other is not None:
            raise ValueError(f"its answer is {_written(other)}")
    except Exception as error:  # ONNX Runtime's own errors have no common base
        refused = MachineError if lacks_memory(error) else InputFileError
        raise refused(f"{file} gives no row of numbers for each of {step} images: {runtime_reason(error)}.") from error
    if not np.isfinite(rows).all():
        raise InputFileError(f"{file} answers NaN or infinity to ordinary noise; its weights are damaged.")
    found: list[list[float]] = rows.reshape(len(inputs), -1).tolist()
    return found


def write_files(jobs: Sequence[BenchJob], folder: Path) -> dict[Path, tuple[Path, list[list[float]]]]:
    """Write the golden inputs of each model, one file an input type and size; return them with the host's logits."""
    written: dict[Path, tuple[Path, list[list[float]]]] = {}
    for job in jobs:
        if job.model in written:
            continue
        takes = signature(job.model, job.image_shape)
        inputs = images(takes)
        size = "x".join(map(str, inputs.shape))
        file = folder / f"golden-{takes.dtype}-{size}.npy"
        if not file.is_file():
            file.write_bytes(to_npy(inputs))
        written[job.model] = (file, reference_logits(job.model, inputs))
    return written


def array_in(logits: LogitsArray) -> NDArray[Any]:
    """Return logits that travelled as an array, bit for bit."""
    data = base64.b64decode(logits.base64, validate=True)
    return np.frombuffer(data, dtype=np.dtype(logits.dtype)).reshape(logits.shape)
