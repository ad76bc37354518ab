"""Recalibrated thresholds against Brevitas' own net in training mode, which takes the statistics of its batch."""

import copy

import pytest
import torch
from made import save_checkpoint, trained_net, write_cifar10
from test_folded import SMALL, hard_case, images_of
from test_sweep import call, csv_rows, ready  # noqa: F401  (fixtures)
from torch import nn

import sweep
import train_smaller
from common import UserError
from datasets import read_images
from engine import EvalBatches, batches, calibration_images, checkpoints, faulty_net, measure
from faults import NO_FAULT, Cells, Fault, can_recalibrate, fault_of_cells, recalibrated
from models.folded import Folded

FLIPS = Fault("flips", level=0.1)
NOISE = Fault("noise", level=0.3)
MAPS = fault_of_cells(Cells("activations"), "inverted", 0.1)
WEIGHTS = fault_of_cells(Cells("weights", ("conv2", "fc1")), "stuck_at_1", 0.3)


def predictions_on(images, fault, net, seed):
    """What Brevitas' net predicts under a fault if each batch norm takes the mean and variance of these images."""
    net = copy.deepcopy(net)
    net.linear_features[-1] = nn.Identity()  # keeps the order of the logits
    with faulty_net(fault, net, net, seed), torch.no_grad():
        return net.double().train()(images.double()).argmax(1)


@pytest.mark.parametrize("fault", [NO_FAULT, FLIPS, NOISE, MAPS, WEIGHTS], ids=str)
@pytest.mark.parametrize("int8", [True, False])
@pytest.mark.parametrize("wsconv,pad", [(False, 0), (True, -1)])
def test_against_batch_statistics_of_brevitas(wsconv, pad, int8, fault):
    net, _ = hard_case(SMALL, wsconv, pad)
    for norm in net.norms()[:-1]:
        norm.bias.data.normal_()  # no sum lies exactly on a threshold, where Brevitas' own rounding would decide
    images, labels = images_of(SMALL, 12), torch.zeros(12, dtype=torch.int64)
    expected = predictions_on(images, fault, net, seed=5)
    tester, fault = Folded(net, int8), fault._replace(repair="recalibrated")
    test_set = EvalBatches((images * 255).round().to(torch.uint8), labels, torch.device("cpu"))
    measured = measure(fault, net, tester, test_set, 5, calibration=images)
    assert torch.equal(measured.predicted, expected)
    assert len(expected.unique()) > 1


@pytest.mark.parametrize("int8", [True, False])
def test_a_measurement_leaves_the_net_as_it_was(int8):
    net, images = hard_case(SMALL)
    tester = Folded(net, int8)
    before, thresholds = tester(images), tester.thresholds()
    test_set = EvalBatches(torch.zeros(3, 3, 16, 16, dtype=torch.uint8), torch.zeros(3).long(), torch.device("cpu"))
    measure(recalibrated(FLIPS), net, tester, test_set, 0, calibration=images_of(SMALL, 7))
    assert torch.equal(tester(images), before)
    assert all(map(torch.equal, tester.thresholds(), thresholds))
    assert tester.recalibrated(images_of(SMALL, 7)) is not None and torch.equal(tester(images), before)


def test_chunks_do_not_matter():
    net, _ = hard_case(SMALL)
    tester, images = Folded(net), images_of(SMALL, 9)
    together = tester.recalibrated(images)
    tester.chunk = 2
    assert all(map(torch.equal, tester.recalibrated(images), together))


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


def test_images_are_spaced_training_images(monkeypatch, tmp_path):
    write_cifar10(tmp_path)
    monkeypatch.setattr(batches, "CALIBRATION", 10)
    images = read_images("cifar10", ".", True)[0]
    assert torch.equal(calibration_images("cifar10", "."), images[::3][:10] / 255)


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
    calibration = calibration_images("cifar10", ".")
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


def test_one_evaluation(tmp_path, succeed, run_script, monkeypatch):
    monkeypatch.setattr(train_smaller, "NOISE_RUNS", 2)
    write_cifar10(tmp_path)
    save_checkpoint(trained_net("cifar10"), "cifar10_smaller", "cifar10", False)
    words = ("--data", ".", "--memory", "weights", "--ber", "0.1")
    plain, mended = succeed(*words), succeed(*words, "--recalibrate")
    assert plain[0].endswith(": flips 0.1") and mended[0].endswith(": flips 0.1; recalibrated")
    assert plain[-1] != mended[-1]
    assert "sigma_val 0.3" in succeed("--data", ".", "--noise", "0.3", "--recalibrate")[1]
    for words, complaint in (
        (("--memory", "weights", "--ber", "0.1", "--no-fold"), "--recalibrate sets thresholds, and --no-fold"),
        (("--mem_fault", "faulty"), "not for transient ones of the image memory"),
        ((), "not for no fault"),
        (("--train",), "--recalibrate is for an evaluation"),
    ):
        status, _, err = run_script(train_smaller, "--data", ".", "--recalibrate", *words)
        assert status == 1 and complaint in err and err.count("\n") == 1
