"""The layers of a net whose memories a fault breaks."""

import numpy as np

from common import UserError


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
