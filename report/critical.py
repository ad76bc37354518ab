"""critical.csv and its plot: how many flipped signs bring a net to chance, chosen by their loss and at random."""

import csv
import io

import matplotlib
from matplotlib import pyplot as plt

from common import UserError, write_text
from report.figures import STYLE, save

COLUMNS = ("sess", "seed", "checkpoint", "images", "made_by", "choice", "run", "flips", "layers", "n", "correct")


def read_critical(path):
    """The rows of a critical.csv, dicts of texts; [] if there is none."""
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or tuple(rows[0]) != COLUMNS:
        raise UserError(f"{path} is no critical.csv of this version: delete it")
    return rows


def write_critical(path, rows):
    with io.StringIO() as text:
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(path, text.getvalue())


def flips_needed(rows):
    """{(choice, run): flips of the last step, after which the net is at chance or the search ended}."""
    return {(row["choice"], row["run"]): int(row["flips"]) for row in rows}


def draw_critical(folder, name, rows):
    """Write critical.png and critical.svg: accuracy against the number of flipped signs, a line for each search."""
    with matplotlib.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.2, 4), layout="constrained")
        figure.suptitle(name)
        for choice, style in (("gradient", {"color": "#c8501e", "marker": "o"}), ("random", {"color": "#2a6fb0"})):
            for run in dict.fromkeys(row["run"] for row in rows if row["choice"] == choice):
                own = [row for row in rows if (row["choice"], row["run"]) == (choice, run) and row["flips"] != "0"]
                points = [(int(row["flips"]), 100 * int(row["correct"]) / int(row["n"])) for row in own]
                axes.plot(*zip(*points), label=choice if run == "0" else None, **style)
        axes.set_xscale("log")
        axes.set_xlabel("flipped signs")
        axes.set_ylabel("top-1 accuracy (%)")
        figure.legend(loc="outside right upper")
        save(figure, folder / "critical")
