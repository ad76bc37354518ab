"""Repairs that judge a pixel's three colours together: natural colours differ less from pixel to pixel than values do.

A pixel with a broken bit has eight candidate triples. A scan takes, pixel by pixel, the one of least

    Σ |value − P|  over the channels  +  PAIR_WEIGHT · Σ |difference − D|  over the three pairs of channels

where P is the prediction of JPEG-LS (see pixels.median_prediction) of a channel from the repaired left, upper and upper
left pixel, and D the same prediction of the difference of two channels. One scan buffers one line and multiplies by
nothing but powers of two. For three values, the predictions of 3 channels and 3 differences take 18 operations and 18
comparisons, the differences 3 operations, the errors of channels 12 and of pairs 21, and the sums of the candidates 40
and 7 comparisons: 94 and 25 in all.

Where a scan errs, the error goes on with it: scans from other corners err elsewhere.
"""

import torch

from repairs.pixels import GREY, median_prediction, zeros_of

PAIR_WEIGHT = 2  # a power of two
PAIRS = ((0, 1), (1, 2), (2, 0))
CHUNK = 100  # images at once
CORNERS = ((), (-1,), (-2,), (-2, -1))  # axes that are mirrored so that a scan starts in the upper left corner


def from_colors(images, bit):
    """One scan from the upper left corner."""
    return _scans(images, bit, CORNERS[:1])[0].view(images.shape)


def from_color_scans(images, bit):
    """Scans from the four corners: for each image the one whose channels and differences vary least."""
    scans = _scans(images, bit, CORNERS)  # 4×N×3×H×W
    variation = torch.stack([_variation(scan) for scan in scans])  # 4×N
    best = (4 * variation + torch.arange(4, device=images.device)[:, None]).argmin(0)  # of equal ones the first
    return scans[best, torch.arange(len(best), device=images.device)].view(images.shape)


def mean_of_color_scans(images, bit):
    """The mean of the scans from the four corners, rounded; changes other bits, too."""
    scans = _scans(images, bit, CORNERS)
    return ((scans.short().sum(0) + len(CORNERS) // 2) // len(CORNERS)).to(torch.uint8).view(images.shape)


def _scans(images, bit, corners):
    """The images repaired by a scan from each of some corners: uint8 len(corners)×N×3×H×W."""
    parts = images.reshape(-1, *images.shape[-3:]).split(CHUNK)
    scans = [torch.cat([_scan(part.flip(axes), bit).flip(axes) for part in parts]) for axes in corners]
    return torch.stack(scans)


def _scan(images, bit):
    """The images after a scan from the upper left corner, one diagonal at a time: uint8 N×3×H×W."""
    zeros, step = zeros_of(images, bit).short(), 1 << bit
    count, _, height, width = zeros.shape
    first, second = (list(channels) for channels in zip(*PAIRS))
    # channels and differences of repaired pixels, with a row above and a column to the left
    framed = zeros.new_zeros(count, 6, height + 1, width + 1)
    number = torch.arange(8, device=zeros.device)
    ones = number[:, None] >> torch.arange(3, device=zeros.device) & 1  # 8 candidates × 3 channels: is the bit 1?
    for diagonal in range(height + width - 1):
        y = torch.arange(max(0, diagonal - width + 1), min(height, diagonal + 1), device=zeros.device)
        x = diagonal - y
        prediction = median_prediction(framed, y, x)  # N×6×L, L pixels on the diagonal
        if diagonal == 0:
            prediction[:, :3], prediction[:, 3:] = GREY, 0
        lower = zeros[:, :, y, x]  # N×3×L
        errors = lower - prediction[:, :3]
        errors = torch.stack([errors, errors + step]).abs()  # of a channel with the bit 0 and 1: 2×N×3×L
        pairs = lower[:, first] - lower[:, second] - prediction[:, 3:]
        pairs = PAIR_WEIGHT * torch.stack([pairs - step, pairs, pairs + step]).abs()  # 3×N×3×L
        costs = sum(
            errors[ones[:, i], :, i] + pairs[1 + ones[:, i] - ones[:, j], :, pair] for pair, (i, j) in enumerate(PAIRS)
        )  # 8×N×L
        # of equal ones the first: with its number added, no two costs are equal
        chosen = (8 * costs.int() + number[:, None, None]).argmin(0)  # N×L
        values = lower + ones[chosen].transpose(1, 2).short() * step
        framed[:, :3, y + 1, x + 1] = values
        framed[:, 3:, y + 1, x + 1] = values[:, first] - values[:, second]
    return framed[:, :3, 1:, 1:].to(torch.uint8)


def _variation(images):
    """Total variation of an image's channels and, times PAIR_WEIGHT, of the differences of its channels; int64 N."""
    images = images.long()
    total = 0
    for planes, weight in ((images, 1), (torch.stack([images[:, i] - images[:, j] for i, j in PAIRS], 1), PAIR_WEIGHT)):
        for axis in (-1, -2):
            total = total + weight * planes.diff(dim=axis).abs().flatten(1).sum(1)
    return total
