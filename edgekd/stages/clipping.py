"""Say how far the INT8 ranges of an export clip real images; numbers only, nothing changes."""

from __future__ import annotations

from typing import Any

from edgekd import console
from edgekd.deploy.clipping import clipping_of
from edgekd.deploy.graph import clip_bounds, read_model
from edgekd.deploy.quantize import FLAVOURS
from edgekd.deploy.ranges import Ranges
from edgekd.realdata import RealImages
from edgekd.recipe import Recipe
from edgekd.rundir import RunDir, read_json
from edgekd.stages.samples import of_images, uint8_input

SHOWN = 5


def run(run_dir: RunDir, recipe: Recipe, images: RealImages) -> dict[str, Any]:
    """Return by INT8 file how far held-out synthetic samples and real images are clipped, overall and by tensor.

    A fine-tuned file has no float32 form on disk, so nothing can be measured of it: `images` is None there.
    """
    folder = run_dir.stage("export")
    decided = read_json(folder / "agreement.json")["int8"]
    names = [name for name in sorted(decided) if (folder / name).is_file()]
    if not names:
        return {}
    calibration = read_json(folder / "calibration.json")
    batches = of_images(images, uint8_input(run_dir, recipe.export))
    source = read_model(folder / "student.fp32.onnx")
    seen, bounds = Ranges.from_json(calibration["ranges"]), clip_bounds(source)
    found: dict[str, Any] = {}
    for name in names:
        file, kept = folder / name, decided[name]
        measured = None
        if name not in calibration["fine_tuned"]:
            flavour = FLAVOURS[kept["flavour"]]
            ranges = seen.widened(kept["headroom"], bounds)
            measured = clipping_of(source, file, flavour, ranges, kept["method"], batches).to_json()
        found[name] = {"method": kept["method"], "held_out": kept["clipping"], "images": measured}
    return found


def print_table(found: dict[str, Any], images: int) -> None:
    """Print the overall rates of each file, and its tensors that real images are clipped in most."""
    rows = []
    for name, rates in found.items():
        held_out, real = rates["held_out"], rates["images"]
        if real is None:
            rows.append((name, "all", f"{held_out['overall']:.4%}", "n/a: fine-tuned, its float32 form is not kept"))
            continue
        rows.append((name, "all", f"{held_out['overall']:.4%}", f"{real['overall']:.4%}"))
        worst = sorted(real["tensors"], key=lambda tensor: -real["tensors"][tensor])[:SHOWN]
        rows += [("", t, f"{held_out['tensors'][t]:.4%}", f"{real['tensors'][t]:.4%}") for t in worst]
    console.print_table(("values clipped", "tensor", "synthetic held-out", f"{images} real images"), rows)
