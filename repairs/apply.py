"""A data set under a fault of the image memory, with its repair or protection."""

from faults import break_cells, fault_of_options, faulty_images
from repairs.protected import protected
from repairs.table import cells_repaired, check_blind, repair_named, repaired, with_repair


def with_fault(images, fault, seed, state=None, numbers=None):
    """A whole data set (uint8 N×3×H×W) with a fault and its repair; image i depends on (fault, seed, i) alone.

    A fault of another memory leaves the images as they are. state: what the repair has learned. numbers: of the images
    in the data set, by default 0 … N−1; only for faults of cells. UserError for a repair that reads the broken bit.
    """
    if fault.memory != "image":
        return images
    if fault.protection:
        return protected(fault, images, seed, numbers)
    broken = break_cells(fault, images, seed, numbers) if fault.cells else faulty_images(fault, images, seed)
    if fault.repair and not fault.cells:
        check_blind(fault, broken[:1], state)
    return mended(fault, broken, seed, state)


def mended(fault, images, seed, state=None):
    """Images under a fault of the image memory after the fault's repair, if it has one. Arguments as for with_fault."""
    return cells_repaired(fault, images, seed) if fault.cells else repaired(fault, images, state)


def repaired_cells_of(options):
    """The Fault of fault_of_options, with the repair that the option mem_fault names. UserError for what is wrong.

    The option known says whether the repair is told which cells are broken; None: if they are persistent.
    """
    fault, repair = fault_of_options(options), repair_named(options["mem_fault"])
    if repair is None or not options["memory"]:
        return fault
    known = fault.persistent if options["known"] is None else options["known"]
    return with_repair(fault, repair, known=known)
