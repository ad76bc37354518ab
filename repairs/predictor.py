"""A small convolutional net that predicts broken bits from the neighbourhood in all three channels.

One net is fitted for each bit on clean training images, without labels: the bit is removed, and the net learns to
predict it. Its inputs are the lower candidates, the candidates of least total variation, and which of the two
candidates these are. Three 3×3 convolutions with dilations 1, 2, 1 follow. So a value is judged by a neighbourhood of
2·(1 + 2 + 1) + 1 = 9 by 9 pixels, and through the total variation also by pixels beyond.
"""

import torch
import torch.nn.functional as F
from torch import nn

from faults import set_bit
from repairs.pixels import zeros_of
from repairs.total_variation import least_variation

WIDTH = 32  # channels between the convolutions
DILATIONS = (1, 2, 1)
CHUNK = 100  # images at once
PIXELS = 5_000 * 32 * 32  # pixels of the training images that are fitted on
EPOCHS = 8
BATCH = 50 * 32 * 32  # pixels
LR = 3e-3  # of Adam; falls to zero along half a cosine
SEED = 0


def from_predictor(images, bit, state):
    """The candidate that the net finds more likely. state: from learn_predictor."""
    zeros, ones = _chances(images, bit, state)
    return set_bit(zeros, bit, (ones > 0.5).to(torch.uint8))


def mean_of_predictor(images, bit, state):
    """The mean of the two candidates, weighted by their probabilities by the same net; changes other bits, too."""
    zeros, ones = _chances(images, bit, state)
    return zeros + (ones * (1 << bit)).round().to(torch.uint8)


def _chances(images, bit, state):
    """(lower candidates, uint8; probabilities of the upper ones, float32, 0 to 1)."""
    zeros = zeros_of(images, bit)
    return zeros, predict(zeros.reshape(-1, *zeros.shape[-3:]), bit, state).view(zeros.shape)


class Predictor(nn.Sequential):
    """float32 N×9×H×W (from `look`) -> float32 N×3×H×W: logits of the broken bit being 1."""

    def __init__(self):
        widths = (9, *[WIDTH] * (len(DILATIONS) - 1), 3)
        layers = []
        for number, dilation in enumerate(DILATIONS):
            layers.append(
                nn.Conv2d(
                    *widths[number : number + 2], 3, padding=dilation, dilation=dilation, padding_mode="replicate"
                )
            )
            layers.append(nn.ReLU())
        super().__init__(*layers[:-1])


def look(zeros, step):
    """The net's inputs, float32 N×9×H×W, from the lower candidates, uint8 N×3×H×W.

    Channels: 3 of lower candidates and 3 of the candidates of least total variation, both scaled to [-1, 1); then 3
    that are +1 where the latter is the upper candidate, else -1. step: 2^bit.
    """
    chosen = least_variation(zeros, step)
    estimate = zeros + chosen.to(torch.uint8) * step
    return torch.cat([zeros.float() / 128 - 1, estimate.float() / 128 - 1, 2 * chosen.float() - 1], 1)


def learn_predictor(images, bit):
    """The state dict of a Predictor fitted for a bit.

    images: clean ones, uint8 N×3×H×W. If they have more than PIXELS pixels, only some of them, evenly spaced, are used.
    """
    size = images.shape[-2] * images.shape[-1]
    number, batch = (max(1, pixels // size) for pixels in (PIXELS, BATCH))
    images = images[:: max(1, len(images) // number)][:number].contiguous()
    step = 1 << bit
    seen = look(images & (0xFF ^ step), step).half()
    bits = (images >> bit & 1).half()
    generator = torch.Generator().manual_seed(SEED)
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        net = Predictor()
    net.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), LR)
    steps = EPOCHS * -(-len(images) // batch)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(EPOCHS):
        for part in torch.randperm(len(images), generator=generator).split(batch):
            inputs, target = seen[part].float(), bits[part].float()
            if torch.rand((), generator=generator) < 0.5:
                inputs, target = inputs.flip(-1), target.flip(-1)
            loss = F.binary_cross_entropy_with_logits(net(inputs.contiguous(memory_format=torch.channels_last)), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
    return net.state_dict()


@torch.inference_mode()
def predict(zeros, bit, state):
    """Probability that each broken bit was 1: float32 N×3×H×W.

    zeros: the lower candidates, uint8 N×3×H×W. state: from learn_predictor.
    """
    with torch.device("meta"):  # draws no random numbers
        net = Predictor()
    net.load_state_dict(state, assign=True)
    net.to(zeros.device, memory_format=torch.channels_last)
    parts = zeros.contiguous().split(CHUNK)
    return torch.cat(
        [net(look(part, 1 << bit).contiguous(memory_format=torch.channels_last)).sigmoid() for part in parts]
    )
