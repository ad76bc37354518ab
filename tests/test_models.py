"""The nets against Brevitas' own CNV, against NumPy, and against formulas written out."""

import copy
import functools
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from brevitas_examples.bnn_pynq.models.CNV import CNV as BrevitasCNV
from brevitas_examples.bnn_pynq.models.losses import SqrHingeLoss
from brevitas_examples.bnn_pynq.models.tensor_norm import TensorNorm as BrevitasTensorNorm

from models import CNV, TOPOLOGIES, Topology, squared_hinge
from models.fused import normalized_signs
from models.quant import BinaryWeight, TensorNorm
from models.wsconv import WSConv2d, WSLinear, standardize

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
BREVITAS = Topology(
    size=32,
    conv=((64, False), (64, True), (128, False), (128, True), (256, False), (256, False)),
    fc=(512, 512),
    padding=0,
)


def trained_like(net):
    """Sets statistics and gains as after some training; gains have both signs."""
    for module in net.modules():
        if hasattr(module, "running_var"):
            module.running_mean.normal_(0, 3)
            module.running_var.uniform_(1, 50)
            module.weight.data.normal_(0, 1)
            module.bias.data.normal_(0, 0.5)
    return net


def binary(x):
    return np.where(x >= 0, 1.0, -1.0)


def numpy_forward(net, images, topology, standardized=False):
    """The net of the reference, written in float64 NumPy."""
    state = {key: value.double().numpy() for key, value in net.state_dict().items()}

    def norm(x, key):
        shape = (1, -1) + (1,) * (x.ndim - 2)
        mean, var, gain, bias = (
            state[f"{key}.{name}"].reshape(shape) for name in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / np.sqrt(var + 1e-4) * gain + bias

    x = 2 * images.double().numpy() - 1
    x = np.clip(np.round(x * 128), -128, 127) / 128
    i = 1
    for _, pool in topology.conv:
        weight = state[f"conv_features.{i}.weight"]
        weight = binary(weight - weight.mean() if standardized else weight)
        pad = topology.padding
        x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))  # N×C×H×W×3×3
        x = np.einsum("nchwij,ocij->nohw", windows, weight, optimize=True)
        x = binary(norm(x, f"conv_features.{i + 1}"))
        i += 3
        if pool:
            n, c, h, w = x.shape
            x = x[:, :, : h // 2 * 2, : w // 2 * 2].reshape(n, c, h // 2, 2, w // 2, 2).max((3, 5))
            i += 1
    x = x.reshape(len(x), -1)
    for i in range(0, 3 * len(topology.fc), 3):
        x = binary(norm(x @ binary(state[f"linear_features.{i}.weight"]).T, f"linear_features.{i + 1}"))
    i = 3 * len(topology.fc)
    return norm(x @ binary(state[f"linear_features.{i}.weight"]).T, f"linear_features.{i + 1}")


def images_of(size, count=4):
    return torch.randint(0, 256, (count, 3, size, size)) / 255


def test_equals_brevitas_cnv_in_evaluation_and_training():
    own = trained_like(CNV(BREVITAS, 10))
    theirs = BrevitasCNV(10, weight_bit_width=1, act_bit_width=1, in_bit_width=8, in_ch=3)
    theirs.load_state_dict(own.state_dict())  # strict: same keys, same shapes
    assert list(own.state_dict()) == list(theirs.state_dict())
    images, labels = images_of(32, 8), torch.arange(8)
    assert torch.equal(own.eval()(images), theirs.eval()(images))

    for net in (own, theirs):
        F.cross_entropy(net.train()(images), labels).backward()
    for (name, mine), (_, other) in zip(own.named_parameters(), theirs.named_parameters()):
        torch.testing.assert_close(mine.grad, other.grad, msg=name)
    for name, other in theirs.named_buffers():
        torch.testing.assert_close(own.get_buffer(name), other, msg=name)


@pytest.mark.parametrize("wsconv", (False, True))
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_equals_numpy(name, wsconv):
    topology = TOPOLOGIES[name]
    net = trained_like(CNV(topology, 10, wsconv)).eval()
    images = images_of(topology.size, 2)
    with torch.no_grad():
        logits = net(images).numpy()
    np.testing.assert_allclose(logits, numpy_forward(net, images, topology, wsconv), atol=1e-4)


def test_key_order_and_shapes_of_the_reference():
    net = CNV(TOPOLOGIES["cifar_smaller"], 10)
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items() if value.ndim > 1}
    assert shapes == {
        "conv_features.1.weight": (64, 3, 3, 3),
        "conv_features.4.weight": (64, 64, 3, 3),
        "conv_features.8.weight": (128, 64, 3, 3),
        "conv_features.11.weight": (128, 128, 3, 3),
        "conv_features.15.weight": (256, 128, 3, 3),
        "conv_features.18.weight": (256, 256, 3, 3),
        "linear_features.0.weight": (1024, 16384),
        "linear_features.3.weight": (512, 1024),
        "linear_features.6.weight": (10, 512),
    }
    net = CNV(TOPOLOGIES["tiny_imagenet_smaller"], 200)
    widths = [layer.weight.shape[:2] for layer in net.binary_layers()]
    assert widths == [
        *((16, 3), (16, 16), (16, 16), (32, 16), (32, 32), (32, 32), (64, 32), (64, 64), (64, 64)),
        *((128, 64), (128, 128), (128, 128), (256, 128), (256, 256), (256, 256)),
        *((512, 1024), (256, 512), (200, 256)),
    ]
    for layer in net.binary_layers():
        assert layer.weight.min() < -0.9 and layer.weight.max() > 0.9 and layer.weight.abs().max() <= 1


def test_batch_size_and_memory_format_do_not_matter():
    net = trained_like(CNV(TOPOLOGIES["cifar_smaller"], 10)).eval()
    images = images_of(32, 7)
    with torch.no_grad():
        whole = net(images)
        single = torch.cat([net(image[None]) for image in images])
        channels_last = net.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last))
    assert torch.equal(whole, single)
    torch.testing.assert_close(whole, channels_last)


def test_standardize_is_the_formula():
    weight = torch.rand(16, 8, 3, 3) + 0.3
    w = weight.double().numpy()
    expected = (w - w.mean()) / (w.std(ddof=1) + 1e-8) * w.size**-0.5
    np.testing.assert_allclose(standardize(weight).numpy(), expected, atol=1e-7)


@pytest.mark.parametrize("compiled", (False, pytest.param(True, marks=needs_compiler)))
def test_standardised_layers(compiled):
    for layer, shape in (
        (WSConv2d(4, 8, 3, padding=1, bias=False, weight_quant=BinaryWeight), (2, 4, 6, 6)),
        (WSLinear(12, 8, bias=False, weight_quant=BinaryWeight), (2, 12)),
    ):
        torch.nn.init.uniform_(layer.weight, -0.2, 1)
        latent, x = layer.weight.detach().clone(), torch.randn(shape)
        forward = torch.compile(layer) if compiled else layer
        signs = torch.where(latent - latent.mean() >= 0, 1.0, -1.0)
        expected = F.conv2d(x, signs, padding=1) if x.ndim == 4 else F.linear(x, signs)

        layer.eval()
        torch.testing.assert_close(forward(x), expected)
        assert torch.equal(layer.weight, latent)  # evaluation leaves the weights alone

        layer.train()
        out = forward(x)
        torch.testing.assert_close(out, expected)
        assert torch.equal(layer.weight, latent)  # training does not replace them either
        out.sum().backward()  # the gradient is that of the signs, straight through
        signs.requires_grad_()
        (F.conv2d(x, signs, padding=1) if x.ndim == 4 else F.linear(x, signs)).sum().backward()
        torch.testing.assert_close(layer.weight.grad, signs.grad)


def test_padding_value_by_hand():
    """With pad -1, hidden convolutions pad with -1, and the first one pads the image with 0; in float64 NumPy."""
    net = CNV(Topology(4, ((5, False), (6, True), (4, False)), (7,)), 10, pad=-1)
    trained_like(net)
    given = {}
    layers = [layer for layer in net.binary_layers() if layer.weight.dim() == 4]
    for layer in layers:
        layer.register_forward_hook(
            lambda layer, inputs, output: given.update({layer: (inputs[0].detach(), output.detach())})
        )
    for mode in (net.train(), net.eval()):
        mode(torch.rand(3, 3, 4, 4))
        for i, layer in enumerate(layers):
            x, out = (tensor.double().numpy() for tensor in given[layer])
            padded = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)], constant_values=-1 if i else 0)
            windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
            expected = np.einsum("nchwij,kcij->nkhw", windows, binary(layer.weight.detach().numpy()))
            np.testing.assert_allclose(out, expected, atol=1e-4)


def test_tensor_norm_equals_brevitas():
    own, theirs = TensorNorm(), BrevitasTensorNorm()
    for _ in range(3):
        x = torch.randn(16, 10) * 5 + 2
        torch.testing.assert_close(own(x), theirs(x))
    torch.testing.assert_close(own.state_dict(), theirs.state_dict())
    torch.testing.assert_close(own.eval()(x), theirs.eval()(x))


def test_squared_hinge_equals_brevitas():
    logits, labels = torch.randn(8, 10, requires_grad=True), torch.randint(0, 10, (8,))
    loss = squared_hinge(logits, labels)
    (gradient,) = torch.autograd.grad(loss, logits)
    targets = -torch.ones(8, 10)
    targets[range(8), labels] = 1
    other = SqrHingeLoss()(logits, targets)
    other.backward()
    torch.testing.assert_close(loss, other)
    torch.testing.assert_close(gradient, logits.grad)


@needs_compiler
@pytest.mark.parametrize("size,softness", [(12, 0.0), (11, 0.0), (12, 0.4)])  # halved twice, not at all
def test_compiled_training_step_equals_the_modules_one_by_one(size, softness):
    net = CNV(Topology(size, ((8, False), (8, True), (16, True)), (8,)), 10).to(memory_format=torch.channels_last)
    trained_like(net)
    net.train()
    net.soften(softness, softness / 2)
    images = torch.rand(6, 3, size, size).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(6, 10)
    results = []
    for compiled in (False, True):
        own = copy.deepcopy(net)
        logits = (torch.compile(own) if compiled else own)(images)
        (logits * weight).sum().backward()
        results.append((logits, [p.grad for p in own.parameters()], list(own.buffers())))
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)


def test_softened_activations_by_hand():
    """Training mixes hard tanh into the signs, after convolutions and linear layers alike. Evaluation never mixes."""
    net = CNV(Topology(2, ((3, False),), (5,)), 10)
    trained_like(net).train()
    net.soften(0.3, 0)
    normal, given = {}, {}
    layers = {
        "conv": (net.conv_features[2], net.linear_features[0]),
        "fc": (net.linear_features[1], net.linear_features[3]),
    }
    for name, (norm, following) in layers.items():
        norm.register_forward_hook(
            lambda module, inputs, output, name=name: normal.update({name: output.detach().flatten(1).numpy()})
        )
        following.register_forward_pre_hook(
            lambda module, inputs, name=name: given.update({name: inputs[0].detach().numpy()})
        )
    net(torch.rand(6, 3, 2, 2))
    for name, x in normal.items():
        np.testing.assert_allclose(given[name], 0.3 * x.clip(-1, 1) + 0.7 * binary(x), atol=1e-6)
    net.eval()(torch.rand(6, 3, 2, 2))
    for name, x in normal.items():
        np.testing.assert_array_equal(given[name], binary(x))


@pytest.mark.parametrize("wsconv", (False, True))
def test_softened_weights_by_hand(wsconv):
    """Training mixes the clamped latents into the signs; the gradient passes unchanged. Evaluation never mixes."""
    net = CNV(Topology(2, ((3, False),), (5,)), 10, wsconv)
    trained_like(net).train()
    net.soften(0, 0.3)
    given = {}

    def keep(layer, inputs, output):
        given[layer] = inputs[0].detach(), output
        if output.requires_grad:
            output.retain_grad()

    layers = {net.conv_features[1]: functools.partial(F.conv2d, padding=1), net.linear_features[0]: F.linear}
    for layer in layers:
        layer.register_forward_hook(keep)
    (net(torch.rand(6, 3, 2, 2)) * torch.randn(6, 10)).sum().backward()
    for layer, multiply in layers.items():
        x, out = given[layer]
        latent = layer.weight.detach().double().numpy()
        if wsconv and latent.ndim == 4:
            latent = latent - latent.mean()  # the next line removes the scale
        real = (latent / (2 * np.abs(latent).mean())).clip(-1, 1)
        used = torch.from_numpy(0.3 * real + 0.7 * binary(latent)).float().requires_grad_()
        product = multiply(x, used)
        torch.testing.assert_close(out, product)
        product.backward(out.grad)
        torch.testing.assert_close(layer.weight.grad, used.grad)  # also of those that are clamped
    net.eval()(torch.rand(6, 3, 2, 2))
    for layer, multiply in layers.items():
        x, out = given[layer]
        torch.testing.assert_close(out, multiply(x, layer.quant_weight().value))


@needs_compiler
def test_gradient_of_normalized_signs_by_hand():
    """Two windows of one channel. A window's gradient goes to its first +1, or if it has none, to its first value."""
    norm = torch.nn.BatchNorm2d(1, eps=0.0)
    values = [-2.0, 0.5, 0.5, -1.0, -0.5, -1.5, -0.25, 4.25]  # mean 0
    x = torch.tensor(values).view(1, 1, 2, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = normalized_signs(x, norm, torch.zeros(()), pool=True)
    assert y.flatten().tolist() == [1, 1]
    deviation = np.std(values)  # 1.84: the gradient reaches all values but the first and the last
    y.backward(torch.tensor([[[[3.0, 5.0]]]]))
    passed = np.array([0, 3, 5, 0, 0, 0, 0, 0.0])  # windows: -2, .5, -.5, -1.5 and .5, -1, -.25, 4.25
    normal = np.array(values) / deviation
    expected = (passed - passed.mean() - normal * (passed * normal).mean()) / deviation
    np.testing.assert_allclose(x.grad.flatten(), expected, atol=1e-6)
    np.testing.assert_allclose(norm.weight.grad, (passed * normal).sum(), atol=1e-6)
    np.testing.assert_allclose(norm.bias.grad, passed.sum())
    np.testing.assert_allclose(norm.running_var, 0.9 + 0.1 * np.var(values, ddof=1), rtol=1e-6)
    assert norm.num_batches_tracked == 1
