import pytest

from edgekd.ingestion import views

PLAIN = ["conv1.weight", "layer1.0.conv1.weight", "layer1.0.bn1.bias", "fc.weight", "fc.bias"]


def prefixed(prefix: str, names: list[str] = PLAIN) -> list[str]:
    return [f"{prefix}{name}" for name in names]


def reading(names: list[str], *, alone: bool = False) -> views.StateDictView | None:
    """Return the first reading that yields exactly the plain names, or the first with no unknown tensors beside it."""
    found = [view for view in views.views(names) if list(view.names.values()) == PLAIN]
    return next((view for view in found if not alone or not views.left_out_tensors(view).unknown), None)


@pytest.mark.parametrize(
    "names",
    [
        PLAIN,
        prefixed("module."),
        prefixed("clf.0.resnet."),
        [name if name.startswith("fc") else f"backbone.{name}" for name in PLAIN],
        [name if name.startswith("fc") else f"model.backbone.{name}" for name in prefixed("")],
        [f"head.{name}" if name.startswith("fc") else f"backbone.{name}" for name in PLAIN],
        [name.replace("layer1.", "layer1.module.") for name in PLAIN],
        [f"student.{name}" if name.startswith("fc") else f"student.net.{name}" for name in PLAIN],
    ],
)
def test_wrappers_of_all_or_of_some_names_are_undone(names: list[str]) -> None:
    view = reading(names)
    assert view is not None
    assert list(view.names) == names
    assert (view.part, view.left_out) == ("", ())


def test_the_plain_reading_comes_first_and_none_comes_twice() -> None:
    found = list(views.views(prefixed("module.")))
    assert list(found[0].names.values()) == PLAIN
    assert len({tuple(view.names.items()) for view in found}) == len(found)


def test_two_names_never_become_one() -> None:
    for view in views.views(["a.x.weight", "b.x.weight", "x.weight"]):
        assert len(set(view.names.values())) == len(view.names)


@pytest.mark.parametrize(
    ("names", "part"),
    [
        ([*prefixed("model."), *prefixed("ema.")], "model.*"),
        ([*prefixed("ema_model.module."), *prefixed("net.module.")], "net.*"),
        ([*PLAIN, *prefixed("ema.")], "all but ema.*"),
        ([*prefixed("module.model."), *prefixed("module.ema.")], "model.*"),
        ([*prefixed("teacher."), *prefixed("student.")], "student.*"),
    ],
)
def test_one_of_two_copies_is_taken_the_raw_one_first(names: list[str], part: str) -> None:
    view = reading(names, alone=True)
    assert view is not None
    assert view.part == part
    beside = views.left_out_tensors(view)
    assert len(beside.copies) == 1
    assert (beside.training, beside.unknown, dict(beside.moments)) == ((), (), {})


def test_a_copy_may_lack_buffers_but_no_layer() -> None:
    trained = [*PLAIN, "bn1.running_mean"]
    for names, copies in (
        ([*prefixed("model.", trained), *prefixed("ema.")], ("ema.*",)),
        ([*prefixed("backbone.", trained), "head.fc.weight", "head.fc.bias"], ()),
        ([*prefixed("model.", trained), "classifier.conv1.weight", "classifier.fc.weight"], ()),
    ):
        view = next(view for view in views.views(names) if list(view.names.values()) == trained)
        assert views.left_out_tensors(view).copies == copies


@pytest.mark.parametrize(
    "name", ["metric_fc.weight", "test_head.fc.weight", "val_fc.weight", "lossy.weight", "metrical"]
)
def test_what_only_begins_like_a_loss_or_a_metric_is_none(name: str) -> None:
    view = reading([*prefixed("model."), name])
    assert view is not None
    assert views.left_out_tensors(view).unknown == (name,)


@pytest.mark.parametrize("name", ["criterion.weight", "loss_fn.pos_weight", "train_acc.total", "val_loss_mean.value"])
def test_a_loss_or_a_metric_is_no_part_of_the_network(name: str) -> None:
    view = reading([*prefixed("model."), name])
    assert view is not None
    assert views.left_out_tensors(view).training == (name,)


def test_what_stands_beside_the_network_is_told_apart() -> None:
    names = ["criterion.weight", "normalize.mean", "normalize.std", "queue", *prefixed("model."), *prefixed("ema.")]
    view = reading(names)
    assert view is not None
    beside = views.left_out_tensors(view)
    assert beside.copies == ("ema.*",)
    assert beside.moments == {"mean": "normalize.mean", "std": "normalize.std"}
    assert beside.training == ("criterion.weight",)
    assert beside.unknown == ("queue",)


def test_a_mean_without_a_standard_deviation_normalizes_nothing() -> None:
    view = reading(["memory.mean", *prefixed("model.")])
    assert view is not None
    assert views.left_out_tensors(view).unknown == ("memory.mean",)


def test_a_decoder_is_no_copy() -> None:
    view = reading([*prefixed("encoder."), "decoder.fc.weight", "decoder.up.weight"])
    assert view is not None
    assert views.left_out_tensors(view).unknown == ("decoder.fc.weight", "decoder.up.weight")


@pytest.mark.parametrize(
    ("names", "prefix"),
    [(["a.b.c", "a.b.d"], "a.b."), (["a.b", "a"], ""), (["weight"], ""), (["a.weight"], "a."), ([], "")],
)
def test_common_prefix_leaves_a_name(names: list[str], prefix: str) -> None:
    assert views.common_prefix(names) == prefix


def test_components_of_compilers_are_dropped_anywhere() -> None:
    name = "_orig_mod.layer1._fsdp_wrapped_module.0._checkpoint_wrapped_module.conv1.weight"
    assert views.without_transparent(name) == "layer1.0.conv1.weight"
    assert views.without_transparent("module.conv1.weight") == "module.conv1.weight"


def test_many_names_give_a_bounded_number_of_readings() -> None:
    names = [f"part{i}.{j}.weight" for i in range(200) for j in range(3)]
    assert len(list(views.views(names))) <= 60
