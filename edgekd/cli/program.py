"""The command line: verbs and flags. Everything heavy is imported inside the functions, so that --help is instant."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import rich_utils

from edgekd import __version__, console
from edgekd.cli import shipping_flags
from edgekd.cli.options import (
    AcceptMapping,
    Arch,
    BudgetMs,
    Classes,
    Data,
    Device,
    Fresh,
    Input,
    Json,
    MaxSeconds,
    Mean,
    Normalize,
    On,
    RemotePython,
    RunArgument,
    RunOption,
    Set,
    Std,
    Teacher,
    Threads,
    Trtexec,
    TrustCode,
    TrustPickle,
    examples,
    verb,
)
from edgekd.errors import EdgekdError, MachineError
from edgekd.text import visible

app = typer.Typer(
    name="edgekd",
    help="Distil a trained image classifier into a small one for an edge device, without one training image.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
)


_CLICK_ERROR: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
"""Click's own base class, wherever this typer keeps click."""


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        console.print_text(f"edgekd {__version__}\n")
        raise typer.Exit


@app.command(
    epilog=examples(
        "edgekd distill teacher.pt --student mobilenetv2", "edgekd distill teacher.pt --minutes 30 --data val/"
    )
)
@verb
def distill(
    teacher: Teacher,
    student: Annotated[
        str, typer.Option(metavar="NAME[@WIDTH]", help="Student, or auto; mobilenetv2 by default.")
    ] = "",
    budget_ms: BudgetMs = None,
    student_weights: Annotated[
        str,
        typer.Option(metavar="FILE", help="Weights it starts from, in place of others."),
    ] = "",
    run: RunOption = "",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Student updates; by input size and classes by default.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help="Choose the number of steps that take M minutes.")
    ] = None,
    method: Annotated[str, typer.Option(metavar="PRESET", help="Method preset, see `edgekd recipes`.")] = "",
    seed: Annotated[int | None, typer.Option(help="Seed of every random draw.")] = None,
    arch: Arch = "",
    input_shape: Input = "",
    normalize: Normalize = "",
    mean: Mean = "",
    std: Std = "",
    classes: Classes = "",
    data: Data = None,
    device: Device = "",
    threads: Threads = None,
    max_seconds: MaxSeconds = None,
    set_: Set = None,
    accept_mapping: AcceptMapping = False,
    trust_pickle: TrustPickle = False,
    trust_code: TrustCode = None,
    on: On = "",
    python: RemotePython = "python3",
    trtexec: Trtexec = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask about runs that are expected to be hard.")] = False,
    fresh: Fresh = False,
    json: Json = False,
) -> None:
    """Distil TEACHER into a student: read the teacher, train without data, choose the final checkpoint."""
    from edgekd.cli import flags as flag_tables
    from edgekd.cli import training
    from edgekd.cli.common import Options

    flags = flag_tables.teacher_flags(arch, input_shape, accept_mapping, trust_pickle)
    flags = flag_tables.combine(
        flags,
        flag_tables.pixel_flags(normalize, mean, std, classes),
        flag_tables.student_flags(student, budget_ms, student_weights, on),
        flag_tables.distill_flags(steps, minutes, method, seed, device, threads),
        flag_tables.set_flags(set_),
    )
    from edgekd.cli.measuring import Elsewhere

    options = Options(max_seconds=max_seconds, data=data, fresh=fresh, json=json, yes=yes)
    training.distill(teacher, run, flags, options, dry_run=dry_run, host=Elsewhere(on, python, trtexec).host())


@app.command(epilog=examples("edgekd ingest teacher.pt", "edgekd ingest --run teacher-mobilenetv2 --normalize cifar10"))
@verb
def ingest(
    teacher: Annotated[
        Path | None, typer.Argument(metavar="[TEACHER]", readable=False, help="The teacher's checkpoint.")
    ] = None,
    run: RunOption = "",
    arch: Arch = "",
    input_shape: Input = "",
    normalize: Normalize = "",
    mean: Mean = "",
    std: Std = "",
    classes: Classes = "",
    accept_mapping: AcceptMapping = False,
    trust_pickle: TrustPickle = False,
    trust_code: TrustCode = None,
    fresh: Fresh = False,
    json: Json = False,
) -> None:
    """Read a teacher and find out what it is; or, without TEACHER, set the normalisation of a run."""
    from edgekd.cli import flags as flag_tables
    from edgekd.cli import teachers
    from edgekd.cli.common import Options

    flags = flag_tables.combine(
        flag_tables.teacher_flags(arch, input_shape, accept_mapping, trust_pickle),
        flag_tables.pixel_flags(normalize, mean, std, classes),
    )
    teachers.ingest(teacher, run, flags, Options(fresh=fresh, json=json))


@app.command(epilog=examples("edgekd run recipes/quickstart.toml", "edgekd run my.toml --max-seconds 3000"))
@verb
def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped one.")],
    run: RunOption = "",
    data: Data = None,
    device: Device = "",
    threads: Threads = None,
    max_seconds: MaxSeconds = None,
    set_: Set = None,
    trust_code: TrustCode = None,
    fresh: Fresh = False,
    json: Json = False,
) -> None:
    """Run the whole chain from a recipe: ingest, distill, select, export, bench, eval, report."""
    from edgekd.cli import flags as flag_tables
    from edgekd.cli import training
    from edgekd.cli.common import Options

    flags = flag_tables.combine(
        flag_tables.distill_flags(None, None, "", None, device, threads), flag_tables.set_flags(set_)
    )
    options = Options(max_seconds=max_seconds, data=data, fresh=fresh, json=json, yes=True)
    training.run_recipe(recipe, run, flags, options)


@app.command(epilog=examples("edgekd select", "edgekd select my-run --json"))
@verb
def select(run: RunArgument = "", trust_code: TrustCode = None, json: Json = False) -> None:
    """Choose the final student again, from the last checkpoint, without data."""
    from edgekd.cli import training
    from edgekd.cli.common import Options

    training.select(run, Options(json=json))


app.command(epilog=examples("edgekd export --int8", "edgekd export my-run --int8 --target tensorrt --qat"))(
    shipping_flags.export
)
app.command(
    epilog=examples(
        "edgekd bench my-run --batch 1,8 --threads 1,2",
        "edgekd bench model.onnx",
        "edgekd bench --on user@jetson",
        "edgekd bench --import results.json",
    )
)(shipping_flags.bench)
app.command(epilog=examples("edgekd bundle", "edgekd bundle my-run --output /media/usb/student.pyz"))(
    shipping_flags.bundle
)


@app.command("eval", epilog=examples("edgekd eval --data val/", "edgekd eval my-run --data val/ --json"))
@verb
def eval_(
    run: RunArgument = "",
    data: Data = None,
    trust_code: TrustCode = None,
    json: Json = False,
) -> None:
    """Measure the accuracy of everything a run holds on real images; nothing else changes."""
    from edgekd.cli import shipping
    from edgekd.cli.common import Options

    shipping.evaluate(run, data, Options(json=json))


@app.command(epilog=examples("edgekd status", "edgekd status my-run --json"))
@verb
def status(run: RunArgument = "", json: Json = False) -> None:
    """Show which stages are done, which are stale, and why."""
    from edgekd.cli import upkeep
    from edgekd.cli.common import Options

    upkeep.status(run, Options(json=json))


@app.command(epilog=examples("edgekd report", "edgekd report my-run --json"))
@verb
def report(run: RunArgument = "", json: Json = False) -> None:
    """Write one page with every number of a run and where it comes from."""
    from edgekd.cli import upkeep
    from edgekd.cli.common import Options

    upkeep.report(run, Options(json=json))


@app.command(epilog=examples("edgekd prune my-run", "edgekd prune"))
@verb
def prune(run: RunArgument = "", json: Json = False) -> None:
    """Remove checkpoints and replay networks, which are as sensitive as the teacher, after export."""
    from edgekd.cli import upkeep
    from edgekd.cli.common import Options

    upkeep.prune(run, Options(json=json))


@app.command(epilog=examples("edgekd doctor", "edgekd doctor --json"))
@verb
def doctor(json: Json = False) -> None:
    """Say what this machine can do, and what stands in the way."""
    from edgekd.cli import upkeep
    from edgekd.cli.common import Options

    upkeep.doctor(Options(json=json))


@app.command(
    epilog=examples(
        "edgekd students --input 1x28x28",
        "edgekd students --measure --budget-ms 5",
        "edgekd students --measure --on user@jetson",
    )
)
@verb
def students(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[STUDENT]...", help="Students; the zoo by default.")
    ] = None,
    input_shape: Annotated[str, typer.Option("--input", metavar="CxHxW", help="Input shape.")] = "3x32x32",
    classes: Annotated[int, typer.Option(min=2, help="Number of classes.")] = 10,
    measure: Annotated[bool, typer.Option("--measure", help="Measure the latency of each, untrained.")] = False,
    budget_ms: BudgetMs = None,
    threads: Annotated[int, typer.Option(min=1, metavar="N", help="Threads of the runtime.")] = 1,
    on: On = "",
    python: RemotePython = "python3",
    trtexec: Trtexec = "",
    json: Json = False,
) -> None:
    """List student networks with parameters, multiply-accumulates, file sizes and latency."""
    from edgekd.cli import students as verb_students
    from edgekd.cli.common import Options
    from edgekd.cli.measuring import Elsewhere

    there = Elsewhere(on, python, trtexec).host()
    verb_students.students(
        names or [],
        input_shape,
        classes,
        Options(json=json),
        measure=measure,
        budget_ms=budget_ms,
        threads=threads,
        host=there,
    )


@app.command(epilog=examples("edgekd recipes", "edgekd recipes --copy quickstart", "edgekd recipes --check my.toml"))
@verb
def recipes(
    copy: Annotated[str, typer.Option(metavar="NAME", help="Copy a shipped recipe or preset here.")] = "",
    check: Annotated[Path | None, typer.Option(metavar="FILE", help="Check a recipe and print it resolved.")] = None,
    json: Json = False,
) -> None:
    """List, copy and check recipes and method presets."""
    from edgekd.cli import upkeep
    from edgekd.cli.common import Options

    upkeep.recipes(copy, check, Options(json=json))


def main() -> None:
    """Run the command line; the only place where errors become messages and exit codes."""
    try:
        sys.exit(app(standalone_mode=False))
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
        what = f"{error.filename} cannot be read or written" if error.filename else "reading or writing failed"
        console.error(f"{what}: {error.strerror or error}.")
        sys.exit(MachineError.exit_code)
    except Exception as error:
        if os.environ.get("EDGEKD_DEBUG") == "1":
            raise
        console.error(
            f"a fault of edgekd: {type(error).__name__}: {error}. What was published is intact. "
            "Run again with EDGEKD_DEBUG=1 and report the traceback."
        )
        sys.exit(1)
