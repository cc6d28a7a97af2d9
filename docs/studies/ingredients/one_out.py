"""Take each ingredient out of the preset `edgekd`, at equal compute.

    python -m docs.studies.ingredients.one_out TEACHERS DATA RUNS [ROW...]

The folders are those of docs/studies/recovery/run.py, and so are the rows: one distillation on one thread each, as many
steps as its budget of multiply-accumulates holds, a file in one_out/ at its end. ROW is a pattern such as
'resnet8-*-seed1'. Accuracies are those of the last 200 training images of each class: they may choose the default.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

from docs.studies.recovery.run import PAIRS, Row, few, measure

HERE = Path(__file__).parent
SEEDS = (1, 2, 3)
DEVELOPMENT_IMAGES = 200
"""Held-back training images of each class."""
TAKEN_OUT: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "resnet8": (
        "4T",
        {
            "nothing": (),
            "updates-at-every-step-first": ("generator.every_step_until=0",),
            "batchnorm-weight-3": ("generator.batchnorm=1",),
            "class-balance": ("generator.balance=0",),
            "sure-answers": ("generator.one_hot=0",),
            "strong-features": ("generator.activation=0",),
            "small-batches": ("student.batch_size=64", "generator.batch_size=64"),
            "mixed-views": ("student.mixup=0", "student.cutmix=0"),
            "flips-and-shifts": ("student.flip=false", "student.shift=0"),
            "kl": ("student.loss=l1",),
            "cosine": ("student.schedule=constant",),
            "teachers-layers": ("student.inherit=false",),
            "hints": ("student.hint=0",),
            "fading-hints": ("student.hint_schedule=constant",),
            "average": ("student.ship_average=false",),
            "revived-relus": ("student.revive=0",),
        },
    ),
    "mobilenetv2": (
        "3T",
        {
            "nothing": (),
            "learned-maps": ("student.hint_adapters=false",),
            "constant-hints": ("student.hint_schedule=linear",),
        },
    ),
    "wrn": ("8T", {"nothing": (), "reuse": ("student.reuse=1",), "slices": ("student.inherit_slices=false",)}),
}
"""By pair: the budget, and what each ingredient's keys of `[method]` become without it."""


def rows() -> list[Row]:
    """Return all rows."""
    return [
        Row(pair, "free", budget, seed, start=f"without-{name}", flags=tuple(f"--set=method.{key}" for key in keys))
        for pair, (budget, ingredients) in TAKEN_OUT.items()
        for name, keys in ingredients.items()
        for seed in SEEDS
    ]


def main(teachers: Path, data: Path, runs: Path, *patterns: str) -> None:
    """Run every row that is asked for and has no file yet."""
    for row in rows():
        if any(fnmatch(row.name, pattern) for pattern in patterns or ("*",)):
            pair = PAIRS[row.pair]
            held_back = slice(-DEVELOPMENT_IMAGES, None)
            development = few(data / pair.data / "train", runs.resolve() / f"{pair.data}-development", held_back)
            measure(
                row, replace(pair, test=str(development)), HERE / "one_out" / f"{row.name}.json", (teachers, data, runs)
            )


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(f"{__doc__}\nRows: {' '.join(row.name for row in rows())}")
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
