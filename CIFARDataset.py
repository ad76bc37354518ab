"""CIFAR-10 and CIFAR-100 with a broken bit in every 8-bit pixel value, and its repair.

    from CIFARDataset import CIFAR10
    image, label = CIFAR10("data", mem_fault="repaired_n", train=False, faulty_bit=5)[0]

A drop-in for torchvision's classes of the same names: same files, same arguments and four more.
"""

import functools
import io
import pickle
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import datasets
from torchvision.transforms.functional import pil_to_tensor

import fits
from cli import UserError
from faults import Fault, image_bits

FAULTY_BIT = 6  # 0 (LSB) to 7 (MSB)
NEIGHBOR_OFFSET = -1  # repaired_n takes the bit at FAULTY_BIT + NEIGHBOR_OFFSET


class _ArrayUnpickler(pickle.Unpickler):
    """Builds what NumPy arrays need and nothing else, so that a batch file cannot run code."""

    ALLOWED = (
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
        *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
        *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    )

    def find_class(self, module, name):
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it wants {module}.{name}, which no array needs")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _read(path):
    """The dict in a CIFAR file. UserError, naming the file, if it holds none."""
    try:
        entry = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except Exception as error:  # a broken pickle can raise anything
        raise UserError(f"{path}: truncated or no CIFAR file ({error}); remove it and fetch it again") from None
    if not isinstance(entry, dict):
        raise UserError(f"{path}: no CIFAR file (a {type(entry).__name__} instead of a dict)")
    return entry


@functools.cache  # once per folder
def _warn_unofficial(folder):
    print(f"warning: {folder} is not the official release (checksums differ); used as it is", file=sys.stderr)


class CIFAR10(datasets.CIFAR10):
    """CIFAR-10 in torchvision's folder layout, with fault and repair in every image, training and test alike.

    An item is (image, label): a float32 tensor 3×32×32 in [0, 1], multiples of 1/255, and an int. The fault
    comes after `transform` (which gets a PIL image and returns one, or a tensor: uint8, or float in [0, 1]), on
    the 8-bit image.

    mem_fault: baseline, faulty or a repair of faults.REPAIRS; reparied_n and reparied_s are accepted. A repair that
        learns does so from the training images, and keeps what it has learned in results/fitted/ (fits.py).
    download: fetch the files if they are not there.
    faulty_bit, neighbor_offset: None for FAULTY_BIT, NEIGHBOR_OFFSET of this module.
    seed: what a broken bit reads depends on (seed, index) alone; change `dataset.seed` for a fresh draw.

    Official files are known by their checksums. Others with the right structure are used after one warning;
    missing, truncated or malformed ones raise UserError naming the file.
    """

    label_key = "labels"
    official = True  # are there checksums to compare with?

    def __init__(
        self,
        root,
        mem_fault="baseline",
        train=True,
        transform=None,
        target_transform=None,
        download=False,
        faulty_bit=None,
        neighbor_offset=None,
        seed=0,
    ):
        # torchvision's own __init__ insists on official files and unpickles them with code execution
        datasets.VisionDataset.__init__(self, root, transform=transform, target_transform=target_transform)
        self.train = train
        self.seed = seed
        self.fault = Fault.of(
            mem_fault,
            FAULTY_BIT if faulty_bit is None else faulty_bit,
            NEIGHBOR_OFFSET if neighbor_offset is None else neighbor_offset,
            lambda repair, bit: fits.fitted(
                repair, bit, type(self).__name__.lower(), lambda: to_tensor(type(self)(root).data)
            ),
        )
        self.folder = Path(root) / self.base_folder
        if download:
            self.download()
        self._load_meta()
        parts = [self._load_batch(*row) for row in (self.train_list if train else self.test_list)]
        self.data = np.concatenate([images for images, _ in parts])  # uint8 N×32×32×3
        self.targets = [label for _, labels in parts for label in labels]

    def _check_integrity(self):
        """Are all files there? (What is in them is checked as they are read.)"""
        return not self._missing()

    def _missing(self):
        names = [name for name, _ in self.train_list + self.test_list] + [self.meta["filename"]]
        return [self.folder / name for name in names if not (self.folder / name).is_file()]

    def download(self):
        try:
            super().download()
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"{self._missing()[0]} is missing and {self.url} cannot be fetched ({error}): "
                f"put {self.filename} into {self.root}, or its files into {self.folder} "
                "(./run.sh demo needs no download)"
            ) from None

    def _open(self, name, md5):
        path = self.folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing: unpack {self.filename} into {self.root} (from {self.url})")
        if self.official and not datasets.utils.check_integrity(path, md5):
            _warn_unofficial(self.folder)
        return path, _read(path)

    def _load_meta(self):
        path, entry = self._open(self.meta["filename"], self.meta["md5"])
        self.classes = entry.get(self.meta["key"])
        if not isinstance(self.classes, list) or len(self.classes) != (100 if "fine" in self.label_key else 10):
            raise UserError(f"{path}: malformed, {self.meta['key']} is no list of the class names")
        self.class_to_idx = {name: i for i, name in enumerate(self.classes)}

    def _load_batch(self, name, md5):
        path, entry = self._open(name, md5)
        data, labels = entry.get("data"), entry.get(self.label_key)
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
            raise UserError(f"{path}: malformed, 'data' is no uint8 array of rows of 3072 values")
        if not isinstance(labels, list) or len(labels) != len(data) or not len(data):
            raise UserError(
                f"{path}: malformed, '{self.label_key}' is no list of one label for each of {len(data)} rows"
            )
        if not all(isinstance(label, int) and 0 <= label < len(self.classes) for label in labels):
            raise UserError(f"{path}: malformed, a label is no whole number from 0 to {len(self.classes) - 1}")
        return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels

    def __getitem__(self, index):
        index = range(len(self))[index]  # so that -1 reads the same broken bits as the last index
        image, label = Image.fromarray(self.data[index]), self.targets[index]
        if self.transform is not None:
            image = self.transform(image)
        if self.target_transform is not None:
            label = self.target_transform(label)
        image = self.fault.apply(_to_uint8(image), lambda shape: image_bits(self.seed, [index], shape)[0])
        return image.float() / 255, label


class CIFAR100(CIFAR10):
    """CIFAR-100 with its fine labels; everything else as CIFAR10."""

    base_folder = datasets.CIFAR100.base_folder
    url = datasets.CIFAR100.url
    filename = datasets.CIFAR100.filename
    tgz_md5 = datasets.CIFAR100.tgz_md5
    train_list = datasets.CIFAR100.train_list
    test_list = datasets.CIFAR100.test_list
    meta = datasets.CIFAR100.meta
    label_key = "fine_labels"


def to_tensor(images):
    """uint8 array N×H×W×3 -> uint8 tensor N×3×H×W"""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)


def _to_uint8(image):
    """What a transform returned -> the 8-bit image, uint8 3×H×W."""
    if not isinstance(image, torch.Tensor):
        return pil_to_tensor(image)
    if image.dtype == torch.uint8:
        return image
    if image.min() < 0 or image.max() > 1:
        raise UserError("the transform leaves [0, 1]: faults need the 8-bit image, so normalise after the data set")
    return (image * 255).round().to(torch.uint8)
