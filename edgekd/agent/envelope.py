"""The lines between the two ends of an agent: a message, and round it which request it asks or answers."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgekd import schema
from edgekd.agent.measurement import MeasurementProgress
from edgekd.agent.messages import PROTOCOL, A, Refusal, Request
from edgekd.schema import SchemaError, boolean, object_of, optional, to_json

if TYPE_CHECKING:
    from collections.abc import Sequence

_ENVELOPE = ("id", "op", "ok")


def asking(number: int, request: Request[Any]) -> Any:
    """Return the JSON object that asks for something."""
    return {"id": number, "op": request.op, **to_json(request)}


def answering(asked: ReceivedLine | None, answer: object) -> Any:
    """Return the JSON object that answers, or refuses; None was asked by a line that is no request."""
    envelope = {"id": None} if asked is None else {"id": asked.number, "op": asked.op}
    return {**envelope, "ok": not isinstance(answer, Refusal), **to_json(answer)}


def reporting(number: int | None, progress: MeasurementProgress) -> Any:
    """Return the JSON object that reports progress before the answer."""
    return {"id": number, "progress": to_json(progress)}


@dataclass(frozen=True)
class ReceivedLine:
    """A line of the near end: a request, why it is none that can be read, or None where it says to quit."""

    number: int | None
    op: str
    request: Request[Any] | Refusal | None


def asked_in(line: Any, served: Sequence[type[Request[Any]]]) -> ReceivedLine:
    """Return what a line asks for.

    Raises:
        SchemaError: nothing of a kind that is served.
    """
    kinds = {kind.op: kind for kind in served}
    if not isinstance(line, dict) or not isinstance(line.get("op"), str) or line["op"] not in (*kinds, "quit"):
        raise SchemaError("a request", line, f"an object with an op of: {', '.join([*kinds, 'quit'])}")
    number, op = optional(schema.COUNT)(line.get("id"), "id"), line["op"]
    if op == "quit":
        return ReceivedLine(number, op, None)
    try:
        return ReceivedLine(number, op, object_of(kinds[op])(_body(line), ""))
    except SchemaError as error:
        return ReceivedLine(number, op, Refusal("protocol", str(error)))


def reports_progress(line: Any) -> bool:
    """Return whether a line reports progress, and is not yet the answer."""
    return "progress" in line


def progress_in(line: Any) -> MeasurementProgress:
    """Return the progress that a line reports."""
    return object_of(MeasurementProgress)(line["progress"], "progress")


def answer_in(line: Any, request: Request[A]) -> A | Refusal:
    """Return the answer of a line, good or bad.

    Raises:
        SchemaError: nothing of that kind is answered to the request.
    """
    if "op" in line:
        schema.NAME(line["op"], "op")
    if line.get("ok") is True:
        return object_of(request.answer)(_body(line), "")
    boolean(line.get("ok"), "ok")
    return object_of(Refusal)(_body(line), "")


def other_protocol(line: Any) -> str | None:
    """Return the protocol of an agent that speaks another one than this edgekd."""
    version = line.get("protocol", PROTOCOL)
    return None if version == PROTOCOL else reprlib.repr(version)


def _body(line: Any) -> Any:
    return {key: value for key, value in line.items() if key not in _ENVELOPE}
