"""Faults of cells of every memory: masks against their definition, nets against Brevitas with hooks and by hand."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from made import TINY, save_checkpoint, trained_net, write_cifar10
from test_folded import NETS, SMALL, hard_case, images_of, logits
from torch import nn

import sweep
import train_smaller
from CIFARDataset import CIFAR10
from common import UserError
from engine import faulty_net
from faults import (
    ALL_PLANES,
    NO_FAULT,
    Cells,
    Fault,
    break_cells,
    broken_map,
    fault_of_cells,
    first_faulty,
    misread_activations,
    misread_weights,
    planes_of,
)
from faults.cells import broken_cells, broken_in, misreads
from faults.thresholds import ThresholdMemory, bits_of
from models import CNV, TOPOLOGIES
from models.folded import Folded
from repairs import with_fault, with_repair
from report import read_rows

LEVELS = (0, 1e-4, 1e-3, 1 / 64, 0.016, 0.02, 0.1, 0.1001, 0.5, 0.99, 1)


def image_fault(kind="inverted", level=0.1, planes="7+6+5+4+3+2+1+0", persistent=False, **rest):
    cells = Cells("image", planes=planes_of(planes), persistent=persistent)
    return fault_of_cells(cells, kind, level, **rest)


@pytest.mark.parametrize("few", [1 << 13, 50])
def test_broken_cells_are_nested_binomial_and_in_random_places(few, monkeypatch):
    """With few = 50 the rare cells are drawn in two parts, one below u = 1/512."""
    monkeypatch.setattr("faults.cells.FEW", few)
    count, keys = 20_000, range(200)
    found = {level: [broken_cells(level, count, [7, key, 2]) for key in keys] for level in LEVELS}
    for masks in found.values():
        for mask in masks:
            assert mask.dtype == np.int64 and (np.diff(mask) > 0).all()
    for (_, less), (_, more) in itertools.pairwise(found.items()):
        assert all(set(a) <= set(b) for a, b in zip(less, more))
    assert [len(mask) for mask in found[0]] == [0] * 200 and [len(mask) for mask in found[1]] == [count] * 200
    for level in LEVELS[1:-1]:
        numbers = np.array([len(mask) for mask in found[level]])
        spread = np.sqrt(count * level * (1 - level))
        assert abs(numbers.mean() - count * level) < 4 * spread / np.sqrt(200)  # of a binomial number
        assert 0.75 < numbers.std(ddof=1) / spread < 1.25
        places = np.concatenate(found[level])
        share = np.histogram(places, 10, (0, count))[0] / len(places)
        assert np.abs(share - 0.1).max() < 4 * np.sqrt(0.09 / len(places))
    # between two levels it is as between 0 and their difference, also where the way of drawing changes
    between = np.array([len(b) - len(a) for a, b in zip(found[0.1], found[0.1001])])
    assert abs(between.mean() - 2) < 4 * np.sqrt(2 / 200)
    assert not np.array_equal(found[0.1][0], found[0.1][1])


def test_rows_and_columns_of_an_array_by_hand():
    """A memory of 10 cells in an array of 3×4: rows 0-3, 4-7, 8-9; columns 0, 4, 8 and so on."""
    for lines, expected in (
        ("row", {0: [0, 1, 2, 3], 1: [4, 5, 6, 7], 2: [8, 9]}),
        ("column", {0: [0, 4, 8], 1: [1, 5, 9], 2: [2, 6], 3: [3, 7]}),
    ):
        fault = fault_of_cells(Cells("activations", lines=lines, array=(3, 4)), "inverted", 0.4)
        seen = set()
        for key in range(60):
            broken = broken_cells(0.4, len(expected), [key]).tolist()
            cells = broken_in(fault, 0.4, 10, [key]).tolist()
            assert cells == sorted(itertools.chain.from_iterable(expected[line] for line in broken))
            seen.add(tuple(broken))
        assert len(seen) > 4
    with pytest.raises(UserError, match="an array of 3x4 cells does not hold the 13 bits"):
        broken_in(fault, 0.4, 13, [0])


def test_the_address_map_of_the_image_memory():
    """Array 512×64: a row is 8 values next to each other, a column is one bit of every eighth value."""
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    row, column = (
        break_cells(
            fault_of_cells(Cells("image", lines=lines, array=(512, 64)), "stuck_at_1", 0.01), images, seed=5
        ).flatten()
        for lines in ("row", "column")
    )
    whole = (row.view(-1, 8) == 255).all(1)
    assert 0 < whole.sum() < 20 and ((row == 255) | (row == 0)).all() and (row.view(-1, 8)[~whole] == 0).all()
    while not column.any():
        column = break_cells(
            fault_of_cells(Cells("image", lines="column", array=(512, 64)), "stuck_at_1", 0.05), images, seed=6
        ).flatten()
    words = column.view(-1, 8)
    assert (words == words[0]).all() and 0 < words[0].count_nonzero() < 8
    assert set(words[0].tolist()) <= {0, 1, 2, 4, 8, 16, 32, 64, 128}


@pytest.mark.parametrize("persistent", [False, True])
def test_images_against_bits_unpacked_in_numpy(persistent):
    """Stuck, inverted and asymmetric readings of the same broken cells, found as the cells that inverting changes."""
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    held = np.unpackbits(images.numpy()[..., None], axis=-1).astype(bool)

    def bits(kind, level, **rest):
        broken = break_cells(image_fault(kind, level, persistent=persistent, **rest), images, seed=3)
        return np.unpackbits(broken.numpy()[..., None], axis=-1).astype(bool)

    broken, few = (bits("inverted", level) ^ held for level in (0.2, 0.05))
    assert abs(broken.mean() - 0.2) < 0.03 and not (few & ~broken).any()
    assert persistent == all(np.array_equal(mask, broken[0]) for mask in broken)
    assert np.array_equal(bits("stuck_at_0", 0.2), held & ~broken)
    assert np.array_equal(bits("stuck_at_1", 0.2), held | broken)
    assert np.array_equal(bits("asymmetric", 1.0, p01=0.2, p10=0.05), held ^ np.where(held, few, broken))
    random = bits("random", 0.2)
    assert not ((random ^ held) & ~broken).any()
    assert abs((random ^ held)[broken].mean() - 0.5) < 4 * 0.5 / np.sqrt(broken.sum())
    less = bits("random", 0.05)  # a broken cell reads the same at every level
    assert np.array_equal(less[few], random[few])


def test_an_image_depends_on_its_number_alone():
    images = torch.randint(0, 256, (9, 3, 8, 8), dtype=torch.uint8)
    for persistent in (False, True):
        fault = image_fault("random", 0.3, persistent=persistent)
        whole = break_cells(fault, images, 1)
        assert torch.equal(break_cells(fault, images[[7, 2]], 1, numbers=[7, 2]), whole[[7, 2]])
        assert not torch.equal(break_cells(fault, images, 2), whole)
        assert torch.equal(break_cells(fault, images.to(memory_format=torch.channels_last), 1), whole)


def test_planes_break_alone_and_the_map_says_which():
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    whole = break_cells(image_fault("inverted", 1.0, "7+6"), images, 1)
    assert torch.equal(whole, images ^ 0b11000000)
    fault = image_fault("inverted", 1.0, "7+5@0.1", persistent=True)
    changed = break_cells(fault, images, 1) ^ images
    assert torch.equal(changed & 0b11011111, torch.full_like(images, 128))
    assert abs((changed & 32 > 0).float().mean() - 0.1) < 0.05
    assert torch.equal(broken_map(fault, images.shape[1:], 1), changed[0]) and torch.equal(changed[0], changed[1])


def test_mean_square_error_of_independent_planes():
    """E[Δ²] = Σ p_j·4^j for inverted bits of uniform values: the bits' errors have mean 0 and are independent."""
    images = torch.randint(0, 256, (200, 3, 32, 32), dtype=torch.uint8)
    shares = {7: 0.1, 6: 0.5, 4: 1.0, 1: 0.25}
    planes = "+".join(f"{bit}@{share}" for bit, share in shares.items())
    broken = break_cells(image_fault("inverted", 0.2, planes), images, 9)
    squared = ((broken.double() - images.double()) ** 2).mean().item()
    assert squared == pytest.approx(sum(0.2 * share * 4**bit for bit, share in shares.items()), rel=0.03)


def test_the_short_form_of_what_was_there_before():
    assert image_fault("random", 0.3, "6") == Fault("random", 6, level=0.3)
    assert fault_of_cells(Cells("weights"), "inverted", 0.01, 4) == Fault("flips", level=0.01, run=4)
    assert Fault("flips", level=0.1).memory == "weights" and Fault("flips", level=0.1).persistent
    assert Fault("random", 6, level=0.1).memory == "image" and not Fault("random", 6, level=0.1).persistent
    assert NO_FAULT.memory is NO_FAULT.persistent is None
    assert fault_of_cells(Cells("image"), "inverted", 0.1).cells.planes == ALL_PLANES
    assert image_fault("random", 0.3, "6", persistent=True).planes == "6"


def small_net():
    net, images = hard_case(SMALL)
    return net, torch.cat([images, images_of(SMALL, 4)])


def read_by_hooks(net, images, wrong):
    """Brevitas' logits with the sign of some stored values changed. wrong: {layer: bool N×H×W×C or N×C}."""
    places = [i for i, module in enumerate(net.conv_features) if hasattr(module, "weight_quant")]
    ends = [net.conv_features[i - 1] for i in [*places[1:], len(net.conv_features)]]
    ends += [net.linear_features[i - 1] for i in range(3, len(net.linear_features), 3)]
    hooks = []
    for layer, mask in wrong.items():
        mask = mask.permute(0, 3, 1, 2) if mask.dim() == 4 else mask

        def change(module, inputs, output, mask=mask):
            return torch.where(mask, -output, output)

        hooks.append(ends[layer].register_forward_hook(change))
    found = logits(net, images)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("int8", [True, False])
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_inverted_activations_against_brevitas_with_hooks(name, persistent, int8):
    net, images = hard_case(NETS[name])
    shapes = []
    for size, channels in map_shapes(NETS[name]):
        shapes.append((size, size, channels) if size else (channels,))
    sizes = [int(np.prod(shape)) for shape in shapes]
    fault = fault_of_cells(Cells("activations", persistent=persistent), "inverted", 0.02)
    masks = []
    for image in range(len(images)):
        mask = np.zeros(sum(sizes), bool)
        mask[misreads(fault, sum(sizes), 3, image)[0]] = True
        masks.append(mask)
    assert persistent == np.array_equal(masks[0], masks[1])
    parts = np.split(np.stack(masks), np.cumsum(sizes)[:-1], axis=1)
    wrong = {i: torch.from_numpy(part).view(-1, *shape) for i, (part, shape) in enumerate(zip(parts, shapes))}
    expected = read_by_hooks(net, images, wrong)
    folded = Folded(net, int8)
    with misread_activations(fault, net, folded, 3):
        assert torch.equal(folded(images), expected)
    assert torch.equal(folded(images), logits(net, images)) and not torch.equal(folded(images), expected)
    with misread_activations(fault, net, net, 3):
        assert torch.equal(logits(net, images), expected)
    assert torch.equal(folded(images), logits(net, images))


def map_shapes(topology):
    """(height, channels) of each stored map; height 0 after a fully connected layer."""
    size = topology.size
    for channels, pool in topology.conv:
        size = (size + 2 * topology.padding - 2) // (2 if pool else 1)
        yield size, channels
    for channels in topology.fc:
        yield 0, channels


@pytest.mark.parametrize("kind", ["random", "stuck_at_0", "stuck_at_1", "inverted", "asymmetric"])
def test_activations_do_not_depend_on_batches_order_or_the_fold(kind):
    net, images = small_net()
    rest = {"p01": 0.5, "p10": 0.9} if kind == "asymmetric" else {}
    folded = Folded(net)
    for persistent in (False, True):
        fault = fault_of_cells(Cells("activations", ("conv2", "fc1"), persistent=persistent), kind, 0.2, **rest)

        def run(tester, size, numbers=None, pick=slice(None), fault=fault):
            with faulty_net(fault, net, tester, 1, numbers):
                return torch.cat([tester(part) for part in images[pick].split(size)]).detach()

        whole = run(folded, 100)
        assert not torch.equal(whole, folded(images))
        assert torch.equal(whole, run(folded, 2)) and torch.equal(whole, run(net, 3))
        assert torch.equal(whole[1::2], run(folded, 2, itertools.count(1, 2), slice(1, None, 2)))


def test_a_buffer_inverted_is_the_next_layers_weights_negated():
    net, images = small_net()  # without padding
    folded = Folded(net)
    with misread_activations(fault_of_cells(Cells("activations", ("conv2",)), "inverted", 1.0), net, folded, 1):
        inverted = folded(images)
    layer = net.binary_layers()[2]
    layer.flips = torch.ones_like(layer.weight, dtype=torch.bool)
    expected = logits(net, images)
    layer.flips = None
    assert torch.equal(inverted, expected) and not torch.equal(inverted, logits(net, images))
    with misread_activations(fault_of_cells(Cells("activations", ("fc1",)), "inverted", 1.0), net, folded, 1):
        norm = net.linear_features[-1]
        opposite = -(logits(net, images) - norm(torch.zeros(1))) + norm(torch.zeros(1))
        assert torch.allclose(folded(images), opposite, atol=1e-5)


def test_layers_are_chosen_and_break_as_when_all_do():
    net, images = small_net()
    folded = Folded(net)
    several = Cells("activations", ("conv1", "fc1"))
    seen = {}
    for layers in (("conv1",), ("conv1", "fc1"), ()):
        fault = fault_of_cells(several._replace(layers=layers), "inverted", 0.3)
        with misread_activations(fault, net, folded, 1):
            stored, change = [], folded.change

            def note(layer, maps, stored=stored, change=change):
                stored.append((maps.clone(), change(layer, maps)))
                return maps  # so that the layers behind see the intact maps

            folded.change = note
            folded(images)
        seen[layers] = [before != after for before, after in stored]
    assert [mask.any().item() for mask in seen["conv1",]] == [True, False, False, False]
    assert [mask.any().item() for mask in seen["conv1", "fc1"]] == [True, False, False, True]
    assert all(mask.any() for mask in seen[()])
    for layers in (("conv1",), ("conv1", "fc1")):
        for mine, whole in zip(seen[layers], seen[()]):
            assert not mine.any() or torch.equal(mine, whole)


@pytest.mark.parametrize("memory", ["weights", "activations", "thresholds"])
def test_unknown_layers_get_one_line(memory):
    net, _ = small_net()
    last = "fc2" if memory != "weights" else "fc9"  # the last layer stores neither maps nor thresholds
    fault = fault_of_cells(Cells(memory, (last,)), "stuck_at_0", 0.1)
    with pytest.raises(
        UserError, match=f"no {memory} of layer {last}: its layers are conv1, conv2, conv3, fc1"
    ) as error:
        with faulty_net(fault, net, Folded(net), 1):
            pass
    assert "\n" not in str(error.value)


def test_weights_stuck_at_1_flip_those_that_are_minus_1():
    net, images = small_net()
    held = torch.cat([layer.quant_weight().value.flatten() for layer in net.binary_layers()]) > 0
    shares = {}
    for kind in ("stuck_at_0", "stuck_at_1", "random"):
        with misread_weights(fault_of_cells(Cells("weights"), kind, 0.1), net, 1) as shares[kind]:
            read = torch.cat([layer.quant_weight().value.flatten() for layer in net.binary_layers()]) > 0
        wrong = read ^ held
        assert shares[kind] == wrong.double().mean().item()
        if kind != "random":
            assert not (wrong & (read == (kind == "stuck_at_0"))).any()
    minus, spread = 1 - held.double().mean().item(), 4 * np.sqrt(0.1 / len(held))
    assert abs(shares["stuck_at_1"] - 0.1 * minus) < spread
    assert abs(shares["stuck_at_0"] - 0.1 * (1 - minus)) < spread
    assert abs(shares["random"] - 0.05) < spread

    folded = Folded(net)
    fault = fault_of_cells(Cells("weights", ("conv2",)), "inverted", 0.1)
    with faulty_net(fault, net, folded, 1) as share:
        assert [layer.flips.any().item() for layer in net.binary_layers()] == [False, True, False, False, False]
        assert share == sum(layer.flips.sum().item() for layer in net.binary_layers()) / len(held)
        assert torch.equal(folded(images), logits(net, images))
        assert not torch.equal(folded(images), Folded(hard_case(SMALL)[0])(images))
    assert all(layer.flips is None for layer in net.binary_layers())


def check_in_every_form(fault, net, images, expected):
    """Images 4, 0 and 9 under a fault have the expected logits, folded or not, and afterwards those of before."""
    for tester in (Folded(net), Folded(net, int8=False), net):
        before = logits(tester, images)
        with faulty_net(fault, net, tester, 1, iter((4, 0, 9))):
            assert torch.equal(torch.cat([logits(tester, part) for part in images.split(2)]), expected)
        assert torch.equal(logits(tester, images), before) and not torch.equal(before, expected)


@pytest.mark.parametrize(
    "name,kind,wsconv,pad",
    [
        ("cifar_smaller", "inverted", False, 0),
        ("tiny_imagenet_smaller", "random", False, -1),
        ("small", "stuck_at_1", True, 0),
        ("small", "random", False, 0),
    ],
)
def test_transient_weights_against_a_net_for_each_image(name, kind, wsconv, pad):
    """Latent weights that are set by hand for each image, from the addresses of the cells that misread."""
    net, images = hard_case(NETS[name], wsconv, pad)
    fault = fault_of_cells(Cells("weights", persistent=False), kind, 0.05)
    signs = torch.cat([layer.quant_weight().value.flatten() for layer in net.binary_layers()]).detach()
    plain = CNV(NETS[name], 10, pad=pad).eval()
    plain.load_state_dict(net.state_dict())
    expected, reads = [], []
    for number, image in zip((4, 0, 9), images):
        up, down = misreads(fault, len(signs), 1, number)
        read = signs.clone()
        read[up[signs[up] < 0]] = 1
        read[down[signs[down] > 0]] = -1
        reads.append(read)
        parts = read.split([layer.weight.numel() for layer in plain.binary_layers()])
        for layer, part in zip(plain.binary_layers(), parts):
            layer.weight.data.copy_(part.view(layer.weight.shape))
        expected.append(logits(plain, image[None]))
    assert not torch.equal(reads[0], reads[1])
    check_in_every_form(fault, net, images, torch.cat(expected))


def test_transient_weights_of_some_layers_and_many_images():
    net, _ = small_net()
    images = images_of(SMALL, 61)  # several chunks
    fault = fault_of_cells(Cells("weights", ("conv2", "fc2"), persistent=False), "inverted", 0.1)
    assert fault.memory == "weights" and not fault.persistent and first_faulty(fault, net) == 1
    whole = []
    for tester in (Folded(net), net):
        with faulty_net(fault, net, tester, 5) as flipped:
            whole.append(logits(tester, images))
        assert flipped is None
    assert torch.equal(*whole)
    every = fault_of_cells(Cells("weights", persistent=False), "inverted", 0.1)
    assert every.cells and every.kind == "inverted"  # not the short form, whose cells are persistent


@pytest.mark.parametrize("bound,bits", [(1, 3), (2, 3), (3, 4), (6, 4), (7, 5), (27 * 128, 13), (576, 11), (2304, 13)])
def test_bits_of_a_threshold(bound, bits):
    assert bits_of(bound) == bits
    assert -(2 ** (bits - 1)) <= -bound and bound + 1 <= 2 ** (bits - 1) - 1
    assert bound + 1 > 2 ** (bits - 2) - 1  # one bit less does not hold it


def test_numbers_in_twos_complement_by_hand():
    """5 = 0101, -3 = 1101, 0 = 0000, -8 = 1000 in four bits."""
    numbers = torch.tensor([5.0, -3.0, 0.0, -8.0])

    def read(kind):
        fault = fault_of_cells(Cells("thresholds"), kind, 1.0)
        return ThresholdMemory([numbers], [4], ["conv1"]).read(fault, 0).tolist()

    assert read("inverted") == [-6, 2, -1, 7]
    assert read("stuck_at_0") == [0, 0, 0, 0] and read("stuck_at_1") == [-1, -1, -1, -1]
    fault = fault_of_cells(Cells("thresholds"), "inverted", 0.3)
    once = ThresholdMemory([numbers], [4], ["conv1"]).read(fault, 0)
    assert once.tolist() != numbers.tolist()
    assert ThresholdMemory([once], [4], ["conv1"]).read(fault, 0).tolist() == numbers.tolist()  # twice is nothing


def moved_sums(net, images, moved):
    """Logits of Brevitas' net whose batch norms see `moved` (of each hidden layer) less, in units of the sum."""
    norms = [module for module in net.modules() if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))]
    hooks = []
    for norm, difference, inputs in zip(norms, moved, [128, *[1] * len(norms)]):
        shift = difference * torch.where(norm.weight < 0, -1.0, 1.0) / inputs

        def move(module, inputs, shift=shift):
            return (inputs[0] - shift.view(-1, *[1] * (inputs[0].dim() - 2)),)

        hooks.append(norm.register_forward_pre_hook(move))
    found = logits(net, images)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("persistent", [True, False])
def test_thresholds_against_brevitas_with_moved_sums(name, persistent):
    """A threshold that reads d more is as a batch norm that sees d less."""
    net, images = hard_case(NETS[name])
    for norm in net.norms()[:-1]:  # with gain 0 the sign is that of the bias, whatever the sum: no threshold moves it
        norm.weight.data[norm.weight == 0] = 0.5
    fault = fault_of_cells(Cells("thresholds", persistent=persistent), "inverted", 0.02)
    intact = [layer.threshold.clone() for layer in Folded(net, int8=False).layers[:-1]]
    bits = [bits_of(layer.bound) for layer in Folded(net, int8=False).layers[:-1]]
    memory, expected = ThresholdMemory(intact, bits, net.layer_names()[:-1]), []
    for number, image in zip((4, 0, 9), images):
        read = memory.read(fault, 1, None if persistent else number)
        moved = (read - torch.cat(intact)).split([len(threshold) for threshold in intact])
        assert any(difference.any() for difference in moved)
        expected.append(moved_sums(net, image[None], moved))
    check_in_every_form(fault, net, images, torch.cat(expected))


@pytest.mark.parametrize(
    "cells,rest,complaint",
    [
        (Cells("cache"), ("inverted", 0.1), "memory 'cache' is unknown"),
        (Cells("weights"), ("wrong", 0.1), "reading 'wrong' is unknown"),
        (Cells("weights"), ("inverted", 1.5), "rate 1.5 is no probability"),
        (Cells("weights", planes=((7, 1.0),)), ("inverted", 0.1), "planes are of the image memory"),
        (Cells("image", ("conv1",)), ("inverted", 0.1), "has no layers"),
        (Cells("image", lines="row"), ("inverted", 0.1), "name its size"),
        (Cells("image", planes=((9, 1.0),)), ("inverted", 0.1), "planes '9': each bit once, 0 to 7"),
        (Cells("image"), ("asymmetric", 0.1), "two probabilities"),
        (Cells("image"), ("asymmetric", 0.1, 0, 0.1, 2.0), "two probabilities"),
        (Cells("image"), ("inverted", 0.1, 0, 0.1, 0.2), "for the asymmetric reading"),
    ],
)
def test_impossible_faults_of_cells(cells, rest, complaint):
    with pytest.raises(UserError, match=complaint) as error:
        fault_of_cells(cells, *rest)
    assert "\n" not in str(error.value)


def test_items_of_the_data_set_are_the_images_of_a_sweep(tmp_path):
    write_cifar10(tmp_path)
    clean = torch.from_numpy(CIFAR10(".", train=False).data).permute(0, 3, 1, 2)
    fault = image_fault("random", 0.1, persistent=True)
    part_of_a_plane = image_fault("random", 0.1, planes="6")
    assert part_of_a_plane.cells is None  # the short form
    for each in (fault, with_repair(fault, "midpoint", known=True), part_of_a_plane):
        dataset = CIFAR10(".", train=False, fault=each, seed=4)
        found = torch.stack([dataset[i][0] for i in range(len(dataset))])
        assert torch.equal((found * 255).round().byte(), with_fault(clean, each, 4))
    with pytest.raises(UserError, match="has no weights memory"):
        CIFAR10(".", train=False, fault=fault_of_cells(Cells("weights"), "random", 0.1))
    with pytest.raises(UserError, match="a data set has one fault"):
        CIFAR10(".", mem_fault="median", train=False, fault=fault)


@pytest.mark.parametrize("memory", ["image", "weights", "activations", "thresholds"])
def test_one_evaluation_of_train_smaller_is_the_cell_of_the_sweep(tmp_path, monkeypatch, run_script, memory):
    monkeypatch.setitem(TOPOLOGIES, "cifar_smaller", TINY)
    write_cifar10(tmp_path, rows=20)
    save_checkpoint(trained_net("cifar10"), "cifar10_smaller", "cifar10", False)
    words = ["--data", ".", "--memory", memory, "--ber", "0.2", "--reading", "stuck_at_1"]
    status, out, err = run_script(train_smaller, *words)
    assert status == 0, err
    assert run_script(sweep, *words, "--cells", "persistent", "--runs", "1")[0] == 0
    rows = read_rows(Path("results/cifar10_smaller_11111/sweep.csv"))[0]
    assert out.splitlines()[-1] == f"Avg. acc.: {rows[1]['top1']:.3f}%" and rows[1]["memory"] == memory
    if memory == "weights":
        assert run_script(train_smaller, *words, "--transient", "--result", "found.json")[0] == 0
        assert json.loads(Path("found.json").read_text())["signs_flipped"] is None  # another share for each image
        for other in (["--noise", "0.1"], ["--faulty_bit", "6"]):
            assert f"leave {other[0]} out" in run_script(train_smaller, *words, *other)[2]
        assert "median mends images, not weights" in run_script(train_smaller, *words, "--mem_fault", "median")[2]
        assert "--ber is for --memory" in run_script(train_smaller, "--data", ".", "--ber", "0.1")[2]
        assert "no weights of layer fc7" in run_script(train_smaller, *words, "--layers", "fc7")[2]


@pytest.mark.parametrize("text", ["", "8", "7+7", "7+", "6@2", "6@0", "a", "7@b"])
def test_planes_that_are_none(text):
    with pytest.raises(UserError, match="planes"):
        planes_of(text)
    assert planes_of("5+7@0.5") == ((7, 0.5), (5, 1.0))
