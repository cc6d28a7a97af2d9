"""Train the quickstart's teacher on real digits: train_digits.py DIGITS OUT.pt (DIGITS written by digits.py).

A ResNet-14 of 2.25 times the width of He et al. 2016, section 4.2, on 1x16x16 images; its weights are stored as a
half-precision state dict, the way a training script leaves them. Prints the accuracy on `development` only.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.nn import functional as F

from edgekd.models import registry
from edgekd.run.image_folder import open_folder
from edgekd.run.realdata import RealImages

ARCH, SHAPE, CLASSES = "resnet14@2.25", (1, 16, 16), 10
MEAN, STD = (0.3,), (0.35,)
EPOCHS, BATCH, LR, SHIFT_PX = 60, 64, 0.05, 2


def load(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return normalised images and labels of a class folder."""
    images = RealImages(open_folder(folder, classes=CLASSES, names=None), SHAPE, mean=MEAN, std=STD)
    pairs = list(images.batches())
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


def shifted(x: torch.Tensor, source: torch.Generator) -> torch.Tensor:
    """Return the batch with each image shifted by up to SHIFT_PX pixels, the border filled with black."""
    padded = F.pad(x, [SHIFT_PX] * 4, value=-MEAN[0] / STD[0])
    offsets = torch.randint(2 * SHIFT_PX + 1, (len(x), 2), generator=source)
    side = x.shape[-1]
    return torch.stack([image[:, i : i + side, j : j + side] for image, (i, j) in zip(padded, offsets, strict=True)])


def train(digits: Path) -> torch.nn.Module:
    """Train with SGD and a cosine schedule; every draw comes from one seeded generator."""
    source = torch.Generator().manual_seed(1)
    network = registry.build(ARCH, input_shape=SHAPE, classes=CLASSES, seed=1).train()
    x, y = load(digits / "train")
    batches = len(x) // BATCH
    optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * batches)
    for epoch in range(EPOCHS):
        order = torch.randperm(len(x), generator=source)
        for chosen in order[: batches * BATCH].split(BATCH):
            loss = F.cross_entropy(network(shifted(x[chosen], source)), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1}/{EPOCHS}: loss {loss.item():.4f}", file=sys.stderr)
    return network.eval()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    trained = train(Path(sys.argv[1])).half()
    torch.save(trained.state_dict(), sys.argv[2])
    x, y = load(Path(sys.argv[1]) / "development")
    with torch.no_grad():
        accuracy = (trained.float()(x).argmax(1) == y).float().mean().item()
    parameters = sum(p.numel() for p in trained.parameters())
    print(f"{ARCH}: {parameters} parameters, accuracy {accuracy:.4f} on {len(x)} development images")
