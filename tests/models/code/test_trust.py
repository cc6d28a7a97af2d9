"""Nothing in a recipe or a run runs unasked: a factory that writes a file when it is imported proves it."""

from __future__ import annotations

import functools
import hashlib
import os
import pty
import re
import shutil
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Result

import toy
from edgekd import recipe
from edgekd.cli import program
from edgekd.errors import Interrupted, UsageError
from edgekd.models import registry
from edgekd.models.code import trust
from edgekd.run.directory import RunDir

CODE = """
from pathlib import Path

from edgekd.models import registry

(Path(__file__).parent / "ran").touch()


def teacher(input_shape, classes):
    return registry.build("resnet8@0.5", input_shape=input_shape, classes=classes, seed=0)


def student(input_shape, classes):
    return registry.build("resnet8@0.25", input_shape=input_shape, classes=classes, seed=0)
"""


class Ran:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self._path,)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The memory of a user who never approved of anything."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state/edgekd/trusted-code"


@pytest.fixture
def here(tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a module of the user's own, which is forgotten afterwards."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here/own_nets.py").write_text(CODE)
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "here"
    forget()


def forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "own_nets"]:
        del sys.modules[name]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def hashes(message: str) -> list[str]:
    return re.findall(r"--trust-code ([0-9a-f]{64})", message)


def refused(arch: str = "own_nets:teacher") -> str:
    """Return the message of a refusal to build code, having made sure that it did not run."""
    with pytest.raises(UsageError) as caught, trust.session():
        registry.build(arch, input_shape=(1, 8, 8), classes=4, seed=0)
    assert not Path("ran").exists()
    return str(caught.value)


def approve(arch: str = "own_nets:teacher") -> None:
    with trust.session():
        trust.approve_code([arch])
        trust.require_approval([trust.factory(arch)])


# The chain of a user, and a stranger's


@pytest.fixture(scope="module")
def own(teacher_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with code and the run made with it: distilled, exported, measured, all without a terminal."""
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        (folder / "own_nets.py").write_text(CODE)
        (folder / "runs/mine").mkdir(parents=True)
        RunDir(folder / "runs/mine").note_command(["edgekd"])
        (folder / "runs/mine/recipe.toml").write_text(recipe.to_toml(toy.toy_recipe(teacher_file)))
        flags = ("--arch", "own_nets:teacher", "--student", "own_nets:student")
        for command in (
            ("distill", teacher_file, "--run", "mine", *flags),
            ("export", "mine"),
            ("bench", "mine", "--runtime", "ort-cpu,torch"),
            ("select", "mine"),
        ):
            result = Result(*command)
            assert result.exit_code == 0, result.stderr
        (folder / "ran").unlink()
        shutil.rmtree(folder / "state", ignore_errors=True)
    yield folder
    forget()


@pytest.fixture
def strangers(own: Path, tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folder, come to a user who never saw it."""
    forget()
    folder = tmp_path / "strangers"
    shutil.copytree(own, folder)
    monkeypatch.chdir(folder)
    (folder / "images").mkdir()
    return folder


@pytest.mark.parametrize(
    "command",
    [
        ("select", "mine"),
        ("export", "mine", "--int8"),
        ("bench", "mine", "--runtime", "torch"),
        ("eval", "mine", "--data", "images"),
        ("distill", "TEACHER", "--run", "mine"),
        ("run", "runs/mine/recipe.toml", "--run", "other"),
        ("ingest", "TEACHER", "--run", "half"),
    ],
    ids=" ".join,
)
def test_a_strangers_run_is_refused_before_anything_runs(
    command: tuple[str, ...], strangers: Path, teacher_file: Path, state: Path
) -> None:
    Path("runs/half").mkdir()
    RunDir(Path("runs/half")).note_command(["edgekd"])
    shutil.copy("runs/mine/recipe.toml", "runs/half")
    before = contents(strangers)
    command = tuple(str(teacher_file) if part == "TEACHER" else part for part in command)
    result = Result(*command)
    assert result.exit_code == 2, result.stderr
    assert not Path("ran").exists()
    assert str(strangers / "own_nets.py") in result.stderr
    assert "own_nets" in result.stderr
    assert hashes(result.stderr)
    assert contents(strangers) == before
    assert not state.exists()


def test_one_refusal_names_all_hashes_and_they_open_the_verb_for_good(strangers: Path, state: Path) -> None:
    told = hashes(Result("export", "mine", "--int8").stderr)
    assert len(set(told)) == 2, "the teacher's factory and the student's"
    one = Result("export", "mine", "--int8", "--trust-code", told[0])
    assert (one.exit_code, hashes(one.stderr)) == (2, told[1:]), "what was approved of is not asked for again"
    assert Result("export", "mine", "--int8", "--trust-code", told[1]).exit_code == 0
    assert Result("select", "mine").exit_code == 0
    assert {file.name for file in state.iterdir()} == set(told)
    assert stat.S_IMODE(state.stat().st_mode) == stat.S_IMODE(state.parent.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in state.iterdir()} == {0o600}


def test_what_needs_no_code_is_not_asked_about(strangers: Path) -> None:
    measured = Result("bench", "mine", "--runtime", "ort-cpu", "--batch", "2")
    assert measured.exit_code == 0, measured.stderr
    for verb in ("status", "report"):
        assert Result(verb, "mine").exit_code == 0
    assert not Path("ran").exists()


# A stranger's recipe


def recipe_file(teacher_file: Path, **changes: Any) -> str:
    Path("theirs.toml").write_text(recipe.to_toml(toy.toy_recipe(teacher_file, **changes)))
    return "theirs.toml"


@pytest.mark.parametrize(
    "changes",
    [
        {"teacher": {"arch": "own_nets:teacher"}},
        {"student": {"name": "own_nets:student"}},
        {"student": {"name": "  own_nets:student  "}},
    ],
    ids=str,
)
def test_a_strangers_recipe_is_refused_before_anything_is_made(
    changes: dict[str, Any], here: Path, teacher_file: Path
) -> None:
    result = Result("run", recipe_file(teacher_file, **changes))
    assert (result.exit_code, len(hashes(result.stderr))) == (2, 1), result.stderr
    assert next(iter(changes)) in result.stderr
    assert not (here / "ran").exists()
    assert not (here / "runs").exists()


def test_what_is_set_by_hand_is_approved_and_what_the_recipe_adds_is_not(here: Path, teacher_file: Path) -> None:
    theirs = recipe_file(teacher_file, teacher={"arch": "own_nets:teacher"}, student={"name": "own_nets:student"})
    result = Result("run", theirs, "--set", "student.name=own_nets:student")
    assert result.exit_code == 2
    assert "own_nets:teacher (" in result.stderr.split("nobody has approved")[1]
    assert "own_nets:student (" not in result.stderr.split("nobody has approved")[1]
    assert not (here / "ran").exists()


@pytest.mark.parametrize("flags", ["--trust-pickle", "--set=teacher.trust_pickle=true", "--trust-code"])
def test_a_strangers_pickle_runs_when_the_user_says_so(here: Path, teacher_file: Path, flags: str) -> None:
    torch.save({"state_dict": torch.load(teacher_file), "more": Ran(here / "ran")}, "theirs.pt")
    run = here / "runs/theirs"
    run.mkdir(parents=True)
    RunDir(run).note_command(["edgekd"])
    shutil.copy(recipe_file(Path("theirs.pt"), teacher={"trust_pickle": True}), run / "recipe.toml")
    verb = ("distill", "theirs.pt", "--dry-run") if "--set" in flags else ("ingest", "theirs.pt")
    first = Result(*verb, "--run", "theirs")
    assert (first.exit_code, "pickle theirs.pt (it names builtins.getattr" in first.stderr) == (2, True), first.stderr
    assert not (here / "ran").exists()
    assert hashes(first.stderr) == [hashlib.sha256(Path("theirs.pt").read_bytes()).hexdigest()]
    done = Result(*verb, "--run", "theirs", flags, *(hashes(first.stderr) if flags == "--trust-code" else ()))
    assert done.exit_code == 0, done.stderr
    assert (here / "ran").exists()
    shutil.rmtree(run)
    assert Result("run", "theirs.toml", "--max-seconds=0").exit_code == 8, "and the same file is not asked for again"


# What counts as the same code


def test_changed_code_and_another_factory_ask_again(here: Path) -> None:
    approve()
    assert (here / "ran").exists() is False, "approving runs nothing"
    assert refused("own_nets:student")
    registry.build("own_nets:teacher", input_shape=(1, 8, 8), classes=4, seed=0)
    (here / "ran").unlink()
    with Path("own_nets.py").open("a") as stream:
        stream.write("# changed\n")
    refused()


@pytest.mark.parametrize(
    ("files", "arch", "changed"),
    [
        ({"own_nets.py": f"import helper\n{CODE}", "helper.py": "A = 1\n"}, "own_nets:teacher", "helper.py"),
        ({"own_nets.py": "def f():\n  from deep.er import x\n", "deep/er.py": "x = 1\n"}, "own_nets:f", "deep/er.py"),
        ({"own_nets/__init__.py": CODE, "own_nets/a/b.py": ""}, "own_nets.a.b:f", "own_nets/__init__.py"),
        ({"own_nets/__init__.py": "", "own_nets/more.py": ""}, "own_nets:f", "own_nets/more.py"),
        ({"own_nets/m.py": "from . import more\n", "own_nets/more.py": ""}, "own_nets.m:f", "own_nets/more.py"),
        ({"own_nets/m.py": "from own_nets import more\n", "own_nets/more.py": ""}, "own_nets.m:f", "own_nets/more.py"),
        ({"own_nets.py": "import a\n", "a.py": "import b\n", "b/__init__.py": ""}, "own_nets:f", "b/__init__.py"),
        ({"own_nets.py": "from importlib import import_module as f\nx.import_module('late')\n", "late.py": ""},
         "own_nets:f", "late.py"),
        ({"own_nets.py": "import importlib\nimportlib.import_module(name='late')\n", "late.py": ""},
         "own_nets:f", "late.py"),
        ({"own_nets.py": "from importlib import import_module as im\nim('late')\n", "late.py": ""},
         "own_nets:f", "late.py"),
        ({"own_nets/m.py": "x.import_module('.late', __package__)\n", "own_nets/late.py": ""},
         "own_nets.m:f", "own_nets/late.py"),
        ({"own_nets/a/m.py": "from ..two import *\n", "own_nets/two.py": ""}, "own_nets.a.m:f", "own_nets/two.py"),
        ({"own_nets.py": "def f(: no Python\n"}, "own_nets:f", "own_nets.py"),
    ],
    ids=str,
)  # fmt: skip
def test_all_that_would_run_is_in_the_hash(files: dict[str, str], arch: str, changed: str, here: Path) -> None:
    Path("own_nets.py").unlink()
    for name, text in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    before = trust.factory(arch).sha256
    assert trust.factory(arch).sha256 == before
    Path("unrelated.py").write_text("import sys\n")
    assert trust.factory(arch).sha256 == before
    Path(changed).write_text("# other\n" + files[changed])
    assert trust.factory(arch).sha256 != before
    assert not list(here.rglob("ran"))
    assert "own_nets" not in sys.modules


def test_equal_code_has_equal_hashes_wherever_it_lies(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = trust.factory("own_nets:teacher").sha256
    (tmp_path / "there").mkdir()
    shutil.copy("own_nets.py", tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    assert trust.factory("own_nets:teacher").sha256 == before


@pytest.mark.parametrize("arch", ["nowhere:f", "builtins:exec", ":f", ".own_nets:f"])
def test_what_has_no_file_does_not_run(arch: str, here: Path) -> None:
    with pytest.raises(UsageError):
        trust.factory(arch)


def test_a_pickle_is_known_by_its_file_and_by_the_code_beside_it(here: Path) -> None:
    Path("plain.pkl").write_bytes(b"\x80\x02cos\nsystem\n.")
    Path("mine.pkl").write_bytes(b"\x80\x02cown_nets\nNet\n.")
    plain, mine = trust.pickle(Path("plain.pkl")), trust.pickle(Path("mine.pkl"))
    assert plain.sha256 == hashlib.sha256(Path("plain.pkl").read_bytes()).hexdigest()
    Path("own_nets.py").write_text("# other code\n")
    assert trust.pickle(Path("plain.pkl")) == plain
    assert trust.pickle(Path("mine.pkl")).sha256 != mine.sha256


def test_compiled_copies_beside_the_sources_do_not_run(here: Path) -> None:
    import py_compile

    cached = py_compile.compile("own_nets.py", invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    Path("evil.py").write_text("def teacher(): raise ZeroDivisionError\n")
    assert cached is not None
    py_compile.compile("evil.py", cached, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    approve()
    assert registry.build("own_nets:teacher", input_shape=(1, 8, 8), classes=4, seed=0)


# What is not in the hash does not run

EVIL = "from pathlib import Path\nPath('ran').touch()\n"
"""Of a stranger; says that it ran in the working directory."""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages: a library that imports two others, the second if it is there."""
    site = tmp_path / "site-packages"
    (site / "library").mkdir(parents=True)
    (site / "library/__init__.py").write_text("import its_hub\ntry:\n  import its_extra\nexcept ImportError: pass\n")
    (site / "its_hub.py").write_text("genuine = True\n")
    monkeypatch.syspath_prepend(site)
    yield site
    for name in ("library", "its_hub", "its_extra"):
        sys.modules.pop(name, None)


def build(arch: str = "own_nets:teacher") -> torch.nn.Module:
    return registry.build(arch, input_shape=(1, 8, 8), classes=4, seed=0)


@pytest.mark.parametrize("way", ["import library", "import sys; sys.path.insert(0, '.'); import library"])
@pytest.mark.parametrize("shadows", ["its_hub.py", "its_extra.py", "its_hub/__init__.py", "its_extra/__init__.py"])
def test_nothing_beside_approved_code_shadows_what_a_library_imports(
    way: str, shadows: str, here: Path, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("own_nets.py").write_text(f"{way}\n{CODE.replace('ran', 'ran_own')}")
    Path(shadows).parent.mkdir(exist_ok=True)
    Path(shadows).write_text(EVIL)
    monkeypatch.setattr(sys, "path", list(sys.path))
    approve()
    assert build()
    assert (here / "ran_own").exists()
    assert not (here / "ran").exists()
    assert sys.modules["its_hub"].genuine


def test_nothing_beside_approved_code_is_a_plug_in_of_a_library(here: Path, installed: Path) -> None:
    (installed / "library/__init__.py").write_text(
        "from importlib.metadata import entry_points\n"
        "found = [one.name for one in entry_points(group='its_plug_ins')]\n"
    )
    Path("evil-1.dist-info").mkdir()
    Path("evil-1.dist-info/METADATA").write_text("Name: evil\nVersion: 1\n")
    Path("evil-1.dist-info/entry_points.txt").write_text("[its_plug_ins]\nevil = evil\n")
    Path("own_nets.py").write_text(f"import library\n{CODE}")
    approve()
    assert build()
    assert sys.modules["library"].found == []


def test_nothing_beside_a_trusted_pickle_shadows_what_a_library_imports(here: Path, installed: Path) -> None:
    from edgekd.errors import InputFileError
    from edgekd.ingestion import foreign

    (installed / "library/__init__.py").write_text("import its_hub\nNet = dict\n")
    Path("its_hub.py").write_text(EVIL)
    Path("theirs.pt").write_bytes(b"\x80\x02clibrary\nNet\n.")
    with trust.session():
        trust.approve_code(pickles=True)
        with pytest.raises(InputFileError):  # it is no checkpoint, but what it names was imported
            foreign.read_checkpoint(Path("theirs.pt"), trust_pickle=True)
    assert sys.modules["its_hub"].genuine
    assert not (here / "ran").exists()


@pytest.mark.parametrize(
    ("own", "late", "arch"),
    [
        ("own_nets.py", "late.py", "own_nets:teacher"),
        ("own_nets.py", "late/__init__.py", "own_nets:teacher"),
        ("own_nets/__init__.py", "own_nets/__pycache__/late.py", "own_nets:teacher"),
        ("own_nets/own.py", "own_nets/late.py", "own_nets.own:teacher"),
    ],
)
def test_a_file_that_the_search_misses_does_not_run_and_is_named(own: str, late: str, arch: str, here: Path) -> None:
    Path("own_nets.py").unlink()
    for name in (own, late):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
    module = late.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    Path(own).write_text(f"__import__('importlib').import_module({module[:2]!r} + {module[2:]!r})\n{CODE}")
    Path(late).write_text(EVIL)
    approve(arch)
    with pytest.raises(UsageError, match="is not part of the approved code") as caught:
        build(arch)
    assert str(here / Path(late).parent) in str(caught.value)
    assert not (here / "ran").exists()


@pytest.mark.parametrize("way", ["import own_nets.__pycache__.evil", "from .__pycache__ import evil", "AS THE FACTORY"])
def test_the_folder_of_compiled_copies_holds_no_code(way: str, here: Path) -> None:
    Path("own_nets.py").unlink()
    Path("own_nets/__pycache__").mkdir(parents=True)
    named = way == "AS THE FACTORY"
    Path("own_nets/__init__.py").write_text("" if named else f"{way}\n{CODE}")
    Path("own_nets/__pycache__/evil.py").write_text(EVIL + CODE)
    arch = "own_nets.__pycache__.evil:teacher" if named else "own_nets:teacher"
    approve(arch)
    with pytest.raises(UsageError, match=f"{here}/own_nets/__pycache__ is not part of the approved code"):
        build(arch)
    assert not (here / "ran").exists()


def test_what_a_network_imports_later_is_held_to_the_same(here: Path) -> None:
    import py_compile

    Path("own_nets.py").unlink()
    Path("own_nets/__pycache__").mkdir(parents=True)
    Path("own_nets/__pycache__/evil.py").write_text(EVIL)
    Path("own_nets/late.py").write_text("answer = 42\n")
    cached = py_compile.compile("own_nets/late.py")
    assert cached is not None
    py_compile.compile(
        "own_nets/__pycache__/evil.py", cached, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )
    Path("own_nets/__init__.py").write_text(
        "import torch\nclass Net(torch.nn.Module):\n  def __init__(self): super().__init__()\n"
        "  def forward(self, name):\n    import importlib\n    return importlib.import_module(name)\n"
    )
    approve("own_nets:Net")
    net = build("own_nets:Net")
    assert net("own_nets.late").answer == 42, "the source, not a compiled copy that is something else"
    with pytest.raises(ModuleNotFoundError):
        net("own_nets.__pycache__.evil")
    assert not (here / "ran").exists()


@pytest.mark.parametrize("compiled", ["own_nets", "own_nets/__init__", "helper", "own_nets/more"])
def test_a_module_without_its_source_is_refused(compiled: str, here: Path) -> None:
    import py_compile

    Path("evil.py").write_text(EVIL + CODE)
    if "/" in compiled:
        Path("own_nets.py").unlink()
        Path("own_nets").mkdir()
        Path("own_nets/__init__.py").write_text(CODE)
    else:
        Path("own_nets.py").write_text(f"import helper\n{CODE}")
    Path(f"{compiled}.py").unlink(missing_ok=True)
    py_compile.compile("evil.py", f"{compiled}.pyc")
    message = refused()
    assert f"{here / compiled}.pyc is a compiled module without its source" in message
    with pytest.raises(UsageError):
        approve()


def test_a_pickle_that_names_a_module_without_its_source_is_refused(here: Path) -> None:
    import py_compile

    py_compile.compile("own_nets.py", "own_nets.pyc")
    Path("own_nets.py").unlink()
    Path("mine.pkl").write_bytes(b"\x80\x02cown_nets\nNet\n.")
    with pytest.raises(UsageError, match="without its source"):
        trust.pickle(Path("mine.pkl"))


# Where approvals are kept


def test_a_run_cannot_bring_its_own_approval(here: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    approve()
    shutil.copytree(state.parents[1], "theirs")
    shutil.rmtree(state)
    monkeypatch.setenv("XDG_STATE_HOME", "theirs")  # relative, which the specification says to ignore
    monkeypatch.setenv("HOME", str(here / "home"))
    refused()
    monkeypatch.setenv("HOME", ".")
    monkeypatch.delenv("XDG_STATE_HOME")
    shutil.copytree("theirs", ".local/state")
    refused()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_an_approval_of_somebody_else_is_none(here: Path, state: Path) -> None:
    approve()
    (file,) = state.iterdir()
    os.chown(file, 12345, 12345)
    refused()
    file.unlink()
    file.symlink_to("/etc/passwd")
    refused()


@pytest.mark.parametrize("home", ["/proc/nothing/here", "FILE"])
def test_where_nothing_can_be_kept_a_warning_is_all(
    home: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(here / "file") if home == "FILE" else home)
    approve()
    assert "cannot be kept" in capsys.readouterr().err
    refused()


@pytest.mark.parametrize("text", ["", "abc", "z" * 64, "../" * 20])
def test_a_hash_that_is_none_is_wrong_usage(text: str, here: Path) -> None:
    result = Result("select", "--trust-code", text)
    assert (result.exit_code, "64 hex digits" in result.stderr) == (2, True)


# On a terminal


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], int]]:
    """A terminal as stdin; what is typed on it."""
    near, far = pty.openpty()
    with os.fdopen(far) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield functools.partial(os.write, near)
    os.close(near)


def ingest(teacher: Path) -> None:
    """Give a command that finds code in a run's recipe, without the runner that takes stdin away."""
    Path("runs/theirs").mkdir(parents=True)
    RunDir(Path("runs/theirs")).note_command(["edgekd"])
    wanted = toy.toy_recipe(teacher, teacher={"arch": "own_nets:teacher"})
    Path("runs/theirs/recipe.toml").write_text(recipe.to_toml(wanted))
    program.app(["ingest", str(teacher), "--run", "theirs"], standalone_mode=False)


def test_a_yes_on_a_terminal_is_remembered(here: Path, teacher_file: Path, state: Path, terminal: Any) -> None:
    terminal(b"yes\n")
    ingest(teacher_file)
    assert (here / "ran").exists()
    assert len(list(state.iterdir())) == 1


def test_a_no_on_a_terminal_runs_nothing(here: Path, teacher_file: Path, state: Path, terminal: Any) -> None:
    terminal(b"\n")
    with pytest.raises(UsageError, match="nothing was run"):
        ingest(teacher_file)
    assert not (here / "ran").exists()
    assert not state.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_question_hears_the_first_signal(
    number: signal.Signals, here: Path, teacher_file: Path, terminal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgekd import console

    confirm = console.confirm

    def asked(question: str) -> bool:
        threading.Timer(0.2, os.kill, (os.getpid(), number)).start()
        return confirm(question)

    monkeypatch.setattr(console, "confirm", asked)
    rescue = threading.Timer(5, terminal, (b"y\n",))  # else code that hears nothing would wait for ever
    rescue.start()
    try:
        with pytest.raises(Interrupted) as caught:
            ingest(teacher_file)
    finally:
        rescue.cancel()
        rescue.join()
    assert caught.value.exit_code == 128 + number
    assert not (here / "ran").exists()
