"""CUDA graphs: hundreds of kernels in one launch, where a GPU is so fast that launching them is what takes the time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from edgekd import console

Tensors = tuple[Tensor, ...]
Function = Callable[[Tensor], Tensors]


class CudaGraphs:
    """Functions of one batch that are recorded at their first call and replayed later, forward and backward.

    All recordings share their memory, which therefore costs no more than the largest. So a call waits for no gradient
    of the one before: while one is due, calls are not replayed. What is returned are copies.
    """

    def __init__(self) -> None:
        self.on = False
        """Whether functions are recorded; counting their operations needs them as they are."""
        self._recorded: dict[Hashable, Function] = {}
        self._gradient_due = False
        self._pool: Any = None

    def call(self, name: Hashable, function: Function, x: Tensor) -> Tensors:
        """Return what `function` returns for `x`, from a recording where there is one for this name and shape."""
        if not self.on or not x.is_cuda or self._gradient_due:
            return function(x)
        gradient = torch.is_grad_enabled() and x.requires_grad
        key = (name, gradient, x.dtype, x.shape, x.stride())
        if key not in self._recorded:
            self._recorded[key] = self._record(function, x.detach(), gradient)
        outputs = self._recorded[key](x)
        if gradient and self._recorded[key] is not function:
            self._gradient_due = True
            x.register_hook(self._gradient_came)
        return tuple(output.clone() for output in outputs)

    def _gradient_came(self, _gradient: Tensor) -> None:
        self._gradient_due = False

    def _record(self, function: Function, x: Tensor, gradient: bool) -> Function:
        """Return the recording, or the function itself where it cannot be recorded or a replay answers otherwise."""
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        sample = torch.empty_like(x).copy_(x)
        try:
            recorded = self._with_gradient(function, sample) if gradient else self._without(function, sample)
            mine, theirs = (_answers(run, x, gradient) for run in (recorded, function))
            if all(_near(a, b) for a, b in zip(mine, theirs, strict=True)):
                return recorded
            reason = "a replay differs from what it recorded"
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # what may not be captured, such as a branch on a value of the batch
            reason = str(error).strip().partition("\n")[0]
        console.warn(f"the teacher is run kernel by kernel, since it cannot be a CUDA graph: {reason}")
        return function

    def _with_gradient(self, function: Function, sample: Tensor) -> Function:
        with warnings.catch_warnings():  # of streams: the sample was made on another than torch warms up on
            warnings.simplefilter("ignore")
            recorded: Any = torch.cuda.make_graphed_callables(function, (sample.requires_grad_(),), pool=self._pool)
        graph: Function = recorded
        return graph

    def _without(self, function: Function, sample: Tensor) -> Function:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.no_grad(), torch.cuda.stream(side):  # lets libraries choose their kernels outside the recording
            for _ in range(3):
                function(sample)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph, pool=self._pool):
            outputs = function(sample)

        def replay(x: Tensor) -> Tensors:
            sample.copy_(x)
            graph.replay()
            return outputs

        return replay


def _answers(function: Function, x: Tensor, gradient: bool) -> Tensors:
    """Return copies of what a function returns for `x` and, where it is asked for, of the gradient of all of it."""
    x = x.clone().requires_grad_(gradient)
    outputs = function(x)
    answers = tuple(output.detach().clone() for output in outputs)
    if not gradient:
        return answers
    total = torch.stack([output.float().square().mean() for output in outputs if output.requires_grad]).sum()
    return (*answers, torch.autograd.grad(total, x)[0])


def _near(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors differ by no more than kernels that sum in another order do."""
    return float((a.float() - b.float()).norm()) <= 0.01 * float(b.float().norm())
