"""Repairs of values with any broken bits: (uint8 images N×C×H×W, broken bits) -> repaired images.

The broken bits are a uint8 tensor that broadcasts to the images, 1 in the place of each broken bit: the same planes for
all values, or what a memory test has found. A repair does not depend on what the broken bits read. With one broken bit
in every value, each gives what the repair of the same name in pixels.py gives.
"""

import torch

from faults import MSB, get_bit
from repairs.pixels import GREY, NEIGHBOR_CHUNK, NEIGHBOR_PASSES, scan, sum_of_neighbors


def constant_0(images, broken):
    return images & ~broken


def constant_1(images, broken):
    return images | broken


def midpoint(images, broken):
    """The value halfway between the least and the greatest candidate, rounded down; changes other bits, too."""
    low, high = (images & ~broken).short(), (images | broken).short()
    return ((low + high) >> 1).to(torch.uint8)


def copy_bit(images, broken, source):
    """The images with each broken bit copied from the bit at `source` of the same value."""
    return images & ~broken | broken * get_bit(images, source)


def nearest(low, broken, prediction, count=1):
    """The candidate nearest to prediction / count, of equally near ones the lower: int16.

    low: the values with the broken bits 0. broken: the broken bits. All int16, of one shape; count may broadcast.
    """
    below = low.clone()  # becomes the greatest candidate up to the prediction, or the least if there is none
    for bit in range(MSB, -1, -1):
        more = below + (broken & 1 << bit)
        below = torch.where(count * more <= prediction, more, below)
    # the next candidate: the intact bits are set to 1, so that a carry passes over them
    above = low + (((below | 0xFF ^ broken) + 1) & broken)
    above = torch.where(below == low + broken, below, above)
    return torch.where(count * above - prediction < prediction - count * below, above, below)


def from_left(images, broken):
    """The candidate nearest to the repaired left neighbour; in the first column, to the repaired upper one."""
    low, broken = _both(images, broken)
    repaired, above = low.clone(), torch.full_like(low[..., 0, 0], GREY)
    for y in range(low.shape[-2]):
        repaired[..., y, 0] = above = nearest(low[..., y, 0], broken[..., y, 0], above)
    for x in range(1, low.shape[-1]):
        repaired[..., x] = nearest(low[..., x], broken[..., x], repaired[..., x - 1])
    return repaired.to(torch.uint8)


def from_median_predictor(images, broken):
    """The candidate nearest to JPEG-LS' prediction from the repaired neighbours, as in pixels.py."""
    low, broken = _both(images, broken)
    return scan(low, lambda y, x, prediction: nearest(low[..., y, x], broken[..., y, x], prediction))


def from_neighbors(images, broken):
    """The candidate nearest to the mean of the eight neighbours' estimates, as in pixels.py."""
    parts = zip(images.split(NEIGHBOR_CHUNK), broken.expand(images.shape).split(NEIGHBOR_CHUNK))
    return torch.cat([_from_neighbors(part, its) for part, its in parts])


def _from_neighbors(images, broken):
    low, broken = _both(images, broken)
    counts = sum_of_neighbors(torch.ones_like(low[..., :1, :, :]))
    estimate = (2 * low + broken) >> 1
    for _ in range(NEIGHBOR_PASSES):
        estimate = nearest(low, broken, sum_of_neighbors(estimate), counts)
    return estimate.to(torch.uint8)


def _both(images, broken):
    """(lower candidates, broken bits) of each value: int16, of the shape of the images."""
    return (images & ~broken).short(), broken.short().expand(images.shape)
