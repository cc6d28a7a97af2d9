"""The method table: bounds, rules between keys, steps by image area, and a line of reference for each key."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from edgekd.recipe import method
from edgekd.recipe.method import (
    ConsolidationTable,
    GeneratorTable,
    HealthTable,
    MethodTable,
    ReplayTable,
    StudentUpdateTable,
    VaeTable,
)

TABLES = (GeneratorTable, StudentUpdateTable, ReplayTable, VaeTable, ConsolidationTable, HealthTable, MethodTable)


@pytest.mark.parametrize("table", TABLES, ids=lambda t: t.__name__)
def test_every_key_has_a_sentence_of_reference(table: type[method.Table]) -> None:
    for name, field in table.model_fields.items():
        if not (isinstance(field.default, method.Table)):
            assert field.description, name
            assert field.description.endswith("."), name


@pytest.mark.parametrize(
    "values",
    [
        {"generator": {"adversary_ramp": (0.5, 0.2)}},
        {"generator": {"adversary_ramp": (-0.1, 0.2)}},
        {"generator": {"adversary_ramp": (0.1, 1.2)}},
        {"generator": {"period": 1}, "vae": {"updates": 2}},
        {"student": {"batch_size": 16}, "vae": {"novel": 17}},
        {"replay": {"source": "bank", "bank_size": 31, "batch_size": 32}},
        {"replay": {"source": "vae"}, "vae": {"updates": 0, "gate": 0.0}},
        {"replay": {"batch_size": 1}, "vae": {"sampling": "tuned"}},
        {"vae": {"rehearsed": 1, "sampling": "tuned"}},
    ],
)
def test_keys_that_contradict_one_another_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(
        ValidationError, match=r"must be two fractions|cannot exceed|must hold|untrained decoder|cannot be 1"
    ):
        MethodTable.model_validate(values)


def test_the_limits_of_those_rules_are_allowed() -> None:
    MethodTable.model_validate({"generator": {"adversary_ramp": (0.25, 0.25), "period": 2}, "vae": {"updates": 2}})
    MethodTable.model_validate({"student": {"batch_size": 16}, "vae": {"novel": 16}})
    MethodTable.model_validate({"replay": {"source": "bank", "bank_size": 32, "batch_size": 32}})
    MethodTable.model_validate({"replay": {"source": "none"}, "vae": {"updates": 0}})
    MethodTable.model_validate({"replay": {"batch_size": 0}, "vae": {"updates": 0, "rehearsed": 0}})
    MethodTable.model_validate({"replay": {"batch_size": 2}, "vae": {"sampling": "tuned", "rehearsed": 2}})


def test_unknown_keys_are_refused_and_values_are_frozen() -> None:
    with pytest.raises(ValidationError, match=r"[Ee]xtra"):
        GeneratorTable.model_validate({"latentt": 3})
    with pytest.raises(ValidationError, match="frozen"):
        GeneratorTable().lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("pixels", "classes", "steps"),
    [
        (64, 10, 2_000),
        (256, 10, 2_000),
        (257, 10, 20_000),
        (1024, 10, 20_000),
        (1024, 11, 40_000),
        (1024, 100, 40_000),
        (1024, 101, 80_000),
        (224 * 224, 1000, 1_600_000),
        (10**6, 2, 400_000),
    ],
)
def test_steps_follow_from_area_and_classes(pixels: int, classes: int, steps: int) -> None:
    table = MethodTable(steps_by_area=((256, 2_000), (1024, 20_000), (9216, 60_000), (50176, 400_000)))
    assert table.steps_for(pixels, classes) == steps


def test_steps_that_are_given_win() -> None:
    assert MethodTable(steps=77).steps_for(10**6, 1000) == 77
