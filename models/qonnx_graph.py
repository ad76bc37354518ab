"""A trained CNV as a QONNX graph that computes the same before and after FINN's transformations.

    model = to_qonnx(net)       # a qonnx ModelWrapper: images -> logits
    later = recoded(model)      # what FINN turns it into: 1-bit values -1 and +1 stored as 0 and 1

FINN stores a ±1 activation as one bit, 0 for -1. Its padding writes zeros into that memory, so there a padded zero means
-1. A net that pads with a true zero must not get 1-bit activations before a padded convolution. Every hidden layer is
therefore written in whole numbers,

    x = 2·sum + 1 - 2·threshold        an odd number, at least 1 where the sum reaches its threshold, else at most -1

and followed by one of two quantisers, both of which give the sign of x exactly:

    Quant, 2 bits, signed, narrow      before a padded convolution: -1, 0 and +1 have each a code, and padding is 0
    BipolarQuant                       before a linear layer

Sums and thresholds are those of models/folded.py: where a batch norm falls, the weights of its channel have changed sign.
A net with pad=-1 is written as FINN stores it, all activations one bit, since there the padded zero is what it needs.

Source: QONNX (Pappalardo et al., 2022) and FINN (Umuroglu et al., 2017).
"""

import warnings

import torch

from models.folded import STEPS, Folded

GENERAL = "qonnx.custom_op.general"  # domain of qonnx's own operators
OPSET = 13  # of ONNX


class _Graph:
    """Collects nodes and constants. `add` returns the name of a node's output, by which the next one refers to it."""

    def __init__(self):
        self.nodes, self.constants = [], []

    def constant(self, value):
        """The name of a constant: a number or a tensor, as float32."""
        from onnx import numpy_helper

        name = f"constant_{len(self.constants)}"
        values = torch.as_tensor(value, dtype=torch.float32).numpy()
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def add(self, kind, x, *constants, domain="", **attributes):
        from onnx import helper

        name = f"{kind}_{len(self.nodes)}"
        inputs = [x, *map(self.constant, constants)]
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"node_{name}", domain=domain, **attributes))
        return name

    def quant(self, x, bits, scale, narrow):
        """Signed whole numbers times scale."""
        given = {"signed": 1, "narrow": int(narrow), "rounding_mode": "ROUND"}
        return self.add("Quant", x, scale, 0, bits, domain=GENERAL, **given)

    def bipolar(self, x):
        """-1 and +1."""
        return self.add("BipolarQuant", x, 1, domain=GENERAL)

    def product(self, x, layer):
        """What a layer of the folded net sums up: a convolution or a matrix product with its ±1 weights."""
        weight = layer.signs()
        if layer.conv:
            rows, columns = layer.module.padding
            geometry = {"kernel_shape": [3, 3], "pads": [rows, columns] * 2, "strides": [1, 1], "dilations": [1, 1], "group": 1}
            self.add("Conv", x, **geometry)
        else:
            self.add("MatMul", x)
            weight = weight.T
        node = self.nodes.pop()
        node.input.append(self.bipolar(self.constant(weight.contiguous())))
        self.nodes.append(node)
        return node.output[0]


@torch.no_grad()
def to_qonnx(net, batch=1):
    """The net in evaluation mode as a cleaned-up qonnx ModelWrapper.

    Its input `images` is float32 batch×3×size×size in [0, 1], its output `logits` float32 batch×classes.
    """
    from onnx import TensorProto, helper
    from qonnx.core.modelwrapper import ModelWrapper

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about optional packages that have no part in this
        from qonnx.util.cleanup import cleanup_model

    layers = Folded(net, int8=False).layers
    graph = _Graph()
    x = graph.add("Mul", "images", 2)
    x = graph.add("Add", x, -1)
    x = graph.quant(x, bits=8, scale=1 / STEPS, narrow=False)
    for layer, following in zip(layers, layers[1:]):
        x = graph.product(x, layer)
        x = graph.add("Mul", x, 2 * layer.inputs)
        x = graph.add("Add", x, (1 - 2 * layer.threshold).view(1, -1, *[1, 1] * layer.conv))
        padded = following.conv and any(following.module.padding) and not net.pad
        x = graph.quant(x, bits=2, scale=1, narrow=True) if padded else graph.bipolar(x)
        if layer.pool:
            x = graph.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
        if layer.conv and not following.conv:
            x = graph.add("Flatten", x, axis=1)
    x = graph.product(x, layers[-1])
    norm = net.linear_features[-1]  # one step after the other, as the net does: the same rounding
    x = graph.add("Sub", x, norm.running_mean)
    x = graph.add("Div", x, (norm.running_var + norm.eps).sqrt())
    x = graph.add("Mul", x, norm.weight)
    x = graph.add("Add", x, norm.bias)
    graph.nodes[-1].output[0] = "logits"

    size = net.topology.size
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, size, size])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, net.classes])
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(GENERAL, 1)]
    proto = helper.make_model(
        helper.make_graph(graph.nodes, "cnv", [images], [logits], graph.constants), opset_imports=opsets
    )
    model = cleanup_model(ModelWrapper(proto))
    for tensor, name in ((model.graph.input[0].name, "images"), (model.graph.output[0].name, "logits")):
        model.rename_tensor(tensor, name)
    return recoded(model) if net.pad else model


def recoded(model):
    """A copy in which what is ±1 is one bit, 0 for -1, and convolutions are matrix products: FINN's form of the graph.

    As in FINN, the padding of a convolution stays 0: on 1-bit activations it now means -1.
    """
    from qonnx.core.datatype import DataType
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.custom_op.registry import getCustomOp
    from qonnx.transformation.bipolar_to_xnor import ConvertBipolarMatMulToXnorPopcount
    from qonnx.transformation.infer_datatypes import InferDataTypes
    from qonnx.transformation.lower_convs_to_matmul import LowerConvsToMatMul

    model = ModelWrapper(model.model, make_deepcopy=True)
    model = model.transform(InferDataTypes())
    for node in [node for node in model.graph.node if node.op_type in ("BipolarQuant", "Quant")]:
        (output,) = node.output
        datatype = model.get_tensor_datatype(output)
        weight = model.get_initializer(node.input[0])
        if weight is not None:  # it is ±1 already
            model.set_initializer(output, weight)
            model.set_tensor_datatype(output, datatype)
            model.graph.node.remove(node)
        elif datatype.is_integer():
            narrow = node.op_type == "Quant" and getCustomOp(node).get_nodeattr("narrow")
            _replace_by_thresholds(model, node, datatype, narrow)
    for transformation in (LowerConvsToMatMul(), InferDataTypes(), ConvertBipolarMatMulToXnorPopcount()):
        model = model.transform(transformation)
    return model


def _replace_by_thresholds(model, node, datatype, narrow):
    """Put a MultiThreshold in the place of an activation's quantiser to whole numbers."""
    import numpy as np
    from onnx import helper

    low = datatype.min() + bool(narrow)
    step = 2 if datatype.get_canonical_name() == "BIPOLAR" else 1
    levels = np.arange(low, datatype.max() + 1, step, dtype=np.float32)
    name = f"{node.output[0]}_thresholds"
    thresholds = helper.make_node(
        "MultiThreshold",
        [node.input[0], name],
        list(node.output),
        domain=GENERAL,
        out_dtype=datatype.name,
        out_scale=float(step),
        out_bias=float(low),
    )
    model.graph.node.insert(list(model.graph.node).index(node), thresholds)
    model.graph.node.remove(node)
    model.set_initializer(name, ((levels[1:] + levels[:-1]) / 2)[None])
