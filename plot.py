#!/usr/bin/env python3
"""Draw the plots of sweeps, from their sweep.csv alone.

    .venv/bin/python plot.py results/cifar10_smaller_11111          # -> PNGs and SVGs in that folder
    .venv/bin/python plot.py results/cifar10_smaller_11111 results/cifar10_smaller_wsconv_11111      # a line for each

sweep.py draws them at its end, too, and adds a picture of test images: clean, faulty and repaired.
"""

import os
from pathlib import Path

from common import Parser, UserError, run
from report import draw_energy, read_points, read_rows, summarize, write_plots


def main():
    parser = Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="folders of sweeps; each is compared with the others")
    parser.add_argument(
        "--energy", type=Path, help="CSV of voltage, ber, energy: also draws accuracy against energy of the protections"
    )
    args = parser.parse_args()
    folders = {folder.resolve(): folder for folder in args.folders}
    names = {path: path.name for path in folders}
    if len(set(names.values())) < len(names):  # folders of the same name in different places
        above = os.path.commonpath(folders)
        names = {path: os.path.relpath(path, above) for path in folders}
    sessions = {}
    for path, folder in folders.items():
        if not (path / "sweep.csv").is_file():
            raise UserError(f"{folder / 'sweep.csv'} is missing: .venv/bin/python sweep.py measures it")
        rows, damaged = read_rows(path / "sweep.csv")
        if damaged or not rows:
            raise UserError(f"{folder / 'sweep.csv'} is not complete, or damaged: .venv/bin/python sweep.py mends it")
        sessions[names[path]] = rows
    points = read_points(args.energy) if args.energy else None
    for path, folder in folders.items():
        name = names[path]
        if points:
            draw_energy(path, name, summarize(sessions[name]), points)
        write_plots(path, {name: sessions[name], **sessions})
        print(f"{folder}: plots")


if __name__ == "__main__":
    run(main)
