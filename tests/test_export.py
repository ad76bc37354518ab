"""export_finn.py: the file against the net, its graph, and what its layers cost against sums worked out by hand."""

import importlib.util
import re
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from made import save_checkpoint, trained_net, write_cifar10

import checkpoints
import export_finn
import tiny_imagenet
from models import TOPOLOGIES, Topology
from models.costs import costs, table

FILE = Path("export_finn/ckpt.t7.cifar10_smaller_11111.qonnx.onnx")


def save_net(sess, dataset="cifar10", wsconv=False):
    """A checkpoint of a random net."""
    return save_checkpoint(trained_net(dataset, wsconv), sess, dataset, wsconv, acc=12.5)


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs the script in this process. Returns its exit status, and what it printed but for the warning about the data."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["export_finn.py", *words])
        status = 0
        try:
            export_finn.run(export_finn.main)
        except SystemExit as exit:
            status = exit.code
        out, err = capsys.readouterr()
        return status, out, "".join(line for line in err.splitlines(True) if not line.startswith("warning: "))

    return call


def check_graph(path, topology, batch, classes):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(path)
    shapes = [
        [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in (model.graph.input[0], model.graph.output[0])
    ]
    assert [model.graph.input[0].name, model.graph.output[0].name] == ["images", "logits"]
    assert shapes == [[batch, 3, topology.size, topology.size], [batch, classes]]
    assert len(model.graph.input) == 1
    inferred = {value.name for value in model.graph.value_info} | {"logits"}
    assert all(output in inferred for node in model.graph.node for output in node.output)

    kinds = [node.op_type for node in model.graph.node]
    layers = len(topology.conv) + len(topology.fc) + 1
    assert kinds.count("Conv") == len(topology.conv) and kinds.count("MatMul") + kinds.count("Gemm") == len(topology.fc) + 1
    assert kinds.count("BipolarQuant") == 2 * layers - 1  # each weight, each activation
    assert kinds.count("Quant") == 1 and kinds.count("MaxPool") == sum(pool for _, pool in topology.conv)
    assert "Cast" not in kinds
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    weights = [value for value in values.values() if value.ndim in (2, 4) and value.size > 100]
    assert len(weights) == layers and all(np.abs(weight).min() == 1 == np.abs(weight).max() for weight in weights)
    (quantiser,) = (node for node in model.graph.node if node.op_type == "Quant")
    assert [float(values[name]) for name in quantiser.input[1:]] == [2**-7, 0, 8]
    return {entry.key: entry.value for entry in model.metadata_props}


@pytest.mark.parametrize("wsconv", [False, True])
def test_cifar_file_equals_the_net(tmp_path, call, wsconv):
    write_cifar10(tmp_path)
    source = save_net("cifar10_smaller", wsconv=wsconv)
    status, out, err = call("--data", ".", "--batch", "2", "--verify", "3", "--report")
    assert status == 0 and err == "", err
    assert "3 of 3 test images predicted alike" in out and float(re.search(r"at most (\S+)", out).group(1)) < 1e-4
    assert re.search(r"^total +170,071,040 ", out, re.M)
    known = check_graph(FILE, TOPOLOGIES["cifar_smaller"], 2, 10)
    assert known["checkpoint_sha256"] == sha256(source.read_bytes()).hexdigest()
    assert (known["dataset"], known["test_accuracy"]) == ("CIFAR-10", "12.500 %")
    assert [path.name for path in FILE.parent.iterdir()] == [FILE.name]


def test_tiny_imagenet_file_equals_the_net(call, monkeypatch):
    images = np.random.RandomState(0).randint(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    monkeypatch.setattr(tiny_imagenet, "load", lambda root, train, workers: (images, [0, 1]))
    save_net("tiny_imagenet_smaller", dataset="tiny_imagenet")
    status, out, err = call("--sess", "tiny_imagenet_smaller")
    assert status == 0, err
    assert "2 of 2 test images predicted alike" in out
    path = Path("export_finn/ckpt.t7.tiny_imagenet_smaller_11111.qonnx.onnx")
    check_graph(path, TOPOLOGIES["tiny_imagenet_smaller"], 1, 200)


def test_no_file_stays_that_differs_from_the_net(tmp_path, call, monkeypatch):
    monkeypatch.setitem(TOPOLOGIES, "cifar_smaller", Topology(size=32, conv=((8, True),), fc=(16,)))
    write_cifar10(tmp_path)
    save_net("cifar10_smaller")
    plain_copy = export_finn.plain_copy

    def wrong(net):
        copy = plain_copy(net)
        copy.linear_features[-1].bias.data += 0.01
        return copy

    with monkeypatch.context() as patch:
        patch.setattr(export_finn, "plain_copy", wrong)
        status, _, err = call("--data", ".")
    assert status == 1 and err.count("\n") == 1
    assert "is not written: of 6 test images it predicts 6 as the net does, and its logits differ by up to 0.01" in err
    assert list(FILE.parent.iterdir()) == []

    assert call("--data", ".", "--verify", "0")[0] == 0 and FILE.is_file()
    assert "not compared" not in call("--data", ".", "--verify", "2")[1]


@pytest.mark.parametrize(
    "words,complaint",
    [
        ([], "checkpoint/ckpt.t7.cifar10_smaller_11111.pth is missing"),
        (["--batch", "0"], "argument --batch: 0 is out of range"),
        (["--verify", "-1"], "argument --verify: -1 is out of range"),
    ],
)
def test_bad_input(call, words, complaint):
    status, _, err = call(*words)
    assert status == 1 and err.count("\n") == 1 and complaint in err


def test_without_the_packages(call, monkeypatch):
    save_net("cifar10_smaller")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "onnx" in name else find_spec(name))
    status, out, err = call("--report")
    assert status == 1 and err.count("\n") == 1
    assert "needs onnx, onnxoptimizer, onnxscript, qonnx" in err and "pip install -r requirements.txt" in err
    assert "total" in out  # the report needs none of them


def test_costs_by_hand():
    rows = {row.layer: row for row in costs(TOPOLOGIES["cifar_smaller"], 10)}
    assert rows["input"].activation_memory == 3 * 32 * 32 * 8
    assert rows["conv 1"][1:] == ((64, 32, 32), 27 * 64 * 1024, 1, 27 * 64 + 128, 1728, 65536)
    assert rows["conv 2"][1:] == ((64, 16, 16), 576 * 64 * 1024, 1, 36864 + 128, 36864, 16384)
    assert rows["conv 6"][1:] == ((256, 8, 8), 2304 * 256 * 64, 1, 589824 + 512, 589824, 16384)
    assert rows["fc 1"][1:] == ((1024,), 16384 * 1024, 1, 16384 * 1024 + 2048, 16384 * 1024, 1024)
    assert rows["fc 3"][1:] == ((10,), 5120, 1, 5122, 5120, 110)  # -512 … 512 are 1025 numbers: 11 bits
    assert rows["total"].macs == 170_071_040 and rows["total"].weight_memory == 18_451_136
    net = checkpoints.build_net("cifar10", False)
    assert rows["total"].parameters == sum(parameter.numel() for parameter in net.parameters())

    rows = {row.layer: row for row in costs(TOPOLOGIES["tiny_imagenet_smaller"], 200)}
    assert rows["conv 3"][1:] == ((16, 32, 32), 144 * 16 * 4096, 1, 2304 + 32, 2304, 16384)
    assert rows["conv 15"][1:] == ((256, 2, 2), 2304 * 256 * 16, 1, 589824 + 512, 589824, 1024)
    assert rows["fc 3"].activation_memory == 200 * 10  # -256 … 256
    assert rows["total"].macs == 1_769_472 + 3 * 4_718_592 + 4_718_592 + 10 * 9_437_184 + 512 * 1024 + 256 * 512 + 200 * 256
    net = checkpoints.build_net("tiny_imagenet", False)
    assert rows["total"].parameters == sum(parameter.numel() for parameter in net.parameters())

    lines = table(costs(TOPOLOGIES["cifar_smaller"], 10)).splitlines()
    assert len(lines) == 12 and len({len(line) for line in lines}) == 1
    assert lines[-1].split() == ["total", "170,071,040", "18,456,002", "18,451,136", "181,870"]
