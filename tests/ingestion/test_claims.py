"""What checkpoints say of themselves, in the forms in which training scripts leave it."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import numpy as np
import pytest
import torch

from edgekd.ingestion.claims import Claims, claims_of


@pytest.mark.parametrize(
    ("content", "accuracy", "key"),
    [
        ({"best_acc1": torch.tensor(76.1), "epoch": 90}, 0.761, "best_acc1"),
        ({"best_prec1": np.float64(91.78), "acc": 50.0}, 0.9178, "best_prec1"),
        ({"acc": 0.955}, 0.955, "acc"),
        ({"accuracy": 1}, 1.0, "accuracy"),
        ({"hyper_parameters": {"val_acc": 12.5}}, 0.125, "val_acc"),
        ({"args": Namespace(best_acc=88)}, 0.88, "best_acc"),
        ({"max_accuracy": 81.2}, 0.812, "max_accuracy"),
        ({"train_acc": 99.0, "test_acc": 92.0, "best_val_acc": 93.4}, 0.934, "best_val_acc"),
        ({"Acc@1": 76.1, "Acc@5": 93.0}, 0.761, "Acc@1"),
        ({"metrics": {"accuracy/top1": 70.0}}, 0.7, "accuracy/top1"),
        ({"metric": 78.5, "args": Namespace(eval_metric="top1")}, 0.785, "metric"),
        (
            {"callbacks": {"ModelCheckpoint": {"monitor": "val_acc", "best_model_score": torch.tensor(0.934)}}},
            *(0.934, "val_acc"),
        ),
        ({"metric": 0.4, "args": Namespace(eval_metric="loss")}, None, ""),
        ({"callbacks": {"EarlyStopping": {"monitor": "val_loss", "best_model_score": 0.4}, "Timer": 3}}, None, ""),
        ({"train_acc": 99.0, "acc5": 99.0, "best_acc_epoch": 7, "acc_grad_steps": 1, "top": 1, 3: 4}, None, ""),
        ({"acc": float("nan")}, None, ""),
        ({"acc": 300.0}, None, ""),
        ({"acc": "95.1"}, None, ""),
        ({"acc": [1.0, 2.0], "best_acc": True}, None, ""),
        ({"acc": torch.ones(3)}, None, ""),
        ([{"acc": 1.0}], None, ""),
    ],
)
def test_an_accuracy_is_a_share_or_per_cent(content: Any, accuracy: float | None, key: str) -> None:
    found = claims_of(content)
    assert found.accuracy == (None if accuracy is None else pytest.approx(accuracy))
    assert found.accuracy_key == key


@pytest.mark.parametrize(
    "content",
    [
        {"class_to_idx": {"cat": 1, "10": 0, "dog": 2}},
        {"idx_to_class": {2: "dog", 0: "10", 1: "cat"}},
        {"id2label": {"0": "10", "1": "cat", "2": "dog"}},
        {"classes": ["10", "cat", "dog"]},
        {"meta": {"CLASSES": ("10", "cat", "dog")}},
        {"names": {0: "10", 1: "cat", 2: "dog"}},
    ],
)
def test_class_names_come_in_the_order_of_their_numbers(content: Any) -> None:
    assert claims_of(content).class_names == ("10", "cat", "dog")


@pytest.mark.parametrize(
    "names",
    [
        {"cat": 0, "dog": 2},
        {"cat": 0, "dog": 0},
        {"cat": "x", "dog": "y"},
        {"cat": None},
        ["cat", 3],
        ["cat", ""],
        ["cat", "x" * 201],
        ["\udcff"],
        {},
        [],
        10,
        {0: float("nan"), float("nan"): 1},
    ],
)
def test_what_is_no_list_of_names_is_passed_over(names: Any) -> None:
    assert claims_of({"classes": names, "class_to_idx": names, "idx_to_class": names}).class_names == ()


def test_a_file_that_says_nothing_claims_nothing() -> None:
    assert claims_of({"conv.weight": torch.ones(1), "state_dict": {"acc": 0.5}}) == Claims()
    assert claims_of({"epoch": 3}) == Claims(epoch=3)
    assert claims_of({"epoch": -1, "acc": 0}) == Claims()
