"""Faulty activations: the 1-bit feature maps that are stored after each hidden layer."""

from contextlib import contextmanager
from itertools import count, tee

import numpy as np
import torch

from faults.cells import drawn_masks, misread_masks, misreads, step_seed
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


class TrainingMaps:
    """Faults of the feature maps in training: sets net.misreads, what the net reads in a forward pass.

    A Fault of another memory leaves the net as it is. Persistent cells are those of misread_activations with the same
    seed. Transient cells, and what cells read that read at random, are drawn for each image in every step, on the net's
    device; they depend on (fault, seed, step) alone. All tensors are changed in place, so that a compiled net stays
    valid.
    rows: the most images of a batch for one process. Of the images of all `world` processes, process `rank` has every
    world-th.
    """

    def __init__(self, fault, net, rows, seed, rank=0, world=1):
        self.fault, self.seed, self.rank, self.world = fault, seed, rank, world
        self.layers, net.misreads = [], None
        if fault.memory != "activations":
            return
        device = next(net.parameters()).device
        self.generator = torch.Generator(device)
        self.redrawn = not fault.cells.persistent or fault.kind == "random"
        sizes, chosen = net.map_sizes(), chosen_layers(fault, net.layer_names()[:-1])
        net.misreads = [None] * len(sizes)
        for layer, shape in enumerate(net.map_shapes()):
            if chosen[layer]:
                pair = torch.zeros(2, rows if self.redrawn else 1, *shape, dtype=torch.int8, device=device)
                pair[0] = 1
                self.layers.append(pair)
                net.misreads[layer] = (pair if len(shape) == 1 else pair.permute(0, 1, 4, 2, 3)).unbind()
        if fault.cells.persistent:
            masks = misread_masks(fault, sum(sizes), seed, in_layers(chosen, sizes), read_anew=True)
            parts = zip(chosen, *(mask.to(device).split(sizes) for mask in masks))
            self.masks = [(up, down) for here, up, down in parts if here]
            if not self.redrawn:
                for pair, (up, down) in zip(self.layers, self.masks):
                    _set(pair, up, down)

    def at(self, step):
        """Draw what is drawn for a step, counted from 0."""
        if not (self.layers and self.redrawn):
            return
        self.generator.manual_seed(step_seed(self.seed, step, 3))
        for number, pair in enumerate(self.layers):
            shape = self.world * pair.shape[1], pair[0, 0].numel()  # images × cells
            if self.fault.cells.persistent:
                reads = torch.rand(shape, generator=self.generator, device=self.generator.device) < 0.5
                up, down = self.masks[number]
                masks = up & reads, down & ~reads
            else:
                masks = drawn_masks(self.fault, self.fault.level, shape, self.generator)
            _set(pair, *(mask[self.rank :: self.world] for mask in masks))


def _set(pair, up, down):
    """Set the factor and the summand of values ±1 to what misread cells make of them, in place.

    A cell that is read wrong whatever it holds has the factor -1; one that reads 1, or 0, whatever it holds has the
    factor 0 and the summand 1, or -1. pair: int8 2×images×shape. up, down: bool, of as many cells, as of misreads.
    """
    up, down = (mask.view(pair.shape[1:]).to(torch.int8) for mask in (up, down))
    pair[0].copy_(1 - up - down)
    pair[1].copy_(up - down)
