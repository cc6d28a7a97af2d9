"""The one exception of the device's side: a request that cannot be served."""

from __future__ import annotations


class RefusedError(Exception):
    """A request that cannot be served; `kind` says who has to act: file, usage, machine, busy or protocol."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
