"""Committed results stay valid: tables follow from their CSV, packed nets predict as when they were packed."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from common import code_digest
from datasets import demo
from engine import checkpoints
from faults import (
    RECALIBRATED,
    WEIGHT_KINDS,
    Fault,
    faulty_weights,
    misread_activations,
    misread_thresholds,
    misread_weights,
    misread_weights_of_each,
)
from models.folded import Folded
from repairs import REPAIRS, fault_of, learned, made_by, made_by_cells, with_fault
from report import fault_in, markdown, read_rows
from report.seeds import seeds_tables

ROOT = Path(__file__).resolve().parent.parent


FOLDERS = sorted(path.parent.name for path in ROOT.glob("results/*/sweep.csv"))


@pytest.mark.parametrize("folder", FOLDERS)
def test_tables_follow_from_their_csv(folder):
    rows, damaged = read_rows(ROOT / "results" / folder / "sweep.csv")
    name = f"{rows[0]['sess']}_{rows[0]['seed']}"
    text = (ROOT / "results" / folder / "tables.md").read_text()
    alone = re.split(r"^## ", text, flags=re.M)[0]  # without the comparison with other nets
    assert not damaged and markdown(name, rows, {}).rstrip() == alone.rstrip()


def test_seeds_follow_from_the_sessions(monkeypatch):
    monkeypatch.chdir(ROOT)
    written = {path: path.read_text() for path in ROOT.glob("results/*_seeds.md")}
    assert seeds_tables(ROOT / "results") == written


MISREAD = {
    ("weights", True): misread_weights,
    ("weights", False): misread_weights_of_each,
    ("activations", True): misread_activations,
    ("activations", False): misread_activations,
    ("thresholds", True): misread_thresholds,
    ("thresholds", False): misread_thresholds,
}  # by memory, and whether the cells are persistent


@pytest.mark.parametrize("folder", FOLDERS)
def test_rows_were_made_by_the_code_of_today(folder):
    """Fails after a change of a fault or repair: sweep again, or where no figure can change, write the digests anew."""
    learning = {RECALIBRATED, *(name for name, row in REPAIRS.items() if row.learn)}
    for row in read_rows(ROOT / "results" / folder / "sweep.csv")[0]:
        fault = fault_in(row)
        if fault.repair in learning:  # the digest is also of training images, which are not here
            assert row["made_by"]
        elif fault.cells and fault.memory == "image":
            assert row["made_by"] == made_by_cells(fault.repair, fault.protection, fault.known)
        elif fault.cells:
            assert row["made_by"] == code_digest(MISREAD[fault.memory, fault.persistent])
        elif fault.kind in WEIGHT_KINDS:
            assert row["made_by"] == code_digest(faulty_weights)
        elif fault.kind != "none":
            assert row["made_by"] == made_by(fault.repair, row["dataset"], "")


SETTINGS = (
    ("baseline", 6),
    ("faulty", 7),
    ("faulty", 5),
    ("repaired_n", 6),
    ("repaired_s", 5),
    ("midpoint", 7),
    ("median", 6),
    ("table", 6),
    ("neighbors", 5),
    ("flips", 0.02),
)
# first digits of the SHA-256 of a net's predictions for 40 synthetic images in each of SETTINGS, when it was packed
PREDICTED = {
    "cifar10_smaller_40epochs_11111": "0177374f 33ce6d9e 55db0e78 7e8b9caa 76efa778 "
    "4056da6f c15f222d 731ad7b3 7ac21630 306e0e66",
    "cifar10_smaller_flip_11111": "1ca34fdd 940a067f 916e37df 514b6099 2b160643 "
    "f13fc9c4 445f289b 3aaef48a cf2d1a7a 0955fdc0",
    "cifar10_smaller_pad_11111": "c1b2c577 b246c7ad 3f106cad 280a89e3 45c161c9 "
    "b1445b93 9054491a 59fbc304 d103023b 4e9f0ee0",
    "cifar10_smaller_11111": "9ca84b62 e6dc2976 1b335ad5 70327b0b 749ccdc4 "
    "0f98e657 772ddf40 79913913 a03054ab e7cb7a66",
    "tiny_imagenet_smaller_11111": "ed12ba07 a34d39d0 8561ad10 fbac51a3 0cf1b903 "
    "df9cc2b9 6f29edb9 fd0a174b 37e2f597 17ff2c2c",
    "tiny_imagenet_smaller_44epochs_11111": "fd8d198f 59f2f23c a31a7ab4 e1711f26 137d8faf "
    "fa8871eb 6dc51589 6beff71e ac0efb44 007849e1",
    "cifar10_smaller_40epochs_12348": "2b79c36d a194477a ab91f983 426f2aea b9c37dca "
    "888ae007 8271f703 0e255900 db5f5aa3 948afdcd",
    "cifar10_smaller_40epochs_13579": "4d783896 8e9925d4 135d0aa3 d3c69de0 c03ee434 "
    "6aee051a 728312f5 9e5e5f12 a74da3bf f5f7bb77",
    "cifar10_smaller_colors_any_14epochs_11111": "589fd9ae a32ea71d 61c780d8 b215ac1f 6f92ed6c "
    "edf0e19b 4b1bb822 80474432 5fd5d4a5 85ae89c0",
    "cifar10_smaller_color_field_any_11111": "fbc228a2 33f7fc84 82bc2109 920f8c94 b28213f1 3ecf601b "
    "8487e930 5040a56e e134951f 207fc4e1",
}


@pytest.mark.parametrize("name", sorted(path.name for path in ROOT.glob("checkpoint/*.packed.pth")))
def test_packed_nets_are_small_and_the_files_that_their_text_describes(name):
    path = ROOT / "checkpoint" / name
    text = path.with_suffix(".txt").read_text()
    assert path.stat().st_size < 3_000_000  # signs as bits: float weights take 70 MB
    assert hashlib.sha256(path.read_bytes()).hexdigest() in text


@pytest.mark.parametrize("name", PREDICTED)
def test_packed_nets_predict_as_before(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    dataset, net, _ = checkpoints.load_net(Path(f"checkpoint/ckpt.t7.{name}.packed.pth"))
    images = torch.from_numpy(demo.draw(40, np.random.RandomState(1))[0]).view(-1, 3, 32, 32)
    larger = net.topology.size // 32
    images = images.repeat_interleave(larger, 2).repeat_interleave(larger, 3)
    folded, found = Folded(net), []
    for what, level in SETTINGS:
        fault = Fault("flips", level=level) if what == "flips" else fault_of(what, level, -1)
        state = torch.load(next(learned.FOLDER.glob(f"{dataset}_table_6_*.pt")))["state"] if what == "table" else None
        with faulty_weights(fault, net, 5):
            if what == "flips":
                folded.take_weights()
            logits = folded(with_fault(images, fault, 5, state).float() / 255)
        found.append(hashlib.sha256(bytes(logits.argmax(1).tolist())).hexdigest()[:8])
    assert " ".join(found) == PREDICTED[name]
