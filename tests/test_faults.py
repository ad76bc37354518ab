"""Faults and repairs against bytes computed by hand and against an independent NumPy version."""

import numpy as np
import pytest
import torch
from made import apply

from common import UserError
from faults import image_bits, weight_noise
from models import CNV, Topology
from repairs import fault_of, with_fault

BITS = range(8)
ALL_BYTES = torch.arange(256, dtype=torch.uint8)


def read_as(value):
    """A draw function: every broken bit reads 0, or every broken bit reads 1."""
    return lambda shape: torch.full(shape, value, dtype=torch.uint8)


def source_bit(mem_fault, bit, offset):
    return bit + offset if mem_fault == "repaired_n" else 7


def oracle(images, bit, source):
    """Copies bit `source` onto bit `bit` with arithmetic on unpacked bits instead of masks."""
    bits = np.unpackbits(images.numpy()[..., None], axis=-1)  # MSB first
    bits[..., 7 - bit] = bits[..., 7 - source]
    return np.packbits(bits, axis=-1)[..., 0]


def repairs():
    for bit in BITS:
        for offset in range(-7, 8):
            if offset and 0 <= bit + offset <= 7:
                yield "repaired_n", bit, offset
        if bit != 7:
            yield "repaired_s", bit, -1


def test_bytes_by_hand():
    images = torch.tensor([0b10110010, 0b01001101, 0b11111111, 0], dtype=torch.uint8)
    for mem_fault, bit, offset, read, expected in [
        ("baseline", 6, -1, 1, [0b10110010, 0b01001101, 0b11111111, 0]),
        ("faulty", 6, -1, 1, [0b11110010, 0b01001101, 0b11111111, 0b01000000]),
        ("faulty", 6, -1, 0, [0b10110010, 0b00001101, 0b10111111, 0]),
        ("repaired_n", 6, -1, 0, [0b11110010, 0b00001101, 0b11111111, 0]),
        ("repaired_n", 2, 1, 1, [0b10110010 & ~0b100, 0b01001101, 0b11111111, 0]),
        ("repaired_s", 6, -1, 1, [0b11110010, 0b00001101, 0b11111111, 0]),
        ("repaired_s", 0, -1, 0, [0b10110011, 0b01001100, 0b11111111, 0]),
    ]:
        result = apply(fault_of(mem_fault, bit, offset), images, read_as(read))
        assert result.tolist() == expected, (mem_fault, bit, offset, read)


@pytest.mark.parametrize("mem_fault,bit,offset", list(repairs()))
def test_repairs_against_numpy_whatever_the_broken_bit_reads(mem_fault, bit, offset):
    fault = fault_of(mem_fault, bit, offset)
    expected = oracle(ALL_BYTES, bit, source_bit(mem_fault, bit, offset))
    random = torch.from_numpy(np.random.RandomState(0).randint(0, 2, 256).astype(np.uint8))
    for draw in (read_as(0), read_as(1), lambda shape: random):
        result = apply(fault, ALL_BYTES, draw)
        assert result.dtype == torch.uint8
        assert np.array_equal(result.numpy(), expected)


@pytest.mark.parametrize("bit", BITS)
def test_only_the_faulty_bit_is_touched(bit):
    values = torch.from_numpy(np.random.RandomState(bit).randint(0, 2, 256).astype(np.uint8))
    result = apply(fault_of("faulty", bit, -1), ALL_BYTES, lambda shape: values)
    for clean, value, faulty in zip(ALL_BYTES.tolist(), values.tolist(), result.tolist()):
        assert faulty == clean // 2 ** (bit + 1) * 2 ** (bit + 1) + value * 2**bit + clean % 2**bit


def test_input_is_left_alone():
    images = ALL_BYTES.clone()
    for mem_fault in ("faulty", "repaired_n", "repaired_s"):
        apply(fault_of(mem_fault, 5, -1), images, read_as(1))
    assert torch.equal(images, ALL_BYTES)


def test_random_bits_are_fair_seeded_and_independent_of_the_batch():
    bits = image_bits(11111, range(200), (3, 32, 32))
    assert bits.shape == (200, 3, 32, 32) and bits.dtype == torch.uint8 and set(bits.unique().tolist()) == {0, 1}
    deviation = (bits.double().mean() - 0.5).abs() * 2 * (200 * 3072) ** 0.5
    assert deviation < 4  # standard deviations
    neighbours = (bits[1:] == bits[:-1]).double().mean() - 0.5  # near 0: images do not share a stream
    assert neighbours.abs() * 2 * (199 * 3072) ** 0.5 < 4
    assert torch.equal(bits, image_bits(11111, range(200), (3, 32, 32)))
    assert not torch.equal(bits, image_bits(11112, range(200), (3, 32, 32)))
    assert torch.equal(bits[[7, 3]], image_bits(11111, [7, 3], (3, 32, 32)))


def test_half_of_the_broken_bits_are_wrong():
    images = torch.randint(0, 256, (50, 3, 32, 32), dtype=torch.uint8)
    faulty = with_fault(images, fault_of("faulty", 6, -1), seed=1)
    difference = (faulty.int() - images.int()).abs()
    assert set(difference.unique().tolist()) == {0, 64}
    assert abs((difference == 64).double().mean() - 0.5) < 0.01


@pytest.mark.parametrize(
    "arguments,reason",
    [
        (("repaired_n", 5, 0), "neighbor_offset 0"),
        (("repaired_n", 0, -1), "bit -1"),
        (("repaired_n", 6, 2), "bit 8"),
        (("repaired_s", 7, -1), "cannot repair bit 7"),
        (("faulty", 8, -1), "faulty_bit 8"),
        (("faulty", -1, -1), "faulty_bit -1"),
        (("mended", 5, -1), "unknown"),
    ],
)
def test_impossible_faults(arguments, reason):
    with pytest.raises(UserError, match=reason):
        fault_of(*arguments)


def test_old_spellings():
    assert fault_of("reparied_n", 5, -1) == fault_of("repaired_n", 5, -1)
    assert fault_of("reparied_s", 5, -1) == fault_of("repaired_s", 5, -1)


@pytest.mark.parametrize("wsconv", (False, True))
def test_weight_noise(wsconv):
    net = CNV(Topology(8, ((8, True), (16, False)), (32,)), 10, wsconv).eval()
    before = [layer.weight.detach().clone() for layer in net.binary_layers()]

    def signs(weight, standardized):
        weight = weight.double().numpy()
        return weight - weight.mean() * standardized >= 0

    with pytest.raises(RuntimeError):
        with weight_noise(net, 0.5, seed=3) as flipped:
            noisy = [layer.weight.detach().clone() for layer in net.binary_layers()]
            raise RuntimeError
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip(net.binary_layers(), before))

    noise = np.concatenate([(new - old).numpy().ravel() for new, old in zip(noisy, before)])
    assert abs(noise.std() - 0.25) < 0.01 and abs(noise.mean()) < 0.01  # sigma_val 0.5: standard deviation 0.25
    flips, total = 0, 0
    for i, (new, old) in enumerate(zip(noisy, before)):
        standardized = wsconv and i < 2
        flips += (signs(new, standardized) != signs(old, standardized)).sum()
        total += old.numel()
    assert flipped == flips / total > 0

    with weight_noise(net, 0.5, seed=3):
        assert all(torch.equal(layer.weight, weight) for layer, weight in zip(net.binary_layers(), noisy))
    with weight_noise(net, 0.5, seed=4):
        assert not torch.equal(net.binary_layers()[0].weight, noisy[0])
    with weight_noise(net, 0, seed=4) as flipped:
        assert flipped == 0
