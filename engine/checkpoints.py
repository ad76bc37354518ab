"""Checkpoint files: their names, what is in them, saving and loading.

checkpoint/ckpt.t7.<sess>_<seed>.pth is a dict with the original's keys

    net        state dict of the CNV (the original's carry `module.` before every key if trained in parallel)
    acc        accuracy after the last epoch, %: on the test images, or on those that `options` names instead
    epoch      number of epochs trained
    rng_state  state of torch's global generator on the CPU

and, beside them, what resuming and rebuilding need: `options` (dict), `optimizer`, `cuda_rng_state`
and `log` (one dict for each epoch), `images` and `teacher` (digests of the training images and of the teacher's file),
`threads` (of the CPU) and `arithmetic` (device and precision). Files of this project also hold `sha256`, the digest of
all other entries, which is checked on loading.

checkpoint/ckpt.t7.<sess>_<seed>.packed.pth (pack.py) holds what evaluation needs, one bit per binary weight:

    signs        {key: {"shape": list, "bits": uint8, np.packbits of weight >= 0}}; with WS of standardised weights
    net          the other entries of the state dict, unchanged
    packed_from  first 16 hexadecimal digits of the SHA-256 of the checkpoint
    acc, epoch, options, log, images, teacher, threads, arithmetic

It is loaded with latent weights -1 and +1. The net computes the same, but weight noise on them has no meaning, and
training can resume from them only where a cycle has ended, because a cycle starts from signs.
"""

import csv
import io
import math
import re
from pathlib import Path

import numpy as np
import torch

from common import UserError, content_digest, digest, first_line, keep_old, write_text, written_whole
from datasets import DATASETS
from faults import planes_of
from models import CNV, TOPOLOGIES

FOLDER = "checkpoint"

# classes that loading a NumPy number needs (the accuracy in some original checkpoints); they run no other code
_scalar = np.float64(0).__reduce__()[0]
NUMPY_NUMBERS = [
    (_scalar, "numpy.core.multiarray.scalar"),
    _scalar,
    np.dtype,
    *(
        type(np.dtype(kind))
        for kind in (
            *(np.float16, np.float32, np.float64, np.longdouble, np.bool_),
            *(np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64),
        )
    ),
]
# what else a packed checkpoint holds, so that training can go on
FOR_NEXT_CYCLE = ("images", "teacher", "threads", "arithmetic")
PREFIXES = ("module.", "_orig_mod.")  # of keys; added by DataParallel and torch.compile


class NoLatentWeights(UserError):
    """A packed checkpoint cannot do this. run.sh recognises the exit status and writes – into its table."""

    status = 3


def path_of(sess, seed):
    """The path of the checkpoint of this session and seed."""
    if not sess or Path(sess).name != sess:
        raise UserError(f"--sess {sess!r} cannot be part of a file name")
    return Path(FOLDER) / f"ckpt.t7.{sess}_{seed}.pth"


def packed_path_of(sess, seed):
    """The path of the packed checkpoint of this session and seed."""
    return packed_path(path_of(sess, seed))


def packed_path(path):
    """The path of the packed checkpoint beside a trained one."""
    return path.with_suffix(".packed.pth")


def find(sess, seed):
    """The path of the checkpoint to evaluate: the trained one, or if only that exists, the packed one."""
    path, packed = path_of(sess, seed), packed_path_of(sess, seed)
    return packed if packed.is_file() and not path.is_file() else path


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
    kept = {key: state[key] for key in ("acc", "epoch", "options", "log", *FOR_NEXT_CYCLE) if key in state}
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
    """Write a dict, with the digest of its content, as a checkpoint file, directly to `path`."""
    state = {key: value for key, value in state.items() if key != "sha256"}
    buffer = io.BytesIO()  # if the disk is full, torch.save to a file does not say so in its error
    torch.save({**state, "sha256": content_digest(state)}, buffer)
    path.write_bytes(buffer.getbuffer())


def keep_olds(path):
    """Rename a checkpoint that a new training would replace, and its CSV, to <name>.old."""
    keep_old(path)
    keep_old(path.with_suffix(".csv"))


def read_state(path):
    """The dict in a checkpoint file, tensors on the CPU.

    UserError if the file is missing, damaged or of another kind.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: train it with --train, or name another --sess and --seed")
    try:
        with torch.serialization.safe_globals(NUMPY_NUMBERS):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds
        foreign = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
        if foreign:
            raise UserError(
                f"{path} holds {foreign[1]}, which is not loaded for safety: save what it contains as dict, numbers "
                "and tensors"
            ) from None
        why = first_line(error).split(". ")[0]
        raise UserError(
            f"{path} is truncated or no checkpoint ({why}): restore it from a copy, or train it again"
        ) from None
    for key in ("net", "acc", "epoch"):
        if not isinstance(state, dict) or key not in state:
            raise UserError(f"{path} is no checkpoint of this project: it holds no '{key}'")
    if "sha256" in state:
        content = {key: value for key, value in state.items() if key != "sha256"}
        if content_digest(content) != state["sha256"]:
            raise UserError(f"{path} is damaged: its content is not what was saved; restore it from a copy")
    _check_net(path, state["net"])
    if "options" in state:
        _check_options(path, state["options"])
    try:
        state["acc"], state["epoch"] = float(state["acc"]), int(state["epoch"])
        if not math.isfinite(state["acc"]) or state["epoch"] < 0:
            raise ValueError
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise UserError(f"{path} is no checkpoint of this project: its 'acc' or 'epoch' is no number") from None
    try:
        state["net"] |= _unpack(state.get("signs", {}))
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is no checkpoint of this project: its 'signs' are damaged ({error})") from None
    state["net"] = {_without_prefixes(key): value for key, value in state["net"].items()}
    check_finite(path, state["net"])
    return state


def is_real(tensor):
    """Are its values there, and floating-point or whole numbers?"""
    return not (tensor.is_complex() or tensor.is_quantized or tensor.is_meta or tensor.dtype == torch.bool)


def _check_net(path, net):
    if not isinstance(net, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) and value.layout == torch.strided and is_real(value)
        for key, value in net.items()
    ):
        raise UserError(f"{path} is no checkpoint of this project: its 'net' is no state dict of dense tensors")


def _check_options(path, options):
    """UserError unless the options of a training name a known data set and a known net."""
    if not isinstance(options, dict) or not isinstance(options.get("dataset"), str):
        raise UserError(f"{path} is no checkpoint of this project: its 'options' name no dataset")
    if options["dataset"] not in DATASETS:
        raise UserError(
            f"{path} was trained on data set {options['dataset']!r}, which is none of {', '.join(DATASETS)}: "
            "add its row to datasets/__init__.py"
        )
    net, classes = options.get("net", DATASETS[options["dataset"]].net), options.get("classes", 2)
    sound = isinstance(options.get("wsconv"), bool) and isinstance(net, str) and isinstance(classes, int)
    if not sound or options.get("pad", 0) not in (0, -1) or classes < 2:
        raise UserError(f"{path} is no checkpoint of this project: its 'options' describe no net")
    if net not in TOPOLOGIES:
        raise UserError(f"{path} holds the net {net!r}, which is none of {', '.join(TOPOLOGIES)}: add its row")


def check_finite(what, net):
    """UserError if a state dict holds infinite numbers, NaN or negative variances. what: begins the message."""
    for key, value in net.items():
        if value.is_floating_point() and not value.float().isfinite().all():
            raise UserError(f"{what}: {key} holds numbers that are infinite or not numbers (NaN)")
        if key.endswith("running_var") and (value < 0).any():
            raise UserError(f"{what}: {key} holds a negative variance")


def _without_prefixes(key):
    while key.startswith(PREFIXES):
        key = key.split(".", 1)[1]
    return key


# values of these options for older checkpoints, which do not store them
OLDER_OPTIONS = {
    "holdout": 0,
    "pad": 0,
    "memory": "",
    "ber": 0.0,
    "reading": "inverted",
    "p01": None,
    "p10": None,
    "planes": (),
    "layers": [],
    "lines": None,
    "array": None,
    "transient": False,
    "known": None,
    "train_flip": 0.0,
    "train_noise": 0.0,
    "pretrained": "",
    "teacher": "",
    "cycles": 1,
    "padding": 4,  # except for the data sets in OLDER_PADDING
    "soften": 0.0,
    "soften_weights": 0.0,
    "norm_momentum": 0.1,
    "precise_norms": 0,
    "smoothing": 0.0,
    "clip": math.inf,
    "margin": 0.0,
}
OLDER_PADDING = {"tiny_imagenet": 0, "demo": 0}


def with_older_options(options):
    """The options of a checkpoint; those that it is too old to store have the values of OLDER_OPTIONS."""
    older = OLDER_OPTIONS | {"padding": OLDER_PADDING.get(options["dataset"], OLDER_OPTIONS["padding"])}
    options = options | {name: value for name, value in older.items() if name not in options}
    if isinstance(options["planes"], str):  # as they were stored at first
        options["planes"] = planes_of(options["planes"]) if options["planes"] else ()
    return options


def net_options(dataset, images, labels):
    """The options that select the net for training images: `net` (a key of TOPOLOGIES) and `classes`.

    {} if the table of data sets names the net. UserError if there is no net for images of this size.
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
    """A new CNV. options: dataset, wsconv and pad, and from net_options net and classes, if any. init: see CNV."""
    row = DATASETS[options["dataset"]]
    topology = TOPOLOGIES[options.get("net", row.net)]
    return CNV(topology, options.get("classes", row.classes), options["wsconv"], init, pad=options["pad"])


def restore_net(path, state, options):
    """The CNV of a loaded checkpoint. UserError if the state does not fit the net of `options`."""
    net = build_net(options)
    own, found = net.state_dict(), state["net"]
    for key in [*own, *found]:
        if key in own and key in found and own[key].is_floating_point() != found[key].is_floating_point():
            raise UserError(f"{path} does not fit the net: {key} holds {found[key].dtype} instead of {own[key].dtype}")
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

    options: as for build_net. With the `pad` of the checkpoint's training, the net computes what that net computes.
    """
    _, trained, _ = load_net(path, options["dataset"])
    net = restore_net(path, {"net": trained.state_dict()}, options)
    net.take_signs(trained, init)
    return net


def trained_as(path, state):
    """The options of a checkpoint's training, at least those for build_net; an original's are from its file name."""
    if "options" in state:
        return {"pad": OLDER_OPTIONS["pad"], **state["options"]}
    sess = path.name.removeprefix("ckpt.t7.")
    dataset = next((name for name in DATASETS if sess.startswith(f"{name}_")), "cifar10")
    return {"dataset": dataset, "wsconv": "wsconv" in sess, "pad": 0}


def load_net(path, dataset=None, wsconv=None):
    """(data set's name, net in evaluation mode, dict) of a checkpoint.

    dataset: None, or the data set that the checkpoint must be trained on. An original checkpoint does not store it:
    there `dataset` replaces the guess from the file name. wsconv: evaluate with weight standardisation or without;
    None: as it was trained. UserError if the data set differs, or the net does not fit. NoLatentWeights if `wsconv`
    is not that of a packed net's training.
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
                f"{path} is packed and holds signs only: evaluating it {'with' if wsconv else 'without'} weight "
                "standardisation, other than in its training, needs latent weights: train it with --train"
            )
        options["wsconv"] = wsconv
    return options["dataset"], restore_net(path, state, options).eval(), state
