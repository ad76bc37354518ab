"""Small data made for the tests, in the real on-disk formats."""

import pickle

import numpy as np
import torch

from engine import checkpoints
from faults import break_images
from models import Topology
from repairs import fault_of, repaired

TINY = Topology(size=32, conv=((8, True), (16, True)), fc=(24,))  # a net that takes little time


def write_cifar10(root, rows=6, protocol=2):
    """Writes a CIFAR-10 of random pixels, `rows` images per file, under `root`. Returns its folder."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.RandomState(0)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        data = rng.randint(0, 256, (rows, 3072), dtype=np.uint8)
        entry = {"batch_label": name, "labels": rng.randint(0, 10, rows).tolist(), "data": data}
        (folder / name).write_bytes(pickle.dumps(entry, protocol=protocol))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}, protocol=protocol))
    return folder


def apply(fault, images, draw, state=None):
    """Images after fault and repair. draw: function shape -> values that the broken bits read."""
    return repaired(fault, break_images(fault, images, draw), state)


def mend(repair, images, bit, state=None):
    """Faulty images after a repair. repaired_n copies the next lower bit, and for bit 0 the next higher one."""
    return repaired(fault_of(repair, bit, 1 if bit == 0 else -1), images, state)


def save_checkpoint(net, sess, dataset, wsconv, seed=11111, acc=10.0):
    """Saves a checkpoint of `net` as after one epoch, without what only resuming needs. Returns its path."""
    path = checkpoints.path_of(sess, seed)
    state = {"net": net.state_dict(), "acc": acc, "epoch": 1, "rng_state": torch.get_rng_state(), "log": [{"epoch": 1}]}
    checkpoints.save(path, {**state, "options": {"dataset": dataset, "wsconv": wsconv}})
    return path


def trained_net(dataset, wsconv=False, init=0.3):
    """A random net as after some training: its activations vary, its latent weights are not standardised."""
    net = checkpoints.build_net({"dataset": dataset, "wsconv": wsconv, "pad": 0}, init)
    net.train()
    size = net.topology.size
    with torch.no_grad():
        for _ in range(20):
            net(torch.rand(4, 3, size, size))
        for layer in net.binary_layers():
            layer.weight.mul_(1.7).add_(0.02)
    return net
