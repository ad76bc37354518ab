"""CNV: the binarised VGG-like nets, 1-bit weights, 1-bit activations, 8-bit input.

Source: Brevitas' bnn_pynq CNV (Umuroglu et al., "FINN", 2017), here with padding and other widths. The
modules are in two ModuleLists, in the order of the original repository, because checkpoint keys depend on it.
"""

import math
from typing import NamedTuple

import torch
from brevitas.nn import QuantIdentity
from torch import nn

from models.fused import normalized_signs
from models.quant import BinaryActivation, BinaryConv2d, BinaryLinear, BinaryWeight, InputQ1_7, TensorNorm
from models.wsconv import WSConv2d

EPS = 1e-4  # of every batch norm


class Topology(NamedTuple):
    size: int  # input height and width, pixels
    conv: tuple  # one (output channels, 2×2 max pool after it?) for each 3×3 convolution
    fc: tuple  # widths of the hidden fully connected layers
    padding: int = 1

    @property
    def flat(self):
        """Number of values between the convolutions and the fully connected layers."""
        size = self.size
        for _, pool in self.conv:
            size = (size + 2 * self.padding - 2) // (2 if pool else 1)
        return self.conv[-1][0] * size * size


TOPOLOGIES = {
    "cifar_smaller": Topology(
        size=32,
        conv=((64, False), (64, True), (128, False), (128, True), (256, False), (256, False)),
        fc=(1024, 512),
    ),
    "tiny_imagenet_smaller": Topology(
        size=64,
        conv=tuple((width, i == 2) for width in (16, 32, 64, 128, 256) for i in range(3)),
        fc=(512, 256),
    ),
}


class CNV(nn.Module):
    """float32 images N×channels×size×size in [0, 1] -> float32 logits N×classes.

    topology: a Topology. classes: number of logits. channels: of the images.
    wsconv: True for convolutions with weight standardisation (models/wsconv.py).
    pad: value with which the hidden convolutions pad their ±1 inputs, 0 or -1. The first one pads the image with 0.
    init: latent weights start uniform in (-init, init). The net depends on their signs only, so only the ratio of
    the learning rate to init matters.
    """

    def __init__(self, topology, classes, wsconv=False, init=1.0, channels=3, pad=0):
        super().__init__()
        self.topology, self.classes, self.wsconv, self.pad = topology, classes, wsconv, pad
        conv_layer = WSConv2d if wsconv else BinaryConv2d
        self.conv_features = nn.ModuleList([QuantIdentity(act_quant=InputQ1_7)])
        for i, (width, pool) in enumerate(topology.conv):
            padding = {"padding": topology.padding, "pad": pad if i else 0}
            self.conv_features += [
                conv_layer(channels, width, 3, bias=False, weight_quant=BinaryWeight, **padding),
                nn.BatchNorm2d(width, eps=EPS),
                QuantIdentity(act_quant=BinaryActivation),
            ]
            if pool:
                self.conv_features.append(nn.MaxPool2d(2))
            channels = width

        self.linear_features = nn.ModuleList()
        features = topology.flat
        for width in topology.fc:
            self.linear_features += [
                BinaryLinear(features, width, bias=False, weight_quant=BinaryWeight),
                nn.BatchNorm1d(width, eps=EPS),
                QuantIdentity(act_quant=BinaryActivation),
            ]
            features = width
        self.linear_features += [
            BinaryLinear(features, classes, bias=False, weight_quant=BinaryWeight),
            TensorNorm(eps=EPS),
        ]
        # softness of the activations in training: 0 for ±1, 1 for hard tanh, between them a mixture; not saved
        self.register_buffer("softness", torch.zeros(()), persistent=False)
        # in training, for each hidden layer None or (factor, summand) of its stored maps, int8 (faults.TrainingMaps)
        self.misreads = None
        for layer in self.binary_layers():
            nn.init.uniform_(layer.weight, -init, init)

    def binary_layers(self):
        """The convolutions and linear layers, from input to output; `.weight` is the latent weight, float32."""
        return [module for module in self.modules() if isinstance(module, (BinaryConv2d, BinaryLinear))]

    def layer_names(self):
        """Names of the binary layers, from input to output: conv1, conv2, …, fc1, fc2, …"""
        convolutions, fully_connected = range(len(self.topology.conv)), range(len(self.topology.fc) + 1)
        return [*(f"conv{i + 1}" for i in convolutions), *(f"fc{i + 1}" for i in fully_connected)]

    def stored_maps(self):
        """The modules whose outputs are the feature maps between the layers: activations, or the max pool after one."""
        modules = [*self.conv_features, *self.linear_features]
        ends = [modules.index(layer) - 1 for layer in self.binary_layers()[1:]]
        return [modules[end] for end in ends]

    def map_shapes(self):
        """Shape of each of these feature maps as it is stored, for one image: (H, W, C), or (C,)."""
        shapes, size = [], self.topology.size
        for width, pool in self.topology.conv:
            size = (size + 2 * self.topology.padding - 2) // (2 if pool else 1)
            shapes.append((size, size, width))
        return [*shapes, *((width,) for width in self.topology.fc)]

    def map_sizes(self):
        """Number of values of each of these feature maps, for one image."""
        return [math.prod(shape) for shape in self.map_shapes()]

    def norms(self):
        """The modules with running statistics: the batch norms and the TensorNorm of the logits."""
        return [module for module in self.modules() if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d, TensorNorm))]

    @torch.no_grad()
    def take_signs(self, net, init):
        """Set each latent weight to -init or +init, with the sign of the corresponding binary weight of `net`.

        net: a CNV of the same topology, with or without weight standardisation, in evaluation mode; may be this one.
        Weight standardisation subtracts the layer's mean, which lies between -init and +init, so the signs stay.
        """
        for layer, trained in zip(self.binary_layers(), net.binary_layers(), strict=True):
            layer.weight.copy_(torch.where(trained.quant_weight().value < 0, -init, init))

    def soften(self, activations, weights):
        """Set the softness of both in training: 0 for ±1; 1 for hard tanh, and for clamped latent weights."""
        self.softness.fill_(activations)
        for layer in self.binary_layers():
            layer.softness.fill_(weights)

    def forward(self, x):
        x = 2 * x - 1
        x = self._convolve(x)
        x = x.flatten(1)  # N×flat, in the order channel, row, column
        layer = len(self.topology.conv)  # number of the hidden layer whose modules come next
        for module in self.linear_features:
            x = self._apply_to(x, module)
            if isinstance(module, QuantIdentity):
                x = self._read(x, layer)
                layer += 1
        return x

    def _read(self, x, layer):
        """The stored maps of a hidden layer as the next layer reads them: in training, some cells are misread."""
        if not self.training or self.misreads is None or self.misreads[layer] is None:
            return x
        factor, summand = (part[: len(x)] for part in self.misreads[layer])
        return x * factor + summand

    def _apply_to(self, x, module):
        """module(x); a binary activation is softened in training. The gradient is the same for every softness."""
        signs = module(x)
        if self.training and isinstance(module, QuantIdentity) and module is not self.conv_features[0]:
            return signs + self.softness * (x.clamp(-1, 1) - signs)
        return signs

    def _convolve(self, x):
        """Applies conv_features to x. Compiled for training on a CPU, batch norm, activation and pool run fused."""
        fuse = self.training and torch.compiler.is_compiling() and x.device.type == "cpu"
        modules, layer = list(self.conv_features), -1  # number of the layer whose modules are applied
        while modules:
            module = modules.pop(0)
            layer += isinstance(module, BinaryConv2d)
            if fuse and isinstance(module, nn.BatchNorm2d) and x.is_contiguous(memory_format=torch.channels_last):
                pool = (
                    len(modules) > 1 and isinstance(modules[1], nn.MaxPool2d) and x.shape[2] % 2 == x.shape[3] % 2 == 0
                )
                del modules[: 1 + pool]
                x = normalized_signs(x, module, self.softness, pool)
            else:
                x = self._apply_to(x, module)
            if layer >= 0 and (not modules or isinstance(modules[0], BinaryConv2d)):
                x = self._read(x, layer)
        return x
