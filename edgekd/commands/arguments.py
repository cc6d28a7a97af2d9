"""What the command line is made of: verbs, examples, flags of `export`. Nothing heavy: --help is instant."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from edgekd.errors import Interrupted

Int8 = Annotated[bool | None, typer.Option("--int8/--no-int8", help="Also write INT8 files.")]
Target = Annotated[str, typer.Option("--target", metavar="NAME", help="cpu, tensorrt or all.")]
Uint8Input = Annotated[
    bool | None, typer.Option("--uint8-input/--float-input", help="Put the normalisation into the graph.")
]
Qat = Annotated[
    bool | None, typer.Option("--qat/--no-qat", help="Fine-tune for an INT8 file that misses its gate otherwise.")
]
CalibData = Annotated[
    Path | None, typer.Option("--calib-data", metavar="DIR", help="Say how far INT8 ranges clip real images.")
]
CalibrateOnReal = Annotated[
    str, typer.Option("--calibrate-on-real", metavar="DIR", help="Set INT8 ranges from real images: not data-free.")
]
StudentWeights = Annotated[
    Path | None, typer.Option("--student-weights", metavar="FILE", help="Export this student from elsewhere.")
]
StudentArch = Annotated[str, typer.Option("--arch", metavar="NAME", help="Architecture of that student.")]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder for that student's files.")]


def verb(function: Callable[..., None]) -> Callable[..., None]:
    """Turn Ctrl-C outside of the graceful loops into the interrupted exit code."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except KeyboardInterrupt:
            raise Interrupted("interrupted; the same command continues.", 2) from None

    return wrapper


def examples(*lines: str) -> str:
    """Return the epilog that ends each --help."""
    return "[bold]Examples[/]\n\n" + "\n\n".join(f"  $ {line}" for line in lines)
