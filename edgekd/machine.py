"""What this machine can do: device, threads, precision, and the environment that results depend on."""

from __future__ import annotations

import ctypes
import platform
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from edgekd import console, cpus
from edgekd.errors import MachineError, UsageError

BF16_CPU_FLAGS = ("avx512_bf16", "amx_bf16")
"""CPU flags under which oneDNN's bfloat16 convolutions are native and faster; emulated elsewhere."""


def resolve_device(name: str) -> torch.device:
    """Return the device for auto, cpu, cuda or cuda:i; `MachineError` when it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"there is no device {name!r}; use auto, cpu, cuda or cuda:0.") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"edgekd distils on cpu or cuda, not on {name!r}; use auto, cpu, cuda or cuda:0.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise MachineError(f"device {name} was asked for, but this machine has {torch.cuda.device_count()} GPUs.")
    return device


def use_threads(threads: int) -> int:
    """Set torch's threads within an operator (0: as many as can work at a time) and return their number.

    Operators run one after another. More threads than the process has CPUs are warned of.
    """
    count = threads or cpus.usable_threads()
    warn_of_threads(count)
    _one_operator_at_a_time()
    torch.set_num_threads(count)
    return count


@cache
def warn_of_threads(threads: int) -> None:
    """Warn of more threads than can work at a time, once."""
    doubt = cpus.too_many(threads)
    if doubt is not None:
        console.warn(f"{doubt} Give --threads {cpus.usable_threads()}, or set machine.threads = 0.")


@cache
def _one_operator_at_a_time() -> bool:
    """Give torch one thread for operators side by side; return whether it could still be asked.

    Nothing here runs any side by side, so whoever embeds edgekd and has started that pool already loses nothing.
    """
    try:
        torch.set_num_interop_threads(1)
    except RuntimeError:
        return False
    return True


@cache
def keep_malloc_pages() -> bool:
    """Let glibc keep freed blocks instead of handing them back; return whether this system's libc could be asked.

    A training step frees and asks for the same blocks again and again. Handed back, each page of them faults anew at
    every step, which costs 5 to 10 % of a step on a CPU. The process then keeps its peak memory until it ends.
    """
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl and macOS have no mallopt, Windows no CDLL(None)
        return False
    return bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, 2**31 - 1))


@dataclass(frozen=True)
class Precision:
    """The arithmetic of one network's convolutions: float32, or bfloat16 under autocast."""

    device: torch.device
    bf16: bool

    def __call__(self) -> AbstractContextManager[Any]:
        """The context to run the network in."""
        if not self.bf16:
            return nullcontext()
        # The weight cache would keep stale casts alive across optimiser steps of a long context.
        return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)


def precision_for(network: nn.Module, device: torch.device, precision: str) -> Precision:
    """Decide a network's precision from flags and structure alone, so that it is the same on every run.

    On CPUs with avx512_bf16 oneDNN's dense convolutions run faster in bfloat16 and depthwise ones slower, so
    a network with grouped convolutions stays in float32 there; `edgekd doctor` times it on this machine.
    """
    if precision != "auto":
        return Precision(device, precision == "bf16")
    if device.type == "cuda":
        return Precision(device, torch.cuda.get_device_capability(device) >= (8, 0))
    grouped = any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in network.modules())
    return Precision(device, not grouped and not cpus.flags().isdisjoint(BF16_CPU_FLAGS))


def channels_last(x: Tensor) -> Tensor:
    """Return a copy of `x` (N, C, H, W) whose strides are channels-last even for one channel.

    `contiguous(memory_format=...)` leaves a one-channel image as it is, since both orders hold the same bytes; the
    convolution then reads its strides as channels-first and the whole network runs in the slower order.
    """
    return torch.empty_like(x, memory_format=torch.channels_last).copy_(x)


class Float32Linear(nn.Linear):
    """A linear layer that stays in float32 under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the float32 product."""
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


class Float32Conv2d(nn.Conv2d):
    """A convolution that stays in float32 under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the float32 convolution."""
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


def float32_head(network: nn.Module, head: str) -> None:
    """Keep the layer named `head`, which makes the logits, in float32 even under autocast.

    A bfloat16 logit of 17.31 is 17.25: the rounding is as large as the late distillation loss. The class is
    exchanged in place, so that names of parameters and deep copies stay right.
    """
    module = network.get_submodule(head)
    if type(module) is nn.Linear:
        module.__class__ = Float32Linear
    elif type(module) is nn.Conv2d:
        module.__class__ = Float32Conv2d


def environment(device: torch.device, threads: int) -> dict[str, str | int | None]:
    """Return what bit-identity depends on: versions, processor, device and threads."""
    facts: dict[str, str | int | None] = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": cpus.model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device": device.type,
        "threads": threads,
    }
    if device.type == "cuda":
        facts |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return facts
