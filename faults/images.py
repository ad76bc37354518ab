"""Broken bits of 8-bit images: pure functions of uint8 tensors of any shape. Bit 0 is the LSB, bit 7 the MSB."""

import functools

import numpy as np
import torch


def get_bit(images, bit):
    """Bit `bit` of every value, as uint8 0 or 1."""
    return (images >> bit) & 1


def set_bit(images, bit, values):
    """Bit `bit` of every value becomes the one in `values` (uint8, 0 or 1, broadcastable); the others stay."""
    return (images & (0xFF ^ (1 << bit))) | (values << bit)


def break_images(fault, images, draw_bits, draw_broken=None):
    """The images under an image fault (a Fault; no fault is one, too), unrepaired. uint8 of any shape -> the same.

    draw_bits: shape -> uint8 0 or 1, what broken bits read at random.
    draw_broken: (shape, share) -> bool, which values have the broken bit where that is a share of them only.
    """
    if fault.bit is None:
        return images
    reads = {"stuck_at_0": 0, "stuck_at_1": 1}.get(fault.kind)
    faulty = set_bit(images, fault.bit, draw_bits(images.shape) if reads is None else reads)
    return faulty if fault.level == 1 else faulty.where(draw_broken(images.shape, fault.level), images)


def faulty_images(fault, images, seed):
    """A whole data set (uint8 N×3×H×W) under an image fault, unrepaired.

    What becomes of image i depends on (fault, seed, i) alone.
    """
    return break_images(
        fault,
        images,
        lambda shape: _bits_of_all(seed, tuple(shape)),
        lambda shape, share: image_breaks(seed, range(shape[0]), shape[1:], share),
    )


@functools.lru_cache(4)  # in a sweep the faults of the same run follow each other
def _bits_of_all(seed, shape):
    return image_bits(seed, range(shape[0]), shape[1:])


def image_bits(seed, indices, shape):
    """What the broken bits of some images of a data set read: uint8 0 or 1, len(indices)×shape.

    Those of image i depend on (seed, i) alone, so neither on batch size nor on the order or number of workers.
    """
    values = int(np.prod(shape))
    streams = [np.random.default_rng([seed, int(i)]).bytes((values + 7) // 8) for i in indices]
    packed = np.frombuffer(b"".join(streams), np.uint8).reshape(len(streams), -1)
    return torch.from_numpy(np.unpackbits(packed, axis=1, count=values)).view(-1, *shape)


def image_breaks(seed, indices, shape, share):
    """Which values of some images have the broken bit, each with probability `share`: bool, len(indices)×shape.

    As in image_bits those of image i depend on (seed, i) alone, in a stream of their own. What is broken at a
    share is broken at every larger one.
    """
    streams = [np.random.default_rng([seed, int(i), 1]).random(int(np.prod(shape))) for i in indices]
    return torch.from_numpy(np.stack([stream < share for stream in streams])).view(-1, *shape)
