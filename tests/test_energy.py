"""Accuracy against energy, by hand."""

from pathlib import Path

import pytest

import plot
from engine import Score
from faults import NO_FAULT, Cells, fault_of_cells
from repairs import with_protection
from report import row_of, summarize, write_rows
from report.energy import accuracy_at, lines_of, read_points

BASE = {"dataset": "cifar10", "images": "0", "sess": "a", "seed": 1, "checkpoint": "0", "n": 100, "run_seed": 1}


def rows():
    """Accuracy 80 % at a rate of 0.001, and 40 % at 0.1; with three copies 90 % and 60 %."""
    found = [row_of(NO_FAULT, Score(100, 90, 100, 1.0), **BASE)]
    for level, plain, copies in ((0.001, 80, 90), (0.1, 40, 60)):
        fault = fault_of_cells(Cells("image"), "inverted", level)
        found.append(row_of(fault, Score(100, plain, 100, 1.0), **BASE))
        found.append(row_of(with_protection(fault, "tmr"), Score(100, copies, 100, 1.0), **BASE))
    return found


def test_accuracy_between_two_rates():
    assert accuracy_at(0.01, {0.001: 80, 0.1: 40}) == pytest.approx(60)
    assert accuracy_at(0.001, {0.1: 40, 0.001: 80}) == 80 and accuracy_at(0.1, {0.1: 40, 0.001: 80}) == 40
    assert accuracy_at(0.2, {0.001: 80, 0.1: 40}) is accuracy_at(0.0001, {0.001: 80, 0.1: 40}) is None


def test_lines_by_hand(run_script):
    Path("points.csv").write_text("voltage,ber,energy\n0.6,0.1,0.5\n0.8,0.001,2\n0.7,0.01,1\n0.5,0.5,0.2\n")
    points = read_points(Path("points.csv"))
    assert [point.voltage for point in points] == [0.8, 0.7, 0.6, 0.5]
    lines = lines_of(summarize(rows()), points)
    assert lines["nothing"] == [(2, 80), (1, pytest.approx(60)), (0.5, 40)]
    assert lines["tmr"] == [(6, 90), (3, pytest.approx(75)), (1.5, 60)]
    Path("a_1").mkdir()
    write_rows(Path("a_1/sweep.csv"), rows())
    assert run_script(plot, "a_1", "--energy", "points.csv")[0] == 0
    assert Path("a_1/energy.png").stat().st_size > 5000


@pytest.mark.parametrize(
    "text,complaint",
    [
        (None, "is missing"),
        ("a,b\n1,2\n", "is not readable"),
        ("voltage,ber,energy\n1,x,2\n", "is not readable"),
        ("voltage,ber,energy\n1,2,2\n", "ber above 0 and at most 1"),
        ("voltage,ber,energy\n", "ber above 0 and at most 1"),
        ("voltage,ber,energy\n1,0.9,2\n", "no protections measured at these"),
    ],
)
def test_bad_tables_get_one_line(run_script, text, complaint):
    Path("a_1").mkdir()
    write_rows(Path("a_1/sweep.csv"), rows())
    if text is not None:
        Path("points.csv").write_text(text)
    status, _, err = run_script(plot, "a_1", "--energy", "points.csv")
    assert status == 1 and err.count("\n") == 1 and complaint in err
