"""Tiny-ImageNet: its class folders, read once, as uint8 arrays cached beside the data."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image
from tqdm import tqdm

from cli import UserError

CLASSES = 200
SIZE = 64  # pixels a side


def load(folder, train, workers):
    """The images and labels under `folder`: uint8 N×64×64×3, int64 N; labels count the sorted wnids.

    The first call decodes the JPEGs with `workers` threads and leaves `train.npz` or `val.npz` in `folder`;
    later ones read that, unless the name, size or date of an image has changed. UserError if a folder is
    missing or not sorted into classes, or an image cannot be decoded.
    """
    split = "train" if train else "val"
    if not (folder / split).is_dir():
        raise UserError(f"{folder / split} is not there: python trans.py says where to get Tiny-ImageNet")
    if (folder / "val" / "images").is_dir():
        raise UserError(f"{folder / 'val'} is not sorted into class folders yet: run python trans.py {folder}")

    wnids = sorted(entry.name for entry in os.scandir(folder / "train") if entry.is_dir())
    if len(wnids) != CLASSES:
        raise UserError(f"{folder / 'train'} holds {len(wnids)} class folders instead of {CLASSES}: unzip it again")
    paths, labels, stats = [], [], []
    for label, wnid in enumerate(wnids):
        place = folder / split / wnid / "images"
        if not place.is_dir():
            raise UserError(f"{place} is missing: unzip Tiny-ImageNet again and run python trans.py")
        for entry in sorted(os.scandir(place), key=lambda entry: entry.name):
            stat = entry.stat()
            paths.append(entry.path)
            labels.append(label)
            stats.append(f"{wnid}/{entry.name} {stat.st_size} {stat.st_mtime_ns}")
    if not paths:
        raise UserError(f"{folder / split} holds no images: unzip Tiny-ImageNet again")
    fingerprint = hashlib.sha256("\n".join(stats).encode()).hexdigest()

    cache = folder / f"{split}.npz"
    images = _read_cache(cache, fingerprint)
    if images is None:
        images = _decode(paths, workers, f"reading {folder / split}")
        _write_cache(cache, images, fingerprint)
    return images, np.array(labels)


def _decode(paths, workers, title):
    images = np.empty((len(paths), SIZE, SIZE, 3), np.uint8)

    def decode(i):
        try:
            image = np.asarray(Image.open(paths[i]).convert("RGB"))
        except OSError as error:
            raise UserError(f"{paths[i]} is no readable image ({error}): unzip Tiny-ImageNet again") from None
        if image.shape != images.shape[1:]:
            height, width, _ = image.shape
            raise UserError(f"{paths[i]} is {width}×{height} pixels instead of {SIZE}×{SIZE}")
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
    except Exception:  # whatever is wrong with it, it can be made again
        pass
    return None


def _write_cache(path, images, fingerprint):
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "wb") as file:
            np.savez(file, images=images, fingerprint=fingerprint)
        os.replace(partial, path)
    except OSError as error:  # a read-only or full disk costs time at the next start, nothing else
        print(f"warning: {path} cannot be written ({error.strerror}): the images will be decoded again next time")
    finally:
        partial.unlink(missing_ok=True)
