from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto

from edgekd import agent
from edgekd.agent import worker
from edgekd.agent.device import machine
from edgekd.agent.envelope import asking
from edgekd.agent.messages import CountNodes, Executed, Hello, Load, Logits, Memory, Observe, TimeRound, WarmUp
from edgekd.agent.protocol import AgentProcess, Local
from edgekd.agent.refusal import RefusedError
from edgekd.agent.runners import inputs, ort
from edgekd.agent.runners.inputs import noise
from edgekd.bench import pack
from edgekd.bench.golden import array_in
from edgekd.errors import InputFileError, MachineError, UsageError
from tiny_onnx import conv_net, gemm_net, map_net, one_number_net, qlinear_net, sequence_net, two_input_net

FOLDER = Path(agent.__file__).parent
GOLDEN_PIXELS = [56, 180, 230, 82]
GOLDEN_FLOATS = "c506e7bd044d4d131735bb2d7be2d3eff3aceb8c65b43e4cb87c3c2c550606ee"


def load(model: Path, **changes: Any) -> Load:
    return Load(**{"model": str(model), "runtime": "ort-cpu", "threads": 1, "batch": 1, **changes})


@pytest.fixture
def child() -> Iterator[AgentProcess]:
    with AgentProcess("model", Local().argv(), reply_timeout_s=30) as process:
        yield process


def old_python() -> str | None:
    """Return a Python older than this one needs to be, if the machine has one that starts."""
    homes = Path.home() / ".pyenv" / "versions"
    candidates = [shutil.which("python3.8"), *map(str, sorted(homes.glob("3.8.*/bin/python3.8")))]
    for python in filter(None, candidates):
        if subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0:
            return python
    return None


def test_answers_under_python_3_8() -> None:
    python = old_python()
    if python is None:
        pytest.skip("no Python 3.8 on this machine")
    with AgentProcess("old", Local(python).argv(), reply_timeout_s=30) as process:
        facts = process.hello()
        assert facts.python.startswith("3.8.")
        assert process.ask(Observe(0.01)).end_s > 0
        if facts.numpy is None:
            with pytest.raises(MachineError, match=r"numpy cannot be imported.*-m pip install numpy onnxruntime"):
                process.ask(load(FOLDER / "worker.py"))


def test_stdout_carries_replies_only(tmp_path: Path) -> None:
    noisy = tmp_path / "onnxruntime.py"
    noisy.write_text(
        "import os, sys\n"
        "print('printed noise')\n"
        "os.write(1, b'written noise\\n')\n"
        f"sys.path.remove({str(tmp_path)!r})\n"
        "del sys.modules['onnxruntime']\n"
        "import onnxruntime\n"
    )
    model = conv_net(tmp_path / "net.onnx")
    requests = [
        asking(1, Hello()),
        asking(2, load(model)),
        asking(3, TimeRound(2, 0, 0)),
        {"id": 4, "op": "quit"},
    ]
    with subprocess.Popen(
        Local().argv(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    ) as process:
        assert process.stdin is not None
        process.stdin.write("".join(json.dumps(request) + "\n" for request in requests).encode())
        process.stdin.flush()
        code = process.wait(timeout=30)
        out, err = process.communicate()
    replies = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [(reply["id"], reply["ok"]) for reply in replies] == [(1, True), (2, True), (3, True), (4, True)]
    assert b"printed noise" in err
    assert b"written noise" in err


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_neighbors_of_the_agent_are_not_imported(form: str, tmp_path: Path) -> None:
    if form == "zip":
        entry = tmp_path / "agent.pyz"
        entry.write_bytes(pack.agent_zip())
    else:
        entry = tmp_path / "edgekd" / "agent"
        shutil.copytree(FOLDER.parent, tmp_path / "edgekd", ignore=shutil.ignore_patterns("__pycache__"))
    (entry.parent if form == "zip" else entry).joinpath("numpy.py").write_text("raise SystemExit('the wrong numpy')")
    model = conv_net(tmp_path / "net.onnx")
    with AgentProcess("copy", [sys.executable, str(entry), "worker"], reply_timeout_s=30) as process:
        assert process.ask(load(model)).output_shapes == ((1, 4),)


def test_load_says_what_was_loaded(child: AgentProcess, tmp_path: Path) -> None:
    model = conv_net(tmp_path / "net.onnx")
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    reply = child.ask(load(model, sha256=digest, batch=3))
    assert reply.sha256 == digest
    assert reply.size_bytes == model.stat().st_size
    assert reply.provider == "CPUExecutionProvider"
    assert reply.input_shape == (3, 3, 8, 8)
    assert reply.runtime_version == onnxruntime.__version__
    assert (reply.load_ms or 0) > 0
    assert (reply.first_inference_ms or 0) > 0


def test_changed_file_is_refused(child: AgentProcess, tmp_path: Path) -> None:
    model = conv_net(tmp_path / "net.onnx")
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    model.write_bytes(model.read_bytes() + b"\0")
    with pytest.raises(InputFileError, match=f"not {digest}"):
        child.ask(load(model, sha256=digest))
    with pytest.raises(Exception, match="no model is loaded"):
        child.ask(Memory())


def test_unusable_models_are_refused(child: AgentProcess, tmp_path: Path) -> None:
    text = tmp_path / "text.onnx"
    text.write_text("no model")
    with pytest.raises(InputFileError, match=r"text\.onnx cannot be loaded"):
        child.ask(load(text))
    with pytest.raises(InputFileError, match="is not a file"):
        child.ask(load(tmp_path / "absent.onnx"))
    with pytest.raises(InputFileError, match=r"one float or uint8 image input; it has a tensor\(float\), b"):
        child.ask(load(two_input_net(tmp_path / "two.onnx")))


def test_batch_and_image_shape_must_fit(child: AgentProcess, tmp_path: Path) -> None:
    fixed = conv_net(tmp_path / "fixed.onnx", shape=(1, 3, 8, 8))
    with pytest.raises(UsageError, match="fixed batch of 1; batch 2"):
        child.ask(load(fixed, batch=2))
    with pytest.raises(UsageError, match="does not fit"):
        child.ask(load(fixed, image_shape=(3, 9, 9)))
    with pytest.raises(UsageError, match="does not fit"):
        child.ask(load(fixed, image_shape=(8, 8)))
    free = conv_net(tmp_path / "open.onnx", shape=("N", 3, "H", "W"))
    with pytest.raises(UsageError, match="give the size of an image"):
        child.ask(load(free))
    assert child.ask(load(free, image_shape=(3, 5, 6))).input_shape == (1, 3, 5, 6)


def test_absent_provider_is_refused(child: AgentProcess, tmp_path: Path) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has the provider that the test takes for absent")
    model = conv_net(tmp_path / "net.onnx")
    with pytest.raises(MachineError, match="has no CUDAExecutionProvider; it has"):
        child.ask(load(model, runtime="ort-cuda"))


def test_fallback_to_the_cpu_is_refused() -> None:
    """ONNX Runtime drops a GPU it cannot start and goes on with the CPU: a session that does so is no session."""
    options = onnxruntime.SessionOptions()
    runtime = SimpleNamespace(
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        SessionOptions=lambda: options,
        InferenceSession=lambda *_args, **_options: SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"]),
        capi=onnxruntime.capi,
    )
    with pytest.raises(RefusedError, match="fell back") as caught:
        ort.create_session(runtime, Path("net.onnx"), "CUDAExecutionProvider", 1)
    assert caught.value.kind == "machine"
    assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"


def test_threads_that_wait_may_spin_unless_told_not_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")  # which loading sets
    key = "session.intra_op.allow_spinning"
    model = conv_net(tmp_path / "net.onnx")
    with ort.OrtRunner(load(model, spin_wait=False)) as quiet:
        assert quiet.session.get_session_options().get_session_config_entry(key) == "0"
    with ort.OrtRunner(load(model)) as usual, pytest.raises(RuntimeError, match=key):
        usual.session.get_session_options().get_session_config_entry(key)


def test_noise_is_the_same_everywhere() -> None:
    floats = noise(np, [2, 3, 32, 32], "float32", 7)
    assert floats.dtype == np.float32
    assert abs(floats.mean()) < 0.05
    assert abs(floats.std() - 1) < 0.03
    assert np.array_equal(noise(np, [2, 3, 32, 32], "float16", 7), floats.astype(np.float16))
    assert not np.array_equal(noise(np, [2, 3, 32, 32], "float32", 8), floats)
    pixels = noise(np, [1, 3, 32, 32], "uint8", 7)
    assert (pixels.dtype, pixels.min(), pixels.max()) == (np.uint8, 0, 255)
    assert noise(np, [1, 1, 1, 4], "uint8", 7).ravel().tolist() == GOLDEN_PIXELS
    assert hashlib.sha256(floats.tobytes()).hexdigest() == GOLDEN_FLOATS


def test_noise_of_a_large_batch_is_drawn_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = noise(np, [2**28], "uint8", 7)  # as one number of Python it would have too many bits
    assert drawn[:4].tolist() == GOLDEN_PIXELS
    monkeypatch.setattr(inputs, "_PIECE_BYTES", 8)
    assert noise(np, [23], "uint8", 7).tobytes() == random.Random(7).getrandbits(8 * 23).to_bytes(23, "little")


def test_an_input_beyond_the_memory_is_not_drawn() -> None:
    with pytest.raises(MemoryError, match=r"drawn from 480,000,000,000,000 bytes, [0-9,]+ are free; is its size meant"):
        noise(np, [1, 3, 2 * 10**7, 2 * 10**6], "float32", 7)


def test_warm_up_ends_when_two_windows_agree(child: AgentProcess, tmp_path: Path) -> None:
    child.ask(load(conv_net(tmp_path / "net.onnx")))
    easy = child.ask(WarmUp(5, 10.0, 10))
    assert easy.stable
    assert len(easy.medians_ms) == 2


def test_warm_up_gives_up_in_time(child: AgentProcess, tmp_path: Path) -> None:
    child.ask(load(conv_net(tmp_path / "net.onnx")))
    # No window agrees with the one before to less than nothing.
    never = child.ask(WarmUp(5, -1.0, 0.4))
    assert not never.stable
    assert len(never.medians_ms) >= 4
    assert 0.4 <= never.seconds < 2


def test_round_takes_both_minima(child: AgentProcess, tmp_path: Path) -> None:
    child.ask(load(conv_net(tmp_path / "net.onnx")))
    by_runs = child.ask(TimeRound(40, 0.0, 2))
    assert len(by_runs.samples_ms) == 40
    by_time = child.ask(TimeRound(1, 0.2, 0))
    assert len(by_time.samples_ms) > 40
    assert 200 * 0.5 < sum(by_time.samples_ms) <= 1000 * (by_time.end_s - by_time.start_s)
    assert min(by_time.samples_ms) > 0


def test_logits_are_those_of_the_runtime(child: AgentProcess, tmp_path: Path) -> None:
    model = conv_net(tmp_path / "net.onnx")
    images = np.random.default_rng(1).standard_normal((5, 3, 8, 8)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    child.ask(load(model, batch=2))
    logits = array_in(child.ask(Logits(str(tmp_path / "images.npy"))))
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    pieces = [session.run(None, {"input": images[first : first + 2]})[0] for first in (0, 2, 4)]
    assert logits.dtype == np.float32
    assert np.array_equal(logits, np.concatenate(pieces))


def test_images_of_another_type_or_shape_are_refused(child: AgentProcess, tmp_path: Path) -> None:
    child.ask(load(conv_net(tmp_path / "net.onnx")))
    wrong: dict[str, np.ndarray[Any, Any]] = {
        "double": np.zeros((1, 3, 8, 8)),
        "small": np.zeros((1, 3, 4, 4), np.float32),
        "flat": np.zeros((1, 3), np.float32),
    }
    for name, images in wrong.items():
        np.save(tmp_path / f"{name}.npy", images)
        with pytest.raises(InputFileError, match=r"takes float32 \['N', 3, 8, 8\]"):
            child.ask(Logits(str(tmp_path / f"{name}.npy")))
    (tmp_path / "text.npy").write_text("no array")
    with pytest.raises(InputFileError, match=r"cannot be read as \.npy"):
        child.ask(Logits(str(tmp_path / "text.npy")))


def test_load_takes_given_images_and_pixels(child: AgentProcess, tmp_path: Path) -> None:
    model = conv_net(tmp_path / "bytes.onnx", element=TensorProto.UINT8)
    assert child.ask(load(model)).input_shape == (1, 3, 8, 8)
    np.save(tmp_path / "images.npy", np.zeros((3, 3, 8, 8), np.uint8))
    images = str(tmp_path / "images.npy")
    assert child.ask(load(model, batch=2, input=images)).input_shape == (2, 3, 8, 8)
    with pytest.raises(UsageError, match="3 images, fewer than a batch of 4"):
        child.ask(load(model, batch=4, input=images))


def test_peak_memory_is_the_models_and_not_the_parents(tmp_path: Path) -> None:
    features = 2000
    weights_bytes = 4 * features**2
    ballast = np.ones(300 * 2**20, np.uint8)  # touched, so that it counts as resident here
    with AgentProcess("model", Local().argv(), reply_timeout_s=30) as child:
        child.ask(load(gemm_net(tmp_path / "net.onnx", features)))
        memory = child.ask(Memory())
    peak_bytes, baseline_bytes = memory.peak_memory_bytes or 0, memory.baseline_memory_bytes or 0
    assert peak_bytes - baseline_bytes >= weights_bytes
    assert peak_bytes < ballast.nbytes
    assert baseline_bytes > 10 * 2**20


def test_executed_counts_what_really_ran(child: AgentProcess, tmp_path: Path) -> None:
    child.ask(load(qlinear_net(tmp_path / "half.onnx")))
    assert child.ask(CountNodes()) == Executed(1, 2, ("CPUExecutionProvider",))
    child.ask(load(conv_net(tmp_path / "float.onnx", depth=3)))
    assert child.ask(CountNodes()) == Executed(0, 3, ("CPUExecutionProvider",))


def test_other_work_is_metered(child: AgentProcess) -> None:
    if not Path("/proc/stat").is_file():
        pytest.skip("no /proc/stat on this system")
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.2)
        seen = child.ask(Observe(0.5))
    finally:
        busy.kill()
        busy.wait()
    assert (seen.other_cpus or 0) > 0.4


def test_own_work_is_not_other_work() -> None:
    before, begin, own = machine.cpu_seconds(), time.perf_counter(), time.process_time()
    if before is None:
        pytest.skip("no /proc/stat on this system")
    meter = machine.Meter()
    while time.process_time() - own < 0.5:
        pass
    seen = meter.read()
    after, wall_s = machine.cpu_seconds(), time.perf_counter() - begin
    assert after is not None
    assert seen.other_cpus == pytest.approx(max(0.0, after[0] - before[0] - 0.5) / wall_s, abs=0.1)


def test_the_work_of_a_child_is_not_other_work() -> None:
    """A round of trtexec is a process of its own, with a thread that spins."""
    before, begin = machine.cpu_seconds(), time.perf_counter()
    if before is None:
        pytest.skip("no /proc/stat on this system")
    meter = machine.Meter()
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 1: pass"], check=True)
    seen = meter.read()
    after, wall_s = machine.cpu_seconds(), time.perf_counter() - begin
    assert after is not None
    assert seen.other_cpus == pytest.approx(max(0.0, after[0] - before[0] - 1) / wall_s, abs=0.2)


@pytest.mark.parametrize(
    "line",
    [
        *("no json", "[]", '{"id": 1}', '{"id": 1, "op": "dance"}', '{"id": 1, "op": []}', '{"id": {}, "op": "hello"}'),
        *('{"id": 1, "op": "round"}', '{"id": 1, "op": "observe", "seconds": -1}'),
    ],
)
def test_malformed_requests_are_answered(line: str) -> None:
    reply = worker.serve_request(line.encode(), worker.Worker().ops())
    assert (reply["ok"], reply["kind"]) == (False, "protocol")


@pytest.mark.parametrize("network", [sequence_net, map_net])
def test_answers_that_are_no_tensors_are_refused(
    network: Callable[[Path], Path], child: AgentProcess, tmp_path: Path
) -> None:
    with pytest.raises(InputFileError, match=r"must answer with tensors to be measured; it has answer seq\("):
        child.ask(load(network(tmp_path / "net.onnx")))
    assert child.hello().python, "it goes on"


@pytest.mark.parametrize(
    ("raised", "kind", "words"),
    [
        (KeyError("nobody foresaw it"), "fault", "a fault of edgekd: KeyError: 'nobody foresaw it'"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "machine", "too little memory"),
        (MemoryError(), "machine", "too little memory"),
        (OSError(28, "No space left on device", "/x"), "machine", "No space left on device (/x)"),
    ],
)
def test_whatever_is_raised_is_one_message(
    raised: Exception, kind: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDGEKD_DEBUG", raising=False)

    def op(_request: Hello) -> None:
        raise raised

    reply = worker.serve_request(json.dumps(asking(1, Hello())).encode(), {Hello: op})
    assert (reply["ok"], reply["kind"]) == (False, kind)
    assert words in reply["error"]


def test_a_network_that_answers_once_for_all_images_has_no_logits(child: AgentProcess, tmp_path: Path) -> None:
    child.ask(load(one_number_net(tmp_path / "net.onnx")))
    images = tmp_path / "images.npy"
    np.save(images, np.zeros((2, 3, 8, 8), np.float32))
    with pytest.raises(InputFileError, match=r"net\.onnx cannot be run: zero-dimensional arrays"):
        child.ask(Logits(str(images)))


def test_end_of_stdin_ends_a_running_round(child: AgentProcess, tmp_path: Path) -> None:
    child.ask(load(conv_net(tmp_path / "net.onnx")))
    child._stdin.write(b'{"id": 0, "op": "round", "runs": 1, "seconds": 600, "settle_runs": 0}\n')
    child._stdin.flush()
    time.sleep(0.3)
    assert child._process.poll() is None
    child._stdin.close()
    assert child._process.wait(timeout=5) == 0


def test_interrupt_of_the_group_is_left_to_the_parent(child: AgentProcess) -> None:
    child.hello()
    os.kill(child.pid, signal.SIGINT)
    assert child.hello().cpus >= 1
