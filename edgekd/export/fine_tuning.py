"""The last remedy of an INT8 file: fine-tune the student for its plan on replay, export it, collect ranges anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from edgekd import console
from edgekd.agent.device import scratch
from edgekd.export import onnx_export
from edgekd.export.graph import read_model
from edgekd.export.int8 import QuantizationPlan
from edgekd.export.int8_chain import FineTunedModel
from edgekd.export.quantize import activation_limits
from edgekd.export.ranges import Batches, collect_ranges, ranges_of
from edgekd.export.samples import ExportSamples
from edgekd.models.stems import Shape
from edgekd.recipe import ExportTable
from edgekd.run.cards.exported import RemedyDetailsPart
from edgekd.run.files import canonical_json
from edgekd.stopping import Stop
from edgekd.synthesis import qat
from edgekd.synthesis.teacher import Teacher

BATCH = 64


@dataclass(frozen=True)
class FineTuning:
    """Fine-tunes one student; flavours that round alike share the result."""

    student: nn.Module
    teacher: Teacher
    input_shape: Shape
    table: ExportTable
    samples: ExportSamples
    calibration: Batches
    metadata: Mapping[str, str]
    stop: Stop
    _done: dict[tuple[str, float, bool], FineTunedModel] = field(default_factory=dict)

    def __call__(self, plan: QuantizationPlan) -> FineTunedModel:
        """The network fine-tuned for the plan's ranges; see `qat.fine_tune` for errors."""
        key = (plan.range_method, plan.headroom, plan.flavor.symmetric)
        if key not in self._done:
            self._done[key] = self._tuned(plan)
        return self._done[key]

    def _tuned(self, plan: QuantizationPlan) -> FineTunedModel:
        table = self.table
        ranges = ranges_of(lambda: qat.layer_inputs(self.student, self._floats(self.calibration)))
        drawn = self.samples.stream("export/qat", table.qat_steps * BATCH)
        with console.progress("fine-tune", table.qat_steps) as progress:

            def on_step(done: int, loss: float) -> None:
                self.stop.raise_if_requested("export")
                progress.update(done, f"loss {loss:.4f}")

            tuned = qat.fine_tune(
                self.student,
                activation_limits(plan.flavor, ranges.widened(plan.headroom, {}), plan.range_method),
                self._floats(drawn),
                self.teacher.logits,
                steps=table.qat_steps,
                lr=table.qat_lr,
                on_step=on_step,
            )
        settings = {"steps": table.qat_steps, "lr": table.qat_lr}
        metadata = {**self.metadata, "edgekd.fine_tuned": canonical_json({"quantisation_aware": settings})}
        with scratch.folder() as folder:
            path = folder / "tuned.onnx"
            onnx_export.export_fp32(
                tuned.network, self.input_shape, path, metadata=metadata, uint8_input=self.samples.graph_normalization
            )
            model = read_model(path)
        details = RemedyDetailsPart(lr=table.qat_lr, first_loss=tuned.losses[0], last_loss=tuned.losses[-1])
        return FineTunedModel(model, collect_ranges(model, self.calibration), details)

    def _floats(self, batches: Batches) -> Iterator[Tensor]:
        return (torch.from_numpy(x) for x in self.samples.as_network_input(batches()))
