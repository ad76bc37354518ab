"""Recalibrated thresholds against Brevitas' own net in float64, whose sums are moved before its batch norms."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from made import TINY, save_checkpoint, trained_net, write_cifar10
from test_folded import SMALL, hard_case, images_of
from test_sweep import call, csv_rows, ready  # noqa: F401  (fixtures)
from torch import nn

import sweep
import train_smaller
from common import UserError
from datasets import read_images
from engine import EvalBatches, batches, calibrated_on, calibration_of, checkpoints, faulty_net, measure
from engine.evaluation import recalibrated_net
from faults import NO_FAULT, Cells, Fault, can_recalibrate, fault_of_cells, recalibrated
from models import TOPOLOGIES
from models.folded import Folded
from report.tables import layout

FLIPS = Fault("flips", level=0.1)
RELATIVE = "relative to each layer's RMS weight"
NOISY = ("--data", ".", "--noise", "0.3")
NOISE = Fault("noise", level=0.3)
MAPS = fault_of_cells(Cells("activations"), "inverted", 0.1)
WEIGHTS = fault_of_cells(Cells("weights", ("conv2", "fc1")), "stuck_at_1", 0.3)


def sums_on(images, fault, net, seed):
    """The last sums of Brevitas' net, float64, if the sums before each batch norm are moved to where they were intact.

    Moved to the mean and standard deviation that they have on these images without the fault.
    """
    net = copy.deepcopy(net).double()
    norms = [module for module in net.modules() if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))]
    intact = {}

    def remember(norm, inputs):
        intact[norm] = torch.std_mean(inputs[0], [0, *range(2, inputs[0].dim())], correction=0, keepdim=True)

    def move(norm, inputs):
        deviation, mean = torch.std_mean(inputs[0], [0, *range(2, inputs[0].dim())], correction=0, keepdim=True)
        return (inputs[0] - mean) / deviation * intact[norm][0] + intact[norm][1]

    for hook in (remember, move):
        hooks = [norm.register_forward_pre_hook(hook) for norm in norms]
        with faulty_net(NO_FAULT if hook is remember else fault, net, net, seed), torch.no_grad():
            found = net(images.double())
        for each in hooks:
            each.remove()
    return found


@pytest.mark.parametrize("fault", [NO_FAULT, FLIPS, NOISE, MAPS, WEIGHTS], ids=str)
@pytest.mark.parametrize("int8", [True, False])
@pytest.mark.parametrize("wsconv,pad", [(False, 0), (True, -1)])
def test_against_moved_sums_of_brevitas(wsconv, pad, int8, fault):
    net, _ = hard_case(SMALL, wsconv, pad)
    for norm in net.norms()[:-1]:
        norm.bias.data.normal_()  # no sum lies exactly on a threshold, where Brevitas' own rounding would decide
    net.linear_features[-1] = nn.Identity()
    images = images_of(SMALL, 12)
    expected = sums_on(images, fault, net, seed=5)
    tester, fault = Folded(net, int8), fault._replace(repair="recalibrated")
    with recalibrated_net(fault, net, tester, 5, calibration_of(tester, images)), faulty_net(fault, net, tester, 5):
        assert torch.equal(tester(images).double(), expected)


@pytest.mark.parametrize("int8", [True, False])
def test_a_measurement_leaves_the_net_as_it_was(int8):
    net, images = hard_case(SMALL)
    tester = Folded(net, int8)
    before, thresholds = tester(images), tester.thresholds()
    test_set = EvalBatches(torch.zeros(3, 3, 16, 16, dtype=torch.uint8), torch.zeros(3).long(), torch.device("cpu"))
    measured = measure(recalibrated(FLIPS), net, tester, test_set, 0, calibration=calibration_of(tester, images))
    assert measured.flipped > 0.09
    assert torch.equal(tester(images), before)
    assert all(map(torch.equal, tester.thresholds(), thresholds))


@pytest.mark.parametrize("int8", [True, False])
def test_without_a_fault_the_thresholds_stay(int8):
    """Also where the calibration images make a channel constant, and where a gain is zero."""
    net, _ = hard_case(SMALL)
    for norm in net.norms()[:-1]:
        norm.bias.data.normal_()
    tester = Folded(net, int8)
    before = tester.thresholds()
    for images in (images_of(SMALL, 7), torch.zeros(2, 3, 16, 16)):
        tester.statistics(images, recalibrate_from=tester.statistics(images))
        assert all(map(torch.equal, tester.thresholds(), before))


def test_a_constant_channel_is_shifted():
    net, _ = hard_case(SMALL)
    tester = Folded(net)
    layer = tester.layers[0]
    gains = net.norms()[0].weight != 0
    exact = layer.exact_threshold()
    zero = torch.zeros_like(exact)
    layer.recalibrate(torch.stack([zero, zero]), torch.stack([zero + 5, zero + 1]))
    assert torch.equal(layer.threshold[gains], (exact + 5).ceil().float()[gains])


def test_chunks_do_not_matter():
    net, _ = hard_case(SMALL)
    tester, images = Folded(net), images_of(SMALL, 9)
    together = tester.statistics(images)
    tester.chunk = 2
    assert all(map(torch.equal, tester.statistics(images), together))


def test_what_can_be_recalibrated():
    transient = fault_of_cells(Cells("weights", persistent=False), "inverted", 0.1)
    thresholds = fault_of_cells(Cells("thresholds"), "inverted", 0.1)
    image = fault_of_cells(Cells("image"), "inverted", 0.1)
    assert all(map(can_recalibrate, (FLIPS, NOISE, MAPS, WEIGHTS)))
    for fault, words in (
        (transient, "not for transient ones of the weights memory"),
        (thresholds, "not for persistent ones of the thresholds memory"),
        (image, "not for persistent ones of the image memory"),
        (Fault("random", 6, level=1.0), "not for transient ones of the image memory"),
        (NO_FAULT, "not for no fault"),
    ):
        with pytest.raises(UserError, match=words):
            recalibrated(fault)


def test_images_are_spaced(monkeypatch):
    monkeypatch.setattr(batches, "CALIBRATION", 10)
    images = torch.arange(35, dtype=torch.uint8).view(35, 1, 1, 1)
    assert torch.equal(calibrated_on(images), images[[0, 3, 7, 10, 14, 17, 21, 24, 28, 31]] / 255)
    monkeypatch.setattr(batches, "CALIBRATION", 99)
    assert torch.equal(calibrated_on(images), images / 255)


def test_a_sweep_has_rows_with_and_without(ready, call):  # noqa: F811
    words = ["--data", ".", "--flip", "0.1", "--memory", "activations", "thresholds", "--ber", "0.1", "--runs", "2"]
    status, _, err = call(*words, "--recalibrate")
    assert status == 0, err
    rows = csv_rows()
    mended = [row for row in rows if row["repair"] == "recalibrated"]
    assert [(row["fault"], row["memory"], row["cells"], row["run"]) for row in mended] == [
        ("flips", "weights", "persistent", "0"),
        ("flips", "weights", "persistent", "1"),
        ("inverted", "activations", "persistent", "0"),
        ("inverted", "activations", "persistent", "1"),
    ]
    _, net, _ = checkpoints.load_net(checkpoints.path_of("cifar10_smaller", 11111))
    images, labels = read_images("cifar10", ".", False)
    test_set = EvalBatches(images, labels, torch.device("cpu"))
    calibration = calibration_of(Folded(net, int8=False), calibrated_on(read_images("cifar10", ".", True)[0]))
    for row, fault in zip(mended, [FLIPS, FLIPS, MAPS, MAPS]):
        seed = 11111 + int(row["run"])
        measured = measure(recalibrated(fault), net, Folded(net, int8=False), test_set, seed, calibration=calibration)
        assert (int(row["correct"]), float(row["loss"])) == (
            measured.score.correct,
            pytest.approx(measured.score.loss, abs=1e-6),
        )
        assert row["mcnemar"]
    tables = (sweep.as_path("results") / "cifar10_smaller_11111" / "tables.md").read_text()
    assert "| recalibrated |" in tables and "| inverted, persistent, recalibrated |" in tables
    assert "0 of" in call(*words, "--recalibrate")[1]  # the rows are read back as what they are
    assert csv_rows() == rows


def test_what_a_sweep_refuses(ready, call):  # noqa: F811
    for words, complaint in (
        (("--flip", "0.1", "--no-fold"), "--recalibrate sets thresholds, and --no-fold"),
        (("--bits", "7"), "--recalibrate is for persistent faults"),
        (("--memory", "activations", "--cells", "transient"), "--recalibrate is for persistent faults"),
    ):
        status, _, err = call("--data", ".", "--recalibrate", *words)
        assert status == 1 and complaint in err and err.count("\n") == 1


def test_tables_keep_both_kinds_of_noise_apart():
    faults = [Fault(kind, level=0.2) for kind in ("noise", "noise_relative")]
    found = dict.fromkeys([NO_FAULT, *faults, *map(recalibrated, faults)], SimpleNamespace(won=None, mcnemar=None))
    labels = [name for name, field, _ in layout(found)["noise"].rows if field == "mean"]
    assert labels == ["absolute", RELATIVE, "absolute, recalibrated", f"{RELATIVE}, recalibrated"]


def test_one_evaluation(tmp_path, succeed, run_script, monkeypatch):
    monkeypatch.setattr(train_smaller, "NOISE_RUNS", 2)
    monkeypatch.setitem(TOPOLOGIES, "cifar_smaller", TINY)
    write_cifar10(tmp_path)
    save_checkpoint(trained_net("cifar10"), "cifar10_smaller", "cifar10", False)
    words = ("--data", ".", "--memory", "weights", "--ber", "0.1")
    results = []
    for more in ((), ("--recalibrate",)):
        succeed(*words, *more, "--result", "result.json")
        results.append(json.loads((tmp_path / "result.json").read_text()))
    assert [result["setting"] for result in results] == ["flips 0.1", "flips 0.1; recalibrated"]
    assert results[0]["loss"] != results[1]["loss"]
    assert "sigma_val 0.3 (standard deviation 0.09), recalibrated: 2" in succeed(*NOISY, "--recalibrate")[1]
    for words, complaint in (
        (("--memory", "weights", "--ber", "0.1", "--no-fold"), "--recalibrate sets thresholds, and --no-fold"),
        (("--mem_fault", "faulty"), "not for transient ones of the image memory"),
        ((), "not for no fault"),
        (("--noise", "0.3", "--mem_fault", "faulty"), "--recalibrate goes with one fault"),
        (("--train",), "--recalibrate is for an evaluation"),
    ):
        status, _, err = run_script(train_smaller, "--data", ".", "--recalibrate", *words)
        assert status == 1 and complaint in err and err.count("\n") == 1
