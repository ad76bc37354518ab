"""Faulty weights: noise on latent weights, flips of binary weights, in evaluation and in training."""

from contextlib import contextmanager, nullcontext
from itertools import count

import torch

from faults.cells import drawn_masks, misread_masks, misreads, step_seed, wrong_cells
from faults.fault import NO_FAULT, NOISE_KINDS
from faults.layers import chosen_layers, in_layers
from models.wsconv import WSConv2d, WSLinear, standardize


def faulty_weights(fault, net, seed):
    """A context manager: inside the `with`, the net has faulty weights. Yields the share of signs flipped, 0 to 1.

    A Fault of another memory leaves the weights unchanged, and yields None.
    """
    if fault.kind == "flips":
        return weight_flips(net, fault.level, seed)
    if fault.kind in NOISE_KINDS:
        return weight_noise(net, fault.level, seed, relative=fault.kind == "noise_relative")
    return nullcontext()


@contextmanager
def weight_noise(net, sigma_val, seed, relative=False):
    """Adds, inside the `with`, Gaussian noise of standard deviation sigma_val² to all latent weights of the net.

    The noise is absolute, as in the original (sigma_val 0.8: standard deviation 0.64), or with `relative` in
    units of each layer's root mean square weight. It is added before weight standardisation and binarisation.
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
    """Flips, inside the `with`, the sign of each binary weight of the net with `probability`, independently.

    Binary weights are flipped after weight standardisation; latent weights do not change. With the same seed, a
    weight that is flipped at one probability is flipped at every higher one. Yields the share of weights flipped,
    0 to 1. net: a CNV in evaluation mode.
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
    """Weight faults in training: there in every forward pass, removed before the optimiser's step.

    flip: probability that a binary weight has the other sign, below 1. noise: standard deviation of Gaussian noise on
    the latent weights, in units of each layer's root mean square weight. fault: in place of both, a Fault of cells of
    the weight memory; one of another memory breaks no weights. Its persistent cells are those of an evaluation with
    the same seed. A weight that is read wrong is negated, so a softened weight is, too.
    With weight standardisation, noise is added before it and signs are flipped or misread after it, as in evaluation.
    The gradient is computed at the faulty weights, and the optimiser applies it to the intact latent weights. Flips,
    noise and transient cells of a step depend on (seed, step) alone. For speed, each step reads a random window of one
    pre-drawn buffer of normal numbers, of sign bits, or of cells.
    """

    SHIFTS = 1 << 20  # number of places where the window may start

    def __init__(self, net, flip, noise, seed, fault=NO_FAULT):
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
        self.masks = None  # (up, down) of the cells, as of misreads: bool, in memory order
        if fault.memory == "weights":
            self.transient = not fault.persistent
            self.chosen = chosen_layers(fault, net.layer_names()) if fault.cells else [True] * len(self.layers)
            if self.transient:
                self.masks = drawn_masks(fault, fault.level, (self.total + self.SHIFTS,), self.generator)
            else:
                self.masks = [self._in_memory_order(mask) for mask in self._persistent(fault, net)]

    @contextmanager
    def at(self, step):
        """Inside the `with`, the weights have the faults of a step, counted from 0."""
        if not (self.flip or self.noise or self.masks):
            yield
            return
        self.generator.manual_seed(step_seed(self.seed, step, 2))
        with_ws = [isinstance(layer, (WSConv2d, WSLinear)) for layer in self.layers]
        # as_strided: all weights of a layer in memory order, whatever its memory format
        flat = [layer.weight.data.as_strided((layer.weight.numel(),), (1,)) for layer in self.layers]
        # None where no copy is needed: undoing the flips restores these weights exactly
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
        flips = self._flips(flat, flip_start)
        for weight, bits in flips:
            weight.view(torch.int32).bitwise_xor_(bits)
        try:
            yield
        finally:
            for layer, ws in zip(self.layers, with_ws):
                if ws:
                    layer.standardized = False
            for weight, bits in flips:
                weight.view(torch.int32).bitwise_xor_(bits)
            for weight, before in zip(flat, intact):
                if before is not None:
                    weight.copy_(before)

    def _flips(self, weights, start):
        """[(weight, its sign bits to flip, int32)] of the layers whose signs flip or are misread. weights: flat."""
        if self.flip:
            return list(zip(weights, self._window(self.sign_bits, start)))
        if not self.masks:
            return []
        ups, downs = (self._window(mask, start if self.transient else 0) for mask in self.masks)
        found = []
        for weight, up, down, chosen in zip(weights, ups, downs, self.chosen):
            if chosen:
                wrong = torch.where(weight >= 0, down, up)
                found.append((weight, wrong.to(torch.int32).mul_(SIGN_BIT)))
        return found

    def _persistent(self, fault, net):
        """(up, down) of the cells that an evaluation with the same seed has: bool, in the order of their addresses."""
        if fault.kind == "flips":
            with weight_flips(net, fault.level, self.seed):
                flips = torch.cat([layer.flips.flatten() for layer in self.layers])
            return flips, flips
        select = in_layers(self.chosen, [layer.weight.numel() for layer in self.layers])
        return misread_masks(fault, self.total, self.seed, select)

    def _in_memory_order(self, mask):
        """A mask in the order of the net's tensors, in the order of their memory, whatever their memory format."""
        parts = []
        for layer, part in zip(self.layers, self._window(mask, 0)):
            same = torch.empty_like(layer.weight, dtype=torch.bool).copy_(part.view(layer.weight.shape))
            parts.append(same.as_strided((same.numel(),), (1,)))
        return torch.cat(parts)

    def _window(self, store, start):
        """The window of a buffer that begins at `start`, split into one tensor for each layer."""
        return store[start : start + self.total].split([layer.weight.numel() for layer in self.layers])


class WeightMemory:
    """The net's binary weights as they are stored: one bit for each, 1 for +1, layer by layer in the order of tensors.

    Weights are read after weight standardisation; latent weights do not change. net: a CNV in evaluation mode.
    """

    def __init__(self, net):
        self.layers = net.binary_layers()
        self.names = net.layer_names()
        self.sizes = [layer.weight.numel() for layer in self.layers]
        with torch.no_grad():
            signs = torch.cat([layer.quant_weight().value.flatten() for layer in self.layers])
        self.held = (signs > 0).to(torch.uint8).cpu().numpy()

    def wrong(self, fault, seed, image=None):
        """The addresses, int64, of the weights that are read wrong. image: the number of the image; None: of all."""
        select = in_layers(chosen_layers(fault, self.names), self.sizes)
        up, down = misreads(fault, len(self.held), seed, image, select)
        return torch.from_numpy(wrong_cells(up, down, self.held.__getitem__))

    @contextmanager
    def flipped(self, addresses):
        """Inside the `with`, the net's weights at these addresses have the other sign."""
        wrong = torch.zeros(len(self.held), dtype=torch.bool)
        wrong[addresses] = True
        try:
            for layer, flips in zip(self.layers, wrong.split(self.sizes)):
                layer.flips = flips.view(layer.weight.shape).to(layer.weight.device)
            yield
        finally:
            for layer in self.layers:
                layer.flips = None


@contextmanager
def misread_weights(fault, net, seed):
    """Inside the `with`, persistent cells of the weight memory read as the fault says. Yields the share that flips."""
    memory = WeightMemory(net)
    wrong = memory.wrong(fault, seed)
    with memory.flipped(wrong):
        yield len(wrong) / len(memory.held)


FLIPS_AT_ONCE = 50_000_000  # about as many addresses are held twice, 800 MB
IMAGES_AT_ONCE = 25


@contextmanager
def misread_weights_of_each(fault, net, tester, seed, numbers=None):
    """Inside the `with`, transient cells of the weight memory read as the fault says, for one pass over the images.

    tester: what is evaluated, the net itself or Folded(net). numbers: of the images, in the order in which they come,
    by default 0, 1, 2, …; what breaks for image i depends on (fault, seed, i) alone.
    """
    memory, numbers = WeightMemory(net), iter(count() if numbers is None else numbers)

    def wrong_of_next():
        return memory.wrong(fault, seed, int(next(numbers)))

    if tester is net:
        with _flips_before_each(memory, net, wrong_of_next):
            yield
        return
    tester.vary = lambda images: tester.flip_weights([wrong_of_next() for _ in range(images)])
    tester.chunk = max(1, min(IMAGES_AT_ONCE, int(FLIPS_AT_ONCE / (1 + fault.level * len(memory.held)))))
    try:
        yield
    finally:
        tester.vary = tester.chunk = None
        tester.flip_weights([])


@contextmanager
def _flips_before_each(memory, net, wrong_of_next):
    """The same for Brevitas' own net."""
    forward = net.forward

    def one_by_one(images):
        found = []
        for image in images:
            with memory.flipped(wrong_of_next()):
                found.append(forward(image[None]))
        return torch.cat(found)

    net.forward = one_by_one
    try:
        yield
    finally:
        del net.forward
