"""Checkpoint files that are damaged, foreign, or written by other programs."""

import argparse
import random
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from made import save_checkpoint, write_cifar10

import pack
from common import UserError
from engine import checkpoints, packing
from models import CNV, TOPOLOGIES, Topology

SMALL = Topology(size=32, conv=((8, False), (16, True)), fc=(24,))


@pytest.fixture(autouse=True)
def small_net(monkeypatch):
    monkeypatch.setitem(TOPOLOGIES, "cifar_smaller", SMALL)


def make_net():
    return CNV(SMALL, 10).eval()


def original(**changes):
    """The dict of an original checkpoint."""
    return {"net": make_net().state_dict(), "acc": 84.15, "epoch": 599, "rng_state": torch.get_rng_state(), **changes}


def read(state):
    torch.save(state, "file.pth")
    return checkpoints.read_state(Path("file.pth"))


@pytest.mark.parametrize("packed", [False, True])
def test_no_flipped_bit_goes_unnoticed(packed):
    path = save_checkpoint(make_net(), "cifar10_smaller", "cifar10", False)
    if packed:
        _, net, state = checkpoints.load_net(path)
        path = checkpoints.packed_path_of("cifar10_smaller", 11111)
        checkpoints.write(path, checkpoints.pack(net, state, b""))
    whole = path.read_bytes()
    _, net, expected = checkpoints.load_net(path)
    del expected["sha256"]
    places = random.Random(0).sample(range(8 * len(whole)), 150)
    noticed = 0
    for place in places:
        data = bytearray(whole)
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(data)
        try:
            state = checkpoints.read_state(path)
        except UserError as error:
            noticed += "\n" not in str(error)
            continue
        found = {key: value for key, value in state.items() if key != "sha256"}
        assert checkpoints.content_digest(found) == checkpoints.content_digest(expected)  # a byte that does not matter
    assert noticed > 50


@pytest.mark.parametrize(
    "key,change,complaint",
    [
        ("conv_features.1.weight", torch.nan, "conv_features.1.weight holds numbers that are infinite"),
        ("conv_features.2.weight", torch.inf, "conv_features.2.weight holds numbers that are infinite"),
        ("conv_features.2.running_var", torch.nan, "conv_features.2.running_var holds numbers that are infinite"),
        ("linear_features.1.running_var", -1.0, "linear_features.1.running_var holds a negative variance"),
    ],
)
def test_numbers_with_which_no_net_computes(key, change, complaint):
    state = original()
    state["net"][key].view(-1)[0] = change
    with pytest.raises(UserError, match=complaint):
        read(state)


def test_what_other_programs_save():
    expected = make_net().state_dict()
    prefixed = OrderedDict((f"module._orig_mod.module.{key}", value) for key, value in expected.items())
    state = read(original(net=prefixed, acc=np.float32(84.15), epoch=np.int64(599)))
    assert list(state["net"]) == list(expected) and all(map(torch.equal, state["net"].values(), expected.values()))
    assert state["epoch"] == 599 and state["acc"] == pytest.approx(84.15)


GOOD = {"dataset": "cifar10", "wsconv": False}


@pytest.mark.parametrize(
    "changes,complaint",
    [
        ({"args": argparse.Namespace(lr=0.1)}, "holds argparse.Namespace, which is not loaded for safety"),
        ({"net": {1: torch.zeros(1)}}, "its 'net' is no state dict"),
        ({"net": {"weight": torch.eye(3).to_sparse()}}, "its 'net' is no state dict of dense tensors"),
        ({"acc": "good"}, "its 'acc' or 'epoch' is no number"),
        ({"options": {"wsconv": False}}, "its 'options' name no dataset"),
        ({"options": [1]}, "its 'options' name no dataset"),
        ({"options": {**GOOD, "dataset": "mnist"}}, "data set 'mnist', which is none of cifar10, "),
        ({"options": {**GOOD, "dataset": "../../x"}}, "which is none of cifar10, "),
        ({"options": {**GOOD, "dataset": ["cifar10"]}}, "its 'options' name no dataset"),
        ({"options": {**GOOD, "wsconv": 7}}, "its 'options' describe no net"),
        ({"options": {**GOOD, "pad": 5}}, "its 'options' describe no net"),
        ({"options": {**GOOD, "dataset": "folder"}}, "its 'options' describe no net"),
        ({"options": {**GOOD, "net": "other", "classes": 3}}, "holds the net 'other', which is none of "),
    ],
)
def test_foreign_content_gets_one_line(changes, complaint):
    with pytest.raises(UserError, match=complaint) as error:
        read(original(**changes))
    assert "\n" not in str(error.value)


def test_an_empty_file():
    Path("file.pth").write_bytes(b"")
    with pytest.raises(UserError, match=r"file\.pth is truncated or no checkpoint"):
        checkpoints.read_state(Path("file.pth"))


def test_a_disk_that_fills_up(monkeypatch):
    """torch.save to a file would end with an error of its own."""

    def full(self, data):
        raise OSError(28, "No space left on device")

    path = save_checkpoint(make_net(), "cifar10_smaller", "cifar10", False)
    before = path.read_bytes()
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        save_checkpoint(make_net(), "cifar10_smaller", "cifar10", False)
    assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 2


def test_a_packed_net_that_does_not_score_as_before(monkeypatch, tmp_path, run_script):
    """No file is written, and an older packed one stays."""
    write_cifar10(tmp_path)
    save_checkpoint(make_net(), "cifar10_smaller", "cifar10", False)
    assert run_script(pack, "--data", ".")[0] == 0
    path = checkpoints.packed_path_of("cifar10_smaller", 11111)
    before = path.read_bytes()
    scores = iter((1, 2))
    monkeypatch.setattr(packing, "evaluate", lambda net, batches: next(scores))
    status, _, err = run_script(pack, "--data", ".")
    assert status == 1 and "packed, the net does not score as before" in err
    assert path.read_bytes() == before and not list(path.parent.glob(".*"))
