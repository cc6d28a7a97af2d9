"""Choose the final student among the last weights, their average, and re-estimated BatchNorm, without data.

Nothing but the end of the training is a candidate, so no snapshot can be lucky. The judge is the agreement with the
teacher on samples drawn for this purpose alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgekd import checkpoint, console
from edgekd.errors import InputFileError
from edgekd.recipe import Recipe
from edgekd.rng import Draws, forked_global
from edgekd.rundir import Record, RunDir, write_json
from edgekd.stages import artefacts
from edgekd.stopping import Stop
from edgekd.synthesis.teacher import Teacher
from edgekd.synthesis.vae import VAE


@dataclass(frozen=True)
class Candidate:
    """One candidate's synthetic agreement (not accuracy) with the teacher, and its standard error."""

    name: str
    agreement: float
    standard_error: float

    @classmethod
    def of(cls, name: str, agreement: float, samples: int) -> Candidate:
        """Return a candidate that agreed on a share of that many samples."""
        return cls(name, agreement, math.sqrt(max(agreement * (1 - agreement), 1e-12) / samples))


def run(run_dir: RunDir, recipe: Recipe, *, key: str, inputs: dict[str, str], stop: Stop) -> None:
    """Publish select/: the student, why it was chosen, and the networks that draw synthetic samples."""
    device = torch.device("cpu")
    teacher, description = artefacts.load_teacher(run_dir, "fp32", device)
    state = final_state(run_dir)
    networks = replay_networks(recipe, description, state)
    draws = Draws(recipe.seed, "select", device)
    pool = balanced_pool(recipe, networks, teacher, draws, description.classes)
    students = candidates(recipe, description, state, networks, stop)
    judged = [judge(name, student, pool, teacher) for name, student in students.items()]
    chosen, reason = choose(judged, ships_average=recipe.method.student.ship_average)
    console.say(f"select   {chosen.name}: {chosen.agreement:.2%} synthetic agreement (not accuracy); {reason}")
    with run_dir.publish("select") as (folder, record):
        checkpoint.save_tensors(students[chosen.name].state_dict(), folder / "student.safetensors")
        checkpoint.save_tensors(checkpoint.flatten(replay_state(networks))[0], folder / "replay.safetensors")
        write_json(
            folder / "selection.json",
            {
                "chosen": chosen.name,
                "reason": reason,
                "samples": len(pool),
                "what": "synthetic agreement with the teacher (not accuracy)",
                "candidates": [asdict(candidate) for candidate in judged],
            },
        )
        record |= {"stage": "select", "version": 3, "key": key, "inputs": inputs}
        record["recipe_slice"] = recipe.select.model_dump(mode="json")


def candidates(
    recipe: Recipe, description: artefacts.Description, state: dict[str, Any], networks: Networks, stop: Stop
) -> dict[str, nn.Module]:
    """Return the last weights, their average, and each with BatchNorm statistics re-estimated, by name."""
    found: dict[str, nn.Module] = {}
    for name, weights in (("raw", state["student"]), ("ema", state["student_ema"])):
        student = artefacts.build_student(recipe, description)
        student.load_state_dict(weights)
        found[name] = student.eval()
        if recipe.select.reestimate_batches and any(isinstance(m, nn.BatchNorm2d) for m in student.modules()):
            mix = training_mix(recipe, networks, Draws(recipe.seed, "select", torch.device("cpu")))
            found[f"{name}+batchnorm"] = reestimate_batchnorm(student, mix)
        stop.raise_if_requested("select")
    return found


def final_state(run_dir: RunDir) -> dict[str, Any]:
    """Return the state of the final checkpoint."""
    record = Record.read(run_dir.stage("distill"))
    assert record is not None  # the pipeline ran distill first
    folder = run_dir.stage("distill") / record.notes["final"]
    if not folder.is_dir():
        raise InputFileError(f"the final checkpoint {folder} is gone; distil again with --fresh.")
    return checkpoint.read_state(folder)


@dataclass(frozen=True)
class Networks:
    """What draws synthetic samples: the averaged generator and, when the method has one, the VAE."""

    generator: nn.Module
    latent: int
    vae: VAE | None
    posterior: bool


def replay_networks(recipe: Recipe, description: artefacts.Description, state: dict[str, Any]) -> Networks:
    """Rebuild the averaged generator and the VAE from the final state; without a VAE if it was never replayed."""
    method = recipe.method
    with forked_global(recipe.seed, "build", "replay"):  # drawn only to be replaced by what was trained
        generator = artefacts.build_generator(method.generator, description)
        built = artefacts.build_vae(method.vae, description, method.generator.upsamplings)
    generator.load_state_dict(state["generator_ema"])
    vae = None
    if method.replay.source == "vae" and state["replay"]["open"]:
        vae = built
        vae.load_state_dict(state["replay"]["vae"])
        vae.eval()
    return Networks(generator.eval(), method.generator.latent, vae, method.vae.sampling == "posterior")


def replay_state(networks: Networks) -> dict[str, Any]:
    """Return what replay.safetensors holds: generator, decoder and the moments of its codes."""
    state: dict[str, Any] = {"generator": networks.generator.state_dict()}
    if networks.vae is not None:
        zero, one = torch.zeros(networks.vae.latent), torch.ones(networks.vae.latent)
        state["decoder"] = networks.vae.decoder.state_dict()
        state["latent_mean"] = networks.vae.latent_mean if networks.posterior else zero
        state["latent_std"] = networks.vae.latent_variance.sqrt() if networks.posterior else one
    return state


@torch.no_grad()
def synthetic(networks: Networks, draws: Draws, purpose: str, index: int, size: int) -> Tensor:
    """Return one batch, half averaged generator and half VAE."""
    replayed = 0 if networks.vae is None else size // 2
    x: Tensor = networks.generator(draws.normal(index, f"{purpose}/novel", size - replayed, networks.latent))
    if networks.vae is None:
        return x
    noise = draws.normal(index, f"{purpose}/replay", replayed, networks.vae.latent)
    return torch.cat([x, networks.vae.decoder(networks.vae.codes(noise, posterior=networks.posterior))])


def balanced_pool(recipe: Recipe, networks: Networks, teacher: Teacher, draws: Draws, classes: int) -> Tensor:
    """Return samples balanced over the teacher's answers: drawn threefold, at most an even share kept a class."""
    share = math.ceil(recipe.select.samples / classes)
    kept: list[Tensor] = []
    counts = torch.zeros(classes, dtype=torch.long)
    for index in range(math.ceil(3 * recipe.select.samples / 128)):
        x = synthetic(networks, draws, "judge", index, 128)
        for image, label in zip(x, teacher.logits(x).argmax(1).tolist(), strict=True):
            if counts[label] < share:
                counts[label] += 1
                kept.append(image)
    return torch.stack(kept)


def training_mix(recipe: Recipe, networks: Networks, draws: Draws) -> Iterator[Tensor]:
    """Yield batches for re-estimating BatchNorm statistics, apart from those that judge."""
    for index in range(recipe.select.reestimate_batches):
        yield synthetic(networks, draws, "batchnorm", index, recipe.method.student.batch_size)


@torch.no_grad()
def reestimate_batchnorm(student: nn.Module, batches: Iterator[Tensor]) -> nn.Module:
    """Return a copy whose BatchNorm statistics are the plain average over the batches."""
    student = copy.deepcopy(student)
    norms = [m for m in student.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # None means a cumulative average
    student.train()
    for x in batches:
        student(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return student.eval()


@torch.no_grad()
def judge(name: str, student: nn.Module, pool: Tensor, teacher: Teacher) -> Candidate:
    """Return the share of samples on which a candidate gives the teacher's answer."""
    agreed = 0
    for x in pool.split(128):
        agreed += int((student(x).argmax(1) == teacher.logits(x).argmax(1)).sum())
    return Candidate.of(name, agreed / len(pool), len(pool))


def choose(candidates: list[Candidate], *, ships_average: bool) -> tuple[Candidate, str]:
    """Return the better of last weights and average; what has re-estimated BatchNorm only where it clearly beats both.

    Where agreement is equal, the last weights win. Clearly is by more than two standard errors of the difference: its
    statistics are those of synthetic images.
    """
    allowed = [c for c in candidates if ships_average or not c.name.startswith("ema")]
    by_agreement = sorted(allowed, key=lambda c: (c.agreement, c.name.startswith("raw")), reverse=True)
    best, plain = by_agreement[0], next(c for c in by_agreement if "+" not in c.name)
    if best.agreement <= plain.agreement:
        return plain, "highest agreement"
    if best.agreement - plain.agreement > 2 * math.hypot(best.standard_error, plain.standard_error):
        return best, f"more than two standard errors above {plain.name} ({plain.agreement:.2%})"
    return plain, f"within two standard errors of {best.name} ({best.agreement:.2%})"
