"""What only looks at files, and what is refused, answers without torch, torchvision and ONNX Runtime: in a moment."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import toy
from edgekd.cli.program import VERBS

Case = tuple[str, int, str]
"""What is typed, its exit code, and a word of what it says."""
NO_ARCHITECTURE, NO_IMAGES = "There is no architecture", "is not a folder of images"
NO_RUN, NO_SUCH_FILE, NO_CHECKPOINT = "there is no run", "does not exist", "is no checkpoint: it is a text file"
CHEAP: list[Case] = [
    ("--help", 0, "Usage"),
    ("--version", 0, "edgekd"),
    *((f"{verb.name} --help", 0, "Examples") for verb in VERBS),
    *((f"{verb.name} --nosuch", 2, "No such option") for verb in VERBS),
    ("statsu", 2, "No such command"),
    ("status", 0, "3 of 5 stages done"),
    ("status toy --json", 0, '"stages"'),
    ("recipes", 0, "quickstart"),
    ("recipes --check nosuch.toml", 3, "there is no recipe"),
    ("recipes --copy nosuch", 2, "there is no recipe"),
    *((f"{verb} nosuch", 2, NO_RUN) for verb in ("select", "export", "bench", "bundle", "eval", "status", "report")),
    ("prune nosuch", 2, NO_RUN),
    ("ingest --run nosuch", 2, NO_RUN),
    ("export nosuch --student-weights w.pt --arch lenet5 --out out", 2, NO_RUN),
    ("bench nosuch --import results.json", 2, NO_RUN),
    ("ingest missing.pt", 4, NO_SUCH_FILE),
    ("run missing.toml", 3, "there is no recipe"),
    ("run lost.toml", 4, NO_SUCH_FILE),
    ("bench missing.onnx", 4, "is not a file"),
    ("bench toy --import missing.json", 4, "cannot be read"),
    ("eval toy", 2, "eval needs --data DIR"),
    ("ingest notes.pt", 4, NO_CHECKPOINT),
    ("run notes.toml", 4, NO_CHECKPOINT),
    ("run unknown.toml", 2, "Did you mean"),
    ("run unknown.toml --set student.name=nosuch", 2, NO_ARCHITECTURE),
    ("run weights.toml", 4, NO_SUCH_FILE),
    ("run images.toml", 4, NO_IMAGES),
    ("run images.toml --data missing", 4, NO_IMAGES),
    ("run calibration.toml", 4, NO_IMAGES),
    ("ingest teacher.pt --arch nosuch --run new", 2, NO_ARCHITECTURE),
    ("ingest teacher.pt --classes missing.txt --run new", 4, "cannot be read"),
    ("distill teacher.pt --arch nosuch --run new", 2, NO_ARCHITECTURE),
    ("distill timm:vit_tiny", 2, "edgekd downloads nothing"),
    ("ingest torchvision:resnet19 --weights teacher.pt", 2, "Did you mean"),
    ("ingest teacher.pt --arch net.py --run new", 2, "name the class"),
    ("distill teacher.pt --steps 40 --minutes 1 --run new", 2, "give one of them"),
    ("distill teacher.pt --data missing --run new", 4, NO_IMAGES),
    ("distill teacher.pt --student-weights missing.pt --run new", 4, NO_SUCH_FILE),
    ("distill teacher.pt --student-weights notes.pt --run new", 4, NO_CHECKPOINT),
    ("eval toy --data missing", 4, NO_IMAGES),
    ("export toy --student-weights w.pt --arch nosuch --out out", 2, NO_ARCHITECTURE),
    ("export toy --student-weights missing.pt --arch lenet5 --out out", 4, NO_SUCH_FILE),
    ("export toy --student-weights notes.pt --arch lenet5 --out out", 4, NO_CHECKPOINT),
    ("export toy --int8 --calib-data missing", 4, NO_IMAGES),
    ("export toy --int8 --images missing", 4, NO_IMAGES),
    ("ingest", 2, "ingest takes a TEACHER"),
    ("bench --runtime ort-gpu", 2, "there is no runtime"),
]
CHEAP_WITH_STUDENTS: list[Case] = [
    ("distill missing.pt", 4, NO_SUCH_FILE),
    ("distill notes.pt", 4, NO_CHECKPOINT),
    ("distill notes.pt --student mobilnetv2", 2, "Did you mean"),
    ("students mobilnetv2", 2, "Did you mean"),
    ("students --input 3", 2, "3x32x32"),
]
RECIPES = {
    "unknown": 'student.name = "mobilnetv2"',
    "weights": 'student.weights = "missing.pt"',
    "images": 'eval.data = "missing"',
    "calibration": 'export = { int8 = true, images = "missing" }',
}
"""Recipes of a teacher that is there, with one line that leads nowhere."""
PROGRAM = """if True:
    import contextlib, io, json, sys
    from edgekd.cli import program
    seen = []
    for command in json.loads(sys.argv[1]):
        output, code = io.StringIO(), 0
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            sys.argv = ["edgekd", *command.split()]
            try:
                program.main()
            except SystemExit as end:
                code = end.code or 0
        heavy = sorted({"torch", "torchvision", "onnxruntime", "matplotlib"} & sys.modules.keys())
        seen.append((command, code, output.getvalue(), heavy))
    sys.stdout.write(json.dumps(seen))
"""


def seen(cases: list[Case], place: Path) -> list[tuple[str, int, bool, list[str]]]:
    """Run commands in one child; return of each its exit code, whether it said its word, and what is imported then."""
    (place / "notes.pt").write_text("not weights")
    (place / "notes.toml").write_text('teacher.file = "notes.pt"')
    for name, line in RECIPES.items():
        (place / f"{name}.toml").write_text(f'teacher.file = "teacher.pt"\n{line}')
    (place / "lost.toml").write_text('teacher.file = "missing.pt"')
    argv = [sys.executable, "-c", PROGRAM, json.dumps([command for command, _, _ in cases])]
    ran = subprocess.run(argv, cwd=place, capture_output=True, text=True, check=True)
    told = zip(cases, json.loads(ran.stdout), strict=True)
    return [(command, code, word in output, heavy) for (_, _, word), (command, code, output, heavy) in told]


def test_what_is_cheap_imports_nothing_heavy(teacher_file: Path, tmp_path: Path) -> None:
    shutil.copy(teacher_file, tmp_path / "teacher.pt")
    toy.advance(tmp_path / "runs" / "toy", toy.toy_recipe(teacher_file), ("ingest", "distill", "select"))
    assert seen(CHEAP, tmp_path) == [(command, code, True, []) for command, code, _ in CHEAP]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["toy"], "what is refused leaves no run"


def test_names_of_students_are_read_without_anything_heavy(tmp_path: Path) -> None:
    found = seen(CHEAP_WITH_STUDENTS, tmp_path)
    assert found == [(command, code, True, []) for command, code, _ in CHEAP_WITH_STUDENTS]
