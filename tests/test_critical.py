"""The search for critical weights against the loss itself, in a net small enough to flip every weight."""

import csv

import pytest
import torch
import torch.nn.functional as F
from made import TINY, trained_net
from test_sweep import FOLDER, call, ready  # noqa: F401  (fixtures)

import sweep
from engine import EvalBatches
from engine.critical import at_chance, flip_losses, random_flips, worst_flips
from engine.evaluation import Score, evaluate
from models import TOPOLOGIES
from models.folded import Folded

CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch):
    """A small net, images and labels that it mostly classifies rightly."""
    monkeypatch.setitem(TOPOLOGIES, "cifar_smaller", TINY)
    net = trained_net("cifar10").eval()
    images = torch.randint(0, 256, (60, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        labels = net(images / 255).argmax(1)
    return net, images, labels


def test_first_order_loss_of_the_last_layer_is_that_of_flipping(small):
    """The last layer is linear in its weights: the slope at a flip of size 0 is the gradient, by finite differences."""
    net, images, labels = small
    found = flip_losses(net, images, labels)
    layers = net.binary_layers()
    assert len(found) == sum(layer.weight.numel() for layer in layers)
    last = found[-layers[-1].weight.numel() :].view(layers[-1].weight.shape)
    stored = []
    hook = layers[-1].register_forward_pre_hook(lambda module, inputs: stored.append(inputs[0].double()))
    with torch.no_grad():
        net(images / 255)
    hook.remove()
    signs = layers[-1].quant_weight().value.detach().double()
    norm = net.linear_features[-1].double()

    def loss(weight):
        sums = stored[0] @ weight.T
        logits = (sums - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
        return F.cross_entropy(logits, labels).item()

    for place in [(0, 0), (3, 7), (9, 23)]:
        moved = signs.clone()
        moved[place] *= 1 - 2e-4
        slope = (loss(moved) - loss(signs)) / 1e-4
        assert last[place].item() == pytest.approx(slope, rel=1e-2, abs=1e-6)
    net.linear_features[-1].float()
    assert all(layer.weight.grad is None or not layer.weight.grad.any() for layer in layers)


def test_flips_do_not_change_what_a_further_flip_means(small):
    net, images, labels = small
    layer = net.binary_layers()[-1]
    layer.flips = torch.zeros_like(layer.weight, dtype=torch.bool)
    layer.flips[2, 3] = True
    flipped = flip_losses(net, images, labels)
    layer.flips = None
    layer.weight.data[2, 3] *= -1  # the same net with this sign in its latent weight
    assert torch.allclose(flip_losses(net, images, labels), flipped, atol=1e-7)


def test_the_worst_flips_do_more_than_random_ones(small):
    net, images, labels = small
    batches, folded = EvalBatches(images, labels, CPU), Folded(net)
    steps = list(worst_flips(net, folded, images, labels, batches, most=200))
    numbers = [number for number, _, _ in steps]
    assert numbers[:3] == [0, 1, 2] and numbers == sorted(numbers)
    assert steps[0][2] == evaluate(net, batches) and steps[0][2].correct == 60
    assert all(sum(layers.values()) == number for number, layers, _ in steps)
    assert at_chance(steps[-1][2], 10) or numbers[-1] == 200
    assert not any(at_chance(score, 10) for _, _, score in steps[:-1])
    random = list(random_flips(net, folded, batches, seed=1))
    assert [number for number, _, _ in random] == [2**i for i in range(len(random))]
    assert random == list(random_flips(net, net, batches, seed=1))  # and Brevitas agrees
    assert numbers[-1] < random[-1][0]
    assert evaluate(folded, batches) == steps[0][2] and all(layer.flips is None for layer in net.binary_layers())


def test_chance():
    assert at_chance(Score(10_000, 1058, 0, 0.0), 10) and not at_chance(Score(10_000, 1059, 0, 0.0), 10)


@pytest.mark.plots
def test_critical_in_a_sweep(ready, call, monkeypatch):  # noqa: F811
    words = ["--data", ".", "--critical", "--ber", "0.1", "--runs", "2"]
    status, out, err = call(*words)
    assert status == 0, err
    assert out.count("bring the net to chance") == 3
    with open(FOLDER / "critical.csv") as file:
        rows = list(csv.DictReader(file))
    assert {(row["choice"], row["run"]) for row in rows} == {("gradient", "0"), ("random", "0"), ("random", "1")}
    assert (FOLDER / "critical.png").is_file() and (FOLDER / "layers.png").is_file()
    before = (FOLDER / "critical.csv").read_bytes()
    assert call(*words)[0] == 0 and (FOLDER / "critical.csv").read_bytes() == before
    monkeypatch.setattr(sweep, "MOST_FLIPS", 2)  # searched anew, and ended before the net is at chance
    for place in ("engine.critical", "report.tested_net"):
        monkeypatch.setattr(f"{place}.at_chance", lambda *given: False)
    status, out, err = call(*words)
    assert status == 0 and "2 flipped signs, gradient 0, are the most that are tried" in out, err
    (FOLDER / "critical.csv").write_text("a\n1\n")
    status, _, err = call(*words)
    assert status == 1 and err.count("\n") == 1 and "is no critical.csv" in err
