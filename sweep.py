#!/usr/bin/env python3
"""Measure trained nets under every fault and repair, once each, and write the tables and plots.

    .venv/bin/python sweep.py                                                    # -> results/cifar10_smaller_11111/
    .venv/bin/python sweep.py --sess cifar10_smaller cifar10_smaller_wsconv --seed 11111 11112
    .venv/bin/torchrun --nproc_per_node=2 sweep.py  # the processes share the faults; same files

Each row of sweep.csv is written as soon as it is measured. After an interruption the same command measures only what
is missing. Rows for other bits, rates or runs are added to those that are there.
"""

import os
import sys
import time
from argparse import BooleanOptionalAction
from contextlib import ExitStack
from functools import cache
from itertools import product

import CIFARDataset
from common import Parser, UserError, as_path, first_line, locked, run, within, write_text
from engine import Processes, TestSet
from faults import (
    MEMORIES,
    MSB,
    NO_FAULT,
    NOISE_KINDS,
    Cells,
    Fault,
    add_cell_options,
    as_planes,
    can_recalibrate,
    check_folded,
    fault_of_cells,
    recalibrated,
)
from repairs import PROTECTIONS, REPAIRS, ImpossibleRepair, with_protection, with_repair
from report import (
    TestedNet,
    compared_names,
    fault_in,
    markdown,
    read_rows,
    summary_json,
    to_line,
    write_pictures,
    write_plots,
    write_rows,
    write_seeds,
)
from report.page import write_page

SESS = ["cifar10_smaller"]  # names of checkpoints
SEED = [11111]  # seeds of the checkpoints
DATA = "data"  # folder of all data sets
RESULTS = "results"

BITS = [7, 6, 5, 4, 3, 2, 1, 0]  # broken bits; 7 is the MSB
# repairs that hardware can do as the pixels come, without the offline ones; repaired_n copies each of bits 6 to 0
REPAIR = [name for name, row in REPAIRS.items() if row.cost]
RATE = [1e-4, 1e-3, 1e-2, 0.1, 0.3, 1]  # shares of a plane's bits that are broken, for the bits in RATE_BITS; 1: all
RATE_BITS = [7, 6, 5]
SIGMA = [0, 0.2, 0.4, 0.6, 0.8, 1.0]  # sigma_val of weight noise; its standard deviation is sigma_val²
FLIP = [1e-4, 1e-3, 1e-2, 0.02, 0.05, 0.1]  # probabilities that a binary weight flips
BER = [1e-4, 1e-3, 1e-2, 0.1]  # bit error rates of the memories in --memory
READING = ["inverted"]  # what broken cells of these memories read
SEARCHED = 1000  # training images whose loss the search of --critical raises
MOST_FLIPS = 20_000  # flipped signs at which that search ends in any case
FLAGGED = "median"  # repair of the bytes that a code flags
RUNS = 10  # of each random fault; run r draws with seed + r
EVERY = 60  # seconds between lines of progress, if there is no terminal for a progress bar
WORKERS = os.cpu_count()  # threads that decode images, on first use


def listed(values):
    return " ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


def parse():
    parser = Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sess", nargs="+", default=SESS, help=f"checkpoint names, default {listed(SESS)}")
    parser.add_argument(
        "--seed", nargs="+", type=within(int, 0, 2**62), default=SEED, help=f"their seeds, default {listed(SEED)}"
    )
    parser.add_argument("--data", default=DATA, help="folder of all data sets, default %(default)s")
    parser.add_argument(
        "--wsconv",
        action=BooleanOptionalAction,
        help="evaluate with weight standardisation or without, default: as trained",
    )
    parser.add_argument("--results", default=RESULTS, help="folder to write into, default %(default)s")
    parser.add_argument("--replace", action="store_true", help="move results of another checkpoint to <folder>.old")

    bit, share = bit_or_planes, within(float, 0, 1)
    group = parser.add_argument_group(
        "what to measure: if any is given, only the given ones (an option without a value: nothing of that kind)"
    )
    group.add_argument(
        "--bits", nargs="*", type=bit, help=f"broken bits, such as 7, or several at once, 7+6; default {listed(BITS)}"
    )
    group.add_argument("--repair", nargs="*", choices=REPAIRS, help=f"default {listed(REPAIR)}")
    group.add_argument("--rate", nargs="*", type=share, help=f"shares of a plane broken, default {listed(RATE)}")
    group.add_argument(
        "--rate_bits", nargs="*", type=within(int, 0, MSB), help=f"bits for the rates, default {listed(RATE_BITS)}"
    )
    group.add_argument(
        "--sigma", nargs="*", type=within(float, 0, 1e6), help=f"sigma_val of weight noise, default {listed(SIGMA)}"
    )
    group.add_argument("--flip", nargs="*", type=share, help=f"shares of weights flipped, default {listed(FLIP)}")
    group.add_argument(
        "--recalibrate",
        action="store_true",
        help="persistent faults of weights and feature maps also with thresholds set anew",
    )
    group.add_argument(
        "--runs", type=within(int, 1, 10_000), default=RUNS, help="runs of each random fault, default %(default)s"
    )

    group.add_argument(
        "--critical",
        action="store_true",
        help="weights of one layer at a time, and a search for few signs whose flips bring the net to chance",
    )
    group.add_argument("--memory", nargs="*", choices=MEMORIES, default=[], help="memories whose cells break")
    group = parser.add_argument_group("cells of these memories")
    add_cell_options(group, listed(BER), listed(READING), several=True)
    group.add_argument(
        "--cells",
        nargs="+",
        choices=("persistent", "transient"),
        help="the same cells for all images, or anew for each; default both, for weights persistent",
    )
    group.add_argument(
        "--protection",
        nargs="+",
        choices=PROTECTIONS,
        help=f"of the image memory; bytes that a code flags are mended by --repair, default {FLAGGED}",
    )

    group = parser.add_argument_group("machine")
    group.add_argument(
        "--workers", type=within(int, 1, 1000), default=WORKERS, help="decoding threads, default %(default)s"
    )
    group.add_argument(
        "--fold", action=BooleanOptionalAction, default=True, help="evaluate the folded net, not Brevitas' own"
    )
    args = parser.parse_args()
    if args.critical and args.memory:
        raise UserError("--critical measures the memory of the weights, layer by layer: leave --memory out")
    if args.critical:
        args.memory, args.layers = ["weights"], args.layers or ["each"]
    check_args(args)
    return fill_defaults(args)


def bit_or_planes(text):
    """An argparse type: a bit as int, or several as the planes of Cells."""
    return as_planes(text) if "+" in text or "@" in text else within(int, 0, MSB)(text)


def check_args(args):
    """UserError for options that have no effect beside the others."""
    check_folded(args)
    of_cells = ("ber", "reading", "p01", "p10", "cells", "planes", "layers", "lines", "array", "protection")
    of_cells = [name for name in of_cells if getattr(args, name) is not None]
    if of_cells and not args.memory:
        raise UserError(f"--{of_cells[0]} is for --memory: name the memories whose cells break")
    if args.planes and "image" not in args.memory:
        raise UserError("--planes is for --memory image: the other memories have layers")
    if args.protection and "image" not in args.memory:
        raise UserError("--protection is for --memory image")
    if args.layers and args.memory == ["image"]:
        raise UserError("--layers is for the memories of a net: the image memory has planes")
    if args.cells == ["transient"] and any(PROTECTIONS[name].rotates for name in args.protection or ()):
        raise UserError("--protection shuffle needs to know the broken cells, and transient cells are not known")
    if (args.p01, args.p10) != (None, None) and "asymmetric" not in (args.reading or ()):
        raise UserError("--p01 and --p10 are for --reading asymmetric")
    if args.memory and args.repair and "image" not in args.memory and not args.bits:
        raise UserError("--repair mends images: --memory image, or --bits")


def fill_defaults(args):
    """Fill in the options that are left out: with defaults if no kind is given; else kinds not given are empty.

    `--repair X` alone is every bit repaired by X; `--bits B` alone is that bit unrepaired and by every repair. With
    --memory, --repair is for the image memory.
    """
    named = bool(args.memory)
    named |= any(getattr(args, name) is not None for name in ("bits", "repair", "rate", "rate_bits", "sigma", "flip"))
    args.repairs_named = args.repair is not None
    args.mends = args.repair if args.memory and args.repair else []
    planes = args.bits is not None or (args.repair is not None and not args.memory)
    rates = args.rate or args.rate_bits is not None
    args.unrepaired = not named or args.bits is not None
    if args.bits is None:
        args.bits = BITS if planes or not named else []
    if args.repair is None:
        args.repair = REPAIR
    if args.rate is None:
        args.rate = RATE if rates or not named else []
    if args.rate_bits is None:
        args.rate_bits = RATE_BITS
    if args.sigma is None:
        args.sigma = [] if named else SIGMA
    if args.flip is None:
        args.flip = [] if named else FLIP
    return args


def wanted_faults(args, layers=((),)):
    """The Faults that the options ask to measure, each once. A rate, sigma or probability of 0 is no fault.

    layers: the sets of layers whose cells break, for the memories that have layers.
    """
    runs = range(args.runs)
    faults = [NO_FAULT]
    for bit in args.bits:
        faults += whole_planes(bit, args) if isinstance(bit, int) else several_planes(bit, args)
    faults += [
        Fault("random", bit, level=rate, run=run) for bit in args.rate_bits for rate in args.rate for run in runs
    ]
    for kind, levels in (("noise", args.sigma), ("noise_relative", args.sigma), ("flips", args.flip)):
        faults += [Fault(kind, level=level, run=run) for level in levels for run in runs]
    for memory in args.memory:
        faults += faults_of_memory(memory, args, layers if memory != "image" else [()])
    if args.recalibrate:
        mended = [recalibrated(fault) for fault in faults if can_recalibrate(fault) and fault.level]
        if not mended:
            raise UserError("--recalibrate is for persistent faults of weights or activations: name --flip, or others")
        faults += mended
    return list(dict.fromkeys(fault for fault in faults if fault.level != 0))


def whole_planes(bit, args):
    """The faults of one broken plane, unrepaired and with the repairs that mend it."""
    faults = []
    if args.unrepaired:
        faults += [Fault("random", bit, level=1.0, run=run) for run in range(args.runs)]
        faults += [Fault(kind, bit, level=1.0) for kind in ("stuck_at_0", "stuck_at_1")]
    for repair in args.repair:
        if bit not in REPAIRS[repair].cannot:
            sources = REPAIRS[repair].sources or [None]
            faults += [Fault("random", bit, repair, source, 1.0) for source in sources if source != bit]
    return faults


def several_planes(planes, args):
    """The same for several planes at once, each broken with its share as probability, anew for each image."""
    cells = Cells("image", planes=planes, persistent=False)
    faults = []
    if args.unrepaired:
        faults += [fault_of_cells(cells, "random", 1.0, run) for run in range(args.runs)]
        faults += [fault_of_cells(cells, kind, 1.0) for kind in ("stuck_at_0", "stuck_at_1")]
    return faults + with_each_repair([fault_of_cells(cells, "random", 1.0)], args.repair, args.repairs_named)


def faults_of_memory(memory, args, layers):
    """The faults of the cells of one memory, at every bit error rate and run; of images with the repairs asked for."""
    if args.lines is None and args.array is not None:
        raise UserError("--array is for --lines: name rows or columns")
    kept = args.cells or (["persistent"] if memory == "weights" else ["persistent", "transient"])
    faults, planes = [], (args.planes or ()) if memory == "image" else ()
    for names, each, lines in product(layers, kept, args.lines or [None]):
        array = args.array if lines else None
        cells = Cells(memory, names, planes, persistent=each == "persistent", lines=lines, array=array)
        for reading, level, number in product(args.reading or READING, args.ber or BER, range(args.runs)):
            asymmetry = (args.p01, args.p10) if reading == "asymmetric" else (None, None)
            fault = fault_of_cells(cells, reading, level, number, *asymmetry)
            faults.append(fault)
    if memory != "image":
        return faults
    guarded = [each for fault in faults for each in under_protection(fault, args)]
    return faults + with_each_repair(faults, args.mends, args.repairs_named) + guarded


def under_protection(fault, args):
    """A fault of cells of the image memory under each protection that can be; with the repairs of what it flags."""
    found, refused = [], None
    for name in args.protection or ():
        for repair in (args.mends or [FLAGGED]) if PROTECTIONS[name].detects else [None]:
            if fault.persistent or not PROTECTIONS[name].rotates:
                try:
                    found.append(with_protection(fault, name, repair))
                except ImpossibleRepair as error:
                    refused = error
    if refused and not found:
        raise refused
    return found


def with_each_repair(faults, repairs, named):
    """Faults of cells of the image memory with each of the repairs that can mend them, told the map and not told it.

    Transient cells have no map, and without one a repair needs an intact plane. UserError if there is no such fault,
    and the repairs were named by the user.
    """
    found, refused = [], None
    for fault, repair, known in product(faults, repairs, (True, False)):
        for source in REPAIRS[repair].sources or [None]:
            try:
                found.append(with_repair(fault, repair, source, known))
            except ImpossibleRepair as error:
                refused = error
    if refused and named and not found:
        raise refused
    return found


def sets_of_layers(args, sessions):
    """The sets of layers that break together: those of --layers; with `each`, every layer of the nets for itself."""
    names = {tuple(session.net.layer_names()) for session in sessions}
    if args.layers is None:
        return [()]
    if args.layers != ["each"]:
        return [tuple(args.layers)]
    if len(names) > 1:
        raise UserError("--layers each is for nets of the same layers: sweep the sessions one after another")
    return [(name,) for name in names.pop()]


def turn(fault):
    """Sort key: layer by layer, because the maps before one layer are kept; by run, to draw random bits once per run.

    Slow repairs come first, so that processes share them evenly.
    """
    slow = fault.repair in REPAIRS and REPAIRS[fault.repair].cost is None
    layers = fault.cells.layers if fault.cells else ()
    return layers, fault.run, not slow, fault.repair if slow else ""


def sweep(args, processes):
    names = [(sess, seed) for seed in dict.fromkeys(args.seed) for sess in dict.fromkeys(args.sess)]
    test_set_of = cache(lambda dataset: TestSet(dataset, args.data, args.workers))
    options = {"wsconv": args.wsconv, "fold": args.fold, "results": as_path(args.results), "device": processes.device}
    with ExitStack() as locks:
        with processes.first_alone():
            sessions = [TestedNet(sess, seed, test_set_of=test_set_of, **options) for sess, seed in names]
            if processes.rank == 0:
                for session in sessions:
                    locks.enter_context(locked(session.folder, f"{session.folder}"))
                    session.tidy(args.replace, processes.print)
        measure_missing(sessions, possible_faults(args, sessions), processes)
        processes.wait()
        if processes.rank == 0:
            changed = write_up(sessions)
            for session in sessions if args.critical else []:
                session.search(args.runs, SEARCHED, MOST_FLIPS, processes.print)
            if changed:
                for path in write_seeds(as_path(args.results)):
                    print(f"{path}: nets of several seeds")
                print(f"{write_page(as_path(args.results), args.data, args.workers)[0]}: all sessions")


def possible_faults(args, sessions):
    """The faults that the options ask for. UserError, before anything is measured, if one cannot be on a net.

    With --layers each, a memory that the last layer does not have is left out.
    """
    faults = wanted_faults(args, sets_of_layers(args, sessions))
    if args.layers == ["each"]:
        last = sessions[0].net.layer_names()[-1]
        faults = [
            fault for fault in faults if fault.memory == "weights" or not fault.cells or last not in fault.cells.layers
        ]
    for fault in faults:
        for session in sessions:
            session.check_fault(fault)
    return faults


def measure_missing(sessions, faults, processes):
    """Measure this process's share of the faults that are missing in the sessions' sweep.csv."""
    todo = {fault: [] for fault in sorted(faults, key=turn)}
    for session in sessions:
        done = {fault_in(row) for row in session.rows()}
        possible = [fault for fault in faults if not (session.packed and fault.kind in NOISE_KINDS)]
        if len(possible) < len(faults):
            processes.print(
                f"{session.path} is packed, without the latent weights that weight noise needs: no noise is measured"
            )
        for fault in possible:
            if fault not in done:
                todo[fault].append(session)
                session.changed = True
    todo = [(fault, missing) for fault, missing in todo.items() if missing]
    rows = sum(len(missing) for _, missing in todo)
    processes.wait()  # every process must know what is missing before the first row is added
    processes.print(
        f"{', '.join(session.name for session in sessions)}: {rows} of {len(faults) * len(sessions)} cells to measure"
    )

    mine = [(session, fault) for fault, missing in processes.share(todo) for session in missing]
    try:
        with processes.first_alone():  # what repairs must learn is learned once, and errors come before the first row
            needed = [(session.test_set, fault) for fault, missing in todo for session in missing]
            for test_set, fault in needed:
                test_set.made_by(fault)  # a missing teacher is named before hours of learning
            for test_set, fault in needed:
                test_set.state_of(fault)
        said = time.monotonic()
        for number, (session, fault) in enumerate(processes.bar(mine, "sweep", len(mine)), 1):
            line = to_line(session.measure(fault))
            with open(session.csv, "a", encoding="utf-8") as file:
                file.write(line)
            if time.monotonic() - said > EVERY and not sys.stderr.isatty():
                processes.print(f"{number * processes.number} of {rows} measured")
                said = time.monotonic()
    except KeyboardInterrupt:
        raise KeyboardInterrupt("every measured row is kept, the same command goes on from there") from None


def last_compared(session):
    """The names of the sessions in the tables of a session; None where there are no tables."""
    tables = session.folder / "tables.md"
    text = tables.read_text("utf-8", "replace") if tables.is_file() else ""
    return compared_names(text) if text else None


def compared_with(session, sessions):
    """The rows of the sessions that a session is compared with, {name: rows}: of this call, else of the last one."""
    others = [other for other in sessions if other.seed == session.seed and other is not session]
    if others:
        return {other.name: other.rows() for other in others}
    found = {}
    for name in last_compared(session) or ():
        path = session.folder.with_name(name) / "sweep.csv"
        try:
            found[name] = read_rows(path)[0]
        except (OSError, UserError) as error:
            print(f"{path} cannot be read, so {session.name} is not compared with it ({first_line(error)})")
    return found


def write_up(sessions):
    """Write sweep.csv, sorted, tables.md, summary.json and plots of each session that has changed or lacks them.

    Returns True if there was one.
    """
    written = False
    for session in sessions:
        own, others = session.rows(), compared_with(session, sessions)
        if not session.changed and last_compared(session) == list(others):
            print(f"{session.folder}: nothing new")
            continue
        write_rows(session.csv, own)
        write_text(session.folder / "tables.md", markdown(session.name, own, others))
        write_text(session.folder / "summary.json", summary_json(own))
        write_plots(session.folder, {session.name: own, **others})
        write_pictures(
            session.folder,
            session.test_set.images,
            session.seed,
            own,
            CIFARDataset.NEIGHBOR_OFFSET,
            session.test_set.state_at_hand,
        )
        print(f"{session.folder}: sweep.csv, tables.md, summary.json, plots")
        written = True
    return written


def main():
    args = parse()
    processes = Processes()
    try:
        sweep(args, processes)
    finally:
        processes.close()


if __name__ == "__main__":
    run(main)
