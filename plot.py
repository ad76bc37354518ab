#!/usr/bin/env python3
"""Draw the plots of a sweep from its sweep.csv, and a picture of test images clean, faulty and repaired.

    python plot.py                                                       # -> results/cifar10_smaller_11111/*.png, *.svg
    python plot.py --sess cifar10_smaller cifar10_smaller_wsconv         # one line per session where they compare

sweep.py calls it at its end; run it again after editing how the plots look.
"""

from itertools import cycle
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

import CIFARDataset
import tables
from cli import Parser, UserError, run, within
from faults import MEM_FAULTS, MSB, Fault, ImpossibleRepair
from loader import load, with_fault
from tables import BASELINE

SESS = ["cifar10_smaller"]
SEED = [11111]
DATA = "data"  # folder in which all data sets lie
RESULTS = "results"

PICTURES = 3  # test images in images.png
DPI = 200  # of the PNGs
# lines differ in marker and dash, and their colours in lightness, so that they can be told apart in grey
COLORS = ["#000000", "#c8501e", "#2a6fb0", "#e3a418", "#1b7f5c", "#9a4fa8", "#7a7a7a", "#8c1d2f", "#58b4e0", "#b0a070", "#d95f9d"]
MARKERS = ["o", "s", "^", "v", "D", "P", "X", "<", ">", "*", "h"]
DASHES = ["-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1))]
STYLE = {
    "font.size": 9,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "lines.markersize": 4.5,
    "lines.linewidth": 1.3,
    "svg.hashsalt": "plot",  # the same file for the same figures
}


def _styles():
    """How line after line looks."""
    for color, marker, dash in zip(cycle(COLORS), cycle(MARKERS), cycle(DASHES)):
        yield {"color": color, "marker": marker, "linestyle": dash}


def _draw(axes, cells, summaries, x, style, label):
    """A line through the cells' mean accuracies, with a band of one standard deviation of the runs."""
    points = sorted((x(cell), summaries[cell]) for cell in cells if cell in summaries)
    places, means = [place for place, _ in points], [figures.mean for _, figures in points]
    axes.plot(places, means, label=label, **style)
    low, high = ([figures.mean + sign * figures.std for _, figures in points] for sign in (-1, 1))
    axes.fill_between(places, low, high, color=style["color"], alpha=0.2, linewidth=0)


def _level(axes, cell, summaries, style, label=None):
    """A thin horizontal line at the accuracy of one cell."""
    if cell in summaries:
        axes.axhline(summaries[cell].mean, color=style["color"], linestyle=":", linewidth=1, label=label)


def _panels(title, x_labels):
    """A figure and its axes, side by side with one scale of accuracies."""
    figure, panels = plt.subplots(1, len(x_labels), figsize=(7.2, 4), layout="constrained", sharey=True, squeeze=False)
    figure.suptitle(title)
    panels[0][0].set_ylabel("top-1 accuracy (%)")
    for axes, x_label in zip(panels[0], x_labels):
        axes.set_xlabel(x_label)
    return figure, panels[0]


def draw_bits(name, summaries):
    """Accuracy against the broken bit: a line for each thing that it may read, and for each repair."""
    figure, (axes,) = _panels(name, ["broken bit (7: MSB)"])
    _level(axes, BASELINE, summaries, {"color": "#555555"}, "no fault")
    for (label, _, cells), style in zip(tables.layout(summaries)["bits"].rows, _styles()):
        _draw(axes, [cell for cell in cells if cell != BASELINE], summaries, lambda cell: cell.bit, style, label)
    axes.set_xticks(sorted({cell.bit for cell in summaries if cell.bit is not None}))
    axes.invert_xaxis()
    figure.legend(loc="outside right upper")
    return figure


def draw_rates(name, summaries):
    """Accuracy against the share of a plane's bits that are broken: a line for each bit, dotted its repair by the MSB."""
    figure, (axes,) = _panels(name, ["share of the plane's bits broken, reading at random"])
    _level(axes, BASELINE, summaries, {"color": "#555555"}, "no fault")
    for (label, _, cells), style in zip(tables.layout(summaries)["rates"].rows, _styles()):
        cells = [cell for cell in cells if cell not in (None, BASELINE)]
        _draw(axes, cells, summaries, lambda cell: cell.level, style, label)
        _level(axes, cells[0]._replace(repair="repaired_s", source=7, level=1.0), summaries, style, f"{label} repaired by the MSB")
    axes.set_xscale("log")
    figure.legend(loc="outside right upper")
    return figure


def draw_noise(sessions):
    """Accuracy against sigma_val, absolute and relative noise side by side: a line for each session."""
    figure, panels = _panels("weight noise", ["σ_val, absolute", "σ_val, relative to the layer's RMS weight"])
    for axes, fault in zip(panels, ("noise", "noise_relative")):
        for (name, summaries), style in zip(sessions.items(), _styles()):
            cells = [cell for cell in summaries if cell.fault == fault or cell == BASELINE]
            _draw(axes, cells, summaries, lambda cell: cell.level or 0, style, name)
    panels[0].legend()
    return figure


def draw_flips(sessions):
    """Accuracy against the share of weight signs that changed, by bit errors or noise: a line for each and session."""
    figure, (axes,) = _panels("weights with the other sign", ["share of weight signs flipped (%)"])
    styles = _styles()
    for name, summaries in sessions.items():
        for fault, by in (("flips", "bit errors"), ("noise_relative", "relative noise"), ("noise", "absolute noise")):
            cells = [cell for cell in summaries if cell.fault == fault]
            if cells:
                _draw(axes, cells, summaries, lambda cell: 100 * summaries[cell].flipped, next(styles), f"{name}, {by}")
    axes.set_xscale("log")
    axes.legend()
    return figure


def draw_images(images, seed, neighbor_offset):
    """Some images (uint8 N×3×H×W), clean and with each bit faulty and repaired."""
    faults = [name for name in MEM_FAULTS if name != "baseline"]
    bits = range(MSB, -1, -1)
    figure, grid = plt.subplots(
        len(images) * len(faults), 1 + len(bits), figsize=(7.2, 0.82 * len(images) * len(faults)), layout="constrained"
    )
    for axes in grid.flat:
        axes.axis("off")
    for column, title in enumerate(["clean", *(f"bit {bit}" for bit in bits)]):
        grid[0][column].set_title(title)
    for first in range(0, len(grid), len(faults)):
        image = images[first // len(faults)]
        grid[first][0].imshow(image.permute(1, 2, 0).numpy())
    for i, name in enumerate(faults):
        for column, bit in enumerate(bits, 1):
            try:
                shown = with_fault(images, Fault.of(name, bit, neighbor_offset if bit else -neighbor_offset), seed)
            except ImpossibleRepair:
                continue
            for row, image in enumerate(shown):
                grid[row * len(faults) + i][column].imshow(image.permute(1, 2, 0).numpy())
    for row, axes in enumerate(grid[:, 0]):
        axes.text(-0.1, 0.5, faults[row % len(faults)], rotation=90, va="center", ha="right", transform=axes.transAxes)
    return figure


def save(figure, path):
    """The figure as path.png and path.svg."""
    for kind, metadata in (("png", {}), ("svg", {"Date": None})):
        partial = path.with_name(f".{path.name}.{kind}.partial")
        figure.savefig(partial, dpi=DPI, format=kind, metadata=metadata)
        partial.replace(path.with_name(f"{path.name}.{kind}"))
    plt.close(figure)


def write(folder, name, sessions, images, seed):
    """All plots that the rows of session `name` give, into its folder.

    sessions: {name: its rows}, those to compare it with among them; images: test images uint8 N×3×H×W to show, or None.
    """
    sessions = {name: tables.summarize(rows) for name, rows in sessions.items()}
    found = tables.layout(sessions[name])
    with matplotlib.rc_context(STYLE):
        for kind, draw in (("bits", draw_bits), ("rates", draw_rates)):
            if kind in found:
                save(draw(name, sessions[name]), folder / kind)
        for kind, draw in (("noise", draw_noise), ("flips", draw_flips)):
            if kind in found:
                save(draw(sessions), folder / kind)
        if images is not None:
            save(draw_images(images[:PICTURES], seed, CIFARDataset.NEIGHBOR_OFFSET), folder / "images")


def main():
    parser = Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sess", nargs="+", default=SESS, help="sessions swept, default %(default)s")
    parser.add_argument("--seed", nargs="+", type=within(int, 0, 2**62), default=SEED, help="theirs, default %(default)s")
    parser.add_argument("--data", default=DATA, help="folder in which all data sets lie, default %(default)s")
    parser.add_argument("--results", default=RESULTS, help="folder of the sweeps, default %(default)s")
    args = parser.parse_args()
    for seed in args.seed:
        sessions = {}
        for sess in args.sess:
            path = Path(args.results) / f"{sess}_{seed}" / "sweep.csv"
            if not path.is_file():
                raise UserError(f"{path} is missing: measure it with python sweep.py --sess {sess} --seed {seed}")
            rows, _ = tables.read(path)
            if not rows:
                raise UserError(f"{path} holds no rows yet: run python sweep.py --sess {sess} --seed {seed}")
            sessions[path.parent.name] = rows
        for name, rows in sessions.items():
            try:
                images, _ = load(rows[0]["dataset"], args.data, False)
            except UserError as error:
                print(f"no picture of test images: {error}")
                images = None
            folder = Path(args.results) / name
            write(folder, name, sessions, images, seed)
            print(f"{folder}: plots drawn")


if __name__ == "__main__":
    run(main)
