"""sweep.py, report/ and plot.py against a slow loop over Brevitas and the data set's items, and by their files."""

import csv
import json
import os
import pickle
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from made import TINY, save_checkpoint, trained_net, write_cifar10
from matplotlib import image as png
from matplotlib import pyplot as plt

import engine
import faults
import plot
import repairs
import report
import sweep
from CIFARDataset import CIFAR10
from common import locked
from engine import Score, checkpoints
from faults import NO_FAULT, Fault
from models import TOPOLOGIES

ROWS = 20  # test images
FEW = [
    "--data",
    ".",
    "--bits",
    "7",
    "3",
    "--repair",
    "repaired_n",
    "repaired_s",
    "not_msb",
    "neighbors",
    "--rate",
    "0.01",
    "0.3",
    "1",
    "--rate_bits",
    "6",
    "--sigma",
    "0",
    "0.3",
    "--flip",
    "0.02",
    "--runs",
    "3",
]
FOLDER = Path("results/cifar10_smaller_11111")
PLOTS = ("bits", "flips", "images", "ladder", "noise", "rates")
FILES = [*(f"{name}.{kind}" for name in PLOTS for kind in ("png", "svg")), "summary.json", "sweep.csv", "tables.md"]


def save_net(sess, wsconv=False):
    """A checkpoint of a random net."""
    save_checkpoint(trained_net("cifar10", wsconv), sess, "cifar10", wsconv)


@pytest.fixture
def ready(tmp_path, monkeypatch):
    """Data, and the checkpoints of a small net without and with weight standardisation."""
    monkeypatch.setitem(TOPOLOGIES, "cifar_smaller", TINY)
    write_cifar10(tmp_path, rows=ROWS)
    save_net("cifar10_smaller")
    save_net("cifar10_smaller_wsconv", wsconv=True)


@pytest.fixture
def call(run_script):
    return lambda *words, script=sweep: run_script(script, *words)


def csv_rows(folder=FOLDER):
    with open(folder / "sweep.csv") as file:
        return list(csv.DictReader(file))


def contents(folder=FOLDER):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def slow_images(row):
    """The test images of a row, float32 N×3×32×32, from the data set's items and bits unpacked in NumPy."""
    seed, bit = int(row["run_seed"]), int(row["bit"] or 0)
    if row["fault"] in ("none", "noise", "noise_relative", "flips"):
        return items("baseline", seed)
    if row["repair"] == "repaired_n":
        return items("repaired_n", seed, faulty_bit=bit, neighbor_offset=int(row["source"]) - bit)
    if row["repair"] == "repaired_s":
        assert row["source"] == "7"
        return items("repaired_s", seed, faulty_bit=bit)
    if row["repair"]:
        assert row["source"] == "" and row["fault"] == "random"
        return items(row["repair"], seed, faulty_bit=bit)
    clean = items("baseline", seed)
    if row["fault"] == "random":
        broken = items("faulty", seed, faulty_bit=bit)
        shares = np.stack([np.random.default_rng([seed, i, 1]).random(3072) for i in range(ROWS)])
        return np.where(shares.reshape(clean.shape) < float(row["level"]), broken, clean)
    bits = np.unpackbits((clean * 255).round().astype(np.uint8)[..., None], axis=-1)
    bits[..., 7 - bit] = {"stuck_at_0": 0, "stuck_at_1": 1}[row["fault"]]
    return (np.packbits(bits, axis=-1)[..., 0] / np.float32(255)).astype(np.float32)


def items(mem_fault, seed, **options):
    dataset = CIFAR10(".", mem_fault, train=False, seed=seed, **options)
    return np.stack([dataset[i][0].numpy() for i in range(len(dataset))])


def break_weights(net, row):
    """Puts the weight fault of a row into the net. Returns the share of flipped signs."""
    seed, level = int(row["run_seed"]), float(row["level"])
    draws = torch.Generator().manual_seed(seed)
    flipped = total = 0
    for layer in net.binary_layers():
        latent = layer.weight.data
        centre = latent.mean() if "wsconv" in row["sess"] and latent.dim() == 4 else 0
        positive = (latent - centre >= 0).numpy()
        if row["fault"] == "flips":
            wrong = (torch.rand(latent.shape, generator=draws) < level).numpy()
            # latent weights that binarise to the flipped signs; symmetric, so that standardising keeps the signs
            latent.copy_(torch.from_numpy(np.where(positive ^ wrong, 1.0, -1.0)))
            assert latent.mean().abs() < 1
            now = positive ^ wrong
        else:
            rms = np.sqrt((latent.double().numpy() ** 2).mean()) if row["fault"] == "noise_relative" else 1
            latent.add_(torch.randn(latent.shape, generator=draws) * level**2 * np.float32(rms))
            centre = latent.mean() if "wsconv" in row["sess"] and latent.dim() == 4 else 0
            now = (latent - centre >= 0).numpy()
        flipped += (now != positive).sum()
        total += now.size
    return flipped / total


@pytest.mark.parametrize("sess", ["cifar10_smaller", "cifar10_smaller_wsconv"])
def test_cells_against_brevitas_and_the_items_of_the_data_set(ready, call, sess):
    status, _, err = call("--sess", sess, *FEW)
    assert status == 0, err
    folder = Path("results") / f"{sess}_11111"
    labels = torch.tensor(CIFAR10(".", train=False).targets)
    rows = csv_rows(folder)
    # a baseline; per bit 3 random, 2 stuck, 7 copies, neighbors, for bit 3 not_msb; 3 rates of bit 6;
    # 2 noises, 1 probability, each 3 runs
    assert len(rows) == 1 + 2 * (3 + 2 + 7 + 1) + 1 + 3 * 3 + 3 * 3
    clean = (items("baseline", 0) * 255).round().astype(int)
    accuracies = set()
    for row in rows:
        assert int(row["run_seed"]) == 11111 + int(row["run"])
        _, net, _ = checkpoints.load_net(checkpoints.path_of(sess, 11111))
        if row["fault"] in ("noise", "noise_relative", "flips"):
            assert float(row["flipped"]) == pytest.approx(break_weights(net, row), abs=1e-12)
        images = slow_images(row)
        if row["bit"]:
            error = (images * 255).round().astype(int) - clean
            wrong = (images * 255).round().astype(int) // 2 ** int(row["bit"]) % 2 != clean // 2 ** int(row["bit"]) % 2
            assert float(row["recovered"]) == pytest.approx(1 - wrong.mean(), abs=1e-6)
            assert float(row["psnr"]) == pytest.approx(20 * np.log10(255) - 10 * np.log10((error**2).mean()), abs=1e-4)
        else:
            assert row["recovered"] == row["psnr"] == ""
        with torch.no_grad():
            logits = net(torch.from_numpy(images))
        hits = np.argsort(-logits.numpy(), axis=1, kind="stable") == labels.numpy()[:, None]
        correct, top5 = hits[:, 0].sum(), hits[:, :5].sum()
        assert (int(row["n"]), int(row["correct"]), int(row["correct5"])) == (ROWS, correct, top5), row
        assert float(row["top1"]) == 100 * correct / ROWS and float(row["top5"]) == 100 * top5 / ROWS
        assert float(row["loss"]) == pytest.approx(F.cross_entropy(logits, labels).item(), abs=2e-6)
        accuracies.add(correct)
    assert len(accuracies) > 3  # the faults change accuracies


def test_brevitas_own_forward_pass_gives_the_same_rows(ready, call):
    call(*FEW)
    folded = (FOLDER / "sweep.csv").read_bytes()
    shutil.rmtree(FOLDER)
    call(*FEW, "--no-fold")
    assert (FOLDER / "sweep.csv").read_bytes() == folded


def test_what_must_hold(ready):
    images = torch.from_numpy(CIFAR10(".", train=False).data).permute(0, 3, 1, 2)
    assert torch.equal(faults.faulty_images(Fault("random", 6, level=0.0), images, 1), images)
    plane = faults.faulty_images(Fault("random", 6, level=1.0), images, 1)
    one_short = faults.faulty_images(Fault("random", 6, level=1.0 - 2**-25), images, 1)
    assert torch.equal(plane, one_short)  # the same bits are read at every rate

    broken = [faults.image_breaks(1, range(ROWS), (3, 32, 32), rate) for rate in (0.1, 0.2)]
    assert abs(broken[0].float().mean() - 0.1) < 0.005 and not (broken[0] & ~broken[1]).any()
    assert torch.equal(broken[0][7], faults.image_breaks(1, [7], (3, 32, 32), 0.1)[0])


def test_a_cell_is_wanted_once(monkeypatch):
    def wanted(*words):
        monkeypatch.setattr(sys, "argv", ["sweep.py", *words])
        return sweep.wanted_faults(sweep.parse())

    cells = wanted()
    assert len(cells) == len(set(cells))
    planes = (
        8 * (10 + 2 + 7 + 8) + 7
    )  # each bit: ten random, two stuck, each other bit copied, 8 repairs; not_msb but for bit 7
    assert len(cells) == 1 + planes + 3 * 5 * 10 + 2 * 5 * 10 + 6 * 10
    nothing = ["--bits", "--rate", "--sigma", "--flip"]
    assert wanted(*nothing) == [NO_FAULT]
    assert wanted("--bits", "--rate", "0", "--sigma", "0", "--flip", "0") == [NO_FAULT]
    only = wanted("--bits", "7", "6", "--repair", "repaired_s", *nothing[1:], "--runs", "1")
    assert [cell for cell in only if cell.repair] == [Fault("random", 6, "repaired_s", 7, 1.0)]


def test_a_repair_of_ones_own(ready, call, monkeypatch):
    def complement(images, bit):
        return faults.set_bit(images, bit, 1 - faults.get_bit(images, 0))

    monkeypatch.setitem(
        repairs.REPAIRS,
        "repaired_c",
        repairs.Repair(complement, "the opposite of the LSB", repairs.RepairCost(operations=1)),
    )
    status, _, err = call(
        "--data", ".", "--bits", "6", "--repair", "repaired_c", "--rate", "--sigma", "--flip", "--runs", "1"
    )
    assert status == 0, err
    assert [row["repair"] for row in csv_rows() if row["repair"]] == ["repaired_c"]
    text = (FOLDER / "tables.md").read_text()
    assert "| repaired_c |" in text and "| repaired_c | the opposite of the LSB | 1 | 0 | 0 | 0 |" in text


class Stopped(Exception):
    pass


@pytest.mark.plots
def test_interrupted_and_continued_equals_uninterrupted(ready, call, monkeypatch):
    call(*FEW)
    whole = contents()
    assert sorted(name for name in whole if not name.endswith(".npz")) == FILES
    assert len(whole) - len(FILES) == len(csv_rows())  # confusion matrices
    shutil.rmtree(FOLDER)

    measure, count = report.tested_net.measure, 0

    def stop_after_20(*args):
        nonlocal count
        count += 1
        if count > 20:
            raise KeyboardInterrupt
        return measure(*args)

    with monkeypatch.context() as patch:
        patch.setattr(report.tested_net, "measure", stop_after_20)
        status, _, err = call(*FEW)
    assert status == 130 and "the same command goes on" in err
    assert len(csv_rows()) == 20

    path = FOLDER / "sweep.csv"
    lines = path.read_bytes().splitlines(True)
    lines[2] = lines[2].replace(b"random", b"r\xffndom")  # one on a bad sector
    lines[5] = b",".join(lines[5].split(b",")[:-1]) + b"\n"  # one that lost its last figure
    path.write_bytes(b"".join(lines)[:-9])  # and the last one was cut short by a full disk
    status, out, err = call(*FEW)
    assert status == 0, err
    assert "line 3, 6, 21 cut short or damaged" in out and "other 17 rows stay" in out
    away = path.with_name("sweep.csv.damaged")
    assert len(away.read_text().splitlines()) == 3
    away.unlink()
    assert "29 of 46 cells to measure" in out
    assert contents() == whole

    status, out, _ = call(*FEW)
    assert status == 0 and "0 of 46 cells to measure" in out
    assert contents() == whole

    for start in (b"", report.rows.HEADER.encode()[:7]):  # a crash right at the start of writing
        path.write_bytes(start)
        assert call(*FEW)[0] == 0 and contents() == whole


def test_a_row_knows_what_made_it(ready, call, monkeypatch):
    """If the code of a repair or the training images change, what was measured with it is measured again."""
    few = ["--data", ".", "--bits", "6", "--repair", "midpoint", "table", "left", "--runs", "1"]
    assert "7 of 7 cells to measure" in call(*few)[1]
    assert "0 of 7 cells to measure" in call(*few)[1]
    before = {row["repair"]: row for row in csv_rows()}

    def midpoint(images, bit):
        return images & 0b10111111

    monkeypatch.setitem(repairs.REPAIRS, "midpoint", repairs.REPAIRS["midpoint"]._replace(mend=midpoint))
    status, out, err = call(*few)
    assert status == 0, err
    assert "1 rows were made by another code" in out and "1 of 7 cells to measure" in out
    assert (FOLDER / "sweep.csv.outdated").read_text().count("midpoint") == 1
    after = {row["repair"]: row for row in csv_rows()}
    assert {name for name in after if after[name] != before[name]} == {"midpoint"}
    monkeypatch.setattr(repairs.pixels, "GREY", 100)
    assert "1 rows were made by another code" in call(*few)[1]  # the constant is in `left` alone

    path = Path("cifar-10-batches-py/data_batch_1")
    entry = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps({**entry, "data": 255 - entry["data"]}))
    engine.training_digest.cache_clear()  # another process would not have it
    out = call(*few)[1]
    assert "1 rows were made by another code" in out and "1 of 7 cells to measure" in out  # `table` alone learns


def test_a_file_from_before_rows_knew_what_made_them(ready, call):
    few = ["--data", ".", "--bits", "6", "--repair", "midpoint", "--runs", "1"]
    call(*few)
    path = FOLDER / "sweep.csv"
    with open(path, newline="") as file:
        lines = list(csv.reader(file))
    place = lines[0].index("made_by")
    with open(path, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(line[:place] + line[place + 1 :] for line in lines)
    status, out, err = call(*few)
    assert status == 0 and "0 of 5 cells to measure" in out, err
    assert "4 rows are from before rows said what made them" in out
    assert call(*few, "--flip", "0.1")[0] == 0 and len(csv_rows()) == 6  # what is added is not lost


def test_a_file_that_a_spreadsheet_has_saved(ready, call):
    few = ["--data", ".", "--bits", "6", "--repair", "midpoint", "--sigma", "0.3", "--runs", "2"]
    call(*few)
    path = FOLDER / "sweep.csv"
    rows, whole = csv_rows(), path.read_bytes()
    expected = report.rows.read_rows(path)

    def spell(text, comma):
        text = re.sub(r"^(-?\d+)\.0$", r"\1", text)  # 85.0 as 85
        return text.replace(".", ",") if comma and text.replace(".", "", 1).replace("-", "", 1).isdigit() else text

    for delimiter, comma, end in ((",", False, "\r\n"), (";", True, "\r\n"), (",", True, "\n"), ("\t", True, "\n")):
        with open(path, "w", newline="", encoding="utf-8-sig") as file:
            writer = csv.writer(file, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
            writer.writerow(rows[0])
            writer.writerows([spell(text, comma) for text in row.values()] for row in rows)
        assert report.rows.read_rows(path) == expected
        status, out, err = call(*few, "--flip", "0.01")
        assert status == 0 and " 2 of " in out and len(csv_rows()) == len(rows) + 2, err
        path.write_bytes(whole)


@pytest.mark.parametrize(
    "column,value",
    [
        ("correct", "21"),
        ("bit", "9"),
        ("repair", "prayer"),
        ("fault", "curse"),
        ("top1", "101"),
        ("n", "nan"),
        ("run", ""),
        ("n", "0"),
        ("level", "2.0"),
        ("recovered", "5"),
        ("source", "3"),
        ("run_seed", "7"),
    ],
)
def test_a_row_that_cannot_be_is_moved_away(ready, call, column, value):
    few = ["--data", ".", "--bits", "6", "--repair", "midpoint", "--runs", "1"]
    call(*few)
    path, rows = FOLDER / "sweep.csv", csv_rows()
    whole = path.read_bytes()
    rows[-1][column] = value
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    status, out, err = call(*few)
    assert status == 0 and f"line {len(rows) + 1} cut short or damaged: moved to sweep.csv.damaged" in out, err
    assert path.with_name("sweep.csv.damaged").read_text() == ",".join(rows[-1].values()) + "\n"
    assert path.read_bytes() == whole


def test_one_sweep_of_a_folder_at_a_time(ready, call):
    with locked(FOLDER, "it"):
        status, _, err = call("--data", ".", "--bits", "6", "--runs", "1")
    assert status == 1 and f"{FOLDER} is being written by process {os.getpid()}" in err


def test_nothing_new_is_not_written_and_comparisons_stay(ready, call):
    few = ["--data", ".", "--bits", "6", "--repair", "midpoint", "--flip", "0.02", "--runs", "1"]
    both = ["--sess", "cifar10_smaller", "cifar10_smaller_wsconv"]
    call(*both, *few)
    section = re.split("^## ", (FOLDER / "tables.md").read_text(), flags=re.M)[1]
    times = {path: path.stat().st_mtime_ns for path in FOLDER.iterdir()}
    assert "nothing new" in call(*few)[1]
    assert {path: path.stat().st_mtime_ns for path in FOLDER.iterdir()} == times
    call(*few, "--bits", "5")  # adds a bit; the other net has none
    again = re.split("^## ", (FOLDER / "tables.md").read_text(), flags=re.M)[1]
    assert again.startswith("cifar10_smaller_11111 / cifar10_smaller_wsconv_11111")
    assert again.split("### ")[-1] == section.split("### ")[-1]  # weight bit errors


def test_what_is_named_is_all_that_is_measured(monkeypatch):
    def wanted(*words):
        monkeypatch.setattr(sys, "argv", ["sweep.py", *words])
        return set(sweep.wanted_faults(sweep.parse())) - {NO_FAULT}

    assert wanted("--repair", "median") == {Fault("random", bit, "median", None, 1.0) for bit in range(8)}
    assert {fault.bit for fault in wanted("--bits", "6", "5", "--runs", "3")} == {6, 5}
    assert {fault.kind for fault in wanted("--bits", "6")} == {"random", "stuck_at_0", "stuck_at_1"}
    assert {fault.level for fault in wanted("--rate", "0.1")} == {0.1}
    assert {fault.kind for fault in wanted("--sigma", "0.1")} == {"noise", "noise_relative"}
    assert {(fault.kind, fault.level) for fault in wanted("--flip", "0.1")} == {("flips", 0.1)}
    assert wanted("--runs", "1") > wanted("--bits", *"76543210", "--runs", "1")


def parse_tables(text):
    """[title, [cells of a line], …] of every table in a tables.md."""
    found = []
    for line in text.splitlines():
        if line.startswith("### "):
            found.append([line[4:]])
        elif line.startswith("|") and not line.startswith("|--"):
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def test_weight_standardisation_is_chosen_for_a_sweep(ready, call):
    """A net trained without it, swept with it: results as of latents minus their mean, in a separate folder."""
    checkpoint = torch.load(checkpoints.path_of("cifar10_smaller", 11111))
    convolutions = [weight for weight in checkpoint["net"].values() if weight.dim() == 4]
    for weight in convolutions:
        weight += 0.2
    checkpoints.save(checkpoints.path_of("cifar10_smaller", 11111), checkpoint)
    for weight in convolutions:
        weight -= weight.mean()
    checkpoints.save(checkpoints.path_of("centred", 11111), checkpoint)
    few = ["--data", ".", "--bits", "6", "--repair", "--rate", "--sigma", "--flip", "0.02", "--runs", "2"]
    status, _, err = call("--sess", "cifar10_smaller", "cifar10_smaller_wsconv", "centred", *few)
    assert status == 0, err
    status, _, err = call("--sess", "cifar10_smaller", "cifar10_smaller_wsconv", "--wsconv", *few)
    assert status == 0, err
    names = [
        "centred_11111",
        "cifar10_smaller_11111",
        "cifar10_smaller_tested_with_wsconv_11111",
        "cifar10_smaller_wsconv_11111",
    ]
    assert sorted(path.name for path in Path("results").iterdir() if path.name not in ("fitted", "index.html")) == names
    centred, plain, other, _ = (csv_rows(Path("results") / name) for name in names)
    assert {row["sess"] for row in other} == {"cifar10_smaller_tested_with_wsconv"}
    assert [row["loss"] for row in other] == [row["loss"] for row in centred] != [row["loss"] for row in plain]


def test_tables_parse_back_to_the_figures_of_the_csv(ready, call):
    call("--sess", "cifar10_smaller", "cifar10_smaller_wsconv", *FEW)
    rows = csv_rows()
    other = csv_rows(Path("results/cifar10_smaller_wsconv_11111"))
    assert {row["checkpoint"] for row in rows}.isdisjoint(row["checkpoint"] for row in other)

    def accuracies(rows, **what):
        return [
            100 * int(row["correct"]) / int(row["n"])
            for row in rows
            if all(row[key] == value for key, value in what.items())
        ]

    def check(cell, values):
        mean, std, low, high = re.fullmatch(r"([\d.]+)(?: ± ([\d.]+))? \[([\d.]+), ([\d.]+)\]", cell).groups()
        assert float(mean) == pytest.approx(statistics.mean(values), abs=6e-4)
        assert (std is None) == (len(values) == 1)
        if std:
            assert float(std) == pytest.approx(np.std(values, ddof=1), abs=6e-4)
        share = statistics.mean(values) / 100
        for end in (float(low) / 100, float(high) / 100):
            if len(values) == 1 and 0 < end < 1:
                # each end of a score interval is a share from which the measured share is 1.96 standard errors away
                assert abs(share - end) == pytest.approx(1.959964 * np.sqrt(end * (1 - end) / ROWS), abs=1e-4)
        assert float(low) <= float(mean) <= float(high)

    text = (FOLDER / "tables.md").read_text()
    found = parse_tables(text)
    titles = [
        "Broken bit planes",
        "Share of a plane's bits broken, reading at random",
        "Weight noise",
        "Weight bit errors",
    ]
    of_images = [
        "Broken bits with their original value (%)",
        "Peak signal-to-noise ratio of the images (dB)",
        "Silent data corruption: images that the intact net alone classifies rightly (%)",
        "McNemar's exact test of each repair against no repair",
        "The repairs",
    ]
    assert [
        table[0] for table in found
    ] == titles + of_images + titles  # the session's own, then the difference to the other one
    assert "## cifar10_smaller_11111 / cifar10_smaller_wsconv_11111 (difference)" in text

    _, head, *lines = found[0]
    assert head == ["accuracy (%)", "no fault", "bit 7", "bit 6", "bit 3"]
    assert [line[0] for line in lines] == [
        "faulty (random)", "faulty (stuck-at-0)", "faulty (stuck-at-1)",
        *(f"repaired by bit {bit}" for bit in range(6, -1, -1)), "repaired by MSB (7)", "not_msb", "neighbors",
    ]  # fmt: skip
    check(lines[0][1], accuracies(rows, fault="none"))
    check(lines[0][2], accuracies(rows, fault="random", bit="7", repair="", level="1.0"))
    check(lines[0][3], accuracies(rows, fault="random", bit="6", repair="", level="1.0"))
    check(lines[1][4], accuracies(rows, fault="stuck_at_0", bit="3"))
    check(lines[5][4], accuracies(rows, bit="3", repair="repaired_n", source="4"))
    check(lines[-3][4], accuracies(rows, bit="3", repair="repaired_s"))
    assert lines[-3][2] == "–"
    check(lines[-1][4], accuracies(rows, bit="3", repair="neighbors"))
    check(found[1][2][2], accuracies(rows, fault="random", bit="6", level="0.01"))
    check(found[2][2][2], accuracies(rows, fault="noise", level="0.3"))
    check(found[2][4][2], accuracies(rows, fault="noise_relative", level="0.3"))
    shares = [100 * float(row["flipped"]) for row in rows if row["fault"] == "noise_relative"]
    assert float(found[2][5][2]) == pytest.approx(statistics.mean(shares), abs=6e-4)
    check(found[3][2][2], accuracies(rows, fault="flips"))

    both = [statistics.mean(accuracies(its, fault="flips")) for its in (rows, other)]
    for number, column, scale in ((4, "recovered", 100), (5, "psnr", 1)):
        own = [scale * float(row[column]) for row in rows if row["repair"] == "neighbors" and row["bit"] == "3"]
        assert found[number][-1][0] == "neighbors" and float(found[number][-1][4]) == pytest.approx(own[0], abs=6e-3)
    assert found[12][2][2] == f"{both[0]:.3f} / {both[1]:.3f} ({both[1] - both[0]:+.3f})"

    summary = json.loads((FOLDER / "summary.json").read_text())
    assert summary["n"] == ROWS and summary["sess"] == "cifar10_smaller"
    cell = next(cell for cell in summary["cells"] if cell["fault"] == "flips")
    assert cell["mean"] == pytest.approx(statistics.mean(accuracies(rows, fault="flips"))) and cell["runs"] == 3


def test_what_repairs_win_back():
    """Lost are 80 % - 40 % (mean of 30 and 50 %): 70 % recovers three quarters. Bit 6 loses too little for a share."""
    measured = {
        NO_FAULT: 800,
        Fault("random", 7, level=1.0): 300,
        Fault("random", 7, level=1.0, run=1): 500,
        Fault("random", 7, "median", level=1.0): 700,
        Fault("random", 7, "left", level=1.0): 300,
        Fault("random", 7, "repaired_n", 6, 1.0): 900,
        Fault("random", 6, level=1.0): 775,
        Fault("random", 6, "median", level=1.0): 799,
        Fault("stuck_at_0", 7, level=1.0): 100,
    }
    same = {"dataset": "cifar10", "images": "0", "sess": "a", "seed": 1, "checkpoint": "0", "n": 1000}
    rows = [report.rows.row_of(cell, Score(1000, correct, correct, 1.0), **same) for cell, correct in measured.items()]
    table = next(table for table in parse_tables(report.tables.markdown("a", rows, {})) if "recovered" in table[0])
    assert table[1:] == [
        ["share", "no fault", "bit 7"],
        ["repaired by bit 6", "–", "125"],
        ["left", "–", "-25"],
        ["median", "–", "75"],
    ]
    won = {
        (cell.get("bit"), cell.get("repair")): cell.get("won")
        for cell in json.loads(report.summaries.summary_json(rows))["cells"]
    }
    assert won[7, "median"] == 0.75 and won[6, "median"] is won[None, None] is None
    assert not any("recovered" in table[0] for table in parse_tables(report.tables.markdown("a", rows[1:], {})))
    assert sum("recovered" in table[0] for table in parse_tables(report.tables.markdown("a", rows, {"b": rows}))) == 1


def test_matrices_of_several_nets(ready, call):
    call("--sess", "cifar10_smaller", "cifar10_smaller_wsconv", *FEW)
    one, two = (
        report.rows.read_rows(Path(f"results/{name}_11111/sweep.csv"))[0]
        for name in ("cifar10_smaller", "cifar10_smaller_wsconv")
    )
    two = [row for row in two if row["repair"] != "neighbors"]
    text = report.tables.markdown("one", one, {"two": two, "three": one}).split("## Nets × faults")[1]
    bit_7, bit_6, bit_3, flips = parse_tables(text)
    assert [table[0] for table in (bit_7, bit_6, bit_3, flips)] == [
        *(f"Bit {bit}: accuracy (%)" for bit in (7, 6, 3)),
        "Weight bit errors: accuracy (%)",
    ]
    assert [line[0] for line in bit_7[2:]] == ["one", "two", "three"] and bit_7[2][1:] == bit_7[4][1:]
    assert bit_7[1][:4] == ["net", "no fault", "faulty (random)", "faulty (stuck-at-0)"] and bit_3[1][-2:] == [
        "not_msb",
        "neighbors",
    ]
    for rows, line in ((one, bit_7[2]), (two, bit_7[3])):
        drawn = [
            100 * row["correct"] / ROWS
            for row in rows
            if (row["bit"], row["fault"], row["repair"]) == (7, "random", None)
        ]
        assert float(line[2]) == pytest.approx(statistics.mean(drawn), abs=6e-3)
    assert bit_7[3][-1] == "–" and bit_7[2][-1] != "–"
    drawn = [100 * row["correct"] / ROWS for row in two if row["fault"] == "flips"]
    assert flips[1] == ["net", "no fault", "0.02"] and float(flips[3][2]) == pytest.approx(
        statistics.mean(drawn), abs=6e-3
    )


def test_interval():
    """Wilson's interval as in published tables; Student's t if the runs differ and there are many images."""
    assert report.summaries.interval(50, None, 1, 10) == pytest.approx((23.66, 76.34), abs=0.01)
    assert report.summaries.interval(0, None, 1, 10) == pytest.approx((0, 27.75), abs=0.01)
    assert report.summaries.interval(100, 0.0, 5, 10) == pytest.approx((72.25, 100), abs=0.01)
    half = 2.262157 * 5 / np.sqrt(10)
    assert report.summaries.interval(50, 5.0, 10, 10**9) == pytest.approx((50 - half, 50 + half), abs=0.01)
    assert report.summaries.interval(50, 5.0, 2, 10**9)[0] == pytest.approx(50 - 12.7062 * 5 / np.sqrt(2), abs=0.01)
    assert report.summaries.interval(50, 5.0, 20, 10**9)[0] == pytest.approx(50 - 2.093 * 5 / np.sqrt(20), abs=0.01)
    assert report.summaries.interval(50, 5.0, 400, 10**9)[0] == pytest.approx(50 - 2.093 * 5 / 20, abs=0.01)


def test_a_bit_that_copies_itself_is_a_gap_in_its_line():
    bits = {7: 100, 6: 300, 5: 500}
    same = {"dataset": "cifar10", "images": "0", "sess": "a", "seed": 1, "checkpoint": "0", "n": 1000}
    faults = {Fault("random", bit, level=1.0): correct for bit, correct in bits.items()}
    faults |= {Fault("random", bit, "repaired_n", 6, 1.0): bits[bit] + 50 for bit in (7, 5)}
    rows = [report.row_of(fault, Score(1000, found, found, 0.0), run_seed=1, **same) for fault, found in faults.items()]
    figure = report.figures.draw_bits("a", report.summarize(rows))
    drawn = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}
    assert drawn["faulty (random)"] == [[5, 50], [6, 30], [7, 10]]
    assert str(drawn["repaired by bit 6"]) == "[[5.0, 55.0], [6.0, nan], [7.0, 15.0]]"
    plt.close(figure)


def test_a_session_without_flips_adds_no_line_to_their_plot():
    same = {"dataset": "cifar10", "images": "0", "sess": "a", "seed": 1, "checkpoint": "0", "n": 1000, "run_seed": 1}
    clean = report.row_of(NO_FAULT, Score(1000, 900, 900, 0.0), **same)
    flipped = report.row_of(Fault("flips", level=0.1), Score(1000, 300, 300, 0.0), **same) | {"flipped": 0.1}
    sessions = {"a": report.summarize([clean, flipped]), "b": report.summarize([clean])}
    figure = report.figures.draw_flips(sessions)
    level, line = figure.axes[0].lines
    assert set(level.get_ydata()) == {90} and line.get_xydata().tolist() == [[10, 30]]
    plt.close(figure)


@pytest.mark.plots
def test_plots_show_the_csv(ready, call, monkeypatch):
    figures, bands = {}, {}
    save = report.figures.save

    def points_of(line):
        return [[x, y] for x, y in line.get_xydata().tolist() if y == y]  # without gaps

    def note(figure, path):
        figures[path.parent.name, path.name] = [
            {line.get_label(): points_of(line) for line in axes.lines} for axes in figure.axes
        ]
        bands[path.parent.name, path.name] = [
            [band.get_paths()[0].vertices.tolist() for band in axes.collections] for axes in figure.axes
        ]
        save(figure, path)

    monkeypatch.setattr(report.figures, "save", note)
    both = ["--sess", "cifar10_smaller", "cifar10_smaller_wsconv"]
    assert call(*both, *FEW)[0] == 0
    assert not plt.get_fignums()  # all closed

    def mean(rows, **what):
        found = [row for row in rows if all(row[key] == value for key, value in what.items())]
        assert found
        return statistics.mean(100 * int(row["correct"]) / int(row["n"]) for row in found)

    rows = csv_rows()
    name = "cifar10_smaller_11111"
    (bits,) = figures[name, "bits"]
    assert dict(bits["repaired by bit 4"]) == {
        float(bit): mean(rows, bit=bit, repair="repaired_n", source="4") for bit in ("7", "3")
    }
    assert dict(bits["faulty (random)"])[7] == pytest.approx(mean(rows, fault="random", bit="7", repair=""))
    assert {y for _, y in bits["no fault"]} == {mean(rows, fault="none")}
    (ladder,) = figures[name, "ladder"]
    assert dict(ladder["neighbors"]) == {float(bit): mean(rows, bit=bit, repair="neighbors") for bit in ("7", "3")}
    assert "neighbors" not in bits and set(ladder) == {
        "no fault",
        "faulty (random)",
        "repaired by MSB (7)",
        "not_msb",
        "neighbors",
    }
    (rates,) = figures[name, "rates"]
    assert dict(rates["bit 6"])[0.3] == pytest.approx(mean(rows, fault="random", bit="6", level="0.3"))
    other = csv_rows(Path("results/cifar10_smaller_wsconv_11111"))
    for panel, fault in zip(figures[name, "noise"], ("noise", "noise_relative")):
        for sess, its in ((name, rows), ("cifar10_smaller_wsconv_11111", other)):
            assert panel[sess] == [[0, mean(its, fault="none")], [0.3, pytest.approx(mean(its, fault=fault))]]
    (flips,) = figures[name, "flips"]
    assert flips[f"{name}, bit errors"][0][1] == pytest.approx(mean(rows, fault="flips"))
    nets = figures[name, "nets"]
    assert len(nets) == 6 and sum(map(bool, nets)) == 6  # three kinds of broken bits, three repairs besides copies
    for sess, its in ((name, rows), ("cifar10_smaller_wsconv_11111", other)):
        assert dict(nets[5][sess]) == {float(bit): mean(its, bit=bit, repair="neighbors") for bit in ("7", "3")}
    values = [100 * int(row["correct"]) / ROWS for row in rows if row["fault"] == "noise"]
    ends = {y for x, y in bands[name, "noise"][0][0] if x == 0.3}
    assert (min(ends), max(ends)) == pytest.approx(
        [np.mean(values) + sign * np.std(values, ddof=1) for sign in (-1, 1)]
    )

    for path in FOLDER.glob("*.png"):
        pixels = png.imread(path)
        assert min(pixels.shape[:2]) > 500 and pixels.std() > 0.02
    for path in FOLDER.glob("*.svg"):
        assert path.read_text().rstrip().endswith("</svg>") and path.stat().st_size > 5000

    drawn = contents()
    for path in [*FOLDER.glob("*.png"), *FOLDER.glob("*.svg")]:
        if path.stem != "images":
            path.unlink()
    status, _, err = call(str(FOLDER), "results/cifar10_smaller_wsconv_11111", script=plot)
    assert status == 0, err
    assert contents() == drawn

    path = FOLDER / "sweep.csv"
    path.write_bytes(path.read_bytes()[:-9])
    status, _, err = call(str(FOLDER), script=plot)
    assert status == 1 and "is not complete" in err


@pytest.mark.plots
def test_the_picture_shows_clean_faulty_and_repaired_images(ready):
    images = torch.from_numpy(CIFAR10(".", train=False).data).permute(0, 3, 1, 2)[:2]
    shown = {(repair, bit) for repair in ("repaired_n", "repaired_s") for bit in range(8)} - {("repaired_s", 3)}
    figure = report.figures.draw_images(images, 5, -1, shown)
    grid = np.array(figure.axes).reshape(2 * 3, 9)
    shown = [[axes.images[0].get_array() if axes.images else None for axes in line] for line in grid]
    assert np.array_equal(shown[3][0], images[1].permute(1, 2, 0))
    expected = CIFAR10(".", "repaired_s", train=False, faulty_bit=6, seed=5)[1][0]
    assert np.array_equal(shown[5][2], (expected * 255).round().byte().permute(1, 2, 0))
    expected = CIFAR10(".", "faulty", train=False, faulty_bit=0, seed=5)[0][0]
    assert np.array_equal(shown[0][8], (expected * 255).round().byte().permute(1, 2, 0))
    assert shown[2][5] is None and shown[2][6] is not None  # not asked for
    assert shown[2][1] is None and shown[1][8] is None  # the MSB cannot repair itself, and the LSB has no lower bit
    plt.close(figure)


def test_images_are_broken_and_repaired_once_for_all_sessions(ready, call, monkeypatch):
    made, with_fault = [], engine.test_set.with_fault

    def count(images, fault, *given):
        made.append(fault)
        return with_fault(images, fault, *given)

    monkeypatch.setattr(engine.test_set, "with_fault", count)
    sessions = ["--sess", "cifar10_smaller", "cifar10_smaller_wsconv"]
    few = ["--bits", "6", "--repair", "variation", "median", "--runs", "2"]
    status, _, err = call("--data", ".", *sessions, *few)
    assert status == 0, err
    assert max(made.count(fault) for fault in made if fault != NO_FAULT) == 1


def test_rows_of_a_teacher_that_is_not_there_stay(ready, call):
    """Its file says which teacher a repair had; without it, nobody can say that a row is outdated."""
    few = ["--data", ".", "--bits", "6", "--repair", "median", "--runs", "1"]
    call(*few)
    path = FOLDER / "sweep.csv"
    rows = report.rows.read_rows(path)[0]
    row = next(row for row in rows if row["repair"] == "median")
    report.write_rows(path, [*rows, {**row, "repair": "taught", "made_by": "0" * 16}])
    status, out, err = call(*few)
    assert status == 0 and "0 of 5 cells to measure" in out, err
    assert [row["repair"] for row in csv_rows()].count("taught") == 1


IN_A_PROCESS = """
import sweep
from models import TOPOLOGIES, Topology

TOPOLOGIES["cifar_smaller"] = {topology}
sweep.run(sweep.main)
"""  # the script with the small net


@pytest.mark.plots
def test_two_processes_write_the_same_files(ready, root, call):
    Path("script.py").write_text(IN_A_PROCESS.format(topology=TINY))
    few = [
        "--data",
        ".",
        "--bits",
        "6",
        "--repair",
        "repaired_n",
        "learned",
        "--rate",
        "0.1",
        "--rate_bits",
        "6",
        "--sigma",
        "0.3",
        "--flip",
        "0.1",
        "--runs",
        "2",
    ]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "script.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}

    def sweep_in_two():
        command = [sys.executable, *launch, *few]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)

    result = sweep_in_two()
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("cells to measure") == 1
    two = contents()
    shutil.rmtree(FOLDER)
    status, _, err = call(*few)
    assert status == 0, err
    assert two == contents()

    save_net("cifar10_smaller")
    result = sweep_in_two()
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode != 0 and len(errors) == 1 and "holds rows of checkpoint" in errors[0]
    assert "RuntimeError" not in result.stderr and contents() == two


@pytest.mark.parametrize(
    "words,complaint",
    [
        (["--sess", "nobody"], "checkpoint/ckpt.t7.nobody_11111.pth is missing"),
        (["--seed", "5"], "checkpoint/ckpt.t7.cifar10_smaller_5.pth is missing"),
        (["--bits", "8"], "argument --bits: 8 is out of range"),
        (["--rate", "2"], "argument --rate: 2 is out of range"),
        (["--repair", "prayer"], "argument --repair: invalid choice: 'prayer'"),
        (["--sess", "tiny_imagenet_smaller"], "does not fit the net for Tiny-ImageNet"),
        (["--results", "taken"], "taken/cifar10_smaller_11111"),
        (["--sigma", "inf"], "argument --sigma: 'inf' is not a number"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_gets_one_line(ready, call, words, complaint):
    Path("taken").write_text("a file")
    source = checkpoints.path_of("cifar10_smaller", 11111)
    state = torch.load(source, weights_only=True)
    del state["options"], state["sha256"]
    torch.save(state, checkpoints.path_of("tiny_imagenet_smaller", 11111))
    status, _, err = call("--data", ".", *words) if "--data" not in words else call(*words)
    assert status == 1
    assert err.startswith("error: ") and err.count("\n") == 1 and complaint in err


def test_other_images_get_a_folder_of_their_own(ready, call, tmp_path):
    few = ["--data", ".", "--bits", "6", "--repair", "--rate", "--sigma", "--flip", "--runs", "1"]
    assert call(*few)[0] == 0
    before = contents()
    shutil.rmtree("cifar-10-batches-py")
    write_cifar10(tmp_path, rows=ROWS + 1)
    status, out, err = call(*few)
    assert status == 0, err
    assert contents() == before
    (other,) = Path("results").glob("cifar10_smaller_11111_*")
    assert f"{other}: sweep.csv" in out and {row["n"] for row in csv_rows(other)} == {str(ROWS + 1)}
    assert call(*few)[1].startswith("cifar10_smaller_11111: 0 of 4 cells")


def test_results_of_another_version(ready, call):
    FOLDER.mkdir(parents=True)
    (FOLDER / "sweep.csv").write_text("dataset,fault\ncifar10,none\n")
    few = ["--data", ".", "--bits", "--rate", "--sigma", "--flip"]
    status, _, err = call(*few)
    assert status == 1 and err.count("\n") == 1 and "holds rows of another version" in err and "--replace" in err
    status, _, err = call(*few, "--replace")
    assert status == 0, err
    assert len(csv_rows()) == 1 and (
        FOLDER.with_name("cifar10_smaller_11111.old") / "sweep.csv"
    ).read_text().startswith("dataset,fault\n")


def test_rows_of_another_checkpoint_are_not_mixed(ready, call):
    call("--data", ".", "--bits", "--rate", "--sigma", "--flip")
    before = contents()
    save_net("cifar10_smaller")
    status, _, err = call(*FEW)
    assert status == 1 and err.count("\n") == 1
    assert "holds rows of checkpoint" in err and "--replace" in err
    assert contents() == before
    for _ in range(2):  # the second time there is an older .old
        assert call("--data", ".", "--bits", "--rate", "--sigma", "--flip", "--replace")[0] == 0
        assert contents(Path(f"{FOLDER}.old")) == before
        assert csv_rows()[0]["checkpoint"].encode() not in before["sweep.csv"]
        before = contents()
        save_net("cifar10_smaller")

    (FOLDER / "sweep.csv").write_text("a,b\n1,2\n")
    status, _, err = call(*FEW)
    assert status == 1 and "sweep.csv holds rows of another version" in err


def test_plots_of_folders_of_the_same_name(ready, call, monkeypatch):
    call("--data", ".", "--bits", "6", "--runs", "1")
    for place in ("a", "b"):
        shutil.copytree(FOLDER, Path(place) / "net_1")
    path = Path("b/net_1/sweep.csv")
    path.write_text(path.read_text().replace(",stuck_at_1,", ",stuck_at_0,", 1))
    drawn = []
    monkeypatch.setattr(plot, "write_plots", lambda folder, sessions: drawn.append((folder, sessions)))
    assert call("a/net_1", "b/net_1", "a/net_1/", script=plot)[0] == 0
    rows = {place: report.read_rows(Path(place) / "net_1" / "sweep.csv")[0] for place in ("a", "b")}
    assert [list(sessions) for _, sessions in drawn] == [["a/net_1", "b/net_1"], ["b/net_1", "a/net_1"]]
    for (folder, sessions), place in zip(drawn, "ab"):
        assert folder == (Path(place) / "net_1").resolve() and sessions[f"{place}/net_1"] == rows[place]


@pytest.mark.plots
def test_a_notebooks_plotting_backend_does_not_matter(ready, root):
    environment = {**os.environ, "MPLBACKEND": "module://not_there", "PYTHONPATH": str(root)}
    result = subprocess.run(
        [sys.executable, "-c", "import report.figures"], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr


def test_every_line_of_a_plot_has_a_style_of_its_own():
    styles = [tuple(style.values()) for style, _ in zip(report.figures.styles(), range(60))]
    assert len({style[:2] for style in styles}) == 60  # colour and marker


def test_plots_without_a_sweep(call):
    status, _, err = call("results/nobody_1", script=plot)
    assert (
        status == 1
        and err.count("\n") == 1
        and "nobody_1/sweep.csv is missing: .venv/bin/python sweep.py measures it" in err
    )
