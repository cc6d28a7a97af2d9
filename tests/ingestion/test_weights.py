from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import nn

from edgekd.errors import InputFileError
from edgekd.ingestion.weights import require_floats, state_dict_of, weights_of

PLAIN = {"conv.weight": torch.randn(2, 1, 3, 3), "bn.running_mean": torch.randn(2), "fc.weight": torch.randn(3, 2)}


def assert_plain(found: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(PLAIN)
    assert all(torch.equal(found[name], PLAIN[name]) for name in PLAIN)


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return OrderedDict((prefix + name, tensor) for name, tensor in PLAIN.items())


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.", "model.", "backbone.", "net.", "module._orig_mod.", "_orig_mod.module.",
     "model.backbone.", "model._orig_mod.module.net.", "module.module."],
)  # fmt: skip
def test_stacks_of_prefixes_are_stripped(prefix: str) -> None:
    assert_plain(state_dict_of(prefixed(prefix)))


def test_a_prefix_of_some_names_is_kept() -> None:
    mixed = {"backbone.conv.weight": torch.ones(1), "head.weight": torch.ones(1)}
    assert list(state_dict_of(mixed)) == list(mixed)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda d: {"state_dict": d, "epoch": 3, "best_prec1": 0.9},
        lambda d: {"model_state_dict": d, "optimizer_state_dict": {"state": {0: {"momentum_buffer": torch.ones(2)}}}},
        lambda d: {"model": d, "optimizer": {"state": {}}, "lr_scheduler": {"last_epoch": 3}, "args": None},
        lambda d: {"net": d, "acc": 91.2},
        lambda d: {"ema": d},
        lambda d: {"state_dict": {"model": d}},
        lambda d: {"resnet": d, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}},
        lambda d: {**d, "epoch": 7, "loss": 0.3},
        lambda d: {"pytorch-lightning_version": "2", "state_dict": d, "hyper_parameters": {"lr": 1.0}, "loops": {}},
        lambda d: {"arch": "resnet18", "state_dict": d, "state_dict_ema": prefixed("module."), "metric": 1.0},
        lambda d: {"resnet": d, "best_accuracy": torch.tensor(0.9)},
        lambda d: {"checkpoint": {"weights_of_epoch": d, "epoch": 3}},
        lambda d: [d, {"lr": 0.1}],
        lambda d: {"history": ({"loss": 1.0}, {"loss": 0.5}), "model": {"state": d}},
        lambda d: {"model": "resnet18", "params": d},
    ],
)
def test_nested_entries_are_found(wrap: Callable[[dict[str, torch.Tensor]], object]) -> None:
    assert_plain(state_dict_of(wrap(prefixed("model."))))


def test_raw_weights_come_before_ema_and_both_are_listed() -> None:
    ema = {name: tensor + 1 for name, tensor in PLAIN.items()}
    checkpoint = {"state_dict_ema": ema, "state_dict": PLAIN}
    assert_plain(state_dict_of(checkpoint))
    found = weights_of(checkpoint)
    assert (found.entry, found.others) == ("state_dict", ("state_dict_ema",))


def test_a_module_gives_its_state_dict() -> None:
    net = nn.Linear(2, 3)
    found = weights_of({"model": net})
    assert torch.equal(found.tensors["weight"], net.weight)
    assert not found.tensors["weight"].requires_grad
    assert (found.module, found.entry) == (net, "model")
    assert weights_of({"model": net.state_dict()}).module is None


@pytest.mark.parametrize(
    ("beside", "name"),
    [
        ({"arch": "resnet18"}, "resnet18"),
        ({"args": Namespace(model="vit_tiny", arch="other")}, "vit_tiny"),
        ({"args": {"arch": "alexnet"}}, "alexnet"),
        ({"model_name": " lenet5 "}, "lenet5"),
        ({"arch": 3, "args": None}, ""),
        ({"arch": "x" * 500}, ""),
        ({}, ""),
    ],
)
def test_the_name_that_a_training_script_left_is_read(beside: dict[str, object], name: str) -> None:
    assert weights_of({"state_dict": PLAIN, **beside}).arch == name


def test_deep_and_doubled_nests_end() -> None:
    doubled: object = [PLAIN]
    for _ in range(100):
        doubled = [doubled, doubled]
    with pytest.raises(InputFileError, match="no weights"):
        state_dict_of(doubled)


def test_components_of_compilers_inside_a_name_are_dropped() -> None:
    compiled = {name.replace("bn.", "bn._orig_mod."): tensor for name, tensor in PLAIN.items()}
    assert_plain(state_dict_of(compiled))


def test_counters_are_dropped() -> None:
    extra = {"bn.num_batches_tracked": torch.tensor(5), "total_ops": torch.zeros(1), "fc.total_params": torch.ones(1),
             "n_averaged": torch.tensor(3)}  # fmt: skip
    assert_plain(state_dict_of({**PLAIN, **extra}))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(dtype: torch.dtype) -> None:
    found = state_dict_of({name: tensor.to(dtype) for name, tensor in PLAIN.items()})
    for name, tensor in PLAIN.items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], tensor.to(dtype).float())


def test_channels_last_becomes_contiguous() -> None:
    weight = torch.randn(8, 4, 3, 3)
    found = state_dict_of({"conv.weight": weight.to(memory_format=torch.channels_last)})["conv.weight"]
    assert found.is_contiguous()
    assert torch.equal(found, weight)


def test_shared_and_cyclic_dicts_end() -> None:
    loop: dict[str, object] = {"epoch": 1}
    loop["model"] = loop
    with pytest.raises(InputFileError, match="no weights"):
        state_dict_of(loop)


def test_integer_buffers_stay() -> None:
    index = torch.arange(4)
    found = state_dict_of({"fc.weight": torch.ones(1), "attention.relative_position_index": index})
    assert torch.equal(found["attention.relative_position_index"], index)


def bad(**tensors: torch.Tensor) -> dict[str, torch.Tensor]:
    return {**PLAIN, **{name.replace("__", "."): tensor for name, tensor in tensors.items()}}


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ({}, "an empty dict"),
        ([torch.ones(2)], "type list"),
        (torch.ones(2), "type Tensor"),
        (None, "type NoneType"),
        ({"epoch": 3, "accuracy": 0.5}, "entries epoch, accuracy"),
        ({"state_dict": {"lr": 0.1}}, "entries state_dict"),
        ({"bn.num_batches_tracked": torch.tensor(5)}, "no weights"),
        ({"generator": {"a.weight": torch.ones(1)}, "critic": {"a.weight": torch.ones(1)}}, "generator, critic"),
        (bad(fc__weight=torch.tensor([float("nan"), 1.0])), '"fc.weight" has 1 values'),
        (bad(fc__bias=torch.tensor([float("inf"), float("-inf")])), '"fc.bias" has 2 values'),
        (bad(fc__weight=torch.ones(2, 2, dtype=torch.int8)), "int8, not floating point"),
        (bad(fc__bias=torch.ones(2, dtype=torch.bool)), "bool, not floating point"),
        (bad(fc__weight=torch.ones(2, dtype=torch.complex64)), "complex"),
        (bad(fc__weight=torch.ones(2, 2).to_sparse()), "sparse"),
        (bad(fc__weight=torch.empty(2, 2, device="meta")), "without data"),
        (bad(fc__weight=torch.ones(1).expand(10**12)), "claims 1000000000000 values"),
    ],
)
def test_unusable_weights_are_named(checkpoint: object, message: str) -> None:
    with pytest.raises(InputFileError) as caught:
        state_dict_of(checkpoint)
    assert message in str(caught.value)


AVERAGE = {name: tensor + 1 for name, tensor in PLAIN.items()}


@pytest.mark.parametrize(
    ("checkpoint", "entry", "others"),
    [
        ({"ema": AVERAGE, "resnet8": PLAIN}, "resnet8", ("ema",)),
        ({**PLAIN, "ema": AVERAGE}, "the file itself", ("ema",)),
        ({"state_dict_ema": AVERAGE, "backbone": PLAIN}, "backbone", ("state_dict_ema",)),
        ({"model": PLAIN, "resnet8": AVERAGE}, "model", ("resnet8",)),
        ({**AVERAGE, "net": PLAIN}, "net", ("the file itself",)),
        ({**PLAIN, "params": {"temperature": torch.ones(1)}}, "the file itself", ()),
        ({"optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}, "ema": PLAIN}, "ema", ()),
    ],
)
def test_an_average_is_taken_last_and_what_is_not_taken_is_named(
    checkpoint: object, entry: str, others: tuple[str, ...]
) -> None:
    found = weights_of(checkpoint)
    assert_plain(found.tensors)
    assert (found.entry, found.others) == (entry, others)


def test_names_that_become_one_are_refused() -> None:
    with pytest.raises(InputFileError, match="the same names with and without"):
        state_dict_of({**PLAIN, "_orig_mod.conv.weight": torch.zeros(2, 1, 3, 3)})


def test_many_names_for_the_same_bytes_are_refused_and_tied_weights_are_not() -> None:
    shared = torch.ones(2**20, dtype=torch.float16)
    tied = {f"layer{i}.weight": shared for i in range(4)}
    assert all(tensor.shape == shared.shape for tensor in state_dict_of(tied).values())
    bomb = {f"layer{i}.weight": shared for i in range(200)}
    with pytest.raises(InputFileError, match="claims 1048576 values that the file does not hold"):
        state_dict_of(bomb)


def test_whole_numbers_in_place_of_floating_point_ones_are_refused() -> None:
    network = nn.MultiheadAttention(4, 2).state_dict()
    require_floats({**network, "index": torch.arange(3)}, {**network, "index": torch.arange(3)})
    with pytest.raises(InputFileError, match="The numbers in in_proj_weight are int8, not floating point"):
        require_floats({**network, "in_proj_weight": network["in_proj_weight"].to(torch.int8)}, network)
