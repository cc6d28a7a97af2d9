"""Time a step of the authors' own code on this machine: authors.py CHECKOUT [STEPS], which prints seconds a step.

CHECKOUT is a clone of github.com/kuluhan/PRE-DFKD at 604010d. Its functions run as they are, on the CPU: `.cuda()` and
`device="cuda"` are made to do nothing. The loop is that of its main.py at 128 novel and 16 replayed images: for every
ten student updates one of the novel generator, and one of the memory in each of the first four.
"""

from __future__ import annotations

import functools
import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from edgekd import cpus

PERIOD, MEMORY_UPDATES = 10, 4


def on_cpu(make: Callable[..., Any]) -> Callable[..., Any]:
    """Return a torch function that overlooks its device."""
    return functools.wraps(make)(lambda *sizes, device=None, **keywords: make(*sizes, **keywords))


def main(checkout: Path, steps: int) -> float:
    """Take a period to warm up, then time whole periods until `steps` are done; return seconds a step."""
    sys.path.insert(0, str(checkout))
    torch.set_num_threads(cpus.usable_threads())
    for kind in (torch.Tensor, nn.Module):
        kind.cuda = lambda self, *_: self  # type: ignore[method-assign]
    torch.randn, torch.ones, torch.zeros = (on_cpu(make) for make in (torch.randn, torch.ones, torch.zeros))
    code, lenet, generators = map(importlib.import_module, ("distillation", "networks.lenet", "networks.generator"))
    torch.manual_seed(1)
    settings = {"dataset": "MNIST", "img_size": 32, "latent_dim": 1000, "batch_size": 128, "num_mem_samples": 16}
    weights = {"oh": 1.0, "ie": 5.0, "a": 0.1, "lr_G": 0.02, "mem_gen_upd_period": 1, "student_rehearse_period": 1}
    opt = SimpleNamespace(**settings, **weights)
    teacher, student = lenet.LeNet5().eval(), lenet.LeNet5Half(num_classes=10).train()
    novel, memory, encoder = (
        kind(opt, {"MNIST": 1}) for kind in (generators.Generator, generators.MemoryGenerator, generators.Encoder)
    )
    of_novel, of_memory, of_encoder, of_student = (
        torch.optim.Adam(network.parameters(), lr=rate)
        for network, rate in ((novel, opt.lr_G), (memory, opt.lr_G / 40), (encoder, opt.lr_G / 40), (student, 0.1))
    )

    def period() -> None:
        code.train_novel_generator(opt, novel, of_novel, teacher, student)
        for update in range(PERIOD):
            images = novel(torch.randn(opt.batch_size, opt.latent_dim))
            code.distill_knowledge(opt, 1, student, teacher, memory, of_student, images)
            if update < MEMORY_UPDATES:
                rest = (memory, encoder, of_memory, of_encoder, teacher, images)
                code.train_memory_generator(opt, 1, 1, *rest)  # of any iteration but the very first

    period()
    periods = -(-steps // PERIOD)
    started = time.perf_counter()
    for _ in range(periods):
        period()
    return (time.perf_counter() - started) / (PERIOD * periods)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.stdout.write(f"{main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 10):.4f}\n")
