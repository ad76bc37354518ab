"""Packed checkpoints: bits unpacked by hand, and the packed net against the net it was packed from."""

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from made import TINY, save_checkpoint, trained_net, write_cifar10

import export_finn
import pack
import sweep
import train_smaller
from common import UserError
from engine import checkpoints
from models import TOPOLOGIES

PACKED = "checkpoint/ckpt.t7.cifar10_smaller_11111.packed.pth"


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Runs a script in this process; returns what it prints."""
    write_cifar10(tmp_path)

    def call(script, *words):
        monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", "--data", ".", *words])
        capsys.readouterr()
        script.main()
        return capsys.readouterr().out

    return call


@pytest.mark.parametrize("wsconv", [False, True])
def test_packed_net_is_the_net(call, wsconv):
    net = trained_net("cifar10", wsconv).eval()
    path = save_checkpoint(net, "cifar10_smaller", "cifar10", wsconv)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    text = call(pack, "--about", "made for this test")
    path.unlink()

    packed = torch.load(PACKED)
    for key, entry in packed["signs"].items():
        weight = net.state_dict()[key].double().numpy()
        if wsconv and key.startswith("conv"):
            weight = weight - weight.mean()
        bits = np.unpackbits(entry["bits"].numpy())[: weight.size].reshape(weight.shape)
        assert entry["shape"] == list(weight.shape) and np.array_equal(bits, weight >= 0)
    assert len(packed["signs"]) == 9 and not packed["signs"].keys() & packed["net"].keys()
    assert packed["packed_from"] == digest[:16]

    _, again, _ = checkpoints.load_net(checkpoints.find("cifar10_smaller", 11111))
    images = torch.rand(20, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(images), net(images))
    with open(PACKED, "rb") as file:
        assert hashlib.sha256(file.read()).hexdigest() in text
    assert "made for this test" in text and Path(PACKED.replace(".pth", ".txt")).read_text() == text


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(TOPOLOGIES, "cifar_smaller", TINY)


@pytest.fixture
def packed_only(call, tiny):
    """A folder with a packed checkpoint and no trained one."""
    path = save_checkpoint(trained_net("cifar10"), "cifar10_smaller", "cifar10", False)
    sums = hashlib.sha256(path.read_bytes()).hexdigest()
    call(pack)
    return path, path.rename(path.with_suffix(".away")), sums


def test_used_where_no_trained_one_is(call, packed_only):
    path, away, sums = packed_only
    output = call(train_smaller)
    assert f"no trained {path} here: using the packed net" in output and PACKED in output
    with pytest.raises(UserError, match="weight noise needs latent weights"):
        call(train_smaller, "--noise", "0.2")
    with pytest.raises(UserError, match="is missing"):
        call(train_smaller, "--train", "--resume")

    words = ["--bits", "6", "--rate", "--runs", "2", "--sigma", "0.2", "--flip", "0.1"]
    output = call(sweep, *words)
    assert f"{PACKED} is packed, without the latent weights that weight noise needs" in output
    rows, _ = sweep.read_rows(Path("results/cifar10_smaller_11111/sweep.csv"))
    assert {row["fault"] for row in rows} == {"none", "random", "stuck_at_0", "stuck_at_1", "flips"}
    assert {row["checkpoint"] for row in rows} == {sums[:16]}
    away.rename(path)  # the trained net measures what the packed one could not
    output = call(sweep, *words)
    assert "packed" not in output and "4 of" in output

    path.unlink()
    with_it = call(export_finn, "--verify", "1")
    assert "export_finn/ckpt.t7.cifar10_smaller_11111.qonnx.onnx" in with_it


@pytest.mark.parametrize("from_wsconv", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_training_from_a_pretrained_net(call, tiny, monkeypatch, packed, from_wsconv):
    trained = trained_net("cifar10", from_wsconv).eval()
    path = save_checkpoint(trained, "teacher", "cifar10", from_wsconv)
    if packed:
        call(pack, "--sess", "teacher")
        path = checkpoints.packed_path_of("teacher", 11111)
    starts = []

    def look(net, *rest):
        starts.append({key: value.clone() for key, value in net.state_dict().items()})
        raise KeyboardInterrupt

    monkeypatch.setattr(train_smaller, "make_optimizer", look)
    with pytest.raises(KeyboardInterrupt):
        call(train_smaller, "--train", "--pretrained", str(path), "--init", "0.25", "--no-wsconv")
    for key, value in trained.state_dict().items():
        if value.dim() > 1:
            value = value.double() - value.double().mean() * (from_wsconv and key.startswith("conv"))
            value = np.where(value.numpy() >= 0, 0.25, -0.25)
        assert np.array_equal(starts[0][key].numpy(), value), key


def test_damaged_and_foreign_files(call, packed_only):
    whole = torch.load(PACKED)
    del whole["sha256"]
    for damage, complaint in (
        ({**whole, "signs": {"a": 1}}, "its 'signs' are damaged"),
        (
            {**whole, "signs": {key: {**entry, "bits": entry["bits"][:5]} for key, entry in whole["signs"].items()}},
            "'signs' are damaged",
        ),
        ({**whole, "signs": {}}, "conv_features.1.weight is absent in the file"),
    ):
        torch.save(damage, PACKED)
        with pytest.raises(UserError, match=complaint):
            call(train_smaller)
    net = trained_net("cifar10")
    torch.save({"net": net.state_dict(), "acc": 1.0, "epoch": 1}, checkpoints.path_of("original", 1))
    with pytest.raises(UserError, match="does not say how it was trained"):
        call(pack, "--sess", "original", "--seed", "1")
