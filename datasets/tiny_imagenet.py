"""Tiny-ImageNet: its folders as its zip file has them, after trans.py has sorted the validation images."""

import numpy as np

from common import UserError
from datasets.folders import class_names, decoded, image_files

CLASSES = 200
SIZE = 64  # pixels a side


def read(folder, train, workers):
    """The training or validation images: uint8 N×64×64×3, and their labels, int64 N, which count the sorted wnids.

    Decoded once and cached, see folders.decoded. UserError if a folder is missing or not sorted into classes, or an
    image cannot be decoded.
    """
    split = "train" if train else "val"
    if not (folder / split).is_dir():
        raise UserError(f"{folder / split} is not there: python trans.py says where to get Tiny-ImageNet")
    if (folder / "val" / "images").is_dir():
        raise UserError(f"{folder / 'val'} is not sorted into class folders yet: run python trans.py {folder}")
    wnids = class_names(folder / "train")
    if len(wnids) != CLASSES:
        raise UserError(f"{folder / 'train'} holds {len(wnids)} class folders instead of {CLASSES}: unzip it again")
    paths, labels = [], []
    for label, wnid in enumerate(wnids):
        place = folder / split / wnid / "images"
        if not place.is_dir():
            raise UserError(f"{place} is missing: unzip Tiny-ImageNet again and run python trans.py")
        own = image_files(place)
        paths += own
        labels += [label] * len(own)
    if not paths:
        raise UserError(f"{folder / split} holds no images: unzip Tiny-ImageNet again")
    return decoded(folder, split, paths, workers, (SIZE, SIZE)), np.array(labels)
