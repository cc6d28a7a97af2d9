"""File, flags and members by TensorRT's version, against stand-ins (standins.py): no TensorRT runs here."""

from __future__ import annotations

import ctypes
import ctypes.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import standins

from edgekd.agent import numerics
from edgekd.agent.device.environment import TensorRT, this_machine
from edgekd.agent.kernels import Kind
from edgekd.agent.measure import Tools, measure_jobs, require_some
from edgekd.agent.measurement import BenchJob, BenchSettings, Measurement, MeasurementProgress, Skipped
from edgekd.agent.messages import Load
from edgekd.agent.refusal import RefusedError
from edgekd.agent.runners import cuda, engines, tensorrt, trtexec
from edgekd.agent.runners import tensorrt_rules as rules
from edgekd.agent.runners.cuda import Cuda
from edgekd.agent.runners.npy import logits_in
from edgekd.agent.runners.runner import Runner
from edgekd.agent.runners.tensorrt_api import TensorRTRunner
from edgekd.bench.golden import described, images, reference_logits, signature, to_npy
from edgekd.errors import MachineError
from tiny_onnx import conv_net

KINDS: tuple[Kind, ...] = ("fp32", "fp16", "int8-trt", "int8-trt-fp16", "int8-cpu-x86", "any")
EXPECTED: dict[str, dict[str, Any]] = {
    "8.5.2": {
        "fp32": [("--noTF32",), ("--fp16",)],
        "int8-trt": [("--fp16", "--int8")],
        "any": [()],
    },
    "10.3.0": {
        "fp32": [("--noTF32",), ("--fp16",)],
        "int8-trt": [("--fp16", "--int8")],
        "int8-trt-fp16": [("--stronglyTyped",)],
        "any": [()],
    },
    "11.1": {"fp32": [("--noTF32",)], "fp16": [()], "int8-trt-fp16": [()], "any": [()]},
}
EXPECTED["8.6.1"], EXPECTED["10.16"] = EXPECTED["8.5.2"], EXPECTED["10.3.0"]
QUICK = BenchSettings(rounds=2, min_runs=10, min_seconds=0.05, warm_up_seconds=0.05, warm_up_window=3)


@pytest.mark.parametrize(
    ("banner", "version"),
    [
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v8502] # trtexec --help", "8.5.2"),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v8601] # ./trtexec", "8.6.1"),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec", "10.3.0"),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v101600] # trtexec", "10.16.0"),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v110100] [b106] # trtexec", "11.1.0"),
        ("bash: trtexec: cannot execute binary file", None),
    ],
)
def test_the_version_is_in_the_banner(banner: str, version: str | None) -> None:
    assert rules.version_of_banner(banner) == version


@pytest.mark.parametrize("release", standins.RELEASES)
def test_each_release_gets_the_files_and_flags_it_takes(release: str) -> None:
    for kind in KINDS:
        uses = rules.uses_of(kind, release)
        expected = EXPECTED[release].get(kind)
        if expected is None:
            assert str(uses).startswith("n/a: ")
            continue
        assert [use.flags for use in uses if not isinstance(use, str)] == expected
    flags = rules.build_flags(release) + rules.timing_flags(release) + rules.timing_flags(release, spin_wait=False)
    precisions = [flag for uses in EXPECTED[release].values() for use in uses for flag in use]
    assert set(flags) | set(precisions) <= standins.FLAGS[release]


@pytest.mark.parametrize("version", ["7.2.3", "8.4.1", "9.3.0", "12.0.0"])
def test_no_other_release_is_tried(version: str) -> None:
    assert "TensorRT 8.5, 8.6, 10.x and 11.x are known" in str(rules.uses_of("fp32", version))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return conv_net(tmp_path / "student.fp32.onnx")


def request(model: Path, tmp_path: Path, **changes: Any) -> Load:
    fixed = {"model": str(model), "batch": 2, "image_shape": (3, 8, 8), "input_name": "input", "threads": 1}
    known = {**fixed, "declared": (None, 3, 8, 8), "runtime": "tensorrt", "engines": str(tmp_path / "engines")}
    return Load(**{**known, **changes})


def loaded(asked: Load) -> Runner:
    return tensorrt.runner(asked).__enter__()


def through_python(asked: Load, module: Any, gpu: str = "a GPU") -> TensorRTRunner:
    runner = TensorRTRunner(asked, module, standins.Memory(), gpu)
    runner.load()
    return runner


def made(through: str, asked: Load, tmp_path: Path) -> tuple[Runner, list[str]]:
    """Return what is loaded through trtexec or Python's API, and the shapes that its build was given."""
    if through == "trtexec":
        found = loaded(replace(asked, trtexec=str(standins.write_trtexec(tmp_path, "10.3.0"))))
        return found, [word for word in found.commands[0].split() if word.startswith("--shapes=")]
    module = standins.tensorrt("10.3.0")
    return through_python(asked, module), [word for word in module.asked if "(" in word]


@pytest.mark.parametrize("through", ["trtexec", "python"])
def test_a_fixed_batch_is_measured_at_that_batch_or_not_at_all(through: str, tmp_path: Path) -> None:
    fixed = conv_net(tmp_path / "fixed.onnx", shape=(2, 3, 8, 8))
    asked = request(fixed, tmp_path, declared=signature(fixed).declared)
    with pytest.raises(RefusedError, match=r"fixed\.onnx was exported with a fixed batch of 2; batch 8") as caught:
        made(through, replace(asked, batch=8), tmp_path)
    assert caught.value.kind == "usage"
    found, shapes = made(through, asked, tmp_path)
    assert (found.input_shape, shapes) == ((2, 3, 8, 8), [])
    known = images(signature(fixed))
    (tmp_path / "golden.npy").write_bytes(to_npy(known))
    assert np.allclose(logits_in(found.logits(tmp_path / "golden.npy")), reference_logits(fixed, known), atol=1e-6)


@pytest.mark.parametrize("through", ["trtexec", "python"])
def test_an_open_image_size_is_given_although_the_batch_is_fixed(through: str, tmp_path: Path) -> None:
    half = conv_net(tmp_path / "half.onnx", shape=(1, 3, "H", "W"))
    known = signature(half, (3, 9, 7))
    asked = request(half, tmp_path, batch=1, declared=known.declared, image_shape=known.image_shape)
    found, shapes = made(through, asked, tmp_path)
    assert found.input_shape == (1, 3, 9, 7)
    assert shapes == (["--shapes=input:1x3x9x7"] if through == "trtexec" else ["input(1, 3, 9, 7)"])


@pytest.mark.parametrize("release", standins.RELEASES)
def test_trtexec_builds_once_times_and_answers(release: str, model: Path, tmp_path: Path) -> None:
    tool = standins.write_trtexec(tmp_path, release)
    for use in rules.uses_of("fp32", release):
        assert isinstance(use, rules.EngineOptions)
        asked = request(model, tmp_path, trtexec=str(tool), flags=use.flags)
        first, again = loaded(asked), loaded(asked)
        assert first.build_s is not None
        assert first.build_s > 0
        assert again.build_s is None, "from the cache"
        assert len(first.commands) == len(again.commands) + 1
        assert all(flag in first.commands[0] for flag in use.flags)
        samples = first.samples(20, 0.5, 100.0)
        assert len(samples) == 20
        assert set(np.round(samples, 3)) == {1.5, 1.51, 1.52, 1.53, 1.54}, "computeMs, as trtexec wrote it"
    done = first.sustain(2.0)
    assert done.runs == 20
    assert done.seconds == pytest.approx(1.9015, abs=0.01)
    assert time.time() - 60 < done.end_unix_s <= time.time()
    known = images(signature(model))
    (tmp_path / "golden.npy").write_bytes(to_npy(known[:7]))  # 7 is no multiple of the batch
    assert np.allclose(logits_in(first.logits(tmp_path / "golden.npy")), reference_logits(model, known[:7]), atol=1e-6)


def test_an_engine_that_overflows_is_told_from_a_tool_that_fails(tmp_path: Path) -> None:
    model, golden = conv_net(tmp_path / "net.onnx"), tmp_path / "golden.npy"
    known = images(signature(model))
    golden.write_bytes(to_npy(known))
    large = conv_net(tmp_path / "large.onnx", scale=2e38)
    asked = request(large, tmp_path, trtexec=str(standins.write_trtexec(tmp_path, "10.3.0")))
    found = logits_in(loaded(asked).logits(golden))
    assert not np.isfinite(found).any()
    compared = numerics.compare_with_host(BenchJob("net", model, "fp16"), reference_logits(model, known), found)
    assert (compared.passed, compared.max_difference) == (False, None)
    for text in ("[]", "[ {", '[ { "name" : "a", "values" : [ one ] } ]'):
        (tmp_path / "out.json").write_text(text)
        with pytest.raises(RefusedError, match="no readable --exportOutput"):
            trtexec.first_values(tmp_path / "out.json")


@pytest.mark.parametrize("release", standins.RELEASES)
def test_energy_is_measured_without_a_thread_that_spins(release: str, model: Path, tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    tool = standins.write_trtexec(tmp_path, release)
    tool.write_text(tool.read_text().replace("exec ", f'echo "$@" >> {lines}\nexec ', 1))
    runner = loaded(request(model, tmp_path, trtexec=str(tool)))
    runner.samples(10, 0.1, 1.0)
    runner.sustain(1.0)
    timed, sustained = lines.read_text().splitlines()[-2:]
    assert "--useSpinWait" in timed
    assert "--useSpinWait" not in sustained
    assert ("--noSpinWait" in sustained) == (release == "11.1"), "where spinning is the default"


def test_an_unknown_flag_is_a_failure_as_in_the_real_one(tmp_path: Path) -> None:
    for release, flag in (("11.1", "--fp16"), ("8.5.2", "--skipInference"), ("8.6.1", "--stronglyTyped")):
        tool = standins.write_trtexec(tmp_path, release)
        with pytest.raises(RefusedError, match=rf"(?s)failed \(exit code 1\).*Unknown option: {flag}"):
            trtexec.run_trtexec([str(tool), flag], 60)


def test_a_program_that_is_no_trtexec_is_refused(tmp_path: Path) -> None:
    tool = tmp_path / "trtexec"
    tool.write_text("#!/bin/sh\necho hello\n")
    tool.chmod(0o755)
    with pytest.raises(RefusedError, match="does not say its TensorRT version; its first line is 'hello'"):
        trtexec.version(str(tool))
    tool.write_text("#!/bin/sh\nkill -SEGV $$\n")
    with pytest.raises(RefusedError, match="it prints nothing, and it was killed by signal 11"):
        trtexec.version(str(tool))
    tool.write_text("#!/bin/sh\nexec cat /dev/zero\n")
    with pytest.raises(RefusedError, match="prints without end, which trtexec does not"):
        trtexec.version(str(tool))
    tool.write_text("#!/bin/sh\necho hello; exec sleep 60\n")
    with pytest.raises(RefusedError, match=r"did not end within 0\.2 s"):
        trtexec.run_trtexec([str(tool)], 0.2)
    with pytest.raises(RefusedError, match=r"there is no program /nowhere/trtexec \(--trtexec\)"):
        trtexec.find_trtexec("/nowhere/trtexec")


@pytest.mark.parametrize("release", standins.RELEASES)
def test_the_python_api_builds_runs_and_answers(release: str, model: Path, tmp_path: Path) -> None:
    asked_for = {"--noTF32": ["not TF32"], "--fp16": ["FP16"]}
    for use in rules.uses_of("fp32", release):
        assert isinstance(use, rules.EngineOptions)
        module = standins.tensorrt(release)
        asked = request(model, tmp_path, flags=use.flags)
        found = through_python(asked, module)
        network = ["network EXPLICIT_BATCH"] if release.startswith("8") else []
        precision = [word for flag in use.flags for word in asked_for[flag]]
        assert module.asked == [*network, *precision, "input(2, 3, 8, 8)", "profile"]
        assert found.output_shapes == ((2, 4),)
        assert len(found.samples(5, 0.0, 10.0)) == 5
        again = standins.tensorrt(release)
        assert through_python(asked, again).build_s is None
        assert again.asked == []
        assert through_python(asked, again, "another GPU").build_s is not None
    known = images(signature(model))
    (tmp_path / "golden.npy").write_bytes(to_npy(known[:7]))
    assert np.allclose(logits_in(found.logits(tmp_path / "golden.npy")), reference_logits(model, known[:7]), atol=1e-6)


def test_cuda_is_called_with_sizes_and_addresses_and_its_errors_are_told() -> None:
    memory, calls = standins.Memory(), []

    def call(name: str, code: int = 0) -> Any:
        def function(*arguments: Any) -> int:
            calls.append(name)
            if name == "cudaMalloc":
                arguments[0]._obj.value = memory.allocate(arguments[1].value)
            if name == "cudaMemcpy":
                target, source, size, _ = arguments
                ctypes.memmove(target, source, size.value)
            return code

        return function

    names = ("cudaStreamCreate", "cudaMalloc", "cudaMemcpy", "cudaStreamSynchronize")
    library = SimpleNamespace(**{name: call(name) for name in names}, cudaGetErrorString=lambda code: b"out of memory")
    cuda = Cuda(library)  # type: ignore[arg-type]
    address = cuda.allocate(8)
    cuda.upload(address, b"12345678")
    assert cuda.download(address, 5) == b"12345"
    cuda.synchronize()
    assert set(calls) == set(names)
    assert "cudaSetDeviceFlags" not in calls
    library.cudaSetDeviceFlags = call("cudaSetDeviceFlags")
    calls.clear()
    Cuda(library, spin_wait=False)  # type: ignore[arg-type]
    assert calls == ["cudaSetDeviceFlags", "cudaStreamCreate"], "before the context is made"
    library.cudaMalloc = call("cudaMalloc", 2)
    with pytest.raises(RefusedError, match="cudaMalloc failed: out of memory"):
        cuda.allocate(8)


def test_strong_typing_is_a_property_of_the_network(model: Path, tmp_path: Path) -> None:
    module = standins.tensorrt("10.3.0")
    through_python(request(model, tmp_path, flags=("--stronglyTyped",)), module)
    assert module.asked[0] == "network STRONGLY_TYPED"
    removed = standins.tensorrt("11.1")
    with pytest.raises(AttributeError, match="FP16"):
        through_python(request(model, tmp_path, flags=("--fp16",)), removed)


def test_parser_errors_are_told(model: Path, tmp_path: Path) -> None:
    model.write_bytes(b"unparsable")
    with pytest.raises(RefusedError, match=r"cannot parse student\.fp32\.onnx: error 0: no such operator; error 1"):
        through_python(request(model, tmp_path), standins.tensorrt("10.3.0"))
    assert list((tmp_path / "engines").iterdir()) == [], "and no half engine is kept"


@pytest.mark.parametrize("release", ["8.5.2", "11.1"])
def test_a_comparison_runs_every_engine_in_turn(release: str, tmp_path: Path) -> None:
    tool = standins.write_trtexec(tmp_path, release)
    jobs = [
        described(BenchJob(f"student.{kind}.onnx", conv_net(tmp_path / f"student.{kind}.onnx"), kind, "tensorrt"))
        for kind in ("fp32", "fp16")
    ]
    found = measure_jobs(jobs, QUICK, tools=Tools(str(tool), str(tmp_path / "engines")))
    assert found.environment.tensorrt == TensorRT(str(tool), f"{release}.0" if release == "11.1" else release)
    names = [one.job.artefact for one in found.measurements]
    skipped = [one.job.artefact for one in found.results if isinstance(one, Skipped)]
    if release == "11.1":
        assert (names, skipped) == (["student.fp32.onnx", "student.fp16.onnx"], [])
    else:
        assert (names, skipped) == (["student.fp32.onnx", "student.fp32.onnx --fp16"], ["student.fp16.onnx"])
        assert "--fp16" in found.measurements[1].commands[0]
    assert all(one.load_ms is None and one.integer_nodes is None for one in found.measurements)
    assert all((one.peak_memory_bytes or 0) >= (one.baseline_memory_bytes or 0) > 0 for one in found.measurements)


def test_an_engine_that_cannot_be_built_leaves_the_others(tmp_path: Path) -> None:
    tools = Tools(str(standins.write_trtexec(tmp_path, "10.3.0")), str(tmp_path / "engines"))
    jobs = [
        described(BenchJob(name, conv_net(tmp_path / name), "any", "tensorrt")) for name in ("bad.onnx", "good.onnx")
    ]
    jobs[0].model.write_bytes(b"unparsable")
    bad, good = measure_jobs(jobs, QUICK, tools=tools).results
    assert isinstance(good, Measurement)
    assert isinstance(bad, Skipped)
    assert bad.job.artefact == "bad.onnx"
    assert bad.reason.startswith("n/a: ")
    assert "[E] AssertionError: no such operator" in bad.reason
    assert "\n" not in bad.reason, "it stands in a table"
    require_some([bad, good])
    with pytest.raises(MachineError, match=r"nothing could be run: bad\.onnx \[tensorrt\]: n/a: "):
        require_some([bad])


def test_an_engine_that_cannot_be_started_leaves_the_others(tmp_path: Path) -> None:
    tools = Tools(str(standins.write_trtexec(tmp_path, "10.3.0")), str(tmp_path / "engines"))
    files = [conv_net(tmp_path / "bad.onnx", width=3), conv_net(tmp_path / "good.onnx", width=5)]
    jobs = [described(BenchJob(file.name, file, "any", "tensorrt")) for file in files]

    def spoil(progress: MeasurementProgress) -> None:
        if (progress.step, progress.artefact) == ("load", "bad.onnx [tensorrt]"):
            (engine,) = (tmp_path / "engines").glob("*.engine")
            engine.write_text("half an engine")

    found = measure_jobs(jobs, QUICK, spoil, tools=tools)
    assert [isinstance(one, Skipped) for one in found.results] == [True, False]


def test_without_any_tensorrt_it_says_what_to_install(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgekd.agent.measure import plan

    here = replace(this_machine(), tensorrt=None)
    with pytest.raises(MachineError, match=r"neither trtexec nor a Python module.*apt-get install tensorrt"):
        plan([BenchJob("net", model, "fp32", "tensorrt")], here)


def test_trtexec_is_the_given_one_then_jetpacks_then_the_one_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = {}
    for place in ("given", "jetpack", "path"):
        (tmp_path / place).mkdir()
        tools[place] = standins.write_trtexec(tmp_path / place, "8.6.1")
    monkeypatch.setattr(trtexec, "JETPACK", str(tools["jetpack"]))
    monkeypatch.setenv("PATH", str(tools["path"].parent))
    assert trtexec.find_trtexec(str(tools["given"])) == str(tools["given"])
    assert trtexec.find_trtexec(None) == str(tools["jetpack"])
    tools["jetpack"].unlink()
    assert trtexec.find_trtexec(None) == str(tools["path"])
    tools["path"].unlink()
    assert trtexec.find_trtexec(None) is None
    with pytest.raises(RefusedError, match="there is no program nowhere"):
        trtexec.find_trtexec("nowhere")


@pytest.fixture
def no_trtexec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No trtexec anywhere, and no memory of an imported `tensorrt`."""
    monkeypatch.setattr(trtexec, "JETPACK", str(tmp_path / "nowhere" / "trtexec"))
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    yield
    sys.modules.pop("tensorrt", None)


@pytest.mark.usefixtures("no_trtexec")
def test_without_trtexec_the_python_module_is_used(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "packages" / "tensorrt"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import standins\nglobals().update(vars(standins.tensorrt('10.3.0')))\n")
    monkeypatch.syspath_prepend(str(package.parent))
    spins: list[bool] = []

    def memory(*, spin_wait: bool) -> standins.Memory:
        spins.append(spin_wait)
        return standins.Memory()

    monkeypatch.setattr(cuda, "Cuda", memory)
    assert tensorrt.find_tensorrt() == TensorRT("python", "10.3.0")
    known = images(signature(model))
    (tmp_path / "golden.npy").write_bytes(to_npy(known))
    for spin_wait in (True, False):
        found = loaded(request(model, tmp_path, spin_wait=spin_wait))
        assert isinstance(found, TensorRTRunner)
        assert np.allclose(logits_in(found.logits(tmp_path / "golden.npy")), reference_logits(model, known), atol=1e-6)
    assert spins == [True, False]


@pytest.mark.usefixtures("no_trtexec")
def test_a_python_module_that_cannot_be_imported_is_no_tensorrt(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for broken in ("ImportError('libnvinfer.so.10: cannot open shared object file')", "KeyError('CUDA_PATH')"):
        (tmp_path / "tensorrt.py").write_text(f"raise {broken}\n")
        assert tensorrt.find_tensorrt() is None
    with pytest.raises(RefusedError, match="neither trtexec nor a Python module of TensorRT"):
        tensorrt.runner(request(model, tmp_path))


def test_the_cuda_runtime_is_looked_for_by_name_and_its_absence_told(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def only(wanted: str) -> Callable[[str], str]:
        def load(name: str) -> str:
            tried.append(name)
            if name != wanted:
                raise OSError(name)
            return name

        return load

    monkeypatch.setattr(ctypes.util, "find_library", lambda name: f"lib{name}.so.12")
    monkeypatch.setattr(ctypes, "CDLL", only("libcudart.so"))
    library: Any = cuda._library()
    assert library == "libcudart.so"
    assert tried == ["libcudart.so.12", "libcudart.so"]
    monkeypatch.setattr(ctypes, "CDLL", only("nothing"))
    with pytest.raises(RefusedError, match=r"libcudart\.so is not on this device"):
        cuda._library()


def test_the_oldest_engines_make_room(tmp_path: Path) -> None:
    def build(size: int) -> Any:
        return lambda path: path.write_bytes(b"x" * size)

    for number in range(3):
        place, seconds = engines.cached(tmp_path, f"k{number}", build(40), limit_bytes=100)
        assert seconds is not None
        os.utime(place, ns=(number, number))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["k1.engine", "k2.engine"]
    assert engines.cached(tmp_path, "k1", build(40), limit_bytes=100)[1] is None, "used again, so the newest"
    engines.cached(tmp_path, "k3", build(40), limit_bytes=100)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["k1.engine", "k3.engine"]
    engines.cached(tmp_path, "k4", build(400), limit_bytes=100)
    assert [path.name for path in tmp_path.iterdir()] == ["k4.engine"], "what was just built stays"


def test_the_engines_of_one_comparison_stay_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "engines"
    folder.mkdir()
    (folder / "old.engine").write_bytes(b"x" * 5000)
    os.utime(folder / "old.engine", (1, 1))
    monkeypatch.setattr(engines, "LIMIT_BYTES", 1000)
    tools = Tools(str(standins.write_trtexec(tmp_path, "10.3.0")), str(folder), time.time() - 1)
    for width in (3, 5):
        model = conv_net(tmp_path / f"{width}.onnx", width=width)
        found = loaded(request(model, tmp_path, **asdict(tools)))
        assert len(found.samples(10, 0.1, 1.0)) == 10
    assert len(list(folder.glob("*.engine"))) == 2, "more than the limit, and the old one went"


def test_an_empty_engine_is_built_again(tmp_path: Path) -> None:
    def build(path: Path) -> None:
        path.write_bytes(b"engine")

    place, _ = engines.cached(tmp_path, "key", build)
    place.write_bytes(b"")
    again, seconds = engines.cached(tmp_path, "key", build)
    assert (again.read_bytes(), seconds is None) == (b"engine", False)


def test_an_engine_that_was_never_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="ended well, and wrote none"):
        engines.cached(tmp_path, "key", lambda _: None)


def test_the_facts_are_those_of_the_releases() -> None:
    assert set(standins.FLAGS) == set(standins.NUMBERS) == set(standins.RELEASES)
    assert "FP16" not in standins.API["releases"]["11.1"]["enums"]["BuilderFlag"]
    assert json.dumps(standins.API).count("EXPLICIT_BATCH") == 4
