from __future__ import annotations

import json
import os
import platform
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest

from edgekd.agent.device.environment import Environment, this_machine
from edgekd.schema import object_of, to_json


def test_this_machine_is_described() -> None:
    here = this_machine()
    assert here.architecture == platform.machine()
    assert here.python == platform.python_version()
    assert here.cpus == os.cpu_count()
    assert 0 < here.usable_cpus <= here.cpus
    assert onnxruntime.__version__ in here.runtime_packages.values()
    assert here.cpu_model


def test_flags_and_memory_are_those_of_the_kernel() -> None:
    if not Path("/proc/meminfo").is_file():
        pytest.skip("no /proc on this system")
    here = this_machine()
    words = set(Path("/proc/cpuinfo").read_text().split())
    for flag in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimddp"):
        assert (flag in here.cpu_flags) == (flag in words)
    assert here.memory_bytes is not None
    assert here.free_memory_bytes is not None
    assert 2**28 < here.free_memory_bytes < here.memory_bytes


def test_facts_survive_json() -> None:
    here = this_machine()
    assert object_of(Environment)(json.loads(json.dumps(to_json(here))), "") == here


def test_int8_instructions_by_flag() -> None:
    here = replace(this_machine(), cpu_flags=("avx2", "avx512f"))
    assert not here.int8_instructions
    assert replace(here, cpu_flags=("avx_vnni",)).int8_instructions
    assert replace(here, cpu_flags=("asimddp",)).int8_instructions


def test_every_build_of_the_runtime_is_found_by_its_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, version in {"onnxruntime": "1.2.0", "onnxruntime-gpu": "1.3.0"}.items():
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert this_machine().runtime_packages == {"onnxruntime": "1.2.0", "onnxruntime-gpu": "1.3.0"}
