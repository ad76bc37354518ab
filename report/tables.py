"""tables.md: the figures of a sweep as Markdown tables, laid out as the original's."""

import re
from collections import Counter
from typing import NamedTuple

from datasets import DATASETS
from faults import ALL_PLANES, KINDS, MEMORIES, MSB, NO_FAULT, NOISE_KINDS, RECALIBRATED
from repairs import PROTECTIONS, REPAIRS
from report.comparisons import campaign_size
from report.rows import order
from report.summaries import LEAST_LOSS, summarize

LABELS = {
    "none": "no fault",
    "random": "faulty (random)",
    "stuck_at_0": "faulty (stuck-at-0)",
    "stuck_at_1": "faulty (stuck-at-1)",
    "noise": "absolute",
    "noise_relative": "relative to each layer's RMS weight",
    "flips": "accuracy (%)",
}
OWN_ONLY = ("won", "recovered", "psnr", "broken", "mcnemar")  # tables that are left out of the comparison of two nets


def label(fault):
    """Label of a fault's row in a table, or line in a plot."""
    if fault.repair is None:
        return LABELS[fault.kind]
    if fault.kind in NOISE_KINDS:
        return f"{LABELS[fault.kind]}, {fault.repair}"
    if fault.source is None:
        return fault.repair
    return f"repaired by {f'MSB ({MSB})' if fault.source == MSB else f'bit {fault.source}'}"


def cells_label(fault):
    """The same for a fault of cells, without its memory."""
    cells = fault.cells
    if cells is None:
        return "inverted, persistent" if fault.kind == "flips" else label(fault)
    reading = f"asymmetric {fault.p01:g}/{fault.p10:g}" if fault.kind == "asymmetric" else fault.kind
    parts = [reading.replace("_", "-"), "persistent" if cells.persistent else "transient"]
    if cells.layers:
        parts.append("+".join(cells.layers))
    if cells.planes not in ((), ALL_PLANES):
        parts.append(f"planes {fault.planes}")
    if cells.lines:
        parts.append(f"{cells.lines}s of {cells.array[0]}x{cells.array[1]}")
    if fault.protection:
        parts.append(protection_label(fault))
    elif fault.repair:
        parts.append(label(fault) + (", cells known" if fault.known else ""))
    return ", ".join(parts)


def protection_label(fault):
    """What guards the image memory of a fault of cells: a protection, a repair, or nothing."""
    if fault.protection:
        return f"{fault.protection} + {fault.repair}" if fault.repair else fault.protection
    return label(fault) if fault.repair else "nothing"


class Table(NamedTuple):
    title: str
    headings: list
    rows: list  # (label, a field of Summary, [one Fault or None under each heading but the first])


def layout(faults):
    """{name: Table} of the tables that have rows for these faults ({Fault: Summary}), laid out as the original's."""
    image = [fault for fault in faults if fault.bit is not None]
    planes = [fault for fault in image if fault.level == 1]
    won = [fault for fault in planes if faults[fault].won is not None]
    judged = [fault for fault in planes if faults[fault].recovered is not None]
    shares = {fault.bit for fault in image if fault.level < 1}
    rates = [fault for fault in image if fault.bit in shares and fault.kind == "random" and not fault.repair]
    noise = [fault for fault in faults if fault.kind in NOISE_KINDS]
    flips = [fault for fault in faults if fault.kind == "flips"]
    found = {
        "bits": _table("Broken bit planes", "accuracy (%)", planes, label, "bit"),
        "won": _table(
            f"Lost accuracy recovered (%), for random bits that cost {LEAST_LOSS:g} points or more",
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
        "recovered": _table("Broken bits with their original value (%)", "share", judged, label, "bit", "recovered"),
        "psnr": _table("Peak signal-to-noise ratio of the images (dB)", "PSNR", judged, label, "bit", "psnr"),
    }
    compared = [fault for fault in planes if faults[fault].mcnemar is not None]
    found["broken"] = _table(
        "Silent data corruption: images that the intact net alone classifies rightly (%)",
        "share",
        [fault for fault in planes if faults[fault].broken is not None],
        label,
        "bit",
        "broken",
    )
    found["mcnemar"] = _table(
        "McNemar's exact test of each repair against no repair", "p", compared, label, "bit", "mcnemar"
    )
    for memory in MEMORIES:
        of_cells = [fault for fault in faults if fault.cells and fault.memory == memory and not fault.protection]
        found[memory] = _table(f"Broken cells of the {memory} memory", "probability", of_cells, cells_label, "level")
    return {name: table for name, table in found.items() if table.rows}


def _bit_label(fault):
    return f"bit {fault.bit}"


def place(fault):
    """Sort key of the rows of a table and the lines of a plot: repairs in the order of repairs.REPAIRS."""
    repairs = [None, RECALIBRATED, *REPAIRS]
    return repairs.index(fault.repair), KINDS.index(fault.kind), -(fault.source or 0), order(fault)


def _table(title, corner, faults, row_label, field, figure="mean"):
    lines = {}
    for fault in sorted(faults, key=place):
        lines.setdefault(row_label(fault), {})[getattr(fault, field)] = fault
    values = sorted({getattr(fault, field) for fault in faults}, reverse=field == "bit")
    rows = []
    for name, found in lines.items():
        # a repair changes clean images, too, so its row has no figure without a fault
        clean = NO_FAULT if figure == "mean" and (field == "level" or not rows) else None
        line = [clean, *map(found.get, values)]
        rows.append((name, figure, line))
        if any(fault.memory == "weights" and fault.persistent for fault in found.values()):
            rows.append(("signs flipped (%)", "flipped", line))
        if any(fault.cells for fault in found.values()):
            rows.append(("silent data corruption (%)", "broken", line))
    headings = (
        ["no fault", *(f"bit {bit}" for bit in values)]
        if field == "bit"
        else ["0", *(f"{level:g}" for level in values)]
    )
    return Table(title, [corner, *headings], rows)


def cell_text(summary, field):
    """The text of a cell in a table of one session."""
    if field == "flipped":
        return f"{100 * (summary.flipped or 0):.3f}"
    if field == "recovered":
        return f"{100 * summary.recovered:.2f}"
    if field == "won":
        return f"{100 * summary.won:.0f}"
    if field == "broken":
        return "–" if summary.broken is None else f"{100 * summary.broken / summary.n:.2f}"
    if field == "mcnemar":
        return f"{summary.mcnemar:.2g}"
    if field == "psnr":
        return "–" if summary.psnr is None else f"{summary.psnr:.2f}"
    spread = "" if summary.std is None else f" ± {summary.std:.3f}"
    return f"{summary.mean:.3f}{spread} [{summary.low:.2f}, {summary.high:.2f}]"


def _compared(summary, other, field):
    """The text of a cell in a table of two sessions: both figures, and other minus this."""
    mine, its = (_percent(each, field) for each in (summary, other))
    return f"{mine:.3f} / {its:.3f} ({its - mine:+.3f})"


def _percent(summary, field):
    if field == "flipped":
        return 100 * (summary.flipped or 0)
    return 100 * (summary.broken or 0) / summary.n if field == "broken" else summary.mean


def _markdown(summaries, others=None):
    for kind, table in layout(summaries).items():
        if others is not None and kind in OWN_ONLY:
            continue
        yield f"### {table.title}\n"
        yield "| " + " | ".join(table.headings) + " |"
        yield "|---" + "|--:" * (len(table.headings) - 1) + "|"
        for name, field, faults in table.rows:
            texts = [name]
            for fault in faults:
                if fault not in summaries or (others is not None and fault not in others):
                    texts.append("–")
                elif others is None:
                    texts.append(cell_text(summaries[fault], field))
                else:
                    texts.append(_compared(summaries[fault], others[fault], field))
            yield "| " + " | ".join(texts) + " |"
        yield ""


def matrices(sessions):
    """Yields Markdown lines: a table nets × faults for each broken bit, and one for weight bit errors.

    sessions: {name of a net: summaries}. A fault has a column if two or more nets were measured under it.
    """
    times = Counter(fault for summaries in sessions.values() for fault in summaries)
    faults = [fault for fault, number in times.items() if number > 1]
    planes = [fault for fault in faults if fault.level == 1 and fault.bit is not None]
    tested = {
        f"Bit {bit}": [fault for fault in planes if fault.bit == bit]
        for bit in sorted({fault.bit for fault in planes}, reverse=True)
    }
    tested["Weight bit errors"] = [fault for fault in faults if fault.kind == "flips"]
    for title, columns in tested.items():
        columns = [NO_FAULT, *sorted(columns, key=place)]
        if len(columns) > 1:
            headings = [_column(fault) for fault in columns]
            yield f"### {title}: accuracy (%)\n"
            yield "| net | " + " | ".join(headings) + " |"
            yield "|---" + "|--:" * len(columns) + "|"
            for name, summaries in sessions.items():
                texts = [f"{summaries[fault].mean:.2f}" if fault in summaries else "–" for fault in columns]
                yield f"| {name} | {' | '.join(texts)} |"
            yield ""


def _column(fault):
    """The heading of a fault's column in `matrices`."""
    if fault.kind != "flips":
        return label(fault)
    return f"{fault.level:g}{f', {fault.repair}' if fault.repair else ''}"


def _costs(summaries):
    """Yields Markdown lines: a table of the repairs measured, what they do and what they cost."""
    rows = [(name, row) for name, row in REPAIRS.items() if any(fault.repair == name for fault in summaries)]
    if rows:
        yield "### The repairs\n"
        yield "Operations and comparisons are for each of a pixel's three values.\n"
        yield "| repair | puts in the broken bit's place | operations | comparisons | lines buffered | table bits |"
        yield "|---|---|--:|--:|--:|--:|"
        for name, row in rows:
            yield f"| {' | '.join([name, row.what, *map(str, row.cost or ('offline', *'–––'))])} |"
        yield ""


def guarded(summaries):
    """{persistent: faults} that invert cells of the whole image memory, by what guards it, where a protection is."""
    faults = [
        fault
        for fault in summaries
        if fault.cells and fault.memory == "image" and fault.kind == "inverted"
        if (fault.cells.planes, fault.cells.lines) == (ALL_PLANES, None)
    ]
    return {
        persistent: [fault for fault in faults if fault.persistent == persistent]
        for persistent in (True, False)
        if any(fault.protection and fault.persistent == persistent for fault in faults)
    }


def added(fault):
    """Memory that guards a fault of the image memory, for each stored bit; a map of known cells is not counted."""
    return PROTECTIONS[fault.protection].added if fault.protection else 0


def _protections(summaries):
    """Yields Markdown lines: tables of what guards the image memory, with the memory that it adds."""
    for persistent, faults in guarded(summaries).items():
        kept = "persistent" if persistent else "transient"
        levels = sorted({fault.level for fault in faults})
        yield f"### Protections and repairs of the image memory, {kept} cells inverted: accuracy (%)\n"
        yield "Memory added is for each stored bit. Bold: no other reaches this accuracy with as little memory.\n"
        yield "| image memory | memory added | " + " | ".join(f"{level:g}" for level in levels) + " |"
        yield "|---" + "|--:" * (len(levels) + 1) + "|"
        fronts = [front(faults, summaries, level) for level in levels]
        lines = {}
        for fault in sorted(faults, key=lambda fault: (added(fault), *map(str, place(fault)))):
            lines.setdefault((protection_label(fault), added(fault)), {})[fault.level] = fault
        for (name, memory), found in lines.items():
            texts = [name, f"{memory:.3g}"]
            for level, best in zip(levels, fronts):
                mean = f"{summaries[found[level]].mean:.2f}" if level in found else "–"
                texts.append(f"**{mean}**" if found.get(level) in best else mean)
            yield "| " + " | ".join(texts) + " |"
        yield ""


def front(faults, summaries, level):
    """The faults of one level on the Pareto front: none other adds as little memory and is as accurate, or better."""
    best, found = -1.0, []
    own = [fault for fault in faults if fault.level == level]
    for fault in sorted(own, key=lambda fault: (added(fault), -summaries[fault].mean)):
        if summaries[fault].mean > best:
            best = summaries[fault].mean
            found.append(fault)
    return found


def _campaigns(summaries):
    """Yields Markdown lines: how many single faults of each memory a campaign must draw."""
    sizes = {}
    for fault, summary in summaries.items():
        if fault.cells and not fault.protection and summary.size is not None:
            sizes[fault.memory] = max(sizes.get(fault.memory, 0), int(summary.size))
    if sizes:
        yield "### Single faults to draw, for a share to ± 1 %\n"
        yield "n = N / (1 + e²(N − 1) / (t² p(1 − p))) of N cells, with e = 1 % and p = ½.\n"
        yield "| memory | cells | 95 % confidence | 99 % confidence |"
        yield "|---|--:|--:|--:|"
        for memory, size in sizes.items():
            drawn = [campaign_size(size, confidence=confidence) for confidence in (0.95, 0.99)]
            yield f"| {memory} | {size} | {drawn[0]} | {drawn[1]} |"
        yield ""


def markdown(name, rows, others):
    """The text of a session's tables.md: its own tables, then the difference to one other, or nets × faults of all.

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
        "in brackets the 95 % interval: Wilson's interval for this number of images, which more runs do not narrow, "
        "widened by Student's t over the runs.\n",
        *_markdown(summaries),
    ]
    lines += [*_protections(summaries), *_costs(summaries), *_campaigns(summaries)]
    others = {other: summarize(other_rows) for other, other_rows in others.items()}
    if len(others) > 1:
        lines += ["## Nets × faults\n", *matrices({name: summaries, **others})]
    else:
        for other, its in others.items():
            lines += [f"## {name} / {other} (difference)\n", *_markdown(summaries, its)]
    if others:
        lines.append(f"<!-- compared with: {' '.join(others)} -->\n")
    return "\n".join(lines)


def compared_names(text):
    """The names of the other sessions in the comparison of a tables.md, from its text."""
    found = re.search(r"^<!-- compared with: (.*) -->$", text, re.M)
    return found[1].split() if found else []
