"""Write the digests of the shapes of timm's models.

    python -m docs.studies.teachers.timm_shapes edgekd/ingestion/timm_shapes.json

Every model that timm can build is built without memory, for three channels and 1000 classes.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import timm

from edgekd.errors import EdgekdError
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
        if not isinstance(classifier, str):
            continue
        shape = (3, config.input_size[-1], config.input_size[-1])
        try:
            with warnings.catch_warnings(), WeightsOnMeta():
                warnings.simplefilter("ignore")
                network = registry.build(f"{PREFIX}{name}", input_shape=shape, classes=1000, seed=0)
        except EdgekdError as error:  # the few that run while they are built
            sys.stderr.write(f"{name} left out: {error}\n")
            continue
        found.setdefault(digest(shapes_in(network), classifier), []).append(name)
    return dict(sorted(found.items(), key=lambda row: row[1][0]))


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(digests(timm.list_models()), indent=0) + "\n", encoding="utf-8")
