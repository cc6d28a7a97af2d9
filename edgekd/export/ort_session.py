"""Run ONNX files in ONNX Runtime, and state what of them really ran as integers."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto
from onnxruntime.capi import onnxruntime_pybind11_state

from edgekd.agent.device import scratch
from edgekd.agent.device.environment import this_machine
from edgekd.agent.kernels import FLOAT_OPS, INTEGER_OPS, REALLY_INT8
from edgekd.agent.refusal import runtime_reason
from edgekd.errors import InputFileError, MachineError

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
PRECISION = "session.x64quantprecision"
"""The session option that makes U8×S8 products exact on every x86 CPU, and slower on one without VNNI."""
LONGEST_RUN_S = 600.0
"""An ONNX file from anywhere may hold a Loop that never ends."""

# ONNX Runtime's exceptions have no common base but Exception.
_LOAD_ERRORS = (
    onnxruntime_pybind11_state.Fail,
    onnxruntime_pybind11_state.InvalidArgument,
    onnxruntime_pybind11_state.InvalidGraph,
    onnxruntime_pybind11_state.InvalidProtobuf,
    onnxruntime_pybind11_state.NoModel,
    onnxruntime_pybind11_state.NoSuchFile,
    onnxruntime_pybind11_state.NotImplemented,
    onnxruntime_pybind11_state.RuntimeException,
    onnxruntime_pybind11_state.EPFail,
)


@dataclass(frozen=True)
class IntegerShare:
    """How many of the compute nodes (Conv, Gemm, MatMul) run as integers in the optimised graph."""

    integer: int
    total: int

    @property
    def share(self) -> float:
        """Integer nodes over all; 0 for a graph without compute nodes."""
        return self.integer / self.total if self.total else 0.0

    @property
    def quantized(self) -> bool:
        """Whether the file may be called INT8 on this runtime."""
        return self.share >= REALLY_INT8


def open_session(
    source: Path | ModelProto,
    *,
    provider: str = CPU,
    threads: int = 1,
    optimized_path: Path | None = None,
    arm_rules: bool = False,
    as_written: bool = False,
    default_kernels: bool = False,
) -> onnxruntime.InferenceSession:
    """Open a session that runs on `provider` and on nothing else, and adds integers without saturating.

    Args:
        source: the model.
        provider: an execution provider of ONNX Runtime; other than on the CPU no node may fall back to it.
        threads: threads within an operator; operators run one after another.
        optimized_path: where ONNX Runtime saves the graph it will really run.
        arm_rules: keep int8 activations int8, as on ARM; x86 otherwise turns them into uint8.
        as_written: run Q/DQ pairs one by one instead of fusing them, for files meant for TensorRT. Fusion is
            slower there, and wrong with float16 scales: ONNX Runtime 1.31 quantises the bias itself and
            takes a float16 scale for another.
        default_kernels: multiply as ONNX Runtime does unless asked otherwise; see `saturates`.

    Raises:
        MachineError: the provider is not installed or not the one that became active.
        InputFileError: the file is not a model that ONNX Runtime can load.
    """
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise MachineError(
            f"ONNX Runtime here has no {provider} (it has {', '.join(available)}); "
            f"install the onnxruntime package that brings it."
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if optimized_path is not None:
        options.optimized_model_filepath = str(optimized_path)
    if arm_rules:
        options.add_session_config_entry("session.qdqisint8allowed", "1")
    elif not default_kernels:  # with int8 activations it would make pairs of types that have no kernel
        options.add_session_config_entry(PRECISION, "1")
    if as_written:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if provider != CPU:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    data = source.SerializeToString() if isinstance(source, ModelProto) else str(source)
    try:
        session = onnxruntime.InferenceSession(data, options, providers=[provider])
    except _LOAD_ERRORS as error:
        name = "the model" if isinstance(source, ModelProto) else str(source)
        kind = InputFileError if provider == CPU else MachineError
        raise kind(f"{name}: ONNX Runtime cannot run it on {provider}: {runtime_reason(error)}") from error
    active = session.get_providers()
    if active[:1] != [provider]:
        raise MachineError(f"ONNX Runtime runs on {active[0]} instead of {provider}; see its log for the reason.")
    return session


def logits(session: onnxruntime.InferenceSession, batch: NDArray[Any]) -> NDArray[np.float32]:
    """Return the first output, N×K, for one batch in the layout and type of the model's input.

    Raises InputFileError where it takes longer than `LONGEST_RUN_S`.
    """
    options, late = onnxruntime.RunOptions(), threading.Event()

    def end() -> None:
        late.set()
        options.terminate = True

    timer = threading.Timer(LONGEST_RUN_S, end)
    timer.daemon = True
    timer.start()
    try:
        (output, *_) = session.run(None, {session.get_inputs()[0].name: batch}, options)
    except _LOAD_ERRORS as error:
        if late.is_set():
            raise InputFileError(
                f"one batch was not answered within {LONGEST_RUN_S:g} s; has the model a Loop without an end?"
            ) from error
        raise
    finally:
        timer.cancel()
    return np.asarray(output, dtype=np.float32)


def open_for_target(
    source: Path | ModelProto, target: str, *, threads: int = 1, default_kernels: bool = False
) -> onnxruntime.InferenceSession:
    """Open a CPU session by the rules of what a file is made for: int8-cpu-arm, int8-trt, …; others have none."""
    arm, tensorrt = target == "int8-cpu-arm", target.startswith("int8-trt")
    return open_session(source, threads=threads, arm_rules=arm, as_written=tensorrt, default_kernels=default_kernels)


@cache
def saturates() -> bool:
    """Return whether ONNX Runtime's default kernels saturate here: on an x86 without VNNI they add U8×S8 in 16 bits."""
    here = this_machine()
    return here.x86 and not here.int8_instructions


def saturation_note(file: str, what: str, exact: float, default: float) -> str:
    """Return the sentence about a file on a CPU that `saturates`, from its share of something in either mode."""
    return (
        f"note     {file}: a CPU without VNNI, as here, must set {PRECISION}=1 for these {exact:.2%} {what}; "
        f"ONNX Runtime's default gives {default:.2%} on it"
    )


def all_logits(
    source: Path | ModelProto,
    batches: Iterable[NDArray[Any]],
    *,
    threads: int = 1,
    target: str = "",
    default_kernels: bool = False,
) -> NDArray[np.float32]:
    """Return the logits of all batches, one under the other, from a CPU session (see `open_for_target`)."""
    session = open_for_target(source, target, threads=threads, default_kernels=default_kernels)
    return np.concatenate([logits(session, batch) for batch in batches])


def integer_node_share(source: Path | ModelProto, *, arm_rules: bool = False) -> IntegerShare:
    """Count the integer compute nodes in the graph that ONNX Runtime makes of a model on this CPU."""
    with scratch.folder() as folder:
        optimized = folder / "optimised.onnx"
        open_session(source, optimized_path=optimized, arm_rules=arm_rules)
        ops = [node.op_type for node in onnx.load(str(optimized)).graph.node]
    integer = sum(op in INTEGER_OPS for op in ops)
    return IntegerShare(integer, integer + sum(op in FLOAT_OPS for op in ops))
