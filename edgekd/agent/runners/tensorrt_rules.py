"""Which file and which flags each TensorRT takes: 8.5, 8.6, 10.x and 11.x differ, and an unknown flag is an error.

Read from trtexec's source (samples/common/sampleOptions.cpp) at the tags of these versions. No other version is tried.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekd.agent.kernels import Kind

if TYPE_CHECKING:
    from edgekd.agent.device.environment import TensorRT

OLDEST_WITH_WORDS = "TensorRT 8.5, 8.6, 10.x and 11.x are known"
_BANNER = re.compile(r"\[TensorRT v(\d+)\](?: \[b(\d+)\])?")


@dataclass(frozen=True)
class EngineOptions:
    """One way to build an engine from a file: `suffix` tells its row from the file's others."""

    kind: Kind
    flags: tuple[str, ...] = ()
    suffix: str = ""


def version_of_banner(text: str) -> str | None:
    """Return `major.minor.patch` from trtexec's first line; the number has two digits a part from 10.0 on."""
    match = _BANNER.search(text)
    if match is None:
        return None
    number = int(match.group(1))
    first = 10000 if number >= 100000 else 1000
    return f"{number // first}.{number % first // 100}.{number % 100}"


def parser_family(version: str) -> str | None:
    """Return 8.5, 8.6, 10 or 11, or None for a TensorRT whose flags are not known."""
    major, minor = (int(part) for part in version.split(".")[:2])
    if (major, minor) in ((8, 5), (8, 6)):
        return f"{major}.{minor}"
    return str(major) if major in (10, 11) else None


def known(tensorrt: TensorRT | None) -> bool:
    """Return whether the TensorRT that was found is one whose flags are known."""
    return tensorrt is not None and parser_family(tensorrt.version) is not None


def uses_of(kind: Kind, version: str) -> list[EngineOptions] | str:
    """Return the engines to build from a file of this kind, or why there are none, as "n/a: ..."."""
    family = parser_family(version)
    if family is None:
        return f"n/a: TensorRT {version} is installed; {OLDEST_WITH_WORDS}"
    if kind.startswith("int8-cpu"):
        return "n/a: made for ONNX Runtime on CPUs; student.int8-trt*.onnx are for TensorRT (edgekd export --int8)"
    if family == "11":
        if kind == "int8-trt":
            return f"n/a: TensorRT {version} would run the rest in FP32; student.int8-trt-fp16.onnx is for it"
        return [EngineOptions(kind, ("--noTF32",) if kind == "fp32" else ())]
    if kind == "fp16":
        return f"n/a: TensorRT {version} makes FP16 of student.fp32.onnx (--fp16)"
    if kind == "int8-trt-fp16":
        if family == "10":
            return [EngineOptions(kind, ("--stronglyTyped",))]
        return f"n/a: its opset is 19, and TensorRT {version} reads up to 17"
    if kind == "int8-trt":
        return [EngineOptions(kind, ("--fp16", "--int8"))]
    if kind == "fp32":
        return [EngineOptions("fp32", ("--noTF32",)), EngineOptions("fp16", ("--fp16",), " --fp16")]
    return [EngineOptions(kind)]


def build_flags(version: str) -> list[str]:
    """Return the flag of trtexec that builds and does not time."""
    return ["--buildOnly"] if parser_family(version) == "8.5" else ["--skipInference"]


def timing_flags(version: str, *, spin_wait: bool = True) -> list[str]:
    """Return what makes times comparable: CUDA graph, no copies, no profile while timing, spin wait.

    From 11 on CUDA graph, spin wait and no copies are the defaults, and the old flags still accepted.
    """
    flags = ["--useCudaGraph", "--noDataTransfers", "--separateProfileRun"]
    if spin_wait:
        return ["--useSpinWait", *flags]
    return ["--noSpinWait", *flags] if parser_family(version) == "11" else flags
