"""A trained CNV as a QONNX graph that computes the same before and after FINN's transformations.

    model = to_qonnx(net)       # a qonnx ModelWrapper: images -> logits
    later = recoded(model)      # what FINN turns it into: 1-bit values -1 and +1 stored as 0 and 1

FINN stores a ±1 activation as one bit, 0 for -1. Its padding writes zeros into that memory, so there a padded zero
means -1. A net that pads with a true zero must not get 1-bit activations before a padded convolution. Every hidden
layer is therefore written as whole numbers,

    x = 2·sum + 1 - 2·threshold        an odd number, at least 1 where the sum reaches its threshold, else at most -1

and followed by one of two quantisers, both of which give the sign of x exactly:

    Quant, 2 bits, signed, narrow      before a padded convolution: -1, 0 and +1 each have a code, and padding is 0
    BipolarQuant                       before a linear layer

A net with pad=-1 needs this padding of -1, but no operator of QONNX pads ±1 with -1. Such a net is written as FINN
stores it: activations are 0 and 1; a convolution is Im2Col and XnorPopcountMatMul, which counts equal bits; the
thresholds are on the counts.

Sums and thresholds are those of models/folded.py: where the batch norm of a channel has a negative gain, the weights
of the channel are negated.

Source: QONNX (Pappalardo et al., 2022) and FINN (Umuroglu et al., 2017).
"""

import warnings
from itertools import pairwise

import torch

from models.folded import STEPS, Folded

GENERAL = "qonnx.custom_op.general"  # domain of qonnx's own operators
OPSET = 13  # of ONNX
ROWS_FIRST, CHANNELS_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]  # permutations: N×C×H×W to N×H×W×C, and back


class _Graph:
    """Collects nodes and constants. Methods that add a node return the name of its output, the next node's input."""

    def __init__(self):
        self.nodes, self.constants, self.datatypes, self.shapes = [], [], {}, {}

    def constant(self, value, datatype=None):
        """Add a number or a tensor, stored as float32; returns its name. datatype: qonnx's name of its true type."""
        from onnx import numpy_helper

        name = f"constant_{len(self.constants)}"
        values = torch.as_tensor(value, dtype=torch.float32).contiguous().numpy()
        self.constants.append(numpy_helper.from_array(values, name))
        if datatype:
            self.datatypes[name] = datatype
        return name

    def add(self, kind, x, *operands, **attributes):
        """Add a node. operands: names of constants, or their values."""
        from onnx import helper

        name = f"{kind}_{len(self.nodes)}"
        inputs = [x, *(value if isinstance(value, str) else self.constant(value) for value in operands)]
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"node_{name}", **attributes))
        return name

    def quant(self, x, bits, scale, narrow):
        """Add a quantiser to signed whole numbers of `bits` bits times scale. narrow: without the lowest one."""
        given = {"signed": 1, "narrow": int(narrow), "rounding_mode": "ROUND"}
        return self.add("Quant", x, scale, 0, bits, domain=GENERAL, **given)

    def bipolar(self, x):
        """Add a quantiser to -1 and +1."""
        return self.add("BipolarQuant", x, 1, domain=GENERAL)

    def input(self, x):
        """Add the net's 8-bit input quantiser."""
        x = self.add("Add", self.add("Mul", x, 2), -1)
        return self.quant(x, bits=8, scale=1 / STEPS, narrow=False)

    def logits(self, x, norm):
        """Add the net's TensorNorm, in the same steps as in the net, so that rounding is the same."""
        x = self.add("Sub", x, norm.running_mean)
        x = self.add("Div", x, (norm.running_var + norm.eps).sqrt())
        x = self.add("Mul", x, norm.weight)
        self.add("Add", x, norm.bias)
        self.nodes[-1].output[0] = "logits"


def _product(graph, x, layer):
    """Add a layer's convolution or matrix product with weights ±1. Returns the name of the sums."""
    weight = layer.signs()
    if not layer.conv:
        return graph.add("MatMul", x, graph.bipolar(graph.constant(weight.T)))
    pads = list(layer.module.padding) * 2
    geometry = {"kernel_shape": [3, 3], "pads": pads, "strides": [1, 1], "dilations": [1, 1], "group": 1}
    return graph.add("Conv", x, graph.bipolar(graph.constant(weight)), **geometry)


def _write_padding_0(graph, layers):
    """Add the layers of a net that pads with a true zero. Returns the name of the last layer's sums."""
    x = graph.input("images")
    for layer, following in pairwise(layers):
        x = _product(graph, x, layer)
        x = graph.add("Mul", x, 2 * layer.inputs)
        x = graph.add("Add", x, (1 - 2 * layer.threshold).view(1, -1, *[1, 1] * layer.conv))
        padded = following.conv and any(following.module.padding)
        x = graph.quant(x, bits=2, scale=1, narrow=True) if padded else graph.bipolar(x)
        if layer.pool:
            x = graph.add("MaxPool", x, kernel_shape=[2, 2], pads=[0, 0, 0, 0], strides=[2, 2])
        if layer.conv and not following.conv:
            x = graph.add("Flatten", x, axis=1)
    return _product(graph, x, layers[-1])


def _equal_bits(graph, x, weight):
    """Add a count of equal bits between the inputs, 0 or 1, and each row of `weight`, ±1, outputs×inputs."""
    return graph.add("XnorPopcountMatMul", x, graph.constant((weight.T + 1) / 2, "BINARY"), domain=GENERAL)


def _write_padding_minus_1(graph, layers, size):
    """Add the layers of a net that pads with -1, on 1-bit activations. Returns the name of the last layer's sums."""
    x = graph.input(graph.add("Transpose", "images", perm=ROWS_FIRST))
    for layer, following in pairwise(layers):
        weight = layer.signs()
        inputs = weight[0].numel()
        if layer.conv:
            shape = f"(1,{size},{size},{weight.shape[1]})"
            pads, rest = list(layer.module.padding) * 2, {"dilations": [1, 1], "depthwise": 0, "domain": GENERAL}
            x = graph.add("Im2Col", x, input_shape=shape, kernel_size=[3, 3], stride=[1, 1], pad_amount=pads, **rest)
            weight = weight.permute(0, 2, 3, 1).flatten(1)
        if layer is layers[0]:
            x = graph.add("MatMul", x, graph.constant(weight.T, "BIPOLAR"))
            threshold = layer.threshold / STEPS
        else:
            x = _equal_bits(graph, x, weight)
            threshold = ((layer.threshold + inputs) / 2).ceil()  # sum = 2·count - inputs
        bits = {"out_dtype": "BINARY", "out_scale": 1.0, "out_bias": 0.0, "data_layout": "NHWC" if layer.conv else "NC"}
        x = graph.add("MultiThreshold", x, threshold[:, None], domain=GENERAL, **bits)
        if layer.conv:
            size += 2 * layer.module.padding[0] - 2
            graph.shapes[x] = [1, size, size, len(weight)]  # qonnx does not infer this shape before the pooling
        if layer.pool:
            x = graph.add("MaxPoolNHWC", x, kernel_shape=[2, 2], pads=[0, 0, 0, 0], strides=[2, 2], domain=GENERAL)
            size //= 2
        if layer.conv and not following.conv:
            x = graph.add("Flatten", graph.add("Transpose", x, perm=CHANNELS_FIRST), axis=1)
    weight = layers[-1].signs()
    x = graph.add("Mul", _equal_bits(graph, x, weight), 2)
    return graph.add("Add", x, -weight.shape[1])


@torch.no_grad()
def to_qonnx(net, batch=1):
    """The net in evaluation mode as a cleaned-up qonnx ModelWrapper.

    Its input `images` is float32 batch×3×size×size in [0, 1], its output `logits` float32 batch×classes.
    batch: images at once. ValueError if it is not 1 for a net with pad=-1: qonnx's Im2Col takes one image only.
    """
    if net.pad and batch > 1:
        raise ValueError("a net with --pad -1 is written for one image at a time")
    from onnx import TensorProto, helper
    from qonnx.core.datatype import DataType
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.transformation.infer_datatypes import InferDataTypes

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about optional packages that are not used here
        from qonnx.util.cleanup import cleanup_model

    graph, layers, size = _Graph(), Folded(net, int8=False).layers, net.topology.size
    x = _write_padding_minus_1(graph, layers, size) if net.pad else _write_padding_0(graph, layers)
    graph.logits(x, net.linear_features[-1])

    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, size, size])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, net.classes])
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(GENERAL, 1)]
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in graph.shapes.items()]
    written = helper.make_graph(graph.nodes, "cnv", [images], [logits], graph.constants, value_info=shapes)
    model = ModelWrapper(helper.make_model(written, opset_imports=opsets))
    for name, datatype in graph.datatypes.items():
        model.set_tensor_datatype(name, DataType[datatype])
    model = cleanup_model(model).transform(InferDataTypes())
    for tensor, name in ((model.graph.input[0].name, "images"), (model.graph.output[0].name, "logits")):
        model.rename_tensor(tensor, name)
    return model


def recoded(model):
    """A copy of the model as FINN recodes it, for one image.

    Values ±1 become one bit, 0 for -1, and convolutions become matrix products. As in FINN, convolutions still pad
    with 0, which now means -1 on 1-bit activations.
    """
    from qonnx.core.datatype import DataType
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.transformation.bipolar_to_xnor import ConvertBipolarMatMulToXnorPopcount
    from qonnx.transformation.change_batchsize import ChangeBatchSize
    from qonnx.transformation.infer_datatypes import InferDataTypes
    from qonnx.transformation.infer_shapes import InferShapes
    from qonnx.transformation.lower_convs_to_matmul import LowerConvsToMatMul

    model = ModelWrapper(model.model, make_deepcopy=True)
    if model.get_tensor_shape("images")[0] > 1:
        model = model.transform(ChangeBatchSize(1)).transform(InferShapes())
    model = model.transform(InferDataTypes())
    for node in [node for node in model.graph.node if node.op_type in ("BipolarQuant", "Quant")]:
        (output,) = node.output
        datatype = model.get_tensor_datatype(output)
        weight = model.get_initializer(node.input[0])
        if weight is not None:  # a weight, which is ±1 already
            model.set_initializer(output, weight)
            model.set_tensor_datatype(output, datatype)
            model.graph.node.remove(node)
        elif datatype in (DataType["BIPOLAR"], DataType["INT2"]):
            _replace_by_thresholds(model, node, datatype)
    for transformation in (LowerConvsToMatMul(), InferDataTypes(), ConvertBipolarMatMulToXnorPopcount()):
        model = model.transform(transformation)
    return model


def _replace_by_thresholds(model, node, datatype):
    """Replace an activation's quantiser by a MultiThreshold: -1, +1 (BIPOLAR), or -1, 0, +1 (INT2)."""
    import numpy as np
    from onnx import helper

    levels = [-1, 1] if datatype.name == "BIPOLAR" else [-1, 0, 1]
    name = f"{node.output[0]}_thresholds"
    thresholds = helper.make_node(
        "MultiThreshold",
        [node.input[0], name],
        list(node.output),
        domain=GENERAL,
        out_dtype=datatype.name,
        out_scale=float(levels[1] - levels[0]),
        out_bias=-1.0,
        data_layout="NCHW" if len(model.get_tensor_shape(node.output[0])) == 4 else "NC",
    )
    model.graph.node.insert(list(model.graph.node).index(node), thresholds)
    model.graph.node.remove(node)
    middles = [(low + high) / 2 for low, high in pairwise(levels)]
    model.set_initializer(name, np.array([middles], np.float32))
