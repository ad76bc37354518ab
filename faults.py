"""Memory faults and their repairs: broken bits of 8-bit images, noise on latent weights, flipped binary weights.

Faults and repairs of images are pure functions of uint8 tensors of any shape, usually N×3×H×W; bit 0 is the
LSB, bit 7 the MSB. A repair sees the faulty images only, never the clean ones. To add one, write a function
(images, bit, neighbor_offset) -> images and name it in REPAIRS: `--mem_fault NAME` then knows it.
"""

import functools
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch

from cli import UserError

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


def repair_from_neighbor(images, bit, neighbor_offset):
    """The broken bit becomes the one at `bit + neighbor_offset` of the same value."""
    return set_bit(images, bit, get_bit(images, bit + neighbor_offset))


def repair_from_msb(images, bit, neighbor_offset):
    """The broken bit becomes bit 7 of the same value."""
    return set_bit(images, bit, get_bit(images, MSB))


REPAIRS = {"repaired_n": repair_from_neighbor, "repaired_s": repair_from_msb}
MEM_FAULTS = ("baseline", "faulty", *REPAIRS)


class ImpossibleRepair(UserError):
    """This repair cannot mend this bit. run.sh knows it by its status, and leaves the cell of the table empty."""

    status = 3


class Fault(NamedTuple):
    """A fault setting: which bit of every value is broken, and what is done about it."""

    mem_fault: str  # one of MEM_FAULTS
    bit: int  # 0 (LSB) to 7 (MSB)
    neighbor_offset: int  # repaired_n: where the copied bit stands, relative to the broken one

    @classmethod
    def of(cls, mem_fault, bit, neighbor_offset):
        """A checked Fault; the original's spellings are accepted. UserError where it cannot be."""
        mem_fault = OLD_SPELLINGS.get(mem_fault, mem_fault)
        if mem_fault not in MEM_FAULTS:
            raise UserError(f"mem_fault {mem_fault!r} is unknown: one of {', '.join(MEM_FAULTS)}")
        if not 0 <= bit <= MSB:
            raise UserError(f"faulty_bit {bit} is outside a pixel's bits 0 (LSB) to {MSB} (MSB)")
        if mem_fault == "repaired_n":
            if neighbor_offset == 0:
                raise ImpossibleRepair("neighbor_offset 0 would repair the broken bit with itself: -1 is the next lower bit")
            if not 0 <= bit + neighbor_offset <= MSB:
                raise ImpossibleRepair(
                    f"neighbor_offset {neighbor_offset:+d} from faulty_bit {bit} is bit {bit + neighbor_offset}, "
                    f"outside a pixel's bits 0 to {MSB}"
                )
        if mem_fault == "repaired_s" and bit == MSB:
            raise ImpossibleRepair("repaired_s copies bit 7, the MSB, so it cannot repair bit 7 itself: use repaired_n")
        return cls(mem_fault, bit, neighbor_offset)

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
        return REPAIRS[self.mem_fault](faulty, self.bit, self.neighbor_offset)


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
