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
CHUNK = 200  # images at once
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


def corner_scans(images, bit):
    """The images repaired by a scan from each of the four corners: uint8 4×N×3×H×W."""
    return _scans(images, bit, CORNERS)


def _scans(images, bit, corners):
    """The images repaired by a scan from each of some corners: uint8 len(corners)×N×3×H×W."""
    scans = []
    for part in images.reshape(-1, *images.shape[-3:]).split(CHUNK):
        mirrored = torch.cat([part.flip(axes) for axes in corners])
        found = _scan(mirrored, bit).view(len(corners), *part.shape)
        scans.append(torch.stack([scan.flip(axes) for scan, axes in zip(found, corners)]))
    return torch.cat(scans, 1)


def _scan(images, bit):
    """The images after a scan from the upper left corner, one diagonal at a time: uint8 N×3×H×W."""
    zeros = zeros_of(images, bit).short().permute(2, 3, 1, 0).contiguous()  # H×W×3×N, fast to index by pixels
    height, width, _, count = zeros.shape
    # channels and differences of repaired pixels, with a row above and a column to the left
    framed = zeros.new_zeros(height + 1, width + 1, 6, count)
    for diagonal in range(height + width - 1):
        y = torch.arange(max(0, diagonal - width + 1), min(height, diagonal + 1), device=zeros.device)
        x = diagonal - y
        prediction = median_prediction(framed.permute(2, 3, 0, 1), y, x).movedim(-1, 0)  # L×6×N, L pixels
        if diagonal == 0:
            prediction[:, :3], prediction[:, 3:] = GREY, 0
        values = _best_triples(zeros[y, x], prediction, 1 << bit)
        framed[y + 1, x + 1] = torch.cat([values, _differences(values)], 1)
    return framed[1:, 1:, :3].permute(3, 2, 0, 1).to(torch.uint8).contiguous()


def _differences(values):
    """The differences of the three pairs of channels; …×3×N -> the same shape."""
    first, second = (list(channels) for channels in zip(*PAIRS))
    return values[:, first] - values[:, second]


def _best_triples(lower, prediction, step):
    """Of each pixel's eight candidate triples the one of least cost, of equal ones the first: int16 L×3×N.

    lower: the lower candidates, int16 L×3×N. prediction: of the channels and their differences, int16 L×6×N.
    """
    errors = lower - prediction[:, :3]
    errors = torch.stack([errors, errors + step]).abs()  # of a channel with the bit 0 and 1: 2×L×3×N
    pairs = _differences(lower) - prediction[:, 3:]
    pairs = PAIR_WEIGHT * torch.stack([pairs - step, pairs, pairs + step]).abs()  # 3×L×3×N
    costs = []
    for number in range(8):
        ones = [number >> channel & 1 for channel in range(3)]
        cost = sum(errors[ones[i], :, i] + pairs[1 + ones[i] - ones[j], :, pair] for pair, (i, j) in enumerate(PAIRS))
        costs.append(8 * cost + number)  # no two are equal; at most 8·(3·255 + 3·2·510) + 7, which fits into int16
    chosen = torch.stack(costs).amin(0) & 7  # L×N
    return lower + torch.stack([chosen >> channel & 1 for channel in range(3)], 1) * step


def _variation(images):
    """Total variation of an image's channels and, times PAIR_WEIGHT, of the differences of its channels; int64 N."""
    images = images.long()
    total = 0
    for planes, weight in ((images, 1), (torch.stack([images[:, i] - images[:, j] for i, j in PAIRS], 1), PAIR_WEIGHT)):
        for axis in (-1, -2):
            total = total + weight * planes.diff(dim=axis).abs().flatten(1).sum(1)
    return total
