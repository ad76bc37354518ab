"""A net to measure under faults, and its sweep.csv."""

import io
from functools import cache, lru_cache

import numpy as np
import torch

from common import UserError, code_digest, digest, keep_old, write_bytes
from datasets import read_images, spaced
from engine import EvalBatches, Score, calibrated_on, calibration_of, checkpoints, measure
from engine.critical import at_chance, random_flips, worst_flips
from faults import (
    ALL_PLANES,
    NO_FAULT,
    RECALIBRATED,
    Cells,
    check_array,
    check_layers,
    first_faulty,
    memory_size,
    unrepaired,
)
from models.folded import Folded
from repairs import PROTECTIONS, protected_size
from report.comparisons import changes, confusion, mcnemar
from report.critical import draw_critical, flips_needed, read_critical, write_critical
from report.rows import OtherVersion, fault_in, name_of, read_rows, row_of, to_line, write_rows

KEPT_BYTES = 400_000_000  # of feature maps that are kept to compute only the layers behind a fault


class TestedNet:
    """A checkpoint's net with its test images and its folder of results.

    sess, seed: which checkpoint. wsconv: evaluate with weight standardisation or without; None: as trained.
    fold: evaluate the folded net. test_set_of: a function, name of a data set -> its TestSet. results: folder, a Path.
    """

    def __init__(self, sess, seed, *, wsconv, fold, device, test_set_of, results):
        self.path = checkpoints.find(sess, seed)
        dataset, net, state = checkpoints.load_net(self.path, wsconv=wsconv)
        if net.wsconv != checkpoints.trained_as(self.path, state)["wsconv"]:
            sess = f"{sess}_tested_{'with' if net.wsconv else 'without'}_wsconv"
        self.name, self.seed = f"{sess}_{seed}", seed
        self.packed = "signs" in state
        self.device = device
        self.net = net.to(device, memory_format=torch.channels_last)
        self.tester = Folded(self.net) if fold else self.net
        self.test_set = test_set_of(dataset)
        checkpoints.check_fits(self.path, net, self.test_set.images, self.test_set.labels)
        self.what = {
            "dataset": dataset,
            "images": self.test_set.digest,
            "sess": sess,
            "seed": seed,
            "checkpoint": self.checkpoint_digest(state),
            "n": len(self.test_set.labels),
        }
        self.folder = results / self.name
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
        own, outdated = [], []
        try:
            rows, damaged = self.own_rows(replace, say)
            for row in rows:
                (own if self.is_current(row) else outdated).append(row)
            self.put_away("damaged", [text for _, text in damaged])
            self.put_away("outdated", [to_line(row).rstrip("\n") for row in outdated])
        except OSError as error:
            raise UserError(f"{self.csv} cannot be read ({error.strerror}): name another folder by --results") from None
        if damaged:
            say(
                f"{self.csv}: line {', '.join(str(number) for number, _ in damaged)} cut short or damaged: "
                f"moved to {self.csv.name}.damaged, the other {len(rows)} rows stay"
            )
        if outdated:
            say(
                f"{self.csv}: {len(outdated)} rows were made by another code of their fault or repair, or learned from "
                f"other images: moved to {self.csv.name}.outdated, and measured anew if they are asked for"
            )
        unknown = sum(row["made_by"] is None and row["fault"] != "none" for row in own)
        if unknown:
            say(f"{self.csv}: {unknown} rows are from before rows said what made them: taken as they are")
        self.changed = bool(damaged or outdated) or self.tables_are_older()
        write_rows(self.csv, own)

    def own_rows(self, replace, say):
        """(rows, damaged lines) of sweep.csv. Rows of another net are moved away if `replace`; UserError if not."""
        try:
            rows, damaged = read_rows(self.csv) if self.csv.exists() else ([], [])
            foreign = self.foreign(rows)
        except OtherVersion:
            foreign = "another version of this project"
        if not foreign:
            return rows, damaged
        if not replace:
            raise UserError(
                f"{self.csv} holds rows of {foreign}: --replace moves {self.folder} away, "
                "--results names another folder"
            )
        keep_old(self.folder)
        say(f"{self.csv} held rows of {foreign}: now in {self.folder}.old")
        return [], []

    def tables_are_older(self):
        """True if sweep.csv is newer than its tables, after a sweep that was cut short, or one of them is missing."""
        tables = self.folder / "tables.md"
        return not (tables.is_file() and self.csv.is_file()) or self.csv.stat().st_mtime > tables.stat().st_mtime

    def put_away(self, why, lines):
        """Append lines of sweep.csv to sweep.csv.<why>."""
        if lines:
            with open(self.csv.with_name(f"{self.csv.name}.{why}"), "a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)

    def is_current(self, row):
        """True if a row was made by today's code, or if that cannot be known.

        It cannot for rows of older versions, without `made_by`, and where the teacher of a repair is not at hand.
        """
        try:
            return row["made_by"] in (None, self.test_set.made_by(fault_in(row)))
        except UserError:
            return True

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
        batches = EvalBatches(images, self.test_set.labels, self.device)
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
        batches = EvalBatches(self.test_set.images, self.test_set.labels, self.device)
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
        return calibration_of(self.tester, images.to(self.device))

    def predicted(self, fault):
        """The predicted classes under a fault without a repair, int64 N."""
        if fault not in self.predictions:
            self.predictions[fault] = self.evaluate(fault)[0].predicted.short()
        return self.predictions[fault].long()

    def measure(self, fault):
        """Measure a fault, and write its confusion matrix. Returns its row."""
        measured, quality = self.evaluate(fault)
        labels, predicted = self.test_set.labels, measured.predicted
        if unrepaired(fault) == fault:
            self.predictions[fault] = predicted.short()
        else:
            quality["mcnemar"] = mcnemar(labels, self.predicted(unrepaired(fault)), predicted)
        self.write_confusion(fault, confusion(labels, predicted, self.net.classes))
        return row_of(
            fault,
            measured.score,
            **self.what,
            run_seed=self.seed + fault.run,
            made_by=self.test_set.made_by(fault),
            flipped=measured.flipped,
            size=self.memory_size(fault),
            **changes(labels, self.predicted(NO_FAULT), predicted),
            **quality,
        )

    def memory_size(self, fault):
        """Number of cells that a fault can break; None for no fault and weight noise."""
        values = self.test_set.images[0].numel()
        return protected_size(fault, values) if fault.protection else memory_size(fault, self.net, values)

    def check_fault(self, fault):
        """UserError if the net has no such memory, or the array of the fault does not hold it."""
        if not fault.cells:
            return
        check_layers(fault, self.net)
        if fault.cells.lines:
            planes = ALL_PLANES if fault.memory == "image" else ()
            values, whole = self.test_set.images[0].numel(), fault._replace(cells=Cells(fault.memory, planes=planes))
            stored = values * PROTECTIONS[fault.protection].cells if fault.protection else None
            check_array(fault, stored or memory_size(whole, self.net, values))

    def search(self, runs, searched, most, say):
        """Write critical.csv and its plot: the worst flips and `runs` random ones, until the net is at chance.

        searched: number of training images whose loss the worst flips raise. most: flips at which their search ends.
        """
        path, code = self.folder / "critical.csv", code_digest(worst_flips, random_flips)
        made = digest(code.encode(), f"{searched} images, {most} flips".encode())
        what = {name: str(self.what[name]) for name in ("sess", "seed", "checkpoint", "images")} | {"made_by": made}
        rows = [row for row in read_critical(path) if what.items() <= row.items()]
        for (choice, number), steps in self.searches(runs, searched, most, flips_needed(rows)).items():
            for flips, layers, score in steps:
                spread = "+".join(f"{layer}:{flipped}" for layer, flipped in layers.items() if flipped)
                step = {"choice": choice, "run": str(number), "flips": str(flips), "layers": spread}
                rows.append({**what, **step, "n": str(score.n), "correct": str(score.correct)})
                say(f"{self.name}: {flips} flipped signs, {choice} {number}: {score.top1:.2f} %")
            write_critical(path, rows)
        draw_critical(self.folder, self.name, rows)
        for row in {(row["choice"], row["run"]): row for row in rows}.values():  # the last step of each search
            score = Score(int(row["n"]), int(row["correct"]), 0, 0.0)
            end = "bring the net to chance" if at_chance(score, self.net.classes) else "are the most that are tried"
            say(f"{self.name}: {row['flips']} flipped signs, {row['choice']} {row['run']}, {end}")

    def searches(self, runs, searched, most, done):
        """{(choice, run): steps of a search that is not done yet}."""
        batches = EvalBatches(self.test_set.images, self.test_set.labels, self.device)
        found = {
            ("random", number): random_flips(self.net, self.tester, batches, self.seed + number)
            for number in range(runs)
            if ("random", str(number)) not in done
        }
        if ("gradient", "0") not in done:
            dataset, data, workers = self.test_set.where
            images, labels = read_images(dataset, data, True, workers)
            images, labels = spaced(images, searched), spaced(labels, searched)
            found["gradient", 0] = worst_flips(self.net, self.tester, images, labels, batches, most)
        return found

    def write_confusion(self, fault, matrix):
        """Write images of each class (row) by predicted class (column) to confusion/<fault>.npz, compressed."""
        with io.BytesIO() as buffer:
            np.savez_compressed(buffer, confusion=matrix.int().numpy())
            write_bytes(self.folder / "confusion" / f"{name_of(fault)}.npz", buffer.getbuffer())
