"""Repairs of several broken bits against a search through all candidates, and against the repairs of one bit."""

import numpy as np
import pytest
import torch

from faults import Cells, break_cells, broken_map, fault_of_cells, planes_of
from repairs import REPAIRS, ImpossibleRepair, masked, with_fault, with_repair
from repairs.masked import nearest

MASKED = {name: row for name, row in REPAIRS.items() if row.masked}


def test_nearest_candidate_against_a_search():
    predictions = np.arange(-40, 300)
    for broken in range(256):
        intact = 0xFF ^ broken
        for low in {0, intact, 0b10110010 & intact, 0b01001101 & intact}:
            candidates = np.array([value for value in range(256) if value & intact == low])
            expected = candidates[np.abs(candidates[:, None] - predictions).argmin(0)]  # of equal ones the lower
            whole = torch.full((len(predictions),), low, dtype=torch.int16)
            found = nearest(whole, torch.full_like(whole, broken), torch.from_numpy(predictions).short())
            assert np.array_equal(found.numpy(), expected), (broken, low)
            expected = candidates[np.abs(3 * candidates[:, None] - predictions).argmin(0)]  # nearest to a third
            found = nearest(whole, torch.full_like(whole, broken), torch.from_numpy(predictions).short(), 3)
            assert np.array_equal(found.numpy(), expected), (broken, low)


@pytest.mark.parametrize("bit", range(8))
@pytest.mark.parametrize("name", MASKED)
def test_one_bit_as_ever(name, bit):
    row, images = MASKED[name], torch.randint(0, 256, (5, 3, 9, 7), dtype=torch.uint8)
    broken = torch.tensor(1 << bit, dtype=torch.uint8)
    for source in row.sources or [None]:
        if source == bit:
            continue
        extra = [] if source is None else [source]
        assert torch.equal(row.masked(images, broken, *extra), row.mend(images, bit, *extra))


@pytest.mark.parametrize("name", MASKED)
def test_what_broken_bits_read_does_not_matter_and_intact_values_stay(name):
    images = torch.randint(0, 256, (5, 3, 9, 7), dtype=torch.uint8)
    broken = torch.randint(0, 256, (3, 9, 7), dtype=torch.uint8) & torch.randint(0, 256, (3, 9, 7), dtype=torch.uint8)
    extra = [7] if MASKED[name].sources else []
    broken &= 0x7F if extra else 0xFF
    found = MASKED[name].masked(images, broken, *extra)
    assert torch.equal(found, MASKED[name].masked(images ^ broken, broken, *extra))
    assert found.dtype == torch.uint8 and torch.equal(found[:, broken == 0], images[:, broken == 0])
    if name != "midpoint":
        assert torch.equal(found & ~broken, images & ~broken)
    assert name == "left" or not torch.equal(found, MASKED["left"].masked(images, broken))


def test_two_planes_by_hand():
    images, broken = torch.tensor([0b10110010, 0b01001101], dtype=torch.uint8), torch.tensor(0xC0, dtype=torch.uint8)
    for repair, expected in (
        (masked.constant_0(images, broken), [0b00110010, 0b00001101]),
        (masked.constant_1(images, broken), [0b11110010, 0b11001101]),
        (masked.copy_bit(images, broken, 5), [0b11110010, 0b00001101]),
        (masked.copy_bit(images, broken, 3), [0b00110010, 0b11001101]),
        (masked.midpoint(images, broken), [0b00110010 + 96, 0b00001101 + 96]),
    ):
        assert repair.tolist() == expected


def fault_in(planes="7+6", persistent=True, level=1.0):
    cells = Cells("image", planes=planes_of(planes), persistent=persistent)
    return fault_of_cells(cells, "inverted", level)


def test_a_known_map_leaves_intact_cells_alone():
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    fault = fault_in(level=0.2)
    known, unknown = (with_fault(images, with_repair(fault, "constant_0", known=known), 1) for known in (True, False))
    assert torch.equal(unknown, images & 0x3F)
    assert torch.equal(known, images & ~broken_map(fault, images.shape[1:], 1))
    faulty = break_cells(fault, images, 1)
    assert torch.equal(with_fault(images, fault, 1), faulty)
    assert torch.equal(known[known != faulty] & 0x3F, images[known != faulty] & 0x3F)


@pytest.mark.parametrize(
    "fault,repair,source,known,complaint",
    [
        (fault_in(), "variation", None, False, "variation mends one broken plane"),
        (fault_in(), "repaired_s", None, False, "cannot copy bit 7"),
        (fault_in(), "repaired_n", 6, False, "cannot copy bit 6"),
        (fault_in(), "repaired_n", None, False, "repaired_n needs a bit to copy"),
        (fault_in(persistent=False), "median", None, True, "transient"),
        (fault_in("7+6+5+4+3+2+1+0"), "median", None, False, "needs an intact bit"),
        (fault_of_cells(Cells("activations"), "inverted", 0.1), "median", None, False, "not activations"),
    ],
)
def test_a_repair_that_cannot(fault, repair, source, known, complaint):
    with pytest.raises(ImpossibleRepair, match=complaint) as error:
        with_repair(fault, repair, source, known)
    assert "\n" not in str(error.value)
