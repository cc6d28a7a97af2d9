"""Choosing a student on the command line: the list, its latencies, and `--student auto`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from command import Result

import toy
from docs import students as students_page
from edgekd import recipe
from edgekd.agent.measurement import BenchSettings
from edgekd.bench import sized_students
from edgekd.models import registry
from edgekd.recipe import Recipe
from edgekd.run.directory import RunDir

SMALL = (
    *("--threads", "1", "--steps", "2", "--input", "1x8x8"),
    *("--set=method.student.batch_size=8", "--set=method.vae.novel=4", "--set=select.samples=64"),
)
"""A distillation of a second. Of the zoo only lenet5-half has fewer MACs than the toy teacher on 8x8 pixels."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    short = BenchSettings(rounds=2, min_runs=20, min_seconds=0.1, warm_up_seconds=0.5)
    monkeypatch.setattr(sized_students, "SETTINGS", short)


def kept(run: str) -> Recipe:
    return recipe.load_resolved(Path("runs") / run / "recipe.toml")


def no_timing(*_: object, **__: object) -> None:
    raise AssertionError("timed again")


# The list


def test_the_zoo_is_listed_with_what_each_costs() -> None:
    found = Result("students", "--input", "1x16x16", "--classes", "7", "--json").json()
    assert (found["input"], found["classes"]) == ("1x16x16", 7)
    assert [row["student"] for row in found["students"]] == registry.student_names()
    for row in found["students"]:
        assert row["reason"] is None
        assert row["macs"] > row["parameters"] > 0
        assert row["fp32_bytes"] > 4 * 0.9 * row["parameters"] > row["int8_bytes"] > 0.9 * row["parameters"]
        assert (row["latency_ms"], row["fits"]) == (None, None)


def test_named_students_are_measured_and_marked() -> None:
    arguments = ("students", "lenet5-half", "alexnet", "--input", "1x16x16", "--classes", "4", "--budget-ms")
    found = Result(*arguments, "0.001", "--json").json()
    measured, none = found["students"]
    assert (found["threads"], found["budget_ms"]) == (1, 0.001)
    assert measured["latency_ms"] > 0.001
    assert (measured["fits"], none["latency_ms"], none["fits"]) == (False, None, None)
    assert "alexnet does not take 1x16x16 images" in none["reason"]
    shown = Result(*arguments, "1000")
    assert shown.exit_code == 0
    title, header, *rows = shown.stdout.splitlines()
    assert "FP32, untrained, batch 1, threads 1 (INT8 is not timed here)" in title
    assert " ".join(header.split()) == "student parameters MACs FP32 kB INT8 kB p50 ms fits 1000 ms"
    assert [row.split()[-1] for row in rows] == ["yes", "–"]
    assert "1 of 1 students for 1x16x16 fit 1000 ms" in shown.stderr
    assert "alexnet does not take" in shown.stderr


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("mobilnetv2",), 'Did you mean "mobilenetv2"'),
        (("--input", "32"), "3x32x32"),
        (("--threads", "0"), "threads"),
        (("--budget-ms", "0"), "budget"),
        (("alexnet", "--input", "1x8x8"), "none of these students"),
        (("--on", "nowhere"), "--measure or --budget-ms"),
    ],
)
def test_wrong_usage_is_told(arguments: tuple[str, ...], word: str) -> None:
    result = Result("students", *arguments)
    assert result.exit_code == 2
    assert word in result.stderr


# --student auto


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (("--student", "auto"), "--budget-ms MS"),
        (("--budget-ms", "5"), "--student auto"),
        (("--student", "mobilenetv2", "--budget-ms", "5"), "--student auto"),
        (("--student", "auto", "--run", "mine"), "--budget-ms MS"),
    ],
)
def test_auto_and_its_budget_belong_together(flags: tuple[str, ...], word: str, here: Path, teacher_file: Path) -> None:
    result = Result("distill", teacher_file, *flags)
    assert result.exit_code == 2
    assert word in result.stderr
    assert not (here / "runs").exists()


def test_a_student_is_chosen_by_latency_once(here: Path, teacher_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ("distill", teacher_file, *SMALL, "--student", "auto", "--budget-ms", "5000")
    first = Result(*asked)
    assert first.exit_code == 0, first.stderr
    assert "auto     lenet5-half takes" in first.stderr
    answer = kept("teacher-auto-5000ms").student
    assert (answer.name, answer.auto_budget_ms) == ("lenet5-half", 5000.0)
    monkeypatch.setattr(sized_students, "time_each", no_timing)
    again = Result(*asked)
    assert again.exit_code == 0
    assert again.stderr.count("already done") == 3
    assert kept("teacher-auto-5000ms").student == answer
    smaller = Result(
        "distill", teacher_file, *SMALL, "--student", "auto", "--budget-ms", "4", "--run", "teacher-auto-5000ms"
    )
    assert smaller.exit_code == 3, "another budget may have another answer"
    assert "student.name: 'lenet5-half' -> 'auto'" in smaller.stderr
    named = Result("distill", teacher_file, *SMALL, "--student", "lenet5-half", "--run", "teacher-auto-5000ms")
    assert named.exit_code == 0
    assert kept("teacher-auto-5000ms").student.auto_budget_ms == 0.0, "the choice is the user's now"


@pytest.mark.slow
def test_a_budget_that_nothing_keeps_exits_6_and_may_be_raised(here: Path, teacher_file: Path) -> None:
    asked = ("distill", teacher_file, *SMALL, "--student", "auto", "--run", "mine")
    result = Result(*asked, "--budget-ms", "0.001")
    assert result.exit_code == 6
    assert "the fastest, lenet5-half, takes" in result.stderr
    assert not RunDir(here / "runs/mine").stage("distill").exists()
    assert (kept("mine").student.name, kept("mine").student.auto_budget_ms) == ("auto", 0.001)
    assert Result("status", "mine").exit_code == 0
    assert Result(*asked, "--budget-ms", "5000", "--dry-run").exit_code == 0
    assert kept("mine").student.name == "lenet5-half"


@pytest.mark.slow
def test_a_recipe_may_ask_for_auto(here: Path, teacher_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = toy.toy_recipe(teacher_file, student={"name": "auto", "auto_budget_ms": 5000.0}, method={"steps": 2})
    (here / "wish.toml").write_text(recipe.to_toml(wanted))
    assert Result("run", "wish.toml").exit_code == 0
    assert kept("wish").student.name == "lenet5-half"
    monkeypatch.setattr(sized_students, "time_each", no_timing)
    again = Result("run", "wish.toml")
    assert again.exit_code == 0
    assert again.stderr.count("already done") == 5


@pytest.mark.parametrize(
    ("table", "word"),
    [
        ('name = "auto"', "needs auto_budget_ms"),
        ('name = "auto"\nauto_budget_ms = 5.0\nweights = "x.pth"', "weights belong to one architecture"),
        ("auto_budget_ms = -1.0", "student.auto_budget_ms"),
    ],
)
def test_a_recipe_with_half_a_request_is_refused(table: str, word: str, here: Path) -> None:
    (here / "half.toml").write_text(f"[student]\n{table}\n")
    result = Result("recipes", "--check", "half.toml")
    assert result.exit_code == 3
    assert word in result.stderr


# --student-weights


@pytest.mark.slow
def test_a_student_starts_from_weights_on_the_command_line_and_in_a_recipe(here: Path, teacher_file: Path) -> None:
    network = registry.build(toy.STUDENT, input_shape=toy.SHAPE, classes=9, seed=7)
    (here / "recipes").mkdir()
    torch.save(network.state_dict(), here / "recipes" / "start.pth")
    flags = ("--student", toy.STUDENT, "--student-weights", "recipes/start.pth")
    result = Result("distill", teacher_file, *SMALL, *flags)
    assert result.exit_code == 0, result.stderr
    assert "init     left random: linear (9 classes in the file, 4 here)" in result.stderr
    assert "starting from recipes/start.pth" in result.stderr
    stages = Result("status", "--json").json()["stages"]
    assert [entry["stage"] for entry in stages] == ["ingest", "init", "distill", "select", "export", "bench"]
    wanted = toy.toy_recipe(teacher_file, student={"weights": "start.pth"}, method={"steps": 2})
    (here / "recipes" / "start.toml").write_text(recipe.to_toml(wanted))
    assert Result("run", "recipes/start.toml").exit_code == 0
    assert RunDir(here / "runs/start").stage("init").is_dir()


def test_unusable_weights_exit_4_and_a_student_that_takes_no_such_image_2(here: Path, teacher_file: Path) -> None:
    (here / "text.pth").write_text("weights")
    flags = ("distill", teacher_file, *SMALL, "--student")
    broken = Result(*flags, toy.STUDENT, "--student-weights", "text.pth")
    assert (broken.exit_code, "text.pth is no checkpoint" in broken.stderr) == (4, True)
    torch.save({"linear.weight": torch.full((4, 16), torch.nan)}, here / "sick.pth")
    sick = Result(*flags, toy.STUDENT, "--student-weights", "sick.pth")
    assert (sick.exit_code, "the student's weights sick.pth: " in " ".join(sick.stderr.split())) == (4, True)
    assert Result(*flags, toy.STUDENT, "--set", "student.weights=").exit_code == 0, "and the way back works"
    large = Result(*flags, "alexnet")
    assert (large.exit_code, "alexnet does not take 1x8x8 images" in large.stderr) == (2, True)


def test_a_student_of_other_outputs_is_refused_before_training(here: Path, teacher_file: Path) -> None:
    net = "nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 3))"
    (here / "three_outputs.py").write_text(f"from torch import nn\n\n\ndef net():\n    return {net}\n")
    result = Result("distill", teacher_file, *SMALL, "--student", "three_outputs:net")
    assert (result.exit_code, "has 3 outputs, not the 4 classes" in result.stderr) == (2, True)
    assert not (here / "runs/teacher-three_outputs-net/distill").exists()
    (row,) = Result("students", "three_outputs:net", "--input", "1x8x8", "--classes", "4", "--json").json()["students"]
    assert "has 3 outputs" in row["reason"]


# The page


def test_the_page_has_the_table_of_today() -> None:
    page = students_page.PAGE.read_text(encoding="utf-8")
    assert page == students_page.renewed(page), "renew it: python -m docs.students"


def test_the_page_names_every_value_of_every_option() -> None:
    page = students_page.PAGE.read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip(): line for line in page.splitlines() if line.startswith("| `")}
    for name in registry.student_names():
        for option, known in registry.family_of(name).options.items():
            listed = rows[f"`{option}`"].split("|")[2].replace(",", " ").split()
            assert set(known.values) <= {value.strip(";") for value in listed}, f"{name},{option}"


def test_the_output_on_the_page_is_what_was_printed() -> None:
    docs = Path(__file__).parents[2] / "docs"
    printed = set((docs / "studies" / "zoo" / "students.txt").read_text(encoding="utf-8").splitlines())
    blocks = re.findall(r"```console\n(.*?)```", (docs / "students.md").read_text(encoding="utf-8"), re.DOTALL)
    shown = [line for block in blocks for line in block.splitlines() if not line.startswith("$ ")]
    assert shown
    assert [line for line in shown if line != "…" and line not in printed] == []
