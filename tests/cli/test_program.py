"""The command line as a user meets it: verbs, exit codes, opening and closing lines, JSON."""

from __future__ import annotations

import json
import re
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from command import Result
from PIL import Image
from rich.text import Text

import toy
from edgekd import recipe
from edgekd.cli.program import app
from edgekd.export import ort_session
from edgekd.run.directory import RunDir

SMALL = ("--set=method.student.batch_size=16", "--set=method.vae.novel=8", "--set=select.samples=64")
"""Batches and samples of a distillation that takes a second."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_images(folder: Path, per_class: int = 3) -> Path:
    for label in range(toy.CLASSES):
        (folder / str(label)).mkdir(parents=True)
        for index in range(per_class):
            shade = 40 * label + 10 * index
            Image.new("L", (8, 8), shade).save(folder / str(label) / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def original(teacher_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A whole toy chain made by `edgekd run`, with images evaluated at the end."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_images(folder / "images")
        wanted = toy.toy_recipe(teacher_file, export={"int8": True}, pixels={"normalize": "none"})
        (folder / "toy.toml").write_text(recipe.to_toml(wanted))
        return folder, Result("run", "toy.toml", "--data", "images", "--json")


@pytest.fixture
def finished(original: tuple[Path, Result], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A copy of the finished chain, which a test may change: no test sees what another one did."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(original[0], folder, dirs_exist_ok=True, symlinks=True)
    return folder, original[1]


def test_help_is_instant_and_imports_no_torch() -> None:
    command = [sys.executable, "-X", "importtime", "-c", "import edgekd.cli.program"]
    imported = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    modules = {line.split("|")[-1].strip() for line in imported.splitlines()}
    assert modules.isdisjoint({"torch", "pydantic", "onnx", "numpy", "matplotlib"})
    helped, bare = (
        min(_cpu_seconds([sys.executable, *arguments]) for _ in range(3))
        for arguments in (("-m", "edgekd", "--help"), ("-c", "import typer.rich_utils, rich.console"))
    )
    assert helped < 3 * bare  # not seconds: the next test may share this processor


def _cpu_seconds(command: list[str]) -> float:
    """Return the processor time of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


VERBS = (
    "distill",
    "ingest",
    "run",
    "select",
    "export",
    "bench",
    "eval",
    "status",
    "report",
    "prune",
    "doctor",
    "students",
    "recipes",
)


def test_no_word_of_a_help_is_taken_for_markup() -> None:
    command = typer.main.get_command(app)
    assert isinstance(command, typer.core.TyperGroup)
    texts = [str(getattr(one, "help", "") or "") for verb in command.commands.values() for one in verb.params]
    assert len(texts) > 50
    assert [text for text in texts if Text.from_markup(text).plain != text] == []


@pytest.mark.parametrize("verb", VERBS)
def test_each_help_ends_with_two_examples(verb: str) -> None:
    text = Result(verb, "--help").stdout
    assert text.index("Examples") > text.index("Options")
    assert text.split("Examples")[1].count(f"$ edgekd {verb}") >= (1 if verb == "doctor" else 2)


def test_unknown_names_get_a_suggestion(here: Path, teacher_file: Path) -> None:
    student = Result("distill", teacher_file, "--student", "mobilnetv2", "--input", "1x8x8")
    assert (student.exit_code, "mobilenetv2" in student.stderr) == (2, True)
    key = Result("distill", teacher_file, "--set", "method.generator.lrr=1")
    assert key.exit_code == 3
    assert 'Did you mean "lr"' in key.stderr
    preset = Result("distill", teacher_file, "--method", "pre-dfk")
    assert preset.exit_code == 3
    assert 'Did you mean "pre-dfkd"' in preset.stderr
    assert Result("distil", teacher_file).exit_code == 2
    assert Result("export", "nowhere").exit_code == 2


def test_distill_opens_with_five_lines_and_closes_with_three(here: Path, teacher_file: Path) -> None:
    arguments = (
        "distill",
        teacher_file,
        "--input",
        "1x8x8",
        "--threads",
        "1",
        "--student",
        toy.STUDENT,
        "--steps",
        "4",
        *SMALL,
    )
    result = Result(*arguments)
    assert result.exit_code == 0
    lines = result.stderr.splitlines()
    words = [line.split()[0] for line in lines if line.strip()]
    opening = words.index("run")
    assert words[opening : opening + 5] == ["run", "teacher", "input", "student", "plan"]
    assert words[-3:] == ["wrote", "result", "next"]
    assert "assumed" in result.stderr
    again = Result(*arguments)
    assert "already done" in again.stderr
    changed = Result(*arguments, "--seed", "5")
    assert changed.exit_code == 3
    assert "seed: 1 -> 5" in changed.stderr
    assert "--fresh" in changed.stderr
    fresh = Result(*arguments, "--seed", "5", "--fresh", "--json")
    assert fresh.exit_code == 0
    assert fresh.json()["steps"] == 4
    assert fresh.json()["curve"] is None


def test_distill_json_with_data_has_both_curves(here: Path, teacher_file: Path) -> None:
    wanted = toy.toy_recipe(teacher_file)
    (here / "toy.toml").write_text(recipe.to_toml(wanted))
    write_images(here / "images")
    flags = ("--input", "1x8x8", "--threads", "1", "--student", toy.STUDENT, "--steps", "4", "--normalize", "none")
    result = Result("distill", teacher_file, *flags, *SMALL, "--data", "images", "--json").json()
    assert set(result) == {"run", "steps", "seconds", "curve", "curve_other", "health"}
    assert set(result["curve"]) == {"points", "mean", "sd", "variance", "max", "final", "regret"}
    assert result["curve"]["points"] == result["curve_other"]["points"] == 5
    assert result["seconds"] > 0
    assert {"agreement_novel", "replay_bytes", "replay_bytes_as_uint8_images"} <= set(result["health"])


def test_max_seconds_stops_resumably(here: Path, teacher_file: Path) -> None:
    flags = (
        "distill",
        teacher_file,
        "--input",
        "1x8x8",
        "--threads",
        "1",
        "--student",
        toy.STUDENT,
        "--steps",
        "100000",
        *SMALL,
    )
    steps = []
    for _ in range(2):
        stopped = Result(*flags, "--max-seconds", "6")
        assert stopped.exit_code == 8
        assert "the same command continues" in stopped.stderr
        run = RunDir(next((here / "runs").iterdir()))
        steps.append(max(p.name for p in run.stage("distill").glob("checkpoints/step-*")))
    assert steps[0] < steps[1]


def test_minutes_are_turned_into_steps_once(here: Path, teacher_file: Path) -> None:
    flags = (
        "distill",
        teacher_file,
        "--input",
        "1x8x8",
        "--threads",
        "1",
        "--student",
        toy.STUDENT,
        "--minutes",
        "0.01",
        *SMALL,
    )
    first = Result(*flags, "--json")
    assert first.exit_code == 0
    kept = recipe.load_resolved(next((here / "runs").iterdir()) / "recipe.toml").method
    assert kept.minutes == 0.01
    assert kept.steps == first.json()["steps"] > 0
    assert Result(*flags, "--json").json()["steps"] == kept.steps


def test_dry_run_prints_a_plan_and_trains_nothing(here: Path, teacher_file: Path) -> None:
    flags = ("distill", teacher_file, "--input", "1x8x8", "--threads", "1", "--student", toy.STUDENT, "--steps", "1000")
    result = Result(*flags, "--dry-run", "--json")
    assert result.exit_code == 0
    plan = result.json()
    assert plan["eta_seconds"] == pytest.approx(1000 * plan["seconds_per_step"])
    assert not RunDir(next((here / "runs").iterdir())).stage("distill").exists()


def test_large_images_need_consent(here: Path, teacher_file: Path) -> None:
    sets = [f"--set=method.{table}=4" for table in ("student.batch_size", "replay.batch_size", "generator.width")]
    sets += ["--set=method.vae.novel=2", "--set=method.vae.rehearsed=2", "--set=method.vae.width=4"]
    flags = (
        "distill",
        teacher_file,
        "--input",
        "1x128x128",
        "--threads",
        "1",
        "--student",
        toy.STUDENT,
        "--steps",
        "1",
        *sets,
    )
    assert Result(*flags, "--dry-run").exit_code == 2
    agreed = Result(*flags, "--dry-run", "--yes")
    assert agreed.exit_code == 0
    names = {words[0] for words in map(str.split, agreed.stdout.splitlines()) if len(words) == 2}
    assert {"student", "generator", "encoder", "decoder", "all"} <= names, "parameters of networks, GFLOP by part"
    for pattern in (r"utilisation \d+%: of \d+ GFLOP/s", r"\d+ ms a step, about \d+ s, [\d.]+ \w+ memory"):
        assert re.search(pattern, agreed.stderr), pattern


def test_run_prints_every_artefact_and_eval_counts_images(finished: tuple[Path, Result]) -> None:
    folder, result = finished
    assert result.exit_code == 0
    summary = result.json()
    names = {row["artefact"] for row in summary["artefacts"]}
    assert {"teacher", "student", "student.fp32.onnx", "student.fp16.onnx", "student.int8-cpu-x86.onnx"} <= names
    assert summary["real_images_read"] == 3 * toy.CLASSES
    ledger = RunDir(folder / "runs" / "toy").ledger()
    assert ledger.data_free is True
    (reading,) = ledger.real_images
    assert reading.purpose == "eval"
    assert {"teacher", "distill", "select", "export"} <= set(reading.stages_done), "no image was read before eval"
    assert any(name.endswith("teacher.pt") for name in ledger.files_read)


def test_eval_and_bench_json_have_the_promised_form(finished: tuple[Path, Result], monkeypatch: Any) -> None:
    folder, _ = finished
    monkeypatch.chdir(folder)
    found = Result("eval", "toy", "--data", "images", "--json").json()
    assert set(found) == {"run", "data_free", "images", "accuracy", "accuracy_default_mode"}
    assert ort_session.saturates() or found["accuracy_default_mode"] == {}, "nothing to tell where nothing saturates"
    assert found["images"] == 3 * toy.CLASSES
    assert all(0 <= value <= 1 for value in found["accuracy"].values())
    assert {"teacher", "student", "student.fp32.onnx"} <= set(found["accuracy"])
    measured = Result("bench", "toy", "--json").json()
    assert {"run", "target", "results"} <= set(measured)
    row = next(row for row in measured["results"] if row["artefact"] == "student.fp32.onnx")
    times = ("min_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "max_ms")
    assert [row[name] for name in times] == sorted(row[name] for name in times)
    assert {"runtime", "provider", "batch", "threads", "n", "mean_ms", "std_ms", "throughput_per_s"} <= set(row)
    assert row["size_bytes"] == (folder / "runs/toy/export/student.fp32.onnx").stat().st_size


def test_status_report_and_select_work_on_the_newest_run(finished: tuple[Path, Result], monkeypatch: Any) -> None:
    folder, _ = finished
    monkeypatch.chdir(folder)
    status = Result("status", "--json").json()
    assert {entry["stage"]: entry["state"] for entry in status["stages"]} == dict.fromkeys(
        ("ingest", "distill", "select", "export", "bench"), "done"
    )
    report = Result("report", "toy")
    assert report.exit_code == 0
    page = (folder / "runs/toy/report/report.html").read_text()
    assert "no real image" in page
    assert "<svg" in page
    assert "already done" in Result("select", "toy").stderr


def test_flags_of_export_are_kept_and_taken_back(
    finished: tuple[Path, Result], tmp_path: Path, monkeypatch: Any
) -> None:
    folder, _ = finished
    monkeypatch.chdir(folder)
    subprocess.run(["cp", "-r", "runs/toy", "runs/other"], check=True)
    assert Result("export", "other", "--no-int8").exit_code == 0
    assert not list(Path("runs/other/export").glob("*int8*"))
    assert recipe.load_resolved(Path("runs/other/recipe.toml")).export.int8 is False
    assert "already done" in Result("export", "other").stderr
    pruned = Result("prune", "other", "--json").json()["removed"]
    assert "select/replay.safetensors" in pruned
    assert not Path("runs/other/select/replay.safetensors").exists()
    assert {s["state"] for s in Result("status", "other", "--json").json()["stages"][:4]} == {"done"}
    refused = Result("export", "other", "--int8")
    assert refused.exit_code == 2
    assert "pruned" in refused.stderr


@pytest.mark.parametrize("value", ["1.5", "nan", "1,x"])
def test_batches_and_threads_are_whole_numbers(value: str) -> None:
    for flag in ("--batch", "--threads"):
        result = Result("bench", "any.onnx", flag, value)
        assert (result.exit_code, f"{flag} takes whole numbers" in result.stderr) == (2, True)


def test_a_benchmark_of_no_batch_is_refused(here: Path, teacher_file: Path) -> None:
    for key in ("batch", "threads"):
        result = Result("distill", teacher_file, "--set", f"bench.{key}=[]", "--dry-run")
        assert (result.exit_code, f"bench.{key}" in result.stderr) == (3, True)


def test_bench_takes_any_onnx_classifier(finished: tuple[Path, Result], monkeypatch: Any) -> None:
    folder, _ = finished
    monkeypatch.chdir(folder)
    result = Result("bench", "runs/toy/export/student.fp32.onnx", "--seconds", "0.1", "--json")
    assert result.exit_code == 0
    assert result.json()["run"] is None
    assert result.json()["results"][0]["p50_ms"] > 0


def test_the_normalisation_can_be_set_later_without_distilling(finished: tuple[Path, Result], monkeypatch: Any) -> None:
    folder, _ = finished
    monkeypatch.chdir(folder)
    subprocess.run(["cp", "-r", "runs/toy", "runs/pixels"], check=True)
    assert Result("ingest", "--run", "pixels", "--mean", "0.5", "--std", "0.25").exit_code == 0
    states = {s["stage"]: s["state"] for s in Result("status", "pixels", "--json").json()["stages"]}
    assert (states["distill"], states["select"], states["export"]) == ("done", "done", "stale")


def test_doctor_and_recipes_answer(here: Path) -> None:
    assert {"facts", "problems"} <= set(Result("doctor", "--json").json())
    listing = Result("recipes", "--json").json()
    assert "quickstart" in listing["recipes"]
    assert {"edgekd", "pre-dfkd", "pre-dfkd-released", "dafl", "dfad", "memory-bank"} <= set(listing["methods"])
    assert Result("recipes", "--copy", "edgekd").exit_code == 0
    assert Result("recipes", "--check", "edgekd.toml").exit_code == 0
    assert Result("recipes", "--copy", "edgekd").exit_code == 2


def test_seed_zero_is_a_seed(here: Path, teacher_file: Path) -> None:
    flags = ("distill", teacher_file, "--input", "1x8x8", "--student", toy.STUDENT, "--steps", "1000", "--threads", "1")
    assert Result(*flags, "--seed", "0", "--dry-run").exit_code == 0
    assert recipe.load_resolved(next((here / "runs").iterdir()) / "recipe.toml").seed == 0


def test_fresh_loses_nothing_when_the_new_beginning_fails(
    finished: tuple[Path, Result], teacher_file: Path, monkeypatch: Any
) -> None:
    folder, _ = finished
    monkeypatch.chdir(folder)
    subprocess.run(["cp", "-r", "runs/toy", "runs/kept"], check=True)
    before = toy.fingerprint(RunDir(Path("runs/kept")))
    broken = folder / "broken.pt"
    broken.write_bytes(b"no checkpoint")
    flags = ("--run", "kept", "--fresh", "--student", toy.STUDENT)
    for arguments, code in (
        (("distill", broken, *flags), 4),
        (("distill", "missing.pt", *flags), 4),
        (("distill", teacher_file, *flags, "--set", "method.student.rl=1"), 3),
        (("distill", teacher_file, *flags, "--input", "1x8x8", "--device", "abacus"), 2),
        (("distill", teacher_file, *flags, "--dry-run"), 2),
    ):
        assert Result(*arguments).exit_code == code
        assert toy.fingerprint(RunDir(Path("runs/kept"))) == before
        assert not Path("runs/kept/.replaced").exists()


def test_an_exported_run_does_not_ask_for_its_teacher(
    finished: tuple[Path, Result], teacher_file: Path, monkeypatch: Any
) -> None:
    folder, _ = finished
    monkeypatch.chdir(folder)
    subprocess.run(["cp", "-r", "runs/toy", "runs/old"], check=True)
    retrained = folder / "teacher.pt"
    retrained.write_bytes(b"another teacher under the old name")
    resolved = Path("runs/old/recipe.toml")
    resolved.write_text(resolved.read_text().replace(str(teacher_file), str(retrained)))
    assert Result("export", "old", "--no-int8").exit_code == 0
    table = {row["artefact"]: row for row in Result("report", "old", "--json").json()["artefacts"]}
    assert table["student.fp32.onnx"]["p50_ms"] is None, "the latency is of the files exported before"
    assert table["student"]["accuracy"] is not None


def test_next_lines_name_the_run_as_it_has_to_be_typed(finished: tuple[Path, Result], monkeypatch: Any) -> None:
    folder, _ = finished
    monkeypatch.chdir(folder)
    elsewhere = folder / "else where" / "toy"
    (folder / "else where").mkdir(exist_ok=True)
    subprocess.run(["cp", "-r", "runs/toy", elsewhere], check=True)
    for run, words in (("toy", "toy"), ("runs/toy", "toy"), (elsewhere, shlex.quote(str(elsewhere)))):
        for verb in (("select",), ("export",), ("bench",), ("report",), ("status",), ("eval", "--data", "images")):
            result = Result(verb[0], run, *verb[1:])
            assert result.exit_code == 0
            following = result.stderr.splitlines()[-1]
            assert following.startswith("next ")
            assert words in following, f"{verb} {run}: {following}"
            if words == "toy":
                assert "/toy" not in following


def test_status_names_the_command_that_goes_on_with_this_run(here: Path, teacher_file: Path) -> None:
    ingested = Result("ingest", teacher_file, "--run", "elsewhere/toy", "--input", "1x8x8")
    assert ingested.stderr.splitlines()[-1].endswith(f"edgekd distill {teacher_file} --run elsewhere/toy")
    following = Result("status", "elsewhere/toy").stderr.splitlines()[-1]
    assert following.endswith(f"edgekd distill {teacher_file} --student mobilenetv2 --run elsewhere/toy")


def test_recipes_suggest_what_can_be_done_with_them(here: Path) -> None:
    assert Result("recipes", "--copy", "dafl").exit_code == 0
    assert Result("recipes", "--check", "dafl.toml").stderr.splitlines()[-1].endswith("distill TEACHER --method dafl")
    preset = here / "dafl.toml"
    preset.write_text(preset.read_text() + "\n")
    changed = Result("recipes", "--check", "dafl.toml")
    assert "[method] table of a recipe" in changed.stderr
    assert "edgekd run" not in changed.stderr
    assert Result("recipes", "--copy", "quickstart").exit_code == 0
    assert Result("recipes", "--check", "quickstart.toml").stderr.splitlines()[-1].endswith("run quickstart.toml")


def test_copying_a_recipe_overwrites_neither_it_nor_its_teacher(here: Path) -> None:
    (here / "quickstart").mkdir()
    (here / "quickstart" / "teacher.pt").write_bytes(b"mine")
    refused = Result("recipes", "--copy", "quickstart")
    assert refused.exit_code == 2
    assert "quickstart/teacher.pt exists already" in refused.stderr
    assert (here / "quickstart" / "teacher.pt").read_bytes() == b"mine"
    assert not (here / "quickstart.toml").exists()


@pytest.mark.slow
def test_export_measures_clipping_and_calibrates_on_real_images_only_when_asked(
    finished: tuple[Path, Result], monkeypatch: Any
) -> None:
    folder, _ = finished
    monkeypatch.chdir(folder)
    subprocess.run(["cp", "-r", "runs/toy", "runs/images"], check=True)
    clipped = Result("export", "images", "--calib-data", "images", "--json").json()
    assert set(clipped["clipping"]) == {"student.int8-cpu-x86.onnx", "student.int8-cpu-arm.onnx"}
    assert clipped["data_free"] is True
    assert "real images" in Result("export", "images", "--calib-data", "images").stdout
    assert Result("export", "images", "--calib-data", "nowhere").exit_code == 4
    assert Result("export", "images", "--no-int8", "--calib-data", "images").exit_code == 2
    assert Result("export", "images", "--no-int8", "--calibrate-on-real", "images").exit_code == 2
    assert recipe.load_resolved(Path("runs/images/recipe.toml")).export.int8 is True
    real = Result("export", "images", "--calibrate-on-real", "images")
    assert real.exit_code == 0
    assert "NOT data-free" in real.stderr
    for verb in (("bench",), ("eval", "--data", "images"), ("status",), ("report",)):
        assert "NOT data-free" in Result(verb[0], "images", *verb[1:]).stderr, verb
    assert json.loads(Path("runs/images/bench/local/results.json").read_text())["data_free"] is False
    assert json.loads(Path("runs/images/eval/images.json").read_text())["data_free"] is False


def _content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_export_of_a_student_from_elsewhere_names_what_is_missing(
    finished: tuple[Path, Result], tmp_path: Path, monkeypatch: Any
) -> None:
    folder, _ = finished
    monkeypatch.chdir(folder)
    weights, out = tmp_path / "student.safetensors", tmp_path / "out"
    weights.write_bytes((folder / "runs/toy/select/student.safetensors").read_bytes())
    flags = {"--student-weights": weights, "--arch": toy.STUDENT, "--out": out}
    for left_out in flags:
        given = [part for flag, value in flags.items() if flag != left_out for part in (flag, value)]
        refused = Result("export", "toy", *given)
        assert (refused.exit_code, f"{left_out} " in refused.stderr) == (2, True)
    everything = [part for pair in flags.items() for part in pair]
    assert Result("export", "toy", *everything, "--calib-data", "images").exit_code == 2
    assert Result("export", "nowhere", *everything).exit_code == 2
    for idle in ("seed=5", "select.samples=128", "machine.device=cuda"):
        refused = Result("export", "toy", *everything, "--set", idle)
        assert (refused.exit_code, idle.split("=")[0] in refused.stderr) == (2, True)
    before = _content(folder / "runs")
    made = Result("export", "toy", *everything, "--set", "machine.threads=1", "--json").json()
    assert (made["out"], made["data_free"]) == (str(out), None)
    assert _content(folder / "runs") == before
    assert (out / "student.int8-cpu-x86.onnx").is_file()
    again = Result("export", "toy", *everything, "--set", "machine.threads=1").stderr
    assert "already done" in again
    assert "not known to be data-free" in again
