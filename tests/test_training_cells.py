"""Training on faults of cells: what is read against evaluations and NumPy, gradients against hooks and faulty nets."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from made import write_cifar10
from test_models import needs_compiler
from test_train import same, timeless
from test_training_faults import CPU, SMALL, gradients, latents, small_net

import train_smaller
from common import UserError
from datasets import read_images
from engine import TrainBatches, bf16_is_fast, checkpoints, compiled
from faults import (
    NO_FAULT,
    READINGS,
    Cells,
    TrainingFaults,
    TrainingMaps,
    break_cells,
    broken_map,
    fault_of_cells,
    faulty_weights,
    misread_activations,
    misread_weights,
    planes_of,
)
from faults.cells import broken_cells, misreads
from models import CNV, TOPOLOGIES, Topology
from repairs import ImpossibleRepair
from report.trainings import purpose_of

CHECKPOINT = Path("checkpoint/ckpt.t7.cifar10_smaller_11111.pth")
TRAIN = ["--train", "--data", ".", "--batch-size", "16", "--no-compile", "--epochs", "2"]
CERTAIN = [kind for kind in READINGS if kind != "random"]  # the values that are read follow from those that are held
ASYMMETRIC = {"p01": 0.5, "p10": 0.2}


def fault_in(memory, kind="inverted", level=0.1, layers=(), planes="", persistent=True):
    cells = Cells(memory, layers, planes_of(planes) if planes else (), persistent=persistent)
    return fault_of_cells(cells, kind, level, **ASYMMETRIC if kind == "asymmetric" else {})


def expected_rates(kind, level):
    """The rates at which a held 0 and a held 1 are read wrong."""
    return {
        "inverted": (level, level),
        "random": (level / 2, level / 2),
        "stuck_at_0": (0, level),
        "stuck_at_1": (level, 0),
        "asymmetric": (0.5 * level, 0.2 * level),
    }[kind]


def assert_rate(found, rate):
    """found: bool array. Its mean is that of independent draws with probability `rate`, within 5 sigma."""
    assert abs(found.mean() - rate) <= 5 * np.sqrt(rate * (1 - rate) / found.size)


def assert_rates(held, wrong, kind, level):
    for value, rate in enumerate(expected_rates(kind, level)):
        assert_rate(wrong[held == value], rate)


def first_batch(fault, epoch=0, number=100, **rest):
    """(faulty, clean) images of the first batch of a pass over random images: uint8 N×3×8×8, NumPy."""
    images = torch.randint(0, 256, (number, 3, 8, 8), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    batches = TrainBatches(images, torch.arange(number), number, 1, [(fault, None)], 7, CPU, **rest)
    faulty, _, clean = next(batches.epoch(epoch))
    return (255 * faulty).round().to(torch.uint8).numpy(), clean.numpy()


@pytest.mark.parametrize("planes", ["", "7+5@0.3+0"])
@pytest.mark.parametrize("kind", CERTAIN)
def test_images_have_the_persistent_cells_of_an_evaluation(kind, planes):
    fault = fault_in("image", kind, 0.3, planes=planes)
    for epoch in (0, 5):
        faulty, clean = first_batch(fault, epoch)
        assert np.array_equal(faulty, break_cells(fault, torch.from_numpy(clean), 7).numpy())
        assert not np.array_equal(faulty, break_cells(fault, torch.from_numpy(clean), 8).numpy())


def test_persistent_random_cells_of_images_read_anew():
    fault = fault_in("image", "random", 0.3)
    broken = np.unpackbits(broken_map(fault, (3, 8, 8), 7).numpy())
    wrong = []
    for epoch in (0, 1):
        faulty, clean = first_batch(fault, epoch)
        wrong.append(np.unpackbits((faulty ^ clean).reshape(len(clean), -1), axis=1))
        assert not wrong[-1][:, broken == 0].any()
        assert_rate(wrong[-1][:, broken == 1], 0.5)
    assert_rate((wrong[0] == wrong[1])[:, broken == 1], 0.5)


@pytest.mark.parametrize("kind", READINGS)
def test_rates_of_transient_cells_of_images(kind):
    shares = {7: 1.0, 4: 0.5, 1: 0.1}
    fault = fault_in("image", kind, 0.2, planes="7+4@0.5+1@0.1", persistent=False)
    faulty, clean = first_batch(fault)
    wrong = faulty ^ clean
    for bit in range(8):
        here = wrong >> bit & 1 == 1
        if bit in shares:
            assert_rates(clean >> bit & 1, here, kind, 0.2 * shares[bit])
        else:
            assert not here.any()
    again, _ = first_batch(fault)
    other, before = first_batch(fault, 1)
    assert np.array_equal(again, faulty) and not np.array_equal(other ^ before, wrong)
    if kind == "inverted":  # images and values break independently
        bits = (wrong >> 7).reshape(len(wrong), -1)
        assert_rate(bits[1:] & bits[:-1], 0.04)
        assert_rate(bits[:, 1:] & bits[:, :-1], 0.04)


@pytest.mark.parametrize("kind", ["random", "stuck_at_0", "stuck_at_1"])
def test_rates_of_one_plane_in_the_short_form(kind):
    fault = fault_in("image", kind, 0.2, planes="6@0.5", persistent=False)
    assert fault.cells is None
    faulty, clean = first_batch(fault)
    assert not ((faulty ^ clean) & 0b10111111).any()
    assert_rates(clean >> 6 & 1, (faulty ^ clean) >> 6 == 1, kind, 0.1)


@pytest.mark.parametrize("persistent", [False, True])
def test_two_processes_share_the_images_of_one(persistent):
    fault = fault_in("image", "random", 0.3, persistent=persistent)
    whole = first_batch(fault)
    for rank in (0, 1):
        mine = first_batch(fault, rank=rank, world=2)
        assert all(np.array_equal(part, images[rank::2]) for part, images in zip(mine, whole))


def signs(net):
    return [layer.quant_weight().value.detach().clone() for layer in net.binary_layers()]


@pytest.mark.parametrize("wsconv", [False, True])
@pytest.mark.parametrize("layers", [(), ("conv2", "fc1")])
@pytest.mark.parametrize("kind", READINGS)
def test_weights_have_the_persistent_cells_of_an_evaluation(kind, layers, wsconv):
    fault = fault_in("weights", kind, 0.1, layers)
    net = small_net(wsconv)
    faults = TrainingFaults(net, 0.0, 0.0, 5, fault)
    for step in (0, 1):  # cells that are stuck read the same when the signs have changed
        before = latents(net)
        with faults.at(step):
            found = signs(net)
        assert all(map(torch.equal, latents(net), before))
        with (misread_weights if fault.cells else faulty_weights)(fault, net, 5):
            assert all(map(torch.equal, found, signs(net)))
        assert not torch.equal(found[1], signs(net)[1])
        assert torch.equal(found[0], signs(net)[0]) == bool(layers)
        for layer in net.binary_layers():
            layer.weight.data.add_(0.2 * torch.randn(layer.weight.shape))


@pytest.mark.parametrize("softness", [0.0, 0.7])
@pytest.mark.parametrize("persistent", [False, True])
def test_gradients_are_those_at_the_misread_weights(persistent, softness):
    images, labels = torch.rand(32, 3, 8, 8), torch.randint(0, 10, (32,))
    net, other = small_net(), small_net()
    for each in (net, other):
        each.soften(0.0, softness)
    with TrainingFaults(net, 0.0, 0.0, 5, fault_in("weights", "stuck_at_1", 0.3, persistent=persistent)).at(3):
        inside = latents(net)
        found = gradients(net, images, labels)
    for layer, weight, before in zip(other.binary_layers(), inside, latents(net)):
        assert torch.equal(weight.abs(), before.abs()) and (weight >= before).all() and not torch.equal(weight, before)
        layer.weight.data.copy_(weight)
    assert all(map(torch.equal, found, gradients(other, images, labels)))


@pytest.mark.parametrize("kind", READINGS)
def test_rates_of_transient_cells_of_weights(kind):
    net = small_net()
    held = [(weight >= 0).numpy() for weight in latents(net)]

    def wrong(step, seed=5, layers=("conv2", "fc2")):
        fault = fault_in("weights", kind, 0.2, layers, persistent=False)
        with TrainingFaults(net, 0.0, 0.0, seed, fault).at(step):
            return [(now > 0).numpy() != was for now, was in zip(signs(net), held)]

    found = [wrong(step) for step in range(20)]
    for layer in (1, 3):
        everywhere = np.stack([masks[layer] for masks in found])
        assert_rates(np.stack([held[layer]] * 20), everywhere, kind, 0.2)
        assert not np.array_equal(everywhere[0], everywhere[1])
        assert np.array_equal(wrong(1)[layer], everywhere[1])
        assert not np.array_equal(wrong(1, seed=6)[layer], everywhere[1])
    assert not any(mask.any() for masks in found for mask in (masks[0], masks[2]))
    assert all(mask.any() for mask in wrong(0, layers=()))


def masks_by_hand(fault, seed):
    """[(up, down)] of the stored maps of small_net, bool 1×C×H×W or 1×C, from the addresses of the memory."""
    shapes = [(8, 8, 16), (4, 4, 24), (40,)]
    total = sum(int(np.prod(shape)) for shape in shapes)
    masks = []
    for cells in misreads(fault, total, seed):
        mask, start = np.zeros(total, bool), 0
        mask[cells] = True
        parts = []
        for shape in shapes:
            part = torch.from_numpy(mask[start : start + int(np.prod(shape))]).view(1, *shape)
            parts.append(part.permute(0, 3, 1, 2) if len(shape) == 3 else part)
            start += int(np.prod(shape))
        masks.append(parts)
    return list(zip(*masks))


def gradients_with_hooks(net, masks, images, labels):
    """gradients_in the net where each layer but the first reads what the masks (up, down) make of its inputs."""
    hooks = []
    for layer, (up, down) in zip(net.binary_layers()[1:], masks):

        def read(layer, inputs, up=up, down=down):
            (x,) = inputs
            up, down = (mask.expand(len(x), *mask.shape[1:]).reshape(x.shape) for mask in (up, down))
            x = torch.where(up & down, -x, x)
            return torch.where(up & ~down, 1.0, torch.where(down & ~up, -1.0, x))

        hooks.append(layer.register_forward_pre_hook(read))
    found = gradients_in(net, images, labels)
    for hook in hooks:
        hook.remove()
    return found


def gradients_in(net, images, labels):
    """[logits, gradient of each parameter]"""
    net.zero_grad()
    logits = net(images)
    F.cross_entropy(logits, labels).backward()
    return [logits.detach(), *(parameter.grad.clone() for parameter in net.parameters())]


def assert_same(found, expected):
    """Equal logits, and gradients that are equal but for rounding."""
    assert torch.equal(found[0], expected[0])
    for mine, its in zip(found[1:], expected[1:]):
        assert torch.allclose(mine, its, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("kind", CERTAIN)
def test_activations_are_those_of_hooks_with_the_cells_of_an_evaluation(kind, layout):
    images, labels = torch.rand(20, 3, 8, 8).contiguous(memory_format=layout), torch.randint(0, 10, (20,))
    fault = fault_in("activations", kind, 0.1)
    net = small_net().to(memory_format=layout)
    with misread_activations(fault, net, net, 5), torch.no_grad():
        evaluated = net(images)
    expected = gradients_with_hooks(net, masks_by_hand(fault, 5), images, labels)
    intact = gradients_in(net, images, labels)
    TrainingMaps(fault, net, 32, 5).at(0)
    found = gradients_in(net, images, labels)
    assert_same(found, expected)
    assert torch.equal(found[0], evaluated)
    assert not torch.equal(found[0], intact[0]) and not torch.allclose(found[1], intact[1], rtol=0.01)
    net.eval()
    faulty = net(images)
    net.misreads = None
    assert torch.equal(faulty, net(images))  # evaluation does not heed it


@pytest.mark.parametrize("kind", READINGS)
def test_transient_activations_are_those_of_hooks(kind):
    """Softened maps, a smaller batch than the tensors have rows, and chosen layers."""
    images, labels = torch.rand(20, 3, 8, 8), torch.randint(0, 10, (20,))
    net = small_net()
    net.soften(0.4, 0.3)
    maps = TrainingMaps(fault_in("activations", kind, 0.3, ("conv2", "fc1"), persistent=False), net, 32, 5)
    intact = gradients_in(net, images, labels)
    for step in (0, 1):
        maps.at(step)
        masks = [(torch.zeros(1, 16, 8, 8, dtype=torch.bool),) * 2]
        assert net.misreads[0] is None
        for factor, summand in net.misreads[1:]:
            masks.append(((factor < 0) | (summand > 0), (factor < 0) | (summand < 0)))
        masks = [tuple(mask[:20] for mask in pair) for pair in masks]
        found = gradients_in(net, images, labels)
        net.misreads, drawn = None, net.misreads
        assert_same(found, gradients_with_hooks(net, masks, images, labels))
        net.misreads = drawn
        assert not torch.equal(found[0], intact[0])
        intact = found  # the next step has other faults


def wrong_reads(net, layer, held):
    """Where values of a layer's maps that all hold -1 (held 0) or +1 (held 1) are read wrong: bool, NumPy."""
    factor, summand = net.misreads[layer]
    value = 2 * held - 1
    return (factor * value + summand).numpy() != value


@pytest.mark.parametrize("kind", READINGS)
def test_rates_of_transient_activations(kind):
    net = small_net()
    fault = fault_in("activations", kind, 0.2, persistent=False)
    maps = TrainingMaps(fault, net, 34, 5)
    for layer, held in itertools.product(range(3), (0, 1)):
        maps.at(0)
        found = wrong_reads(net, layer, held)
        assert_rate(found, expected_rates(kind, 0.2)[held])
        if found.any():
            assert_rate(found[1:] & found[:-1], expected_rates(kind, 0.2)[held] ** 2)
            maps.at(1)
            assert not np.array_equal(wrong_reads(net, layer, held), found)
            TrainingMaps(fault, net, 34, 5).at(0)
            assert np.array_equal(wrong_reads(net, layer, held), found)
            TrainingMaps(fault, net, 34, 6).at(0)
            assert not np.array_equal(wrong_reads(net, layer, held), found)
            maps = TrainingMaps(fault, net, 34, 5)


def test_persistent_random_activations_read_anew():
    net = small_net()
    fault = fault_in("activations", "random", 0.3)
    maps = TrainingMaps(fault, net, 34, 5)
    places = masks_by_hand(fault._replace(kind="inverted"), 5)
    for layer, (broken, _) in enumerate(places):
        drawn = []
        for step in (0, 1):
            maps.at(step)
            drawn.append(wrong_reads(net, layer, 1))
            assert not (drawn[-1] & ~broken.numpy()).any()
            assert np.array_equal(drawn[-1] ^ wrong_reads(net, layer, 0), np.broadcast_to(broken, drawn[-1].shape))
            assert_rate(drawn[-1][:, broken[0].numpy()], 0.5)
        assert_rate((drawn[0] == drawn[1])[:, broken[0].numpy()], 0.5)


@pytest.mark.parametrize("persistent", [False, True])
def test_two_processes_share_the_maps_of_one(persistent):
    fault = fault_in("activations", "random", 0.3, persistent=persistent)
    whole, part = small_net(), small_net()
    TrainingMaps(fault, whole, 20, 5).at(2)
    for rank in (0, 1):
        TrainingMaps(fault, part, 10, 5, rank, 2).at(2)
        for pair, its in zip(whole.misreads, part.misreads):
            assert all(torch.equal(each[rank::2], mine) for each, mine in zip(pair, its))


def alike(one, other):
    """The cosine between two tensors."""
    return F.cosine_similarity(one.float().flatten(), other.float().flatten(), 0).item()


@needs_compiler
@pytest.mark.parametrize("size", [8, 9])  # 9: the pool is not fused
def test_a_compiled_step_reads_the_same_and_is_compiled_once(size):
    bf16 = size == 8 and bf16_is_fast(CPU)
    images, labels = torch.rand(16, 3, size, size), torch.randint(0, 10, (16,))
    images = images.contiguous(memory_format=torch.channels_last)
    net = CNV(SMALL._replace(size=size), 10, init=0.3).to(memory_format=torch.channels_last).train()
    net.soften(0.5, 0.0)
    maps = TrainingMaps(fault_in("activations", "random", 0.3, persistent=False), net, 18, 5)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=bf16)

    def complain(line):
        raise AssertionError(line)

    fast = compiled(net, 16, size, CPU, autocast, torch.channels_last, complain)
    least = 0.95 if bf16 else 0.9999  # bfloat16 rounds sums, so some signs differ
    logits = []
    for step in (0, 1):
        maps.at(step)
        found = []
        with torch._dynamo.config.patch(error_on_recompile=step > 0):
            for model in (fast, net):
                with autocast:
                    found.append(gradients_in(model, images, labels))
        logits.append(found[0][0])
        assert all(alike(mine, its) > least for mine, its in list(zip(*found))[:-1])  # the last gradient is 0
    assert alike(*logits) < 0.9


@pytest.mark.parametrize("memory", ["image", "weights"])
def test_whole_rows_break_when_persistent(memory):
    cells = Cells(memory, lines="row", array=(512, 64))
    transient = fault_of_cells(cells._replace(persistent=False), "inverted", 0.1)
    with pytest.raises(UserError, match="rows and columns must be persistent"):
        if memory == "image":
            first_batch(transient)
        else:
            TrainingFaults(small_net(), 0.0, 0.0, 5, transient)


@pytest.fixture
def succeed(tmp_path, monkeypatch, succeed):
    """The fixture of all tests, with a small net and few images."""
    monkeypatch.setitem(TOPOLOGIES, "cifar_smaller", Topology(size=32, conv=((8, False), (16, True)), fc=(24,)))
    write_cifar10(tmp_path, rows=20)
    return succeed


@pytest.fixture
def interrupt(succeed, run_script, monkeypatch):
    """Trains until Ctrl-C after the first epoch."""
    say = train_smaller.Processes.print

    def stop(self, line):
        say(self, line)
        if line.startswith("epoch 1"):
            raise KeyboardInterrupt

    def call(*words):
        with monkeypatch.context() as patch:
            patch.setattr(train_smaller.Processes, "print", stop)
            assert "holds epoch 1, --resume goes on" in run_script(train_smaller, *words)[2]

    return call


def words_of(memory, *more):
    return ["--memory", memory, "--ber", "0.1", "--reading", "random", *more]


@pytest.mark.parametrize("transient", [[], ["--transient"]])
@pytest.mark.parametrize("memory", ["image", "weights", "activations"])
def test_interrupted_and_resumed_equals_uninterrupted(succeed, interrupt, run_script, memory, transient):
    options = [*TRAIN, *words_of(memory, *transient)]
    succeed(*options)
    whole = CHECKPOINT.rename("whole.pth")
    succeed(*TRAIN)
    assert not same(timeless(CHECKPOINT)["net"], timeless(whole)["net"])
    interrupt(*options)
    assert "was trained with ber 0.1, not 0.2" in run_script(train_smaller, *TRAIN, "--resume", "--ber", "0.2")[2]
    lines = succeed(*TRAIN, "--resume")
    assert [line.split("  ")[0] for line in lines if line.startswith("epoch")] == ["epoch 2/2"]
    assert same(timeless(CHECKPOINT), timeless(whole))


@pytest.mark.parametrize("memory", ["image", "weights", "activations"])
def test_what_is_tested_after_an_epoch(succeed, memory):
    """Images have the fault, as in an evaluation with the same options; weights and maps are intact."""
    for transient in ([], ["--transient"]):
        words = words_of(memory, *transient)
        succeed(*TRAIN, *words)
        lines = succeed("--data", ".", *(words if memory == "image" else []))
        assert lines[-1] == f"Avg. acc.: {torch.load(CHECKPOINT)['acc']:.3f}%"


def negate(module, inputs, output):
    return -output


@pytest.mark.parametrize(
    "words",
    [["image", "--planes", "7"], ["weights", "--layers", "fc1"], ["activations", "--layers", "fc1"]],
)
def test_the_loss_of_the_first_step_by_hand(succeed, words):
    """One batch, all cells inverted: pixels with another MSB, negated weights, or negated maps."""
    succeed(*TRAIN, "--epochs", "1", "--batch-size", "200", "--no-bf16", "--memory", *words, "--ber", "1")
    torch.manual_seed(11111)
    net = CNV(TOPOLOGIES["cifar_smaller"], 10, init=0.05).train()
    images, labels = read_images("cifar10", ".", train=True)
    batches = TrainBatches(images, labels, 200, 4, [(NO_FAULT, None)], 11111, CPU)
    images, labels, _ = next(batches.epoch(0))
    intact = F.cross_entropy(net(images), labels).item()
    if words[0] == "image":
        images = ((255 * images).round().to(torch.uint8) ^ 128) / 255
    elif words[0] == "weights":
        net.linear_features[0].register_forward_hook(negate)
    else:
        net.linear_features[2].register_forward_hook(negate)
    expected = F.cross_entropy(net(images), labels).item()
    assert torch.load(CHECKPOINT)["log"][0]["loss"] == pytest.approx(expected, rel=1e-4)
    assert expected != pytest.approx(intact, rel=1e-3)


def test_an_older_checkpoint_resumes_as_before(succeed, interrupt):
    succeed(*TRAIN)
    whole = timeless(CHECKPOINT.rename("whole.pth"))
    interrupt(*TRAIN)
    state = torch.load(CHECKPOINT)
    for name in ("memory", *train_smaller.CELL_OPTIONS):
        del state["options"][name]
    checkpoints.save(CHECKPOINT, state)
    assert succeed(*TRAIN, "--resume")[-1].startswith("epoch 2/2")
    resumed = timeless(CHECKPOINT)
    assert resumed["options"].pop("memory") == whole["options"].pop("memory") == ""
    del resumed["options"], whole["options"]
    assert same(resumed, whole)


@pytest.mark.parametrize(
    "words,complaint",
    [
        ("--memory thresholds", "--memory thresholds is for an evaluation: thresholds come into being after training"),
        ("--memory weights --mem_fault faulty", "--memory is a fault of its own: leave --mem_fault faulty out"),
        ("--memory weights --mem_fault median", "median mends images, not weights"),
        ("--memory image --mem_fault colors", "colors mends one broken plane: several bits are mended by"),
        ("--memory image --mem_fault repaired_n", "repaired_n needs a bit to copy"),
        ("--memory image --mem_fault median --no-known", "median needs an intact bit"),
        ("--memory image --mem_fault median --transient --known", "no memory test knows transient cells"),
        ("--memory image --known", "--known is for a repair of --memory image"),
        ("--known", "--known is for --memory"),
        ("--memory weights --train_flip 0.1", "--memory is a fault of its own: leave --train_flip out"),
        ("--memory image --train_noise 0.1", "--memory is a fault of its own: leave --train_noise out"),
        ("--memory image --faulty_bit any", "--memory is a fault of its own: leave --faulty_bit out"),
        ("--memory image --neighbor_offset 1", "--memory is a fault of its own: leave --neighbor_offset out"),
        ("--memory weights --layers conv9", "no weights of layer conv9"),
        ("--memory activations --layers fc2", "no activations of layer fc2"),
        ("--memory image --layers conv1", "the image memory has no layers"),
        ("--memory weights --planes 7", "planes are of the image memory"),
        ("--memory image --planes 9", "planes '9': each bit once"),
        ("--ber 0.1", "--ber is for --memory"),
        ("--planes 7", "--planes is for --memory"),
        ("--transient", "--transient is for --memory"),
        ("--memory weights --reading asymmetric", "the asymmetric reading needs two probabilities"),
        ("--memory weights --p01 0.1", "p01 and p10 are for the asymmetric reading"),
        ("--memory weights --lines row", "rows and columns break in an array: name its size"),
        ("--memory weights --array 5", "'5' is no size such as 512x64"),
        ("--memory weights --array 5x5 --lines row", "an array of 5x5 cells does not hold"),
        ("--memory weights --array 8000x8000 --lines row --transient", "rows and columns must be persistent"),
    ],
)
def test_bad_input_gets_one_line(succeed, run_script, words, complaint):
    status, _, err = run_script(train_smaller, *TRAIN, *words.split())
    impossible = "--mem_fault" in words and "faulty" not in words  # a repair that cannot be
    assert status == (ImpossibleRepair.status if impossible else 1)
    assert err.count("\n") == 1 and err.startswith("error: ") and complaint in err


def test_planes_in_an_evaluation(succeed):
    succeed(*TRAIN)
    lines = succeed("--data", ".", "--memory", "image", "--planes", "7+6@0.5", "--ber", "0.3")
    assert any("image, planes 7+6@0.5: 0.3 of the cells inverted, persistent" in line for line in lines)
    net = CNV(TOPOLOGIES["cifar_smaller"], 10).eval()
    net.load_state_dict(torch.load(CHECKPOINT)["net"])
    images, labels = read_images("cifar10", ".", train=False)
    images = break_cells(fault_in("image", level=0.3, planes="7+6@0.5"), images, 11111)
    correct = (net(images.float() / 255).argmax(1) == labels).float().mean().item()
    assert lines[-1] == f"Avg. acc.: {100 * correct:.3f}%"


def test_lines_and_repairs_in_an_evaluation(succeed):
    """Rows of an image's memory that read 1 for 0, mended by a repair that knows them; planes that none knows."""
    succeed(*TRAIN)
    net = CNV(TOPOLOGIES["cifar_smaller"], 10).eval()
    net.load_state_dict(torch.load(CHECKPOINT)["net"])
    images, labels = read_images("cifar10", ".", train=False)

    def accuracy(images):
        correct = (net(images.float() / 255).argmax(1) == labels).float().mean().item()
        return f"Avg. acc.: {100 * correct:.3f}%"

    rows = ["--memory", "image", "--ber", "0.3", "--lines", "row", "--array", "96x256", "--reading", "asymmetric"]
    lines = succeed("--data", ".", *rows, "--p01", "1", "--p10", "0", "--mem_fault", "constant_0")
    about = "0.3 of the rows of 96x256 cells asymmetric p01 1 p10 0, persistent; constant_0, known cells"
    assert any(about in line for line in lines)
    broken = torch.from_numpy(broken_cells(0.3, 96, [11111, 0, 2]))
    assert 0 < len(broken) < 96
    read = images.clone().flatten(1).view(len(images), 96, 32)  # a row of 256 cells holds 32 values
    read[:, broken] = 0
    assert lines[-1] == accuracy(read.view(images.shape))

    lines = succeed("--data", ".", "--memory", "image", "--planes", "7+0", "--transient", "--mem_fault", "constant_1")
    assert any(line.endswith("transient; constant_1, unknown cells") for line in lines)
    assert lines[-1] == accuracy(images | 0x81)


def test_training_on_repaired_cells(succeed):
    """All cells of plane 7 inverted and set to 0: the net learns from images without their MSB."""
    words = ["--memory", "image", "--planes", "7", "--ber", "1", "--mem_fault", "constant_0"]
    succeed(*TRAIN, "--epochs", "1", "--batch-size", "200", "--no-bf16", *words)
    torch.manual_seed(11111)
    net = CNV(TOPOLOGIES["cifar_smaller"], 10, init=0.05).train()
    images, labels = read_images("cifar10", ".", train=True)
    images, labels, _ = next(TrainBatches(images, labels, 200, 4, [(NO_FAULT, None)], 11111, CPU).epoch(0))
    images = ((255 * images).round().to(torch.uint8) & 127) / 255
    expected = F.cross_entropy(net(images), labels).item()
    assert torch.load(CHECKPOINT)["log"][0]["loss"] == pytest.approx(expected, rel=1e-4)


def test_what_a_net_was_trained_for_in_words():
    options = checkpoints.with_older_options({"dataset": "cifar10", "wsconv": False})
    assert purpose_of(options) == "no fault"
    options |= {"memory": "weights", "ber": 0.05, "layers": ["conv1", "fc2"], "transient": True}
    assert purpose_of(options) == "weights of conv1+fc2: 0.05 of the cells inverted, transient"
    options |= {"memory": "image", "layers": [], "planes": ((7, 1.0), (6, 1.0)), "transient": False}
    options |= {"reading": "asymmetric", "p01": 0.1, "p10": 0.2, "lines": "row", "array": (96, 256)}
    words = "image, planes 7+6: 0.05 of the rows of 96x256 cells asymmetric p01 0.1 p10 0.2, persistent"
    assert purpose_of(options) == words
    assert purpose_of(options | {"mem_fault": "median"}) == f"{words}; median, known cells"
    assert purpose_of(options | {"mem_fault": "median", "known": False}) == f"{words}; median, unknown cells"
    assert purpose_of(options | {"memory": ""}) == "no fault"
    as_text = checkpoints.with_older_options({**options, "planes": "7+6"})  # as they were stored at first
    assert as_text == options
