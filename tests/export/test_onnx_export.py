from __future__ import annotations

import getpass
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import small_nets
import torch
import torchvision
from small_nets import SHAPE, Tiny, live, op_types, samples, small_mobilenet, small_shufflenet, torch_logits
from torch import nn

from edgekd.errors import InputFileError
from edgekd.export.fidelity import TOLERANCE_FP32, check_parity
from edgekd.export.graph import metadata, read_model
from edgekd.export.onnx_export import Normalization, Uint8Input, export_fp32
from edgekd.export.ort_session import logits, open_session

SMALL = {"tiny": Tiny, "mobilenet": small_mobilenet, "shufflenet": small_shufflenet}


@pytest.mark.parametrize("name", SMALL)
def test_exported_file_keeps_the_logits_at_opset_17(name: str, tmp_path: Path) -> None:
    net = live(SMALL[name], (3, 32, 32))
    file = export_fp32(net, (3, 32, 32), tmp_path / "student.onnx")
    model = read_model(file.path)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    assert (model.ir_version, file.opset) == (8, 17)
    assert not {"ReduceMean", "Split", "BatchNormalization", "Reshape"} & {*op_types(file.path)} - (
        {"Reshape"} if name == "shufflenet" else set()
    )
    data = samples(24, (3, 32, 32))
    reference = torch_logits(net, data)
    assert np.ptp(reference) > 0.1
    parity = check_parity(file.path, data, reference, TOLERANCE_FP32)
    assert parity.passed, parity


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "shufflenet_v2_x0_5", "squeezenet1_1"),
        *("mnasnet0_5", "efficientnet_b0", "regnet_y_400mf", "resnet18"),
    ],
)
def test_every_torchvision_student_exports(name: str, tmp_path: Path) -> None:
    net = live(lambda: getattr(torchvision.models, name)(num_classes=10), (3, 64, 64))
    file = export_fp32(net, (3, 64, 64), tmp_path / "student.onnx")
    assert not {"ReduceMean", "Split", "BatchNormalization"} & {*op_types(file.path)}
    data = samples(16, (3, 64, 64))
    assert check_parity(file.path, data, torch_logits(net, data), TOLERANCE_FP32).passed


def test_names_channels_dynamic_batch_and_metadata_and_nothing_local(tmp_path: Path) -> None:
    given = {"run": "cifar10-mobilenetv2", "classes": '["cat", "Köter"]', "data_free": "true"}
    net = live(lambda: Tiny(1), (1, 16, 16))
    file = export_fp32(net, (1, 16, 16), tmp_path / "student.onnx", metadata=given)
    assert metadata(file.path) == given
    data = file.path.read_bytes()
    assert (file.size_bytes, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())

    model = read_model(file.path)
    (taken,), (made,) = model.graph.input, model.graph.output
    assert (taken.name, made.name) == ("input", "logits")
    assert [dim.dim_param or dim.dim_value for dim in taken.type.tensor_type.shape.dim] == ["batch", 1, 16, 16]
    session = open_session(file.path)
    for size in (1, 3, 7):
        assert logits(session, samples(size, (1, 16, 16))).shape == (size, 5)

    local = [
        str(Path.cwd()),
        str(tmp_path),
        str(Path(__file__).parent),
        sys.prefix,
        os.sep + getpass.getuser() + os.sep,
    ]
    for trace in (*local, ".py", "File ", "line ", "stack_trace", "def forward", "torch.export"):
        assert trace.encode() not in data, trace
    graph = model.graph
    for entry in (*graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        assert not entry.metadata_props
        assert not entry.doc_string


def test_export_is_quiet_and_leaves_module_and_random_state_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    net = live(Tiny).train()
    before, state = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    export_fp32(net, SHAPE, tmp_path / "student.onnx")
    assert net.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert capfd.readouterr() == ("", "")
    assert not list(recwarn)


def test_uint8_input_normalizes_inside_the_graph(tmp_path: Path) -> None:
    net, norm = live(Tiny), Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    file = export_fp32(net, SHAPE, tmp_path / "student.onnx", uint8_input=norm)
    (given,) = read_model(file.path).graph.input
    assert (given.name, given.type.tensor_type.elem_type) == ("image", onnx.TensorProto.UINT8)
    pixels = np.random.default_rng(0).integers(0, 256, (8, *SHAPE), dtype=np.uint8)
    mean, std = (np.array(part, dtype=np.float32).reshape(1, 3, 1, 1) for part in (norm.mean, norm.std))
    reference = torch_logits(net, ((pixels.astype(np.float32) / 255 - mean) / std).astype(np.float32))
    assert check_parity(file.path, pixels, reference, TOLERANCE_FP32).passed
    wrapped = Uint8Input(net, norm)
    np.testing.assert_allclose(wrapped(torch.from_numpy(pixels)).detach().numpy(), reference, atol=1e-4)


def test_pixels_survive_normalization_and_back() -> None:
    norm = Normalization((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    pixels = np.arange(3 * 256, dtype=np.int64).reshape(1, 3, 16, 16).astype(np.uint8)
    mean, std = (np.array(part, dtype=np.float32).reshape(1, 3, 1, 1) for part in (norm.mean, norm.std))
    np.testing.assert_array_equal(norm.to_uint8(((pixels / np.float32(255) - mean) / std).astype(np.float32)), pixels)
    assert norm.to_uint8(np.full((1, 3, 1, 1), 99, dtype=np.float32)).max() == 255


class _Bitwise(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.bitwise_and(x.int(), 3).float().mean((2, 3))


class _Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


@pytest.mark.parametrize("net", [_Bitwise(), _Branching()], ids=["newer operator", "data-dependent branch"])
def test_a_network_beyond_opset_17_is_refused_and_nothing_is_written(net: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="cannot be exported to ONNX opset 17") as caught:
        export_fp32(net, SHAPE, tmp_path / "student.onnx")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def _write_all(folder: Path) -> dict[str, str]:
    """Write every kind of file of one small network and return the hash of each."""
    from small_nets import batches

    from edgekd.export.fp16 import convert_to_fp16
    from edgekd.export.quantize import FLAVORS, quantize_to
    from edgekd.export.ranges import collect_ranges

    fp32 = export_fp32(live(Tiny), SHAPE, folder / "fp32.onnx", metadata={"b": "2", "a": "1"})
    files = [fp32, convert_to_fp16(fp32.path, folder / "fp16.onnx")]
    ranges = collect_ranges(fp32.path, batches(samples(32)))
    for flavor in FLAVORS.values():
        files.append(quantize_to(fp32.path, folder / flavor.file_name, flavor, ranges, "p99.99"))
    return {file.path.name: file.sha256 for file in files}


@pytest.mark.slow
def test_every_file_has_the_same_bytes_from_another_process_and_folder(tmp_path: Path) -> None:
    here = _write_all(tmp_path)
    other = tmp_path / "elsewhere"
    other.mkdir()
    helpers = str(Path(small_nets.__file__).parent)
    environment = {**os.environ, "PYTHONHASHSEED": "4711", "OMP_NUM_THREADS": "1", "PYTHONPATH": helpers}
    subprocess.run([sys.executable, __file__, str(other)], cwd=other, env=environment, check=True, timeout=300)
    there = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in other.glob("*.onnx")}
    assert there == here
    assert len(here) == 6


if __name__ == "__main__":
    _write_all(Path(sys.argv[1]))
