"""The losses: float32 logits (N×classes), int64 labels (N) -> scalar, the mean over the batch."""

import torch.nn.functional as F


def squared_hinge(logits, labels):
    """mean(max(0, 1 - t·logit)^2) over all N×classes entries, t = +1 for the label's class, -1 for the others."""
    targets = 2 * F.one_hot(labels, logits.shape[1]).to(logits.dtype) - 1
    return (1 - targets * logits).clamp(min=0).square().mean()


LOSSES = {"ce": F.cross_entropy, "sqrhinge": squared_hinge}
