"""Memory faults and their repairs: broken bits of 8-bit images, noise on latent weights, flipped binary weights.

Faults of images are pure functions of uint8 tensors of any shape, repairs of uint8 tensors N×3×H×W; bit 0 is the
LSB, bit 7 the MSB. A repair sees the faulty images only, never the clean ones, and what it gives does not depend
on what the broken bit reads. To add one, write a function (images, bit) -> images and name it in REPAIRS:
`--mem_fault NAME`, the sweep and the plots then know it.
"""

import functools
from collections.abc import Callable
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from cli import UserError
from predictor import fit_predictor, predict
from total_variation import least_variation

MSB = 7
OLD_SPELLINGS = {"reparied_n": "repaired_n", "reparied_s": "repaired_s"}  # the original's


def set_bit(images, bit, values):
    """Bit `bit` of every value becomes the one in `values` (uint8, 0 or 1, broadcastable); the others stay."""
    return (images & (0xFF ^ (1 << bit))) | (values << bit)


def break_bit(images, bit, reads, broken=None):
    """Bit `bit` reads `reads` (0, 1, or a uint8 tensor of them): everywhere, or where the bool tensor `broken` says."""
    faulty = set_bit(images, bit, reads)
    return faulty if broken is None else faulty.where(broken, images)


def get_bit(images, bit):
    """Bit `bit` of every value, as uint8 0 or 1."""
    return (images >> bit) & 1


# Repairs. A broken bit leaves two candidates: `zeros`, the value with a 0 in its place, and zeros + 2^bit.


def zeros_of(images, bit):
    """The lower candidates: uint8, whatever the broken bit reads."""
    return images & (0xFF ^ (1 << bit))


def nearer(zeros, bit, prediction):
    """Of the two candidates the one nearer to a prediction (int16 or float); the lower one if both are as near."""
    return zeros + ((prediction - zeros) * 2 > 1 << bit).to(torch.uint8) * (1 << bit)


def copy_bit(images, bit, source):
    """The bit at `source` of the same value."""
    return set_bit(images, bit, get_bit(images, source))


def copy_msb(images, bit):
    return copy_bit(images, bit, MSB)


def copy_not_msb(images, bit):
    return set_bit(images, bit, 1 - get_bit(images, MSB))


def constant_0(images, bit):
    return zeros_of(images, bit)


def constant_1(images, bit):
    return set_bit(images, bit, 1)


def midpoint(images, bit):
    """Halfway between the candidates, rounded down; changes other bits, too."""
    return zeros_of(images, bit) + (1 << bit >> 1)


def look_up(images, bit, table):
    """The bit that the other seven say, by a table for each channel: `table`, uint8 0 or 1, 3×256, from fit_table."""
    zeros = zeros_of(images, bit)
    channel = torch.arange(zeros.shape[-3], device=zeros.device)[:, None, None]
    return set_bit(zeros, bit, table.to(zeros.device)[channel, zeros.long()])


def fit_table(images, bit):
    """For each channel and all values of the other seven bits the more frequent bit, 0 if as frequent or never seen.

    images: clean ones, uint8 N×3×H×W. Returns uint8 3×256; entries with the bit set are of no use, and 0.
    """
    table = torch.zeros(images.shape[1], 256, dtype=torch.uint8)
    for row, channel in zip(table, images.unbind(1)):
        counts = torch.bincount(channel.flatten().int(), minlength=256)
        lower = torch.tensor([value for value in range(256) if not value >> bit & 1])
        row[lower] = (counts[lower + (1 << bit)] > counts[lower]).to(torch.uint8)
    return table


GREY = 128  # what the first pixel is expected to be


def from_left(images, bit):
    """The candidate nearer to the repaired left neighbour; in the first column, to the upper one."""
    zeros = zeros_of(images, bit)
    repaired = zeros.clone()
    above = torch.full_like(zeros[..., 0, 0], GREY)
    for y in range(zeros.shape[-2]):
        repaired[..., y, 0] = above = nearer(zeros[..., y, 0], bit, above.short())
    for x in range(1, zeros.shape[-1]):
        repaired[..., x] = nearer(zeros[..., x], bit, repaired[..., x - 1].short())
    return repaired


def from_median_predictor(images, bit):
    """The candidate nearer to the median of left, upper, and left + upper - upper left, all of them repaired.

    In the first row and column, to the left or upper neighbour alone. Diagonal by diagonal, for what a pixel
    needs lies on the two before.
    Source: the predictor is that of LOCO-I / JPEG-LS, Weinberger, Seroussi & Sapiro (2000).
    """
    zeros = zeros_of(images, bit)
    height, width = zeros.shape[-2:]
    framed = torch.zeros(*zeros.shape[:-2], height + 1, width + 1, dtype=torch.int16, device=zeros.device)
    for diagonal in range(height + width - 1):
        y = torch.arange(max(0, diagonal - width + 1), min(height, diagonal + 1), device=zeros.device)
        x = diagonal - y
        left, upper, corner = framed[..., y + 1, x], framed[..., y, x + 1], framed[..., y, x]
        low, high = torch.minimum(left, upper), torch.maximum(left, upper)
        prediction = torch.minimum(torch.maximum(left + upper - corner, low), high)
        prediction = torch.where(y == 0, left, torch.where(x == 0, upper, prediction))
        if diagonal == 0:
            prediction = torch.full_like(prediction, GREY)
        framed[..., y + 1, x + 1] = nearer(zeros[..., y, x], bit, prediction).short()
    return framed[..., 1:, 1:].to(torch.uint8)


NEIGHBOR_PASSES = 5
NEIGHBOR_CHUNK = 10  # images at once


def from_neighbors(images, bit):
    """The candidate nearer to the mean of the eight neighbours' estimates, which start at the midpoints; in passes."""
    parts = images.reshape(-1, *images.shape[-3:]).split(NEIGHBOR_CHUNK)
    return torch.cat([_from_neighbors(part, bit) for part in parts]).view(images.shape)


def _from_neighbors(images, bit):
    zeros, step = zeros_of(images, bit).short().contiguous(), 1 << bit
    neighbors = sum_of_neighbors(torch.ones_like(zeros[..., :1, :, :]))
    estimate = zeros + step // 2
    for _ in range(NEIGHBOR_PASSES):
        above = (
            sum_of_neighbors(estimate) - neighbors * zeros
        )  # the mean's distance to the lower candidate, times neighbors
        estimate = zeros + (2 * above > neighbors * step) * step
    return estimate.to(torch.uint8)


def sum_of_neighbors(values):
    """For each of int16 …×H×W the sum of the up to eight around it; they must fit."""
    framed = F.pad(values, (1, 1, 1, 1))
    rows = framed[..., :-2] + framed[..., 1:-1] + framed[..., 2:]
    return rows[..., :-2, :] + rows[..., 1:-1, :] + rows[..., 2:, :] - values


def from_total_variation(images, bit):
    """The candidates that make each channel's total variation least (total_variation.py)."""
    zeros = zeros_of(images, bit)
    ones = least_variation(zeros.reshape(-1, *zeros.shape[-3:]), 1 << bit)
    return set_bit(zeros, bit, ones.view(zeros.shape).to(torch.uint8))


def from_predictor(images, bit, state):
    """What a net makes of the surroundings (predictor.py); `state` from its fit_predictor."""
    zeros, ones = _chances(images, bit, state)
    return set_bit(zeros, bit, (ones > 0.5).to(torch.uint8))


def mean_of_predictor(images, bit, state):
    """The mean of the two candidates, each weighted by how likely the same net finds it; changes other bits, too."""
    zeros, ones = _chances(images, bit, state)
    return zeros + (ones * (1 << bit)).round().to(torch.uint8)


def _chances(images, bit, state):
    """The lower candidates (uint8), and how likely the upper ones are (float32, 0 to 1)."""
    zeros = zeros_of(images, bit)
    return zeros, predict(zeros.reshape(-1, *zeros.shape[-3:]), bit, state).view(zeros.shape)


class Cost(NamedTuple):
    """What a repair takes in hardware, for each of a pixel's three values."""

    operations: int  # additions, subtractions, multiplications, inversions
    comparisons: int
    lines: int  # of the image that are buffered
    table: int  # bits of its tables


class Repair(NamedTuple):
    """A row of REPAIRS."""

    mend: Callable  # (uint8 N×3×H×W, bit) -> the same; repaired_n: and the bit to copy; with `fit`: and what that gave
    what: str  # it puts in the broken bit's place
    cost: Cost | None  # None: offline
    fit: Callable | None = None  # (clean training images, bit) -> tensor, or dict of tensors
    cannot: tuple = ()  # the bits that it cannot mend, since it reads them


REPAIRS = {
    "repaired_n": Repair(copy_bit, "the bit at faulty_bit + neighbor_offset of the same value", Cost(0, 0, 0, 0)),
    "repaired_s": Repair(copy_msb, "bit 7, the MSB, of the same value", Cost(0, 0, 0, 0), cannot=(MSB,)),
    "not_msb": Repair(copy_not_msb, "the opposite of bit 7", Cost(1, 0, 0, 0), cannot=(MSB,)),
    "constant_0": Repair(constant_0, "0", Cost(0, 0, 0, 0)),
    "constant_1": Repair(constant_1, "1", Cost(0, 0, 0, 0)),
    "midpoint": Repair(midpoint, "the value halfway between the two candidates", Cost(1, 0, 0, 0)),
    "table": Repair(
        look_up, "what the other seven bits say, by a table from training images", Cost(0, 0, 0, 128), fit_table
    ),
    "left": Repair(from_left, "the candidate nearer to the left neighbour", Cost(1, 1, 0, 0)),
    "median": Repair(from_median_predictor, "the candidate nearer to JPEG-LS' prediction", Cost(3, 3, 1, 0)),
    "neighbors": Repair(
        from_neighbors,
        f"the candidate nearer to the mean of the eight neighbours, {NEIGHBOR_PASSES} passes",
        Cost(9 * NEIGHBOR_PASSES, NEIGHBOR_PASSES, 2 * NEIGHBOR_PASSES, 0),
    ),
    "variation": Repair(from_total_variation, "the candidates of least total variation", None),
    "learned": Repair(
        from_predictor, "what a small net says that learned from clean training images", None, fit_predictor
    ),
    "learned_mean": Repair(
        mean_of_predictor, "the mean of the candidates, weighted by how likely that net finds them", None, fit_predictor
    ),
}


class ImpossibleRepair(UserError):
    """This repair cannot mend this bit. run.sh knows it by its status, and leaves the cell of the table empty."""

    status = 3


class Fault(NamedTuple):
    """A fault setting: which bit of every value is broken, and what is done about it."""

    mem_fault: str  # "baseline", "faulty" or a name in REPAIRS
    bit: int  # 0 (LSB) to 7 (MSB)
    neighbor_offset: int  # repaired_n: where the copied bit stands, relative to the broken one
    fitted: object = None  # what the repair's `fit` gave

    @classmethod
    def of(cls, mem_fault, bit, neighbor_offset, fitted=None):
        """A checked Fault; the original's spellings are accepted. UserError where it cannot be.

        fitted: (repair, bit) -> what the repair's `fit` gave (fits.py), None for one without.
        """
        mem_fault = OLD_SPELLINGS.get(mem_fault, mem_fault)
        known = ("baseline", "faulty", *REPAIRS)
        if mem_fault not in known:
            raise UserError(f"mem_fault {mem_fault!r} is unknown: one of {', '.join(known)}")
        if not 0 <= bit <= MSB:
            raise UserError(f"faulty_bit {bit} is outside a pixel's bits 0 (LSB) to {MSB} (MSB)")
        if mem_fault == "repaired_n":
            if neighbor_offset == 0:
                raise ImpossibleRepair(
                    "neighbor_offset 0 would repair the broken bit with itself: -1 is the next lower bit"
                )
            if not 0 <= bit + neighbor_offset <= MSB:
                raise ImpossibleRepair(
                    f"neighbor_offset {neighbor_offset:+d} from faulty_bit {bit} is bit {bit + neighbor_offset}, "
                    f"outside a pixel's bits 0 to {MSB}"
                )
        if mem_fault in REPAIRS and bit in REPAIRS[mem_fault].cannot:
            raise ImpossibleRepair(f"{mem_fault} looks at bit {bit}, so it cannot repair bit {bit} itself: use another")
        return cls(mem_fault, bit, neighbor_offset, fitted(mem_fault, bit) if fitted and mem_fault in REPAIRS else None)

    def __str__(self):
        if self.mem_fault == "baseline":
            return "baseline, no fault"
        source = {
            "faulty": "random",
            "repaired_n": f"copied from bit {self.bit + self.neighbor_offset}",
            "repaired_s": "copied from the MSB",
        }
        return f"{self.mem_fault}, bit {self.bit} {source.get(self.mem_fault, 'repaired')}"

    def apply(self, images, draw):
        """uint8 images -> uint8 images after fault and repair.

        draw: shape -> uint8 tensor of 0 and 1, what the broken bits read.
        """
        if self.mem_fault == "baseline":
            return images
        faulty = break_bit(images, self.bit, draw(images.shape))
        if self.mem_fault == "faulty":
            return faulty
        extra = self.bit + self.neighbor_offset if self.mem_fault == "repaired_n" else self.fitted
        return mend(self.mem_fault, faulty, self.bit, extra)


def mend(repair, images, bit, extra=None):
    """Apply a repair of the table. extra: the bit to copy of repaired_n; what the repair's `fit` gave."""
    function = REPAIRS[repair].mend
    return function(images, bit) if extra is None else function(images, bit, extra)


def image_bits(seed, indices, shape):
    """What the broken bits of some images of a data set read: uint8 0 or 1, len(indices)×shape.

    Those of image i depend on (seed, i) alone, so neither on batch size nor on the order or number of workers.
    """
    values = int(np.prod(shape))
    streams = [np.random.default_rng([seed, int(i)]).bytes((values + 7) // 8) for i in indices]
    packed = np.frombuffer(b"".join(streams), np.uint8).reshape(len(streams), -1)
    return torch.from_numpy(np.unpackbits(packed, axis=1, count=values)).view(-1, *shape)


def image_breaks(seed, indices, shape, rate):
    """Which values of some images have the broken bit, each with probability `rate`: bool, len(indices)×shape.

    As in image_bits those of image i depend on (seed, i) alone, in a stream of their own. What is broken at a
    rate is broken at every higher one.
    """
    streams = [np.random.default_rng([seed, int(i), 1]).random(int(np.prod(shape))) for i in indices]
    return torch.from_numpy(np.stack([stream < rate for stream in streams])).view(-1, *shape)


@contextmanager
def weight_noise(net, sigma_val, seed, relative=False):
    """Inside the `with`, Gaussian noise of standard deviation sigma_val² lies on all latent weights of the net.

    The noise is absolute, as the original's (sigma_val 0.8: standard deviation 0.64), or with `relative` in
    units of each layer's root mean square weight. It comes before weight standardisation and binarisation.
    Yields the share of binary weights, 0 to 1, whose sign it flips. The weights are restored exactly
    afterwards, after an exception too. net: a CNV in evaluation mode.
    """
    layers = net.binary_layers()
    generator = torch.Generator().manual_seed(seed)
    latent = [layer.weight.detach().clone() for layer in layers]
    flipped = 0
    try:
        with torch.no_grad():
            for layer in layers:
                before = torch.signbit(layer.quant_weight().value)
                unit = layer.weight.double().square().mean().sqrt().float() if relative else 1.0
                noise = torch.randn(layer.weight.shape, generator=generator) * sigma_val**2
                layer.weight += noise.to(layer.weight.device) * unit
                flipped += (torch.signbit(layer.quant_weight().value) != before).sum().item()
        yield flipped / sum(weight.numel() for weight in latent)
    finally:
        with torch.no_grad():
            for layer, weight in zip(layers, latent):
                layer.weight.copy_(weight)


@contextmanager
def weight_flips(net, probability, seed):
    """Inside the `with`, each binary weight of the net has the other sign with `probability`, independently.

    It is the binary weight that flips, after weight standardisation; latent weights stay as they are. What is
    flipped at a probability is flipped at every higher one with the same seed. Yields the share of weights
    flipped, 0 to 1. net: a CNV in evaluation mode.
    """
    layers = net.binary_layers()
    generator = torch.Generator().manual_seed(seed)
    flipped = 0
    try:
        for layer in layers:
            weight = layer.quant_weight()
            flips = torch.rand(layer.weight.shape, generator=generator) < probability
            flipped += flips.sum().item()
            value = torch.where(flips.to(layer.weight.device), -weight.value, weight.value)
            layer.quant_weight = functools.partial(_given, weight.set(value=value))  # hides the layer's method
        yield flipped / sum(layer.weight.numel() for layer in layers)
    finally:
        for layer in layers:
            layer.__dict__.pop("quant_weight", None)


def _given(weight, *args, **kwargs):
    return weight
