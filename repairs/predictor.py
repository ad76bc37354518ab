"""A small convolutional net that predicts broken bits from the neighbourhood in all three channels.

One net is fitted for each bit on clean training images, without labels: the bit is removed, and the net learns to
predict it. Its inputs are the lower candidates and what other repairs found: color_field, and the scans from the four
corners (see colors). Six 3×3 convolutions with dilations 1, 2, 4, 2, 1, 1 follow; each of the inner four adds to what
the one before it gave. So a value is judged by a neighbourhood of 2·(1 + 2 + 4 + 2 + 1 + 1) + 1 = 23 by 23 pixels, and
through the other repairs also by pixels beyond. The image and its mirror image are repaired and judged, each by itself,
and the two logits are averaged.

One more pass can fit the net to what counts: that a float net sees the same in the repaired image as in the clean one.
"""

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from datasets import spaced
from faults import get_bit, set_bit
from models import distillation
from repairs.color_field import mean_of_color_field
from repairs.colors import corner_scans
from repairs.pixels import zeros_of

INPUTS = 21  # channels of `inputs_of`
WIDTH = 32  # channels between the convolutions
DILATIONS = (2, 4, 2, 1)  # of the inner convolutions
CHUNK = 128 * 32 * 32  # pixels at once
PIXELS = 50_000 * 32 * 32  # pixels of the training images that are fitted on
EPOCHS = 2  # passes over them
EPOCHS_LARGE = 1  # the same for images of more than LARGE pixels, for time
LARGE = 32 * 32
BATCH = 2 * 32 * 32  # pixels
LR = 1.5e-3  # of Adam; falls to zero along half a cosine
TEACH_BATCH = 5 * 32 * 32  # pixels, and learning rate, of the pass with a teacher
TEACH_LR = 3e-4
TEMPERATURE = 2.0  # at which the teacher's predictions are compared
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


class Predictor(nn.Module):
    """float32 N×21×H×W (from inputs_of) -> float32 N×3×H×W: logits of the broken bit being 1."""

    def __init__(self, width):
        super().__init__()
        self.first = _convolution(INPUTS, width)
        self.inner = nn.ModuleList(_convolution(width, width, dilation) for dilation in DILATIONS)
        self.last = _convolution(width, 3)

    def forward(self, x):
        x = F.gelu(self.first(x))
        for layer in self.inner:
            x = x + F.gelu(layer(x))
        return self.last(x)


def _net_of(state):
    """The Predictor of which `state` is the state dict; it shares the tensors."""
    with torch.device("meta"):  # draws no random numbers
        net = Predictor(len(state["first.weight"]))
    net.load_state_dict(state, assign=True)
    return net


def _convolution(channels_in, channels_out, dilation=1):
    """A 3×3 convolution that keeps the size; beyond the border lies the nearest pixel."""
    return nn.Conv2d(channels_in, channels_out, 3, padding=dilation, dilation=dilation, padding_mode="replicate")


def guesses_of(images, bit):
    """The images repaired by a scan from each of the four corners, and by color_field: uint8 5×N×3×H×W."""
    return torch.cat([corner_scans(images, bit), mean_of_color_field(images, bit)[None]])


def inputs_of(guesses, bit):
    """The net's inputs, float32 N×21×H×W, from guesses_of, uint8 5×N×3×H×W.

    Channels: 3 of lower candidates and 3 of the mean of the scans, both scaled to [-1, 1); 3 for each scan that are +1
    where it took the upper candidate, else -1; 3 of the mean of color_field, -1 the lower candidate, +1 the upper one.
    """
    scans, field = guesses[:-1], guesses[-1]
    zeros = zeros_of(scans[0], bit)  # a scan changes no other bit
    raised = 2 * (field - zeros).float() / (1 << bit) - 1
    inputs = [zeros.float() / 128 - 1, scans.float().mean(0) / 128 - 1, *(2 * get_bit(scans, bit).float() - 1), raised]
    return torch.cat(inputs, 1).contiguous(memory_format=torch.channels_last)


@torch.inference_mode(False)  # it needs gradients, whatever its caller needs
def learn_predictor(images, bit, epochs=None, width=WIDTH):
    """The state dict of a Predictor fitted for a bit.

    images: clean ones, uint8 N×3×H×W. If they have more than PIXELS pixels, only some of them, evenly spaced, are used.
    epochs: passes over them; None for EPOCHS or EPOCHS_LARGE, by the size of the images.
    """
    if epochs is None:
        epochs = EPOCHS if images[0, 0].numel() <= LARGE else EPOCHS_LARGE
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        net = Predictor(width)
    _fit(net, images, bit, epochs=epochs, batch=BATCH, lr=LR)
    return net.state_dict()


@torch.inference_mode(False)
def teach_predictor(images, bit, state, teacher):
    """The state dict of a Predictor with which a teacher sees in repaired images what it sees in clean ones.

    The fit goes on from `state`, of learn_predictor, for one more pass. To the loss on the bits it adds the distance of
    the teacher's predictions for the means of the candidates, weighted by the probabilities, from those for the clean
    images (models.distillation).

    images: as for learn_predictor. teacher: a Teacher for images of this size.
    """

    def distance(zeros, logits, clean):
        with torch.no_grad():
            wanted = teacher(clean.float() / 255)
        means = (zeros.float() + logits.sigmoid() * (1 << bit)) / 255
        return distillation(teacher(means), wanted, TEMPERATURE)

    net = _net_of({key: value.clone() for key, value in state.items()})
    _fit(net, images, bit, epochs=1, batch=TEACH_BATCH, lr=TEACH_LR, extra_loss=distance)
    return net.state_dict()


def _fit(net, images, bit, *, epochs, batch, lr, extra_loss=None):
    """Fits a Predictor in `epochs` passes over at most PIXELS pixels of images, in batches of `batch` pixels.

    extra_loss: a function (lower candidates, logits, clean images) -> what is added to the loss on the bits.
    """
    images = spaced(images, _number_of(PIXELS, images))
    parts = tqdm(images.split(_number_of(CHUNK, images)), f"look for bit {bit}", leave=False, disable=None)
    guesses = torch.cat([guesses_of(part, bit) for part in parts], 1)
    bits = get_bit(images, bit)
    generator = torch.Generator().manual_seed(SEED)
    order = torch.cat([torch.randperm(len(images), generator=generator) for _ in range(epochs)])
    order = order.split(_number_of(batch, images))
    net.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), lr, fused=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(order))
    for part in tqdm(order, f"fit bit {bit}", leave=False, disable=None):
        logits = net(inputs_of(guesses[:, part], bit))
        loss = F.binary_cross_entropy_with_logits(logits, bits[part].float())
        if extra_loss:
            loss = loss + extra_loss(zeros_of(images[part], bit), logits, images[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()


def _number_of(pixels, images):
    """How many images of this size have a number of pixels; at least 1."""
    return max(1, pixels // (images.shape[-2] * images.shape[-1]))


@torch.inference_mode()
def predict(zeros, bit, state):
    """Probability that each broken bit was 1: float32 N×3×H×W.

    zeros: the lower candidates, uint8 N×3×H×W. state: from learn_predictor or teach_predictor.
    """
    net = _net_of(state).to(zeros.device, memory_format=torch.channels_last)

    def logits_of(images):
        return net(inputs_of(guesses_of(images, bit), bit))

    parts = zeros.split(_number_of(CHUNK, zeros))
    logits = [(logits_of(part) + logits_of(part.flip(-1)).flip(-1)) / 2 for part in parts]
    return torch.cat(logits).sigmoid()
