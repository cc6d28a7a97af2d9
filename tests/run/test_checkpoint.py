"""State goes to disk and comes back bit for bit, in the memory layout the optimiser needs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgekd import state_dict
from edgekd.errors import InputFileError, RecipeError
from edgekd.run import checkpoint
from edgekd.run.cards.record import Record
from edgekd.run.directory import RunDir

Make = Callable[[nn.Module], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "adam": lambda n: torch.optim.Adam(n.parameters(), lr=0.1, fused=True),
    "adam, decay": lambda n: torch.optim.Adam(n.parameters(), lr=0.1, weight_decay=0.1, fused=True),
    "sgd": lambda n: torch.optim.SGD(n.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1, fused=True),
    "sgd, no momentum": lambda n: torch.optim.SGD(n.parameters(), lr=0.1, fused=True),
}


def some_tensors() -> dict[str, Tensor]:
    base = torch.arange(120.0)
    return {
        "channels_last": base.view(2, 5, 4, 3).contiguous(memory_format=torch.channels_last),
        "shared": base[:10],
        "shared_too": base[5:15],
        "scalar": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "half": torch.tensor([1.5, float("inf")], dtype=torch.bfloat16),
    }


def test_tensors_come_back_with_their_values_and_types(tmp_path: Path) -> None:
    checkpoint.save_tensors(some_tensors(), tmp_path / "x.safetensors")
    found = checkpoint.load_tensors(tmp_path / "x.safetensors")
    assert found.keys() == some_tensors().keys()
    for name, tensor in some_tensors().items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_equal_tensors_make_equal_files_in_whatever_order(tmp_path: Path) -> None:
    tensors = some_tensors()
    checkpoint.save_tensors(tensors, tmp_path / "a.safetensors")
    checkpoint.save_tensors(dict(reversed(tensors.items())), tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize("damage", ["missing", "empty", "garbage", "truncated"])
def test_a_damaged_file_is_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    checkpoint.save_tensors(some_tensors(), path)
    content = {"empty": b"", "garbage": b"garbage" * 9, "truncated": path.read_bytes()[:-9]}
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[damage])
    with pytest.raises(InputFileError, match=r"x\.safetensors cannot be read"):
        checkpoint.load_tensors(path)


def test_flatten_and_unflatten_are_inverse() -> None:
    state: state_dict.StateDict = {
        "net": {"conv.weight": torch.ones(2), "inner": {"deep": torch.zeros(1), "count": 3}},
        "list": [{"a": 1.5}],
        "none": None,
        "flag": True,
    }
    tensors, plain = state_dict.flatten(state)
    assert set(tensors) == {"net/conv.weight", "net/inner/deep"}
    assert plain == {"net/inner/count": 3, "list": [{"a": 1.5}], "none": None, "flag": True}
    assert state_dict.unflatten(tensors, plain) == state


def write(run: RunDir, step: int, *, key: str = "k") -> None:
    checkpoint.write_checkpoint(
        run, step, {"net": {"w": torch.full((3,), float(step))}, "step": step}, key=key, environment={}
    )


def folder(run: RunDir, step: int) -> Path:
    return run.path / f"distill/checkpoints/step-{step:08d}"


def test_the_newest_two_checkpoints_are_kept_and_the_newest_is_read(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for step in (0, 4, 100):
        run.append_event({"kind": "train", "step": step})
        write(run, step)
    assert [p.name for p in sorted(folder(run, 0).parent.iterdir())] == ["step-00000004", "step-00000100"]
    found, warnings = checkpoint.newest(run, key="k")
    assert found is not None
    assert (found.step, found.state["step"], warnings) == (100, 100, [])
    assert torch.equal(state_dict.tensors_of(found.state, "net")["w"], torch.full((3,), 100.0))
    assert found.events_bytes == run.events_bytes() > 0


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert checkpoint.newest(RunDir(tmp_path), key="k") == (None, [])


@pytest.mark.parametrize("damage", ["weights", "plain", "record", "gone"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(damage: str, tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    write(run, 1)
    write(run, 2)
    last = folder(run, 2)
    if damage == "weights":
        content = bytearray((last / "state.safetensors").read_bytes())
        content[-1] ^= 1
        (last / "state.safetensors").write_bytes(content)
    elif damage == "plain":
        (last / "state.json").write_text("{}")
    elif damage == "record":
        (last / "record.json").write_text("{")
    elif damage == "gone":
        (last / "state.safetensors").unlink()
    found, warnings = checkpoint.newest(run, key="k")
    assert found is not None
    assert found.step == 1
    assert len(warnings) == 1
    assert "damaged-step-00000002" in warnings[0]
    assert (last.parent / "damaged-step-00000002").is_dir()
    assert not last.exists()


def test_an_intact_checkpoint_of_another_recipe_is_refused_and_left_alone(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    write(run, 1, key="other")
    with pytest.raises(RecipeError, match="--fresh"):
        checkpoint.newest(run, key="k")
    assert folder(run, 1).is_dir()


def test_no_intact_checkpoint_among_damaged_ones_never_restarts_silently(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    write(run, 1)
    (folder(run, 1) / "state.json").unlink()
    for _ in range(2):  # the second time only the one set aside is left
        with pytest.raises(InputFileError, match="--fresh"):
            checkpoint.newest(run, key="k")


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    write(run, 1)
    with pytest.raises(ValueError, match="JSON"):
        checkpoint.write_checkpoint(run, 2, {"share": float("nan")}, key="k", environment={})
    assert [p.name for p in folder(run, 1).parent.iterdir()] == ["step-00000001"]


def test_a_checkpoint_records_the_environment_and_hashes_of_its_files(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    checkpoint.write_checkpoint(run, 3, {"w": torch.zeros(1)}, key="k", environment={"threads": 2})
    record = Record.read(folder(run, 3))
    assert record is not None
    assert record.notes == {"events_bytes": 0, "environment": {"threads": 2}}
    assert set(record.outputs) == {"state.safetensors", "state.json"}


def network(state: dict[str, Tensor] | None = None) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        convolutions = (nn.Conv2d(5, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, groups=2), nn.Conv2d(4, 3, 1))
        net = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(3 * 16, 3))
    if state is not None:
        net.load_state_dict(state)
    return net.to(memory_format=torch.channels_last)


def update(net: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    x = torch.randn(4, 5, 8, 8, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    (net(x) ** 2).sum().backward()
    optimizer.step()


def through_disk(state: dict[str, Any], path: Path) -> dict[str, Any]:
    tensors, plain = state_dict.flatten(state)
    checkpoint.save_tensors(tensors, path)
    return dict(state_dict.unflatten(checkpoint.load_tensors(path), json.loads(json.dumps(plain))))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_step_after_restoring_equals_the_uninterrupted_one(name: str, tmp_path: Path) -> None:
    net = network()
    optimizer = OPTIMIZERS[name](net)
    update(net, optimizer, 1)
    update(net, optimizer, 2)
    saved = through_disk({"o": state_dict.optimizer_state(optimizer)}, tmp_path / "o.safetensors").get("o", {})
    resumed = network({k: v.clone() for k, v in net.state_dict().items()})
    again = OPTIMIZERS[name](resumed)
    state_dict.restore_optimizer(again, saved)
    for moments in again.state.items():
        for value in moments[1].values():
            if isinstance(value, Tensor) and value.shape == moments[0].shape:
                assert value.stride() == moments[0].stride()
    for seed in (3, 4):
        update(net, optimizer, seed)
        update(resumed, again, seed)
    for mine, theirs in zip(resumed.state_dict().values(), net.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_contiguous_moments_would_be_paired_with_the_wrong_weights(name: str, tmp_path: Path) -> None:
    """The reason for `restore_optimizer`: what torch does with moments as a file holds them is silently wrong."""
    net = network()
    optimizer = OPTIMIZERS[name](net)
    update(net, optimizer, 1)
    saved = through_disk({"o": state_dict.optimizer_state(optimizer)}, tmp_path / "o.safetensors")["o"]
    resumed = network({k: v.clone() for k, v in net.state_dict().items()})
    naive = OPTIMIZERS[name](resumed)
    state = {int(position): values for position, values in saved.items()}
    naive.load_state_dict({"state": state, "param_groups": naive.state_dict()["param_groups"]})
    update(net, optimizer, 2)
    update(resumed, naive, 2)
    assert not torch.equal(net.get_parameter("0.weight"), resumed.get_parameter("0.weight"))


def test_restoring_forgets_moments_the_file_does_not_hold() -> None:
    net = network()
    optimizer = OPTIMIZERS["adam"](net)
    update(net, optimizer, 1)
    state_dict.restore_optimizer(optimizer, {})
    assert state_dict.optimizer_state(optimizer) == {}


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_moments_and_step_counters_return_to_the_device(name: str, tmp_path: Path) -> None:
    net = network().cuda()
    optimizer = OPTIMIZERS[name](net)

    def update_there(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        torch.stack([(p**3).sum() for p in net.parameters()]).sum().backward()
        optimizer.step()

    update_there(net, optimizer)
    saved = through_disk({"o": state_dict.optimizer_state(optimizer)}, tmp_path / "o.safetensors")["o"]
    resumed = network(net.state_dict()).cuda()
    again = OPTIMIZERS[name](resumed)
    state_dict.restore_optimizer(again, saved)
    update_there(net, optimizer)
    update_there(resumed, again)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), resumed.parameters(), strict=True))


def test_tensors_whose_record_knows_another_hash_are_damaged(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    with run.publish("teacher") as (folder, record):
        checkpoint.save_tensors({"w": torch.ones(100)}, folder / "teacher.safetensors")
        record |= {"stage": "ingest", "version": 1, "key": "", "recipe_slice": {}, "inputs": {}}
    path = run.stage("teacher") / "teacher.safetensors"
    assert torch.equal(checkpoint.load_tensors(path)["w"], torch.ones(100))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputFileError, match=r"teacher\.safetensors is damaged: .* Make ingest again"):
        checkpoint.load_tensors(path)
    (path.parent / "record.json").unlink()
    assert checkpoint.load_tensors(path)["w"][0] == 1


def test_old_checkpoints_go_and_what_the_user_put_into_them_stays(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for step in (0, 1, 2, 3):
        checkpoint.write_checkpoint(run, step, {"a": torch.zeros(1)}, key="k", environment={})
        place = run.path / "distill" / "checkpoints"
        if step == 0:
            (place / "step-00000000" / "sub").mkdir()
            (place / "step-00000000" / "sub" / "notes.md").write_text("mine")
            (place / "step-of-mine").mkdir()
    names = sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.suffix != ".json")
    assert [name for name in names if "state" not in name] == [
        *("step-00000000", "step-00000000/sub", "step-00000000/sub/notes.md"),
        *("step-00000002", "step-00000003", "step-of-mine"),
    ]
    found, warnings = checkpoint.newest(run, key="k")
    assert found is not None
    assert (found.step, warnings) == (3, [])
