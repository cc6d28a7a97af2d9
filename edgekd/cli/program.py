"""The command line: the verbs in the order of --help, and the one place where errors become exit codes."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer import rich_utils

from edgekd import __version__, console
from edgekd.cli.verbs.bench import bench
from edgekd.cli.verbs.bundle import bundle
from edgekd.cli.verbs.distill import distill
from edgekd.cli.verbs.doctor import doctor
from edgekd.cli.verbs.eval import eval_
from edgekd.cli.verbs.export import export
from edgekd.cli.verbs.ingest import ingest
from edgekd.cli.verbs.prune import prune
from edgekd.cli.verbs.recipes import recipes
from edgekd.cli.verbs.report import report
from edgekd.cli.verbs.run import run
from edgekd.cli.verbs.select import select
from edgekd.cli.verbs.status import status
from edgekd.cli.verbs.students import students
from edgekd.errors import EdgekdError, MachineError, UsageError, broken_import, lacks_memory
from edgekd.text import first_line, visible

VERBS = (
    distill,
    ingest,
    run,
    select,
    export,
    bench,
    bundle,
    eval_,
    status,
    report,
    prune,
    doctor,
    students,
    recipes,
)

app = typer.Typer(
    name="edgekd",
    help="Distil a trained image classifier into a small one for an edge device, without one training image.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
)
for _verb in VERBS:
    app.command(_verb.name, epilog=_verb.epilog)(_verb.run)


_CLICK_ERROR: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
"""Click's own base class, wherever this typer keeps click."""


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        console.print_text(f"edgekd {__version__}\n")
        raise typer.Exit


def main() -> None:
    """Run the command line; the only place where errors become messages and exit codes."""
    with console.descriptor_for_results():
        console.prepare_stdout()
        console.tell_warnings()
        _run()


def _run() -> None:
    try:
        _refuse_empty(sys.argv[1:])
        sys.exit(app(standalone_mode=False))
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # typer and rich end with 1 where nobody reads a help
            sys.exit(128 + signal.SIGPIPE)
        raise
    except _CLICK_ERROR as error:
        error.message = visible(error.message)  # a file that a shell's * named may be called anything
        rich_utils.rich_format_error(error)
        sys.exit(error.exit_code)
    except EdgekdError as error:
        if os.environ.get("EDGEKD_DEBUG") == "1":
            raise
        console.error(str(error))
        sys.exit(error.exit_code)
    except OSError as error:  # of a disk, a file system or a terminal; what edgekd foresaw has a message of its own
        if os.environ.get("EDGEKD_DEBUG") == "1":
            raise
        place = error.filename or ("" if _working_directory() else "the working directory, which was removed,")
        what = f"{place} cannot be read or written" if place else "reading or writing failed"
        console.error(f"{what}: {error.strerror or error}.")
        sys.exit(MachineError.exit_code)
    except Exception as error:
        if os.environ.get("EDGEKD_DEBUG") == "1":
            raise
        if lacks_memory(error):
            reason = first_line(error) if str(error) else "no more"
            console.error(f"this machine, or a limit set on this process, has too little memory ({reason}).")
            sys.exit(MachineError.exit_code)
        package = broken_import(error)
        if package is not None:
            why = f"{type(error).__name__}: {first_line(error)}"
            console.error(
                f"{package} cannot be imported ({why}); install it again. `edgekd doctor` says what is there."
            )
            sys.exit(MachineError.exit_code)
        console.error(
            f"a fault of edgekd: {type(error).__name__}: {error}. What was published is intact. "
            "Run again with EDGEKD_DEBUG=1 and report the traceback."
        )
        sys.exit(1)


def _refuse_empty(arguments: Sequence[str]) -> None:
    """Raise `UsageError` for an argument that is empty or blank: a variable that is not set, never what is meant."""
    empty = next((text for text in arguments if re.fullmatch(r"(--[a-z-]+=)?\s*", text)), None)
    if empty is not None:
        raise UsageError(f"{empty.strip() or 'an argument'} is empty; is a variable of your shell not set?")


def _working_directory() -> str:
    """Where this process works, nothing where that folder was removed."""
    try:
        return os.getcwd()  # noqa: PTH109 - Path.cwd() is the same call
    except FileNotFoundError:
        return ""
