"""Which weights matter: a search for few signs whose flips ruin a net, and random flips to compare with."""

from contextlib import contextmanager

import torch
import torch.nn.functional as F

from engine.batches import EvalBatches
from engine.evaluation import evaluate

GROWTH = 8  # a step flips one sign for every GROWTH that are flipped already, at least one
Z95 = 1.96


def flip_losses(net, images, labels):
    """What flipping each binary weight adds to the mean loss, to first order: float32, one for each weight.

    It is −2·w·∂L/∂w, with w = ±1 as it is now. The gradient passes the binary activations where they are in [-1, 1].
    net: a CNV in evaluation mode. images: uint8 N×3×H×W of training; labels: int64 N.
    """
    layers = net.binary_layers()
    net.zero_grad()
    for scaled, its in EvalBatches(images, labels, layers[0].weight.device, batch_size=100):
        (F.cross_entropy(net(scaled), its, reduction="sum") / len(labels)).backward()
    with torch.no_grad():
        # flipping negates both the weight and the gradient that reaches the latent weight: their product stays
        losses = [-2 * intact_signs(layer) * layer.weight.grad for layer in layers]
    net.zero_grad()
    return torch.cat([loss.flatten() for loss in losses]).cpu()


def intact_signs(layer):
    """The binary weights of a layer without its flips: float32 ±1."""
    signs = layer.quant_weight().value
    return signs if layer.flips is None else torch.where(layer.flips, -signs, signs)


@contextmanager
def flipped_signs(net, tester):
    """Yields a function (bool, one for each weight) that flips these signs of the net and of the folded tester."""
    layers = net.binary_layers()

    def flip(flips):
        for layer, its in zip(layers, flips.split([layer.weight.numel() for layer in layers])):
            layer.flips = its.view(layer.weight.shape).to(layer.weight.device)
        if tester is not net:
            tester.take_weights()

    try:
        yield flip
    finally:
        for layer in layers:
            layer.flips = None
        if tester is not net:
            tester.take_weights()


def at_chance(score, classes):
    """Is an accuracy within the 95 % interval of guessing, or below it?"""
    share = 1 / classes
    return score.correct / score.n <= share + Z95 * (share * (1 - share) / score.n) ** 0.5


def worst_flips(net, tester, images, labels, batches, most):
    """Yields (flips, {layer: flips in it}, Score) after each step of the search, until the accuracy is at chance.

    Each step flips the signs that add most to the loss on `images`, and then computes the gradient again. batches: of
    the images that accuracy is measured on. most: flips at which the search ends in any case.
    """
    sizes = [layer.weight.numel() for layer in net.binary_layers()]
    flips = torch.zeros(sum(sizes), dtype=torch.bool)
    with flipped_signs(net, tester) as flip:
        while True:
            number = int(flips.sum())
            score = evaluate(tester, batches)
            yield number, _by_layer(net, flips, sizes), score
            if at_chance(score, net.classes) or number >= most:
                return
            losses = flip_losses(net, images, labels)
            losses[flips] = -torch.inf
            flips[losses.topk(min(max(1, number // GROWTH), most - number)).indices] = True
            flip(flips)


def random_flips(net, tester, batches, seed):
    """Yields the same for random signs: 1, 2, 4, … of them, each time with those before."""
    sizes = [layer.weight.numel() for layer in net.binary_layers()]
    order = torch.randperm(sum(sizes), generator=torch.Generator().manual_seed(seed))
    number = 1
    with flipped_signs(net, tester) as flip:
        while number <= len(order):
            flips = torch.zeros(len(order), dtype=torch.bool)
            flips[order[:number]] = True
            flip(flips)
            score = evaluate(tester, batches)
            yield number, _by_layer(net, flips, sizes), score
            if at_chance(score, net.classes):
                return
            number *= 2


def _by_layer(net, flips, sizes):
    return {name: int(part.sum()) for name, part in zip(net.layer_names(), flips.split(sizes))}
