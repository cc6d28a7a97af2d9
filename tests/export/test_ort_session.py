from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from small_nets import Student, batches, samples

from edgekd.agent.device.environment import this_machine
from edgekd.errors import InputFileError, MachineError
from edgekd.export import ort_session
from edgekd.export.ort_session import (
    CPU,
    CUDA,
    PRECISION,
    all_logits,
    integer_node_share,
    logits,
    open_for_target,
    open_session,
    saturates,
)
from edgekd.export.quantize import FLAVORS, compute_nodes, quantize


def test_session_runs_on_the_cpu_with_the_threads_asked_for(student: Student) -> None:
    session = open_session(student.path, threads=2)
    assert session.get_providers() == [CPU]
    assert session.get_session_options().intra_op_num_threads == 2
    found = logits(session, samples(3))
    assert found.shape == (3, 5)
    assert found.dtype == np.float32
    np.testing.assert_allclose(all_logits(student.path, batches(samples(3), 2)()), found, rtol=1e-5)


@pytest.mark.skipif(CUDA in onnxruntime.get_available_providers(), reason="this ONNX Runtime has CUDA")
def test_an_absent_provider_is_an_error_not_a_fallback(student: Student) -> None:
    with pytest.raises(MachineError, match=CUDA):
        open_session(student.path, provider=CUDA)


AZURE = "AzureExecutionProvider"


@pytest.mark.skipif(AZURE not in onnxruntime.get_available_providers(), reason="needs a provider that runs nothing")
def test_a_provider_that_leaves_nodes_to_the_cpu_is_an_error(student: Student) -> None:
    with pytest.raises(MachineError, match=AZURE):
        open_session(student.path, provider=AZURE)


def test_a_file_that_is_no_model_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"nothing")
    with pytest.raises(InputFileError, match=r"broken\.onnx"):
        open_session(path)


def test_integer_share_counts_what_really_runs_as_integers(student: Student) -> None:
    def share(name: str, **options: object) -> float:
        model = quantize(student.path, FLAVORS[name], student.ranges, "absmax", **options)  # type: ignore[arg-type]
        found = integer_node_share(model, arm_rules=name == "cpu-arm")
        assert found.total == 5
        assert found.quantized == (found.share >= 0.9)
        return found.share

    assert integer_node_share(student.path).share == 0
    assert share("cpu-x86") == 1
    assert share("cpu-arm") == 1
    assert share("cpu-x86", float_nodes=compute_nodes(student.path)[:1]) == pytest.approx(0.8)
    assert share("trt") < 0.9


@pytest.mark.parametrize("name", ["cpu-x86", "cpu-arm"])
def test_integers_are_added_without_saturating_whatever_the_cpu(name: str, student: Student) -> None:
    model, held_out = quantize(student.path, FLAVORS[name], student.ranges, "absmax"), student.held_out.batches
    kind = FLAVORS[name].target
    exact = np.concatenate([logits(open_session(model, as_written=True), batch) for batch in held_out()])
    extent = np.ptp(exact)
    found = all_logits(model, held_out(), target=kind)
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-4 * extent)
    if name == "cpu-x86":
        entries = [
            open_for_target(model, kind, default_kernels=default).get_session_options() for default in (False, True)
        ]
        assert entries[0].get_session_config_entry(PRECISION) == "1"
        with pytest.raises(RuntimeError, match=PRECISION):
            entries[1].get_session_config_entry(PRECISION)
        default = all_logits(model, held_out(), target=kind, default_kernels=True)
        assert (np.abs(default - exact).max() > 1e-3 * extent) == saturates()


def test_only_an_x86_without_vnni_saturates(monkeypatch: pytest.MonkeyPatch) -> None:
    here = replace(this_machine(), architecture="x86_64", cpu_flags=("avx2", "avx512f"))
    machines = (
        (here, True),
        (replace(here, cpu_flags=("avx2", "avx_vnni")), False),
        (replace(here, architecture="aarch64", cpu_flags=("asimd",)), False),
    )
    for machine, expected in machines:
        monkeypatch.setattr(ort_session, "this_machine", lambda machine=machine: machine)
        assert ort_session.saturates.__wrapped__() == expected


def test_as_written_runs_the_pairs_of_the_file_instead_of_fusing_them(student: Student, tmp_path: Path) -> None:
    model = quantize(student.path, FLAVORS["cpu-x86"], student.ranges, "absmax")
    ops = {}
    for as_written in (False, True):
        path = tmp_path / f"{as_written}.onnx"
        open_session(model, optimized_path=path, as_written=as_written)
        ops[as_written] = {node.op_type for node in onnx.load(str(path)).graph.node}
    assert "QLinearConv" in ops[False]
    assert not {op for op in ops[True] if op.startswith(("QLinear", "QGemm"))}
    assert "DequantizeLinear" in ops[True]
