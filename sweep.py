#!/usr/bin/env python3
"""Measure trained nets under every fault and repair, once each, and write the tables and plots.

    python sweep.py                                                    # -> results/cifar10_smaller_11111/
    python sweep.py --sess cifar10_smaller cifar10_smaller_wsconv --seed 11111 11112
    torchrun --nproc_per_node=2 sweep.py                               # the cells shared out, the same files

Each row of sweep.csv is written as soon as it is measured: after an interruption the same command goes on with
what is missing, and other bits, rates or runs add to what is there.
"""

import functools
import os
import shutil
from argparse import BooleanOptionalAction
from contextlib import nullcontext
from hashlib import sha256
from pathlib import Path

import torch
from tqdm import tqdm

import checkpoints
import plot
import tables
from cli import Parser, UserError, run, within
from evaluate import evaluate
from faults import MSB, REPAIRS, image_bits, image_breaks, set_bit, weight_flips, weight_noise
from loader import EvalBatches, load
from models.folded import Folded
from processes import Processes
from tables import BASELINE, Cell

SESS = ["cifar10_smaller"]  # names of checkpoints
SEED = [11111]  # theirs
DATA = "data"  # folder in which all data sets lie
RESULTS = "results"

BITS = [7, 6, 5, 4, 3, 2, 1, 0]  # broken ones; 7 is the MSB
REPAIR = list(REPAIRS)  # repaired_n: by every other bit of the value
RATE = [1e-4, 1e-3, 1e-2, 0.1, 0.3, 1]  # shares of a plane's bits that are broken, for the bits in RATE_BITS; 1: all
RATE_BITS = [7, 6, 5]
SIGMA = [0, 0.2, 0.4, 0.6, 0.8, 1.0]  # sigma_val of weight noise; its standard deviation is sigma_val²
FLIP = [1e-4, 1e-3, 1e-2, 0.02, 0.05, 0.1]  # probabilities that a binary weight flips
RUNS = 10  # of everything random; run r draws with seed + r
WORKERS = os.cpu_count()  # threads that decode Tiny-ImageNet, the first time


def listed(values):
    return " ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


def parse():
    parser = Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sess", nargs="+", default=SESS, help=f"checkpoint names, default {listed(SESS)}")
    parser.add_argument("--seed", nargs="+", type=within(int, 0, 2**62), default=SEED, help=f"theirs, default {listed(SEED)}")
    parser.add_argument("--data", default=DATA, help="folder in which all data sets lie, default %(default)s")
    parser.add_argument("--results", default=RESULTS, help="folder to write into, default %(default)s")
    parser.add_argument("--replace", action="store_true", help="results of another checkpoint are moved to <folder>.old")

    bit, share = within(int, 0, MSB), within(float, 0, 1)
    group = parser.add_argument_group("what to measure (an option without a value: nothing of that kind)")
    group.add_argument("--bits", nargs="*", type=bit, default=BITS, help=f"broken bits, default {listed(BITS)}")
    group.add_argument("--repair", nargs="*", choices=REPAIRS, default=REPAIR, help=f"default {listed(REPAIR)}")
    group.add_argument("--rate", nargs="*", type=share, default=RATE, help=f"shares of a plane broken, default {listed(RATE)}")
    group.add_argument("--rate_bits", nargs="*", type=bit, default=RATE_BITS, help=f"of the rates, default {listed(RATE_BITS)}")
    group.add_argument("--sigma", nargs="*", type=within(float, 0), default=SIGMA, help=f"of weight noise, default {listed(SIGMA)}")
    group.add_argument("--flip", nargs="*", type=share, default=FLIP, help=f"of weights, default {listed(FLIP)}")
    group.add_argument("--runs", type=within(int, 1), default=RUNS, help="of everything random, default %(default)s")

    group = parser.add_argument_group("machine")
    group.add_argument("--workers", type=within(int, 1), default=WORKERS, help="decoding threads, default %(default)s")
    group.add_argument("--fold", action=BooleanOptionalAction, default=True, help="evaluate the folded net, not Brevitas' own")
    return parser.parse_args()


def wanted_cells(args):
    """The cells the options ask for, each once. What does nothing (rate, sigma or probability 0) is the baseline."""
    runs = range(args.runs)
    cells = [BASELINE]
    for bit in args.bits:
        cells += [Cell("random", bit, level=1.0, run=run) for run in runs]
        cells += [Cell(fault, bit, level=1.0) for fault in ("stuck_at_0", "stuck_at_1")]
        for repair in args.repair:
            if repair == "repaired_n":
                cells += [Cell("random", bit, repair, source, 1.0) for source in range(MSB) if source != bit]
            if repair in ("repaired_n", "repaired_s") and bit != MSB:  # from bit 7 they are the same
                cells.append(Cell("random", bit, "repaired_s", MSB, 1.0))
            elif repair not in ("repaired_n", "repaired_s"):
                cells.append(Cell("random", bit, repair, level=1.0))
    cells += [Cell("random", bit, level=rate, run=run) for bit in args.rate_bits for rate in args.rate for run in runs]
    for fault, levels in (("noise", args.sigma), ("noise_relative", args.sigma), ("flips", args.flip)):
        cells += [Cell(fault, level=level, run=run) for level in levels for run in runs]
    return list(dict.fromkeys(cell for cell in cells if cell.level != 0))


@functools.lru_cache(1)  # cells of the same run follow each other
def random_bits(seed, shape):
    return image_bits(seed, range(shape[0]), shape[1:])


def faulty_images(cell, images, seed):
    """What the net gets to see: uint8 N×3×H×W."""
    if cell.bit is None:
        return images
    reads = {"stuck_at_0": 0, "stuck_at_1": 1}.get(cell.fault)
    faulty = set_bit(images, cell.bit, random_bits(seed, images.shape) if reads is None else reads)
    if cell.level < 1:
        broken = image_breaks(seed, range(len(images)), images.shape[1:], cell.level)
        faulty = faulty.where(broken, images)
    if cell.repair:
        offset = 0 if cell.source is None else cell.source - cell.bit
        faulty = REPAIRS[cell.repair](faulty, cell.bit, offset)
    return faulty


def faulty_weights(cell, net, seed):
    """A context manager under which the net has the faulty weights; it yields the share flipped."""
    if cell.fault == "flips":
        return weight_flips(net, cell.level, seed)
    if cell.fault in ("noise", "noise_relative"):
        return weight_noise(net, cell.level, seed, relative=cell.fault == "noise_relative")
    return nullcontext()


def measure(cell, net, tester, batches, seed):
    """The Score of a cell, and the share of weights flipped (None under image faults). tester: net, or Folded(net)."""
    with faulty_weights(cell, net, seed) as flipped:
        if flipped is not None and tester is not net:
            tester.take_weights()
        score = evaluate(tester, batches)
    if flipped is not None and tester is not net:
        tester.take_weights()
    return score, flipped


class Session:
    """A checkpoint, as the net to evaluate, and its folder of results."""

    def __init__(self, sess, seed, results, device, fold):
        self.path = checkpoints.path_of(sess, seed)
        self.name = f"{sess}_{seed}"
        self.folder = Path(results) / self.name
        self.csv = self.folder / "sweep.csv"
        self.seed = seed
        self.dataset, net, _ = checkpoints.load_net(self.path)
        self.net = net.to(device, memory_format=torch.channels_last)
        self.tester = Folded(self.net) if fold else self.net
        self.what = {
            "dataset": self.dataset, "sess": sess, "seed": seed,
            "checkpoint": sha256(self.path.read_bytes()).hexdigest()[:16],
        }  # fmt: skip

    def tidy(self, replace, say):
        """Make the folder and a sweep.csv: an empty one, or the one there is without its damaged lines."""
        try:
            rows, damaged = tables.read(self.csv) if self.csv.exists() else ([], [])
            if self.foreign(rows) and replace:
                old = self.folder.with_name(f"{self.name}.old")
                shutil.rmtree(old, ignore_errors=True)
                self.folder.rename(old)
                say(f"{self.folder}: results of another checkpoint, now {old}")
                rows = damaged = []
            elif self.foreign(rows):
                raise UserError(
                    f"{self.csv} holds rows of {self.foreign(rows)}: --replace moves {self.folder} away, --results names another folder"
                )
            if damaged:
                say(f"{self.csv}: line {', '.join(map(str, damaged))} cut short or damaged: dropped, the other {len(rows)} rows stay")
            self.folder.mkdir(parents=True, exist_ok=True)
            tables.write(self.csv, rows)
        except OSError as error:
            raise UserError(f"{self.folder} cannot be written ({error.strerror}): name another folder by --results") from None

    def foreign(self, rows):
        """In what the rows are not this checkpoint's, in words; None if they are."""
        for row in rows:
            for key, value in self.what.items():
                if row[key] != value:
                    return f"{key} {row[key]}, and {self.path} is {value}"
        return None

    def rows(self):
        return tables.read(self.csv)[0]


def sweep(args, processes):
    sessions = [
        Session(sess, seed, args.results, processes.device, args.fold)
        for seed in dict.fromkeys(args.seed)
        for sess in dict.fromkeys(args.sess)
    ]
    data = {}
    with processes.first_alone():
        for session in sessions:
            if processes.rank == 0:
                session.tidy(args.replace, processes.print)
            if session.dataset not in data:
                data[session.dataset] = load(session.dataset, args.data, False, args.workers)
    cells = wanted_cells(args)
    todo = []
    for session in sessions:
        done = {tables.cell_of(row) for row in session.rows()}
        todo += [(session, cell) for cell in sorted(cells, key=lambda cell: cell.run) if cell not in done]
    processes.wait()  # all know what is missing before the first row is added
    processes.print(f"{len(todo)} of {len(cells) * len(sessions)} evaluations to do, {', '.join(session.name for session in sessions)}")

    bar = tqdm(total=len(todo), unit="cell", disable=None if processes.rank == 0 else True, leave=False)
    try:
        for session, cell in processes.share(todo):
            images, labels = data[session.dataset]
            seed = session.seed + cell.run
            batches = EvalBatches(faulty_images(cell, images, seed), labels, processes.device)
            score, flipped = measure(cell, session.net, session.tester, batches, seed)
            row = tables.row_of(cell, score, **session.what, run_seed=seed, flipped=flipped)
            with open(session.csv, "a") as file:
                file.write(tables.to_line(row))
            bar.update(processes.number)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("every measured row is kept, the same command goes on from there") from None
    bar.close()
    processes.wait()
    if processes.rank == 0:
        write_up(sessions, data)


def write_up(sessions, data):
    """The sorted sweep.csv, tables.md, summary.json and plots of each session."""
    rows = {session.name: session.rows() for session in sessions}
    for session in sessions:
        tables.write(session.csv, rows[session.name])
        others = {other.name: rows[other.name] for other in sessions if other.seed == session.seed and other is not session}
        tables.write_text(session.folder / "tables.md", tables.markdown(session.name, rows[session.name], others))
        tables.write_text(session.folder / "summary.json", tables.summary(rows[session.name]))
        compared = {session.name: rows[session.name], **others}
        plot.write(session.folder, session.name, compared, data[session.dataset][0], session.seed)
        print(f"{session.folder}: sweep.csv, tables.md, summary.json, plots")


def main():
    args = parse()
    processes = Processes()
    try:
        sweep(args, processes)
    finally:
        processes.close()


if __name__ == "__main__":
    run(main)
