#!/usr/bin/env python3
"""Measure trained nets under every fault and repair, once each, and write the tables and plots.

    .venv/bin/python sweep.py                                                    # -> results/cifar10_smaller_11111/
    .venv/bin/python sweep.py --sess cifar10_smaller cifar10_smaller_wsconv --seed 11111 11112
    .venv/bin/torchrun --nproc_per_node=2 sweep.py  # the processes share the faults; same files

Each row of sweep.csv is written as soon as it is measured. After an interruption the same command measures only what
is missing. Rows for other bits, rates or runs are added to those that are there.
"""

import io
import math
import os
import sys
from argparse import BooleanOptionalAction
from contextlib import ExitStack
from functools import cache, lru_cache
from itertools import product

import numpy as np
import torch

import CIFARDataset
from common import (
    Parser,
    UserError,
    as_path,
    code_digest,
    digest,
    first_line,
    keep_old,
    locked,
    run,
    within,
    write_bytes,
    write_text,
)
from datasets import read_images, spaced
from engine import (
    EvalBatches,
    Processes,
    calibrated_on,
    calibration_of,
    checkpoints,
    measure,
    state_of,
    training_digest,
)
from engine.critical import random_flips, worst_flips
from faults import (
    MEMORIES,
    MSB,
    NO_FAULT,
    NOISE_KINDS,
    RECALIBRATED,
    Cells,
    Fault,
    add_cell_options,
    applied_by,
    as_planes,
    can_recalibrate,
    check_folded,
    check_layers,
    fault_of_cells,
    first_faulty,
    memory_size,
    recalibrated,
    same_bits,
)
from models.folded import RECALIBRATION, Folded
from repairs import (
    PROTECTIONS,
    REPAIRS,
    ImpossibleRepair,
    made_by,
    made_by_cells,
    with_fault,
    with_protection,
    with_repair,
)
from report import (
    OtherVersion,
    changes,
    compared_names,
    confusion,
    draw_critical,
    fault_in,
    flips_needed,
    markdown,
    mcnemar,
    name_of,
    read_critical,
    read_rows,
    row_of,
    summary_json,
    to_line,
    write_critical,
    write_pictures,
    write_plots,
    write_rows,
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
KEPT_BYTES = 400_000_000  # of feature maps that are kept to compute only the layers behind a fault
FLAGGED = "median"  # repair of the bytes that a code flags
RUNS = 10  # of each random fault; run r draws with seed + r
LINE = 50  # faults per line of progress, if there is no terminal for a progress bar
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
    if args.critical and not args.memory:
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
    return faults + with_each_repair([fault_of_cells(cells, "random", 1.0)], args.repair)


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
    return faults + with_each_repair(faults, args.mends) + guarded


def under_protection(fault, args):
    """A fault of cells of the image memory under each protection that can be; with the repairs of what it flags."""
    faults = []
    for name in args.protection or ():
        for repair in (args.mends or [FLAGGED]) if PROTECTIONS[name].detects else [None]:
            if fault.cells.persistent or not PROTECTIONS[name].rotates:
                faults.append(with_protection(fault, name, repair))
    return faults


def with_each_repair(faults, repairs):
    """Faults of cells of the image memory with each of the repairs that can mend them, told the map and not told it.

    Transient cells have no map, and without one a repair needs an intact plane. UserError if there is no such fault.
    """
    found, refused = [], None
    for fault, repair, known in product(faults, repairs, (True, False)):
        for source in REPAIRS[repair].sources or [None]:
            try:
                found.append(with_repair(fault, repair, source, known))
            except ImpossibleRepair as error:
                refused = error
    if refused and not found:
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


def psnr(clean, images):
    """Peak signal-to-noise ratio over all values of all images, dB; None if nothing differs."""
    errors = sum(((a.int() - b.int()) ** 2).sum().item() for a, b in zip(clean.split(1000), images.split(1000)))
    return round(10 * math.log10(255**2 * clean.numel() / errors), 4) if errors else None


class TestSet:
    """The test images of a data set, clean and under faults."""

    def __init__(self, dataset, args):
        self.where = dataset, args.data, args.workers
        self.images, self.labels = read_images(dataset, args.data, False, args.workers)
        self.digest = digest(self.images, self.labels)
        self.state_of = cache(lambda fault: state_of(fault, *self.where))
        self.code_of = cache(lambda digest_of, *arguments: digest_of(*arguments))
        self.under = lru_cache(1)(self._under)  # keeps one fault: all sessions measure it before the next fault

    def made_by(self, fault):
        """A digest of what determines a fault's results besides net and test images; None for no fault."""
        if fault.kind == "none":
            return None
        if fault.cells and fault.memory == "image":
            return self.code_of(made_by_cells, fault.repair, fault.protection, fault.known)
        if fault.repair == RECALIBRATED:
            code = self.code_of(code_digest, applied_by(fault), calibrated_on, *RECALIBRATION)
            return digest(code.encode(), training_digest(*self.where).encode())
        if fault.memory == "image":
            learns = fault.repair and REPAIRS[fault.repair].learn
            return self.code_of(made_by, fault.repair, self.where[0], training_digest(*self.where) if learns else "")
        return self.code_of(code_digest, applied_by(fault))

    def _under(self, fault, seed):
        """(images after a fault and its repair, {column: value} of its row: recovered bits and PSNR)."""
        images = with_fault(self.images, fault, seed, self.state_of(fault))
        if fault.memory != "image":
            return images, {}
        bits = [fault.bit] if fault.bit is not None else [bit for bit, _ in fault.cells.planes]
        return images, {"recovered": same_bits(self.images, images, bits), "psnr": psnr(self.images, images)}


class Session:
    """A checkpoint's net to evaluate, with its test images and its folder of results."""

    def __init__(self, sess, seed, args, device, test_sets):
        self.path = checkpoints.find(sess, seed)
        dataset, net, state = checkpoints.load_net(self.path, wsconv=args.wsconv)
        if net.wsconv != checkpoints.trained_as(self.path, state)["wsconv"]:
            sess = f"{sess}_tested_{'with' if net.wsconv else 'without'}_wsconv"
        self.name, self.seed = f"{sess}_{seed}", seed
        self.packed = "signs" in state
        self.net = net.to(device, memory_format=torch.channels_last)
        self.tester = Folded(self.net) if args.fold else self.net
        if dataset not in test_sets:
            test_sets[dataset] = TestSet(dataset, args)
        self.test_set = test_sets[dataset]
        checkpoints.check_fits(self.path, net, self.test_set.images, self.test_set.labels)
        self.what = {
            "dataset": dataset,
            "images": self.test_set.digest,
            "sess": sess,
            "seed": seed,
            "checkpoint": self.checkpoint_digest(state),
            "n": len(self.test_set.labels),
        }
        self.folder = as_path(args.results) / self.name
        if self.images_differ():
            self.folder = self.folder.with_name(f"{self.name}_{self.what['images']}")
        self.calibration = cache(self._calibration)
        self.kept_maps = lru_cache(1)(self._kept_maps)  # keeps one layer: its faults are measured one after another
        self.predictions = {}  # {fault without a repair: predicted classes}
        self.changed = False  # True if its sweep.csv has changed since the tables were written

    def checkpoint_digest(self, state):
        """Digest of the checkpoint; of a packed one that of its source, if its own content is known to be right."""
        if self.packed and "packed_from" in state and "sha256" in state:
            return state["packed_from"]
        return digest(self.path.read_bytes())

    @property
    def csv(self):
        return self.folder / "sweep.csv"

    def images_differ(self):
        """True if the folder holds results of this net on other test images, such as another copy of the data set."""
        try:
            rows = self.rows() if self.csv.is_file() else []
        except UserError:
            return False
        return any(
            row["checkpoint"] == self.what["checkpoint"] and row["images"] != self.what["images"] for row in rows
        )

    def tidy(self, replace, say):
        """Make the folder and an empty sweep.csv, or remove from the one there the rows that must be measured again."""
        try:
            try:
                rows, damaged = read_rows(self.csv) if self.csv.exists() else ([], [])
                foreign = self.foreign(rows)
            except OtherVersion:
                rows, damaged, foreign = [], [], "another version of this project"
            if foreign and replace:
                keep_old(self.folder)
                say(f"{self.csv} held rows of {foreign}: now in {self.folder}.old")
                rows, damaged = [], []
            elif foreign:
                raise UserError(
                    f"{self.csv} holds rows of {foreign}: --replace moves {self.folder} away, "
                    "--results names another folder"
                )
            own = [row for row in rows if self.is_current(row)]
            outdated = [to_line(row).rstrip("\n") for row in rows if not self.is_current(row)]
            self.put_away("damaged", [text for _, text in damaged])
            self.put_away("outdated", outdated)
            if damaged:
                say(
                    f"{self.csv}: line {', '.join(str(number) for number, _ in damaged)} cut short or damaged: "
                    f"moved to {self.csv.name}.damaged, the other {len(rows)} rows stay"
                )
        except OSError as error:
            raise UserError(f"{self.csv} cannot be read ({error.strerror}): name another folder by --results") from None
        if outdated:
            say(
                f"{self.csv}: {len(outdated)} rows were made by another code of their fault or repair, or learned from "
                f"other images: moved to {self.csv.name}.outdated, and measured anew if they are asked for"
            )
        unknown = sum(row["made_by"] is None and row["fault"] != "none" for row in own)
        if unknown:
            say(f"{self.csv}: {unknown} rows are from before rows said what made them: taken as they are")
        tables = self.folder / "tables.md"
        # it may have grown without its tables, by a sweep that was cut short
        self.changed = (
            not tables.is_file() or not self.csv.is_file() or self.csv.stat().st_mtime > tables.stat().st_mtime
        )
        self.changed |= bool(damaged or outdated)
        write_rows(self.csv, own)

    def put_away(self, why, lines):
        """Append lines of sweep.csv to sweep.csv.<why>."""
        if lines:
            with open(self.csv.with_name(f"{self.csv.name}.{why}"), "a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)

    def is_current(self, row):
        """True if a row was made by today's code. Rows of older versions, without `made_by`, count as made by it."""
        return row["made_by"] in (None, self.test_set.made_by(fault_in(row)))

    def foreign(self, rows):
        """Describes the first mismatch between rows and this session; "" if there is none."""
        for row in rows:
            for key, value in self.what.items():
                if row[key] != value:
                    return f"{key} {row[key]}, not {value} as in {self.path} and its test set"
        return ""

    def rows(self):
        return read_rows(self.csv)[0]

    def evaluate(self, fault):
        """(what is Measured under a fault, {column: value} of the quality of its images)."""
        seed = self.seed + fault.run
        # one seed for all sessions: no repair of a whole plane depends on what broken bits read
        images, quality = self.test_set.under(fault, 0 if fault.repair and not fault.cells else seed)
        batches = EvalBatches(images, self.test_set.labels, next(self.net.parameters()).device)
        if fault.repair == RECALIBRATED:
            return measure(fault, self.net, self.tester, batches, seed, calibration=self.calibration()), quality
        first = first_faulty(fault, self.net)
        kept = self.kept_maps(first) if first and self.tester is not self.net else None
        if kept is None:
            return measure(fault, self.net, self.tester, batches, seed), quality
        self.tester.start = first
        try:
            return measure(fault, self.net, self.tester, kept, seed), quality
        finally:
            self.tester.start = 0

    def _kept_maps(self, layer):
        """Batches of (what a layer of the intact net reads, labels) for all test images; None if they are too large."""
        batches = EvalBatches(self.test_set.images, self.test_set.labels, next(self.net.parameters()).device)
        found, size = [], 0
        for images, labels in batches:
            found.append((self.tester.maps_before(layer, images), labels))
            size += found[-1][0].nbytes
            if size > KEPT_BYTES:
                return None
        return found

    def _calibration(self):
        """What thresholds are recalibrated with."""
        dataset, data, workers = self.test_set.where
        images = calibrated_on(read_images(dataset, data, True, workers)[0])
        return calibration_of(self.tester, images.to(next(self.net.parameters()).device))

    def predicted(self, fault):
        """The predicted classes under a fault without a repair, int64 N."""
        if fault not in self.predictions:
            self.predictions[fault] = self.evaluate(fault)[0].predicted.short()
        return self.predictions[fault].long()

    def measure(self, fault):
        """Measure a fault, and write its confusion matrix. Returns its row."""
        measured, quality = self.evaluate(fault)
        labels, predicted = self.test_set.labels, measured.predicted
        if without_repair(fault) == fault:
            self.predictions[fault] = predicted.short()
        else:
            quality["mcnemar"] = mcnemar(labels, self.predicted(without_repair(fault)), predicted)
        self.write_confusion(fault, confusion(labels, predicted, self.net.classes))
        return row_of(
            fault,
            measured.score,
            **self.what,
            run_seed=self.seed + fault.run,
            made_by=self.test_set.made_by(fault),
            flipped=measured.flipped,
            size=memory_size(fault, self.net, self.test_set.images[0].numel()),
            **changes(labels, self.predicted(NO_FAULT), predicted),
            **quality,
        )

    def search(self, runs, say):
        """Write critical.csv and its plot: the worst flips and `runs` random ones, until the net is at chance."""
        path, made = self.folder / "critical.csv", code_digest(worst_flips, random_flips)
        what = {name: str(self.what[name]) for name in ("sess", "seed", "checkpoint", "images")} | {"made_by": made}
        rows = [row for row in read_critical(path) if what.items() <= row.items()]
        for (choice, number), steps in self.searches(runs, flips_needed(rows)).items():
            for flips, layers, score in steps:
                spread = "+".join(f"{layer}:{number}" for layer, number in layers.items() if number)
                step = {"choice": choice, "run": str(number), "flips": str(flips), "layers": spread}
                rows.append({**what, **step, "n": str(score.n), "correct": str(score.correct)})
                say(f"{self.name}: {flips} flipped signs, {choice} {number}: {score.top1:.2f} %")
            write_critical(path, rows)
        draw_critical(self.folder, self.name, rows)
        for (choice, number), flips in flips_needed(rows).items():
            say(f"{self.name}: {flips} flipped signs, {choice} {number}, bring the net to chance")

    def searches(self, runs, done):
        """{(choice, run): steps of a search that is not done yet}."""
        batches = EvalBatches(self.test_set.images, self.test_set.labels, next(self.net.parameters()).device)
        found = {
            ("random", number): random_flips(self.net, self.tester, batches, self.seed + number)
            for number in range(runs)
            if ("random", str(number)) not in done
        }
        if ("gradient", "0") not in done:
            dataset, data, workers = self.test_set.where
            images, labels = read_images(dataset, data, True, workers)
            images, labels = spaced(images, SEARCHED), spaced(labels, SEARCHED)
            found["gradient", 0] = worst_flips(self.net, self.tester, images, labels, batches, MOST_FLIPS)
        return found

    def write_confusion(self, fault, matrix):
        """Write images of each class (row) by predicted class (column) to confusion/<fault>.npz, compressed."""
        with io.BytesIO() as buffer:
            np.savez_compressed(buffer, confusion=matrix.int().numpy())
            write_bytes(self.folder / "confusion" / f"{name_of(fault)}.npz", buffer.getbuffer())


def without_repair(fault):
    """The same fault without repair and protection."""
    return fault._replace(repair=None, source=None, known=None, protection=None)


def turn(fault):
    """Sort key: layer by layer, because the maps before one layer are kept; by run, to draw random bits once per run.

    Slow repairs come first, so that processes share them evenly.
    """
    slow = fault.repair in REPAIRS and REPAIRS[fault.repair].cost is None
    layers = fault.cells.layers if fault.cells else ()
    return layers, fault.run, not slow, fault.repair if slow else ""


def sweep(args, processes):
    names = [(sess, seed) for seed in dict.fromkeys(args.seed) for sess in dict.fromkeys(args.sess)]
    test_sets = {}
    with ExitStack() as locks:
        with processes.first_alone():
            sessions = [Session(sess, seed, args, processes.device, test_sets) for sess, seed in names]
            if processes.rank == 0:
                for session in sessions:
                    locks.enter_context(locked(session.folder, f"{session.folder}"))
                    session.tidy(args.replace, processes.print)
        measure_missing(sessions, possible_faults(args, sessions), processes)
        processes.wait()
        if processes.rank == 0:
            changed = write_up(sessions)
            for session in sessions if args.critical else []:
                session.search(args.runs, processes.print)
            if changed:
                print(f"{write_page(as_path(args.results), args.data, args.workers)[0]}: all sessions")


def possible_faults(args, sessions):
    """The faults that the options ask for. UserError, before anything is measured, if a net has not such a memory.

    With --layers each, a memory that the last layer does not have is left out.
    """
    faults = wanted_faults(args, sets_of_layers(args, sessions))
    if args.layers == ["each"]:
        last = sessions[0].net.layer_names()[-1]
        faults = [
            fault for fault in faults if fault.memory == "weights" or not fault.cells or last not in fault.cells.layers
        ]
    for fault in faults:
        for session in sessions if fault.cells else []:
            check_layers(fault, session.net)
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
        for number, (session, fault) in enumerate(processes.bar(mine, "sweep", len(mine)), 1):
            line = to_line(session.measure(fault))
            with open(session.csv, "a", encoding="utf-8") as file:
                file.write(line)
            if number % LINE == 0 and not sys.stderr.isatty():
                processes.print(f"{number * processes.number} of {rows} measured")
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
            session.test_set.state_of,
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
