"""The layers of a net whose memories a fault breaks."""

import numpy as np

from common import UserError
from faults.fault import NOISE_KINDS
from models.folded import STEPS


def chosen_layers(fault, names):
    """True for each of the layers `names` in which cells of the fault can break: a list. UserError for unknown ones."""
    unknown = [name for name in fault.cells.layers if name not in names]
    if unknown:
        raise UserError(f"the net has no {fault.memory} of layer {unknown[0]}: its layers are {', '.join(names)}")
    return [not fault.cells.layers or name in fault.cells.layers for name in names]


def in_layers(chosen, sizes):
    """A `select` for cells.draw: keeps the addresses in the chosen layers. They lie one after another."""
    starts = np.cumsum([0, *sizes])

    def select(broken, level):
        cells = broken(level)
        if all(chosen):
            return cells
        return cells[np.asarray(chosen)[np.searchsorted(starts, cells, "right") - 1]]

    return select


def check_layers(fault, net):
    """UserError in one line if a net has no such memory in the layers of a fault of cells."""
    names = net.layer_names()
    chosen_layers(fault, names if fault.memory == "weights" else names[:-1])


def memory_size(fault, net, values):
    """Number of cells of the net's memory that a fault can break; None for no fault and weight noise.

    values: of an image, counted channel by channel.
    """
    if fault.memory is None or fault.kind in NOISE_KINDS:
        return None
    if fault.memory == "image":
        return values * (len(fault.cells.planes) if fault.cells else 1)
    sizes = {"weights": weight_counts, "activations": type(net).map_sizes, "thresholds": threshold_bits}[fault.memory](
        net
    )
    if fault.cells is None:
        return sum(sizes)
    return sum(size for size, chosen in zip(sizes, chosen_layers(fault, net.layer_names()[: len(sizes)])) if chosen)


def weight_counts(net):
    """Number of binary weights of each layer."""
    return [layer.weight.numel() for layer in net.binary_layers()]


def threshold_bits(net):
    """Number of bits of the thresholds of each hidden layer."""
    largest = [STEPS, *[1] * len(net.map_sizes())]  # inputs of a layer are from -largest to largest
    layers = list(zip(net.binary_layers(), largest))[:-1]
    return [len(layer.weight) * bits_of(inputs * layer.weight[0].numel()) for layer, inputs in layers]


def bits_of(bound):
    """Bits of the two's complement that holds every whole number from -bound to bound + 1."""
    bits = 1
    while (1 << bits - 1) - 1 < bound + 1:
        bits += 1
    return bits


def first_faulty(fault, net):
    """Number of the first layer, counted from 0, that must be computed anew under a fault; 0 where it can be any."""
    if not (fault.cells and fault.cells.layers):
        return 0
    return min(net.layer_names().index(name) for name in fault.cells.layers)
