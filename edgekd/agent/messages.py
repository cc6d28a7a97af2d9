"""What an agent is asked and what it answers: one dataclass each, shared by both ends of the pipe.

A line is one object of JSON: the keys of a request or of an answer, beside those of the envelope (`id`, `op`, `ok`).
Nothing is taken from it before it fits: neither from a worker here, nor over ssh.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from edgekd import schema
from edgekd.agent.device.environment import Environment
from edgekd.agent.device.machine import Activity
from edgekd.agent.device.workplace import FileFacts
from edgekd.agent.kernels import RUNTIME, Runtime
from edgekd.agent.measurement import (
    FILE_NAME,
    BenchJob,
    BenchSettings,
    LoadedFacts,
    MemoryUse,
    NodeCounts,
)
from edgekd.schema import (
    boolean,
    integer,
    list_of,
    number,
    object_of,
    omitted_if_none,
    optional,
    required,
    text,
    with_default,
)

if TYPE_CHECKING:
    pass

PROTOCOL = 2
_FILE = text(5000)
_NAMES = list_of(schema.NAME, 10_000)
_LONG_TEXT = text(2**28)
_WORDS_BYTES, _SAMPLE_BYTES, _SHORTEST_S = 2**20, 12, 1e-5
A = TypeVar("A")


@dataclass(frozen=True)
class Greeting:
    """Who answers, and on what machine."""

    protocol: int = field(metadata=required(schema.COUNT))
    machine: Environment = field(metadata=required(object_of(Environment)))
    agent_sha256: str | None = field(default=None, metadata=with_default(optional(schema.SHA256)))
    """Of the zip file that it runs from."""


@dataclass(frozen=True)
class Loaded(LoadedFacts):
    """What was loaded, and the shapes it is run with."""

    input_shape: tuple[int, ...] = field(metadata=required(schema.SHAPE))
    output_shapes: tuple[tuple[int, ...], ...] = field(metadata=required(list_of(list_of(schema.COUNT, 100), 1000)))


@dataclass(frozen=True)
class WarmedUp:
    """Whether the times settled, and the median of each window."""

    stable: bool = field(metadata=required(boolean))
    medians_ms: tuple[float, ...] = field(metadata=required(schema.WINDOWS_MS))
    seconds: float = field(metadata=required(schema.NONNEGATIVE_S))


@dataclass(frozen=True)
class Timed(Activity):
    """The samples of one round, and what else went on meanwhile."""

    samples_ms: tuple[float, ...] = field(default=(), metadata=required(schema.SAMPLES_MS))


@dataclass(frozen=True)
class Sustained:
    """How many runs were done in which time, and the Unix time at their end."""

    runs: int = field(metadata=required(schema.RUNS))
    seconds: float = field(metadata=required(schema.POSITIVE_S))
    end_unix_s: float = field(metadata=required(schema.NONNEGATIVE_S))


@dataclass(frozen=True)
class LogitsArray:
    """The bytes of a C-ordered array."""

    dtype: str = field(metadata=required(schema.NAME))
    shape: tuple[int, ...] = field(metadata=required(list_of(schema.COUNT, 8)))
    base64: str = field(metadata=required(_LONG_TEXT))


@dataclass(frozen=True)
class Executed(NodeCounts):
    """What really ran, and on which providers."""

    providers: tuple[str, ...] = field(metadata=required(_NAMES))


@dataclass(frozen=True)
class Missing:
    """Which files are to be copied."""

    missing: tuple[str, ...] = field(metadata=required(_NAMES))


@dataclass(frozen=True)
class Damaged:
    """Which files did not arrive whole."""

    damaged: tuple[str, ...] = field(metadata=required(_NAMES))


@dataclass(frozen=True)
class Sealed:
    """A result as JSON text with its hash; `kept` from before the connection was cut."""

    text: str = field(metadata=required(_LONG_TEXT))
    sha256: str = field(metadata=required(schema.SHA256))
    kept: bool = field(metadata=required(boolean))


@dataclass(frozen=True)
class Done:
    """That it was done."""


@dataclass(frozen=True)
class Refusal:
    """Why a request was not served; `kind` says who has to act."""

    kind: str = field(metadata=required(schema.NAME))
    error: str = field(metadata=required(schema.REASON))


class Request(Generic[A]):
    """What an agent is asked: `op` names it, and `answer` is the dataclass that it is answered with."""

    op: ClassVar[str]
    answer: type[A]

    def most_bytes(self) -> int:
        """Return how long the answer may be."""
        return _WORDS_BYTES


def _samples_bytes(runs: int, seconds: float, artefacts: int = 1) -> int:
    """How long an answer may be with samples as long as the fastest of models could make it."""
    return 8 * _WORDS_BYTES + int(_SAMPLE_BYTES * max(runs, seconds / _SHORTEST_S) * artefacts)


@dataclass(frozen=True)
class Hello(Request[Greeting]):
    """Say who answers, and with `tensorrt` also which TensorRT is there."""

    op, answer = "hello", Greeting
    tensorrt: bool = field(default=False, metadata=with_default(boolean))
    trtexec: str | None = field(default=None, metadata=omitted_if_none(_FILE))


@dataclass(frozen=True)
class Observe(Request[Activity]):
    """Watch the machine without doing anything."""

    op, answer = "observe", Activity
    seconds: float = field(metadata=required(schema.NONNEGATIVE_S))


@dataclass(frozen=True)
class Load(Request[Loaded]):
    """Load a model and run it once."""

    op, answer = "load", Loaded
    model: str = field(metadata=required(_FILE))
    runtime: Runtime = field(metadata=required(RUNTIME))
    threads: int = field(metadata=required(schema.THREADS))
    batch: int = field(metadata=required(schema.BATCH))
    sha256: str | None = field(default=None, metadata=omitted_if_none(schema.SHA256))
    image_shape: tuple[int, ...] | None = field(default=None, metadata=omitted_if_none(schema.SHAPE))
    input_name: str = field(default="input", metadata=with_default(_FILE))
    declared: tuple[int | None, ...] | None = field(default=None, metadata=omitted_if_none(schema.DECLARED_SHAPE))
    flags: tuple[str, ...] = field(default=(), metadata=with_default(schema.FLAGS))
    seed: int = field(default=0, metadata=with_default(integer(-(2**63), 2**63)))
    spin_wait: bool = field(default=True, metadata=with_default(boolean))
    """Whether threads that wait may spin; not where energy is measured."""
    input: str | None = field(default=None, metadata=omitted_if_none(_FILE))  # An .npy file to run it with; else noise
    trtexec: str | None = field(default=None, metadata=omitted_if_none(_FILE))
    weights: tuple[str, ...] = field(default=(), metadata=with_default(list_of(FILE_NAME, 1000)))
    """Names of the files beside the model that it keeps weights in; `sha256` is over all."""
    engines: str | None = field(default=None, metadata=omitted_if_none(_FILE))
    engines_since_s: float | None = field(default=None, metadata=omitted_if_none(schema.NONNEGATIVE_S))


@dataclass(frozen=True)
class WarmUp(Request[WarmedUp]):
    """Run windows of `window` runs until the medians of two in a row agree within `agreement`."""

    op, answer = "warm_up", WarmedUp
    window: int = field(metadata=required(schema.RUNS))
    agreement: float = field(metadata=required(number(-1e6, 1e6)))
    most_seconds: float = field(metadata=required(schema.POSITIVE_S))


@dataclass(frozen=True)
class TimeRound(Request[Timed]):
    """Time at least `runs` runs and `seconds`, after `settle_runs` untimed ones."""

    op, answer = "round", Timed
    runs: int = field(metadata=required(schema.RUNS))
    seconds: float = field(metadata=required(schema.NONNEGATIVE_S))
    settle_runs: int = field(metadata=required(schema.COUNT))

    def most_bytes(self) -> int:
        """Return how long the answer may be."""
        return _samples_bytes(self.runs, self.seconds)


@dataclass(frozen=True)
class Sustain(Request[Sustained]):
    """Run for `seconds`, without a thread that spins."""

    op, answer = "sustain", Sustained
    seconds: float = field(metadata=required(schema.POSITIVE_S))


@dataclass(frozen=True)
class Logits(Request[LogitsArray]):
    """Return the first output for the images of the .npy file `input`."""

    op, answer = "logits", LogitsArray
    input: str = field(metadata=required(_FILE))

    def most_bytes(self) -> int:
        """Return how long the answer may be."""
        return 2**26


@dataclass(frozen=True)
class Memory(Request[MemoryUse]):
    """Return what the process holds and held."""

    op, answer = "memory", MemoryUse


@dataclass(frozen=True)
class CountNodes(Request[Executed]):
    """Return how many compute nodes really ran, and how many as integers."""

    op, answer = "executed", Executed


LOGITS = list_of(list_of(number(-float("inf"), float("inf")), 10**6), 10**6)


@dataclass(frozen=True)
class Open(Request[Missing]):
    """Hold the device and open the work folder of `key`; say which of `files` are to be copied."""

    op, answer = "open", Missing
    key: str = field(metadata=required(schema.NAME))
    files: tuple[FileFacts, ...] = field(metadata=required(list_of(object_of(FileFacts), 10_000)))


@dataclass(frozen=True)
class Verify(Request[Damaged]):
    """Give each of `files` that arrived whole its name; return those that did not."""

    op, answer = "verify", Damaged
    files: tuple[FileFacts, ...] = field(metadata=required(list_of(object_of(FileFacts), 10_000)))


@dataclass(frozen=True)
class ResumableRequest(Request[Sealed]):
    """A piece of work that is kept there until it has arrived: `jobs` with `settings`."""

    answer = Sealed
    jobs: tuple[BenchJob, ...] = field(metadata=required(list_of(object_of(BenchJob), 1000, 1)))
    settings: BenchSettings = field(metadata=required(object_of(BenchSettings)))
    trtexec: str | None = field(default=None, metadata=omitted_if_none(_FILE))


@dataclass(frozen=True)
class Measure(ResumableRequest):
    """Time the jobs as one comparison."""

    op = "measure"

    def most_bytes(self) -> int:
        """Return how long the answer may be."""
        return _samples_bytes(self.settings.min_runs, self.settings.min_seconds, len(self.jobs))


@dataclass(frozen=True)
class Check(ResumableRequest):
    """Compare the logits of the one job with `expected`, for the images of the file `images`."""

    op = "check"
    images: str = field(default="", metadata=required(schema.NAME))
    expected: tuple[tuple[float, ...], ...] = field(default=(), metadata=required(LOGITS))


@dataclass(frozen=True)
class MeasureEnergy(ResumableRequest):
    """Measure the energy of the one job."""

    op = "energy"


@dataclass(frozen=True)
class Close(Request[Done]):
    """Give the device back; with `complete` remove the work folder."""

    op, answer = "close", Done
    complete: bool = field(metadata=required(boolean))
