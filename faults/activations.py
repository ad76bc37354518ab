"""Faulty activations: the 1-bit feature maps that are stored after each hidden layer."""

from contextlib import contextmanager
from itertools import count, tee

import numpy as np
import torch

from faults.cells import misreads
from faults.layers import chosen_layers, in_layers


@contextmanager
def misread_activations(fault, net, tester, seed, numbers=None):
    """Inside the `with`, the tester's feature maps are read as the fault says, for one pass over the images.

    The memory holds the maps of an image layer by layer, each as the next layer reads it: after the max pool, row by
    row, pixel by pixel, with the channels of a pixel side by side; 1 for +1.
    net: the CNV. tester: what is evaluated, the net itself or Folded(net). numbers: of the images, in the order in
    which they come, by default 0, 1, 2, …; what breaks in image i depends on (fault, seed, i) alone.
    """
    maps = MisreadMaps(fault, net, seed, numbers)
    if tester is not net:
        tester.change = maps
        try:
            yield
        finally:
            tester.change = None
        return
    hooks = [
        module.register_forward_hook(lambda module, inputs, output, layer=layer: maps(layer, output))
        for layer, module in enumerate(net.stored_maps())
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class MisreadMaps:
    """Called as (number of a layer, its maps): the same maps with the values that are read.

    The maps are float32 with -1 and +1, or uint8 with 0 and 2 for them: N×C×H×W or N×C. Each layer is called with the
    images in the same order; the batches do not matter.
    """

    def __init__(self, fault, net, seed, numbers=None):
        self.fault, self.seed = fault, seed
        self.sizes = net.map_sizes()
        self.chosen = chosen_layers(fault, net.layer_names()[:-1])
        self.starts = np.cumsum([0, *self.sizes])
        self.select = in_layers(self.chosen, self.sizes)
        self.numbers = tee(count() if numbers is None else numbers, len(self.sizes))
        self.last = max(layer for layer, chosen in enumerate(self.chosen) if chosen)
        self.drawn = {}  # number of an image -> (up, down) of misreads, until its last layer is read

    def __call__(self, layer, maps):
        numbers = [next(self.numbers[layer]) for _ in range(len(maps))]
        if not self.chosen[layer]:
            return maps
        pixels = maps if maps.dim() == 2 else maps.permute(0, 2, 3, 1)  # N×H×W×C
        read = pixels.reshape(len(maps), -1).clone()  # N×cells
        wrong = self.wrong_in(layer, numbers, read)
        flat = read.view(-1)
        both = 2 if maps.dtype == torch.uint8 else 0  # the sum of the two values
        flat.index_copy_(0, wrong, both - flat.index_select(0, wrong))
        if layer == self.last:
            for number in numbers:
                self.drawn.pop(number, None)
        read = read.view(pixels.shape)
        return read if maps.dim() == 2 else read.permute(0, 3, 1, 2)

    def wrong_in(self, layer, numbers, held):
        """Which values of the maps `held` (N×cells) of a layer are read wrong: int64, addresses in all N·cells."""
        size, parts = self.sizes[layer], ([], [])
        for place, number in enumerate(numbers):
            for part, cells in zip(parts, self.cells_of(number)):
                begin, end = np.searchsorted(cells, self.starts[layer : layer + 2])
                part.append(cells[begin:end] + (place * size - self.starts[layer]))
        values = held.view(-1)
        if self.fault.kind == "inverted":
            return torch.from_numpy(np.concatenate(parts[0])).to(values.device)
        up, down = (torch.from_numpy(np.concatenate(part)).to(values.device) for part in parts)
        return torch.cat([up[values.index_select(0, up) <= 0], down[values.index_select(0, down) > 0]])

    def cells_of(self, number):
        """(up, down) of misreads for an image."""
        same = self.fault.cells.persistent and self.fault.kind != "random"
        key = None if same else number
        if key not in self.drawn:
            self.drawn[key] = misreads(self.fault, int(self.starts[-1]), self.seed, number, self.select)
        return self.drawn[key]
