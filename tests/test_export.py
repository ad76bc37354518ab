"""export_finn.py: the file against the net, its graph, and the costs of layers against sums computed by hand."""

import importlib.util
import re
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from made import TINY, save_checkpoint, trained_net, write_cifar10

import export_finn
from datasets import read_images, tiny_imagenet
from engine import checkpoints, finn_export
from models import TOPOLOGIES, Topology, qonnx_graph
from models.costs import costs, table
from models.qonnx_graph import recoded

FILE = Path("export_finn/ckpt.t7.cifar10_smaller_11111.qonnx.onnx")


def save_net(sess, dataset="cifar10", wsconv=False):
    """A checkpoint of a random net."""
    return save_checkpoint(trained_net(dataset, wsconv), sess, dataset, wsconv, acc=12.5)


@pytest.fixture
def call(run_script):
    return lambda *words: run_script(export_finn, *words)


def check_graph(path, topology, batch, classes):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(path)
    shapes = [
        [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (model.graph.input[0], model.graph.output[0])
    ]
    assert [model.graph.input[0].name, model.graph.output[0].name] == ["images", "logits"]
    assert shapes == [[batch, 3, topology.size, topology.size], [batch, classes]]
    assert len(model.graph.input) == 1
    inferred = {value.name for value in model.graph.value_info} | {"logits"}
    assert all(output in inferred for node in model.graph.node for output in node.output)

    kinds = [node.op_type for node in model.graph.node]
    layers, convs = len(topology.conv) + len(topology.fc) + 1, len(topology.conv)
    assert kinds.count("Conv") == convs and kinds.count("MatMul") == len(topology.fc) + 1
    assert kinds.count("Quant") == 1 + convs - 1  # for the images, and before padded convolutions
    assert kinds.count("BipolarQuant") == layers + len(topology.fc) + 1  # for the weights, and before linear layers
    assert kinds.count("MaxPool") == sum(pool for _, pool in topology.conv) and "BatchNormalization" not in kinds
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    weights = [value for value in values.values() if value.ndim in (2, 4) and value.size > 100 and value.shape[0] > 1]
    assert len(weights) == layers and all(np.abs(weight).min() == 1 == np.abs(weight).max() for weight in weights)
    quantisers = [node for node in model.graph.node if node.op_type == "Quant"]
    settings = [[float(values[name]) for name in node.input[1:]] for node in quantisers]
    assert settings == [[2**-7, 0, 8]] + [[1, 0, 2]] * (convs - 1)  # scale, zero point, bits
    adds = [values[node.input[1]] for node in model.graph.node if node.op_type == "Add"][1:-1]
    assert len(adds) == layers - 1 and all(
        np.array_equal(add % 2, np.ones_like(add)) for add in adds
    )  # odd whole numbers
    return {entry.key: entry.value for entry in model.metadata_props}


def test_cifar_file_equals_the_net(tmp_path, call):
    write_cifar10(tmp_path)
    source = save_net("cifar10_smaller", wsconv=True)
    status, out, err = call("--data", ".", "--batch", "2", "--verify", "3", "--report")
    assert status == 0 and err == "", err
    assert "3 of 3 test images predicted alike" in out and float(re.search(r"at most (\S+)", out).group(1)) < 1e-4
    assert re.search(r"^total +170,071,040 ", out, re.M)
    known = check_graph(FILE, TOPOLOGIES["cifar_smaller"], 2, 10)
    assert known["checkpoint_sha256"] == sha256(source.read_bytes()).hexdigest()
    assert (known["dataset"], known["test_accuracy"]) == ("CIFAR-10", "12.500 %")
    samples = [FILE.with_suffix(f".{name}.npy").name for name in ("expected_output", "input")]
    assert sorted(path.name for path in FILE.parent.iterdir()) == [*samples, FILE.name]


def test_an_accuracy_on_other_images_is_not_the_test_accuracy():
    tested = finn_export.tested_on_intact_images
    assert (
        tested({}) and tested({"mem_fault": "baseline", "memory": "", "holdout": 0}) and tested({"memory": "weights"})
    )
    assert not any(map(tested, ({"mem_fault": "faulty"}, {"memory": "image"}, {"holdout": 5})))


def test_tiny_imagenet_file_equals_the_net(call, monkeypatch):
    images = np.random.RandomState(0).randint(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    monkeypatch.setattr(tiny_imagenet, "read", lambda root, train, workers: (images, [0, 1]))
    save_net("tiny_imagenet_smaller", dataset="tiny_imagenet")
    status, out, err = call("--sess", "tiny_imagenet_smaller")
    assert status == 0, err
    assert "2 of 2 test images predicted alike" in out
    path = Path("export_finn/ckpt.t7.tiny_imagenet_smaller_11111.qonnx.onnx")
    check_graph(path, TOPOLOGIES["tiny_imagenet_smaller"], 1, 200)


def small_export(tmp_path, monkeypatch, pad=0, conv=((8, False), (16, True), (8, False))):
    """Saves a small net whose batch norms rise, fall, or have a constant sign. Returns the net."""
    monkeypatch.setitem(TOPOLOGIES, "cifar_smaller", Topology(size=32, conv=conv, fc=(16, 64)))
    write_cifar10(tmp_path)
    net = checkpoints.build_net({"dataset": "cifar10", "wsconv": False, "pad": pad}, init=0.3).train()
    with torch.no_grad():
        for norm in net.norms()[:-1]:
            norm.weight.normal_()
            norm.bias.normal_(0, 0.1)
            norm.bias[:2] = torch.tensor([1e6, -1e6])  # always on, always off
        for _ in range(20):
            net(torch.rand(16, 3, 32, 32))
    options = {"dataset": "cifar10", "wsconv": False, "pad": pad}
    state = {
        "net": net.state_dict(),
        "acc": 12.5,
        "epoch": 1,
        "rng_state": torch.get_rng_state(),
        "log": [{"epoch": 1}],
    }
    checkpoints.save(checkpoints.path_of("cifar10_smaller", 11111), {**state, "options": options})
    return net.eval()


def execute(model, images):
    from qonnx.core.onnx_exec import execute_onnx

    return np.concatenate([execute_onnx(model, {"images": image[None].numpy()})["logits"] for image in images])


@pytest.mark.parametrize("pad", [0, -1])
def test_file_and_its_recoded_form_equal_brevitas(tmp_path, call, monkeypatch, pad):
    """Both are equal to the bit. The images and logits beside the file are those of the test set and the net."""
    from qonnx.core.modelwrapper import ModelWrapper

    net = small_export(tmp_path, monkeypatch, pad)
    status, out, err = call("--data", ".", "--verify", "4")
    assert status == 0, err
    assert [line.split(": ")[1] for line in out.splitlines()[:2]] == [
        "4 of 4 test images predicted alike, logits differ by at most 0"
    ] * 2
    images = torch.rand(5, 3, 32, 32)
    with torch.no_grad():
        expected = net(images).numpy()
    assert len(np.unique(expected, axis=0)) > 2 and len(np.unique(expected)) > 9
    model = ModelWrapper(str(FILE))
    assert np.array_equal(execute(model, images), expected)
    later = recoded(model)
    assert np.array_equal(execute(later, images), expected)
    kinds = [node.op_type for node in later.graph.node]
    assert (
        kinds.count("XnorPopcountMatMul") == (3 if pad == 0 else 5)
        and "Conv" not in kinds
        and "BipolarQuant" not in kinds
    )

    given, logits = (np.load(FILE.with_suffix(f".{name}.npy")) for name in ("input", "expected_output"))
    pixels = read_images("cifar10", ".", train=False)[0][:4].numpy()
    np.testing.assert_allclose(given, pixels / 255, atol=1e-7)
    with torch.no_grad():
        np.testing.assert_allclose(logits, net(torch.from_numpy(given)).numpy(), atol=1e-5)


def test_one_bit_activations_before_a_padded_convolution_are_found(tmp_path, call, monkeypatch):
    """A file as older versions wrote it: right as written, wrong in FINN, where a padded 0 becomes -1."""
    small_export(tmp_path, monkeypatch)
    quant = qonnx_graph._Graph.quant
    with monkeypatch.context() as patch:
        patch.setattr(
            qonnx_graph._Graph,
            "quant",
            lambda graph, x, bits, **rest: graph.bipolar(x) if bits == 2 else quant(graph, x, bits, **rest),
        )
        status, out, err = call("--data", ".", "--verify", "4")
    assert status == 1 and err.count("\n") == 1
    assert "as it is: 4 of 4 test images predicted alike, logits differ by at most 0\n" in out
    assert f"{FILE} is not written: as FINN recodes it, against the net, " in err
    assert list(FILE.parent.iterdir()) == []


def test_padding_0_and_minus_1_are_told_apart(tmp_path, call, monkeypatch):
    """A net trained with one padding and exported with the other gives no file."""
    small_export(tmp_path, monkeypatch, pad=-1)
    load_net = checkpoints.load_net

    def wrong(path):
        name, net, state = load_net(path)
        padded_0 = checkpoints.build_net({"dataset": name, "wsconv": False, "pad": 0})
        padded_0.load_state_dict(net.state_dict())
        monkeypatch.setattr(finn_export, "to_qonnx", lambda net, batch: qonnx_graph.to_qonnx(padded_0.eval(), batch))
        return name, net, state

    monkeypatch.setattr(checkpoints, "load_net", wrong)
    status, _, err = call("--data", ".", "--verify", "4")
    assert status == 1 and "is not written: as it is, against the net" in err and err.count("\n") == 1


def test_no_file_stays_that_differs_from_the_net(tmp_path, call, monkeypatch):
    small_export(tmp_path, monkeypatch, conv=((8, True),))
    to_qonnx = finn_export.to_qonnx

    def wrong(net, batch):
        copy = checkpoints.build_net({"dataset": "cifar10", "wsconv": False, "pad": 0})
        copy.load_state_dict(net.state_dict())
        copy.linear_features[-1].bias.data += 0.01
        return to_qonnx(copy.eval(), batch)

    with monkeypatch.context() as patch:
        patch.setattr(finn_export, "to_qonnx", wrong)
        status, _, err = call("--data", ".")
    assert status == 1 and err.count("\n") == 1
    assert (
        "is not written: as it is, against the net, 6 of 6 test images predicted alike, logits differ by at most 0.01"
        in err
    )
    assert list(FILE.parent.iterdir()) == []

    assert call("--data", ".", "--verify", "2")[0] == 0 and len(list(FILE.parent.iterdir())) == 3
    assert "not compared" in call("--data", ".", "--verify", "0")[1]
    assert [path.name for path in FILE.parent.iterdir()] == [FILE.name]  # the images of an earlier export are removed


@pytest.mark.parametrize(
    "words,complaint",
    [
        ([], "checkpoint/ckpt.t7.cifar10_smaller_11111.pth is missing"),
        (["--batch", "0"], "argument --batch: 0 is out of range"),
        (["--verify", "-1"], "argument --verify: -1 is out of range"),
        (["--sess", "padded", "--batch", "2"], "--batch 2: a net with --pad -1 is written for one image at a time"),
    ],
)
def test_bad_input(call, words, complaint):
    net = checkpoints.build_net({"dataset": "cifar10", "wsconv": False, "pad": -1})
    state = {
        "net": net.state_dict(),
        "acc": 12.5,
        "epoch": 1,
        "options": {"dataset": "cifar10", "wsconv": False, "pad": -1},
    }
    checkpoints.save(checkpoints.path_of("padded", 11111), {**state, "log": [{"epoch": 1}]})
    status, _, err = call(*words)
    assert status == 1 and err.count("\n") == 1 and complaint in err


def test_without_the_packages(call, monkeypatch):
    monkeypatch.setitem(TOPOLOGIES, "cifar_smaller", TINY)
    save_net("cifar10_smaller")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "onnx" in name else find_spec(name))
    status, out, err = call("--report")
    assert status == 1 and err.count("\n") == 1
    assert "needs onnx, qonnx" in err and "pip install -r requirements.txt" in err
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
    net = checkpoints.build_net({"dataset": "cifar10", "wsconv": False, "pad": 0})
    assert rows["total"].parameters == sum(parameter.numel() for parameter in net.parameters())

    rows = {row.layer: row for row in costs(TOPOLOGIES["tiny_imagenet_smaller"], 200)}
    assert rows["conv 3"][1:] == ((16, 32, 32), 144 * 16 * 4096, 1, 2304 + 32, 2304, 16384)
    assert rows["conv 15"][1:] == ((256, 2, 2), 2304 * 256 * 16, 1, 589824 + 512, 589824, 1024)
    assert rows["fc 3"].activation_memory == 200 * 10  # -256 … 256
    assert (
        rows["total"].macs
        == 1_769_472 + 3 * 4_718_592 + 4_718_592 + 10 * 9_437_184 + 512 * 1024 + 256 * 512 + 200 * 256
    )
    net = checkpoints.build_net({"dataset": "tiny_imagenet", "wsconv": False, "pad": 0})
    assert rows["total"].parameters == sum(parameter.numel() for parameter in net.parameters())

    lines = table(costs(TOPOLOGIES["cifar_smaller"], 10)).splitlines()
    assert len(lines) == 12 and len({len(line) for line in lines}) == 1
    assert lines[-1].split() == ["total", "170,071,040", "18,456,002", "18,451,136", "181,870"]
