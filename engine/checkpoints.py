"""Checkpoint files: their names, what is in them, saving and loading.

checkpoint/ckpt.t7.<sess>_<seed>.pth is a dict with the original's keys

    net        state dict of the CNV (the original's carry `module.` before every key if trained in parallel)
    acc        accuracy after the last epoch, %: of the test images, or what `options` puts in their place
    epoch      number of epochs trained
    rng_state  state of torch's global generator on the CPU

and, beside them, what resuming and rebuilding need: `options` (dict), `optimizer`, `scheduler`, `cuda_rng_state`
and `log` (one dict for each epoch).

checkpoint/ckpt.t7.<sess>_<seed>.packed.pth (pack.py) holds what evaluation needs, one bit to a binary weight:

    signs        {key: {"shape": list, "bits": uint8, np.packbits of weight >= 0}}, standardised weights' with WS
    net          the other entries of the state dict, as they were
    packed_from  first 16 hexadecimal digits of the SHA-256 of the checkpoint
    acc, epoch, options, log

Its latent weights are -1 and +1: the same net, but nothing to put noise on or to resume.
"""

import csv
import io
import math
import os
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from common import UserError, write_text, written_whole
from datasets import DATASETS
from models import CNV, TOPOLOGIES

FOLDER = "checkpoint"

# what a NumPy number needs, such as the accuracy in some originals; building it executes nothing else
_scalar = np.float64(0).__reduce__()[0]
NUMPY_SCALAR = [(_scalar, "numpy.core.multiarray.scalar"), _scalar, np.dtype, type(np.dtype(np.float64))]


class NoLatentWeights(UserError):
    """A packed checkpoint cannot do this. run.sh leaves the cell of the table empty."""

    status = 3


def path_of(sess, seed):
    """Where the checkpoint of this session and seed lies."""
    if not sess or Path(sess).name != sess:
        raise UserError(f"--sess {sess!r} cannot be part of a file name")
    return Path(FOLDER) / f"ckpt.t7.{sess}_{seed}.pth"


def packed_path_of(sess, seed):
    """Where the packed checkpoint of this session and seed lies."""
    return path_of(sess, seed).with_suffix(".packed.pth")


def find(sess, seed):
    """The checkpoint of this session and seed to evaluate: the trained one, or where that is missing the packed one."""
    path, packed = path_of(sess, seed), packed_path_of(sess, seed)
    return packed if packed.is_file() and not path.is_file() else path


def digest(data):
    """The first 16 hexadecimal digits of the SHA-256 of bytes."""
    return sha256(data).hexdigest()[:16]


@torch.no_grad()
def pack(net, state, data):
    """The dict of a packed checkpoint. net, state: of a loaded checkpoint; data: the bytes of its file."""
    names = {module: name for name, module in net.named_modules()}
    signs, rest = {}, net.state_dict()
    for layer in net.binary_layers():
        key = f"{names[layer]}.weight"
        value = layer.quant_weight().value
        signs[key] = {"shape": list(value.shape), "bits": torch.from_numpy(np.packbits(value.numpy() >= 0))}
        del rest[key]
    kept = {key: state[key] for key in ("acc", "epoch", "options", "log")}
    return {"signs": signs, "net": rest, "packed_from": digest(data), **kept}


def _unpack(signs):
    """{key: float32 latent weights of -1 and +1}"""
    weights = {}
    for key, entry in signs.items():
        number = int(np.prod(entry["shape"]))
        if len(entry["bits"]) != (number + 7) // 8:
            raise ValueError(f"{key} is cut short")
        bits = np.unpackbits(entry["bits"].numpy(), count=number)
        weights[key] = torch.from_numpy(2 * bits.astype(np.float32) - 1).view(entry["shape"])
    return weights


def save(path, state):
    """Write `state` to `path`, and its log as CSV beside it, each whole or not at all."""
    with io.StringIO() as table:
        writer = csv.DictWriter(table, state["log"][0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(state["log"])
        rows = table.getvalue()
    with written_whole(path) as partial:
        write(partial, state)
    write_text(path.with_suffix(".csv"), rows)


def write(path, state):
    """Write a dict as a checkpoint file, in place."""
    with open(path, "wb") as file:
        torch.save(state, file)


def keep_old(path):
    """Move a checkpoint that a new training would replace, and its CSV, to <name>.old; what is there goes."""
    for file in (path, path.with_suffix(".csv")):
        if file.exists():
            os.replace(file, f"{file}.old")


def read_state(path):
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
    if not isinstance(state["net"], dict) or not all(
        isinstance(value, torch.Tensor) for value in state["net"].values()
    ):
        raise UserError(f"{path} is no checkpoint of this project: its 'net' is no state dict")
    try:
        state["net"] |= _unpack(state.get("signs", {}))
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is no checkpoint of this project: its 'signs' are damaged ({error})") from None
    state["net"] = {key.removeprefix("module."): value for key, value in state["net"].items()}
    return state


# what older checkpoints, which do not have these options, were trained with
OLDER_OPTIONS = {
    "holdout": 0,
    "pad": 0,
    "train_flip": 0.0,
    "train_noise": 0.0,
    "pretrained": "",
    "cycles": 1,
    "padding": 4,  # but see below
    "soften": 0.0,
    "soften_weights": 0.0,
    "norm_momentum": 0.1,
    "smoothing": 0.0,
    "clip": math.inf,
    "margin": 0.0,
}
OLDER_PADDING = {"tiny_imagenet": 0, "demo": 0}  # of these data sets


def with_older_options(options):
    """The options of a checkpoint, those added that it is too old to have."""
    older = OLDER_OPTIONS | {"padding": OLDER_PADDING.get(options["dataset"], OLDER_OPTIONS["padding"])}
    return options | {name: value for name, value in older.items() if name not in options}


def net_options(dataset, images, labels):
    """The options that decide which net fits training images where the table of data sets leaves that open.

    {} where it does not, else `net` (a key of TOPOLOGIES) and `classes`. UserError if there is no net of that size.
    """
    if DATASETS[dataset].net:
        return {}
    height, width = images.shape[2:]
    net = next((name for name, topology in TOPOLOGIES.items() if topology.size == height == width), None)
    if net is None:
        sizes = ", ".join(f"{size}×{size}" for size in sorted({topology.size for topology in TOPOLOGIES.values()}))
        raise UserError(
            f"images of {width}×{height} pixels: there are nets for {sizes}, docs/extending.md says how to add one"
        )
    return {"net": net, "classes": int(labels.max()) + 1}


def check_fits(path, net, images, labels):
    """UserError unless the net of a checkpoint can be evaluated on these images."""
    found, wanted = tuple(images.shape[2:]), (net.topology.size,) * 2
    if found != wanted or labels.max() >= net.classes:
        raise UserError(
            f"{path} is a net for images of {wanted[0]}×{wanted[1]} pixels and {net.classes} classes: "
            f"these have {found[1]}×{found[0]} and {int(labels.max()) + 1}"
        )


def build_net(options, init=1.0):
    """A new CNV. options: with dataset, wsconv and pad, and net and classes where the data set leaves them open."""
    row = DATASETS[options["dataset"]]
    topology = TOPOLOGIES[options.get("net", row.net)]
    return CNV(topology, options.get("classes", row.classes), options["wsconv"], init, pad=options["pad"])


def restore_net(path, state, options):
    """The CNV of a loaded checkpoint. UserError if it is the state of another net than that of `options`."""
    net = build_net(options)
    own, found = net.state_dict(), state["net"]
    for key in [*own, *found]:
        if key not in own or key not in found or own[key].shape != found[key].shape:
            shapes = [f"{tuple(tensors[key].shape)}" if key in tensors else "absent" for tensors in (found, own)]
            raise UserError(
                f"{path} does not fit the net for {DATASETS[options['dataset']].title}: "
                f"{key} is {shapes[0]} in the file and {shapes[1]} in the net"
            )
    net.load_state_dict(found)
    return net


def restart_net(path, options, init):
    """A net with the signs and statistics of a checkpoint (packed or not), its latent weights at -init and +init.

    options: as of build_net. Where its `pad` is what the checkpoint was trained with, it computes as that net does.
    """
    _, trained, _ = load_net(path, options["dataset"])
    net = restore_net(path, {"net": trained.state_dict()}, options)
    net.take_signs(trained, init)
    return net


def trained_as(path, state):
    """The options of a checkpoint's training, at least what build_net needs; an original's are in its name."""
    if "options" in state:
        return {"pad": OLDER_OPTIONS["pad"], **state["options"]}
    sess = path.name.removeprefix("ckpt.t7.")
    dataset = next((name for name in DATASETS if sess.startswith(f"{name}_")), "cifar10")
    return {"dataset": dataset, "wsconv": "wsconv" in sess, "pad": 0}


def load_net(path, dataset=None, wsconv=None):
    """The data set's name, the net in evaluation mode and the dict of a checkpoint.

    A checkpoint says what it was trained on, an original's name does; `dataset`, where given, must agree with the
    former and overrides the latter. wsconv: evaluate with weight standardisation or without; None: as it was trained.
    UserError if the data set is another, the net doesn't fit, or `wsconv` is not that of a packed net's training.
    """
    state = read_state(path)
    options = trained_as(path, state)
    if "options" not in state:
        options["dataset"] = dataset or options["dataset"]
    elif dataset not in (None, options["dataset"]):
        raise UserError(f"{path} was trained with dataset {options['dataset']}, not {dataset}: leave the option out")
    if wsconv is not None and wsconv != options["wsconv"]:
        if "signs" in state:
            raise NoLatentWeights(
                f"{path} is packed: {'with' if wsconv else 'without'} weight standardisation, other than in its "
                "training, a net needs latent weights, and it holds signs only"
            )
        options["wsconv"] = wsconv
    return options["dataset"], restore_net(path, state, options).eval(), state
