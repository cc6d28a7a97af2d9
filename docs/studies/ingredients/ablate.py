"""Measure what each ingredient of `edgekd-replay` is worth: ablate.py OUT.json TEACHER DATA RUNS --steps N FLAGS...

An ingredient is a group of recipe keys in which the presets `edgekd-replay` and `pre-dfkd` differ. Each is
taken out of the first (its keys get the values of `pre-dfkd`) and put into `pre-dfkd` (the other way round), everything
else equal.
DATA holds development images as class folders: accuracies choose the default, so no test image may be among them. FLAGS
go to every `edgekd distill`. `--only LABEL`, once or more, takes these rows of the table alone. Finished runs under
RUNS are kept: the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from docs.studies.common import collect, overlay
from docs.studies.common.provenance import method_of, provenance
from edgekd import recipe as recipes
from edgekd.run.directory import RunDir

OURS, PAPER = "edgekd-replay", "pre-dfkd"
INGREDIENTS = {
    "a generator unopposed and moved every step": (
        *("generator.gap", "generator.detach_teacher", "generator.adversary", "generator.adversary_ramp"),
        "generator.period",
        "vae.updates",
    ),
    "the teacher's BatchNorm statistics": ("generator.batchnorm", "generator.image_moments", "vae.image_moments"),
    "class balance in nats": ("generator.balance",),
    "the generator's momentum": ("generator.lr", "generator.betas", "generator.schedule"),
    "Adam for the student": ("student.optimizer", "student.lr", "student.schedule", "student.weight_decay"),
    "the averaged student": ("student.ship_average", "student.ema_decay"),
    "revived ReLUs": ("student.revive",),
    "consolidation": ("consolidation.start", "consolidation.loss", "consolidation.temperature", "consolidation.lr"),
    "codes of the aggregate posterior, a gate": ("vae.sampling", "vae.decoder_leak", "vae.gate", "replay.start"),
}
"""Keys of `[method]` by ingredient; sizes and batches are no ingredients, both have those of `edgekd-replay`. The
teacher's layers and hints are none here: a student of another family has neither (cifar10/ measures them). The VAE's
reconstruction has been the paper's in both since the table showed that leaving features out did not pay."""
LEAN = overlay.assignments(Path(collect.__file__).with_name("lean.toml"))
SIZES = (
    *("generator.upsamplings", "generator.spectral_norm"),
    *(assignment.partition("=")[0].removeprefix("method.") for assignment in LEAN),
)


def value(preset: str, key: str) -> str:
    """Return a preset's value of a key as `--set` takes it."""
    table, name = key.split(".")
    method = recipes.parse({"method": {"preset": preset}}, origin=preset).method.model_dump(mode="json")
    return json.dumps(method[table][name])


def variants() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return the presets and every changed one: its preset and the keys that come from the other."""
    found: dict[str, tuple[str, tuple[str, ...]]] = {OURS: (OURS, ()), PAPER: (PAPER, ())}
    for name, keys in INGREDIENTS.items():
        found[f"{OURS} without {name}"] = (OURS, keys)
        found[f"{PAPER} with {name}"] = (PAPER, keys)
    return found


def distil(options: argparse.Namespace, flags: list[str], label: str, seed: int) -> dict[str, Any]:
    """Make one run, or take the one that is there; return what its files say."""
    preset, keys = variants()[label]
    other = PAPER if preset == OURS else OURS
    sets = {key: value(OURS, key) for key in SIZES} | {key: value(other, key) for key in keys}
    run = folder(options, label, seed)
    command = [sys.executable, "-m", "edgekd", "distill", str(options.teacher), "--method", preset]
    command += ["--steps", str(options.steps), "--seed", str(seed), "--data", str(options.data), "--run", str(run.path)]
    command += [*(word for key, text in sets.items() for word in ("--set", f"method.{key}={text}")), *flags]
    subprocess.run(command, check=True)  # noqa: S603
    return collect.facts(run)


def folder(options: argparse.Namespace, label: str, seed: int) -> RunDir:
    """Return where a run lies."""
    return RunDir(options.runs / f"{label.replace(' ', '-').replace(chr(39), '')}-{seed}")


def row(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of one variant over its seeds: of the shipped weights, and of the others (raw or averaged)."""
    figures: dict[str, Any] = {}
    for curve, prefix in (("curve", ""), ("curve_other", "other_")):
        for name in ("final", "mean", "sd", "regret"):
            values = [run[curve][name] for run in runs]
            figures[prefix + name] = {"mean": statistics.fmean(values), "runs": values}
    figures["seconds"] = statistics.fmean(run["seconds"] for run in runs)
    figures["changes"] = runs[0]["changes"]
    return figures


def main() -> None:
    """Make every run and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seeds", default="1,2")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--only", action="append", choices=list(variants()), metavar="LABEL")
    options, flags = parser.parse_known_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    seeds = [int(text) for text in options.seeds.split(",")]
    with ThreadPoolExecutor(options.jobs) as pool:
        runs = {
            label: [pool.submit(distil, options, flags, label, seed) for seed in seeds]
            for label in options.only or variants()
        }
    rows = {label: row([run.result() for run in of_label]) for label, of_label in runs.items()}
    methods = {label: method_of(folder(options, label, seeds[0])) for label in runs}
    content = {**provenance(methods), "steps": options.steps, "seeds": seeds, "flags": flags, "rows": rows}
    options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
