"""<sess>_seeds.md: the figures of nets of one session name, trained with different seeds."""

import statistics

from common import write_text
from datasets import DATASETS
from engine import checkpoints
from faults import NO_FAULT
from report.sessions import read_sessions
from report.tables import layout
from report.trainings import find_checkpoint

ABOUT = (
    "Top-1 accuracy in %, the mean of each net's runs: mean ± sample standard deviation over the nets; in brackets the "
    "same of the points that each net gains or loses. Only what was measured on every net."
)


def write_seeds(results):
    """Write <sess>_seeds.md into a results folder, a Path, for each session name with nets of two or more seeds.

    Returns the paths of the files that are new or have changed.
    """
    changed = []
    for path, text in seeds_tables(results).items():
        if not path.is_file() or path.read_text("utf-8") != text:
            write_text(path, text)
            changed.append(path)
    return changed


def seeds_tables(results):
    """{path of a <sess>_seeds.md: its text}"""
    nets = {}  # {sess: {(data set, digest of the test images): {seed: Session}}}
    for session in read_sessions(results)[0]:
        same = session.same
        images = same["dataset"], same["images"]
        nets.setdefault(same["sess"], {}).setdefault(images, {}).setdefault(same["seed"], session)
    found = {}
    for sess, copies in nets.items():
        sections = [_section(by_seed) for by_seed in copies.values() if len(by_seed) > 1]
        if sections:
            found[results / f"{sess}_seeds.md"] = "\n".join([f"# {sess}: what a seed is worth\n", *sections])
    return found


def _section(by_seed):
    """The Markdown text on the nets of one data set. by_seed: {seed: Session}."""
    same = next(iter(by_seed.values())).same
    nets = {seed: by_seed[seed].summaries for seed in sorted(by_seed)}
    first, *others = nets.values()
    common = {fault: first[fault] for fault in first if all(fault in other for other in others)}
    lines = [
        f"{DATASETS[same['dataset']].title}, {same['n']} test images ({same['images']}), "
        f"nets trained with the seeds {', '.join(map(str, nets))}. {ABOUT}\n",
        f"{_differences(by_seed)}\n",
    ]
    for title, corner, headings, rows in _tables(common):
        lines += [f"### {title}\n", f"| {corner} | {' | '.join(headings)} |", "|---" + "|--:" * len(headings) + "|"]
        for name, faults in rows:
            texts = [_cell(fault, nets) if fault in common else "–" for fault in faults]
            lines.append(f"| {name} | {' | '.join(texts)} |")
        lines.append("")
    return "\n".join(lines)


def _differences(by_seed):
    """A sentence on what else differs between the trainings."""
    found = {seed: find_checkpoint(by_seed[seed]) for seed in sorted(by_seed)}
    missing = [str(seed) for seed, checkpoint in found.items() if checkpoint is None]
    if missing:
        return (
            f"If the trainings differ in the seed only is not known: no checkpoint is at hand of {', '.join(missing)}."
        )
    each = [_effective_options(*checkpoint) for checkpoint in found.values()]
    values = {name: [_shown(options.get(name)) for options in each] for name in sorted(set().union(*each))}
    differ = [f"{name} {', '.join(those)}" for name, those in values.items() if len(set(those)) > 1]
    if differ:
        return f"**The trainings differ in more than the seed:** {'; '.join(differ)}."
    return "The trainings differ in the seed only."


def _shown(value):
    return "–" if value in (None, "") else str(value)


def _effective_options(path, state):
    """The options of the training of a checkpoint without its seed, and without those that had no effect."""
    options = checkpoints.with_older_options(checkpoints.trained_as(path, state))
    idle = {"seed"}
    if options.get("mem_fault", "baseline") == "baseline":
        idle |= {"faulty_bit", "neighbor_offset"}
    if not options["memory"]:
        idle |= {"ber", "reading", "p01", "p10", "planes", "layers", "lines", "array", "transient", "known"}
    return {name: value for name, value in options.items() if name not in idle}


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
