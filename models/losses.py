"""Losses, and an extra term for them: (float32 logits N×classes, int64 labels N) -> scalar, the batch's mean."""

import torch
import torch.nn.functional as F


def squared_hinge(logits, labels):
    """mean(max(0, 1 - t·logit)^2) over all N×classes entries, t = +1 for the label's class, -1 for the others."""
    targets = 2 * F.one_hot(labels, logits.shape[1]).to(logits.dtype) - 1
    return (1 - targets * logits).clamp(min=0).square().mean()


def shortfall(logits, labels, margin):
    """A hinge on the logit margin: the batch's mean of max(0, margin - lead), a scalar, 0 or more.

    lead: the label's logit minus the largest other logit, in standard deviations of all the batch's logits. In this
    unit, larger logits do not make the term smaller. If the logits of all images are one-hot and right, the lead is
    C / sqrt(C - 1) for C classes: 3.33 for ten. A prediction with a larger lead stays right under more weight faults.
    Source: Buschjäger et al., "Margin-Maximization in Binarized Neural Networks for Optimizing Bit Error Tolerance"
    (2021), where the hinge is on the output itself.
    """
    label = F.one_hot(labels, logits.shape[1]).bool()
    others = logits.masked_fill(label, -torch.inf).amax(1)
    lead = (logits[label] - others) / logits.std(correction=0)
    return (margin - lead).clamp(min=0).mean()


def distillation(logits, taught, temperature):
    """temperature² times the Kullback–Leibler distance of softmax(logits / temperature) from the teacher's; 0 or more.

    taught: the teacher's float32 logits N×classes. Source: Hinton et al., "Distilling the Knowledge in a Neural
    Network" (2015).
    """
    own, wanted = ((each / temperature).log_softmax(1) for each in (logits, taught))
    return temperature**2 * F.kl_div(own, wanted, reduction="batchmean", log_target=True)


LOSSES = {"ce": F.cross_entropy, "sqrhinge": squared_hinge}
