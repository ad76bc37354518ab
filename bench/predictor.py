#!/usr/bin/env python3
"""What the predictor of `learned` costs and wins, by its size: a table and a plot in results/.

    OMP_NUM_THREADS=1 .venv/bin/python -m bench.predictor

A predictor of each size is fitted on some training images, and kept nowhere. It repairs all test images, with which the
net of a session is tested. Times are processor time, and of the predictor alone: what it looks at, the images repaired
by color_field and the scans, is made once for all sizes.
"""

import time
from pathlib import Path
from unittest import mock

import torch

from common import Parser, digest, run, within, write_text
from datasets import read_images, spaced
from engine import EvalBatches, checkpoints, evaluate
from faults import MSB, same_bits
from models.folded import Folded
from repairs import fault_of, predictor, repaired
from repairs.pixels import zeros_of
from report.figures import STYLE, plt, save, styles

DEEP = predictor.DILATIONS
WIDE = predictor.WIDTH
# width, dilations
SIZES = ((8, DEEP), (16, DEEP), (WIDE, DEEP), (48, DEEP), (WIDE, ()), (WIDE, DEEP[:1]), (WIDE, DEEP[:2]))
FIT = 6_000  # training images, evenly spaced
FIELDS = ("width", "layers", "view", "weights", "fit_seconds", "images_per_s", "bits", "learned")


guesses_of = predictor.guesses_of
kept = {}  # {(digest of images, bit): what guesses_of gave}


def kept_guesses(images, bit):
    """What guesses_of gives, made only once."""
    key = digest(images), bit
    if key not in kept:
        kept[key] = guesses_of(images, bit)
    return kept[key]


def measured(width, dilations, training, images, labels, net, bit):
    """The figures of one size, in the order of FIELDS. view: pixels across; bits: mended, %."""
    with mock.patch.object(predictor, "DILATIONS", dilations), mock.patch.object(predictor, "guesses_of", kept_guesses):
        began = time.process_time()
        state = predictor.learn_predictor(training, bit, width=width)
        fitted = time.process_time()
        mended = repaired(fault_of("learned", bit, -1), images, state)
        ended = time.process_time()
    sizes = width, 2 + len(dilations), 2 * (2 + sum(dilations)) + 1, sum(each.numel() for each in state.values())
    times = round(fitted - began), round(len(images) / (ended - fitted))
    return *sizes, *times, round(100 * same_bits(images, mended, [bit]), 2), accuracy(net, mended, labels)


def accuracy(net, images, labels):
    return evaluate(net, EvalBatches(images, labels, torch.device("cpu"))).top1


def draw(rows, clean, title, path):
    """Accuracy and images/s over the number of weights: a line for the widths, and one for the depths."""
    rows = [dict(zip(FIELDS, row)) for row in sorted(rows, key=lambda row: row[FIELDS.index("weights")])]
    layers = 2 + len(DEEP)
    lines = {
        f"{layers} layers, other widths": [row for row in rows if row["layers"] == layers],
        f"width {WIDE}, fewer layers": [row for row in rows if row["width"] == WIDE],
    }
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, 2, figsize=(7.2, 3.2), layout="constrained")
        panels[0].axhline(clean, color="#555555", linestyle=":", linewidth=1, label="no fault")
        for axes, what, label in zip(panels, ("learned", "images_per_s"), ("top-1 accuracy (%)", "images/s")):
            for (name, shown), style in zip(lines.items(), styles()):
                axes.plot([row["weights"] for row in shown], [row[what] for row in shown], label=name, **style)
            axes.set_xscale("log")
            axes.set_xlabel("weights of the predictor")
            axes.set_ylabel(label)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        figure.suptitle(title)
        save(figure, path)


def main():
    parser = Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", default="data")
    parser.add_argument("--sess", default="cifar10_smaller", help="session of the net, default %(default)s")
    parser.add_argument("--seed", type=within(int, 0, 2**62), default=11111)
    parser.add_argument("--bit", type=within(int, 0, MSB), default=MSB)
    parser.add_argument("--fit", type=within(int, 1), default=FIT, help="training images, default %(default)s")
    args = parser.parse_args()
    dataset, net, _ = checkpoints.load_net(checkpoints.find(args.sess, args.seed))
    net = Folded(net)
    images, labels = read_images(dataset, args.data, False)
    training = spaced(read_images(dataset, args.data, True)[0], args.fit)
    clean = accuracy(net, images, labels)
    title = f"learned on {len(training)} images of {dataset}, bit {args.bit}"
    print(f"{title}; {args.sess} has {clean:.2f} % of {len(images)} test images right without a fault")
    path, rows = Path("results") / f"predictor_{dataset}_{args.bit}", []
    chunk, zeros = predictor.CHUNK // images[0, 0].numel(), zeros_of(images, args.bit)
    for seen in (training, zeros):
        for part in seen.split(chunk):
            kept_guesses(part, args.bit)
    for part in zeros.split(chunk):
        kept_guesses(part.flip(-1), args.bit)
    for width, dilations in SIZES:
        rows.append(measured(width, dilations, training, images, labels, net, args.bit))
        print(", ".join(f"{name} {figure}" for name, figure in zip(FIELDS, rows[-1])), flush=True)
        lines = (",".join(map(str, row)) for row in (FIELDS, *rows))
        write_text(path.with_suffix(".csv"), "\n".join(lines) + "\n")
    draw(rows, clean, title, path)


if __name__ == "__main__":
    run(main)
