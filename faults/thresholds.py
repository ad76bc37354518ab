"""Faulty thresholds: the whole numbers that hardware compares a sum with in place of a batch norm (models/folded.py).

A threshold of a layer is from -bound to bound + 1, `bound` being the largest sum that the layer can reach. It is stored
in two's complement of just enough bits for that range.
"""

from contextlib import contextmanager

import numpy as np
import torch

from faults.cells import misreads, wrong_cells
from faults.layers import bits_of, chosen_layers, in_layers


@contextmanager
def misread_thresholds(fault, net, folded, seed):
    """Inside the `with`, cells of the folded net's threshold memory read as the fault says.

    The memory holds the thresholds layer by layer, channel by channel, the least significant bit first.
    """
    hidden = folded.layers[:-1]
    intact = [layer.threshold for layer in hidden]
    try:
        folded.set_thresholds(misread_numbers(fault, intact, [bits_of(layer.bound) for layer in hidden], net, seed))
        yield
    finally:
        folded.set_thresholds(intact)


def misread_numbers(fault, thresholds, bits, net, seed):
    """The thresholds as they are read: float32 tensors, one for each hidden layer. bits: of a threshold of each."""
    held = np.concatenate([_to_bits(numbers, width) for numbers, width in zip(thresholds, bits)])
    sizes = [len(numbers) * width for numbers, width in zip(thresholds, bits)]
    select = in_layers(chosen_layers(fault, net.layer_names()[:-1]), sizes)
    held[wrong_cells(*misreads(fault, len(held), seed, select=select), held.__getitem__)] ^= 1
    parts = np.split(held, np.cumsum(sizes)[:-1])
    return [_to_numbers(part, width).to(like.device) for part, width, like in zip(parts, bits, thresholds)]


def _to_bits(numbers, width):
    """Whole numbers as bits, the least significant first: uint8 0 or 1, len(numbers)·width."""
    return (numbers.long().cpu().numpy()[:, None] >> np.arange(width) & 1).astype(np.uint8).ravel()


def _to_numbers(bits, width):
    """The numbers that these bits are in two's complement, float32."""
    worth = 1 << np.arange(width)
    worth[-1] *= -1
    return torch.from_numpy((bits.reshape(-1, width) * worth).sum(1)).float()
