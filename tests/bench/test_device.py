"""Measuring a run elsewhere: over a real sshd, and with a bundle; what is published and what is refused."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sshd import Device, device, sshd_device  # noqa: F401 - fixtures
from standins import write_trtexec, write_unknown_trtexec

from edgekd.agent.device.machine import sha256_of
from edgekd.agent.kernels import Runtime
from edgekd.agent.measurement import BenchJob, BenchSettings
from edgekd.agent.numerics import LogitsCheck
from edgekd.bench import comparing, golden, measuring, pack
from edgekd.bench import device as devices
from edgekd.bench.remote import Host
from edgekd.bench.rows import Row
from edgekd.errors import GateError, InputFileError, Interrupted, MachineError, StoppedEarly
from edgekd.export import ort_session
from edgekd.recipe import BenchTable
from edgekd.run.cards.record import Record
from edgekd.schema import to_json
from edgekd.stages import report
from edgekd.stopping import Stop
from tiny_onnx import conv_net

QUICK = BenchSettings(rounds=2, min_runs=10, min_seconds=0.05, warm_up_seconds=0.2)
TABLE = BenchTable(rounds=2, min_runs=10, min_seconds=0.02)


@pytest.fixture(scope="module", autouse=True)
def host_in_default_mode() -> Iterator[None]:
    """Let golden logits saturate where this CPU does: it is the device as well, which uses the default mode."""
    default = partial(ort_session.open_for_target, default_kernels=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(golden, "ort_session", SimpleNamespace(open_for_target=default, logits=ort_session.logits))
        yield


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    patient = comparing.settings_of
    monkeypatch.setattr(
        comparing, "settings_of", lambda table: [replace(one, warm_up_seconds=0.2) for one in patient(table)]
    )


@pytest.fixture
def published(finished: Any) -> Iterator[Any]:
    """The finished run; what a test publishes beside bench/local is removed again."""
    yield finished.run
    for folder in comparing.targets(finished.run):
        if folder.name != "local":
            shutil.rmtree(folder)


def files_of(run: Any) -> list[Path]:
    return sorted(run.stage("export").glob("*.onnx"))


@pytest.mark.slow
def test_a_run_is_measured_on_a_device_and_reported(device: Device, published: Any) -> None:  # noqa: F811
    results = devices.on_device(Host("device"), files_of(published), TABLE, Stop(), run=published)
    assert results.target == "device"
    timed = [row.artefact for row in results.results if isinstance(row, Row)]
    assert "student.fp32.onnx" in timed
    assert [one.artefact for one in results.numerics or ()] == timed
    assert all(one.passed for one in results.numerics or ())
    assert results.energy == ()
    assert (results.energy_note or "").startswith("n/a: ")
    assert device.work == []
    folder = published.stage("bench/device")
    record = Record.read(folder)
    assert record is not None
    assert record.damaged_output(folder) is None
    assert set(record.outputs) == {"environment.json", "jetson.json", "results.json", "samples.json"}
    summary = report.collect(published)
    assert summary.devices["device"].results == to_json(results.results)
    assert summary.latency, "and the measurements of this machine stand beside them"
    titles = [title for title, _, _ in report.pictures(published)]
    assert "Latency on device, batch 1, threads 1" in titles
    page = report.page(published, summary)
    assert "On device" in page
    assert "Energy: n/a: " in page
    record.inputs["export/student.fp32.onnx"] = "0" * 64
    record.write(folder)
    assert report.collect(published).devices == {}, "of another file than the one that is exported now"


@pytest.mark.slow
def test_tensorrt_comes_first_where_it_is(device: Device, published: Any, tmp_path: Path) -> None:  # noqa: F811
    tool = write_trtexec(tmp_path, "10.3.0")
    files = [file for file in files_of(published) if "fp" in file.name]
    results = devices.on_device(Host("device", trtexec=str(tool)), files, TABLE, Stop(), run=published)
    timed = [(row.artefact, row.runtime) for row in results.results if isinstance(row, Row)]
    assert timed == [("student.fp32.onnx", "tensorrt"), ("student.fp32.onnx --fp16", "tensorrt")]
    assert all("--useCudaGraph" in row.commands[-1] for row in results.results if isinstance(row, Row))
    assert all(one.passed for one in results.numerics or ())
    assert len(list((device.cache / "engines").glob("*.engine"))) == 2, "engines stay"
    assert device.work == []


@pytest.mark.slow
def test_a_broken_trtexec_is_in_the_way_of_tensorrt_only(device: Device, published: Any) -> None:  # noqa: F811
    device.tool("trtexec", "echo broken")
    try:
        with pytest.raises(MachineError, match="does not say its TensorRT version; its first line is 'broken'"):
            devices.on_device(Host("device"), files_of(published), TABLE, Stop())
        cpu = devices.on_device(Host("device"), files_of(published), TABLE, Stop(), runtimes=("ort-cpu",))
    finally:
        (device.bin / "trtexec").unlink()
    assert all(one.passed for one in cpu.numerics or ())


@pytest.mark.slow
def test_a_tensorrt_of_unknown_flags_is_passed_over(device: Device, published: Any, tmp_path: Path) -> None:  # noqa: F811
    host = Host("device", trtexec=str(write_unknown_trtexec(tmp_path, 8401)))
    files = [file for file in files_of(published) if "fp32" in file.name]
    results = devices.on_device(host, files, TABLE, Stop(), run=published)
    assert [row.runtime for row in results.results if isinstance(row, Row)] == ["ort-cpu"]
    shutil.rmtree(published.stage("bench/device"))
    with pytest.raises(MachineError, match=r"nothing could be run: .*TensorRT 8\.4\.1 is installed"):
        devices.on_device(host, files, TABLE, Stop(), runtimes=("tensorrt",), run=published)
    assert not published.stage("bench/device").exists(), "an empty result is not published"
    assert device.work == [], "and not taken up again"


def test_a_stop_is_heard_while_an_engine_is_built(device: Device, published: Any, tmp_path: Path) -> None:  # noqa: F811
    tool = write_trtexec(tmp_path, "10.3.0")
    slow = f'case "$*" in *--onnx=*) echo build >> {tmp_path}/builds; exec {shutil.which("sleep")} 600;; esac\nexec '
    tool.write_text(tool.read_text().replace("exec ", slow, 1))
    stop, files = Stop(), [file for file in files_of(published) if "fp32" in file.name]
    with ThreadPoolExecutor() as pool:

        def interrupt() -> None:
            deadline = time.monotonic() + 60
            while not (tmp_path / "builds").exists() and time.monotonic() < deadline:
                time.sleep(0.1)
            stop._on_signal(signal.SIGINT, None)

        asked = pool.submit(interrupt)
        with pytest.raises(Interrupted, match="bench was stopped by SIGINT"):
            devices.on_device(Host("device", trtexec=str(tool)), files, TABLE, stop)
        asked.result()
    assert (tmp_path / "builds").exists()
    assert device.deserted()


def test_a_device_with_nothing_says_what_to_install(device: Device, published: Any) -> None:  # noqa: F811
    device.tool("python3", f'exec {sys.executable} -S -I "$@"')  # without site-packages
    try:
        with pytest.raises(MachineError, match=r"nothing to run a model with.*-m pip install numpy onnxruntime"):
            devices.on_device(Host("device"), files_of(published), TABLE, Stop())
    finally:
        device.tool("python3", f'exec {sys.executable} "$@"')


@pytest.mark.slow
def test_another_student_of_the_same_name_is_measured_anew(device: Device, tmp_path: Path) -> None:  # noqa: F811
    def measured(there: tuple[Any, Runtime], width: int) -> str:
        measurer, runtime = there
        file = conv_net(tmp_path / "student.onnx", width=width)
        (found,) = measurer([BenchJob("net", file, "fp32", runtime)], QUICK).measurements
        assert [one.name for one in device.work[0].glob("*.onnx")] == ["student.onnx"], "one at a time"
        digest = sha256_of(file)
        assert found.sha256 == digest
        return digest

    with suppress(StoppedEarly), devices.measurer_on(Host("device"), Stop()) as there:
        first = measured(there, 4)
        raise StoppedEarly("stopped")
    assert len(device.work) == 1, "what was measured is taken up"
    with devices.measurer_on(Host("device"), Stop()) as there:
        assert measured(there, 8) != first
    assert device.work == []


def test_an_answer_leaves_nothing_to_take_up(device: Device) -> None:  # noqa: F811
    with pytest.raises(MachineError, match="too slow"), devices.measurer_on(Host("device"), Stop()):
        raise MachineError("too slow")
    assert device.work == []


@pytest.fixture(scope="module")
def bundle(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("bundle") / "student.pyz"
    made = devices.write_bundle(finished.run.name, files_of(finished.run), TABLE, file)
    assert made.size_bytes == file.stat().st_size
    return file


def carried(bundle: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a bundle as on a device: another folder, another home, nothing of this package to import."""
    folder.mkdir(exist_ok=True)
    env = {"HOME": str(folder), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", str(bundle), *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=300)


def test_a_bundle_holds_models_and_no_image_and_no_network_of_the_method(bundle: Path, finished: Any) -> None:
    archive = zipfile.ZipFile(bundle)
    names = {Path(name).name for name in archive.namelist() if name.startswith("files/")}
    assert names == {file.name for file in files_of(finished.run)} | {"golden.npy"}
    assert {"student.int8-cpu-x86.onnx", "student.int8-cpu-arm.onnx"} <= names, "both kinds of CPU"
    text = archive.read("manifest.json").decode()
    assert str(Path.home()) not in text
    assert str(finished.run.path.parent) not in text
    assert set(json.loads(text)["golden"]["logits"]) == {file.name for file in files_of(finished.run)}


def test_a_bundle_is_measured_offline_and_imported(bundle: Path, published: Any, tmp_path: Path) -> None:
    ran = carried(bundle, tmp_path / "device", "bench")
    assert ran.returncode == 0, ran.stderr
    assert "check    student.fp32.onnx: as on the host" in ran.stderr
    assert "edgekd bench --import results.json" in ran.stderr
    results = devices.import_results(published, tmp_path / "device" / "results.json")
    folder = published.stage(comparing.folder_of(results.target or ""))
    assert (folder / "results.json").is_file()
    assert results.verdicts
    assert {one.artefact for one in results.numerics or ()} >= {"student.fp32.onnx"}
    assert not list((tmp_path / "device").rglob("*.onnx")), "no model stays"
    record = Record.read(folder)
    assert record is not None
    assert set(record.inputs) == {f"export/{one.artefact}" for one in results.numerics or ()}, "what was measured"
    for field in ("files", "nothing", "comparison"):
        other = json.loads((tmp_path / "device" / "results.json").read_text())
        if field == "files":
            other["files"]["student.fp32.onnx"] = "0" * 64
        elif field == "nothing":
            other["files"] = {}
        else:
            rows = other["comparisons"][0]["comparison"]["results"]
            next(row for row in rows if row["job"]["model"] == "student.fp32.onnx")["sha256"] = "0" * 64
        (tmp_path / "other.json").write_text(json.dumps(other))
        with pytest.raises(InputFileError, match=r"measured another student\.[a-z0-9.-]+\.onnx than run"):
            devices.import_results(published, tmp_path / "other.json")
    (tmp_path / "text.json").write_text("[]")
    with pytest.raises(InputFileError, match=r"no results\.json of a student\.pyz"):
        devices.import_results(published, tmp_path / "text.json")


def test_check_fails_where_the_device_computes_something_else(bundle: Path, published: Any, tmp_path: Path) -> None:
    archive = zipfile.ZipFile(bundle)
    manifest = json.loads(archive.read("manifest.json"))
    rows = manifest["golden"]["logits"]["student.fp32.onnx"]
    manifest["golden"]["logits"]["student.fp32.onnx"] = [[-value for value in row] for row in rows]
    files = {Path(name).name: archive.read(name) for name in archive.namelist() if name.startswith("files/")}
    other = tmp_path / "other.pyz"
    other.write_bytes(pack.bundle_zip(manifest, files))
    ran = carried(other, tmp_path / "device", "check", "--output", "found.json")
    assert ran.returncode == 5
    assert "student.fp32.onnx: NOT as on the host" in ran.stderr
    results = devices.import_results(published, tmp_path / "device" / "found.json")
    assert results.results == ()
    with pytest.raises(GateError, match=r"student\.fp32\.onnx does not compute there what it computes here"):
        devices.refuse_wrong_numbers(results.numerics or ())


def test_what_saturates_on_a_device_is_told_with_its_cure() -> None:
    found = LogitsCheck(
        "", "ort-cpu", "int8", 0.1, max_difference=0.3, images=8, clear=2, wrong_answers=0, passed=False
    )
    for name, told in (("student.int8-cpu-x86.onnx", True), ("student.int8-cpu-arm.onnx", False)):
        with pytest.raises(GateError, match="does not compute there") as error:
            devices.refuse_wrong_numbers([replace(found, artefact=name)])
        assert ("session.x64quantprecision=1" in str(error.value)) == told


def test_a_bundle_checks_something_or_says_why_not(bundle: Path, tmp_path: Path) -> None:
    old = ("check", "--trtexec", str(write_unknown_trtexec(tmp_path, 9300)))
    ran = carried(bundle, tmp_path / "device", *old)
    assert (ran.returncode, "check    student.fp32.onnx: as on the host" in ran.stderr) == (0, True), ran.stderr
    (tmp_path / "device" / "results.json").unlink()
    ran = carried(bundle, tmp_path / "device", *old, "--runtime", "tensorrt")
    assert ran.returncode == 6
    assert "nothing could be run" in ran.stderr
    assert not (tmp_path / "device" / "results.json").exists()


def test_a_bundle_that_cannot_write_measures_nothing(bundle: Path, tmp_path: Path) -> None:
    ran = carried(bundle, tmp_path / "device", "bench", "--output", "absent/results.json")
    assert ran.returncode == 6
    assert "results.json cannot be written" in ran.stderr
    assert "bench    " not in ran.stderr


def test_a_damaged_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    archive = zipfile.ZipFile(bundle)
    manifest = json.loads(archive.read("manifest.json"))
    files = {Path(name).name: archive.read(name) for name in archive.namelist() if name.startswith("files/")}
    other = tmp_path / "other.pyz"
    other.write_bytes(pack.bundle_zip(manifest, {**files, "student.fp32.onnx": b"another"}))
    ran = carried(other, tmp_path / "device", "check")
    assert ran.returncode == 4
    assert "student.fp32.onnx in" in ran.stderr
    assert "copy the bundle again" in ran.stderr
    assert [path.name for path in (tmp_path / "device").iterdir()] == [], "and nothing is half written"


@pytest.mark.slow
def test_torch_is_a_runtime_of_its_own(finished: Any, tmp_path: Path) -> None:
    program = measuring.torch_job(finished.run, tmp_path)
    jobs = measuring.jobs_of([finished.run.stage("export") / "student.fp32.onnx"], ("ort-cpu", "torch"), program)
    results, (comparison,) = measuring.measure_side_by_side(jobs, TABLE, Stop(), finished.run)
    rows = [(row.artefact, row.runtime, row.integer_share) for row in results.results]
    assert rows == [("student.fp32.onnx", "ort-cpu", 0.0), ("student", "torch", None)]
    assert list(results.verdicts) == ["batch 1, threads 1, ort-cpu", "batch 1, threads 1, torch"]
    assert set(comparing.samples_of(comparison).samples_ms) == {"student.fp32.onnx", "student [torch]"}
