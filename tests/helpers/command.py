"""Commands run inside the test's own process."""

from __future__ import annotations

import json
from typing import Any

from typer.testing import CliRunner

from edgekd.cli import program
from edgekd.errors import EdgekdError


class Result:
    """Exit code, stdout and stderr of one command run inside this process."""

    def __init__(self, *arguments: object) -> None:
        ran = CliRunner().invoke(program.app, [str(a) for a in arguments])
        self.stdout, self.stderr, self.exit_code = ran.stdout, ran.stderr, ran.exit_code
        if isinstance(ran.exception, EdgekdError):
            self.exit_code, self.stderr = ran.exception.exit_code, self.stderr + str(ran.exception)
        elif ran.exception is not None and not isinstance(ran.exception, SystemExit):
            raise ran.exception

    def json(self) -> Any:
        return json.loads(self.stdout)

    def line(self, word: str) -> str:
        return next(line for line in self.stderr.splitlines() if line.startswith(f"{word} "))
