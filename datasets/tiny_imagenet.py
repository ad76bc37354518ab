"""Tiny-ImageNet, from the folders of its zip file, after trans.py has sorted the validation images."""

import sys

import numpy as np

from common import UserError
from datasets.folders import class_names, decoded, image_files

CLASSES = 200
IMAGES = {"train": 500, "val": 50}  # of each class
SIZE = 64  # pixels a side


def _images_of(place):
    """The sorted paths of a class's images, in the folder images/ of `place` or in `place` itself."""
    own = image_files(place / "images") or [path for path in image_files(place) if path.parent == place]
    if not own:
        raise UserError(f"{place / 'images'} is missing or empty: unzip Tiny-ImageNet again and run python3 trans.py")
    return own


def _inside(folder):
    """The folder, or the one of the same name inside it that holds the images."""
    inner = folder / folder.name
    return inner if not (folder / "train").is_dir() and (inner / "train").is_dir() else folder


def names(folder):
    """The first name of each class in words.txt, by sorted wnid; the wnid itself where there is none."""
    folder = _inside(folder)
    words = folder / "words.txt"
    lines = words.read_text("utf-8", "replace").splitlines() if words.is_file() else []
    found = dict(line.split("\t", 1) for line in lines if "\t" in line)
    return [found.get(wnid, wnid).split(",")[0] for wnid in class_names(folder / "train")]


def read(folder, train, workers):
    """The training or validation images: uint8 N×64×64×3, and their labels, int64 N, by sorted wnid.

    Decoded once and cached, see folders.decoded. Images may lie in <wnid>/images/ or in <wnid>/ itself, and the whole
    in a folder of the same name inside `folder`. A line says where images are missing. UserError if a folder is missing
    or not sorted into classes, a class is empty, or an image cannot be decoded.
    """
    folder = _inside(folder)
    split = "train" if train else "val"
    for name in ("train", split):
        if not (folder / name).is_dir():
            raise UserError(f"{folder / name} is not there: python3 trans.py says where to get Tiny-ImageNet")
    if (folder / "val" / "images").is_dir():
        raise UserError(f"{folder / 'val'} is not sorted into class folders yet: run python3 trans.py {folder}")
    wnids = class_names(folder / "train")
    if len(wnids) != CLASSES:
        raise UserError(f"{folder / 'train'} holds {len(wnids)} class folders instead of {CLASSES}: unzip it again")
    images = {wnid: _images_of(folder / split / wnid) for wnid in wnids}
    few = [wnid for wnid, own in images.items() if len(own) < IMAGES[split]]
    if few:
        print(
            f"warning: {folder / split} holds {sum(map(len, images.values())):,} images instead of "
            f"{CLASSES * IMAGES[split]:,}: {few[0]} has {len(images[few[0]])} of {IMAGES[split]}"
            + (f", and {len(few) - 1} more classes too few" if len(few) > 1 else ""),
            file=sys.stderr,
        )
    labels = np.repeat(np.arange(CLASSES), [len(own) for own in images.values()])
    paths = [path for own in images.values() for path in own]
    return decoded(folder, split, paths, workers, (SIZE, SIZE)), labels
