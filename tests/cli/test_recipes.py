"""What `edgekd recipes` lists, copies and checks."""

from __future__ import annotations

from pathlib import Path

from command import Result


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
