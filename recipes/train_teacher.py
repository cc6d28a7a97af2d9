"""Train a teacher on a folder of images with one subfolder per class, and leave the state dict edgekd starts from.

MNIST, the last 10,000 training images, evenly of each class, kept for development:
  train_teacher.py mnist/train lenet5.pt --arch lenet5 --input 1x32x32 --mean 0.1307 --std 0.3081 \
      --epochs 30 --shift 2 --rotate 10 --scale 0.1 --hold-out 10000 --development mnist/development
CIFAR-10, the last 5,000 kept:
  train_teacher.py cifar10/train wrn.pt --arch wrn-40-2 --input 3x32x32 --mean 0.4914,0.4822,0.4465 \
      --std 0.2470,0.2435,0.2616 --epochs 100 --lr 0.1 --shift 4 --flip --hold-out 5000 --half
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekd import machine, rng
from edgekd.models import registry
from edgekd.run.image_folder import open_folder
from edgekd.run.realdata import RealImages


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="training images, one folder per class")
    parser.add_argument("out", type=Path, help="state dict to write")
    parser.add_argument("--arch", required=True, help="architecture (edgekd's names)")
    parser.add_argument("--input", required=True, help="CHANNELSxHEIGHTxWIDTH")
    parser.add_argument("--mean", required=True, help="mean per channel of pixels in [0, 1], separated by commas")
    parser.add_argument("--std", required=True, help="standard deviation per channel")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.05, help="peak learning rate of SGD with momentum 0.9")
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--shift", type=float, default=0.0, help="largest shift in pixels")
    parser.add_argument("--rotate", type=float, default=0.0, help="largest rotation in degrees")
    parser.add_argument("--scale", type=float, default=0.0, help="largest relative change of size")
    parser.add_argument("--flip", action="store_true", help="mirror half of the images")
    parser.add_argument("--hold-out", type=int, default=0, help="keep N images, the last of each class by file name")
    parser.add_argument("--development", type=Path, help="folder for links to the images kept")
    parser.add_argument("--half", action="store_true", help="store the weights in half precision")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


def augment(x: Tensor, options: argparse.Namespace, source: torch.Generator) -> Tensor:
    """Return the batch with each image shifted, turned, scaled and mirrored within the limits of the options."""
    if not (options.shift or options.rotate or options.scale or options.flip):
        return x
    draws = torch.rand(5, len(x), generator=source) * 2 - 1
    angle = draws[0] * math.radians(options.rotate)
    size = 1 + draws[1] * options.scale
    mirror = torch.where(draws[4] > 0, -1.0, 1.0) if options.flip else torch.ones(len(x))
    # Pixels lie 2/side apart in affine_grid's coordinates; whole pixels keep an image sharp.
    right = (draws[2] * (options.shift + 0.5)).trunc() * 2 / x.shape[3]
    down = (draws[3] * (options.shift + 0.5)).trunc() * 2 / x.shape[2]
    first = torch.stack([size * angle.cos() * mirror, -size * angle.sin(), right], 1)
    second = torch.stack([size * angle.sin() * mirror, size * angle.cos(), down], 1)
    theta = torch.stack([first, second], 1).to(x.device)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    corner = x[:, :, :1, :1]  # images of these sets have a plain border: keep its colour outside
    return F.grid_sample(x - corner, grid, align_corners=False) + corner


def load(options: argparse.Namespace, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """Return training images and labels, those held out, and the number of classes."""
    classes = sum(p.is_dir() for p in options.data.iterdir())
    folder = open_folder(options.data, classes=classes, names=None)
    mean, std = (tuple(float(v) for v in text.split(",")) for text in (options.mean, options.std))
    pairs = list(RealImages(folder, shape, mean=mean, std=std).batches())
    x, y = torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])
    kept = [int(i) for label in y.unique() for i in last_of_class(y, int(label), options.hold_out / len(y))]
    for index in kept if options.development else []:
        file = folder.files[index]
        link = options.development / file.parent.name / file.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(file.resolve())
    held = torch.tensor(kept, dtype=torch.long)
    train = torch.ones(len(y), dtype=torch.bool).index_fill(0, held, False)
    return x[train], y[train], x[held], y[held], classes


def last_of_class(y: Tensor, label: int, share: float) -> Tensor:
    """Return the positions of the last `share` of a class by file name: a set sorted by class is split evenly."""
    found = (y == label).nonzero().flatten()
    return found[len(found) - round(share * len(found)) :]


def train(options: argparse.Namespace) -> tuple[nn.Module, float, int]:
    """Train with SGD, a short warm-up and a cosine to zero; every draw comes from one seeded generator."""
    channels, height, width = (int(part) for part in options.input.split("x"))
    shape = (channels, height, width)
    device = machine.resolve_device(options.device)
    x, y, x_held, y_held, classes = load(options, shape)
    network = registry.build(options.arch, input_shape=shape, classes=classes, seed=options.seed)
    network = network.to(device).to(memory_format=torch.channels_last).train()
    x, y = x.to(device), y.to(device)
    precision = machine.precision_for(network, device, "auto")
    optimizer = torch.optim.SGD(
        network.parameters(), lr=options.lr, momentum=0.9, weight_decay=options.weight_decay, nesterov=True, fused=True
    )
    source = rng.generator(options.seed, "train_teacher")
    batches = len(x) // options.batch
    total, warm = options.epochs * batches, max(1, batches)
    for epoch in range(options.epochs):
        order = torch.randperm(len(x), generator=source)[: batches * options.batch].to(device)
        for number, chosen in enumerate(order.split(options.batch)):
            step = epoch * batches + number
            cosine = 0.5 * (1 + math.cos(math.pi * step / total))
            optimizer.param_groups[0]["lr"] = options.lr * min(1.0, (step + 1) / warm) * cosine
            images = augment(x[chosen], options, source).contiguous(memory_format=torch.channels_last)
            with precision():
                logits = network(images)
            loss = F.cross_entropy(logits.float(), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1}/{options.epochs}: loss {loss.item():.4f}", flush=True)
    network = network.cpu().eval()
    if options.half:
        network = network.half().float()  # measured as it will be stored
    return network, accuracy(network, x_held, y_held), len(x_held)


@torch.no_grad()
def accuracy(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of right answers; not a number when nothing was held out."""
    hits = [
        (network(images).argmax(1) == labels).float().sum()
        for images, labels in zip(x.split(250), y.split(250), strict=True)
    ]
    return float(sum(hits) / len(x)) if hits and len(x) else math.nan


if __name__ == "__main__":
    settings = arguments()
    teacher, share, count = train(settings)
    state = teacher.state_dict()
    torch.save({k: v.half() if settings.half and v.is_floating_point() else v for k, v in state.items()}, settings.out)
    parameters = sum(p.numel() for p in teacher.parameters())
    print(f"wrote {settings.out}: {settings.arch}, {parameters} parameters, {share:.4f} on {count} images held out")
