"""Binary layers with weight standardisation (WS).

In training and in evaluation the layer computes with the signs of

    (w - mean(w)) / (std(w) + 1e-8) / sqrt(numel(w))

where w is its latent weight, mean and std over the whole tensor. The latent weight itself is not changed: the optimiser
steps it, checkpoints hold it, and weight noise is added to it. The gradient of the standardised weight is passed to
the latent weight unchanged. Binarisation ignores the scale, so only subtracting the mean changes the forward pass: a
layer holds about as many +1 as -1.

Source: the idea is Qiao et al., "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization"
(2019), there per output channel; the formula is the original repository's.
"""

from models.quant import BinaryConv2d, BinaryLinear


def standardize(weight):
    """The tensor with mean 0 and standard deviation numel^(-1/2) (apart from the 1e-8); same shape and dtype."""
    return (weight - weight.mean()) / (weight.std() + 1e-8) / weight.numel() ** 0.5


class _WeightStandardized:
    """Mix-in for binary layers: their quantiser sees the standardised latent weight.

    standardized: True while `weight` is standardised already (TrainingFaults in faults/weights.py).
    """

    standardized = False

    def latent_weight(self):
        if self.standardized:
            return self.weight
        weight = self.weight.detach()
        value = standardize(weight.double()).float()  # float64, so that it does not matter how threads split the sums
        return value + (self.weight - weight)  # adds 0, which has gradient 1


class WSConv2d(_WeightStandardized, BinaryConv2d):
    """BinaryConv2d on a standardised weight; same arguments."""


class WSLinear(_WeightStandardized, BinaryLinear):
    """BinaryLinear on a standardised weight; same arguments."""
