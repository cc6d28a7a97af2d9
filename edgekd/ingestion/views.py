"""Ways to read the names of a checkpoint: without wrappers, with some parts unwrapped, or one network out of several.

Training code wraps networks (`module.`, `model.backbone.`), splits them (`backbone.*` beside `fc.*`) and keeps other
tensors beside them (`ema.*`, `criterion.weight`). A view is one way to undo this; which one is right shows when the
names and shapes it yields are those of an architecture.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

WRAPPERS = (
    "module", "_orig_mod", "model", "net", "network", "classifier", "backbone", "encoder", "trunk", "_model", "_module",
    "student", "teacher", "ema_model", "model_ema", "ema", "_forward_module", "_fsdp_wrapped_module",
)  # fmt: skip
"""What training code calls the network it wraps, raw weights before their average."""
TRANSPARENT = ("_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Components that compilers and parallel trainers put anywhere into a name, and nobody else."""
_PARTS = frozenset(WRAPPERS) - {"classifier"} | {"head", "cls_head"}
_TRAINING_ONLY = re.compile(
    r"criterion|loss|loss_fn|losses|metrics?|(train|val|valid|test)_(acc|accuracy|loss|metrics?)(_.*)?"
)
"""First components of what a loss or a metric keeps."""
AVERAGED = re.compile(r"(.*_)?(ema|avg|averaged?|swa|momentum|shadow|teacher|student)(_.*)?")
"""What training code calls one of two copies of the same network."""
_MOMENTS = ("mean", "std", "_mean", "_std", "pixel_mean", "pixel_std", "image_mean", "image_std")
_LEAST_SHARE = 0.2
"""A part of the file is the network only if it holds this share of all names."""
_LIMIT = 60


@dataclass(frozen=True)
class StateDictView:
    """A reading of a checkpoint's names."""

    names: Mapping[str, str]
    """Name in the file to name without wrappers, for the tensors of the network."""
    part: str = ""
    """The part of the file that was taken, such as `model.*`; empty for all of it."""
    left_out: tuple[str, ...] = ()
    """Names in the file that are not the network's."""


@dataclass(frozen=True)
class LeftOutTensors:
    """What stands beside the network in a file."""

    copies: tuple[str, ...]
    """Parts of the same names once more, such as the network's moving average (`ema.*`), which may lack buffers."""
    moments: Mapping[str, str]
    """A normalisation of pixels inside the network: `mean` and `std` to their names in the file; empty if none."""
    training: tuple[str, ...]
    """Names of a loss's or a metric's tensors."""
    unknown: tuple[str, ...]
    """Names of anything else: with them the network may be more than the part that was taken."""


def views(names: Iterable[str]) -> Iterator[StateDictView]:
    """Yield the readings of `names`, the plain one first, those that leave something out last; none twice."""
    listed = list(names)
    seen: set[tuple[tuple[str, str], ...]] = set()
    for view in _all(StateDictView({name: name for name in listed})):
        key = tuple(view.names.items())
        if len(set(view.names.values())) == len(key) and key not in seen:
            seen.add(key)
            yield view
        if len(seen) >= _LIMIT:
            return


def left_out_tensors(view: StateDictView) -> LeftOutTensors:
    """Tell what a view leaves out."""
    copies: list[str] = []
    rest: list[str] = []
    for root, names in _left_out_parts(view).items():
        if _is_copy(names, view):
            copies.append(f"{root}.*")
        else:
            rest += names
    moments = {name.rpartition(".")[2].rpartition("_")[2]: name for name in rest if name.rpartition(".")[2] in _MOMENTS}
    if set(moments) == {"mean", "std"}:
        rest = [name for name in rest if name not in moments.values()]
    else:
        moments = {}
    prefix = common_prefix([*view.names, *view.left_out])
    training = tuple(name for name in rest if _TRAINING_ONLY.fullmatch(name.removeprefix(prefix).partition(".")[0]))
    return LeftOutTensors(tuple(copies), moments, training, tuple(name for name in rest if name not in training))


def common_prefix(names: Iterable[str]) -> str:
    """Return the dotted components that every name begins with, leaving each at least its last one."""
    split = [name.split(".")[:-1] for name in names]
    prefix: list[str] = []
    for components in zip(*split, strict=False):
        if len(set(components)) > 1:
            break
        prefix.append(components[0])
    return "".join(f"{component}." for component in prefix)


def without_transparent(name: str) -> str:
    """Return a name without the components that only compilers and parallel trainers insert."""
    return ".".join(part for part in name.split(".") if part not in TRANSPARENT)


def _all(plain: StateDictView) -> Iterator[StateDictView]:
    yield from _whole_readings(plain)
    base = _unwrapped(plain)
    parts = {root: _part(base, root) for root in _roots(base.names.values())}
    for part in parts.values():
        if len(part.names) >= _LEAST_SHARE * len(base.names):
            yield from _whole_readings(part)
    for root in parts:
        rest = _rest(base, root)
        if root in WRAPPERS and len(rest.names) >= _LEAST_SHARE * len(base.names):
            yield from _whole_readings(rest)


def _whole_readings(part: StateDictView) -> Iterator[StateDictView]:
    """Yield the readings that leave nothing more out: unwrapped, and with some or one of its parts unwrapped."""
    base = _unwrapped(part)
    yield base
    yield _renamed(base, _without_module)
    yield _renamed(base, _without_parts)
    for root in _roots(base.names.values()):
        yield _unwrapped(_without_root(base, root))


def _without_root(view: StateDictView, root: str) -> StateDictView:
    return _renamed(view, lambda name: name.removeprefix(f"{root}."))


def _without_module(name: str) -> str:
    """A name without the component that DataParallel inserts where a part of a network was wrapped."""
    return ".".join(part for part in name.split(".") if part != "module")


def _unwrapped(view: StateDictView) -> StateDictView:
    prefix = common_prefix(view.names.values())
    return _renamed(view, lambda name: name.removeprefix(prefix)) if len(view.names) > 1 else view


def _renamed(view: StateDictView, rename: Callable[[str], str]) -> StateDictView:
    return replace(view, names={theirs: rename(ours) for theirs, ours in view.names.items()})


def _without_parts(name: str) -> str:
    """Strip the usual wrappers of one name, as far as it stays the name of a module's tensor."""
    first, dot, rest = name.partition(".")
    return _without_parts(rest) if dot and first in _PARTS and "." in rest else name


def _roots(names: Iterable[str]) -> list[str]:
    """The first components shared by several names: the usual wrappers first, then in order."""
    counts = Counter(name.partition(".")[0] for name in names if "." in name)
    roots = [root for root, count in counts.items() if count > 1]
    return sorted(roots, key=lambda root: WRAPPERS.index(root) if root in WRAPPERS else len(WRAPPERS))


def _part(view: StateDictView, root: str) -> StateDictView:
    """The tensors under `root` alone."""
    return _taken(view, {t for t, ours in view.names.items() if ours.startswith(f"{root}.")}, f"{root}.*")


def _rest(view: StateDictView, root: str) -> StateDictView:
    """The tensors outside of `root`."""
    return _taken(view, {t for t, ours in view.names.items() if not ours.startswith(f"{root}.")}, f"all but {root}.*")


def _taken(view: StateDictView, part_names: set[str], part: str) -> StateDictView:
    names = {theirs: ours for theirs, ours in view.names.items() if theirs in part_names}
    return StateDictView(names, part, tuple(theirs for theirs in view.names if theirs not in part_names))


def _left_out_parts(view: StateDictView) -> dict[str, list[str]]:
    prefix = common_prefix([*view.names, *view.left_out])
    parts: dict[str, list[str]] = {}
    for name in view.left_out:
        parts.setdefault(name.removeprefix(prefix).partition(".")[0], []).append(name)
    return parts


def _is_copy(names: list[str], view: StateDictView) -> bool:
    """Whether a part left out has the network's names, buffers aside, under a prefix of its own."""
    own = common_prefix(names)
    if len(names) < 2 or own == "":
        return False
    theirs, prefix = {name.removeprefix(own) for name in names}, common_prefix(view.names)
    readings = (set(view.names.values()), {name.removeprefix(prefix) for name in view.names})
    return any(theirs <= taken and all("running_" in name for name in taken - theirs) for taken in readings)
