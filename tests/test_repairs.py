"""The repairs against slow versions, pixel by pixel in NumPy and Python; total variation against minimum cuts."""

import math
import statistics
from fractions import Fraction
from functools import cache

import maxflow
import numpy as np
import pytest
import torch
from made import apply, mend, write_cifar10

from bench.averaged import averaged
from CIFARDataset import CIFAR10
from common import UserError
from datasets import read_images
from engine import state_of
from repairs import (
    REPAIRS,
    color_field,
    colors,
    fault_of,
    learned,
    learned_state,
    pixels,
    predictor,
    total_variation,
    with_fault,
)
from repairs.pixels import NEIGHBOR_PASSES, learn_table

BITS = range(8)


def pictures(count=3, height=7, width=9):
    """Smooth images with noise: uint8 N×3×H×W, in channels_last order as from read_images."""
    random = np.random.default_rng(count)
    waves = sum(
        random.uniform(20, 60, (count, 3, 1, 1))
        * np.sin(random.uniform(0.1, 0.8) * axis + random.uniform(0, 6, (count, 3, 1, 1)))
        for axis in (np.arange(height)[:, None], np.arange(width))
    )
    images = torch.from_numpy((128 + waves + random.normal(0, 6, waves.shape)).clip(0, 255).astype(np.uint8))
    return images.contiguous(memory_format=torch.channels_last)


def closer(zero, step, prediction):
    return zero if abs(zero - prediction) <= abs(zero + step - prediction) else zero + step


def by_hand(repair, channel, bit):
    """One channel (H×W list of int) repaired pixel by pixel, as a list."""
    step = 2**bit
    height, width = len(channel), len(channel[0])
    zeros = [[value - value // step % 2 * step for value in row] for row in channel]
    result = [[0] * width for _ in range(height)]
    estimate = [[zero + step // 2 for zero in row] for row in zeros]
    for _ in range(NEIGHBOR_PASSES):
        previous = estimate
        estimate = [[0] * width for _ in range(height)]
        for y in range(height):
            for x in range(width):
                around = [
                    previous[y + dy][x + dx]
                    for dy in (-1, 0, 1)
                    for dx in (-1, 0, 1)
                    if (dy or dx) and 0 <= y + dy < height and 0 <= x + dx < width
                ]
                estimate[y][x] = closer(zeros[y][x], step, sum(around) / len(around))
    for y in range(height):
        for x in range(width):
            left = result[y][x - 1] if x else None
            upper = result[y - 1][x] if y else None
            zero = zeros[y][x]
            if repair == "constant_0":
                result[y][x] = zero
            elif repair == "constant_1":
                result[y][x] = zero + step
            elif repair == "midpoint":
                result[y][x] = zero + step // 2
            elif repair == "repaired_s":
                result[y][x] = zero + (zero >= 128) * step
            elif repair == "not_msb":
                result[y][x] = zero + (zero < 128) * step
            elif repair == "left":
                result[y][x] = closer(zero, step, left if left is not None else upper if upper is not None else 128)
            elif repair == "median":
                if left is None or upper is None:
                    prediction = left if left is not None else upper if upper is not None else 128
                else:
                    prediction = statistics.median([left, upper, left + upper - result[y - 1][x - 1]])
                result[y][x] = closer(zero, step, prediction)
            elif repair == "neighbors":
                result[y][x] = estimate[y][x]
    return result


LEARNED = ("learned", "learned_mean", "taught")
OTHERS = ("repaired_n", "table", "colors", "color_scans", "color_mean", "color_field", "variation", *LEARNED)
SIMPLE = [name for name in REPAIRS if name not in OTHERS]


@pytest.mark.parametrize("repair", SIMPLE)
def test_repairs_by_hand(repair):
    images = pictures()
    for bit in BITS:
        if bit in REPAIRS[repair].cannot:
            continue
        expected = [[by_hand(repair, channel, bit) for channel in image] for image in images.tolist()]
        assert mend(repair, images, bit).tolist() == expected, bit


def learned_from(images, repair, bit):
    row, given = REPAIRS[repair], []
    if row.starts_from:
        given.append(learned_from(images, row.starts_from, bit))
    if row.taught:
        given.append(lambda images: images.mean((2, 3)))
    return row.learn(images, bit, *given) if row.learn else None


@pytest.mark.parametrize("repair", list(REPAIRS))
def test_nothing_depends_on_what_the_broken_bit_reads_nor_changes_another_bit(repair):
    images = pictures(height=8, width=8)
    for bit in BITS:
        if bit in REPAIRS[repair].cannot:
            continue
        fault = fault_of(repair, bit, 1 if bit == 0 else -1)
        state = learned_from(images, repair, bit)
        before = images.clone()
        random = torch.from_numpy(np.random.default_rng(1).integers(0, 2, images.shape, np.uint8))
        reads = [torch.zeros_like(images), torch.ones_like(images), random]
        results = [apply(fault, images, lambda shape, bits=bits: bits, state) for bits in reads]
        assert all(torch.equal(result, results[0]) for result in results)
        assert results[0].dtype == torch.uint8 and torch.equal(images, before)
        assert (
            repair in ("midpoint", "color_mean", "color_field", "learned_mean", "taught")
            or ((results[0] ^ images) & ~torch.tensor(1 << bit, dtype=torch.uint8)).max() == 0
        )
        alone = torch.cat([mend_alone(fault, image, state) for image in images])
        assert torch.equal(alone, results[0])  # each image is repaired independently of the others


def mend_alone(fault, image, state):
    return apply(fault, image, lambda shape: torch.zeros(shape, dtype=torch.uint8), state)[None]


def predicted(plane, y, x, first):
    """JPEG-LS' prediction of a value from those above and to the left of it."""
    if not (y or x):
        return first
    if not y:
        return plane[y][x - 1]
    if not x:
        return plane[y - 1][x]
    return statistics.median(
        [plane[y][x - 1], plane[y - 1][x], plane[y][x - 1] + plane[y - 1][x] - plane[y - 1][x - 1]]
    )


def scan_by_hand(image, bit):
    """One image (3×H×W list of int): of the eight triples the one that fits colours and differences best."""
    height, width = len(image[0]), len(image[0][0])
    result = [[[0] * width for _ in range(height)] for _ in range(3)]
    differences = [[[0] * width for _ in range(height)] for _ in range(3)]  # red-green, green-blue, blue-red
    for y in range(height):
        for x in range(width):
            choices = []
            for number in range(8):
                triple = [image[c][y][x] // 2**bit // 2 * 2 * 2**bit + image[c][y][x] % 2**bit for c in range(3)]
                triple = [value + (number >> c & 1) * 2**bit for c, value in enumerate(triple)]
                cost = sum(abs(triple[c] - predicted(result[c], y, x, 128)) for c in range(3))
                for c in range(3):
                    difference = triple[c] - triple[(c + 1) % 3]
                    cost += 2 * abs(difference - predicted(differences[c], y, x, 0))
                choices.append((cost, number, triple))
            triple = min(choices)[2]
            for c in range(3):
                result[c][y][x] = triple[c]
                differences[c][y][x] = triple[c] - triple[(c + 1) % 3]
    return np.array(result)


def wavering(image):
    """Total variation of the channels and twice that of their differences."""
    planes = [*image, *(2 * (image[c] - image[(c + 1) % 3]) for c in range(3))]
    return sum(np.abs(np.diff(plane, axis=axis)).sum() for plane in planes for axis in (0, 1))


def scans_by_hand(image, bit):
    """The scans of one image (3×H×W array) from the four corners: 4 arrays 3×H×W."""
    mirrors = ((1, 1), (1, -1), (-1, 1), (-1, -1))
    return [scan_by_hand(image[:, ::y, ::x].tolist(), bit)[:, ::y, ::x] for y, x in mirrors]


@pytest.mark.parametrize("bit", BITS)
def test_colors_by_hand(bit):
    images = pictures(3, 6, 5)
    together, chosen, mean = (mend(name, images, bit).numpy() for name in ("colors", "color_scans", "color_mean"))
    for image, *found in zip(images.numpy().astype(int), together, chosen, mean):
        scans = scans_by_hand(image, bit)
        assert np.array_equal(found[0], scans[0])
        least = min(map(wavering, scans))
        assert any(np.array_equal(found[1], scan) for scan in scans if wavering(scan) == least)
        assert np.array_equal(found[2], (np.sum(scans, 0) + 2) // 4)


def triple_of(image, bit, label, place):
    """The three values of a pixel's candidate `label`."""
    return [int(image[c][place]) & ~(1 << bit) | (label >> c & 1) << bit for c in range(3)]


def mean_around(result, place, to):
    """By how much each channel of `result` changes around the step from one pixel to its neighbour, rounded: 3 int."""
    (y, x), down = place, to[0] - place[0]
    last_y, last_x = result.shape[1] - 1 - down, result.shape[2] - 2 + down
    around = [(y + a, x + b) for a in (-1, 0, 1) for b in (-1, 0, 1) if a or b]
    around = [(min(max(a, 0), last_y), min(max(b, 0), last_x)) for a, b in around]
    sums = [sum(int(channel[a + down, b + 1 - down]) - int(channel[a, b]) for a, b in around) for channel in result]
    return [math.floor(Fraction(total, 8) + Fraction(1, 2)) for total in sums]


def field_by_hand(image, bit):
    """One image (3×H×W array) repaired in six rounds of a sweep from each of two corners, pixel by pixel."""
    limit = max(2**bit // 2, 32)
    pixels = list(np.ndindex(image.shape[1:]))
    told = {}  # (from, to): what each candidate of the second pixel costs
    result = None

    @cache
    def costs_between(place, to, number):
        """8×8: what the candidates of two neighbours cost in round `number`."""
        slope = mean_around(result, place, to) if number else [0, 0, 0]
        costs = np.zeros((8, 8), int)
        for i, j in np.ndindex(8, 8):
            d = [b - a - s for a, b, s in zip(triple_of(image, bit, i, place), triple_of(image, bit, j, to), slope)]
            costs[i, j] = sum(min(abs(d[c]), limit) + 2 * min(abs(d[c] - d[c - 1]), limit) for c in range(3))
        return costs

    for number in range(6):
        for order in (pixels, pixels[::-1]):
            for y, x in order:
                around = [(y + a, x + b) for a, b in ((0, 1), (1, 0), (0, -1), (-1, 0)) if (y + a, x + b) in pixels]
                heard = {place: told.get((place, (y, x)), [0] * 8) for place in around}
                for to in around:
                    if order.index(to) > order.index((y, x)):
                        before = [sum(each[i] for each in heard.values()) // 2 - heard[to][i] for i in range(8)]
                        first, second = sorted([(y, x), to])
                        costs = costs_between(first, second, number)
                        costs = costs if to == second else costs.T
                        least = [min(before[i] + costs[i, j] for i in range(8)) for j in range(8)]
                        told[(y, x), to] = [each - min(least) for each in least]
        mean = np.empty_like(image)
        for place in pixels:
            costs = [sum(message[i] for (_, to), message in told.items() if to == place) for i in range(8)]
            numbers = [min(60, (each - min(costs)) // max(1, 2**bit // 32)) for each in costs]
            weights = [round(2 ** (15 - number / 4)) for number in numbers]
            values = np.array([triple_of(image, bit, i, place) for i in range(8)])
            for c, total in enumerate(weights @ values):
                mean[c][place] = math.floor(Fraction(int(total), sum(weights)) + Fraction(1, 2))
        result = mean
    return result


@pytest.mark.parametrize("bit", BITS)
def test_color_field_by_hand(bit, monkeypatch):
    random = np.random.default_rng(bit)
    noise = [random.integers(0, 256, (1, 3, 4, 5)), 255 * random.integers(0, 2, (1, 3, 4, 5))]
    images = torch.cat([pictures(2, 4, 5), *map(torch.from_numpy, noise)]).to(torch.uint8)
    mended = mend("color_field", images, bit)
    for image, found in zip(images.numpy().astype(int), mended.numpy()):
        assert np.array_equal(found, field_by_hand(image, bit))
    monkeypatch.setattr(color_field, "CHUNK", 20)  # one image at once
    assert torch.equal(mend("color_field", images, bit), mended)
    for image in (images[:1, :, :1], images[:1, :, :, :1], images[:1, :, :1, :1]):  # a row, a column, a pixel
        assert np.array_equal(mend("color_field", image, bit)[0], field_by_hand(image[0].numpy().astype(int), bit))
    flat = torch.full((1, 3, 6, 6), 100, dtype=torch.uint8)  # fits both candidates equally well
    assert torch.equal(mend("color_field", flat, bit), mend("midpoint", flat, bit) + (bit == 0))


@pytest.mark.parametrize("bit", (7, 6, 5))
def test_the_color_field_mends_more_than_scans(bit):
    images = pictures(20, 16, 16)
    mended = [mend(name, images, bit) for name in ("color_field", "color_scans")]
    field, scans = (((image ^ images) >> bit & 1).double().mean() for image in mended)
    assert field < scans / 3


@pytest.mark.parametrize("bit", BITS)
def test_table_by_counting(bit):
    images = pictures(20)
    table = learn_table(images, bit)
    assert table.dtype == torch.uint8 and table.shape == (3, 256) and torch.equal(table, learn_table(images, bit))
    values = images.numpy().transpose(1, 0, 2, 3).reshape(3, -1)
    for channel in range(3):
        for value in range(256):
            lower, upper = (int((values[channel] == each).sum()) for each in (value & ~(1 << bit), value | (1 << bit)))
            assert table[channel, value] == (0 if value >> bit & 1 else int(upper > lower))
    others = pictures(4)
    mended = mend("table", others, bit, table).numpy()
    for place in np.ndindex(others.shape):
        zero = int(others[place]) & ~(1 << bit)
        assert mended[place] == zero + int(table[place[1], zero]) * 2**bit


def convolve(image, weight, bias, dilation):
    """Convolution of a Channels×H×W array with weights of Conv2d; the border is padded with the nearest pixel."""
    _, height, width = image.shape
    result = np.zeros((len(weight), height, width))
    for y, x, i, j in np.ndindex(height, width, 3, 3):
        row, column = (np.clip(at + (k - 1) * dilation, 0, size - 1) for at, k, size in ((y, i, height), (x, j, width)))
        result[:, y, x] += weight[:, :, i, j] @ image[:, row, column]
    return result + bias[:, None, None]


LAYERS = ("first", *(f"inner.{number}" for number in range(4)), "last")


def gelu(x):
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def inputs_by_hand(image, field, bit):
    """The predictor's inputs for an image and what color_field made of it, int 3×H×W."""
    zeros = image - (image >> bit & 1) * 2**bit
    scans = np.array(scans_by_hand(image, bit))
    signs = [2.0 * (scan >> bit & 1) - 1 for scan in scans]
    return np.concatenate([zeros / 128 - 1, scans.mean(0) / 128 - 1, *signs, (field - zeros) / 2**bit * 2 - 1])


def logits_by_hand(inputs, state):
    """The predictor's logits for its inputs, 21×H×W."""
    layers = {name: [state[f"{name}.{key}"].double().numpy() for key in ("weight", "bias")] for name in LAYERS}
    x = gelu(convolve(inputs, *layers["first"], 1))
    for number, dilation in enumerate((2, 4, 2, 1)):
        x = x + gelu(convolve(x, *layers[f"inner.{number}"], dilation))
    return convolve(x, *layers["last"], 1)


def test_learned_repair_by_hand():
    images = pictures(4, 6, 7)
    images[3] = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 6, 7), np.uint8))  # no candidate fits
    bit = 6
    state = predictor.learn_predictor(pictures(30), bit)
    mended, means = (mend(repair, images, bit, state).numpy() for repair in ("learned", "learned_mean"))
    # the field of the mirrored image is not the mirrored field
    fields, mirrored = (mend("color_field", each, bit).numpy().astype(int) for each in (images, images.flip(-1)))
    assert (fields != mirrored[..., ::-1]).any()
    for image, field, in_mirror, result, mean in zip(images.numpy().astype(int), fields, mirrored, mended, means):
        zeros = image - (image >> bit & 1) * 2**bit
        x = logits_by_hand(inputs_by_hand(image, field, bit), state)
        x = (x + logits_by_hand(inputs_by_hand(image[..., ::-1], in_mirror, bit), state)[..., ::-1]) / 2
        sure = np.abs(x) > 1e-4
        assert sure.mean() > 0.99 and np.array_equal(result[sure], (zeros + (x > 0) * 2**bit)[sure])
        assert np.abs(mean - zeros - 2**bit / (1 + np.exp(-x))).max() < 0.501


def test_learned_repair_is_the_same_for_the_same_images():
    torch.manual_seed(1)
    state = predictor.learn_predictor(pictures(30), 6)
    drawn = torch.rand(())
    torch.manual_seed(2)
    again = predictor.learn_predictor(pictures(30), 6)
    assert all(torch.equal(state[key], again[key]) for key in state)
    torch.manual_seed(1)
    assert torch.rand(()) == drawn  # nor does it draw from the global generator


def test_learned_repair_learns(monkeypatch):
    """It finds what no scan knows: in noise, the blue value's broken bit is the red value's bit 7."""
    monkeypatch.setattr(predictor, "BATCH", 10 * 8 * 8)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (150, 3, 8, 8), np.uint8))
    bit = 5
    images[:, 2] = images[:, 2] & ~(1 << bit) | images[:, 0] >> 7 << bit
    state = predictor.learn_predictor(images[:100], bit, epochs=10)
    mended = {name: mend(name, images[100:], bit, state) for name in ("color_scans", "learned")}
    right = {name: (found == images[100:])[:, 2].float().mean() for name, found in mended.items()}
    assert right["learned"] > 0.85 and right["color_scans"] < 0.6


def test_one_step_of_the_taught_repair_by_hand(monkeypatch):
    """Adam's first step is the learning rate against the sign of the gradient, here of the loss in NumPy."""
    images, bit, lr = pictures(4, 6, 7), 6, 0.01
    monkeypatch.setattr(predictor, "TEACH_LR", lr)
    before = predictor.learn_predictor(images, bit)
    matrix = torch.from_numpy(np.random.default_rng(5).normal(0, 1, (3 * 6 * 7, 4))).float()
    unchanged = {key: value.clone() for key, value in before.items()}
    with torch.inference_mode():  # as a caller may have it
        after = predictor.teach_predictor(images, bit, before, lambda images: images.flatten(1) @ matrix)
    assert all(torch.equal(before[key], unchanged[key]) for key in before)
    clean = images.numpy().astype(int)
    zeros = clean - (clean >> bit & 1) * 2**bit
    fields = mend("color_field", images, bit).numpy().astype(int)
    inputs = [inputs_by_hand(image, field, bit) for image, field in zip(clean, fields)]

    def softmax(x):
        x = np.exp(x - x.max(1, keepdims=True))
        return x / x.sum(1, keepdims=True)

    def losses(state):
        """On the bits; and the teacher's, with temperature 2."""
        ones = 1 / (1 + np.exp(-np.array([logits_by_hand(each, state) for each in inputs])))
        on_bits = -np.log(np.where(clean >> bit & 1, ones, 1 - ones)).mean()
        seen = ((zeros + 2**bit * ones).reshape(4, -1) / 255) @ matrix.double().numpy()
        wanted = (clean.reshape(4, -1) / 255) @ matrix.double().numpy()
        own, wanted = softmax(seen / 2), softmax(wanted / 2)
        return np.array([on_bits, 4 * (wanted * np.log(wanted / own)).sum(1).mean()])

    decided = 0
    for key, place in [("last.bias", (0,)), ("last.bias", (1,)), ("last.bias", (2,)), ("first.bias", (3,))] + [
        ("last.weight", (channel, number, 1, 1)) for channel in range(3) for number in range(0, predictor.WIDTH, 16)
    ]:
        low, high = ({name: value.double() for name, value in before.items()} for _ in "ab")
        for state, step in ((low, -1e-5), (high, 1e-5)):
            state[key] = state[key].clone()
            state[key][place] += step
        slopes = (losses(high) - losses(low)) / 2e-5
        if abs(slopes.sum()) < 1e-4:
            continue
        moved = (after[key][place] - before[key][place]).item()
        assert moved == pytest.approx(-lr * np.sign(slopes.sum()), rel=0.02), (key, place, slopes)
        decided += np.sign(slopes[0]) != np.sign(slopes.sum())
    assert decided > 0  # the loss on the bits alone would have moved some the other way


def test_the_taught_repair_is_the_same_for_the_same_images():
    images = pictures(4, 6, 7)
    torch.manual_seed(1)
    state, again = (learned_from(images, "taught", 6) for _ in "ab")
    drawn = torch.rand(())
    torch.manual_seed(1)
    assert torch.rand(()) == drawn and all(torch.equal(state[key], again[key]) for key in state)


def test_learned_repair_takes_images_of_any_size_and_as_many_as_it_should(monkeypatch):
    seen = []
    monkeypatch.setattr(predictor, "corner_scans", lambda images, bit: seen.append(images) or scans(images, bit))
    monkeypatch.setattr(predictor, "PIXELS", 4 * 6 * 7)
    scans, images = colors.corner_scans, pictures(9, 6, 7)
    state = predictor.learn_predictor(images, 5)
    assert torch.equal(seen[0], images[[0, 2, 4, 6]])
    for size in ((1, 1), (3, 5), (12, 8)):
        others = pictures(2, *size)
        assert mend("learned", others, 5, state).shape == others.shape


def minimum_cut(zeros, step):
    """The least total variation of one channel (int array H×W), by a minimum cut."""
    height, width = zeros.shape
    graph = maxflow.Graph[float]()
    nodes = graph.add_grid_nodes(zeros.shape)
    linear, constant = np.zeros(zeros.shape), 0.0
    for y in range(height):
        for x in range(width):
            for down, right in ((0, 1), (1, 0)):
                if y + down < height and x + right < width:
                    one, two = int(zeros[y, x]), int(zeros[y + down, x + right])
                    alike, only_one, only_two = abs(one - two), abs(one + step - two), abs(one - two - step)
                    constant += alike
                    linear[y, x] += (only_one - only_two) / 2
                    linear[y + down, x + right] -= (only_one - only_two) / 2
                    weight = (only_one + only_two) / 2 - alike
                    graph.add_edge(nodes[y, x], nodes[y + down, x + right], weight, weight)
    graph.add_grid_tedges(nodes, np.maximum(-linear, 0), np.maximum(linear, 0))
    return constant + graph.maxflow() + np.minimum(linear, 0).sum()


@pytest.mark.parametrize("bit", BITS)
def test_total_variation_against_minimum_cuts(bit):
    images = torch.cat(
        [pictures(2, 16, 20), torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 16, 20), np.uint8))]
    )
    step = 1 << bit
    mended = mend("variation", images, bit)
    zeros = images.numpy().astype(int) // (2 * step) * (2 * step) + images.numpy() % step
    least = sum(minimum_cut(channel, step) for image in zeros for channel in image)
    own = mended.numpy().astype(int)
    own = np.abs(np.diff(own, axis=-1)).sum() + np.abs(np.diff(own, axis=-2)).sum()
    assert total_variation.variation(mended).sum() == own
    assert least <= own <= 1.001 * least


def test_chunks_do_not_matter(monkeypatch):
    images = pictures(5)
    together = mend("variation", images, 6)
    monkeypatch.setattr(total_variation, "CHUNK", 2 * images[0].numel())
    assert torch.equal(mend("variation", images, 6), together)
    together = mend("neighbors", images, 6)
    monkeypatch.setattr(pixels, "NEIGHBOR_CHUNK", 2)
    assert torch.equal(mend("neighbors", images, 6), together)
    together = mend("color_scans", images, 6)
    monkeypatch.setattr(colors, "CHUNK", 2)
    assert torch.equal(mend("color_scans", images, 6), together)
    state = predictor.learn_predictor(images, 6)
    together = predictor.predict(images, 6, state)
    monkeypatch.setattr(predictor, "CHUNK", 2 * images[0, 0].numel())
    assert torch.allclose(predictor.predict(images, 6, state), together, atol=1e-6)


class Mine(CIFAR10):
    """Somebody's class of the same images: it has the same repairs."""


def test_what_was_learned_is_kept_on_disk(tmp_path, monkeypatch):
    write_cifar10(tmp_path)
    images, _ = read_images("cifar10", ".", train=False)
    fault = fault_of("table", 6, -1)
    state = state_of(fault, "cifar10", ".")
    (path,) = learned.FOLDER.glob("cifar10_table_6_*.pt")
    assert torch.equal(state, learn_table(read_images("cifar10", ".", train=True)[0], 6))
    mended = with_fault(images, fault, 3, state)
    dataset = CIFAR10(".", mem_fault="table", train=False, faulty_bit=6, seed=3)
    assert torch.equal((dataset[2][0] * 255).round().to(torch.uint8), mended[2])
    Mine(".", mem_fault="table", train=False, faulty_bit=6)
    assert list(learned.FOLDER.iterdir()) == [path]

    written = path.read_bytes()
    monkeypatch.setattr(pixels, "learn_table", None)  # it is not learned again
    assert torch.equal(state_of(fault, "cifar10", "."), state) and path.read_bytes() == written
    assert state_of(fault_of("left", 6, -1), "cifar10", ".") is None
    place = written.index(state.numpy().tobytes()) + 100
    flipped = written[:place] + bytes([written[place] ^ 1]) + written[place + 1 :]
    for damage in (b"cut", b"", flipped):
        path.write_bytes(damage)
        with pytest.raises(UserError, match="delete it, and it is learned anew"):
            state_of(fault, "cifar10", ".")


def test_other_images_are_learned_from_anew(tmp_path):
    write_cifar10(tmp_path)
    (tmp_path / "other").mkdir()
    write_cifar10(tmp_path / "other", rows=9)
    fault = fault_of("table", 6, -1)
    for data in (".", "other"):
        expected = learn_table(read_images("cifar10", data, train=True)[0], 6)
        assert torch.equal(state_of(fault, "cifar10", data), expected)
    assert len(list(learned.FOLDER.iterdir())) == 2


def test_a_repair_starts_from_what_another_has_learned(monkeypatch):
    """It gets the other's state, which is kept, and learns anew when the other's code changes."""
    images = pictures()

    def learn(images, bit):
        return {"weight": torch.tensor(bit)}

    def learn_otherwise(images, bit):
        return {"weight": torch.tensor(bit + 1)}

    def go_on(images, bit, state):
        return {"weight": 10 * state["weight"]}

    monkeypatch.setitem(REPAIRS, "taught", REPAIRS["taught"]._replace(learn=go_on, taught=False))
    for number, (function, expected) in enumerate(((learn, 60), (learn_otherwise, 70)), 1):
        monkeypatch.setitem(REPAIRS, "learned", REPAIRS["learned"]._replace(learn=function))
        assert learned_state("taught", 6, "mine", "digest", lambda: images)["weight"] == expected
        assert len(list(learned.FOLDER.iterdir())) == 2 * number


def test_repairs_share_what_they_learn(monkeypatch):
    """learned_mean uses what learned has learned; changed learning code learns again."""
    images, asked = pictures(), []

    def training_images():
        asked.append(images)
        return images

    def learn(images, bit):
        return {"weight": images[0, 0] + 1}

    def learn_otherwise(images, bit):
        return {"weight": images[0, 0] + 2}

    def use(function):
        for name in ("learned", "learned_mean"):
            monkeypatch.setitem(REPAIRS, name, REPAIRS[name]._replace(learn=function))

    use(learn)
    found = [learned_state(name, 6, "mine", "digest", training_images) for name in ("learned_mean", "learned")]
    assert len(asked) == 1 and all(torch.equal(state["weight"], images[0, 0] + 1) for state in found)
    use(learn_otherwise)
    assert torch.equal(learned_state("learned", 6, "mine", "digest", training_images)["weight"], images[0, 0] + 2)


def test_averaged_images():
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 64, 64), np.uint8)
    means = images.reshape(3, 3, 32, 2, 32, 2).mean((3, 5))
    assert np.array_equal(averaged(torch.from_numpy(images), 32).numpy(), np.floor(means + 0.5))
    with pytest.raises(UserError, match="64×64 pixels cannot be averaged to 48×48"):
        averaged(torch.from_numpy(images), 48)
