"""What all verbs of the command line have in common: a name, examples, Ctrl-C, and the code they may run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgekd import console
from edgekd.errors import Interrupted
from edgekd.models.code import trust


@dataclass(frozen=True)
class Verb:
    """One verb: what is typed, what runs, and the text that ends its --help."""

    name: str
    run: Callable[..., None]
    epilog: str


def verb(*examples: str) -> Callable[[Callable[..., None]], Verb]:
    """Make a function a verb of its name, with examples; its parameters are the verb's arguments and flags.

    Ctrl-C outside of the graceful loops becomes the interrupted exit code, --trust-code is taken up, and stdout is kept
    for what the verb itself prints.
    """

    def made(function: Callable[..., None]) -> Verb:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> None:
            try:
                with console.stdout_for_results(), trust.session(kwargs.get("trust_code") or ()):
                    function(*args, **kwargs)
            except KeyboardInterrupt:
                raise Interrupted("interrupted; the same command continues.", 2) from None

        epilog = "[bold]Examples[/]\n\n" + "\n\n".join(f"  $ {line}" for line in examples)
        return Verb(function.__name__.removesuffix("_"), run, epilog)

    return made
