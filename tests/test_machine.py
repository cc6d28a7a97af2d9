"""Devices, threads, precision as a pure function, and heads that stay in float32."""

from __future__ import annotations

import copy
import platform
import subprocess
import sys

import pytest
import torch
from torch import nn

from edgekd import cpus, machine
from edgekd.errors import MachineError, UsageError
from edgekd.machine import Precision

CPU = torch.device("cpu")


def dense() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))


def depthwise() -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(144, 2))


def test_auto_takes_the_gpu_if_there_is_one() -> None:
    assert machine.resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert machine.resolve_device("cpu") == CPU


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "tpu:0", "meta", "mps"])
def test_an_unknown_device_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError, match="use auto, cpu, cuda or cuda:0"):
        machine.resolve_device(name)


def test_a_gpu_that_is_not_there_is_a_machine_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert machine.resolve_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(MachineError, match="this machine has 1 GPUs"):
        machine.resolve_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(MachineError, match="this machine has 0 GPUs"):
        machine.resolve_device("cuda")


def test_threads_are_set_and_zero_means_all_cores() -> None:
    before = torch.get_num_threads()
    try:
        assert machine.use_threads(2) == torch.get_num_threads() == 2
        assert machine.use_threads(0) == torch.get_num_threads() == cpus.usable_threads()
    finally:
        torch.set_num_threads(before)


def test_the_default_follows_the_quota_and_more_is_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(cpus, "quota", lambda: 0.5)
    machine.warn_of_threads.cache_clear()
    try:
        assert machine.use_threads(0) == torch.get_num_threads() == 1
        assert machine.use_threads(1) == 1
        assert capsys.readouterr().err == ""
        assert machine.use_threads(7) == machine.use_threads(7) == torch.get_num_threads() == 7, "asked for, so taken"
        assert " ".join(capsys.readouterr().err.split()).count("7 threads are more than the 0.5 CPUs") == 1
    finally:
        torch.set_num_threads(before)
        machine.warn_of_threads.cache_clear()


def test_one_thread_is_one_for_operators_side_by_side_too() -> None:
    program = "from edgekd import machine; import torch; machine.use_threads(1); print(torch.get_num_interop_threads())"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["1"]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be asked to keep memory")
@pytest.mark.slow
def test_freed_memory_stays_with_the_process() -> None:
    code = """
import resource, torch
from edgekd import cpus, machine
assert machine.keep_malloc_pages()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
first, *_, last = [faults() for _ in range(12)]
assert first > 10_000 and last < 100, (first, last)
"""
    # In a process of its own: the setting cannot be taken back.
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_holds_for_one_channel_too(channels: int) -> None:
    x = torch.randn(4, channels, 6, 5)
    y = machine.channels_last(x)
    assert torch.equal(x, y)
    assert y.stride() == (channels * 30, 1, channels * 5, channels)


@pytest.mark.parametrize("flag", machine.BF16_CPU_FLAGS)
def test_auto_precision_is_a_function_of_flags_and_structure(flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpus, "flags", lambda: frozenset({"avx2", flag}))
    assert machine.precision_for(dense(), CPU, "auto").bf16
    assert not machine.precision_for(depthwise(), CPU, "auto").bf16
    monkeypatch.setattr(cpus, "flags", lambda: frozenset({"avx2", "avx512f"}))
    assert not machine.precision_for(dense(), CPU, "auto").bf16


def test_a_precision_that_was_asked_for_is_given() -> None:
    assert machine.precision_for(depthwise(), CPU, "bf16") == Precision(CPU, True)
    assert machine.precision_for(dense(), CPU, "fp32") == Precision(CPU, False)


def test_the_context_of_a_precision_decides_the_arithmetic() -> None:
    x, network = torch.ones(1, 3, 8, 8), dense()
    with Precision(CPU, True)():
        assert network(x).dtype == torch.bfloat16
        with Precision(CPU, False)():
            pass
    with Precision(CPU, False)():
        assert network(x).dtype == torch.float32


@pytest.mark.parametrize("head", [nn.Linear(144, 5), nn.Conv2d(4, 5, 6)], ids=["linear", "conv"])
def test_a_float32_head_gives_float32_logits_under_autocast(head: nn.Linear | nn.Conv2d) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten() if isinstance(head, nn.Linear) else nn.ReLU(), head)
    names = list(network.state_dict())
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    plain = network(x)
    with Precision(CPU, True)():
        assert network(x).dtype == torch.bfloat16
        body = network[1](network[0](x))
        expected = nn.functional.linear if isinstance(head, nn.Linear) else nn.functional.conv2d
        with torch.autocast("cpu", enabled=False):
            reference = expected(body.float(), head.weight, head.bias)
        machine.float32_head(network, "2")
        assert network(x).dtype == torch.float32
        assert torch.equal(network(x), reference)
    assert torch.equal(network(x), plain), "outside autocast nothing changes"
    assert list(network.state_dict()) == names


def test_a_copy_of_a_float32_head_uses_its_own_weights() -> None:
    network = dense()
    machine.float32_head(network, "2")
    twin = copy.deepcopy(network)
    with torch.no_grad():
        network.get_parameter("2.weight").zero_()
        network.get_parameter("2.bias").fill_(7.0)
    x = torch.ones(1, 3, 8, 8)
    with Precision(CPU, True)():
        assert torch.equal(network(x), torch.full((1, 2), 7.0))
        assert not torch.equal(twin(x), network(x))
        assert twin(x).dtype == torch.float32
    assert twin.get_parameter("2.weight").data_ptr() != network.get_parameter("2.weight").data_ptr()


def test_a_head_of_another_kind_is_left_alone() -> None:
    network = nn.Sequential(nn.ReLU())
    machine.float32_head(network, "0")
    assert type(network[0]) is nn.ReLU


def test_the_environment_names_what_bit_identity_depends_on() -> None:
    found = machine.environment(CPU, 3)
    assert {"torch", "python", "machine", "cpu", "cpu_capability", "device", "threads"} == set(found)
    assert found["threads"] == 3
    assert found["torch"] == torch.__version__
    assert cpus.model()
