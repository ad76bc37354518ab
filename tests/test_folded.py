"""The folded net against Brevitas' forward pass: equal logits, also if a sum equals its threshold."""

import pytest
import torch
from torch import nn

from engine import evaluate
from faults import weight_flips, weight_noise
from models import CNV, TOPOLOGIES, Topology, folded
from models.folded import Folded, find_threshold

SMALL = Topology(size=16, conv=((16, True), (24, False), (32, True)), fc=(40,), padding=0)  # odd maps, no padding
NETS = {**TOPOLOGIES, "small": SMALL}


def images_of(topology, count):
    return torch.randint(256, (count, topology.size, topology.size, 3), dtype=torch.uint8).permute(0, 3, 1, 2) / 255


def hard_case(topology, wsconv=False, pad=0):
    """A net in which many sums lie exactly on the threshold: running means are sums that occur, biases are zero.

    Gains have both signs or are zero; with zero gain, biases have both signs or are zero.
    """
    net = CNV(topology, 10, wsconv, pad=pad).eval()
    images = images_of(topology, 3)
    hits = []

    def set_norm(norm, inputs):
        x = inputs[0].transpose(0, 1).flatten(1)  # channels × values
        norm.running_mean.copy_(x[:, 0])
        norm.running_var.uniform_(0.5, 2).mul_(x.var())
        norm.weight.data.normal_()
        norm.weight.data[::5] = 0
        norm.bias.data.zero_()
        norm.bias.data[::10] = torch.randn(norm.bias[::10].shape)
        hits.append((x == norm.running_mean[:, None]).sum().item())

    norms = [module for module in net.modules() if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))]
    hooks = [norm.register_forward_pre_hook(set_norm) for norm in norms]
    with torch.no_grad():
        net(images)
    for hook in hooks:
        hook.remove()
    assert all(hits)
    net.linear_features[-1].running_mean.fill_(3.0)
    net.linear_features[-1].running_var.fill_(700.0)
    return net, images


def logits(net, images):
    with torch.no_grad():
        return net(images)


@pytest.mark.parametrize("int8", [True, False])
@pytest.mark.parametrize("wsconv,pad", [(False, 0), (True, 0), (False, -1)])
@pytest.mark.parametrize("name", NETS)
def test_logits_equal_brevitas(name, wsconv, pad, int8):
    net, images = hard_case(NETS[name], wsconv, pad)
    images = torch.cat([images, images_of(NETS[name], 3), torch.rand_like(images)])  # the last: no multiples of 1/255
    assert torch.equal(Folded(net, int8)(images), logits(net, images))
    last_layout = net.to(memory_format=torch.channels_last)
    batch = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(Folded(last_layout, int8)(batch), logits(last_layout, batch))


def test_rounding_at_the_threshold_is_the_batch_norms_own():
    """Brevitas does not compute the formula mean - bias·std/gain, so find_threshold must evaluate the norm itself."""
    norm = nn.BatchNorm1d(2000, eps=1e-4).eval()
    norm.running_mean.copy_(torch.randint(-50, 51, (2000,)))
    norm.running_var.uniform_(1, 900)
    norm.weight.data.normal_()
    norm.weight.data[:20] = 0
    norm.bias.data[:10] = -1.0
    numbers = torch.arange(-60.0, 61)
    sign = torch.where(norm.weight < 0, -1.0, 1.0)
    reached = torch.stack([norm(number * sign[None])[0] >= 0 for number in numbers])  # 121×2000
    assert torch.equal(reached, reached.cummax(0).values)  # they rise
    expected = numbers[0] + (~reached).sum(0)
    assert torch.equal(find_threshold(norm, 1, 60), expected)
    naive = (norm.running_mean * sign).ceil()
    assert (expected[20:] != naive[20:]).any()
    assert (expected[:10] == 61).all() and (expected[10:20] == -60).all()

    unit = 2.0**-7
    scaled = torch.stack([norm(number * unit * sign[None])[0] >= 0 for number in numbers])
    assert torch.equal(find_threshold(norm, unit, 60), numbers[0] + (~scaled).sum(0))


def test_results_do_not_depend_on_the_batch():
    net, _ = hard_case(SMALL)
    images = images_of(SMALL, folded.CHUNK + 7)
    whole = Folded(net)(images)
    assert torch.equal(whole, logits(net, images))
    assert torch.equal(whole, torch.cat([Folded(net)(part) for part in images.split(11)]))


@pytest.mark.parametrize("wsconv", [False, True])
def test_weights_are_taken_anew_under_a_fault(wsconv):
    net, images = hard_case(SMALL, wsconv)
    fast = Folded(net)
    clean = fast(images)
    for fault in (weight_noise(net, 0.7, 1), weight_noise(net, 0.7, 1, relative=True), weight_flips(net, 0.2, 1)):
        with fault:
            fast.take_weights()
            assert torch.equal(fast(images), logits(net, images))
            assert not torch.equal(fast(images), clean)
        fast.take_weights()
        assert torch.equal(fast(images), clean)


def test_float32_where_8_bit_arithmetic_is_wrong_or_missing(monkeypatch):
    net, images = hard_case(SMALL)
    expected = logits(net, images)

    def broken(self, x):
        raise RuntimeError("no such operator")

    for wrong in (broken, lambda self, x: x * 0):
        with monkeypatch.context() as patch:
            patch.setattr(folded._Int8Layer, "__call__", wrong)
            folded.int8_works.cache_clear()
            fast = Folded(net)
            assert not fast.int8 and torch.equal(fast(images), expected)
    folded.int8_works.cache_clear()


def test_a_net_in_training_is_left_in_evaluation_with_its_latent_weights():
    net = CNV(SMALL, 10, wsconv=True).train()
    before = [layer.weight.detach().clone() for layer in net.binary_layers()]
    folded.int8_works.cache_clear()
    batches = [(images_of(SMALL, 2), torch.tensor([0, 1]))]
    random = torch.get_rng_state()
    evaluate(Folded(net), batches)
    assert not net.training
    assert torch.equal(torch.get_rng_state(), random)  # else a resumed training would differ
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip(net.binary_layers(), before))
