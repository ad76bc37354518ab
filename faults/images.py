"""Broken bits of 8-bit images: pure functions of uint8 tensors of any shape. Bit 0 is the LSB, bit 7 the MSB."""

import functools

import numpy as np
import torch

from faults.cells import draw, drawn_masks, misread_masks, misreads, wrong_cells
from faults.fault import MSB


def get_bit(images, bit):
    """Bit `bit` of every value, as uint8 0 or 1."""
    return (images >> bit) & 1


def same_bits(clean, images, bits):
    """Share of the bits at these places, 0 to 1, that equal those of the clean images; six decimal places."""
    shares = [(get_bit(clean, bit) == get_bit(images, bit)).double().mean().item() for bit in bits]
    return round(sum(shares) / len(shares), 6)


def set_bit(images, bit, values):
    """The images with bit `bit` of every value replaced by `values` (uint8, 0 or 1, broadcastable)."""
    return (images & (0xFF ^ (1 << bit))) | (values << bit)


def break_images(fault, images, draw_bits, draw_broken=None):
    """The images (uint8 of any shape) under an image fault, unrepaired; a Fault without a bit leaves them as they are.

    draw_bits: function shape -> uint8 0 or 1, the random values that broken bits read.
    draw_broken: function (shape, share) -> bool, True where the bit is broken; only needed for a level below 1.
    """
    if fault.bit is None:
        return images
    reads = {"stuck_at_0": 0, "stuck_at_1": 1}.get(fault.kind)
    faulty = set_bit(images, fault.bit, draw_bits(images.shape) if reads is None else reads)
    return faulty if fault.level == 1 else faulty.where(draw_broken(images.shape, fault.level), images)


def faulty_images(fault, images, seed):
    """A whole data set (uint8 N×3×H×W) under an image fault, unrepaired.

    What breaks in image i, and what it reads, depends on (fault, seed, i) alone.
    """
    return break_images(
        fault,
        images,
        lambda shape: _bits_of_all(seed, tuple(shape)),
        lambda shape, share: image_breaks(seed, range(shape[0]), shape[1:], share),
    )


@functools.lru_cache(4)  # a sweep measures the faults of a run one after another, on the same bits
def _bits_of_all(seed, shape):
    return image_bits(seed, range(shape[0]), shape[1:])


def image_bits(seed, indices, shape):
    """The random values that the broken bits of some images read: uint8 0 or 1, len(indices)×shape.

    indices: of the images in the data set. shape: of one image. The bits of image i depend on (seed, i) alone, not on
    batch size, order or number of workers.
    """
    values = int(np.prod(shape))
    streams = [np.random.default_rng([seed, int(i)]).bytes((values + 7) // 8) for i in indices]
    packed = np.frombuffer(b"".join(streams), np.uint8).reshape(len(streams), -1)
    return torch.from_numpy(np.unpackbits(packed, axis=1, count=values)).view(-1, *shape)


def image_breaks(seed, indices, shape, share):
    """True for values of some images whose bit is broken, each with probability `share`: bool, len(indices)×shape.

    As in image_bits, the result for image i depends on (seed, i) alone; the random stream is a separate one. A bit that
    is broken at one share is broken at every larger share.
    """
    streams = [np.random.default_rng([seed, int(i), 1]).random(int(np.prod(shape))) for i in indices]
    return torch.from_numpy(np.stack([stream < share for stream in streams])).view(-1, *shape)


def break_cells(fault, images, seed, numbers=None):
    """Images (uint8 N×C×H×W) under a fault of cells of the image memory, unrepaired.

    The memory holds the values of an image channel by channel, row by row; bit b of value v has the address 8·v + b.
    numbers: of the images in the data set, by default 0 … N−1; image i depends on (fault, seed, i) alone.
    """
    faulty = images.contiguous().view(len(images), -1).clone()  # N×values
    values = faulty.numpy()
    select = functools.partial(in_planes, fault.cells.planes)
    for place, number in enumerate(range(len(images)) if numbers is None else numbers):
        held = values[place]
        up, down = misreads(fault, 8 * len(held), seed, int(number), select)
        wrong = wrong_cells(up, down, lambda cells, held=held: held[cells >> 3] >> (cells & 7).astype(np.uint8) & 1)
        np.bitwise_xor.at(held, wrong >> 3, np.uint8(1) << (wrong & 7).astype(np.uint8))
    return faulty.view(images.shape)


class TrainingImages:
    """Called as (images), uint8 B×C×H×W: the images as training reads them from a memory under a fault of cells.

    Persistent cells are those of break_cells with the same seed. Transient cells, and what cells read that read at
    random, are drawn from `generator` for each image, on its device.
    shape: of an image, (C, H, W).
    """

    def __init__(self, fault, shape, seed, generator):
        self.fault, self.generator = fault, generator
        if fault.cells.persistent:
            count, select = 8 * int(np.prod(shape)), functools.partial(in_planes, fault.cells.planes)
            masks = misread_masks(fault, count, seed, select, read_anew=True)
            self.masks = [_bytes_of(mask).view(*shape).to(generator.device) for mask in masks]

    def __call__(self, images):
        up, down = self._masks(images)
        return images ^ ((~images & up) | (images & down))

    def _masks(self, images):
        """(up, down): uint8, bits that read 1 where they hold 0, and 0 for 1; of one image, or of each."""
        if not self.fault.cells.persistent:
            return self._drawn(images)
        up, down = self.masks
        if self.fault.kind == "random":
            device = self.generator.device
            reads = torch.randint(256, images.shape, generator=self.generator, device=device, dtype=torch.uint8)
            up, down = up & reads, down & ~reads
        return up, down

    def _drawn(self, images):
        masks = torch.zeros_like(images), torch.zeros_like(images)
        for bit, share in self.fault.cells.planes:
            drawn = drawn_masks(self.fault, self.fault.level * share, images.shape, self.generator)
            for mask, broken in zip(masks, drawn):
                mask |= broken.to(torch.uint8) << bit
        return masks


def _bytes_of(bits):
    """bool 8·N, the LSB of a byte first -> uint8 N."""
    return torch.from_numpy(np.packbits(bits.numpy(), bitorder="little"))


def broken_map(fault, shape, seed):
    """The broken bits of each value of an image, as a memory test finds persistent ones: uint8, of shape C×H×W."""
    found = np.zeros(int(np.prod(shape)), np.uint8)
    level = fault.level * max(fault.p01, fault.p10) if fault.kind == "asymmetric" else fault.level
    cells = draw(fault, level, 8 * found.size, seed, select=functools.partial(in_planes, fault.cells.planes))
    np.bitwise_or.at(found, cells >> 3, np.uint8(1) << (cells & 7).astype(np.uint8))
    return torch.from_numpy(found).view(*shape)


def in_planes(planes, broken, level):
    """The addresses of broken cells that lie in the planes, each plane at its share of the level."""
    if len(planes) == MSB + 1 and len({share for _, share in planes}) == 1:
        return broken(level * planes[0][1])
    found = []
    for share in sorted({share for _, share in planes}):
        cells = broken(level * share)
        here = np.zeros(MSB + 1, bool)
        here[[bit for bit, its in planes if its == share]] = True
        found.append(cells[here[cells & 7]])
    return np.concatenate(found)


def flip_cells(fault, held, seed, image, select=None):
    """Change the bits of one image's memory that are read wrong, in place. held: uint8 0 or 1, one for each cell."""
    up, down = misreads(fault, len(held), seed, image, select)
    held[wrong_cells(up, down, held.__getitem__)] ^= 1
