from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array
from small_nets import Student

from edgekd.errors import InputFileError
from edgekd.export.graph import (
    clip_bounds,
    consumers,
    metadata,
    producers,
    properties_of_file,
    read_model,
    replace_nodes,
    set_metadata,
    sort_topologically,
    strip_traces,
    weight_axis,
    write_model,
)


def _model(nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    given, made = (make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "xy")
    extra = [from_array(np.ones(2, dtype=np.float32), name) for name in ("used", "unused")]
    return make_model(
        make_graph(nodes, "g", [given], [made], extra), opset_imports=[make_opsetid("", 17)], ir_version=8
    )


def test_sorting_mends_a_shuffled_graph_and_drops_unread_constants(tmp_path: Path) -> None:
    nodes = [make_node("Relu", ["b"], ["y"], "3"), make_node("Add", ["a", "used"], ["b"], "2")]
    model = _model([*nodes, make_node("Neg", ["x"], ["a"], "1")])
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(model)
    sort_topologically(model)
    assert [node.name for node in model.graph.node] == ["1", "2", "3"]
    assert [tensor.name for tensor in model.graph.initializer] == ["used"]
    write_model(model, tmp_path / "sorted.onnx")
    assert producers(model)["b"].name == "2"
    assert [node.name for node in consumers(model)["a"]] == ["2"]


def test_sorting_names_the_node_that_cannot_be_ordered() -> None:
    model = _model([make_node("Add", ["x", "y"], ["y"], "turns on itself")])
    with pytest.raises(ValueError, match="turns on itself"):
        sort_topologically(model)


def test_writing_refuses_an_invalid_graph_and_leaves_no_file(tmp_path: Path) -> None:
    model = _model([make_node("Relu", ["nowhere"], ["y"])])
    with pytest.raises(onnx.checker.ValidationError):
        write_model(model, tmp_path / "broken.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"not onnx at all", None])
def test_unreadable_files_are_named(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "given.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputFileError, match=r"given\.onnx"):
        read_model(path)


def test_a_truncated_model_is_refused(student: Student, tmp_path: Path) -> None:
    data = student.path.read_bytes()
    for size in (10, len(data) // 2, len(data) - 1):
        path = tmp_path / "cut.onnx"
        path.write_bytes(data[:size])
        with pytest.raises(InputFileError, match=r"cut\.onnx"):
            read_model(path)


def test_metadata_replaces_what_was_there_in_key_order(student: Student) -> None:
    model = read_model(student.path)
    set_metadata(model, {"b": "2", "a": "1"})
    assert [(entry.key, entry.value) for entry in model.metadata_props] == [("a", "1"), ("b", "2")]
    assert metadata(student.path) == {"run": "test"}


def test_properties_are_read_of_files_that_may_be_anything(student: Student, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    found = [properties_of_file(path) for path in (student.path, tmp_path / "text.onnx", tmp_path / "absent.onnx")]
    assert found == [{"run": "test"}, {}, {}]


def test_reading_a_model_in_memory_gives_a_copy(student: Student) -> None:
    model = read_model(student.path)
    replace_nodes(read_model(model), [])
    assert model.graph.node


def test_weight_axis_is_that_of_the_output_channels() -> None:
    assert weight_axis(make_node("Conv", [], []), 4) == 0
    assert weight_axis(make_node("ConvTranspose", [], []), 4) == 1
    assert weight_axis(make_node("Gemm", [], [], transB=1), 2) == 0
    assert weight_axis(make_node("Gemm", [], []), 2) == 1
    assert weight_axis(make_node("MatMul", [], []), 2) == 1


def test_stripping_removes_every_note_of_the_exporter(student: Student) -> None:
    model = read_model(student.path)
    graph = model.graph
    graph.node[0].metadata_props.add(key="pkg.torch.onnx.stack_trace", value="SECRET")
    noted = (model, graph, graph.node[1], graph.initializer[0], graph.input[0], graph.output[0], graph.value_info[0])
    for entry in noted:
        entry.doc_string = "SECRET"
        entry.metadata_props.add(key="note", value="SECRET")
    assert b"SECRET" in model.SerializeToString()
    strip_traces(model)
    assert b"SECRET" not in model.SerializeToString()


def test_bounds_of_clips_are_read_and_a_missing_one_is_infinite() -> None:
    bound = from_array(np.array(6, dtype=np.float32), "six")
    nodes = [make_node("Clip", ["x", "", "six"], ["a"]), make_node("Clip", ["a", "six"], ["b"])]
    model = _model([*nodes, make_node("Clip", ["b"], ["y"])])
    model.graph.initializer.append(bound)
    assert clip_bounds(model) == {"a": (-np.inf, 6.0), "b": (6.0, np.inf), "y": (-np.inf, np.inf)}
