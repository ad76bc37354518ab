"""Images and their labels: the table of data sets, and one module for each file format."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from common import UserError, as_path
from datasets import cifar, folders, tiny_imagenet
from datasets.demo import Demo


class DataSet(NamedTuple):
    title: str
    read: Callable  # (root, train, workers) -> uint8 array N×H×W×3, N labels
    classes: int | None = None  # None: as many as the training images have
    net: str | None = None  # key of models.TOPOLOGIES; None: the first one for images of this size


def _read_cifar(kind):
    def read(root, train, workers):
        dataset = kind(root, train=train, download=True)
        return dataset.data, dataset.targets

    return read


def _read_tiny_imagenet(root, train, workers):
    return tiny_imagenet.read(root / "tiny-imagenet-200", train, workers)


DATASETS = {
    "cifar10": DataSet("CIFAR-10", _read_cifar(cifar.CIFAR10), 10, "cifar_smaller"),
    "cifar100": DataSet("CIFAR-100", _read_cifar(cifar.CIFAR100), 100, "cifar_smaller"),
    "tiny_imagenet": DataSet("Tiny-ImageNet", _read_tiny_imagenet, 200, "tiny_imagenet_smaller"),
    "demo": DataSet("demo set", _read_cifar(Demo), 10, "cifar_smaller"),
    "folder": DataSet("class folders", folders.read),
}


def read_images(name, root, train, workers=1):
    """The images of a row of DATASETS (uint8 N×3×H×W, channels_last) and their labels (int64 N), on the CPU.

    root: folder of all data sets; of class folders, the data set itself. train: False for the test images. workers:
    threads that decode images.
    """
    images, labels = DATASETS[name].read(as_path(root), train, workers)
    return to_tensor(images), torch.tensor(labels, dtype=torch.int64)


def to_tensor(images):
    """uint8 array N×H×W×3 -> uint8 tensor N×3×H×W"""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)


def hold_out(images, labels, number):
    """Splits off `number` training images for validation: [(images, labels) to train on, (images, labels) held out].

    The choice is random but always the same for the same numbers of images. Both parts keep the order of the data set.
    UserError if no image is left to train on.
    """
    if number >= len(labels):
        raise UserError(f"{number} of {len(labels)} training images held out leave none to train on")
    shuffled = np.random.default_rng(0).permutation(len(labels))
    return [(images[part], labels[part]) for part in (np.sort(shuffled[number:]), np.sort(shuffled[:number]))]
