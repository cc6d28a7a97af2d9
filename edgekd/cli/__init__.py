"""The command line: one door, `main`; the verbs and their flags stand beside it."""

from edgekd.cli.program import main

__all__ = ["main"]
