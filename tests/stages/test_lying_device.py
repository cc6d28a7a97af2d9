"""A device that lies: every key of every answer, every lie: one message and exit code 6, or it makes sense."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command import Result

from edgekd import agent
from edgekd.agent import pipes
from edgekd.agent.measurement import BenchJob, BenchSettings
from edgekd.agent.protocol import AgentProcess
from edgekd.agent.session import DeviceResults
from edgekd.bench import comparing, device_session, golden, latency, remote, results, tables
from edgekd.bench import device as devices
from edgekd.bench.device_session import DeviceSession
from edgekd.errors import MachineError
from edgekd.schema import to_json
from tiny_onnx import conv_net

LIAR = Path(__file__).parents[1] / "helpers" / "liar.py"
HOST = remote.Host("device")
QUICK = BenchSettings(rounds=2, min_runs=4, min_seconds=0.02, warm_up_seconds=0.2)
ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\n"
JETSON = {
    "board": "Orin",
    "l4t": "36.4.3",
    "jetpack": "6.2",
    "power_mode": "MAXN",
    "clocks": {"locked": "yes", "gpu": {"min_mhz": 1.0, "max_mhz": 1.0, "now_mhz": 1.0, "locked": True}},
    "temperatures_c": {"cpu": 40.5},
    "throttle_events": {"oc1": 0},
    "cooling": {"fan": 1},
}
LIES: dict[str, Any] = {
    "null": None,
    "a number": 7,
    "minus one": -1,
    "NaN": float("nan"),
    "infinite": float("inf"),
    "huge": 1e308,
    "an endless integer": 10**4000,
    "true": True,
    "text": "text",
    "empty": "",
    "a million characters": "x" * 10**6,
    "escape sequences": ESCAPES,
    "half a character": "\ud800",
    "an empty list": [],
    "a long list": [0.5] * 10**5,
    "a deep list": json.loads("[" * 400 + "]" * 400),
    "an object": {"key": {}},
}


def conversation(process: AgentProcess, model: Path, job: BenchJob, images: Path, logits: Any) -> dict[str, Any]:
    """Do what `bench --on` does, and print it."""
    session = DeviceSession(HOST, process, "key", ".cache/edgekd/work-key", lambda _text: None, lambda: None)
    session.begin(None, tensorrt=True)  # type: ignore[arg-type]  # a folder, not a zip file, has no hash
    session.put([model, images])
    comparison = session.measure([job], QUICK, lambda _progress: None)
    check, power = session.check(job, QUICK, images.name, logits), session.energy(job, QUICK)
    made = DeviceResults((comparison,), (power,), (check,))
    told = devices.published(None, HOST.address, model.parent, made)
    found: dict[str, Any] = to_json(told)
    numerics, energy = tables.numerics_rows(told.numerics or ()), tables.energy_rows(told.energy or ())
    for rows in (tables.latency_rows(told.results), numerics, energy):
        assert all(isinstance(cell, str) for row in rows for cell in row)
    return found


class Scene:
    """A model, and the answers of a real agent to a whole conversation about it."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.home.mkdir()
        self.model = conv_net(folder / "net.onnx")
        self.job = golden.described(BenchJob("net.onnx", self.model))
        ((self.images, self.logits),) = golden.write_files([self.job], folder).values()
        self.answers: dict[str, Any] = {}
        ask = AgentProcess.ask

        def noted(process: AgentProcess, request: Any, **options: Any) -> Any:
            answer = ask(process, request, **options)
            self.answers[request.op] = {"id": 0, "ok": True, "op": request.op, **to_json(answer)}
            return answer

        serve = [sys.executable, str(Path(agent.__file__).parent), "serve"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HOME", str(self.home))
            patch.setattr(AgentProcess, "ask", noted)
            with AgentProcess("device", serve, 60) as process:
                self.converse(process)
        self.answers["hello"]["machine"] |= {"jetson": JETSON, "tensorrt": {"through": "x", "version": "10.3.0"}}
        self.answers["open"]["missing"] = ["net.onnx"]
        self.answers["close"] = {"id": 0, "ok": True, "op": "close"}
        self.seal("measure", jetson_before=JETSON, jetson_after=JETSON)
        energy = {"source": "hwmon", "rails": "VDD_IN", "period_s": 0.1, "idle_w": 1.0, "gross_w": 2.0, "net_w": 1.0}
        energy |= {"gross_mj_per_run": 1.0, "net_mj_per_run": 0.5, "batch": 1, "runs": 9, "seconds": 15.0}
        energy |= {"rails_w": {"VDD_IN": 2.0}, "artefact": "net.onnx", "runtime": "ort-cpu"}
        self.answers["energy"]["text"] = "{}"
        self.seal("energy", **energy)
        self.file = folder / "answers.json"
        self.file.write_text(json.dumps(self.answers))

    def seal(self, op: str, **changes: Any) -> None:
        sys.path.insert(0, str(LIAR.parent))
        import liar

        self.answers[op] = liar.seal(self.answers[op], {**json.loads(self.answers[op]["text"]), **changes})

    def converse(self, process: AgentProcess) -> dict[str, Any]:
        def copied(_host: remote.Host, file: Path, place: str, _asked: object) -> None:
            shutil.copy(file, self.home / place)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(remote.Host, "copy", copied)
            return conversation(process, self.model, self.job, self.images, self.logits)

    def liar(self, **options: Any) -> AgentProcess:
        command = [sys.executable, "-I", "-S", str(LIAR), str(self.file)]
        return AgentProcess("device", command, 60, **options)

    def paths(self, op: str) -> Iterator[tuple[Any, ...]]:
        """Yield the way to each key of an answer; of a list to its first item."""
        yield from _paths(self.answers[op], ())
        if "text" in self.answers[op]:
            yield from (("inner", *path) for path in _paths(json.loads(self.answers[op]["text"]), ()))


def _paths(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items: Any = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, one in items:
        yield from _paths(one, (*path, key))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "RESAMPLES", 20)
        made = Scene(tmp_path_factory.mktemp("scene"))
        for limit in ("_HELLO_TIMEOUT_S", "_FAREWELL_TIMEOUT_S", "LOAD_TIMEOUT_S"):
            patch.setattr(device_session, limit, 5.0)
        yield made


def tell(process: AgentProcess, **lie: Any) -> None:
    process._pipes.send(json.dumps({"lie": lie}).encode() + b"\n", time.monotonic() + 10)


OPS = ("hello", "open", "verify", "measure", "check", "energy")


@pytest.mark.parametrize(
    ("op", "every"), [*((op, 11) for op in OPS), *(pytest.param(op, 1, marks=pytest.mark.slow) for op in OPS)]
)
def test_a_lie_in_any_key_ends_in_one_message(op: str, every: int, scene: Scene) -> None:
    lies = [(name, {"value": value}) for name, value in LIES.items()] + [("nothing", {"absent": True})]
    told = [(path, lie) for path in scene.paths(op) for lie in lies]
    told += [((*path[:-1], "surprise"), ("a key more", {"value": 1})) for path in scene.paths(op) if path[-1] != 0]
    refused = 0
    with scene.liar() as process:
        process._process.kill = lambda: None  # type: ignore[method-assign]  # one for thousands of lies
        honest = scene.converse(process)
        for path, (name, lie) in told[::every]:
            process._heard = False
            tell(process, op=op, path=path, **lie)
            try:
                found = scene.converse(process)
            except MachineError as error:
                refused += len(str(error)) < 3000
            except Exception as error:
                raise AssertionError(f"{'.'.join(map(str, path))} = {name}: {type(error).__name__}: {error}") from error
            else:
                results.require_publishable("results.json", found)
        process._heard = False
        tell(process)
        assert scene.converse(process)["results"] == honest["results"]
    assert refused > 0.7 * len(told[::every]), "most lies are no answers"


RAW: dict[str, tuple[dict[str, Any], str]] = {
    "not JSON": ({"raw": "hello, here is your answer\n"}, "not what an agent"),
    "half a line, and the end": ({"do": "os.write(1, b'{\"id\": '); os._exit(0)"}, "connection to device was cut"),
    "the end": ({"do": "os._exit(3)"}, "the agent ended with exit code 3"),
    "deep nesting": ({"raw": '{"id": ID, "ok": ' + "[" * 100_000 + "\n"}, "nested too deeply"),
    "many parts": ({"do": "os.write(1, b'{\"id\": 1, \"ok\": [' + b'[],' * 300000 + b']}\\n')"}, "not what an agent"),
    "NaN": ({"raw": '{"id": ID, "ok": true, "x": NaN}\n'}, "NaN is no number"),
    "another id": ({"raw": '{"id": 99, "ok": true}\n'}, "an object with the id"),
    "a list": ({"raw": "[ID]\n"}, "an object with the id"),
    "a refusal without a kind": ({"raw": '{"id": ID, "ok": false}\n'}, "kind is missing"),
    "a refusal of a strange kind": ({"raw": '{"id": ID, "ok": false, "kind": "x", "error": "no"}\n'}, "device: no"),
    "a refusal of our own kind": (
        {"raw": '{"id": ID, "ok": false, "kind": "protocol", "error": "no"}\n'},
        "device: no",
    ),
    "a refusal that is no text": ({"raw": '{"id": ID, "ok": false, "kind": [], "error": {}}\n'}, "not what an agent"),
    "a line without end": ({"do": "while True: os.write(1, b'x' * 65536)"}, "without end"),
    "lines without end": ({"do": "while True: os.write(1, b'[1]\\n' * 9999)"}, "not what an agent"),
    "stderr without end": ({"do": "while True: os.write(2, b'x' * 65536)"}, "without end"),
    "a slow drip": ({"do": "while True: os.write(1, b'x'); time.sleep(0.02)"}, "no answer to"),
    "silence": ({"do": "time.sleep(60)"}, "no answer to"),
    "progress backwards": (
        {"raw": '{"id": ID, "progress": {"done": 2, "total": 3, "step": "x", "artefact": "x"}}\n' * 2},
        "progress.done is 2, not above 2",
    ),
    "progress without end": (
        {"raw": '{"id": ID, "progress": {"done": 4, "total": 3, "step": "x", "artefact": "x"}}\n'},
        "progress.done is 4",
    ),
    "progress of nothing": ({"raw": '{"id": ID, "progress": 7}\n'}, "progress is 7"),
}


@pytest.fixture
def fake_ssh(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a ssh and a scp on PATH that lead nowhere but to the liar; return the file that says what it tells."""
    lie = tmp_path / "lie.json"
    lie.write_text("{}")
    (tmp_path / "probe").write_text("edgekd python yes\nedgekd version 3.11\nedgekd folder yes\nedgekd free 9999999\n")
    code = f"""import json, sys; sys.path.insert(0, {str(LIAR.parent)!r}); import liar
known = json.load(open({str(scene.file)!r}))
known["hello"]["agent_sha256"] = sys.argv[1]
liar.main(known, json.load(open({str(lie)!r})))"""
    (tmp_path / "serve.py").write_text(code)
    ssh = f"""#!/bin/sh
for last; do :; done
case "$last" in
  *edgekd*python*yes*) cat {tmp_path}/probe;;
  *" serve") exec {sys.executable} -I -S {tmp_path}/serve.py $(sha256sum {tmp_path}/agent.pyz | cut -d' ' -f1);;
  *) cat {tmp_path}/clean;;
esac
"""
    scp = f"""#!/bin/sh
for last; do before="$file"; file="$last"; done
case "$file" in *agent*) cp "$before" {tmp_path}/agent.pyz;; esac
"""
    for name, script in (("ssh", ssh), ("scp", scp)):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for limit in ("_HELLO_TIMEOUT_S", "LOAD_TIMEOUT_S", "_FAREWELL_TIMEOUT_S"):
        monkeypatch.setattr(device_session, limit, 1.5)
    monkeypatch.setattr(comparing, "settings_of", lambda _table: [QUICK])
    monkeypatch.setattr(pipes, "STRAY_BYTES", 2**20)
    monkeypatch.chdir(tmp_path)
    return lie


def test_an_honest_device_is_measured(scene: Scene, fake_ssh: Path) -> None:
    result = Result("bench", scene.model, "--on", "device", "--runtime", "ort-cpu", "--json")
    assert result.exit_code == 0, result.stderr
    assert [row["artefact"] for row in result.json()["results"]] == ["net.onnx"]


@pytest.mark.parametrize("name", RAW)
def test_an_answer_of_no_form_is_one_message(name: str, scene: Scene, fake_ssh: Path) -> None:
    lie, words = RAW[name]
    fake_ssh.write_text(json.dumps({"op": "measure", **lie}))
    begin = time.monotonic()
    result = Result("bench", scene.model, "--on", "device")
    assert (result.exit_code, words in result.stderr, "device" in result.stderr) == (6, True, True), result.stderr
    assert len(result.stderr) < 5000
    assert time.monotonic() - begin < 12
    assert result.stdout == ""


@pytest.mark.parametrize("name", ["not JSON", "a line without end", "silence", "another id", "the end"])
def test_the_first_answer_may_be_of_no_form_too(name: str, scene: Scene, fake_ssh: Path) -> None:
    fake_ssh.write_text(json.dumps({"op": "hello", **RAW[name][0]}))
    result = Result("students", "lenet5-half", "--input", "1x16x16", "--measure", "--on", "device")
    assert (result.exit_code, "device" in result.stderr) == (6, True), result.stderr


@pytest.mark.parametrize(
    "said",
    [
        *("", "edgekd python yes\nedgekd version 3\n", "edgekd python yes\nedgekd version 3.x\n"),
        *("edgekd python yes\nedgekd version ³.8\n", f"edgekd python yes\nedgekd version 3.{'9' * 5000}\n"),
        *(
            "edgekd python yes\nedgekd version 3.9\nedgekd folder yes\nedgekd free ²\n",
            "\x1b]0;x\x07\n" * 9,
            "\0" * 999,
        ),
        "x" * 2_000_000,
    ],
)
def test_what_is_said_before_the_agent_may_be_anything(said: str, scene: Scene, fake_ssh: Path) -> None:
    (fake_ssh.parent / "probe").write_text(said)
    (fake_ssh.parent / "clean").write_text(said.replace("python yes", "freed x1"))
    for arguments in ((scene.model, "--on", "device"), ("--on", "device", "--clean")):
        result = Result("bench", *arguments)
        assert (result.exit_code, len(result.stderr) < 3000) == (6, True), result.stderr[:500]
