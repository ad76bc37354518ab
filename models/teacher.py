"""The teacher of a distillation: a small float residual net, whose softened predictions a binary net learns.

It is for training only; the binary net that it has taught is evaluated and exported without it. Its forward pass is
kept cheap beside a training step of the binary net: three stages, each a convolution, a 2×2 max pool and residual
convolutions at the smaller size.
"""

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

WIDTHS = {32: (32, 64, 192, 256), 64: (32, 64, 128, 256)}  # of stem and stages, for each image size
RESIDUALS = (1, 1, 2)  # residual convolutions of each stage


class Teacher(nn.Module):
    """float32 images N×3×size×size in [0, 1] -> float logits N×classes.

    size: 32 or 64 pixels; images of 64 pixels are halved by the stem. classes: number of logits.
    """

    def __init__(self, size, classes):
        super().__init__()
        self.size, self.classes = size, classes
        stem, *widths = WIDTHS[size]
        self.stem = _convolution(3, stem, stride=size // 32)
        self.stages, self.residuals = nn.ModuleList(), nn.ModuleList()
        for width, number in zip(widths, RESIDUALS, strict=True):
            self.stages.append(_convolution(stem, width))
            self.residuals.append(nn.ModuleList(_convolution(width, width) for _ in range(number)))
            stem = width
        self.last = nn.Linear(stem, classes)

    def forward(self, images):
        x = self.stem(4 * images - 2).relu()
        for stage, residuals in zip(self.stages, self.residuals):
            x = nn.functional.max_pool2d(stage(x), 2).relu()
            for residual in residuals:
                x = x + residual(x).relu()
        return self.last(x.amax((2, 3)))

    @torch.no_grad()
    def folded(self):
        """The same net for evaluation, its batch norms in its convolutions. Changes this net; returns it."""
        self.eval()
        self.stem = fuse_conv_bn_eval(*self.stem)
        self.stages = nn.ModuleList(fuse_conv_bn_eval(*each) for each in self.stages)
        self.residuals = nn.ModuleList(
            nn.ModuleList(fuse_conv_bn_eval(*each) for each in stage) for stage in self.residuals
        )
        return self


def _convolution(inputs, outputs, stride=1):
    conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))
