"""The TensorRT of a device: trtexec before the Python API, and what to say where there is neither."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from edgekd.agent.device.environment import TensorRT
from edgekd.agent.device.machine import gpu_names, read_small_file
from edgekd.agent.messages import Load
from edgekd.agent.refusal import RefusedError
from edgekd.agent.runners import trtexec
from edgekd.agent.runners.runner import Runner

MISSING = (
    "there is neither trtexec nor a Python module of TensorRT that can be imported (python3 -c 'import tensorrt' says "
    "why) on this device; on a Jetson: sudo apt-get install tensorrt (one in another place: --trtexec PATH, with --on "
    "or to student.pyz)"
)


def find_tensorrt(given: str | None = None) -> TensorRT | None:
    """Return the TensorRT that would be used; None without."""
    tool = trtexec.find_trtexec(given)
    if tool is not None:
        return TensorRT(tool, trtexec.version(tool))
    module = _module()
    return None if module is None else TensorRT("python", str(module.__version__))


def _module() -> Any:
    if importlib.util.find_spec("tensorrt") is None:
        return None
    try:
        return importlib.import_module("tensorrt")
    except Exception:  # noqa: BLE001 - a wheel whose libraries are missing is no TensorRT, whatever it raises
        return None


def gpu_identity() -> str:
    """Return what an engine is bound to besides TensorRT's version."""
    gpus = gpu_names()
    return gpus[0] if gpus else read_small_file("/proc/device-tree/model") or "unknown GPU"


def runner(request: Load) -> Runner:
    """Return what builds an engine, or takes it from the cache, and runs it."""
    tool = trtexec.find_trtexec(request.trtexec)
    if tool is not None:
        return trtexec.TrtexecRunner(request, tool, gpu_identity())
    module = _module()
    if module is None:
        raise RefusedError("machine", MISSING)
    from edgekd.agent.runners.cuda import Cuda
    from edgekd.agent.runners.tensorrt_api import TensorRTRunner

    return TensorRTRunner(request, module, Cuda(spin_wait=request.spin_wait), gpu_identity())
