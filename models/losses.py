"""The losses, and a term that can be added: float32 logits N×classes, int64 labels N -> scalar, the batch's mean."""

import torch
import torch.nn.functional as F


def squared_hinge(logits, labels):
    """mean(max(0, 1 - t·logit)^2) over all N×classes entries, t = +1 for the label's class, -1 for the others."""
    targets = 2 * F.one_hot(labels, logits.shape[1]).to(logits.dtype) - 1
    return (1 - targets * logits).clamp(min=0).square().mean()


def shortfall(logits, labels, margin):
    """By how much the label's logit misses a lead of `margin` over all others: the batch's mean, a scalar, 0 or more.

    The unit is the standard deviation of all the batch's logits, so that growing logits do not make it less. With
    C classes and logits that name the right one alone, equally in all images, the lead is C / sqrt(C - 1): 3.33 for
    ten. What leads by more stays right when weights are faulty; the term is a hinge on that, as in Buschjäger et al.,
    "Margin-Maximization in Binarized Neural Networks for Optimizing Bit Error Tolerance" (2021), there of the output
    itself.
    """
    label = F.one_hot(labels, logits.shape[1]).bool()
    others = logits.masked_fill(label, -torch.inf).amax(1)
    lead = (logits[label] - others) / logits.std(correction=0)
    return (margin - lead).clamp(min=0).mean()


LOSSES = {"ce": F.cross_entropy, "sqrhinge": squared_hinge}
