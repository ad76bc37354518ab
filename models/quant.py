"""Quantisers of the CNV nets, and the normalisation of their logits.

All scales are constants, so none of the quantisers adds a key to the state dict: checkpoints hold latent
weights, batch-norm statistics and TensorNorm only.
"""

import torch
import torch.nn.functional as F
from brevitas.core.bit_width import BitWidthImplType
from brevitas.core.quant import QuantType
from brevitas.core.restrict_val import FloatToIntImplType, RestrictValueType
from brevitas.core.scaling import ScalingImplType
from brevitas.core.zero_point import ZeroZeroPoint
from brevitas.inject import ExtendedInjector
from brevitas.nn import QuantConv2d, QuantLinear
from brevitas.quant.solver import ActQuantSolver, WeightQuantSolver
from torch import nn


class _ConstantScale(ExtendedInjector):
    bit_width_impl_type = BitWidthImplType.CONST
    scaling_impl_type = ScalingImplType.CONST
    scaling_per_output_channel = False
    restrict_scaling_type = RestrictValueType.FP
    float_to_int_impl_type = FloatToIntImplType.ROUND
    zero_point_impl = ZeroZeroPoint
    signed = True


class BinaryWeight(_ConstantScale, WeightQuantSolver):
    """w >= 0 -> +1, else -1; the gradient passes unchanged, whatever the size of the latent weight."""

    quant_type = QuantType.BINARY
    bit_width = 1
    scaling_const = 1.0


class BinaryActivation(_ConstantScale, ActQuantSolver):
    """x >= 0 -> +1, else -1; the gradient passes where |x| <= 1."""

    quant_type = QuantType.BINARY
    bit_width = 1
    min_val = -1.0
    max_val = 1.0


class InputQ1_7(_ConstantScale, ActQuantSolver):
    """8-bit fixed point: multiples of 2^-7 from -1 to 1 - 2^-7."""

    quant_type = QuantType.INT
    bit_width = 8
    min_val = -1.0
    max_val = 1.0 - 2.0**-7
    narrow_range = False
    restrict_scaling_type = RestrictValueType.POWER_OF_TWO


class _Binary:
    """Mix-in for Brevitas' layers: the latent weight, softened weights in training, and flipped signs.

    In training a layer computes with signs + softness·(latent - signs), where `latent` is the latent weight divided by
    twice its mean magnitude and clamped to [-1, 1]. The gradient passes unchanged to the latent weight, as it does
    through the signs, for every softness.

    softness: a scalar buffer, 0 for signs, not saved.
    flips: None, or a bool tensor of the shape of `weight`, True for binary weights with the other sign
    (faults/weights.py).
    """

    flips = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("softness", torch.zeros(()), persistent=False)

    def latent_weight(self):
        """The real-valued weight that is binarised: float32, of the shape of `weight`."""
        return self.weight

    def quant_weight(self, *args, **kwargs):
        weight = self.weight_quant(self.latent_weight())
        return weight if self.flips is None else weight.set(value=torch.where(self.flips, -weight.value, weight.value))

    def inner_forward_impl(self, x, weight, bias):
        if self.training:
            signs, latent = weight.value, self.latent_weight().detach()
            latent = (latent / (2 * latent.abs().mean())).clamp(-1, 1)
            weight = signs + self.softness * (latent - signs.detach())
        return super().inner_forward_impl(x, weight, bias)


def convolve(x, weight, padding, value):
    """2-d convolution of stride 1. padding: (rows, columns) on each side, filled with `value`."""
    if value == 0:
        return F.conv2d(x, weight, padding=padding)
    rows, columns = padding
    return F.conv2d(F.pad(x, (columns, columns, rows, rows), value=value), weight)


class BinaryConv2d(_Binary, QuantConv2d):
    """brevitas.nn.QuantConv2d of stride 1, without bias, whose weights can be softened in training; same arguments.

    pad: the value of the padding, 0 or -1.
    """

    def __init__(self, *args, pad=0, **kwargs):
        super().__init__(*args, **kwargs)
        self.pad = pad

    def _conv_forward(self, x, weight, bias):
        return convolve(x, weight, self.padding, self.pad)


class BinaryLinear(_Binary, QuantLinear):
    """brevitas.nn.QuantLinear whose weights can be softened in training; same arguments."""


class TensorNorm(nn.Module):
    """Batch norm with one mean and one variance for the whole tensor, scalar weight and bias.

    float32 of any shape -> float32 of the same shape. Training normalises by the batch's mean and biased
    variance, and updates the running statistics by the mean and unbiased variance. Evaluation normalises by the
    running statistics. It replaces a batch norm after the last layer because one affine map over all logits keeps
    their order: hardware can leave it out.

    Source: Brevitas' bnn_pynq examples.
    """

    def __init__(self, eps=1e-4, momentum=0.1):
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))
        self.register_buffer("running_mean", torch.zeros(1))
        self.register_buffer("running_var", torch.ones(1))

    def forward(self, x):
        if x.dtype != torch.float32:
            x = x.float()  # bf16 logits would lose the statistics
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean, var = x.mean(), x.var(unbiased=False)
            with torch.no_grad():
                self.running_mean.lerp_(mean.detach().view(1), self.momentum)
                self.running_var.lerp_(x.detach().var(unbiased=True).view(1), self.momentum)
        return (x - mean) / (var + self.eps).sqrt() * self.weight + self.bias
