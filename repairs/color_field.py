"""A repair that judges all pixels of an image together: the candidates are the labels of a Markov random field.

A pixel with a broken bit has eight candidate triples. Two neighbours, one to the right of or below the other, cost

    Σ min(|d|, LIMIT)  over the channels  +  PAIR_WEIGHT · Σ min(|d|, LIMIT)  over the three pairs of channels

where d is the change of a channel, or of the difference of two channels, from one to the other. LIMIT, half the step of
the broken bit and at least LEAST_LIMIT, keeps an edge of the picture from costing more than wrong bits do. A candidate
of a pixel costs about what the whole image costs with it at least. These costs are found by message passing: in a sweep
from the upper left corner each pixel tells its right and its lower neighbour what each of their candidates costs at
least, in a sweep from the lower right corner the other two neighbours, and so on.

The result is the mean of the candidates. A candidate that costs an eighth of the broken bit's step more than another,
or 4 more if that is larger, weighs half as much.

All numbers are whole, and nothing is multiplied before the mean.
Source: Kolmogorov, "Convergent Tree-Reweighted Message Passing for Energy Minimization" (2006), TRW-S.
"""

import torch

from repairs.colors import PAIR_WEIGHT, PAIRS
from repairs.pixels import zeros_of

SWEEPS = 4  # from each of the two corners
LEAST_LIMIT = 32
WEIGHTS = [round(2 ** (15 - number / 4)) for number in range(61)]  # of a candidate, by its cost: four to a halving
CHUNK = 100_000  # pixels at once
TRIPLES = torch.tensor([[number >> channel & 1 for channel in range(3)] for number in range(8)])  # bits of a candidate
CHANGES = torch.cartesian_prod(*[torch.arange(-1, 2)] * 3)  # 27×3: steps by which two neighbours' bits can differ
# row of CHANGES for candidate i of a pixel and candidate j of its left or upper neighbour: 64, number 8·i + j
CHANGE = ((TRIPLES[:, None] - TRIPLES + 1) @ torch.tensor([9, 3, 1])).flatten()


def mean_of_color_field(images, bit):
    """The mean of the candidates, weighted by what they cost, rounded; changes other bits, too."""
    height, width = images.shape[-2:]
    parts = images.reshape(-1, 3, height, width).split(max(1, CHUNK // (height * width)))
    return torch.cat([_mean(part, bit) for part in parts]).view(images.shape)


def _mean(images, bit):
    zeros = zeros_of(images, bit)
    excess = candidate_costs(zeros, bit)
    excess = excess - excess.amin(1, keepdim=True)
    number = torch.div(excess, max(1, 1 << bit >> 5), rounding_mode="floor").clamp(max=len(WEIGHTS) - 1)
    weights = torch.tensor(WEIGHTS, dtype=torch.int32, device=images.device)[number.int()]  # N×8×H×W
    total = weights.sum(1, keepdim=True, dtype=torch.int32)
    ones = torch.stack([weights[:, TRIPLES[:, channel] == 1].sum(1, dtype=torch.int32) for channel in range(3)], 1)
    raised = torch.div((2 * ones << bit) + total, 2 * total, rounding_mode="floor")
    return zeros + raised.to(torch.uint8)


def candidate_costs(zeros, bit):
    """What each pixel's candidates cost: int16 N×8×H×W; candidate i has the bit set in channel c where i >> c & 1.

    zeros: the lower candidates, uint8 N×3×H×W.
    """
    zeros = zeros.short().permute(2, 3, 1, 0)  # H×W×3×N, fast to index by pixels
    ahead, back = _change_costs(zeros, 1 << bit), _change_costs(zeros.flip(0, 1), 1 << bit)
    height, width, _, count = zeros.shape
    from_later = zeros.new_zeros(2, height, width, 8, count)  # messages from the right and the lower neighbour
    for _ in range(SWEEPS):
        from_earlier = _sweep(ahead, from_later)  # from the left and the upper one
        from_later = _sweep(back, from_earlier.flip(1, 2)).flip(1, 2)
    return (from_earlier[0] + from_earlier[1] + from_later[0] + from_later[1]).permute(3, 2, 0, 1)


def _change_costs(zeros, step):
    """What each of CHANGES costs from a pixel to its right and to its lower neighbour: int16 2×H×W×27×N.

    0 where there is no neighbour. zeros: the lower candidates, int16 H×W×3×N.
    """
    limit = max(step // 2, LEAST_LIMIT)
    costs = zeros.new_zeros(2, *zeros.shape[:2], len(CHANGES), zeros.shape[3])
    for axis, along in enumerate((1, 0)):
        change = zeros.diff(dim=along)
        pairs = torch.stack([change[:, :, i] - change[:, :, j] for i, j in PAIRS], 2)
        single = [(change + number * step).abs().clamp(max=limit) for number in (-1, 0, 1)]
        double = [PAIR_WEIGHT * (pairs + number * step).abs().clamp(max=limit) for number in (-2, -1, 0, 1, 2)]
        found = costs[axis, : change.shape[0], : change.shape[1]]
        for row, steps in enumerate(CHANGES.tolist()):
            for pair, (i, j) in enumerate(PAIRS):
                found[:, :, row] += single[steps[i] + 1][:, :, i] + double[steps[i] - steps[j] + 2][:, :, pair]
    return costs


def _sweep(changes, from_later):
    """The messages from the left and the upper neighbour, after a sweep from the upper left corner: 2×H×W×8×N.

    changes: of _change_costs. from_later: the messages from the right and the lower neighbour, of the same shape as the
    result. The sweep goes diagonal by diagonal, because the left and upper neighbours lie on the diagonal before.
    """
    _, height, width, _, count = from_later.shape
    found = from_later.new_zeros(2, height + 1, width + 1, 8, count)  # a row and a column for those without a neighbour
    index = CHANGE.to(from_later.device)
    for diagonal in range(height + width - 1):
        y = torch.arange(max(0, diagonal - width + 1), min(height, diagonal + 1), device=from_later.device)
        x = diagonal - y
        heard, later = found[:, y, x], from_later[:, y, x]  # 2×L×8×N, L pixels
        told = (heard[0] + heard[1] + later[0] + later[1] >> 1) - later  # to a neighbour, without what it said itself
        ways = changes[:, y, x].index_select(2, index).unflatten(2, (8, 8)) + told[:, :, None]  # 2×L×8×8×N
        message = _least(ways, 3)
        message = message - _least(message, 2)[:, :, None]
        found[0, y, x + 1], found[1, y + 1, x] = message
    return found[:, :height, :width]


def _least(values, axis):
    """The least of eight values along an axis: faster than amin() where it is not the last one."""
    for _ in range(3):
        values = torch.minimum(*values.chunk(2, axis))
    return values.squeeze(axis)
