"""Pictures are drawn from what is there, as SVG that is the same for the same numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from edgekd.agent.measurement import BenchSettings
from edgekd.run import plots
from edgekd.run.directory import RunDir
from edgekd.stages import report

SETTINGS = asdict(BenchSettings(batch=1, threads=1))


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


def fill(run: RunDir) -> None:
    for step in range(5):
        run.append_event({"kind": "accuracy", "step": step, "raw": 0.1 * step, "ema": 0.2})
        replay = {"agreement_replay": 0.3} if step > 2 else {}
        run.append_event({"kind": "train", "step": step, "student": 1.0 / (step + 1), "agreement_novel": 0.5, **replay})
    folder = run.stage("bench") / "local"
    folder.mkdir(parents=True)
    samples = {"student.fp32.onnx": [[1.0, 1.1], [1.05]], "student.fp16.onnx": [[2.0], [2.1]]}
    (folder / "samples.json").write_text(json.dumps([{"settings": SETTINGS, "samples_ms": samples}]))


def test_each_comparison_on_each_machine_has_its_picture(run: RunDir) -> None:
    fill(run)
    there = run.stage("bench") / "user@jetson"
    there.mkdir()
    both = [{"settings": {**SETTINGS, "batch": n, "threads": 2}, "samples_ms": {"a": [[1.0, 2.0]]}} for n in (1, 8)]
    (there / "samples.json").write_text(json.dumps(both))
    assert [(title, source) for title, _, source in report.pictures(run)][2:] == [
        ("Latency, batch 1, threads 1", "bench/local/samples.json"),
        ("Latency on user@jetson, batch 1, threads 2", "bench/user@jetson/samples.json"),
        ("Latency on user@jetson, batch 8, threads 2", "bench/user@jetson/samples.json"),
    ]


def test_nothing_is_drawn_of_nothing(run: RunDir) -> None:
    assert list(report.pictures(run)) == []


def test_three_pictures_name_their_files_and_carry_their_legends(run: RunDir) -> None:
    fill(run)
    found = list(report.pictures(run))
    assert [source for _, _, source in found] == ["events.jsonl", "events.jsonl", "bench/local/samples.json"]
    for (_, picture, _), words in zip(
        found,
        (("raw weights", "averaged weights"), ("agreement on novel", "distance of logits"), ("student.fp16.onnx",)),
        strict=True,
    ):
        assert ElementTree.fromstring(picture.split("</svg>")[0] + "</svg>").tag.endswith("svg")  # noqa: S314 - our own
        assert all(word in picture for word in words)


def test_equal_numbers_make_equal_pictures(run: RunDir) -> None:
    fill(run)
    assert list(report.pictures(run)) == list(report.pictures(run))


def test_the_latency_curve_has_every_run_and_ends_at_p99_5() -> None:
    axes = Figure().add_subplot()
    quick, slow = [[1.0] * 150, [0.5] * 49 + [400.0]], [[3.0, 2.0]]
    plots._latencies(axes, {"quick": quick, "slow": slow})
    first, second = (np.asarray(line.get_xydata()) for line in axes.get_lines())
    assert (len(first), first[0].tolist(), first[-1].tolist()) == (200, [0.5, 0.5], [400.0, 100.0])
    assert first[48].tolist() == [0.5, 24.5]
    assert second.tolist() == [[2.0, 50.0], [3.0, 100.0]]
    assert axes.get_xlim() == (0, 3.0)
    assert "p99.5" in axes.get_xlabel()


def test_runs_that_were_all_skipped_draw_no_latency(run: RunDir) -> None:
    fill(run)
    (run.stage("bench") / "local" / "samples.json").write_text(json.dumps([{"settings": SETTINGS, "samples_ms": {}}]))
    assert [title for title, _, _ in report.pictures(run)] == [
        "Accuracy while distilling",
        "Distillation loss and agreement",
    ]


def test_settings_of_the_working_directory_and_of_a_notebook_are_not_obeyed(tmp_path: Path) -> None:
    """A stranger's matplotlibrc could have latex run; seen in a process of its own, which imports afresh."""
    settings = "text.usetex: True\nfigure.dpi: nonsense\n"
    (tmp_path / "matplotlibrc").write_text(settings)
    code = (
        "from edgekd.run import plots; plots._import_matplotlib(); import matplotlib, os; "
        "assert not matplotlib.rcParams['text.usetex']; assert os.path.exists('matplotlibrc')"
    )
    of_jupyter = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    environment = {**os.environ, "MATPLOTLIBRC": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path), **of_jupyter}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
