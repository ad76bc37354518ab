"""Binary layers with weight standardisation (WS).

In training and in evaluation the layer computes with the signs of

    (w - mean(w)) / (std(w) + 1e-8) / sqrt(numel(w))

where w is its latent weight, mean and std over the whole tensor. The latent weight itself is not changed: the optimiser
steps it, checkpoints hold it, and weight noise is added to it. The gradient of the standardised weight goes to the
latent weight as it is. Binarisation ignores the scale, so what changes the forward pass is the mean: a layer holds
about as many +1 as -1.

Source: the idea is Qiao et al., "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization"
(2019), there per output channel; the formula is the original repository's.
"""

from models.quant import BinaryConv2d, BinaryLinear


def standardize(weight):
    """Zero mean and, but for the 1e-8, standard deviation numel^(-1/2) over the whole tensor; same shape and dtype."""
    return (weight - weight.mean()) / (weight.std() + 1e-8) / weight.numel() ** 0.5


class _WeightStandardized:
    """Mix-in for binary layers: their quantiser sees the standardised latent weight.

    standardized: True while `weight` holds weights that are standardised already (training_faults.py).
    """

    standardized = False

    def latent_weight(self):
        if self.standardized:
            return self.weight
        weight = self.weight.detach()
        value = standardize(weight.double()).float()  # in float64, so that threads share the sums out as they like
        return value + (self.weight - weight)  # plus 0, whose gradient is 1


class WSConv2d(_WeightStandardized, BinaryConv2d):
    """BinaryConv2d on a standardised weight; same arguments."""


class WSLinear(_WeightStandardized, BinaryLinear):
    """BinaryLinear on a standardised weight; same arguments."""
