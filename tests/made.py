"""Small data made for the tests, in the real on-disk formats."""

import pickle

import numpy as np


def write_cifar10(root, rows=6, protocol=2):
    """A CIFAR-10 of random pixels, `rows` images a file, under `root`. Returns its folder."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.RandomState(0)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        data = rng.randint(0, 256, (rows, 3072), dtype=np.uint8)
        entry = {"batch_label": name, "labels": rng.randint(0, 10, rows).tolist(), "data": data}
        (folder / name).write_bytes(pickle.dumps(entry, protocol=protocol))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}, protocol=protocol))
    return folder
