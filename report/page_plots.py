"""The plots of the page, as plain data that page.js hands to plotly.

A plot has choices, and a figure for each combination of them. A figure has lines; a line's marks are numbers of cells.
"""

from itertools import cycle, islice
from typing import NamedTuple

from datasets import DATASETS
from faults import MSB, NO_FAULT, NOISE_KINDS, RECALIBRATED
from models import TOPOLOGIES
from repairs import REPAIRS
from report.page_words import source_of, value_of, what_of
from report.rows import order
from report.tables import added, cells_label, guarded, label, place, protection_label

# lines differ in colour, mark and dash; the colours have a contrast of 3.7 or more against black and white pages
COLORS = [
    *("#d1541d", "#2f7fc4", "#16895f", "#a45fb5", "#a67c00"),
    *("#777777", "#c0476b", "#008b9a", "#5a8a1c", "#8a6d4f"),
]
MARKS = {  # plotly's names, and the sign in the list of lines
    "circle": "●",
    "square": "■",
    "triangle-up": "▲",
    "triangle-down": "▼",
    "diamond": "◆",
    "cross": "✚",
    "x": "✖",
    "triangle-left": "◀",
    "triangle-right": "▶",
    "star": "★",
    "hexagon": "⬢",
}
DASHES = ["solid", "dash", "dashdot", "dot", "longdash", "longdashdot", "5px,2px"]
FRONT = "Pareto front"
BIT_AXIS = {"title": "broken bit (7: MSB)", "reversed": True}
ACCURACY = "top-1 accuracy (%)"
BITS_OF_A_PIXEL = 24  # three values of 8 bits
MEMORIES = {  # kind of fault: (name of the memory, what its level is)
    "flips": ("weights, bit errors", "probability that a weight's sign is flipped"),
    "noise": ("weights, absolute noise", "σ_val"),
    "noise_relative": ("weights, relative noise", "σ_val, relative to the layer's RMS weight"),
}


class Plot(NamedTuple):
    name: str
    title: str
    what: str  # what it shows, in a sentence
    choices: dict  # {heading: [option, …]}
    figures: dict  # {(option of each choice): figure}


class Cells:
    """The cells of all plots, each once; a mark names its cell by its number."""

    def __init__(self):
        self.numbers, self.shown = {}, []

    def number(self, session, cell):
        """The number of a session's Cell."""
        key = session.name, cell.fault
        if key not in self.numbers:
            self.numbers[key] = len(self.shown)
            figures = cell.figures
            self.shown.append(
                {
                    "y": round(figures.mean, 4),
                    "below": round(figures.mean - figures.low, 4),
                    "above": round(figures.high - figures.mean, 4),
                    "text": [f"{session.name}: {what_of(cell)}", value_of(cell), *source_of(cell)],
                }
            )
        return self.numbers[key]


def plots_of(sessions):
    """{"cells": […], "styles": {name of a line: style}, "plots": [Plot, …]} of all sessions."""
    cells = Cells()
    plots = [
        bits_of_a_net(sessions, cells),
        nets_under_a_fault(sessions, cells),
        nets_at_a_level(sessions, cells),
        repairs_at_a_bit(sessions, cells),
        accuracy_against_cost(sessions, cells),
        accuracy_against_memory_added(sessions, cells),
    ]
    plots = [plot for plot in plots if plot.figures]
    names = [session.name for session in sessions], _labels(sessions)
    return {"cells": cells.shown, "styles": {**_styles(names[0]), **_styles(names[1]), **FRONT_STYLE}, "plots": plots}


FRONT_STYLE = {FRONT: {"color": COLORS[5], "mark": "circle", "sign": "─", "dash": "dot"}}


def _labels(sessions):
    """The labels of all lines that are not nets."""
    faults = sorted({fault for session in sessions for fault in session.cells}, key=place)
    planes = [label(fault) for fault in faults if fault.bit is not None]
    guards = [protection_label(fault) for fault in faults if fault.cells and fault.memory == "image"]
    return list(dict.fromkeys([*planes, *guards]))


def _styles(names):
    """{name: style of its line}, no two of them the same."""
    styles = zip(cycle(COLORS), cycle(MARKS.items()), cycle(DASHES))
    return {
        name: {"color": color, "mark": mark, "sign": sign, "dash": dash}
        for name, (color, (mark, sign), dash) in zip(names, islice(styles, len(names)))
    }


def _line(name, session, found, cells, at):
    """A line of Cells over at(cell), in order. found: the Cells."""
    found = sorted(found, key=at)
    return {"name": name, "x": [at(cell) for cell in found], "cells": [cells.number(session, cell) for cell in found]}


def _figure(lines, x, off=(), **rest):
    """A figure; the lines named in `off` are switched off at first. x: {"title", and "log" or "reversed" if so}."""
    return {"lines": lines, "x": x, "off": list(off), **rest}


def _planes(session):
    """The session's Cells of whole broken bit planes."""
    return [cell for fault, cell in session.cells.items() if fault.bit is not None and fault.level == 1]


def _shares(session):
    """The shares of a plane below 1 at which its unrepaired bits were measured, largest first."""
    levels = {fault.level for fault in session.cells if fault.bit is not None and fault.level < 1}
    return sorted(levels, reverse=True)


def _by_label(found):
    lines = {}
    for cell in sorted(found, key=lambda cell: place(cell.fault)):
        lines.setdefault(label(cell.fault), []).append(cell)
    return lines


def _bit(cell):
    return cell.fault.bit


def _level(cell):
    return cell.fault.level or 0


def _minor(name):
    """Is this a line that only clutters a plot at first: the copy of a bit that is not the MSB?"""
    return name.startswith("repaired by bit ")


def _clean(session, cells):
    """The number of the cell without a fault; None if it was not measured."""
    clean = session.cells.get(NO_FAULT)
    return None if clean is None else cells.number(session, clean)


def bits_of_a_net(sessions, cells):
    """Accuracy against the broken bit: a line for each way it can fail, and for each repair."""
    figures, shares = {}, set()
    for session in sessions:
        planes = _planes(session)
        for share in [1.0, *_shares(session)] if planes else []:
            shares.add(share)
            partly = [cell for fault, cell in session.cells.items() if fault.bit is not None and fault.level == share]
            mended = [cell for cell in planes if cell.fault.repair]
            found = planes if share == 1 else [*partly, *mended]
            lines = [_line(name, session, own, cells, _bit) for name, own in _by_label(found).items()]
            off = [line["name"] for line in lines if _minor(line["name"])]
            figures[session.name, f"{share:g}"] = _figure(lines, BIT_AXIS, off, level=_clean(session, cells))
    choices = {
        "net": _options(figures, 0),
        "share of the plane broken": [f"{share:g}" for share in sorted(shares)[::-1]],
    }
    what = (
        "Accuracy against the broken bit: a line for each way it can fail, and for each repair. A repair gives the "
        "same at every share, because it cannot know which bits are intact. Dotted: no fault."
    )
    return Plot("bits", "A net and its repairs", what, choices, figures)


def _options(figures, place):
    """The options of the choice at a place in the keys of figures."""
    return list(dict.fromkeys(key[place] for key in figures))


def nets_under_a_fault(sessions, cells):
    """Accuracy against the broken bit under one fault and repair: a line for each net."""
    lines = {}
    for session in sessions:
        for name, own in _by_label(_planes(session)).items():
            lines.setdefault(name, []).append(_line(session.name, session, own, cells, _bit))
    figures = {(name,): _figure(own, BIT_AXIS) for name, own in lines.items()}
    what = "Accuracy against the broken bit, under one fault or repair: a line for each net."
    return Plot("nets", "Nets under one fault", what, {"fault or repair": list(lines)}, figures)


def nets_at_a_level(sessions, cells):
    """Accuracy against how much of a memory is broken: a line for each net."""
    figures = {}
    for broken in _memories(sessions):
        memory, axis = _memory(broken)
        log = broken.kind not in NOISE_KINDS
        by_level, by_signs = [], []
        for session in sessions:
            found = [cell for fault, cell in session.cells.items() if fault._replace(level=None) == broken]
            clean = [session.cells[NO_FAULT]] if NO_FAULT in session.cells and not log else []
            if found:
                by_level.append(_line(session.name, session, [*clean, *found], cells, _level))
            if found and all(cell.figures.flipped for cell in found):
                by_signs.append(_line(session.name, session, found, cells, _flipped))
        figures[memory, "level"] = _figure(by_level, {"title": axis, "log": log})
        if by_signs:
            axis = {"title": "share of weight signs flipped (%)", "log": True}
            figures[memory, "weight signs flipped"] = _figure(by_signs, axis)
    what = "Accuracy against how much of a memory is broken, and with recalibrated thresholds: a line for each net."
    return Plot(
        "memories", "Memories", what, {"memory": _options(figures, 0), "against": _options(figures, 1)}, figures
    )


def _flipped(cell):
    return round(100 * cell.figures.flipped, 4)


def _memories(sessions):
    """Faults without a level, one for each memory and way to break it, that was measured below level 1.

    Unrepaired, and with recalibrated thresholds.
    """
    found = {
        fault._replace(level=None)
        for session in sessions
        for fault in session.cells
        if fault.repair in (None, RECALIBRATED) and not fault.protection and fault != NO_FAULT
        if fault.memory != "image" or fault.level < 1
    }
    return sorted(found, key=lambda fault: (fault.cells is not None, order(fault)))


def _memory(fault):
    """(name of a memory and how it breaks, title of its axis)"""
    if fault.bit is not None:
        return f"image bit {fault.bit}, {label(fault)}", "share of the plane's bits broken"
    if fault.kind in MEMORIES:
        name, axis = MEMORIES[fault.kind]
        return f"{name}, {RECALIBRATED}" if fault.repair else name, axis
    what = f"{fault.cells.lines}s" if fault.cells.lines else "cells"
    return f"{fault.memory}, {cells_label(fault)}", f"probability that one of the {what} is broken"


def repairs_at_a_bit(sessions, cells):
    """Accuracy under every fault and repair of one broken bit, one below the other: a line for each net."""
    figures = {}
    for bit in range(MSB, -1, -1):
        lines = []
        for session in sessions:
            found = [cell for cell in _planes(session) if cell.fault.bit == bit]
            if found:
                found.sort(key=lambda cell: cell.figures.mean)
                names = [label(cell.fault) for cell in found]
                numbers = [cells.number(session, cell) for cell in found]
                lines.append({"name": session.name, "x": names, "cells": numbers})
        if lines:
            rows = _ranked(lines, cells)
            few = max(lines, key=lambda line: len(line["cells"]))["name"]
            off = [line["name"] for line in lines if line["name"] != few]
            figures[f"bit {bit}",] = _figure(lines, {"title": ACCURACY}, off, rows=rows)
    what = "All faults and repairs of one broken bit, in the order of the net with most of them: a mark for each net."
    return Plot("ranking", "One bit, every repair", what, {"broken bit": _options(figures, 0)}, figures)


def _ranked(lines, cells):
    """The names of all rows, from low to high accuracy in the line with the most marks; the others below them."""
    order = sorted(lines, key=lambda line: -len(line["cells"]))
    names = list(dict.fromkeys(name for line in order for name in reversed(line["x"])))
    return names[::-1]


def accuracy_against_cost(sessions, cells):
    """Accuracy against what a repair costs at one broken bit, with the Pareto front."""
    figures = {}
    for session in sessions:
        net = DATASETS[session.same["dataset"]].net
        if net is None:  # the width of its images is not known
            continue
        width = TOPOLOGIES[net].size
        for bit in range(MSB, -1, -1):
            found = [cell for cell in _planes(session) if cell.fault.bit == bit and _is_cheap(cell.fault)]
            for name, (title, cost) in COSTS.items() if len(found) > 1 else ():
                points = [(cost(REPAIRS[cell.fault.repair].cost, width), cell) for cell in found]
                figures[session.name, f"bit {bit}", name] = _scatter(session, points, cells, {"title": title})
    what = (
        "Accuracy against what a repair costs in hardware, for the repairs that work as the pixels come. The front: no "
        "repair that costs less or the same is better."
    )
    choices = {"net": _options(figures, 0), "broken bit": _options(figures, 1), "against": list(COSTS)}
    return Plot("costs", "What a repair costs", what, choices, figures)


COSTS = {  # name: (title of the axis, RepairCost and width of an image -> cost)
    "memory": (
        "memory added: buffered lines and tables (bits)",
        lambda cost, width: cost.lines * width * BITS_OF_A_PIXEL + cost.table,
    ),
    "arithmetic": (
        "operations and comparisons for each of a pixel's three values",
        lambda cost, width: cost.operations + cost.comparisons,
    ),
}


def _is_cheap(fault):
    return fault.repair is not None and REPAIRS[fault.repair].cost is not None


def accuracy_against_memory_added(sessions, cells):
    """Accuracy against the memory that a protection of the image memory adds, with the Pareto front, where measured."""
    figures = {}
    for session in sessions:
        for persistent, faults in guarded(session.summaries).items():
            kept = "persistent" if persistent else "transient"
            for level in sorted({fault.level for fault in faults}):
                points = [(added(fault), session.cells[fault]) for fault in faults if fault.level == level]
                axis = {"title": "memory added for each stored bit"}
                figures[session.name, kept, f"{level:g}"] = _scatter(session, points, cells, axis, protection_label)
    what = (
        "Accuracy with inverted cells of the image memory against the memory that a protection adds. The front: "
        "nothing that adds less or the same is better."
    )
    names = ("net", "cells", "bit error rate")
    choices = {name: _options(figures, place) for place, name in enumerate(names)}
    return Plot("added", "Memory added", what, choices, figures)


def _scatter(session, points, cells, x, named=label):
    """A figure of marks, a name each, with the line of the Pareto front.

    points: [(cost, Cell)]. named: function Fault -> name of its mark.
    """
    lines = []
    for cost, cell in sorted(points, key=lambda point: place(point[1].fault)):
        lines.append(
            {"name": named(cell.fault), "x": [cost], "cells": [cells.number(session, cell)], "only": "markers"}
        )
    front = pareto_front([(cost, cell.figures.mean, cell) for cost, cell in points])
    lines.append(
        {
            "name": FRONT,
            "x": [cost for cost, _, _ in front],
            "cells": [cells.number(session, cell) for _, _, cell in front],
            "only": "lines",
        }
    )
    return _figure(lines, x)


def pareto_front(points):
    """Those of (cost, accuracy, …) that no other point beats in one and equals or beats in both, by rising cost."""
    front = []
    for point in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front
