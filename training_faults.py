"""Faults of the weights while a net is trained, so that it learns to bear them."""

from contextlib import contextmanager
from itertools import compress

import numpy as np
import torch

from models.wsconv import WSConv2d, WSLinear


class TrainingFaults:
    """Faults of the weights in training: fresh ones in every forward pass, gone before the optimiser's step.

    flip: probability that a binary weight has the other sign, below 1. noise: standard deviation of Gaussian noise on the
    latent weights, in units of each layer's root mean square weight. The gradient is that at the faulty weights; it
    goes to the latent weights as they were. What a step draws depends on (seed, step) alone. For that to cost little,
    the noise of a step is a window, somewhere in a store of normal numbers that is drawn once.
    """

    SHIFTS = 1 << 20  # places at which the window may begin

    def __init__(self, net, flip, noise, seed):
        self.layers, self.flip, self.noise, self.seed = net.binary_layers(), flip, noise, seed
        self.total = sum(layer.weight.numel() for layer in self.layers)
        device = self.layers[0].weight.device
        self.generator = torch.Generator(device)
        if noise:
            self.generator.manual_seed(seed)
            self.store = torch.randn(self.total + self.SHIFTS, generator=self.generator, device=device)

    @contextmanager
    def at(self, step):
        """Inside the `with`, the weights have the faults of a step, counted from 0."""
        if not (self.flip or self.noise):
            yield
            return
        self.generator.manual_seed(int(np.random.SeedSequence([self.seed, step, 2]).generate_state(1)[0]))
        standardised = [isinstance(layer, (WSConv2d, WSLinear)) for layer in self.layers]
        with torch.no_grad():
            for layer in compress(self.layers, standardised):
                layer.quant_weight()  # standardises the latent weights, as the forward pass would
        # as_strided: all weights of a layer in the order of memory, whatever its format
        flat = [layer.weight.data.as_strided((layer.weight.numel(),), (1,)) for layer in self.layers]
        # flipping back mends the others exactly
        intact = [weight.clone() if self.noise or anew else None for weight, anew in zip(flat, standardised)]
        if self.noise:
            start = int(torch.randint(self.SHIFTS, (), generator=self.generator, device=flat[0].device))
            for weight in flat:
                weight.add_(self.store[start : start + len(weight)], alpha=self.noise * weight.square().mean().sqrt().item())
                start += len(weight)
        flipped = self._flipped(flat) if self.flip else []
        for weight, places in zip(flat, flipped):
            weight[places] *= -1
        try:
            yield
        finally:
            for weight, places in zip(flat, flipped):
                weight[places] *= -1
            for weight, before in zip(flat, intact):
                if before is not None:
                    weight.copy_(before)

    def _flipped(self, flat):
        """For each layer the places of the weights that flip: the gaps between flips are geometrically distributed."""
        expected = self.total * self.flip
        number = int(expected + 8 * (expected**0.5 + 1))
        gaps = torch.empty(number, dtype=torch.float64, device=flat[0].device).geometric_(self.flip, generator=self.generator)
        places = gaps.cumsum(0).long() - 1
        ends = torch.tensor([len(weight) for weight in flat], device=places.device).cumsum(0)
        cuts = torch.searchsorted(places, ends).tolist()
        starts = [0, *ends.tolist()]
        return [places[low:high] - start for low, high, start in zip([0, *cuts], cuts, starts)]
