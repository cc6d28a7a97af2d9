"""What an agent may answer, and what a comparison may hold: the one schema of all that comes from a device.

Nothing is taken from an answer before it fits: neither from a worker here, nor over ssh, nor from a bundle's file.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, get_args

from edgekd.agent.files import shallow
from edgekd.agent.kernels import Arithmetic, Kind, Runtime
from edgekd.agent.schema import (
    SchemaError,
    either,
    flag,
    many,
    maybe,
    number,
    numbers,
    one_of,
    record,
    table,
    text,
    told,
    whole,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgekd.agent.schema import Check

MOST_SAMPLES = 10**8
NAME, TARGET, REASON = text(300), text(200), text(20_000)
SHA256 = text(64, "[0-9a-f]{64}")
MS = number(1e-9, 1e9)
SECONDS = number(0, 1e12)
SIZE = whole(0, 10**16)
COUNT = whole(0, 10**9)
SHAPE = many(whole(1, 10**6), 8)
KIND, RUNTIME, ARITHMETIC = one_of(*get_args(Kind)), one_of(*get_args(Runtime)), one_of(*get_args(Arithmetic))
PRECISION = one_of("fp32", "tf32", "fp16", "int8")
COMMANDS = many(text(100_000), 100)
_MHZ = number(0, 1e7)
_WATTS = number(-1e6, 1e6)
_VERSION = text(60, r"[0-9]{1,4}\.[0-9]{1,4}(\.[0-9A-Za-z.+-]+)?")

_CLOCK = record({"min_mhz": _MHZ, "max_mhz": _MHZ, "now_mhz": _MHZ, "locked": flag})
JETSON = record(
    {
        "board": text(),
        "l4t": text(),
        "jetpack": text(),
        "power_mode": text(),
        "clocks": table(told(_CLOCK)),
        "temperatures_c": told(table(number(-1e4, 1e4))),
        "throttle_events": told(table(COUNT)),
        "cooling": told(table(COUNT)),
    }
)
MACHINE = record(
    {
        "cpu_model": text(),
        "board": maybe(text()),
        "architecture": text(),
        "cpu_flags": many(NAME, 100),
        "cpus": whole(1, 10**6),
        "usable_cpus": number(1e-3, 1e6),
        "governor": maybe(text()),
        "clock_mhz": maybe(_MHZ),
        "max_clock_mhz": maybe(_MHZ),
        "load_average": maybe(number(0, 1e6)),
        "memory_bytes": maybe(SIZE),
        "free_memory_bytes": maybe(SIZE),
        "gpus": many(text(), 100),
        "system": text(),
        "kernel": text(),
        "python": text(),
        "executable": text(5000),
        "numpy": maybe(text()),
        "runtime_packages": table(text(), 20),
        "tensorrt": maybe(record({"through": text(5000), "version": _VERSION})),
        "jetson": maybe(JETSON),
    }
)
_SEEN = {
    "start_s": SECONDS,
    "end_s": SECONDS,
    "other_cpus": maybe(number(0, 1e6)),
    "stolen_cpus": maybe(number(0, 1e6)),
    "clock_mhz": maybe(_MHZ),
    "throttle_events": COUNT,
}
ACTIVITY = record(_SEEN, {"gpu_clock_mhz": maybe(_MHZ)})
_LOADED = {
    "sha256": SHA256,
    "size_bytes": SIZE,
    "runtime_version": text(),
    "provider": text(),
    "build_s": maybe(SECONDS),
    "commands": COMMANDS,
    "load_ms": maybe(number(0, 1e9)),
    "first_inference_ms": maybe(number(0, 1e9)),
}
_MEMORY = {"peak_memory_bytes": maybe(SIZE), "baseline_memory_bytes": maybe(SIZE)}
_EXECUTED = {"integer_nodes": maybe(COUNT), "compute_nodes": maybe(COUNT)}
SAMPLES = numbers(1e-9, 1e9, MOST_SAMPLES, 1)
_WINDOWS = numbers(1e-9, 1e9, 10**6)

JOB = record(
    {
        "artefact": NAME,
        "model": NAME,
        "kind": KIND,
        "runtime": RUNTIME,
        "image_shape": maybe(SHAPE),
        "input_name": text(5000),
        "declared": maybe(many(maybe(whole(1, 10**6)), 8)),
        "flags": many(NAME, 20),
        "first_engine": flag,
        "arithmetic": ARITHMETIC,
    }
)
SETTINGS = record(
    {
        "batch": whole(1, 10**6),
        "threads": whole(1, 10**5),
        "rounds": whole(2, 10**5),
        "min_runs": whole(1, 10**9),
        "min_seconds": number(1e-9, 1e7),
        "settle_runs": COUNT,
        "warm_up_window": whole(3, 10**9),
        "warm_up_agreement": number(1e-12, 1e6),
        "warm_up_seconds": number(1e-9, 1e7),
        "seed": whole(-(2**63), 2**63),
        "reply_timeout_s": number(1e-9, 1e7),
    }
)
_MEASURED = record(
    {
        "job": JOB,
        **_LOADED,
        **_MEMORY,
        **_EXECUTED,
        "stable": flag,
        "warm_up_ms": _WINDOWS,
        "rounds": many(record({"samples_ms": SAMPLES, "activity": ACTIVITY}), 10**5, 2),
    }
)
_FIELDS = record(
    {
        "target": TARGET,
        "environment": MACHINE,
        "settings": SETTINGS,
        "before": ACTIVITY,
        "results": many(either("reason", record({"job": JOB, "reason": REASON}), _MEASURED), 1000),
        "warnings": many(REASON, 1000),
    }
)


def comparison(value: Any, place: str) -> None:
    """Accept what `measurement.to_json` writes: rows of names of their own, each with as many rounds as were asked."""
    _FIELDS(value, place)
    seen = set()
    for index, one in enumerate(value["results"]):
        here, job = f"{place}.results[{index}]", one["job"]
        name = (job["artefact"], job["runtime"])
        if name in seen:
            raise SchemaError(f"{here}.job", name, "another row than those before it")
        seen.add(name)
        if "reason" in one:
            continue
        if len(one["rounds"]) != value["settings"]["rounds"]:
            raise SchemaError(f"{here}.rounds", len(one["rounds"]), f"{value['settings']['rounds']} rounds")
        executed(one, here)


def executed(value: Any, place: str) -> None:
    """Accept counts of nodes that go together."""
    nodes, all_nodes = value["integer_nodes"], value["compute_nodes"]
    if nodes is not None and all_nodes is not None and nodes > all_nodes:
        raise SchemaError(f"{place}.integer_nodes", nodes, f"at most the {all_nodes} compute nodes")


PART = record({"comparison": comparison, "jetson_before": maybe(JETSON), "jetson_after": maybe(JETSON)})
_CHECKED = record(
    {
        "artefact": NAME,
        "runtime": RUNTIME,
        "precision": PRECISION,
        "tolerance": number(0, 1),
        "max_difference": maybe(number(0, 1e300)),
        "images": whole(1, 10**6),
        "clear": COUNT,
        "wrong_answers": COUNT,
        "passed": flag,
    }
)


def checked(value: Any, place: str) -> None:
    """Accept what `numerics.compare` finds; that it passed is no matter of opinion."""
    _CHECKED(value, place)
    difference = value["max_difference"]
    passed = difference is not None and difference <= value["tolerance"] and value["wrong_answers"] == 0
    if not value["wrong_answers"] <= value["clear"] <= value["images"]:
        raise SchemaError(f"{place}.clear", value["clear"], "a count between wrong_answers and images")
    if value["passed"] != passed:
        raise SchemaError(f"{place}.passed", value["passed"], "what max_difference and wrong_answers say")


ENERGY = record(
    {
        "artefact": NAME,
        "runtime": RUNTIME,
        "source": NAME,
        "rails": REASON,
        "period_s": number(1e-3, 1e3),
        **dict.fromkeys(("idle_w", "gross_w", "net_w"), _WATTS),
        **{name: number(-1e15, 1e15) for name in ("gross_mj_per_run", "net_mj_per_run")},
        "batch": whole(1, 10**6),
        "runs": whole(1, 10**9),
        "seconds": number(1e-9, 1e7),
        "rails_w": table(_WATTS),
    }
)
POWER = either("energy", record({"energy": REASON}, {"artefact": NAME, "runtime": RUNTIME}), ENERGY)

BUNDLE = record(
    {
        "format": whole(1, 10**6),
        "run": NAME,
        "target": TARGET,
        "manifest_sha256": SHA256,
        "files": table(SHA256, 1000),
        "comparisons": many(PART, 1000),
        "energy": many(POWER, 1000),
        "numerics": many(checked, 1000),
    }
)
"""results.json of a student.pyz."""

PROGRESS = record({"done": whole(1, 10**7), "total": whole(1, 10**7), "step": NAME, "artefact": text(500)})
REFUSAL = record({"id": COUNT, "ok": flag, "kind": NAME, "error": REASON}, {"op": NAME})
_SEALED = {"text": text(2**28), "sha256": SHA256, "kept": flag}
_FILES = many(NAME, 10_000)
ANSWERS: dict[str, dict[str, Check]] = {
    "hello": {"protocol": COUNT, "machine": MACHINE},
    "observe": _SEEN,
    "load": {**_LOADED, "input_shape": SHAPE, "output_shapes": many(many(COUNT, 100), 1000)},
    "warm_up": {"stable": flag, "medians_ms": _WINDOWS, "seconds": SECONDS},
    "round": {**_SEEN, "samples_ms": SAMPLES, "gpu_clock_mhz": maybe(_MHZ)},
    "sustain": {"runs": whole(1, 10**9), "seconds": number(1e-9, 1e7), "end_unix_s": SECONDS},
    "logits": {"dtype": NAME, "shape": many(COUNT, 8), "base64": text(2**28)},
    "memory": _MEMORY,
    "executed": {**_EXECUTED, "providers": _FILES},
    "open": {"missing": _FILES},
    "verify": {"damaged": _FILES},
    "close": {},
    **dict.fromkeys(("measure", "check", "energy"), _SEALED),
}
"""By what was asked."""
_OPTIONAL: dict[str, dict[str, Check]] = {"hello": {"agent_sha256": maybe(SHA256)}}


_WORDS_BYTES, _SAMPLE_BYTES, _SHORTEST_S = 2**20, 12, 1e-5


def most_bytes(op: str, request: Mapping[str, Any]) -> int:
    """Return how long the answer to a request may be: with samples as long as the fastest of models could make it."""
    if op == "logits":
        return 2**26
    if op not in ("round", "measure"):
        return _WORDS_BYTES
    asked = request if op == "round" else request.get("settings", {})
    names = ("runs", "seconds") if op == "round" else ("min_runs", "min_seconds")
    runs, seconds = (asked.get(name, 0) for name in names)
    samples = max(runs, seconds / _SHORTEST_S) * len(request.get("jobs", [None]))
    return 8 * _WORDS_BYTES + int(_SAMPLE_BYTES * samples)


def parsed(data: bytes) -> Any:
    """Return the value of JSON that does not make much of little: nested in reason, few texts, finite numbers.

    Raises:
        ValueError: it is no such JSON.
    """
    if sum(data.count(part) for part in (b"[", b"{", b'"')) > _MOST_PARTS:
        raise ValueError(f"it has more than {_MOST_PARTS:,} parts")
    try:
        return shallow(json.loads(data, parse_constant=_refuse_constant))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


_MOST_PARTS = 2_000_000


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def require_answer(op: str, reply: dict[str, Any]) -> None:
    """Raise `SchemaError` unless a reply, good or bad, is what may be answered to a request."""
    if reply.get("ok") is not True:
        REFUSAL(reply, "")
    elif op in ANSWERS:
        envelope = {"id": COUNT, "ok": flag}
        record({**envelope, **ANSWERS[op]}, {"op": NAME, **_OPTIONAL.get(op, {})})(reply, "")
        if op == "executed":
            executed(reply, "")
