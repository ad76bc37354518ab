"""Export of a checkpoint for FINN: a QONNX file, compared with the net, both as written and as FINN recodes it."""

import importlib.util
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from common import UserError, written_whole
from datasets import DATASETS, read_images
from engine import checkpoints
from engine.batches import scale
from models.qonnx_graph import recoded, to_qonnx

FOLDER = "export_finn"
PACKAGES = ("onnx", "qonnx")
TOLERANCE = 1e-4  # of logits; rounding alone gives about 1e-6


def check_export_packages():
    """UserError if a package that only the export needs is missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"the export needs {', '.join(missing)}, which requirements.txt names: "
            ".venv/bin/python -m pip install -r requirements.txt (everything else works without)"
        )


def execute(model, images, title):
    """Logits (float32 N×classes) of a qonnx model on float32 images N×3×H×W in [0, 1]. title: of the progress bar."""
    from qonnx.core.onnx_exec import execute_onnx

    batch = model.get_tensor_shape("images")[0]
    logits = []
    for part in tqdm(images.split(batch), title, leave=False, disable=None):
        filled = torch.cat([part, part.new_zeros(batch - len(part), *part.shape[1:])])
        logits.append(execute_onnx(model, {"images": filled.numpy()})["logits"][: len(part)])
    return torch.from_numpy(np.concatenate(logits))


def verify(path, images, expected, target):
    """UserError unless the file, as written and as FINN recodes it, gives the expected logits. Prints the result.

    path: the file. target: its final path, for messages.
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


def tested_on_intact_images(options):
    """True if the accuracy in a checkpoint is of the test images without a fault. options: of its training."""
    intact = options.get("mem_fault", "baseline") == "baseline" and options.get("memory") != "image"
    return intact and not options.get("holdout")


def export(sess, seed, data, batch=1, number=16):
    """Write the QONNX file of a checkpoint, unless it differs from the net on the first `number` test images.

    batch: images that the file takes at once. number: 0 to skip the comparison.
    """
    check_export_packages()
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
    if tested_on_intact_images(state.get("options", {})):
        metadata["test_accuracy"] = f"{float(state['acc']):.3f} %"
    try:
        model = to_qonnx(net, batch)
    except ValueError as error:
        raise UserError(f"--batch {batch}: {error}") from None
    onnx.helper.set_model_props(model.model, metadata)  # qonnx's own stores them in the graph, where few tools look
    images = expected = None
    with written_whole(path) as partial:
        model.save(str(partial))
        if number:
            images, labels = (part[:number] for part in read_images(dataset, data, False))
            checkpoints.check_fits(source, net, images, labels)
            images = scale(images).contiguous()
            with torch.inference_mode():
                expected = net(images)
            verify(partial, images, expected, path)
        for sample in samples:  # samples of an earlier export would not fit this file
            sample.unlink(missing_ok=True)
    for sample, values in zip(samples, (images, expected)):
        if values is not None:
            with written_whole(sample) as partial, open(partial, "wb") as file:
                np.save(file, values.numpy())
    compared = "" if number else ", not compared with the net"
    print(f"{path}: {source}, {path.stat().st_size / 2**20:.0f} MiB, batch size {batch}{compared}")
