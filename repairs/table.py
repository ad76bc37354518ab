"""The table of repairs, and the functions that check and apply one.

To add a repair, write a function (images, bit) -> images and name it in REPAIRS: `--mem_fault NAME`, the sweep and
the plots then know it (docs/extending.md).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from common import UserError
from faults import MSB, NO_FAULT, Fault, broken_map
from repairs import colors, masked, pixels
from repairs.color_field import mean_of_color_field
from repairs.predictor import from_predictor, learn_predictor, mean_of_predictor, teach_predictor
from repairs.total_variation import from_total_variation

OLD_SPELLINGS = {"reparied_n": "repaired_n", "reparied_s": "repaired_s"}  # the original's


class RepairCost(NamedTuple):
    """What a repair costs in hardware, for each of a pixel's three values."""

    operations: int = 0  # additions, subtractions, multiplications, inversions
    comparisons: int = 0
    lines: int = 0  # image lines that are buffered
    table: int = 0  # bits of its lookup tables


class Repair(NamedTuple):
    """A row of REPAIRS. mend: (uint8 images N×3×H×W, bit[, source or learned state]) -> uint8 images N×3×H×W."""

    mend: Callable
    what: str  # it puts in the broken bit's place; for tables.md
    cost: RepairCost | None  # None: too slow for hardware that repairs pixels as they come (offline)
    # (clean training images, bit[, state of starts_from][, Teacher]) -> state: a tensor, or a dict of tensors
    learn: Callable | None = None
    starts_from: str | None = None  # the repair whose state the learning starts from
    taught: bool = False  # a teacher takes part in the learning
    sources: tuple = ()  # the bits that it can copy, if it copies one; a sweep measures all
    cannot: tuple = ()  # the broken bits that it cannot mend, because it reads them
    masked: Callable | None = None  # the same for any broken bits: (images, broken bits[, source]) -> images


REPAIRS = {
    "repaired_n": Repair(
        pixels.copy_bit,
        "the bit at faulty_bit + neighbor_offset of the same value",
        RepairCost(),
        sources=tuple(range(MSB)),
        masked=masked.copy_bit,
    ),
    "repaired_s": Repair(
        pixels.copy_bit,
        "bit 7, the MSB, of the same value",
        RepairCost(),
        sources=(MSB,),
        cannot=(MSB,),
        masked=masked.copy_bit,
    ),
    "not_msb": Repair(pixels.opposite_of_msb, "the opposite of bit 7", RepairCost(operations=1), cannot=(MSB,)),
    "constant_0": Repair(pixels.constant_0, "0", RepairCost(), masked=masked.constant_0),
    "constant_1": Repair(pixels.constant_1, "1", RepairCost(), masked=masked.constant_1),
    "midpoint": Repair(
        pixels.midpoint,
        "the value halfway between the two candidates",
        RepairCost(operations=1),
        masked=masked.midpoint,
    ),
    "table": Repair(
        pixels.look_up,
        "the value that a table from training images gives for the other seven bits",
        RepairCost(table=128),
        pixels.learn_table,
    ),
    "left": Repair(
        pixels.from_left,
        "the candidate nearer to the left neighbour",
        RepairCost(operations=1, comparisons=1),
        masked=masked.from_left,
    ),
    "median": Repair(
        pixels.from_median_predictor,
        "the candidate nearer to JPEG-LS' prediction",
        RepairCost(operations=3, comparisons=3, lines=1),
        masked=masked.from_median_predictor,
    ),
    "neighbors": Repair(
        pixels.from_neighbors,
        f"the candidate nearer to the mean of the eight neighbours, {pixels.NEIGHBOR_PASSES} passes",
        RepairCost(
            operations=9 * pixels.NEIGHBOR_PASSES,
            comparisons=pixels.NEIGHBOR_PASSES,
            lines=2 * pixels.NEIGHBOR_PASSES,
        ),
        masked=masked.from_neighbors,
    ),
    "colors": Repair(
        colors.from_colors,
        "the candidates that fit JPEG-LS' predictions of the three colours and of their differences",
        RepairCost(operations=32, comparisons=9, lines=1),
    ),
    "color_scans": Repair(
        colors.from_color_scans, "the same from each of the four corners: the result of least variation", None
    ),
    "color_mean": Repair(colors.mean_of_color_scans, "the mean of the four", None),
    "color_field": Repair(
        mean_of_color_field,
        "the mean of the eight candidate triples; those weigh more with which the whole image varies less",
        None,
    ),
    "variation": Repair(from_total_variation, "the candidates of least total variation", None),
    "learned": Repair(
        from_predictor, "the prediction of a small net that learned from clean training images", None, learn_predictor
    ),
    "learned_mean": Repair(
        mean_of_predictor,
        "the mean of the candidates, weighted by how likely that net finds them",
        None,
        learn_predictor,
    ),
    "taught": Repair(
        mean_of_predictor,
        "the same, fitted further to what a float net sees in the clean image",
        None,
        teach_predictor,
        starts_from="learned",
        taught=True,
    ),
}


class ImpossibleRepair(UserError):
    """This repair cannot mend this bit. run.sh recognises the exit status and writes – into its table."""

    status = 3


def fault_of(mem_fault, bit, neighbor_offset):
    """The Fault of a broken bit plane, checked. UserError for a wrong argument, or a repair that cannot mend this bit.

    mem_fault: baseline, faulty, or a name in REPAIRS; the original's spellings are accepted.
    bit: the broken one, 0 (LSB) to 7 (MSB). neighbor_offset: repaired_n copies the bit at `bit` + this.
    """
    repair = repair_named(mem_fault)
    if not 0 <= bit <= MSB:
        raise UserError(f"faulty_bit {bit} is outside a pixel's bits 0 (LSB) to {MSB} (MSB)")
    if mem_fault == "baseline":
        return NO_FAULT
    if mem_fault == "faulty":
        return Fault("random", bit, level=1.0)
    if bit in REPAIRS[repair].cannot:
        raise ImpossibleRepair(f"{repair} looks at bit {bit}, so it cannot repair bit {bit} itself: use another")
    return Fault("random", bit, repair, _source(repair, bit, neighbor_offset), 1.0)


def repair_named(mem_fault):
    """The name in REPAIRS that a mem_fault means; None for baseline and faulty. UserError for an unknown one."""
    mem_fault = OLD_SPELLINGS.get(mem_fault, mem_fault)
    known = ("baseline", "faulty", *REPAIRS)
    if mem_fault not in known:
        raise UserError(f"mem_fault {mem_fault!r} is unknown: one of {', '.join(known)}")
    return None if mem_fault in known[:2] else mem_fault


def _source(repair, bit, neighbor_offset):
    """The bit that a repair copies; None for those that copy none."""
    if repair != "repaired_n":
        return next(iter(REPAIRS[repair].sources), None)
    if neighbor_offset == 0:
        raise ImpossibleRepair("neighbor_offset 0 would repair the broken bit with itself: -1 is the next lower bit")
    if not 0 <= bit + neighbor_offset <= MSB:
        raise ImpossibleRepair(
            f"neighbor_offset {neighbor_offset:+d} from faulty_bit {bit} is bit {bit + neighbor_offset}, "
            f"outside a pixel's bits 0 to {MSB}"
        )
    return bit + neighbor_offset


def repaired(fault, images, state=None):
    """Faulty images after the fault's repair, if it has one. state: what the repair has learned for this bit."""
    if fault.repair is None:
        return images
    row = REPAIRS[fault.repair]
    extra = [fault.source] if row.sources else [state] if row.learn else []
    return _checked(fault.repair, images, row.mend(images, fault.bit, *extra))


def check_blind(fault, images, state=None):
    """UserError if what a repair makes of some images depends on what the broken bit reads. Arguments as for repaired.

    Its result would be a matter of chance, and is measured only once.
    """
    inverted = images ^ (1 << fault.bit)
    if not torch.equal(repaired(fault, images, state), repaired(fault, inverted, state)):
        raise UserError(
            f"the repair {fault.repair} reads the broken bit {fault.bit}: its result must be the same whatever that "
            "bit reads, or the bit must be named in cannot= (docs/extending.md)"
        )


def _checked(repair, images, found):
    """What a repair made of images. UserError if it is of another type or shape."""
    if isinstance(found, torch.Tensor) and found.dtype == torch.uint8 and found.shape == images.shape:
        return found
    what = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, torch.Tensor) else f"a {type(found).__name__}"
    raise UserError(
        f"the repair {repair} returned {what}: it must return what it is given, torch.uint8 {tuple(images.shape)}"
    )


def with_repair(fault, repair, source=None, known=False):
    """A fault of cells of the image memory with a repair, checked. ImpossibleRepair in one line if it cannot be.

    known: the repair is told which cells are broken; else it takes every bit of the fault's planes for broken.
    source: the bit that repaired_n copies.
    """
    row = REPAIRS[repair]
    if fault.memory != "image":
        raise ImpossibleRepair(f"{repair} mends images, not {fault.memory}")
    if fault.cells is None:
        raise ImpossibleRepair(
            f"cells of one transient plane, read at random or stuck, are not mended by {repair}; "
            f"the whole plane is: --faulty_bit {fault.bit} in train_smaller.py, --bits {fault.bit} in sweep.py"
        )
    if row.masked is None:
        names = ", ".join(name for name, other in REPAIRS.items() if other.masked)
        raise ImpossibleRepair(f"{repair} mends one broken plane: several bits are mended by {names}")
    planes = [bit for bit, _ in fault.cells.planes]
    if known and not fault.cells.persistent:
        raise ImpossibleRepair("no memory test knows transient cells: only persistent ones can be known")
    if not known and len(planes) == MSB + 1:
        raise ImpossibleRepair(
            f"{repair} needs an intact bit, and all eight planes can break: name fewer planes, "
            "or persistent cells that are known"
        )
    if repair == "repaired_s":
        source = MSB
    if (source is None) != (not row.sources) or (not known and source in planes):
        what = "needs a bit to copy" if source is None else f"cannot copy bit {source}"
        raise ImpossibleRepair(f"{repair} {what}: repaired_n and repaired_s copy an intact bit, the others none")
    return fault._replace(repair=repair, source=source, known=known)


def cells_repaired(fault, images, seed):
    """Images under a fault of cells after the fault's repair, if it has one."""
    if fault.repair is None:
        return images
    if fault.known:
        broken = broken_map(fault, images.shape[1:], seed)
    else:
        broken = torch.tensor(sum(1 << bit for bit, _ in fault.cells.planes), dtype=torch.uint8)
    row, broken = REPAIRS[fault.repair], broken.to(images.device)
    return _checked(fault.repair, images, row.masked(images, broken, *([fault.source] if row.sources else [])))
