"""What a fault changes, image by image: predictions against those of the intact net and of the net without a repair."""

import math
from fractions import Fraction

import torch

QUANTILES = {0.95: 1.96, 0.99: 2.576}  # of the normal distribution, as the literature on fault injection rounds them


def changes(labels, intact, faulty):
    """{column: number of images} of a row, from labels and predicted classes: int64 N each.

    intact: that the intact net classifies rightly. broken: of these, those that the faulty net does not (silent data
    corruption). mended: that the faulty net alone classifies rightly. changed: whose predicted class differs. So the
    faulty net classifies intact − broken + mended rightly.
    """
    right, still = intact == labels, faulty == labels
    return {
        "intact": int(right.sum()),
        "broken": int((right & ~still).sum()),
        "mended": int((~right & still).sum()),
        "changed": int((intact != faulty).sum()),
    }


def mcnemar(labels, one, other):
    """The two-sided p of McNemar's exact test that two sets of predictions are right equally often; 1 if none differs.

    Source: McNemar (1947), with the binomial distribution of the discordant images in place of chi-squared.
    """
    one, other = one == labels, other == labels
    wins, losses = int((one & ~other).sum()), int((~one & other).sum())
    number = wins + losses
    # as logarithms, because 2^-number is 0 in floating point for more than 1,074 images
    logs = [_log_choose(number, k) - number * math.log(2) for k in range(min(wins, losses) + 1)]
    largest = max(logs)
    return min(1.0, 2 * math.exp(largest) * math.fsum(math.exp(log - largest) for log in logs))


def _log_choose(n, k):
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def confusion(labels, predicted, classes):
    """How many images of each class (row) are predicted as each class (column): int64 classes×classes."""
    return torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes)


def campaign_size(population, error=0.01, confidence=0.95, share=0.5):
    """Number of faults to draw at random from `population` possible ones, so that a share is known to ± error.

    n = N / (1 + e²(N − 1) / (t² p(1 − p))), rounded up. confidence: 0.95 or 0.99. share: the share p that is expected;
    0.5 is the worst case. Source: Leveugle et al., "Statistical fault injection" (2009).
    """
    t, e, p = (Fraction(str(number)) for number in (QUANTILES[confidence], error, share))
    return math.ceil(population / (1 + e**2 * (population - 1) / (t**2 * p * (1 - p))))
