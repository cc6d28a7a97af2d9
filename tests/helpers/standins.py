"""STAND-INS for trtexec and the tensorrt module. No NVIDIA code runs in these tests, and no TensorRT.

They are strict: a flag or member that the release does not have is a failure, as it is in the real ones. The engine
they build is the ONNX file itself, run by ONNX Runtime on the CPU, so that logits are real and only speed is not.
"""

from __future__ import annotations

import ctypes
import enum
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

API = json.loads((Path(__file__).parent / "facts" / "tensorrt_api.json").read_text())
RELEASES = tuple(API["releases"])
NUMBERS = {"8.5.2": 8502, "8.6.1": 8601, "10.3.0": 100300, "10.16": 101600, "11.1": 110100}
"""The number in trtexec's banner."""

_EVERYWHERE = {
    *("--onnx", "--saveEngine", "--loadEngine", "--shapes", "--minShapes", "--optShapes", "--maxShapes", "--help"),
    *("--useCudaGraph", "--useSpinWait", "--noDataTransfers", "--separateProfileRun", "--warmUp", "--duration"),
    *("--iterations", "--avgRuns", "--exportTimes", "--exportProfile", "--exportLayerInfo", "--profilingVerbosity"),
    *("--loadInputs", "--exportOutput", "--timingCacheFile", "--memPoolSize"),
}
_PRECISION = {"--fp16", "--int8", "--best", "--calib", "--precisionConstraints", "--noTF32"}
FLAGS = {
    "8.5.2": _EVERYWHERE | _PRECISION | {"--buildOnly", "--workspace", "--explicitBatch", "--batch", "--maxBatch"},
    "8.6.1": _EVERYWHERE | _PRECISION | {"--skipInference", "--workspace"},
    "10.3.0": _EVERYWHERE | _PRECISION | {"--skipInference", "--stronglyTyped"},
    "10.16": _EVERYWHERE | _PRECISION | {"--skipInference", "--stronglyTyped"},
    "11.1": _EVERYWHERE
    | {"--skipInference", "--stronglyTyped", "--noCudaGraph", "--noSpinWait", "--includeDataTransfers"}
    | {"--noTF32", "--loadRefOutputs", "--accuracyAlgorithm", "--accuracyThreshold"},
}
"""trtexec's flags by release, from the table of the project's deployment notes (samples/common/sampleOptions.cpp)."""


# ---- trtexec --------------------------------------------------------------------------------------------


def write_trtexec(folder: Path, release: str) -> Path:
    """Write a program `trtexec` of this release; every command line it gets is kept beside it."""
    tool = folder / "trtexec"
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import standins"
    tool.write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "{code}; sys.exit(standins.trtexec(\'{release}\', sys.argv[1:]))" "$@"\n'
    )
    tool.chmod(0o755)
    return tool


def write_unknown_trtexec(folder: Path, number: int) -> Path:
    """Write a program `trtexec` of a release that nothing is known of but its banner."""
    tool = folder / "trtexec"
    tool.write_text(f"#!/bin/sh\necho '&&&& RUNNING TensorRT.trtexec [TensorRT v{number}] # trtexec'\n")
    tool.chmod(0o755)
    return tool


def trtexec(release: str, arguments: list[str]) -> int:
    """Be trtexec: check the flags, build or time, write what is asked for."""
    line = " ".join(["trtexec", *arguments])
    build = " [b106]" if release.startswith("11") else ""
    print(f"&&&& RUNNING TensorRT.trtexec [TensorRT v{NUMBERS[release]}]{build} # {line}", flush=True)  # noqa: T201
    given = {flag: value for flag, _, value in (argument.partition("=") for argument in arguments)}
    unknown = [flag for flag in given if flag not in FLAGS[release]]
    if unknown:
        print(f"[11/22/2026-12:00:00] [E] Unknown option: {unknown[0]}")  # noqa: T201
    try:
        passed = not unknown and ("--help" in given or _serve(given))
    except (OSError, ValueError, KeyError, AssertionError) as error:
        print(f"[11/22/2026-12:00:00] [E] {type(error).__name__}: {error}")  # noqa: T201
        passed = False
    print(f"&&&& {'PASSED' if passed else 'FAILED'} TensorRT.trtexec [TensorRT v{NUMBERS[release]}] # {line}")  # noqa: T201
    return 0 if passed else 1


def _serve(given: dict[str, str]) -> bool:
    if "--onnx" in given:
        onnx = Path(given["--onnx"]).read_bytes()
        plan = {"onnx": onnx.hex(), "flags": sorted(given), "input": _declared(onnx)}
        Path(given["--saveEngine"]).write_text(json.dumps(plan))
        if {"--buildOnly", "--skipInference"} & set(given):
            return True
    plan = json.loads(Path(given["--loadEngine"]).read_text())
    name, shape = _input(plan, given.get("--shapes", ""))
    if "--exportOutput" in given:
        loaded, _, file = given["--loadInputs"].partition(":")
        assert loaded == name
        Path(given["--exportOutput"]).write_text(_outputs(plan, name, shape, file))
    if "--exportTimes" in given:
        count = max(int(given["--iterations"]), 10 * int(given["--duration"]))
        step_ms = 1000 * int(given["--duration"]) / count if int(given["--duration"]) else 2.0
        Path(given["--exportTimes"]).write_text(json.dumps([_times(i, step_ms) for i in range(count)]))
    return True


def _declared(data: bytes) -> tuple[str, list[int]]:
    """Return name and shape of the input, 0 where it is open."""
    import onnx

    assert b"unparsable" not in data, "no such operator"
    value = onnx.load_model_from_string(data).graph.input[0]
    return value.name, [d.dim_value for d in value.type.tensor_type.shape.dim]


def _input(plan: dict[str, Any], shapes: str) -> tuple[str, list[int]]:
    """Return name and shape of the input; as in the real one an open size that is not given is 1."""
    known, declared = plan["input"]
    name, _, text = shapes.partition(":")
    given = [int(size) for size in text.split("x")] if shapes else [size or 1 for size in declared]
    assert name in ("", known)
    assert all(want in (0, have) for want, have in zip(declared, given, strict=True)), (
        "a static shape is not overridden"
    )
    return known, given


def _outputs(plan: dict[str, Any], name: str, shape: list[int], file: str) -> str:
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(bytes.fromhex(plan["onnx"]), providers=["CPUExecutionProvider"])
    outputs = session.run(None, {name: np.fromfile(file, np.float32).reshape(shape)})
    written = []
    for out, value in zip(session.get_outputs(), outputs, strict=True):
        facts = f'"name" : "{out.name}", "dimensions" : "{"x".join(map(str, value.shape))}"'
        # By a C++ stream, to which nan and inf are words: what holds them is no JSON.
        written.append(f'{{ {facts}, "values" : [ {", ".join(map(repr, value.ravel().tolist()))} ] }}')
    return f"[ {', '.join(written)} ]"


def _times(number: int, step_ms: float) -> dict[str, float]:
    start, compute = number * step_ms, 1.5 + 0.01 * (number % 5)
    keys = ("startEnqMs", "endEnqMs", "startH2dMs", "endH2dMs", "startComputeMs", "endComputeMs", "startD2hMs")
    stamps = dict.fromkeys((*keys, "endD2hMs"), start) | {"endComputeMs": start + compute}
    return {**stamps, "h2dMs": 0.0, "computeMs": compute, "d2hMs": 0.0, "latencyMs": compute}


# ---- tensorrt -------------------------------------------------------------------------------------------


class Memory:
    """Host memory in the place of the device's, with the calls of `agent.cuda.Cuda`."""

    stream = 77

    def __init__(self) -> None:
        self.blocks: dict[int, Any] = {}

    def allocate(self, size_bytes: int) -> int:
        block = ctypes.create_string_buffer(size_bytes)
        self.blocks[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def upload(self, address: int, data: bytes) -> None:
        assert len(data) <= len(self.blocks[address])
        ctypes.memmove(address, data, len(data))

    def download(self, address: int, size_bytes: int) -> bytes:
        assert size_bytes <= len(self.blocks[address])
        return ctypes.string_at(address, size_bytes)

    def synchronize(self) -> None:
        pass


class Strict:
    """An object of a TensorRT class: only members of the release, only keywords of the signature, are there."""

    def __init__(self, cls: str, release: str, **members: Any) -> None:
        unknown = set(members) - set(API["releases"][release]["classes"][cls])
        if unknown:
            raise AttributeError(f"the stand-in gives {cls} {unknown}, which {release} does not have")
        object.__setattr__(self, "_about", (cls, release, members))

    def __getattr__(self, name: str) -> Any:
        cls, release, members = object.__getattribute__(self, "_about")
        if name not in API["releases"][release]["classes"][cls]:
            raise AttributeError(f"TensorRT {release}: {cls} has no {name}")
        value = members[name]
        if not callable(value):
            return value
        known = API["keywords"].get(cls, {}).get(name, [])

        def call(*arguments: Any, **keywords: Any) -> Any:
            for keyword in keywords:
                if not any(keyword in signature for signature in known):
                    raise TypeError(f"TensorRT {release}: {cls}.{name} takes no {keyword}")
            return value(*arguments, **keywords)

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{self._about[0]}.{name} is not to be set")


class Network(Strict):
    """A network whose length is its number of layers, as in the bindings: a new one is falsy."""

    def __len__(self) -> int:
        return 0


def tensorrt(release: str) -> SimpleNamespace:
    """Return a tensorrt module of this release; `asked` holds the flags that were set."""
    enums: dict[str, Any] = {
        name: enum.IntEnum(name, {member: number for number, member in enumerate(members)})
        for name, members in API["releases"][release]["enums"].items()
    }
    asked: list[str] = []
    version = {"10.16": "10.16.0.72", "11.1": "11.1.0.106"}.get(release, release)
    module = SimpleNamespace(__version__=version, asked=asked, **enums)

    def strict(cls: str, **members: Any) -> Strict:
        return Strict(cls, release, **members)

    def logger(severity: Any) -> Strict:
        assert severity == enums["Severity"].ERROR
        return strict("Logger")

    logger.ERROR = enums["Severity"].ERROR  # type: ignore[attr-defined]

    def builder(given: Strict) -> Strict:
        assert given is not None

        def create_network(flags: int = 0) -> Strict:
            members = enums["NetworkDefinitionCreationFlag"]
            asked.extend(f"network {member.name}" for member in members if flags >> int(member) & 1)
            if release.startswith("8"):
                assert flags & 1 << int(members.EXPLICIT_BATCH), "TensorRT 8 reads ONNX with an explicit batch only"
            return Network("INetworkDefinition", release)

        def create_builder_config() -> Strict:
            def add_optimization_profile(profile: Strict) -> int:
                asked.append("profile")
                return 0

            return strict(
                "IBuilderConfig",
                set_flag=lambda flag: asked.append(flag.name),
                clear_flag=lambda flag: asked.append(f"not {flag.name}"),
                add_optimization_profile=add_optimization_profile,
            )

        def create_optimization_profile() -> Strict:
            return strict("IOptimizationProfile", set_shape=lambda name, low, best, high: asked.append(f"{name}{best}"))

        def build_serialized_network(network: Strict, config: Strict) -> Any:
            return memoryview(module.parsed)

        return strict(
            "Builder",
            create_network=create_network,
            create_builder_config=create_builder_config,
            create_optimization_profile=create_optimization_profile,
            build_serialized_network=build_serialized_network,
        )

    def parser(network: Strict, given: Strict) -> Strict:
        def parse_from_file(path: str) -> bool:
            module.parsed = Path(path).read_bytes()
            return b"unparsable" not in module.parsed

        def get_error(index: int) -> Strict:
            return strict("ParserError", desc=lambda: f"error {index}: no such operator")

        return strict("OnnxParser", parse_from_file=parse_from_file, num_errors=2, get_error=get_error)

    module.Logger, module.Builder, module.OnnxParser = logger, builder, parser
    module.Runtime = lambda given: strict(
        "Runtime", deserialize_cuda_engine=lambda plan: _engine(strict, enums, bytes(plan))
    )
    return module


def _engine(strict: Callable[..., Strict], enums: dict[str, Any], plan: bytes) -> Strict:
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(plan, providers=["CPUExecutionProvider"])
    (first,), (out,) = session.get_inputs(), session.get_outputs()
    names, mode, floats = [first.name, out.name], enums["TensorIOMode"], enums["DataType"].FLOAT
    shapes: dict[str, tuple[int, ...]] = {}
    addresses: dict[str, int] = {}

    def set_input_shape(name: str, shape: tuple[int, ...]) -> bool:
        found = session.run(None, {name: np.zeros(shape, np.float32)})[0]
        shapes.update({name: shape, out.name: found.shape})
        return True

    def set_tensor_address(name: str, memory: int) -> bool:
        addresses[name] = memory
        return name in names

    def execute_async_v3(stream_handle: int) -> bool:
        assert stream_handle == Memory.stream
        size = 4 * int(np.prod(shapes[first.name]))
        images = np.frombuffer(ctypes.string_at(addresses[first.name], size), np.float32).reshape(shapes[first.name])
        data = session.run(None, {first.name: images})[0].tobytes()
        ctypes.memmove(addresses[out.name], data, len(data))
        return True

    def create_execution_context() -> Strict:
        return strict(
            "IExecutionContext",
            set_input_shape=set_input_shape,
            get_tensor_shape=lambda name: shapes[name],
            set_tensor_address=set_tensor_address,
            execute_async_v3=execute_async_v3,
        )

    return strict(
        "ICudaEngine",
        num_io_tensors=2,
        get_tensor_name=lambda index: names[index],
        get_tensor_mode=lambda name: mode.INPUT if name == first.name else mode.OUTPUT,
        get_tensor_dtype=lambda name: _Typed(floats),
        create_execution_context=create_execution_context,
    )


class _Typed:
    """Prints as pybind11's enums do."""

    def __init__(self, member: Any) -> None:
        self._member = member

    def __str__(self) -> str:
        return f"DataType.{self._member.name}"
