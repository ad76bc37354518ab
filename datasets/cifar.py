"""CIFAR-10 and CIFAR-100 as torchvision's classes give them, read without running code from their pickle files."""

import functools
import io
import os
import pickle
import sys

import numpy as np
import torchvision

from common import UserError, as_path


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler that builds only what NumPy arrays need, so that a batch file cannot run code."""

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
    return {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in entry.items()}


@functools.cache  # once per folder
def _warn_unofficial(folder):
    if "CIFAR_WARNED" in os.environ:  # run.sh has shown this warning before
        return
    print(f"warning: {folder} is not the official release (checksums differ); used as it is", file=sys.stderr)


class CIFAR10(torchvision.datasets.CIFAR10):
    """torchvision's CIFAR10: same folder layout, arguments and items.

    Official files are recognised by their checksums. Others with the right structure are used after one warning;
    missing, truncated or malformed ones raise UserError naming the file.
    """

    label_key = "labels"
    official = True  # False if there are no checksums to compare with

    def __init__(self, root, train=True, transform=None, target_transform=None, download=False):
        root = as_path(root)
        # torchvision's own __init__ accepts official files only, and unpickles them in a way that can run code
        torchvision.datasets.VisionDataset.__init__(self, root, transform=transform, target_transform=target_transform)
        self.train = train
        self.folder = root / self.base_folder
        if download:
            self.download()
        self._load_meta()
        parts = [self._load_batch(*row) for row in (self.train_list if train else self.test_list)]
        self.data = np.concatenate([images for images, _ in parts])  # uint8 N×32×32×3
        self.targets = [label for _, labels in parts for label in labels]

    def _check_integrity(self):
        """True if all files are there. Their contents are checked when they are read."""
        return not self._missing()

    def _missing(self):
        names = [name for name, _ in self.train_list + self.test_list] + [self.meta["filename"]]
        return [self.folder / name for name in names if not (self.folder / name).is_file()]

    def download(self):
        missing = self._missing()
        if 0 < len(missing) < len(self.train_list + self.test_list) + 1:  # the others must not be replaced
            raise UserError(
                f"{missing[0]} is missing beside other files: put it there, or move {self.folder} away to have all "
                "of them downloaded"
            )
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
        if self.official and not torchvision.datasets.utils.check_integrity(path, md5):
            _warn_unofficial(self.folder)
        return path, _read(path)

    def _load_meta(self):
        path, entry = self._open(self.meta["filename"], self.meta["md5"])
        self.classes = entry.get(self.meta["key"])
        if isinstance(self.classes, list):
            self.classes = [name.decode("latin1") if isinstance(name, bytes) else name for name in self.classes]
        if not isinstance(self.classes, list) or not all(isinstance(name, str) for name in self.classes):
            self.classes = []
        if len(self.classes) != (100 if "fine" in self.label_key else 10):
            raise UserError(f"{path}: malformed, {self.meta['key']} is no list of the class names")
        self.class_to_idx = {name: i for i, name in enumerate(self.classes)}

    def _load_batch(self, name, md5):
        path, entry = self._open(name, md5)
        data, labels = entry.get("data"), entry.get(self.label_key)
        if isinstance(labels, np.ndarray) and labels.size == len(labels):
            labels = labels.ravel().tolist()
        labels = list(labels) if isinstance(labels, tuple) else labels
        if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
            raise UserError(f"{path}: malformed, 'data' is no uint8 array of rows of 3072 values")
        if not isinstance(labels, list) or len(labels) != len(data) or not len(data):
            raise UserError(
                f"{path}: malformed, '{self.label_key}' is no list of one label for each of {len(data)} rows"
            )
        labels = [int(label) if isinstance(label, np.integer) else label for label in labels]
        if not all(isinstance(label, int) and 0 <= label < len(self.classes) for label in labels):
            raise UserError(f"{path}: malformed, a label is no whole number from 0 to {len(self.classes) - 1}")
        return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


class CIFAR100(CIFAR10):
    """CIFAR-100 with its fine labels; everything else as CIFAR10."""

    base_folder = torchvision.datasets.CIFAR100.base_folder
    url = torchvision.datasets.CIFAR100.url
    filename = torchvision.datasets.CIFAR100.filename
    tgz_md5 = torchvision.datasets.CIFAR100.tgz_md5
    train_list = torchvision.datasets.CIFAR100.train_list
    test_list = torchvision.datasets.CIFAR100.test_list
    meta = torchvision.datasets.CIFAR100.meta
    label_key = "fine_labels"
