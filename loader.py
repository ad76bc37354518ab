"""Batches on the device from a data set held in memory as uint8: shuffle, crop, flip, fault, repair, scaling.

Images are uint8 tensors N×3×H×W in channels_last order: whole pixels lie together, so that cropping and
flipping are one gather of pixels.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

import fits
import tiny_imagenet
from CIFARDataset import CIFAR10, CIFAR100, to_tensor
from demo import Demo
from faults import image_bits

EVAL_BATCH = 500  # images; results do not depend on it


class DataSet(NamedTuple):
    title: str
    read: Callable  # (root, train, workers) -> uint8 array N×H×W×3, N labels
    classes: int
    net: str  # key of models.TOPOLOGIES


def _cifar(kind):
    def read(root, train, workers):
        dataset = kind(root, train=train, download=True)
        return dataset.data, dataset.targets

    return read


def _tiny_imagenet(root, train, workers):
    return tiny_imagenet.load(Path(root) / "tiny-imagenet-200", train, workers)


DATASETS = {
    "cifar10": DataSet("CIFAR-10", _cifar(CIFAR10), 10, "cifar_smaller"),
    "cifar100": DataSet("CIFAR-100", _cifar(CIFAR100), 100, "cifar_smaller"),
    "tiny_imagenet": DataSet("Tiny-ImageNet", _tiny_imagenet, 200, "tiny_imagenet_smaller"),
    "demo": DataSet("demo set", _cifar(Demo), 10, "cifar_smaller"),
}


def load(name, root, train, workers=1):
    """A row of DATASETS -> images (uint8 N×3×H×W, channels_last) and labels (int64 N), on the CPU."""
    images, labels = DATASETS[name].read(root, train, workers)
    return to_tensor(images), torch.tensor(labels, dtype=torch.int64)


def split(count, number):
    """Indices of `count` training images without, and of, `number` held out: the same for every seed, in order."""
    shuffled = np.random.default_rng(0).permutation(count)
    return np.sort(shuffled[number:]), np.sort(shuffled[:number])


def scale(images):
    """uint8 -> float32 in [0, 1], multiples of 1/255 as torchvision's ToTensor makes them."""
    return images.float() / 255


def fitter(name, root, workers=1):
    """(repair, bit) -> what the repair learns from the training images of a row of DATASETS (fits.py)."""
    return lambda repair, bit: fits.fitted(repair, bit, name, lambda: load(name, root, True, workers)[0])


def with_fault(images, fault, seed):
    """A whole data set with the fault and its repair; what the broken bits of image i read depends on (seed, i)."""
    return fault.apply(images, lambda shape: image_bits(seed, range(shape[0]), shape[1:]))


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

    Yields (float32 images in [0, 1], labels) on `device`. The set itself lies there too, as uint8. With
    `world` processes each of them draws the same pass, and process `rank` gets its share of every batch of
    world·batch_size images; nothing is left out or handed out twice. The last batch is smaller where the
    numbers do not divide; so that batch norm has a batch to speak of, fewer than two images a process join
    the batch before.

    faults: of each batch one of these, drawn at random.
    padding: of the random crop, pixels of zero on each side; 0: none.
    A pass depends on (seed, epoch) alone, and on the kind of device.
    """

    def __init__(self, images, labels, batch_size, padding, faults, seed, device, duplicate=1, rank=0, world=1):
        self.size = images.shape[-1]
        self.padding = padding
        padded = F.pad(images, [padding] * 4) if padding else images
        self.pixels = padded.to(device).permute(0, 2, 3, 1).contiguous()  # N×H×W×3
        self.labels = labels.to(device)
        self.faults, self.seed, self.device = faults, seed, device
        self.generator = torch.Generator(device)
        self.rank, self.world = rank, world

        total, whole = duplicate * len(images), world * batch_size
        self.starts = list(range(0, total, whole))
        if len(self.starts) > 1 and total - self.starts[-1] < 2 * world:
            self.starts.pop()
        self.total = total  # images in a pass, over all processes

    def __len__(self):
        return len(self.starts)

    def epoch(self, epoch):
        """The pass that starts at `epoch`."""
        self.generator.manual_seed(int(np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0]))
        order = torch.randperm(self.total, generator=self.generator, device=self.device) % len(self.labels)
        for start, stop in zip(self.starts, [*self.starts[1:], self.total]):
            index = order[start:stop]
            shift = self._randint(2 * self.padding + 1, 2, len(index))
            flip = self._randint(2, len(index))
            images = self._cut(index, *shift, flip)  # uint8 B×3×H×W
            fault = self.faults[int(self._randint(len(self.faults)))] if len(self.faults) > 1 else self.faults[0]
            images = fault.apply(images, lambda shape: self._randint(2, *shape, dtype=torch.uint8))
            mine = slice(self.rank, None, self.world)
            yield scale(images[mine]), self.labels[index[mine]]

    def _randint(self, high, *shape, dtype=torch.int64):
        return torch.randint(high, shape, generator=self.generator, device=self.device, dtype=dtype)

    def _cut(self, index, top, left, flip):
        """The windows of images `index` at (top, left), mirrored where flip is 1: uint8 B×3×size×size."""
        step = torch.arange(self.size, device=self.device)
        rows = top[:, None] + step  # B×size
        columns = left[:, None] + torch.where(flip[:, None] == 1, self.size - 1 - step, step)
        return self.pixels[index[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
