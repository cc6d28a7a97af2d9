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
_MASK_BELOW = 50
"""A class that every image has by so much below all others was masked: e**-50 is no probability that is learned."""
SIGMOIDS = ("sigmoid", "hardsigmoid", "log_sigmoid", "log_sigmoid_forward")
_BOUNDING = ("tanh", "hardtanh", "clamp", "clip", "atan")
RELUS = ("relu", "threshold", "softplus", "elu", "gelu", "silu", "mish")
"""Activations that leave little of what is below zero; `elu` is SELU and CELU, too."""
_FLATTENING = (*RELUS, "exp", "log1p")
AVERAGES = ("mean", "sum", "_adaptive_avg_pool2d", "avg_pool2d")
"""Means over feature maps, or over the answers to several views of an image: numbers from 0 to 1 stay such."""
_SUMS = ("addmm", "mm", "bmm", "linear", "convolution", *AVERAGES, *RELUS)
"""What logits come from: weighted sums, also of feature maps after their mean."""
_DISTANCES = ("_cdist_forward", "_euclidean_dist", "linalg_vector_norm")
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
    of_two = emits == "probabilities" and output.shape[1] == 2  # 1 - p and p
    if (ends_in in SIGMOIDS and not of_two) or (between and ends_in not in _SUMS):
        what = "ends in a sigmoid" if ends_in in SIGMOIDS else "answers with numbers from 0 to 1 that do not sum to 1"
        raise InputFileError(
            f"The network {what}, as one does that gives an image several labels at once; edgekd distils classifiers "
            "whose classes exclude each other. If these do, return the logits: leave the sigmoid out, or whatever "
            "brings the answers between 0 and 1, in the code that --arch package.module:factory names."
        )
    if emits == "logits" and kind_of(-output) == "log-probabilities":
        raise InputFileError(
            "The network answers with the negative logarithms of probabilities, of which the smallest is the likeliest "
            "class. Leave the minus sign out, in the code that --arch package.module:factory names."
        )
    sums = output.sum(dim=1)
    if emits == "logits" and bool((output >= 0).all()) and _hardly_differ(sums, output):
        raise InputFileError(
            f"The network answers with numbers that sum to {float(sums.mean()):.3g} for every image, as a softmax of "
            "another scale does. Return the logits, or the softmax itself, which is undone, in the code that --arch "
            "package.module:factory names."
        )
    _require_size(output)


def _hardly_differ(sums: Tensor, output: Tensor) -> bool:
    """Whether the sums over classes are one number, also beside how much the answers differ."""
    off = float((sums - sums.mean()).abs().max())
    return off < _SUM_TOLERANCE * float(sums.mean()) and off < 10 * _SUM_TOLERANCE * float(output.max() - output.min())


def _require_size(output: Tensor) -> None:
    """Refuse logits that no student reaches, and say whether a mask, an offset or a scale makes them large."""
    largest = float(output.abs().max())
    if largest <= LARGEST_LOGIT:
        return
    beyond = f"no student learns numbers beyond {LARGEST_LOGIT:g}"
    if mask := _mask(output):
        raise InputFileError(f"The network {mask}; {beyond}. {_UNMASK}")
    middle = float(output.mean())
    if float((output - middle).abs().max()) < LARGEST_LOGIT:
        raise InputFileError(
            f"The network answers noise with logits that all lie near {middle:.3g}; {beyond}. Take {middle:.3g} off "
            "the bias of its last layer, or off what it returns: every image keeps its class."
        )
    raise InputFileError(
        f"The network answers noise with logits up to {largest:.3g}; {beyond}. Divide the weights and the bias of its "
        f"last layer by {largest / 10:.0e}: every image keeps its class."
    )


_UNMASK = (
    "Leave what is masked out of the classes, such as `logits[:, kept]`, in the code that --arch "
    "package.module:factory names."
)


def _mask(output: Tensor) -> str:
    """Say which classes have the same number far below all others for every image; empty where none has."""
    lows, highs = output.amin(dim=0), output.amax(dim=0)
    alike = (highs - lows <= 1e-2 * lows.abs()) & (highs < -_MASK_BELOW)
    if not bool(alike.any()) or bool(alike.all()):
        return ""
    masked = alike & (highs < lows[~alike].min() - _MASK_BELOW)
    if not bool(masked.any()):
        return ""
    which = masked.nonzero().flatten().tolist()
    named = ", ".join(str(index) for index in which[:5]) + (", …" if len(which) > 5 else "")
    number = float(lows[masked].min())
    return f"answers every image with {number:.4g} for output {named} (counted from 0), as where classes are masked"


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
    if mask := _mask(output):
        yield f"the teacher {mask}, and the student has to learn that number. {_UNMASK}"
    if emits != "logits":  # a softmax that is clamped, as Keras does it, is undone
        return
    if ends_in in _BOUNDING:
        low, high = float(output.min()), float(output.max())
        yield (
            f"the teacher's logits are bounded (they end in {ends_in}, here from {low:.3g} to {high:.3g}), so it is "
            "never sure of a class; where the layer before has the logits, let the network return those."
        )
    elif ends_in in _FLATTENING:
        yield (
            f"the teacher's logits end in an activation ({ends_in}), so that all classes which it rules out are alike "
            "to it; where the layer before has the logits, let the network return those."
        )
    elif ends_in in _DISTANCES and bool((output >= 0).all()):
        yield (
            f"the teacher answers with distances ({ends_in}), of which the smallest marks the likeliest class, and "
            "edgekd takes the largest: return them with a minus sign."
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
