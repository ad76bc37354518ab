"""sweep.py on faults of the cells of every memory: its rows against the nets themselves, its files, its complaints."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from test_sweep import FOLDER, ROWS, call, contents, csv_rows, parse_tables, ready  # noqa: F401  (fixtures)

import report
from CIFARDataset import CIFAR10
from engine import Score, checkpoints, faulty_net
from faults import NO_FAULT, Cells, Fault, break_cells, broken_map, fault_of_cells, planes_of
from models.folded import Folded
from repairs import with_repair

MEMORIES = ["--memory", "image", "weights", "activations", "thresholds"]
FEW = ["--data", ".", "--ber", "0.02", "0.2", "--runs", "2", "--workers", "1"]


def clean_images():
    return torch.from_numpy(CIFAR10(".", train=False).data).permute(0, 3, 1, 2)


def correct(net, images):
    labels = torch.tensor(CIFAR10(".", train=False).targets)
    with torch.no_grad():
        order = np.argsort(-net(images.float() / 255).numpy(), axis=1, kind="stable")
    return int((order[:, 0] == labels.numpy()).sum())


def find(rows, **what):
    (row,) = [row for row in rows if all(row[key] == value for key, value in what.items())]
    return row


def test_rows_against_the_nets(ready, call):  # noqa: F811
    status, _, err = call(*MEMORIES, *FEW, "--reading", "inverted", "stuck_at_1", "--repair", "median", "constant_0")
    assert status == 0, err
    rows = csv_rows()
    # no fault; images: 2 readings, 2 rates, 2 runs, of them persistent ones unrepaired and by 2 repairs, and transient
    # ones; activations and thresholds: persistent and transient; weights: persistent only
    assert len(rows) == 1 + 8 * (3 + 1) + 8 * 2 + 8 * 2 + 8
    _, net, _ = checkpoints.load_net(checkpoints.path_of("cifar10_smaller", 11111))
    images = clean_images()
    planes = planes_of("7+6+5+4+3+2+1+0")

    fault = fault_of_cells(Cells("image", planes=planes), "stuck_at_1", 0.2, run=1)
    row = find(rows, memory="image", fault="stuck_at_1", level="0.2", run="1", cells="persistent", repair="")
    broken = break_cells(fault, images, 11112)
    assert int(row["correct"]) == correct(net, broken) and row["bit"] == row["known"] == ""
    wrong = np.unpackbits(broken.numpy()[..., None], axis=-1) != np.unpackbits(images.numpy()[..., None], axis=-1)
    assert float(row["recovered"]) == pytest.approx(1 - wrong.mean(), abs=1e-6)
    error = ((broken.int() - images.int()) ** 2).double().mean().item()
    assert float(row["psnr"]) == pytest.approx(10 * np.log10(255**2 / error), abs=1e-4)
    row = find(rows, memory="image", fault="stuck_at_1", level="0.2", run="1", repair="constant_0")
    assert int(row["correct"]) == correct(net, broken & ~broken_map(fault, images.shape[1:], 11112))
    assert (row["known"], row["planes"], row["cells"]) == ("1", "7+6+5+4+3+2+1+0", "persistent")

    for memory in ("activations", "weights"):
        fault = fault_of_cells(Cells(memory), "stuck_at_1", 0.2, run=1)
        row = find(rows, memory=memory, fault="stuck_at_1", level="0.2", run="1", cells="persistent")
        with faulty_net(fault, net, net, 11112) as flipped:
            assert int(row["correct"]) == correct(net, images)
        assert row["flipped"] == ("" if flipped is None else str(flipped))
    folded = Folded(net)
    row = find(rows, memory="thresholds", fault="inverted", level="0.2", run="0", cells="persistent")
    with faulty_net(fault_of_cells(Cells("thresholds"), "inverted", 0.2), net, folded, 11111):
        assert int(row["correct"]) == correct(folded, images)
    assert {row["fault"] for row in rows if row["memory"] == "weights"} == {"flips", "stuck_at_1"}
    assert len({row["correct"] for row in rows}) > 4


@pytest.mark.plots
def test_the_same_rows_by_brevitas_and_nothing_new_the_second_time(ready, call):  # noqa: F811
    words = [*MEMORIES, *FEW, "--reading", "random", "inverted", "--cells", "persistent", "transient"]
    call(*words)
    whole = contents()
    assert {"memories.png", "memories.svg"} <= set(whole)
    assert "0 of 65 cells to measure" in call(*words)[1] and contents() == whole
    shutil.rmtree(FOLDER)
    assert call(*words, "--no-fold")[0] == 0 and contents() == whole


@pytest.mark.plots
def test_layers_rows_and_columns_and_asymmetric_cells(ready, call):  # noqa: F811
    status, _, err = call("--memory", "weights", "activations", "thresholds", "--layers", "each", *FEW)
    assert status == 0, err
    rows = csv_rows()
    layers = {
        memory: {row["layers"] for row in rows if row["memory"] == memory} for memory in ("weights", "activations")
    }
    assert layers == {"weights": {"conv1", "conv2", "fc1", "fc2"}, "activations": {"conv1", "conv2", "fc1"}}
    assert (FOLDER / "layers.png").is_file()
    assert (
        call(
            "--memory",
            "weights",
            "activations",
            "thresholds",
            "--layers",
            "each",
            "--no-fold",
            "--results",
            "slow",
            *FEW,
        )[0]
        == 0
    )
    slow = {tuple(row.values()) for row in csv_rows(Path("slow/cifar10_smaller_11111"))}
    assert slow == {tuple(row.values()) for row in rows} and len(slow) == 1 + 16 + 24 + 24
    lines = ["--memory", "image", "--array", "512x64", "--lines", "row", "column", "--reading", "asymmetric"]
    status, _, err = call(*lines, "--p01", "0.5", "--p10", "1", *FEW)
    assert status == 0, err
    found = [row for row in csv_rows() if row["lines"]]
    assert len(found) == 2 * 2 * 2 * 2 and {row["array"] for row in found} == {"512x64"}
    assert {(row["p01"], row["p10"]) for row in found} == {("0.5", "1.0")}
    rows, damaged = report.rows.read_rows(FOLDER / "sweep.csv")
    assert not damaged
    fault = report.fault_in(next(row for row in rows if row["lines"] == "row" and row["cells"] == "transient"))
    assert fault.cells.array == (512, 64) and fault.cells.lines == "row" and not fault.cells.persistent


def test_planes_of_the_image_memory_with_the_map_and_without(ready, call):  # noqa: F811
    words = ["--memory", "image", "--planes", "7+5@0.5", "--repair", "neighbors", "constant_1", *FEW]
    status, _, err = call(*words)
    assert status == 0, err
    rows = [row for row in csv_rows() if row["memory"]]
    persistent, transient = ([row for row in rows if row["cells"] == kept] for kept in ("persistent", "transient"))
    assert len(persistent) == 4 * (1 + 2 * 2) and len(transient) == 4 * (1 + 2)
    assert {row["known"] for row in transient if row["repair"]} == {"0"} and {row["planes"] for row in rows} == {
        "7+5@0.5"
    }
    _, net, _ = checkpoints.load_net(checkpoints.path_of("cifar10_smaller", 11111))
    fault = fault_of_cells(Cells("image", planes=planes_of("7+5@0.5")), "inverted", 0.2)
    broken = broken_map(fault, (3, 32, 32), 11111)
    assert abs((broken & 128 > 0).double().mean() - 0.2) < 0.03 and abs((broken & 32 > 0).double().mean() - 0.1) < 0.03
    for known, mask in (("1", broken), ("0", 0b10100000)):
        row = find(persistent, repair="constant_1", known=known, level="0.2", run="0")
        assert int(row["correct"]) == correct(net, clean_images() | mask)


def test_several_planes_at_once(ready, call):  # noqa: F811
    status, _, err = call(
        "--data", ".", "--bits", "7+6", "6", "--repair", "median", "repaired_n", "learned", "--runs", "2"
    )
    assert status == 0, err
    rows = csv_rows()
    several = [row for row in rows if row["planes"] == "7+6"]
    assert len(several) == 2 + 2 + 1 + 6  # random twice, stuck at 0 and at 1, median, copies of bits 5 to 0
    assert {row["known"] for row in several if row["repair"]} == {"0"} and not any(row["bit"] for row in several)
    assert find(rows, planes="6", repair="median")["bit"] == "6"
    _, net, _ = checkpoints.load_net(checkpoints.path_of("cifar10_smaller", 11111))
    images = clean_images()
    row = find(several, fault="stuck_at_1")
    assert int(row["correct"]) == correct(net, images | 0b11000000)
    row = find(several, repair="repaired_n", source="0")
    assert int(row["correct"]) == correct(net, images & 0x3F | (images & 1) * 0b11000000)
    table = next(table for table in parse_tables((FOLDER / "tables.md").read_text()) if "image memory" in table[0])
    assert table[1] == ["probability", "0", "1"]
    assert "random, transient, planes 7+6, median" in [line[0] for line in table[2:]]


@pytest.mark.parametrize("planes", ["7+6+5+4+3+2+1+0", "7@0.5"])
def test_planes_that_no_repair_mends_are_measured_unrepaired(ready, call, planes):  # noqa: F811
    status, _, err = call("--data", ".", "--bits", planes, "--runs", "1")
    assert status == 0, err
    rows = [row for row in csv_rows() if row["memory"]]
    assert {row["fault"] for row in rows if not row["repair"]} == {"random", "stuck_at_0", "stuck_at_1"}


def test_a_file_from_before_there_were_memories(ready, call):  # noqa: F811
    """Its rows get the values that they meant, and are not measured again."""
    few = ["--data", ".", "--bits", "6", "--repair", "midpoint", "--sigma", "0.3", "--flip", "0.1", "--runs", "1"]
    call(*few)
    path, rows = FOLDER / "sweep.csv", csv_rows()
    expected = report.rows.read_rows(path)
    later = set(report.rows.LATER) - {"made_by"}
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(
            file, [name for name in rows[0] if name not in later], lineterminator="\n", extrasaction="ignore"
        )
        writer.writeheader()
        writer.writerows(rows)
    measured = ("size", *report.rows.CHANGES, "mcnemar")  # what was not measured then stays unknown
    rows_before, damaged = report.rows.read_rows(path)
    assert not damaged and rows_before == [{**row, **dict.fromkeys(measured)} for row in expected[0]]
    status, out, err = call(*few)
    assert status == 0 and f"0 of {len(rows)} cells to measure" in out, err
    meant = {(row["fault"], row["memory"], row["planes"], row["cells"]) for row in csv_rows() if not row["repair"]}
    assert meant == {
        ("none", "", "", ""),
        ("random", "image", "6", "transient"),
        ("stuck_at_0", "image", "6", "transient"),
        ("stuck_at_1", "image", "6", "transient"),
        ("noise", "weights", "", "persistent"),
        ("noise_relative", "weights", "", "persistent"),
        ("flips", "weights", "", "persistent"),
    }


def test_rows_of_every_fault_come_back(tmp_path):
    base = {"dataset": "cifar10", "images": "0", "sess": "a", "seed": 1, "checkpoint": "0", "n": 10}
    planes = Cells("image", planes=planes_of("7+6@0.25"))
    known = with_repair(fault_of_cells(planes, "random", 0.5, 3), "repaired_n", 5, True)
    faults = [
        NO_FAULT,
        Fault("random", 6, "median", level=1.0),
        Fault("flips", level=0.1, run=2),
        known,
        fault_of_cells(Cells("activations", ("conv1", "fc1"), persistent=False), "asymmetric", 0.5, 0, 0.25, 1.0),
        fault_of_cells(Cells("thresholds", lines="column", array=(100, 200)), "stuck_at_0", 1e-3),
        fault_of_cells(Cells("weights", ("fc1",)), "inverted", 0.01),
    ]
    score = Score(10, 5, 8, 20.0)
    rows = [report.row_of(fault, score, **base, run_seed=1 + fault.run) for fault in faults]
    report.write_rows(Path("sweep.csv"), rows)
    found, damaged = report.read_rows(Path("sweep.csv"))
    assert not damaged and {report.fault_in(row) for row in found} == set(faults)
    for column, value in (
        ("memory", "weights"),
        ("planes", "7+6+5"),
        ("cells", "transient"),
        ("array", "2x"),
        ("p01", 0.5),
    ):
        line = report.to_line({**rows[3], column: value})
        Path("sweep.csv").write_text(report.rows.HEADER + line)
        found, damaged = report.read_rows(Path("sweep.csv"))
        assert len(damaged) + len(found) == 1 and [report.fault_in(row) for row in found] != [known]


@pytest.mark.parametrize(
    "words,complaint",
    [
        (["--memory", "cache"], "invalid choice: 'cache'"),
        (["--memory", "weights", "--ber", "2"], "argument --ber: 2 is out of range"),
        (["--ber", "0.1"], "--ber is for --memory"),
        (
            ["--memory", "weights", "--layers", "conv9"],
            "no weights of layer conv9: its layers are conv1, conv2, fc1, fc2",
        ),
        (["--memory", "activations", "--layers", "fc2"], "no activations of layer fc2"),
        (["--memory", "image", "--lines", "row"], "name its size"),
        (["--memory", "image", "--array", "4x4"], "--array is for --lines"),
        (["--memory", "image", "--array", "4"], "'4' is no size"),
        (["--memory", "image", "--lines", "row", "--array", "4x4"], "does not hold the 24576 bits of the image memory"),
        (
            ["--memory", "image", "--lines", "row", "--array", "200x128", "--protection", "tmr"],
            "does not hold the 73728 bits of the image memory",
        ),
        (["--memory", "weights", "--critical"], "leave --memory out"),
        (["--memory", "image", "--reading", "asymmetric"], "two probabilities"),
        (["--memory", "image", "--repair", "variation"], "variation mends one broken plane"),
        (["--memory", "image", "--planes", "9"], "argument --planes: planes '9'"),
        (["--planes", "7+6"], "--planes is for --memory"),
        (["--memory", "weights", "--planes", "7+6"], "--planes is for --memory image"),
        (["--memory", "image", "--layers", "conv1"], "--layers is for the memories of a net"),
        (["--memory", "image", "--p01", "0.1"], "--p01 and --p10 are for --reading asymmetric"),
        (["--memory", "image", "--protection", "shuffle", "--cells", "transient"], "transient cells are not known"),
        (["--memory", "image", "--array", "99999999999999999999x1", "--lines", "row"], "is no size such as 512x64"),
        (["--memory", "weights", "--protection", "tmr"], "--protection is for --memory image"),
        (["--memory", "weights", "--repair", "left"], "--repair mends images: --memory image, or --bits"),
        (["--cells", "transient"], "--cells is for --memory"),
        (
            ["--memory", "image", "--planes", "6", "--cells", "transient", "--reading", "random", "--repair", "left"],
            "--bits 6",
        ),
        (["--memory", "image", "--cells", "transient", "--repair", "left"], "needs an intact bit"),
        (["--bits", "7+8"], "argument --bits: planes '7+8'"),
        (["--bits", "7+6", "--repair", "variation"], "variation mends one broken plane"),
    ],
)
def test_bad_input_gets_one_line(ready, call, words, complaint):  # noqa: F811
    status, out, err = call("--data", ".", *words)
    assert status in (1, 3) and "to measure" not in out  # 3: a repair that cannot be
    assert err.startswith("error: ") and err.count("\n") == 1 and complaint in err
