"""Readings of a checkpoint's names against the zoo: parts unwrapped, one network of several, other names."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import nn

from edgekd.errors import InputFileError
from edgekd.ingestion.identify import Inferred, build_teacher, infer, mapping_in_short, other_entries, weights_of
from edgekd.models import registry

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return registry.build("resnet18", input_shape=(3, 32, 32), classes=10, seed=0).eval()


@pytest.fixture(scope="module")
def plain(net: nn.Module) -> Weights:
    return {name: t for name, t in net.state_dict().items() if not name.endswith("num_batches_tracked")}


def under(prefix: str, weights: Weights, shift: float = 0.0) -> Weights:
    return {f"{prefix}{name}": tensor + shift for name, tensor in weights.items()}


def assert_is(found: Inferred, net: nn.Module) -> None:
    assert str(found.arch) == "resnet18"
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(build_teacher(found)(images), net(images))


def split(weights: Weights, head: str = "fc.") -> Weights:
    return {name.replace("fc.", head) if "fc." in name else f"backbone.{name}": t for name, t in weights.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: under("resnet.", w),
        lambda w: under("model.0.", w),
        split,
        lambda w: split(w, "head.fc."),
        lambda w: under("model.", split(w)),
        lambda w: under("module.", under("model.", split(w))),
        lambda w: {name.replace("layer2.", "layer2.module."): tensor for name, tensor in w.items()},
        lambda w: {name.replace("layer3.", "layer3._orig_mod."): tensor for name, tensor in w.items()},
    ],
)
def test_wrapped_parts_need_no_consent(net: nn.Module, plain: Weights, wrap: Callable[[Weights], Weights]) -> None:
    found = infer(weights_of(wrap(plain)).tensors)
    assert_is(found, net)
    assert dict(found.mapping) == {}


@pytest.mark.parametrize(
    ("wrap", "value"),
    [
        (lambda w: {**under("model.", w), **under("ema.", w, 1.0)}, "model.*, not ema.*"),
        (lambda w: {**under("ema_model.module.", w, 1.0), **under("model.module.", w)}, "model.*, not ema_model.*"),
        (lambda w: {**w, **under("ema.", w, 1.0)}, "all but ema.*, not ema.*"),
        (lambda w: {**under("teacher.", w, 1.0), **under("student.", w)}, "student.*, not teacher.*"),
        (lambda w: {**under("model.", split(w)), **under("ema.", split(w), 1.0)}, "model.*, not ema.*"),
    ],
)
def test_of_two_copies_the_raw_one_is_taken_and_named(
    net: nn.Module,
    plain: Weights,
    wrap: Callable[[Weights], Weights],
    value: str,
) -> None:
    found = infer(weights_of(wrap(plain)).tensors)
    assert_is(found, net)
    assert {a.what: a.value for a in found.assumptions}["weights"] == value


def test_copies_that_nothing_tells_apart_are_refused(plain: Weights) -> None:
    with pytest.raises(InputFileError, match=r"several networks of the same names \(first\.\*, second\.\*\)"):
        infer({**under("first.", plain), **under("second.", plain)})


def test_losses_and_normalizations_beside_the_network_are_left_out_and_named(net: nn.Module, plain: Weights) -> None:
    moments = {"normalize.mean": torch.tensor([0.5, 0.25, 0.125]), "normalize.std": torch.tensor([0.1, 0.2, 0.3])}
    found = infer({**under("model.", plain), "criterion.weight": torch.ones(10), **moments})
    assert_is(found, net)
    flags = {a.what: (a.value, a.flag) for a in found.assumptions}
    assert flags["criterion.weight"][0] == "left out"
    assert flags["pixel normalisation inside the network"][1] == "--mean 0.5,0.25,0.125 --std 0.1,0.2,0.3"


@pytest.mark.parametrize(
    "beside",
    [
        {"loss.weight": torch.ones(20, 10)},  # metric learning: a last layer behind the embedding
        {"metric_fc.weight": torch.ones(20, 10)},
        pytest.param({"features.mean": torch.ones(512), "features.std": torch.ones(512)}, marks=pytest.mark.slow),
        pytest.param(
            {"head.bn1.weight": torch.ones(10), "head.fc.weight": torch.ones(5, 10), "head.fc.bias": torch.ones(5)},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_half_a_network_is_no_teacher(plain: Weights, beside: Weights) -> None:
    with pytest.raises(InputFileError, match="beside them stand others of unknown meaning"):
        infer({**under("model.", plain), **beside})


def test_an_ensemble_is_no_teacher(plain: Weights) -> None:
    with pytest.raises(InputFileError, match=r"several networks of the same names \(model\.\*, net\.\*\)"):
        infer({**under("model.", plain), **under("net.", plain, 1.0)})


def test_moments_of_pixels_to_255_become_flags_for_pixels_to_1(plain: Weights) -> None:
    moments = {"pixel_mean": torch.full((3, 1, 1), 127.5), "pixel_std": torch.full((3, 1, 1), 51.0)}
    found = infer({**under("model.", plain), **moments})
    flags = {a.what: a.flag for a in found.assumptions}
    assert flags["pixel normalisation inside the network"] == "--mean 0.5,0.5,0.5 --std 0.2,0.2,0.2"


def test_the_name_that_a_file_gives_itself_may_contradict_its_weights(plain: Weights) -> None:
    with pytest.raises(InputFileError, match=r"the file says resnetblur18, .* --arch timm:resnetblur18"):
        infer(plain, hint="resnetblur18")
    assert infer(plain, hint="my-resnet").arch == infer(plain).arch
    assert infer(plain, hint="resnetblur18", arch="resnet18").arch == infer(plain).arch


def test_one_renamed_module_needs_no_order(plain: Weights) -> None:
    renamed = {("fc.1." + name[3:] if name.startswith("fc.") else name): plain[name] for name in sorted(plain)}
    with pytest.raises(InputFileError, match=r"under other names: fc\.1 -> fc\. Use"):
        infer(renamed)
    assert infer(renamed, accept_mapping=True).arch == infer(plain).arch


def test_modules_of_equal_shapes_are_paired_by_order_whatever_their_names() -> None:
    """Two modules without weights came before the fifth convolution: later names are taken by their neighbours."""
    plain = registry.build("vgg16", input_shape=(3, 64, 64), classes=10, seed=0).state_dict()
    moved = {"19": "21", "21": "23", "24": "26", "26": "28", "28": "30"}
    later = {f"features.{before}": f"features.{after}" for before, after in moved.items()}
    renamed = {}
    for name, tensor in plain.items():
        module, _, role = name.rpartition(".")
        renamed[f"{later.get(module, module)}.{role}"] = tensor
    found = infer(renamed, input_shape=(3, 64, 64), accept_mapping=True)
    assert all(torch.equal(found.state_dict[name], plain[name]) for name in plain)
    # Sorted, nothing tells neighbours of equal shapes apart, so that it is no VGG; as a chain it is nothing usual.
    with pytest.raises(InputFileError, match="13 convolutions, 3 linear layers, "):
        infer({name: renamed[name] for name in sorted(renamed)}, input_shape=(3, 64, 64), accept_mapping=True)


def test_a_requested_width_is_held_to() -> None:
    weights = registry.build("wrn-10-2", input_shape=(3, 32, 32), classes=10, seed=0).state_dict()
    with pytest.raises(InputFileError, match=r"are those of wrn-10-2, not of wrn-10-3"):
        infer(weights, arch="wrn-10-3")


def test_a_network_wrapped_for_several_gpus_is_unwrapped(net: nn.Module) -> None:
    assert weights_of(nn.DataParallel(net)).module is net
    assert weights_of({"model": nn.DataParallel(net)}).module is net


def test_a_network_beside_parts_of_unknown_meaning_is_refused_with_the_way_on(plain: Weights) -> None:
    with pytest.raises(InputFileError) as caught:
        infer({**under("model.", plain), "decoder.weight": torch.ones(3, 3)})
    message = str(caught.value)
    assert "under model.* fit resnet18" in message
    assert "decoder.weight" in message
    assert "k.startswith('model.')" in message


@pytest.mark.parametrize(
    ("kept", "beside"),
    [pytest.param("model.", "decoder.", marks=pytest.mark.slow), ("", "ema."), ("it's.", "decoder.")],
)
def test_the_line_that_saves_the_part_saves_that_part(plain: Weights, kept: str, beside: str) -> None:
    state_dict = {**under(kept, plain), f"{beside}up.weight": torch.ones(3, 3), f"{beside}up.bias": torch.ones(3)}
    with pytest.raises(InputFileError) as caught:
        infer(state_dict)
    line = re.search(r"torch\.save\((\{.*\}), 'weights\.pt'\)", str(caught.value))
    assert line is not None
    assert set(eval(line[1], {"state_dict": state_dict})) == set(plain)  # noqa: S307 - our own line


def test_the_shortest_mapping_is_shown_in_full(net: nn.Module, plain: Weights) -> None:
    renamed = {name.replace("downsample", "shortcut"): t for name, t in split(plain, "linear.").items()}
    with pytest.raises(InputFileError) as caught:
        infer(renamed)
    assert "under other names: shortcut -> downsample (6 layers), linear -> fc." in str(caught.value)
    assert "backbone" not in str(caught.value)
    assert_is(infer(renamed, accept_mapping=True), net)


def test_a_mapping_in_short_names_each_difference_once() -> None:
    mapping = {f"layer{i}.shortcut.0.{role}": f"layer{i}.downsample.0.{role}" for i in range(3) for role in "wb"}
    assert mapping_in_short({**mapping, "linear.weight": "fc.weight", "x.norm.1.bias": "x.norm1.bias"}) == [
        "shortcut -> downsample (3 layers)",
        "linear -> fc",
        "norm.1 -> norm1",
    ]


def test_further_entries_of_the_file_are_named(plain: Weights) -> None:
    assumed = other_entries(weights_of({"state_dict": plain, "state_dict_ema": dict(plain)}))
    assert [(a.what, a.value) for a in assumed] == [("weights", "state_dict, not state_dict_ema")]
    assert "torch.load(FILE)['state_dict_ema']" in assumed[0].flag
    assert other_entries(weights_of({"state_dict": plain})) == ()
    (bare,) = other_entries(weights_of({**plain, "net": dict(plain)}))
    assert (bare.value, bare.flag) == ("net, not the file itself", "a file that holds the others alone")
