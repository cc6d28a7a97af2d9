"""`edgekd bundle`: one file that measures the student on a device without a network."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from edgekd import console
from edgekd.cli import flags
from edgekd.cli.verb import verb
from edgekd.text import path_argument


@verb("edgekd bundle", "edgekd bundle my-run --output /media/usb/student.pyz")
def bundle(
    run: flags.RunArgument = "",
    output: Annotated[Path, typer.Option(metavar="FILE", help="Where to write it.")] = Path("student.pyz"),
    json: flags.Json = False,
) -> None:
    """Write one file that checks and measures the student on a device without a network."""
    from edgekd import pipeline
    from edgekd.cli import lines, session, targets
    from edgekd.stages.catalog import EXPORT

    run_dir = targets.find_run(run, EXPORT)
    with session.locked_run(run_dir):
        recipe = pipeline.open_recipe(run_dir)
        pipeline.RunStatus(run_dir, recipe).require(EXPORT)
        from edgekd.bench import device

        made = device.write_bundle(run_dir.name, sorted(run_dir.stage("export").glob("*.onnx")), recipe.bench, output)
    if json:
        console.print_json({"run": run_dir.name, "data_free": run_dir.data_free(), **asdict(made)})
    size = f"{made.size_bytes / 1e6:.1f} MB, no image and no network of the method in it"
    headline = lines.data_free_warning(run_dir.data_free()) + size
    console.closing(str(output), headline, f"on the device: python3 {path_argument(output.name)} bench")
