"""What may be wrong with a measured accuracy although nothing failed: the labels, the pixels, or the teacher."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from edgekd.run.cards.teacher import TeacherCard
from edgekd.run.image_folder import BY_NAMES, ImageFolder, usual_orders
from edgekd.run.realdata import CROP_FROM_PX, NO_ANSWER, RealImages
from edgekd.text import listed, sizes

STANDARD_ERRORS = 2
"""So close to chance an accuracy is not told from it."""
CLEARLY = 3
"""Standard errors by which two accuracies differ clearly."""
SHORTFALL = 0.05
"""An accuracy that lies so far below what the teacher's file says deserves a word."""
CAUSES = (
    "Look at the normalisation (--normalize), the image size (--input) and the order of the classes (--classes); "
    "`edgekd ingest` sets them."
)


def about(images: RealImages, answers: Tensor, teacher: TeacherCard) -> list[str]:
    """Return what speaks against the teacher's accuracy on labelled images, a sentence each.

    `answers` are the teacher's. Images are opened only where the size of its input was assumed.
    """
    accuracy = images.share_right(answers)
    found = [
        _about_labels(images.folder),
        about_chance(images.folder, answers),
        _about_order(images.folder, answers),
        _about_size(images, teacher),
        _about_claim(accuracy, len(images), teacher),
    ]
    return [doubt for doubt in found if doubt]


def about_answers(name: str, answers: Tensor) -> list[str]:
    """Say that a network gave no answer to some images."""
    count = int((answers == NO_ANSWER).sum())
    return (
        [f"{name} answers NaN or infinity to {count} of {len(answers)} images; they count as wrong."] if count else []
    )


def about_chance(folder: ImageFolder, answers: Tensor) -> str:
    """Say that answers are no better than ones that are independent of the images; empty where they are.

    Chance is how often labels and answers agree that have these frequencies by class. With images of one class alone
    that is the accuracy itself, so there it is one in so many classes.
    """
    classes, count = len(folder.classes), len(answers)
    labels = torch.bincount(folder.labels, minlength=classes) / count
    given = torch.bincount(answers[answers != NO_ANSWER], minlength=classes) / count
    chance = float(labels @ given) if int((labels > 0).sum()) > 1 else 1 / classes
    accuracy = int((answers == folder.labels).sum()) / count
    error = math.sqrt(chance * (1 - chance) / count)
    if accuracy > chance + STANDARD_ERRORS * error or accuracy == 1:
        return ""
    below = accuracy < chance and f"{accuracy:.2%}" != f"{chance:.2%}"
    within = ", below" if below else f", within {STANDARD_ERRORS} standard errors of"
    return f"the teacher reaches {accuracy:.2%}{within} chance ({chance:.2%} here). {CAUSES}"


def _about_labels(folder: ImageFolder) -> str:
    """Say that the same image lies in more than one class, as where a folder is a link to another; empty where none."""
    several = folder.in_several_classes()
    if not several:
        return ""
    places = listed([str(file.relative_to(folder.path)) for file in several[0]])
    return (
        f"{len(several)} {'image lies' if len(several) == 1 else 'images lie'} in more than one class, byte for byte "
        f"(such as {places}); each counts in all of them, where it is right in one at most."
    )


def _about_order(folder: ImageFolder, answers: Tensor) -> str:
    """Say that another order of the classes would give a clearly better accuracy; empty where none would."""
    if len(set(folder.classes)) < len(folder.classes):
        return ""
    right = answers == folder.labels
    orders = {f"ordered by {order}": names for order, names in usual_orders(folder.classes).items()}
    own = _own_order(folder, answers)
    if own is not None:
        orders.setdefault(f"in the order {listed(own, 12)}", own)
    found = {}
    for order, names in orders.items():
        label_of = {name: label for label, name in enumerate(names)}
        other = answers == torch.tensor([label_of[name] for name in folder.classes])[folder.labels]
        gained, lost = int((other & ~right).sum()), int((right & ~other).sum())
        if gained - lost > CLEARLY * math.sqrt(gained + lost):
            found[order] = int(other.sum()) / len(answers)
    if not found:
        return ""
    best = max(found, key=found.__getitem__)  # of equal ones the first, which has a name
    what = "of the class names" if folder.order == BY_NAMES else f"by {folder.order}"
    return (
        f"with the classes {best} the teacher would reach {found[best]:.2%} instead of "
        f"{int(right.sum()) / len(answers):.2%}, so the order {what} is probably not the one it was trained with. "
        "Write the names in the right order, one a line, and set it: edgekd ingest --run RUN --classes FILE."
    )


def _own_order(folder: ImageFolder, answers: Tensor) -> tuple[str, ...] | None:
    """The classes in the order in which a teacher answers them, where it tells them apart under any names.

    It does where most images of each class get one answer, another one for each class. None where it does not.
    """
    answered = answers != NO_ANSWER
    pairs, counts = torch.stack([folder.labels, answers])[:, answered].unique(dim=1, return_counts=True)
    labels, given = pairs[:, 2 * counts > torch.bincount(folder.labels)[pairs[0]]].tolist()
    label_of = dict(zip(given, labels, strict=True))
    classes = range(len(folder.classes))
    return tuple(folder.classes[label_of[answer]] for answer in classes) if len(label_of) == len(classes) else None


def _about_size(images: RealImages, teacher: TeacherCard) -> str:
    """Say that all images have another size than the one that was assumed of the teacher's input."""
    channels, *assumed = teacher.input_shape
    if not any(assumption.what == "image size" for assumption in teacher.assumptions):
        return ""
    size = images.own_size()
    cropped = size is not None and min(assumed) >= CROP_FROM_PX and min(size) >= min(assumed)
    if size is None or size == tuple(assumed) or cropped:
        return ""
    return (
        f"the images are {sizes(size)}, and {sizes(assumed)} was assumed of the teacher's input. If it was trained on "
        f"another size, read it again with --input ({channels}x{sizes(size)} takes the images as they are)."
    )


def _about_claim(accuracy: float, count: int, teacher: TeacherCard) -> str:
    """Say that the teacher's file claims much more than was measured."""
    if teacher.claims is None or teacher.claims.accuracy is None:
        return ""
    claimed = teacher.claims.accuracy
    error = math.sqrt(claimed * (1 - claimed) / count)
    if claimed - accuracy <= max(SHORTFALL, CLEARLY * error):
        return ""
    return (
        f"the teacher reaches {accuracy:.2%} here, and its file says {claimed:.2%} ({teacher.claims.accuracy_key}). "
        f"{CAUSES}"
    )
