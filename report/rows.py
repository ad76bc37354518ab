"""sweep.csv, one row for each run of a measurement: a dict of COLUMNS, None where a column does not apply."""

import csv
import io

from common import UserError, write_text
from faults import KINDS, Fault

SAME = ("dataset", "images", "sess", "seed", "checkpoint", "n")  # columns that are the same in all rows of a file
# columns that describe the fault, and the fields of Fault that they hold
FAULT = {"fault": "kind", "bit": "bit", "repair": "repair", "source": "source", "level": "level", "run": "run"}
COLUMNS = (
    *SAME,
    *FAULT,
    "run_seed",
    "flipped",  # share of weight signs flipped, 0 to 1
    "recovered",  # share of the broken bits that are as they were, 0 to 1
    "psnr",  # of the images against the clean ones, dB
    "correct",
    "correct5",
    "loss",
    "top1",
    "top5",
)
NUMBERS = {
    **dict.fromkeys(("seed", "bit", "source", "run", "run_seed", "n", "correct", "correct5"), int),
    **dict.fromkeys(("level", "flipped", "recovered", "psnr", "loss", "top1", "top5"), float),
}  # of the columns that are numbers


def row_of(fault, score, **rest):
    """The row of a measurement: its Fault, its Score and the columns given by name; others stay empty."""
    rounded = {"loss": round(score.loss, 6), "top1": round(score.top1, 4), "top5": round(score.top5, 4)}
    return {
        **dict.fromkeys(COLUMNS),
        **rest,
        **{column: getattr(fault, field) for column, field in FAULT.items()},
        "correct": score.correct,
        "correct5": score.correct5,
        **rounded,
    }


def fault_in(row):
    """The Fault that a row is about."""
    return Fault(**{field: row[column] for column, field in FAULT.items()})


def order(fault):
    """Sort key of the rows of a file."""
    bit, source, level = (-1 if value is None else value for value in (fault.bit, fault.source, fault.level))
    return KINDS.index(fault.kind), -bit, fault.repair or "", -source, level, fault.run


def to_line(row):
    with io.StringIO() as line:
        csv.writer(line, lineterminator="\n").writerow("" if row[name] is None else row[name] for name in COLUMNS)
        return line.getvalue()


HEADER = to_line(dict(zip(COLUMNS, COLUMNS)))


def read_rows(path):
    """The rows of a sweep.csv, and the numbers of the lines that are none (cut short by a crash or a full disk).

    UserError if the file is no sweep.csv.
    """
    text = path.read_text("utf-8", "replace")
    if not text.startswith(HEADER) and not HEADER.startswith(text):
        raise OtherVersion(f"{path} is no sweep.csv of this version")
    rows, damaged = [], []
    for number, line in enumerate(text.splitlines(keepends=True)[1:], 2):
        try:
            values = zip(COLUMNS, next(csv.reader([line])), strict=True)
            row = {name: NUMBERS.get(name, str)(value) if value else None for name, value in values}
            if (
                row["fault"] not in KINDS
                or None in (row["run"], row["n"], row["correct"], row["top5"])
                or to_line(row) != line
            ):
                raise ValueError
            rows.append(row)
        except (ValueError, csv.Error, StopIteration):
            damaged.append(number)
    return rows, damaged


def write_rows(path, rows):
    """A whole sweep.csv, each measurement once, in order."""
    each = {fault_in(row): row for row in reversed(rows)}
    write_text(path, HEADER + "".join(to_line(each[fault]) for fault in sorted(each, key=order)))


class OtherVersion(UserError):
    """A sweep.csv with other columns."""
