"""Batch norm, binary activation and 2×2 max pool fused for training with torch.compile on CPUs.

If torch.compile sees the three modules, its code reads the activations many times and computes much of the forward
pass again in the backward pass. Here each direction is a custom operator, which the compiled net does not look into.
The parts of an operator are compiled one by one, and each reads the activations once. Forward: the statistics, then
the signs. Backward: two sums, then the gradient of the input.
"""

import functools

import torch

REACH = 1.0  # the gradient passes the sign where |argument| <= REACH


def normalized_signs(x, norm, softness, pool):
    """The softened signs of norm(x) in training, max-pooled if `pool`; in x's dtype. Updates norm's running statistics.

    x: float N×C×H×W in channels_last. norm: a BatchNorm2d. softness: scalar tensor, 0 for signs, as in CNV.
    pool: True for a 2×2 max pool; H and W must then be even.
    The gradients are those of the separate modules. The gradient of a window goes to its first largest value, row by
    row.
    """
    signs, _, mean, var = torch.ops.cnv.normalized_signs(x, norm.weight, norm.bias, softness, norm.eps, pool)
    with torch.no_grad():
        number = x.numel() // x.shape[1]
        norm.num_batches_tracked += 1
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(var * (number / (number - 1)), norm.momentum)
    return signs


def _windows(x):
    """N×C×H×W viewed as N×H/2×2×W/2×2×C, the memory order of channels_last."""
    n, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).view(n, h // 2, 2, w // 2, 2, c)


def _statistics(x):
    x = x.permute(0, 2, 3, 1).flatten(0, 2).float()
    mean = x.mean(0)
    return mean, (x.square().mean(0) - mean.square()).clamp(min=0)


def _signs(x, mean, gain, bias, softness, pool):
    """The softened signs. With `pool` also the position of the first largest value in each window (int8, 0 to 3)."""

    def act(values):
        normal = (values.float() - mean) * gain + bias
        signs = torch.where(normal >= 0, 1.0, -1.0)
        return signs + softness * (normal.clamp(-REACH, REACH) - signs)

    if not pool:
        return act(x.permute(0, 2, 3, 1)).to(x.dtype).permute(0, 3, 1, 2)
    windows = _windows(x)
    acts = [act(windows[:, :, i, :, j]) for i in (0, 1) for j in (0, 1)]
    largest = torch.maximum(torch.maximum(acts[0], acts[1]), torch.maximum(acts[2], acts[3]))
    first = torch.where(
        acts[0] == largest, 0.0, torch.where(acts[1] == largest, 1.0, torch.where(acts[2] == largest, 2.0, 3.0))
    )
    return largest.to(x.dtype).permute(0, 3, 1, 2), first.to(torch.int8).permute(0, 3, 1, 2)


def _passed(gradient, x, mean, inverse, weight, bias, first):
    """(normalised x, gradient that passes the sign), both float32 in memory order, channels last."""
    if first is None:
        x, gradient = x.permute(0, 2, 3, 1).flatten(0, 2), gradient.permute(0, 2, 3, 1).flatten(0, 2).float()
    else:
        x = _windows(x)
        corner = torch.arange(4.0).view(2, 1, 2, 1)
        mine = first.permute(0, 2, 3, 1)[:, :, None, :, None].float() == corner
        gradient = torch.where(mine, gradient.permute(0, 2, 3, 1)[:, :, None, :, None].float(), 0.0)
    normal = (x.float() - mean) * inverse
    return normal, torch.where((normal * weight + bias).abs() <= REACH, gradient, 0.0)


def _sums(gradient, x, mean, inverse, weight, bias, first):
    normal, passed = _passed(gradient, x, mean, inverse, weight, bias, first)
    dims = tuple(range(normal.dim() - 1))
    return (passed * normal).sum(dims), passed.sum(dims)


def _input_gradient(gradient, x, mean, inverse, weight, bias, first, weight_mean, bias_mean):
    n, c, h, w = x.shape
    normal, passed = _passed(gradient, x, mean, inverse, weight, bias, first)
    result = (weight * inverse) * (passed - bias_mean - normal * weight_mean)
    return result.to(x.dtype).view(n, h, w, c).permute(0, 3, 1, 2)


INLINE = {"realize_reads_threshold": 100, "realize_opcount_threshold": 1000}  # no intermediate tensor is stored


@functools.cache  # compiled on first use: torch.compile with options takes a second, and only training needs it
def _compiled(function):
    return torch.compile(function, dynamic=False, options=INLINE)


@torch.library.custom_op("cnv::normalized_signs", mutates_args=())
def _forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, softness: torch.Tensor, eps: float, pool: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    mean, var = _compiled(_statistics)(x)
    found = _compiled(_signs)(x, mean, weight / (var + eps).sqrt(), bias, softness, pool)
    signs, first = found if pool else (found, x.new_empty(0, dtype=torch.int8))
    return signs, first, mean, var


@_forward.register_fake
def _(x, weight, bias, softness, eps, pool):
    n, c, h, w = x.shape
    small = (n, c, h // 2, w // 2) if pool else x.shape
    signs = x.new_empty(small).contiguous(memory_format=torch.channels_last)
    first = x.new_empty(small if pool else 0, dtype=torch.int8)
    if pool:
        first = first.contiguous(memory_format=torch.channels_last)
    return signs, first, weight.new_empty(c), weight.new_empty(c)


@torch.library.custom_op("cnv::normalized_signs_backward", mutates_args=())
def _backward(
    gradient: torch.Tensor,
    x: torch.Tensor,
    mean: torch.Tensor,
    var: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    first: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    given = (gradient, x, mean, 1 / (var + eps).sqrt(), weight, bias, first if first.numel() else None)
    weight_gradient, bias_gradient = _compiled(_sums)(*given)
    number = x.numel() // x.shape[1]
    x_gradient = _compiled(_input_gradient)(*given, weight_gradient / number, bias_gradient / number)
    return x_gradient, weight_gradient, bias_gradient


@_backward.register_fake
def _(gradient, x, mean, var, weight, bias, first, eps):
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)


def _keep(ctx, inputs, output):
    x, weight, bias, _, ctx.eps, _ = inputs
    _, first, mean, var = output
    ctx.mark_non_differentiable(first, mean, var)
    ctx.save_for_backward(x, mean, var, weight, bias, first)


def _differentiate(ctx, gradient, *_):
    x_gradient, weight_gradient, bias_gradient = torch.ops.cnv.normalized_signs_backward(
        gradient, *ctx.saved_tensors, ctx.eps
    )
    return x_gradient, weight_gradient, bias_gradient, None, None, None


_forward.register_autograd(_differentiate, setup_context=_keep)
