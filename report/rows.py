"""sweep.csv, one row for each run of a measurement: a dict of COLUMNS, None where a column does not apply."""

import csv
import io
import math

from common import UserError, write_text
from faults import IMAGE_KINDS, KINDS, MSB, Fault
from repairs import REPAIRS

SAME = ("dataset", "images", "sess", "seed", "checkpoint", "n")  # columns that are the same in all rows of a file
# columns that describe the fault, and the fields of Fault that they hold
FAULT = {"fault": "kind", "bit": "bit", "repair": "repair", "source": "source", "level": "level", "run": "run"}
COLUMNS = (
    *SAME,
    *FAULT,
    "run_seed",
    "made_by",  # digest of the code of fault and repair, and of the images that the repair learned from
    "flipped",  # share of weight signs flipped, 0 to 1
    "recovered",  # share of the broken bits that have their original value, 0 to 1
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
}  # types of the columns that are numbers


def row_of(fault, score, **rest):
    """The row of a measurement, from its Fault, its Score and columns given by name; the others are None."""
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
LATER = ("made_by",)  # columns that older files do not have


def read_rows(path):
    """(rows of a sweep.csv, [(number, text)] of its damaged lines, such as one cut short by a crash).

    Also reads a file that a spreadsheet has saved: other quotes and spellings of numbers, `;` with decimal commas.
    OtherVersion if the columns are not those of a sweep.csv.
    """
    text = path.read_text("utf-8-sig", "replace")
    header, *lines = text.splitlines(keepends=True) or [""]
    if HEADER.startswith(header):  # cut short by a crash right at the start of writing
        header = HEADER
    delimiter = ";" if header.count(";") > header.count(",") else ","
    columns = next(csv.reader([header], delimiter=delimiter), [])
    if set(columns) | set(LATER) != set(COLUMNS) or len(set(columns)) != len(columns):
        raise OtherVersion(f"{path} is no sweep.csv of this version")
    rows, damaged = [], []
    for number, line in enumerate(lines, 2):
        try:
            if not line.endswith("\n"):
                raise ValueError("cut short")
            values = dict(zip(columns, next(csv.reader([line], delimiter=delimiter)), strict=True))
            rows.append(_checked({name: _number(name, values.get(name, "")) for name in COLUMNS}))
        except (ValueError, TypeError, KeyError, csv.Error, StopIteration):
            damaged.append((number, line.rstrip("\r\n")))
    return rows, damaged


def _number(name, text):
    """The value of a cell of the file: None if empty; a number for the columns in NUMBERS; else a string."""
    if text == "" or name not in NUMBERS:
        return text or None
    value = float(text.replace(",", ".") if "." not in text else text)
    if not math.isfinite(value) or (NUMBERS[name] is int and value != int(value)):
        raise ValueError
    return NUMBERS[name](text) if NUMBERS[name] is int and text.lstrip("-").isdigit() else NUMBERS[name](value)


def _checked(row):
    """The row, checked. ValueError, TypeError or KeyError if its values contradict each other."""
    n, correct, correct5 = row["n"], row["correct"], row["correct5"]
    sound = (
        row["fault"] in KINDS
        and row["run"] >= 0
        and (row["bit"] is None) == (row["fault"] not in IMAGE_KINDS)
        and (row["bit"] is None or 0 <= row["bit"] <= MSB)
        and (row["source"] is None or 0 <= row["source"] <= MSB)
        and (row["repair"] is None or row["repair"] in REPAIRS)
        and (row["level"] is None) == (row["fault"] == "none")
        and 0 <= correct <= correct5 <= n
        and abs(row["top1"] - 100 * correct / n) < 1e-3
        and abs(row["top5"] - 100 * correct5 / n) < 1e-3
        and all(row[name] is not None for name in (*SAME, "run_seed", "loss"))
    )
    if not sound:
        raise ValueError
    return row


def write_rows(path, rows):
    """Write a whole sweep.csv, each measurement once, sorted."""
    each = {fault_in(row): row for row in reversed(rows)}
    write_text(path, HEADER + "".join(to_line(each[fault]) for fault in sorted(each, key=order)))


class OtherVersion(UserError):
    """A sweep.csv with other columns."""
