"""What a run holds for the science: its teacher as the algorithm sees it, and what draws its synthetic samples."""

from __future__ import annotations

import torch

from edgekd import checkpoint, machine
from edgekd.models.description import Description
from edgekd.recipe import load_resolved
from edgekd.rundir import RunDir
from edgekd.stages import artefacts
from edgekd.state_dict import unflatten
from edgekd.synthesis.sampler import Sampler
from edgekd.synthesis.teacher import Teacher


def load_teacher(run: RunDir, precision: str, device: torch.device) -> tuple[Teacher, Description]:
    """Return the teacher as the algorithm sees it, and its description."""
    description = artefacts.describe(run)
    network = artefacts.teacher_network(run, description).to(device).to(memory_format=torch.channels_last)
    machine.float32_head(network, description.head)
    arithmetic = machine.precision_for(network, device, precision)
    return Teacher(network, head=description.head, undo=description.undo, precision=arithmetic), description


def read_sampler(run: RunDir) -> Sampler:
    """Rebuild what draws synthetic samples from select/replay.safetensors."""
    recipe, description = load_resolved(run.recipe_file), artefacts.describe(run)
    state = unflatten(checkpoint.load_tensors(run.stage("select") / "replay.safetensors"), {})
    return Sampler.from_state(state, recipe, description)
