"""sweep.csv, one row for each run of a measurement: a dict of COLUMNS, None where a column does not apply."""

import csv
import io
import math

from common import UserError, write_text
from faults import (
    IMAGE_KINDS,
    KINDS,
    MEMORIES,
    MSB,
    READINGS,
    RECALIBRATED,
    Cells,
    Fault,
    can_recalibrate,
    fault_of_cells,
    planes_of,
    recalibrated,
)
from repairs import PROTECTIONS, REPAIRS, with_protection, with_repair

SAME = ("dataset", "images", "sess", "seed", "checkpoint", "n")  # columns that are the same in all rows of a file
# columns that describe the fault, and the fields of Fault that they hold
FAULT = {"fault": "kind", "bit": "bit", "repair": "repair", "source": "source", "level": "level", "run": "run"}
FAULT |= {"p01": "p01", "p10": "p10", "known": "known", "protection": "protection"}
CELLS = ("memory", "layers", "planes", "cells", "lines", "array")  # columns that say which cells can break
CHANGES = ("intact", "broken", "mended", "changed")
COLUMNS = (
    *SAME,
    *FAULT,
    *CELLS,
    "added",  # memory that the protection adds for each stored bit
    "run_seed",
    "made_by",  # digest of the code of fault and repair, and of the images that the repair learned from
    "size",  # cells that can break
    "flipped",  # share of weight signs flipped, 0 to 1
    "recovered",  # share of the broken bits that have their original value, 0 to 1
    "psnr",  # of the images against the clean ones, dB
    *CHANGES,  # images that the intact net classifies rightly, and what the fault changes (comparisons.changes)
    "mcnemar",  # p of McNemar's exact test of a repair against no repair
    "correct",
    "correct5",
    "loss",
    "top1",
    "top5",
)
NUMBERS = {
    **dict.fromkeys(
        ("seed", "bit", "source", "run", "run_seed", "known", "size", *CHANGES, "n", "correct", "correct5"), int
    ),
    **dict.fromkeys(
        ("level", "p01", "p10", "added", "flipped", "recovered", "psnr", "mcnemar", "loss", "top1", "top5"), float
    ),
}  # types of the columns that are numbers


def row_of(fault, score, **rest):
    """The row of a measurement, from its Fault, its Score and columns given by name; the others are None."""
    rounded = {"loss": round(score.loss, 6), "top1": round(score.top1, 4), "top5": round(score.top5, 4)}
    return {
        **dict.fromkeys(COLUMNS),
        **rest,
        **columns_of(fault),
        "correct": score.correct,
        "correct5": score.correct5,
        **rounded,
    }


def columns_of(fault):
    """The columns that describe a fault: {name: value}."""
    cells = fault.cells or Cells(fault.memory)
    return {
        **{column: getattr(fault, field) for column, field in FAULT.items()},
        "known": None if fault.known is None else int(fault.known),
        "memory": fault.memory,
        "layers": "+".join(cells.layers) or None,
        "planes": fault.planes,
        "cells": {True: "persistent", False: "transient", None: None}[fault.persistent],
        "lines": cells.lines,
        "added": PROTECTIONS[fault.protection].added if fault.protection else None,
        "array": None if cells.array is None else f"{cells.array[0]}x{cells.array[1]}",
    }


def name_of(fault):
    """A fault as part of a file's name."""
    columns = columns_of(fault)
    return "_".join(f"{name}-{columns[name]}" for name in (*FAULT, *CELLS) if columns[name] is not None)


def fault_in(row):
    """The Fault that a row is about."""
    fault = Fault(**{field: row[column] for column, field in FAULT.items()})
    if fault.bit is not None or fault.kind not in READINGS:
        return fault
    array = row["array"] and tuple(int(size) for size in row["array"].split("x"))
    cells = Cells(
        row["memory"],
        tuple(row["layers"].split("+")) if row["layers"] else (),
        planes_of(row["planes"]) if row["planes"] else (),
        {"persistent": True, "transient": False}[row["cells"]],
        row["lines"],
        array,
    )
    return fault._replace(cells=cells, known=None if fault.known is None else bool(fault.known))


def order(fault):
    """Sort key of the rows of a file: faults in the short form first, then memory by memory."""
    bit, source, level = (-1 if value is None else value for value in (fault.bit, fault.source, fault.level))
    return _order_of_cells(fault), KINDS.index(fault.kind), -bit, fault.repair or "", -source, level, fault.run


def _order_of_cells(fault):
    if fault.cells is None:
        return ()
    memory, layers, planes, persistent, lines, array = fault.cells
    known = -1 if fault.known is None else int(fault.known)
    place = MEMORIES.index(memory), layers, planes, persistent, lines or "", array or ()
    return *place, fault.p01 or 0, fault.p10 or 0, known, fault.protection or ""


def to_line(row):
    with io.StringIO() as line:
        csv.writer(line, lineterminator="\n").writerow("" if row[name] is None else row[name] for name in COLUMNS)
        return line.getvalue()


HEADER = to_line(dict(zip(COLUMNS, COLUMNS)))
LATER = (
    "made_by",
    "p01",
    "p10",
    "known",
    "protection",
    *CELLS,
    "added",
    "size",
    *CHANGES,
    "mcnemar",
)  # columns that older files do not have


def lines_of(path):
    """The lines of a file in UTF-8 or, with its mark at the beginning, UTF-16."""
    data = path.read_bytes()
    text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig", "replace")
    return text.splitlines()


def read_rows(path):
    """(rows of a sweep.csv, [(number, text)] of its damaged lines, such as one cut short by a crash).

    Also reads a file that a spreadsheet has saved: other quotes and spellings of numbers, `;` with decimal commas.
    OtherVersion if the columns are not those of a sweep.csv.
    """
    header, *lines = lines_of(path) or [""]
    if HEADER.startswith(header):  # a crash right at its beginning
        header = HEADER
    delimiter = max(",;\t", key=header.count)
    columns = next(csv.reader([header], delimiter=delimiter), [])
    if set(columns) | set(LATER) != set(COLUMNS) or len(set(columns)) != len(columns):
        raise OtherVersion(f"{path} is no sweep.csv of this version")
    rows, damaged = [], []
    for number, line in enumerate(lines, 2):
        try:
            values = dict(zip(columns, next(csv.reader([line], delimiter=delimiter)), strict=True))
            rows.append(_checked({name: _number(name, values.get(name, "")) for name in COLUMNS}))
        except (ValueError, TypeError, KeyError, OverflowError, csv.Error, StopIteration):
            if line.strip():
                damaged.append((number, line))
    return rows, damaged


def _number(name, text):
    """What a cell of the file says: None, a string, or for the columns in NUMBERS a number."""
    if text == "" or name not in NUMBERS:
        return text or None
    if NUMBERS[name] is int and text.isdigit():  # a seed can have more digits than a float
        return int(text)
    value = float(text.replace(",", ".") if "." not in text else text)
    if not math.isfinite(value) or (NUMBERS[name] is int and value != int(value)):
        raise ValueError
    return NUMBERS[name](value)


def _checked(row):
    """The row, with its accuracies as its counts say.

    ValueError, TypeError or KeyError if its values do not fit each other.
    """
    n, correct, correct5 = row["n"], row["correct"], row["correct5"]
    if not 0 <= correct <= correct5 <= n or n < 1:
        raise ValueError
    top1, top5 = round(100 * correct / n, 4), round(100 * correct5 / n, 4)
    shares = [row[name] for name in ("flipped", "recovered", "mcnemar") if row[name] is not None]
    changes = [row[name] for name in CHANGES if row[name] is not None]
    if changes and not _add_up(*changes, correct, n):
        raise ValueError
    sound = (
        is_sound(fault_in(row))
        and abs(row["top1"] - top1) < 0.06  # a spreadsheet may have rounded it
        and abs(row["top5"] - top5) < 0.06
        and row["loss"] >= 0
        and row["run_seed"] == row["seed"] + row["run"]
        and all(0 <= share <= 1 for share in shares)
        and all(row[name] is not None for name in SAME)
    )
    if not sound:
        raise ValueError
    described = columns_of(fault_in(row))
    if any(row[name] not in (None, described[name]) for name in CELLS):
        raise ValueError
    return row | described | {"top1": top1, "top5": top5}


def _add_up(intact, broken, mended, changed, correct, n):
    """Do these numbers of images fit each other?"""
    return intact - broken + mended == correct and 0 <= broken <= intact <= n and broken + mended <= changed <= n


def is_sound(fault):
    """Is there such a fault?"""
    if not 0 <= fault.run < 10**9:
        return False
    if fault.cells:
        return _of_cells_again(fault) == fault
    if (fault.p01, fault.p10, fault.known, fault.protection) != (None, None, None, None):
        return False
    if fault.kind not in IMAGE_KINDS:
        level = fault.level is None if fault.kind == "none" else fault.level >= 0
        mended = fault.repair is None or (fault.repair == RECALIBRATED and can_recalibrate(fault))
        return fault.kind in KINDS and level and mended and fault.bit is fault.source is None
    if not (0 <= fault.bit <= MSB and 0 <= fault.level <= 1):
        return False
    if fault.repair is None:
        return fault.source is None
    row = REPAIRS[fault.repair]
    source = fault.source != fault.bit and 0 <= fault.source <= MSB if row.sources else fault.source is None
    return source and fault.bit not in row.cannot and (fault.kind, fault.level, fault.run) == ("random", 1, 0)


def _of_cells_again(fault):
    """A fault of cells made anew of what it says. UserError if there is no such fault."""
    made = fault_of_cells(fault.cells, fault.kind, fault.level, fault.run, fault.p01, fault.p10)
    if fault.protection:
        return with_protection(made, fault.protection, fault.repair)
    if fault.repair == RECALIBRATED:
        return recalibrated(made)
    return with_repair(made, fault.repair, fault.source, fault.known) if fault.repair else made


def to_text(rows):
    """A whole sweep.csv, each measurement once, in order."""
    each = {fault_in(row): row for row in reversed(rows)}
    return HEADER + "".join(to_line(each[fault]) for fault in sorted(each, key=order))


def write_rows(path, rows):
    """Write a sweep.csv whole, unless it is there as it would be."""
    text = to_text(rows)
    if not path.is_file() or path.read_bytes() != text.encode():
        write_text(path, text)


class OtherVersion(UserError):
    """A sweep.csv with other columns."""
