"""The one evaluation: every accuracy in the project comes from here."""

from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F

from faults import RECALIBRATED, applied_by, faulty_weights, misread_weights


class Score(NamedTuple):
    """Sums over the images of an evaluation; scores of disjoint parts add up with +."""

    n: int
    correct: int  # label has the largest logit
    correct5: int  # label is among the five largest
    loss_sum: float  # cross-entropy

    def __add__(self, other):
        return Score(*(a + b for a, b in zip(self, other)))

    @property
    def top1(self):
        """Accuracy, %."""
        return 100 * self.correct / self.n

    @property
    def top5(self):
        """Top-5 accuracy, %."""
        return 100 * self.correct5 / self.n

    @property
    def loss(self):
        """Mean cross-entropy."""
        return self.loss_sum / self.n


def ranking(logits):
    """The classes from the largest logit to the smallest: int64 N×classes.

    Among equal logits, which are frequent with sums of ±1, the lower class comes first, on every device.
    """
    return logits.sort(dim=1, descending=True, stable=True).indices


def score(logits, labels, order=None):
    """The fields of a Score as one float64 tensor, from float logits N×classes and int64 labels N, on their device.

    Does not synchronise with the device. order: the ranking of the logits, if it is there already.
    """
    order = ranking(logits) if order is None else order
    hits = order[:, :5] == labels[:, None]
    return torch.stack(
        [
            torch.full((), len(labels), dtype=torch.float64, device=logits.device),
            hits[:, 0].sum(),
            hits.sum(),
            F.cross_entropy(logits.double(), labels, reduction="sum"),
        ]
    )


def to_score(sums):
    """The Score from a tensor of score(), or from a sum of several."""
    n, correct, correct5, loss_sum = sums.tolist()
    return Score(int(n), int(correct), int(correct5), loss_sum)


def evaluate(net, batches):
    """The Score of `net` in evaluation mode over batches of (float32 images N×3×H×W in [0, 1], labels N).

    Always in float32, where the sums of ±1 are exact, so the result does not depend on the batch size.
    """
    return predict(net, batches)[0]


@torch.inference_mode()
def predict(net, batches):
    """(The Score as from evaluate, the class with the largest logit for each image: int64 N on the CPU)."""
    training, sums, predicted = net.training, 0, []
    net.eval()
    try:
        for images, labels in batches:
            logits = net(images)
            order = ranking(logits)
            sums = sums + score(logits, labels, order)
            predicted.append(order[:, 0])
        return to_score(sums), torch.cat(predicted).cpu()
    finally:
        net.train(training)


class Measured(NamedTuple):
    """An evaluation under a fault."""

    score: Score
    flipped: float | None  # share of weight signs flipped; None for the other memories and transient cells
    predicted: torch.Tensor  # the predicted class of each image, int64 N


def measure(fault, net, tester, batches, seed, numbers=None, calibration=None):
    """The Measured of a net under a fault of one of its memories.

    tester: what is evaluated, the net itself or Folded(net). batches: of images that already have an image fault.
    numbers: of these images in the data set, by default 0, 1, 2, …
    calibration: for a fault that is RECALIBRATED, of calibration_of; the tester is then Folded(net).
    """
    with recalibrated_net(fault, net, tester, seed, calibration):
        with faulty_net(fault, net, tester, seed, numbers) as flipped:
            score, predicted = predict(tester, batches)
    return Measured(score, flipped, predicted)


class Calibration(NamedTuple):
    """What thresholds are recalibrated with, see calibration_of."""

    images: torch.Tensor
    statistics: list  # of the sums of the intact net on these images


def calibration_of(tester, images):
    """The Calibration of a Folded net, which must be intact. images: float32 N×3×H×W in [0, 1], on its device."""
    return Calibration(images, tester.statistics(images))


@contextmanager
def recalibrated_net(fault, net, tester, seed, calibration):
    """Inside the `with`, a fault that is RECALIBRATED finds thresholds that were set anew under it."""
    if fault.repair != RECALIBRATED:
        yield
        return
    intact = tester.thresholds()
    try:
        with faulty_net(fault, net, tester, seed):
            tester.statistics(calibration.images, recalibrate_from=calibration.statistics)
        yield
    finally:
        tester.set_thresholds(intact)


@contextmanager
def faulty_net(fault, net, tester, seed, numbers=None):
    """Inside the `with`, the tester has a fault of weights, activations or thresholds, for one pass over the images.

    Yields the share of weight signs flipped; None for other memories and transient cells. Arguments as for measure.
    """
    apply = applied_by(fault)
    if apply is None:
        yield None
    elif apply not in (faulty_weights, misread_weights):
        with apply(fault, net, tester, seed, numbers):
            yield None
    else:  # the same weights for all images
        try:
            with apply(fault, net, seed) as flipped:
                if tester is not net:
                    tester.take_weights()
                yield flipped
        finally:
            if tester is not net:
                tester.take_weights()
