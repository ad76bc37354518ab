"""Checkpoint files: their names, what is in them, saving and loading.

checkpoint/ckpt.t7.<sess>_<seed>.pth is a dict with the original's keys

    net        state dict of the CNV (the original's carry `module.` before every key if trained in parallel)
    acc        test accuracy after the last epoch, %
    epoch      number of epochs trained
    rng_state  state of torch's global generator on the CPU

and, beside them, what resuming and rebuilding need: `options` (dict), `optimizer`, `scheduler`, `cuda_rng_state`
and `log` (one dict for each epoch).
"""

import csv
import io
import os
from pathlib import Path

import numpy as np
import torch

from cli import UserError
from files import write_whole
from loader import DATASETS
from models import CNV, TOPOLOGIES

FOLDER = "checkpoint"

# what a NumPy number needs, such as the accuracy in some originals; building it executes nothing else
_scalar = np.float64(0).__reduce__()[0]
NUMPY_SCALAR = [(_scalar, "numpy.core.multiarray.scalar"), _scalar, np.dtype, type(np.dtype(np.float64))]


def path_of(sess, seed):
    """Where the checkpoint of this session and seed lies."""
    if not sess or Path(sess).name != sess:
        raise UserError(f"--sess {sess!r} cannot be part of a file name")
    return Path(FOLDER) / f"ckpt.t7.{sess}_{seed}.pth"


def save(path, state):
    """Write `state` to `path`, and its log as CSV beside it, each whole or not at all."""
    with io.StringIO() as table:
        writer = csv.DictWriter(table, state["log"][0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(state["log"])
        rows = table.getvalue().encode()
    write_whole(path, lambda file: torch.save(state, file))
    write_whole(path.with_suffix(".csv"), lambda file: file.write(rows))


def keep_old(path):
    """Move a checkpoint that a new training would replace, and its CSV, to <name>.old; what is there goes."""
    for file in (path, path.with_suffix(".csv")):
        if file.exists():
            os.replace(file, f"{file}.old")


def load(path):
    """The dict in a checkpoint file, tensors on the CPU. UserError if it is missing or not one of these files."""
    if not path.is_file():
        raise UserError(f"{path} is missing: train it with --train, or name another --sess and --seed")
    try:
        with torch.serialization.safe_globals(NUMPY_SCALAR):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds
        raise UserError(f"{path} is truncated or no checkpoint ({str(error).splitlines()[0]})") from None
    for key in ("net", "acc", "epoch"):
        if not isinstance(state, dict) or key not in state:
            raise UserError(f"{path} is no checkpoint of this project: it holds no '{key}'")
    if not isinstance(state["net"], dict) or not all(isinstance(value, torch.Tensor) for value in state["net"].values()):
        raise UserError(f"{path} is no checkpoint of this project: its 'net' is no state dict")
    state["net"] = {key.removeprefix("module."): value for key, value in state["net"].items()}
    return state


def build_net(dataset, wsconv, init=1.0):
    """A new CNV for a data set of the table."""
    row = DATASETS[dataset]
    return CNV(TOPOLOGIES[row.net], row.classes, wsconv, init)


def restore_net(path, state, dataset, wsconv):
    """The CNV of a loaded checkpoint. UserError if it is the state of another net."""
    net = build_net(dataset, wsconv)
    own, found = net.state_dict(), state["net"]
    for key in [*own, *found]:
        if key not in own or key not in found or own[key].shape != found[key].shape:
            shapes = [f"{tuple(tensors[key].shape)}" if key in tensors else "absent" for tensors in (found, own)]
            raise UserError(
                f"{path} does not fit the net for {DATASETS[dataset].title}: "
                f"{key} is {shapes[0]} in the file and {shapes[1]} in the net"
            )
    net.load_state_dict(found)
    return net


def load_net(path, dataset=None, wsconv=None):
    """The data set's name, the net in evaluation mode and the dict of a checkpoint.

    A checkpoint says what it was trained on, an original's name does; `dataset` and `wsconv`, where given, must
    agree with the former and override the latter. UserError if they don't, or the net doesn't fit.
    """
    state = load(path)
    saved = state.get("options")
    if saved is None:
        sess = path.name.removeprefix("ckpt.t7.")
        named = next((name for name in DATASETS if sess.startswith(f"{name}_")), "cifar10")
        saved = {"dataset": dataset or named, "wsconv": "wsconv" in sess if wsconv is None else wsconv}
    for name, value in (("dataset", dataset), ("wsconv", wsconv)):
        if value not in (None, saved[name]):
            raise UserError(f"{path} was trained with {name} {saved[name]}, not {value}: leave the option out")
    return saved["dataset"], restore_net(path, state, saved["dataset"], saved["wsconv"]).eval(), state
