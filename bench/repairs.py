#!/usr/bin/env python3
"""Images/s of repairs, on a batch of test images with a broken bit.

    .venv/bin/python -m bench.repairs                       # bit 6
    .venv/bin/python -m bench.repairs --bits 7 6 5 4 3 2 1 0
    .venv/bin/python -m bench.repairs --repair median learned

Each repair runs once per round, so that all see the same load of the machine. The median of the rounds is printed.
"""

import statistics
import time

import torch

from common import Parser, run, within
from datasets import DATASETS, read_images
from engine import state_of
from faults import MSB, faulty_images
from repairs import REPAIRS, fault_of, repaired

ROUNDS = 5
IMAGES = 500


def main():
    parser = Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--dataset", choices=DATASETS, default="cifar10")
    parser.add_argument("--data", default="data")
    parser.add_argument("--bits", nargs="+", type=within(int, 0, MSB), default=[6])
    parser.add_argument("--repair", nargs="+", choices=REPAIRS, default=list(REPAIRS), help="default: all")
    parser.add_argument("--rounds", type=within(int, 1), default=ROUNDS)
    args = parser.parse_args()
    images = read_images(args.dataset, args.data, False)[0][:IMAGES]
    print(f"images/s, median of {args.rounds} rounds of {len(images)} images, {torch.get_num_threads()} threads")
    for bit in args.bits:
        names = [name for name in args.repair if bit not in REPAIRS[name].cannot]
        faults = {name: fault_of(name, bit, 1 if bit == 0 else -1) for name in names}
        states = {name: state_of(faults[name], args.dataset, args.data) for name in names}
        faulty = faulty_images(fault_of("faulty", bit, -1), images, 0)
        times = {name: [] for name in names}
        for _ in range(args.rounds):
            for name in names:
                start = time.perf_counter()
                repaired(faults[name], faulty, states[name])
                times[name].append(time.perf_counter() - start)
        rates = (f"{name} {len(images) / statistics.median(times[name]):.0f}" for name in names)
        print(f"bit {bit}: {', '.join(rates)}")


if __name__ == "__main__":
    run(main)
