"""The evaluation form of a trained CNV: signs taken once, batch norms folded into thresholds, 8-bit arithmetic.

    folded = Folded(net)
    logits = folded(images)  # net(images) in evaluation mode, many times faster

A hidden layer of the net computes sign(batchnorm(sum)). Its sums are whole numbers (in the first layer, whole
multiples of 2^-7). In each channel the batch norm rises or falls with the sum, so the sign follows from comparing
the sum with one whole number, the threshold. The threshold is found by evaluating the net's own batch norm, so it
includes the rounding errors of the batch norm. Where a batch norm falls, the channel's weights are negated, and the
comparison stays the same.

On x86 CPUs each layer is one 8-bit convolution or matrix product of oneDNN with the comparison fused into it.
Activations are then stored as 0 and 2 with a zero point, which allows a padding of 0 or of -1. On other devices the
same signs and thresholds are used in float32, where these sums are exact, too.

Source: Umuroglu et al., "FINN" (2017), for thresholds in place of batch norms.
"""

import functools
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from models.quant import convolve

STEPS = 128  # steps of the input quantiser between 0 and 1: Q1.7
CHUNK = 125  # images processed at once on a CPU, so that their activations stay in its caches


class Folded(nn.Module):
    """float32 images N×3×H×W in [0, 1] -> float32 logits N×classes, equal to those of the CNV in evaluation mode.

    net: a CNV. It is put into evaluation mode, and its present weights and batch norms are folded. Call
    `take_weights` after its weights have changed; its batch norms must not change.
    int8: False for float32 even where 8-bit arithmetic works.
    """

    def __init__(self, net, int8=True):
        super().__init__()
        self.net = net
        self.eval()  # so that evaluate(), which restores the mode it found, leaves the net in evaluation mode
        self.change = None  # None, or a function (number of a hidden layer, its maps) -> the maps that are read
        self.vary = None  # None, or a function (number of images), called before each chunk of them is computed
        self.start = 0  # the first layer that is computed; above 0, forward gets what maps_before gives for it
        self.chunk = None  # images computed at once; None: CHUNK of them in 8-bit arithmetic, else all
        self.int8 = int8 and net.binary_layers()[0].weight.device.type == "cpu" and int8_works()
        layer_kind = _Int8Layer if self.int8 else _Layer
        modules = [*net.conv_features, *net.linear_features]
        starts = [i for i, module in enumerate(modules) if module in net.binary_layers()]
        self.layers = []
        for start, end in pairwise([*starts, len(modules)]):
            module, *after = modules[start:end]  # after it: batch norm or TensorNorm, activation, pool
            norm = next((each for each in after if isinstance(each, (nn.BatchNorm1d, nn.BatchNorm2d))), None)
            pool = any(isinstance(each, nn.MaxPool2d) for each in after)
            self.layers.append(layer_kind(module, norm, pool, first=not self.layers))
        self.take_weights()

    @torch.no_grad()
    def take_weights(self):
        """Take over the present binary weights of the net."""
        for layer in self.layers:
            layer.pack(layer.signs())

    def thresholds(self):
        """The thresholds of the hidden layers, as set_thresholds takes them."""
        return [layer.threshold for layer in self.layers[:-1]]

    @torch.no_grad()
    def set_thresholds(self, thresholds):
        """Compare with these thresholds: float32 whole numbers of the channels, one tensor for each hidden layer.

        Or of images×channels, each image with its own.
        """
        for layer, threshold in zip(self.layers[:-1], thresholds, strict=True):
            layer.compare_with(threshold)

    @torch.inference_mode()
    def statistics(self, images, recalibrate_from=None):
        """The mean and standard deviation of each channel's sums: a list of float64 2×channels, of the hidden layers.

        images: float32 N×3×H×W in [0, 1]. recalibrate_from: None; or what this gave for the intact net, and then each
        layer's threshold is set anew before the next layer is computed, see _Layer.recalibrate.
        """
        found, parts = [], [self._quantized(chunk) for chunk in self._chunks(images)]
        for number, layer in enumerate(self.layers[:-1]):
            found.append(layer.statistics(parts))
            if recalibrate_from:
                layer.recalibrate(recalibrate_from[number], found[-1])
            parts = [self._through(part, [layer]) for part in parts]
        return found

    def flip_weights(self, addresses):
        """Each of the next images is computed with weights of its own.

        addresses: for each image of the chunk, the weights that have the other sign, as int64 numbers in rising order,
        layer by layer, in the order of the net's tensors. An empty list: no more flips.
        """
        start = 0
        for layer in self.layers:
            bounds = torch.tensor([start, start + layer.module.weight.numel()])
            parts = [its[slice(*torch.searchsorted(its, bounds))] - start for its in addresses]
            layer.flips = parts if any(map(len, parts)) else None
            start += layer.module.weight.numel()

    @torch.inference_mode()
    def forward(self, images):
        return self.net.linear_features[-1](torch.cat([self._sums(chunk) for chunk in self._chunks(images)]))

    def _chunks(self, images):
        """Parts of the images that are computed at once."""
        return images.split(self.chunk or (CHUNK if self.int8 else len(images)))

    @torch.inference_mode()
    def maps_before(self, layer, images):
        """What a layer, counted from 0, reads: the maps of the layer before it, as they are stored."""
        return torch.cat([self._through(self._quantized(chunk), self.layers[:layer]) for chunk in self._chunks(images)])

    def _sums(self, images):
        """The last layer's sums, before the TensorNorm: float32 N×classes, whole numbers."""
        if self.vary:
            self.vary(len(images))
        return self._through(images if self.start else self._quantized(images), self.layers[self.start :])

    def _quantized(self, images):
        """What the first layer reads."""
        x = ((2 * images - 1) * STEPS).round_().clamp_(-STEPS, STEPS - 1)  # the input quantiser, in units of 2^-7
        if self.int8:
            x = (x + STEPS).to(torch.uint8)
        return x

    def _through(self, x, layers):
        """x after some layers."""
        for layer in layers:
            x = layer(x)
            if self.change and layer.threshold is not None:
                x = self.change(self.layers.index(layer), x)
        return x


class _Layer:
    """One layer in float32: convolution or matrix product with weights ±1, comparison (giving ±1), max pool.

    The last layer has no comparison and no pool: it gives the sums.
    """

    def __init__(self, module, norm, pool, first):
        self.module, self.pool = module, pool
        self.conv = isinstance(module, nn.Conv2d)
        self.pad = getattr(module, "pad", 0)
        self.inputs = STEPS if first else 1  # inputs are in [-inputs, inputs]
        self.flips = None  # None, or for each image the numbers of its weights that have the other sign: int64
        self.falls = self.threshold = None
        self.norm = norm
        if norm is not None:
            self.falls = norm.weight < 0
            self.bound = self.inputs * module.weight[0].numel()  # of the sums
            self.threshold = find_threshold(norm, 1 / self.inputs, self.bound)

    def signs(self):
        weight = self.module.quant_weight().value
        if self.falls is None:
            return weight
        return torch.where(self.falls.view(-1, *[1] * (weight.dim() - 1)), -weight, weight)

    def pack(self, weight):
        self.flat = weight.flatten()
        self.weight = weight.contiguous(memory_format=torch.channels_last) if self.conv else weight

    def compare_with(self, threshold):
        self.threshold = threshold

    def statistics(self, parts):
        """The mean and standard deviation of each channel's sums over parts of inputs: float64 2×channels."""
        count = total = squares = 0
        for part in parts:
            sums = self.sums(part).round().double().transpose(0, 1).flatten(1)  # C×sums, whole: added up exactly
            count, total, squares = count + sums.shape[1], total + sums.sum(1), squares + sums.square().sum(1)
        mean = total / count
        return torch.stack([mean, (squares / count - mean**2).clamp(min=0).sqrt()])

    def recalibrate(self, intact, faulty):
        """Set the threshold as for sums that are moved back to the mean and deviation that they had without a fault.

        intact, faulty: of statistics. A channel that is constant is only shifted.
        """
        (mean, deviation), (faulty_mean, faulty_deviation) = intact, faulty
        constant = (deviation == 0) | (faulty_deviation == 0)
        scale = torch.where(constant, 1.0, faulty_deviation / deviation)
        threshold = faulty_mean + (self.exact_threshold() - mean) * scale
        threshold = threshold.ceil().clamp(-self.bound, self.bound + 1).float()
        stays = (self.norm.weight == 0) | ((mean == faulty_mean) & (deviation == faulty_deviation))
        self.compare_with(torch.where(stays, self.threshold, threshold))

    def exact_threshold(self):
        """The sum at which each channel's batch norm is 0, no whole number: float64."""
        norm, sign = self.norm, torch.where(self.falls, -1.0, 1.0).double()
        deviation = (norm.running_var.double() + norm.eps).sqrt()
        zero = norm.running_mean.double() - norm.bias.double() / norm.weight.double() * deviation
        return sign * zero * self.inputs

    def __call__(self, x):
        sums = self.sums(x)
        return sums if self.threshold is None else self.pooled(torch.where(self.reached(sums), 1.0, -1.0))

    def sums(self, x):
        """The sums before the comparison, whole numbers in float32."""
        sums = self.intact_sums(x)
        if self.flips is not None:
            for its_sums, image, flips in zip(sums, x, self.flips):
                if len(flips):
                    its_sums += self.change_of_sums(image, flips).view_as(its_sums)
        return sums

    def intact_sums(self, x):
        if self.conv:
            return convolve(x, self.weight, self.module.padding, self.pad)
        return F.linear(x.flatten(1), self.weight)

    def change_of_sums(self, image, flips):
        """What flipped weights add to the sums of one image: float32 outputs×pixels.

        The change of the weights is a sparse matrix, outputs×inputs. It is multiplied by what each pixel's sum reads.
        """
        flips = flips.to(image.device)
        image, weights, inputs = self.numbers(image), self.flat[flips], self.module.weight[0].numel()
        outputs, inputs = flips // inputs, flips % inputs
        if self.conv:
            inputs, columns = inputs.unique(return_inverse=True)
            read = self.read_by(inputs, image)
        else:
            columns, read = inputs, image.reshape(-1, 1)
        size = len(self.module.weight), len(read)
        change = torch.sparse_coo_tensor(torch.stack([outputs, columns]), -2.0 * weights, size, check_invariants=False)
        return torch.sparse.mm(change, read)

    def read_by(self, inputs, image):
        """What some inputs of a convolution, numbered as its weights are, read for each pixel: inputs×pixels."""
        (rows, columns), (height, width) = self.module.padding, self.module.kernel_size
        padded = F.pad(image, (columns, columns, rows, rows), value=self.pad)
        windows = padded.unfold(1, height, 1).unfold(2, width, 1).permute(0, 3, 4, 1, 2)  # C×height×width×pixels
        found = windows[inputs // (height * width), inputs // width % height, inputs % width]
        return found.flatten(1)

    def numbers(self, x):
        """Stored inputs as the numbers that they stand for: float32."""
        return x

    def reached(self, sums):
        """True where the sums reach the threshold of their channel."""
        # compared half-way between two whole numbers, so that rounding in a fast convolution does no harm
        return sums > self.threshold.view(*self.threshold.shape, *[1] * (sums.dim() - 2)) - 0.5

    def pooled(self, x):
        """x after the layer's 2×2 max pool; x itself if it has none."""
        if not self.pool:
            return x
        height, width = (size // 2 * 2 for size in x.shape[2:])
        x = torch.maximum(x[:, :, 0:height:2], x[:, :, 1:height:2])
        return torch.maximum(x[..., 0:width:2], x[..., 1:width:2])


class _Int8Layer(_Layer):
    """The same layer on uint8 activations: 0 stands for -1, and 2 for +1.

    oneDNN pads with the zero point. With zero point 1 (128 for the input) the padding means 0. With zero point 0 it is
    a stored 0 and means -1; each sum is then larger by the sum of its weights, which the bias subtracts.
    """

    def pack(self, weight):
        weight = weight.to(torch.int8)
        self.flat = weight.flatten()
        outputs = len(weight)
        zero_point = 0 if self.pad else self.inputs
        ones = torch.ones(outputs)
        self.padded = weight.flatten(1).sum(1).float() if self.pad else torch.zeros(outputs)
        if self.conv:
            geometry = ([1, 1], list(self.module.padding), [1, 1], 1)  # stride, padding, dilation, groups
            kernel = torch.ops.onednn.qconv2d_pointwise
            packed = torch.ops.onednn.qconv_prepack(weight, ones, 1.0, zero_point, *geometry)
        else:
            geometry = ()
            kernel = torch.ops.onednn.qlinear_pointwise
            packed = torch.ops.onednn.qlinear_prepack(weight, None)
        zeros = torch.zeros(outputs, dtype=torch.int32)

        def run(x, scale, bias, *after):
            x = x.contiguous(memory_format=torch.channels_last) if self.conv else x.flatten(1)
            return kernel(x, 1.0, zero_point, packed, scale * ones, zeros, bias, *geometry, 1.0, 0, *after)

        self.run = run
        self.compare_with(self.threshold)

    def compare_with(self, threshold):
        self.threshold = threshold
        if threshold is not None and threshold.dim() == 1:
            # 2·sum - 2·threshold + 2, clamped to [0, 2], is 0 where sum < threshold, else 2
            self.bias = 2 - 2 * threshold - 2 * self.padded

    def __call__(self, x):
        if self.threshold is None:
            return self.sums(x)
        if self.threshold.dim() == 1 and self.flips is None:
            return self.pooled(self.run(x, 2, self.bias, torch.uint8, "hardtanh", [0.0, 2.0], ""))
        return self.pooled(self.reached(self.sums(x)).to(torch.uint8) << 1)

    def intact_sums(self, x):
        return self.run(x, 1, -self.padded, torch.float32, "none", [], "")

    def numbers(self, x):
        return x.float() - self.inputs


# what computes recalibrated thresholds, for digests of code
RECALIBRATION = (Folded.statistics, _Layer.statistics, _Layer.recalibrate, _Layer.exact_threshold)


@torch.inference_mode()
def find_threshold(norm, unit, bound):
    """For each channel the least whole number t with norm(s·t·unit) >= 0: float32. s is the sign of the norm's gain.

    Binary search from -bound to bound; bound + 1 if there is no such t.
    """
    sign = torch.where(norm.weight < 0, -1.0, 1.0)
    low = torch.full_like(sign, -bound)
    high = torch.full_like(sign, bound + 1)
    shape = (1, -1, 1, 1) if isinstance(norm, nn.BatchNorm2d) else (1, -1)
    while (low < high).any():
        middle = ((low + high) / 2).floor()
        reached = norm((sign * middle * unit).view(shape)).flatten() >= 0
        low, high = torch.where(reached | (low == high), low, middle + 1), torch.where(reached, middle, high)
    return low


@functools.cache
def int8_works():
    """True if PyTorch's 8-bit layers run on this CPU and give exactly the float32 results. Tried on small layers."""
    if "AVX" not in torch.backends.cpu.get_cpu_capability():
        return False
    random = torch.Generator().manual_seed(0)
    padded = nn.Conv2d(32, 16, 3, padding=1, device="meta")
    padded.pad = -1
    layers = (
        (nn.Conv2d(3, 16, 3, padding=1, device="meta"), (2, 3, 6, 6), True),  # meta: draws no random numbers
        (nn.Conv2d(32, 16, 3, padding=1, device="meta"), (2, 32, 6, 6), False),
        (padded, (2, 32, 6, 6), False),
        (nn.Linear(64, 16, device="meta"), (2, 64), False),
    )
    try:
        for module, shape, first in layers:
            weight = torch.randint(2, module.weight.shape, generator=random) * 2.0 - 1
            bits = torch.randint(256 if first else 2, shape, generator=random, dtype=torch.uint8)
            plain, fast = (kind(module, None, False, first) for kind in (_Layer, _Int8Layer))
            for threshold in (None, torch.arange(-8.0, 8.0)):
                plain.threshold = fast.threshold = threshold
                plain.pack(weight)
                fast.pack(weight)
                inputs = bits - 128.0 if first else bits * 2.0 - 1
                outputs = fast(bits if first else bits * 2)
                if not torch.equal(plain(inputs), outputs if threshold is None else outputs - 1.0):
                    return False
    except (AttributeError, RuntimeError):  # another version of PyTorch, or a build without oneDNN
        return False
    return True
