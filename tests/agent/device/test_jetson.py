"""A Jetson's facts and its rails' power, from files in the form that real boards have."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from edgekd.agent import session, worker
from edgekd.agent.device import jetson, power
from edgekd.agent.measure import Tools
from edgekd.agent.measurement import BenchJob, BenchSettings
from edgekd.agent.messages import Load, LogitsArray, Sustained, TimeRound
from edgekd.agent.protocol import AgentProcess
from edgekd.agent.runners.runner import Runner
from edgekd.schema import object_of, to_json
from tiny_onnx import conv_net

JOB = BenchJob("net", Path("net.onnx"))
RELEASE = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC"
LINE_JETPACK_6 = (
    "11-22-2026 09:08:28 RAM 3005/7620MB (lfb 4x4MB) SWAP 0/3810MB CPU [3%@1510,0%@1510] GR3D_FREQ 10%@1300 "
    "cpu@48.1C gpu@47.2C VDD_IN 4890mW/4890mW VDD_CPU_GPU_CV 567mW/600mW VDD_SOC 1458mW/1460mW"
)
LINE_JETPACK_7 = (
    "11-22-2026 09:08:28 RAM 20642/62817MB (lfb 1x2MB) CPU [23%@2201] EMC_FREQ 3%@3199 GR3D_FREQ 12%@[1300,1300] "
    "cpu@52.968C/52.968C VDD_GPU_SOC 5139mW/5100mW/5200mW VDD_CPU_CV 3268mW/3268mW/3268mW "
    "VIN_SYS_5V0 5500mW/5500mW/5500mW"
)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def board(tmp_path: Path) -> Path:
    gpu, cpu = "sys/class/devfreq/17000000.gpu", "sys/devices/system/cpu/cpufreq/policy0"
    zone, cooler = "sys/class/thermal/thermal_zone0", "sys/class/thermal/cooling_device0"
    return write(
        tmp_path,
        {
            "etc/nv_tegra_release": RELEASE,
            "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
            **{f"{gpu}/{name}_freq": value for name, value in (("min", "306000000"), ("max", "624750000"))},
            f"{gpu}/cur_freq": "306000000",
            **{f"{cpu}/scaling_{name}_freq": "1510400" for name in ("min", "max", "cur")},
            f"{zone}/type": "cpu-thermal",
            f"{zone}/temp": "48125",
            f"{cooler}/type": "cpu-throttle-alert",
            f"{cooler}/cur_state": "0",
            "sys/class/hwmon/hwmon1/oc3_event_cnt": "2",
        },
    )


def test_no_jetson_has_no_facts(tmp_path: Path) -> None:
    assert jetson.facts(tmp_path) is None


def test_facts_of_a_board(board: Path) -> None:
    found = jetson.facts(board)
    assert found is not None
    assert (found.board, found.l4t, found.jetpack) == (
        "NVIDIA Jetson Orin Nano Developer Kit",
        "36.4.3",
        "6.2",
    )
    assert found.temperatures_c == {"cpu-thermal": 48.125}
    assert found.throttle_events == {"oc3": 2}
    assert found.cooling == {"cpu-throttle-alert": 0}
    assert found.clocks["17000000.gpu"] == jetson.Clock(306, 624.75, 306, locked=False)
    assert found.clocks["cpu policy0"] == jetson.Clock(1510.4, 1510.4, 1510.4, locked=True)
    assert found.locked.startswith("no: `sudo jetson_clocks`")
    assert object_of(jetson.Jetson)(to_json(found), "") == found


def test_the_gpu_clock_is_the_highest_of_a_round(board: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    clock = board / "sys/class/devfreq/17000000.gpu/cur_freq"
    watch = jetson.GpuClockWatch(board)
    assert watch.highest_mhz is None
    for reading, highest in (("306000000", 306.0), ("624750000", 624.75), ("306000000", 624.75), ("", 624.75)):
        clock.write_text(reading)
        watch.look()
        assert watch.highest_mhz == highest
    elsewhere = jetson.GpuClockWatch(tmp_path_factory.mktemp("none"))
    elsewhere.look()
    assert elsewhere.highest_mhz is None


@pytest.mark.parametrize(("provider", "reading"), [("trtexec, GPU compute", 918.0), ("CPUExecutionProvider", None)])
def test_a_round_on_the_gpu_says_its_clock(
    provider: str, reading: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Model(Runner):
        runtime_version, input_shape, closed = "1.0", (1, 3, 8, 8), False

        def load(self) -> None:
            """Do nothing."""

        def close(self) -> None:
            self.closed = True

        def logits(self, _images: Path) -> LogitsArray:
            raise NotImplementedError

        def settle(self, _runs: int) -> None:
            """Do nothing."""

        def samples(self, *_limits: float) -> list[float]:
            time.sleep(0.5)
            return [1.0]

    def look(watch: jetson.GpuClockWatch) -> None:
        watch.highest_mhz = 918.0

    monkeypatch.setattr(jetson.GpuClockWatch, "look", look)
    model = Model(Load(str(conv_net(tmp_path / "net.onnx")), "ort-cpu", 1, 1))
    model.provider = provider
    monkeypatch.setattr(worker, "runner_for", lambda _request: model)
    with worker.Worker() as one:
        one.load(model.request)
        assert one.round(TimeRound(1, 0.1, 0)).gpu_clock_mhz == reading
    assert model.closed


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    found = jetson.facts(write(tmp_path, {"etc/nv_tegra_release": "another text"}))
    assert found is not None
    for name in ("board", "l4t", "jetpack", "temperatures_c", "throttle_events", "cooling"):
        assert getattr(found, name).startswith("n/a: "), name
    assert found.locked.startswith("n/a: ")


@pytest.mark.parametrize(
    ("l4t", "jetpack"),
    [
        ("35.4.1", "5.1.2"),
        ("36.3.0", "6.0"),
        ("36.4.3", "6.2"),
        ("36.4.4", "6.2.1"),
        ("36.5.0", "6.2.2"),
        ("39.2", "7.2"),
    ],
)
def test_jetpack_follows_from_l4t(l4t: str, jetpack: str) -> None:
    assert jetson.jetpack_of(l4t) == jetpack


def test_an_unknown_l4t_is_no_jetpack() -> None:
    assert jetson.jetpack_of("99.1") == "n/a: L4T 99.1 is in no table of this edgekd"


@pytest.mark.parametrize(
    ("script", "mode"),
    [
        ("echo 'NV Power Mode: MAXN_SUPER'; echo 2", "MAXN_SUPER"),
        ("echo 'must be root' >&2; exit 1", "n/a: nvpmodel -q said 'must be root'"),
    ],
)
def test_power_mode_is_asked_without_sudo(script: str, mode: str, tmp_path: Path) -> None:
    tool = tmp_path / "nvpmodel"
    tool.write_text(f'#!/bin/sh\n[ "$1" = -q ] || exit 9\n{script}\n')
    tool.chmod(0o755)
    assert jetson.power_mode(str(tool)) == mode


def test_what_happened_meanwhile_becomes_warnings(board: Path) -> None:
    before = jetson.facts(board)
    write(board, {"sys/class/hwmon/hwmon1/oc3_event_cnt": "5", "sys/class/thermal/cooling_device0/cur_state": "1"})
    found = jetson.changes(before, jetson.facts(board))
    assert [sentence.split("(")[0].strip() for sentence in found] == [
        "The clocks were not locked",
        "The board counted over-current events",
        "The board cooled itself harder",
    ]
    assert "oc3" in found[1]
    assert jetson.changes(None, None) == []


@pytest.mark.parametrize(
    ("line", "watts", "rails", "total"),
    [
        (LINE_JETPACK_6, {"VDD_IN": 4.89, "VDD_CPU_GPU_CV": 0.567, "VDD_SOC": 1.458}, "VDD_IN", 4.89),
        (
            LINE_JETPACK_7,
            {"VDD_GPU_SOC": 5.139, "VDD_CPU_CV": 3.268, "VIN_SYS_5V0": 5.5},
            "VDD_CPU_CV + VDD_GPU_SOC + VIN_SYS_5V0",
            13.907,
        ),
    ],
)
def test_tegrastats_lines(line: str, watts: dict[str, float], rails: str, total: float) -> None:
    assert power.tegrastats_watts(line) == watts
    counted, sum_w = power.total(watts)
    assert counted == rails
    assert sum_w == pytest.approx(total)


def test_sensors_are_found_by_their_chip(tmp_path: Path) -> None:
    chip, other = "sys/bus/i2c/devices/1-0040", "sys/bus/i2c/devices/1-0050"
    rail = f"{chip}/hwmon/hwmon3"
    write(
        tmp_path,
        {
            f"{chip}/name": "ina3221",
            f"{other}/name": "24c02",
            f"{other}/hwmon/hwmon9/in1_label": "VDD_NOT",
            f"{rail}/in1_label": "VDD_IN",
            f"{rail}/in1_input": "5000",
            f"{rail}/curr1_input": "1200",
            f"{rail}/in2_label": "NC",
            f"{rail}/in2_input": "5000",
            f"{rail}/curr2_input": "1200",
            f"{rail}/in7_label": "sum of shunt voltages",
            f"{rail}/in7_input": "1",
            f"{rail}/curr7_input": "1",
        },
    )
    source = power.find_power_reader(tmp_path)
    assert isinstance(source, power.PowerReader)
    assert source.name == "hwmon (INA3221)"
    assert source.read() == {"VDD_IN": 6.0}


def test_tegrastats_is_followed_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "tegrastats"
    tool.write_text(
        f'#!/bin/sh\n[ "$*" = "--interval 100" ] || exit 9\nwhile echo "{LINE_JETPACK_6}"; do sleep 0.1; done\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    source = power.find_power_reader(tmp_path)
    assert isinstance(source, power.PowerReader)
    deadline = time.monotonic() + 10
    while not source.read() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert source.read()["VDD_IN"] == 4.89
    source.close()
    assert source.read() == {}, "what it said last is no reading"


def test_without_sensors_there_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert power.find_power_reader(tmp_path) == "n/a: no INA3221 sensor can be read and there is no tegrastats"


def test_energy_is_gross_idle_and_net() -> None:
    state = {"watts": 4.0}

    def run(seconds: float) -> Sustained:
        state["watts"] = 10.0
        time.sleep(seconds)
        return Sustained(100, seconds, time.time())

    source = power.PowerReader("test", lambda: {"VDD_IN": state["watts"], "VDD_SOC": 1.0})
    found = power.energy_per_run(JOB, 4, source, run, idle_s=1.6, busy_s=1.6)
    assert isinstance(found, power.Energy)
    assert found.idle_w == pytest.approx(4.0)
    assert found.gross_w == pytest.approx(10.0, rel=0.1)
    assert found.net_w == pytest.approx(found.gross_w - found.idle_w)
    assert found.gross_mj_per_run == pytest.approx(1000 * found.gross_w * 1.6 / 100)
    assert (found.rails, found.source, found.batch) == ("VDD_IN", "test", 4)


def test_energy_is_measured_without_threads_that_spin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Any]] = []

    class Overheard(AgentProcess):
        def ask(self, request: Any, **options: Any) -> Any:
            asked.append((request.op, getattr(request, "spin_wait", None)))
            return super().ask(request, **options)

    monkeypatch.setattr(session, "AgentProcess", Overheard)
    source = power.PowerReader("test", lambda: {"VDD_IN": 4.0})
    job = BenchJob("net", conv_net(tmp_path / "net.onnx"))
    session.energy_on_device(job, BenchSettings(threads=2), Tools(), source, 0.1, 0.1)
    assert asked == [("load", False), ("sustain", None)]


def sampled(samples: list[tuple[float, dict[str, float]]]) -> power.PowerSampler:
    sampler = power.PowerSampler(power.PowerReader("test", dict))
    sampler.samples = samples
    return sampler


def test_a_reading_that_lacks_a_rail_is_no_reading_of_nothing() -> None:
    samples = [(float(i) / 10, {"VDD_IN": 4.0, **({"VDD_SOC": 2.0} if i % 3 else {})}) for i in range(20)]
    assert sampled(samples).mean_watts(0.0, 2.0) == {"VDD_IN": 4.0, "VDD_SOC": 2.0}


def test_a_source_that_ended_half_way_gives_no_mean() -> None:
    samples = [(float(i) / 10, {"VDD_IN": 4.0}) for i in range(60)]
    assert sampled(samples).mean_watts(0.0, 10.0) is not None
    assert sampled(samples).mean_watts(0.0, 15.0) is None


def test_rest_and_work_are_read_from_the_same_rails() -> None:
    rails = {"VDD_IN": 4.0, "VDD_SOC": 1.0}

    def run(seconds: float) -> Sustained:
        del rails["VDD_IN"]
        time.sleep(seconds)
        return Sustained(100, seconds, time.time())

    source = power.PowerReader("test", lambda: dict(rails))
    found = power.energy_per_run(JOB, 1, source, run, idle_s=1.6, busy_s=1.6)
    assert found == power.NoEnergy("n/a: test read VDD_IN at rest or at work only", "net", "ort-cpu")


def test_too_few_readings_are_no_energy() -> None:
    silent = power.PowerReader("test", dict)
    found = power.energy_per_run(JOB, 1, silent, lambda _: Sustained(1, 0.1, 0.0), 0.01, 0.01)
    assert found == power.NoEnergy("n/a: test gave too few readings", "net", "ort-cpu")
