#!/usr/bin/env python3
"""Draw the plots of sweeps, from their sweep.csv alone.

    python plot.py results/cifar10_smaller_11111          # -> PNGs and SVGs in there
    python plot.py results/cifar10_smaller_11111 results/cifar10_smaller_wsconv_11111      # with a line for each

sweep.py does so at its end, and adds a picture of test images, clean, faulty and repaired.
"""

from pathlib import Path

from common import Parser, UserError, run
from report import read_rows, write_plots


def main():
    parser = Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="of sweeps; each is compared with the others")
    folders = parser.parse_args().folders
    sessions = {}
    for folder in folders:
        path = folder / "sweep.csv"
        if not path.is_file():
            raise UserError(f"{path} is missing: python sweep.py measures it")
        rows, damaged = read_rows(path)
        if damaged or not rows:
            raise UserError(f"{path} is not complete: python sweep.py goes on with it")
        sessions[folder.resolve().name] = rows
    for folder in folders:
        name = folder.resolve().name
        write_plots(folder, {name: sessions[name], **sessions})
        print(f"{folder}: plots")


if __name__ == "__main__":
    run(main)
