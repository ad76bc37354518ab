"""Faulty thresholds: the whole numbers that hardware compares a sum with in place of a batch norm (models/folded.py).

A threshold of a layer is from -bound to bound + 1, `bound` being the largest sum that the layer can reach. It is stored
in two's complement of just enough bits for that range.
"""

from contextlib import contextmanager
from itertools import count

import numpy as np
import torch

from faults.cells import misreads, wrong_cells
from faults.layers import bits_of, chosen_layers, in_layers
from models.folded import Folded


@contextmanager
def misread_thresholds(fault, net, tester, seed, numbers=None):
    """Inside the `with`, cells of the threshold memory read as the fault says, for one pass over the images.

    The memory holds the thresholds layer by layer, channel by channel, the least significant bit first.
    tester: what is evaluated, the net itself or Folded(net). numbers: of the images, in the order in which they come,
    by default 0, 1, 2, …; what transient cells read for image i depends on (fault, seed, i) alone.
    """
    folded = Folded(net, int8=False) if tester is net else tester
    hidden, numbers = folded.layers[:-1], iter(count() if numbers is None else numbers)
    intact, bits = [layer.threshold for layer in hidden], [bits_of(layer.bound) for layer in hidden]

    def read(image=None):
        return misread_numbers(fault, intact, bits, net, seed, image)

    def vary(images):
        each = [read(int(next(numbers))) for _ in range(images)]
        folded.set_thresholds([torch.stack(thresholds) for thresholds in zip(*each)])

    hooks = _compare_in(net, hidden) if tester is net else []
    try:
        if fault.cells.persistent:
            folded.set_thresholds(read())
        elif tester is net:
            hooks.append(net.register_forward_pre_hook(lambda net, inputs: vary(len(inputs[0]))))
        else:
            folded.vary = vary
        yield
    finally:
        for hook in hooks:
            hook.remove()
        folded.vary = None
        folded.set_thresholds(intact)


def _compare_in(net, hidden):
    """Hooks by which the net compares its sums with the thresholds of these folded layers, in place of batch norms."""

    def compare(layer, sums):
        sums = torch.where(layer.falls.view(-1, *[1] * (sums.dim() - 2)), -sums, sums) * layer.inputs
        return torch.where(layer.reached(sums), 1.0, -1.0)

    return [
        norm.register_forward_hook(lambda norm, inputs, output, layer=layer: compare(layer, inputs[0]))
        for norm, layer in zip(net.norms(), hidden)
    ]


def misread_numbers(fault, thresholds, bits, net, seed, image=None):
    """The thresholds as they are read: float32 tensors, one for each hidden layer. bits: of a threshold of each.

    image: the number of the image that they are read for; None for all images.
    """
    held = np.concatenate([_to_bits(numbers, width) for numbers, width in zip(thresholds, bits)])
    sizes = [len(numbers) * width for numbers, width in zip(thresholds, bits)]
    select = in_layers(chosen_layers(fault, net.layer_names()[:-1]), sizes)
    held[wrong_cells(*misreads(fault, len(held), seed, image, select), held.__getitem__)] ^= 1
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
