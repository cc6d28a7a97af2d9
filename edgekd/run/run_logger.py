"""What a distillation writes while it runs: metrics, accuracy points and checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from pydantic import JsonValue
from torch import Tensor, nn

from edgekd import console
from edgekd.errors import GateError
from edgekd.recipe import Recipe
from edgekd.run import checkpoint
from edgekd.run.cards.events import AccuracyEvent, GeneratorEvent, TrainEvent
from edgekd.run.cards.record import Environment, hash_outputs
from edgekd.run.directory import RunDir
from edgekd.run.failpoints import failpoint
from edgekd.state_dict import StateDict

Accuracy = Callable[[nn.Module], float]
"""Top-1 of a network on real images; only the curve of a distillation asks for it, and nothing depends on it."""

SAVING_SHARE = 0.01
"""Share of the time that periodic checkpoints may take; the first, the last and one at a stop are always written."""

LONGEST_WAIT_SECONDS = 300.0
"""Seconds of work that a crash may cost, unless saving is so slow that `SAVING_SHARE` forbids it."""

REMEDY = 'Lower method.student.lr or method.generator.lr, or set precision = "fp32".'


class LoggedState(Protocol):
    """What is logged of a distillation: `synthesis.state.State`, of which a run's files know no more than this."""

    step: int
    macs: int
    reinits: int
    health: list[dict[str, float]]
    student: nn.Module
    student_ema: nn.Module

    def state_dict(self) -> StateDict:
        """Return all that the next step depends on."""
        ...

    def load_state_dict(self, state: StateDict) -> None:
        """Restore what `state_dict` returned."""
        ...

    def all_finite(self) -> bool:
        """Return whether every tensor of the state is finite."""
        ...


class RunLogger:
    """The files of one distillation as it goes on: events.jsonl and distill/checkpoints/.

    What is due at a step is a function of the step alone, so that a resumed run writes what an untouched one writes.
    """

    def __init__(
        self,
        run: RunDir,
        recipe: Recipe,
        *,
        key: str,
        steps: int,
        environment: Environment,
        accuracy: Accuracy | None = None,
    ) -> None:
        self.run, self.key = run, key
        self.steps, self.environment = steps, environment
        self._accuracy = accuracy
        self._generator = recipe.method.generator
        self._span = recipe.method.student.span
        self._obey_period = recipe.checkpoint_period > 0
        self._checkpoint_period = recipe.checkpoint_period or max(1, steps // 20)
        self._saved_at, self._saving_seconds = time.monotonic(), 0.0
        self._log_period, self._curve_period = max(1, steps // 200), max(1, steps // 100)
        self._seconds_before, self._start = 0.0, time.monotonic()
        self._all_saving_seconds = 0.0

    def restore(self, state: LoggedState) -> None:
        """Continue from the newest intact checkpoint, or begin with one at step 0."""
        newest, warnings = checkpoint.newest(self.run, key=self.key)
        for warning in warnings:
            console.warn(warning)
        if newest is None:
            self.run.truncate_events(0)
            self.save(state)
            return
        if newest.environment != self.environment:
            self._note_another_environment(newest)
        state.load_state_dict(newest.state)
        damage = self.run.truncate_events(newest.events_bytes)
        if damage is not None:
            console.warn(damage)
        last = self.run.last_logged(TrainEvent)
        if last is not None:
            self._seconds_before, self._all_saving_seconds = last.seconds, last.saving_seconds
        if state.step:
            console.say(f"continuing at step {state.step}")

    def _note_another_environment(self, newest: checkpoint.Checkpoint) -> None:
        before, now = newest.environment, self.environment
        threads = before.get("threads")
        changed: dict[str, list[JsonValue]] = {
            name: [before.get(name), value] for name, value in now.items() if value != before.get(name)
        }
        remedy = f"; --threads {threads} is what it began with" if threads and "threads" in changed else ""
        console.warn(f"resumed under another {', '.join(changed)}: not bit-identical to an untouched run{remedy}")
        self.run.note_difference(newest.step, changed)

    def generator(self, state: LoggedState, parts: Mapping[str, Tensor]) -> None:
        """Log the generator's losses and health, about 200 times a run: the first update from each due step on."""
        if state.step % self._log_period < self._generator.period_at(state.step, self.steps):
            values = self._finite(state, parts)
            self._event(state, GeneratorEvent.kind, {**values, **state.health[-1]})

    def student(self, state: LoggedState, parts: Mapping[str, Tensor]) -> str | None:
        """Log the student's losses when due; return the facts for the progress line."""
        if state.step % self._log_period and state.step != self.steps:
            return None
        values = self._finite(state, parts)
        seconds = self._seconds_before + time.monotonic() - self._start
        clocks = {"seconds": round(seconds, 3), "saving_seconds": round(self._all_saving_seconds, 3)}
        self._event(state, TrainEvent.kind, {**clocks, "macs": state.macs, **values})
        facts = f"loss {values['student']:.3f} · agreement {values['agreement_novel']:.1%} novel"
        if "agreement_replay" in values:
            facts += f", {values['agreement_replay']:.1%} replay"
        return facts

    def reinit(self, state: LoggedState, reason: str) -> None:
        """Log a re-initialisation of the generator."""
        self._event(state, "reinit", {"generation": state.reinits, "reason": reason})

    def accuracy(self, state: LoggedState) -> None:
        """Log an accuracy point of raw and averaged weights when due; nothing else ever depends on it."""
        if self._accuracy is None or (state.step % self._curve_period and state.step != self.steps):
            return
        raw, average = self._accuracy(state.student), self._accuracy(state.student_ema)
        self._event(state, AccuracyEvent.kind, {"raw": raw, "ema": average})

    def checkpoint(self, state: LoggedState) -> None:
        """Save the state when due: at the recipe's period; without one 20 times a run and every five minutes.

        Which checkpoints were written changes nothing that the next step computes, so the clock may have a say. A due
        one waits for the end of the steps that share their views.
        """
        if state.step % self._span and state.step != self.steps:
            return
        due = state.step // self._checkpoint_period > (state.step - self._span) // self._checkpoint_period
        if not self._obey_period:
            waited = time.monotonic() - self._saved_at
            due = (due or waited > LONGEST_WAIT_SECONDS) and SAVING_SHARE * waited >= self._saving_seconds
        if due or state.step == self.steps:
            self.save(state)

    def save(self, state: LoggedState) -> None:
        """Save the state, unless it is sick: what is on disk is always good."""
        start = time.monotonic()
        if not state.all_finite():
            raise self._sick(state, "weights are not finite")
        checkpoint.write_checkpoint(
            self.run, state.step, state.state_dict(), key=self.key, environment=self.environment
        )
        self._saved_at = time.monotonic()
        self._saving_seconds = self._saved_at - start
        self._all_saving_seconds += self._saving_seconds

    def close(self, state: LoggedState) -> tuple[str, dict[str, str]]:
        """Keep the newest checkpoints; return the final one's folder below distill/ and the hashes of its files."""
        checkpoint.keep_newest(self.run)
        final = f"checkpoints/step-{state.step:08d}"
        files = hash_outputs(self.run.stage("distill") / final)
        failpoint("distill.before_record")
        return final, {f"{final}/{name}": value for name, value in files.items()}

    def collapsed(self, state: LoggedState, what: str) -> GateError:
        """Return the error of a generator that cannot be rescued."""
        return GateError(
            f"distillation stopped at step {state.step}: {what}. "
            f"{self._last_good()} Lower method.generator.lr or raise method.generator.balance."
        )

    def _event(self, state: LoggedState, kind: str, values: Mapping[str, JsonValue]) -> None:
        self.run.append_event({"kind": kind, "step": state.step, **values})

    def _finite(self, state: LoggedState, parts: Mapping[str, Tensor]) -> dict[str, float]:
        values = {name: float(value) for name, value in parts.items()}
        broken = [name for name, value in values.items() if not math.isfinite(value)]
        if broken:
            raise self._sick(state, f"the loss {', '.join(broken)} is not finite")
        return values

    def _sick(self, state: LoggedState, what: str) -> GateError:
        return GateError(f"distillation stopped at step {state.step}: {what}. {self._last_good()} {REMEDY}")

    def _last_good(self) -> str:
        checkpoints = sorted((self.run.path / "distill" / "checkpoints").glob("step-*"))
        return f"The last good checkpoint is {checkpoints[-1]}." if checkpoints else "No checkpoint was written yet."
