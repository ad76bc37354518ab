"""Faulty weights: noise on the latent ones, flips of the binary ones, in evaluation and in training."""

from contextlib import contextmanager, nullcontext

import numpy as np
import torch

from faults.fault import NOISE_KINDS
from models.wsconv import WSConv2d, WSLinear, standardize


def faulty_weights(fault, net, seed):
    """A context manager under which a net has the weights of a Fault. It yields the share of signs flipped, 0 to 1.

    None for a fault of other memories, which leaves the weights alone.
    """
    if fault.kind == "flips":
        return weight_flips(net, fault.level, seed)
    if fault.kind in NOISE_KINDS:
        return weight_noise(net, fault.level, seed, relative=fault.kind == "noise_relative")
    return nullcontext()


@contextmanager
def weight_noise(net, sigma_val, seed, relative=False):
    """Inside the `with`, Gaussian noise of standard deviation sigma_val² lies on all latent weights of the net.

    The noise is absolute, as the original's (sigma_val 0.8: standard deviation 0.64), or with `relative` in
    units of each layer's root mean square weight. It comes before weight standardisation and binarisation.
    Yields the share of binary weights, 0 to 1, whose sign it flips. The weights are restored exactly
    afterwards, after an exception too. net: a CNV in evaluation mode.
    """
    layers = net.binary_layers()
    generator = torch.Generator().manual_seed(seed)
    latent = [layer.weight.detach().clone() for layer in layers]
    flipped = 0
    try:
        with torch.no_grad():
            for layer in layers:
                before = torch.signbit(layer.quant_weight().value)
                unit = layer.weight.double().square().mean().sqrt().float() if relative else 1.0
                noise = torch.randn(layer.weight.shape, generator=generator) * sigma_val**2
                layer.weight += noise.to(layer.weight.device) * unit
                flipped += (torch.signbit(layer.quant_weight().value) != before).sum().item()
        yield flipped / sum(weight.numel() for weight in latent)
    finally:
        with torch.no_grad():
            for layer, weight in zip(layers, latent):
                layer.weight.copy_(weight)


@contextmanager
def weight_flips(net, probability, seed):
    """Inside the `with`, each binary weight of the net has the other sign with `probability`, independently.

    It is the binary weight that flips, after weight standardisation; latent weights stay as they are. What is
    flipped at a probability is flipped at every higher one with the same seed. Yields the share of weights
    flipped, 0 to 1. net: a CNV in evaluation mode.
    """
    layers = net.binary_layers()
    generator = torch.Generator().manual_seed(seed)
    flipped = 0
    try:
        for layer in layers:
            flips = torch.rand(layer.weight.shape, generator=generator) < probability
            flipped += flips.sum().item()
            layer.flips = flips.to(layer.weight.device)
        yield flipped / sum(layer.weight.numel() for layer in layers)
    finally:
        for layer in layers:
            layer.flips = None


SIGN_BIT = -(1 << 31)  # of a float32, as int32


class TrainingFaults:
    """Faults of the weights in training: fresh ones in every forward pass, gone before the optimiser's step.

    flip: probability that a binary weight has the other sign, below 1. noise: standard deviation of Gaussian noise on
    the latent weights, in units of each layer's root mean square weight. With weight standardisation noise comes before
    it and flips after it, as in evaluation. The gradient is that at the faulty weights; it goes to the latent weights
    as they were. What a step draws depends on (seed, step) alone. For speed, each step reads a random window of one
    store of normal numbers, or of sign bits, that is drawn once.
    """

    SHIFTS = 1 << 20  # places at which the window may begin

    def __init__(self, net, flip, noise, seed):
        self.layers, self.flip, self.noise, self.seed = net.binary_layers(), flip, noise, seed
        self.total = sum(layer.weight.numel() for layer in self.layers)
        device = self.layers[0].weight.device
        self.generator = torch.Generator(device)
        self.generator.manual_seed(seed)
        if noise:
            self.normal = torch.randn(self.total + self.SHIFTS, generator=self.generator, device=device)
        if flip:
            flips = torch.rand(self.total + self.SHIFTS, generator=self.generator, device=device) < flip
            self.sign_bits = torch.where(flips, SIGN_BIT, 0).to(torch.int32)

    @contextmanager
    def at(self, step):
        """Inside the `with`, the weights have the faults of a step, counted from 0."""
        if not (self.flip or self.noise):
            yield
            return
        self.generator.manual_seed(int(np.random.SeedSequence([self.seed, step, 2]).generate_state(1)[0]))
        with_ws = [isinstance(layer, (WSConv2d, WSLinear)) for layer in self.layers]
        # as_strided: all weights of a layer in the order of memory, whatever its format
        flat = [layer.weight.data.as_strided((layer.weight.numel(),), (1,)) for layer in self.layers]
        # None: undoing the flips restores these exactly
        intact = [weight.clone() if self.noise or ws else None for weight, ws in zip(flat, with_ws)]
        noise_start, flip_start = torch.randint(
            self.SHIFTS, (2,), generator=self.generator, device=flat[0].device
        ).tolist()
        if self.noise:
            for weight, noise in zip(flat, self._window(self.normal, noise_start)):
                weight.add_(noise, alpha=self.noise * weight.square().mean().sqrt().item())
        for layer, weight, ws in zip(self.layers, flat, with_ws):
            if ws:
                weight.copy_(standardize(weight.double()))
                layer.standardized = True
        flips = self._window(self.sign_bits, flip_start) if self.flip else []
        for weight, bits in zip(flat, flips):
            weight.view(torch.int32).bitwise_xor_(bits)
        try:
            yield
        finally:
            for layer, ws in zip(self.layers, with_ws):
                if ws:
                    layer.standardized = False
            for weight, bits in zip(flat, flips):
                weight.view(torch.int32).bitwise_xor_(bits)
            for weight, before in zip(flat, intact):
                if before is not None:
                    weight.copy_(before)

    def _window(self, store, start):
        """Of a store what falls to each layer."""
        return store[start : start + self.total].split([layer.weight.numel() for layer in self.layers])
