"""What sweep.py measures, on disk: sweep.csv, one row per run in long form, and what is worked out from it.

A measurement is known by its Cell; rows are dicts of COLUMNS. Statistics, tables.md and summary.json, and the
plots of plot.py, come from the rows alone.
"""

import csv
import io
import json
import math
import os
import statistics
from typing import NamedTuple

from cli import UserError
from loader import DATASETS

IMAGE_FAULTS = ("random", "stuck_at_0", "stuck_at_1")  # what a broken bit reads
WEIGHT_FAULTS = ("noise", "noise_relative", "flips")
FAULTS = ("none", *IMAGE_FAULTS, *WEIGHT_FAULTS)
LABELS = {
    "none": "no fault",
    "random": "faulty (random)",
    "stuck_at_0": "faulty (stuck-at-0)",
    "stuck_at_1": "faulty (stuck-at-1)",
    "noise": "absolute",
    "noise_relative": "relative to each layer's RMS weight",
    "flips": "accuracy (%)",
}
Z95 = statistics.NormalDist().inv_cdf(0.975)


class Cell(NamedTuple):
    """One evaluation. Fields that do not apply are None; CSV columns of the same names are empty then."""

    fault: str  # one of FAULTS
    bit: int | None = None  # the broken one
    repair: str | None = None  # a name in faults.REPAIRS; None: unrepaired
    source: int | None = None  # repaired_n, repaired_s: the bit that is copied
    level: float | None = None  # image faults: share of the plane's bits broken; noise: sigma_val; flips: probability
    run: int = 0

    @property
    def group(self):
        """What all runs of the same measurement share."""
        return self._replace(run=0)

    @property
    def order(self):
        bit, source, level = (-1 if value is None else value for value in (self.bit, self.source, self.level))
        return FAULTS.index(self.fault), -bit, self.repair or "", -source, level, self.run


BASELINE = Cell("none")
COLUMNS = ("dataset", "sess", "seed", "checkpoint", *Cell._fields, "run_seed", "flipped", "n", "correct", "correct5", "loss", "top1", "top5")
KINDS = {
    **dict.fromkeys(("seed", "bit", "source", "run", "run_seed", "n", "correct", "correct5"), int),
    **dict.fromkeys(("level", "flipped", "loss", "top1", "top5"), float),
}  # of the columns that are numbers


def row_of(cell, score, **rest):
    """The row of a measurement: its Cell, its Score (evaluate.py) and the columns given by name."""
    figures = {"n": score.n, "correct": score.correct, "correct5": score.correct5}
    rounded = {"loss": round(score.loss, 6), "top1": round(score.top1, 4), "top5": round(score.top5, 4)}
    return {**rest, **cell._asdict(), **figures, **rounded}


def cell_of(row):
    return Cell(*(row[name] for name in Cell._fields))


def to_line(row):
    with io.StringIO() as line:
        csv.writer(line, lineterminator="\n").writerow("" if row[name] is None else row[name] for name in COLUMNS)
        return line.getvalue()


HEADER = to_line(dict(zip(COLUMNS, COLUMNS)))


def read(path):
    """The rows of a sweep.csv, and the numbers of the lines that are none (cut short by a crash or a full disk).

    UserError if the file is no sweep.csv.
    """
    text = path.read_text()
    if not text.startswith(HEADER) and not HEADER.startswith(text):
        raise UserError(f"{path} is no sweep.csv of this version: move it away, the sweep then measures all anew")
    rows, damaged = [], []
    for number, line in enumerate(text.splitlines(keepends=True)[1:], 2):
        try:
            values = next(csv.reader([line])) if line.endswith("\n") else []
            row = {name: KINDS.get(name, str)(value) if value else None for name, value in zip(COLUMNS, values, strict=True)}
            if row["fault"] not in FAULTS or not row["n"] or row["correct"] is None or row["run"] is None:
                raise ValueError
            rows.append(row)
        except ValueError:
            damaged.append(number)
    return rows, damaged


def write_text(path, text):
    """`text` to `path`, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)


def write(path, rows):
    """A whole sweep.csv, each cell once, in the order of the cells."""
    each = {cell_of(row): row for row in reversed(rows)}
    write_text(path, HEADER + "".join(to_line(each[cell]) for cell in sorted(each, key=lambda cell: cell.order)))


class Summary(NamedTuple):
    """All runs of one measurement. Accuracies in %."""

    runs: int
    n: int  # images
    mean: float
    std: float  # of the runs' accuracies, sample standard deviation; 0 where there is one run
    low: float  # of the 95 % interval
    high: float
    top5: float
    flipped: float | None  # mean share of binary weights flipped, 0 to 1


def wilson(share, n):
    """The 95 % score interval of a share of n: (low, high).

    Runs on the same images do not narrow it: n is the number of images, not images times runs.
    Source: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference" (1927).
    """
    center = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    return center - half, center + half


def summarize(rows):
    """{Cell of run 0: Summary over its runs}, in the order of the cells."""
    groups = {}
    for row in sorted(rows, key=lambda row: cell_of(row).order):
        groups.setdefault(cell_of(row).group, []).append(row)
    return {cell: _summary(runs) for cell, runs in groups.items()}


def _summary(runs):
    n = runs[0]["n"]
    accuracies = [100 * row["correct"] / row["n"] for row in runs]
    mean = statistics.fmean(accuracies)
    low, high = wilson(mean / 100, n)
    flipped = None if runs[0]["flipped"] is None else statistics.fmean(row["flipped"] for row in runs)
    std = statistics.stdev(accuracies) if len(runs) > 1 else 0.0
    return Summary(len(runs), n, mean, std, 100 * low, 100 * high, statistics.fmean(row["top5"] for row in runs), flipped)


def label(cell):
    """How the row of a table, or the line of a plot, is called that shows this cell."""
    if cell.repair == "repaired_n":
        return f"repaired by bit {cell.source}"
    return {None: LABELS.get(cell.fault), "repaired_s": "repaired by MSB (7)"}.get(cell.repair, cell.repair)


class Table(NamedTuple):
    title: str
    headings: list
    rows: list  # (label, a field of Summary, [one Cell or None under each heading but the first])


def layout(cells):
    """{name: Table} of those tables that these cells fill, laid out as the original's."""
    image = [cell for cell in cells if cell.fault in IMAGE_FAULTS]
    planes = [cell for cell in image if cell.level == 1]
    shares = {cell.bit for cell in image if cell.level < 1}
    rates = [cell for cell in image if cell.bit in shares and cell.fault == "random" and not cell.repair]
    noise = [cell for cell in cells if cell.fault in ("noise", "noise_relative")]
    flips = [cell for cell in cells if cell.fault == "flips"]
    found = {
        "bits": _table("Broken bit planes", "accuracy (%)", planes, label, "bit"),
        "rates": _table("Share of a plane's bits broken, reading at random", "accuracy (%)", rates, _bit_label, "level"),
        "noise": _table("Weight noise", "σ_val", noise, label, "level"),
        "flips": _table("Weight bit errors", "probability", flips, label, "level"),
    }
    return {name: table for name, table in found.items() if table.rows}


def _bit_label(cell):
    return f"bit {cell.bit}"


def _table(title, corner, cells, row_label, field):
    lines = {}
    for cell in sorted(cells, key=lambda cell: (cell.repair or "", cell.order)):
        lines.setdefault(row_label(cell), {})[getattr(cell, field)] = cell
    values = sorted({getattr(cell, field) for cell in cells}, reverse=field == "bit")
    rows = []
    for name, found in lines.items():
        clean = BASELINE if field == "level" or not rows else None  # a repair changes clean images, too
        line = [clean, *map(found.get, values)]
        rows.append((name, "mean", line))
        if any(cell.fault in WEIGHT_FAULTS for cell in found.values()):
            rows.append(("signs flipped (%)", "flipped", line))
    headings = ["no fault", *(f"bit {bit}" for bit in values)] if field == "bit" else ["0", *(f"{level:g}" for level in values)]
    return Table(title, [corner, *headings], rows)


def _accuracy(summary):
    spread = f" ± {summary.std:.3f}" if summary.runs > 1 else ""
    return f"{summary.mean:.3f}{spread} [{summary.low:.2f}, {summary.high:.2f}]"


def _text(summaries, others, field, cell):
    """What stands in a table: the figure of `cell`, or by how much it is higher in `others`."""
    if cell not in summaries or (others is not None and cell not in others):
        return "–"
    if field == "flipped":
        mine, other = (100 * (found[cell].flipped or 0) for found in (summaries, others or summaries))
        return f"{mine:.3f}" if others is None else f"{other - mine:+.3f}"
    return _accuracy(summaries[cell]) if others is None else f"{others[cell].mean - summaries[cell].mean:+.3f}"


def _markdown(summaries, others=None):
    for table in layout(summaries).values():
        yield f"### {table.title}\n"
        yield "| " + " | ".join(table.headings) + " |"
        yield "|---" + "|--:" * (len(table.headings) - 1) + "|"
        for name, field, cells in table.rows:
            yield "| " + " | ".join([name, *(_text(summaries, others, field, cell) for cell in cells)]) + " |"
        yield ""


def markdown(name, rows, others):
    """tables.md of a session: its tables, then by how much the accuracies of other sessions differ.

    rows: its rows; others: {name: rows}.
    """
    summaries = summarize(rows)
    n = rows[0]["n"]
    lines = [
        f"# {name}\n",
        f"{DATASETS[rows[0]['dataset']].title}, {n} test images, checkpoint {rows[0]['checkpoint']}. Top-1 accuracy in %: mean",
        "± sample standard deviation over the runs (none where nothing is random and there is one run), and in brackets",
        "the 95 % Wilson score interval for that many images, which more runs on the same images do not narrow.\n",
        *_markdown(summaries),
    ]
    for other, other_rows in others.items():
        lines += [f"## {other} minus {name}\n", *_markdown(summaries, summarize(other_rows))]
    return "\n".join(lines)


def summary(rows):
    """summary.json of a session."""
    head = {key: rows[0][key] for key in ("dataset", "sess", "seed", "checkpoint", "n")}
    cells = []
    for cell, figures in summarize(rows).items():
        known = {key: value for key, value in cell._asdict().items() if value is not None and key != "run"}
        figures = {key: round(value, 6) for key, value in figures._asdict().items() if value is not None and key != "n"}
        cells.append({"label": label(cell), **known, **figures})
    return json.dumps({**head, "cells": cells}, indent=1, ensure_ascii=False) + "\n"
