#!/usr/bin/env python3
"""Export a checkpoint for FINN, as QONNX, and check the file against the net.

    python export_finn.py --sess cifar10_smaller    # -> export_finn/ckpt.t7.cifar10_smaller_11111.qonnx.onnx
    python export_finn.py --report                  # also print what each layer costs in hardware

The file takes float32 images in [0, 1]; their 8-bit quantiser is in it. It is run on test images twice: as it is, and
recoded as FINN recodes it (models/qonnx_graph.py). Both must give the net's logits, or no file is written. The images
and the net's logits lie beside it as `….input.npy` and `….expected_output.npy`, for FINN's options verify_input_npy and
verify_expected_output_npy.
"""

import functools
import importlib.util
import os
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import checkpoints
from cli import Parser, UserError, run, within
from files import write_whole
from loader import DATASETS, load, scale
from models.costs import costs, table
from models.qonnx_graph import recoded, to_qonnx

SESS = "cifar10_smaller"
SEED = 11111
DATA = "data"  # folder in which all data sets lie
FOLDER = "export_finn"
BATCH = 1  # images that the file takes at once
VERIFY = 16  # test images on which the file is compared with the net

PACKAGES = ("onnx", "qonnx")
TOLERANCE = 1e-4  # of logits, which are normalised sums of ±1: rounding leaves some 1e-6


def check_packages():
    """UserError unless the packages are there that only the export needs."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"the export needs {', '.join(missing)}, which requirements.txt names: "
            ".venv/bin/python -m pip install -r requirements.txt (everything else works without)"
        )


def execute(model, images, title):
    """Logits (float32 N×classes) of a qonnx model on float32 images N×3×H×W in [0, 1], as many at once as it takes."""
    from qonnx.core.onnx_exec import execute_onnx

    batch = model.get_tensor_shape("images")[0]
    logits = []
    for part in tqdm(images.split(batch), title, leave=False, disable=None):
        filled = torch.cat([part, part.new_zeros(batch - len(part), *part.shape[1:])])
        logits.append(execute_onnx(model, {"images": filled.numpy()})["logits"][: len(part)])
    return torch.from_numpy(np.concatenate(logits))


def verify(path, images, expected, target):
    """UserError unless the file, as it is and recoded as by FINN, gives the expected logits. Says what it found.

    path: the file; target: the name that it will get.
    """
    from qonnx.core.modelwrapper import ModelWrapper

    model = ModelWrapper(str(path))
    for title, form in (("as it is", model), ("as FINN recodes it", recoded(model))):
        logits = execute(form, images, title)
        alike = (logits.argmax(1) == expected.argmax(1)).sum().item()
        difference = (logits - expected).abs().max().item()
        found = f"{alike} of {len(images)} test images predicted alike, logits differ by at most {difference:.2g}"
        if alike < len(images) or not difference <= TOLERANCE:
            raise UserError(f"{target} is not written: {title}, against the net, {found}")
        print(f"{target}, {title}: {found}")


def export(sess, seed, data, batch=BATCH, number=VERIFY):
    """Write the QONNX file of a checkpoint, unless it differs from the net on the first `number` test images."""
    check_packages()
    import onnx

    source = checkpoints.find(sess, seed)
    dataset, net, state = checkpoints.load_net(source)
    path = Path(FOLDER) / f"{checkpoints.path_of(sess, seed).stem}.qonnx.onnx"
    samples = [path.with_suffix(f".{name}.npy") for name in ("input", "expected_output")]
    metadata = {
        "checkpoint": source.name,
        "checkpoint_sha256": sha256(source.read_bytes()).hexdigest(),
        "dataset": DATASETS[dataset].title,
    }
    options = state.get("options", {})
    of_other_images = options.get("holdout") or options.get("mem_fault", "baseline") != "baseline"
    if not of_other_images:
        metadata["test_accuracy"] = f"{float(state['acc']):.3f} %"
    try:
        model = to_qonnx(net, batch)
    except ValueError as error:
        raise UserError(f"--batch {batch}: {error}") from None
    onnx.helper.set_model_props(model.model, metadata)  # not qonnx's own: it puts them into the graph, where few look
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    images = expected = None
    try:
        model.save(str(partial))
        if number:
            images = scale(load(dataset, data, False)[0][:number]).contiguous()
            with torch.inference_mode():
                expected = net(images)
            verify(partial, images, expected, path)
        for sample in samples:  # those of another file would not fit this one
            sample.unlink(missing_ok=True)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    for sample, values in zip(samples, (images, expected)):
        if values is not None:
            write_whole(sample, functools.partial(np.save, arr=values.numpy()))
    compared = "" if number else ", not compared with the net"
    print(f"{path}: {source}, {path.stat().st_size / 2**20:.0f} MiB, batch size {batch}{compared}")


def main():
    parser = Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sess", default=SESS, help="checkpoint name, default %(default)s")
    parser.add_argument("--seed", type=within(int, 0, 2**62), default=SEED, help="its seed, default %(default)s")
    parser.add_argument("--data", default=DATA, help="folder in which all data sets lie, default %(default)s")
    parser.add_argument("--batch", type=within(int, 1), default=BATCH, help="images at once, default %(default)s")
    parser.add_argument(
        "--verify", type=within(int, 0), default=VERIFY, help="test images to compare on, default %(default)s; 0: none"
    )
    parser.add_argument("--report", action="store_true", help="print what each layer costs in hardware, too")
    args = parser.parse_args()
    if args.report:
        _, net, _ = checkpoints.load_net(checkpoints.find(args.sess, args.seed))
        print(table(costs(net.topology, net.classes)))
    export(args.sess, args.seed, args.data, args.batch, args.verify)


if __name__ == "__main__":
    run(main)
