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

    tester: what is evaluated, the net itself or Folded(net). numbers: of the images, in the order in which they come,
    by default 0, 1, 2, …; what transient cells read for image i depends on (fault, seed, i) alone.
    """
    folded = Folded(net, int8=False) if tester is net else tester
    hidden, numbers = folded.layers[:-1], iter(count() if numbers is None else numbers)
    intact = [layer.threshold for layer in hidden]
    memory = ThresholdMemory(intact, [bits_of(layer.bound) for layer in hidden], net.layer_names()[:-1])

    def compare_with(read):
        folded.set_thresholds(read.to(intact[0].device).split(memory.channels, -1))

    def vary(images):
        compare_with(torch.stack([memory.read(fault, seed, int(next(numbers))) for _ in range(images)]))

    hooks = _compare_in(net, hidden) if tester is net else []
    try:
        if fault.cells.persistent:
            compare_with(memory.read(fault, seed))
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


class ThresholdMemory:
    """The bits of the thresholds: layer by layer, channel by channel, the least significant bit first.

    thresholds: of each hidden layer, float32 whole numbers. bits: of a threshold of each layer. names: of the layers.
    """

    def __init__(self, thresholds, bits, names):
        self.names, self.channels = names, [len(each) for each in thresholds]
        self.sizes = [channels * width for channels, width in zip(self.channels, bits)]
        self.numbers = torch.cat(thresholds).long().cpu().numpy()
        widths = np.repeat(bits, self.channels)
        self.owner = np.repeat(np.arange(len(widths)), widths)  # of each cell: the number of its threshold
        place = np.arange(len(self.owner)) - (np.cumsum(widths) - widths)[self.owner]
        self.held = (self.numbers[self.owner] >> place & 1).astype(np.uint8)
        self.worth = np.where(place == widths[self.owner] - 1, -1, 1) << place  # of a 1 in each cell

    def read(self, fault, seed, image=None):
        """All thresholds as they are read, float32. image: the number of the image; None for all images."""
        select = in_layers(chosen_layers(fault, self.names), self.sizes)
        wrong = wrong_cells(*misreads(fault, len(self.held), seed, image, select), self.held.__getitem__)
        more = np.where(self.held[wrong], -self.worth[wrong], self.worth[wrong])
        changes = np.bincount(self.owner[wrong], more, minlength=len(self.numbers))
        return torch.from_numpy(self.numbers + changes).float()
