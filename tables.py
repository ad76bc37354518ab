"""What sweep.py measures, on disk: sweep.csv, one row per run in long form, and what is worked out from it.

A measurement is known by its Cell; rows are dicts of COLUMNS. Statistics, tables.md and summary.json, and the
plots of plot.py, come from the rows alone.
"""

import csv
import io
import json
import math
import statistics
from collections import Counter
from typing import NamedTuple

from cli import UserError
from faults import MSB, REPAIRS
from files import write_whole
from loader import DATASETS

IMAGE_FAULTS = ("random", "stuck_at_0", "stuck_at_1")  # what a broken bit reads
NOISES = ("noise", "noise_relative")  # on the latent weights
WEIGHT_FAULTS = (*NOISES, "flips")
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
# 97.5 % quantiles of Student's t for 2, 3, … runs; for more than 20 the last one, a little too large
T95 = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
    2.201,
    2.179,
    2.160,
    2.145,
    2.131,
    2.120,
    2.110,
    2.101,
    2.093,
)


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
LEAST_LOSS = 3.0  # percentage points of accuracy that a fault must cost before shares of them are given
SAME = ("dataset", "images", "sess", "seed", "checkpoint", "n")  # columns that are the same in all rows of a file
COLUMNS = (
    *SAME,
    *Cell._fields,
    "run_seed",
    "flipped",
    "recovered",
    "psnr",
    "correct",
    "correct5",
    "loss",
    "top1",
    "top5",
)
KINDS = {
    **dict.fromkeys(("seed", "bit", "source", "run", "run_seed", "n", "correct", "correct5"), int),
    **dict.fromkeys(("level", "flipped", "recovered", "psnr", "loss", "top1", "top5"), float),
}  # of the columns that are numbers


def row_of(cell, score, **rest):
    """The row of a measurement: its Cell, its Score (evaluate.py) and the columns given by name; others stay empty."""
    rounded = {"loss": round(score.loss, 6), "top1": round(score.top1, 4), "top5": round(score.top5, 4)}
    return {
        **dict.fromkeys(COLUMNS),
        **rest,
        **cell._asdict(),
        "correct": score.correct,
        "correct5": score.correct5,
        **rounded,
    }


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
    text = path.read_text("utf-8", "replace")
    if not text.startswith(HEADER) and not HEADER.startswith(text):
        raise OtherVersion(f"{path} is no sweep.csv of this version")
    rows, damaged = [], []
    for number, line in enumerate(text.splitlines(keepends=True)[1:], 2):
        try:
            values = zip(COLUMNS, next(csv.reader([line])), strict=True)
            row = {name: KINDS.get(name, str)(value) if value else None for name, value in values}
            if (
                row["fault"] not in FAULTS
                or None in (row["run"], row["n"], row["correct"], row["top5"])
                or to_line(row) != line
            ):
                raise ValueError
            rows.append(row)
        except (ValueError, csv.Error, StopIteration):
            damaged.append(number)
    return rows, damaged


def write_text(path, text):
    write_whole(path, lambda file: file.write(text.encode()))


def write(path, rows):
    """A whole sweep.csv, each cell once, in the order of the cells."""
    each = {cell_of(row): row for row in reversed(rows)}
    write_text(path, HEADER + "".join(to_line(each[cell]) for cell in sorted(each, key=lambda cell: cell.order)))


OWN_ONLY = ("won", "recovered", "psnr")  # tables that are not made of the difference between two nets
EXTRAS = ("flipped", "recovered", "psnr")  # columns of a Summary that not every row has


class OtherVersion(UserError):
    """A sweep.csv with other columns."""


class Summary(NamedTuple):
    """All runs of one measurement. Accuracies in %."""

    runs: int
    n: int  # images
    mean: float
    std: float | None  # of the runs' accuracies, sample standard deviation; None where there is one run
    low: float  # of the 95 % interval
    high: float
    top5: float
    flipped: float | None  # mean share of binary weights flipped, 0 to 1
    recovered: float | None  # mean share of the broken bits that are as they were, 0 to 1
    psnr: float | None  # of the images against the clean ones, dB, mean of the runs
    won: float | None = (
        None  # share of the accuracy that the bit costs where it reads at random: 1 for all of it, below 0 for harm
    )


def interval(mean, std, runs, n):
    """The 95 % interval of a mean accuracy (%) over `runs` runs on the same n images: (low, high), %.

    Two errors, taken as independent: which images the test set holds (Wilson's score interval for n images,
    which more runs do not narrow), and which faults the runs drew (Student's t over the runs).
    Source: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference" (1927).
    """
    share = mean / 100
    center = (share + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    drawn = 0.0 if std is None else T95[min(runs - 2, len(T95) - 1)] * std / math.sqrt(runs)
    below, above = (
        math.hypot(100 * (share - (center - half)), drawn),
        math.hypot(100 * (center + half - share), drawn),
    )
    return max(0.0, mean - below), min(100.0, mean + above)


def summarize(rows):
    """{Cell of run 0: Summary over its runs}, in the order of the cells."""
    groups = {}
    for row in sorted(rows, key=lambda row: cell_of(row).order):
        groups.setdefault(cell_of(row).group, []).append(row)
    summaries = {cell: _summary(runs) for cell, runs in groups.items()}
    return {cell: summary._replace(won=_won(cell, summaries)) for cell, summary in summaries.items()}


def _won(cell, summaries):
    """What a repair wins back of the lost accuracy; None for no repair, or too small a loss."""
    faulty = summaries.get(Cell("random", cell.bit, level=cell.level))
    if cell.repair is None or faulty is None or BASELINE not in summaries:
        return None
    lost = summaries[BASELINE].mean - faulty.mean
    return (summaries[cell].mean - faulty.mean) / lost if lost >= LEAST_LOSS else None


def _summary(runs):
    n = runs[0]["n"]
    accuracies = [100 * row["correct"] / n for row in runs]
    mean = statistics.fmean(accuracies)
    top5 = statistics.fmean(100 * row["correct5"] / n for row in runs)
    std = statistics.stdev(accuracies) if len(runs) > 1 else None
    known = [[row[name] for row in runs if row[name] is not None] for name in EXTRAS]
    extras = [statistics.fmean(values) if values else None for values in known]
    return Summary(len(runs), n, mean, std, *interval(mean, std, len(runs), n), top5, *extras)


def label(cell):
    """How the row of a table, or the line of a plot, is called that shows this cell."""
    if cell.repair is None:
        return LABELS[cell.fault]
    if cell.source is None:
        return cell.repair
    return f"repaired by {f'MSB ({MSB})' if cell.source == MSB else f'bit {cell.source}'}"


class Table(NamedTuple):
    title: str
    headings: list
    rows: list  # (label, a field of Summary, [one Cell or None under each heading but the first])


def layout(cells):
    """{name: Table} of those tables that these cells ({Cell: Summary}) fill, laid out as the original's."""
    image = [cell for cell in cells if cell.fault in IMAGE_FAULTS]
    planes = [cell for cell in image if cell.level == 1]
    won = [cell for cell in planes if cells[cell].won is not None]
    judged = [cell for cell in planes if cells[cell].recovered is not None]
    shares = {cell.bit for cell in image if cell.level < 1}
    rates = [cell for cell in image if cell.bit in shares and cell.fault == "random" and not cell.repair]
    noise = [cell for cell in cells if cell.fault in NOISES]
    flips = [cell for cell in cells if cell.fault == "flips"]
    found = {
        "bits": _table("Broken bit planes", "accuracy (%)", planes, label, "bit"),
        "won": _table(
            f"Of the accuracy that a random bit costs, won back (%; where that is {LEAST_LOSS:g} points or more)",
            "share",
            won,
            label,
            "bit",
            "won",
        ),
        "rates": _table(
            "Share of a plane's bits broken, reading at random", "accuracy (%)", rates, _bit_label, "level"
        ),
        "noise": _table("Weight noise", "σ_val", noise, label, "level"),
        "flips": _table("Weight bit errors", "probability", flips, label, "level"),
        "recovered": _table(
            "Broken bits that read, or were repaired, as they were (%)", "share", judged, label, "bit", "recovered"
        ),
        "psnr": _table("Peak signal-to-noise ratio of the images (dB)", "PSNR", judged, label, "bit", "psnr"),
    }
    return {name: table for name, table in found.items() if table.rows}


def _bit_label(cell):
    return f"bit {cell.bit}"


def _rank(repair):
    """Where a repair stands in faults.REPAIRS; before them no repair, after them one that is no longer there."""
    return [None, *REPAIRS].index(repair) if repair in (None, *REPAIRS) else len(REPAIRS) + 1


def _place(cell):
    """Where a cell stands in a table: repairs in the order of faults.REPAIRS."""
    return _rank(cell.repair), FAULTS.index(cell.fault), -(cell.source or 0), cell.order


def _table(title, corner, cells, row_label, field, figure="mean"):
    lines = {}
    for cell in sorted(cells, key=_place):
        lines.setdefault(row_label(cell), {})[getattr(cell, field)] = cell
    values = sorted({getattr(cell, field) for cell in cells}, reverse=field == "bit")
    rows = []
    for name, found in lines.items():
        clean = (
            BASELINE if figure == "mean" and (field == "level" or not rows) else None
        )  # a repair changes clean images, too
        line = [clean, *map(found.get, values)]
        rows.append((name, figure, line))
        if any(cell.fault in WEIGHT_FAULTS for cell in found.values()):
            rows.append(("signs flipped (%)", "flipped", line))
    headings = (
        ["no fault", *(f"bit {bit}" for bit in values)]
        if field == "bit"
        else ["0", *(f"{level:g}" for level in values)]
    )
    return Table(title, [corner, *headings], rows)


def _own(summary, field):
    """What stands in a table of one session."""
    if field == "flipped":
        return f"{100 * (summary.flipped or 0):.3f}"
    if field == "recovered":
        return f"{100 * summary.recovered:.2f}"
    if field == "won":
        return f"{100 * summary.won:.0f}"
    if field == "psnr":
        return "–" if summary.psnr is None else f"{summary.psnr:.2f}"
    spread = "" if summary.std is None else f" ± {summary.std:.3f}"
    return f"{summary.mean:.3f}{spread} [{summary.low:.2f}, {summary.high:.2f}]"


def _compared(summary, other, field):
    """What stands in a table of two sessions: both figures, and by how much the other one is higher."""
    mine, its = (100 * (each.flipped or 0) if field == "flipped" else each.mean for each in (summary, other))
    return f"{mine:.3f} / {its:.3f} ({its - mine:+.3f})"


def _markdown(summaries, others=None):
    for kind, table in layout(summaries).items():
        if others is not None and kind in OWN_ONLY:
            continue
        yield f"### {table.title}\n"
        yield "| " + " | ".join(table.headings) + " |"
        yield "|---" + "|--:" * (len(table.headings) - 1) + "|"
        for name, field, cells in table.rows:
            texts = [name]
            for cell in cells:
                if cell not in summaries or (others is not None and cell not in others):
                    texts.append("–")
                elif others is None:
                    texts.append(_own(summaries[cell], field))
                else:
                    texts.append(_compared(summaries[cell], others[cell], field))
            yield "| " + " | ".join(texts) + " |"
        yield ""


def matrices(sessions):
    """Markdown lines: for each broken bit, and for weight bit errors, nets ({name: summaries}) × what they share."""
    times = Counter(cell for summaries in sessions.values() for cell in summaries)
    cells = [cell for cell, number in times.items() if number > 1]
    planes = [cell for cell in cells if cell.level == 1 and cell.fault in IMAGE_FAULTS]
    tested = {
        f"Bit {bit}": [cell for cell in planes if cell.bit == bit]
        for bit in sorted({cell.bit for cell in planes}, reverse=True)
    }
    tested["Weight bit errors"] = [cell for cell in cells if cell.fault == "flips"]
    for title, columns in tested.items():
        columns = [BASELINE, *sorted(columns, key=_place)]
        if len(columns) > 1:
            headings = [f"{cell.level:g}" if cell.fault == "flips" else label(cell) for cell in columns]
            yield f"### {title}: accuracy (%)\n"
            yield "| net | " + " | ".join(headings) + " |"
            yield "|---" + "|--:" * len(columns) + "|"
            for name, summaries in sessions.items():
                texts = [f"{summaries[cell].mean:.2f}" if cell in summaries else "–" for cell in columns]
                yield f"| {name} | {' | '.join(texts)} |"
            yield ""


def _costs(summaries):
    """A table of the repairs measured: what they do, and what they cost."""
    rows = [(name, row) for name, row in REPAIRS.items() if any(cell.repair == name for cell in summaries)]
    if rows:
        yield "### The repairs\n"
        yield "Operations and comparisons are for each of a pixel's three values.\n"
        yield "| repair | puts in the broken bit's place | operations | comparisons | lines buffered | table bits |"
        yield "|---|---|--:|--:|--:|--:|"
        for name, row in rows:
            yield f"| {' | '.join([name, row.what, *map(str, row.cost or ('offline', *'–––'))])} |"
        yield ""


def markdown(name, rows, others):
    """tables.md of a session: its own tables, then the difference to the other session, or a matrix of all if several.

    rows: its rows; others: {name: rows}.
    """
    first, summaries = rows[0], summarize(rows)
    runs = sorted({summary.runs for summary in summaries.values() if summary.runs > 1})
    counts = " or ".join(map(str, runs)) or "no"
    lines = [
        f"# {name}\n",
        f"{DATASETS[first['dataset']].title}, {first['n']} test images ({first['images']}), "
        f"checkpoint {first['checkpoint']}. "
        f"Top-1 accuracy in %: mean ± sample standard deviation over {counts} runs (no ± where nothing is random), "
        "in brackets the 95 % interval: Wilson's for so many images, which more runs on them do not narrow, widened by "
        "Student's t over the runs.\n",
        *_markdown(summaries),
    ]
    lines += _costs(summaries)
    others = {other: summarize(other_rows) for other, other_rows in others.items()}
    if len(others) > 1:
        lines += ["## Nets × what they are tested on\n", *matrices({name: summaries, **others})]
    else:
        for other, its in others.items():
            lines += [f"## {name} / {other} (difference)\n", *_markdown(summaries, its)]
    return "\n".join(lines)


def summary(rows):
    """summary.json of a session."""
    cells = []
    for cell, figures in summarize(rows).items():
        known = {key: value for key, value in cell._asdict().items() if value is not None and key != "run"}
        measured = {key: value for key, value in figures._asdict().items() if value is not None and key != "n"}
        cells.append({**known, **{key: round(value, 6) for key, value in measured.items()}})
    return json.dumps({**{key: rows[0][key] for key in SAME}, "cells": cells}, indent=1) + "\n"
