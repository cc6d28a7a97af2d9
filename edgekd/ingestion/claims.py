"""What a checkpoint says of itself beside its weights: the accuracy it had, the epoch, the names of its classes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from edgekd.text import is_utf8

_SHARES = frozenset({"acc", "acc1", "accuracy", "prec1", "top1"})
_OF_WHAT = ("best", "max", "val", "valid", "validation", "dev", "eval", "test", "top", "1")
"""The other words in names of accuracies on images that the network did not learn from, the most telling ones first."""
_NAMES = (
    *("class_to_idx", "idx_to_class", "id2label", "label2id", "class_names", "classes", "CLASSES", "categories"),
    *("idx_to_label", "label_to_idx", "label_names", "names"),
)
_BESIDE = ("meta", "hyper_parameters", "args", "config", "hparams", "extra", "metrics", "results")
"""Entries in which training scripts keep such things."""
_LONGEST_NAME = 200
_LONGEST_KEY = 60


@dataclass(frozen=True)
class Claims:
    """What a checkpoint says of itself; nothing of it has been checked."""

    accuracy: float | None = None
    """0 to 1; the best one where there are several."""
    accuracy_key: str = ""
    """The entry that says so."""
    epoch: int | None = None
    class_names: tuple[str, ...] = ()
    """In the order of the logits."""


def claims_of(checkpoint: object) -> Claims:
    """Return what a checkpoint, as it was read, says of itself in the entries that training scripts use."""
    entries = list(_entries(checkpoint))
    keys = [(rank, name, found) for found in entries for name in found if (rank := _rank(name)) is not None]
    shares = [(_share(found[name]), str(name)) for _, name, found in sorted(keys, key=lambda key: key[0])]
    shares += [(_share(found.get("metric")), "metric") for found in entries if _by_top1(entries)]
    accuracy, key = next(((share, name) for share, name in shares if share is not None), (None, ""))
    epochs = [number for number in (_number(found.get("epoch")) for found in entries) if number is not None]
    lists = [_names(found.get(name)) for found in entries for name in _NAMES]
    epoch = int(epochs[0]) if epochs and 0 <= epochs[0] < 1e9 else None
    return Claims(accuracy, key, epoch, next((names for names in lists if names), ()))


def _entries(checkpoint: object) -> Iterator[Mapping[object, object]]:
    if not isinstance(checkpoint, dict):
        return
    yield checkpoint
    for name in _BESIDE:
        beside = checkpoint.get(name)
        beside = beside if isinstance(beside, dict) else getattr(beside, "__dict__", None)
        if isinstance(beside, dict):
            yield beside
    callbacks = checkpoint.get("callbacks")  # PyTorch Lightning's; a ModelCheckpoint has the best value of what it saw
    for state in callbacks.values() if isinstance(callbacks, dict) else ():
        if isinstance(state, dict) and isinstance(state.get("monitor"), str):
            yield {state["monitor"]: state.get("best_model_score")}


def _rank(key: object) -> int | None:
    """How early an entry is asked for an accuracy, 0 first; None for one whose name is not that of an accuracy."""
    words = re.findall(r"[a-z0-9]+", key.lower()) if isinstance(key, str) and len(key) <= _LONGEST_KEY else []
    others = [word for word in words if word not in _SHARES]
    if len(others) == len(words) or any(word not in _OF_WHAT for word in others):
        return None
    return min((_OF_WHAT.index(word) for word in others), default=len(_OF_WHAT))


def _by_top1(entries: Sequence[Mapping[object, object]]) -> bool:
    """Whether timm's training script wrote the file, and its `metric` is an accuracy."""
    measures = [found.get("eval_metric") for found in entries]
    return any(isinstance(measure, str) and measure in _SHARES for measure in measures)


def _number(value: object) -> float | None:
    """A finite number, also in a tensor or a NumPy scalar."""
    if isinstance(value, Tensor) and value.numel() != 1:
        return None
    if isinstance(value, str | bool):
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, RuntimeError):  # a text, a list, a network: no number
        return None
    return number if math.isfinite(number) else None


def _share(value: object) -> float | None:
    """A number up to 1 as it is, one up to 100 as per cent."""
    number = _number(value)
    if number is None or not 0 < number <= 100:
        return None
    return number if number <= 1 else number / 100


def _names(value: object) -> tuple[str, ...]:
    """Names in the order of their numbers: a list, or a dict from name to number or back."""
    if isinstance(value, dict):
        back = any(isinstance(name, str) for name in value.values())
        named = {_whole(key if back else entry): entry if back else key for key, entry in value.items()}
        value = [named.get(number) for number in range(len(value))]
    if not isinstance(value, list | tuple):
        return ()
    sound = [name for name in value if isinstance(name, str) and 0 < len(name) <= _LONGEST_NAME and is_utf8(name)]
    return tuple(sound) if len(sound) == len(value) else ()


def _whole(value: object) -> int | None:
    """A whole number, also as a key of JSON: `"7"`."""
    if isinstance(value, str):
        return int(value) if value.isdecimal() and len(value) < 10 else None
    number = _number(value)
    return None if number is None else int(number)
