"""The command-line options that describe broken cells, the same in train_smaller.py and in sweep.py."""

from argparse import ArgumentTypeError

from common import UserError, within
from faults.fault import LINES, NO_FAULT, READINGS, Cells, fault_of_cells, planes_of

LONGEST = 10**7  # rows, or columns, of an array


def add_cell_options(group, ber, reading, several=False):
    """Add the options to an argparse group. ber, reading: their defaults, as text.

    several: --ber, --reading and --lines can be several values.
    """
    share, some = within(float, 0, 1), {"nargs": "+"} if several else {}
    group.add_argument("--ber", **some, type=share, help=f"share of the cells that are broken, default {ber}")
    group.add_argument("--reading", **some, choices=READINGS, help=f"what they read, default {reading}")
    group.add_argument("--p01", type=share, help="asymmetric: probability that a broken cell, or line, reads 1 for 0")
    group.add_argument("--p10", type=share, help="asymmetric: probability that it reads 0 for 1")
    group.add_argument("--planes", type=as_planes, help="planes of the image memory, such as 7+6; default all eight")
    each = "; each: one at a time" if several else ""
    group.add_argument("--layers", nargs="+", help=f"layers that break together, such as conv1 fc2{each}; default all")
    group.add_argument("--lines", **some, choices=LINES, help="whole rows or columns of --array break")
    group.add_argument("--array", type=as_array, help="its size in cells, such as 512x64: rows and columns")


def check_folded(args):
    """UserError if --recalibrate is given beside --no-fold."""
    if args.recalibrate and not args.fold:
        raise UserError("--recalibrate sets thresholds, and --no-fold evaluates batch norms: leave one of them out")


def as_planes(text):
    """An argparse type: planes of Cells, such as 7 or 7+6@0.1."""
    try:
        return planes_of(text)
    except UserError as error:
        raise ArgumentTypeError(error) from None


def as_array(text):
    """An argparse type: rows and columns of an array, such as 512x64."""
    try:
        rows, columns = (int(size) for size in text.split("x"))
        if not (1 <= rows <= LONGEST and 1 <= columns <= LONGEST):
            raise ValueError
    except ValueError:
        raise ArgumentTypeError(
            f"{text!r} is no size such as 512x64: rows and columns of the array, each from 1 to {LONGEST}"
        ) from None
    return rows, columns


def fault_of_options(options):
    """The Fault that options of train_smaller.py describe: memory, transient and those of add_cell_options.

    NO_FAULT where `memory` is empty. UserError in one line for what is wrong.
    """
    if not options["memory"]:
        return NO_FAULT
    cells = Cells(
        options["memory"],
        tuple(options["layers"]),
        options["planes"],
        persistent=not options["transient"],
        lines=options["lines"],
        array=options["array"],
    )
    return fault_of_cells(cells, options["reading"], options["ber"], p01=options["p01"], p10=options["p10"])
