"""A repair that judges all pixels of an image together: the candidates are the labels of a Markov random field.

A pixel with a broken bit has eight candidate triples. Two neighbours, one to the right of or below the other, cost

    Σ min(|d|, LIMIT)  over the channels  +  PAIR_WEIGHT · Σ min(|d|, LIMIT)  over the three pairs of channels

where d is the change of a channel, or of the difference of two channels, from one pixel to the other, minus the slope
there. LIMIT is half the step of the broken bit, at least LEAST_LIMIT. With it an edge of the picture costs no more than
a wrong bit.

Message passing estimates for each candidate what the whole image costs at least if the pixel has it. A sweep goes
through all pixels. Each pixel sends each neighbour that comes later a message: what each candidate of the neighbour
costs at least. Sweeps start in turn at the upper left and at the lower right corner.

The result is the mean of the candidates. A candidate's weight is halved by every eighth of the broken bit's step, at
least 4, that it costs more than the best one, 15 times at most.

In the first round of two sweeps the slope is 0. Then it is taken from the result of the round before: the mean of the
eight changes around a change, in the same direction. All numbers are whole, and they are multiplied by nothing but
powers of two. Each value is divided once in a round.

Source: Kolmogorov, "Convergent Tree-Reweighted Message Passing for Energy Minimization" (2006), TRW-S.
"""

import torch

from repairs.colors import PAIR_WEIGHT, PAIRS
from repairs.pixels import zeros_of

ROUNDS = 6  # each of two sweeps
LEAST_LIMIT = 32
WEIGHTS = [round(2 ** (15 - number / 4)) for number in range(61)]  # of a candidate, by its cost: four to a halving
CHUNK = 2**17  # pixels at once: 128 images of 32×32, a batch of training
TRIPLES = torch.tensor([[number >> channel & 1 for channel in range(3)] for number in range(8)])  # bits of a candidate
# the bits of two neighbours differ by -1, 0 or 1 in each channel: 27 differences, number 9·red + 3·green + blue + 13
# DIFFERENCES[8·i + j]: the number for candidate i of a pixel and candidate j of its left or upper neighbour
DIFFERENCES = ((TRIPLES[:, None] - TRIPLES + 1) @ torch.tensor([9, 3, 1])).flatten()
# STEPS[i, j]: the difference of two channels' differences i - 1 and j - 1, plus 2
STEPS = [[2, 1, 0], [3, 2, 1], [4, 3, 2]]


def mean_of_color_field(images, bit):
    """The mean of the candidates, weighted by what they cost, rounded; changes other bits, too."""
    channels, height, width = images.shape[-3:]
    parts = images.reshape(-1, channels, height, width).split(max(1, CHUNK // (height * width)))
    return torch.cat([_mended(part, bit) for part in parts]).view(images.shape)


def _mended(images, bit):
    zeros = zeros_of(images, bit).short().permute(2, 3, 1, 0).contiguous()  # H×W×3×N, one pixel after the other
    slopes = [0, 0]
    from_later = zeros.new_zeros(2, *zeros.shape[:2], 8, len(images))  # messages from right and lower neighbours
    for _ in range(ROUNDS):
        costs = _costs_of_changes(zeros, slopes, 1 << bit)
        from_earlier = _sweep(costs, from_later)  # from left and upper ones
        from_later = _sweep(_mirrored(costs), from_earlier.flip(1, 2)).flip(1, 2)
        mean = zeros + _mean_raise(from_earlier[0] + from_earlier[1] + from_later[0] + from_later[1], bit)
        slopes = [_slope(mean.diff(dim=axis)) for axis in (1, 0)]
    return mean.permute(3, 2, 0, 1).to(torch.uint8)


def _costs_of_changes(zeros, slopes, step):
    """What each of the 27 differences costs from a pixel to its right and to its lower neighbour: int16 2×H×W×27×N.

    0 where there is no neighbour. zeros: the lower candidates, int16 H×W×3×N. slopes: to the right and downwards, int16
    H×(W-1)×3×N and (H-1)×W×3×N, or 0.
    """
    limit = max(step // 2, LEAST_LIMIT)
    first, second = (list(channels) for channels in zip(*PAIRS))
    costs = zeros.new_zeros(2, *zeros.shape[:2], 27, zeros.shape[3])
    for found, axis, slope in zip(costs, (1, 0), slopes):
        change = zeros.diff(dim=axis) - slope
        pairs = change[:, :, first] - change[:, :, second]
        # by the difference of a channel's bits H×W×3×3×N, by the step between the channels of a pair H×W×3×5×N
        single = torch.stack([(change + number * step).abs().clamp(max=limit) for number in (-1, 0, 1)], 3)
        double = torch.stack(
            [PAIR_WEIGHT * (pairs + number * step).abs().clamp(max=limit) for number in range(-2, 3)], 3
        )
        # a pair with its first channel, by the differences of both: H×W×3×3×N each
        red_green, green_blue, blue_red = (double[:, :, :, STEPS] + single[:, :, :, :, None]).unbind(2)
        total = red_green[:, :, :, :, None] + green_blue[:, :, None] + blue_red.transpose(2, 3)[:, :, :, None]
        found[: change.shape[0], : change.shape[1]] = total.flatten(2, 4)
    return costs


def _mirrored(costs):
    """The costs of changes of the image that is turned by half a turn."""
    turned = torch.zeros_like(costs)
    turned[0, :, :-1] = costs[0, :, :-1].flip(0, 1, 2)
    turned[1, :-1] = costs[1, :-1].flip(0, 1, 2)
    return turned


def _sweep(costs, from_later):
    """The messages from left and upper neighbours, after a sweep from the upper left corner: int16 2×H×W×8×N.

    costs: of _costs_of_changes. from_later: the messages from right and lower neighbours, of the same shape as the
    result. A sweep goes diagonal by diagonal, because the left and upper neighbours lie on the diagonal before.
    """
    _, height, width, _, count = from_later.shape
    differences = DIFFERENCES.to(from_later.device)
    framed = from_later.new_zeros(2, height + 1, width + 1, 8, count)  # one more for those without a neighbour
    costs, from_later, found = (pixels.flatten(1, 2) for pixels in (costs, from_later, framed))
    for diagonal in range(height + width - 1):
        y = max(0, diagonal - width + 1)
        x, length = diagonal - y, min(height, diagonal + 1) - y
        here = _down_left(y, x, width, length)
        heard, later = found[:, _down_left(y, x, width + 1, length)], from_later[:, here]  # 2×L×8×N, L pixels
        told = (heard[0] + heard[1] + later[0] + later[1] >> 1) - later  # to a neighbour, without what it said itself
        ways = costs[:, here].index_select(2, differences).unflatten(2, (8, 8)) + told[:, :, None]  # 2×L×8×8×N
        message = _least(ways, 3)
        message = message - _least(message, 2)[:, :, None]
        found[0, _down_left(y, x + 1, width + 1, length)] = message[0]
        found[1, _down_left(y + 1, x, width + 1, length)] = message[1]
    return framed[:, :height, :width]


def _down_left(y, x, width, length):
    """The pixels from (y, x) on downwards to the left, `length` of an image whose rows of `width` lie in one row."""
    start, step = y * width + x, max(1, width - 1)
    return slice(start, start + (length - 1) * step + 1, step)


def _least(values, axis):
    """The least of eight values along an axis: faster than amin() where it is not the last one."""
    for _ in range(3):
        values = torch.minimum(*values.chunk(2, axis))
    return values.squeeze(axis)


def _mean_raise(costs, bit):
    """By how much the weighted mean of the candidates is above the lower one, rounded: int16 H×W×3×N.

    costs: of the candidates, int16 H×W×8×N.
    """
    index = costs - _least(costs, 2)[:, :, None] >> max(0, bit - 5)
    weights = torch.tensor(WEIGHTS, dtype=torch.int32, device=costs.device)
    weights = weights[index.clamp(max=len(WEIGHTS) - 1).int()].unflatten(2, (2, 2, 2))  # bits of blue, green, red
    ones = torch.stack([weights.select(axis, 1).sum((2, 3), dtype=torch.int32) for axis in (4, 3, 2)], 2)
    total = weights.sum((2, 3, 4), dtype=torch.int32)[:, :, None]
    return torch.div((2 * ones << bit) + total, 2 * total, rounding_mode="floor").short()


def _slope(changes):
    """The rounded mean of the eight changes around each: int16 H×W×3×N. Beyond a border the nearest change counts."""
    if not changes.numel():
        return changes
    around = changes
    for axis, length in enumerate(changes.shape[:2]):
        place = torch.arange(-1, length + 1, device=changes.device).clamp(0, length - 1)
        framed = around.index_select(axis, place)
        before, middle, after = (framed.narrow(axis, start, length) for start in range(3))
        around = before + middle + after
    return around - changes + 4 >> 3
