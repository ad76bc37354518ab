"""A data set under a fault of the image memory, with its repair or protection."""

from faults import break_cells, faulty_images
from repairs.protected import protected
from repairs.table import cells_repaired, repaired


def with_fault(images, fault, seed, state=None, numbers=None):
    """A whole data set (uint8 N×3×H×W) with a fault and its repair; image i depends on (fault, seed, i) alone.

    A fault of another memory leaves the images as they are. state: what the repair has learned. numbers: of the images
    in the data set, by default 0 … N−1; only for faults of cells.
    """
    if fault.memory != "image":
        return images
    if fault.cells is None:
        return repaired(fault, faulty_images(fault, images, seed), state)
    if fault.protection:
        return protected(fault, images, seed, numbers)
    return cells_repaired(fault, break_cells(fault, images, seed, numbers), seed)
