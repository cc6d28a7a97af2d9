"""The pipes of a child process, whatever it does with them: bounded bytes, an end to every wait, stops heard meanwhile.

A child that floods its pipes, drips, or says nothing costs its parent a few seconds and a few megabytes.
"""

from __future__ import annotations

import collections
import os
import select
import subprocess
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

LOOK_S = 0.5
STRAY_BYTES = 16 * 2**20
"""What a child may write on stderr, or on stdout without answering, for each thing it is asked."""
_TAIL_LINES, _TAIL_CHARACTERS = 20, 1000
_PIECE = 65536


class SilentError(Exception):
    """Nothing that was waited for came in time."""


class FloodError(Exception):
    """More came than may come; the message says what."""


class Pipes:
    """Stdin, stdout and stderr of a child that was started with a pipe for each and `bufsize=0`.

    Args:
        process: the child.
        while_waiting: called twice a second and more often while waiting; what it raises ends the wait.
    """

    def __init__(self, process: subprocess.Popen[bytes], while_waiting: Callable[[], None] = lambda: None) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._process, self.look = process, while_waiting
        self.stdin, self._out, self._err = process.stdin, process.stdout, process.stderr
        for pipe in (self.stdin, self._out, self._err):
            os.set_blocking(pipe.fileno(), False)
        self._open = {self._out.fileno(), self._err.fileno()}
        self._buffer, self._searched, self._strays = bytearray(), 0, 0
        self._message = bytearray()
        self._tail: collections.deque[str] = collections.deque(maxlen=_TAIL_LINES)
        self._writing = threading.Lock()

    # ---- out ----

    def send(self, data: bytes, end_s: float) -> None:
        """Write all of `data`, until `end_s` of the monotonic clock; the count of strays begins anew.

        Raises:
            SilentError: it was not read in time.
            OSError: the child's end is closed.
        """
        self._strays = 0
        left = memoryview(data)
        with self._writing:
            while left:
                self._wait(end_s, {self._err.fileno()}, writing=True)
                try:
                    left = left[os.write(self.stdin.fileno(), left[:_PIECE]) :]
                except BlockingIOError:
                    continue

    def pulse(self) -> None:
        """Write an empty line between two requests, if one fits; never wait.

        Raises:
            OSError, ValueError: the pipe is closed.
        """
        if self._writing.acquire(blocking=False):
            try:
                os.write(self.stdin.fileno(), b"\n")
            except BlockingIOError:  # it is full of unread signs of life
                pass
            finally:
                self._writing.release()

    # ---- in ----

    def line(self, at_most: int, end_s: float) -> bytes | None:
        """Return the next line of stdout without its end, None at the end of stdout.

        Raises:
            SilentError: none was complete at `end_s` of the monotonic clock, however much came of it.
            FloodError: it is longer than `at_most` bytes, or stderr is flooded.
        """
        while True:
            place = self._buffer.find(b"\n", self._searched)
            if place >= 0:
                line = bytes(self._buffer[:place])
                del self._buffer[: place + 1]
                self._searched = 0
                if len(line) > at_most:
                    raise FloodError(f"an answer is longer than {at_most:,} bytes")
                self.look()
                return line
            self._searched = len(self._buffer)
            if len(self._buffer) > at_most:
                raise FloodError(f"an answer is longer than {at_most:,} bytes")
            if self._out.fileno() not in self._open:
                return None
            self._wait(end_s, {self._out.fileno(), self._err.fileno()})

    def rest(self, at_most: int, end_s: float) -> bytes:
        """Return what comes on stdout until the child has ended.

        Raises:
            SilentError: it had not ended at `end_s` of the monotonic clock.
            FloodError: more than `at_most` bytes came, or stderr is flooded.
        """
        while self._process.poll() is None:
            self._wait(end_s, {self._out.fileno(), self._err.fileno()}, most_s=0.1)
            self._bounded(at_most)
        while self._wait(time.monotonic() + 1.0, {self._out.fileno(), self._err.fileno()}, most_s=0.0):
            self._bounded(at_most)  # one that it left behind may hold the pipes open for ever: what is there now is all
        return bytes(self._buffer)

    def _bounded(self, at_most: int) -> None:
        if len(self._buffer) > at_most:
            raise FloodError(f"more than {at_most:,} bytes came")

    def stray(self, line: bytes) -> None:
        """Note a line that answers nothing: a login script's greeting, say.

        Raises:
            FloodError: there are too many.
        """
        self._note(line)
        self._count(max(len(line), _TAIL_CHARACTERS))  # a short line takes as much time

    def messages(self, within_s: float = 0.0) -> list[str]:
        """Return the last lines of stderr, and of strays; wait so long for stderr to end."""
        end_s, reading = time.monotonic() + max(within_s, 1.0), {self._err.fileno()}
        try:
            while reading <= self._open and (self._wait(end_s, reading, most_s=within_s) or within_s):
                pass
        except (SilentError, FloodError):  # what is known by then are the last words
            pass
        return [*self._tail, *([self._shown(bytes(self._message))] if self._message else [])]

    def drain(self, within_s: float) -> bool:
        """Throw away what comes until the child has ended; return whether it did in so many seconds."""
        end_s, look, self.look = time.monotonic() + within_s, self.look, lambda: None
        try:
            while self._process.poll() is None and time.monotonic() < end_s:
                self._strays = 0
                self._buffer.clear()
                self._wait(end_s, {self._out.fileno(), self._err.fileno()}, most_s=0.05)
        except SilentError:
            pass
        finally:
            self._buffer.clear()
            self._searched, self.look = 0, look
        return self._process.poll() is not None

    def hang_up(self) -> None:
        """Close the child's stdin."""
        with self._writing:
            try:
                self.stdin.close()
            except OSError:
                self._note(b"stdin was already closed")

    def close(self) -> None:
        """Close what is left to read."""
        self._open.clear()
        self._out.close()
        self._err.close()

    def _wait(self, end_s: float, reading: set[int], *, writing: bool = False, most_s: float = LOOK_S) -> bool:
        """Take in one piece of each pipe that has something; return whether any had."""
        self.look()
        left_s = end_s - time.monotonic()
        if left_s <= 0:
            raise SilentError
        waiting = select.poll()
        for number in reading & self._open:
            waiting.register(number, select.POLLIN)
        if writing:
            waiting.register(self.stdin.fileno(), select.POLLOUT)
        elif not reading & self._open:
            time.sleep(min(left_s, most_s, 0.05))
            return False
        ready = waiting.poll(1000 * min(left_s, most_s))
        taken = [self._take(number) for number, _ in ready if number in self._open]
        return any(taken)

    def _take(self, number: int) -> bool:
        try:
            piece = os.read(number, _PIECE)
        except BlockingIOError:
            return False
        if not piece:
            self._open.discard(number)
        elif number == self._out.fileno():
            self._buffer += piece
        else:
            self._count(len(piece))
            *lines, rest = (bytes(self._message) + piece).split(b"\n")
            for line in lines[-_TAIL_LINES:]:
                self._note(line)
            self._message = bytearray(rest[:_PIECE])
        return bool(piece)

    def _count(self, size: int) -> None:
        self._strays += size
        if self._strays > STRAY_BYTES:
            raise FloodError(f"more than {STRAY_BYTES:,} bytes came that answer nothing")

    def _note(self, line: bytes) -> None:
        self._tail.append(self._shown(line))

    @staticmethod
    def _shown(line: bytes) -> str:
        return line[:_TAIL_CHARACTERS].decode(errors="replace").rstrip()
