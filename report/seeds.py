"""<sess>_seeds.md: the figures of nets that differ in the seed of their training only."""

import statistics

from common import write_text
from datasets import DATASETS
from faults import NO_FAULT
from report.sessions import read_sessions
from report.tables import layout

ABOUT = (
    "Top-1 accuracy in %, the mean of each net's runs: mean ± sample standard deviation over the nets; in brackets the "
    "same of the points that each net gains or loses. Only what was measured on every net."
)


def write_seeds(results):
    """Write <sess>_seeds.md into a results folder, a Path, for each session name with nets of two or more seeds.

    Returns the paths of the files.
    """
    nets = {}  # {sess: {(data set, digest of the test images): {seed: Session}}}
    for session in read_sessions(results)[0]:
        same = session.same
        images = same["dataset"], same["images"]
        nets.setdefault(same["sess"], {}).setdefault(images, {}).setdefault(same["seed"], session)
    paths = []
    for sess, copies in nets.items():
        sections = [_section(by_seed) for by_seed in copies.values() if len(by_seed) > 1]
        if sections:
            path = results / f"{sess}_seeds.md"
            write_text(path, "\n".join([f"# {sess}: what a seed is worth\n", *sections]))
            paths.append(path)
    return paths


def _section(by_seed):
    """The Markdown text on the nets of one data set. by_seed: {seed: Session}."""
    same = next(iter(by_seed.values())).same
    nets = {seed: by_seed[seed].summaries for seed in sorted(by_seed)}
    first, *others = nets.values()
    common = {fault: first[fault] for fault in first if all(fault in other for other in others)}
    lines = [
        f"{DATASETS[same['dataset']].title}, {same['n']} test images ({same['images']}), "
        f"nets trained with the seeds {', '.join(map(str, nets))}. {ABOUT}\n"
    ]
    for title, corner, headings, rows in _tables(common):
        lines += [f"### {title}\n", f"| {corner} | {' | '.join(headings)} |", "|---" + "|--:" * len(headings) + "|"]
        for name, faults in rows:
            texts = [_cell(fault, nets) if fault in common else "–" for fault in faults]
            lines.append(f"| {name} | {' | '.join(texts)} |")
        lines.append("")
    return "\n".join(lines)


def _tables(common):
    """Yields (title, corner, headings, [(label, faults)]) of the tables of accuracies. common: {Fault: Summary}."""
    for table in layout(common).values():
        rows = [(name, faults) for name, figure, faults in table.rows if figure == "mean"]
        if rows:
            corner, *headings = table.headings
            yield table.title, corner, headings, rows


def _cell(fault, nets):
    """Mean ± standard deviation over the nets under a fault. nets: {seed: {Fault: Summary}}."""
    accuracies = [summaries[fault].mean for summaries in nets.values()]
    text = f"{statistics.fmean(accuracies):.2f} ± {statistics.stdev(accuracies):.2f}"
    if fault == NO_FAULT or not all(NO_FAULT in summaries for summaries in nets.values()):
        return text
    points = [summaries[fault].mean - summaries[NO_FAULT].mean for summaries in nets.values()]
    return f"{text} ({statistics.fmean(points):+.2f} ± {statistics.stdev(points):.2f})"
