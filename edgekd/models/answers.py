"""What a classifier answers with: logits, or what can be turned into them, and what speaks against its answers."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from edgekd.errors import InputFileError

_SUM_TOLERANCE = 5e-3
"""By so much a softmax in bfloat16 misses 1."""
_REPEAT_TOLERANCE = 1e-2
"""Part of the largest logit by which answers to the same image differ without a reason."""
LARGEST_LOGIT = 1e4
"""No trained classifier answers noise with larger ones, and no student would reach them within a run."""
SMALLEST_SPREAD = 1e-4
"""Logits that differ by less between classes say next to nothing: a softmax of them is uniform."""
SIGMOIDS = ("sigmoid", "hardsigmoid", "log_sigmoid", "log_sigmoid_forward")
_BOUNDING = ("tanh", "hardtanh", "clamp", "clip")
_RELUS = ("relu", "threshold", "softplus", "elu", "gelu", "silu", "mish")
"""Activations that leave little of what is below zero; `elu` is SELU and CELU, too."""
_SUMS = ("addmm", "mm", "bmm", "linear", "convolution", "mean", "_adaptive_avg_pool2d", "avg_pool2d", *_RELUS)
"""What logits come from: weighted sums, also of feature maps after their mean."""
_NORMS = ("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "native_layer_norm")


def require_logits(output: Tensor, emits: str, ends_in: str) -> None:
    """Refuse answers that are no logits of several classes: of a sigmoid, or beyond what a student can learn."""
    if output.shape[1] == 1:
        raise InputFileError(
            "The network has a single output; a classifier has one for each class. Of two classes with one number x, "
            "make the logits 0 and x, in code that --arch package.module:factory names."
        )
    lengths = output.norm(dim=1)
    if emits == "logits" and output.shape[1] > 2 and bool(((lengths - 1).abs() < _SUM_TOLERANCE).all()):
        raise InputFileError(
            "The network answers with vectors of length 1, as one does that embeds images (faces, retrieval): it has "
            "no classifier. If these are logits of classes, return them before they are divided by their length, in "
            "the code that --arch net.py:NAME names."
        )
    between = emits == "logits" and bool((output >= 0).all()) and bool((output <= 1).all())
    between = between and bool(output[:, 0].any())  # zeros stand beside a single output
    if ends_in in SIGMOIDS or (between and ends_in not in _SUMS):
        what = "ends in a sigmoid" if ends_in in SIGMOIDS else "answers with numbers from 0 to 1 that do not sum to 1"
        raise InputFileError(
            f"The network {what}, as one does that gives an image several labels at once; edgekd distils classifiers "
            "whose classes exclude each other. If these do, return the logits: leave the sigmoid out, or whatever "
            "brings the answers between 0 and 1, in the code that --arch package.module:factory names."
        )
    sums = output.sum(dim=1)
    if (
        emits == "logits"
        and bool((output >= 0).all())
        and bool(((sums / sums.mean() - 1).abs() < _SUM_TOLERANCE).all())
    ):
        raise InputFileError(
            f"The network answers with numbers that sum to {float(sums.mean()):.3g} for every image, as a softmax of "
            "another scale does. Return the logits, or the softmax itself, which is undone, in the code that --arch "
            "package.module:factory names."
        )
    largest = float(output.abs().max())
    if largest > LARGEST_LOGIT:
        raise InputFileError(
            f"The network answers noise with logits up to {largest:.3g}; no student learns numbers beyond "
            f"{LARGEST_LOGIT:g}. Divide the weights and the bias of its last layer by {largest / 10:.0e}: every image "
            "keeps its class."
        )


def not_repeated(output: Tensor, again: Tensor, alone: Tensor) -> Iterator[str]:
    """Yield that the answer to an image depends on chance, or on the images beside it."""
    unlike = _REPEAT_TOLERANCE * output.abs().max()
    if bool((again - output).abs().max() > unlike):
        yield (
            "the teacher answers the same image otherwise each time, as one does whose dropout is never switched off: "
            "F.dropout needs training=self.training."
        )
    elif bool((alone - output[:1]).abs().max() > unlike):
        yield (
            "the teacher's answer to an image depends on the images beside it in a batch, so accuracy and student "
            "depend on the size of batches; look for a mean or a softmax over the first dimension."
        )


def remarks(output: Tensor, scores: Tensor, emits: str, ends_in: str) -> Iterator[str]:
    """Yield of logits that they hardly differ, or are bounded, which limits how sure the teacher can be."""
    spread = float((scores.amax(dim=1) - scores.amin(dim=1)).max())
    if spread < SMALLEST_SPREAD:
        yield (
            f"the teacher gives all classes the same answer but for {spread:.1g}: it was never trained, or the weights "
            "of its last layer are of another scale (multiplied by any number they keep each image's class)."
        )
    if emits != "logits":  # a softmax that is clamped, as Keras does it, is undone
        return
    if ends_in in _BOUNDING:
        low, high = float(output.min()), float(output.max())
        yield (
            f"the teacher's logits are bounded (they end in {ends_in}, here from {low:.3g} to {high:.3g}), so it is "
            "never sure of a class; where the layer before has the logits, let the network return those."
        )
    elif ends_in in _RELUS:
        yield (
            f"the teacher's logits end in an activation ({ends_in}), so that all classes which it rules out are alike "
            "to it; where the layer before has the logits, let the network return those."
        )
    elif ends_in in _NORMS:
        yield (
            f"the teacher ends in a normalisation, as networks do that embed images; are its {output.shape[1]} outputs "
            "classes at all?"
        )


def kind_of(output: Tensor) -> str:
    """Tell logits from the output of a softmax or log-softmax by the row sums."""

    def sums_to_one(rows: Tensor) -> bool:
        return bool(((rows.sum(dim=1) - 1).abs() < _SUM_TOLERANCE).all())

    if bool((output >= 0).all()) and sums_to_one(output):
        return "probabilities"
    if bool((output <= 0).all()) and sums_to_one(output.exp()):
        return "log-probabilities"
    return "logits"
