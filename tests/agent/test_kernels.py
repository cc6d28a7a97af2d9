from __future__ import annotations

from dataclasses import replace

import pytest

from edgekd.agent.device.environment import Environment, this_machine
from edgekd.agent.kernels import Kind, Runtime, kind_of, skip_reason

X86 = replace(this_machine(), architecture="x86_64", cpu_flags=("avx2",))
ARM = replace(this_machine(), architecture="aarch64", cpu_flags=("asimd",))
ARM_FP16 = replace(ARM, cpu_flags=("asimd", "asimdhp"))


@pytest.mark.parametrize("kind", ["fp32", "fp16", "int8-cpu-x86", "int8-cpu-arm", "int8-trt", "int8-trt-fp16"])
def test_kind_is_in_the_name(kind: Kind) -> None:
    assert kind_of(f"student.{kind}.onnx") == kind


@pytest.mark.parametrize("name", ["model.onnx", "fp32.onnx", "student.int7.onnx", "student.any.onnx"])
def test_other_names_have_no_kind(name: str) -> None:
    assert kind_of(name) == "any"


@pytest.mark.parametrize(
    ("kind", "runtime", "machine", "reason"),
    [
        ("fp16", "ort-cpu", X86, "n/a: no kernels"),
        ("fp16", "ort-cpu", ARM, "n/a: no kernels"),
        ("fp16", "ort-cpu", ARM_FP16, None),
        ("fp16", "ort-cuda", X86, None),
        ("fp32", "ort-cpu", X86, None),
        ("int8-cpu-x86", "ort-cpu", X86, None),
        ("int8-cpu-x86", "ort-cpu", ARM, "n/a: made for x86-64 CPUs; this is aarch64"),
        ("int8-cpu-arm", "ort-cpu", ARM, None),
        ("int8-cpu-arm", "ort-cpu", X86, "n/a: made for ARM CPUs; this is x86_64"),
        ("int8-cpu-x86", "ort-cuda", X86, "n/a: no kernels"),
        ("int8-trt", "ort-cpu", X86, "n/a: made for TensorRT"),
        ("int8-trt-fp16", "ort-cuda", X86, "n/a: made for TensorRT"),
        ("any", "ort-cpu", X86, None),
    ],
)
def test_only_what_the_runtime_executes_is_timed(
    kind: Kind, runtime: Runtime, machine: Environment, reason: str | None
) -> None:
    told = skip_reason(kind, runtime, machine)
    assert told is None if reason is None else str(told).startswith(reason)
