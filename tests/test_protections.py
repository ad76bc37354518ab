"""Codes against every error of a word, copies and safer cells against probabilities, rotation by hand."""

import itertools

import numpy as np
import pytest
import torch
from test_sweep import FOLDER, call, csv_rows, parse_tables, ready  # noqa: F401  (fixtures)

from faults import Cells, break_cells, broken_map, fault_of_cells, flip_cells, planes_of, set_bit
from repairs import PROTECTIONS, REPAIRS, ImpossibleRepair, made_by_cells, with_fault, with_protection, with_repair
from repairs.codes import add_parity, add_secded, check_parity, check_secded, rotations
from report.figures import whole_memories


def image_fault(level, kind="inverted", persistent=False, planes="7+6+5+4+3+2+1+0"):
    return fault_of_cells(Cells("image", planes=planes_of(planes), persistent=persistent), kind, level)


def random_images(count, size=32):
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)


@pytest.mark.parametrize("seed", range(3))
def test_secded_on_every_single_and_double_error_of_a_word(seed):
    values = np.random.default_rng(seed).integers(0, 256, (1, 8), dtype=np.uint8)
    word = add_secded(values)
    assert word.shape == (1, 72) and np.array_equal(np.packbits(word[0, :64], bitorder="little"), values[0])
    assert np.array_equal(check_secded(word)[0], values) and not check_secded(word)[1].any()
    for number in (1, 2):
        places = list(itertools.combinations(range(72), number))
        assert len(places) == (72, 2556)[number - 1]
        wrong = np.repeat(word, len(places), axis=0)
        np.put_along_axis(wrong, np.array(places), 1 - np.take_along_axis(wrong, np.array(places), 1), 1)
        before = wrong.copy()
        read, flagged = check_secded(wrong)
        assert np.array_equal(wrong, before)
        if number == 1:
            assert (read == values).all() and not flagged.any()
        else:
            assert flagged.all()
            assert np.array_equal(read, np.packbits(wrong[:, :64].reshape(-1, 8, 8), axis=2, bitorder="little")[..., 0])


def test_three_errors_are_decoded_as_they_would_be():
    """An odd number of errors looks like one: the word is flagged, or one more bit of data or check changes."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (3000, 8), dtype=np.uint8)
    words = add_secded(values).reshape(3000, 72)
    places = np.array([rng.choice(64, 3, replace=False) for _ in range(3000)])
    wrong = words.copy()
    np.put_along_axis(wrong, places, 1 - np.take_along_axis(wrong, places, 1), 1)
    read, flagged = check_secded(wrong)
    differ = np.unpackbits(read ^ values, axis=1).sum(1)
    assert set(differ[~flagged[:, 0]].tolist()) == {3, 4} and set(differ[flagged[:, 0]].tolist()) == {3}
    assert 0.2 < flagged.mean() < 0.7


@pytest.mark.parametrize("p,expected", [(1e-4, 2.54e-5), (1e-3, 2.44e-3), (1e-2, 0.162)])
def test_words_with_two_or_more_errors(p, expected):
    assert 1 - (1 - p) ** 72 - 72 * p * (1 - p) ** 71 == pytest.approx(expected, rel=5e-3)
    words, images = 3072, 4 if p > 1e-3 else 60
    counts = np.zeros((images, words))
    for image, count in enumerate(counts):
        held = np.zeros(words * 72, np.uint8)
        flip_cells(image_fault(p), held, 1, image)
        count[:] = held.reshape(words, 72).sum(1)
    found, spread = (counts >= 2).mean(), np.sqrt(expected / counts.size)
    assert abs(found - expected) < 4 * spread


def test_parity_by_hand():
    """0b101 has parity 0, 0b111 parity 1."""
    bits = add_parity(np.array([[5, 7]], np.uint8))
    assert bits.tolist() == [[1, 0, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 1]]
    for cell in range(18):
        wrong = bits.copy()
        wrong[0, cell] ^= 1
        assert check_parity(wrong)[1].tolist() == [[cell < 9, cell >= 9]]
    wrong[0, 16] ^= 1  # two errors in one byte
    assert not check_parity(wrong)[1].any() and check_parity(wrong)[0].tolist() == [[5, 7 ^ 128]]


def test_flagged_bytes_are_repaired_and_others_stay():
    images = random_images(4, 8) | 1  # no value is 0
    read = with_fault(images, with_protection(image_fault(0.02), "parity", "constant_0"), 3)
    assert 0.1 < (read == 0).double().mean() < 0.25  # 1 - 0.98^9 = 0.166 of the bytes have an error, most of them one
    assert (read[read != 0] == images[read != 0]).double().mean() > 0.97
    plain, repaired = (
        with_fault(images, with_protection(image_fault(0.01), "secded", repair), 3) for repair in (None, "constant_1")
    )
    changed = plain != repaired
    assert changed.any() and (repaired[changed] == 255).all()
    words = (repaired == 255).view(4, -1, 8)
    assert words.all(2).sum() > 0  # all eight values of a word are repaired


def test_tmr_is_wrong_where_two_of_three_copies_are():
    images, p = random_images(40), 0.05
    read = with_fault(images, with_protection(image_fault(p), "tmr"), 1)
    wrong = np.unpackbits((read ^ images).numpy()).mean()
    expected = 3 * p**2 - 2 * p**3
    assert abs(wrong - expected) < 4 * np.sqrt(expected / (images.numel() * 8))
    assert torch.equal(with_fault(images, with_protection(image_fault(0.0), "tmr"), 1), images)


@pytest.mark.parametrize("planes", [1, 4])
def test_safe_planes_never_fail(planes):
    images = random_images(10)
    read = with_fault(images, with_protection(image_fault(0.2), f"hybrid_{planes}"), 1)
    plain = break_cells(image_fault(0.2), images, 1)
    safe = 256 - (1 << (8 - planes))
    assert torch.equal(read, plain & ~torch.tensor(safe, dtype=torch.uint8) | images & safe)


def test_rotation_by_hand():
    """Broken cell 5: r = 5, so that bit 0 is in it. Cells 7 and 1: r = 7 puts bits 0 and 2 there."""
    assert rotations(np.array([0b100000, 0b10000010, 0, 1, 255], np.uint8)).tolist() == [5, 7, 0, 0, 0]


def test_shuffling_leaves_an_error_of_at_most_1():
    images = random_images(5)
    fault = image_fault(0.01, persistent=True)
    broken = broken_map(fault, images.shape[1:], 2)
    single = torch.tensor([value.bit_count() <= 1 for value in broken.flatten().tolist()]).view(broken.shape)
    read = with_fault(images, with_protection(fault, "shuffle"), 2)
    error = (read.int() - images.int()).abs()
    assert single.double().mean() > 0.99 and error[:, single].max() == 1
    assert torch.equal(error[:, broken == 0], torch.zeros_like(error[:, broken == 0]))
    assert (error[:, single & (broken > 0)] == 1).all()
    assert (break_cells(fault, images, 2).int() - images.int()).abs().max() >= 128


@pytest.mark.parametrize("plane", range(8))
def test_a_whole_plane_shuffled_is_the_cell_of_bit_0(plane):
    images = random_images(3, 8)
    for kind, expected in (("stuck_at_1", images | 1), ("stuck_at_0", images & 254), ("inverted", images ^ 1)):
        fault = image_fault(1.0, kind, True, str(plane))
        assert torch.equal(with_fault(images, with_protection(fault, "shuffle"), 1), expected)
    random = with_fault(images, with_protection(image_fault(1.0, "random", True, str(plane)), "shuffle"), 1)
    assert torch.equal(set_bit(random, 0, 0), images & 254)
    assert abs((random & 1).double().mean() - 0.5) < 0.1


@pytest.mark.parametrize("name", PROTECTIONS)
def test_without_a_fault_and_image_by_image(name):
    images, row = random_images(6, 8), PROTECTIONS[name]
    repair = "median" if row.detects else None
    assert torch.equal(with_fault(images, with_protection(image_fault(0.0, persistent=True), name, repair), 1), images)
    fault = with_protection(image_fault(0.05, "random", persistent=row.rotates), name, repair)
    whole = with_fault(images, fault, 1)
    assert torch.equal(whole[[4, 1]], with_fault(images[[4, 1]], fault, 1, numbers=[4, 1]))
    assert not torch.equal(whole, images)


@pytest.mark.parametrize(
    "fault,protection,repair,complaint",
    [
        (image_fault(0.1), "parity", None, "parity corrects nothing"),
        (image_fault(0.1), "tmr", "median", "flags no words"),
        (image_fault(0.1), "secded", "repaired_s", "cannot mend whole bytes"),
        (image_fault(0.1), "parity", "variation", "cannot mend whole bytes"),
        (image_fault(0.1), "shuffle", None, "transient cells are not known"),
        (image_fault(0.1, planes="7+6"), "secded", None, "all eight planes"),
        (image_fault(0.1, "random", planes="6"), "tmr", None, "not for planes 6"),  # in the short form, without cells
        (image_fault(0.1, "random", planes="6"), "shuffle", None, "transient cells are not known"),
        (fault_of_cells(Cells("weights"), "random", 0.1), "tmr", None, "not weights"),
    ],
)
def test_a_protection_that_cannot_be(fault, protection, repair, complaint):
    with pytest.raises(ImpossibleRepair, match=complaint) as error:
        with_protection(fault, protection, repair)
    assert "\n" not in str(error.value)


def test_repairs_of_whole_bytes_do_not_need_their_bits():
    images, flagged = random_images(2, 8), torch.randint(0, 2, (2, 3, 8, 8), dtype=torch.uint8) * 255
    for row in REPAIRS.values():
        if row.masked and not row.sources:
            found = row.masked(images, flagged)
            assert torch.equal(found, row.masked(images ^ flagged, flagged))
            assert torch.equal(found[flagged == 0], images[flagged == 0])


def test_broken_bits_of_each_image():
    """A repair of many images, each with its own broken bits, is that of one image after the other."""
    images, broken = random_images(23, 8), torch.randint(0, 256, (23, 3, 8, 8), dtype=torch.uint8)
    for row in REPAIRS.values():
        if row.masked and not row.sources:
            alone = [row.masked(image[None], its) for image, its in zip(images, broken)]
            assert torch.equal(row.masked(images, broken), torch.cat(alone))


def test_rows_are_outdated_by_a_change_of_their_protection(monkeypatch):
    made = {name: made_by_cells(None, name, None) for name in PROTECTIONS}
    assert len(set(made.values())) == len(made)
    monkeypatch.setattr("repairs.learned.rotations", lambda broken: broken * 0)
    monkeypatch.setattr("repairs.learned.in_planes", lambda *given: given)
    changed = {name for name in made if made_by_cells(None, name, None) != made[name]}
    assert changed == {"shuffle", "hybrid_1", "hybrid_2", "hybrid_3", "hybrid_4"}


def test_repairs_that_cannot_mend_what_a_code_flags_are_left_out(ready, call):  # noqa: F811
    words = ["--data", ".", "--memory", "image", "--ber", "0.2", "--runs", "1", "--cells", "persistent"]
    status, _, err = call(*words, "--protection", "parity", "--repair", "median", "repaired_s")
    assert status == 0, err
    assert {row["repair"] for row in csv_rows() if row["protection"]} == {"median"}
    status, _, err = call(*words, "--protection", "parity", "--repair", "repaired_s")
    assert status == 3 and "repaired_s cannot mend whole bytes" in err


def test_one_plane_shuffled_where_its_cells_are_known(ready, call):  # noqa: F811
    words = ["--memory", "image", "--planes", "7", "--reading", "random", "--ber", "0.2", "--runs", "1"]
    status, _, err = call("--data", ".", *words, "--protection", "shuffle")
    assert status == 0, err
    rows = csv_rows()
    assert [row["cells"] for row in rows if row["protection"]] == ["persistent"]
    assert sorted(row["cells"] for row in rows if not row["protection"]) == ["", "persistent", "transient"]


@pytest.mark.plots
def test_protections_in_a_sweep(ready, call):  # noqa: F811
    words = [
        "--memory",
        "image",
        "--ber",
        "0.001",
        "0.05",
        "--runs",
        "2",
        "--cells",
        "persistent",
        "--protection",
        *PROTECTIONS,
    ]
    status, _, err = call("--data", ".", *words, "--repair", "median", "constant_0")
    assert status == 0, err
    rows = csv_rows()
    # nothing, two repairs, two codes with two repairs each, seven protections without
    assert len(rows) == 1 + 4 * (1 + 2 + 4 + len(PROTECTIONS) - 2)
    assert {(row["protection"], float(row["added"])) for row in rows if row["protection"]} == {
        ("parity", 0.125), ("secded", 0.125), ("tmr", 2.0), ("shuffle", 0.375),
        *((f"hybrid_{planes}", planes / 24) for planes in (1, 2, 3, 4)),
    }  # fmt: skip
    cells = {row["protection"]: int(row["size"]) / 3072 for row in rows if row["memory"]}  # that can break, by value
    assert cells.pop("") == cells.pop("shuffle") == 8 and cells.pop("parity") == cells.pop("secded") == 9
    assert cells == {"tmr": 24, "hybrid_1": 7, "hybrid_2": 6, "hybrid_3": 5, "hybrid_4": 4}
    assert all(row["mcnemar"] for row in rows if row["protection"] or row["repair"])
    assert "0 of " in call("--data", ".", *words)[1]
    tables = {table[0]: table[1:] for table in parse_tables((FOLDER / "tables.md").read_text())}
    head, *lines = tables["Protections and repairs of the image memory, persistent cells inverted: accuracy (%)"]
    assert head == ["image memory", "memory added", "0.001", "0.05"]
    assert {line[0]: line[1] for line in lines}["secded + median"] == "0.125" and lines[0][:2] == ["nothing", "0"]
    for suffix in ("png", "svg"):
        assert (FOLDER / f"protections.{suffix}").is_file()


def test_the_plot_of_memories_leaves_guarded_images_out():
    plain = image_fault(0.1, persistent=True)
    guarded = [
        with_protection(plain, "tmr"),
        with_protection(plain, "secded", "median"),
        with_repair(plain, "left", None, True),
    ]
    assert whole_memories(dict.fromkeys([*guarded, plain]), "image") == [plain]
