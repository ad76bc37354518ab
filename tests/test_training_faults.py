"""Training on faults: the batches and weights of a step are as specified, and nothing else changes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from made import write_cifar10

import train_smaller
from datasets import read_images
from engine import TrainBatches
from faults import NO_FAULT, TrainingFaults
from models import CNV, Topology
from repairs import fault_of

CPU = torch.device("cpu")
SMALL = Topology(8, ((16, False), (24, True)), (40,))


def small_net(wsconv=False):
    torch.manual_seed(1)
    return CNV(SMALL, 10, wsconv, init=0.3).to(memory_format=torch.channels_last).train()


def latents(net):
    return [layer.weight.detach().clone() for layer in net.binary_layers()]


def gradients(net, images, labels):
    net.zero_grad()
    F.cross_entropy(net(images), labels).backward()
    return [parameter.grad.clone() for parameter in net.parameters()]


@pytest.mark.parametrize("flip,noise", [(0.2, 0.0), (0.0, 0.5), (0.1, 0.3), (0.5, 0.0)])
def test_a_step_sees_faulty_weights_and_leaves_none(flip, noise):
    images, labels = torch.rand(32, 3, 8, 8), torch.randint(0, 10, (32,))
    net = small_net()
    before = latents(net)
    faults = TrainingFaults(net, flip, noise, seed=5)
    with faults.at(3):
        inside = latents(net)
        found = gradients(net, images, labels)
    assert all(map(torch.equal, latents(net), before))
    other = small_net()  # a net with the faulty weights, trained without faults
    for layer, weight in zip(other.binary_layers(), inside):
        layer.weight.data.copy_(weight)
    assert all(map(torch.equal, found, gradients(other, images, labels)))

    with faults.at(4), torch.no_grad():
        assert not torch.equal(latents(net)[1], inside[1])
    with faults.at(3):
        assert all(map(torch.equal, latents(net), inside))
    with TrainingFaults(net, flip, noise, seed=6).at(3):
        assert not torch.equal(latents(net)[1], inside[1])


def test_shares_and_sizes_of_the_faults():
    net = small_net()
    before = latents(net)
    steps = 60
    for flip, noise in ((0.03, 0.0), (0.0, 0.5)):
        faults = TrainingFaults(net, flip, noise, seed=5)
        differences = [[] for _ in before]
        for step in range(steps):
            with faults.at(step):
                for found, now, was in zip(differences, latents(net), before):
                    found.append((now - was).numpy().ravel() if noise else (now != was).numpy().ravel())
        for found, was in zip(map(np.stack, differences), before):
            size = found.size
            if flip:
                assert abs(found.mean() - flip) < 5 * np.sqrt(flip * (1 - flip) / size)
                pairs = (found[:, 1:] & found[:, :-1]).mean()  # neighbours flip independently
                assert abs(pairs - flip**2) < 6 * np.sqrt(flip**2 / size)
                assert (found.sum(0) > 0).mean() > 0.7  # other weights at every step
            else:
                unit = was.double().square().mean().sqrt().item()
                assert found.std() == pytest.approx(0.5 * unit, rel=0.1) and abs(found.mean()) < 0.1 * unit


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_faults_with_weight_standardisation(noise):
    """Noise is added before it, signs flip after it: NumPy computes them from noise and flips of a net without it."""
    plain, net = small_net(), small_net(wsconv=True)
    for one, other in zip(plain.binary_layers(), net.binary_layers()):
        one.weight.data.add_(0.05)  # a mean that standardisation removes
        other.weight.data.copy_(one.weight)
    before = latents(net)
    with TrainingFaults(plain, 0.0, noise, seed=5).at(2):
        noisy = [weight.double().numpy() for weight in latents(plain)]
    with TrainingFaults(plain, 0.1, noise, seed=5).at(2):
        flips = [np.signbit(now.numpy()) != np.signbit(was) for now, was in zip(latents(plain), noisy)]
    with TrainingFaults(net, 0.1, noise, seed=5).at(2):
        found = [layer.quant_weight().value.detach().numpy() for layer in net.binary_layers()]
        net(torch.rand(4, 3, 8, 8)).sum().backward()
    for i, (signs, weight, flip) in enumerate(zip(found, noisy, flips)):
        centre = weight.mean() if i < 2 else 0  # only the convolutions are standardised
        assert np.array_equal(signs, np.where((weight >= centre) ^ flip, 1, -1))
        assert flip.mean() > 0.05
    assert all(map(torch.equal, latents(net), before))
    assert all(layer.weight.grad is not None for layer in net.binary_layers())


def test_a_bit_for_each_batch(tmp_path):
    write_cifar10(tmp_path, rows=20)
    images, labels = read_images("cifar10", ".", train=True)
    options = {"mem_fault": "constant_1", "faulty_bit": "any", "neighbor_offset": -1, "memory": ""}
    faults = [(fault, None) for fault in train_smaller.image_faults(options)]
    clean = TrainBatches(images, labels, 64, 2, [(NO_FAULT, None)], 3, CPU)
    broken = TrainBatches(images, labels, 64, 2, faults, 3, CPU)
    drawn = []
    for epoch in range(60):
        (one, its, _), (other, others, before) = (next(batches.epoch(epoch)) for batches in (clean, broken))
        one, other = ((255 * x).round().int().numpy() for x in (one, other))
        assert torch.equal(its, others)
        assert np.array_equal(one, before.numpy())
        bits = [bit for bit in range(8) if np.array_equal(other, one | 1 << bit)]
        drawn.append(bits[0] if bits else None)
        assert bits or np.array_equal(one, other)
    assert {None, *range(8)} == set(drawn)
    assert len(train_smaller.image_faults({**options, "mem_fault": "repaired_s"})) == 8  # none, and bits 0 to 6
    assert train_smaller.image_faults({**options, "faulty_bit": 4}) == [fault_of("constant_1", 4, -1)]
