"""The demo data set: ten kinds of shapes, 32×32 colour images, in CIFAR-10's on-disk format.

It is made on first use, the same on every machine, so that every script can be tried without a download. Shapes of
random place, size and tint lie on a shaded background with noise; mirroring does not change the kind of a shape.
Most grey levels are near the middle, where the upper bits of a pixel tell much about each other. This is why copying
a bit helps, in photographs too.
"""

import pickle

import numpy as np

from common import written_whole
from datasets.cifar import CIFAR10

SEED = 0
BATCHES = {**{f"data_batch_{i}": 1000 for i in range(1, 6)}, "test_batch": 1000}  # images in each file
RADIUS = (7.0, 11.0)  # of a shape, pixels
# grey levels of 255
CONTRAST = (20, 60)  # between shape and background; either of them can be the lighter one
LEVEL = 22  # the level half-way between shape and background is 128 ± at most this
TINT = 12  # shift of that level in each channel, ± at most this
SLOPE = 1.0  # of the shading: grey levels per pixel, at most
NOISE = 6  # standard deviation; with much more, the net learns to ignore a random bit

# u, v: offsets from the shape's centre in units of its radius, v downwards -> True inside the shape
SHAPES = {
    "disc": lambda u, v: u**2 + v**2 < 1,
    "ring": lambda u, v: (u**2 + v**2 < 1) & (u**2 + v**2 > 0.36),
    "square": lambda u, v: np.maximum(abs(u), abs(v)) < 0.9,
    "frame": lambda u, v: (np.maximum(abs(u), abs(v)) < 0.9) & (np.maximum(abs(u), abs(v)) > 0.55),
    "diamond": lambda u, v: abs(u) + abs(v) < 1.2,
    "triangle up": lambda u, v: (v < 0.8) & (v > 2 * abs(u) - 1),
    "triangle down": lambda u, v: (v > -0.8) & (v < 1 - 2 * abs(u)),
    "plus": lambda u, v: (np.minimum(abs(u), abs(v)) < 0.3) & (np.maximum(abs(u), abs(v)) < 1),
    "cross": lambda u, v: (abs(abs(u) - abs(v)) < 0.4) & (np.maximum(abs(u), abs(v)) < 0.9),
    "bars": lambda u, v: (abs(u) < 0.9) & (abs(v) < 0.9) & (abs(v) > 0.3),
}


class Demo(CIFAR10):
    """The demo data set under `root`, made if it is not there; arguments and items as for CIFAR10."""

    base_folder = "demo-batches-py"
    official = False

    def download(self):
        if not self._check_integrity() or self._open("batches.meta", None)[1].get("settings") != settings():
            make(self.folder)


def draw(count, rng):
    """`count` images, uint8 N×3072 as in a CIFAR batch, and their labels, a list of ints. rng: RandomState."""
    labels = rng.randint(len(SHAPES), size=count)
    radius = rng.uniform(*RADIUS, size=(count, 1, 1))
    center = rng.uniform(radius[..., None], 31 - radius[..., None], size=(count, 1, 1, 2))
    row, column = np.mgrid[:32, :32]
    u, v = (column - center[..., 0]) / radius, (row - center[..., 1]) / radius  # N×32×32
    inside = np.empty((count, 32, 32), bool)
    for label, shape in enumerate(SHAPES.values()):
        inside[labels == label] = shape(u[labels == label], v[labels == label])

    step = rng.choice([-1, 1], size=(count, 1)) * rng.uniform(*CONTRAST, size=(count, 3))  # N×channels
    middle = 128 + rng.uniform(-LEVEL, LEVEL, size=(count, 1)) + rng.uniform(-TINT, TINT, size=(count, 3))
    slope = rng.uniform(-SLOPE, SLOPE, size=(count, 2, 1, 1))  # grey levels per pixel
    shade = slope[:, 0] * (row - 15.5) + slope[:, 1] * (column - 15.5)
    images = middle[..., None, None] + shade[:, None] + step[..., None, None] * (inside[:, None] - 0.5)
    images += rng.normal(0, NOISE, size=images.shape)
    return images.round().clip(0, 255).astype(np.uint8).reshape(count, -1), labels.tolist()


def settings():
    """The constants that determine the pixels, as text. A data set made with other constants is made again."""
    return repr((SEED, BATCHES, RADIUS, CONTRAST, LEVEL, TINT, SLOPE, NOISE, list(SHAPES)))


def make(folder):
    """Write the data set into `folder`, whole or not at all."""
    rng = np.random.RandomState(SEED)  # its random streams never change with NumPy's version, unlike Generator's
    with written_whole(folder) as partial:
        partial.mkdir()
        for name, count in BATCHES.items():
            data, labels = draw(count, rng)
            entry = {"batch_label": name, "labels": labels, "data": data}
            (partial / name).write_bytes(pickle.dumps(entry, protocol=2))
        meta = {"label_names": list(SHAPES), "num_vis": 3072, "settings": settings()}
        (partial / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
