"""Results that make no sense: none is published, those of before are left out, none writes to a terminal."""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command import Result
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from edgekd.agent.bundle import FORMAT, BundleResults
from edgekd.agent.device.power import NoEnergy
from edgekd.agent.measure import measure_jobs
from edgekd.agent.measurement import BenchJob, BenchSettings
from edgekd.agent.numerics import compare_with_host
from edgekd.agent.session import DeviceComparison
from edgekd.bench import comparing, golden, latency, results
from edgekd.bench import device as devices
from edgekd.errors import InputFileError, MachineError
from edgekd.run import plots
from edgekd.run.cards.record import Record
from edgekd.run.directory import RunDir
from edgekd.run.files import write_json
from edgekd.schema import to_json
from edgekd.stages import report

QUICK = BenchSettings(rounds=2, min_runs=4, min_seconds=0.02, warm_up_seconds=0.2)
ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e"
LIES: list[Any] = [
    None,
    7,
    -1,
    float("nan"),
    float("inf"),
    1e308,
    True,
    "",
    "x" * 10**5,
    "\ud800",
    [],
    [[0.5]],
    {"k": {}},
]
ABSENT = object()


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items: Any = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, one in items:
        yield from paths(one, (*path, key))


def lied(honest: Any, path: tuple[Any, ...], lie: Any) -> Any:
    found = copy.deepcopy(honest)
    place = found
    for key in path[:-1]:
        place = place[key]
    if lie is ABSENT:
        del place[path[-1]]
    else:
        place[path[-1]] = lie
    return found


def strange(text: str) -> list[str]:
    """Return what is not to be seen in a text, line ends apart."""
    return [c for c in text if not c.isprintable() and c != "\n"]


@pytest.fixture
def run(finished: Any, tmp_path: Path) -> RunDir:
    shutil.copytree(finished.run.path, tmp_path / "toy")
    return RunDir(tmp_path / "toy")


@pytest.fixture(scope="module")
def carried(finished: Any) -> dict[str, Any]:
    """What a bundle would bring back: a real comparison, and a check that passed."""
    file = finished.run.stage("export") / "student.fp32.onnx"
    job = golden.described(BenchJob(file.name, file, "fp32"))
    comparison = replace(measure_jobs([job], QUICK), target="board")
    logits = golden.reference_logits(file, golden.images(golden.signature(file)))
    exported = Record.read(finished.run.stage("export"))
    assert exported is not None
    known = BundleResults(
        comparisons=(DeviceComparison(None, None, comparison),),
        energy=(NoEnergy("n/a: x"),),
        numerics=(compare_with_host(job, logits, logits),),
        format=FORMAT,
        run="toy",
        target="board",
        manifest_sha256="0" * 64,
        files=exported.outputs,
    )
    found: dict[str, Any] = to_json(known)
    return found


def test_a_lie_in_a_carried_file_is_refused_or_makes_sense(
    carried: dict[str, Any], run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "RESAMPLES", 20)
    file, refused, told = tmp_path / "results.json", 0, []
    for path in paths(carried):
        told += [(path, lie) for lie in [*LIES, ABSENT]] + [((*path[:-1], "surprise"), 1)] * isinstance(path[-1], str)
    for path, lie in told[::7]:
        file.write_text(json.dumps(lied(carried, path, lie)))
        try:
            devices.import_results(run, file)
        except InputFileError as error:
            refused += str(file) in str(error)
            assert not (run.stage("bench") / "board").exists(), "nothing is published"
        else:
            for folder in comparing.targets(run):
                results.read_results(folder / "results.json")
                results.read_samples(folder / "samples.json")
                if folder.name != "local":
                    shutil.rmtree(folder)
    assert refused > 0.6 * len(told[::7])


@pytest.mark.parametrize(
    "content", ["", "[]", "nonsense", "[" * 100_000, '{"format": 1}', '{"format": 2}', "\0", '{"format": [NaN]}']
)
def test_a_file_of_no_form_is_refused(content: str, run: RunDir, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(InputFileError, match=r"results\.json"):
        devices.import_results(run, tmp_path / "results.json")
    with pytest.raises(InputFileError, match="cannot be read"):
        devices.import_results(run, tmp_path)


def test_what_a_worker_here_makes_up_is_not_published(run: RunDir) -> None:
    found = to_json(results.read_results(run.stage("bench/local") / "results.json"))
    for lie in LIES:
        with pytest.raises(MachineError, match=r"nothing is published: results\.json: results\[0\]"):
            results.write_results(
                run.path / "results.json", lied(found, ("results", 0, "batch"), lie if lie != 7 else 0.5)
            )
    assert not (run.path / "results.json").exists()


def test_a_report_leaves_out_what_it_cannot_read_and_says_so(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    """What was published before there was a schema."""
    folder = run.stage("bench/local")
    honest, refused = to_json(results.read_results(folder / "results.json")), 0
    told = [(path, lie) for path in paths(honest) for lie in [*LIES, ABSENT]]
    for path, lie in told[::13]:
        (folder / "results.json").write_text(json.dumps(lied(honest, path, lie)))
        capsys.readouterr()
        summary = report.collect(run)
        report.artefact_rows(summary)
        said = capsys.readouterr().err
        assert ("left out" in said, "bench/local/results.json" in said) == (bool(summary.left_out),) * 2
        assert (summary.latency is None) == bool(summary.left_out)
        refused += bool(summary.left_out)
    assert refused > 0.6 * len(told[::13])


def test_a_file_without_a_schema_is_read_and_one_of_a_newer_edgekd_is_refused(run: RunDir) -> None:
    file = run.stage("bench/local") / "results.json"
    honest = json.loads(file.read_text())
    assert honest.pop("schema") == results.SCHEMA
    write_json(file, honest)
    assert results.read_results(file).results
    write_json(file, {**honest, "schema": results.SCHEMA + 1, "news": []})
    with pytest.raises(
        InputFileError, match=r"results\.json was written by a newer edgekd \(schema 2; this one reads 1"
    ):
        results.read_results(file)


NO_RECORD = b'{"stage": 1, "version": 1, "key": 1, "recipe_slice": [], "inputs": [], "outputs": [], "pruned": 7}'


@pytest.mark.parametrize(
    "damage",
    [
        *(NO_RECORD, b"[]", b'{"a": NaN}', b'{"a": "\\ud800"}', b"\xff", b""),
        *(pytest.param(more, marks=pytest.mark.slow) for more in (b"nonsense", b"7", b"{}")),
    ],
)
def test_no_damaged_file_takes_the_report_with_it(
    damage: bytes, run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["teacher/teacher.json", "select/selection.json", "export/agreement.json", "export/parity.json"]
    files += [f"{stage}/record.json" for stage in ("distill", "export", "bench/local")]
    files += ["bench/local/results.json", "bench/local/samples.json", "run.json", "events.jsonl", "eval/photos.json"]
    (run.path / "eval").mkdir(exist_ok=True)

    def drawn(draw: Callable[[Axes], None]) -> str:
        draw(Figure().add_subplot())
        return "<svg></svg>"

    monkeypatch.setattr(plots, "_svg", drawn)
    for name in files:
        kept = (run.path / name).read_bytes() if (run.path / name).exists() else None
        (run.path / name).write_bytes(damage + b"\n")
        result = Result("report", run.path)
        assert result.exit_code == 0, (name, result.stderr)
        assert (run.stage("report") / "report.html").is_file()
        assert Result("status", run.path).exit_code == 0, name
        if kept is None:
            (run.path / name).unlink()
        else:
            (run.path / name).write_bytes(kept)


def test_no_name_reaches_the_terminal_or_the_page_as_a_command(run: RunDir, carried: dict[str, Any]) -> None:
    carried = copy.deepcopy(carried)
    found = carried["comparisons"][0]["comparison"]
    found["environment"] |= {"cpu_model": ESCAPES, "board": ESCAPES, "gpus": [ESCAPES]}
    found["warnings"] = [ESCAPES]
    found["results"][0] |= {"provider": ESCAPES, "runtime_version": ESCAPES, "commands": [ESCAPES]}
    skipped = {"job": {**found["results"][0]["job"], "runtime": "tensorrt"}, "reason": f"n/a: {ESCAPES}"}
    found["results"].append(skipped)
    carried |= {"energy": [{"energy": f"n/a: {ESCAPES}"}], "target": f"board{ESCAPES}"}
    file = run.path.parent / f"res{ESCAPES.replace('/', '')}.json"
    write_json(file, carried)
    for arguments in (("bench", run.path, "--import", file), ("report", run.path), ("status", run.path)):
        for flags in ((), ("--json",)):
            result = Result(*arguments, *flags)
            assert result.exit_code == 0, result.stderr
            assert strange(result.stdout + result.stderr) == [], arguments
            if flags:
                result.json()
    page = (run.stage("report") / "report.html").read_text()
    assert "owned" in page
    assert strange(page) == []


@pytest.mark.parametrize("call", ["open", "stat"])
def test_nor_does_a_file_that_the_disk_does_not_give(
    call: str, run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plots, "_svg", lambda _draw: "<svg></svg>")
    for name in (
        "export/student.fp32.onnx",
        "export/agreement.json",
        "select/selection.json",
        "bench/local/results.json",
    ):
        asked, lost = getattr(os, call), str(run.path / name)

        def refuse(path: Any, *rest: Any, asked: Any = asked, lost: str = lost, **options: Any) -> Any:
            if str(path) == lost:
                raise OSError(errno.EIO, "Input/output error", lost)
            return asked(path, *rest, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, refuse)
            for verb in ("report", "status"):
                result = Result(verb, run.path)
                assert result.exit_code == 0, (verb, name, result.stderr)
                assert name in result.stderr or call == "open", (verb, name)
