"""Weight-standardised binary layers.

Before every forward pass, in training and in evaluation, the layer computes with

    (w - mean(w)) / (std(w) + 1e-8) / sqrt(numel(w))

instead of its latent weight w, mean and std over the whole tensor. As in the original this is no part of the
graph: in training it replaces the latent weight itself, and the gradient goes to the standardised weight. In
evaluation the parameter stays as it is. Binarisation ignores the scale, so what changes the forward pass is
the mean: a layer holds about as many +1 as -1.

Source: the idea is Qiao et al., "Micro-Batch Training with Batch-Channel Normalization and Weight
Standardization" (2019), there per output channel; the formula is the original repository's.
"""

import torch

from models.quant import BinaryConv2d, BinaryLinear


def standardize(weight):
    """Zero mean and, but for the 1e-8, standard deviation numel^(-1/2) over the whole tensor; same shape and dtype."""
    return (weight - weight.mean()) / (weight.std() + 1e-8) / weight.numel() ** 0.5


class _WeightStandardized:
    """Mix-in for binary layers: standardises what their weight quantiser sees."""

    def quant_weight(self, *args, **kwargs):
        with torch.no_grad():
            if not self.training:  # in float64 no sign depends on how threads share the sums out
                return self.weight_quant(standardize(self.weight.double()).float())
            self.weight.copy_(standardize(self.weight))
        return super().quant_weight(*args, **kwargs)


class WSConv2d(_WeightStandardized, BinaryConv2d):
    """BinaryConv2d on a standardised weight; same arguments."""


class WSLinear(_WeightStandardized, BinaryLinear):
    """BinaryLinear on a standardised weight; same arguments."""
