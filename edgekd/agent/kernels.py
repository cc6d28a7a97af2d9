"""The vocabulary of kinds, runtimes and operators, and which artefacts a runtime can really execute."""

from __future__ import annotations

from typing import Literal, get_args

from edgekd.agent.device.environment import Environment

Kind = Literal["fp32", "fp16", "int8-cpu-x86", "int8-cpu-arm", "int8-trt", "int8-trt-fp16", "any"]
Arithmetic = Literal["fp32", "fp16", "int8"]
Runtime = Literal["ort-cpu", "ort-cuda", "torch", "tensorrt"]

RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)
PROVIDERS: dict[Runtime, str] = {
    "ort-cpu": "CPUExecutionProvider",
    "ort-cuda": "CUDAExecutionProvider",
    "torch": "torch on the CPU",
    "tensorrt": "TensorRT",
}

INTEGER_OPS = {"QLinearConv", "QLinearMatMul", "QGemm", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat"}
FLOAT_OPS = {"Conv", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "ConvTranspose"}
"""The compute nodes of ONNX Runtime's optimised graphs, by the arithmetic they run in."""

REALLY_INT8 = 0.9
"""Share of compute nodes that must run in integers for a row to count as INT8."""


def kind_of(file_name: str) -> Kind:
    """Return the kind of an artefact from the name `export` gave it (student.int8-trt.onnx); else "any"."""
    parts = file_name.split(".")
    kinds: tuple[Kind, ...] = get_args(Kind)
    return next((kind for kind in kinds if len(parts) > 2 and parts[-2] == kind), "any")


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
