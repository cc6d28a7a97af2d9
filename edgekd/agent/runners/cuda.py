"""The few calls of the CUDA runtime that TensorRT's Python API leaves to its caller, through ctypes."""

from __future__ import annotations

import ctypes
import ctypes.util
from pathlib import Path

from edgekd.agent.refusal import RefusedError

_TO_DEVICE, _TO_HOST = 1, 2
_BLOCKING_SYNC = 4


def _library() -> ctypes.CDLL:
    named = [ctypes.util.find_library("cudart"), "libcudart.so"]
    folders = [Path("/usr/local/cuda/lib64"), *sorted(Path("/usr/local").glob("cuda-*/lib64"))]
    libraries = [str(path) for folder in folders for path in sorted(folder.glob("libcudart.so*"))]
    for name in filter(None, [*named, *libraries]):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise RefusedError("machine", "libcudart.so is not on this device; install the CUDA runtime (JetPack: cuda-cudart)")


class Cuda:
    """Device memory and one stream of its own: TensorRT adds synchronisation to the default one."""

    def __init__(self, library: ctypes.CDLL | None = None, *, spin_wait: bool = True) -> None:
        self._lib = library or _library()
        self._lib.cudaGetErrorString.restype = ctypes.c_char_p
        if not spin_wait:  # a core that spins until the GPU is done would be counted as the GPU's power
            self._check("cudaSetDeviceFlags", self._lib.cudaSetDeviceFlags(ctypes.c_uint(_BLOCKING_SYNC)))
        stream = ctypes.c_void_p()
        self._check("cudaStreamCreate", self._lib.cudaStreamCreate(ctypes.byref(stream)))
        self.stream = int(stream.value or 0)

    def _check(self, call: str, code: int) -> None:
        if code != 0:
            text = self._lib.cudaGetErrorString(code)
            raise RefusedError("machine", f"{call} failed: {text.decode() if text else code}")

    def allocate(self, size_bytes: int) -> int:
        """Return the address of new device memory, held until the process ends."""
        pointer = ctypes.c_void_p()
        self._check("cudaMalloc", self._lib.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(size_bytes)))
        return int(pointer.value or 0)

    def upload(self, address: int, data: bytes) -> None:
        """Copy bytes to the device."""
        size = ctypes.c_size_t(len(data))
        self._check("cudaMemcpy", self._lib.cudaMemcpy(ctypes.c_void_p(address), data, size, _TO_DEVICE))

    def download(self, address: int, size_bytes: int) -> bytes:
        """Copy bytes from the device."""
        data = ctypes.create_string_buffer(size_bytes)
        size = ctypes.c_size_t(size_bytes)
        self._check("cudaMemcpy", self._lib.cudaMemcpy(data, ctypes.c_void_p(address), size, _TO_HOST))
        return data.raw

    def synchronize(self) -> None:
        """Wait for the stream."""
        self._check("cudaStreamSynchronize", self._lib.cudaStreamSynchronize(ctypes.c_void_p(self.stream)))
