#!/usr/bin/env python3
"""Images/s of every repair, on a batch of test images with a broken bit.

    python bench/repairs.py                       # bit 6
    python bench/repairs.py --bits 7 6 5 4 3 2 1 0

Round by round each repair runs once, so that all see the same noise of the machine; the median counts.
"""

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from cli import Parser, run, within
from faults import MSB, REPAIRS, break_bit, image_bits, mend
from loader import DATASETS, fitter, load

ROUNDS = 5
IMAGES = 500


def main():
    parser = Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--dataset", choices=DATASETS, default="cifar10")
    parser.add_argument("--data", default="data")
    parser.add_argument("--bits", nargs="+", type=within(int, 0, MSB), default=[6])
    parser.add_argument("--rounds", type=within(int, 1), default=ROUNDS)
    args = parser.parse_args()
    images = load(args.dataset, args.data, False)[0][:IMAGES]
    fitted = fitter(args.dataset, args.data)
    print(f"images/s, median of {args.rounds} rounds of {len(images)} images, {torch.get_num_threads()} threads")
    for bit in args.bits:
        faulty = break_bit(images, bit, image_bits(0, range(len(images)), images.shape[1:]))
        names = [name for name in REPAIRS if bit not in REPAIRS[name].cannot]
        extras = {name: int(bit == 0) if name == "repaired_n" else fitted(name, bit) for name in names}
        times = {name: [] for name in names}
        for _ in range(args.rounds):
            for name in names:
                start = time.perf_counter()
                mend(name, faulty, bit, extras[name])
                times[name].append(time.perf_counter() - start)
        rates = (f"{name} {len(images) / statistics.median(times[name]):.0f}" for name in names)
        print(f"bit {bit}: {', '.join(rates)}")


if __name__ == "__main__":
    run(main)
