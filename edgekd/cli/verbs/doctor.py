"""`edgekd doctor`: what this machine can do for distillation and measuring, and what stands in the way."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from edgekd import console
from edgekd.agent.device.environment import this_machine
from edgekd.bench.conflict import runtime_conflict
from edgekd.cli import flags
from edgekd.cli.verb import verb

if TYPE_CHECKING:
    import torch
    from torch import nn


@verb("edgekd doctor", "edgekd doctor --json")
def doctor(json: flags.Json = False) -> None:
    """Say what this machine can do, and what stands in the way."""
    findings = examine()
    if json:
        console.print_json(findings)
    else:
        console.print_table(("check", "finding"), [(k, str(v)) for k, v in findings["facts"].items()])
    for problem in findings["problems"]:
        console.warn(problem)
    console.closing("nothing", f"{len(findings['problems'])} problems", "edgekd distill TEACHER")


def examine() -> dict[str, Any]:
    """Return facts and problems: things that work, but not as they should."""
    import torch

    from edgekd import machine
    from edgekd.agent.refusal import RefusedError
    from edgekd.agent.runners import tensorrt

    environment = this_machine()
    device = machine.resolve_device("auto")
    threads = machine.use_threads(0)
    runtime, problems = _runtime()
    facts: dict[str, Any] = {
        "cpu": environment.cpu_model,
        "cores": environment.cpus,
        "usable CPUs": f"{environment.usable_cpus:g} (by affinity and the quota of the control group)",
        "memory": f"{(environment.memory_bytes or 0) / 2**30:.1f} GiB",
        "torch": torch.__version__,
        "device": str(device),
        "threads": threads,
        "onnxruntime": runtime,
    }
    try:
        tensorrt_facts = tensorrt.find_tensorrt()
        facts["tensorrt"] = (
            "none" if tensorrt_facts is None else f"{tensorrt_facts.version}, through {tensorrt_facts.through}"
        )
    except RefusedError as refusal:
        facts["tensorrt"] = "unusable"
        problems.append(f"{refusal}.")
    speedup = bf16_speedup(device)
    expected = machine.precision_for(_dense(), device, "auto").bf16
    facts["bf16 convolutions"] = f"{speedup:.1f} times as fast as fp32 (auto uses {'bf16' if expected else 'fp32'})"
    if expected and speedup < 0.9:
        problems.append('precision auto chooses bf16, which is slower here: set precision = "fp32" in the recipe.')
    if not expected and speedup > 1.5:
        problems.append('precision auto chooses fp32, but bf16 is faster here: set precision = "bf16" in the recipe.')
    conflict = runtime_conflict(environment)
    if conflict is not None:
        problems.append(f"{conflict.message} {' && '.join(conflict.commands)}")
    return {"facts": facts, "problems": problems}


def _runtime() -> tuple[str, list[str]]:
    """What is known of ONNX Runtime, and why it cannot be used: a mixture of two builds may lack files."""
    try:
        import onnxruntime

        return f"{onnxruntime.__version__}, {', '.join(onnxruntime.get_available_providers())}", []
    except (ImportError, AttributeError) as error:
        return "unusable", [f"onnxruntime cannot be imported ({error}); install it again."]


def _dense() -> nn.Module:
    from torch import nn

    return nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1))


def bf16_speedup(device: torch.device, repeats: int = 7) -> float:
    """Return the time of dense convolutions in float32 over that in bfloat16, the best of a few repeats each.

    A second is enough for either: a CPU without bfloat16 arithmetic takes as long for a single pass.
    """
    import torch

    from edgekd import machine

    network = _dense().to(device).to(memory_format=torch.channels_last)
    x = torch.zeros(8, 64, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    best = {}
    for bf16 in (False, True):
        arithmetic = machine.Precision(device, bf16)
        times: list[float] = []
        while len(times) < repeats and sum(times) < 1:
            start = time.perf_counter()
            with torch.no_grad(), arithmetic():
                network(x).sum().item()
            times.append(time.perf_counter() - start)
        best[bf16] = min(times)
    return best[False] / best[True]
