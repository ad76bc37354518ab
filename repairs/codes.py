"""Protections of the image memory: codes, copies, safer cells, and rotation of words around known broken cells.

A protection stores values (uint8 N×V) as bits (uint8 0 or 1, N×cells), of which some are read wrong, and reads the
values back. Check bits and copies lie in the same kind of cells and break at the same rate.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

VALUES = 8  # of 8 bits in a word of SECDED
SAFE_CELL = 1 / 3  # what a cell that does not fail adds: eight transistors in place of six


class Protection(NamedTuple):
    """A row of PROTECTIONS. `detects` says whether decode can flag words that it does not correct."""

    encode: Callable  # values N×V -> bits N×cells
    decode: Callable  # bits N×cells -> (values N×V, bool N×V: flagged as wrong)
    added: float  # memory added for each stored bit
    cells: int  # for each value
    what: str
    detects: bool = False
    safe: int = 0  # planes, from the MSB, in cells that do not fail
    rotates: bool = False  # encode and decode also get the rotations, uint8 V


def to_bits(values):
    """Bits of values, the LSB first: uint8 N×V -> N×8V."""
    return np.unpackbits(values, axis=1, bitorder="little")


def to_values(bits):
    """The values that such bits are."""
    return np.packbits(bits, axis=1, bitorder="little")


def read_back(bits):
    values = to_values(bits)
    return values, np.zeros(values.shape, bool)


def add_parity(values):
    """Nine bits for each value: its own, and their parity."""
    bits = to_bits(values).reshape(len(values), -1, 8)
    parity = np.bitwise_xor.reduce(bits, 2, keepdims=True)
    return np.concatenate([bits, parity], 2).reshape(len(values), -1)


def check_parity(bits):
    """The values; flagged are those with an odd number of wrong bits, the parity bit included."""
    words = bits.reshape(len(bits), -1, 9)
    return to_values(words[:, :, :8].reshape(len(bits), -1)), np.bitwise_xor.reduce(words, 2).astype(bool)


def _hsiao_columns():
    """The syndromes of single errors in the 64 data bits and the 8 check bits: 72 numbers of odd weight."""
    odd = {weight: [c for c in range(256) if c.bit_count() == weight] for weight in (1, 3, 5)}
    return np.array([*odd[3], *odd[5][:8], *odd[1]])


COLUMNS = _hsiao_columns()
PLACE = np.full(256, -1)  # syndrome -> bit of the word that is corrected; -1: none
PLACE[COLUMNS] = np.arange(72)


def add_secded(values):
    """72 bits for every 8 values: their 64 bits, and the 8 check bits of a Hsiao code.

    Source: Hsiao, "A class of optimal minimum odd-weight-column SEC-DED codes" (1970).
    """
    data = to_bits(values).reshape(-1, 64)
    check = np.zeros(len(data), np.uint8)
    for column, bit in zip(COLUMNS[:64], data.T):
        check ^= bit * np.uint8(column)
    words = np.concatenate([data, to_bits(check[:, None])], 1)
    return words.reshape(len(values), -1)


def check_secded(bits):
    """The values after correction of single errors; all values of a word with a detected double error are flagged.

    Three or more wrong bits are decoded as they would be: most look like a single error of another bit.
    """
    words = bits.reshape(-1, 72).copy()
    syndrome = np.zeros(len(words), np.uint8)
    for column, bit in zip(COLUMNS, words.T):
        syndrome ^= bit * np.uint8(column)
    place = PLACE[syndrome]
    wrong = np.flatnonzero((syndrome > 0) & (place >= 0))
    words[wrong, place[wrong]] ^= 1
    detected = (syndrome > 0) & (place < 0)
    values = to_values(words[:, :64].reshape(len(bits), -1))
    return values, np.repeat(detected.reshape(len(bits), -1), VALUES, axis=1)


def add_copies(values):
    return np.tile(to_bits(values), 3)


def vote(bits):
    """The majority of three copies."""
    return read_back((bits.reshape(len(bits), 3, -1).sum(1) >= 2).astype(np.uint8))


def rotations(broken):
    """By how many bits each word is rotated down so that its broken cells hold bits of the least worth: uint8 V.

    broken: uint8 V, the broken cells of each word. A word rotated by r holds its bit b in cell (b + r) mod 8.
    """
    numbers = np.arange(256)
    worth = [(numbers >> r | numbers << (8 - r)) & 0xFF for r in range(8)]  # of the bits that the broken cells hold
    return np.argmin(worth, axis=0).astype(np.uint8)[broken]


def rotate_in(values, by):
    """Bits of words rotated so that bit b is in cell (b + by) mod 8."""
    wide = values.astype(np.uint16)
    return to_bits((wide << by | wide >> (8 - by)).astype(np.uint8))


def rotate_out(bits, by):
    values, flagged = read_back(bits)
    wide = values.astype(np.uint16)
    return (wide >> by | wide << (8 - by)).astype(np.uint8), flagged


PROTECTIONS = {
    "parity": Protection(add_parity, check_parity, 1 / 8, 9, "a parity bit a byte; flagged bytes are repaired", True),
    "secded": Protection(add_secded, check_secded, 1 / 8, 9, "SECDED (72,64): one error corrected, two detected", True),
    "tmr": Protection(add_copies, vote, 2.0, 24, "each bit three times, and the majority of them"),
    **{
        f"hybrid_{planes}": Protection(
            to_bits,
            read_back,
            planes / 8 * SAFE_CELL,
            8,
            f"the top {planes} planes in cells that do not fail",
            safe=planes,
        )
        for planes in (1, 2, 3, 4)
    },
    "shuffle": Protection(
        rotate_in,
        rotate_out,
        3 / 8,
        8,
        "words rotated so that known broken cells hold the LSB; 3 bits a byte",
        rotates=True,
    ),
}
