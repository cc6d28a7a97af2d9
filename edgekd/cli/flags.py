"""The arguments and flags that several verbs share; those of one verb stand in its signature."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekd.cpus import MOST_THREADS

RunArgument = Annotated[
    str, typer.Argument(metavar="[RUN]", help="Run to work on; the newest fitting one if left out.")
]
Teacher = Annotated[  # whether it can be read is said once, by what reads it, as of every other file that is unusable
    Path,
    typer.Argument(
        metavar="TEACHER", readable=False, help="The teacher's checkpoint (.pt, .safetensors), or timm:NAME."
    ),
]
Weights = Annotated[
    str, typer.Option("--weights", metavar="FILE", help="The file of the published weights that timm:NAME names.")
]
RunOption = Annotated[
    str, typer.Option("--run", metavar="NAME", help="Name of the run; runs/<teacher>-<student> by default.")
]
Data = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help="Real images, one folder per class; for numbers only.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
MaxSeconds = Annotated[
    float | None, typer.Option(min=0, metavar="N", help="Stop and save after N seconds (exit code 8).")
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set any recipe key (docs/recipe.md).")
]
BudgetMs = Annotated[
    float | None,
    typer.Option("--budget-ms", min=0.001, metavar="X", help="FP32 latency here, or there with --on, in ms."),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Delete what the run holds and start anew.")]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:i.")]
Threads = Annotated[
    int | None, typer.Option(min=1, max=MOST_THREADS, metavar="N", help="CPU threads; by default the usable CPUs.")
]
Arch = Annotated[
    str,
    typer.Option(
        metavar="NAME", help="Teacher architecture, package.module:factory, or net.py:Net; inferred by default."
    ),
]
Input = Annotated[
    str, typer.Option("--input", metavar="CxHxW", help="Input shape, such as 3x32x32; inferred by default.")
]
Normalize = Annotated[str, typer.Option(metavar="NAME", help="imagenet, cifar10, cifar100, mnist or none.")]
Mean = Annotated[str, typer.Option(metavar="M[,M,M]", help="Mean per channel of pixels in [0, 1].")]
Std = Annotated[str, typer.Option(metavar="S[,S,S]", help="Standard deviation per channel.")]
Classes = Annotated[str, typer.Option(metavar="FILE", help="Class names, one a line.")]
AcceptMapping = Annotated[bool, typer.Option("--accept-mapping", help="Accept the shown mapping of parameter names.")]
On = Annotated[str, typer.Option("--on", metavar="USER@HOST", help="Measure on this device, over ssh.")]
RemotePython = Annotated[str, typer.Option("--python", metavar="PATH", help="With --on: the Python there.")]
Trtexec = Annotated[str, typer.Option(metavar="PATH", help="With --on: trtexec there (JetPack's, or on PATH).")]
TrustPickle = Annotated[bool, typer.Option("--trust-pickle", help="Run the code inside a pickled module.")]
TrustCode = Annotated[
    list[str] | None,
    typer.Option("--trust-code", metavar="HASH", help="Run the code of this hash, which a refusal printed."),
]
