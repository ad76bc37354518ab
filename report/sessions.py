"""All sessions of a results folder: what their sweep.csv files say, and where each figure comes from."""

import csv
from itertools import pairwise
from typing import NamedTuple

from common import UserError, first_line
from datasets import DATASETS
from faults import ALL_PLANES, RECALIBRATED, WEIGHT_KINDS, Fault
from report.rows import SAME, fault_in, lines_of, read_rows
from report.summaries import Summary, summarize

PUT_AWAY = ".old"  # in the names of folders that a sweep has moved away


class Cell(NamedTuple):
    """A measurement: what was broken, the figures of its runs, and where they come from."""

    fault: Fault
    figures: Summary
    row: str  # "results/…/sweep.csv, lines 4 to 13"
    command: str  # measures it


class Session(NamedTuple):
    name: str  # of its folder
    same: dict  # {column: value} of the columns that are the same in all rows
    cells: dict  # {Fault: Cell}, in the order of the faults

    @property
    def summaries(self):
        return {fault: cell.figures for fault, cell in self.cells.items()}


def read_sessions(results):
    """([Session], [one line on each sweep.csv that was left out]) of a results folder, a Path, sorted by name."""
    sessions, left_out = [], []
    for path in sorted(results.glob("*/sweep.csv")):
        if PUT_AWAY in path.parent.name or not path.is_file():
            continue
        shown = f"{results.name}/{path.parent.name}/sweep.csv"
        try:
            sessions.append(_session(path, shown))
        except (UserError, csv.Error) as error:
            left_out.append(f"{shown}: {first_line(error).removeprefix(f'{path} ')}")
        except OSError as error:
            left_out.append(f"{shown}: {error.strerror or 'cannot be read'}")
    return sessions, left_out


def _session(path, shown):
    """The Session of a sweep.csv. UserError if it is damaged or not of one session."""
    rows, damaged = read_rows(path)
    if damaged:
        raise UserError(f"line {damaged[0][0]} is cut short or damaged")
    if not rows:
        raise UserError("holds no rows")
    same = {column: rows[0][column] for column in SAME}
    for row in rows:
        for column, value in same.items():
            if row[column] != value:
                raise UserError(f"holds rows of two sessions: {column} {value} and {row[column]}")
    if same["dataset"] not in DATASETS:
        raise UserError(f"data set {same['dataset']!r} is none of {', '.join(DATASETS)}")
    return Session(path.parent.name, same, _cells(path, shown, rows, same))


def _cells(path, shown, rows, same):
    """{Fault of run 0: Cell} of the rows of a file."""
    numbers = [number for number, line in enumerate(lines_of(path), 1) if line.strip()][1:]  # without the header
    found = {}
    for number, row in zip(numbers, rows, strict=True):
        found.setdefault(fault_in(row)._replace(run=0), []).append((number, row))
    cells = {}
    for fault, figures in summarize(rows).items():
        own = [number for number, _ in found[fault]]
        cells[fault] = Cell(fault, figures, f"{shown}, {_lines(own)}", command(same, fault, figures.runs))
    return cells


def _lines(numbers):
    """ "line 4", "lines 4 to 13" or "lines 4, 9, 12" """
    if len(numbers) == 1:
        return f"line {numbers[0]}"
    if all(b == a + 1 for a, b in pairwise(numbers)):
        return f"lines {numbers[0]} to {numbers[-1]}"
    return f"lines {', '.join(map(str, numbers))}"


def command(same, fault=None, runs=1):
    """The command that measures a fault of a session; without a fault, all of them. same: its Session's."""
    sess, words = same["sess"], [".venv/bin/python sweep.py"]
    for suffix, option in (("_tested_with_wsconv", "--wsconv"), ("_tested_without_wsconv", "--no-wsconv")):
        if sess.endswith(suffix):
            sess = sess.removesuffix(suffix)
            words.append(option)
    words.append(f"--sess {sess} --seed {same['seed']}")
    if fault is not None:
        words += _options(fault)
    if runs > 1:
        words.append(f"--runs {runs}")
    return " ".join(words)


def _options(fault):
    """The options of sweep.py that name a fault."""
    if fault.kind == "none":
        return ["--bits"]
    if fault.kind in WEIGHT_KINDS:
        option = "flip" if fault.kind == "flips" else "sigma"
        return [f"--{option} {fault.level:g}", *(["--recalibrate"] if fault.repair else [])]
    if fault.cells:
        return _options_of_cells(fault)
    if fault.level < 1:
        return [f"--rate {fault.level:g} --rate_bits {fault.bit}"]
    return [f"--bits {fault.bit} --repair {fault.repair or ''}".rstrip()]


def _options_of_cells(fault):
    """The same for a fault of cells."""
    cells, kept = fault.cells, "persistent" if fault.persistent else "transient"
    words = [f"--memory {fault.memory} --ber {fault.level:g} --reading {fault.kind} --cells {kept}"]
    if fault.kind == "asymmetric":
        words.append(f"--p01 {fault.p01:g} --p10 {fault.p10:g}")
    if cells.planes not in ((), ALL_PLANES):
        words.append(f"--planes {fault.planes}")
    if cells.layers:
        words.append(f"--layers {' '.join(cells.layers)}")
    if cells.lines:
        words.append(f"--lines {cells.lines} --array {cells.array[0]}x{cells.array[1]}")
    if fault.protection:
        words.append(f"--protection {fault.protection}")
    if fault.repair:
        words.append("--recalibrate" if fault.repair == RECALIBRATED else f"--repair {fault.repair}")
    return words
