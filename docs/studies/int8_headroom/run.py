"""Say what wider INT8 ranges and corrected biases win: run.py OUT.json LABEL=RUN=IMAGES... [--limit N].

RUN is the folder of a run with an export, IMAGES a folder of development images with one folder per class: they chose
`int8.HEADROOMS`, so no test image may be among them. Ranges of the run's replay samples are multiplied by each of
FACTORS, as far as a Clip lets values come. For each, the range method is chosen by output loss on synthetic held-out
samples, as in an export; then loss, agreement and clipping are measured on the images, the former two again with
corrected biases where that correction is kept. No other remedy follows. `--limit N` takes the first N images, classes
in turn. OUT.json is written after every run and keeps what it has of other labels.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from docs.studies.common import images
from docs.studies.common.provenance import provenance
from edgekd import machine, pipeline
from edgekd.export import int8
from edgekd.export.clipping import plan_clipping
from edgekd.export.int8_chain import try_bias_correction
from edgekd.export.quantize import FLAVORS
from edgekd.export.ranges import collect_ranges
from edgekd.export.samples import ExportSamples, cached_batches, image_batches
from edgekd.recipe import Recipe
from edgekd.run.directory import RunDir
from edgekd.run.files import read_json, write_json
from edgekd.run.realdata import RealImages

FACTORS = (1.0, 1.15, 1.3, 1.5, 2.0)


def rows(run: RunDir, recipe: Recipe, development: RealImages) -> list[dict[str, Any]]:
    """Return what each file kind makes of each factor."""
    samples = ExportSamples.of_run(run, None)
    fp32 = run.stage("export") / "student.fp32.onnx"
    calibration = samples.stream("export/calibration", recipe.export.calibration_samples)
    ranges = collect_ranges(fp32, calibration)
    synthetic = int8.HeldOutSet.of(
        fp32, cached_batches(samples.stream("export/held-out", recipe.export.holdout_samples))
    )
    real = int8.HeldOutSet.of(fp32, cached_batches(image_batches(development, None)))
    found = []
    for flavor in FLAVORS.values():
        for factor in FACTORS:
            chosen = int8.try_ranges(fp32, flavor, ranges, synthetic, headrooms=(factor,))
            corrected = try_bias_correction(chosen.plan, synthetic, calibration)
            seen = real.measure(chosen.plan.build(), flavor)
            better = real.measure(corrected.plan.build(), flavor) if corrected.applied else seen
            found.append(
                {
                    "flavour": flavor.name,
                    "headroom": factor,
                    "method": chosen.plan.range_method,
                    "synthetic": chosen.after.to_card().to_json(),
                    "images": seen.to_card().to_json(),
                    "bias_corrected": corrected.applied,
                    "synthetic_corrected": corrected.quality.to_card().to_json(),
                    "images_corrected": better.to_card().to_json(),
                    "clipping": plan_clipping(chosen.plan, real.batches).overall,
                }
            )
    return found


def main() -> None:
    """Measure every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", nargs="+", metavar="LABEL=RUN=IMAGES")
    parser.add_argument("--limit", type=int, default=0)
    options = parser.parse_args()
    results = read_json(options.out) if options.out.is_file() else {}
    for item in options.runs:
        label, folder, data = item.split("=")
        run = RunDir(Path(folder))
        recipe = pipeline.open_recipe(run)
        machine.use_threads(recipe.machine.threads)
        development = images.labeled(run, Path(data), options.limit)
        results[label] = {
            **provenance({label: recipe.method}),
            "images": len(development),
            "images_sha256": development.folder.sha256(),
            "rows": rows(run, recipe, development),
        }
        write_json(options.out, results)
        for row in results[label]["rows"]:
            shares = [row[kind]["agreement"]["share"] for kind in ("synthetic", "images")]
            kept_answers = " and ".join(f"{share:.1%}" for share in shares)
            sys.stderr.write(
                f"{label} {row['flavour']} {row['headroom']}: {row['method']}, kept answers {kept_answers}\n"
            )


if __name__ == "__main__":
    main()
