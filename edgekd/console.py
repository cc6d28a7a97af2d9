"""The only place that prints: messages, tables, progress to stderr; one JSON object or a table to stdout.

Names come from files, devices and command lines, and may hold anything: whatever is printed is first made `visible`,
and is never taken for markup.
"""

from __future__ import annotations

import errno
import fcntl
import io
import json
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any, TextIO, cast

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from edgekd.errors import MachineError
from edgekd.text import visible


class _Log:
    """stderr without its failures: a log that cannot be written (a full disk, a closed terminal) ends no run."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            if self._stream is not None:
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            if self._stream is not None:
                self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def _stream(self) -> TextIO | None:
        # A live bar puts itself before stderr and would print through this; a closed stderr is None.
        stream: TextIO | None = getattr(sys.stderr, "rich_proxied_file", sys.stderr)
        return stream


_kept: list[TextIO] = []
"""stdout, while other code gets stderr in its place."""


def _results() -> TextIO:
    return _kept[-1] if _kept else sys.stdout


class _Stdout:
    """stdout as it was before it was kept from other code."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_results(), name)


class _ClosedStdout(io.TextIOBase):
    """stdout where the shell closed it (`>&-`), which Python leaves out: whoever prints would be told nothing."""

    def write(self, text: str) -> int:
        raise MachineError("the results could not be written to standard output: it is closed.")


_stderr = Console(file=cast("TextIO", _Log()), highlight=False, soft_wrap=True)
_stdout = Console(file=cast("TextIO", _Stdout()), highlight=False, soft_wrap=True)
PIPE_WIDTH = 10_000
"""Characters a line may have where stdout is no terminal: all of them."""
PLAIN_PERIOD_S = 15.0
"""Seconds between two plain progress lines where stderr is no terminal."""


def _plain(message: str) -> str:
    """A message without markup, its control characters written out."""
    return escape(visible(message))


def prepare_stdout() -> None:
    """Write out what the encoding of stdout lacks (`\\u2013`), as Python does on stderr; a closed one is an error."""
    if sys.stdout is None:
        sys.stdout = cast("TextIO", _ClosedStdout())
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


@contextmanager
def descriptor_for_results() -> Iterator[None]:
    """Keep what stdout leads to for results, to the end of the process: its descriptor leads to stderr from now on.

    So does what is written to it from C, by a program that a network starts, or when the interpreter ends.
    """
    stdout = sys.__stdout__
    if stdout is None or sys.stdout is not stdout or stdout.fileno() != 1:
        yield  # closed, or somebody else's already
        return
    number = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 3)  # never 2, which may be closed
    results = os.fdopen(number, "w", encoding=stdout.encoding, errors=stdout.errors)
    try:
        os.dup2(2, 1)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.stdout = results
    try:
        yield
    finally:
        sys.stdout = stdout
        with suppress(OSError):  # whatever printed has flushed it already, and told of a failure
            results.close()


def descriptors() -> set[int]:
    """Return the descriptors that something is printed to."""
    numbers = {1, 2}
    with suppress(AttributeError, OSError, ValueError):  # it is closed, or no file
        numbers.add(_results().fileno())
    return numbers


@contextmanager
def stdout_for_results() -> Iterator[None]:
    """Keep stdout for results: what other code prints meanwhile, a network of the user's own, goes to stderr."""
    _kept.append(sys.stdout)
    try:
        with redirect_stdout(cast("TextIO", _Log()) if sys.stderr is None else sys.stderr):
            yield
    finally:
        _kept.pop()


def tell_warnings() -> None:
    """Tell in one line what libraries warn of or log, without the place in their sources."""

    def told(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        warn(" ".join(str(message).split()))

    warnings.showwarning = told
    logging.lastResort = _Logged(logging.WARNING)


class _Logged(logging.Handler):
    """What is logged and nobody handles."""

    def emit(self, record: logging.LogRecord) -> None:
        """Tell it as a warning."""
        warn(" ".join(record.getMessage().split()))


def say(message: str) -> None:
    """Print one line for people."""
    _stderr.print(_plain(message))


def warn(message: str) -> None:
    """Print a warning."""
    _stderr.print(f"[yellow]warning:[/] {_plain(message)}")


def error(message: str) -> None:
    """Print the one message a failure ends with."""
    _stderr.print(f"[bold red]error:[/] {_plain(message)}")


def opening(lines: Iterable[tuple[str, str]]) -> None:
    """Print the opening lines of a command: a word and what it stands for."""
    for word, text in lines:
        _stderr.print(f"[bold]{_plain(word):<9}[/]{_plain(text)}")


def closing(written: str, headline: str, following: str) -> None:
    """Print the three lines every command ends with."""
    for word, text in (("wrote", written), ("result", headline), ("next", following)):
        _stderr.print(f"[bold green]{word:<9}[/]{_plain(text)}")


def print_text(text: str) -> None:
    """Print a text on stdout as it is, and at once: a full disk behind it is an error now, not after the last line."""
    stdout = _results()
    try:
        raw = getattr(stdout, "buffer", None)
        if isinstance(raw, io.RawIOBase):  # python -u, which does not notice that only a part was written
            _write_all(raw, text.encode(stdout.encoding, stdout.errors or "strict"))
        else:
            stdout.write(text)
            stdout.flush()
    except OSError as error:
        with suppress(OSError):  # what is left in the buffer would fail once more when the interpreter ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
        if error.errno == errno.EPIPE:  # whoever read has read enough: `| head -1`
            raise SystemExit(128 + signal.SIGPIPE) from None
        raise MachineError(f"the results could not be written to standard output: {error.strerror}.") from None


def _write_all(raw: io.RawIOBase, data: bytes) -> None:
    while data:
        count = raw.write(data)
        if not count:
            raise BlockingIOError(errno.EAGAIN, "whoever reads it does not keep up")
        data = data[count:]


def print_json(value: object) -> None:
    """Print one JSON object on stdout; what is not to be seen is an escape there, the same to a parser."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    _print_escaped(text, lambda character: json.dumps(character)[1:-1])


def print_toml(text: str) -> None:
    """Print a TOML document on stdout; what is not to be seen is an escape there, the same to a parser."""
    _print_escaped(text.removesuffix("\n"), lambda character: f"\\U{ord(character):08x}")


def _print_escaped(text: str, escaped: Callable[[str], str]) -> None:
    encoding = getattr(_results(), "encoding", None) or "utf-8"

    def is_kept(character: str) -> bool:
        return character.isprintable() and character.encode(encoding, "ignore") != b""

    lines = ("".join(c if is_kept(c) else escaped(c) for c in line) for line in text.split("\n"))
    print_text("\n".join(lines) + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None) -> None:
    """Print a table on stdout; the first column is text, the others are numbers."""
    table = Table(
        *map(_plain, columns),
        title=None if title is None else _plain(title),
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*map(_plain, row))
    _print_whole(table)


def _print_whole(table: Table) -> None:
    """Print a table; a terminal folds its later columns, a pipe or a file gets every word on one line."""
    for column in table.columns[:1]:
        column.no_wrap = True
    whole = (
        _stdout
        if _stdout.is_terminal
        else Console(file=_stdout.file, highlight=False, soft_wrap=True, width=PIPE_WIDTH)
    )
    with whole.capture() as printed:
        whole.print(table)
    print_text(printed.get())


def print_list(rows: Iterable[tuple[str, str]]) -> None:
    """Print names with their explanations on stdout."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for name, text in rows:
        table.add_row(f"[bold]{_plain(name)}[/]", _plain(text))
    _print_whole(table)


def confirm(question: str) -> bool:
    """Ask on the terminal; only y or yes is consent."""
    _stderr.print(f"{_plain(question)} \\[y/N] ", end="")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def duration(seconds: float) -> str:
    """Return seconds as `42 s`, `3 min 05 s` or `2 h 10 min`."""
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    if whole < 5400:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class ProgressLine:
    """A long job's one line: a live bar on a terminal, a plain line now and then elsewhere."""

    def __init__(self, what: str, total: int, done: int, live: Live | None) -> None:
        self._what, self._total, self._first, self._live = what, total, done, live
        self._start = self._last_line = time.monotonic()

    def update(self, done: int, facts: str = "") -> None:
        """Show that `done` of the total are done, with the facts of the moment."""
        now = time.monotonic()
        elapsed = now - self._start
        rate = (done - self._first) / elapsed if elapsed > 0 else 0.0
        left = duration((self._total - done) / rate) if rate > 0 else "?"
        text = f"{self._what} {done}/{self._total} · {rate:.1f}/s · {left} left"
        if facts:
            text += f" · {facts}"
        if self._live is not None:
            width = 24
            full = width * done // max(self._total, 1)
            bar = Text("━" * full, style="green") + Text("━" * (width - full), style="dim")
            self._live.update(bar + Text(f" {visible(text)}"))
        elif now - self._last_line >= PLAIN_PERIOD_S or done >= self._total:
            self._last_line = now
            say(text)


@contextmanager
def progress(what: str, total: int, *, done: int = 0) -> Iterator[ProgressLine]:
    """Show the progress of a long job while the context is open."""
    if _stderr.is_terminal:
        with Live(console=_stderr, refresh_per_second=4, transient=True) as live:
            yield ProgressLine(what, total, done, live)
    else:
        yield ProgressLine(what, total, done, None)
