from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_nets import Student

import toy
from edgekd.models.code import trust
from edgekd.recipe import Recipe, merge
from edgekd.rng import KeyedDraws
from edgekd.run.directory import RunDir
from edgekd.stages import distill
from edgekd.synthesis.state import State
from edgekd.synthesis.steps import StepContext

# Toy networks are too small for two threads, and two tests run at a time, whose processes would wait for each other.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what edgekd remembers of its user out of the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture
def approve() -> Iterator[Callable[..., None]]:
    """Approve of code as a command that names it does."""
    with trust.session():
        yield trust.approve_code


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_teacher(tmp_path_factory.mktemp("teacher") / "teacher.pt")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five grey pictures for each of the toy teacher's four classes."""
    root = tmp_path_factory.mktemp("data") / "photos"
    noise = np.random.default_rng(0)
    for label in range(toy.CLASSES):
        (root / f"class{label}").mkdir(parents=True)
        for index in range(5):
            pixels = noise.integers(0, 256, toy.SHAPE[1:], dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"class{label}" / f"{index}.png")
    return root


CPU = torch.device("cpu")
Laboratory = Callable[..., tuple[State, StepContext]]


@dataclass(frozen=True)
class Finished:
    """A toy run that went through every stage, and what each did to the global generators."""

    run: RunDir
    recipe: Recipe
    disturbed: dict[str, list[str]]


def global_states() -> dict[str, Any]:
    numpy_state: Any = np.random.get_state()
    states = {"torch": torch.get_rng_state().tolist(), "python": random.getstate()}
    return {**states, "numpy": [part.tolist() if isinstance(part, np.ndarray) else part for part in numpy_state]}


@pytest.fixture(scope="session")
def finished(teacher_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder, wanted = tmp_path_factory.mktemp("finished") / "toy", toy.toy_recipe(teacher_file, export={"int8": True})
    disturbed = {}
    for name in (*toy.CHAIN, "bench"):
        before = global_states()
        run = toy.advance(folder, wanted, (name,))
        after = global_states()
        disturbed[name] = [source for source in before if before[source] != after[source]]
    return Finished(run, wanted, disturbed)


@pytest.fixture(scope="session")
def ingested(teacher_file: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return toy.advance(tmp_path_factory.mktemp("ingested") / "toy", toy.toy_recipe(teacher_file), ("ingest",))


@pytest.fixture(scope="session")
def laboratory(teacher_file: Path, ingested: RunDir) -> Laboratory:
    """Build the state and the context of a distillation whose [method] has the given changes, without running it.

    What the default preset may change with the next measurement is given here.
    """
    plain = {
        "generator": {"adversary": 1.0, "adversary_ramp": [0.0, 0.0], "gap": "l1", "lr": 2e-3, "betas": [0.5, 0.999]},
        "student": {"optimizer": "adam", "loss": "l1", "schedule": "cosine", "warmup": 0.0, "ema_decay": 0.99},
        "vae": {"sampling": "posterior", "decoder_leak": 0.0, "feature": 0.0},
        "replay": {"ema_decay": 0.95},
        "consolidation": {"start": 1.0},
    }

    def build(**method: Any) -> tuple[State, StepContext]:
        recipe = toy.toy_recipe(teacher_file, precision="fp32", method=merge(plain, method))
        teacher, description = toy.teacher_of(ingested)
        context = StepContext(
            recipe, recipe.method.steps, teacher, description, KeyedDraws(recipe.seed, "distill", CPU)
        )
        return distill.build_state(context), context

    return build


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Student:
    return Student.exported(tmp_path_factory.mktemp("student"))
