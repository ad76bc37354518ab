"""Images and their labels: the table of data sets, and one module for each file format."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from common import UserError, as_path
from datasets import cifar, folders, tiny_imagenet
from datasets.demo import Demo

TINY_IMAGENET = "tiny-imagenet-200"  # its folder


class DataSet(NamedTuple):
    title: str
    read: Callable  # (root, train, workers) -> uint8 array N×H×W×3, N labels
    classes: int | None = None  # None: as many as the training images have
    net: str | None = None  # key of models.TOPOLOGIES; None: the first one for images of this size
    names: Callable | None = None  # root -> the classes' names by label; None: they have none
    place: str | None = None  # in the root, there if the data set is; None: not to be told from its name


def _read_cifar(kind):
    def read(root, train, workers):
        dataset = kind(root, train=train, download=True)
        return dataset.data, dataset.targets

    return read


def _cifar_names(kind):
    """The fields `names` and `place` of a row."""
    return lambda root: kind(root, train=False).classes, f"{kind.base_folder}/{kind.meta['filename']}"


def _read_tiny_imagenet(root, train, workers):
    return tiny_imagenet.read(root / TINY_IMAGENET, train, workers)


def _tiny_imagenet_names(root):
    return tiny_imagenet.names(root / TINY_IMAGENET)


DATASETS = {
    "cifar10": DataSet("CIFAR-10", _read_cifar(cifar.CIFAR10), 10, "cifar_smaller", *_cifar_names(cifar.CIFAR10)),
    "cifar100": DataSet("CIFAR-100", _read_cifar(cifar.CIFAR100), 100, "cifar_smaller", *_cifar_names(cifar.CIFAR100)),
    "tiny_imagenet": DataSet(
        "Tiny-ImageNet", _read_tiny_imagenet, 200, "tiny_imagenet_smaller", _tiny_imagenet_names, TINY_IMAGENET
    ),
    "demo": DataSet("demo set", _read_cifar(Demo), 10, "cifar_smaller", *_cifar_names(Demo)),
    "folder": DataSet("class folders", folders.read),
}


def read_images(name, root, train, workers=1):
    """The images of a row of DATASETS (uint8 N×3×H×W, channels_last) and their labels (int64 N), on the CPU.

    root: folder of all data sets; of class folders, the data set itself. train: False for the test images. workers:
    threads that decode images.
    """
    images, labels = DATASETS[name].read(as_path(root), train, workers)
    return to_tensor(images), torch.tensor(labels, dtype=torch.int64)


def at_hand(name, root):
    """True if a data set is there to be read, without a download. root: as for read_images."""
    place = DATASETS[name].place
    return place is not None and (as_path(root) / place).exists()


def class_names(name, root):
    """The names of a data set's classes, by label; of one without names "class 0" and so on. root: as read_images."""
    names = DATASETS[name].names
    return names(as_path(root)) if names else [f"class {label}" for label in range(DATASETS[name].classes or 0)]


def to_tensor(images):
    """uint8 array N×H×W×3 -> uint8 tensor N×3×H×W"""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)


def spaced(rows, number):
    """At most `number` rows of a tensor, such as images or labels, evenly spaced over all of them."""
    number = min(number, len(rows))
    return rows[torch.arange(number) * len(rows) // max(1, number)]


def hold_out(images, labels, number):
    """Splits off `number` training images for validation: [(images, labels) to train on, (images, labels) held out].

    The choice is random but always the same for the same numbers of images. Both parts keep the order of the data set.
    UserError if no image is left to train on.
    """
    if number >= len(labels):
        raise UserError(f"{number} of {len(labels)} training images held out leave none to train on")
    shuffled = np.random.default_rng(0).permutation(len(labels))
    return [(images[part], labels[part]) for part in (np.sort(shuffled[number:]), np.sort(shuffled[:number]))]
