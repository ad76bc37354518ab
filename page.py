#!/usr/bin/env python3
"""Write results/index.html: all sessions in results/ on one page, to open from the disk in a browser.

    .venv/bin/python page.py                                # -> results/index.html
    .venv/bin/python page.py --results elsewhere            # -> elsewhere/index.html

sweep.py writes it at its end, too. It is made from the sweep.csv files alone. Its pictures need the test images in
data/ and a checkpoint; where they are not at hand, it is made without pictures and says so.
"""

import os

from common import Parser, as_path, run, within
from report.page import write_page

RESULTS = "results"  # folder of the sessions
DATA = "data"  # folder of all data sets
WORKERS = os.cpu_count()  # threads that decode images, on first use


def main():
    parser = Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--results", default=RESULTS, help="folder of the sessions, default %(default)s")
    parser.add_argument("--data", default=DATA, help="folder of all data sets, default %(default)s")
    parser.add_argument(
        "--workers", type=within(int, 1, 1000), default=WORKERS, help="decoding threads, default %(default)s"
    )
    args = parser.parse_args()
    path, left_out = write_page(as_path(args.results), args.data, args.workers)
    for line in left_out:
        print(f"left out: {line}")
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run(main)
