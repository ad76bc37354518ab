#!/usr/bin/env python3
"""Export a checkpoint for FINN, as QONNX, and check the file against the net.

    python export_finn.py --sess cifar10_smaller --seed 11111    # -> export_finn/ckpt.t7.cifar10_smaller_11111.qonnx.onnx
    python export_finn.py --report                               # also print what each layer costs in hardware

The file takes float32 images in [0, 1]; their 8-bit quantiser is in it. Weights are the ±1 that the net computes
with, standardised ones included.
"""

import importlib.util
import os
import warnings
from hashlib import sha256
from pathlib import Path

import torch
from tqdm import tqdm

import checkpoints
from cli import Parser, UserError, run, within
from loader import DATASETS, load, scale
from models import CNV
from models.costs import costs, table

SESS = "cifar10_smaller"
SEED = 11111
DATA = "data"  # folder in which all data sets lie
FOLDER = "export_finn"
BATCH = 1  # images that the file takes at once
VERIFY = 16  # test images on which the file is compared with the net

PACKAGES = ("onnx", "onnxoptimizer", "onnxscript", "qonnx")
TOLERANCE = 1e-4  # of logits, which are normalised sums of ±1: rounding leaves some 1e-6


def check_packages():
    """UserError unless the packages are there that only the export needs."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"the export needs {', '.join(missing)}, which requirements.txt names: pip install -r requirements.txt "
            "(everything else works without)"
        )


def plain_copy(net):
    """A CNV without weight standardisation whose latent weights are the ±1 that `net` computes with."""
    copy = CNV(net.topology, net.classes)
    state = dict(net.state_dict())
    for name, module in net.named_modules():
        if module in net.binary_layers():
            state[f"{name}.weight"] = module.quant_weight().value
    copy.load_state_dict(state)
    return copy.eval()


def to_qonnx(net, batch, metadata):
    """The net as a cleaned-up qonnx ModelWrapper: images (batch×3×size×size, in [0, 1]) -> logits, both float32."""
    import onnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about optional packages that have no part in this
        from brevitas.export import export_qonnx
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.util.cleanup import cleanup_model

    size = net.topology.size
    with torch.no_grad():
        graph = export_qonnx(plain_copy(net), args=torch.zeros(batch, 3, size, size), dynamo=False)
    model = cleanup_model(ModelWrapper(graph))
    for tensor, name in ((model.graph.input[0].name, "images"), (model.graph.output[0].name, "logits")):
        model.rename_tensor(tensor, name)
    onnx.helper.set_model_props(model.model, metadata)  # not qonnx's own: it puts them into the graph, where few look
    return model


def compare(path, net, images):
    """Executes the file on some images (uint8 N×3×H×W). Returns how many are predicted alike, and the largest
    difference of a logit from the net's.
    """
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx

    model = ModelWrapper(str(path))
    batch = model.get_tensor_shape("images")[0]
    alike, difference = 0, 0.0
    for part in tqdm(images.split(batch), "comparing", leave=False, disable=None):
        inputs = scale(part).contiguous()
        with torch.inference_mode():
            expected = net(inputs)
        filled = torch.cat([inputs, inputs.new_zeros(batch - len(part), *inputs.shape[1:])])
        outputs = torch.from_numpy(execute_onnx(model, {"images": filled.numpy()})["logits"])[: len(part)]
        alike += (outputs.argmax(1) == expected.argmax(1)).sum().item()
        difference = max(difference, (outputs - expected).abs().max().item())
    return alike, difference


def export(sess, seed, data, batch=1, verify=16):
    """Write the QONNX file of a checkpoint, unless it differs from the net on the first `verify` test images."""
    check_packages()
    source = checkpoints.find(sess, seed)
    dataset, net, state = checkpoints.load_net(source)
    images = load(dataset, data, False)[0][:verify] if verify else None
    metadata = {
        "checkpoint": source.name,
        "checkpoint_sha256": sha256(source.read_bytes()).hexdigest(),
        "dataset": DATASETS[dataset].title,
    }
    options = state.get("options", {})
    if not options.get("holdout") and options.get("mem_fault", "baseline") == "baseline":  # else `acc` is of other images
        metadata["test_accuracy"] = f"{float(state['acc']):.3f} %"
    model = to_qonnx(net, batch, metadata)
    path = Path(FOLDER) / f"{checkpoints.path_of(sess, seed).stem}.qonnx.onnx"
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        model.save(str(partial))
        if verify:
            alike, difference = compare(partial, net, images)
            if alike < len(images) or difference > TOLERANCE:
                raise UserError(
                    f"{path} is not written: of {len(images)} test images it predicts {alike} as the net does, "
                    f"and its logits differ by up to {difference:.3g}"
                )
            print(f"{source}: {alike} of {len(images)} test images predicted alike, logits differ by at most {difference:.2g}")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    print(f"{path}: {path.stat().st_size / 2**20:.0f} MiB, batch size {batch}{'' if verify else ', not compared with the net'}")


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
