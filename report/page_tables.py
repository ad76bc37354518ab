"""The tables of the page: nets, repairs, and those of each session."""

import math
from typing import NamedTuple

from datasets import DATASETS
from faults import NO_FAULT, Fault
from repairs import REPAIRS
from report.page_words import source_of
from report.tables import cell_text, layout

BITS = (7, 6, 5)  # broken bits in the table of nets
POINTS = 5.0  # percentage points of accuracy; the table of nets says where a net has lost them
NOT_MEASURED = "–"


class Figure(NamedTuple):
    """A cell of a table."""

    text: str
    detail: str = ""  # in small print after it
    sort: float | str = ""  # its place when the table is sorted; "": last
    source: tuple = ()  # lines of text that say where it comes from


class Table(NamedTuple):
    title: str
    headings: list  # of str
    rows: list  # of lists of Figures, the first of which is the row's label
    note: str = ""


def nets_table(sessions, trainings):
    """The Table of all sessions. trainings: {name: Training}."""
    headings = ["net", "data set", "no fault (%)", "epochs", "trained for", "checkpoint"]
    for bit in BITS:
        headings += [f"bit {bit} random (%)", f"bit {bit}, best cheap repair (%)", f"bit {bit}, best offline (%)"]
    headings += ["σ_val absolute", "σ_val relative", "weight bit errors"]
    headings += [f"bit errors, image bit {bit}" for bit in BITS]
    note = (
        "In brackets the 95 % interval. Best: the highest of those measured, so chosen on the test images. Cheap "
        "repairs work as the pixels come, offline ones need the whole image. The last columns: where the net has lost "
        f"{POINTS:g} points, interpolated between the two levels measured on either side; > the highest level measured "
        "where it has not."
    )
    return Table("Nets", headings, [_net(session, trainings.get(session.name)) for session in sessions], note)


def _net(session, training):
    """A row of the table of nets."""
    same = session.same
    where = (next(iter(session.cells.values())).row,)
    figures = [
        Figure(session.name, sort=session.name, source=where),
        Figure(DATASETS[same["dataset"]].title, f"{same['n']} images", same["dataset"], where),
        accuracy(session.cells.get(NO_FAULT)),
    ]
    if training:
        figures.append(Figure(str(training.epochs), sort=training.epochs, source=(training.source,)))
        figures.append(Figure(training.purpose, sort=training.purpose, source=(training.source,)))
    else:
        figures += [Figure(NOT_MEASURED), Figure(NOT_MEASURED)]
    figures.append(Figure(same["checkpoint"], sort=same["checkpoint"], source=where))
    for bit in BITS:
        figures.append(accuracy(session.cells.get(Fault("random", bit, level=1.0))))
        figures += [named(best_repair(session, bit, cheap)) for cheap in (True, False)]
    for kind in ("noise", "noise_relative", "flips"):
        figures.append(lost_at(session, kind))
    return [*figures, *(lost_at(session, "random", bit) for bit in BITS)]


def accuracy(cell):
    """The Figure of a Cell's accuracy."""
    if cell is None:
        return Figure(NOT_MEASURED)
    figures = cell.figures
    interval = f"[{figures.low:.2f}, {figures.high:.2f}]"
    return Figure(f"{figures.mean:.2f}", interval, figures.mean, source_of(cell))


def named(cell):
    """The Figure of a Cell's accuracy, with the name of its repair."""
    figure = accuracy(cell)
    return figure._replace(detail=f"{figure.detail} {cell.fault.repair}") if cell else figure


def best_repair(session, bit, cheap):
    """The Cell of the repair that gives the highest accuracy at a broken bit; None if none was measured."""
    found = [
        cell
        for fault, cell in session.cells.items()
        if fault.repair
        and fault == Fault("random", bit, fault.repair, fault.source, 1.0)
        and (REPAIRS[fault.repair].cost is not None) == cheap
    ]
    return max(found, key=lambda cell: cell.figures.mean, default=None)


def lost_at(session, kind, bit=None):
    """The Figure of the level at which a net has lost POINTS, under faults of a kind, and for images of a bit."""
    clean = session.cells.get(NO_FAULT)
    cells = [
        cell for fault, cell in session.cells.items() if fault == Fault(kind, bit, level=fault.level) and fault.level
    ]
    if clean is None or not cells:
        return Figure(NOT_MEASURED)
    cells.sort(key=lambda cell: cell.fault.level)
    goal = clean.figures.mean - POINTS
    after = next((number for number, cell in enumerate(cells) if cell.figures.mean <= goal), None)
    if after is None:
        level = cells[-1].fault.level
        return Figure(f"> {level:g}", sort=level * 1.001, source=source_of(cells[-1]))
    as_power = kind in ("flips", "random")  # of ten: these levels are spaced so
    if as_power and after == 0:
        level = cells[0].fault.level
        return Figure(f"< {level:g}", sort=level * 0.999, source=source_of(cells[0]))
    before = cells[after - 1] if after else clean
    level = _between(before, cells[after], goal, as_power)
    return Figure(f"{level:.2g}", sort=level, source=(*source_of(before), *source_of(cells[after])))


def _between(before, after, accuracy, as_power):
    """The level between two Cells that gives an accuracy, on a straight line, of the level or of its logarithm."""
    share = (before.figures.mean - accuracy) / (before.figures.mean - after.figures.mean)
    low, high = before.fault.level or 0, after.fault.level
    if as_power:
        return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    return low + share * (high - low)


def measured_repairs(sessions):
    """{name: row of REPAIRS} of the repairs that some sessions were measured with."""
    measured = {fault.repair for session in sessions for fault in session.cells}
    return {name: repair for name, repair in REPAIRS.items() if name in measured}


def repairs_table(sessions):
    """The Table of the repairs that were measured, and what they cost."""
    rows = []
    for name, repair in measured_repairs(sessions).items():
        costs = repair.cost or ["offline", *[NOT_MEASURED] * 3]
        numbers = [Figure(str(cost), sort=cost if repair.cost else "", source=SOURCE_OF_COSTS) for cost in costs]
        rows.append([Figure(name, sort=name), Figure(repair.what, sort=repair.what), *numbers])
    headings = ["repair", "puts in the broken bit's place", "operations", "comparisons", "lines buffered", "table bits"]
    return Table("The repairs", headings, rows, "Operations and comparisons are for each of a pixel's three values.")


SOURCE_OF_COSTS = ("the table REPAIRS in repairs/table.py",)


def session_tables(session):
    """Yields the Tables of a session, those of its tables.md."""
    for table in layout(session.summaries).values():
        rows = []
        for label, field, faults in table.rows:
            cells = [session.cells.get(fault) for fault in faults]
            rows.append([Figure(label, sort=label), *(_own(cell, field) for cell in cells)])
        yield Table(table.title, table.headings, rows)


def _own(cell, field):
    """The Figure of a Cell in a table of its own session. field: of its Summary."""
    if cell is None:
        return Figure(NOT_MEASURED)
    text, _, interval = cell_text(cell.figures, field).partition(" [")
    value = getattr(cell.figures, field)
    return Figure(text, f"[{interval}" if interval else "", "" if value is None else value, source_of(cell))
