"""What is read from JSON becomes a dataclass or one message, and what is written has the same keys."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from latencies import compared, measured

from edgekd.agent.envelope import answer_in, answering, asked_in, asking
from edgekd.agent.measurement import BenchJob, Comparison, Skipped
from edgekd.agent.messages import Close, Hello, Load, LogitsArray
from edgekd.schema import (
    SchemaError,
    boolean,
    integer,
    list_of,
    mapping_of,
    number,
    object_of,
    omitted_if_none,
    one_of,
    optional,
    required,
    text,
    to_json,
    with_default,
)


@dataclass(frozen=True)
class Leaf:
    size: int = field(metadata=required(integer(0, 9)))
    name: str | None = field(default=None, metadata=with_default(optional(text(5))))
    why: str | None = field(default=None, metadata=omitted_if_none(text(5)))

    def require_consistent(self, place: str) -> None:
        if self.name == "none" and self.size:
            raise SchemaError(f"{place}.size", self.size, "0")


@dataclass(frozen=True)
class Tree:
    leaves: tuple[Leaf, ...] = field(metadata=required(list_of(object_of(Leaf), 3)))
    weights: dict[str, float] = field(metadata=required(mapping_of(number(0, 1))))
    kind: str = field(default="oak", metadata=required(one_of("oak", "elm")))
    dead: bool = field(default=False, metadata=with_default(boolean))


def test_what_is_written_is_read_again() -> None:
    tree = Tree((Leaf(1), Leaf(2, "b", "c")), {"a": 0.5}, "elm", dead=True)
    found = json.loads(json.dumps(to_json(tree)))
    assert found["leaves"] == [{"size": 1, "name": None}, {"size": 2, "name": "b", "why": "c"}]
    assert object_of(Tree)(found, "") == tree


def test_only_what_was_added_may_be_missing() -> None:
    least = {"leaves": [{"size": 1}], "weights": {}, "kind": "oak"}
    assert object_of(Tree)(least, "") == Tree((Leaf(1),), {})
    for key in least:
        with pytest.raises(SchemaError, match=f"^{key} is missing$"):
            object_of(Tree)({name: value for name, value in least.items() if name != key}, "")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"leaves": [{"size": 10}]}, r"leaves\[0\]\.size is 10, not a whole number from 0 to 9"),
        ({"leaves": [{"size": 1}] * 4}, "a list of 0 to 3 items"),
        ({"leaves": [{"size": 1, "name": "none"}]}, r"leaves\[0\]\.size is 1, not 0"),
        ({"leaves": [{"size": 1, "why": None}]}, r"leaves\[0\]\.why is None, not a text"),
        ({"weights": {"a": float("nan")}}, "weights.a is nan"),
        ({"weights": {"a": True}}, "weights.a is True"),
        ({"kind": "ash"}, "kind is 'ash', not one of oak, elm"),
        ({"news": 1}, "a key of it is 'news', not known"),
    ],
)
def test_what_does_not_fit_is_named_with_its_place(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SchemaError, match=words):
        object_of(Tree)({"leaves": [], "weights": {}, "kind": "oak", **changes}, "")


def test_a_comparison_travels_whole() -> None:
    job = BenchJob("net", Path("net.onnx"), "fp32", image_shape=(3, 8, 8))
    here = compared(measured(job, [1.0] * 10), Skipped(BenchJob("half", Path("half.onnx"), "fp16"), "n/a: no kernels"))
    found = json.loads(json.dumps(to_json(here)))
    assert object_of(Comparison)(found, "") == here
    found["results"][1]["job"] = found["results"][0]["job"]
    with pytest.raises(SchemaError, match="another row than those before it"):
        object_of(Comparison)(found, "")


def test_both_ends_of_a_pipe_share_the_keys() -> None:
    request = Load("net.onnx", "ort-cpu", 1, 2, image_shape=(3, 8, 8))
    line = json.loads(json.dumps(asking(7, request)))
    assert {"sha256", "trtexec", "engines"}.isdisjoint(line), "what is not known is not said"
    asked = asked_in(line, [Hello, Load])
    assert (asked.number, asked.op, asked.request) == (7, "load", request)
    array = LogitsArray("<f4", (1, 3), "AAAA")
    assert object_of(LogitsArray)(to_json(array), "") == array
    closed = json.loads(json.dumps(answering(asked_in(asking(8, Close(complete=True)), [Close]), Close.answer())))
    assert closed == {"id": 8, "op": "close", "ok": True}
    assert answer_in(closed, Close(complete=True)) == Close.answer()
