from collections.abc import Callable

import pytest
import torch
from torch import nn

from edgekd.errors import InputFileError
from edgekd.models import probe, registry

SHAPE = (1, 16, 16)


def small() -> nn.Module:
    return registry.build("resnet8", input_shape=SHAPE, classes=5, seed=0)


def test_probe_describes_a_classifier() -> None:
    net = small().train()
    found = probe.probe(net, input_shape=SHAPE, classes=5, seed=1)
    assert (found.emits, found.undo) == ("logits", "none")
    assert found.batchnorm_layers == 7
    assert found.head_alive
    assert 0.2 <= found.noise_confidence <= 1
    assert found.parameters == sum(p.numel() for p in net.parameters())
    assert found.seconds_per_batch > 0
    assert net.training
    assert found == probe.probe(net, input_shape=SHAPE, classes=5, seed=1)
    assert found.noise_confidence != probe.probe(net, input_shape=SHAPE, classes=5, seed=2).noise_confidence


def test_probe_changes_nothing() -> None:
    net = small().train()
    net.get_submodule("layer1").eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = torch.get_rng_state()
    probe.probe(net, input_shape=SHAPE, classes=5, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert not net.get_submodule("layer1").training
    assert net.get_submodule("layer2").training


def test_macs_are_counted_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, groups=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    assert probe.complexity(net, (3, 10, 10)).macs == 10 * 10 * 8 * 3 * 9 + 8 * 5
    depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
    assert probe.complexity(depthwise, (4, 6, 6)) == probe.Complexity(parameters=36, macs=6 * 6 * 4 * 9)


def test_softmax_at_the_end_is_found() -> None:
    net = small().eval()
    found = probe.probe(nn.Sequential(net, nn.Softmax(dim=1)), input_shape=SHAPE, classes=5, seed=0)
    assert (found.emits, found.undo) == ("probabilities", "log")
    logs = probe.probe(nn.Sequential(net, nn.LogSoftmax(dim=1)), input_shape=SHAPE, classes=5, seed=0)
    assert (logs.emits, logs.undo) == ("log-probabilities", "none")
    assert logs.noise_confidence == pytest.approx(found.noise_confidence)


def test_equal_functions_answer_alike_whatever_ends_them() -> None:
    net, other = small(), registry.build("resnet8", input_shape=SHAPE, classes=5, seed=1)
    for end in (nn.Identity(), nn.Softmax(dim=1), nn.LogSoftmax(dim=1)):
        assert probe.same_answers(nn.Sequential(net, end), net, SHAPE, seed=0)
        assert not probe.same_answers(nn.Sequential(net, end), other, SHAPE, seed=0)
    assert not probe.same_answers(nn.Flatten(), net, SHAPE, seed=0)
    assert not probe.same_answers(_Pair(), net, SHAPE, seed=0)


def test_dead_head_is_seen() -> None:
    net = small()
    nn.init.zeros_(net.get_parameter("linear.weight"))
    assert not probe.probe(net, input_shape=SHAPE, classes=5, seed=0).head_alive


class _Then(nn.Module):
    """A classifier with something behind its logits."""

    def __init__(self, end: Callable[[torch.Tensor], torch.Tensor], logits: nn.Module | None = None) -> None:
        super().__init__()
        self.net, self.end = logits or small(), end

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.end(self.net(images))


def probed(end: Callable[[torch.Tensor], torch.Tensor]) -> probe.Probe:
    return probe.probe(_Then(end).eval(), input_shape=SHAPE, classes=5, seed=0)


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (torch.sigmoid, "ends in a sigmoid, as one does that gives an image several labels at once"),
        (lambda x: torch.sigmoid_(x).view(-1, 5).clone(), "ends in a sigmoid"),
        (nn.functional.logsigmoid, "ends in a sigmoid"),
        (nn.functional.hardsigmoid, "ends in a sigmoid"),
        (lambda x: 1 / (1 + torch.exp(-x)), "answers with numbers from 0 to 1 that do not sum to 1"),
        (lambda x: (torch.tanh(x) + 1) / 2, "answers with numbers from 0 to 1 that do not sum to 1"),
        (lambda x: x.clamp(0, 1), "answers with numbers from 0 to 1 that do not sum to 1"),
        (lambda x: 5 * torch.sigmoid(x) - 1, "ends in a sigmoid"),
        (lambda x: torch.stack([x, -x]).sigmoid().mean(0), "ends in a sigmoid"),
        (lambda x: torch.stack([x.sigmoid(), (-x).sigmoid()]).sum(0), "ends in a sigmoid"),
        (lambda x: nn.functional.adaptive_avg_pool2d(x.sigmoid()[:, :, None, None], 1).flatten(1), "ends in a sigmoid"),
        (lambda x: nn.functional.avg_pool2d(x.sigmoid()[:, :, None, None], 1).flatten(1), "ends in a sigmoid"),
        (lambda x: (1 / (1 + torch.exp(-x[:, :, None]))).mean(2), "answers with numbers from 0 to 1"),
        (lambda x: x.sigmoid() / (torch.arange(5) / 10 + 0.3), "ends in a sigmoid"),
        (lambda x: (torch.arange(5) + 1) * x.sigmoid(), "ends in a sigmoid"),
        (lambda x: x.sigmoid() - torch.arange(5) / 10, "ends in a sigmoid"),
        (lambda x: x.sigmoid() + (2 * x).sigmoid(), "ends in a sigmoid"),
        (lambda x: 3 - 5 * x.sigmoid(), "ends in a sigmoid"),
        (lambda x: 5 * torch.cat([x[:, :2].sigmoid(), x[:, 2:].sigmoid()], 1), "ends in a sigmoid"),
        (lambda x: x.masked_fill(torch.arange(5) == 3, -1e9), r"-1e\+09 for output 3 .* masked.*Leave what is masked"),
        (lambda x: x - 1e6 * (torch.arange(5) > 2), r"for output 3, 4 \(counted from 0\)"),
        (lambda x: x.masked_fill(torch.arange(5) == 3, -1e9).log_softmax(1), "for output 3 "),
        (lambda x: x + 1e6, r"all lie near 1e\+06; .* Take 1e\+06 off the bias"),
        (lambda x: -x.log_softmax(1), "negative logarithms of probabilities"),
        (lambda x: 100 * x.softmax(1), "sum to 100 for every image, as a softmax of another scale"),
        (lambda x: x.masked_fill(torch.arange(5) == 3, -torch.inf), r"\(32 of 32 images\); look for .* or a mask"),
        (
            lambda x: torch.where(x[:, :1] > x[:1, :1], torch.nan, x),
            "look for a division by zero, an overflow or a mask",
        ),
        (lambda x: 1e30 * x, "answers noise with logits up to"),
        (lambda x: 1e30 * x.log_softmax(1), "answers noise with logits up to"),
    ],
)
def test_answers_that_are_no_logits_are_refused(end: Callable[[torch.Tensor], torch.Tensor], said: str) -> None:
    with pytest.raises(InputFileError, match=said):
        probed(end)


def test_a_sigmoid_and_what_it_leaves_of_1_are_probabilities() -> None:
    net = _Then(lambda x: torch.cat([1 - x[:, :1].sigmoid(), x[:, :1].sigmoid()], 1)).eval()
    assert probe.probe(net, input_shape=SHAPE, classes=2, seed=0).emits == "probabilities"


def test_a_network_with_one_output_is_refused() -> None:
    net = nn.Sequential(small(), nn.Linear(5, 1)).eval()
    with pytest.raises(InputFileError, match="a single output"):
        probe.probe(net, input_shape=SHAPE, classes=1, seed=0)


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (torch.tanh, "bounded (they end in tanh"),
        (lambda x: nn.functional.hardtanh(x).reshape(-1, 5), "bounded (they end in hardtanh"),
        (lambda x: nn.functional.relu6(10 * x), "bounded (they end in hardtanh"),
        (lambda x: 8 * torch.tanh(x), "bounded (they end in tanh"),
        (lambda x: nn.functional.dropout(x), "answers the same image otherwise each time"),
        (lambda x: x - x.mean(0), "depends on the images beside it in a batch"),
        (torch.relu, "end in an activation (relu)"),
        (nn.functional.softplus, "end in an activation (softplus)"),
        (nn.functional.elu, "end in an activation (elu)"),
        (nn.functional.gelu, "end in an activation (gelu)"),
        (torch.exp, "end in an activation (exp)"),
        (lambda x: torch.log1p(x.exp()) + 1, "end in an activation (log1p)"),
        (torch.atan, "bounded (they end in atan"),
        (lambda x: torch.cdist(x, torch.eye(5)), "answers with distances"),
        (lambda x: -torch.cdist(x, torch.eye(5)), ""),
        (lambda x: x.masked_fill(torch.arange(5) == 3, -9999.0), "-9999 for output 3 (counted from 0)"),
        (lambda x: torch.stack([x, 2 * x]).softmax(2).mean(0), ""),
        (lambda x: x * torch.sigmoid(2 * x), ""),
        (lambda x: x.relu()[:, :, None, None].mean((2, 3)), ""),
        (lambda x: 0.5 + 0.01 * x[:, :, None, None].mean((2, 3)), ""),
        (lambda x: 1e-30 * x, "gives all classes the same answer but for"),
        (lambda x: x.mean(1, keepdim=True).expand(-1, 5), "gives all classes the same answer"),
        (lambda x: (1e-6 * x).softmax(1), "gives all classes the same answer but for"),
        (lambda x: x, ""),
        (lambda x: x.softmax(1), ""),
        (lambda x: x.softmax(1).clamp(1e-7, 1 - 1e-7), ""),
        (lambda x: x.log_softmax(1).clamp(min=-100), ""),
        (lambda x: (1000 * x).softmax(1), ""),
        (lambda x: x.bfloat16().softmax(1), ""),
    ],
)
def test_logits_that_say_little_get_a_word(end: Callable[[torch.Tensor], torch.Tensor], said: str) -> None:
    remarks = probed(end).remarks
    assert len(remarks) == bool(said)
    assert said in "".join(remarks)


@pytest.mark.parametrize("of", ["images of one shade", "noise of three times the contrast"])
def test_a_network_that_answers_some_images_with_nan_is_refused(of: str) -> None:
    class Whitening(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            deviation = images.std((1, 2, 3), keepdim=True)
            return images / deviation if "shade" in of else images + (2 - deviation).sqrt()

    net = nn.Sequential(Whitening(), small()).eval()
    with pytest.raises(InputFileError, match=f"NaN or infinity on {of}"):
        probe.probe(net, input_shape=SHAPE, classes=5, seed=0)


def test_untrained_networks_of_the_zoo_are_classifiers() -> None:
    for name, shape in (("squeezenet", (3, 64, 64)), ("lenet5", (1, 32, 32)), ("mobilenetv2", (1, 32, 32))):
        net = registry.build(name, input_shape=shape, classes=5, seed=0).eval()
        assert probe.probe(net, input_shape=shape, classes=5, seed=0).emits == "logits"


class _Pair(nn.Module):
    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images, images


class _Squeezing(nn.Linear):
    """A network whose author never gave it a single image."""

    def __init__(self) -> None:
        super().__init__(256, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.atleast_1d(images.flatten(2).squeeze())).reshape(32, 5)


@pytest.mark.parametrize(
    ("net", "shape", "message"),
    [
        (small(), (3, 16, 16), "--input"),
        (registry.build("lenet5", input_shape=(1, 32, 32), classes=5, seed=0), (1, 40, 40), "--input"),
        (nn.Conv2d(1, 5, 3), SHAPE, "no classifier"),
        (nn.Sequential(nn.Flatten(0), nn.Linear(32 * 256, 5)), SHAPE, "no classifier"),
        (nn.Sequential(nn.Flatten(), nn.Linear(256, 4)), SHAPE, "4 outputs"),
        (_Squeezing(), SHAPE, "does not take single 1x16x16 images"),
        (_Pair(), SHAPE, "returns a tuple"),
        (nn.Sequential(nn.Flatten(), nn.Linear(256, 5), nn.Threshold(1e9, float("nan"))), SHAPE, "NaN"),
    ],
)
def test_unusable_networks_are_named(net: nn.Module, shape: tuple[int, int, int], message: str) -> None:
    with pytest.raises(InputFileError, match=message):
        probe.probe(net, input_shape=shape, classes=5, seed=0)


@pytest.mark.parametrize(
    ("name", "head"),
    [("resnet8", "linear"), ("wrn-16-1", "fc"), ("lenet5", "fc2"), ("mobilenetv2@0.25", "classifier.1"),
     ("mobilenetv3-small@0.5", "classifier.3"), ("squeezenet", "classifier.1"), ("shufflenetv2@0.5", "fc")],
)  # fmt: skip
def test_head_is_the_layer_that_makes_the_logits(name: str, head: str) -> None:
    net = registry.build(name, input_shape=SHAPE, classes=5, seed=0)
    assert probe.head_name(net, SHAPE) == head
    assert not any(module._forward_hooks for module in net.modules())


def test_network_without_layers_has_no_head() -> None:
    with pytest.raises(InputFileError, match="no classification head"):
        probe.head_name(nn.Flatten(), SHAPE)


def test_batchnorm_names_leave_out_layers_without_statistics() -> None:
    net = nn.Sequential(
        nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False), nn.Sequential(nn.BatchNorm2d(3))
    )
    assert probe.batchnorm_names(net) == ["0", "2.0"]
