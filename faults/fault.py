"""The description of a memory fault, the same for command line, data set class, training and sweep.

A fault is a memory, the cells of it that are broken, and what a broken cell reads. Two faults have a short form without
Cells, because they are older: `bit` names one plane of the image memory, and the kinds of WEIGHT_KINDS break weights.
"""

from typing import NamedTuple

from common import UserError

MSB = 7
MEMORIES = ("image", "weights", "activations", "thresholds")
IMAGE_KINDS = ("random", "stuck_at_0", "stuck_at_1")  # what the broken bits of one plane of the image memory read
READINGS = (*IMAGE_KINDS, "inverted", "asymmetric")  # what a broken cell of any memory reads
NOISE_KINDS = ("noise", "noise_relative")  # on the latent weights
WEIGHT_KINDS = (*NOISE_KINDS, "flips")  # flips: inverted weights of all layers
KINDS = ("none", *IMAGE_KINDS, *WEIGHT_KINDS, "inverted", "asymmetric")
LINES = ("row", "column")
RECALIBRATED = "recalibrated"  # repair of weights and feature maps: the thresholds are set anew, see recalibrated


class Cells(NamedTuple):
    """Cells of a memory. Each of them, or each line of them, is broken with the probability `level` of the Fault.

    The addresses of the cells are in docs/memory-faults.md.
    """

    memory: str  # one of MEMORIES
    layers: tuple = ()  # names of the layers whose cells can break, such as ("conv1", "fc2"); (): all layers
    planes: tuple = ()  # image: (bit, share) of the planes that can break, with probability level·share; from the MSB
    persistent: bool = True  # the same cells for all images; False: drawn anew for each image
    lines: str | None = None  # row or column: whole lines of the array break together; None: each cell for itself
    array: tuple | None = None  # (rows, columns) of the array, in cells; the memory is written into it row by row


class Fault(NamedTuple):
    """What is broken, and how it is repaired. Fields that do not apply are None.

    Make faults of one plane with repairs.fault_of and others with fault_of_cells, which check them.
    """

    kind: str = "none"  # one of KINDS: what a broken cell reads, or noise
    bit: int | None = None  # broken in every pixel value: 0 (LSB) to 7 (MSB)
    repair: str | None = None  # a name in repairs.REPAIRS, or RECALIBRATED; None: unrepaired
    source: int | None = None  # the bit that repaired_n or repaired_s copies
    level: float | None = None  # probability that a cell is broken; noise: sigma_val
    run: int = 0  # number of the run, for random faults: run r draws with seed + r
    cells: Cells | None = None  # None: the plane `bit` of the image memory, anew for each image; or all weights
    p01: float | None = None  # asymmetric: a broken cell reads 1 with this probability where it holds 0
    p10: float | None = None  # asymmetric: it reads 0 with this probability where it holds 1
    known: bool | None = None  # repairs of faults with Cells: a memory test has told which cells are broken
    protection: str | None = None  # of the image memory: a name in repairs.PROTECTIONS

    @property
    def memory(self):
        """One of MEMORIES; None for no fault."""
        if self.cells:
            return self.cells.memory
        return "weights" if self.kind in WEIGHT_KINDS else "image" if self.kind in IMAGE_KINDS else None

    @property
    def persistent(self):
        """Are the same cells broken for all images? None for no fault."""
        if self.cells:
            return self.cells.persistent
        return {"weights": True, "image": False}.get(self.memory)

    @property
    def planes(self):
        """The planes of the image memory that can break, as text such as 7+6@0.1; None for other memories."""
        if self.cells:
            return planes_text(self.cells.planes) or None
        return None if self.bit is None else str(self.bit)

    def __str__(self):
        if self.kind == "none":
            return "baseline, no fault"
        if self.cells:
            return _in_words(self)
        if self.kind in WEIGHT_KINDS:
            return f"{self.kind} {self.level:g}{'; recalibrated' if self.repair else ''}"
        if self.repair is None:
            return f"faulty, bit {self.bit} {self.kind}"
        if self.source is None:
            return f"{self.repair}, bit {self.bit} repaired"
        copied = "the MSB" if self.repair == "repaired_s" else f"bit {self.source}"
        return f"{self.repair}, bit {self.bit} copied from {copied}"


NO_FAULT = Fault()


def unrepaired(fault):
    """The same fault without repair and protection."""
    return fault._replace(repair=None, source=None, known=None, protection=None)


ALL_PLANES = tuple((bit, 1.0) for bit in range(MSB, -1, -1))


def fault_of_cells(cells, kind, level, run=0, p01=None, p10=None):
    """The Fault of cells of a memory, checked. UserError in one line for what is wrong.

    The image memory without planes means all eight. What the short form says comes back in the short form.
    """
    if cells.memory not in MEMORIES:
        raise UserError(f"memory {cells.memory!r} is unknown: one of {', '.join(MEMORIES)}")
    if kind not in READINGS:
        raise UserError(f"reading {kind!r} is unknown: one of {', '.join(READINGS)}")
    if not 0 <= level <= 1:
        raise UserError(f"rate {level:g} is no probability: from 0 to 1")
    asymmetry = (p01, p10) if kind == "asymmetric" else (None, None)
    if kind == "asymmetric" and not all(p is not None and 0 <= p <= 1 for p in asymmetry):
        raise UserError("the asymmetric reading needs two probabilities from 0 to 1, p01 and p10")
    if kind != "asymmetric" and (p01, p10) != (None, None):
        raise UserError(f"p01 and p10 are for the asymmetric reading, not for {kind}")
    if (cells.lines is None) != (cells.array is None) or cells.lines not in (None, *LINES):
        raise UserError("rows and columns break in an array: name its size, such as --array 512x64, and row or column")
    if cells.memory == "image":
        if cells.layers:
            raise UserError("the image memory has no layers: name planes")
        cells = cells._replace(planes=_checked(cells.planes) or ALL_PLANES)
    elif cells.planes:
        raise UserError(f"planes are of the image memory: the {cells.memory} memory has layers")
    fault = Fault(kind, level=float(level), run=run, cells=cells, p01=asymmetry[0], p10=asymmetry[1])
    return _short(fault)


def can_recalibrate(fault):
    """Can recalibrated thresholds make up for a fault? Those of weights and feature maps, the same for all images."""
    return fault.memory in ("weights", "activations") and fault.persistent


def recalibrated(fault):
    """The same fault with thresholds set anew on the faulty hardware (models/folded.py).

    UserError if that cannot make up for it, see can_recalibrate.
    """
    if not can_recalibrate(fault):
        kept = "persistent" if fault.persistent else "transient"
        other = f"{kept} ones of the {fault.memory} memory" if fault.memory else "no fault"
        raise UserError(f"recalibrated thresholds are for persistent faults of weights or activations, not for {other}")
    return fault._replace(repair=RECALIBRATED)


def _short(fault):
    """The same fault without Cells, if it has this short form: one plane drawn for each image, or inverted weights."""
    cells = fault.cells
    if cells.lines is None and not cells.persistent and fault.kind in IMAGE_KINDS and len(cells.planes) == 1:
        ((bit, share),) = cells.planes
        return Fault(fault.kind, bit, level=fault.level * share, run=fault.run)
    whole = cells.persistent and not cells.layers and cells.lines is None
    if cells.memory == "weights" and fault.kind == "inverted" and whole:
        return Fault("flips", level=fault.level, run=fault.run)
    return fault


def _in_words(fault):
    """What a fault with Cells is, in one line."""
    cells = fault.cells
    where = f"{cells.memory} of {'+'.join(cells.layers)}" if cells.layers else cells.memory
    if cells.planes and cells.planes != ALL_PLANES:
        where += f", planes {fault.planes}"
    what = f"{cells.lines}s of {cells.array[0]}x{cells.array[1]} cells" if cells.lines else "cells"
    read = f"{fault.kind} p01 {fault.p01:g} p10 {fault.p10:g}" if fault.kind == "asymmetric" else fault.kind
    kept = "persistent" if cells.persistent else "transient"
    text = f"{where}: {fault.level:g} of the {what} {read}, {kept}"
    if fault.protection:
        return f"{text}; {fault.protection}{f', flagged words by {fault.repair}' if fault.repair else ''}"
    if fault.repair is None:
        return text
    if fault.repair == RECALIBRATED:
        return f"{text}; recalibrated"
    copied = "" if fault.source is None else f" from bit {fault.source}"
    return f"{text}; {fault.repair}{copied}, {'known' if fault.known else 'unknown'} cells"


def planes_text(planes):
    """Planes as text: 7+6, or with shares 7+6@0.1."""
    return "+".join(str(bit) if share == 1 else f"{bit}@{share:g}" for bit, share in planes)


def planes_of(text):
    """The planes that a text such as 7+6 or 7+6@0.1 names: ((bit, share), …) from the MSB. UserError otherwise."""
    try:
        pairs = [part.partition("@") for part in text.split("+")]
        planes = [(int(bit), float(share) if at else 1.0) for bit, at, share in pairs]
    except ValueError:
        raise UserError(f"planes {text!r} are not readable: such as 7, 7+6, or 7+6@0.1") from None
    return _checked(planes)


def _checked(planes):
    """Planes, pairs (bit, share), from the MSB. UserError for a bit that is none or comes twice, or a wrong share."""
    if len(dict(planes)) < len(planes) or not all(0 <= bit <= MSB and 0 < share <= 1 for bit, share in planes):
        raise UserError(f"planes {planes_text(planes)!r}: each bit once, 0 to {MSB}, with shares above 0 and at most 1")
    return tuple(sorted(planes, reverse=True))
