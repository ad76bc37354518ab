"""Binary labels on a grid that minimise an image's total variation: the exact minimum, by convex relaxation.

Every value of an image is one of two candidates, zeros or zeros + step. With x = 0 or 1 for each of them, two
neighbours that differ by d in `zeros` add |d + step·(x_i - x_j)| to the total variation. For binary x that equals

    |d| + a·(x_i - x_j) + w·|x_i - x_j|
    with a = (|d + step| - |d - step|) / 2,  w = (|d + step| + |d - step|) / 2 - |d| >= 0

So the energy is a linear term in x plus a weighted total variation of x. Its minimum over 0 <= x <= 1 is reached at
a binary x (the relaxation is tight), and a relaxed minimiser, thresholded anywhere, is a binary minimiser. The dual
variables of the method give a lower bound of the minimum. An image is done when its energy is within TOLERANCE of it.

Source: Chambolle & Pock, "A First-Order Primal-Dual Algorithm for Convex Problems" (2011); thresholding: Chan,
Esedoglu & Nikolova, "Algorithms for Finding Global Minimizers of Image Segmentation and Denoising Models" (2006).
"""

import torch
import torch.nn.functional as F

from faults import set_bit
from repairs.pixels import zeros_of

TOLERANCE = 1e-3  # an image is done when its total variation is proven to be above the least by at most this share
CHECK = 25  # iterations between two checks whether images are done
ITERATIONS = 3000  # at most; an image that is not done by then keeps its last candidates
STEP = 0.35  # of primal and dual updates; must be below 1 / sqrt(8), as 8 bounds the squared norm of the differences
CHUNK = 16_000  # values at once, so that the data of an iteration stay in a processor's cache


def from_total_variation(images, bit):
    """The candidates that minimise each channel's total variation."""
    zeros = zeros_of(images, bit)
    ones = least_variation(zeros.reshape(-1, *zeros.shape[-3:]), 1 << bit)
    return set_bit(zeros, bit, ones.view(zeros.shape).to(torch.uint8))


def variation(images):
    """Total variation of each image, int64 N: the sum of |differences| to the right and lower neighbours."""
    images = images.long()
    right, down = (images.diff(dim=dim).abs().flatten(1).sum(1) for dim in (-1, -2))
    return right + down


def least_variation(zeros, step):
    """True where the upper candidate minimises the channel's total variation: bool N×C×H×W.

    zeros: uint8 N×C×H×W, the lower candidates; the upper ones are zeros + step.
    """
    images = max(1, CHUNK // zeros[0].numel())
    return torch.cat([_least_variation(part, step) for part in zeros.contiguous().split(images)])


def _least_variation(zeros, step):
    candidates = torch.stack([zeros, zeros + step])
    zeros = zeros.float() / step
    linear = torch.zeros_like(zeros)
    constant = variation(candidates[0]) / step  # the energy of x = 0, in steps
    weights = []
    for dim in (-1, -2):
        length = zeros.shape[dim] - 1
        d = zeros.narrow(dim, 1, length) - zeros.narrow(dim, 0, length)  # x_i: the later one
        above, below = (d + 1).abs(), (d - 1).abs()
        slope = (above - below) / 2
        weights.append((above + below) / 2 - d.abs())
        linear += _later(slope, dim) - _earlier(slope, dim)
    x = (linear < 0).float()
    ahead = x.clone()
    flows = [torch.zeros_like(weight) for weight in weights]
    chosen, done = x > 0.5, torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for iteration in range(1, ITERATIONS + 1):
        slope = linear.clone()
        for dim, weight, flow in zip((-1, -2), weights, flows):
            length = ahead.shape[dim] - 1
            flow += STEP * (ahead.narrow(dim, 1, length) - ahead.narrow(dim, 0, length))
            flow.copy_(torch.minimum(torch.maximum(flow, -weight), weight))
            slope.narrow(dim, 1, length).add_(flow)
            slope.narrow(dim, 0, length).sub_(flow)
        before, x = x, (x - STEP * slope).clamp_(0, 1)
        ahead = 2 * x - before
        if iteration % CHECK == 0:
            now = x > 0.5
            energy = variation(torch.where(now, candidates[1], candidates[0])) / step
            bound = constant + slope.clamp(max=0).flatten(1).sum(1)
            chosen = torch.where(done[:, None, None, None], chosen, now)
            done |= energy - bound <= TOLERANCE * energy
            if done.all():
                break
    return chosen


def _later(differences, dim):
    """Assigns each difference to the later of its two neighbours: the result is longer by one in `dim`."""
    return F.pad(differences, (1, 0) if dim == -1 else (0, 0, 1, 0))


def _earlier(differences, dim):
    """Assigns each difference to the earlier of its two neighbours."""
    return F.pad(differences, (0, 1) if dim == -1 else (0, 0, 0, 1))
