"""What people read goes to stderr, what programs read to stdout, and no text is taken for markup."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import tomli_w
from rich.console import Console

from edgekd import console
from edgekd.cli import program

Streams = pytest.CaptureFixture[str]
LONG = "student.int8-cpu-x86.onnx [bold]not markup[/] " + "word " * 60


@pytest.mark.parametrize(
    ("print_it", "start"), [(console.say, ""), (console.warn, "warning: "), (console.error, "error: ")]
)
def test_a_message_is_one_line_on_stderr_as_it_was_given(
    print_it: Callable[[str], None], start: str, capsys: Streams
) -> None:
    print_it(LONG)
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"{start}{LONG}\n"


def test_names_from_files_cannot_write_lines_or_colors(capsys: Streams) -> None:
    hostile = "no layer x\n\x1b[31merror: fine\u202e"
    for print_it in (console.say, console.warn, console.error):
        print_it(hostile)
    console.closing(hostile, hostile, hostile)
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 6)
    assert all(line.endswith(r"no layer x\n\x1b[31merror: fine\u202e") for line in err.splitlines())
    assert "\x1b" not in err


def test_opening_and_closing_lines_carry_their_word(capsys: Streams) -> None:
    console.opening([("run", "runs/[x]"), ("teacher", "t.pt")])
    console.closing("runs/x", "91 %", "edgekd export")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "run      runs/[x]",
        "teacher  t.pt",
        "wrote    runs/x",
        "result   91 %",
        "next     edgekd export",
    ]


def test_json_is_one_object_on_stdout(capsys: Streams) -> None:
    console.print_json({"name": "ü[bold]", "values": [1.5, None]})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"name": "ü[bold]", "values": [1.5, None]}
    assert "ü" in out
    assert err == ""
    with pytest.raises(ValueError, match="JSON"):
        console.print_json({"x": float("nan")})


def test_a_table_in_a_pipe_is_cut_nowhere(capsys: Streams) -> None:
    console.print_table(("artefact", "note", "p50"), [("a" * 60, LONG.strip(), "1.5"), ("b", "", "22.25")], title="T")
    out, err = capsys.readouterr()
    lines = [line.rstrip() for line in out.splitlines()]
    assert err == ""
    assert lines[0] == "T"
    assert lines[1].split() == ["artefact", "note", "p50"]
    assert lines[2] == f"{'a' * 60}  {LONG.strip()}    1.5"
    assert lines[3].startswith("b ")
    assert lines[3].endswith("  22.25"), "numbers are right-aligned"


def test_a_terminal_folds_later_columns_and_keeps_names_whole(monkeypatch: pytest.MonkeyPatch, capsys: Streams) -> None:
    monkeypatch.setattr(console, "_stdout", Console(force_terminal=True, width=60, soft_wrap=True))
    console.print_table(("artefact", "note"), [("student.int8-cpu-x86.onnx", "word " * 30)])
    printed = capsys.readouterr().out
    assert "student.int8-cpu-x86.onnx" in printed
    assert max(len(line) for line in printed.splitlines()) < 100


def test_a_list_in_a_pipe_is_cut_nowhere(capsys: Streams) -> None:
    console.print_list([("mobilenetv2[x]", LONG.strip()), ("a", "short")])
    console.print_list([])
    out, _ = capsys.readouterr()
    assert out.splitlines()[0].rstrip() == f"mobilenetv2[x]  {LONG.strip()}"
    assert out.splitlines()[1].split() == ["a", "short"]


@pytest.mark.parametrize(
    ("answer", "consent"),
    [("y\n", True), ("YES \n", True), ("\n", False), ("", False), ("yep\n", False), ("n\n", False)],
)
def test_only_yes_is_consent(answer: str, consent: bool, capsys: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    assert console.confirm("Days of work [sic]?") is consent
    assert capsys.readouterr().err == "Days of work [sic]? [y/N] "


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (89.4, "89 s"),
        (89.6, "1 min 30 s"),
        (185, "3 min 05 s"),
        (5399.4, "89 min 59 s"),
        (5400, "1 h 30 min"),
        (7800, "2 h 10 min"),
    ],
)
def test_durations_are_read_by_people(seconds: float, text: str) -> None:
    assert console.duration(seconds) == text


def test_progress_without_a_terminal_is_a_line_now_and_then(capsys: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with console.progress("distil", 100, done=20) as bar:
        for done in range(21, 101):
            clock[0] += 1.0
            bar.update(done, f"loss {done} [x]")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" ")[1] for line in lines] == ["35/100", "50/100", "65/100", "80/100", "95/100", "100/100"]
    assert lines[0] == "distil 35/100 · 1.0/s · 65 s left · loss 35 [x]"


def test_progress_on_a_terminal_is_a_live_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(console, "_stderr", Console(file=stream, force_terminal=True, width=120))
    with console.progress("bench", 4) as bar:
        bar.update(0)
        bar.update(4, "fp32 [x]")
    assert "bench 4/4" in stream.getvalue()
    assert "fp32 [x]" in stream.getvalue()
    assert "━" * 24 in stream.getvalue()


@pytest.mark.parametrize("verb", [("--version",), ("--help",), ("recipes", "--json"), ("recipes",)])
def test_results_that_cannot_be_written_are_one_message_and_code_6(verb: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "edgekd", *verb]
        ran = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (ran.returncode, ran.stderr.count("\n")) == (6, 1), ran.stderr
    assert "No space left on device" in ran.stderr


@pytest.mark.parametrize("verb", [("--version",), ("recipes", "--json"), ("recipes",), ("--help",), ("eval", "--help")])
def test_a_pipe_that_was_read_enough_ends_the_command_without_a_word(verb: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ran = subprocess.run(
        [sys.executable, "-m", "edgekd", *verb], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writing)
    assert (ran.returncode, ran.stderr) == (141, "")


@pytest.mark.parametrize("setting", ["PYTHONWARNINGS=error", "PYTHONDEVMODE=1"])
@pytest.mark.parametrize("stdout", [subprocess.DEVNULL, subprocess.PIPE])
def test_a_python_that_tells_of_files_left_open_has_none_to_tell_of(setting: str, stdout: int) -> None:
    environment = {**os.environ, **dict([setting.split("=")])}
    command = [sys.executable, "-m", "edgekd", "recipes"]
    ran = subprocess.run(command, env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)
    assert (ran.returncode, [line.split()[0] for line in ran.stderr.splitlines()]) == (0, ["wrote", "result", "next"])


WORDS = "café – 3 × 5 \U0001f600"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_the_encoding_of_stdout_lacks_is_written_out(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding=encoding))
    console.prepare_stdout()
    console.print_table((WORDS,), [(WORDS,)])
    table = raw.getvalue()
    console.print_json({WORDS: WORDS})
    document = raw.getvalue()[len(table) :]
    console.print_toml(tomli_w.dumps({WORDS: WORDS}))
    toml = raw.getvalue()[len(table) + len(document) :]
    assert table.decode(encoding).split("\n")[1].rstrip() == WORDS.encode(encoding, "backslashreplace").decode(encoding)
    assert json.loads(document.decode(encoding)) == tomllib.loads(toml.decode(encoding)) == {WORDS: WORDS}


def test_what_other_code_prints_stays_out_of_the_results(capsys: Streams) -> None:
    with console.stdout_for_results():
        print("my own network")  # noqa: T201
        console.print_json({"a": 1})
        console.print_table(("a",), [("b",)])
    out, err = capsys.readouterr()
    assert (out.split(), err) == (["{", '"a":', "1", "}", "a", "b"], "my own network\n")


NOISY = """
import atexit, ctypes, os, subprocess, sys
from edgekd import console
from edgekd.cli import program, verb

def noisy():
    libc = ctypes.CDLL(None)
    atexit.register(print, "at exit")
    print("print")
    sys.stdout.write("sys.stdout\\n")
    sys.__stdout__.write("sys.__stdout__\\n")
    os.write(1, b"os.write\\n")
    libc.printf(b"printf\\n")
    subprocess.run(["echo", "a program"])
    console.print_json({"a": 1})

program.app = lambda **_: verb.verb("")(noisy).run()
program.main()
"""


@pytest.mark.parametrize("flags", [(), ("-u",)])
def test_what_other_code_writes_below_python_stays_out_of_the_results(flags: tuple[str, ...]) -> None:
    ran = subprocess.run([sys.executable, *flags, "-c", NOISY], capture_output=True, text=True, check=False)
    assert (ran.returncode, json.loads(ran.stdout)) == (0, {"a": 1})
    noise = ("print", "sys.stdout", "sys.__stdout__", "os.write", "printf", "a program", "at exit")
    assert sorted(ran.stderr.split("\n")) == sorted(["", *noise])


def test_other_code_may_print_where_stderr_is_closed() -> None:
    ran = subprocess.run(
        ["sh", "-c", '"$0" -c "$1" 2>&-', sys.executable, NOISY], stdout=subprocess.PIPE, text=True, check=False
    )
    assert (ran.returncode, json.loads(ran.stdout)) == (0, {"a": 1})


def test_what_libraries_warn_of_is_one_line_without_their_paths() -> None:
    code = (
        "import logging, warnings; from edgekd import console; console.tell_warnings(); "
        "warnings.warn('first\\nsecond', stacklevel=1); logging.getLogger('x').warning('no font %s', 'y')"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.stderr == "warning: first second\nwarning: no font y\n"


def test_a_page_of_help_reaches_a_stdout_that_is_not_utf_8() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "edgekd", "bench", "--help"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_log_that_cannot_be_written_ends_nothing() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-c", "from edgekd import console; console.warn('x'); console.print_text('done')"]
        ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, "done")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ESTALE, "Stale file handle", "runs/x/run.json"), "runs/x/run.json cannot be read or written"),
        (OSError(errno.EIO, "Input/output error"), "failed: Input/output error"),
        (PermissionError(errno.EACCES, "Permission denied", "there"), "there cannot be read or written: Permission"),
    ],
)
def test_an_error_of_the_system_that_nobody_foresaw_is_the_machines(
    error: OSError, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(program, "app", fail)
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == 6
    assert words in capsys.readouterr().err


HOSTILE = "x\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\r\x7f\u2028\x00 [bold]y[/] $z^"


@pytest.mark.parametrize("terminal", [False, True])
def test_nothing_that_is_printed_commands_a_terminal(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    if terminal:
        monkeypatch.setattr(console, "_stdout", Console(file=stream, force_terminal=True, no_color=True, width=500))
    monkeypatch.setattr(console, "_stderr", Console(file=stream, force_terminal=False, width=500))
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    console.say(HOSTILE)
    console.warn(HOSTILE)
    console.error(HOSTILE)
    console.opening([(HOSTILE, HOSTILE)])
    console.closing(HOSTILE, HOSTILE, HOSTILE)
    console.print_table((HOSTILE, HOSTILE), [(HOSTILE, HOSTILE)], title=HOSTILE)
    console.print_list([(HOSTILE, HOSTILE)])
    console.print_json({HOSTILE: [HOSTILE]})
    console.print_toml(tomli_w.dumps({HOSTILE: HOSTILE}))
    console.confirm(HOSTILE)
    with console.progress(HOSTILE, 1) as bar:
        bar.update(1, HOSTILE)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
    assert shown.count("owned") > 12
    assert [c for c in shown if not c.isprintable() and c != "\n"] == []
    assert "[bold]y[/]" in shown


def test_the_live_bar_shows_names_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(console, "_stderr", Console(file=stream, force_terminal=True, width=300))
    with console.progress(HOSTILE, 1) as bar:
        bar.update(1, HOSTILE)
    assert "x\\x1b]0;owned\\x07" in stream.getvalue()
    assert "owned\x07" not in stream.getvalue()
    assert "\x9b" not in stream.getvalue()


def test_escapes_mean_the_same_to_a_parser(capsys: Streams) -> None:
    value = {HOSTILE: [HOSTILE, "ü", "\U000e0001", "\udcff"]}
    console.print_json(value)
    assert json.loads(capsys.readouterr().out) == value
    console.print_toml(tomli_w.dumps({"a": HOSTILE, "b": "\U000e0001 ü"}))
    assert tomllib.loads(capsys.readouterr().out) == {"a": HOSTILE, "b": "\U000e0001 ü"}


def test_wrong_usage_is_told_without_its_escapes(monkeypatch: pytest.MonkeyPatch, capsys: Streams) -> None:
    for arguments in (["bench", "a.onnx", HOSTILE], [HOSTILE], [f"--{HOSTILE}"], ["status", HOSTILE.replace("\0", "")]):
        monkeypatch.setattr("sys.argv", ["edgekd", *arguments])
        with pytest.raises(SystemExit) as caught:
            program.main()
        assert caught.value.code == 2
        err = capsys.readouterr().err
        assert "owned" in err
        assert [c for c in err if not c.isprintable() and c != "\n"] == []


@pytest.mark.parametrize(
    ("verb", "closed", "code"), [("recipes", ">&-", 6), ("eval --help", ">&-", 6), ("recipes", "2>&-", 0)]
)
def test_a_closed_stream_is_like_one_that_cannot_be_written(verb: str, closed: str, code: int) -> None:
    command = f"{sys.executable} -m edgekd {verb} {closed}"
    ran = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert ran.returncode == code, ran.stderr
    assert "fault" not in ran.stderr


@pytest.mark.parametrize("unbuffered", ["1", ""])
@pytest.mark.parametrize("room_bytes", [0, 96])
def test_results_that_did_not_fit_are_an_error_with_and_without_a_buffer(unbuffered: str, room_bytes: int) -> None:
    """A pipe that takes some bytes, and then no more: python -u would not notice what is missing."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    os.read(reader, 4096 if room_bytes else 0)
    code = (
        "from edgekd import console, errors\n"
        "try: console.print_json({'a': 'b' * 20000})\n"
        "except errors.MachineError as error: raise SystemExit(error.exit_code)"
    )
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, env=environment, check=False)
    os.close(reader)
    os.close(writer)
    assert done.returncode == 6


@pytest.mark.parametrize("unbuffered", ["1", ""])
def test_results_arrive_whole_with_and_without_a_buffer(unbuffered: str) -> None:
    code = (
        "from edgekd import console\nconsole.print_json({'a': 'ä' * 300000})\nconsole.print_table(['x'], [['y' * 500]])"
    )
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=True)
    assert done.stdout.decode().count("ä") == 300000
    assert done.stdout.decode().count("y") == 500
