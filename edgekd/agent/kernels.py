"""The vocabulary of kinds, runtimes, operators and thresholds, and which artefacts a runtime can really execute."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from edgekd.schema import one_of

if TYPE_CHECKING:
    from edgekd.agent.device.environment import Environment
    from edgekd.agent.messages import Load
    from edgekd.agent.runners.runner import Runner

Kind = Literal["fp32", "fp16", "int8-cpu-x86", "int8-cpu-arm", "int8-trt", "int8-trt-fp16", "any"]
Arithmetic = Literal["fp32", "fp16", "int8"]
Runtime = Literal["ort-cpu", "ort-cuda", "torch", "tensorrt"]
Precision = Literal["fp32", "tf32", "fp16", "int8"]

KINDS: tuple[Kind, ...] = get_args(Kind)
ARITHMETICS: tuple[Arithmetic, ...] = get_args(Arithmetic)
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
KIND, ARITHMETIC, RUNTIME, PRECISION = one_of(*KINDS), one_of(*ARITHMETICS), one_of(*RUNTIMES), one_of(*PRECISIONS)
PROVIDERS: dict[Runtime, str] = {
    "ort-cpu": "CPUExecutionProvider",
    "ort-cuda": "CUDAExecutionProvider",
    "torch": "torch on the CPU",
    "tensorrt": "TensorRT",
}
ON_GPU: tuple[Runtime, ...] = ("ort-cuda", "tensorrt")
"""Runtimes that round float32 to TF32 unless asked not to."""

INTEGER_OPS = {"QLinearConv", "QLinearMatMul", "QGemm", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat"}
FLOAT_OPS = {"Conv", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "ConvTranspose"}
"""The compute nodes of ONNX Runtime's optimised graphs, by the arithmetic they run in."""

REALLY_INT8 = 0.9
"""Share of compute nodes that must run in integers for a row to count as INT8."""


TOLERANCES: dict[Precision, float] = {"fp32": 1e-3, "tf32": 1e-2, "fp16": 2e-2, "int8": 1e-1}
"""Largest difference allowed, as a share of the logits' range. INT8 kernels may round a tie either way, and each such
step goes on through the layers; FP16 has 11 bits of mantissa, TF32 as many, added up in another order."""


def runner_for(request: Load) -> Runner:
    """Return what runs a model in the runtime that a request names; what a runtime needs is imported only then."""
    if request.runtime == "torch":
        from edgekd.agent.runners.pytorch import TorchRunner

        return TorchRunner(request)
    if request.runtime == "tensorrt":
        from edgekd.agent.runners.tensorrt import runner

        return runner(request)
    from edgekd.agent.runners.ort import OrtRunner

    return OrtRunner(request)


def kind_of(file_name: str) -> Kind:
    """Return the kind of an artefact from the name `export` gave it (student.int8-trt.onnx); else "any"."""
    parts = file_name.split(".")
    return next((kind for kind in KINDS if len(parts) > 2 and parts[-2] == kind), "any")


def skip_reason(kind: Kind, runtime: Runtime, machine: Environment) -> str | None:
    """Return why timing this artefact would say nothing, as "n/a: ...", or None when it is to be timed."""
    if runtime in ("tensorrt", "torch"):  # which engines a file is for is TensorRT's own matter
        return None
    if kind.startswith("int8-trt"):
        return "n/a: made for TensorRT; ONNX Runtime would convert to float and back around every layer"
    if runtime == "ort-cuda":
        if kind.startswith("int8"):
            return "n/a: no kernels (ONNX Runtime's CUDA provider has no INT8 convolution)"
        return None
    if kind == "fp16" and not (machine.arm and "asimdhp" in machine.cpu_flags):
        return f"n/a: no kernels (ONNX Runtime casts FP16 to FP32 on this {machine.architecture} CPU)"
    if kind == "int8-cpu-x86" and not machine.x86:
        return f"n/a: made for x86-64 CPUs; this is {machine.architecture}"
    if kind == "int8-cpu-arm" and not machine.arm:
        return f"n/a: made for ARM CPUs; this is {machine.architecture}"
    return None
