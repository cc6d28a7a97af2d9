"""Find out how a chain of layers is wired: what a checkpoint does not say of it.

A state dict names the layers that have weights, in order. What lies between them it does not say: activations, pools,
padding, strides. Most of that follows all the same: the first linear layer takes as many values as the last feature map
has, for few image sizes and few places of the pools; where layers are numbered in a Sequential, a gap says how many
layers without weights lie between. What is left is several readings, of which the caller chooses or asks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from edgekd.errors import InputFileError
from edgekd.ingestion.wiring.chain import Chain, Layer, gap_between
from edgekd.models.families.plain import NAME, Op, program_text
from edgekd.models.registry import ArchSpec
from edgekd.models.stems import Shape, square_images
from edgekd.text import listed, sizes

USUAL_SIDES = {1: (28, 32, 48, 64, 96, 224), 3: (32, 64, 224, 96, 48, 28)}
"""Usual sides of images by their channels, the likeliest first."""
FURTHER_SIDES = (128, 256, 160, 192, 150, 100, 200, 112, 50, 40, 36, 24, 20, 16, 299, 300, 227, 180, 120, 80, 56, 512)
_USUAL_TIERS = 2
"""Sets of wirings that need no confirmation where one alone fits: regular pools, and strides in their place."""
_MOST_JUDGED = 4
"""Convolutions up to which statistics judge every place of pools: 32 readings with two paddings."""
_MOST_SUBSETS = 10
"""Convolutions up to which every place of pools or strides is tried."""


@dataclass(frozen=True)
class Wiring:
    """What a state dict does not say of a chain, one entry for each convolution."""

    side: tuple[int, int]
    pools: tuple[bool, ...]
    strides: tuple[int, ...]
    paddings: tuple[int, ...]
    activation: str = "relu"
    pooling: str = "max"
    order: str = "bn-act"


@dataclass(frozen=True)
class Reading:
    """One network that the weights may be of."""

    spec: ArchSpec
    input_shape: Shape
    classes: int
    words: str
    """Its wiring as a user reads it: `max-pool after conv1, conv2 · relu · no padding`."""
    flag: str
    """`--arch` and, where the size is not fixed by the user, `--input`, which lead to this reading alone."""
    usual: bool = True
    """Whether its wiring is a common one; another is the user's to confirm."""


def readings(chain: Chain, requested: ArchSpec | None, input_shape: Shape | None) -> list[Reading]:
    """Return the networks that a chain may be of, the likeliest first.

    `requested` is `plain` with the options that the user has settled; `input_shape` fixes the size of the images.
    The usual is looked for first: only where nothing usual fits are strides, other sizes and odd places tried.

    Raises:
        InputFileError: a setting contradicts the weights.
    """
    options = {} if requested is None else dict(requested.options)
    if not chain.convs:
        return _of_linear_layers(chain, options, input_shape)
    if input_shape is not None and input_shape[0] != chain.channels:
        raise InputFileError(
            f"The weights take {chain.channels} channels, not {input_shape[0]}: "
            f"--input {chain.channels}x{input_shape[1]}x{input_shape[2]}."
        )
    asked = _Asked.of(chain, options)
    for number, wirings in enumerate(_tiers(chain, asked, input_shape)):
        fitting = _one_size_each([wiring for wiring in wirings if _fits(chain, wiring)])
        if fitting:
            several = [_with_kinds(replace(wiring, order=_order(chain, options)), options) for wiring in fitting]
            return [
                replace(
                    _reading(chain, wiring, input_shape, options),
                    usual=asked.anything or _is_usual(chain, wiring, number),
                )
                for wiring in several
            ]
    return []


def _is_usual(chain: Chain, wiring: Wiring, tier: int) -> bool:
    """Whether a wiring is of the usual tiers; the first one also holds pools that are there to be judged alone."""
    return tier < _USUAL_TIERS and (tier > 0 or wiring.pools in _regular_pools(chain))


@dataclass(frozen=True)
class _Asked:
    """What the user has settled, for each convolution; None where nothing."""

    pools: tuple[bool, ...] | None
    strides: tuple[int, ...] | None
    paddings: tuple[int, ...] | None

    @property
    def anything(self) -> bool:
        """Whether the user has settled anything."""
        return any(one is not None for one in (self.pools, self.strides, self.paddings))

    @staticmethod
    def of(chain: Chain, options: Mapping[str, str]) -> _Asked:
        names, count = [layer.name for layer in chain.convs], len(chain.convs)
        pool, padding, stride = options.get("pool"), options.get("padding"), options.get("stride")
        pools = {None: None, "each": (True,) * count, "none": (False,) * count}.get(pool, ())
        if pools == () and pool is not None:
            after = pool.split("+")
            unknown = [name for name in after if name not in names]
            if unknown:
                raise InputFileError(f"There is no convolution {listed(unknown)}; there are {listed(names, 20)}.")
            pools = tuple(name in after for name in names)
        kinds = {None: None, "none": (0,) * count, "same": _same(chain)}
        paddings = kinds[padding] if padding in kinds else _numbers(chain, "padding", padding or "")
        strides = None if stride is None else _numbers(chain, "stride", stride)
        if strides is not None and 0 in strides:
            raise InputFileError("A stride is 1 or more.")
        return _Asked(pools, strides, paddings)


def _numbers(chain: Chain, what: str, text: str) -> tuple[int, ...]:
    numbers = tuple(map(int, text.split("+")))
    if len(numbers) not in (1, len(chain.convs)):
        raise InputFileError(f"{what} takes one number, or {len(chain.convs)} joined by +, one for each convolution.")
    return numbers * len(chain.convs) if len(numbers) == 1 else numbers


def _tiers(chain: Chain, asked: _Asked, input_shape: Shape | None) -> Iterator[Iterator[Wiring]]:
    """Yield sets of wirings, from what most networks look like to what few do."""
    count = len(chain.convs)
    ones = (1,) * count
    usual = USUAL_SIDES.get(chain.channels, USUAL_SIDES[3])
    sides = [input_shape[1:]] if input_shape is not None else [(side, side) for side in usual]
    more = sides if input_shape is not None else [(side, side) for side in FURTHER_SIDES]
    paddings = [asked.paddings] if asked.paddings is not None else _uniform_paddings(chain)
    strides = [asked.strides] if asked.strides is not None else [ones]
    likely = list(dict.fromkeys([*_regular_pools(chain), *_judged_pools(chain)]))
    pools = [asked.pools] if asked.pools is not None else likely

    def wirings(
        sides: Iterable[tuple[int, int]],
        pools: Iterable[tuple[bool, ...]],
        strides: Iterable[tuple[int, ...]],
        paddings: Iterable[tuple[int, ...]],
    ) -> Iterator[Wiring]:
        for one in itertools.product(sides, pools, paddings, strides):
            yield Wiring(one[0], one[1], one[3], one[2])

    yield wirings(sides, pools, strides, paddings)
    unpooled = [asked.pools] if asked.pools is not None else [tuple(bool(tail) for tail in _tails(chain))]
    strided = [asked.strides] if asked.strides is not None else _regular_strides(chain)
    yield wirings(sides, unpooled, strided, paddings)
    yield wirings(more, pools, strides, paddings)
    mixed = [asked.paddings] if asked.paddings is not None else _first_padded(chain)
    yield wirings(sides, pools, strides, mixed)
    if asked.pools is None:
        yield wirings(sides, _all_pools(chain), strides, [*paddings, *mixed])
    yield wirings(more, unpooled, strided, paddings)
    yield wirings(sides, pools, strided, [*paddings, *mixed])


def _same(chain: Chain) -> tuple[int, ...]:
    """The padding with which a map keeps its size, or is halved by a stride of 2 where the kernel's size is even."""
    return tuple((layer.shape[2] - 1) // 2 for layer in chain.convs)


def _uniform_paddings(chain: Chain) -> list[tuple[int, ...]]:
    return list(dict.fromkeys(((0,) * len(chain.convs), _same(chain))))


def _first_padded(chain: Chain) -> list[tuple[int, ...]]:
    """The first convolution padded and no other, as LeNet on images of 28 pixels, or the first two."""
    same = _same(chain)
    return [tuple(same[:first]) + (0,) * (len(same) - first) for first in (1, 2) if first < len(same)]


def _tails(chain: Chain) -> list[bool | None]:
    """Whether a pool follows each convolution, as gaps between numbers in a Sequential say; None where they do not."""
    tails: list[bool | None] = []
    for place, (conv, norm) in enumerate(zip(chain.convs, chain.norms, strict=True)):
        following = (*chain.convs, *chain.linears)[place + 1 : place + 2]
        gap = gap_between((norm or conv).name, following[0].name) if following else None
        if gap is not None and following[0].kind == "linear":
            gap -= 1 + _pooled_away(chain)  # the flatten, and the global pool before it
        activated = norm is not None and (gap_between(conv.name, norm.name) or 0) > 0
        before_pool = 0 if activated else 1
        tails.append(None if gap is None else gap > before_pool)
    if not chain.linears:
        tails[-1] = False  # the last convolution makes the logits
    return tails


def _regular_pools(chain: Chain) -> list[tuple[bool, ...]]:
    """The usual places of pools that agree with the gaps: at regular distances, or at the ends of blocks."""
    count, tails = len(chain.convs), _tails(chain)
    parents = [conv.name.rpartition(".")[0] for conv in chain.convs]
    ends = tuple(parents[place + 1 : place + 2] != [parent] for place, parent in enumerate(parents))
    patterns: list[tuple[bool, ...]] = []
    if len(set(parents)) > 1:
        patterns.append(ends)
    patterns += [tuple((place + 1) % period == 0 for place in range(count)) for period in (1, 2, 3, count)]
    patterns += [tuple(place < count - 1 for place in range(count)), (False,) * count]
    known = [
        tuple(tail if tail is not None else pattern[place] for place, tail in enumerate(tails)) for pattern in patterns
    ]
    return list(dict.fromkeys(known))


def _all_pools(chain: Chain) -> Iterator[tuple[bool, ...]]:
    if len(chain.convs) > _MOST_SUBSETS:
        return iter(())
    choices = [(True, False) if tail is None else (tail,) for tail in _tails(chain)]
    return itertools.product(*choices)


def _judged_pools(chain: Chain) -> list[tuple[bool, ...]]:
    """Every place of pools where any fits and BatchNorm statistics can tell them apart in the time that there is."""
    judged = _pooled_away(chain) and None not in chain.norms and len(chain.convs) <= _MOST_JUDGED
    return list(_all_pools(chain)) if judged else []


def _regular_strides(chain: Chain) -> list[tuple[int, ...]]:
    """Strides of 2 at regular places, of every convolution or of all but the first."""
    count = len(chain.convs)
    patterns = [tuple(2 if (place + 1) % period == 0 else 1 for place in range(count)) for period in (1, 2, 3)]
    patterns += [tuple(2 if place % 2 == 0 else 1 for place in range(count))]
    patterns += [tuple(2 if place else 1 for place in range(count)), (2, *(1,) * (count - 1))]
    return list(dict.fromkeys(patterns))


def _fits(chain: Chain, wiring: Wiring) -> bool:
    """Whether the last feature map has as many values as the first linear layer takes."""
    height, width = wiring.side
    for conv, pool, stride, padding in zip(chain.convs, wiring.pools, wiring.strides, wiring.paddings, strict=True):
        height = (height + 2 * padding - conv.shape[2]) // stride + 1
        width = (width + 2 * padding - conv.shape[3]) // stride + 1
        if pool:
            height, width = height // 2, width // 2
        if min(height, width) < 1:
            return False
    return _pooled_away(chain) or height * width * chain.convs[-1].shape[0] == chain.linears[0].shape[1]


def _pooled_away(chain: Chain) -> bool:
    """Whether the head takes one value of each channel: a global average pool stands before it."""
    return not chain.linears or chain.linears[0].shape[1] == chain.convs[-1].shape[0]


def _one_size_each(wirings: Sequence[Wiring]) -> list[Wiring]:
    """Of wirings that differ in the size of the images alone keep the first, whose size is the most usual."""
    first: dict[Wiring, Wiring] = {}
    for wiring in wirings:
        first.setdefault(replace(wiring, side=(0, 0)), wiring)
    return list(first.values())


def _order(chain: Chain, options: Mapping[str, str]) -> str:
    """In what order BatchNorm and activation run, as far as gaps or the user say; a BatchNorm comes first usually."""
    gaps = [gap_between(c.name, n.name) for c, n in zip(chain.convs, chain.norms, strict=True) if n is not None]
    shown = "act-bn" if any(gap is not None and gap > 0 for gap in gaps) else "bn-act"
    return options.get("order", shown)


def _with_kinds(wiring: Wiring, options: Mapping[str, str]) -> Wiring:
    return replace(wiring, activation=options.get("activation", "relu"), pooling=options.get("pooling", "max"))


def _steps(chain: Chain, wiring: Wiring) -> Iterator[Op]:
    """Yield the steps of a chain as it is wired."""
    before = chain.channels
    last = (*chain.convs, *chain.linears)[-1]
    for place, conv in enumerate(chain.convs):
        out, channels, *kernel = conv.shape
        groups, norm = before // channels, chain.norms[place]
        yield Op(
            "conv",
            conv.name,
            out,
            (kernel[0], kernel[1]),
            wiring.strides[place],
            wiring.paddings[place],
            groups,
            conv.bias,
        )
        yield from _after(norm, wiring, last=conv is last)
        if wiring.pools[place]:
            yield Op(wiring.pooling, kernel=(2, 2), stride=2)
        before = out
    if chain.convs and _pooled_away(chain):
        yield Op("gap", out=1)
    yield Op("flatten")
    for place, linear in enumerate(chain.linears):
        yield Op("linear", linear.name, linear.shape[0], bias=linear.bias)
        yield from _after(chain.linear_norms[place], wiring, last=linear is last)


def _after(norm: Layer | None, wiring: Wiring, *, last: bool) -> Iterator[Op]:
    """Yield what follows a layer with weights: BatchNorm and activation, nothing after the last."""
    steps = [] if norm is None else [Op("bn", norm.name)]
    if not last:
        steps.insert(len(steps) if wiring.order == "bn-act" else 0, Op(wiring.activation))
    return iter(steps)


def _reading(chain: Chain, wiring: Wiring, input_shape: Shape | None, options: Mapping[str, str]) -> Reading:
    shape = (chain.channels, *wiring.side)
    named = [conv.name for conv, pool in zip(chain.convs, wiring.pools, strict=True) if pool]
    pool = "none" if not named else "each" if len(named) == len(chain.convs) else "+".join(named)
    same, zero = _same(chain), (0,) * len(chain.convs)
    padding = "none" if wiring.paddings == zero else "same" if wiring.paddings == same else _joined(wiring.paddings)
    words = [
        f"{wiring.pooling}-pool 2x2 after {', '.join(named)}" if named else "no pool",
        wiring.activation,
        {"none": "no padding", "same": "same padding"}.get(padding, f"padding {padding}"),
    ]
    settled = {"padding": padding, "pool": pool}
    if set(wiring.strides) != {1}:
        words.append(f"strides {', '.join(map(str, wiring.strides))}")
        settled["stride"] = _joined(wiring.strides)
    if _pooled_away(chain):
        words.append("global average pool")
    if wiring.order != "bn-act":
        words.append("activation before BatchNorm")
    arch = ArchSpec(NAME).with_options({**settled, **options})
    size = "" if input_shape is not None else f" --input {sizes(shape)}"
    spec = ArchSpec(program_text(tuple(_steps(chain, wiring))))
    return Reading(spec, shape, chain.classes, " · ".join(words), f"--arch {arch}{size}")


def _of_linear_layers(chain: Chain, options: Mapping[str, str], input_shape: Shape | None) -> list[Reading]:
    """Return the reading of a network without convolutions, whose images are square, grey or coloured."""
    inputs = chain.linears[0].shape[1]
    if input_shape is None:
        shape = next(iter(square_images(inputs)), None)
        if shape is None or shape[1] < 4:
            return []
    elif math.prod(input_shape) != inputs:
        raise InputFileError(
            f"The weights take {inputs} values, not the {math.prod(input_shape)} of --input {sizes(input_shape)}."
        )
    else:
        shape = input_shape
    wiring = _with_kinds(Wiring(shape[1:], (), (), (), order=options.get("order", "bn-act")), options)
    spec = ArchSpec(program_text(tuple(_steps(chain, wiring))))
    arch = ArchSpec(NAME, options={"activation": wiring.activation, **options})
    return [Reading(spec, shape, chain.classes, f"linear layers alone · {wiring.activation}", f"--arch {arch}")]


def _joined(numbers: Iterable[int]) -> str:
    return "+".join(map(str, numbers))
