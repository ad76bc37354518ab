"""Repairs from the same pixel or its neighbours: (uint8 images …×3×H×W, broken bit) -> repaired images.

A repair sees the faulty images only, never the clean ones. A broken bit leaves two candidates for each value: the lower
one, `zeros`, with the broken bit 0, and the upper one, zeros + 2^bit. No repair depends on what the broken bit reads.
"""

import torch
import torch.nn.functional as F

from faults import MSB, get_bit, set_bit


def zeros_of(images, bit):
    """The lower candidates: uint8 of the same shape, the broken bit set to 0."""
    return images & (0xFF ^ (1 << bit))


def nearer(zeros, bit, prediction):
    """The candidate, uint8, nearer to a prediction (int16 or float); the lower one if both are equally near."""
    return zeros + ((prediction - zeros) * 2 > 1 << bit).to(torch.uint8) * (1 << bit)


def copy_bit(images, bit, source):
    """The images with the broken bit copied from the bit at `source` of the same value."""
    return set_bit(images, bit, get_bit(images, source))


def opposite_of_msb(images, bit):
    return set_bit(images, bit, 1 - get_bit(images, MSB))


def constant_0(images, bit):
    return zeros_of(images, bit)


def constant_1(images, bit):
    return set_bit(images, bit, 1)


def midpoint(images, bit):
    """The value halfway between the candidates, rounded down; changes other bits, too."""
    return zeros_of(images, bit) + (1 << bit >> 1)


def look_up(images, bit, table):
    """The images with the broken bit looked up from the other seven. table: uint8 0 or 1, 3×256, from learn_table."""
    zeros = zeros_of(images, bit)
    channel = torch.arange(zeros.shape[-3], device=zeros.device)[:, None, None]
    return set_bit(zeros, bit, table.to(zeros.device)[channel, zeros.long()])


def learn_table(images, bit):
    """The more frequent value of the bit, for each channel and each lower candidate: uint8 0 or 1, 3×256.

    0 if both values are equally frequent, or the candidate never occurs. Entries whose index has the bit set are 0, and
    not used. images: clean ones, uint8 N×3×H×W.
    """
    table = torch.zeros(images.shape[1], 256, dtype=torch.uint8)
    for row, channel in zip(table, images.unbind(1)):
        counts = torch.bincount(channel.flatten().int(), minlength=256)
        lower = torch.tensor([value for value in range(256) if not value >> bit & 1])
        row[lower] = (counts[lower + (1 << bit)] > counts[lower]).to(torch.uint8)
    return table


GREY = 128  # prediction for the first pixel


def from_left(images, bit):
    """The candidate nearer to the repaired left neighbour; in the first column, to the repaired upper one."""
    zeros = zeros_of(images, bit)
    repaired = zeros.clone()
    above = torch.full_like(zeros[..., 0, 0], GREY)
    for y in range(zeros.shape[-2]):
        repaired[..., y, 0] = above = nearer(zeros[..., y, 0], bit, above.short())
    for x in range(1, zeros.shape[-1]):
        repaired[..., x] = nearer(zeros[..., x], bit, repaired[..., x - 1].short())
    return repaired


def median_prediction(framed, y, x):
    """JPEG-LS' prediction of the values at (y, x) of one diagonal: int16 …×L.

    It is the median of left, upper, and left + upper - upper left; in the first row or column the left or upper value
    alone. framed: the values known so far, int16 …×(H+1)×(W+1), below a row and right of a column that do not count.
    Source: the predictor is that of LOCO-I / JPEG-LS, Weinberger, Seroussi & Sapiro (2000).
    """
    left, upper, corner = framed[..., y + 1, x], framed[..., y, x + 1], framed[..., y, x]
    low, high = torch.minimum(left, upper), torch.maximum(left, upper)
    prediction = torch.minimum(torch.maximum(left + upper - corner, low), high)
    return torch.where(y == 0, left, torch.where(x == 0, upper, prediction))


def from_median_predictor(images, bit):
    """The candidate nearer to the median of left, upper, and left + upper - upper left: the repaired neighbours.

    In the first row the left neighbour alone counts, in the first column the upper one.
    Source: the predictor is that of LOCO-I / JPEG-LS, Weinberger, Seroussi & Sapiro (2000).
    """
    zeros = zeros_of(images, bit)
    return scan(zeros, lambda y, x, prediction: nearer(zeros[..., y, x], bit, prediction).short())


def scan(images, choose):
    """The images repaired pixel by pixel: uint8, of the shape of `images`.

    Pixels are repaired diagonal by diagonal, because the neighbours of a pixel lie on the two diagonals before.
    choose: function (rows, columns, int16 median predictions of the values there) -> their repaired values, int16.
    """
    height, width = images.shape[-2:]
    framed = torch.zeros(*images.shape[:-2], height + 1, width + 1, dtype=torch.int16, device=images.device)
    for diagonal in range(height + width - 1):
        y = torch.arange(max(0, diagonal - width + 1), min(height, diagonal + 1), device=images.device)
        x = diagonal - y
        prediction = median_prediction(framed, y, x)
        if diagonal == 0:
            prediction = torch.full_like(prediction, GREY)
        framed[..., y + 1, x + 1] = choose(y, x, prediction)
    return framed[..., 1:, 1:].to(torch.uint8)


NEIGHBOR_PASSES = 5
NEIGHBOR_CHUNK = 10  # images at once


def from_neighbors(images, bit):
    """The candidate nearer to the mean of the eight neighbours' estimates.

    The estimates start at the midpoints of the candidates. Each of NEIGHBOR_PASSES passes replaces them by the nearer
    candidates.
    """
    parts = images.reshape(-1, *images.shape[-3:]).split(NEIGHBOR_CHUNK)
    return torch.cat([_from_neighbors(part, bit) for part in parts]).view(images.shape)


def _from_neighbors(images, bit):
    zeros, step = zeros_of(images, bit).short().contiguous(), 1 << bit
    neighbors = sum_of_neighbors(torch.ones_like(zeros[..., :1, :, :]))
    estimate = zeros + step // 2
    for _ in range(NEIGHBOR_PASSES):
        # (mean of the neighbours - lower candidate) · number of neighbours
        above = sum_of_neighbors(estimate) - neighbors * zeros
        estimate = zeros + (2 * above > neighbors * step) * step
    return estimate.to(torch.uint8)


def sum_of_neighbors(values):
    """The sum of the up to eight neighbours of each value: int16 …×H×W -> the same. Sums must fit into int16."""
    framed = F.pad(values, (1, 1, 1, 1))
    rows = framed[..., :-2] + framed[..., 1:-1] + framed[..., 2:]
    return rows[..., :-2, :] + rows[..., 1:-1, :] + rows[..., 2:, :] - values
