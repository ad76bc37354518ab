"""The one evaluation: every accuracy in the project comes from here."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from faults import faulty_weights


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


def measure(fault, net, tester, batches, seed):
    """(Score of a net under a weight fault, share of signs flipped). For other faults the share is None.

    tester: what is evaluated, the net itself or Folded(net). batches: of images that already have an image fault.
    """
    with faulty_weights(fault, net, seed) as flipped:
        if flipped is not None and tester is not net:
            tester.take_weights()
        score = evaluate(tester, batches)
    if flipped is not None and tester is not net:
        tester.take_weights()
    return score, flipped
