"""Accuracy against energy: a user's own table of voltages, with the bit error rate and the energy at each."""

import csv
import math
from itertools import pairwise
from typing import NamedTuple

import matplotlib
from matplotlib import pyplot as plt

from common import UserError
from report.figures import STYLE, save, styles
from report.tables import added, guarded, protection_label


class Point(NamedTuple):
    voltage: float
    ber: float
    energy: float  # of reading a stored bit, in a unit of one's own


def read_points(path):
    """The Points of a CSV file with the columns voltage, ber and energy, by falling voltage. UserError otherwise."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            points = [Point(*(float(row[name]) for name in Point._fields)) for row in csv.DictReader(file)]
    except FileNotFoundError:
        raise UserError(f"{path} is missing: a CSV file with the columns voltage, ber, energy") from None
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{path} is not readable: a CSV file of numbers with the columns voltage, ber, energy"
        ) from None
    if not points or not all(0 < point.ber <= 1 and point.energy > 0 for point in points):
        raise UserError(f"{path}: each line needs a ber above 0 and at most 1, and an energy above 0")
    return sorted(points, reverse=True)


def accuracy_at(ber, measured):
    """The accuracy at a bit error rate, linear in its logarithm between two measured ones; None outside of them.

    measured: {rate: accuracy}.
    """
    for (low, first), (high, last) in pairwise(sorted(measured.items())):
        if low <= ber <= high:
            part = (math.log(ber) - math.log(low)) / (math.log(high) - math.log(low))
            return first + part * (last - first)
    return None


def lines_of(summaries, points):
    """{guard of the image memory: [(energy of a stored bit with what is added to it, accuracy)]}, for each voltage."""
    lines, groups = {}, guarded(summaries)
    for fault in next(iter(groups.values()), []):
        measured = lines.setdefault((protection_label(fault), 1 + added(fault)), {})
        measured[fault.level] = summaries[fault].mean
    return {
        name: [
            (point.energy * share, accuracy_at(point.ber, measured))
            for point in points
            if accuracy_at(point.ber, measured) is not None
        ]
        for (name, share), measured in lines.items()
    }


def draw_energy(folder, name, summaries, points):
    """Write energy.png and energy.svg: accuracy against energy, a line for each protection and repair."""
    lines = {guard: line for guard, line in lines_of(summaries, points).items() if line}
    if not lines:
        raise UserError(f"{folder} has no protections measured at these bit error rates: sweep.py --protection")
    with matplotlib.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.2, 4), layout="constrained")
        figure.suptitle(name)
        for (guard, line), style in zip(lines.items(), styles()):
            axes.plot(*zip(*line), label=guard, **style)
        axes.set_xlabel("energy of a stored bit, with the memory that is added")
        axes.set_ylabel("top-1 accuracy (%)")
        figure.legend(loc="outside right upper")
        save(figure, folder / "energy")
