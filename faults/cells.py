"""Which cells of a memory are broken, and which of them read another value than they hold.

A memory is a row of one-bit cells with addresses from 0. Each cell has one uniform number u for a seed, and is broken
if u < level. So what is broken at one level is broken at every larger one.
"""

import numpy as np
import torch

from common import UserError
from faults.fault import MEMORIES

RARE = 1 / 64  # cells with a u below this are drawn by count and place
FEW = 1 << 13  # a memory with more rare cells is drawn in parts: the cells with u < RARE/8^k first, then those below
# RARE/8^(k-1), up to RARE; k is such that the first part has at most FEW cells


def broken_cells(level, count, key):
    """The addresses, int64 in rising order, of the cells among `count` whose u is below `level`, from 0 to 1.

    key: whole numbers that the draw depends on. Below RARE the number of cells is drawn first (binomial), then their
    places, then their u: the cost is that of at most FEW cells, or of eight times the broken ones. From RARE on, a byte
    for every other cell says in which 256th of the rest its u lies. Only the cells in the same 256th as `level` need a
    finer number.
    """
    if level == 1:
        return np.arange(count)
    generator = np.random.default_rng(key)
    rare, below = np.arange(0), 0.0
    for edge in _edges(count):
        more = _others(generator, count, rare, (edge - below) / (1 - below))
        if level <= edge:
            more = more[below + generator.random(len(more)) * (edge - below) < level]
        rare, below = np.sort(np.concatenate([rare, more])), edge
        if level <= edge:
            return rare
    whole, part = divmod(256 * (level - RARE) / (1 - RARE), 1)
    steps = generator.bit_generator.random_raw(-(-count // 8)).view(np.uint8)[:count]
    broken = steps < whole
    same = np.flatnonzero(steps == whole)
    broken[same] = generator.random(len(same)) < part
    broken[rare] = True
    return np.flatnonzero(broken)


def _edges(count):
    """Where the parts of u below RARE end, that are drawn one after another: rising, up to RARE."""
    edges = [RARE]
    while count * edges[0] > FEW:
        edges.insert(0, edges[0] / 8)
    return edges


def _others(generator, count, cells, probability):
    """Each of `count` cells, but those of `cells` (in rising order), with a probability: addresses in any order."""
    rest = count - len(cells)
    ranks = generator.choice(rest, generator.binomial(rest, probability), replace=False, shuffle=False)
    if not len(cells):
        return ranks
    ranks.sort()  # many times faster to look up
    return ranks + np.searchsorted(cells - np.arange(len(cells)), ranks, "right")


def broken_in(fault, level, count, key):
    """broken_cells of a Fault: its cells one by one, or whole rows or columns of its array.

    The memory is written into the array row by row. UserError if it does not fit.
    """
    lines, array = fault.cells.lines, fault.cells.array
    if lines is None:
        return broken_cells(level, count, key)
    rows, columns = array
    if rows * columns < count:
        raise UserError(
            f"an array of {rows}x{columns} cells does not hold the {count} bits of the {fault.memory} memory: "
            f"one of {-(-count // columns)}x{columns} does"
        )
    number, step = (rows, columns) if lines == "row" else (columns, 1)
    along = np.arange(columns) if lines == "row" else np.arange(rows) * columns
    cells = np.sort((broken_cells(level, number, key)[:, None] * step + along).ravel())
    return cells[cells < count]


def check_array(fault, count):
    """UserError if the array of a fault, if it has one, does not hold a memory of `count` cells."""
    broken_in(fault, 0.0, count, key=0)


def misreads(fault, count, seed, image=None, select=None):
    """(up, down): addresses, int64, of the cells that read 1 where they hold 0, and of those that read 0 for 1.

    count: cells of the memory. image: number of the image whose data the memory holds; None for a memory that is read
    once. select: see draw. The two are one object where the cells are inverted.
    """
    if fault.kind == "asymmetric":
        return tuple(draw(fault, fault.level * p, count, seed, image, select) for p in (fault.p01, fault.p10))
    cells = draw(fault, fault.level, count, seed, image, select)
    if fault.kind == "inverted":
        return cells, cells
    if fault.kind == "random":
        reads = random_bits(count, _key(fault, "reads", seed, image), cells)
        return cells[reads == 1], cells[reads == 0]
    none = cells[:0]
    return (cells, none) if fault.kind == "stuck_at_1" else (none, cells)


def misread_masks(fault, count, seed, select=None, read_anew=False):
    """misreads of persistent cells as two masks, (up, down): bool, one value for each of `count` cells.

    read_anew: cells that read at random are in both, because what they read is drawn later, for each image.
    """
    if read_anew and fault.kind == "random":
        fault = fault._replace(kind="inverted")
    masks = torch.zeros(2, count, dtype=torch.bool)
    for mask, cells in zip(masks, misreads(fault, count, seed, select=select)):
        mask[torch.from_numpy(cells)] = True
    return masks.unbind()


def drawn_masks(fault, level, shape, generator):
    """misreads of transient cells in training, drawn on the generator's device: (up, down), bool tensors of `shape`.

    Each cell is broken with the probability `level`, in steps of 2^-24. The two are one object where the cells are
    inverted. UserError for whole rows or columns.
    """
    if fault.cells and fault.cells.lines:
        raise UserError("training draws transient cells one by one: rows and columns must be persistent")
    u = torch.rand(shape, generator=generator, device=generator.device)
    if fault.kind == "asymmetric":
        return u < level * fault.p01, u < level * fault.p10
    broken = u < level
    if fault.kind == "inverted":
        return broken, broken
    if fault.kind == "random":
        up = u < level / 2
        return up, broken & ~up
    none = torch.zeros_like(broken)
    return (broken, none) if fault.kind == "stuck_at_1" else (none, broken)


def step_seed(*key):
    """A seed for a torch.Generator, from whole numbers such as (seed, step, number of the stream)."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def wrong_cells(up, down, value_of):
    """The addresses, in rising order, that read another value than they hold.

    value_of: function addresses -> values, 0 or 1.
    """
    if up is down:
        return up
    wrong = np.concatenate([up[value_of(up) == 0], down[value_of(down) == 1]])
    return np.sort(wrong, kind="stable")  # fast where two sorted parts are merged


def draw(fault, level, count, seed, image=None, select=None):
    """The addresses, int64, of the broken cells, for an image or for all.

    select: function (broken, level) -> addresses, which keeps those that can break; `broken` is a function level ->
    addresses. None: all can.
    """
    key = _key(fault, "cells", seed, None if fault.cells.persistent else image)

    def broken(level):
        return broken_in(fault, level, count, key)

    return select(broken, level) if select else broken(level)


def random_bits(count, key, addresses):
    """What some of `count` cells read that read at random: uint8 0 or 1, a value for each cell and key."""
    packed = np.frombuffer(np.random.default_rng(key).bytes((count + 7) // 8), np.uint8)
    return packed[addresses >> 3] >> (addresses & 7).astype(np.uint8) & 1


def _key(fault, what, seed, image):
    """The key of a draw: none of its streams is one of faults/images.py, whose keys end in the image or in 1."""
    stream = 2 + 2 * MEMORIES.index(fault.memory) + ("cells", "reads").index(what)
    return [seed, 0 if image is None else image + 1, stream]
