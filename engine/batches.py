"""Batches on the device from a data set held in memory as uint8: shuffle, crop, flip, fault, repair, scaling.

Images are uint8 tensors N×3×H×W in channels_last order: the three values of a pixel are adjacent in memory, so
that cropping and flipping are one gather of pixels.
"""

import functools

import numpy as np
import torch
import torch.nn.functional as F

from common import digest
from datasets import read_images, spaced
from faults import TrainingImages, break_images
from repairs import REPAIRS, learned_state, mended

EVAL_BATCH = 500  # images; results do not depend on it
CALIBRATION = 1000  # training images on which thresholds are recalibrated


def scale(images):
    """uint8 -> float32 in [0, 1], multiples of 1/255 as torchvision's ToTensor makes them."""
    return images.float() / 255


def state_of(fault, dataset, root, workers=1):
    """The state that a Fault's repair has learned from the training images of a data set; None if it learns nothing."""
    if fault.memory != "image" or fault.repair is None or REPAIRS[fault.repair].learn is None:
        return None
    found = training_digest(dataset, root, workers)
    return learned_state(fault.repair, fault.bit, dataset, found, lambda: read_images(dataset, root, True, workers)[0])


def calibrated_on(images):
    """Of clean training images (uint8 N×3×H×W) those on which thresholds are recalibrated: float32 in [0, 1].

    CALIBRATION of them, or all if there are fewer, evenly spaced.
    """
    return scale(spaced(images, CALIBRATION))


@functools.cache
def training_digest(dataset, root, workers=1):
    """Digest of the training images of a data set, without their labels."""
    return digest(read_images(dataset, root, True, workers)[0])


class EvalBatches:
    """Iterates over (float32 images in [0, 1], labels) on `device`, in the order of the data set."""

    def __init__(self, images, labels, device, batch_size=EVAL_BATCH):
        self.images, self.labels, self.device, self.batch_size = images, labels, device, batch_size

    def __len__(self):
        return -(-len(self.images) // self.batch_size)

    def __iter__(self):
        for images, labels in zip(self.images.split(self.batch_size), self.labels.split(self.batch_size)):
            yield scale(images.to(self.device)), labels.to(self.device)


class TrainBatches:
    """epoch(n) iterates over one pass: each image `duplicate` times, shuffled, cropped, flipped, with fault and repair.

    Yields (float32 images in [0, 1], labels, the images before the fault as uint8) on `device`. The whole data set is
    stored there too, as uint8. With `world` processes, each of them draws the same pass, and process `rank` gets its
    share of every batch of world·batch_size images; every image goes to exactly one process. The last batch is smaller
    if the numbers do not divide. If it has fewer than two images per process, too few for batch norm, it joins the
    batch before.

    faults: list of (Fault, state that its repair has learned or None); each batch has one of these, drawn at random.
    Persistent cells are those of an evaluation with the same seed; all else is drawn anew for each image.
    padding: of the random crop, pixels of zeros on each side; 0: no crop.
    A pass depends only on (seed, epoch) and on the kind of device.
    """

    def __init__(self, images, labels, batch_size, padding, faults, seed, device, duplicate=1, rank=0, world=1):
        self.size = images.shape[-1]
        self.padding = padding
        padded = F.pad(images, [padding] * 4) if padding else images
        self.pixels = padded.to(device).permute(0, 2, 3, 1).contiguous()  # N×H×W×3
        self.labels = labels.to(device)
        self.faults, self.seed, self.device = faults, seed, device
        self.generator = torch.Generator(device)
        self.duplicate, self.rank, self.world = duplicate, rank, world

        total, whole = duplicate * len(images), world * batch_size
        self.starts = list(range(0, total, whole))
        if len(self.starts) > 1 and total - self.starts[-1] < 2 * world:
            self.starts.pop()
        self.total = total  # images in a pass, over all processes
        self.most = batch_size + 2  # images of a batch for one process, if the last batch joins the one before
        shape = tuple(images.shape[1:])
        self.cells = {fault: TrainingImages(fault, shape, seed, self.generator) for fault, _ in faults if fault.cells}

    def __len__(self):
        return len(self.starts)

    def epoch(self, epoch):
        """Yields the batches of the pass that starts at `epoch`."""
        self.generator.manual_seed(int(np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0]))
        order = torch.randperm(self.total, generator=self.generator, device=self.device) % len(self.labels)
        for start, stop in zip(self.starts, [*self.starts[1:], self.total]):
            index = order[start:stop]
            shift = self._randint(2 * self.padding + 1, 2, len(index))
            flip = self._randint(2, len(index))
            clean = self._cut(index, *shift, flip)  # uint8 B×3×H×W
            fault, state = self.faults[int(self._randint(len(self.faults))) if len(self.faults) > 1 else 0]
            images = mended(fault, self._broken(fault, clean), self.seed, state)
            mine = slice(self.rank, None, self.world)
            yield scale(images[mine]), self.labels[index[mine]], clean[mine]

    def _broken(self, fault, images):
        """The images (uint8 B×3×H×W) under an image fault, unrepaired."""
        if fault.cells:
            return self.cells[fault](images)
        return break_images(
            fault,
            images,
            lambda shape: self._randint(2, *shape, dtype=torch.uint8),
            lambda shape, share: torch.rand(shape, generator=self.generator, device=self.device) < share,
        )

    def _randint(self, high, *shape, dtype=torch.int64):
        return torch.randint(high, shape, generator=self.generator, device=self.device, dtype=dtype)

    def _cut(self, index, top, left, flip):
        """The windows of images `index` at (top, left), mirrored where flip is 1: uint8 B×3×size×size."""
        step = torch.arange(self.size, device=self.device)
        rows = top[:, None] + step  # B×size
        columns = left[:, None] + torch.where(flip[:, None] == 1, self.size - 1 - step, step)
        return self.pixels[index[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
