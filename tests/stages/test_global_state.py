"""No stage touches the global random generators of torch, numpy or Python."""

from __future__ import annotations

from typing import Any

import toy


def test_every_stage_leaves_the_global_generators_as_they_were(finished: Any) -> None:
    assert finished.disturbed == {name: [] for name in (*toy.CHAIN, "bench")}
