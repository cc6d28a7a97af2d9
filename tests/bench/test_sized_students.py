"""Students before training: what they cost, how long one image takes them, and which one a budget allows."""

from __future__ import annotations

import functools
import signal
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from standins import write_trtexec, write_unknown_trtexec
from torch import nn

from edgekd.agent.device.machine import sha256_of
from edgekd.agent.measure import Tools, measure_jobs
from edgekd.agent.measurement import BenchJob, BenchSettings, Comparison
from edgekd.agent.protocol import Local
from edgekd.bench import sized_students
from edgekd.bench.golden import described
from edgekd.bench.sized_students import SizedStudent
from edgekd.errors import Interrupted, MachineError, UsageError
from edgekd.models import registry
from edgekd.stopping import Stop

SHAPE, CLASSES = (1, 16, 16), 4
FAST, MIDDLE, SLOW = "lenet5-half", "lenet5", "resnet20"
"""Quick to export; the slow one takes about seven times as long as the others."""


@dataclass(frozen=True)
class FakeDevice(Local):
    """This machine, as a transport that remembers which files were brought to it."""

    target: str = "elsewhere"
    placed: dict[str, Path] = field(default_factory=dict)
    """By hash of the content."""

    def place(self, file: Path) -> str:
        assert file.is_file()
        self.placed[sha256_of(file)] = file
        return super().place(file)


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Measure for a tenth of a second; networks that differ tenfold need no more."""
    with pytest.MonkeyPatch.context() as patch:
        short = BenchSettings(rounds=2, min_runs=20, min_seconds=0.1, warm_up_seconds=0.5)
        patch.setattr(sized_students, "SETTINGS", short)
        yield


@pytest.fixture(scope="module")
def timed() -> tuple[list[SizedStudent], FakeDevice]:
    """The fast and the slow student, and one that is none, measured once."""
    there = FakeDevice()
    found = sized_students.size_up((SLOW, "alexnet", FAST), SHAPE, CLASSES)
    return sized_students.time_each(
        found, SHAPE, CLASSES, stop=Stop(), measurer=functools.partial(measure_jobs, transport=there)
    ), there


def test_each_student_has_its_size_or_the_reason_against_it() -> None:
    net, alexnet, misspelt, timm = sized_students.size_up(
        ("resnet8", "alexnet", "resnet9", "timm:nothing"), SHAPE, CLASSES
    )
    parameters = registry.build("resnet8", input_shape=SHAPE, classes=CLASSES, seed=0).parameters()
    assert net.size is not None
    assert net.size.parameters == sum(p.numel() for p in parameters)
    assert (net.reason, net.latency_ms, net.fits(5.0)) == (None, None, None)
    for one, word in ((alexnet, "does not take 1x16x16 images"), (misspelt, "no architecture"), (timm, "timm")):
        assert one.size is None
        assert word in (one.reason or "")


def test_latency_is_measured_where_the_student_can_run(timed: tuple[list[SizedStudent], FakeDevice]) -> None:
    slow, alexnet, fast = timed[0]
    assert [one.name for one in timed[0]] == [SLOW, "alexnet", FAST]
    assert slow.latency_ms is not None
    assert fast.latency_ms is not None
    assert slow.latency_ms > 2 * fast.latency_ms > 0  # about tenfold on an idle machine
    assert (alexnet.latency_ms, alexnet.size) == (None, None)
    middle = (slow.latency_ms + fast.latency_ms) / 2
    assert [one.fits(middle) for one in timed[0]] == [False, None, True]


def test_files_reach_the_machine_through_its_transport_and_leave_no_trace(
    timed: tuple[list[SizedStudent], FakeDevice],
) -> None:
    _, there = timed
    assert len(there.placed) == 2
    assert not any(file.parent.exists() for file in there.placed.values())


def test_a_row_is_flat_and_says_what_is_unknown(timed: tuple[list[SizedStudent], FakeDevice]) -> None:
    slow, alexnet, fast = (one.to_json(budget_ms=1e-6) for one in timed[0])
    keys = {"student", "parameters", "macs", "fp32_bytes", "int8_bytes", "latency_ms", "fits", "reason", "warnings"}
    assert set(slow) == set(alexnet) == keys
    assert (slow["fits"], fast["fits"]) == (False, False)
    assert (alexnet["parameters"], alexnet["latency_ms"], alexnet["fits"]) == (None, None, None)
    assert timed[0][0].to_json(budget_ms=None)["fits"] is None


def test_what_cannot_be_exported_carries_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, approve: Any
) -> None:
    approve(["branching_net:Branching"])
    (tmp_path / "branching_net.py").write_text(
        textwrap.dedent("""
        from torch import nn
        class Branching(nn.Module):
            def __init__(self, classes):
                super().__init__()
                self.linear = nn.Linear(16, classes)
            def forward(self, x):
                return self.linear(x.mean((1, 2)) if x.sum() > 0 else x.amax((1, 2)))
    """)
    )
    monkeypatch.chdir(tmp_path)
    found = sized_students.size_up(["branching_net:Branching"], SHAPE, CLASSES)
    assert found[0].size is not None
    (one,) = sized_students.time_each(found, SHAPE, CLASSES, stop=Stop())
    assert one.latency_ms is None
    assert "cannot be exported" in (one.reason or "")


def test_what_no_runtime_takes_carries_the_reason(tmp_path: Path) -> None:
    tools = Tools(str(write_unknown_trtexec(tmp_path, 8401)), str(tmp_path / "engines"))
    measurer = functools.partial(measure_jobs, tools=tools)
    found = sized_students.size_up([FAST], SHAPE, CLASSES)
    (one,) = sized_students.time_each(found, SHAPE, CLASSES, stop=Stop(), measurer=measurer, runtime="tensorrt")
    assert one.latency_ms is None
    assert "TensorRT 8.4.1 is installed; TensorRT 8.5, 8.6, 10.x and 11.x are known" in (one.reason or "")


def test_measuring_ends_with_the_first_that_is_enough() -> None:
    found = sized_students.size_up((FAST, SLOW), SHAPE, CLASSES)
    first, second = sized_students.time_each(found, SHAPE, CLASSES, stop=Stop(), enough=lambda one: one.fits(1e6))
    assert first.latency_ms is not None
    assert second == found[1]


def test_a_stop_is_heard_and_leaves_no_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = sized_students.size_up((FAST,), SHAPE, CLASSES)
    stop = Stop()
    stop._on_signal(signal.SIGTERM, None)
    with pytest.raises(Interrupted, match="measuring students"):
        sized_students.time_each(found, SHAPE, CLASSES, stop=stop)
    assert not list(tmp_path.iterdir())


def test_a_deadline_waits_for_the_choice_which_would_begin_from_the_start() -> None:
    found = sized_students.size_up((FAST,), SHAPE, CLASSES)
    (one,) = sized_students.time_each(found, SHAPE, CLASSES, stop=Stop(max_seconds=0))
    assert one.latency_ms is not None


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A zoo of three, the fastest of which has the fewest MACs and the slowest not the last name."""
    names = [FAST, SLOW, MIDDLE]
    monkeypatch.setattr(registry, "student_names", lambda: names)
    return names


def macs(name: str) -> int:
    (one,) = sized_students.size_up([name], SHAPE, CLASSES)
    assert one.size is not None
    return one.size.macs


def test_one_engine_is_built_for_a_student(tmp_path: Path) -> None:
    """TensorRT makes an FP16 engine of an FP32 file too, which takes minutes and tells nothing here."""
    tools, seen = Tools(str(write_trtexec(tmp_path, "10.3.0")), str(tmp_path / "engines")), []

    def measurer(jobs: Sequence[BenchJob], settings: BenchSettings, on_progress: Any) -> Comparison:
        seen.append(measure_jobs([described(job) for job in jobs], settings, on_progress, tools=tools))
        return seen[-1]

    found = sized_students.size_up([FAST], SHAPE, CLASSES)
    (one,) = sized_students.time_each(found, SHAPE, CLASSES, stop=Stop(), measurer=measurer, runtime="tensorrt")
    assert one.latency_ms == pytest.approx(1.52, abs=0.03)
    assert [timed.job.flags for timed in seen[0].measurements] == [("--noTF32",)]
    assert len(list((tmp_path / "engines").iterdir())) == 1


def choose(budget_ms: float, **limits: Any) -> tuple[str, list[str]]:
    limits = {"below_macs": 10**12, "stop": Stop(), **limits}
    chosen, larger = sized_students.largest_within(budget_ms, SHAPE, CLASSES, **limits)
    return chosen.name, [one.name for one in larger]


def test_the_most_macs_within_the_budget_are_taken(
    zoo: list[str], timed: tuple[list[SizedStudent], FakeDevice]
) -> None:
    assert choose(1e6) == (SLOW, [])
    slow = timed[0][0].latency_ms
    assert slow is not None
    assert choose(slow / 2.5) == (MIDDLE, [SLOW])


def test_a_student_is_smaller_than_its_teacher(zoo: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert choose(1e6, below_macs=macs(SLOW)) == (MIDDLE, [])
    assert f"left out, having no fewer MACs than the teacher: {SLOW}\n" in capsys.readouterr().err
    with pytest.raises(UsageError, match="no student of the zoo has fewer MACs than the teacher's 10"):
        choose(1e6, below_macs=10)


@pytest.mark.slow
def test_a_budget_that_nothing_keeps_names_the_fastest(zoo: list[str]) -> None:
    with pytest.raises(
        MachineError, match=rf"no student keeps 1e-06 ms here in FP32; the fastest, ({FAST}|{MIDDLE}), takes 0\.\d+"
    ):
        choose(1e-6, below_macs=macs(SLOW))
    with pytest.raises(MachineError, match=r"no student keeps 1e-06 ms on device in FP32"):
        choose(1e-6, below_macs=macs(SLOW), where="on device")


def test_untrained_activations_are_of_ordinary_size_and_random_state_is_kept() -> None:
    before = torch.get_rng_state()
    network = sized_students.build_settled("mobilenetv2@0.1", SHAPE, CLASSES)
    assert torch.equal(torch.get_rng_state(), before)
    assert not network.training
    images = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(0))
    fresh = registry.build("mobilenetv2@0.1", input_shape=SHAPE, classes=CLASSES, seed=0).eval()
    seen: dict[str, float] = {}
    for name, net in (("settled", network), ("fresh", fresh)):
        features = net.features
        assert isinstance(features, nn.Sequential)
        features[-1].register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: float(out.abs().max())}))
        with torch.no_grad():
            net(images)
    assert seen["settled"] > 0.1
    assert seen["fresh"] < 1e-3, "which is why they are settled"
