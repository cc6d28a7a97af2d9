"""Write the digests of the shapes of timm's models.

    python -m docs.studies.teachers.timm_shapes edgekd/ingestion/timm_shapes.json

Every model is built, most without memory, for three channels and 1000 classes; it takes some minutes and 4 GiB.
"""

from __future__ import annotations

import json
import sys
import warnings
from contextlib import nullcontext, suppress
from pathlib import Path

import timm
from torch import nn

from edgekd.errors import UsageError
from edgekd.ingestion.matching import WeightsOnMeta
from edgekd.ingestion.timm_index import digest
from edgekd.models import registry
from edgekd.models.families.outside import PREFIX
from edgekd.models.shapes import shapes_in


def digests(names: list[str]) -> dict[str, list[str]]:
    """Return the models of each digest."""
    found: dict[str, list[str]] = {}
    for name in names:
        config = timm.get_pretrained_cfg(name)
        classifier = config and config.classifier
        if not classifier:
            continue
        layers = (classifier,) if isinstance(classifier, str) else tuple(classifier)
        shape = (3, config.input_size[-1], config.input_size[-1])
        network: nn.Module | None = None
        for building in (WeightsOnMeta(), nullcontext()):  # a few run while they are built, which needs real weights
            with warnings.catch_warnings(), suppress(UsageError), building:
                warnings.simplefilter("ignore")
                network = network or registry.build(f"{PREFIX}{name}", input_shape=shape, classes=1000, seed=0)
        if network is None:
            sys.stderr.write(f"{name} cannot be built\n")
        else:
            kept = (shape for key, shape in shapes_in(network).items() if key.rpartition(".")[0] not in layers)
            found.setdefault(f"{digest(kept):016x}", []).append(name)
    return dict(sorted(found.items(), key=lambda row: row[1][0]))


if __name__ == "__main__":
    index = {"timm": timm.__version__, "models": digests(timm.list_models())}
    Path(sys.argv[1]).write_text(json.dumps(index, indent=0) + "\n", encoding="utf-8")
