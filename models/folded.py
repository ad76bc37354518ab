"""The evaluation form of a trained CNV: signs taken once, batch norms folded into thresholds, 8-bit arithmetic.

    folded = Folded(net)
    logits = folded(images)  # net(images) in evaluation mode, many times faster

A hidden layer of the net computes sign(batchnorm(sums)), and the sums of ±1 (in the first layer, of multiples
of 2^-7) are whole numbers times a constant. A batch norm rises or falls with its input, so each channel is one
comparison with a whole number. That number is found by asking the net's own batch norm, so that its rounding
errors are in it. Where a batch norm falls, the channel's weights change sign instead.

On x86 CPUs a layer is one of oneDNN's 8-bit convolutions or products with the comparison fused into it.
Activations are then 0 and 2 with a zero point, so that the padding is a true zero or a -1. Anywhere
else the same signs and thresholds are used in float32, in which these sums are exact, too.

Source: thresholds in place of batch norms are Umuroglu et al., "FINN" (2017).
"""

import functools
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from models.quant import convolve

STEPS = 128  # of the input quantiser between 0 and 1: Q1.7
CHUNK = 125  # images that the CPU works on at once: their activations stay in its caches


class Folded(nn.Module):
    """float32 images N×3×H×W in [0, 1] -> float32 logits N×classes, those of the CNV in evaluation mode.

    net: a CNV; it is put into evaluation mode and folded as it is now. When its weights change (its batch norms
    must not), call `take_weights`.
    int8: False for float32 even where 8-bit arithmetic is to be had.
    """

    def __init__(self, net, int8=True):
        super().__init__()
        self.net = net
        self.eval()  # or evaluate() would put the net back into training
        self.int8 = int8 and net.binary_layers()[0].weight.device.type == "cpu" and int8_works()
        layer_kind = _Int8Layer if self.int8 else _Layer
        self.layers = []
        modules = [*net.conv_features, *net.linear_features]
        starts = [i for i, module in enumerate(modules) if module in net.binary_layers()]
        for start, end in pairwise([*starts, len(modules)]):
            module, *after = modules[start:end]  # after it: batch norm or TensorNorm, activation, pool
            norm = next((each for each in after if isinstance(each, (nn.BatchNorm1d, nn.BatchNorm2d))), None)
            pool = any(isinstance(each, nn.MaxPool2d) for each in after)
            self.layers.append(layer_kind(module, norm, pool, first=not self.layers))
        self.take_weights()

    @torch.no_grad()
    def take_weights(self):
        """Take the binary weights anew, as the layers of the net quantise them now."""
        for layer in self.layers:
            layer.pack(layer.signs())

    @torch.inference_mode()
    def forward(self, images):
        chunks = images.split(CHUNK) if self.int8 else (images,)
        return self.net.linear_features[-1](torch.cat([self._sums(chunk) for chunk in chunks]))

    def _sums(self, images):
        """What the last layer sums up, before its TensorNorm: float32 N×classes, whole numbers."""
        x = ((2 * images - 1) * STEPS).round_().clamp_(-STEPS, STEPS - 1)  # the input quantiser, in units of 2^-7
        if self.int8:
            x = (x + STEPS).to(torch.uint8)
        for layer in self.layers:
            x = layer(x)
        return x


class _Layer:
    """A convolution or product of ±1 and, except in the last layer, the comparison after it: ±1 again. float32."""

    def __init__(self, module, norm, pool, first):
        self.module, self.pool = module, pool
        self.conv = isinstance(module, nn.Conv2d)
        self.pad = getattr(module, "pad", 0)
        self.inputs = STEPS if first else 1  # from minus this to this
        self.falls = self.threshold = None
        if norm is not None:
            self.falls = norm.weight < 0
            self.threshold = find_threshold(norm, 1 / self.inputs, self.inputs * module.weight[0].numel())

    def signs(self):
        weight = self.module.quant_weight().value
        if self.falls is None:
            return weight
        return torch.where(self.falls.view(-1, *[1] * (weight.dim() - 1)), -weight, weight)

    def pack(self, weight):
        self.weight = weight.contiguous(memory_format=torch.channels_last) if self.conv else weight

    def __call__(self, x):
        if self.conv:
            x = convolve(x, self.weight, self.module.padding, self.pad)
        else:
            x = F.linear(x.flatten(1), self.weight)
        if self.threshold is None:
            return x
        # between two whole numbers, so that sums which a fast algorithm rounds do no harm
        reached = x > self.threshold.view(-1, *[1] * (x.dim() - 2)) - 0.5
        return self.pooled(torch.where(reached, 1.0, -1.0))

    def pooled(self, x):
        """The 2×2 max pool, where there is one."""
        if not self.pool:
            return x
        height, width = (size // 2 * 2 for size in x.shape[2:])
        x = torch.maximum(x[:, :, 0:height:2], x[:, :, 1:height:2])
        return torch.maximum(x[..., 0:width:2], x[..., 1:width:2])


class _Int8Layer(_Layer):
    """The same on uint8: 0 and 2 for -1 and +1.

    The padding is 0, too: with zero point 1 (as for the input 128) it is a true zero, with zero point 0 it is a -1, and
    the sums are larger by the sum of their weights.
    """

    def pack(self, weight):
        hidden, outputs = self.threshold is not None, len(weight)
        zero_point = 0 if self.pad else self.inputs
        # 2·sum - 2·threshold + 2, clamped to 0 .. 2, is 0 below the threshold and 2 from it on.
        scale = torch.full((outputs,), 2.0 if hidden else 1.0)
        bias = 2 - 2 * self.threshold if hidden else None
        if self.pad:
            bias = (bias if hidden else 0) - scale * weight.flatten(1).sum(1)
        after = (torch.uint8, "hardtanh", [0.0, 2.0], "") if hidden else (torch.float32, "none", [], "")
        if self.conv:
            geometry = ([1, 1], list(self.module.padding), [1, 1], 1)  # stride, padding, dilation, groups
            self.run = torch.ops.onednn.qconv2d_pointwise
            packed = torch.ops.onednn.qconv_prepack(weight.to(torch.int8), scale, 1.0, zero_point, *geometry)
        else:
            geometry = ()
            self.run = torch.ops.onednn.qlinear_pointwise
            packed = torch.ops.onednn.qlinear_prepack(weight.to(torch.int8), None)
        zeros = torch.zeros(outputs, dtype=torch.int32)
        self.arguments = (1.0, zero_point, packed, scale, zeros, bias, *geometry, 1.0, 0, *after)

    def __call__(self, x):
        x = x.contiguous(memory_format=torch.channels_last) if self.conv else x.flatten(1)
        return self.pooled(self.run(x, *self.arguments))


@torch.inference_mode()
def find_threshold(norm, unit, bound):
    """Least whole number t with norm(s·t·unit) >= 0, s being the sign of the norm's gain: float32, one per channel.

    Searched from -bound to bound; more than bound where there is none.
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
    """Does PyTorch's 8-bit arithmetic run on this CPU, and give exactly what float32 gives? Tried on small layers."""
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
    except (AttributeError, RuntimeError):  # another PyTorch, or one without oneDNN
        return False
    return True
