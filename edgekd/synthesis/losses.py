"""The losses, each a small function of logits or features, in the notation of docs/method.md.

Logits are (N, K) float32. Every loss is a mean over the batch unless it says otherwise, so that values at
different batch sizes compare; the balance loss depends on the batch as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def one_hot_loss(logits: Tensor) -> Tensor:
    """Return the cross entropy of T(x) with its own arg max (DAFL, arXiv 1904.01186, eq. 3)."""
    return F.cross_entropy(logits, logits.detach().argmax(1))


def balance_loss(logits: Tensor) -> Tensor:
    """Return the sum of p ln p over the batch's mean prediction p: least, -ln K, when classes are even.

    DAFL eq. 5 in nats; the released code uses log10, that is this value over ln 10.
    """
    p = F.softmax(logits, dim=1).mean(0)
    return (p * p.clamp_min(1e-30).log()).sum()


def activation_loss(features: Tensor) -> Tensor:
    """Return minus the mean magnitude of the teacher's penultimate features (DAFL eq. 4)."""
    return -features.abs().mean()


def gap_l1(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean absolute difference of logits (DFAD, arXiv 1912.11006)."""
    return F.l1_loss(student, teacher)


def gap_kl(student: Tensor, teacher: Tensor, temperature: float = 3.0) -> Tensor:
    """Return KL(T || S) at a temperature, in nats a sample."""
    p = F.log_softmax(student / temperature, dim=1)
    q = F.log_softmax(teacher / temperature, dim=1)
    return F.kl_div(p, q, reduction="batchmean", log_target=True)


def gap_js(student: Tensor, teacher: Tensor, temperature: float = 3.0) -> Tensor:
    """Return the Jensen-Shannon divergence at a temperature, in nats a sample: at most ln 2."""
    p = F.log_softmax(student / temperature, dim=1)
    q = F.log_softmax(teacher / temperature, dim=1)
    m = torch.logaddexp(p, q) - math.log(2)
    return 0.5 * (
        F.kl_div(m, p, reduction="batchmean", log_target=True) + F.kl_div(m, q, reduction="batchmean", log_target=True)
    )


def gap_released(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the clamped divergence of the authors' code: half of KL(M||P) + KL(M||Q), averaged over N x K.

    P, Q and M are clamped to [0.01, 0.99] without renormalising and the result to [0, 1]. The code adds
    1 - this value to the generator's loss.
    """
    p = F.softmax(student / 3.0, dim=1)
    q = F.softmax(teacher / 3.0, dim=1)
    m = (0.5 * (p + q)).clamp(0.01, 0.99)
    p, q = p.clamp(0.01, 0.99), q.clamp(0.01, 0.99)
    total = 0.5 * F.kl_div(p.log(), m, reduction="sum") + 0.5 * F.kl_div(q.log(), m, reduction="sum")
    return (total / p.numel()).clamp(0.0, 1.0)


GAPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": gap_l1,
    "kl": gap_kl,
    "js": gap_js,
    "released": gap_released,
}


def logit_distance(student: Tensor, teacher: Tensor, kind: str, temperature: float) -> Tensor:
    """Return the distillation loss: L1 of logits, or KL at a temperature times its square (Hinton et al. 2015)."""
    if kind == "l1":
        return F.l1_loss(student, teacher)
    return gap_kl(student, teacher, temperature) * temperature**2


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return KL(N(mean, var) || N(0, I)) summed over dimensions, in nats (Kingma and Welling 2013, appendix B)."""
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1).mean()


def latent_moments(z: Tensor) -> Tensor:
    """Return the distance of a batch of codes (N, latent) to zero mean and unit variance per dimension."""
    return (z.var(0) - 1).square().mean() + z.mean(0).square().mean()
