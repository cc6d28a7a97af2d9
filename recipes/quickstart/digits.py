"""Write the UCI handwritten digits bundled with scikit-learn as class folders: digits.py DEST.

DEST/{train,development,heldout}/<digit>/<index>.png, 8x8 pixels, split 60/20/20 and stratified by class. The teacher
saw `train`; everything is tuned on `development`; `heldout` is for the final table only.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def split() -> dict[str, np.ndarray]:
    """Return the indices of each split."""
    labels = load_digits().target
    train, rest = train_test_split(np.arange(len(labels)), train_size=0.6, random_state=0, stratify=labels)
    development, heldout = train_test_split(rest, train_size=0.5, random_state=0, stratify=labels[rest])
    return {"train": train, "development": development, "heldout": heldout}


def write(destination: Path) -> None:
    """Write the three splits as PNG files."""
    digits = load_digits()
    for name, indices in split().items():
        for index in indices:
            pixels = np.round(digits.images[index] * 255 / 16).astype(np.uint8)
            path = destination / name / str(digits.target[index]) / f"{index:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    write(Path(sys.argv[1]))
    print(f"wrote {sys.argv[1]}: " + ", ".join(f"{k} {len(v)}" for k, v in split().items()))
