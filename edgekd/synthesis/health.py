"""Health of the generator: whether it still shows all classes, with confidence, in different images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from edgekd.recipe.method import HealthTable


@torch.no_grad()
def image_health(images: Tensor, logits: Tensor) -> dict[str, float]:
    """Return coverage, confidence and diversity of one generated batch.

    coverage: (exp(H) - 1) / (min(K, N) - 1), H the entropy of the mean prediction: 0 when one class is all there is, 1
    when classes are as even as N images of K classes can be. confidence: mean top probability.
    diversity: standard deviation between images at a pixel over the overall one, near 0 when all are alike.
    """
    p = F.softmax(logits, dim=1)
    mean = p.mean(0)
    entropy = -(mean * mean.clamp_min(1e-30).log()).sum()
    most = max(2, min(logits.shape))
    spread = images.std(0).mean() / images.std().clamp_min(1e-12)
    return {
        "coverage": float(entropy.exp() - 1) / (most - 1),
        "confidence": float(p.max(1).values.mean()),
        "diversity": float(spread),
    }


def collapse(window: list[dict[str, float]], table: HealthTable) -> str | None:
    """Return what is wrong on average over a full window, or None."""
    if len(window) < table.window:
        return None
    mean = {key: sum(entry[key] for entry in window) / len(window) for key in window[0]}
    if mean["coverage"] < table.min_coverage:
        return f"the generator's images cover {mean['coverage']:.0%} of the classes (needed: {table.min_coverage:.0%})"
    if mean["diversity"] < table.min_diversity:
        return f"the generator's images are alike (diversity {mean['diversity']:.3f} < {table.min_diversity})"
    return None
