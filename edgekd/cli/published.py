"""Published weights that the user has as a file, by the name of their network: `timm:NAME` and `torchvision:NAME`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from edgekd import console
from edgekd.cli.changes import Changes
from edgekd.errors import UsageError, did_you_mean
from edgekd.models import registry
from edgekd.models.families.outside import PREFIX as TIMM
from edgekd.recipe import load_resolved
from edgekd.run.directory import RunDir

TORCHVISION = "torchvision:"
_WIDTHS = {"shufflenet_v2_x": "shufflenetv2", "mnasnet": "mnasnet"}
"""torchvision's names that end in a width, and the zoo's."""
_SAVED_BY = {
    TIMM: "timm.create_model({name!r}, pretrained=True)",
    TORCHVISION: "torchvision.models.get_model({name!r}, weights='DEFAULT')",
}
"""The line that downloads a network, where there is the Internet."""


@dataclass(frozen=True)
class Teacher:
    """The teacher as it was typed: its file, its architecture if that was named, and who published it, if anyone."""

    file: Path
    arch: str
    publisher: str = ""
    """`timm:`, `torchvision:` or nothing."""

    def pixels(self, run: RunDir, changed: Changes) -> Changes:
        """Return the normalisation that published weights take, and say so; nothing where another is known."""
        known = load_resolved(run.recipe_file).pixels if run.recipe_file.is_file() else None
        settled = known is not None and bool(known.normalize or known.mean)
        asked = changed.get("pixels", {})
        if not self.publisher or settled or asked.keys() & {"normalize", "mean", "std"}:
            return {}
        if self.publisher == TORCHVISION:
            found: Changes = {"normalize": "imagenet"}
        else:
            from edgekd.ingestion import outside  # which imports torch

            moments = outside.published_moments(self.arch)
            found = dict(zip(("mean", "std"), moments, strict=True)) if moments is not None else {}
        if not found:
            return {}
        shown = "; ".join(f"{name} {_words(value)}" for name, value in found.items())
        console.say(
            f"assumed  pixels = {shown}, as {self.publisher.removesuffix(':')} says of its weights (change it with "
            "--normalize NAME, or --mean and --std)"
        )
        return {"pixels": found}


def teacher(typed: Path, weights: str, arch: str) -> Teacher:
    """Return what was typed as the teacher: a file, or the name of a network with its weights in a file."""
    text = str(typed)
    publisher = next((prefix for prefix in _SAVED_BY if text.startswith(prefix)), "")
    if not publisher or os.path.lexists(typed):
        if weights:
            raise UsageError("--weights belongs to a network by name: timm:NAME --weights FILE, torchvision:NAME.")
        return Teacher(typed, arch)
    name = text.removeprefix(publisher)
    if arch:
        raise UsageError(f"{text} and --arch {arch} both name the teacher's architecture: give one of them.")
    spec = registry.ArchSpec.parse(text) if publisher == TIMM else _of_torchvision(name)
    if not weights:
        call = _SAVED_BY[publisher].format(name=name)
        module = publisher.removesuffix(":")
        raise UsageError(
            f"edgekd downloads nothing: give the weights of {text} with --weights FILE. Where there is the Internet, "
            f'python -c "import torch, {module}; torch.save({call}.state_dict(), {f"{name}.pt"!r})" makes such a file.'
        )
    return Teacher(Path(weights), str(spec), publisher)


def _words(value: str | tuple[float, ...]) -> str:
    return value if isinstance(value, str) else ", ".join(f"{each:g}" for each in value)


def _of_torchvision(name: str) -> registry.ArchSpec:
    """The zoo's name for a network of torchvision's."""
    width = re.fullmatch(rf"({'|'.join(_WIDTHS)})(\d)_(\d+)", name)
    if width is not None:
        spec = registry.ArchSpec.parse(f"{_WIDTHS[width[1]]}@{width[2]}.{width[3]}")
    else:
        try:
            spec = registry.ArchSpec.parse(name)
        except UsageError:
            spec = registry.ArchSpec(name)
    known = list(registry.tensor_counts())
    if spec.name not in known:
        raise UsageError(f'torchvision has no classifier "{name}".{did_you_mean(name, known)}')
    return spec
