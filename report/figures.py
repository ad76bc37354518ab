"""Plots of sweeps, from their rows alone, and pictures of faulty and repaired test images."""

import math
import os
from itertools import cycle, product

os.environ["MPLBACKEND"] = "Agg"  # draws to files only, even if a notebook has set another backend

import matplotlib
from matplotlib import pyplot as plt

from common import UserError, written_whole
from faults import ALL_PLANES, MEMORIES, NO_FAULT, RECALIBRATED, Cells
from repairs import REPAIRS, fault_of, with_fault
from report.summaries import summarize
from report.tables import added, front, guarded, layout, protection_label

AS_IT_IS_OR_RECALIBRATED = ((None, ""), (RECALIBRATED, f", {RECALIBRATED}"))  # (repair, what a legend adds)
PICTURES = 2  # test images in images.png
DPI = 200  # of the PNGs
HALF = 48  # characters of a legend that fit into half of the width
# lines differ in marker, dash and lightness of the colour, so that they can be told apart in greyscale
COLORS = [
    *("#000000", "#c8501e", "#2a6fb0", "#e3a418", "#1b7f5c", "#9a4fa8", "#7a7a7a"),
    *("#8c1d2f", "#58b4e0", "#b0a070", "#d95f9d", "#4b5d16", "#7fd0b0"),
]
MARKERS = ["o", "s", "^", "v", "D", "P", "X", "<", ">", "*", "h"]  # their number shares no divisor with the colours
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
    "svg.hashsalt": "plot",  # the same plot gives the same file
}


def styles():
    """Yields the style of the first line, of the second line, and so on."""
    for color, marker, dash in zip(cycle(COLORS), cycle(MARKERS), cycle(DASHES)):
        yield {"color": color, "marker": marker, "linestyle": dash}


def _draw(axes, faults, summaries, x, style, label):
    """Draws the faults' mean accuracies over x(fault): a line, with a band of one standard deviation of the runs."""
    points = [(x(fault), summaries[fault]) for fault in faults if fault in summaries]
    _draw_points(axes, sorted(points, key=lambda point: point[0]), style, label)


def _draw_over_bits(axes, faults, summaries, bits, style, label):
    """The same over the broken bit. Where the line has no figure for one of `bits`, it has a gap."""
    found = {fault.bit: summaries[fault] for fault in faults if fault in summaries}
    _draw_points(axes, [(bit, found.get(bit)) for bit in sorted(bits)], style, label)


def _draw_points(axes, points, style, label):
    """points: (x, Summary, or None for a gap)."""
    places = [place for place, _ in points]
    low, means, high = (
        [figures.mean + sign * (figures.std or 0) if figures else math.nan for _, figures in points]
        for sign in (-1, 0, 1)
    )
    axes.plot(places, means, label=label, **style)
    axes.fill_between(places, low, high, color=style["color"], alpha=0.2, linewidth=0)


def _level(axes, fault, summaries, style, label=None):
    """Draws a thin horizontal line at the accuracy of one fault."""
    if fault in summaries:
        axes.axhline(summaries[fault].mean, color=style["color"], linestyle=":", linewidth=1, label=label)


def _panels(title, x_labels):
    """A figure and its axes, one for each x label, side by side with a shared accuracy scale."""
    figure, panels = plt.subplots(1, len(x_labels), figsize=(7.2, 4), layout="constrained", sharey=True, squeeze=False)
    figure.suptitle(title)
    panels[0][0].set_ylabel("top-1 accuracy (%)")
    for axes, x_label in zip(panels[0], x_labels):
        axes.set_xlabel(x_label)
    return figure, panels[0]


def draw_bits(name, summaries):
    """Accuracy against the broken bit: a line for each way it can fail, and for each bit copied in its place."""
    return _draw_bits(name, summaries, lambda fault: fault.repair in (None, "repaired_n", "repaired_s"))


def draw_ladder(name, summaries):
    """Accuracy against the broken bit, which reads at random: a line for each repair; copies of the MSB only."""
    return _draw_bits(name, summaries, lambda fault: fault.kind == "random" and fault.repair != "repaired_n")


def _draw_bits(name, summaries, shown):
    figure, (axes,) = _panels(name, ["broken bit (7: MSB)"])
    _level(axes, NO_FAULT, summaries, {"color": "#555555"}, "no fault")
    lines = [(label, [fault for fault in faults if fault]) for label, _, (_, *faults) in layout(summaries)["bits"].rows]
    bits = {fault.bit for _, faults in lines for fault in faults}
    for (label, faults), style in zip([line for line in lines if shown(line[1][0])], styles()):
        _draw_over_bits(axes, faults, summaries, bits, style, label)
    axes.set_xticks(sorted(bits))
    axes.invert_xaxis()
    figure.legend(loc="outside right upper")
    return figure


def draw_nets(sessions):
    """Accuracy against the broken bit: a panel for each fault and repair of `common`, a line for each net."""
    rows = layout(common(sessions))["bits"].rows
    kinds = [(label, [fault for fault in faults if fault]) for label, _, (_, *faults) in rows]
    bits = {fault.bit for _, faults in kinds for fault in faults}
    across = min(3, len(kinds))
    down = -(-len(kinds) // across)
    size = (7.2, 1.2 + 2.1 * down)
    figure, grid = plt.subplots(
        down, across, figsize=size, layout="constrained", sharex=True, sharey=True, squeeze=False
    )
    for axes in grid.flat[len(kinds) :]:
        axes.axis("off")
    for axes, (label, faults) in zip(grid.flat, kinds):
        axes.set_title(label)
        for (name, summaries), style in zip(sessions.items(), styles()):
            _draw_over_bits(axes, faults, summaries, bits, style, name)
    grid[0][0].set_xticks(sorted(bits))
    grid[0][0].invert_xaxis()
    for axes in grid[-1]:
        axes.set_xlabel("broken bit (7: MSB)")
    figure.supylabel("top-1 accuracy (%)", fontsize="medium")
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def common(sessions):
    """The first session's {fault: Summary}, for faults of whole bit planes that all sessions have measured.

    Of the repairs that copy a bit, only the copy of the MSB.
    """
    first, *others = sessions.values()
    return {
        fault: figures
        for fault, figures in first.items()
        if fault.level == 1
        and fault.bit is not None
        and fault.repair != "repaired_n"
        and all(fault in its for its in others)
    }


def draw_rates(name, summaries):
    """Accuracy against the share of a plane's bits that are broken: one line per bit; dotted: repaired by the MSB."""
    figure, (axes,) = _panels(name, ["share of the plane's bits broken, reading at random"])
    _level(axes, NO_FAULT, summaries, {"color": "#555555"}, "no fault")
    for (label, _, faults), style in zip(layout(summaries)["rates"].rows, styles()):
        faults = [fault for fault in faults if fault not in (None, NO_FAULT)]
        _draw(axes, faults, summaries, lambda fault: fault.level, style, label)
        _level(
            axes,
            faults[0]._replace(repair="repaired_s", source=7, level=1.0),
            summaries,
            style,
            f"{label} repaired by the MSB",
        )
    axes.set_xscale("log")
    figure.legend(loc="outside right upper")
    return figure


def draw_noise(sessions):
    """Accuracy against sigma_val, absolute and relative noise side by side: a line for each session."""
    figure, panels = _panels("weight noise", ["σ_val, absolute", "σ_val, relative to the layer's RMS weight"])
    for axes, kind in zip(panels, ("noise", "noise_relative")):
        for (name, summaries), style in zip(sessions.items(), styles()):
            for repair, words in AS_IT_IS_OR_RECALIBRATED:
                faults = [fault for fault in summaries if (fault.kind, fault.repair) == (kind, repair)]
                if faults:
                    faults = [fault for fault in summaries if fault == NO_FAULT] + faults
                    own = {**style, "markerfacecolor": "none"} if repair else style
                    _draw(axes, faults, summaries, lambda fault: fault.level or 0, own, name + words)
    _legend_below(figure, panels[0])
    return figure


def draw_flips(sessions):
    """Accuracy against the share of flipped weight signs: a line for each session and cause (bit errors, noise)."""
    figure, (axes,) = _panels("weights with the other sign", ["share of weight signs flipped (%)"])
    found = styles()
    causes = (("flips", "bit errors"), ("noise_relative", "relative noise"), ("noise", "absolute noise"))
    for name, summaries in sessions.items():
        if any(fault.kind in dict(causes) for fault in summaries):
            _level(axes, NO_FAULT, summaries, {"color": "#555555"})
        for (kind, by), (repair, words) in product(causes, AS_IT_IS_OR_RECALIBRATED):
            faults = [fault for fault in summaries if (fault.kind, fault.repair) == (kind, repair)]
            if faults:
                flipped = {fault: 100 * summaries[fault].flipped for fault in faults}
                _draw(axes, faults, summaries, flipped.get, next(found), f"{name}, {by}{words}")
    axes.set_xscale("log")
    _legend_below(figure, axes)
    return figure


def draw_memories(name, summaries):
    """Accuracy against the bit error rate, of all cells of each memory: a panel for persistent and for transient cells.

    Of the image memory all eight planes break, of the others all layers. Inverted cells are flips, if they are weights.
    """
    figure, panels = _panels(name, ["bit error rate, persistent cells", "bit error rate, transient cells"])
    drawn = dict(zip(MEMORIES, styles()))
    for axes, persistent in zip(panels, (True, False)):
        _level(axes, NO_FAULT, summaries, {"color": "#555555"}, "no fault")
        for memory, style in drawn.items():
            for repair, words in AS_IT_IS_OR_RECALIBRATED:
                faults = whole_memories(summaries, memory, repair)
                faults = [fault for fault in faults if fault.persistent == persistent]
                if faults:
                    own = {**style, "markerfacecolor": "none"} if repair else style
                    _draw(axes, faults, summaries, lambda fault: fault.level, own, memory + words)
        axes.set_xscale("log")
    _legend_below(figure, panels[0])
    return figure


def whole_memories(summaries, memory, repair=None):
    """The faults that invert cells of a whole memory, each cell for itself, with a repair or none, unprotected."""
    whole = [Cells(memory, persistent=persistent) for persistent in (True, False)]
    if memory == "image":
        whole = [cells._replace(planes=ALL_PLANES) for cells in whole]
    return [
        fault
        for fault in summaries
        if (fault.repair, fault.protection) == (repair, None)
        and ((fault.kind == "inverted" and fault.cells in whole) or (fault.kind, memory) == ("flips", "weights"))
    ]


def draw_protections(name, summaries, cost=added, cost_label="memory added for each stored bit"):
    """Accuracy against what the guard of the image memory costs: a panel for each bit error rate.

    The line is the Pareto front. cost: function fault -> number.
    """
    groups = guarded(summaries)
    faults = next(iter(groups.values()))  # persistent cells, if they were measured
    levels = sorted({fault.level for fault in faults})
    across = min(2, len(levels))
    down = -(-len(levels) // across)
    figure, grid = plt.subplots(
        down, across, figsize=(7.2, 1.6 + 2.4 * down), layout="constrained", sharex=True, sharey=True, squeeze=False
    )
    figure.suptitle(f"{name}, {'persistent' if faults[0].persistent else 'transient'} bit errors of the image memory")
    drawn = dict(zip(dict.fromkeys(map(protection_label, faults)), styles()))
    for axes in grid.flat[len(levels) :]:
        axes.axis("off")
    for axes, level in zip(grid.flat, levels):
        axes.set_title(f"bit error rate {level:g}")
        _level(axes, NO_FAULT, summaries, {"color": "#555555"}, "no fault")
        best = front(faults, summaries, level)
        axes.step([cost(fault) for fault in best], [summaries[fault].mean for fault in best], "#bbbbbb", where="post")
        for fault in faults:
            if fault.level == level:
                style = {**drawn[protection_label(fault)], "linestyle": ""}
                axes.plot(cost(fault), summaries[fault].mean, label=protection_label(fault), **style)
    for axes in grid[-1]:
        axes.set_xlabel(cost_label)
    figure.supylabel("top-1 accuracy (%)", fontsize="medium")
    handles = {label: line for axes in grid.flat for line, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4)
    return figure


def draw_layers(name, summaries):
    """Accuracy against the bit error rate in one layer at a time: a panel for each memory, a line for each layer."""
    faults = _of_one_layer(summaries)
    memories = [memory for memory in MEMORIES if any(fault.memory == memory for fault in faults)]
    figure, panels = _panels(name, [f"bit error rate, {memory}" for memory in memories])
    layers = sorted({fault.cells.layers for fault in faults})
    drawn = dict(zip(layers, styles()))
    for axes, memory in zip(panels, memories):
        _level(axes, NO_FAULT, summaries, {"color": "#555555"}, "no fault")
        for layer, style in drawn.items():
            own = [fault for fault in faults if (fault.memory, fault.cells.layers) == (memory, layer)]
            if own:
                _draw(axes, own, summaries, lambda fault: fault.level, style, layer[0])
        axes.set_xscale("log")
    handles = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels())}
    figure.set_figheight(figure.get_figheight() + 0.05 * len(handles))
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4, title="cells of one layer")
    return figure


def _of_one_layer(summaries):
    """The faults that invert persistent cells of one layer."""
    return [
        fault
        for fault in summaries
        if fault.cells
        and len(fault.cells.layers) == 1
        and (fault.kind, fault.repair) == ("inverted", None)
        and fault.cells == Cells(fault.memory, fault.cells.layers)
    ]


def _legend_below(figure, axes):
    """A legend below the axes, with room of its own however many lines there are."""
    handles, labels = axes.get_legend_handles_labels()
    across = 1 if max(map(len, labels), default=0) > HALF else 2
    figure.set_figheight(figure.get_figheight() + 0.2 / across * len(labels))
    if labels:
        figure.legend(handles, labels, loc="outside lower center", ncols=across)


def draw_images(images, seed, neighbor_offset, shown, state_of=lambda fault: None):
    """A figure of images (uint8 N×3×H×W): clean, and with each bit faulty and repaired; blank where that cannot be.

    shown: set of (repair, bit) to draw; repair: a name in REPAIRS, or None for no repair.
    state_of: function Fault -> the state that its repair has learned; UserError where that is not at hand.
    """
    bits = sorted({bit for _, bit in shown}, reverse=True)
    names = ["faulty", *(name for name in REPAIRS if any(name == repair for repair, _ in shown))]
    rows, columns = len(images) * len(names), 1 + len(bits)
    figure, grid = plt.subplots(rows, columns, figsize=(7.2, 0.86 * rows), layout="constrained", squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, title in zip(grid[0], ["clean", *(f"bit {bit}" for bit in bits)]):
        axes.set_title(title)
    for row, axes in enumerate(grid[:, 0]):
        axes.text(
            -0.1,
            0.5,
            names[row % len(names)],
            rotation=90,
            va="center",
            ha="right",
            fontsize="small",
            transform=axes.transAxes,
        )
    for axes, image in zip(grid[:: len(names), 0], images):
        axes.imshow(image.permute(1, 2, 0).numpy())
    for first, name in enumerate(names):
        for column, bit in enumerate(bits, 1):
            if name != "faulty" and (name, bit) not in shown:
                continue
            try:
                fault = fault_of(name, bit, neighbor_offset)
                state = state_of(fault)
            except UserError:  # a repair that cannot be, or whose state is not at hand
                continue
            drawn = with_fault(images, fault, seed, state)
            for axes, image in zip(grid[first :: len(names), column], drawn):
                axes.imshow(image.permute(1, 2, 0).numpy())
    return figure


def save(figure, path):
    """Write a figure to path.png and path.svg, and close it."""
    for kind, metadata in (("png", {}), ("svg", {"Date": None})):
        with written_whole(path.with_name(f"{path.name}.{kind}")) as partial:
            figure.savefig(partial, dpi=DPI, format=kind, metadata=metadata)
    plt.close(figure)


def write_plots(folder, sessions):
    """Write the plots of the first session into its folder; plots that compare show all. sessions: {name: rows}."""
    sessions = {name: summarize(rows) for name, rows in sessions.items()}
    name, own = next(iter(sessions.items()))
    found = layout(own)
    with matplotlib.rc_context(STYLE):
        for kind, table, draw in (
            ("bits", "bits", draw_bits),
            ("ladder", "bits", draw_ladder),
            ("rates", "rates", draw_rates),
        ):
            if table in found:
                save(draw(name, own), folder / kind)
        for kind, draw in (("noise", draw_noise), ("flips", draw_flips)):
            if kind in found:
                save(draw(sessions), folder / kind)
        if any(fault.cells for memory in MEMORIES for fault in whole_memories(own, memory)):
            save(draw_memories(name, own), folder / "memories")
        if guarded(own):
            save(draw_protections(name, own), folder / "protections")
        if _of_one_layer(own):
            save(draw_layers(name, own), folder / "layers")
        if len(sessions) > 1 and common(sessions):
            save(draw_nets(sessions), folder / "nets")


def write_pictures(folder, images, seed, rows, neighbor_offset, state_of):
    """Write images.png and images.svg: the first test images (uint8 N×3×H×W) under the repairs and bits in `rows`."""
    shown = {(row["repair"], row["bit"]) for row in rows if row["bit"] is not None}
    with matplotlib.rc_context(STYLE):
        save(draw_images(images[:PICTURES], seed, neighbor_offset, shown, state_of), folder / "images")
