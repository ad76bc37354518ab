"""What a fault changes: counts against loops, McNemar's test against fractions, campaigns against the literature."""

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from test_sweep import FOLDER, ROWS, call, csv_rows, parse_tables, ready  # noqa: F401  (fixtures)
from test_sweep_memories import clean_images

import report
from CIFARDataset import CIFAR10
from engine import checkpoints
from faults import NO_FAULT, Cells, fault_of_cells, memory_size
from models import CNV, TOPOLOGIES
from models.folded import Folded
from report import campaign_size, changes, confusion, mcnemar


def test_counts_against_loops():
    labels, intact, faulty = torch.randint(0, 4, (3, 500))
    found = changes(labels, intact, faulty)
    rows = list(zip(labels.tolist(), intact.tolist(), faulty.tolist()))
    assert found["intact"] == sum(label == a for label, a, _ in rows)
    assert found["broken"] == sum(label == a != b for label, a, b in rows)
    assert found["mended"] == sum(label == b != a for label, a, b in rows)
    assert found["changed"] == sum(a != b for _, a, b in rows)
    assert found["intact"] - found["broken"] + found["mended"] == sum(label == b for label, _, b in rows)
    matrix = confusion(labels, faulty, 4)
    for label in range(4):
        for predicted in range(4):
            assert matrix[label, predicted] == sum((label, predicted) == (a, b) for a, _, b in rows)


@pytest.mark.parametrize("wins,losses", [(0, 0), (1, 0), (0, 6), (5, 12), (7, 7), (40, 90), (1500, 1400), (3000, 0)])
def test_mcnemar_against_exact_fractions(wins, losses):
    number = wins + losses
    tail = sum(math.comb(number, k) for k in range(min(wins, losses) + 1))
    expected = min(1.0, float(Fraction(2 * tail, 2**number)))
    labels = torch.zeros(number + 30, dtype=torch.int64)
    one, other = torch.zeros_like(labels), torch.zeros_like(labels)
    other[:wins] = 1
    one[wins:number] = 2
    one[-10:] = other[-10:] = 3  # both wrong
    assert mcnemar(labels, one, other) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(labels, other, one) == pytest.approx(expected, rel=1e-9)


def test_size_of_a_campaign():
    """The numbers of Ruospo et al. for a ResNet-20's weight bits."""
    assert campaign_size(18_451_136) == 9_600
    assert campaign_size(18_451_136, confidence=0.99) == 16_575
    assert campaign_size(100) == 99 and campaign_size(2) == 2 and campaign_size(10**12) == 9_604
    assert campaign_size(10**12, 0.05, share=0.1) < campaign_size(10**12, 0.05) == 385


def test_size_of_a_memory():
    net = CNV(TOPOLOGIES["cifar_smaller"], 10).eval()
    stored = []
    folded = Folded(net)
    folded.change = lambda layer, maps: stored.append(maps[0].numel()) or maps
    folded(torch.rand(1, 3, 32, 32))
    assert memory_size(fault_of_cells(Cells("activations"), "inverted", 0.1), net, 3072) == sum(stored)
    assert (
        memory_size(fault_of_cells(Cells("activations", ("conv2", "fc1")), "inverted", 0.1), net, 3072)
        == stored[1] + 1024
    )
    assert memory_size(fault_of_cells(Cells("image"), "inverted", 0.1), net, 3072) == 24_576
    assert memory_size(fault_of_cells(Cells("weights"), "inverted", 0.1), net, 3072) == sum(
        layer.weight.numel() for layer in net.binary_layers()
    )
    bits = 64 * (13 + 11) + 128 * (11 + 12) + 256 * (12 + 13) + 1024 * 16 + 512 * 12
    assert memory_size(fault_of_cells(Cells("thresholds"), "inverted", 0.1), net, 3072) == bits
    assert memory_size(NO_FAULT, net, 3072) is None


def test_rows_say_what_changed(ready, call):  # noqa: F811
    few = ["--data", ".", "--bits", "7", "--repair", "midpoint", "--memory", "weights", "activations", "--ber", "0.2"]
    status, _, err = call(*few, "--runs", "2")
    assert status == 0, err
    rows = csv_rows()
    _, net, _ = checkpoints.load_net(checkpoints.path_of("cifar10_smaller", 11111))
    labels = np.array(CIFAR10(".", train=False).targets)

    def predicted(images):
        with torch.no_grad():
            return np.argsort(-net(images.float() / 255).numpy(), axis=1, kind="stable")[:, 0]

    images = clean_images()
    intact, faulty = predicted(images), predicted(images | 128)
    row = next(row for row in rows if row["fault"] == "stuck_at_1")
    assert int(row["intact"]) == (intact == labels).sum() and int(row["changed"]) == (intact != faulty).sum()
    assert int(row["broken"]) == ((intact == labels) & (faulty != labels)).sum()
    assert int(row["mended"]) == ((intact != labels) & (faulty == labels)).sum()
    for row in rows:
        assert int(row["correct"]) == int(row["intact"]) - int(row["broken"]) + int(row["mended"])
        assert (row["mcnemar"] != "") == (row["repair"] != "")
    mended = next(row for row in rows if row["repair"])
    faulty = predicted(
        torch.stack([CIFAR10(".", "faulty", False, faulty_bit=7, seed=11111)[i][0] for i in range(ROWS)]) * 255
    )
    repaired = predicted(torch.where(images > 127, images - 128, images) + 64)
    assert float(mended["mcnemar"]) == pytest.approx(
        mcnemar(torch.from_numpy(labels), torch.from_numpy(faulty), torch.from_numpy(repaired))
    )

    files = sorted((FOLDER / "confusion").iterdir())
    assert len(files) == len(rows)
    matrix = np.load(
        FOLDER / "confusion" / "fault-stuck_at_1_bit-7_level-1.0_run-0_memory-image_planes-7_cells-transient.npz"
    )
    expected = np.zeros((10, 10), int)
    np.add.at(expected, (labels, predicted(images | 128)), 1)
    assert np.array_equal(matrix["confusion"], expected)

    tables = {table[0]: table for table in parse_tables((FOLDER / "tables.md").read_text())}
    shares = [
        100 * int(row["broken"]) / ROWS
        for row in rows
        if row["memory"] == "activations" and row["cells"] == "transient"
    ]
    (line,) = [
        tables["Broken cells of the activations memory"][i + 1]
        for i, line in enumerate(tables["Broken cells of the activations memory"])
        if line[0] == "inverted, transient"
    ]
    assert line[0] == "silent data corruption (%)" and float(line[2]) == pytest.approx(np.mean(shares), abs=6e-3)
    assert tables["Single faults to draw, for a share to ± 1 %"][2][0] == "activations"


@pytest.mark.parametrize("column,change", [("broken", 1), ("mended", 1), ("intact", -1), ("changed", -30)])
def test_a_row_that_does_not_add_up_is_damaged(ready, call, column, change):  # noqa: F811
    call("--data", ".", "--bits", "7", "--repair", "--runs", "1")
    rows, damaged = report.read_rows(FOLDER / "sweep.csv")
    assert not damaged
    Path("one.csv").write_text(report.rows.HEADER + report.to_line({**rows[-1], column: rows[-1][column] + change}))
    assert report.read_rows(Path("one.csv")) == ([], [(2, Path("one.csv").read_text().splitlines()[1])])
