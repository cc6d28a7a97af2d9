"""Recipes: precedence, every kind of mistake in one message, and TOML that says the same again."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from edgekd import recipe
from edgekd.errors import RecipeError, UsageError
from edgekd.models import registry
from edgekd.recipe import Recipe
from edgekd.recipe.method import GeneratorTable, HealthTable, Table

RECIPES = sorted(p for p in recipe.recipes_folder().glob("*.toml"))
PRESETS = sorted(recipe.presets())


def problem(data: dict[str, Any]) -> str:
    with pytest.raises(RecipeError) as caught:
        recipe.parse(data, origin="my.toml")
    return str(caught.value)


# Precedence: types < preset < recipe < changes


def test_an_empty_recipe_has_the_values_of_the_default_preset() -> None:
    empty, named = recipe.parse({}, origin="x"), recipe.parse({"method": {"preset": "edgekd"}}, origin="x")
    assert empty.method.preset == "auto"
    assert recipe.with_changes(named, {"method": {"preset": "auto"}}) == empty
    assert empty.method.source
    assert empty.student.name == "mobilenetv2"


def preset_for(asked: dict[str, Any], *, batchnorm: bool) -> recipe.Recipe:
    return recipe.with_preset_for(recipe.parse(asked, origin="x"), asked, batchnorm=batchnorm)


@pytest.mark.parametrize(("batchnorm", "name"), [(True, "edgekd"), (False, "edgekd-replay")])
def test_the_preset_of_auto_follows_from_the_teacher(batchnorm: bool, name: str) -> None:
    named = recipe.parse({"seed": 7, "method": {"preset": name, "steps": 9}}, origin="x")
    assert preset_for({"seed": 7, "method": {"steps": 9}}, batchnorm=batchnorm) == named


def test_what_was_asked_for_stays_whatever_the_preset_becomes() -> None:
    default = recipe.parse({}, origin="x").method
    asked = {"method": {"generator": {"period": default.generator.period}, "student": {"lr": 0.123}}}
    chosen = preset_for(asked, batchnorm=False).method
    other = recipe.parse({"method": {"preset": "edgekd-replay"}}, origin="x").method
    assert chosen.student.lr == 0.123
    assert chosen.generator.period == default.generator.period != other.generator.period
    assert chosen.student.schedule == other.student.schedule != default.student.schedule
    # A second command, after a first one that was stopped before it had read the teacher: recipe.toml alone knows it.
    first = recipe.parse({"method": {"student": {"lr": 0.123}}}, origin="x")
    assert recipe.with_preset_for(first, {}, batchnorm=False).method.student.lr == 0.123


def test_a_named_preset_is_never_exchanged() -> None:
    asked = {"method": {"preset": "edgekd"}}
    assert preset_for(asked, batchnorm=False) == recipe.parse(asked, origin="x")


@pytest.mark.parametrize(
    ("teacher", "student", "times"), [(41, 12, 1), (41, 41, 1), (100, 16, 2), (300, 25, 4), (9, 0, 3), (4000, 1, 4)]
)
def test_a_dear_teacher_answers_once_for_several_passes(teacher: int, student: int, times: int) -> None:
    table = recipe.parse({}, origin="x").method.student
    assert (table.reuse, table.passes) == ("auto", 1)
    assert table.reuse_for(teacher, student) == times
    fixed = recipe.parse({"method": {"student": {"reuse": 3}}}, origin="x").method.student
    assert (fixed.reuse_for(teacher, student), fixed.span) == (3, 12)


def test_types_give_way_to_the_preset_the_preset_to_the_recipe_and_the_recipe_to_changes() -> None:
    preset = recipe.parse({"method": {"preset": "dafl"}}, origin="x").method
    assert "window" not in recipe.read_toml(recipe.presets()["dafl"])["health"]
    assert preset.health.window == HealthTable().window
    assert preset.generator.latent == 100 != GeneratorTable().latent
    written = recipe.parse({"method": {"preset": "dafl", "generator": {"latent": 7}}}, origin="x")
    changed = recipe.with_changes(written, {"method": {"generator": {"latent": 9}}})
    assert written.method.generator.latent == 7
    assert changed.method.generator.latent == 9
    assert written.method.generator.lr == changed.method.generator.lr == 0.02, "the rest of the table stays"


def test_another_preset_starts_the_method_anew_and_keeps_everything_else() -> None:
    written = recipe.parse(
        {"seed": 5, "select": {"samples": 100}, "method": {"steps": 9, "generator": {"latent": 7}}}, origin="x"
    )
    other = recipe.with_changes(written, {"method": {"preset": "dfad", "student": {"batch_size": 64}}})
    assert (other.seed, other.select.samples) == (5, 100)
    assert (other.method.preset, other.method.steps, other.method.generator.latent) == ("dfad", 0, 256)
    assert other.method.student.batch_size == 64
    same = recipe.with_changes(written, {"method": {"preset": "auto"}})
    assert same == written


def test_no_changes_are_no_work() -> None:
    written = recipe.parse({"seed": 5}, origin="x")
    assert recipe.with_changes(written, {}) is written


def test_merging_replaces_values_and_merges_tables() -> None:
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 1}
    assert recipe.merge(base, {"a": {"c": [3]}, "d": {"e": 2}}) == {"a": {"b": 1, "c": [3]}, "d": {"e": 2}}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 1}, "the base is left alone"


# Mistakes


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"sede": 1}, 'unknown key sede. Did you mean "seed"?'),
        ({"zzz": 1}, "unknown key zzz."),
        ({"method": {"step": 1}}, 'unknown key method.step. Did you mean "steps"?'),
        ({"method": {"generator": {"lattent": 1}}}, 'unknown key method.generator.lattent. Did you mean "latent"?'),
        ({"export": {"calibration": 64}}, 'unknown key export.calibration. Did you mean "calibration_samples"?'),
        ({"seed": "one"}, "seed: input should be a valid integer"),
        ({"precision": "fp8"}, "precision: input should be 'auto', 'fp32' or 'bf16'"),
        ({"method": {"replay": {"source": "vea"}}}, "method.replay.source: input should be 'none', 'bank'"),
        ({"method": {"student": {"batch_size": 1}}}, "method.student.batch_size: input should be greater than"),
        ({"method": {"generator": {"betas": [0.9]}}}, "method.generator.betas"),
        ({"method": {"generator": {"adversary_ramp": [0.5, 0.2]}}}, "method: generator.adversary_ramp must be two"),
        ({"bench": {"batch": ["a"]}}, "bench.batch.0: input should be a valid integer"),
        ({"method": {"student": {"lr": float("inf")}}}, "method.student.lr: input should be a finite number"),
        ({"method": {"student": {"shift": -1}}}, "method.student.shift: input should be greater than or equal to 0 or"),
        ({"method": {"generator": {"betas": [1, "x"]}}}, "method.generator.betas.1: input should be a valid number"),
        ({"pixels": {"mean": [float("nan")]}}, "pixels.mean.0: input should be a finite number"),
        ({"bench": {"batch": []}}, "bench.batch: tuple should have at least 1 item"),
        ({"bench": {"threads": []}}, "bench.threads: tuple should have at least 1 item"),
        ({"bench": {"threads": [0]}}, "bench.threads.0: input should be greater than or equal to 1"),
        ({"bench": {"threads": [2000000000]}}, "bench.threads.0: input should be less than or equal to 1024"),
        ({"machine": {"threads": 2000000000}}, "machine.threads: input should be less than or equal to 1024"),
        ({"select": {"samples": 2000000000}}, "select.samples: input should be less than or equal to 100000"),
        ({"method": 3}, "method: input should be a valid dictionary"),
        ({"student": "resnet8"}, "student: input should be a valid dictionary"),
        ({"method": {"preset": "pre-dkfd"}}, 'there is no method preset "pre-dkfd"'),
        ({"method": {"preset": "pre-dkfd"}}, 'Did you mean "pre-dfkd"?'),
        ({"method": {"preset": ["dafl"]}}, "there is no method preset"),
    ],
)
def test_a_mistake_is_named_with_its_key(data: dict[str, Any], message: str) -> None:
    found = problem(data)
    assert found.startswith("my.toml: ")
    assert message in found


def test_all_problems_are_told_at_once() -> None:
    found = problem({"seed": "x", "nmae": 1, "method": {"steps": -1, "vae": {"latentt": 2}}})
    for part in ("seed: ", "nmae", "method.steps: ", "method.vae.latentt"):
        assert part in found


@pytest.mark.parametrize(
    "changes", [{"sede": 1}, {"method": {"generator": {"gap": "l2"}}}, {"method": 3}, {"method": {"preset": "x"}}]
)
def test_flags_are_checked_like_the_recipe(changes: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"^flags: "):
        recipe.with_changes(recipe.parse({}, origin="x"), changes)


def test_a_recipe_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        recipe.parse({}, origin="x").method.generator.lr = 1.0  # type: ignore[misc]


# Files


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_shipped_recipe_loads_and_its_teacher_is_there_or_said_how_to_make(path: Path) -> None:
    found = recipe.load(path)
    if not (path.parent / found.teacher.file).is_file():
        assert f"train_teacher.py {path.stem}/train {found.teacher.file} --arch" in path.read_text(encoding="utf-8")
    assert recipe.load_any(path) == found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arch", "shape", "classes"),
    [
        ("mnist", "lenet5", (1, 32, 32), 10),
        ("cifar10", "resnet34", (3, 32, 32), 10),
        ("cifar10-wrn", "wrn-40-2", (3, 32, 32), 10),
        ("cifar100", "resnet34", (3, 32, 32), 100),
        ("tiny-imagenet", "resnet34", (3, 64, 64), 200),
    ],
)
def test_the_recipe_of_a_data_set_runs_at_toy_length(
    name: str, arch: str, shape: tuple[int, int, int], classes: int, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "edgekd", "recipes", "--copy", name]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    path = tmp_path / f"{name}.toml"
    teacher = tmp_path / recipe.load(path).teacher.file
    network = registry.build(arch, input_shape=shape, classes=classes, seed=1)
    if teacher.is_file():  # it came along
        network.load_state_dict(torch.load(teacher))
    else:
        torch.save(network.state_dict(), teacher)
    sizes: tuple[str, ...] = (
        "method.steps=2",
        "method.student.batch_size=8",
        "method.replay.batch_size=4",
        "method.vae.novel=4",
    )
    sizes = (*sizes, "method.vae.rehearsed=2", "select.samples=64", "select.reestimate_batches=1", "export.int8=false")
    command = [sys.executable, "-m", "edgekd", "run", path.name, *(f"--set={size}" for size in sizes)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / name / "export" / "student.fp32.onnx").is_file()


def test_the_shipped_presets_are_those_of_the_design() -> None:
    assert PRESETS == ["dafl", "dfad", "edgekd", "edgekd-replay", "memory-bank", "pre-dfkd", "pre-dfkd-released"]
    assert RECIPES


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_loads_alone_and_by_name(name: str) -> None:
    alone = recipe.load_any(recipe.presets()[name])
    by_name = recipe.parse({"method": {"preset": name}}, origin="x")
    assert alone == by_name
    assert by_name.method.preset == name
    assert by_name.method.source


@pytest.mark.parametrize("data", [{}, *({"method": {"preset": name}} for name in PRESETS)])
def test_a_resolved_recipe_says_the_same_as_toml(data: dict[str, Any], tmp_path: Path) -> None:
    data = {**data, "teacher": {"file": 'a "b" ü.pt'}, "pixels": {"mean": [0.1, 0.2], "std": [1e-7, 3.0]}}
    resolved = recipe.parse(data, origin="x")
    (tmp_path / "r.toml").write_text(recipe.to_toml(resolved), encoding="utf-8")
    assert recipe.load_resolved(tmp_path / "r.toml") == resolved
    assert recipe.load(tmp_path / "r.toml") == resolved


def test_a_resolved_recipe_holds_every_key_of_every_table() -> None:
    def keys(table: Table) -> dict[str, Any]:
        values = {name: getattr(table, name) for name in type(table).model_fields}
        return {name: keys(value) if isinstance(value, Table) else None for name, value in values.items()}

    def keys_of(data: dict[str, Any]) -> dict[str, Any]:
        return {name: keys_of(value) if isinstance(value, dict) else None for name, value in data.items()}

    resolved = recipe.parse({}, origin="x")
    assert keys_of(tomllib.loads(recipe.to_toml(resolved))) == keys(resolved)


def test_a_resolved_recipe_does_not_ask_the_preset_again(tmp_path: Path) -> None:
    """A preset may change with the next release; a run stays what it was."""
    path = tmp_path / "r.toml"
    path.write_text('[teacher]\n[student]\n[method]\npreset = "dafl"\n')
    assert recipe.load_resolved(path).method.generator == GeneratorTable()
    assert recipe.load(path).method.generator.latent == 100


@pytest.mark.parametrize("content", [None, "a = ", "[method\n", b"\xff", b"\xff\xfea"])
def test_an_unreadable_file_is_named(content: str | bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RecipeError, match=r"mine\.toml"):
        recipe.load(path)


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="not a readable TOML file"):
        recipe.load(tmp_path)


# Flags


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("seed=3", {"seed": 3}),
        ("method.student.lr=1e-3", {"method": {"student": {"lr": 1e-3}}}),
        ("student.name=mobilenetv2@0.35", {"student": {"name": "mobilenetv2@0.35"}}),
        ('student.name="resnet8"', {"student": {"name": "resnet8"}}),
        ("export.int8=true", {"export": {"int8": True}}),
        ("bench.batch=[1, 8]", {"bench": {"batch": [1, 8]}}),
        ("teacher.file=a=b.pt", {"teacher": {"file": "a=b.pt"}}),
        ("teacher.input=", {"teacher": {"input": ""}}),
    ],
)
def test_an_assignment_becomes_nested_changes(text: str, changes: dict[str, Any]) -> None:
    assert recipe.assignment(text) == changes


@pytest.mark.parametrize("text", ["seed", "", "=3"])
def test_an_assignment_needs_a_key_and_an_equals_sign(text: str) -> None:
    with pytest.raises(UsageError, match="--set takes KEY=VALUE"):
        recipe.assignment(text)


def test_differences_name_the_key_and_both_values() -> None:
    old = {"a": 1, "t": {"x": [1], "y": {"z": "q"}}, "gone": True}
    new = {"a": 1, "t": {"x": [2], "y": {"z": "r"}}, "fresh": None, "late": 0}
    assert recipe.differences(old, new) == [
        "gone: True -> None",
        "late: None -> 0",
        "t.x: [1] -> [2]",
        "t.y.z: 'q' -> 'r'",
    ]
    assert recipe.differences(old, old) == []


def test_a_recipe_differs_from_itself_in_nothing_after_a_round_trip() -> None:
    one = recipe.parse({"method": {"preset": "pre-dfkd"}}, origin="x")
    other = Recipe.model_validate(tomllib.loads(recipe.to_toml(one)))
    assert recipe.differences(one.model_dump(mode="json"), other.model_dump(mode="json")) == []


@pytest.mark.parametrize("name", ["../x", "a/b", "/etc", ".", "..", ".x", "-x", "~x", "a\\b", " x", "x\n", "x" * 256])
def test_a_name_is_never_a_path(name: str) -> None:
    with pytest.raises(RecipeError, match="name: "):
        recipe.parse({"name": name}, origin="test")


@pytest.mark.parametrize("name", ["", "x", "digits-2", "größe 3", "a.b", "x" * 255])
def test_a_name_may_be_what_a_folder_may_be_called(name: str) -> None:
    assert recipe.parse({"name": name}, origin="test").name == name


UNREASONABLE = ["[" * 5000 + "]" * 5000, "9" * 5000]


@pytest.mark.parametrize("value", UNREASONABLE, ids=["brackets", "digits"])
def test_a_value_out_of_all_reason_is_a_recipe_error(value: str, tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text(f"seed = {value}\n")
    for attempt in (lambda: recipe.load(file), lambda: recipe.assignment(f"method.steps={value}")):
        with pytest.raises(RecipeError):
            attempt()


@pytest.mark.parametrize("text", ["bench=5", "student=resnet8", "method.generator=[]"])
def test_a_table_takes_no_value(text: str) -> None:
    with pytest.raises(RecipeError, match=r"is a table; set one of its keys, such as "):
        recipe.assignment(text)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("method.student.batch_size=10000000000", "method.student.batch_size: a whole number of at most 2,147,483,647"),
        (f"seed={2**63}", "seed: a whole number of at most"),
        ("bench.batch=[1, 99999999999]", "bench.batch: a whole number of at most"),
        ('teacher.file="a\\u0000b"', "teacher.file: it holds a NUL character"),
        ('images.folder="\\u0000"', "images.folder: it holds a NUL character"),
    ],
)
def test_a_value_that_nothing_can_have_is_named_with_its_key(text: str, key: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(key)):
        recipe.with_changes(recipe.parse({}, origin="x"), recipe.assignment(text))


def test_a_seed_may_have_as_many_digits_as_torch_takes() -> None:
    assert recipe.parse({"seed": 2**63 - 1}, origin="x").seed == 2**63 - 1


def test_a_key_of_a_hundred_thousand_parts_is_none() -> None:
    with pytest.raises(RecipeError, match="no key of a recipe has so many parts"):
        recipe.assignment(".".join(["a"] * 10**5) + "=1")


@pytest.mark.parametrize("key", [".".join("a" * 10**5), '"a".' * 10**5 + "b", "[" + ".".join("a" * 10**5) + "]\nb"])
def test_a_file_with_a_key_of_a_hundred_thousand_parts_is_refused_at_once(key: str, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(f"seed = 1\n{key} = 1\n")
    with pytest.raises(RecipeError, match="line 2 has more than 256 dots; no key of a recipe has so many parts"):
        recipe.load(tmp_path / "x.toml")


def test_a_device_is_no_recipe() -> None:
    with pytest.raises(RecipeError, match="not a regular file"):
        recipe.load(Path("/dev/zero"))


def test_an_emptied_recipe_of_a_run_is_not_taken_for_the_defaults(tmp_path: Path) -> None:
    for left in ("", "[teacher]\n[method]\n", "[student]\n"):
        (tmp_path / "recipe.toml").write_text(left)
        with pytest.raises(RecipeError, match=r"recipe\.toml is empty or damaged.*the commands again that run\.json"):
            recipe.load_resolved(tmp_path / "recipe.toml")
