"""Images in a protected memory under a fault of its cells, and the repair of the words that a code flags."""

import functools

import numpy as np
import torch

from faults import ALL_PLANES, MSB, broken_map, flip_cells, in_planes
from repairs.codes import PROTECTIONS, rotations
from repairs.table import REPAIRS, ImpossibleRepair

CHUNK = 250  # images at once


def with_protection(fault, protection, repair=None):
    """A fault of cells of the image memory under a protection, checked. ImpossibleRepair in one line if it cannot be.

    repair: mends the values that a code flags and does not correct: a name in REPAIRS, or None.
    """
    row = PROTECTIONS[protection]
    if fault.memory != "image":
        raise ImpossibleRepair(f"{protection} protects images, not {fault.memory}")
    if not row.rotates and (fault.cells is None or fault.cells.planes != ALL_PLANES):
        raise ImpossibleRepair(f"{protection} is for cells of all eight planes, not for planes {fault.planes}")
    if row.rotates and not fault.persistent:
        raise ImpossibleRepair(f"{protection} needs to know the broken cells, and transient cells are not known")
    if repair and not row.detects:
        raise ImpossibleRepair(f"{protection} flags no words that {repair} could mend")
    if repair and (REPAIRS[repair].masked is None or REPAIRS[repair].sources):
        raise ImpossibleRepair(f"{repair} cannot mend whole bytes, of which no bit is known to be right")
    if protection == "parity" and not repair:
        raise ImpossibleRepair("parity corrects nothing: name a --repair of the bytes that it flags")
    return fault._replace(protection=protection, repair=repair)


def protected_size(fault, values):
    """Number of cells of a protected image memory that a fault can break. values: of an image."""
    row = PROTECTIONS[fault.protection]
    return values * (len(fault.cells.planes) if row.rotates else row.cells - row.safe)


def protected(fault, images, seed, numbers=None):
    """Images (uint8 N×C×H×W) as they are read from a protected memory under a fault, flagged words repaired.

    numbers: of the images in the data set, by default 0 … N−1; image i depends on (fault, seed, i) alone.
    """
    numbers = range(len(images)) if numbers is None else numbers
    parts = zip(images.split(CHUNK), (numbers[start : start + CHUNK] for start in range(0, len(images), CHUNK)))
    return torch.cat([_protected(fault, part, seed, its) for part, its in parts])


def _protected(fault, images, seed, numbers):
    row = PROTECTIONS[fault.protection]
    extra = [rotations(broken_map(fault, images.shape[1:], seed).numpy().ravel())] if row.rotates else []
    bits = np.ascontiguousarray(row.encode(images.contiguous().view(len(images), -1).numpy(), *extra))
    select = functools.partial(in_planes, fault.cells.planes) if row.rotates else None
    if row.safe:
        select = functools.partial(in_planes, fault.cells.planes[row.safe :])
    for held, number in zip(bits, numbers):
        flip_cells(fault, held, seed, int(number), select)
    values, flagged = row.decode(bits, *extra)
    read = torch.from_numpy(values).view(images.shape)
    if fault.repair is None:
        return read
    broken = torch.from_numpy(flagged.astype(np.uint8) * np.uint8(2 ** (MSB + 1) - 1)).view(images.shape)
    return REPAIRS[fault.repair].masked(read, broken)
