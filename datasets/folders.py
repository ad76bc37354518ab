"""Images in class folders (the layout of torchvision's ImageFolder), decoded once and cached beside the data.

    PATH/train/<class>/….png        and PATH/test/<class>/… or PATH/val/<class>/…

The labels number the class folders in train/ by sorted name, from 0.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

from common import UserError, written_whole


def read(folder, train, workers):
    """The training or the test images of a folder: uint8 N×H×W×3, and their labels, int64 N.

    All images must have the size of the first one. UserError names a folder or image that is missing or does not fit.
    """
    names = ["train"] if train else ["test", "val"]
    split = next((name for name in names if (folder / name).is_dir()), None)
    if split is None or not (folder / "train").is_dir():
        missing = "train" if split else names[0]
        raise UserError(f"{folder / missing} is not there: --data names a folder with train/ and test/ or val/ in it")
    classes = class_names(folder / "train")
    if len(classes) < 2:
        raise UserError(f"{folder / 'train'} holds {len(classes)} class folders: a net needs two or more")
    foreign = sorted(set(class_names(folder / split)) - set(classes))
    if foreign:
        raise UserError(f"{folder / split / foreign[0]} is a class that {folder / 'train'} does not have")
    paths, labels = [], []
    for label, name in enumerate(classes):
        own = image_files(folder / split / name)
        if not own:
            raise UserError(f"{folder / split / name} holds no images ({', '.join(IMG_EXTENSIONS)})")
        paths += own
        labels += [label] * len(own)
    return decoded(folder, split, paths, workers), np.array(labels)


def class_names(folder):
    """The sorted names of the folders in `folder`."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def image_files(folder):
    """The sorted paths of the images in `folder` and below; [] if it is missing. Hidden files are left out."""
    return sorted(path for path in folder.rglob("[!.]*") if path.suffix.lower() in IMG_EXTENSIONS)


def decoded(folder, split, paths, workers, size=None):
    """The images at `paths`, which are all in folder/split: uint8 N×H×W×3.

    The first call decodes them with `workers` threads and writes <split>.npz into `folder`. Later calls read that file,
    unless the name, size or date of an image has changed. size: (height, width) that all must have, default that of the
    first image. UserError if an image cannot be read or has another size.
    """
    stats = [(path, path.stat()) for path in paths]
    lines = (f"{path.relative_to(folder / split)} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats)
    fingerprint = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    cache = folder / f"{split}.npz"
    images = _read_cache(cache, fingerprint)
    if images is None:
        images = _decode(paths, size or _open(paths[0]).shape[:2], workers, f"reading {folder / split}")
        _write_cache(cache, images, fingerprint)
    return images


def _open(path):
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise UserError(f"{path} is no readable image ({error}): restore or remove it") from None


def _decode(paths, size, workers, title):
    images = np.empty((len(paths), *size, 3), np.uint8)

    def decode(i):
        image = _open(paths[i])
        if image.shape != images.shape[1:]:
            height, width, _ = image.shape
            raise UserError(f"{paths[i]} is {width}×{height} pixels instead of {size[1]}×{size[0]}")
        images[i] = image

    with ThreadPoolExecutor(workers) as pool:  # Pillow decodes without holding the interpreter's lock
        try:
            for _ in tqdm(pool.map(decode, range(len(paths))), title, len(paths), leave=False, disable=None):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return images


def _read_cache(path, fingerprint):
    """The cached images; None if there is no cache, or it is stale or damaged."""
    try:
        with np.load(path) as cache:
            if cache["fingerprint"].item() == fingerprint:
                return cache["images"]
    except Exception:  # whatever is wrong with the cache, it can be made again
        pass
    return None


def _write_cache(path, images, fingerprint):
    try:
        with written_whole(path) as partial, open(partial, "wb") as file:
            np.savez(file, images=images, fingerprint=fingerprint)
    except UserError as error:  # a read-only or full disk only costs time at the next start
        print(f"warning: {error}: the images will be decoded again next time")
