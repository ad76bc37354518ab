"""The one evaluation: every accuracy in the project comes from here."""

from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F

from common import UserError
from faults import faulty_weights, misread_activations, misread_thresholds, misread_weights


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


def score(logits, labels):
    """The fields of a Score as one float64 tensor, from float logits N×classes and int64 labels N, on their device.

    Does not synchronise with the device. Among equal logits, which are frequent with sums of ±1, the lower class comes
    first, on every device.
    """
    order = logits.sort(dim=1, descending=True, stable=True).indices
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


@torch.inference_mode()
def evaluate(net, batches):
    """The Score of `net` in evaluation mode over batches of (float32 images N×3×H×W in [0, 1], labels N).

    Always in float32, where the sums of ±1 are exact, so the result does not depend on the batch size.
    """
    training = net.training
    net.eval()
    try:
        return to_score(sum(score(net(images), labels) for images, labels in batches))
    finally:
        net.train(training)


def measure(fault, net, tester, batches, seed, numbers=None):
    """(Score of a net under a fault of one of its memories, share of signs flipped). For other memories no share: None.

    tester: what is evaluated, the net itself or Folded(net). batches: of images that already have an image fault.
    numbers: of these images in the data set, by default 0, 1, 2, …
    """
    with faulty_net(fault, net, tester, seed, numbers) as flipped:
        return evaluate(tester, batches), flipped


@contextmanager
def faulty_net(fault, net, tester, seed, numbers=None):
    """Inside the `with`, the tester has a fault of weights, activations or thresholds, for one pass over the images.

    Yields the share of weight signs flipped; None for other memories. Arguments as for measure.
    """
    if fault.memory == "activations":
        with misread_activations(fault, net, tester, seed, numbers):
            yield None
    elif fault.memory == "thresholds":
        if tester is net:
            raise UserError("thresholds are in the folded net only: leave --no-fold out")
        with misread_thresholds(fault, net, tester, seed):
            yield None
    elif fault.memory == "weights":
        try:
            with (misread_weights if fault.cells else faulty_weights)(fault, net, seed) as flipped:
                if tester is not net:
                    tester.take_weights()
                yield flipped
        finally:
            if tester is not net:
                tester.take_weights()
    else:
        yield None
