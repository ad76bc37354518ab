#!/usr/bin/env python3
"""Run FINN's own build steps on an exported file, and after each step execute the model on test images.

    ./run.sh finn                    # CIFAR-10: exports the net, makes the environment .venv-finn, and runs this
    ./run.sh finn tiny_imagenet
    .venv-finn/bin/python finn_flow.py export_finn/ckpt.t7.cifar10_smaller_11111.qonnx.onnx

The steps are those of FINN's builder that need no vendor tools: up to the estimates of resources and, with --sources,
the C++ and Verilog sources of the layers. Prints a line for each step, then the estimated cost of each layer, and
writes both, with FINN's own reports, to export_finn/….finn/. The images and the net's logits on them are those that
export_finn.py wrote beside the file.
"""

import contextlib
import copy
import enum
import importlib.abc
import importlib.machinery
import importlib.util
import json
import logging
import os
import shutil
import sys
import time
import traceback
import types
import warnings
from collections import Counter
from pathlib import Path

from common import Parser, UserError, run, within

IMAGES = 4  # on which the model is executed after each step
PART = "xczu7ev-ffvc1156-2-e"  # FPGA; decides which layers FINN can build in which way
PERIOD = 10.0  # ns, of the clock
FPS = 100  # images/s for which FINN folds the layers
WIDTH = 36  # weight bits of one PE at which FINN stops raising SIMD; FINN's default
TOLERANCE = 1e-4  # largest difference of a logit
PROPERTIES = ("inputDataType", "weightDataType", "accDataType", "SIMD", "PE", "MW", "MH")  # FINN's names, of a layer
COSTS = ("LUT", "BRAM_18K", "URAM", "DSP")

ENVIRONMENT = "run it by ./run.sh finn, which makes the environment .venv-finn"
UNUSED = ("torch", "brevitas", "pandas", "sklearn", "scipy", "mip", "matplotlib", "networkx", "onnx_passes")


class _Absent(types.ModuleType):
    """Replaces a package that FINN's modules import and these steps never call. A call raises RuntimeError."""

    __path__ = ()  # makes it a package, so that its parts can be imported

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": _refuse})


def _refuse(self, *_, **__):
    raise RuntimeError(f"{type(self).__name__} is used, of a package that requirements-finn.txt leaves out")


class _AbsentFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, names):
        self.names = names

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return _Absent(spec.name)

    def exec_module(self, module):
        if module.__name__ == "mip":  # the builder uses it as the default of an option
            module.SearchEmphasis = enum.Enum("SearchEmphasis", ["DEFAULT", "FEASIBILITY", "OPTIMALITY"])


def load_builder(folder):
    """(FINN's module of build steps, its module of settings). folder: where FINN puts its sources."""
    sys.meta_path.append(_AbsentFinder([name for name in UNUSED if importlib.util.find_spec(name) is None]))
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["FINN_BUILD_DIR"] = str(folder.absolute())
    from finn.util.settings import initialize_dummy_settings

    initialize_dummy_settings()
    import finn.xsi

    # parts of a simulator; without this, importing them looks for Vivado
    for name in finn.xsi._LAZY_NAMES:
        setattr(finn.xsi, name, type(name, (), {}))
    import finn.builder.build_dataflow_config as config
    import finn.builder.build_dataflow_steps as steps

    logging.getLogger().setLevel(logging.WARNING)
    return steps, config


def executable(model):
    """A copy that Python can execute: layers with a chosen implementation, X_hls or X_rtl, become X again.

    X is FINN's Python description of the layer. X_hls and X_rtl take shapes, number types, weights and thresholds from
    it, but run in a simulator only.
    """
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.custom_op.registry import getCustomOp

    general = "finn.custom_op.fpgadataflow"
    model = ModelWrapper(copy.deepcopy(model.model))
    for node in model.graph.node:
        style = node.domain.removeprefix(f"{general}.")
        if style in ("hls", "rtl"):
            node.domain, node.op_type = general, node.op_type.removesuffix(f"_{style}")
            known = getCustomOp(node).get_nodeattr_types()
            for attribute in [attribute for attribute in node.attribute if attribute.name not in known]:
                node.attribute.remove(attribute)
    return model


def execute(model, parent, images, folder):
    """The model's logits, N×classes. parent: file of the graph from which FINN has cut out the model, else None."""
    import numpy as np
    from finn.util.execution import execute_parent
    from qonnx.core.onnx_exec import execute_onnx

    if parent is None:
        name_in, name_out = model.graph.input[0].name, model.graph.output[0].name
        found = [execute_onnx(model, {name_in: image[None]})[name_out] for image in images]
    else:
        child = folder / "executed.onnx"
        executable(model).save(str(child))
        found = [execute_parent(str(parent), str(child), image[None]) for image in images]
    return np.concatenate([logits.reshape(1, -1) for logits in found])


def keep_one_bit_weights(model):
    """Store weights of ±1 in 1 bit again where FINN's bit width minimisation has chosen 2 bits. Returns the model."""
    import numpy as np
    from qonnx.core.datatype import DataType
    from qonnx.custom_op.registry import getCustomOp

    for node in model.graph.node:
        if not node.op_type.startswith("MVAU") or getCustomOp(node).get_nodeattr("binaryXnorMode"):
            continue
        if np.array_equal(np.unique(model.get_initializer(node.input[1])), [-1, 1]):
            getCustomOp(node).set_nodeattr("weightDataType", "BIPOLAR")
            model.set_tensor_datatype(node.input[1], DataType["BIPOLAR"])
    return model


def counts(model):
    kinds = Counter(node.op_type for node in model.graph.node)
    return ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))


def flow(model, images, expected, args, folder):
    """Apply the steps. Yields (step, seconds, counts of layers, images alike, largest difference of a logit).

    After the last step, the folder `report` holds FINN's estimates, and final.onnx the model.
    """
    import numpy as np

    with telling("FINN cannot be loaded (delete .venv-finn and call ./run.sh finn)", folder):
        steps, config = load_builder(folder / "sources")
        given = {"folding_config_file": args.folding} if args.folding else {"target_fps": args.fps}
        settings = config.DataflowBuildConfig(
            output_dir=str(folder.absolute()),
            synth_clk_period_ns=args.period,
            fpga_part=args.part,
            mvau_wwidth_max=args.width,
            generate_outputs=[config.DataflowOutputType.ESTIMATE_REPORTS],
            save_intermediate_models=True,  # for dataflow_parent.onnx
            **given,
        )
    parent = None
    sources = ["step_hw_codegen"] if args.sources else []
    for name in ["as exported", *config.estimate_only_dataflow_steps, *sources]:
        if sys.stdout.isatty():
            print(f"{name} …", end="\r", flush=True)
        start = time.monotonic()
        with telling(f"{name} failed", folder):
            if name != "as exported":
                model = steps.build_dataflow_step_lookup[name](model, settings)
            if args.one_bit_weights and name.startswith("step_minimize"):
                model = keep_one_bit_weights(model)
        if name == "step_create_dataflow_partition":
            parent = folder / "intermediate_models" / "dataflow_parent.onnx"
        seconds = time.monotonic() - start
        with telling(f"the model cannot be executed after {name}", folder):
            logits = execute(model, parent, images, folder)
        alike = int((logits.argmax(1) == expected.argmax(1)).sum())
        yield name, seconds, counts(model), alike, float(np.abs(logits - expected).max())
    model.save(str(folder / "final.onnx"))


@contextlib.contextmanager
def telling(what, folder):
    """Inside the `with`, output goes to folder/finn.log. An error becomes a UserError; its traceback goes there."""
    with open(folder / "finn.log", "a", encoding="utf-8") as log, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                yield
        except Exception as error:  # FINN raises many kinds, most often AssertionError
            traceback.print_exc(file=log)
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"{what}: {reason} (more in {folder / 'finn.log'})") from None


def layer_rows(folder):
    """FINN's estimates: a row for each layer, then a row of sums, which has the cycles of the slowest layer."""
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.custom_op.registry import getCustomOp

    def estimate(kind):
        return json.loads((folder / "report" / f"estimate_layer_{kind}.json").read_text())

    resources, cycles = estimate("resources"), estimate("cycles")
    rows = []
    for node in ModelWrapper(str(folder / "final.onnx")).graph.node:
        layer, cost = getCustomOp(node), [round(resources.get(node.name, {}).get(kind, 0)) for kind in COSTS]
        known = [layer.get_nodeattr(name) if name in layer.get_nodeattr_types() else "" for name in PROPERTIES]
        rows.append((node.name, *known, cycles.get(node.name, ""), *cost))
    total = [round(resources["total"][kind]) for kind in COSTS]
    rows.append(("sum; cycles of the slowest", *[""] * len(PROPERTIES), max(cycles.values()), *total))
    return rows


def markdown(head, rows, left):
    """A table; its first `left` columns are text."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (head, *rows)]
    lines.insert(1, "|" + "|".join(["---"] * left + ["--:"] * (len(head) - left)) + "|")
    return "\n".join(lines)


def parse():
    parser = Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("file", type=Path, help="file written by export_finn.py: export_finn/….qonnx.onnx")
    parser.add_argument("--images", type=within(int, 1), default=IMAGES, help="test images to run, default %(default)s")
    parser.add_argument("--part", default=PART, help="FPGA, default %(default)s")
    parser.add_argument(
        "--period", type=within(float, 0, open_low=True), default=PERIOD, help="clock period, ns, default %(default)s"
    )
    parser.add_argument(
        "--fps", type=within(int, 1), default=FPS, help="images/s to fold the layers for, default %(default)s"
    )
    parser.add_argument(
        "--width",
        type=within(int, 1),
        default=WIDTH,
        help="weight bits of one PE at which FINN stops raising SIMD, default %(default)s",
    )
    parser.add_argument("--folding", type=Path, help="FINN's JSON file of SIMD and PE for each layer, instead of --fps")
    parser.add_argument(
        "--one_bit_weights",
        action="store_true",
        help="store weights of ±1 in 1 bit where FINN's bit width minimisation chooses 2",
    )
    parser.add_argument(
        "--sources", action="store_true", help="also write the layers' C++ and Verilog sources: takes minutes"
    )
    return parser.parse_args()


def read_model(file):
    """The qonnx model in a file of export_finn.py. UserError for another file, or one for several images at once."""
    from qonnx.core.modelwrapper import ModelWrapper

    try:
        model = ModelWrapper(str(file))
        batch = model.get_tensor_shape(model.graph.input[0].name)[0]
    except Exception:  # protobuf raises many kinds, an empty graph raises others
        raise UserError(f"{file} is no file of export_finn.py") from None
    if batch != 1:
        raise UserError(f"{file} takes several images at once, and FINN takes one: export it with --batch 1")
    return model


def read_samples(file, number):
    """The images and the net's logits that lie beside an exported file, `number` of them."""
    import numpy as np

    found = []
    for kind in ("input", "expected_output"):
        path = file.with_suffix(f".{kind}.npy")
        if not path.is_file():
            raise UserError(f"{path} is missing: export the net once more, without --verify 0")
        try:
            found.append(np.load(path)[:number])
        except (ValueError, EOFError):
            raise UserError(f"{path} is damaged: export the net once more") from None
    return found


def clear(folder):
    """Make the folder, and remove what an earlier run has left there."""
    folder.mkdir(exist_ok=True)
    for name in ("steps.md", "final.onnx", "executed.onnx", "finn.log"):
        (folder / name).unlink(missing_ok=True)
    for name in ("report", "intermediate_models", "sources"):
        shutil.rmtree(folder / name, ignore_errors=True)


def main():
    args = parse()
    if not args.file.is_file():
        raise UserError(f"{args.file} is missing: export_finn.py writes it")
    if args.folding and not args.folding.is_file():
        raise UserError(f"{args.folding} is missing: name a folding file, such as report/auto_folding_config.json")
    if importlib.util.find_spec("qonnx") is None:
        raise UserError(f"qonnx is not installed here: {ENVIRONMENT}")
    model = read_model(args.file)
    images, expected = read_samples(args.file, args.images)
    if importlib.util.find_spec("finn") is None:
        raise UserError(f"FINN is not installed here: {ENVIRONMENT}")
    folder = args.file.with_suffix(".finn")
    clear(folder)
    folded_for = args.folding or f"{args.fps} images/s"
    print(f"{args.file}: {len(images)} images after each step; {args.part}, {args.period:g} ns, {folded_for}")
    rows = []
    try:
        for name, seconds, layers, alike, difference in flow(model, images, expected, args, folder):
            found = f"{alike} of {len(images)}"
            rows.append((name, layers, found, f"{difference:.1e}", f"{seconds:.0f}"))
            print(f"{name}: {seconds:.0f} s; {found} images predicted alike, logits differ by at most {difference:.1e}")
            if alike < len(images) or not difference <= TOLERANCE:
                raise UserError(f"after {name} the model no longer computes what the net does")
    finally:
        (folder / "executed.onnx").unlink(missing_ok=True)
        steps = markdown(("step", "layers", "images alike", "largest difference of a logit", "seconds"), rows, 2)
        (folder / "steps.md").write_text(f"{steps}\n", encoding="utf-8")
    head = ("layer", "inputs", "weights", "sums", "SIMD", "PE", "inputs of a neuron", "neurons", "cycles", *COSTS)
    costs = markdown(head, layer_rows(folder), 4)
    (folder / "steps.md").write_text(f"{steps}\n\n{costs}\n", encoding="utf-8")
    network = json.loads((folder / "report" / "estimate_network_performance.json").read_text())
    print(f"\n{costs}\n\nestimated: {network['estimated_throughput_fps']:.0f} images/s, asked for: {folded_for}")
    print(f"{folder}: steps.md, final.onnx, finn.log, report/{', sources/' if args.sources else ''}")


if __name__ == "__main__":
    run(main)
