"""The studies under docs/studies/ run from end to end at toy length, as `python -m` from the root of a checkout."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.numpy_helper import from_array
from PIL import Image

import toy
from docs.studies.common import collect, overlay, provenance
from docs.studies.gpu import run as gpu
from docs.studies.ingredients import ablate, one_out
from docs.studies.overhead import run as overhead
from docs.studies.recovery import run as recovery
from docs.studies.recovery import table as recovery_table
from edgekd import recipe as recipes
from edgekd.agent.device.environment import this_machine
from edgekd.pipeline import expectation
from edgekd.recipe.method import MethodTable
from edgekd.run.cards.events import TrainEvent

ROOT = Path(__file__).parent.parent
TINY = (
    *("--student", toy.STUDENT, "--input", "1x8x8", "--normalize", "none", "--threads", "1", "--device", "cpu"),
    *(f"--set=method.{key}" for key in ("generator.width=8", "generator.latent=8", "vae.latent=4", "vae.width=8")),
    *(f"--set=method.{key}" for key in ("student.batch_size=16", "replay.batch_size=8", "vae.novel=8")),
    *("--set=method.vae.rehearsed=4", "--set=select.samples=64", "--set=select.reestimate_batches=2"),
)


def images(folder: Path, classes: int, side: int, mode: str, each: int = 2) -> Path:
    for label in range(classes):
        (folder / str(label)).mkdir(parents=True)
        for index in range(each):
            picture = Image.effect_noise((side, side), 20 * (label + 1)).convert(mode)
            picture.save(folder / str(label) / f"{index}.png")
    return folder


def study(name: str, *arguments: object) -> str:
    """Run a module of docs/studies/ as its README says; only the root of the checkout is on its path."""
    command = [sys.executable, "-m", f"docs.studies.{name}", *map(str, arguments)]
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "STUDY_COMMAND")}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def content(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return images(tmp_path_factory.mktemp("data") / "images", toy.CLASSES, 8, "L")


@pytest.fixture(scope="module")
def run(teacher_file: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished distillation with its curve and an evaluation."""
    folder = tmp_path_factory.mktemp("runs") / "toy"
    command = [sys.executable, "-m", "edgekd", "distill", str(teacher_file), *TINY, "--steps", "8"]
    subprocess.run([*command, "--data", str(data), "--run", str(folder)], check=True, capture_output=True)
    evaluate = [sys.executable, "-m", "edgekd", "eval", str(folder), "--data", str(data)]
    subprocess.run(evaluate, check=True, capture_output=True)
    return folder


@pytest.mark.slow
def test_collected_runs_have_curves_figures_and_no_path_of_this_machine(run: Path, tmp_path: Path) -> None:
    study("common.collect", tmp_path / "out.json", tmp_path / "out.svg", f"a={run}", "--note", "how")
    found = content(tmp_path / "out.json")
    assert found["note"] == "how"
    facts = found["runs"]["a"]
    assert {"mean", "sd", "variance", "max", "final", "regret"} <= set(facts["curve"])
    assert facts["steps"] == 8
    assert {len(tenths) for tenths in facts["agreement_by_tenths"].values()} == {10}
    assert 0 <= facts["forgotten"]["ema"]["deepest_fall"] <= facts["curve"]["max"]
    assert str(tmp_path.parent) not in json.dumps(found)
    assert (tmp_path / "out.svg").read_text().startswith("<?xml")
    assert found["command"] == f"python -m docs.studies.common.collect out.json out.svg a={run.name} --note how"
    assert len(found["preset_digest"]["a"]) == 64


def test_a_result_says_command_machine_commit_and_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "STUDY_COMMAND",
        f"MINUTES=0 {ROOT}/docs/studies/mnist/run.sh /elsewhere/data runs ../beside/teachers label=/elsewhere/run=set",
    )
    preset = recipes.parse({"method": {"preset": "dafl"}}, origin="test").method
    found = provenance.provenance({"row": preset})
    assert list(found) == ["command", "machine", "commit", "preset_digest"]
    assert found["command"] == "MINUTES=0 docs/studies/mnist/run.sh data runs teachers label=run=set"
    assert found["machine"]["cpu_model"] == this_machine().cpu_model
    assert {"torch", "numpy", "onnxruntime"} <= set(found["machine"]["libraries"])
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (found["commit"] or "").removesuffix("-dirty") == head.stdout.strip()


def test_the_digest_of_a_method_knows_its_values_and_not_its_length() -> None:
    def digest(**changes: object) -> str:
        method = {"preset": "edgekd", **changes}
        return provenance.method_digest(recipes.parse({"method": method}, origin="test").method)

    assert digest(steps=12) == digest(steps=400) == digest()
    assert digest(vae={"feature": 0.0}) != digest()
    assert digest(preset="pre-dfkd") != digest()


def test_what_edgekd_wrote_gets_its_provenance(tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text('{"run": "small", "files": [1]}')
    provenance.main(tmp_path / "in.json", tmp_path / "out.json", None)
    found = content(tmp_path / "out.json")
    assert found.pop("preset_digest") == {}
    assert {"command", "machine", "commit"} < set(found)
    assert (found["run"], found["files"]) == ("small", [1])


SCRIPTS = sorted((ROOT / "docs" / "studies").glob("*/*.py"))


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_script_is_a_module_of_the_checkout(file: Path) -> None:
    importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))


def test_a_module_starts_in_a_checkout_that_nothing_was_installed_for() -> None:
    command = [sys.executable, "-S", "-m", "docs.studies.common.overlay", "docs/studies/common/cifar.toml"]
    done = subprocess.run(command, cwd=ROOT, env={}, capture_output=True, text=True, check=True)
    assert done.stdout.split() == overlay.flags(ROOT / "docs/studies/common/cifar.toml")
    assert "method.student.flip=true" in done.stdout


def test_shell_scripts_name_their_command_and_stop_where_an_overlay_cannot_be_read() -> None:
    def shell(python: str) -> subprocess.CompletedProcess[str]:
        lines = 'source docs/studies/common/shell.sh; overlay lean; echo "$STUDY_COMMAND"; printf "%s\n" "${lean[@]}"'
        command = ["bash", "-euc", f"python={python}; {lines}", "docs/studies/mnist/run.sh", "two words", "3"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    named, *flags = shell(sys.executable).stdout.splitlines()
    assert shlex.split(named) == ["docs/studies/mnist/run.sh", "two words", "3"]
    assert flags == overlay.flags(ROOT / "docs/studies/common/lean.toml")
    assert shell("false").returncode != 0


def test_the_sizes_of_a_comparison_are_those_of_the_default() -> None:
    lean = overlay.assignments(ROOT / "docs/studies/common/lean.toml")
    default = recipes.parse({"method": {"preset": "edgekd-replay"}}, origin="test")
    for assignment in lean:
        assert recipes.with_changes(default, recipes.assignment(assignment)) == default, assignment


def test_what_a_student_forgot_is_measured_from_its_best() -> None:
    found = collect.forgotten([0.1, 0.5, 0.2, 0.6, 0.57], [0, 10, 20, 30, 40])
    assert found == {"deepest_fall": pytest.approx(0.3), "at_step": 20, "share_below_by_2_points": 0.4}


@pytest.mark.slow
def test_selection_shows_agreement_beside_accuracy_for_every_candidate(run: Path, data: Path, tmp_path: Path) -> None:
    study("selection.run", tmp_path / "out.json", f"a={run}={data}")
    found = content(tmp_path / "out.json")
    row = found["runs"]["a"]
    assert set(row["candidates"]) == {"raw", "ema", "raw+batchnorm", "ema+batchnorm"}
    best = max(candidate["accuracy"] for candidate in row["candidates"].values())
    assert row["cost"] == best - row["candidates"][row["chosen"]]["accuracy"]
    assert row["right"] == (row["cost"] == 0)
    assert found["summary"]["edgekd"]["runs"] == 1
    changed = {"summary": {}, "runs": {"a": row | {"chosen": "earlier", "right": False, "cost": 1.0}}}
    (tmp_path / "out.json").write_text(json.dumps(changed))
    study("selection.run", tmp_path / "out.json")
    assert content(tmp_path / "out.json") == found, "today's rule chooses for runs measured before, too"


def method(preset: str, assignments: Iterable[str]) -> MethodTable:
    changes = (recipes.assignment(assignment) for assignment in assignments)
    table = reduce(recipes.merge, changes, {"method": {"preset": preset}})
    return recipes.parse(table, origin="test").method


def test_the_ablation_takes_every_ingredient_out_of_one_preset_and_puts_it_into_the_other() -> None:
    variants = ablate.variants()
    assert len(variants) == 2 + 2 * len(ablate.INGREDIENTS) > 15
    digests = set()
    for preset, keys in variants.values():
        other = {ablate.OURS: ablate.PAPER, ablate.PAPER: ablate.OURS}[preset]
        sets = {key: ablate.value(ablate.OURS, key) for key in ablate.SIZES}
        sets |= {key: ablate.value(other, key) for key in keys}
        digests.add(provenance.method_digest(method(preset, (f"method.{key}={text}" for key, text in sets.items()))))
    assert len(digests) == len(variants), "each row is a method of its own"


@pytest.mark.slow
def test_the_ablation_makes_the_rows_it_is_asked_for(teacher_file: Path, data: Path, tmp_path: Path) -> None:
    label = "pre-dfkd with class balance in nats"
    only = ("--only", "pre-dfkd", "--only", label)
    arguments = (tmp_path / "out.json", teacher_file, data, tmp_path / "runs", "--steps", 2, "--seeds", "1", *only)
    study("ingredients.ablate", *arguments, *TINY)
    found = content(tmp_path / "out.json")
    assert set(found["rows"]) == set(found["preset_digest"]) == {"pre-dfkd", label}
    assert found["rows"][label]["changes"] != found["rows"]["pre-dfkd"]["changes"]


def test_the_cost_of_a_checkpoint_is_what_lines_around_it_cannot_explain() -> None:
    lines, seconds, saved = [], 0.0, 0.0
    for step in range(0, 200, 2):
        lines.append(TrainEvent(step=step, seconds=seconds, saving_seconds=saved))
        seconds += 2 * 0.5
        if step % 50 == 20:  # a tenth of a second to save, and two tenths more in the steps after
            seconds, saved = seconds + 0.3, saved + 0.1
    assert overhead.checkpoint_costs_s(lines) == pytest.approx([0.3] * 4)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("taskset") is None or (os.cpu_count() or 1) < 2, reason="needs two cores")
def test_what_safety_costs_is_told_from_log_lines_and_clocks(teacher_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    length = ("--steps", 1000, "--max-seconds", 2, "--rounds", 1, "--set=checkpoint_period=250")
    study("overhead.run", out, teacher_file, tmp_path / "runs", *length, *TINY)
    found = content(out)
    assert found["checkpoint_s"]["checkpoints"] == sum(len(row["checkpoint_s"]) for row in found["rounds"]) > 1
    assert found["stop_and_resume_s"] > 1, "Python and torch are imported once more"
    assert 0 < found["saving_share"] < 0.1


@pytest.mark.slow
def test_int8_files_are_compared_by_what_they_are_calibrated_on_and_the_rest_is_made_later(
    run: Path, tmp_path: Path
) -> None:
    copy, data, out = Path(shutil.copytree(run, tmp_path / "toy")), tmp_path / "set", tmp_path / "out.json"
    images(data / "train", toy.CLASSES, 8, "L", each=16)
    images(data / "test", toy.CLASSES, 8, "L", each=4)
    sets = ("calibration_samples=32", "holdout_samples=32", "min_int8_agreement=0.5")
    export = [sys.executable, "-m", "edgekd", "export", str(copy), *(f"--set=export.{item}" for item in sets)]
    subprocess.run(export, check=True, capture_output=True)
    arguments = (out, f"toy={copy}={data}", "--test-limit", 10, "--threads", 1)
    study("int8_calibration.compare", *arguments)
    found = content(out)["toy"]
    assert (found["test_set"], found["test_images"]) == ("set/test", 10)
    assert 0 <= found["fp32_right"] <= 10
    rows = {(row["calibration"], row["flavour"]): row for row in found["rows"]}
    flavors = ("cpu-x86", "cpu-arm", "trt", "trt-fp16")
    assert set(rows) == {(s, f) for s in ("replay", "noise", "batchnorm", "oracle") for f in flavors}
    assert len(found["rows"]) == 16
    for (source, flavor), row in rows.items():
        assert {"cpu", "int8_instructions", "onnxruntime"} <= set(row)
        assert row["accuracy"] == row["right"] / 10
        saturates = flavor == "cpu-x86" and this_machine().x86 and not row["int8_instructions"]
        assert (row["right_default_mode"] is not None) == saturates
        distance = row.get("batchnorm_distance")
        assert (distance is not None) == (source == "batchnorm")
        assert distance is None or distance["last"] < distance["first"] / 2
    assert str(tmp_path) not in out.read_text()
    marked = content(out)
    marked["toy"]["rows"][5]["kept"] = True
    lost = marked["toy"]["rows"].pop()
    out.write_text(json.dumps(marked))
    study("int8_calibration.compare", *arguments)
    again = content(out)["toy"]["rows"]
    assert (len(again), again[5]["kept"], again[-1]) == (16, True, lost)
    twice = [
        sys.executable,
        "-m",
        "docs.studies.int8_calibration.compare",
        str(out),
        f"a={copy}={data}",
        f"a={copy}={data}",
    ]
    refused = subprocess.run(twice, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (refused.returncode, "a label of its own" in refused.stderr) == (2, True)


@pytest.mark.slow
def test_wider_ranges_clip_less_of_real_images(run: Path, tmp_path: Path) -> None:
    copy, out = Path(shutil.copytree(run, tmp_path / "toy")), tmp_path / "out.json"
    data = images(tmp_path / "set", toy.CLASSES, 8, "L", each=4)
    sets = ("calibration_samples=32", "holdout_samples=32")
    export = [sys.executable, "-m", "edgekd", "export", str(copy), *(f"--set=export.{item}" for item in sets)]
    subprocess.run(export, check=True, capture_output=True)
    out.write_text('{"other": 1}')
    study("int8_headroom.run", out, f"toy={copy}={data}", "--limit", 10)
    found = content(out)
    assert (found["other"], found["toy"]["images"]) == (1, 10)
    clipped: dict[str, list[float]] = {}
    for row in found["toy"]["rows"]:
        clipped.setdefault(row["flavour"], []).append(row["clipping"])
        assert row["bias_corrected"] or row["images_corrected"] == row["images"]
        assert row["synthetic_corrected"]["loss"] <= row["synthetic"]["loss"]
    assert set(clipped) == {"cpu-x86", "cpu-arm", "trt", "trt-fp16"}
    assert all(rates[-1] <= rates[0] for rates in clipped.values())
    assert str(tmp_path) not in out.read_text()


@pytest.mark.slow
def test_a_calibration_that_no_file_can_be_made_of_is_a_row_with_its_reason(run: Path, tmp_path: Path) -> None:
    copy, data, out = Path(shutil.copytree(run, tmp_path / "toy")), tmp_path / "set", tmp_path / "out.json"
    images(data / "test", toy.CLASSES, 8, "L")
    subprocess.run([sys.executable, "-m", "edgekd", "export", str(copy)], check=True, capture_output=True)
    file = copy / "export" / "student.fp32.onnx"
    model = onnx.load(file)
    bias = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 1)
    bias.CopyFrom(from_array(np.full(tuple(bias.dims), -np.inf, np.float32), bias.name))
    onnx.save(model, file)
    study("int8_calibration.compare", out, f"toy={copy}={data}")
    rows = content(out)["toy"]["rows"]
    assert {row["calibration"] for row in rows} == {"replay", "noise", "batchnorm"}, "there is no train/"
    assert all("not finite" in row["failed"] for row in rows)


def test_the_int8_study_goes_on_without_what_is_missing(tmp_path: Path) -> None:
    runs, data = tmp_path / "runs", tmp_path / "data"
    for folder in (data / "mnist" / "test", tmp_path / "good", runs / "digits.partial" / "train"):
        folder.mkdir(parents=True)
    (tmp_path / "good" / "recipe.toml").touch()
    python = tmp_path / "python"
    python.write_text(
        f'#!/usr/bin/env bash\necho "$@" >>{tmp_path}/log\n'
        'case "$1 $2" in *digits.py*) mkdir -p "$2/heldout" ;; *" edgekd") exit 5 ;; esac\n'
    )
    python.chmod(0o755)
    named = (f"good={tmp_path}/good=mnist", f"gone={tmp_path}/gone=mnist", f"setless={tmp_path}/good=none")
    env = {**os.environ, "PYTHON": str(python), "MINUTES": "0", "FLAGS": "--threads 1"}
    command = ["docs/studies/int8_calibration/run.sh", str(tmp_path / "no.th"), str(data), str(runs), *named]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split()[1] for line in done.stderr.splitlines()] == ["mobilenetv2@0.5", "gone", "setless"]
    assert not (runs / "digits" / "train").exists(), "what was cut off was begun anew"
    assert (runs / "digits" / "test").is_dir()
    *_, study = (tmp_path / "log").read_text().splitlines()
    assert study == (
        "-m docs.studies.int8_calibration.compare docs/studies/int8_calibration/results.json "
        f"quickstart={runs}/quickstart={runs}/digits "
        f"good={tmp_path}/good={data}/mnist --threads 1"
    )


def test_each_ingredient_that_is_taken_out_changes_the_default() -> None:
    default = recipes.parse({"method": {"preset": "edgekd"}}, origin="test")
    rows = one_out.rows()
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        changes = [recipes.assignment(flag.removeprefix("--set=")) for flag in row.flags]
        changed = [recipes.with_changes(default, change) != default for change in changes]
        assert all(changed), row.name
        assert bool(changes) == ("nothing" not in row.name)


@pytest.mark.slow
def test_rows_of_the_recovery_study_keep_their_budget_and_make_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = toy.write_teacher(tmp_path / "teacher.pt")
    for split in ("train", "test"):
        images(tmp_path / "data" / "toy" / split, toy.CLASSES, 8, "L")
    runs = tmp_path / "runs"
    runs.mkdir()
    shutil.copy(teacher, runs / "teacher.pt")
    flags = (*TINY, "--set=method.replay.source=none")  # a replay that does not begin leaves its part of the budget
    pair = recovery.Pair("RUNS/teacher.pt", flags, toy.STUDENT, "toy", "toy", "toys", (1, 16, 16))
    for module in (recovery, recovery_table):
        monkeypatch.setattr(module, "PAIRS", {"toy": pair})
    free = recovery.Row("toy", "free", "0.0003T", 1)
    wanted = [free, replace(free, source="real")]
    monkeypatch.setattr(recovery, "rows", lambda: wanted)
    monkeypatch.setattr(recovery_table, "rows", lambda: wanted)
    monkeypatch.setattr(recovery, "HERE", tmp_path)
    recovery.main(tmp_path, tmp_path / "data", runs, "toy-*")
    done = [content(tmp_path / "rows" / f"{row.name}.json") for row in wanted]
    assert [run["macs"] for run in done] == [pytest.approx(3e8, rel=0.1)] * 2
    assert done[1]["steps"] > done[0]["steps"], "pictures cost nothing to make"
    (found, oracle) = recovery_table.groups(tmp_path / "rows")
    assert len(found.accuracies) == 1
    cells = recovery_table.line(found, oracle).split(" | ")
    assert (cells[1], cells[7]) == ("none", f"{found.median / oracle.median:.2f}")
    (expected,) = recovery_table.expectations([found, oracle])
    assert (expected.images, expected.macs, expected.runs) == ("toys", done[0]["macs"], 1)
    written = (tmp_path / "rows" / f"{free.name}.json").stat().st_mtime_ns
    recovery.main(tmp_path, tmp_path / "data", runs)
    assert (tmp_path / "rows" / f"{free.name}.json").stat().st_mtime_ns == written, "left alone"


def test_the_plan_tells_what_the_rows_of_the_recovery_study_say() -> None:
    known = recovery_table.expectations(recovery_table.groups())
    assert list(expectation.measured()) == known, "run python -m docs.studies.recovery.table"


@pytest.mark.slow
def test_int8_speed_names_the_machine_and_no_path_of_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "docs.studies.int8_speed.run", str(tmp_path / "out.json"), "lenet5-half", "--toy"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rows = content(tmp_path / "out.json")["rows"]
    assert [(row["input"], row["threads"], row["toy"]) for row in rows] == [("3x32x32", 1, True), ("3x32x32", 2, True)]
    has = this_machine().int8_instructions
    for row in rows:
        assert set(row["latency_ms"]) == {"fp32", "int8-cpu-x86", "other-start"}
        integers = {label: ran for label, (ran, _) in row["integer_nodes"].items()}
        assert integers == {"fp32": 0, "int8-cpu-x86": integers["other-start"] + 1, "other-start": 4}
        assert row["int8_instructions"] == has
        assert any("no VNNI" in warning for warning in row["warnings"]) == (not has)
        assert not any("/bin/" in str(fact) for fact in row["environment"].values())
    assert ("no VNNI" in done.stderr) == (not has)


def test_the_rows_of_the_gpu_differ_in_method_and_are_equal_in_size() -> None:
    sizes = overlay.assignments(gpu.SIZES)
    for pair in gpu.PAIRS:
        rows = [method(preset, (*sizes, *gpu.MOVED, *values)) for preset, values in pair.rows.values()]
        assert len(rows) == (4 if pair.family else 2)
        assert len({provenance.method_digest(row) for row in rows}) == len(rows)
        assert {(row.generator.latent, row.generator.width, row.vae.latent, row.vae.width) for row in rows} == {
            (256, 64, 128, 64)
        }


@pytest.mark.slow
def test_the_gpu_check_goes_through_at_toy_length_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    for part in ("train", "test"):
        images(tmp_path / "cifar10" / part, 10, 32, "RGB")
    pair = "wrn-40-2-wrn-16-1"
    arguments = (tmp_path, tmp_path / "runs", tmp_path / "out", "--toy", "--only", pair)
    assert "time is up" in study("gpu.run", *arguments, "--max-seconds", 1)
    study("gpu.run", *arguments, "--max-seconds", 1500, "--jobs", 2)
    found = content(tmp_path / "out" / f"{pair}.json")
    assert (found["toy"], found["jobs"]) == (True, 2)
    assert set(found["runs"]) == {"edgekd-replay", "pre-dfkd"}
    assert all(set(row["evals"]) == {"curve", "test"} for row in found["runs"].values())
    assert set(found["selection"]) == set(found["runs"])
    assert all("ema+batchnorm" in row["candidates"] for row in found["selection"].values())
    assert [(plan["row"], plan["batch_size"]) for plan in found["plans"]] == [
        (row, batch) for row in ("edgekd-replay", "pre-dfkd") for batch in (1024, 256)
    ]
    assert all({"seconds_per_step", "utilisation", "peak_memory_bytes"} <= set(plan) for plan in found["plans"])
