"""Golden inputs, seeded noise and no synthetic image, and the logits that this machine computes for them."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from edgekd.agent.kernels import INTEGER_OPS, Arithmetic, kind_of
from edgekd.agent.measurement import BenchJob
from edgekd.agent.messages import LogitsArray
from edgekd.agent.runners.inputs import noise
from edgekd.errors import InputFileError, MachineError, UsageError, lacks_memory
from edgekd.export import ort_session
from edgekd.text import first_line

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
        raise InputFileError(f"{file} must have one float or uint8 image input to be measured.")
    others = [value.name for value in model.graph.output if value.type.WhichOneof("value") in _NO_TENSORS]
    if others:
        raise InputFileError(f"{file} must answer with tensors to be measured; {others[0]} is a sequence or a map.")
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

    Raises InputFileError for weights in another folder, behind a link, or in what is no file: what an ONNX file names
    may be anything.
    """
    return weights_in(_read(file), file)


def weights_in(model: onnx.ModelProto, file: Path) -> tuple[str, ...]:
    """Return what `weights_of` does, of a model that was read from the file."""
    names = set()
    in_functions = (node for function in model.functions for node in function.node)
    for tensor in _tensors([*model.graph.initializer], [*model.graph.node, *in_functions]):
        if tensor.data_location == TensorProto.EXTERNAL:
            names.add(next((entry.value for entry in tensor.external_data if entry.key == "location"), ""))
    for name in names:
        place = file.with_name(name) if name and Path(name).name == name else None
        if place is None or place.is_symlink() or not place.is_file():
            raise InputFileError(
                f"{file} keeps weights in {name!r}, and only a file beside it is read, not one in another folder or "
                "behind a link; save it as one file (onnx.save of onnx.load)."
            )
    return tuple(sorted(names))


def _tensors(tensors: list[TensorProto], nodes: Sequence[onnx.NodeProto]) -> Iterator[TensorProto]:
    """Every tensor of a graph: its initializers, those in its nodes, and those of the graphs in its nodes."""
    yield from tensors
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        for graph in (attribute.g, *attribute.graphs):
            yield from _tensors([*graph.initializer], graph.node)


def _arithmetic(graph: onnx.GraphProto) -> Arithmetic:
    """The coarsest numbers a file computes with: quantised, half precision weights or casts, else float."""
    if any("quantize" in node.op_type.lower() or node.op_type in INTEGER_OPS for node in graph.node):
        return "int8"
    casts = (attribute.i for node in graph.node if node.op_type == "Cast" for attribute in node.attribute)
    types = {*casts, *(tensor.data_type for tensor in graph.initializer)}
    return "fp32" if types.isdisjoint((TensorProto.FLOAT16, TensorProto.BFLOAT16)) else "fp16"


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
        rows: list[list[float]] = np.concatenate(batches).reshape(len(inputs), -1).tolist()
    except Exception as error:  # ONNX Runtime's own errors have no common base
        refused = MachineError if lacks_memory(error) else InputFileError
        raise refused(
            f"{file} gives no row of numbers for each of {step} images: {first_line(error, 1000)}."
        ) from error
    return rows


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
