"""train_smaller.py as a user runs it, on small data in CIFAR's format; its parts against explicit formulas."""

import csv
import json
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections import OrderedDict
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from made import trained_net, write_cifar10

import train_smaller
from common import locked
from datasets import read_images
from engine import EvalBatches, TrainBatches, checkpoints, evaluate, score, to_score
from faults import NO_FAULT
from models import CNV, TOPOLOGIES, Topology

CHECKPOINT = Path("checkpoint/ckpt.t7.cifar10_smaller_11111.pth")
TRAIN = ["--train", "--data", ".", "--batch-size", "16", "--no-compile", "--epochs", "3"]
SMALL = Topology(size=32, conv=((8, False), (16, True)), fc=(24,))
IN_A_PROCESS = """
import os, signal, sys
import torch, train_smaller
from models import TOPOLOGIES, Topology

TOPOLOGIES["cifar_smaller"] = {topology}
{more}
train_smaller.run(train_smaller.main)
"""  # the script with the small net


@pytest.fixture(autouse=True)
def small_net(monkeypatch):
    monkeypatch.setitem(TOPOLOGIES, "cifar_smaller", SMALL)


@pytest.fixture
def data(tmp_path):
    write_cifar10(tmp_path, rows=20)


@pytest.fixture
def complain(run_script):
    """Runs the script on bad input; returns the one line that it ends with."""

    def call(*words):
        status, _, err = run_script(train_smaller, *words)
        assert status in (1, 3) and err.count("\n") == 1 and err.startswith("error: "), err
        return err.rstrip()

    return call


def in_a_process(root, *words, more="", launch=(), **environment):
    """Runs the lines `more`, then the script, in a new process with as many threads as this one."""
    Path("script.py").write_text(IN_A_PROCESS.format(topology=SMALL, more=more))
    threads = {"PYTHONPATH": str(root), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, *launch, "script.py", *words]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=280, env={**os.environ, **threads, **environment}
    )


def same(a, b):
    """True if two nested structures of tensors and values are equal to the bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


TIMES = ("images_per_s", "seconds")


def timeless(path):
    state = torch.load(path, weights_only=True)
    del state["sha256"]  # which covers the times
    state["log"] = [{key: value for key, value in row.items() if key not in TIMES} for row in state["log"]]
    return state


STOP = """
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background has it ignored
say = train_smaller.Processes.print
def stop(self, line):
    say(self, line)
    if line.startswith("epoch"):
        os.kill(os.getpid(), signal.{signal})
train_smaller.Processes.print = stop
"""


def stopped(*_):
    raise KeyboardInterrupt


def test_interrupted_and_resumed_equals_uninterrupted(root, data, succeed, run_script, monkeypatch):
    soft = ["--soften", "0.5", "--soften_weights", "1", "--epochs", "4", "--cycles", "2"]
    options = [*TRAIN, "--compile", "--mem_fault", "faulty", "--wsconv", *soft, "--sess", "cifar10_smaller"]
    lines = succeed(*options)
    assert [line.split("  ")[0] for line in lines if line.startswith("epoch")] == [
        f"epoch {epoch}/4" for epoch in (1, 2, 3, 4)
    ]
    whole = CHECKPOINT.rename("whole.pth")

    killed = in_a_process(root, *options, more=STOP.format(signal="SIGKILL"))  # after the first epoch
    assert killed.returncode == -signal.SIGKILL
    interrupted = in_a_process(root, *options, "--resume", more=STOP.format(signal="SIGINT"))  # after the second
    assert interrupted.returncode > 0 and "Traceback" not in interrupted.stderr
    assert "holds epoch 2, --resume goes on from there" in interrupted.stderr
    two_epochs = CHECKPOINT.with_suffix(".csv").read_text()
    packed = [checkpoints.packed_path(CHECKPOINT).with_suffix(suffix) for suffix in (".pth", ".txt")]
    cycle = {path: path.read_bytes() for path in packed}

    for damage in (Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:200])):
        for path in packed:  # as if the kill had come before they were written whole
            damage(path)
        with monkeypatch.context() as patch:
            patch.setattr(train_smaller, "loop", stopped)
            assert run_script(train_smaller, *options, "--resume")[0] == 130
        assert cycle == {path: path.read_bytes() for path in packed}

    resumed = succeed(*options, "--resume")
    assert [line.split("  ")[0] for line in resumed[2:]] == ["epoch 3/4", "epoch 4/4"]
    assert same(timeless(CHECKPOINT), timeless(whole))
    assert CHECKPOINT.with_suffix(".csv").read_text().startswith(two_epochs)
    assert "trained to the end" in succeed(*options, "--resume")[-1]

    CHECKPOINT.unlink()
    status, _, complaint = run_script(train_smaller, *options, "--resume")  # the packed net is that of the last cycle
    assert status == 1 and "no further cycle follows the packed net" in complaint
    # on another machine there is only the packed net of the first cycle
    for path, content in cycle.items():
        path.write_bytes(content)
    succeed(*options, "--resume")
    assert same(timeless(CHECKPOINT), timeless(whole))


def test_training_repeats_evaluates_and_logs(data, succeed):
    succeed(*TRAIN, "--epochs", "2")
    first = CHECKPOINT.rename("first.pth")
    succeed(*TRAIN, "--epochs", "2")
    assert same(timeless(CHECKPOINT), timeless(first))

    state = torch.load(CHECKPOINT, weights_only=True)
    assert state["epoch"] == 2
    with open(CHECKPOINT.with_suffix(".csv")) as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [1, 2]
    assert float(rows[-1]["test_top1"]) == state["acc"]

    lines = succeed("--data", ".")
    assert lines[-1] == f"Avg. acc.: {state['acc']:.3f}%"
    net = CNV(TOPOLOGIES["cifar_smaller"], 10)
    net.load_state_dict(state["net"])
    images, labels = read_images("cifar10", ".", train=False)
    with torch.no_grad():
        correct = sum((net.eval()(images[i : i + 1] / 255).argmax(1) == labels[i]).item() for i in range(len(labels)))
    assert state["acc"] == 100 * correct / len(labels)


def test_holdout(data, succeed, monkeypatch):
    seen = []
    passes = train_smaller.TrainBatches.epoch
    monkeypatch.setattr(
        train_smaller.TrainBatches, "epoch", lambda self, epoch: seen.append(self) or passes(self, epoch)
    )
    lines = succeed(*TRAIN, "--holdout", "30", "--sess", "trial")
    state = torch.load("checkpoint/ckpt.t7.trial_11111.pth")
    images, labels = read_images("cifar10", ".", train=True)
    held = sorted(np.random.default_rng(0).permutation(100)[:30])
    trained = sorted(set(range(100)) - set(held))
    assert any("70 images" in line for line in lines)
    assert torch.equal(seen[0].pixels[:, 4:-4, 4:-4].permute(0, 3, 1, 2), images[trained])
    assert torch.equal(seen[0].labels, labels[trained])
    net = CNV(TOPOLOGIES["cifar_smaller"], 10).eval()
    net.load_state_dict(state["net"])
    assert succeed("--data", ".", "--sess", "trial", "--holdout", "30")[-1] == f"Avg. acc.: {state['acc']:.3f}%"
    assert state["acc"] == pytest.approx(
        100 * (net(images[held].float() / 255).argmax(1) == labels[held]).float().mean().item()
    )


def smoothed(logits, labels):
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    target = np.full(logits.shape, 0.02) + 0.8 * np.eye(10)[labels]
    return -(target * log_p).sum(1).mean()


def with_margin(logits, labels):
    loss, short = [], []
    for row, label in zip(logits, labels):
        lead = row[label] - max(np.delete(row, label))
        loss.append(np.log(np.exp(row).sum()) - row[label])
        short.append(max(0, 1.5 - lead / np.sqrt(((logits - logits.mean()) ** 2).mean())))
    return np.mean(loss) + np.mean(short)


@pytest.mark.parametrize("option,value,expected", [("--smoothing", "0.2", smoothed), ("--margin", "1.5", with_margin)])
def test_loss_against_numpy(data, succeed, option, value, expected):
    """The loss of the first batch is the loss of the initial net."""
    succeed(*TRAIN, "--epochs", "1", "--batch-size", "200", "--padding", "3", option, value, "--no-bf16")
    loss = torch.load(CHECKPOINT)["log"][0]["loss"]
    torch.manual_seed(11111)
    net = CNV(TOPOLOGIES["cifar_smaller"], 10, init=0.05).train()
    images, labels = read_images("cifar10", ".", train=True)
    batches = TrainBatches(images, labels, 200, 3, [(NO_FAULT, None)], 11111, torch.device("cpu"))
    images, labels, _ = next(batches.epoch(0))
    assert loss == pytest.approx(expected(net(images).detach().double().numpy(), labels.numpy()), rel=1e-4)


@pytest.mark.parametrize("wsconv", [False, True])
def test_a_cycle_starts_from_signs(data, succeed, monkeypatch, wsconv):
    soft = ["--init", "0.25", "--soften", "1", "--soften_weights", "0.5", "--sess", "cifar10_smaller"]
    options = [*TRAIN, "--wsconv" if wsconv else "--no-wsconv", *soft]
    succeed(*options, "--epochs", "2")
    expected = torch.load(CHECKPOINT)["net"]
    for key, value in expected.items():
        if value.dim() > 1:
            value = value.double() - value.double().mean() * (wsconv and key.startswith("conv"))
            expected[key] = torch.where(value >= 0, 0.25, -0.25)
    starts, ends, train_pass = [], [], train_smaller.train_pass

    def look(training, batches):
        starts.append(
            ({key: value.clone() for key, value in training.model.state_dict().items()}, dict(training.optimizer.state))
        )
        result = train_pass(training, batches)
        ends.append(training.model.softness.item())
        return result

    monkeypatch.setattr(train_smaller, "train_pass", look)
    assert "cycle 2 of 2 starts from the signs of the last" in succeed(*options, "--epochs", "4", "--cycles", "2")
    assert len(starts) == 4 and starts[1][1]
    assert same(starts[2], (expected, {}))
    assert ends == pytest.approx([1 - 6 / 14, 1 / 14, 0, 0])  # 7 steps in each pass


FAULTS_IN_TRAINING = [
    ("--train_flip", "0.3"),
    ("--memory", "activations", "--ber", "0.3"),
    ("--soften", "1", "--soften_weights", "1"),
]


@pytest.mark.parametrize("options", FAULTS_IN_TRAINING, ids=" ".join)
def test_precise_norms_against_numpy(data, succeed, options):
    """They are those of the intact binary net: the first norm's in NumPy, a later one's by Brevitas' layers alone."""
    succeed(*TRAIN, "--epochs", "2", "--batch-size", "40", *options, "--precise_norms", "2", "--no-bf16")
    state = torch.load(CHECKPOINT)["net"]
    net = CNV(TOPOLOGIES["cifar_smaller"], 10)
    net.load_state_dict(state)
    images, labels = read_images("cifar10", ".", train=True)
    batches = TrainBatches(images, labels, 40, 4, [(NO_FAULT, None)], 11111, torch.device("cpu"))
    first, later = [], []
    net.train().linear_features[4].register_forward_pre_hook(lambda _, inputs: later.append(inputs[0].double().numpy()))
    weight = torch.where(net.conv_features[1].weight < 0, -1.0, 1.0).double()
    with torch.no_grad():
        for images, *_ in islice(batches.epoch(2), 2):
            x = ((2 * images.double() - 1) * 128).round().clamp(-128, 127) / 128
            first.append(torch.nn.functional.conv2d(x, weight, padding=1).transpose(0, 1).flatten(1).numpy())
            net(images)
    later = [values.reshape(1, -1) for values in later]
    for name, values in (("conv_features.2", first), ("linear_features.4", later)):
        mean = np.mean([each.mean(1) for each in values], 0)
        var = np.mean([each.var(1, ddof=1) for each in values], 0)
        np.testing.assert_allclose(state[f"{name}.running_mean"], mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(state[f"{name}.running_var"], var, rtol=1e-4)


def test_running_statistics_after_one_step(data, succeed):
    """They go from their initial values, 0 and 1, a quarter of the way to the statistics of the only batch."""
    succeed(*TRAIN, "--epochs", "1", "--batch-size", "200", "--padding", "0", "--norm_momentum", "0.25", "--no-bf16")
    state = torch.load(CHECKPOINT)["net"]
    torch.manual_seed(11111)
    net = CNV(TOPOLOGIES["cifar_smaller"], 10, init=0.05).train()
    images, labels = read_images("cifar10", ".", train=True)
    images, *_ = next(TrainBatches(images, labels, 200, 0, [(NO_FAULT, None)], 11111, torch.device("cpu")).epoch(0))
    seen = []
    net.linear_features[4].register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].detach().double().numpy())
    )
    net(images)
    weight = net.conv_features[1].weight
    x = ((2 * images.double() - 1) * 128).round().clamp(-128, 127) / 128
    sums = (
        torch.nn.functional.conv2d(x, torch.where(weight < 0, -1.0, 1.0).double(), padding=1)
        .transpose(0, 1)
        .flatten(1)
        .numpy()
    )
    for name, values in (("conv_features.2", sums), ("linear_features.4", seen[0].reshape(1, -1))):
        np.testing.assert_allclose(state[f"{name}.running_mean"], 0.25 * values.mean(1), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(state[f"{name}.running_var"], 0.75 + 0.25 * values.var(1, ddof=1), rtol=1e-4)


def test_originals_checkpoint(data, succeed, complain):
    net = CNV(TOPOLOGIES["cifar_smaller"], 10)
    parallel = OrderedDict((f"module.{key}", value) for key, value in net.state_dict().items())
    CHECKPOINT.parent.mkdir()
    torch.save(
        {"net": parallel, "acc": np.float64(84.15), "epoch": 599, "rng_state": torch.get_rng_state()}, CHECKPOINT
    )
    images, labels = read_images("cifar10", ".", train=False)
    expected = evaluate(net, EvalBatches(images, labels, torch.device("cpu"))).top1
    assert succeed("--data", ".")[-1] == f"Avg. acc.: {expected:.3f}%"
    assert "original checkpoint" in complain("--data", ".", "--train", "--resume")


def test_faults_in_evaluation(data, succeed):
    succeed(*TRAIN, "--epochs", "1")
    faulty = succeed("--data", ".", "--mem_fault", "faulty", "--faulty_bit", "7")
    assert "faulty, bit 7 random" in faulty[-3]
    assert faulty == succeed("--data", ".", "--mem_fault", "faulty", "--faulty_bit", "7")
    repaired = succeed("--data", ".", "--mem_fault", "reparied_n", "--faulty_bit", "3", "--neighbor_offset", "2")
    assert "repaired_n, bit 3 copied from bit 5" in repaired[-3]
    noisy = succeed("--data", ".", "--noise", "0.5")
    assert "10 runs" in noisy[-3] and "standard deviation 0.25" in noisy[-3]
    assert float(noisy[-1].removeprefix("Avg. acc.: ").removesuffix("%")) >= 0


SPY = """
make_optimizer = train_smaller.make_optimizer
def spy(net, options):
    spy.net = net
    return make_optimizer(net, options)
train_smaller.make_optimizer = spy
train_smaller.main()
torch.save(dict(spy.net.named_parameters()), f"parameters_{os.environ['RANK']}.pth")
sys.exit()
"""


def test_noise_with_weight_standardisation(data, succeed):
    succeed(*TRAIN, "--epochs", "1", "--wsconv")
    path = Path("checkpoint/ckpt.t7.cifar10_smaller_wsconv_11111.pth")
    state = torch.load(path, weights_only=True)["net"]
    flipped = total = 0
    for trial in range(10):
        generator = torch.Generator().manual_seed(11111 + trial)
        for weight in state.values():
            if weight.ndim > 1:
                noisy = weight + torch.randn(weight.shape, generator=generator) * 0.2**2
                mean, noisy_mean = (weight.mean(), noisy.mean()) if weight.ndim == 4 else (0, 0)
                flipped += ((weight >= mean) != (noisy >= noisy_mean)).sum().item()
                total += weight.numel()
    line = succeed("--data", ".", "--wsconv", "--noise", "0.2")[-3]
    printed = float(re.search(r"([\d.]+) % of weight signs flipped", line).group(1))
    assert printed == pytest.approx(100 * flipped / total, abs=0.0051)  # two decimals


def test_one_training_step_with_weight_standardisation_against_numpy(data, succeed, monkeypatch):
    """In NumPy: forward with the standardised latents' signs; their gradient to the raw latents, which Adam steps."""
    given, nets, steps = {}, [], []
    make_optimizer, train_pass = train_smaller.make_optimizer, train_smaller.train_pass

    def watch(net, options):
        nets.append(net)
        for layer in net.binary_layers():
            layer.register_forward_hook(keep)
        return make_optimizer(net, options)

    def keep(layer, inputs, output):
        if output.requires_grad:
            output.retain_grad()
            given[layer] = inputs[0].detach(), output

    def one_pass(training, batches):
        before = [layer.weight.detach().double().numpy() for layer in nets[0].binary_layers()]
        before = [weight.copy() for weight in before]
        result = train_pass(training, batches)
        steps.append((before, result[2], given.copy()))
        return result

    monkeypatch.setattr(train_smaller, "make_optimizer", watch)
    monkeypatch.setattr(train_smaller, "train_pass", one_pass)
    succeed(*TRAIN, "--wsconv", "--batch-size", "200", "--epochs", "1", "--no-bf16")  # one batch: one step
    before, lr, seen = steps[0]
    means = []
    for weight, layer in zip(before, nets[0].binary_layers()):
        x, out = seen[layer]
        x, gradient = x.double().numpy(), out.grad.double().numpy()
        standardised = weight
        if weight.ndim == 4:
            standardised = (weight - weight.mean()) / (weight.std(ddof=1) + 1e-8) * weight.size**-0.5
        signs = np.where(standardised >= 0, 1.0, -1.0)
        if weight.ndim == 4:
            windows = np.lib.stride_tricks.sliding_window_view(
                np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)]), (3, 3), axis=(2, 3)
            )
            product, latent_gradient = (
                np.einsum("nchwij,kcij->nkhw", windows, signs),
                np.einsum("nchwij,nkhw->kcij", windows, gradient),
            )
        else:
            product, latent_gradient = x @ signs.T, gradient.T @ x
        np.testing.assert_allclose(out.detach().numpy(), product, atol=1e-3)
        g = latent_gradient
        expected = weight - lr * g / (np.abs(g) + 1e-8)  # Adam's first step: m and v are g and g², debiased
        sure = np.abs(g) > 1e-5 * np.abs(g).max()  # the sign of a smaller gradient is rounding
        now = layer.weight.detach().numpy()
        assert sure.mean() > 0.9
        np.testing.assert_allclose(now[sure], expected[sure], atol=lr / 100)
        means.append(abs(now.mean()) / now.std())
        assert now.std() > 0.02  # of ±0.05, far from numel^(-1/2) where it is large
    assert max(means) > 1e-4  # not standardised


def test_weight_standardisation_is_chosen_in_evaluation(data, succeed, complain):
    """It can differ from training, and the output says so. A packed net has no latent weights for it."""
    net = trained_net("cifar10", wsconv=True)
    for layer in net.binary_layers()[:2]:
        layer.weight.data.add_(0.4)  # a mean that weight standardisation removes
    images, _ = read_images("cifar10", ".", train=False)
    predicted = {}
    for wsconv in (False, True):
        other = CNV(TOPOLOGIES["cifar_smaller"], 10).eval()
        other.load_state_dict(net.state_dict())
        for layer in other.binary_layers():
            layer.weight.data.sub_(layer.weight.mean() if wsconv and layer.weight.dim() == 4 else 0)
        predicted[wsconv] = other(images / 255).argmax(1)
    test_batch = Path("cifar-10-batches-py/test_batch")
    entry = {**pickle.loads(test_batch.read_bytes()), "labels": predicted[False].tolist()}
    test_batch.write_bytes(pickle.dumps(entry, protocol=2))
    accuracy = {wsconv: 100 * (its == predicted[False]).double().mean().item() for wsconv, its in predicted.items()}
    assert accuracy[True] < 100 and len(predicted[False].unique()) > 1
    for sess, trained in (("plain", False), ("cifar10_smaller_wsconv", True)):
        state = {
            "net": net.state_dict(),
            "acc": 10.0,
            "epoch": 1,
            "rng_state": torch.get_rng_state(),
            "log": [{"epoch": 1}],
        }
        checkpoints.save(
            checkpoints.path_of(sess, 11111), {**state, "options": {"dataset": "cifar10", "wsconv": trained}}
        )
        for words, wsconv in (([], trained), (["--wsconv"], True), (["--no-wsconv"], False)):
            lines = succeed("--data", ".", "--sess", sess, *words)
            assert lines[-1] == f"Avg. acc.: {accuracy[wsconv]:.3f}%"
            said = re.search(r"(with|without) weight standardisation \(trained (with|without)\)", lines[-3])
            assert bool(said) == (wsconv != trained)
            assert not said or said.groups() == (("with", "without") if wsconv else ("without", "with"))
    path = checkpoints.path_of("plain", 11111)
    _, loaded, state = checkpoints.load_net(path)
    torch.save(
        checkpoints.pack(loaded, state | {"options": {"dataset": "cifar10", "wsconv": False}}, b""),
        checkpoints.packed_path_of("plain", 11111),
    )
    path.unlink()
    assert "is packed and holds signs only" in complain("--data", ".", "--sess", "plain", "--wsconv")
    assert succeed("--data", ".", "--sess", "plain", "--no-wsconv")[-1] == f"Avg. acc.: {accuracy[False]:.3f}%"


def test_result_for_programs(data, succeed, complain, monkeypatch):
    succeed(*TRAIN, "--epochs", "1")
    lines = succeed(
        "--data", ".", "--noise", "0.5", "--mem_fault", "faulty", "--faulty_bit", "7", "--result", "a/b.json"
    )
    found = json.loads(Path("a/b.json").read_text())
    assert lines[-1] == f"Avg. acc.: {found['top1']:.3f}%" and lines[-2] == f"Avg. top-5 acc.: {found['top5']:.3f}%"
    assert f"{100 * found['signs_flipped']:.2f} % of weight signs flipped" in lines[-3]
    assert (found["setting"], found["runs"], found["images"]) == ("faulty, bit 7 random, noise sigma_val 0.5", 10, 20)
    assert (found["checkpoint"], found["epoch"], found["dataset"]) == (str(CHECKPOINT), 1, "cifar10")
    assert "--result is for an evaluation" in complain(*TRAIN, "--result", "c.json")
    monkeypatch.setattr(train_smaller, "NOISE_RUNS", 1)
    assert ": 1 run, " in succeed("--data", ".", "--noise", "0.5")[-3]


def test_padding_is_stored(data, succeed, complain):
    succeed(*TRAIN, "--epochs", "1", "--pad", "-1")
    state = torch.load(CHECKPOINT, weights_only=True)
    assert state["options"]["pad"] == -1 and checkpoints.load_net(CHECKPOINT)[1].pad == -1
    assert succeed("--data", ".")[-1] == f"Avg. acc.: {state['acc']:.3f}%" == succeed("--data", ".", "--no-fold")[-1]
    assert "trained with pad -1, not 0" in complain(*TRAIN, "--resume", "--pad", "0")


def test_two_processes(root, data, succeed, complain):
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    standardized = ["--wsconv", "--sess", "cifar10_smaller"]  # the latents are the same in both
    process = in_a_process(root, *TRAIN, *standardized, more=SPY, launch=launch, OMP_NUM_THREADS="1")
    out = process.stdout
    assert process.returncode == 0, process.stderr
    epochs = [line.split("  ")[0] for line in out.splitlines() if line.startswith("epoch")]
    assert epochs == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    state = torch.load(CHECKPOINT, weights_only=True)
    assert not any(key.startswith("module.") for key in state["net"])
    for rank in (0, 1):  # gradients were averaged: both processes have the same trained parameters
        parameters = torch.load(f"parameters_{rank}.pth")
        assert all(torch.equal(value, state["net"][key]) for key, value in parameters.items())
    assert succeed("--data", ".")[-1] == f"Avg. acc.: {state['acc']:.3f}%"
    assert "processes 2, not 1" in complain(*TRAIN, "--resume")


def test_without_a_compiler(root, data, succeed):
    options = ["--train", "--data", ".", "--batch-size", "16", "--epochs", "1", "--no-bf16"]
    process = in_a_process(root, *options, CXX="/nowhere/g++", TORCHINDUCTOR_CACHE_DIR=str(Path("empty").absolute()))
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("torch.compile cannot run here") == 1
    fallback = CHECKPOINT.rename("fallback.pth")
    succeed(*options, "--no-compile")
    assert same(timeless(CHECKPOINT)["net"], timeless(fallback)["net"])  # the failed attempt changed nothing


def test_an_older_checkpoint_is_kept(data, succeed):
    succeed(*TRAIN, "--epochs", "1")
    before = CHECKPOINT.read_bytes()
    succeed(*TRAIN, "--epochs", "1", "--seed", "11111", "--lr", "0.02")
    assert Path(f"{CHECKPOINT}.old").read_bytes() == before != CHECKPOINT.read_bytes()


def test_an_originals_name_says_what_it_is(data):
    for sess, dataset, wsconv in [("cifar100_smaller", "cifar100", False), ("cifar10_smaller_wsconv", "cifar10", True)]:
        net = checkpoints.build_net({"dataset": dataset, "wsconv": wsconv, "pad": 0})
        path = checkpoints.path_of(sess, 1)
        path.parent.mkdir(exist_ok=True)
        torch.save({"net": net.state_dict(), "acc": 1.0, "epoch": 1}, path)
        name, loaded, _ = checkpoints.load_net(path)
        assert name == dataset and not loaded.training
        assert any("WS" in type(layer).__name__ for layer in loaded.binary_layers()) == wsconv


@pytest.mark.parametrize(
    "words,complaint",
    [
        ("--epoch 3", "unrecognized arguments: --epoch"),
        ("--train --lr 0", "--lr: 0 is out of range: above 0"),
        ("--train --epochs none", "'none' is not a whole number"),
        ("--train --batch-size 1", "at least 2"),
        ("--train --lr nan", "is not a number"),
        ("--dataset mnist", "invalid choice: 'mnist'"),
        ("--train --smoothing 0.1 --loss sqrhinge", "--smoothing is for the cross-entropy"),
        ("--train --holdout 100", "100 of 100 training images held out leave none to train on"),
        ("--train --pretrained checkpoint/none.pth", "checkpoint/none.pth is missing"),
        ("--train --faulty_bit any", "--faulty_bit any needs a fault"),
        ("--sess good --mem_fault faulty --faulty_bit any", "--faulty_bit any is for --train"),
        ("--train --faulty_bit any --mem_fault repaired_n --neighbor_offset 0", "neighbor_offset 0 would repair"),
        ("--train --faulty_bit all", "invalid bit value: 'all'"),
        ("--train --train_flip 2", "--train_flip: 2 is out of range"),
        ("--train --noise 0.5", "--noise is for an evaluation: --train_noise is for a training"),
        ("--train --precise_norms 9", "--precise_norms 9 is more than a pass has batches, 1"),
        ("--sess good --batch-size 9", "--batch-size is for --train"),
        ("--sess good --no-compile", "--compile is for --train"),
        ("--train --epochs 5 --duplicate 2", "--epochs 5 is no multiple of --duplicate 2 times --cycles 1"),
        ("--train --recipe reference --cycles 2", "--cycles is for the cosine schedule: use 1 with --schedule step"),
        (
            "--train --dataset tiny_imagenet --epochs 5",
            "--epochs 5 is no multiple of --duplicate 1 times --cycles 2: set one of them",
        ),
        ("--train --epochs 6 --duplicate 2 --cycles 2", "--epochs 6 is no multiple of --duplicate 2 times --cycles 2"),
        ("--train --faulty_bit 9 --mem_fault faulty", "faulty_bit 9"),
        ("--sess nobody", "checkpoint/ckpt.t7.nobody_11111.pth is missing"),
        ("--sess a/b", "'a/b' cannot be part of a file name"),
        ("--train --resume", "is missing"),
        ("--sess cut", "ckpt.t7.cut_11111.pth is truncated or no checkpoint"),
        ("--sess list", "holds no 'net'"),
        ("--sess other", "does not fit the net for CIFAR-10: conv_features.1.weight is (16, 3, 3, 3) in the file"),
        ("--sess good --dataset cifar100", "trained with dataset cifar10, not cifar100"),
        (
            "--sess old_wsconv --train --resume",
            "is of a version in which weight standardisation replaced the latent weights",
        ),
        ("--train --pad 1", "argument --pad: invalid choice: 1"),
        ("--sess good --pad -1", "--pad is for --train"),
        ("--sess good --resume", "--resume is for --train"),
        ("--sess good --lr 0.1", "--lr is for --train"),
        ("--sess good --epochs 3", "--epochs is for --train"),
        ("--sess good --no-amsgrad", "--amsgrad is for --train"),
        ("--sess good --mem_fault=", "mem_fault '' is unknown"),
        ("--sess good --holdout 10", "was trained with --holdout 0: of the images that --holdout 10 tests on"),
        ("--train --mem_fault=", "mem_fault '' is unknown"),
        ("--sess good --noise 1e308", "--noise: 1e308 is out of range"),
        ("--train --init 1e308", "--init: 1e308 is out of range"),
        ("--train --padding 1e20", "--padding: '1e20' is not a whole number"),
        ("--train --padding 99999999", "--padding: 99999999 is out of range"),
        ("--train --sess " + 230 * "a", "cannot be written (File name too long)"),
        ("--sess good --wsconv --export_finn", "--export_finn writes the net as it was trained"),
        ("--sess good --train --resume --lr 0.5", "trained with lr 0.01, not 0.5"),
        ("--sess good --mem_fault repaired_s --faulty_bit 7", "cannot repair bit 7"),
        ("--sess good --mem_fault broken", "mem_fault 'broken' is unknown"),
    ],
)
def test_bad_input_gets_one_line(data, complain, words, complaint):
    net = CNV(TOPOLOGIES["cifar_smaller"], 10)
    options = {"dataset": "cifar10", "wsconv": False, "lr": 0.01, "processes": 1}
    state = {"net": net.state_dict(), "acc": 10.0, "epoch": 1, "options": options, "log": [{}]}
    checkpoints.save(checkpoints.path_of("good", 11111), state)
    checkpoints.save(checkpoints.path_of("old_wsconv", 11111), {**state, "options": {**options, "wsconv": True}})
    whole = checkpoints.path_of("good", 11111).read_bytes()
    checkpoints.path_of("cut", 11111).write_bytes(whole[:100000])
    torch.save([1, 2], checkpoints.path_of("list", 11111))
    other = CNV(TOPOLOGIES["tiny_imagenet_smaller"], 200)
    torch.save({"net": other.state_dict(), "acc": 1.0, "epoch": 1}, checkpoints.path_of("other", 11111))
    assert complaint in complain("--data", ".", *words.split())


def test_training_stops_where_the_loss_is_not_finite(data, succeed, complain, monkeypatch):
    succeed(*TRAIN, "--epochs", "1")
    state = torch.load(CHECKPOINT)
    state["options"] |= {"epochs": 3}
    state["net"]["linear_features.4.weight"] *= 1e38  # the logits' gain: their squares are beyond float32
    state["net"]["linear_features.4.bias"] *= 0
    checkpoints.save(CHECKPOINT, state)
    seen, step = [], train_smaller.Training

    def watched(**parts):
        compute_loss = parts["compute_loss"]
        parts["compute_loss"] = lambda logits, labels, taught: (
            seen.append(0) or compute_loss(logits * 1e38, labels, taught)
        )
        return step(**parts)

    monkeypatch.setattr(train_smaller, "Training", watched)
    monkeypatch.setattr("engine.training.CHECK", 2)
    complaint = complain(*TRAIN, "--resume")
    assert "the loss became" in complaint and complaint.endswith(f"{CHECKPOINT} holds epoch 1")
    assert len(seen) == 2  # of seven steps in the epoch
    assert torch.load(CHECKPOINT)["epoch"] == 1


def test_a_failed_training_leaves_the_net_before_it(data, succeed, complain):
    succeed(*TRAIN, "--epochs", "1")
    before = CHECKPOINT.read_bytes()
    complaint = complain(*TRAIN, "--lr", "1e38")
    assert "the loss became nan in epoch 1" in complaint and "no epoch was finished" in complaint
    assert CHECKPOINT.read_bytes() == before


def test_resuming_wants_the_same_images(data, tmp_path, succeed, complain):
    succeed(*TRAIN, "--epochs", "1")
    state = torch.load(CHECKPOINT)
    state["options"] |= {"epochs": 2}
    checkpoints.save(CHECKPOINT, {**state, "threads": state["threads"] + 1, "arithmetic": "paper in float64"})
    (tmp_path / "other").mkdir()
    write_cifar10(tmp_path / "other", rows=21)
    assert "was trained on other images" in complain("--train", "--resume", "--no-compile", "--data", "other")
    lines = succeed("--train", "--resume", "--no-compile", "--data", ".")
    assert all(line.startswith("warning: ") for line in lines[:2])
    assert f"with {state['threads'] + 1} threads, now {state['threads']}" in lines[0]
    assert f"{CHECKPOINT} was trained on paper in float64, now {state['arithmetic']}: " in lines[1]


WORKER = """
import os, sys, time
sys.path.insert(0, {root!r})
from engine import Processes
os.write(1, f"{{os.getpid()}}\\n".encode())  # in one piece, since two write
Processes()
time.sleep(200)
"""


def test_processes_end_with_torchrun(root, tmp_path):
    Path("worker.py").write_text(WORKER.format(root=str(root)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "worker.py"]
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    workers = [int(launcher.stdout.readline()) for _ in range(2)]
    time.sleep(3)  # until both are in Processes()
    launcher.kill()
    launcher.wait()
    for _ in range(50):
        time.sleep(0.2)
        if not any(running(worker) for worker in workers):
            return
    raise AssertionError("they go on alone")


def running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_ranks_count_where_there_are_several(data, succeed, monkeypatch):
    monkeypatch.setenv("RANK", "3")  # left over in the shell
    monkeypatch.setenv("WORLD_SIZE", "abc")
    succeed(*TRAIN, "--epochs", "1")
    assert succeed("--data", ".")[-1].startswith("Avg. acc.: ")


def test_one_training_of_a_session_at_a_time(data, complain):
    with locked(CHECKPOINT, "it"):
        assert f"{CHECKPOINT} is being written by process {os.getpid()}" in complain(*TRAIN)


def test_learning_rate_schedules():
    cosine = {"schedule": "cosine", "epochs": 40, "duplicate": 1, "cycles": 1, "wsconv": False}
    rates = [train_smaller.rate_factor(step, 100, cosine) for step in range(4000)]
    assert rates[0] == pytest.approx(1 / 201) and rates[199] == pytest.approx(200 / 201)
    assert rates[200] == 1 and rates[2100] == pytest.approx(0.5) and 0 < rates[-1] < 1e-6
    assert rates[1000] == pytest.approx(0.5 + 0.5 * math.cos(math.pi * 800 / 3800))

    twice = {**cosine, "epochs": 160, "duplicate": 2, "cycles": 2}
    assert [train_smaller.rate_factor(step, 100, twice) for step in range(4000)] == rates
    assert [train_smaller.rate_factor(step, 100, twice) for step in range(4000, 8000)] == pytest.approx(
        [0.03 * rate for rate in rates]
    )

    step = {"schedule": "step", "epochs": 600, "duplicate": 10, "wsconv": False}
    by_epoch = [train_smaller.rate_factor(epoch // 10 * 7, 7, step) for epoch in range(0, 600, 10)]
    assert by_epoch == [0.2 ** sum(epoch >= m for m in (80, 160, 240, 320, 400, 480)) for epoch in range(0, 600, 10)]
    by_epoch = [
        train_smaller.rate_factor(epoch // 10 * 7 + 6, 7, {**step, "wsconv": True}) for epoch in range(0, 600, 10)
    ]
    assert by_epoch == [0.5 ** (epoch // 60) for epoch in range(0, 600, 10)]


def test_activations_harden():
    softness = [train_smaller.softness(step, 100, 0.4) for step in range(100)]
    assert softness == pytest.approx([1 - step / 40 for step in range(40)] + [0.0] * 60)
    assert train_smaller.softness(0, 100, 0.0) == 0


def test_reference_recipe_and_overrides(monkeypatch):
    def options(*words):
        monkeypatch.setattr(sys, "argv", ["train_smaller.py", *words])
        return train_smaller.settle(train_smaller.parse(), processes=1)

    reference = options("--recipe", "reference")
    assert (reference["lr"], reference["amsgrad"], reference["batch_size"]) == (0.02, True, 2048)
    assert (reference["duplicate"], reference["epochs"], reference["init"]) == (10, 600, 1.0)
    assert options("--recipe", "reference", "--dataset", "tiny_imagenet")["duplicate"] == 3
    assert options("--wsconv") == {**options("--no-wsconv"), "wsconv": True}  # wsconv has no recipe of its own
    assert options("--recipe", "reference", "--wsconv") == {**reference, "wsconv": True}
    assert options("--dataset", "tiny_imagenet")["soften"] and options("--dataset", "tiny_imagenet")["cycles"] == 2
    assert options("--dataset", "tiny_imagenet", "--schedule", "step")["cycles"] == 1
    again = options("--dataset", "tiny_imagenet", "--pretrained", "a.pth")
    assert (again["lr"], again["cycles"], again["soften"], again["soften_weights"]) == (0.001, 1, 0, 0)
    mixed = options("--recipe", "reference", "--lr", "0.5", "--no-amsgrad")
    assert {key: mixed[key] for key in reference if mixed[key] != reference[key]} == {"lr": 0.5, "amsgrad": False}
    monkeypatch.setattr(train_smaller, "DECAY", 0.125)  # an edited constant takes effect
    assert options()["decay"] == 0.125 and options("--decay", "0")["decay"] == 0


@pytest.mark.parametrize(
    "optimizer,amsgrad,clip",
    [("sgd", False, math.inf), ("adam", False, math.inf), ("adam", True, math.inf), ("sgd", False, 0.3)],
)
def test_optimizers_against_numpy(optimizer, amsgrad, clip):
    net = CNV(Topology(8, ((4, True),), (8,)), 10)
    weight = net.linear_features[0].weight
    options = {"lr": 0.1, "processes": 2, "optimizer": optimizer, "decay": 0.0, "amsgrad": amsgrad, "clip": clip}
    made = train_smaller.make_optimizer(net, options)
    w = weight.detach().double().numpy().copy()
    m, v, top = np.zeros_like(w), np.zeros_like(w), np.zeros_like(w)
    for t in range(1, 4):
        gradient = torch.randn_like(weight) / t
        weight.grad = gradient.clone()
        made.step()
        g = gradient.double().numpy()
        if optimizer == "sgd":
            m = 0.9 * m + g
            w -= 0.2 * m  # learning rate of one process, times two processes
        else:
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            top = np.maximum(top, v)
            w -= 0.2 * (m / (1 - 0.9**t)) / (np.sqrt((top if amsgrad else v) / (1 - 0.999**t)) + 1e-8)
        w = w.clip(-clip, clip)
        np.testing.assert_allclose(weight.detach().numpy(), w, rtol=1e-4, atol=1e-5)


def test_score_and_evaluate_against_numpy():
    logits, labels = torch.randint(-3, 4, (50, 10)).float(), torch.randint(0, 10, (50,))  # many logits are equal
    result = to_score(score(logits, labels))
    order = np.argsort(-logits.numpy(), axis=1, kind="stable")
    hits = order == labels.numpy()[:, None]
    p = np.exp(logits.double().numpy())
    p = (p / p.sum(1, keepdims=True))[range(50), labels]
    assert (result.n, result.correct, result.correct5) == (50, hits[:, 0].sum(), hits[:, :5].sum())
    assert result.loss == pytest.approx(-np.log(p).mean(), rel=1e-5)
    assert result.top1 == pytest.approx(100 * hits[:, 0].mean()) and result.top5 == pytest.approx(
        100 * hits[:, :5].any(1).mean()
    )

    net = CNV(Topology(8, ((4, True),), (8,)), 10)
    images = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8)
    net(torch.rand(50, 3, 8, 8))  # gives it running statistics
    before = [value.clone() for value in net.state_dict().values()]
    whole, parts = (evaluate(net, EvalBatches(images, labels, torch.device("cpu"), size)) for size in (50, 7))
    assert whole[:3] == parts[:3] and whole.loss == pytest.approx(parts.loss)
    assert net.training and all(map(torch.equal, before, net.state_dict().values()))
